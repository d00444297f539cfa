//! `overlay-ebpf/budget.txt`: how much work a program may be for the verifier. A program that grows
//! towards the verifier's limits still loads here, and no longer on an older kernel.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail, ensure};

/// What the verifier made of a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Instructions it walked through.
    pub instructions: u64,
    /// States it kept to recognise a path it knows.
    pub states: u64,
    /// Bytes of stack of all its functions.
    pub stack: u64,
    /// Bytes of stack of its deepest chain of calls, as older kernels count them.
    pub chain: u64,
}

impl Cost {
    fn parts(self) -> [(&'static str, u64); 4] {
        [
            ("verified instructions", self.instructions),
            ("verifier states", self.states),
            ("bytes of stack", self.stack),
            ("bytes of stack in one chain of calls", self.chain),
        ]
    }
}

/// Fails unless each program has a budget and keeps to it, and names what does not.
pub fn check(budget: &str, costs: &[(String, Cost)]) -> Result<()> {
    let budget = parse(budget)?;
    let mut excesses = String::new();
    for (program, cost) in costs {
        let Some((_, allowed)) = budget.iter().find(|(name, _)| name == program) else {
            bail!("{program} has no line in overlay-ebpf/budget.txt");
        };
        for ((what, is), (_, may_be)) in cost.parts().into_iter().zip(allowed.parts()) {
            if is > may_be {
                // Writing to a String cannot fail.
                let _ = writeln!(excesses, "  {program}: {is} {what}, budget {may_be}");
            }
        }
    }
    ensure!(
        excesses.is_empty(),
        "over the budget of overlay-ebpf/budget.txt:\n{excesses}"
    );
    Ok(())
}

fn parse(text: &str) -> Result<Vec<(&str, Cost)>> {
    text.lines()
        .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
        .map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let &[program, instructions, states, stack, chain] = fields.as_slice() else {
                bail!("no budget: {line}");
            };
            let number = |text: &str| text.parse().with_context(|| format!("no budget: {line}"));
            let cost = Cost {
                instructions: number(instructions)?,
                states: number(states)?,
                stack: number(stack)?,
                chain: number(chain)?,
            };
            Ok((program, cost))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: &str = "# a comment\na 100 10 64 64\nb 200 20 128 160\n";

    fn cost(instructions: u64, states: u64, stack: u64, chain: u64) -> Cost {
        Cost {
            instructions,
            states,
            stack,
            chain,
        }
    }

    #[test]
    fn programs_within_their_budget_are_fine() {
        let costs = [
            ("a".to_owned(), cost(100, 10, 64, 64)),
            ("b".to_owned(), cost(1, 1, 0, 32)),
        ];
        check(BUDGET, &costs).expect("within the budget");
    }

    #[test]
    fn everything_over_the_budget_is_named() {
        let costs = [
            ("a".to_owned(), cost(101, 10, 65, 96)),
            ("b".to_owned(), cost(1, 21, 0, 32)),
        ];
        let error = check(BUDGET, &costs)
            .expect_err("over the budget")
            .to_string();
        for excess in [
            "a: 101 verified instructions, budget 100",
            "a: 65 bytes of stack, budget 64",
            "a: 96 bytes of stack in one chain of calls, budget 64",
            "b: 21 verifier states, budget 20",
        ] {
            assert!(error.contains(excess), "{error}");
        }
        assert_eq!(error.lines().count(), 5, "{error}");
    }

    #[test]
    fn a_program_without_a_budget_is_an_error() {
        let error = check(BUDGET, &[("c".to_owned(), Cost::default())]).expect_err("no line");
        assert!(error.to_string().contains("c has no line"), "{error}");
        assert!(parse("a 1 2 3\n").is_err());
        assert!(parse("a 1 2 3 x\n").is_err());
    }
}
