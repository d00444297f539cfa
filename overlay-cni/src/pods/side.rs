//! One device of a pair, in the namespace of the calling thread.

use std::{io, net::IpAddr};

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;

use super::{
    message,
    pair::{Mac, open},
    rtnl::Rtnl,
};
use crate::error::Error;

pub struct Side<'a> {
    name: &'a str,
    index: u32,
    pub mac: Mac,
    rtnl: Rtnl,
}

impl<'a> Side<'a> {
    pub fn open(name: &'a str) -> Result<Self, Error> {
        let mut rtnl = open()?;
        let device = message::device(&mut rtnl, name)?;
        let device = device.ok_or_else(|| Error::Check {
            reason: format!("there is no {name}"),
        })?;
        Ok(Self {
            name,
            index: device.index,
            mac: device.mac,
            rtnl,
        })
    }

    /// Gives it an address, which nobody else has.
    pub fn own(&mut self, address: IpAddr) -> Result<(), Error> {
        let message = message::address(self.index, address);
        self.change(message, NLM_F_CREATE | NLM_F_EXCL, || address.to_string())
    }

    pub fn up(&mut self) -> Result<(), Error> {
        self.change(message::up(self.index), 0, || "up".to_owned())
    }

    /// Somebody is at the other side.
    pub fn next(&mut self, address: IpAddr, mac: Mac) -> Result<(), Error> {
        let message = message::neighbour(self.index, address, mac);
        self.change(message, NLM_F_CREATE | NLM_F_REPLACE, || {
            format!("the neighbour {address}")
        })?;
        let message = message::route(self.index, address.into(), None);
        self.change(message, NLM_F_CREATE | NLM_F_REPLACE, || {
            format!("the route to {address}")
        })
    }

    pub fn route(&mut self, to: IpNetwork, gateway: IpAddr) -> Result<(), Error> {
        let message = message::route(self.index, to, Some(gateway));
        self.change(message, NLM_F_CREATE | NLM_F_REPLACE, || {
            format!("the route to {to}")
        })
    }

    pub fn must_own(&mut self, address: IpAddr) -> Result<(), Error> {
        let index = self.index;
        self.must_have(
            &message::addresses(),
            || address.to_string(),
            |object| message::is_address(object, index, address),
        )
    }

    pub fn must_route(&mut self, to: IpNetwork, gateway: IpAddr) -> Result<(), Error> {
        let index = self.index;
        self.must_have(
            &message::routes(to),
            || format!("route to {to}"),
            |object| message::is_route(object, index, to, gateway),
        )
    }

    /// The kernel sends by it what is for an address.
    pub fn must_lead_to(&mut self, address: IpAddr) -> Result<(), Error> {
        let leads = self.rtnl.get(message::route_to(address));
        let leads = leads.is_ok_and(|object| message::is_by(&object, self.index));
        leads.then_some(()).ok_or_else(|| Error::Check {
            reason: format!("{address} is not behind {}", self.name),
        })
    }

    fn must_have(
        &mut self,
        list: &RouteNetlinkMessage,
        what: impl Fn() -> String,
        is_it: impl Fn(&RouteNetlinkMessage) -> bool,
    ) -> Result<(), Error> {
        let found = self.rtnl.list(list.clone());
        let found = found.map_err(|source| self.kernel(&what(), source))?;
        found
            .iter()
            .any(is_it)
            .then_some(())
            .ok_or_else(|| Error::Check {
                reason: format!("{} has no {}", self.name, what()),
            })
    }

    fn change(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        what: impl Fn() -> String,
    ) -> Result<(), Error> {
        let changed = self.rtnl.change(message, flags);
        changed.map_err(|source| self.kernel(&what(), source))
    }

    fn kernel(&self, what: &str, source: io::Error) -> Error {
        Error::Kernel {
            what: format!("{}: {what}", self.name),
            source,
        }
    }
}
