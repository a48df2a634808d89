//! Somebody measures: every part runs. What the figures say is not judged here.

use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tests::ensure_eq;
use tests::process::output;
use tests::runner::Test;
use tests::stage::binary;

pub(crate) const TESTS: &[Test] = &[
    ("benchmarks::every_part_of_kernel_runs", every_part_of_kernel_runs),
    ("benchmarks::a_small_fleet_is_measured", a_small_fleet_is_measured),
    ("benchmarks::an_agent_is_measured", an_agent_is_measured),
    ("benchmarks::asking_is_measured", asking_is_measured),
];

fn every_part_of_kernel_runs() -> Result<()> {
    everything_was_measured("kernel", 6)
}

fn a_small_fleet_is_measured() -> Result<()> {
    everything_was_measured("fleet", 1)
}

fn an_agent_is_measured() -> Result<()> {
    everything_was_measured("agent", 1)
}

fn asking_is_measured() -> Result<()> {
    everything_was_measured("access", 3)
}

fn everything_was_measured(what: &str, parts: usize) -> Result<()> {
    let printed = output(Command::new(binary("bench")?).args([what, "--smoke", "-o", "json"]))?;
    let report: Value = serde_json::from_str(&printed).context("the benchmark printed no JSON")?;
    let tables = report["tables"].as_array().context("there are tables")?;
    ensure_eq!(tables.len(), parts, "in {report:#}");
    for table in tables {
        if table["rows"].as_array().is_none_or(Vec::is_empty) {
            bail!("nothing was measured: {table:#}");
        }
    }
    Ok(())
}
