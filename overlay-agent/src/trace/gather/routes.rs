//! Routes, as the kernel answers for them.

use std::{io, net::IpAddr};

use overlay_common::addr::MacAddr;
use rtnetlink::packet_route::route::RouteType;

use super::scene::{Scene, interface};
use crate::{
    netlink::{Link, NetlinkError, RouteAnswer, RouteQuestion},
    trace::facts::Route,
};

/// An answer, and what there is to say of its interface.
pub struct Asked(Result<Found, String>);

struct Found {
    answer: RouteAnswer,
    link: Option<Link>,
    neighbour: Option<MacAddr>,
}

impl Asked {
    /// The interface that the route leads to.
    pub fn link(&self) -> Option<Link> {
        self.0.as_ref().ok()?.link.clone()
    }

    pub fn is_local(&self) -> bool {
        { self.0.as_ref() }.is_ok_and(|found| found.answer.kind == RouteType::Local)
    }

    pub fn told(self) -> Result<Route, String> {
        let is_local = self.is_local();
        self.0.map(|found| Route {
            interface: found.link.as_ref().map(interface),
            gateway: found.answer.gateway,
            neighbour: found.neighbour.map(|mac| mac.to_string()),
            mtu: found.answer.mtu,
            is_local,
        })
    }
}

impl Scene {
    pub async fn route(&self, question: &RouteQuestion) -> Result<Asked, NetlinkError> {
        let answer = match self.netlink.route_for(question).await? {
            Ok(answer) => answer,
            Err(error) => return Ok(Asked(Err(refusal(&error)))),
        };
        let forbids = match answer.kind {
            RouteType::BlackHole => "a blackhole route drops it",
            RouteType::Unreachable => "a route says that it is unreachable",
            RouteType::Prohibit => "a route prohibits it",
            _ => "",
        };
        if !forbids.is_empty() {
            return Ok(Asked(Err(forbids.to_owned())));
        }
        let link = { answer.ifindex }.and_then(|ifindex| self.links.link(ifindex).cloned());
        let next = answer.gateway.unwrap_or(question.destination);
        let neighbour = match &link {
            Some(link) if link.mac.is_some() => self.neighbour(link.ifindex, next).await?,
            _ => None,
        };
        Ok(Asked(Ok(Found {
            answer,
            link,
            neighbour,
        })))
    }

    /// The way of tunnel packets to another node.
    pub async fn underlay(&self, vtep: IpAddr) -> Result<Asked, NetlinkError> {
        let question = RouteQuestion {
            source: self.overlay.as_ref().map(|overlay| overlay.vtep),
            ..RouteQuestion::to(vtep)
        };
        self.route(&question).await
    }
}

/// What the kernel's error means for a packet.
fn refusal(error: &io::Error) -> String {
    let meaning = match error.raw_os_error() {
        Some(libc::EXDEV) => "its source is not expected at that interface (rp_filter)",
        Some(libc::EINVAL) => "a blackhole route drops it, or an address is none",
        Some(libc::EACCES) => "a route prohibits it",
        Some(libc::EHOSTUNREACH) => "there is none, or the kernel does not forward (ip_forward)",
        _ => return error.to_string(),
    };
    meaning.to_owned()
}
