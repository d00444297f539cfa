//! What a kubelet puts into a pod: the files of its service account, whose token runs out and is replaced.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use rcgen::{KeyPair, SigningKey as _};
use serde_json::{Value, json};

use super::{ApiServer, ISSUER, PORT, address};
use crate::{
    lab::{Lab, Node},
    wait::wait_for,
};

/// A token is taken for a minute longer than it says, and whom it was taken from is remembered for ten seconds.
const LEEWAY: Duration = Duration::from_secs(150);

/// Seconds from the beginning of a token to its end.
const AGE: u64 = 7200;

/// The files of a pod of the agents' account.
pub struct Account {
    dir: PathBuf,
    versions: AtomicU32,
}

impl Account {
    /// As a pod finds them, with a token that is good until then.
    pub fn mount(server: &ApiServer, end: SystemTime) -> Result<Self> {
        let account = Self {
            dir: server.dir.join("serviceaccount"),
            versions: AtomicU32::new(0),
        };
        fs::create_dir_all(&account.dir)?;
        account.renew(server, end)?;
        for name in ["token", "ca.crt", "namespace"] {
            symlink(Path::new("..data").join(name), account.dir.join(name))?;
        }
        Ok(account)
    }

    /// Puts a new token in the place of the old one, as a kubelet does: all files change at once.
    pub fn renew(&self, server: &ApiServer, end: SystemTime) -> Result<()> {
        let version = format!("..{}", self.versions.fetch_add(1, Ordering::Relaxed));
        let dir = self.dir.join(&version);
        fs::create_dir(&dir)?;
        fs::write(dir.join("token"), server.sign_token(end)?)?;
        fs::copy(&server.files.ca, dir.join("ca.crt"))?;
        fs::write(dir.join("namespace"), "kube-flannel")?;
        let link = self.dir.join("..next");
        symlink(&version, &link)?;
        Ok(fs::rename(link, self.dir.join("..data"))?)
    }

    pub fn token(&self) -> Result<String> {
        Ok(fs::read_to_string(self.dir.join("token"))?)
    }

    /// Words that run a command with these files where a pod has them.
    fn wrapper(&self) -> Vec<String> {
        let dir = "/var/run/secrets/kubernetes.io";
        let script = format!(
            "mount -t tmpfs none /var && mkdir -p {dir} && ln -s {} {dir}/serviceaccount && exec \"$@\"",
            self.dir.display()
        );
        let words = ["unshare", "--mount", "sh", "-c", &script, "sh"];
        words.map(str::to_owned).to_vec()
    }
}

impl ApiServer {
    /// Starts the agent of a node as in a pod of the DaemonSet: by nothing but what a kubelet gives it.
    pub fn start_agent_with(&self, lab: &Lab, node: &Node, account: &Account) -> Result<()> {
        let host = format!("KUBERNETES_SERVICE_HOST={}", address());
        let port = format!("KUBERNETES_SERVICE_PORT={PORT}");
        let name = format!("NODE_NAME={}", node.name);
        let mut wrapper = account.wrapper();
        wrapper.extend(["env".to_owned(), host, port, name]);
        self.launch_by(lab, node, wrapper, &[])
    }

    /// Waits until the server no longer takes a token that is over, or will be within a minute.
    pub fn wait_refused(&self, token: &str) -> Result<()> {
        let token = format!("--token={token}");
        wait_for("the token to be refused", LEEWAY, || {
            let answer = self.kubectl(&[&token, "get", "--raw", "/api/v1/nodes"]);
            let refusal = answer.err().context("it is still taken")?;
            let refusal = format!("{refusal:#}");
            ensure!(refusal.contains("Unauthorized"), "{refusal}");
            Ok(())
        })
    }

    /// A token as the server itself makes them for pods, but for no less than ten minutes.
    fn sign_token(&self, end: SystemTime) -> Result<String> {
        let account = self.kubectl(&[
            "-n",
            "kube-flannel",
            "get",
            "serviceaccount",
            "flannel",
            "-o",
            "json",
        ])?;
        let account: Value = serde_json::from_str(&account)?;
        let end = end.duration_since(UNIX_EPOCH)?.as_secs();
        let begin = end - AGE;
        let claims = json!({
            "iss": ISSUER, "aud": [ISSUER], "sub": "system:serviceaccount:kube-flannel:flannel",
            "iat": begin, "nbf": begin, "exp": end,
            "kubernetes.io": {
                "namespace": "kube-flannel",
                "serviceaccount": { "name": "flannel", "uid": account["metadata"]["uid"] },
            },
        });
        let part = |json: &Value| BASE64_URL_SAFE_NO_PAD.encode(json.to_string());
        let said = format!(
            "{}.{}",
            part(&json!({ "alg": "ES256", "typ": "JWT" })),
            part(&claims)
        );
        let key = KeyPair::from_pem(&fs::read_to_string(&self.files.accounts.key)?)?;
        let signature = plain_signature(&key.sign(said.as_bytes())?)?;
        Ok(format!(
            "{said}.{}",
            BASE64_URL_SAFE_NO_PAD.encode(signature)
        ))
    }
}

/// The two numbers of an ECDSA signature in DER, as tokens have them: 32 bytes each.
fn plain_signature(der: &[u8]) -> Result<[u8; 64]> {
    let mut plain = [0; 64];
    let mut rest = der.get(2..).context("a sequence")?;
    for half in plain.chunks_exact_mut(32) {
        let [2, length, tail @ ..] = rest else {
            anyhow::bail!("no number in {der:x?}");
        };
        let (number, tail) = tail
            .split_at_checked(usize::from(*length))
            .context("its bytes")?;
        let zeros = number.iter().take_while(|byte| **byte == 0).count();
        let number = &number[zeros..];
        half[32 - number.len()..].copy_from_slice(number);
        rest = tail;
    }
    Ok(plain)
}
