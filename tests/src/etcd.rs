//! A real etcd for tests and the lab: one member or a cluster, plain or behind TLS, on an address
//! of the caller's choice. Data lives in a temporary directory unless the caller names one; members
//! are killed on drop.

use std::{
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{
    netns::checked,
    pki::{Authority, CertFiles},
    wait::scaled,
};

const START_DEADLINE: Duration = Duration::from_secs(20);
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// How clients prove themselves to the server's TLS listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCert {
    /// The server shows its certificate and asks for none.
    NotAsked,
    /// `--client-cert-auth`.
    Required,
}

/// A machine that a member runs on.
#[derive(Clone, Debug)]
pub struct Host {
    pub address: IpAddr,
    /// Command words put before `etcd`.
    pub enter: Vec<String>,
}

/// What to start; see [`Etcd::builder`].
#[derive(Debug)]
pub struct EtcdBuilder {
    members: usize,
    listen: IpAddr,
    client_port: Option<u16>,
    tls: Option<ClientCert>,
    enter: Vec<String>,
    hosts: Vec<Host>,
    args: Vec<String>,
    dir: Option<PathBuf>,
}

/// TLS material of a cluster.
#[derive(Debug)]
pub struct Tls {
    pub ca: PathBuf,
    /// Certificate of a client the cluster accepts.
    pub client: CertFiles,
    server: CertFiles,
    mode: ClientCert,
}

struct Member {
    name: String,
    enter: Vec<String>,
    client: SocketAddr,
    peer: SocketAddr,
    /// Joined the running cluster, without a vote.
    learner: bool,
    process: Option<Child>,
}

/// Running members and their data.
pub struct Etcd {
    members: Vec<Member>,
    tls: Option<Tls>,
    enter: Vec<String>,
    args: Vec<String>,
    credentials: Option<String>,
    /// The only member that `etcdctl` asks.
    asked: Option<usize>,
    dir: PathBuf,
    /// Removes `dir` on drop, unless the caller named it.
    _temporary: Option<TempDir>,
}

impl EtcdBuilder {
    #[must_use]
    pub fn members(mut self, count: usize) -> Self {
        self.members = count;
        self
    }

    /// Address the members listen on and advertise. Default 127.0.0.1.
    #[must_use]
    pub fn listen(mut self, address: IpAddr) -> Self {
        self.listen = address;
        self
    }

    /// Client port of the first member; each further member takes the next even offset, the odd
    /// ones are the peer ports. Default: free ports of the caller's network namespace.
    #[must_use]
    pub fn client_port(mut self, port: u16) -> Self {
        self.client_port = Some(port);
        self
    }

    #[must_use]
    pub fn tls(mut self, mode: ClientCert) -> Self {
        self.tls = Some(mode);
        self
    }

    /// Command words put before `etcd` and `etcdctl`, such as `nsenter --net=/run/netns/x`.
    #[must_use]
    pub fn enter<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.enter = words.into_iter().map(Into::into).collect();
        self
    }

    /// A member on each of these machines, on the same ports.
    #[must_use]
    pub fn hosts(mut self, hosts: Vec<Host>) -> Self {
        self.members = hosts.len();
        self.hosts = hosts;
        self
    }

    /// An extra argument for every member.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Directory for certificates, data and logs, which then stays. Default: a temporary one.
    #[must_use]
    pub fn directory(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Starts the members and waits until each one answers.
    pub fn start(self) -> Result<Etcd> {
        ensure!(self.members > 0, "an etcd cluster needs a member");
        let (dir, temporary) = if let Some(dir) = self.dir {
            fs::create_dir_all(&dir)?;
            (dir, None)
        } else {
            let temporary = tempfile::Builder::new().prefix("overlay-etcd-").tempdir()?;
            (temporary.path().to_owned(), Some(temporary))
        };
        let tls = match self.tls {
            None => None,
            Some(mode) => {
                let authority = Authority::create(&dir, "ca")?;
                Some(Tls {
                    server: authority.issue("server", &[self.listen])?,
                    client: authority.issue("client", &[])?,
                    ca: authority.ca,
                    mode,
                })
            }
        };
        let ports = match self.client_port {
            Some(first) if !self.hosts.is_empty() => [first, first + 1].repeat(self.members),
            Some(first) => (first..).take(2 * self.members).collect(),
            None => free_ports(self.listen, 2 * self.members)?,
        };
        let here = Host {
            address: self.listen,
            enter: self.enter.clone(),
        };
        let members = ports
            .chunks_exact(2)
            .enumerate()
            .map(|(index, pair)| {
                let host = self.hosts.get(index).unwrap_or(&here);
                Member {
                    name: format!("m{index}"),
                    enter: host.enter.clone(),
                    client: SocketAddr::new(host.address, pair[0]),
                    peer: SocketAddr::new(host.address, pair[1]),
                    learner: false,
                    process: None,
                }
            })
            .collect();
        let mut etcd = Etcd {
            members,
            tls,
            enter: self.enter,
            args: self.args,
            credentials: None,
            asked: None,
            dir,
            _temporary: temporary,
        };
        for index in 0..etcd.members.len() {
            etcd.spawn(index)?;
        }
        for index in 0..etcd.members.len() {
            etcd.wait_healthy(index)?;
        }
        Ok(etcd)
    }
}

