//! A line for people about each packet, in the flavour of the object that has the `log` feature. The agent
//! writes it from a [`Record`](overlay_common::record::Record).
//!
//! The default flavour contains nothing of this: `aya-log-ebpf` declares a map that libbpf refuses.

#[cfg(not(feature = "log"))]
mod flavour {
    use aya_ebpf::programs::XdpContext;
    use overlay_common::outcome::{Hook, Outcome};

    use crate::helpers::Skb;

    #[inline(always)]
    pub fn packet(_: Hook, _: Outcome, _: Skb) {}

    #[inline(always)]
    pub fn guarded(_: Outcome, _: &XdpContext) {}
}

#[cfg(feature = "log")]
mod flavour {
    use aya_ebpf::{
        bindings::__sk_buff,
        programs::{TcContext, XdpContext},
    };
    use aya_log_ebpf::{
        log,
        macro_support::{Level, level_enabled},
    };
    use bytemuck::bytes_of;
    use overlay_common::{
        config::TUNNEL_UDP,
        encap::DATAGRAM_LEN,
        family::{V4, V6},
        outcome::{Hook, Kind, Outcome},
        record::{FAMILY_IPV4, FAMILY_IPV6, Record},
        wire::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPPROTO_TCP, IPPROTO_UDP},
    };

    use crate::{
        helpers::Skb,
        ip::{Fields, Header as _, Ip},
        maps::Tables as _,
        packet::{ETH_LEN, Packet},
    };

    /// A packet of a TC program.
    #[inline(always)]
    pub fn packet(hook: Hook, outcome: Outcome, skb: Skb) {
        let level = level(outcome);
        if level_enabled(level) {
            overlay_log(skb.raw(), hook as u32, outcome as u32, level as u32);
        }
    }

    /// A packet of the guard.
    #[inline(always)]
    pub fn guarded(outcome: Outcome, ctx: &XdpContext) {
        let level = level(outcome);
        if level_enabled(level) {
            let record = Record {
                hook: Hook::Guard as u8,
                outcome: outcome as u8,
                ifindex: ctx.ingress_ifindex() as u32,
                bytes: (ctx.data_end() - ctx.data()) as u32,
                ..Record::default()
            };
            write(
                level as u32,
                record,
                Packet::new(ctx.data(), ctx.data_end()),
            );
        }
    }

    /// A global function, which the verifier walks through once by itself, not behind each path through
    /// each program.
    #[unsafe(no_mangle)]
    #[inline(never)]
    pub extern "C" fn overlay_log(skb: *mut __sk_buff, hook: u32, outcome: u32, level: u32) -> u32 {
        let skb = Skb::new(&TcContext::new(skb));
        let record = Record {
            hook: hook as u8,
            outcome: outcome as u8,
            ifindex: skb.ifindex(),
            bytes: skb.len(),
            ..Record::default()
        };
        write(level, record, skb.packet());
        0
    }

    /// Completes the record by what can be read of the packet.
    #[inline(always)]
    fn write(level: u32, mut record: Record, packet: Packet) {
        let _ = describe(packet, &mut record);
        let level = match level {
            1 => Level::Error,
            2 => Level::Warn,
            3 => Level::Info,
            4 => Level::Debug,
            _ => Level::Trace,
        };
        log!((), target: "", level, "{:x}", bytes_of(&record));
    }

    #[inline(always)]
    fn describe(packet: Packet, record: &mut Record) -> Option<()> {
        const IPV4: u16 = u16::from_ne_bytes(ETHERTYPE_IPV4);
        const IPV6: u16 = u16::from_ne_bytes(ETHERTYPE_IPV6);
        if is_bare(record.ifindex) {
            describe_ip::<V4>(packet, 0, record)?;
            record.family = FAMILY_IPV4;
            return Some(());
        }
        match packet.read(12)? {
            IPV4 => {
                describe_ip::<V4>(packet, ETH_LEN, record)?;
                record.family = FAMILY_IPV4;
            }
            IPV6 => {
                describe_ip::<V6>(packet, ETH_LEN, record)?;
                record.family = FAMILY_IPV6;
            }
            _ => {}
        }
        Some(())
    }

    /// Whether the device has no Ethernet headers.
    #[inline(always)]
    fn is_bare(ifindex: u32) -> bool {
        V4::config()
            .is_some_and(|config| config.tunnel == TUNNEL_UDP && config.vtep_ifindex == ifindex)
    }

    #[inline(always)]
    fn describe_ip<F: Ip>(packet: Packet, at: usize, record: &mut Record) -> Option<()> {
        let outer = Headers::<F>::read(packet, at)?;
        outer.describe(record);
        let config = F::config()?;
        if outer.ip.protocol != IPPROTO_UDP || outer.dst_port != config.vxlan_port {
            return Some(());
        }
        let inner = if config.tunnel == TUNNEL_UDP {
            Headers::<F>::read(packet, at + DATAGRAM_LEN as usize)
        } else {
            let inner_at = at + F::ENCAP_LEN as usize;
            let is_inner = packet.read(inner_at - 2) == Some(F::ETHERTYPE);
            is_inner
                .then(|| Headers::<F>::read(packet, inner_at))
                .flatten()
        };
        if let Some(inner) = inner {
            let Fields { src, dst, .. } = outer.ip;
            put::<F>(if src == config.vtep { dst } else { src }, &mut record.peer);
            inner.describe(record);
        }
        Some(())
    }

    struct Headers<F: Ip> {
        ip: Fields<F::Be>,
        /// 0 if there are none.
        src_port: [u8; 2],
        dst_port: [u8; 2],
    }

    impl<F: Ip> Headers<F> {
        #[inline(always)]
        fn read(packet: Packet, offset: usize) -> Option<Self> {
            let header: F::Header = packet.read(offset)?;
            let is_plain = header.is_plain().is_ok();
            let ip = header.fields();
            let has_ports = is_plain && (ip.protocol == IPPROTO_TCP || ip.protocol == IPPROTO_UDP);
            let ports: Option<[[u8; 2]; 2]> = if has_ports {
                packet.read(offset + F::LEN)
            } else {
                None
            };
            let [src_port, dst_port] = ports.unwrap_or_default();
            Some(Self {
                ip,
                src_port,
                dst_port,
            })
        }

        #[inline(always)]
        fn describe(&self, record: &mut Record) {
            record.protocol = self.ip.protocol;
            record.src_port = self.src_port;
            record.dst_port = self.dst_port;
            put::<F>(self.ip.src, &mut record.src);
            put::<F>(self.ip.dst, &mut record.dst);
        }
    }

    #[inline(always)]
    fn put<F: Ip>(address: F::Be, into: &mut [u8; 16]) {
        if let Some(into) = into.get_mut(..size_of::<F::Be>()) {
            into.copy_from_slice(bytes_of(&address));
        }
    }

    /// Who wants to see it: whoever looks for damage, for what keeps a flow of pods from the fast path, for
    /// the course of every flow, or at everything.
    #[inline(always)]
    const fn level(outcome: Outcome) -> Level {
        match (outcome.kind(), outcome) {
            (_, Outcome::Rewrite) => Level::Error,
            (Kind::Drop, _) => Level::Warn,
            (Kind::Fast | Kind::Short, _)
            | (
                _,
                Outcome::NotIp
                | Outcome::NotOverlay
                | Outcome::Unserved
                | Outcome::Protocol
                | Outcome::Passed,
            ) => Level::Trace,
            (Kind::Permit, _)
            | (
                _,
                Outcome::Disabled
                | Outcome::TcpControl
                | Outcome::NoPermit
                | Outcome::Generation
                | Outcome::NotGateway
                | Outcome::Handshake
                | Outcome::Stamped
                | Outcome::Leaving
                | Outcome::FirstPacket,
            ) => Level::Debug,
            (Kind::Decline, _) => Level::Info,
        }
    }
}

pub use flavour::{guarded, packet};
