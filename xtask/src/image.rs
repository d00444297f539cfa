//! `cargo xtask image`: the release in a container image, built without a daemon and without an image
//! that somebody else made: from Debian's packages.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use crate::{
    arch::Arch,
    prereq::Group,
    process::{self, command},
    release::{self, Build},
};

/// What the agent runs, and what these and it need.
const PACKAGES: &str = "libc6,libgcc-s1,iptables,nftables,ca-certificates";

/// The release whose C library is the oldest that the agent runs with.
const DEBIAN: &str = "bookworm";

pub fn run(args: &Build) -> Result<()> {
    let (workspace, mut installer) = release::start(args, &[Group::Image])?;
    let package = release::build(&workspace, &mut installer, args.arch)?;
    let dir = workspace.root().join("target/image");
    let dir = dir.join(release::of(args.arch, Arch::name));
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    for program in [release::PROGRAM, release::PLUGIN] {
        // Without the names of functions, a sixth of it: they are in the file of debug information, too.
        process::run(
            release::objcopy(args.arch)
                .arg("--strip-all")
                .arg(package.join(program))
                .arg(dir.join(program)),
        )?;
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
    if let Some(arch) = args.arch {
        bootstrap.arg(format!("--architectures={}", arch.debian()));
    }
    let hook = workspace.root().join("deploy/image/root.sh");
    bootstrap.arg(format!("--extract-hook='{}' \"$1\"", hook.display()));
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
    let mut build = buildah();
    build.args(["bud", "--isolation=chroot", "--timestamp", &epoch]);
    if let Some(arch) = args.arch {
        build.args(["--arch", arch.debian()]);
    }
    process::run(build.args(["--tag", &tag, "."]))?;
    process::run(buildah().args([
        "push",
        &tag,
        &format!("oci-archive:overlay-agent.tar:{tag}"),
    ]))?;
    release::tell(&archive)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}
