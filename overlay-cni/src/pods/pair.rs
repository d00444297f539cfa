//! The pair of devices between a pod and its host.

use std::{
    fmt,
    fs::{self, File},
    io,
    net::IpAddr,
    os::fd::AsRawFd as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};

use super::{
    made::{Given, Hop},
    message,
    rtnl::Rtnl,
    settings::{Device, Settings},
    side::Side,
};
use crate::error::Error;

/// For what the kernel does within a second.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(1);

/// What the names of all host sides begin with.
pub const PREFIX: &str = "ovp";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.map(|byte| format!("{byte:02x}"));
        f.write_str(&bytes.join(":"))
    }
}

/// MAC addresses of both sides.
#[derive(Clone, Copy, Debug)]
pub struct Macs {
    pub host: Mac,
    pub pod: Mac,
}

/// Names of both sides.
#[derive(Debug)]
pub struct Pair {
    pub host: String,
    pub pod: String,
}

impl Pair {
    /// The host's name follows from the pod's, so that nobody needs to remember it.
    pub fn of(container: &str, interface: &str) -> Self {
        let hash = hash(format!("{container}/{interface}").as_bytes());
        Self {
            // As much as a name has room for.
            host: format!("{PREFIX}{:012x}", hash >> 16),
            pod: interface.to_owned(),
        }
    }

    pub fn must_be_new(&self) -> Result<(), Error> {
        if message::device(&mut open()?, &self.host)?.is_none() {
            return Ok(());
        }
        Err(Error::Config {
            reason: format!("the pod has its interface already, {} here", self.host),
        })
    }

    /// Makes both sides; the pod's in its namespace.
    pub fn create(&self, sandbox: &File, settings: &Settings) -> Result<Macs, Error> {
        let mut rtnl = open()?;
        let mut create = |device| {
            let message = message::pair(self, sandbox.as_raw_fd(), device, settings.mtu);
            rtnl.change(message, NLM_F_CREATE | NLM_F_EXCL)
        };
        let made = match settings.device {
            Some(device) => create(device),
            None => match create(Device::Netkit) {
                // It knows no such devices.
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    create(Device::Veth)
                }
                made => made,
            },
        };
        made.map_err(|source| Error::Kernel {
            what: format!("making {} and {}", self.host, self.pod),
            source,
        })?;
        Ok(Macs {
            host: Side::open(&self.host)?.mac,
            pod: super::enter(sandbox, || Side::open(&self.pod).map(|side| side.mac))??,
        })
    }

    /// In the pod's namespace: its addresses, and the way to everything else.
    pub fn set_up_pod(&self, given: &Given, macs: &Macs) -> Result<(), Error> {
        let hops = given.hops()?;
        enable_ipv6(&self.pod, &hops)?;
        let mut side = Side::open(&self.pod)?;
        for hop in &hops {
            side.own(hop.address)?;
        }
        side.up()?;
        for hop in &hops {
            side.next(hop.gateway, macs.host)?;
        }
        let mut routes = given.all_routes()?.into_iter();
        routes.try_for_each(|(to, gateway)| side.route(to, gateway))
    }

    /// On the host: the gateways' addresses, and the way to the pod.
    pub fn set_up_host(&self, given: &Given, macs: &Macs) -> Result<(), Error> {
        let hops = given.hops()?;
        enable_ipv6(&self.host, &hops)?;
        forward(&hops)?;
        let mut side = Side::open(&self.host)?;
        for hop in &hops {
            side.own(hop.gateway)?;
        }
        side.up()?;
        let mut hops = hops.into_iter();
        hops.try_for_each(|hop| side.next(hop.address, macs.pod))
    }

    /// In the pod's namespace, once both sides are up.
    pub fn wait_pod(&self) -> Result<(), Error> {
        wait_active(&self.pod)
    }

    pub fn wait_host(&self) -> Result<(), Error> {
        wait_active(&self.host)
    }

    /// In the pod's namespace.
    pub fn check_pod(&self, given: &Given) -> Result<(), Error> {
        let mut side = Side::open(&self.pod)?;
        for hop in given.hops()? {
            side.must_own(hop.address)?;
            side.must_lead_to(hop.gateway)?;
        }
        let mut routes = given.all_routes()?.into_iter();
        routes.try_for_each(|(to, gateway)| side.must_route(to, gateway))
    }

    pub fn check_host(&self, given: &Given) -> Result<(), Error> {
        let mut side = Side::open(&self.host)?;
        for hop in given.hops()? {
            side.must_own(hop.gateway)?;
            side.must_lead_to(hop.address)?;
        }
        Ok(())
    }

    /// One side takes the other with it. No error if there is none.
    pub fn remove(&self) -> Result<(), Error> {
        let mut rtnl = open()?;
        let Some(device) = message::device(&mut rtnl, &self.host)? else {
            return Ok(());
        };
        match rtnl.change(message::removal(device.index), 0) {
            // The pod's namespace went in the meantime.
            Err(error) if error.raw_os_error() != Some(libc::ENODEV) => Err(Error::Kernel {
                what: format!("removing {}", self.host),
                source: error,
            }),
            _ => Ok(()),
        }
    }
}

pub fn open() -> Result<Rtnl, Error> {
    Rtnl::open().map_err(|source| Error::Kernel {
        what: "opening a netlink socket".to_owned(),
        source,
    })
}

/// A device that is up gets its queue when the kernel has noticed that the other side is up, too. Until then what is
/// sent by it is lost.
fn wait_active(name: &str) -> Result<(), Error> {
    let mut rtnl = open()?;
    let end = Instant::now() + PATIENCE;
    while let Some(device) = message::device(&mut rtnl, name)?
        && !device.is_active
    {
        if Instant::now() >= end {
            return Err(Error::Kernel {
                what: format!("starting {name}"),
                source: io::ErrorKind::TimedOut.into(),
            });
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// A runtime may have turned it off for pods.
fn enable_ipv6(name: &str, hops: &[Hop]) -> Result<(), Error> {
    if hops.iter().any(|hop| hop.address.is_ipv6()) {
        set(&format!("ipv6/conf/{name}/disable_ipv6"), "0")?;
    }
    Ok(())
}

/// As the `bridge` and `ptp` plugins do for a gateway.
fn forward(hops: &[Hop]) -> Result<(), Error> {
    for hop in hops {
        let key = match hop.address {
            IpAddr::V4(_) => "ipv4/ip_forward",
            IpAddr::V6(_) => "ipv6/conf/all/forwarding",
        };
        set(key, "1")?;
    }
    Ok(())
}

/// Writes a setting of the namespace unless it is so.
fn set(key: &str, value: &str) -> Result<(), Error> {
    let path = Path::new("/proc/sys/net").join(key);
    let set = || -> io::Result<()> {
        if fs::read_to_string(&path)?.trim_end() != value {
            fs::write(&path, value)?;
        }
        Ok(())
    };
    set().map_err(|source| Error::Io {
        path: path.clone(),
        source,
    })
}

/// FNV-1a: the same in all versions of this program.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_name_on_the_host_is_its_own_and_stays_the_same() {
        let name = |container, interface| Pair::of(container, interface).host;
        assert_eq!(name("c1", "eth0"), "ovp9e27a0abdbb0");
        assert_ne!(name("c1", "eth0"), name("c1", "eth1"));
        assert_ne!(name("c1", "eth0"), name("c2", "eth0"));
        assert_eq!(hash(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
