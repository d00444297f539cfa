//! Keys, and the file with this node's. Nothing here shows a secret, not even to a debugging log.

use std::{
    fmt, fs,
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rand::{TryRngCore as _, rngs::OsRng};
use thiserror::Error;
use x25519_dalek::StaticSecret;

/// Where flannel keeps the key unless `WIREGUARD_KEY_FILE` names another place.
const DEFAULT_FILE: &str = "/run/flannel/wgkey";
const FILE_VARIABLE: &str = "WIREGUARD_KEY_FILE";
/// For its owner alone.
const MODE: u32 = 0o600;

/// 32 bytes that nobody else may know: a private key, or one shared beforehand.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

/// The file with this node's key.
#[derive(Clone, Debug)]
pub struct KeyFile(PathBuf);

/// What others know a node by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; 32]);

/// Why this node has no key.
#[derive(Debug, Error)]
pub enum KeyError {
    #[error("cannot read the WireGuard key file {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "the WireGuard key file {} does not hold the base64 text of 32 bytes; remove it, and a new key is \
         made, which the other nodes learn",
        path.display()
    )]
    Content { path: PathBuf },
    #[error(
        "cannot write the WireGuard key file {}: {source}; {FILE_VARIABLE} names another place",
        path.display()
    )]
    Write { path: PathBuf, source: io::Error },
}

impl Secret {
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads the usual base64 text.
    pub fn parse(text: &str) -> Option<Self> {
        decode(text).map(Self)
    }

    fn random() -> io::Result<Self> {
        let mut bytes = [0; 32];
        OsRng.try_fill_bytes(&mut bytes).map_err(io::Error::other)?;
        // As `wg genkey` does; the arithmetic would do it otherwise.
        bytes[0] &= 0xf8;
        bytes[31] = (bytes[31] & 0x7f) | 0x40;
        Ok(Self(bytes))
    }

    pub const fn bytes(&self) -> [u8; 32] {
        self.0
    }

    pub fn public(&self) -> PublicKey {
        let secret = StaticSecret::from(self.0);
        PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
    }

    /// The key of the file, which is made if there is none.
    fn of_file(path: &Path) -> Result<Self, KeyError> {
        match fs::read_to_string(path) {
            Ok(text) => {
                close_to_others(path);
                Self::parse(text.trim()).ok_or_else(|| KeyError::Content { path: path.into() })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let written = Self::random().and_then(|key| key.write(path).map(|()| key));
                written.map_err(|source| KeyError::Write {
                    path: path.into(),
                    source,
                })
            }
            Err(source) => Err(KeyError::Read {
                path: path.into(),
                source,
            }),
        }
    }

    /// Writes a file that nobody else could read at any time, whole or not at all.
    fn write(&self, path: &Path) -> io::Result<()> {
        let dir = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(dir)?;
        // Such files have mode 0600.
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(BASE64_STANDARD.encode(self.0).as_bytes())?;
        file.as_file().sync_all()?;
        file.persist_noclobber(path)?;
        Ok(())
    }
}

impl KeyFile {
    pub fn of_node() -> Self {
        let named = std::env::var_os(FILE_VARIABLE).filter(|path| !path.is_empty());
        Self(named.unwrap_or_else(|| DEFAULT_FILE.into()).into())
    }

    pub(super) fn secret(&self) -> Result<Secret, KeyError> {
        Secret::of_file(&self.0)
    }

    /// The public part of its key, which is made if there is none.
    pub fn public_key(&self) -> Result<PublicKey, KeyError> {
        self.secret().map(|key| key.public())
    }

    /// What to do so that the key outlives a reboot; `None` if it does.
    pub fn warning(&self) -> Option<String> {
        self.0.starts_with("/run").then(|| {
            format!(
                "the key is in {}, which a reboot empties; {FILE_VARIABLE}=/var/lib/overlay/wgkey, here and for the \
                 agent, keeps it",
                self.0.display()
            )
        })
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl PublicKey {
    pub fn parse(text: &str) -> Option<Self> {
        decode(text).map(Self)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64_STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn decode(text: &str) -> Option<[u8; 32]> {
    BASE64_STANDARD.decode(text).ok()?.try_into().ok()
}

/// Takes rights from others that whoever wrote the file has given them.
fn close_to_others(path: &Path) {
    let Ok(mode) = fs::metadata(path).map(|metadata| metadata.permissions().mode()) else {
        return;
    };
    if mode & 0o077 != 0 {
        let closed = fs::set_permissions(path, fs::Permissions::from_mode(MODE));
        let mode = format!("{:o}", mode & 0o7777);
        let path = path.display();
        match closed {
            Ok(()) => {
                tracing::warn!(%path, mode, "others could read the WireGuard key; now they cannot");
            }
            Err(error) => {
                tracing::warn!(%path, mode, %error, "others can read the WireGuard key");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logging::capture::Log;

    /// A pair of `wg genkey` and `wg pubkey`: that of RFC 7748, 6.1.
    const PRIVATE: &str = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
    const PUBLIC: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn the_public_key_is_that_of_the_private_one() {
        let key = Secret::parse(PRIVATE).unwrap();
        assert_eq!(key.public().to_string(), PUBLIC);
        assert_eq!(PublicKey::parse(PUBLIC), Some(key.public()));
        assert_eq!(PublicKey::parse("AAAA"), None);
    }

    #[test]
    fn a_key_is_made_once_for_its_owner_alone_and_flannels_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flannel/wgkey");
        let made = Secret::of_file(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(Secret::of_file(&path).unwrap(), made);
        let flannels = dir.path().join("wgkey");
        fs::write(&flannels, format!("{PRIVATE}\n")).unwrap();
        fs::set_permissions(&flannels, fs::Permissions::from_mode(0o400)).unwrap();
        let taken = Secret::of_file(&flannels).unwrap();
        assert_eq!(taken.public().to_string(), PUBLIC);
        assert_eq!(mode(&flannels), 0o400);
    }

    #[test]
    fn a_key_that_a_reboot_takes_away_is_warned_of() {
        let warning = KeyFile(DEFAULT_FILE.into()).warning().unwrap();
        assert!(warning.contains(DEFAULT_FILE), "{warning}");
        assert_eq!(KeyFile("/var/lib/overlay/wgkey".into()).warning(), None);
    }

    #[test]
    fn a_file_that_others_can_read_is_closed_to_them_and_no_log_shows_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wgkey");
        fs::write(&path, PRIVATE).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let log = Log::default();
        let guard = log.capture();
        let key = Secret::of_file(&path).unwrap();
        tracing::error!(?key, "a key");
        drop(guard);
        assert_eq!(mode(&path), 0o600);
        let lines = log.lines().join("\n");
        assert!(
            lines.contains("now they cannot") && lines.contains("Secret(…)"),
            "{lines}"
        );
        assert!(
            !lines.contains(PRIVATE) && !lines.contains("119, 7"),
            "{lines}"
        );
    }

    #[test]
    fn a_file_with_something_else_is_left_and_its_content_not_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wgkey");
        fs::write(&path, "half-a-key").unwrap();
        let error = Secret::of_file(&path).unwrap_err();
        assert!(
            !format!("{error} {error:?}").contains("half-a-key"),
            "{error}"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), "half-a-key");
    }
}
