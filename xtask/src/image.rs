//! `cargo xtask image`: the release in a container image, built without a daemon and without an image
//! that somebody else made: from Debian's packages.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    arch::Arch,
    prereq::Group,
    process::{self, command},
    release::{self, Build},
};

/// What the agent runs, and what these and it need.
const PACKAGES: &str = "libc6,libgcc-s1,iptables,nftables,ca-certificates";

/// An image, and what the one for clouds is made by, of the other.
const IMAGE: &str = "overlay-agent";
const CLOUD_IMAGE: &str = "overlay-agent-cloud";
const CLOUD_FILE: &str = "Containerfile.cloud";

/// The release whose C library is the oldest that the agent runs with.
const DEBIAN: &str = "bookworm";

pub fn run(args: &Build) -> Result<()> {
    let (workspace, mut installer) = release::start(args, &[Group::Image])?;
    let package = release::build(&workspace, &mut installer, args)?;
    let dir = workspace.root().join("target/image");
    let dir = dir.join(release::of(args.arch, Arch::name));
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    for &program in args.programs() {
        // Without the names of functions, a sixth of it: they are in the file of debug information, too.
        process::run(
            release::objcopy(args.arch)
                .arg("--strip-all")
                .arg(package.join(program))
                .arg(dir.join(program)),
        )?;
    }
    for file in ["Containerfile", CLOUD_FILE] {
        copy(
            &workspace.root().join("deploy/image").join(file),
            &dir.join(file),
        )?;
    }
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
    let builder = Builder {
        dir: &dir,
        epoch: &epoch,
        arch: args.arch,
    };
    let agent = builder.build(IMAGE, &[])?;
    if args.cloud {
        let agent = format!("AGENT={agent}");
        let words = ["--file", CLOUD_FILE, "--build-arg", &agent];
        builder.build(CLOUD_IMAGE, &words)?;
    }
    Ok(())
}

/// What builds images of the files in a folder.
struct Builder<'a> {
    dir: &'a Path,
    epoch: &'a str,
    arch: Option<Arch>,
}

impl Builder<'_> {
    /// Builds an image, writes it to an archive, and returns its tag.
    fn build(&self, name: &str, words: &[&str]) -> Result<String> {
        let file = format!("{name}.tar");
        let archive = self.dir.join(&file);
        // It is written anew: an archive of images takes no second one of the same name.
        if archive.exists() {
            fs::remove_file(&archive)
                .with_context(|| format!("cannot remove {}", archive.display()))?;
        }
        let tag = format!("{name}:{}", env!("CARGO_PKG_VERSION"));
        let mut build = self.buildah();
        build.args(["bud", "--isolation=chroot", "--timestamp", self.epoch]);
        if let Some(arch) = self.arch {
            build.args(["--arch", arch.debian()]);
        }
        process::run(build.args(words).args(["--tag", &tag, "."]))?;
        let place = format!("oci-archive:{file}:{tag}");
        process::run(self.buildah().args(["push", &tag, &place]))?;
        release::tell(&archive)?;
        Ok(tag)
    }

    fn buildah(&self) -> Command {
        let mut buildah = command("buildah");
        buildah.current_dir(self.dir).args([
            "--storage-driver=vfs",
            "--root=storage",
            "--runroot=run",
        ]);
        buildah
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}
