//! A real kube-apiserver for a lab: on its router, with the lab's etcd behind it and flannel's rights in front.
//! Nodes are objects that nobody but the test and the agents write.

mod account;

use std::{
    env, fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

pub use self::account::Account;
use crate::{
    lab::{DEFAULT_CONFIG, Lab, Node, agent::Launch, underlay::router_address},
    netns::{Namespace, checked},
    pki::{Authority, CertFiles},
    process::{Daemon, Lifetime},
    wait::wait_for,
};

const PORT: u16 = 6443;
const ISSUER: &str = "https://kubernetes.default.svc";
const START_DEADLINE: Duration = Duration::from_mins(3);
const ADMIN: &str = "admin-token";
/// The namespace, the role and the rest of what `deploy` installs.
pub const MANIFEST: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../deploy/kubernetes/kube-flannel.yml"
);

/// The program, if it was built.
pub fn program() -> Option<PathBuf> {
    built("kube-apiserver")
}

/// helm, if it was fetched.
pub fn helm() -> Option<PathBuf> {
    built("helm")
}

fn built(name: &str) -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/kubernetes");
    Some(dir.join(name)).filter(|path| path.exists())
}

/// A running API server.
pub struct ApiServer {
    router: Namespace,
    dir: PathBuf,
    etcd: String,
    files: Files,
    program: PathBuf,
    process: Option<Daemon>,
}

struct Files {
    ca: PathBuf,
    server: CertFiles,
    accounts: CertFiles,
}

impl ApiServer {
    /// Starts the server of a lab, and gives the agents' account the rights of the manifest.
    pub fn start(lab: &Lab, program: PathBuf) -> Result<Self> {
        let dir = lab.dir().join("kubernetes");
        fs::create_dir_all(&dir)?;
        let authority = Authority::create(&dir, "kubernetes-ca")?;
        let mut server = Self {
            router: lab.underlay().router().clone(),
            etcd: lab.store().endpoints(),
            files: Files {
                server: authority.issue("apiserver", &[IpAddr::V4(address())])?,
                accounts: authority.issue("accounts", &[])?,
                ca: authority.ca,
            },
            dir,
            program,
            process: None,
        };
        server.set_token("first-token")?;
        server.restart()?;
        server.kubectl(&["apply", "-f", MANIFEST])?;
        fs::write(server.net_config(), DEFAULT_CONFIG)?;
        Ok(server)
    }

