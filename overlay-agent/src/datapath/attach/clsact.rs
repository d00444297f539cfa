//! tc filters of kind bpf on a clsact qdisc, the way programs are attached where the kernel has no
//! tcx links (before Linux 6.6). One filter per side of an interface is ours, known by its priority
//! and handle: putting it again replaces the program atomically (`cls_bpf_change`).

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use nix::libc;
use rtnetlink::{
    packet_core::{NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{
        RouteNetlinkMessage,
        tc::{
            TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
        },
    },
};

use crate::netlink::blocking;

/// The place of our filter in the order of an interface's filters; those that get a priority from the
/// kernel come later.
const PRIORITY: u32 = 8472;
/// "ovl": tells our filter from others of the priority.
const HANDLE: u32 = 0x006f_766c;
/// `ETH_P_ALL`.
const EVERY_PROTOCOL: u16 = 3;
const CLSACT: &str = "clsact";
const NO_QUEUE: &str = "noqueue";

/// Which packets of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcDirection {
    Ingress,
    Egress,
}

impl TcDirection {
    const fn parent(self) -> TcHandle {
        TcHandle {
            minor: match self {
                Self::Ingress => TcHandle::MIN_INGRESS,
                Self::Egress => TcHandle::MIN_EGRESS,
            },
            ..TcHandle::CLSACT
        }
    }
}

/// The queueing disciplines of all interfaces, with where each is.
pub struct Qdiscs(Vec<(u32, TcHandle, String)>);

impl Qdiscs {
    pub fn list() -> io::Result<Self> {
        let found = match dump(RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default())) {
            // A kernel that has none.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Vec::new(),
            found => found?,
        };
        let qdiscs = found.into_iter().filter_map(|qdisc| {
            let kind = qdisc
                .attributes
                .into_iter()
                .find_map(|attribute| match attribute {
                    TcAttribute::Kind(kind) => Some(kind),
                    _ => None,
                });
            let ifindex = u32::try_from(qdisc.header.index).ok()?;
            Some((ifindex, qdisc.header.parent, kind?))
        });
        Ok(Self(qdiscs.collect()))
    }

    /// Whether packets that the interface sends are queued: devices without a queue have another one if
    /// somebody gave it to them.
    pub fn has_queue(&self, ifindex: u32) -> bool {
        let root = self.at(ifindex, TcHandle::ROOT);
        root.is_some_and(|kind| kind != NO_QUEUE)
    }

    /// Whether the interface can have filters in the direction.
    fn takes_filters(&self, ifindex: u32, direction: TcDirection) -> bool {
        let found = self.at(ifindex, TcHandle::CLSACT);
        // The other one there may be, ingress, shows its filters in either direction.
        found.is_some_and(|kind| kind == CLSACT || direction == TcDirection::Ingress)
    }

    fn at(&self, ifindex: u32, parent: TcHandle) -> Option<&str> {
        let mut qdiscs = self.0.iter();
        let found = qdiscs.find(|(at, place, _)| (*at, *place) == (ifindex, parent));
        found.map(|(.., kind)| kind.as_str())
    }
}

/// Whether others have filters in a direction of the interface, all of them or those `behind_ours`.
pub fn has_others(
    ifindex: u32,
    direction: TcDirection,
    behind_ours: bool,
    qdiscs: &Qdiscs,
) -> io::Result<bool> {
    if !qdiscs.takes_filters(ifindex, direction) {
        return Ok(false);
    }
    let filters = match filters(ifindex, direction) {
        Err(error) if is_absence(&error) => return Ok(false),
        filters => filters?,
    };
    Ok(filters.iter().any(|filter| {
        let priority = filter.header.info >> 16;
        let handle = u32::from(filter.header.handle);
        // Each priority is told of by a message of its own.
        let is_ours = priority == PRIORITY && (handle == HANDLE || handle == 0);
        !is_ours && (!behind_ours || priority >= PRIORITY)
    }))
}

/// Makes sure the interface has a clsact qdisc. Returns whether it had none.
pub fn ensure_qdisc(ifindex: u32) -> io::Result<bool> {
    let mut message = qdisc(ifindex)?;
    message.attributes.push(TcAttribute::Kind(CLSACT.into()));
    let message = RouteNetlinkMessage::NewQueueDiscipline(message);
    match blocking::apply(message, NLM_F_CREATE | NLM_F_EXCL) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            match Qdiscs::list()?.at(ifindex, TcHandle::CLSACT) {
                Some(CLSACT) | None => Ok(false),
                Some(other) => Err(io::Error::other(format!(
                    "a qdisc {other} is where clsact belongs; delete it with `tc qdisc del`"
                ))),
            }
        }
        Err(error) => Err(error),
    }
}

