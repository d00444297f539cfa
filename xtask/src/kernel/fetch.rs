//! Debian's kernels, from the mirror that this machine's apt is set up with.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::process::{self, command};

const INIT: &str = include_str!("init.sh");
/// Trusts the releases of all suites; without it apt's own keys have to do.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// What the initial file system needs to reach the host's files.
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];
/// Written last: a directory without it is half made.
const RELEASE: &str = "release";

/// A kernel that is ready to be booted.
#[derive(Debug)]
pub struct Kernel {
    /// As `uname -r` says.
    pub release: String,
    dir: PathBuf,
}

impl Kernel {
    pub fn image(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    pub fn initramfs(&self) -> PathBuf {
        self.dir.join("initramfs")
    }

    pub fn modules(&self) -> PathBuf {
        modules(&self.dir, &self.release)
    }
}

/// The current kernel of a Debian suite. What `dir` has is kept until somebody removes it.
pub fn fetch(suite: &str, dir: &Path) -> Result<Kernel> {
    if let Ok(release) = fs::read_to_string(dir.join(RELEASE)) {
        let dir = dir.to_owned();
        return Ok(Kernel { release, dir });
    }
    ensure!(
        env::consts::ARCH == "x86_64",
        "kernels of other machines than x86-64 are not known here"
    );
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    let apt = Apt::new(&dir.join("apt"), &mirror()?, suite)?;
    let release = apt.download()?;
    unpack(&apt.dir.join("debs"), dir, &release)?;
    let kernel = Kernel {
        release,
        dir: dir.to_owned(),
    };
    write_initramfs(&kernel)?;
    fs::remove_dir_all(&apt.dir)?;
    fs::write(dir.join(RELEASE), &kernel.release)?;
    Ok(kernel)
}

/// Where this machine gets Debian's packages from, as apt itself understood its configuration.
pub fn mirror() -> Result<String> {
    let lines = process::output(command("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
        "Origin: Debian",
        "Label: Debian",
        "Component: main",
    ]))?;
    let first = lines.lines().next().map(str::to_owned);
    first.context(
        "apt has no package lists of Debian's main archive: set one up, and run `apt-get update`",
    )
}

/// An apt that knows one suite, and nothing of the packages of this machine.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    fn new(dir: &Path, mirror: &str, suite: &str) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial", "debs"] {
            fs::create_dir_all(dir.join(part))?;
        }
        fs::write(dir.join("status"), "")?;
        fs::write(dir.join("sources.list"), source(mirror, suite))?;
        let apt = Self {
            dir: dir.to_owned(),
        };
        process::run(apt.command("apt-get").args(["-qq", "update"]))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = command(program);
        command
            .current_dir(self.dir.join("debs"))
            .env("DEBIAN_FRONTEND", "noninteractive");
        for (option, path) in [
            ("Dir::Etc::sourcelist", "sources.list"),
            ("Dir::State::lists", "lists"),
            ("Dir::State::status", "status"),
            ("Dir::Cache", "cache"),
        ] {
            let path = self.dir.join(path);
            command.arg(format!("-o{option}={}", path.display()));
        }
        // No other sources, and no other user, who could not write here.
        command.args([
            "-oDir::Etc::sourceparts=/dev/null",
            "-oAPT::Sandbox::User=root",
            "-oAcquire::Languages=none",
        ]);
        command
    }

    /// Downloads the packages of the current kernel and returns its release.
    fn download(&self) -> Result<String> {
        let depends = process::output(
            self.command("apt-cache")
                .args(["depends", "linux-image-amd64"]),
        )?;
        let image = image_package(&depends)
            .with_context(|| format!("linux-image-amd64 depends on no kernel:\n{depends}"))?;
        let release = release(image);
        println!("Downloading {image}");
        process::run(self.command("apt-get").args(["-qq", "download", image]))?;
        // Newer suites split the package.
        for part in ["linux-base", "linux-binary", "linux-modules"] {
            let package = format!("{part}-{release}");
            let exists = process::output(self.command("apt-cache").args(["show", &package]));
            if exists.is_ok() {
                process::run(self.command("apt-get").args(["-qq", "download", &package]))?;
            }
        }
        Ok(release.to_owned())
    }
}

fn source(mirror: &str, suite: &str) -> String {
    let options = if Path::new(KEYRING).exists() {
        format!("[signed-by={KEYRING}] ")
    } else {
        String::new()
    };
    format!("deb {options}{mirror} {suite} main\n")
}

/// The package that the metapackage depends on, from `apt-cache depends`.
fn image_package(depends: &str) -> Option<&str> {
    depends
        .lines()
        .filter_map(|line| {
            line.trim_start_matches([' ', '|'])
                .strip_prefix("Depends: ")
        })
        .find(|package| package.starts_with("linux-image-"))
}

fn release(image_package: &str) -> &str {
    let release = image_package.trim_start_matches("linux-image-");
    release.strip_suffix("-unsigned").unwrap_or(release)
}

fn modules(dir: &Path, release: &str) -> PathBuf {
    dir.join("tree/lib/modules").join(release)
}

