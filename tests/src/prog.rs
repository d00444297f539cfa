//! Runs one BPF program on one packet (`BPF_PROG_TEST_RUN`), with maps of its own, and says what
//! came of it: verdict, packet, and which counter counted.
//!
//! What a test run cannot show: the interface a redirect goes to, and packets with paged data. The
//! lab's tests send real packets for those.

pub mod dispatcher;
pub mod fixture;
pub mod model;
pub mod node;
pub mod oddities;
pub mod packet;
pub mod passage;
mod sys;

use std::{
    collections::BTreeMap,
    fmt,
    fs::read,
    io,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, LpmTrie, Map, MapData, PerCpuArray, PerCpuValues, lpm_trie::Key},
    programs::{ProgramFd, SchedClassifier, TcAttachType},
    util::nr_cpus,
};
use bytemuck::Zeroable as _;
use nix::{
    mount::{MsFlags, mount},
    sched::sched_getcpu,
};
use overlay_common::{
    config::Config,
    family::V4,
    flow::{Flow, FlowKey},
    maps,
    node::{Gateway, Leaving, Nexthop, Node, Peer, PodKey, PodPort, move_slot},
    outcome::{Counter, Hook, Kind, OUTCOMES_PER_HOOK, Outcome, slot},
    route::Route,
    slow::Slow,
    stamp::seen_slot,
};

use self::{
    dispatcher::{Dispatcher, End, HOP, Left, Script, TAIL_CALL_FAILED},
    fixture::{Cluster, Fixture, NODES, POD_MAC},
    sys::{CHECKSUM_COMPLETE, SkBuff},
};

/// Enough for any test, and quick to allocate.
const MAX_FLOWS: u32 = 1024;

const MAX_PODS: u32 = 256;

/// More than any hash map holds in a test.
const MAX_ENTRIES: usize = 2048;

/// Counters of the hooks there are.
const SLOTS: usize = Hook::ALL.len() * OUTCOMES_PER_HOOK as usize;

/// Ethernet and IPv6 headers: the shortest frame a test run takes of any type.
const WHOLE_HEADER: usize = 54;

/// What a program decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    Drop,
    Redirect,
    /// No verdict these programs may give.
    Other(u32),
}

impl From<u32> for Verdict {
    /// `TC_ACT_*` of `linux/pkt_cls.h`. To pass is to leave the verdict to others (`TC_ACT_UNSPEC`).
    fn from(number: u32) -> Self {
        match number {
            u32::MAX => Self::Pass,
            2 => Self::Drop,
            7 => Self::Redirect,
            other => Self::Other(other),
        }
    }
}

/// What happens to a packet on its way through the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It meets the program of this hook.
    Program(Hook),
    /// The kernel routes it.
    Hop,
}

/// The packet's surroundings.
#[derive(Clone, Copy, Debug, Default)]
pub struct Surroundings {
    /// The device the program runs on; 0 is the loopback device.
    pub ifindex: u32,
    /// The device through which the packet entered the host.
    pub ingress_ifindex: u32,
    pub gso_size: u32,
    /// The mark it carries.
    pub mark: u32,
    /// The stamp it carries.
    pub hash: u32,
    /// What another program said of it.
    pub tc_index: u16,
    pub priority: u32,
    /// What is noted of the packet that passed to the vxlan device last, if not what a program left.
    pub leaving: Option<Leaving>,
    /// Whether packets with its stamp were seen before.
    pub seen: Seen,
    /// Tag control information of a VLAN tag.
    pub vlan: Option<u16>,
    /// The device has computed a checksum over the packet, and the run fails unless it is right for
    /// what the packet has become. Not together with a stamp, a `tc_index`, a VLAN tag or a cut packet.
    pub checksum: bool,
}

/// Whether the programs saw packets with a stamp before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Seen {
    #[default]
    Before,
    Never,
    /// As earlier runs left it.
    AsItIs,
}

