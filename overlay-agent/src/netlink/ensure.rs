//! Brings a backend's device about: adopt, correct, rename back, re-create or create.

use std::{fs, io};

use overlay_common::addr::MacAddr;
use rtnetlink::{
    LinkMessageBuilder,
    packet_route::{
        RouteNetlinkMessage,
        link::{LinkAttribute, LinkInfo, LinkMessage},
    },
};

use super::{
    Netlink, NetlinkError,
    device::{Corrections, DeviceSpec, Vtep, check_name},
    object::Link,
    request,
    transport::Request,
};

/// How often a MAC address that something rewrites is restored before giving up.
const MAC_ATTEMPTS: u32 = 3;

/// Whose word counts for the MAC address of an existing device.
#[derive(Clone, Copy)]
enum MacRule {
    /// The device's; a device to be created gets this one, or a random one.
    Device(Option<MacAddr>),
    /// Peers already know this one.
    Exactly(MacAddr),
}

impl MacRule {
    const fn required(self) -> Option<MacAddr> {
        match self {
            Self::Device(_) => None,
            Self::Exactly(mac) => Some(mac),
        }
    }

    const fn known(self) -> Option<MacAddr> {
        match self {
            Self::Device(preferred) => preferred,
            Self::Exactly(mac) => Some(mac),
        }
    }
}

impl Netlink {
    /// Makes the device exist as specified, and up. An existing compatible device keeps its MAC
    /// address; a device to be created gets `preferred_mac`, else a random local one.
    pub async fn ensure_vtep(
        &self,
        spec: &impl DeviceSpec,
        preferred_mac: Option<MacAddr>,
    ) -> Result<Vtep, NetlinkError> {
        self.ensure(
            spec,
            MacRule::Device(preferred_mac.filter(|mac| usable(*mac))),
        )
        .await
    }

    /// As [`Netlink::ensure_vtep`], for a device whose MAC address peers already know: it gets that
    /// address whatever happened to it.
    pub async fn restore_vtep(
        &self,
        spec: &impl DeviceSpec,
        mac: MacAddr,
    ) -> Result<Vtep, NetlinkError> {
        let rule = if usable(mac) {
            MacRule::Exactly(mac)
        } else {
            MacRule::Device(None)
        };
        self.ensure(spec, rule).await
    }

    async fn ensure<S: DeviceSpec>(&self, spec: &S, rule: MacRule) -> Result<Vtep, NetlinkError> {
        let name = spec.name();
        check_name(name)?;
        let ifindex = spec.underlay_ifindex();
        let underlay = self
            .link_at(ifindex)
            .await?
            .ok_or(NetlinkError::UnderlayGone { ifindex })?;
        let mtu = spec.mtu_on(underlay.mtu)?;

        let mac = match self.take_over(spec, mtu, rule).await? {
            Ok(vtep) => return Ok(vtep),
            Err(known) => known.unwrap_or_else(random_mac),
        };
        let message = spec.create(mtu, mac, &self.links().await?);
        let create = || request::create_link(message.clone());
        if let Err(source) = self.transport.apply_one(create()).await? {
            let operation = format!("create {name}");
            match source.raw_os_error() {
                Some(libc::EEXIST) => {}
                Some(libc::EOPNOTSUPP) => {
                    return Err(NetlinkError::NoSuchKind {
                        name: name.to_owned(),
                        kind: spec.kind().to_string(),
                    });
                }
                _ => return Err(NetlinkError::Refused { operation, source }),
            }
            self.rename_back(spec, mac).await?;
            let rule = MacRule::Exactly(mac);
            if let Ok(vtep) = self.take_over(spec, mtu, rule).await? {
                return Ok(vtep);
            }
            self.change(operation, create()).await?;
        }
        let link = self.vtep_link(name).await?;
        let up = request::set_link(link.ifindex, LinkMessageBuilder::up);
        self.change(format!("bring up {name}"), up).await?;
        self.verify(spec, S::HAS_MAC.then_some(mac)).await
    }

    /// Has a device that is there be up, with this MTU.
    pub async fn set_up(&self, name: &str, mtu: u32) -> Result<Vtep, NetlinkError> {
        let link = self.vtep_link(name).await?;
        if link.mtu != mtu || !link.up {
            let request = request::set_link(link.ifindex, |link| link.mtu(mtu).up());
            self.change(format!("bring up {name}"), request).await?;
        }
        let link = self.vtep_link(name).await?;
        Ok(Vtep {
            ifindex: link.ifindex,
            name: link.name,
            mac: link.mac.unwrap_or(MacAddr::ZERO),
            mtu: link.mtu,
            kind: link.kind,
        })
    }

