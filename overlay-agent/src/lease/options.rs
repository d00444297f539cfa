//! How to reach etcd, as the `--etcd-*` flags say it.

use std::{fmt, fs, path::Path, path::PathBuf};

use etcd_client::{Certificate, Identity, TlsOptions};

use super::store::StoreError;

/// The `--etcd-*` flags.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct EtcdOptions {
    /// URLs; see [`EtcdOptions::split_endpoints`].
    pub endpoints: Vec<String>,
    pub prefix: String,
    pub keyfile: Option<PathBuf>,
    pub certfile: Option<PathBuf>,
    pub cafile: Option<PathBuf>,
    pub username: Option<String>,
    pub password: Option<String>,
}

impl EtcdOptions {
    pub const DEFAULT_ENDPOINTS: &'static str = "http://127.0.0.1:4001,http://127.0.0.1:2379";
    pub const DEFAULT_PREFIX: &'static str = "/coreos.com/network";

    /// The parts of a comma list; blanks around them and empty parts, as a trailing comma leaves
    /// one, are dropped.
    pub fn split_endpoints(list: &str) -> Vec<String> {
        let parts = list.split(',').map(str::trim);
        parts
            .filter(|part| !part.is_empty())
            .map(str::to_owned)
            .collect()
    }

    /// `prefix` and `tail` joined as Go's `path.Join` does: repeated slashes and `.` collapse,
    /// `..` takes a part away.
    pub(super) fn key(&self, tail: &str) -> String {
        let mut parts: Vec<&str> = Vec::new();
        let rooted = self.prefix.starts_with('/');
        for part in self.prefix.split('/').chain(tail.split('/')) {
            match part {
                "" | "." => {}
                ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
                ".." if rooted => {}
                part => parts.push(part),
            }
        }
        let path = parts.join("/");
        if rooted { format!("/{path}") } else { path }
    }

    /// TLS material for `https` endpoints, read anew at each call so that renewed certificates
    /// are picked up at the next connection.
    pub(super) fn tls(&self) -> Result<TlsOptions, StoreError> {
        let mut tls = match &self.cafile {
            Some(path) => {
                let pem = read(path, "--etcd-cafile")?;
                require_pem(&pem, "CERTIFICATE", path, "--etcd-cafile")?;
                TlsOptions::new().ca_certificate(Certificate::from_pem(pem))
            }
            None => TlsOptions::new().with_native_roots(),
        };
        match (&self.certfile, &self.keyfile) {
            (Some(certfile), Some(keyfile)) => {
                let cert = read(certfile, "--etcd-certfile")?;
                require_pem(&cert, "CERTIFICATE", certfile, "--etcd-certfile")?;
                let key = read(keyfile, "--etcd-keyfile")?;
                require_pem(&key, "PRIVATE KEY", keyfile, "--etcd-keyfile")?;
                tls = tls.identity(Identity::from_pem(cert, key));
            }
            (None, None) => {}
            (certfile, _) => {
                let (given, missing) = match certfile {
                    Some(_) => ("--etcd-certfile", "--etcd-keyfile"),
                    None => ("--etcd-keyfile", "--etcd-certfile"),
                };
                return Err(StoreError::Options {
                    reason: format!("{given} needs {missing}: give both or none"),
                });
            }
        }
        Ok(tls)
    }

    pub(super) fn wants_tls(&self) -> bool {
        self.cafile.is_some() || self.certfile.is_some() || self.keyfile.is_some()
    }

    /// Name and password, if a name is set.
    pub(super) fn login(&self) -> Option<(&str, &str)> {
        let name = self.username.as_deref().filter(|name| !name.is_empty())?;
        Some((name, self.password.as_deref().unwrap_or_default()))
    }
}

impl fmt::Debug for EtcdOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoints: Vec<_> = self.endpoints.iter().map(|url| redact(url)).collect();
        f.debug_struct("EtcdOptions")
            .field("endpoints", &endpoints)
            .field("prefix", &self.prefix)
            .field("keyfile", &self.keyfile)
            .field("certfile", &self.certfile)
            .field("cafile", &self.cafile)
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| "***"))
            .finish()
    }
}

/// A URL without the user information some people put into it.
pub(super) fn redact(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://***@{host}"),
        (None, Some((_, host))) => format!("***@{host}"),
        (_, None) => url.to_owned(),
    }
}

fn read(path: &Path, flag: &str) -> Result<Vec<u8>, StoreError> {
    fs::read(path).map_err(|error| StoreError::Options {
        reason: format!("cannot read {} ({flag}): {error}", path.display()),
    })
}

/// An empty or foreign file would otherwise show as an unknown issuer, at the first connection.
fn require_pem(pem: &[u8], label: &str, path: &Path, flag: &str) -> Result<(), StoreError> {
    let text = String::from_utf8_lossy(pem);
    let begins = |line: &str| line.starts_with("-----BEGIN ") && line.contains(label);
    if text.lines().any(begins) {
        return Ok(());
    }
    Err(StoreError::Options {
        reason: format!("{} ({flag}) contains no PEM {label}", path.display()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trailing_comma_and_blanks_in_the_endpoint_list_do_no_harm() {
        assert_eq!(
            EtcdOptions::split_endpoints("http://a:2379, http://b:2379,"),
            ["http://a:2379", "http://b:2379"]
        );
        assert!(EtcdOptions::split_endpoints(",").is_empty());
    }

    #[test]
    fn keys_are_joined_as_gos_path_join_does() {
        for (prefix, key) in [
            ("/coreos.com/network", "/coreos.com/network/config"),
            ("/coreos.com/network/", "/coreos.com/network/config"),
            ("//k8s//./network/x/..", "/k8s/network/config"),
            ("atomic.io/network", "atomic.io/network/config"),
            ("", "config"),
            ("/", "/config"),
            ("/..", "/config"),
        ] {
            let options = EtcdOptions {
                prefix: prefix.to_owned(),
                ..EtcdOptions::default()
            };
            assert_eq!(options.key("config"), key, "{prefix}");
        }
    }

    #[test]
    fn the_debug_text_holds_no_secret() {
        let options = EtcdOptions {
            endpoints: vec!["https://root:hunter2@etcd:2379".to_owned()],
            username: Some("root".to_owned()),
            password: Some("hunter2".to_owned()),
            ..EtcdOptions::default()
        };
        let text = format!("{options:?}");
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("***@etcd:2379"), "{text}");
    }

    #[test]
    fn a_certificate_without_its_key_is_refused_with_the_missing_flag() {
        let dir = tempfile::tempdir().unwrap();
        let certfile = dir.path().join("c.pem");
        let options = EtcdOptions {
            cafile: None,
            certfile: Some(certfile),
            ..EtcdOptions::default()
        };
        let error = options.tls().unwrap_err().to_string();
        assert_eq!(
            error,
            "etcd options: --etcd-certfile needs --etcd-keyfile: give both or none"
        );
    }

    #[test]
    fn unreadable_and_foreign_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let cafile = dir.path().join("ca.pem");
        let options = EtcdOptions {
            cafile: Some(cafile.clone()),
            ..EtcdOptions::default()
        };
        let error = options.tls().unwrap_err().to_string();
        assert!(
            error.contains("ca.pem (--etcd-cafile): No such file"),
            "{error}"
        );
        fs::write(&cafile, "junk").unwrap();
        let error = options.tls().unwrap_err().to_string();
        assert!(error.ends_with("contains no PEM CERTIFICATE"), "{error}");
    }
}
