//! Somebody measures: every part runs. What the figures say is not judged here.

use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tests::ensure_eq;
use tests::process::output;
use tests::runner::Test;
use tests::stage::binary;

pub(crate) const TESTS: &[Test] = &[("benchmarks::every_part_of_kernel_runs", every_part_of_kernel_runs)];

fn every_part_of_kernel_runs() -> Result<()> {
    let printed = output(Command::new(binary("bench")?).args(["kernel", "--smoke", "-o", "json"]))?;
    let report: Value = serde_json::from_str(&printed).context("the benchmark printed no JSON")?;
    let tables = report["tables"].as_array().context("there are tables")?;
    ensure_eq!(tables.len(), 6, "in {report:#}");
    for table in tables {
        if table["rows"].as_array().is_none_or(Vec::is_empty) {
            bail!("nothing was measured: {table:#}");
        }
    }
    Ok(())
}