/// Removes the clsact qdisc if it has no filter.
pub fn remove_empty_qdisc(ifindex: u32) -> io::Result<()> {
    for direction in [TcDirection::Ingress, TcDirection::Egress] {
        match filters(ifindex, direction) {
            Ok(filters) if filters.is_empty() => {}
            Ok(_) => return Ok(()),
            Err(error) if is_absence(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    let message = RouteNetlinkMessage::DelQueueDiscipline(qdisc(ifindex)?);
    blocking::apply(message, 0).or_else(absence_is_fine)
}

/// Runs `program` in a direction of the interface, instead of the one before, if there is one. `ENODEV`:
/// no such interface.
pub fn put_filter(
    ifindex: u32,
    direction: TcDirection,
    program: BorrowedFd<'_>,
    name: &str,
) -> io::Result<()> {
    let mut message = filter(ifindex, direction)?;
    let options = [
        TcFilterBpfOption::ProgFd(program.as_raw_fd().unsigned_abs()),
        TcFilterBpfOption::ProgName(name.to_owned()),
        TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
    ];
    message.attributes.push(TcAttribute::Options(
        options.into_iter().map(TcOption::Bpf).collect(),
    ));
    let message = RouteNetlinkMessage::NewTrafficFilter(message);
    blocking::apply(message, NLM_F_CREATE)
}

/// The id of the program that our filter runs.
pub fn program_at(ifindex: u32, direction: TcDirection) -> io::Result<Option<u32>> {
    let message = RouteNetlinkMessage::GetTrafficFilter(filter(ifindex, direction)?);
    let found = match blocking::query("look up a tc filter", message) {
        Ok(found) => tc_messages(found),
        Err(error) if is_absence(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let attributes = found.into_iter().flat_map(|message| message.attributes);
    Ok(attributes
        .filter_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options),
            _ => None,
        })
        .flatten()
        .find_map(|option| match option {
            TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(id),
            _ => None,
        }))
}

/// Removes our filter. None there is fine.
pub fn remove_filter(ifindex: u32, direction: TcDirection) -> io::Result<()> {
    let message = RouteNetlinkMessage::DelTrafficFilter(filter(ifindex, direction)?);
    blocking::apply(message, 0).or_else(absence_is_fine)
}

fn qdisc(ifindex: u32) -> io::Result<TcMessage> {
    let mut message = TcMessage::with_index(index(ifindex)?);
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle {
        minor: 0,
        ..TcHandle::CLSACT
    };
    Ok(message)
}

fn filter(ifindex: u32, direction: TcDirection) -> io::Result<TcMessage> {
    let mut message = TcMessage::with_index(index(ifindex)?);
    message.header.parent = direction.parent();
    message.header.handle = HANDLE.into();
    message.header.info = PRIORITY << 16 | u32::from(EVERY_PROTOCOL.to_be());
    message
        .attributes
        .push(TcAttribute::Kind(TcFilterBpf::KIND.into()));
    Ok(message)
}

/// The filters of a direction.
fn filters(ifindex: u32, direction: TcDirection) -> io::Result<Vec<TcMessage>> {
    let mut message = TcMessage::with_index(index(ifindex)?);
    message.header.parent = direction.parent();
    dump(RouteNetlinkMessage::GetTrafficFilter(message))
}

/// The kernel's way to say that there is no such filter, no qdisc for it, or no interface.
fn is_absence(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)
    )
}

fn absence_is_fine(error: io::Error) -> io::Result<()> {
    if is_absence(&error) {
        Ok(())
    } else {
        Err(error)
    }
}

fn index(ifindex: u32) -> io::Result<i32> {
    i32::try_from(ifindex).map_err(io::Error::other)
}

fn dump(message: RouteNetlinkMessage) -> io::Result<Vec<TcMessage>> {
    blocking::dump("list tc objects", message).map(tc_messages)
}

fn tc_messages(objects: impl IntoIterator<Item = RouteNetlinkMessage>) -> Vec<TcMessage> {
    objects
        .into_iter()
        .filter_map(|reply| match reply {
            RouteNetlinkMessage::NewTrafficFilter(message)
            | RouteNetlinkMessage::NewQueueDiscipline(message) => Some(message),
            _ => None,
        })
        .collect()
}
