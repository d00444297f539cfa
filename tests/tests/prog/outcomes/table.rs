//! How the rows of a program are made.

use overlay_common::{
    addr::{Address as _, MacAddr},
    config::{Config, FASTPATH_OFF},
    flow::{Flow, FlowKey, REWRITE_DESTINATION},
    outcome::{Hook, Outcome},
};
use overlay_tests::prog::{
    Expected, Row, Surroundings,
    fixture::Fixture,
    node::Interfaces,
    oddities::Oddities,
    packet::{ETH_LEN, TCP_ACK, TCP_PSH, Transport},
};

/// Data of an established connection, with the timestamp option.
pub const TCP: Transport = Transport::Tcp {
    src: 40_000,
    dst: 80,
    flags: TCP_ACK | TCP_PSH,
    options: 12,
};

pub const UDP: Transport = Transport::Udp {
    src: 5_353,
    dst: 53,
};

/// TOS and TTL with which packets do not fall under the permit of the others.
pub const OTHER_HEADERS: [(&str, (u8, u8)); 4] = [
    (
        "another DSCP than the permit was earned with",
        (46 << 2, 64),
    ),
    ("the smallest other DSCP", (4, 64)),
    ("a smaller TTL than the permit was earned with", (0, 63)),
    ("a larger TTL than the permit was earned with", (0, 65)),
];

pub const OTHER_MAC: MacAddr = MacAddr::new([0x02, 0x77, 0, 0, 0, 7]);

/// Has the entry rewrite the remote end's address to this one; its port stays.
pub fn rewrite<F: Oddities>(flow: &mut Flow, address: F::Address) {
    let address: F::Be = address.into();
    flow.rewrite = REWRITE_DESTINATION;
    flow.rewrite_address = bytemuck::cast(address.wide());
    flow.rewrite_port = 80_u16.to_be_bytes();
}

/// The rows of one program.
pub struct Table<F: Oddities> {
    pub hook: Hook,
    pub fixture: Fixture<F>,
    pub surroundings: Surroundings,
    pub rows: Vec<Row<F>>,
}

impl<F: Oddities> Table<F> {
    /// What becomes of a packet of the flow `key`, which has a permit, where nothing is to be fast.
    pub fn switched_off(&mut self, frame: &[u8], key: FlowKey<F>) {
        self.pass(
            Outcome::Disabled,
            "a permitted flow while the fast path is off",
            frame.to_vec(),
            |fixture, _| {
                fixture.grant(key, &F::TUNNELLED);
                fixture.config.fastpath = FASTPATH_OFF;
            },
        );
        self.pass(
            Outcome::Unserved,
            "a node without pods of the family",
            frame.to_vec(),
            |fixture, _| fixture.config = Config::default(),
        );
    }

    pub fn new(hook: Hook, interfaces: Interfaces) -> Self {
        let (ifindex, ingress_ifindex) = match hook {
            Hook::Egress => (interfaces.pod, interfaces.pod),
            Hook::Confirm => (interfaces.tunnel, interfaces.gateway),
            Hook::Ingress => (interfaces.underlay, interfaces.underlay),
            Hook::Arrive => (interfaces.tunnel, interfaces.tunnel),
            Hook::Deliver => (interfaces.pod, interfaces.tunnel),
            Hook::Guard => unreachable!("the guard is no TC program"),
        };
        Self {
            hook,
            fixture: Fixture::new(interfaces),
            surroundings: Surroundings {
                ifindex,
                ingress_ifindex,
                ..Surroundings::default()
            },
            rows: Vec::new(),
        }
    }

    pub fn row(
        &mut self,
        name: &str,
        frame: Vec<u8>,
        expected: Expected,
        arrange: impl FnOnce(&mut Fixture<F>, &mut Surroundings),
    ) {
        let mut row = Row {
            name: name.to_owned(),
            hook: self.hook,
            frame,
            surroundings: self.surroundings,
            fixture: self.fixture.clone(),
            expected,
        };
        arrange(&mut row.fixture, &mut row.surroundings);
        self.rows.push(row);
    }

    /// A row in which the kernel goes on with the packet.
    pub fn pass(
        &mut self,
        outcome: Outcome,
        name: &str,
        frame: Vec<u8>,
        arrange: impl FnOnce(&mut Fixture<F>, &mut Surroundings),
    ) {
        self.row(name, frame, Expected::Pass(outcome), arrange);
    }
}

/// The frame with another Ethernet type.
pub fn ethertype(mut frame: Vec<u8>, ethertype: u16) -> Vec<u8> {
    frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
    frame
}

/// The frame with the byte at `offset` set.
pub fn byte(mut frame: Vec<u8>, offset: usize, value: u8) -> Vec<u8> {
    frame[offset] = value;
    frame
}

/// The frame with an IP header of version 6 instead of 4, or 4 instead of 6.
pub fn other_version(mut frame: Vec<u8>) -> Vec<u8> {
    frame[ETH_LEN] ^= 0x20;
    frame
}

/// The frame with bytes behind what the IP header announces.
pub fn padded(frame: Vec<u8>, count: usize) -> Vec<u8> {
    [frame, vec![0; count]].concat()
}

pub fn cut(frame: &[u8], len: usize) -> Vec<u8> {
    frame[..len].to_vec()
}
