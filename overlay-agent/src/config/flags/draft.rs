//! The options while flags are applied to them.

use std::path::PathBuf;

use crate::config::options::{ClientIdentity, Credentials, DaemonOptions, Secret};

/// Halves of pairs wait here for each other.
#[derive(Default)]
pub struct Draft {
    pub options: DaemonOptions,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub username: String,
    pub password: String,
    pub version: bool,
    pub warnings: Vec<String>,
}

impl Draft {
    pub fn finish(self) -> (DaemonOptions, Vec<String>) {
        let Self {
            mut options,
            cert_file,
            key_file,
            username,
            password,
            mut warnings,
            ..
        } = self;
        options.etcd.client_identity = match (cert_file, key_file) {
            (Some(cert_file), Some(key_file)) => Some(ClientIdentity {
                cert_file,
                key_file,
            }),
            (None, None) => None,
            (one, _) => {
                let (given, missing) = if one.is_some() {
                    ("certfile", "keyfile")
                } else {
                    ("keyfile", "certfile")
                };
                warnings.push(format!(
                    "--etcd-{given} is ignored without --etcd-{missing}: give both to authenticate \
                     with a client certificate"
                ));
                None
            }
        };
        options.etcd.credentials = match (username.is_empty(), password.is_empty()) {
            (true, true) => None,
            (false, false) => Some(Credentials {
                username,
                password: Secret::new(password),
            }),
            (no_username, _) => {
                let (given, missing) = if no_username {
                    ("password", "username")
                } else {
                    ("username", "password")
                };
                warnings.push(format!(
                    "--etcd-{given} is ignored without --etcd-{missing}: give both to authenticate \
                     to etcd"
                ));
                None
            }
        };
        (options, warnings)
    }
}
