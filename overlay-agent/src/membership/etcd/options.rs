//! What the etcd flags mean for the client: keys, TLS material, texts without secrets.

use std::{fmt::Write as _, fs, path::Path};

use etcd_client::{Certificate, Identity, TlsOptions};

use super::error::EtcdError;
use crate::config::options::EtcdOptions;

/// The prefix and `tail` joined as Go's `path.Join` does: repeated slashes and `.` collapse, `..`
/// takes a part away.
pub(super) fn key(options: &EtcdOptions, tail: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let rooted = options.prefix.starts_with('/');
    for part in options.prefix.split('/').chain(tail.split('/')) {
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

/// TLS material for `https` endpoints, read anew at each call so that renewed certificates are
/// picked up at the next connection.
pub(super) fn tls(options: &EtcdOptions) -> Result<TlsOptions, EtcdError> {
    let tls = match &options.ca_file {
        Some(path) => {
            let pem = read(path, "CERTIFICATE", "--etcd-cafile")?;
            TlsOptions::new().ca_certificate(Certificate::from_pem(pem))
        }
        None => TlsOptions::new().with_native_roots(),
    };
    Ok(match &options.client_identity {
        Some(files) => {
            let cert = read(&files.cert_file, "CERTIFICATE", "--etcd-certfile")?;
            let key = read(&files.key_file, "PRIVATE KEY", "--etcd-keyfile")?;
            tls.identity(Identity::from_pem(cert, key))
        }
        None => tls,
    })
}

pub(super) fn wants_tls(options: &EtcdOptions) -> bool {
    options.ca_file.is_some() || options.client_identity.is_some()
}

/// `etcdctl` of the API v3 for the servers at `urls`. A password is asked for when the command runs.
pub(super) fn etcdctl(options: &EtcdOptions, urls: &str) -> String {
    let mut command = format!("ETCDCTL_API=3 etcdctl --endpoints={}", quoted(urls));
    let identity = options.client_identity.as_ref();
    for (flag, path) in [
        ("cacert", options.ca_file.as_ref()),
        ("cert", identity.map(|files| &files.cert_file)),
        ("key", identity.map(|files| &files.key_file)),
    ] {
        if let Some(path) = path {
            // A String takes everything.
            let _ = write!(command, " --{flag}={}", quoted(&path.to_string_lossy()));
        }
    }
    if let Some(credentials) = &options.credentials {
        let _ = write!(command, " --user={}", quoted(&credentials.username));
    }
    command
}

/// A word as a shell takes it.
pub(super) fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-:,=@%+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
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

/// A PEM file. An empty or foreign one would otherwise show as an unknown issuer, at the first
/// connection.
fn read(path: &Path, label: &str, flag: &str) -> Result<Vec<u8>, EtcdError> {
    let pem = fs::read(path).map_err(|error| EtcdError::Options {
        reason: format!("cannot read {} ({flag}): {error}", path.display()),
    })?;
    let begins = |line: &str| line.starts_with("-----BEGIN ") && line.contains(label);
    if String::from_utf8_lossy(&pem).lines().any(begins) {
        return Ok(pem);
    }
    Err(EtcdError::Options {
        reason: format!("{} ({flag}) contains no PEM {label}", path.display()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::options::{ClientIdentity, Credentials, Secret};

    #[test]
    fn keys_are_joined_as_gos_path_join_does() {
        for (prefix, joined) in [
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
            assert_eq!(key(&options, "config"), joined, "{prefix}");
        }
    }

    #[test]
    fn user_information_in_a_url_is_hidden() {
        assert_eq!(
            redact("https://root:hunter2@etcd:2379"),
            "https://***@etcd:2379"
        );
        assert_eq!(redact("root:hunter2@etcd:2379"), "***@etcd:2379");
        assert_eq!(redact("http://etcd:2379"), "http://etcd:2379");
    }

    #[test]
    fn etcdctl_is_called_with_the_same_files_and_user_and_no_password() {
        let mut options = EtcdOptions::default();
        assert_eq!(
            etcdctl(&options, "http://a:2379,http://b:2379"),
            "ETCDCTL_API=3 etcdctl --endpoints=http://a:2379,http://b:2379"
        );
        options.ca_file = Some("/etc/my etcd/ca.pem".into());
        options.client_identity = Some(ClientIdentity {
            cert_file: "/c.pem".into(),
            key_file: "/k.pem".into(),
        });
        options.credentials = Some(Credentials {
            username: "flannel".to_owned(),
            password: Secret::new("hunter2"),
        });
        assert_eq!(
            etcdctl(&options, "https://[fd00::1]:2379"),
            "ETCDCTL_API=3 etcdctl --endpoints='https://[fd00::1]:2379' --cacert='/etc/my etcd/ca.pem' \
             --cert=/c.pem --key=/k.pem --user=flannel"
        );
    }

    #[test]
    fn what_a_shell_would_take_apart_is_quoted() {
        assert_eq!(
            quoted("/coreos.com/network/config"),
            "/coreos.com/network/config"
        );
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn unreadable_and_foreign_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let ca_file = dir.path().join("ca.pem");
        let options = EtcdOptions {
            ca_file: Some(ca_file.clone()),
            ..EtcdOptions::default()
        };
        let error = tls(&options).unwrap_err().to_string();
        assert!(
            error.contains("ca.pem (--etcd-cafile): No such file"),
            "{error}"
        );
        fs::write(&ca_file, "junk").unwrap();
        let error = tls(&options).unwrap_err().to_string();
        assert!(error.ends_with("contains no PEM CERTIFICATE"), "{error}");
    }
}
