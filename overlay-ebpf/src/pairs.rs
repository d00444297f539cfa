//! Notes in trusted mode which pairs of pods a translation may connect, before any answer can come: each of their
//! flows is one of its own from then on, and those that are translated are found as such.

use overlay_common::{config::Config, flow::FlowWords, outcome::Outcome};

use crate::{
    earn::Passage,
    entered,
    flow_packet::{FlowPacket, Local},
    helpers::Skb,
    ip::{Header as _, Ip},
    maps,
};

/// Of a packet that netfilter translates. One that was taken for a packet of the pair may open or close a
/// connection, so it earns nothing.
#[inline(always)]
pub fn note_translated<F: Ip>(
    config: &Config<F>,
    flow: &FlowPacket<F>,
    passage: &Passage<'_, F>,
) -> Result<(), Outcome> {
    if config.notes_translations() {
        note(config, *passage.entered);
        note(config, *passage.left);
        if flow.is_pair {
            return Err(Outcome::Translated);
        }
    }
    Ok(())
}

/// Of a packet that leaves without a proof that it entered as it is: a rule may have made it of another one. The
/// host's own packets are no pod's.
#[inline(always)]
pub fn note_unproven<F: Ip>(skb: &Skb, config: &Config<F>, flow: &FlowPacket<F>) {
    if config.notes_translations() && skb.ingress_ifindex() != 0 {
        let entered = entered::find::<F>(skb.hash());
        // As with a flush while it passed the host, or a rule that writes the TOS.
        if !entered.is_some_and(|entered| entered.is_same(flow.words)) {
            note(config, flow.words);
        }
    }
}

/// Of a packet, with its IP header at `AT`, whose ports cannot be read: others of its flow may be whole and
/// without options.
#[inline(always)]
pub fn note_unread<F: Ip, const AT: usize>(skb: &Skb, local: Local, outcome: Outcome) {
    if matches!(outcome, Outcome::Fragment | Outcome::IpOptions) {
        note_addresses::<F, AT>(*skb, local == Local::Source);
    }
}

/// A function of its own: what it needs of the stack, the paths to it share.
#[inline(never)]
fn note_addresses<F: Ip, const AT: usize>(skb: Skb, is_source: bool) -> u32 {
    if let Some(config) = F::config()
        && let Some(header) = skb.packet().read::<F::Header>(AT)
    {
        let ip = header.fields();
        let (local, remote) = if is_source {
            (ip.src, ip.dst)
        } else {
            (ip.dst, ip.src)
        };
        if config.notes_translations() && config.is_local_pod(local) {
            note(config, FlowWords::new(local, remote, 0, 0, 0));
        }
    }
    0
}

#[inline(always)]
fn note<F: Ip>(config: &Config<F>, words: FlowWords<F>) {
    if config.is_remote_pod(words.remote()) {
        maps::mark_translated(words);
    }
}