/// Takes the kernel and its modules out of the packages in `debs`.
fn unpack(debs: &Path, dir: &Path, release: &str) -> Result<()> {
    let root = dir.join("root");
    for entry in fs::read_dir(debs)? {
        process::run(
            command("dpkg-deb")
                .arg("--extract")
                .arg(entry?.path())
                .arg(&root),
        )?;
    }
    let places = ["usr/lib/modules", "lib/modules"].map(|place| root.join(place).join(release));
    let found = places.into_iter().find(|path| path.is_dir());
    let found = found.with_context(|| format!("no modules of {release} in its packages"))?;
    let images = [
        root.join("boot").join(format!("vmlinuz-{release}")),
        found.join("vmlinuz"),
    ];
    let image = images.into_iter().find(|path| path.is_file());
    let image = image.with_context(|| format!("no image of {release} in its packages"))?;
    fs::rename(image, dir.join("vmlinuz"))?;
    let modules = modules(dir, release);
    fs::create_dir_all(modules.parent().unwrap_or(dir))?;
    fs::rename(found, &modules)?;
    fs::remove_dir_all(&root)?;
    process::run(
        command("depmod")
            .arg("--basedir")
            .arg(dir.join("tree"))
            .arg(release),
    )
}

/// The file system the kernel starts with: busybox, the modules that reach the host's files, and
/// `init.sh`.
fn write_initramfs(kernel: &Kernel) -> Result<()> {
    let root = kernel.dir.join("initramfs.d");
    for part in [
        "bin", "proc", "sys", "dev", "lower", "upper", "new", "modules",
    ] {
        fs::create_dir_all(root.join(part))?;
    }
    let busybox = process::find_on_path("busybox").context("no busybox")?;
    fs::copy(busybox, root.join("bin/busybox"))?;
    std::os::unix::fs::symlink("busybox", root.join("bin/sh"))?;
    fs::write(root.join("init"), INIT)?;
    process::run(command("chmod").arg("755").arg(root.join("init")))?;
    for (index, module) in needed_modules(kernel)?.iter().enumerate() {
        let name = module.file_name().context("a module without a name")?;
        // In the order they are to be inserted, which is that of their names.
        let target = root.join(format!("modules/{index:02}-{}", name.to_string_lossy()));
        decompress(module, &target)?;
    }
    process::run(
        command("sh")
            .args([
                "-ec",
                "find . | cpio --create --format=newc --quiet >\"$1\"",
                "sh",
            ])
            .arg(kernel.initramfs())
            .current_dir(&root),
    )?;
    fs::remove_dir_all(&root)?;
    Ok(())
}

/// Module files, dependencies first. Those that are built in have none.
fn needed_modules(kernel: &Kernel) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for module in MODULES {
        let lines = process::output(
            command("modprobe")
                .arg("--dirname")
                .arg(kernel.dir.join("tree"))
                .args(["--set-version", &kernel.release])
                .args(["--show-depends", module]),
        )?;
        for file in insmod_files(&lines) {
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    Ok(files)
}

/// The files of `modprobe --show-depends`.
fn insmod_files(lines: &str) -> impl Iterator<Item = PathBuf> {
    lines
        .lines()
        .filter_map(|line| line.strip_prefix("insmod "))
        .filter_map(|rest| rest.split_whitespace().next())
        .map(PathBuf::from)
}

/// Copies a module, as plain ELF: busybox inserts nothing else.
fn decompress(module: &Path, target: &Path) -> Result<()> {
    let extension = module.extension().and_then(|extension| extension.to_str());
    let program = match extension {
        Some("ko") => {
            fs::copy(module, target)?;
            return Ok(());
        }
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => bail!("{} is compressed in an unknown way", module.display()),
    };
    let file = fs::File::create(target)?;
    process::run(
        command(program)
            .args(["--decompress", "--stdout", "--quiet"])
            .arg(module)
            .stdout(Stdio::from(file)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_what_the_metapackage_depends_on() {
        let depends = "linux-image-amd64\n  Depends: linux-image-6.1.0-50-amd64\n";
        let image = image_package(depends).expect("it depends on one");
        assert_eq!(image, "linux-image-6.1.0-50-amd64");
        assert_eq!(release(image), "6.1.0-50-amd64");
        let alternatives = " |Depends: linux-image-7.3-amd64-unsigned\n  Depends: other\n";
        let image = image_package(alternatives).expect("it depends on one");
        assert_eq!(release(image), "7.3-amd64");
        assert_eq!(image_package("linux-image-amd64\n"), None);
    }

    #[test]
    fn modules_that_are_built_in_are_not_inserted() {
        let lines = "builtin virtio_pci\n\
            insmod /k/lib/modules/6.1/kernel/net/9p/9pnet.ko \n\
            insmod /k/lib/modules/6.1/kernel/fs/9p/9p.ko.xz access=any\n";
        let files: Vec<PathBuf> = insmod_files(lines).collect();
        assert_eq!(
            files,
            [
                Path::new("/k/lib/modules/6.1/kernel/net/9p/9pnet.ko"),
                Path::new("/k/lib/modules/6.1/kernel/fs/9p/9p.ko.xz"),
            ]
        );
    }

    #[test]
    fn a_source_names_the_suite() {
        let line = source("http://mirror.invalid/debian", "bookworm");
        assert!(
            line.ends_with("http://mirror.invalid/debian bookworm main\n"),
            "{line}"
        );
    }
}
