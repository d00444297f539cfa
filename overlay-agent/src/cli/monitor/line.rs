//! How a packet is printed: a line for people, or an object for programs.

use std::{
    io::{self, Write, stdout},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::Serialize;

use crate::{datapath::PacketEvent, output::Format};

pub struct Lines {
    format: Format,
}

#[derive(Serialize)]
struct Row<'a> {
    /// Seconds since 1970.
    time: f64,
    kind: &'a str,
    hook: &'a str,
    outcome: &'a str,
    meaning: &'a str,
    interface: &'a str,
    protocol: Option<&'a str>,
    source: Option<String>,
    destination: Option<String>,
    peer: Option<String>,
    bytes: u32,
}

#[derive(Serialize)]
struct LeftOut {
    /// More than `--rate`.
    not_shown: u64,
    /// More than could be looked at.
    not_looked_at: u64,
}

impl Lines {
    pub const fn new(format: Format) -> Self {
        Self { format }
    }

    pub fn event(&self, event: &PacketEvent, time: SystemTime) -> io::Result<()> {
        print(&self.event_text(event, time)?)
    }

    pub fn left_out(&self, not_shown: u64, not_looked_at: u64) -> io::Result<()> {
        print(&self.left_out_text(not_shown, not_looked_at)?)
    }

    fn event_text(&self, event: &PacketEvent, time: SystemTime) -> io::Result<String> {
        let time = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let peer = event.peer.map(|peer| peer.to_string());
        let (source, destination) = (event.source(), event.destination());
        if self.format == Format::Json {
            return Ok(serde_json::to_string(&Row {
                time: time.as_secs_f64(),
                kind: event.kind,
                hook: event.hook,
                outcome: event.outcome,
                meaning: event.meaning,
                interface: &event.interface,
                protocol: event.protocol.as_deref(),
                source,
                destination,
                peer,
                bytes: event.bytes,
            })?);
        }
        let seconds = time.as_secs() % 86_400;
        let ends = match (source, destination) {
            (Some(source), Some(destination)) => format!(" {source} → {destination}"),
            _ => String::new(),
        };
        Ok(format!(
            "{:02}:{:02}:{:02}.{:03}Z {:<7} {:<7} {:<14} {}: {}{ends}{}, {} bytes. {}",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60,
            time.subsec_millis(),
            event.kind,
            event.hook,
            event.outcome,
            event.interface,
            event.protocol.as_deref().unwrap_or("no IP packet"),
            peer.map_or_else(String::new, |peer| format!(" in the tunnel with {peer}")),
            event.bytes,
            event.meaning,
        ))
    }

    fn left_out_text(&self, not_shown: u64, not_looked_at: u64) -> io::Result<String> {
        if self.format == Format::Json {
            return Ok(serde_json::to_string(&LeftOut {
                not_shown,
                not_looked_at,
            })?);
        }
        let unseen = match not_looked_at {
            0 => String::new(),
            count => format!(", and {count} too fast to be looked at"),
        };
        Ok(format!("… {not_shown} more not shown (--rate){unseen}"))
    }
}

fn print(line: &str) -> io::Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn texts(format: Format) -> String {
        let lines = Lines { format };
        let time = UNIX_EPOCH + Duration::from_millis(1_795_976_523_250);
        let drop = PacketEvent {
            hook: "egress",
            kind: "drop",
            outcome: "pod_tunnel",
            meaning: "What it means.",
            interface: "vetha".to_owned(),
            protocol: Some("udp".to_owned()),
            ends: Some([
                ([10, 5, 1, 2], 51_023).into(),
                ([172, 30, 0, 12], 8472).into(),
            ]),
            peer: None,
            bytes: 102,
        };
        let tunnelled = PacketEvent {
            hook: "ingress",
            kind: "decline",
            outcome: "fragment",
            peer: Some([172, 30, 0, 12].into()),
            ..drop.clone()
        };
        let bare = PacketEvent {
            outcome: "not_ip",
            protocol: None,
            ends: None,
            ..drop.clone()
        };
        let mut texts: Vec<String> = [drop, tunnelled, bare]
            .iter()
            .map(|event| lines.event_text(event, time).unwrap())
            .collect();
        texts.push(lines.left_out_text(3, 0).unwrap());
        texts.push(lines.left_out_text(3, 40).unwrap());
        texts.join("\n")
    }

    #[test]
    fn a_line_tells_what_became_of_a_packet_and_why() {
        insta::assert_snapshot!(texts(Format::Table));
    }

    #[test]
    fn the_json_is_as_documented() {
        let text = texts(Format::Json);
        let document = include_str!("../../../../docs/operator-commands.md");
        let (_, section) = document.split_once("\n## monitor\n").unwrap();
        let section = section.split("\n## ").next().unwrap();
        for line in text.lines() {
            let object: serde_json::Value = serde_json::from_str(line).unwrap();
            for key in object.as_object().unwrap().keys() {
                assert!(
                    section.contains(&format!("`{key}`")),
                    "{key} is not documented"
                );
            }
        }
        insta::assert_snapshot!(text);
    }
}
