//! `cargo xtask bench --plot`: pictures of what the benchmark has measured.

mod chart;
mod cost;
mod measured;
mod ratios;

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use self::measured::Measured;

/// The files, in the folder that is asked for.
const RATIOS: &str = "ratios.svg";
const COST: &str = "cost.svg";

/// Draws the charts of the benchmark's JSON in `from` into `folder`.
pub fn draw(from: &Path, folder: &Path) -> Result<()> {
    let text =
        fs::read_to_string(from).with_context(|| format!("cannot read {}", from.display()))?;
    let json = serde_json::from_str(&text)
        .with_context(|| format!("{} is not what the benchmark writes", from.display()))?;
    let measured = Measured::of(&json)?;
    for (name, chart) in [
        (RATIOS, ratios::chart(&measured)?),
        (COST, cost::chart(&measured)?),
    ] {
        let path = folder.join(name);
        fs::write(&path, chart).with_context(|| format!("cannot write {}", path.display()))?;
        println!("wrote {}", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn sample(round: u32, variant: &str, figure: &str, value: f64) -> Value {
        json!({"round": round, "variant": variant, "clean": true, "figures": {figure: value}})
    }

    fn draw_of(samples: &[Value]) -> Result<[String; 2]> {
        let dir = tempfile::tempdir()?;
        let from = dir.path().join("in.json");
        let json = json!({
            "commit": "0123456789ab", "rounds": 2,
            "machine": {"cpu": "A CPU", "kernel": "6.18"},
            "report": {"samples": samples},
        });
        fs::write(&from, json.to_string())?;
        draw(&from, dir.path())?;
        Ok(
            [RATIOS, COST]
                .map(|name| fs::read_to_string(dir.path().join(name)).unwrap_or_default()),
        )
    }

    #[test]
    fn charts_name_what_was_measured_and_how_it_compares() {
        let udp = |round, variant, value| sample(round, variant, "udp_cpu_ns", value);
        let [ratios, cost] = draw_of(&[
            udp(0, "vxlan, as deployed", 10_000.0),
            udp(0, "overlay strict", 4_000.0),
            udp(0, "node to node", 3_000.0),
            udp(1, "vxlan, as deployed", 10_000.0),
            udp(1, "overlay strict", 4_200.0),
            udp(1, "node to node", 3_000.0),
            sample(0, "vxlan, as deployed", "connections_per_s", 500.0),
            sample(0, "overlay strict", "connections_per_s", 1_000.0),
            sample(0, "overlay strict", "egress_program_ns", 400.0),
            sample(0, "overlay strict", "ingress_program_ns", 200.0),
            sample(0, "overlay off", "egress_program_ns", 80.0),
            sample(0, "overlay off", "ingress_program_ns", 70.0),
        ])
        .unwrap();
        for text in ["overlay strict", "0.41", "0.50", "0123456789ab", "A CPU"] {
            assert!(ratios.contains(text), "{text} in {ratios}");
        }
        for text in ["overlay strict", "4 100", "10 000", "programs"] {
            assert!(cost.contains(text), "{text} in {cost}");
        }
        assert!(!cost.contains("host-gw"), "{cost}");
    }

    #[test]
    fn what_was_never_measured_is_an_error_that_says_so() {
        let error = draw_of(&[]).unwrap_err().to_string();
        assert!(error.contains("vxlan, as deployed"), "{error}");
    }
}
