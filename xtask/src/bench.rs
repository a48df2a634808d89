//! `bench`: what it costs.
//!
//! Owns only the way there: building for speed, and what stands in the comparison. The benchmarks themselves are the program
//! `bench` of the package `tests`, which stands on the same ground as the tests.

use anyhow::{Result, bail};
use clap::{Subcommand, ValueEnum};

use crate::{
    setup::{self, Thing},
    sh::{self, Checkout},
};

/// What is measured.
#[derive(Debug, Subcommand)]
pub(crate) enum What {
    /// The gate in the kernel: nanoseconds per program, rates, latency, throughput, records
    Kernel {
        /// Fewer and shorter rounds, for a look: 20 seconds in place of three minutes
        #[arg(long)]
        quick: bool,
        /// Only the parts with this word in their names
        #[arg(long, value_name = "WORD")]
        only: Option<String>,
        /// How to print it
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
        /// Also put the figures into docs/benchmarks.md
        #[arg(long, conflicts_with_all = ["quick", "only"])]
        write: bool,
    },
}

/// How figures are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Table,
    Json,
}

pub(crate) fn run(checkout: &Checkout, what: &What) -> Result<()> {
    let What::Kernel { quick, only, output, write } = what;
    if !sh::is_root() {
        bail!(
            "it loads programs into the kernel, which takes root: try `sudo -E env PATH=\"$PATH\" cargo xtask bench …`"
        );
    }
    setup::ensure(
        checkout,
        &[
            Thing::RustComponents,
            Thing::BpfLinker,
            Thing::Postgres,
            Thing::HaProxy,
            Thing::PgBouncer,
            Thing::Nftables,
            Thing::Iproute,
        ],
    )?;
    eprintln!("building (some minutes the first time) …");
    sh::run(checkout.cargo().args([
        "build",
        "--quiet",
        "--release",
        "--package",
        "tests",
        "--bin",
        "bench",
    ]))?;
    let mut bench = sh::command(checkout.target.join("release/bench"));
    bench.arg("kernel");
    if *quick {
        bench.arg("--quick");
    }
    if let Some(only) = only {
        bench.args(["--only", only]);
    }
    if *output == Output::Json {
        bench.args(["--output", "json"]);
    }
    if *write {
        bench.arg("--write").arg(checkout.root.join("docs/benchmarks.md"));
    }
    sh::run(&mut bench)
}
