//! `overlay-agent cleanup`: remove everything of this agent's from the host, and only that, for a
//! node that leaves the overlay or goes back to flanneld.
//!
//! Device, chains and subnet file have flannel's names. If flanneld has taken them over, which its
//! routes on the device tell, they are its own and stay. The lease in etcd stays in any case: it
//! runs out by itself, and until then keeps the subnet for this node.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use serde::Serialize;

use super::pinned::Pinned;
use crate::{
    backend::{self, DeviceId, Kind as _, Vxlan, device_id},
    config::options::DEFAULT_SUBNET_FILE,
    filter::{self, exec::Executor},
    model::{Family, V4, V6, each_family},
    netlink::{Link, Netlink, Route},
    output,
};

/// `RTPROT_BOOT`: flannel's routes carry it, because flannel sets none.
const PROTOCOL_BOOT: u8 = 3;

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub pinned: Pinned,
    /// Subnet file of the agent
    #[arg(long, value_name = "FILE", default_value = DEFAULT_SUBNET_FILE)]
    pub subnet_file: PathBuf,
    /// VNI of flannel.<VNI> and flannel-v6.<VNI>; without it, those that the agent's maps and routes name,
    /// and 1
    #[arg(long, value_name = "VNI")]
    pub vni: Vec<u32>,
    /// List what would be removed, and remove nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// What was removed, or with `--dry-run` would be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub dry_run: bool,
    pub removed: Vec<Item>,
    /// Things of flannel's names that flanneld uses.
    pub kept: Vec<String>,
    pub errors: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// `pin`, `kernel`, `packet filter` or `file`.
    pub kind: &'static str,
    pub name: String,
}

/// Removes everything. An error means that nothing was touched.
pub async fn run(args: &Args) -> anyhow::Result<Report> {
    let mut report = Report {
        dry_run: args.dry_run,
        ..Report::default()
    };
    let netlink = Netlink::connect().context("cannot talk to the kernel")?;
    let links = netlink.links().await?;
    let routes = netlink.routes::<V4>().await?;
    let routes6 = netlink.routes::<V6>().await?;
    let mut devices = devices_in_use(&links, &routes);
    devices.extend(devices_in_use(&links, &routes6));
    devices.extend(pinned_devices(&args.pinned));
    devices.extend(backend::usual_devices());
    if !args.vni.is_empty() {
        devices.retain(|device| device.kind != Vxlan::TYPE);
        devices.extend(args.vni.iter().copied().map(vxlan));
    }
    let mut flannels = devices_of_flanneld(&links, &routes);
    flannels.extend(devices_of_flanneld(&links, &routes6));
    report.pins(args)?;
    report.kernel(&netlink, &devices, &flannels).await;
    report
        .kept
        .extend(kept_devices(&links, &(&devices & &flannels)));
    report.packet_filter(!flannels.is_empty()).await;
    if flannels.is_empty() {
        report.subnet_file(&args.subnet_file);
    } else {
        report.kept.push(format!("{}", args.subnet_file.display()));
    }
    Ok(report)
}