    /// Adopts the device of this name. One that cannot be used is removed; the inner error is then
    /// the MAC address its successor should have, where one is known.
    async fn take_over(
        &self,
        spec: &impl DeviceSpec,
        mtu: u32,
        rule: MacRule,
    ) -> Result<Result<Vtep, Option<MacAddr>>, NetlinkError> {
        let name = spec.name();
        let Some(message) = self.link(request::link_named(name)).await? else {
            return Ok(Err(rule.known()));
        };
        let Some(link) = Link::decode(&message) else {
            return Ok(Err(rule.known()));
        };
        let info = kind_of(&message);
        let reason = match Corrections::of(spec, &link, info, mtu, rule.required()) {
            Err(reason) => reason.to_owned(),
            Ok(corrections) => match self.correct(spec, &link, corrections).await? {
                Ok(()) => {
                    let mac = rule.required().or(link.mac);
                    return self.verify(spec, mac).await.map(Ok);
                }
                Err(error) => format!("the kernel refuses to correct it: {error}"),
            },
        };
        tracing::warn!(device = %name, %reason, "device is created again");
        let delete = request::delete_link(link.ifindex);
        self.change(format!("delete {name}"), delete).await?;
        let is_alike = info.contains(&LinkInfo::Kind(spec.kind()));
        let old = link.mac.filter(|_| is_alike);
        Ok(Err(rule.known().or(old)))
    }

    /// The kernel refuses a second device with the same claim. If the first carries the MAC
    /// address peers know, it is ours under another name.
    async fn rename_back(&self, spec: &impl DeviceSpec, mac: MacAddr) -> Result<(), NetlinkError> {
        let name = spec.name();
        let mut links = self.links().await?.into_iter();
        let twin = links.find_map(|link| spec.collision(&link).map(|claim| (link, claim)));
        let Some((twin, collision)) = twin else {
            return Err(NetlinkError::Refused {
                operation: format!("create {name}"),
                source: io::Error::from_raw_os_error(libc::EEXIST),
            });
        };
        if twin.mac != Some(mac) {
            return Err(NetlinkError::Taken {
                name: name.to_owned(),
                other: twin.name,
                collision,
            });
        }
        tracing::warn!(device = %twin.name, %name, "device had been renamed");
        let operation = format!("rename {} to {name}", twin.name);
        let rename = || request::set_link(twin.ifindex, |link| link.name(name));
        if let Err(source) = self.transport.apply_one(rename()).await? {
            if source.raw_os_error() != Some(libc::EBUSY) {
                return Err(NetlinkError::Refused { operation, source });
            }
            // Before Linux 6.2 only a device that is down can be renamed.
            let down = request::set_link(twin.ifindex, LinkMessageBuilder::down);
            self.change(format!("bring down {}", twin.name), down)
                .await?;
            self.change(operation, rename()).await?;
        }
        Ok(())
    }

    /// Applies corrections. The inner error is the kernel's refusal.
    async fn correct(
        &self,
        spec: &impl DeviceSpec,
        link: &Link,
        corrections: Corrections,
    ) -> Result<io::Result<()>, NetlinkError> {
        if corrections.is_empty() {
            return Ok(Ok(()));
        }
        tracing::info!(device = %link.name, ?corrections, "correcting the device");
        let mut requests = Vec::new();
        if let Some(data) = corrections.data {
            requests.push(request::change_kind(link.ifindex, spec.kind(), data));
        }
        if let Some(mtu) = corrections.mtu {
            requests.push(request::set_link(link.ifindex, |link| link.mtu(mtu)));
        }
        if let Some(mac) = corrections.mac {
            requests.push(set_mac(link.ifindex, mac));
        }
        if corrections.up {
            requests.push(request::set_link(link.ifindex, LinkMessageBuilder::up));
        }
        let verdicts = self.transport.apply(requests).await?;
        Ok(verdicts.into_iter().collect())
    }

