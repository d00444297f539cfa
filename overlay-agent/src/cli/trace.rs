//! `overlay-agent trace`: what would become of a packet on this node.

use std::{
    io::{self, Write, stderr, stdout},
    net::IpAddr,
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, ensure};
use tokio::signal::unix::{SignalKind, signal};

use super::pinned::Pinned;
use crate::{
    config::options::DEFAULT_SUBNET_FILE,
    output::{self, Format, Table},
    trace::{self, Judged, Packet, Places, Protocol, Verdict, Watch},
};

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub pinned: Pinned,
    /// Where the packet comes from: a pod, or an address of this node
    #[arg(value_name = "SRC")]
    pub source: IpAddr,
    /// Where it goes: a pod, a service, or an address of this node
    #[arg(value_name = "DST")]
    pub destination: IpAddr,
    /// Protocol; default: tcp if there is a port, else icmp
    #[arg(long, value_enum)]
    pub proto: Option<Protocol>,
    /// Destination port
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Source port; default: of any
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub source_port: Option<u16>,
    /// Then show which rules real packets of this kind meet, until it is ended; the agent leaves them to the kernel
    /// meanwhile
    #[arg(long)]
    pub watch: bool,
    /// Subnet file of the agent
    #[arg(long, value_name = "FILE", default_value = DEFAULT_SUBNET_FILE)]
    pub subnet_file: PathBuf,
}

pub async fn look(args: &Args) -> anyhow::Result<Judged> {
    let packet = args.packet()?;
    let places = Places {
        pins: args.pinned.pins(),
        subnet_file: args.subnet_file.clone(),
    };
    let facts = trace::gather(packet, &places).await?;
    Ok(trace::judge(facts))
}

pub fn print(judged: &Judged, args: &Args, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    output::print(judged, args.pinned.output, out)?;
    Ok(ExitCode::from(match judged.verdict {
        Verdict::Passes => 0,
        Verdict::Troubled | Verdict::Stopped => 1,
        Verdict::Unknown => 2,
    }))
}

/// Shows what packets meet as they come, until a signal ends it.
pub async fn watch(args: &Args) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut watch = Watch::start(&args.packet()?).await?;
    let _ = writeln!(stderr(), "watching; end it with ^C");
    loop {
        let met = tokio::select! {
            met = watch.next() => met?.context("the kernel does not tell any more")?,
            _ = interrupt.recv() => return Ok(watch.end().await?),
            _ = terminate.recv() => return Ok(watch.end().await?),
        };
        let mut out = stdout().lock();
        match args.pinned.output {
            Format::Table => writeln!(out, "{}  {}", met.id, met.rule)?,
            Format::Json => writeln!(out, "{}", serde_json::to_string(&met)?)?,
        }
        out.flush()?;
    }
}

impl Args {
    fn packet(&self) -> anyhow::Result<Packet> {
        ensure!(
            self.source.is_ipv4() == self.destination.is_ipv4(),
            "{} and {} are not of one address family",
            self.source,
            self.destination
        );
        let has_port = self.port.is_some() || self.source_port.is_some();
        let protocol = match (self.proto, has_port) {
            (Some(protocol), _) => protocol,
            (None, true) => Protocol::Tcp,
            (None, false) => Protocol::Icmp,
        };
        ensure!(protocol != Protocol::Icmp || !has_port, "icmp has no ports");
        Ok(Packet {
            protocol,
            source: self.source,
            source_port: self.source_port,
            destination: self.destination,
            destination_port: self.port,
        })
    }
}

impl output::Report for Judged {
    fn write_table(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}", self.verdict.name())?;
        writeln!(out, "  {}, {}", self.packet, self.way)?;
        writeln!(out)?;
        let mut table = Table::new(&["STEP", "STATE", "MTU>", "WHAT"]);
        for step in &self.steps {
            table.row([
                step.name.to_owned(),
                step.state.name().to_owned(),
                step.mtu
                    .map_or_else(|| "-".to_owned(), |mtu| mtu.to_string()),
                step.text.clone(),
            ]);
        }
        table.write(out)?;
        let outcome = self.fast.outcome.map(|outcome| format!(" ({outcome})"));
        let left = self.fast.seconds_left;
        writeln!(
            out,
            "\n{}: {}{}{}",
            if self.fast.now { "fast" } else { "not fast" },
            self.fast.reason,
            outcome.unwrap_or_default(),
            left.map_or_else(String::new, |left| format!(", for {left:.1} s more"))
        )?;
        for sentence in &self.not_asked {
            writeln!(out, "not asked: {sentence}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn packet(words: &str) -> anyhow::Result<Packet> {
        let words = ["trace"].into_iter().chain(words.split(' '));
        Line::try_parse_from(words)?.args.packet()
    }

    #[test]
    fn a_port_means_tcp_and_none_means_a_ping() {
        let protocol = |words| packet(words).unwrap().protocol;
        assert_eq!(protocol("10.5.1.2 10.5.2.3"), Protocol::Icmp);
        assert_eq!(protocol("10.5.1.2 10.5.2.3 --port 80"), Protocol::Tcp);
        let udp = packet("fd00::1 fd00::2 --proto udp --port 53 --source-port 9").unwrap();
        assert_eq!(udp.protocol, Protocol::Udp);
        assert_eq!((udp.source_port, udp.destination_port), (Some(9), Some(53)));
        for wrong in [
            "10.5.1.2 fd00::1",
            "10.5.1.2 10.5.2.3 --proto icmp --port 80",
            "10.5.1.2 10.5.2.3 --port 0",
        ] {
            assert!(packet(wrong).is_err(), "{wrong}");
        }
    }
}