/// What came of one program and one packet.
#[derive(Clone, PartialEq, Eq)]
pub struct Run {
    pub verdict: Verdict,
    /// The packet afterwards.
    pub frame: Vec<u8>,
    /// `skb->mark` and `skb->priority` afterwards.
    pub mark: u32,
    pub priority: u32,
    /// What was counted, and how often.
    pub counted: Vec<(Hook, Outcome, Counter)>,
}

impl Run {
    /// What each program counted, in the order of the hooks' numbers.
    pub fn outcomes(&self) -> Vec<(Hook, Outcome)> {
        self.counted
            .iter()
            .map(|&(hook, outcome, _)| (hook, outcome))
            .collect()
    }

    /// The one outcome that `hook` counted, once and with the right number of bytes.
    pub fn outcome(&self, hook: Hook, bytes: usize) -> Result<Outcome> {
        match self.counted.as_slice() {
            &[(at, outcome, counter)]
                if at == hook && counter.packets == 1 && counter.bytes == bytes as u64 =>
            {
                Ok(outcome)
            }
            other => bail!("not one packet of {bytes} bytes at {hook:?} was counted: {other:?}"),
        }
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}, counted {:?}", self.verdict, self.counted)?;
        write!(f, "{}", Hex(&self.frame))
    }
}

