//! Pages of `docs` that are sequences of commands: what they have people type is typed on hosts of a lab, and has to
//! print what they say.

mod machine;

use std::{collections::BTreeMap, net::Ipv4Addr};

use anyhow::{Context as _, Result, ensure};

pub use self::machine::Machine;
use crate::document::document;

/// The hosts of a page.
pub type Hosts = BTreeMap<String, Machine>;

/// A command of a page: `host# command`, with the lines below it.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    pub host: String,
    pub command: String,
    output: Vec<String>,
    /// Where it is, for people.
    place: String,
}

/// Stands for any lines.
const ANY: &str = "…";
/// Addresses of the pages, and those of the lab that they stand for.
const OF_PAGES: &str = "192.0.2.";
const OF_LAB: &str = "172.30.0.";

/// Runs a page. `between` is told of each command after it was run.
pub fn follow(
    page: &str,
    hosts: &mut Hosts,
    mut between: impl FnMut(&Step) -> Result<()>,
) -> Result<()> {
    // An address that a page shows is another one here, in later commands, too.
    let mut addresses: Vec<(String, String)> = Vec::new();
    for step in steps(page)? {
        let host = hosts.get_mut(&step.host);
        let host = host.with_context(|| format!("{}: no host {}", step.place, step.host))?;
        let mut command = step.command.clone();
        for (said, found) in &addresses {
            command = command.replace(said, found);
        }
        let printed = step.of(host.run(&command))?;
        step.check(&printed)?;
        addresses.extend(step.addresses(&printed));
        step.of(between(&step))?;
    }
    Ok(())
}

/// All commands of a page, in order.
fn steps(page: &str) -> Result<Vec<Step>> {
    parse(page, &document(page)?.replace(OF_PAGES, OF_LAB))
}

fn parse(page: &str, text: &str) -> Result<Vec<Step>> {
    let mut steps: Vec<Step> = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((_, line)) = lines.next() {
        let Some(indent) = line.strip_suffix("```console") else {
            continue;
        };
        let mut is_first = true;
        while let Some((number, line)) = lines.next() {
            let line = line.strip_prefix(indent).unwrap_or(line);
            if line == "```" {
                break;
            }
            let Some((host, command)) = prompt(line) else {
                let place = format!("{page}, line {}", number + 1);
                let step = steps.last_mut().filter(|_| !is_first);
                step.with_context(|| format!("{place}: output of nothing"))?
                    .output
                    .push(line.to_owned());
                continue;
            };
            is_first = false;
            let mut command = command.to_owned();
            let here = command.contains("<<'EOF'");
            while command.ends_with('\\') || (here && !command.ends_with("\nEOF")) {
                let (_, more) = lines.next().context("a command that ends")?;
                command = format!("{command}\n{}", more.strip_prefix(indent).unwrap_or(more));
            }
            steps.push(Step {
                host: host.to_owned(),
                command,
                output: Vec::new(),
                place: format!("{page}, line {}", number + 1),
            });
        }
    }
    Ok(steps)
}

/// `a# words` of host `a`.
fn prompt(line: &str) -> Option<(&str, &str)> {
    let (host, command) = line.split_once("# ")?;
    let is_name = !host.is_empty() && host.chars().all(|c| c.is_ascii_lowercase());
    is_name.then_some((host, command))
}

impl Step {
    /// Compares what a command has printed with what the page says, by shape.
    fn check(&self, printed: &str) -> Result<()> {
        let printed: Vec<&str> = printed.lines().collect();
        let said: Vec<&str> = self.output.iter().map(String::as_str).collect();
        ensure!(
            fits(&said, &printed),
            "{}: `{}` prints\n{}\nand not\n{}",
            self.place,
            self.command,
            printed.join("\n"),
            said.join("\n")
        );
        Ok(())
    }

    /// Addresses of the page, with those in their places.
    fn addresses(&self, printed: &str) -> Vec<(String, String)> {
        let said = self.output.iter().flat_map(|line| line.split_whitespace());
        let pairs = said.zip(printed.split_whitespace());
        let is_other = |(said, found): &(&str, &str)| {
            said != found
                && [said, found]
                    .iter()
                    .all(|word| word.parse::<Ipv4Addr>().is_ok())
        };
        let pairs = pairs.filter(is_other);
        pairs
            .map(|(said, found)| (said.to_owned(), found.to_owned()))
            .collect()
    }

    /// What goes wrong with it.
    fn of<T>(&self, result: Result<T>) -> Result<T> {
        result.with_context(|| format!("{}: `{}`", self.place, self.command))
    }
}

fn fits(said: &[&str], printed: &[&str]) -> bool {
    match said {
        [] => printed.is_empty(),
        [line, rest @ ..] if line.trim() == ANY => {
            (0..=printed.len()).any(|skipped| fits(rest, &printed[skipped..]))
        }
        [line, rest @ ..] => printed
            .split_first()
            .is_some_and(|(first, more)| shape(line) == shape(first) && fits(rest, more)),
    }
}

/// What stays the same from run to run: words, but no numbers, MAC addresses or keys.
fn shape(line: &str) -> Vec<String> {
    line.split_whitespace().map(shape_of_word).collect()
}

fn shape_of_word(word: &str) -> String {
    let is_mac = |word: &str| {
        let parts: Vec<&str> = word.split(':').collect();
        let is_byte = |part: &&str| part.len() == 2 && part.chars().all(|c| c.is_ascii_hexdigit());
        parts.len() == 6 && parts.iter().all(is_byte)
    };
    if is_mac(word) {
        return "MAC".to_owned();
    }
    if word.len() == 44 && word.ends_with('=') {
        return "KEY".to_owned();
    }
    let mut shape = String::new();
    for c in word.chars() {
        if !c.is_ascii_digit() {
            shape.push(c);
        } else if !shape.ends_with('0') {
            shape.push('0');
        }
    }
    shape
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_hosts_continuations_documents_and_output() {
        let text = "x\n  ```console\n  a# echo 1 \\\n      2\n  1 2\n  b# cat <<'EOF'\n  # no prompt\n  EOF\n  # no prompt\n  ```\n";
        let steps = parse("p", text).unwrap();
        let commands: Vec<_> = steps
            .iter()
            .map(|step| (&*step.host, &*step.command))
            .collect();
        assert_eq!(
            commands,
            [
                ("a", "echo 1 \\\n    2"),
                ("b", "cat <<'EOF'\n# no prompt\nEOF")
            ]
        );
        steps[0].check("3 4\n").unwrap();
        steps[0].check("3\n").unwrap_err();
        assert_eq!(steps[1].output, ["# no prompt"]);
    }

    #[test]
    fn output_is_compared_by_shape() {
        let same = |said: &str, printed: &str| {
            fits(
                &said.lines().collect::<Vec<_>>(),
                &printed.lines().collect::<Vec<_>>(),
            )
        };
        assert!(same("10.5.1.0/24 dev eth0", "10.5.92.0/24   dev eth1"));
        assert!(same("mac 02:00:00:00:00:01", "mac 0e:f1:0a:05:01:00"));
        assert!(!same("up", "down"));
        assert!(same("a\n…\nd 1", "a\nb\nc\nd 2"));
        assert!(!same("a\n…\nd", "a\nb"));
    }
}
