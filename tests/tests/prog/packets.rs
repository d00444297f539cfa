//! Packets that most programs are tried with.

use overlay_tests::prog::packet::{TCP_ACK, Transport};

/// The interface of a program run that names none.
pub const LOOPBACK: u32 = 1;

/// A way to alter something.
pub type Edit<'a, T> = &'a dyn Fn(&mut T);

/// One flow of each protocol.
pub const TRANSPORTS: [Transport; 5] = [
    tcp(TCP_ACK),
    Transport::Udp {
        src: 5_353,
        dst: 53,
    },
    sctp(DATA),
    Transport::EchoRequest { id: 77 },
    Transport::EchoReply { id: 78 },
];

pub const fn tcp(flags: u8) -> Transport {
    Transport::Tcp {
        src: 40_000,
        dst: 80,
        flags,
        options: 0,
    }
}

/// Types of SCTP chunks.
pub const DATA: u8 = 0;
pub const SACK: u8 = 3;

/// Of one chunk.
pub const fn sctp(chunk: u8) -> Transport {
    Transport::Sctp {
        src: 36_412,
        dst: 36_422,
        chunk,
    }
}