    /// Reads the device back. Its MAC address is restored if something, such as systemd's
    /// MACAddressPolicy, replaced it in the meantime.
    async fn verify(
        &self,
        spec: &impl DeviceSpec,
        mac: Option<MacAddr>,
    ) -> Result<Vtep, NetlinkError> {
        let name = spec.name();
        set_ipv6_settings(name, spec.is_ipv6());
        let mut attempt = 0;
        loop {
            let link = self.vtep_link(name).await?;
            let found = link.mac.unwrap_or(MacAddr::ZERO);
            let wanted = mac.unwrap_or(found);
            if found == wanted {
                return Ok(Vtep {
                    ifindex: link.ifindex,
                    name: link.name,
                    mac: found,
                    mtu: link.mtu,
                    kind: link.kind,
                });
            }
            if attempt == MAC_ATTEMPTS {
                return Err(NetlinkError::MacOverridden {
                    name: link.name,
                    wanted,
                    found,
                });
            }
            attempt += 1;
            tracing::warn!(device = %name, %found, %wanted, "MAC address was rewritten");
            self.change(
                format!("set the MAC address of {name}"),
                set_mac(link.ifindex, wanted),
            )
            .await?;
        }
    }

    async fn vtep_link(&self, name: &str) -> Result<Link, NetlinkError> {
        let link = self.link_named(name).await?;
        link.ok_or_else(|| NetlinkError::VtepVanished {
            name: name.to_owned(),
        })
    }

    /// The link of this name.
    pub async fn link_named(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let found = self.link(request::link_named(name)).await?;
        Ok(found.as_ref().and_then(Link::decode))
    }

    /// The link of this index.
    pub async fn link_at(&self, ifindex: u32) -> Result<Option<Link>, NetlinkError> {
        let found = self.link(request::link_at(ifindex)).await?;
        Ok(found.as_ref().and_then(Link::decode))
    }

    /// All links.
    pub async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let decode = |message| new_link(&message).and_then(Link::decode);
        self.transport
            .dump("list interfaces", request::dump_links(), decode)
            .await
    }

    async fn link(&self, query: RouteNetlinkMessage) -> Result<Option<LinkMessage>, NetlinkError> {
        let operation = "look up an interface";
        match self.transport.query(operation, vec![query]).await?.pop() {
            Some(Ok(Some(message))) => Ok(new_link(&message).cloned()),
            Some(Err(error)) if error.raw_os_error() != Some(libc::ENODEV) => {
                Err(NetlinkError::Refused {
                    operation: operation.to_owned(),
                    source: error,
                })
            }
            _ => Ok(None),
        }
    }

    pub(super) async fn change(
        &self,
        operation: String,
        request: Request,
    ) -> Result<(), NetlinkError> {
        self.transport
            .apply_one(request)
            .await?
            .map_err(|source| NetlinkError::Refused { operation, source })
    }
}

fn new_link(message: &RouteNetlinkMessage) -> Option<&LinkMessage> {
    match message {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    }
}

/// What the kernel says of an interface's kind.
fn kind_of(message: &LinkMessage) -> &[LinkInfo] {
    let mut attributes = message.attributes.iter();
    let info = attributes.find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(info) => Some(info.as_slice()),
        _ => None,
    });
    info.unwrap_or_default()
}

fn set_mac(ifindex: u32, mac: MacAddr) -> Request {
    request::set_link(ifindex, |link| link.address(mac.octets.to_vec()))
}

fn random_mac() -> MacAddr {
    MacAddr::new(rand::random()).to_local_unicast()
}

const fn usable(mac: MacAddr) -> bool {
    !mac.is_zero() && !mac.is_multicast()
}

/// flannel turns router advertisements off on its devices, where IPv6 exists. Where it is off by
/// default (`net.ipv6.conf.default.disable_ipv6`), the device of the IPv6 overlay could have no
/// address. `/proc/sys/net` shows the network namespace of the calling thread.
fn set_ipv6_settings(name: &str, carries_ipv6: bool) {
    set_sysctl(&format!("/proc/sys/net/ipv6/conf/{name}/accept_ra"), "0");
    if carries_ipv6 {
        set_sysctl(&format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "0");
    }
}

fn set_sysctl(path: &str, wanted: &str) {
    match fs::read_to_string(path) {
        Ok(value) if value.trim() != wanted => {
            if let Err(error) = fs::write(path, wanted) {
                tracing::warn!(%path, wanted, %error, "cannot change a setting of the device");
            }
        }
        _ => {}
    }
}
