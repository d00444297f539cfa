use proptest::prelude::*;

use super::*;

/// A packet from 10.5.2.7 to 10.5.1.7.
#[derive(Clone, Debug)]
struct Packet {
    kind: Kind,
    number: u16,
    dont_fragment: bool,
    tos: u8,
    ttl: u8,
    port: u16,
    sequence: u32,
    flags: u8,
    options: Vec<u8>,
    payload: Vec<u8>,
}

impl Packet {
    fn udp(payload: &[u8]) -> Self {
        Self {
            kind: Kind::Udp,
            number: 0,
            dont_fragment: true,
            tos: 0,
            ttl: 62,
            port: 4000,
            sequence: 0,
            flags: TCP_ACK,
            options: Vec::new(),
            payload: payload.to_vec(),
        }
    }

    fn tcp(sequence: u32, payload: &[u8]) -> Self {
        Self {
            kind: Kind::Tcp,
            sequence,
            ..Self::udp(payload)
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut packet = vec![0x45, self.tos, 0, 0];
        packet.extend(self.number.to_be_bytes());
        packet.extend([if self.dont_fragment { 0x40 } else { 0 }, 0]);
        packet.extend([
            self.ttl,
            self.kind.protocol(),
            0,
            0,
            10,
            5,
            2,
            7,
            10,
            5,
            1,
            7,
        ]);
        packet.extend(self.port.to_be_bytes());
        packet.extend([0, 53]);
        match self.kind {
            Kind::Udp => packet.extend([0; 4]),
            Kind::Tcp => {
                packet.extend(self.sequence.to_be_bytes());
                let words = u8::try_from(5 + self.options.len() / 4).unwrap();
                packet.extend([0, 0, 0, 9, words << 4, self.flags, 1, 0, 0, 0, 0, 0]);
                packet.extend(&self.options);
            }
        }
        packet.extend(&self.payload);
        seal(&mut packet);
        packet
    }
}

/// Writes lengths and checksums.
fn seal(packet: &mut [u8]) {
    let len = u16::try_from(packet.len()).unwrap();
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet[10..12].fill(0);
    let sum = packet::checksum(&packet[..HEADER]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    let kind = if packet[9] == IPPROTO_UDP {
        Kind::Udp
    } else {
        Kind::Tcp
    };
    let l4_len = len - 20;
    if kind == Kind::Udp {
        packet[24..26].copy_from_slice(&l4_len.to_be_bytes());
    }
    let at = HEADER + kind.checksum_at();
    packet[at..at + 2].fill(0);
    let sum = add_bytes(pseudo_header(packet, kind, l4_len), &packet[HEADER..]);
    let sum = match !fold(sum) {
        0 => u16::MAX,
        sum => sum,
    };
    packet[at..at + 2].copy_from_slice(&sum.to_ne_bytes());
}

/// What the kernel makes of the whole again (`inet_gso_segment`, `__udp_gso_segment`, `tcp_gso_segment`).
fn segments(whole: &[u8]) -> Vec<Vec<u8>> {
    let (about, packet) = whole.split_at(About::LEN);
    let at = |at: usize| u16::from_ne_bytes([about[at], about[at + 1]]);
    let (headers, size) = (usize::from(at(2)), usize::from(at(4)));
    let kind = if about[1] == 1 { Kind::Tcp } else { Kind::Udp };
    assert_eq!(about[0], 1, "the checksum is the kernel's to write");
    assert_eq!((at(6), usize::from(at(8))), (20, kind.checksum_at()));
    assert_eq!(packet::checksum(&packet[..HEADER]), 0);
    assert_eq!(usize::from(word(packet, 2)), packet.len());
    let from = HEADER + kind.checksum_at();
    let l4_len = u16::try_from(packet.len() - HEADER).unwrap();
    let start = u16::from_ne_bytes([packet[from], packet[from + 1]]);
    assert_eq!(start, fold(pseudo_header(packet, kind, l4_len)));

    let payload = &packet[headers..];
    let count = payload.chunks(size).count();
    let segment = |(index, payload): (usize, &[u8])| {
        let mut segment = packet[..headers].to_vec();
        let index16 = u16::try_from(index).unwrap();
        let number = word(packet, 4).wrapping_add(index16);
        segment[4..6].copy_from_slice(&number.to_be_bytes());
        if kind == Kind::Tcp {
            let sequence = u32::from_be_bytes(segment[24..28].try_into().unwrap());
            let ahead = u32::try_from(index * size).unwrap();
            segment[24..28].copy_from_slice(&sequence.wrapping_add(ahead).to_be_bytes());
            if index + 1 < count {
                segment[33] &= !TCP_PSH;
            }
        }
        segment.extend(payload);
        seal(&mut segment);
        segment
    };
    payload.chunks(size).enumerate().map(segment).collect()
}

/// What the device is given of the packets, the kernel's part undone.
fn carried(packets: &[Vec<u8>]) -> Vec<Vec<Vec<u8>>> {
    let mut given = Vec::new();
    let mut run = Run::new();
    let mut give = |run: &mut Run<'_>| {
        if let Some((parts, count)) = run.whole() {
            let whole: Vec<u8> = parts[..count]
                .iter()
                .flat_map(|part| part.to_vec())
                .collect();
            given.push(segments(&whole));
        } else {
            given.extend(run.packets().iter().map(|packet| vec![packet.to_vec()]));
        }
        run.clear();
    };
    for packet in packets {
        if !run.push(packet, |_| true) {
            give(&mut run);
            assert!(run.push(packet, |_| true));
        }
    }
    give(&mut run);
    given
}

fn counts(packets: &[Packet]) -> Vec<usize> {
    let packets: Vec<_> = packets.iter().map(Packet::bytes).collect();
    let given = carried(&packets);
    assert_eq!(given.concat(), packets);
    given.iter().map(Vec::len).collect()
}

fn numbered(mut packets: Vec<Packet>) -> Vec<Packet> {
    for (number, packet) in (7..).zip(&mut packets) {
        packet.number = number;
    }
    packets
}

#[test]
fn equal_datagrams_of_a_flow_are_one_packet_that_a_shorter_one_ends() {
    let lens = [100, 100, 100, 60, 100, 100, 101];
    let packets = lens.map(|len| Packet::udp(&vec![1; len]));
    assert_eq!(counts(&numbered(packets.into())), [4, 2, 1]);
    let many = vec![Packet::udp(&[5; 64]); 100];
    assert_eq!(counts(&numbered(many)), [64, 36]);
    let long = vec![Packet::udp(&[5; 1400]); 50];
    assert_eq!(counts(&numbered(long)), [46, 4]);
}

#[test]
fn segments_of_a_stream_are_one_packet_that_a_push_or_a_gap_ends() {
    let mut packets: Vec<_> = [0, 100, 200, 300, 500, 600]
        .map(|sequence| Packet::tcp((u32::MAX - 150).wrapping_add(sequence), &[3; 100]))
        .into();
    packets[2].flags |= TCP_PSH;
    assert_eq!(counts(&numbered(packets)), [3, 1, 2]);
    let mut options: Vec<_> = [0, 10, 20].map(|at| Packet::tcp(at, &[3; 10])).into();
    for packet in &mut options {
        packet.options = vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
    }
    options[2].options[7] = 2;
    assert_eq!(counts(&numbered(options)), [2, 1]);
}

#[test]
fn what_differs_or_says_more_than_its_flow_goes_alone() {
    let one = Packet::udp(&[9; 64]);
    let same = |change: &dyn Fn(&mut Packet)| {
        let mut other = one.clone();
        change(&mut other);
        counts(&numbered(vec![one.clone(), other])) == [2]
    };
    assert!(same(&|_| {}));
    assert!(!same(&|packet| packet.tos = 3));
    assert!(!same(&|packet| packet.ttl -= 1));
    assert!(!same(&|packet| packet.port += 1));
    assert!(!same(&|packet| packet.payload.clear()));
    assert!(!same(&|packet| packet.kind = Kind::Tcp));
    let segments = |flags| {
        let mut both = [Packet::tcp(0, &[9; 64]), Packet::tcp(64, &[9; 64])];
        both[1].flags = flags;
        counts(&numbered(both.into()))
    };
    assert_eq!(segments(TCP_ACK | TCP_PSH), [2]);
    for flags in [0, 0x01, 0x02, 0x04, 0x20, 0x40, 0x80] {
        let flags = if flags == 0 { 0 } else { TCP_ACK | flags };
        assert_eq!(segments(flags), [1, 1], "{flags:#x}");
    }
}

#[test]
fn numbers_matter_where_a_packet_may_be_cut() {
    let mut packets = vec![Packet::udp(&[9; 64]); 3];
    let merged = |packets: &[Packet]| {
        let bytes: Vec<_> = packets.iter().map(Packet::bytes).collect();
        carried(&bytes).iter().map(Vec::len).collect::<Vec<_>>()
    };
    assert_eq!(merged(&packets), [3], "all 0");
    for packet in &mut packets {
        packet.dont_fragment = false;
    }
    assert_eq!(merged(&packets), [1, 1, 1], "all 0");
    assert_eq!(counts(&numbered(packets)), [3]);
}

#[test]
fn damage_stays_what_it_is() {
    let packets = numbered(vec![Packet::udp(&[9; 64]); 4]);
    let bytes: Vec<_> = packets.iter().map(Packet::bytes).collect();
    for at in [8, 16, 22, 27, 40, 91] {
        for damaged in 0..4 {
            let mut packets = bytes.clone();
            packets[damaged][at] ^= 1;
            let given = carried(&packets);
            assert_eq!(given.concat(), packets, "byte {at} of {damaged}");
            let alone = given.iter().find(|given| given.contains(&packets[damaged]));
            assert_eq!(alone.map(Vec::len), Some(1), "byte {at} of {damaged}");
        }
    }
    let mut unsummed = bytes;
    for packet in &mut unsummed {
        packet[26..28].fill(0);
    }
    assert_eq!(carried(&unsummed).len(), 4, "nothing tells damage");
}

#[test]
fn what_is_no_such_packet_goes_as_it_came() {
    let whole = Packet::udp(&[9; 64]).bytes();
    let mut fragment = whole.clone();
    fragment[6] = 0x20;
    let mut options = whole.clone();
    options[0] = 0x46;
    let mut longer = whole.clone();
    longer.push(0);
    let mut other = whole.clone();
    other[9] = 1;
    let mut short_header = Packet::tcp(0, &[1; 20]).bytes();
    short_header[32] = 0x40;
    for packet in [
        fragment,
        options,
        longer,
        other,
        short_header,
        vec![0x45; 20],
        Vec::new(),
    ] {
        let packets = [packet.clone(), packet.clone()];
        assert_eq!(carried(&packets), packets.map(|packet| vec![packet]));
    }
}

fn packet() -> impl Strategy<Value = Packet> {
    let length = prop_oneof![Just(64usize), Just(64), Just(64), 0usize..70];
    (any::<bool>(), length, any::<u8>(), 0u8..16).prop_map(|(is_udp, len, fill, odd)| {
        let mut packet = Packet::udp(&vec![fill; len]);
        packet.kind = if is_udp { Kind::Udp } else { Kind::Tcp };
        packet.port += u16::from(odd == 1);
        packet.flags |= if odd == 2 { TCP_PSH } else { 0 };
        packet.tos = u8::from(odd == 3);
        packet.dont_fragment = odd != 4;
        packet
    })
}

proptest! {
    #[test]
    fn whatever_is_put_together_comes_apart_as_it_was(packets in proptest::collection::vec(packet(), 1..80)) {
        let mut packets = numbered(packets);
        let mut sequence = u32::MAX - 500;
        for packet in &mut packets {
            packet.sequence = sequence;
            sequence = sequence.wrapping_add(u32::try_from(packet.payload.len()).unwrap());
        }
        let bytes: Vec<_> = packets.iter().map(Packet::bytes).collect();
        prop_assert_eq!(carried(&bytes).concat(), bytes);
    }

    #[test]
    fn nothing_is_too_odd_to_be_carried(packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..100), 1..8)) {
        prop_assert_eq!(carried(&packets).concat(), packets);
    }
}
