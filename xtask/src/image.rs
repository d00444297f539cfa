//! `cargo xtask image`: the release in a container image, built without a daemon and without an image
//! that somebody else made: from Debian's packages.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use crate::{
    prereq::{Group, Installer},
    process::{self, command},
    release,
    workspace::Workspace,
};

/// What the agent runs, and what these and it need.
const PACKAGES: &str = "libc6,libgcc-s1,iptables,nftables,ca-certificates";

/// The release whose C library is the oldest that the agent runs with.
const DEBIAN: &str = "bookworm";

/// What of the packages nobody uses in here: texts, character sets, and what sets packages up.
const LEFT_OUT: &str = "rm -rf \
    \"$1/usr/share/doc\" \"$1/usr/share/man\" \"$1/usr/share/info\" \"$1/usr/share/locale\" \
    \"$1/usr/share/perl5\" \"$1/usr/share/lintian\" \"$1/usr/share/debconf\" \
    \"$1/usr/lib/\"*/gconv \"$1/usr/bin/openssl\" \"$1/var/lib/dpkg\" \"$1/var/cache\" \"$1/etc/dpkg\"";

/// What the set-up of the package of certificates would have made.
const CERTIFICATES: &str = "mkdir -p \"$1/etc/ssl/certs\" && \
    find \"$1/usr/share/ca-certificates\" -name '*.crt' | sort | xargs cat \
    >\"$1/etc/ssl/certs/ca-certificates.crt\" && rm -r \"$1/usr/share/ca-certificates\"";

/// What Debian's alternatives would have linked: the kind of iptables that new hosts have.
const IPTABLES: &str = "for name in iptables iptables-save iptables-restore \
    ip6tables ip6tables-save ip6tables-restore; do \
    ln -sf xtables-nft-multi \"$1/usr/sbin/$name\"; done";

const PLACES: &str = "mkdir -p \"$1/run/flannel\" \"$1/sys\" \"$1/proc\" \"$1/dev\" \"$1/tmp\"";

#[derive(clap::Args)]
pub struct Args {
    /// Install missing system packages, as root
    #[arg(long)]
    install: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let workspace = Workspace::locate();
    let mut installer = Installer::new(args.install);
    installer.ensure(&[Group::HostBuild, Group::Image])?;
    let package = release::build(&workspace, &mut installer)?;
    let dir = workspace.root().join("target/image");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    for program in [release::PROGRAM, release::PLUGIN] {
        copy(&package.join(program), &dir.join(program))?;
    }
    copy(
        &workspace.root().join("deploy/image/Containerfile"),
        &dir.join("Containerfile"),
    )?;
    let epoch = workspace.commit_time()?;
    let mut bootstrap = command("mmdebstrap");
    bootstrap
        .current_dir(&dir)
        .env("SOURCE_DATE_EPOCH", &epoch)
        .args(["--variant=extract", &format!("--include={PACKAGES}")]);
    for hook in [LEFT_OUT, CERTIFICATES, IPTABLES, PLACES] {
        bootstrap.arg(format!("--customize-hook={hook}"));
    }
    process::run(bootstrap.args([DEBIAN, "root.tar"]))?;
    let archive = dir.join("overlay-agent.tar");
    // It is written anew: an archive of images takes no second one of the same name.
    if archive.exists() {
        fs::remove_file(&archive)
            .with_context(|| format!("cannot remove {}", archive.display()))?;
    }
    let tag = format!("overlay-agent:{}", env!("CARGO_PKG_VERSION"));
    let buildah = || {
        let mut buildah = command("buildah");
        buildah
            .current_dir(&dir)
            .args(["--storage-driver=vfs", "--root=storage", "--runroot=run"]);
        buildah
    };
    process::run(
        buildah()
            .args(["bud", "--isolation=chroot", "--timestamp", &epoch])
            .args(["--tag", &tag, "."]),
    )?;
    process::run(buildah().args([
        "push",
        &tag,
        &format!("oci-archive:overlay-agent.tar:{tag}"),
    ]))?;
    let size = fs::metadata(&archive).with_context(|| format!("no {}", archive.display()))?;
    println!("{} ({} kB)", archive.display(), size.len() / 1000);
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}
