//! Which rules real packets meet: the kernel tells of those that a rule marks for that (`nft monitor trace`).
//!
//! The rule is in a table that belongs to the `nft` process that made it (`flags owner`, Linux 5.12) and goes with it.
//! That process ends with its input, whatever ends this one. The kernel announces what a command deletes, and not what goes
//! with its owner, so the table is deleted by command where there is time for it.

use std::{io, process::Stdio, time::Duration};

use anyhow::{Context as _, bail};
use serde::Serialize;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::{Instant, sleep, timeout},
};

use super::packet::{Packet, Protocol};
use crate::filter::exec::Executor;

/// Before connection tracking, and so before any rule that asks for its state.
const PRIORITY: i32 = -350;
/// Packets told of in a second.
const RATE: u32 = 20;
/// How long `nft` may take to make the table.
const PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);

/// What a packet met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Met {
    /// Tells packets apart.
    pub id: String,
    /// `ip filter FORWARD rule …`
    pub rule: String,
}

/// The packets are told of while this lives.
pub struct Watch {
    table: String,
    keeper: Child,
    input: ChildStdin,
    _monitor: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Watch {
    /// Begins to have the kernel tell of packets like this.
    pub async fn start(packet: &Packet) -> anyhow::Result<Self> {
        let executor = Executor::from_env();
        let nft = executor.find("nft").context("nft is not installed")?;
        let mut monitor = Command::new(&nft)
            .args(["monitor", "trace"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let output = monitor.stdout.take().context("nft without an output")?;
        let table = format!("overlay-trace-{}", std::process::id());
        let mut keeper = Command::new(&nft)
            .arg("-i")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let mut input = keeper.stdin.take().context("nft without an input")?;
        input.write_all(commands(&table, packet).as_bytes()).await?;
        let began = Instant::now();
        loop {
            let listed = executor
                .run(&nft, &["list", "table", "inet", &table], "")
                .await?;
            if listed.success && listed.stdout.contains("output") {
                break;
            }
            if began.elapsed() > PATIENCE || keeper.try_wait()?.is_some() {
                bail!(
                    "nft does not make a table of its own: that takes Linux 5.12 and an nft with a command line"
                );
            }
            sleep(POLL).await;
        }
        Ok(Self {
            table,
            keeper,
            input,
            _monitor: monitor,
            lines: BufReader::new(output).lines(),
        })
    }

    /// Removes the table.
    pub async fn end(mut self) -> io::Result<()> {
        let command = format!("delete table inet {}\n", self.table);
        self.input.write_all(command.as_bytes()).await?;
        drop(self.input);
        timeout(PATIENCE, self.keeper.wait()).await??;
        Ok(())
    }

    /// What a packet meets next; `None` if the kernel does not tell any more.
    pub async fn next(&mut self) -> io::Result<Option<Met>> {
        while let Some(line) = self.lines.next_line().await? {
            if let Some(met) = read(&line, &self.table) {
                return Ok(Some(met));
            }
        }
        Ok(None)
    }
}

/// The limit bounds what is told. It judges packets one by one, so the agent leaves the flow to the kernel meanwhile.
fn commands(table: &str, packet: &Packet) -> String {
    let family = if packet.source.is_ipv4() { "ip" } else { "ip6" };
    let protocol = match (packet.protocol, packet.source.is_ipv4()) {
        (Protocol::Tcp, _) => "tcp",
        (Protocol::Udp, _) => "udp",
        (Protocol::Icmp, true) => "icmp",
        (Protocol::Icmp, false) => "ipv6-icmp",
    };
    let port = |end: &str, port: Option<u16>| match port {
        Some(port) => format!(" {protocol} {end} {port}"),
        None => String::new(),
    };
    let matches = format!(
        "{family} saddr {} {family} daddr {} meta l4proto {protocol}{}{}",
        packet.source,
        packet.destination,
        port("sport", packet.source_port),
        port("dport", packet.destination_port),
    );
    let chain = |hook: &str| {
        format!(
            "add chain inet {table} {hook} {{ type filter hook {hook} priority {PRIORITY}; }}\n\
             add rule inet {table} {hook} {matches} limit rate {RATE}/second meta nftrace set 1\n"
        )
    };
    let (received, sent) = (chain("prerouting"), chain("output"));
    format!("add table inet {table} {{ flags owner; }}\n{received}{sent}")
}

/// `None` for what is not about a packet, and about the table that is only there to see it.
fn read(line: &str, own_table: &str) -> Option<Met> {
    let (id, rule) = line.strip_prefix("trace id ")?.split_once(' ')?;
    (!rule.starts_with(&format!("inet {own_table} "))).then(|| Met {
        id: id.to_owned(),
        rule: rule.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_mark_the_packet_and_no_other() {
        let mut packet = Packet {
            protocol: Protocol::Udp,
            source: [10, 5, 1, 2].into(),
            source_port: None,
            destination: [10, 5, 2, 3].into(),
            destination_port: Some(53),
        };
        insta::assert_snapshot!(commands("t", &packet));
        packet.protocol = Protocol::Icmp;
        packet.destination_port = None;
        assert!(commands("t", &packet).contains("daddr 10.5.2.3 meta l4proto icmp limit"));
    }

    #[test]
    fn lines_are_of_packets_and_of_the_rules_of_others() {
        let met = |line| read(line, "own");
        let line = "trace id 6d4c7d4e ip filter FORWARD rule jump X (verdict jump X)";
        let expected = Met {
            id: "6d4c7d4e".to_owned(),
            rule: "ip filter FORWARD rule jump X (verdict jump X)".to_owned(),
        };
        assert_eq!(met(line), Some(expected));
        assert_eq!(met("trace id 6d4c7d4e inet own output rule x"), None);
        assert_eq!(met("# new generation 4"), None);
    }

    #[test]
    fn the_json_is_as_documented() {
        let met = Met {
            id: "6d4c7d4e".to_owned(),
            rule: "ip filter FORWARD policy accept".to_owned(),
        };
        let json = serde_json::to_string(&met).unwrap();
        assert_eq!(
            json,
            r#"{"id":"6d4c7d4e","rule":"ip filter FORWARD policy accept"}"#
        );
    }
}
