//! The programs and their maps, loaded for one test.

use std::{
    collections::BTreeMap,
    fs::read,
    io,
    os::fd::{AsFd as _, BorrowedFd},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{PerCpuArray, PerCpuValues},
    programs::{ProgramFd, SchedClassifier, TcAttachType},
    util::nr_cpus,
};
use overlay_common::{
    family::V4,
    maps,
    node::Leaving,
    outcome::{Counter, Hook, Kind, Outcome},
};

use super::{
    dispatcher::{Dispatcher, Ending, HOP, Left, Script, TAIL_CALL_FAILED},
    fixture::{Cluster, Fixture},
    maps::{SLOTS, pin_refusing_flow_table},
    run::{Run, Step, Surroundings, Verdict},
};
use crate::sys::bpf::{self, CHECKSUM_COMPLETE, SkBuff};

/// Enough for any test, and quick to allocate.
const MAX_FLOWS: u32 = 1024;

const MAX_PODS: u32 = 256;

/// Ethernet and IPv6 headers: the shortest frame a test run takes of any type.
const WHOLE_HEADER: usize = 54;

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
    pub(super) ebpf: Ebpf,
    programs: Vec<ProgramFd>,
    dispatcher: Dispatcher,
    pub(super) cpus: usize,
    /// As they were after the last run.
    pub(super) counters: Vec<Counter>,
    /// What was last written to the maps.
    pub(super) written: Option<Fixture<F>>,
    /// Whether programs that write to the maps ran since.
    pub(super) touched: bool,
    /// Keys and values of hash maps, byte by byte, when they were found to be as written.
    pub(super) as_written: BTreeMap<&'static str, Vec<u8>>,
}

impl<F: Cluster> Bench<F> {
    /// Loads the object the agent embeds, or the one that `OVERLAY_EBPF_OBJECT` names.
    pub fn load() -> Result<Self> {
        Self::load_with(|_| {})
    }

    /// Like [`Self::load`], but the flow table refuses new entries once it holds one. That is a
    /// plain hash table: an LRU table makes room instead. To be called on a
    /// [node](super::node::on_node), for its mount namespace.
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
            as_written: BTreeMap::new(),
            touched: false,
        })
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
            Ending::Verdict(verdict) => Ok(Run {
                verdict: verdict.into(),
                ..run
            }),
            Ending::Left(_) => bail!("the dispatcher reported what nobody asked for"),
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
            Ending::Left(left) => Ok(left),
            Ending::Verdict(verdict) => bail!("the dispatcher ended with verdict {verdict}"),
        }
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

    fn script(
        &mut self,
        steps: &[Step],
        frame: &[u8],
        surroundings: &Surroundings,
        report: bool,
    ) -> Result<(Run, Ending)> {
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
                let verdict = bpf::test_run(program, &mut frame, &mut context, 1, flags);
                Ending::Verdict(verdict.context("BPF_PROG_TEST_RUN")?)
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
            !matches!(end, Ending::Verdict(TAIL_CALL_FAILED)),
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
                Outcome::PermitGranted
                    | Outcome::WayOpened
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
            (Hook::Arrive, _) => surroundings.tc_index != 0,
            (Hook::Guard, _) => false,
        }
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