    /// The agents' token: what the server takes from its next start on, and what their kubeconfig names.
    pub fn set_token(&self, token: &str) -> Result<()> {
        let account = "system:serviceaccount:kube-flannel:flannel";
        let groups = "system:serviceaccounts,system:serviceaccounts:kube-flannel";
        let tokens = format!("{ADMIN},admin,1,system:masters\n{token},{account},2,\"{groups}\"\n");
        fs::write(self.dir.join("tokens.csv"), tokens)?;
        fs::write(self.dir.join("token"), token)?;
        let config = |user: Value| {
            json!({
                "apiVersion": "v1", "kind": "Config", "current-context": "lab",
                "clusters": [{ "name": "lab", "cluster": {
                    "server": format!("https://{}:{PORT}", address()),
                    "certificate-authority": self.files.ca,
                } }],
                "users": [{ "name": "lab", "user": user }],
                "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": "lab" } }],
            })
        };
        let agents = config(json!({ "tokenFile": self.dir.join("token") }));
        fs::write(self.kubeconfig(), agents.to_string())?;
        let admin = config(json!({ "token": ADMIN }));
        Ok(fs::write(self.admin_config(), admin.to_string())?)
    }

    /// The folder with the server's files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn log(&self) -> PathBuf {
        self.dir.join("apiserver.log")
    }

    /// What an administrator's kubectl reads.
    pub fn admin_config(&self) -> PathBuf {
        self.dir.join("admin.json")
    }

    fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig.json")
    }

    pub fn net_config(&self) -> PathBuf {
        self.dir.join("net-conf.json")
    }

    /// Starts the server, which does not run, and waits until it answers.
    pub fn restart(&mut self) -> Result<()> {
        let path = self.program.to_str().context("a path in UTF-8")?;
        let mut command = self.router.command(path);
        let file = |name: &str, path: &Path| format!("--{name}={}", path.display());
        let Files {
            ca,
            server,
            accounts,
        } = &self.files;
        command
            .arg(format!("--etcd-servers={}", self.etcd))
            .arg(format!("--bind-address={}", address()))
            .arg(format!("--advertise-address={}", address()))
            .arg(format!("--secure-port={PORT}"))
            .arg(file("tls-cert-file", &server.cert))
            .arg(file("tls-private-key-file", &server.key))
            .arg(file("client-ca-file", ca))
            .arg(file("cert-dir", &self.dir))
            .arg(file("service-account-key-file", &accounts.cert))
            .arg(file("service-account-signing-key-file", &accounts.key))
            .arg(file("token-auth-file", &self.dir.join("tokens.csv")))
            .arg(format!("--service-account-issuer={ISSUER}"))
            .args([
                "--service-cluster-ip-range=10.96.0.0/16",
                "--feature-gates=IPv6DualStack=true",
                "--authorization-mode=RBAC",
                "--disable-admission-plugins=ServiceAccount",
                "--endpoint-reconciler-type=none",
                // It logs each request that has ended.
                "--v=3",
            ]);
        self.process = Some(Daemon::start(
            "kube-apiserver",
            command,
            &self.log(),
            Lifetime::Bound,
        )?);
        wait_for("the API server to answer", START_DEADLINE, || {
            self.process
                .as_ref()
                .map_or(Ok(()), Daemon::check_running)?;
            self.kubectl(&["get", "--raw", "/readyz"]).map(drop)
        })
    }

    /// Ends the server without notice.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), |process| process.kill())
    }

    /// Stops the server without a word: its connections stay, and nothing is answered.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        self.process
            .as_ref()
            .context("no API server runs")?
            .signal(signal)
    }

    /// Runs `kubectl` as the administrator.
    pub fn kubectl(&self, words: &[&str]) -> Result<String> {
        let mut command: Command = self.router.command("kubectl");
        command.env("HOME", &self.dir);
        command.arg("--kubeconfig").arg(self.admin_config());
        checked(command.arg("--request-timeout=20s").args(words))
    }

    /// Creates the Node of a node, as its kubelet would; with podCIDRs as the controller manager would.
    pub fn create_node(&self, name: &str, pod_cidrs: &[&str], annotations: &Value) -> Result<()> {
        let path = self.dir.join(format!("{name}.json"));
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": name, "annotations": annotations },
            "spec": { "podCIDR": pod_cidrs.first(), "podCIDRs": pod_cidrs },
        });
        fs::write(&path, node.to_string())?;
        let path = path.to_str().context("a path in UTF-8")?;
        self.kubectl(&["create", "-f", path]).map(drop)
    }

    pub fn node(&self, name: &str) -> Result<Value> {
        Ok(serde_json::from_str(
            &self.kubectl(&["get", "node", name, "-o", "json"])?,
        )?)
    }

    /// One of flannel's annotations of a Node.
    pub fn annotation(&self, name: &str, annotation: &str) -> Result<String> {
        let node = self.node(name)?;
        let text =
            &node["metadata"]["annotations"][format!("flannel.alpha.coreos.com/{annotation}")];
        let Some(text) = text.as_str() else {
            bail!(
                "{name} has no {annotation}; its annotations are {}",
                node["metadata"]["annotations"]
            );
        };
        Ok(text.to_owned())
    }

    /// Creates a pod of the agents' namespace on a node.
    pub fn create_pod(&self, name: &str, node: &str) -> Result<()> {
        let path = self.dir.join(format!("pod-{name}.json"));
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": "kube-flannel" },
            "spec": { "nodeName": node, "containers": [{ "name": "agent", "image": "agent" }] },
        });
        fs::write(&path, pod.to_string())?;
        let path = path.to_str().context("a path in UTF-8")?;
        self.kubectl(&["create", "-f", path]).map(drop)
    }

    /// Starts the agent of a node in `--kube-subnet-mgr` mode.
    pub fn start_agent(&self, lab: &Lab, node: &Node) -> Result<()> {
        self.launch(lab, node, &[("NODE_NAME", &node.name)])
    }

    /// The same for an agent in a pod, which knows that pod and no Node.
    pub fn start_agent_of_pod(&self, lab: &Lab, node: &Node, pod: &str) -> Result<()> {
        let of_pod = [("POD_NAME", pod), ("POD_NAMESPACE", "kube-flannel")];
        self.launch(lab, node, &of_pod)
    }

    fn launch(&self, lab: &Lab, node: &Node, environment: &[(&str, &str)]) -> Result<()> {
        let kubeconfig = format!("--kubeconfig-file={}", self.kubeconfig().display());
        let variables = environment
            .iter()
            .map(|(name, value)| format!("{name}={value}"));
        let wrapper = ["env".to_owned()].into_iter().chain(variables).collect();
        self.launch_by(lab, node, wrapper, &[&kubeconfig])
    }

    fn launch_by(
        &self,
        lab: &Lab,
        node: &Node,
        wrapper: Vec<String>,
        flags: &[&str],
    ) -> Result<()> {
        let net_config = format!("--net-config-path={}", self.net_config().display());
        let flags = [&["--kube-subnet-mgr", &net_config], flags].concat();
        let mut launch = Launch::new(lab.store(), &flags);
        launch.wrapper = wrapper;
        node.launch(&launch)
    }
}

fn address() -> Ipv4Addr {
    router_address(0)
}
