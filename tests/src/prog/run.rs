//! A packet's way through programs: its surroundings, and what came of it.

use std::fmt;

use anyhow::{Result, bail};
use overlay_common::{
    node::Leaving,
    outcome::{Counter, Hook, Outcome},
};

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