impl Etcd {
    pub fn builder() -> EtcdBuilder {
        EtcdBuilder {
            members: 1,
            listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
            client_port: None,
            tls: None,
            enter: Vec::new(),
            hosts: Vec::new(),
            args: Vec::new(),
            dir: None,
        }
    }

    /// One plain member on 127.0.0.1.
    pub fn start() -> Result<Self> {
        Self::builder().start()
    }

    /// Client URL of one member.
    pub fn url(&self, member: usize) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.members[member].client)
    }

    /// Number of the member that leads.
    pub fn leader(&self) -> Result<usize> {
        for index in (0..self.members.len()).filter(|i| self.members[*i].process.is_some()) {
            let Ok(text) = self.ctl(&self.url(index), &["endpoint", "status", "-w", "json"]) else {
                continue;
            };
            let answer: serde_json::Value = serde_json::from_str(&text)?;
            let status = &answer[0]["Status"];
            let leader = &status["leader"];
            if leader == &status["header"]["member_id"] && leader != 0 {
                return Ok(index);
            }
        }
        bail!("no member leads")
    }

    /// Client URLs of all members that vote, as `--etcd-endpoints` takes them.
    pub fn endpoints(&self) -> String {
        let voters = (0..self.members.len()).filter(|i| !self.members[*i].learner);
        voters.map(|i| self.url(i)).collect::<Vec<_>>().join(",")
    }

    /// Has a learner join the cluster. Returns its number.
    pub fn add_learner(&mut self) -> Result<usize> {
        let index = self.members.len();
        let listen = self.members[0].client.ip();
        let ports = free_ports(listen, 2)?;
        let member = Member {
            name: format!("m{index}"),
            enter: self.enter.clone(),
            client: SocketAddr::new(listen, ports[0]),
            peer: SocketAddr::new(listen, ports[1]),
            learner: true,
            process: None,
        };
        let urls = format!("--peer-urls=http://{}", member.peer);
        self.etcdctl(&["member", "add", &member.name, "--learner", &urls])?;
        self.members.push(member);
        self.spawn(index)?;
        self.wait_healthy(index)?;
        Ok(index)
    }

    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// The directory with certificates, data and logs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `NAME:PASSWORD` for the following `etcdctl` calls.
    pub fn set_credentials(&mut self, credentials: impl Into<String>) {
        self.credentials = Some(credentials.into());
    }

    /// Has the following `etcdctl` calls ask this member only; all of them again with `None`.
    pub fn ask_only(&mut self, member: Option<usize>) {
        self.asked = member;
    }

    /// Asks a member to stop and waits for it.
    pub fn stop(&mut self, member: usize) -> Result<()> {
        self.end(member, Signal::SIGTERM)
    }

    /// Ends a member without notice.
    pub fn kill(&mut self, member: usize) -> Result<()> {
        self.end(member, Signal::SIGKILL)
    }

    /// Freezes a member: its sockets stay open and answer nothing.
    pub fn freeze(&self, member: usize) -> Result<()> {
        self.signal(member, Signal::SIGSTOP)
    }

    pub fn thaw(&self, member: usize) -> Result<()> {
        self.signal(member, Signal::SIGCONT)
    }

    /// Starts a stopped member again on the same address and data, and waits until it answers.
    pub fn restart(&mut self, member: usize) -> Result<()> {
        self.spawn(member)?;
        self.wait_healthy(member)
    }

    /// Removes the data of a stopped member.
    pub fn wipe(&self, member: usize) -> Result<()> {
        ensure!(
            self.members[member].process.is_none(),
            "member {member} is running"
        );
        Ok(fs::remove_dir_all(self.data_dir(member))?)
    }

    /// Runs `etcdctl` against all members, unless [`Etcd::ask_only`] names one, and returns its
    /// standard output.
    pub fn etcdctl(&self, args: &[&str]) -> Result<String> {
        let endpoints = self.asked.map_or_else(|| self.endpoints(), |i| self.url(i));
        self.ctl(&endpoints, args)
    }

    fn ctl(&self, endpoints: &str, args: &[&str]) -> Result<String> {
        let mut command = command(&self.enter, "etcdctl");
        command.env("ETCDCTL_API", "3").arg("--endpoints");
        command.arg(endpoints).arg("--command-timeout=5s");
        if let Some(tls) = &self.tls {
            command.arg("--cacert").arg(&tls.ca);
            command.arg("--cert").arg(&tls.client.cert);
            command.arg("--key").arg(&tls.client.key);
        }
        if let Some(credentials) = &self.credentials {
            command.arg("--user").arg(credentials);
        }
        let output = command.args(args).output().context("running etcdctl")?;
        ensure!(
            output.status.success(),
            "etcdctl {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs `etcdctl` of the API v2 against all members, which have it with `--enable-v2`.
    pub fn etcdctl_v2(&self, args: &[&str]) -> Result<String> {
        let mut command = command(&self.enter, "etcdctl");
        command.env("ETCDCTL_API", "2").arg("--endpoints");
        command.arg(self.endpoints());
        if let Some(tls) = &self.tls {
            command.arg("--ca-file").arg(&tls.ca);
            command.arg("--cert-file").arg(&tls.client.cert);
            command.arg("--key-file").arg(&tls.client.key);
        }
        checked(command.args(args))
    }

    pub fn put(&self, key: &str, value: &str) -> Result<()> {
        self.etcdctl(&["put", "--", key, value]).map(drop)
    }

    /// The value, or `None` when there is no such key.
    pub fn get(&self, key: &str) -> Result<Option<String>> {
        let text = self.etcdctl(&["get", "--print-value-only", key])?;
        Ok((!text.is_empty()).then(|| text.trim_end_matches('\n').to_owned()))
    }

    /// Keys with this prefix and their values, in key order.
    pub fn list(&self, prefix: &str) -> Result<Vec<(String, String)>> {
        let text = self.etcdctl(&["get", "--prefix", prefix])?;
        let lines: Vec<_> = text.lines().collect();
        Ok(lines
            .chunks_exact(2)
            .map(|pair| (pair[0].to_owned(), pair[1].to_owned()))
            .collect())
    }

    pub fn delete(&self, key: &str) -> Result<()> {
        self.etcdctl(&["del", key]).map(drop)
    }

    /// What a member printed.
    pub fn log(&self, member: usize) -> String {
        fs::read_to_string(self.log_path(member)).unwrap_or_default()
    }

    fn data_dir(&self, member: usize) -> PathBuf {
        self.dir.join(&self.members[member].name)
    }

    fn log_path(&self, member: usize) -> PathBuf {
        self.dir.join(format!("{}.log", self.members[member].name))
    }

    fn spawn(&mut self, index: usize) -> Result<()> {
        ensure!(
            self.members[index].process.is_none(),
            "member {index} is running"
        );
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path(index))?;
        let cluster: Vec<_> = self
            .members
            .iter()
            .map(|m| format!("{}=http://{}", m.name, m.peer))
            .collect();
        let member = &self.members[index];
        let (client, peer) = (self.url(index), format!("http://{}", member.peer));
        let mut command = command(&member.enter, "etcd");
        command
            .args(["--name", &member.name])
            .arg("--data-dir")
            .arg(self.data_dir(index))
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &cluster.join(",")])
            .args(["--logger", "zap", "--log-level", "warn"]);
        if member.learner {
            command.args(["--initial-cluster-state", "existing"]);
        }
        if let Some(tls) = &self.tls {
            command.arg("--cert-file").arg(&tls.server.cert);
            command.arg("--key-file").arg(&tls.server.key);
            if tls.mode == ClientCert::Required {
                command.arg("--client-cert-auth").arg("--trusted-ca-file");
                command.arg(&tls.ca);
            }
        }
        let process = command
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting etcd; on Debian: apt-get install etcd-server etcd-client")?;
        self.members[index].process = Some(process);
        Ok(())
    }

    fn wait_healthy(&mut self, index: usize) -> Result<()> {
        let deadline = Instant::now() + scaled(START_DEADLINE);
        let url = self.url(index);
        loop {
            if let Some(process) = &mut self.members[index].process
                && let Some(status) = process.try_wait()?
            {
                bail!("etcd member {index} ended: {status}\n{}", self.log(index));
            }
            let probe = self.ctl(&url, &["endpoint", "status"]);
            match probe {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    bail!(
                        "etcd member {index} is not healthy: {error}\n{}",
                        self.log(index)
                    )
                }
                Err(_) => thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn signal(&self, index: usize, signal: Signal) -> Result<()> {
        let process = self.members[index].process.as_ref();
        let process = process.with_context(|| format!("member {index} is not running"))?;
        Ok(kill(Pid::from_raw(i32::try_from(process.id())?), signal)?)
    }

    fn end(&mut self, index: usize, signal: Signal) -> Result<()> {
        self.signal(index, signal)?;
        let Some(mut process) = self.members[index].process.take() else {
            return Ok(());
        };
        let deadline = Instant::now() + scaled(STOP_DEADLINE);
        while process.try_wait()?.is_none() {
            if Instant::now() > deadline {
                process.kill()?;
                process.wait()?;
                bail!("etcd member {index} ignored {signal}\n{}", self.log(index));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for process in self.members.iter_mut().filter_map(|m| m.process.as_mut()) {
            // Fails only for a process that has already ended.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn command(enter: &[String], program: &str) -> Command {
    let mut words = enter.iter().map(String::as_str).chain([program]);
    let mut command = Command::new(words.next().unwrap_or(program));
    command.args(words);
    command
}

/// Ports nobody listens on at this moment; all listeners are held until the last one is found.
fn free_ports(address: IpAddr, count: usize) -> Result<Vec<u16>> {
    let listeners = (0..count)
        .map(|_| TcpListener::bind((address, 0)))
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| format!("looking for free ports on {address}"))?;
    let ports = listeners.iter().map(|l| Ok(l.local_addr()?.port()));
    ports.collect()
}
