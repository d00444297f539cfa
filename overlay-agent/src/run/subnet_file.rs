//! The subnet file while the daemon runs: there, and saying what this node leases, unless somebody
//! else has put something else into it.
//!
//! `mk-docker-opts.sh -d` is often told to write into this very file, so contents that are not the
//! daemon's own are left alone until the next start, which writes the file afresh as flannel does.

use std::{io, path::PathBuf, time::Duration};

use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::dir_watch::{DirWatch, Watched};
use crate::{
    health::{Condition, Readiness},
    subnet_env::{FileError, SubnetEnv, atomic},
};

/// Whoever replaces the file in two steps is given this long for the second.
const PATIENCE: Duration = Duration::from_millis(100);

/// The file, what belongs into it, and what of it this daemon has written.
pub struct SubnetFile {
    path: PathBuf,
    wanted: SubnetEnv,
    written: Option<String>,
    watch: Option<DirWatch>,
    /// Watching failed, which was said.
    unwatched: bool,
    look_at: Option<Instant>,
    readiness: Readiness,
}

/// What to do about the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    Write,
    /// It says what it should.
    Keep,
    /// Somebody else wrote it.
    LeaveAlone,
}

fn decide(present: Option<&str>, written: Option<&str>, wanted: &str) -> Decision {
    match present {
        None => Decision::Write,
        Some(present) if present == wanted => Decision::Keep,
        Some(present) if Some(present) == written => Decision::Write,
        Some(_) => Decision::LeaveAlone,
    }
}

impl SubnetFile {
    /// Writes the file, whatever it says, and follows it from then on.
    pub fn create(path: PathBuf, wanted: SubnetEnv, readiness: Readiness) -> Self {
        let mut file = Self {
            path,
            wanted,
            written: None,
            watch: None,
            unwatched: false,
            look_at: None,
            readiness,
        };
        file.write();
        file
    }

    /// Writes the file again if it is gone, or if it is the daemon's own and outdated.
    pub fn keep(&mut self) {
        let present = match atomic::read(&self.path) {
            Ok(present) => present,
            Err(error) => return self.report(Err(error)),
        };
        let wanted = self.wanted.to_string();
        match decide(present.as_deref(), self.written.as_deref(), &wanted) {
            Decision::Write => {
                if present.is_none() {
                    info!(path = %self.path.display(), "the subnet file was removed; writing it again");
                }
                self.write();
            }
            Decision::Keep | Decision::LeaveAlone => {
                self.follow();
                self.report(Ok(()));
            }
        }
    }

    /// From here on the pods' MTU is this.
    pub fn set_mtu(&mut self, mtu: u32) {
        if std::mem::replace(&mut self.wanted.mtu, mtu) == mtu {
            return;
        }
        self.keep();
        let wanted = self.wanted.to_string();
        if self.written.as_ref() != Some(&wanted) {
            warn!(
                path = %self.path.display(),
                mtu,
                "somebody else wrote into the subnet file: it keeps saying another MTU until the \
                 daemon is restarted"
            );
        }
    }

    /// Waits until the file may be gone; [`Self::keep`] looks. Cancel-safe.
    pub async fn disturbed(&mut self) {
        loop {
            if let Some(at) = self.look_at {
                sleep_until(at).await;
                self.look_at = None;
                return;
            }
            let watched = match &self.watch {
                Some(watch) => watch.changed().await,
                None => std::future::pending().await,
            };
            self.look_at = Some(Instant::now() + PATIENCE);
            match watched {
                Ok(Watched::Directory) => {}
                Ok(Watched::Nothing) => self.watch = None,
                Err(error) => self.cannot_watch(&error),
            }
        }
    }

    fn write(&mut self) {
        let written = self.wanted.write(&self.path).map(drop);
        if written.is_ok() {
            self.written = Some(self.wanted.to_string());
            self.follow();
        }
        self.report(written);
    }

    /// Watches the file's directory, unless that is being done.
    fn follow(&mut self) {
        if self.watch.is_some() {
            return;
        }
        match DirWatch::on_parent_of(&self.path) {
            Ok(watch) => {
                self.watch = Some(watch);
                self.unwatched = false;
                // What happened just before went unseen.
                self.look_at = Some(Instant::now() + PATIENCE);
            }
            Err(error) => self.cannot_watch(&error),
        }
    }

    fn cannot_watch(&mut self, error: &io::Error) {
        self.watch = None;
        if !std::mem::replace(&mut self.unwatched, true) {
            warn!(
                %error,
                path = %self.path.display(),
                "cannot watch the subnet file's directory; the file is looked at periodically"
            );
        }
    }

    fn report(&self, result: Result<(), FileError>) {
        match result {
            Ok(()) => self.readiness.satisfy(Condition::SubnetFileWritten),
            Err(error) => {
                warn!(%error, "subnet file not written");
                self.readiness
                    .fail(Condition::SubnetFileWritten, error.to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const OURS: &str = "FLANNEL_MTU=1450\n";
    const OURS_LATER: &str = "FLANNEL_MTU=1400\n";
    const DOCKERS: &str = "DOCKER_NETWORK_OPTIONS=\" --mtu=1450\"\n";

    fn env(mtu: u32) -> SubnetEnv {
        SubnetEnv {
            ipv4: None,
            ipv6: None,
            mtu,
            ip_masq: false,
        }
    }

    #[test]
    fn what_others_put_into_the_file_is_left_alone() {
        for (present, decision) in [
            (None, Decision::Write),
            (Some(OURS), Decision::Write),
            (Some(OURS_LATER), Decision::Keep),
            (Some(DOCKERS), Decision::LeaveAlone),
        ] {
            assert_eq!(
                decide(present, Some(OURS), OURS_LATER),
                decision,
                "{present:?}"
            );
        }
        assert_eq!(decide(Some(OURS), None, OURS_LATER), Decision::LeaveAlone);
    }

    #[tokio::test]
    async fn a_removed_file_is_noticed_and_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flannel/subnet.env");
        let mut file = SubnetFile::create(path.clone(), env(1450), Readiness::default());
        let before = fs::read_to_string(&path).unwrap();
        for remove_directory in [false, true, false] {
            if remove_directory {
                fs::remove_dir_all(path.parent().unwrap()).unwrap();
            } else {
                fs::remove_file(&path).unwrap();
            }
            while !path.exists() {
                file.disturbed().await;
                file.keep();
            }
            assert_eq!(fs::read_to_string(&path).unwrap(), before);
        }
    }

    #[tokio::test]
    async fn an_own_file_follows_the_mtu_and_a_foreign_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subnet.env");
        let mut file = SubnetFile::create(path.clone(), env(1450), Readiness::default());
        file.set_mtu(1400);
        assert_eq!(fs::read_to_string(&path).unwrap(), env(1400).to_string());
        fs::write(&path, DOCKERS).unwrap();
        file.set_mtu(1300);
        file.keep();
        assert_eq!(fs::read_to_string(&path).unwrap(), DOCKERS);
    }
}