/// Prints the report; the exit code says whether everything is gone.
pub fn print(report: &Report, args: &Args, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    output::print(report, args.pinned.output, out)?;
    Ok(if report.errors.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

impl Report {
    /// First of all, so that packets take the kernel tier while that is still whole.
    fn pins(&mut self, args: &Args) -> anyhow::Result<()> {
        let pins = args.pinned.pins();
        let removed = if args.dry_run {
            pins.pins()?
        } else {
            pins.remove_all()?
        };
        self.add("pin", removed.iter().map(|pin| pin.display().to_string()));
        Ok(())
    }

    async fn kernel(
        &mut self,
        netlink: &Netlink,
        devices: &BTreeSet<DeviceId>,
        flannels: &BTreeSet<DeviceId>,
    ) {
        let ours = devices - flannels;
        let is_ours = |link: &Link| device_id(link).is_some_and(|device| ours.contains(&device));
        match netlink.remove_everything(is_ours, self.dry_run).await {
            Ok(removed) => self.add("kernel", removed.iter().map(ToString::to_string)),
            Err(error) => self.errors.push(error.to_string()),
        }
    }

    async fn packet_filter(&mut self, beside_flannel: bool) {
        let executor = Executor::from_env();
        let (removed, errors) = if beside_flannel {
            self.kept.push("packet filter rules of flannel".to_owned());
            filter::cleanup_beside_flannel(&executor, self.dry_run).await
        } else {
            filter::cleanup(&executor, self.dry_run).await
        };
        self.add("packet filter", removed.iter().map(ToString::to_string));
        self.errors.extend(errors.iter().map(ToString::to_string));
    }

    fn subnet_file(&mut self, path: &Path) {
        let removed = if self.dry_run {
            fs::symlink_metadata(path).map(drop)
        } else {
            fs::remove_file(path)
        };
        match removed {
            Ok(()) => self.add("file", [path.display().to_string()]),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self
                .errors
                .push(format!("cannot remove {}: {error}", path.display())),
        }
    }

    fn add(&mut self, kind: &'static str, names: impl IntoIterator<Item = String>) {
        self.removed
            .extend(names.into_iter().map(|name| Item { kind, name }));
    }
}

fn vxlan(number: u32) -> DeviceId {
    DeviceId {
        kind: Vxlan::TYPE,
        number,
    }
}

/// The backends' devices that carry a route which `is_sign` accepts.
fn devices_with_route<F: Family>(
    links: &[Link],
    routes: &[Route<F>],
    is_sign: impl Fn(DeviceId, &Route<F>) -> bool,
) -> BTreeSet<DeviceId> {
    let carries_one = |link: &Link, device| {
        let mut own = routes
            .iter()
            .filter(|route| route.ifindex == Some(link.ifindex));
        own.any(|route| is_sign(device, route))
    };
    links
        .iter()
        .filter_map(|link| {
            let (device, _) = backend::recognise::<F>(link)?;
            carries_one(link, device).then_some(device)
        })
        .collect()
}

fn devices_in_use<F: Family>(links: &[Link], routes: &[Route<F>]) -> BTreeSet<DeviceId> {
    devices_with_route(links, routes, |_, route| route.is_ours())
}

/// This agent replaces every route of flannel's shape on its device, so one that is there was made
/// by a flanneld that came later.
fn devices_of_flanneld<F: Family>(links: &[Link], routes: &[Route<F>]) -> BTreeSet<DeviceId> {
    devices_with_route(links, routes, |device, route| {
        route.protocol == PROTOCOL_BOOT && backend::is_flannels(device, route)
    })
}

/// The names of the devices, of either family, that flanneld uses.
fn kept_devices(links: &[Link], flannels: &BTreeSet<DeviceId>) -> Vec<String> {
    links
        .iter()
        .filter(|link| device_id(link).is_some_and(|device| flannels.contains(&device)))
        .map(|link| format!("interface {}", link.name))
        .collect()
}

/// The vxlan devices the programs work with. Without maps there are none.
fn pinned_devices(pinned: &Pinned) -> Vec<DeviceId> {
    let Ok(maps) = pinned.open() else {
        return Vec::new();
    };
    let vnis = each_family!(maps.overlays, maps => {
        let config = maps.served_config().ok().flatten();
        config.map(|config| config.vni)
    });
    let number = |[high, middle, low]: [u8; 3]| u32::from_be_bytes([0, high, middle, low]);
    vnis.into_iter().flatten().map(number).map(vxlan).collect()
}

impl output::Report for Report {
    fn write_table(&self, out: &mut dyn Write) -> io::Result<()> {
        let verb = if self.dry_run {
            "would remove"
        } else {
            "removed"
        };
        for Item { kind, name } in &self.removed {
            writeln!(out, "{verb}  {kind:<13}  {name}")?;
        }
        for name in &self.kept {
            writeln!(out, "kept for flanneld  {name}")?;
        }
        for error in &self.errors {
            writeln!(out, "failed  {error}")?;
        }
        if self.removed.is_empty() && self.errors.is_empty() {
            writeln!(out, "nothing of overlay-agent is here")?;
        }
        writeln!(
            out,
            "the lease in etcd stays: it keeps the subnet for this node until it runs out"
        )
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::route::{RouteScope, RouteType};

    use super::*;
    use crate::netlink::{LinkKind, VxlanLink};

    fn device(ifindex: u32, vni: u32, name: &str) -> Link {
        Link {
            ifindex,
            name: name.to_owned(),
            kind: LinkKind::Vxlan(VxlanLink {
                vni,
                ..VxlanLink::default()
            }),
            mac: None,
            mtu: 1450,
            up: true,
            master: None,
        }
    }

    fn route(ifindex: u32, protocol: u8) -> Route {
        Route {
            destination: "10.5.2.0/24".parse().unwrap(),
            gateway: Some("10.5.2.0".parse().unwrap()),
            ifindex: Some(ifindex),
            onlink: true,
            kind: RouteType::Unicast,
            protocol,
            scope: RouteScope::Universe,
            metric: 0,
            tos: 0,
            table: 254,
        }
    }

    #[test]
    fn routes_tell_which_devices_are_ours_and_which_flanneld_took_over() {
        let links = [
            device(5, 1, "flannel.1"),
            device(6, 7, "flannel.7"),
            device(7, 8, "tunnel8"),
            device(8, 1, "flannel-v6.1"),
        ];
        let routes = [route(5, PROTOCOL_BOOT), route(6, 241), route(7, 248)];
        let vnis = |vni| BTreeSet::from([vxlan(vni)]);
        assert_eq!(devices_in_use(&links, &routes), vnis(7));
        assert_eq!(devices_of_flanneld(&links, &routes), vnis(1));
        assert_eq!(
            kept_devices(&links, &vnis(1)),
            ["interface flannel.1", "interface flannel-v6.1"]
        );
        let administrators = Route {
            gateway: Some("10.5.9.9".parse().unwrap()),
            ..route(5, PROTOCOL_BOOT)
        };
        assert_eq!(
            devices_of_flanneld(&links, &[administrators]),
            BTreeSet::new()
        );
    }

    fn text(format: output::Format) -> String {
        let report = Report {
            dry_run: true,
            removed: vec![
                Item {
                    kind: "pin",
                    name: "/sys/fs/bpf/overlay/links/5-confirm".to_owned(),
                },
                Item {
                    kind: "packet filter",
                    name: "iptables-nft: chain FLANNEL-FWD".to_owned(),
                },
            ],
            kept: vec!["interface flannel.1".to_owned()],
            errors: vec!["nft: no such thing".to_owned()],
        };
        let mut text = Vec::new();
        output::print(&report, format, &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn the_listing_says_what_is_removed_kept_and_failed() {
        assert_eq!(
            text(output::Format::Table),
            "would remove  pin            /sys/fs/bpf/overlay/links/5-confirm\n\
             would remove  packet filter  iptables-nft: chain FLANNEL-FWD\n\
             kept for flanneld  interface flannel.1\n\
             failed  nft: no such thing\n\
             the lease in etcd stays: it keeps the subnet for this node until it runs out\n"
        );
    }

    #[test]
    fn the_json_is_as_documented() {
        insta::assert_snapshot!(text(output::Format::Json));
    }
}
