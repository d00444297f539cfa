//! What the etcd flags mean for the client: keys, TLS material, texts without secrets.

use std::{fs, path::Path};

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