/// A frame for people.
pub struct Hex<'a>(pub &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match etherparse::PacketHeaders::from_ethernet_slice(self.0) {
            Ok(headers) => writeln!(f, "{:?} {:?}", headers.net, headers.transport)?,
            Err(error) => writeln!(f, "{error}")?,
        }
        for (row, bytes) in self.0.chunks(16).enumerate() {
            write!(f, "{:04x} ", row * 16)?;
            for byte in bytes {
                write!(f, " {byte:02x}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// How big a program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Instructions after the kernel's rewrites.
    pub translated: u32,
    /// Instructions the verifier looked at, on all paths.
    pub verified: u32,
}

/// The programs and maps, loaded for one test. It serves one address family, as on a node that has
/// no pods of the other.
pub struct Bench<F: Cluster = V4> {
    ebpf: Ebpf,
    programs: Vec<ProgramFd>,
    dispatcher: Dispatcher,
    cpus: usize,
    /// As they were after the last run.
    counters: Vec<Counter>,
    /// What was last written to the maps.
    written: Option<Fixture<F>>,
    /// Whether programs that write to the maps ran since.
    touched: bool,
}

impl<F: Cluster> Bench<F> {
    /// Loads the object the agent embeds, or the one that `OVERLAY_EBPF_OBJECT` names.
    pub fn load() -> Result<Self> {
        Self::load_with(|_| {})
    }

    /// Like [`Self::load`], but the flow table refuses new entries once it holds one. That is a
    /// plain hash table: an LRU table makes room instead. To be called on a
    /// [node](node::on_node), for its mount namespace.
    pub fn load_with_refusing_flow_table() -> Result<Self> {
        let path = pin_refusing_flow_table::<F>()?;
        Self::load_with(|loader| {
            loader.map_pin_path(F::MAPS.flows, path);
        })
    }

    fn load_with(adjust: impl FnOnce(&mut EbpfLoader<'_>)) -> Result<Self> {
        let named = std::env::var_os("OVERLAY_EBPF_OBJECT")
            .map(read)
            .transpose()?;
        let object = named.as_deref().unwrap_or(overlay_agent::object::OBJECT);
        let mut loader = EbpfLoader::new();
        loader
            .map_max_entries(maps::FLOWS4, MAX_FLOWS)
            .map_max_entries(maps::FLOWS6, MAX_FLOWS)
            .map_max_entries(maps::PODS, MAX_PODS);
        adjust(&mut loader);
        let mut ebpf = loader.load(object).context("cannot load the BPF object")?;
        let programs = Hook::CLASSIFIERS
            .iter()
            .map(|&hook| load_program(&mut ebpf, hook))
            .collect::<Result<Vec<_>>>()?;
        let fds: Vec<BorrowedFd<'_>> = programs.iter().map(ProgramFd::as_fd).collect();
        Ok(Self {
            dispatcher: Dispatcher::new(&fds).context("cannot load the dispatcher")?,
            cpus: nr_cpus()
                .map_err(|(path, error)| io::Error::other(format!("{path}: {error}")))?,
            programs,
            ebpf,
            counters: vec![Counter::default(); SLOTS],
            written: None,
            touched: false,
        })
    }

    /// Makes the maps hold `fixture`, whatever a program or an earlier fixture left in them.
    pub fn set(&mut self, fixture: &Fixture<F>) -> Result<()> {
        if !self.touched && self.written.as_ref() == Some(fixture) {
            return Ok(());
        }
        if self.written.as_ref() != Some(fixture) {
            self.write_constant(fixture)?;
        }
        self.hash::<FlowKey<F>, Flow>(F::MAPS.flows, &fixture.flows)?;
        self.hash::<PodKey, PodPort>(maps::PODS, &fixture.pods)?;
        let mut moves: Array<_, u32> = self.map(maps::MOVES)?.try_into()?;
        let pod = PodKey {
            mac: POD_MAC,
            ..PodKey::default()
        };
        moves.set(move_slot(bytemuck::cast(pod)), 0, 0)?;
        let mut nexthops: Array<_, Nexthop> = self.map(F::MAPS.nexthops)?.try_into()?;
        for index in 0..NODES {
            let wanted = fixture.nexthops.get(&index).copied().unwrap_or_default();
            if nexthops.get(&index, 0)? != wanted {
                nexthops.set(index, wanted, 0)?;
            }
        }
        let mut config: Array<_, Config<F>> = self.map(F::MAPS.config)?.try_into()?;
        config.set(0, fixture.config, 0)?;
        self.written = Some(fixture.clone());
        self.touched = false;
        Ok(())
    }

    /// Writes the maps that programs only read.
    fn write_constant(&mut self, fixture: &Fixture<F>) -> Result<()> {
        let old = self.written.take();
        self.hash::<F::Be, Peer>(F::MAPS.peers, &fixture.peers)?;
        self.hash::<u32, Gateway>(maps::GATEWAYS, &fixture.gateways)?;
        let mut slow: Array<_, Slow> = self.map(maps::SLOW)?.try_into()?;
        slow.set(0, fixture.slow, 0)?;
        let mut routes: LpmTrie<_, F::Be, Route> = self.map(F::MAPS.routes)?.try_into()?;
        let key = |&(subnet, prefix_len): &(F::Octets, u8)| {
            Key::new(u32::from(prefix_len), F::be(subnet))
        };
        for subnet in old.iter().flat_map(|old| old.routes.keys()) {
            routes.remove(&key(subnet))?;
        }
        for (subnet, route) in &fixture.routes {
            routes.insert(&key(subnet), route, 0)?;
        }
        let mut nodes: Array<_, Node<F>> = self.map(F::MAPS.nodes)?.try_into()?;
        for &index in old.iter().flat_map(|old| old.nodes.keys()) {
            nodes.set(index, Node::zeroed(), 0)?;
        }
        for (&index, node) in &fixture.nodes {
            nodes.set(index, node, 0)?;
        }
        Ok(())
    }

    /// Runs the program of `hook` once.
    pub fn run(&mut self, hook: Hook, frame: &[u8], surroundings: &Surroundings) -> Result<Run> {
        self.chain(&[Step::Program(hook)], frame, surroundings)
    }

    /// Takes `steps` one after the other on one packet. The verdict is the last program's.
    pub fn chain(
        &mut self,
        steps: &[Step],
        frame: &[u8],
        surroundings: &Surroundings,
    ) -> Result<Run> {
        // Which stamp the first of several programs gives the packet shows another run.
        if let [Step::Program(hook), _, ..] = steps
            && let Ok(left) = self.left_by(*hook, frame, surroundings)
        {
            self.set_seen(left.hash, surroundings.seen)?;
        }
        let (run, end) = self.script(steps, frame, surroundings, false)?;
        match end {
            End::Verdict(verdict) => Ok(Run {
                verdict: verdict.into(),
                ..run
            }),
            End::Left(_) => bail!("the dispatcher reported what nobody asked for"),
        }
    }

    /// Runs the program of `hook` on one packet. Returns what is on the packet afterwards instead of a
    /// verdict.
    pub fn left_by(
        &mut self,
        hook: Hook,
        frame: &[u8],
        surroundings: &Surroundings,
    ) -> Result<Left> {
        match self
            .script(&[Step::Program(hook)], frame, surroundings, true)?
            .1
        {
            End::Left(left) => Ok(left),
            End::Verdict(verdict) => bail!("the dispatcher ended with verdict {verdict}"),
        }
    }

    /// What is noted on this CPU of the packet that passed to the vxlan device last. Programs run on the
    /// thread's own CPU, which is the same all the time on a [node](node::on_node).
    pub fn leaving(&mut self) -> Result<Leaving> {
        let map: PerCpuArray<_, Leaving> = self.map(maps::LEAVING)?.try_into()?;
        let values = map.get(&0, 0)?;
        let value = values.get(sched_getcpu()?);
        value.copied().context("there is one for each CPU")
    }

    /// Attaches the program of `hook` to the interface, on the side where packets come in, until
    /// this bench is dropped.
    pub fn attach_ingress(&mut self, hook: Hook, interface: &str) -> Result<()> {
        let name = program_name(hook);
        let program: &mut SchedClassifier = self
            .ebpf
            .program_mut(&name)
            .with_context(|| format!("the object has no program {name}"))?
            .try_into()?;
        program
            .attach(interface, TcAttachType::Ingress)
            .with_context(|| format!("cannot attach {name} to {interface}"))?;
        Ok(())
    }

    /// What the programs counted since the last run, or the last call of this.
    pub fn counted(&mut self) -> Result<Vec<(Hook, Outcome, Counter)>> {
        let counters = self.counters()?;
        let counted = difference(&self.counters, &counters)?;
        self.counters = counters;
        Ok(counted)
    }

    /// The flow table's entry, of which there must be one.
    pub fn entry(&mut self, key: FlowKey<F>) -> Result<Flow> {
        self.flow(key)?
            .with_context(|| format!("no entry for {key:?}"))
    }

    /// The flow table's entry, if there is one.
    pub fn flow(&mut self, key: FlowKey<F>) -> Result<Option<Flow>> {
        let flows: HashMap<_, FlowKey<F>, Flow> = self.map(F::MAPS.flows)?.try_into()?;
        match flows.get(&key, 0) {
            Ok(flow) => Ok(Some(flow)),
            Err(aya::maps::MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub fn nexthop(&mut self, index: u32) -> Result<Nexthop> {
        let nexthops: Array<_, Nexthop> = self.map(F::MAPS.nexthops)?.try_into()?;
        Ok(nexthops.get(&index, 0)?)
    }

    pub fn size(&self, hook: Hook) -> Result<Size> {
        let program: &SchedClassifier = self
            .ebpf
            .program(&program_name(hook))
            .context("loaded before")?
            .try_into()?;
        let info = program.info()?;
        let missing = "the kernel does not say how big programs are (Linux 5.16 does)";
        Ok(Size {
            translated: info.size_translated().context(missing)? / 8,
            verified: info.verified_instruction_count().context(missing)?,
        })
    }

    /// Has packets with this stamp seen before or not, in both directions.
    fn set_seen(&mut self, stamp: u32, seen: Seen) -> Result<()> {
        let noted = match seen {
            Seen::Before => stamp,
            Seen::Never => 0,
            Seen::AsItIs => return Ok(()),
        };
        let mut map: Array<_, u32> = self.map(maps::SEEN)?.try_into()?;
        for is_inbound in [false, true] {
            map.set(seen_slot(stamp, is_inbound), noted, 0)?;
        }
        Ok(())
    }

    fn script(
        &mut self,
        steps: &[Step],
        frame: &[u8],
        surroundings: &Surroundings,
        report: bool,
    ) -> Result<(Run, End)> {
        if surroundings.hash != 0 {
            self.set_seen(surroundings.hash, surroundings.seen)?;
        }
        if let Some(leaving) = surroundings.leaving {
            let cpus = self.cpus;
            let mut map: PerCpuArray<_, Leaving> = self.map(maps::LEAVING)?.try_into()?;
            map.set(0, PerCpuValues::try_from(vec![leaving; cpus])?, 0)?;
        }
        let mut context = SkBuff {
            mark: surroundings.mark,
            priority: surroundings.priority,
            ifindex: surroundings.ifindex,
            ingress_ifindex: surroundings.ingress_ifindex,
            gso_size: surroundings.gso_size,
            ..SkBuff::default()
        };
        let cut = (frame.len() < WHOLE_HEADER).then_some(u16::try_from(frame.len())?);
        let source = frame.get(6..12).unwrap_or_default().to_vec();
        let mut frame = frame.to_vec();
        frame.resize(frame.len().max(WHOLE_HEADER), 0);
        let plain = surroundings.hash == 0
            && surroundings.tc_index == 0
            && surroundings.vlan.is_none()
            && cut.is_none()
            && !report;
        let end = match steps {
            // Without the dispatcher this is exactly what the kernel runs.
            [Step::Program(hook)] if plain => {
                let program = self.programs[*hook as usize].as_fd();
                let flags = if surroundings.checksum {
                    CHECKSUM_COMPLETE
                } else {
                    0
                };
                let verdict = sys::test_run(program, &mut frame, &mut context, 1, flags);
                End::Verdict(verdict.context("BPF_PROG_TEST_RUN")?)
            }
            steps => {
                let number = |&step| match step {
                    Step::Program(hook) => hook as u32,
                    Step::Hop => HOP,
                };
                let steps: Vec<u32> = steps.iter().map(number).collect();
                let script = Script {
                    hash: surroundings.hash,
                    tc_index: surroundings.tc_index,
                    vlan: surroundings.vlan,
                    cut,
                    steps: &steps,
                    report,
                };
                self.dispatcher.run(script, &mut frame, &mut context)?
            }
        };
        ensure!(
            !matches!(end, End::Verdict(TAIL_CALL_FAILED)),
            "a tail call of the dispatcher failed"
        );
        let run = Run {
            verdict: Verdict::Pass,
            frame,
            mark: context.mark,
            priority: context.priority,
            counted: self.counted()?,
        };
        self.touched |= run
            .counted
            .iter()
            .any(|&(hook, outcome, _)| self.may_write(hook, outcome, &source, surroundings));
        Ok((run, end))
    }

    /// Whether a program with this outcome may have changed the maps. The egress program learns
    /// where the senders are of packets that are not fast.
    fn may_write(
        &self,
        hook: Hook,
        outcome: Outcome,
        source: &[u8],
        surroundings: &Surroundings,
    ) -> bool {
        match (hook, outcome) {
            (Hook::Confirm | Hook::Deliver, _) => matches!(
                outcome,
                Outcome::LeaseGranted
                    | Outcome::TableFull
                    | Outcome::Handshake
                    | Outcome::FlowClosed
            ),
            (Hook::Egress, _) => {
                let pods = self.written.iter().flat_map(|written| &written.pods);
                let mut pods = pods.filter(|(pod, _)| pod.mac.octets == source);
                outcome.kind() != Kind::Fast
                    && !pods.any(|(_, port)| port.ifindex == surroundings.ifindex)
            }
            // Among what is not for pods may be a router's message about a next hop.
            (Hook::Ingress, _) => outcome == Outcome::NotOverlay,
            (Hook::Arrive | Hook::Guard, _) => false,
        }
    }

    /// All counters, each summed over the CPUs.
    fn counters(&self) -> Result<Vec<Counter>> {
        let map = self.ebpf.map(maps::STATS).context("OVL_STATS is missing")?;
        let Map::PerCpuArray(map) = map else {
            bail!("OVL_STATS is no per-CPU array: {map:?}");
        };
        let (_, per_cpu) = sys::entries::<u32, Counter>(map.fd().as_fd(), SLOTS, self.cpus)?;
        Ok(per_cpu
            .chunks(self.cpus)
            .map(|cpus| Counter {
                packets: cpus.iter().map(|counter| counter.packets).sum(),
                bytes: cpus.iter().map(|counter| counter.bytes).sum(),
            })
            .collect())
    }

    fn map(&mut self, name: &str) -> Result<&mut Map> {
        self.ebpf
            .map_mut(name)
            .with_context(|| format!("the object has no map {name}"))
    }

    /// Makes a hash map hold exactly `wanted`.
    fn hash<K, V>(&mut self, name: &str, wanted: &BTreeMap<K, V>) -> Result<()>
    where
        K: aya::Pod + bytemuck::Pod + Ord,
        V: aya::Pod + bytemuck::Pod + PartialEq,
    {
        let map = self.map(name)?;
        let (Map::HashMap(data) | Map::LruHashMap(data)) = &*map else {
            bail!("{name} is no hash map: {map:?}");
        };
        let (keys, values) = sys::entries::<K, V>(data.fd().as_fd(), MAX_ENTRIES, 1)?;
        let present: BTreeMap<K, V> = keys.into_iter().zip(values).collect();
        let mut map: HashMap<_, K, V> = map.try_into()?;
        for key in present.keys().filter(|key| !wanted.contains_key(key)) {
            map.remove(key)?;
        }
        for (key, value) in wanted {
            if present.get(key) != Some(value) {
                map.insert(key, value, 0)?;
            }
        }
        Ok(())
    }
}

/// The name of the program of `hook` in the object.
fn program_name(hook: Hook) -> String {
    format!("overlay_{}", hook.name())
}

fn load_program(ebpf: &mut Ebpf, hook: Hook) -> Result<ProgramFd> {
    let name = program_name(hook);
    let program: &mut SchedClassifier = ebpf
        .program_mut(&name)
        .with_context(|| format!("the object has no program {name}"))?
        .try_into()?;
    program
        .load()
        .with_context(|| format!("cannot load {name}"))?;
    Ok(program.fd()?.try_clone()?)
}

/// Mounts a BPF file system that goes with the mount namespace, and pins a plain hash table for
/// one flow in it.
fn pin_refusing_flow_table<F: Cluster>() -> Result<PathBuf> {
    let mount_point = Path::new("/sys/fs/bpf");
    let nothing = None::<&str>;
    mount(
        Some("bpf"),
        mount_point,
        Some("bpf"),
        MsFlags::empty(),
        nothing,
    )?;
    let path = mount_point.join(F::MAPS.flows);
    HashMap::<MapData, FlowKey<F>, Flow>::create(1, 0)?.pin(&path)?;
    Ok(path)
}

/// The counters that changed.
fn difference(before: &[Counter], after: &[Counter]) -> Result<Vec<(Hook, Outcome, Counter)>> {
    before
        .iter()
        .zip(after)
        .enumerate()
        .filter(|(_, (before, after))| before != after)
        .map(|(index, (before, after))| {
            let (hook, outcome) = named(index)
                .with_context(|| format!("a counter without a name counted: slot {index}"))?;
            let counter = Counter {
                packets: after.packets - before.packets,
                bytes: after.bytes - before.bytes,
            };
            Ok((hook, outcome, counter))
        })
        .collect()
}

/// What the counter at `index` counts.
fn named(index: usize) -> Option<(Hook, Outcome)> {
    let pairs = Hook::ALL
        .iter()
        .flat_map(|&hook| Outcome::ALL.iter().map(move |&outcome| (hook, outcome)));
    pairs
        .into_iter()
        .find(|&(hook, outcome)| slot(hook, outcome) as usize == index)
}

/// What a row of a test expects.
#[derive(Clone, Debug)]
pub enum Expected {
    /// The kernel goes on with the packet as it was.
    Pass(Outcome),
    Drop(Outcome),
    /// Handled by the program, which made this frame of it.
    Redirect(Outcome, Vec<u8>),
}

impl Expected {
    pub const fn outcome(&self) -> Outcome {
        match *self {
            Self::Pass(outcome) | Self::Drop(outcome) | Self::Redirect(outcome, _) => outcome,
        }
    }
}

/// One case: a packet, what is around it, what must come of it.
pub struct Row<F: Cluster = V4> {
    pub name: String,
    pub hook: Hook,
    pub frame: Vec<u8>,
    pub surroundings: Surroundings,
    pub fixture: Fixture<F>,
    pub expected: Expected,
}

impl<F: Cluster> Row<F> {
    /// Runs the row; an error tells what differs.
    pub fn check(&self, bench: &mut Bench<F>) -> Result<()> {
        bench.set(&self.fixture)?;
        let run = bench
            .run(self.hook, &self.frame, &self.surroundings)
            .with_context(|| format!("{:?}: {}", self.hook, self.name))?;
        self.compare(&run).with_context(|| {
            format!(
                "{:?}: {}\npacket, {:?}:\n{}became: {run:?}",
                self.hook,
                self.name,
                self.surroundings,
                Hex(&self.frame),
            )
        })
    }

    fn compare(&self, run: &Run) -> Result<()> {
        let outcome = run.outcome(self.hook, self.frame.len())?;
        let want = self.expected.outcome();
        ensure!(
            outcome == want,
            "{outcome:?} was counted instead of {want:?}"
        );
        let (verdict, frame, kinds): (_, _, &[Kind]) = match &self.expected {
            Expected::Pass(_) => (
                Verdict::Pass,
                Some(&self.frame),
                &[Kind::Decline, Kind::Lease],
            ),
            // Nobody sees the bytes of a dropped packet.
            Expected::Drop(_) => (Verdict::Drop, None, &[Kind::Drop]),
            Expected::Redirect(_, frame) => (Verdict::Redirect, Some(frame), &[Kind::Fast]),
        };
        ensure!(
            run.verdict == verdict,
            "{:?} instead of {verdict:?}",
            run.verdict
        );
        ensure!(
            kinds.contains(&outcome.kind()),
            "{outcome:?} with {verdict:?}"
        );
        if let Some(frame) = frame {
            ensure!(
                run.frame == *frame,
                "the packet must have become:\n{}",
                Hex(frame)
            );
        }
        Ok(())
    }
}

/// Runs every row and reports all that fail.
pub fn check_rows<F: Cluster>(bench: &mut Bench<F>, rows: &[Row<F>]) -> Result<()> {
    let failures: Vec<String> = rows
        .iter()
        .filter_map(|row| row.check(bench).err())
        .map(|error| format!("{error:#}"))
        .collect();
    ensure!(
        failures.is_empty(),
        "{} of {} rows failed:\n\n{}",
        failures.len(),
        rows.len(),
        failures.join("\n\n")
    );
    Ok(())
}

/// Makes tests of functions over a [`Cluster`], one for each address family.
#[macro_export]
macro_rules! in_both_families {
    ($($test:ident,)+) => {
        mod ipv4 {
            $(#[test]
            fn $test() -> anyhow::Result<()> {
                super::$test::<overlay_common::family::V4>()
            })+
        }

        mod ipv6 {
            $(#[test]
            fn $test() -> anyhow::Result<()> {
                super::$test::<overlay_common::family::V6>()
            })+
        }
    };
}
