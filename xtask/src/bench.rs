//! `bench`: what it costs.
//!
//! Owns only the way there: building for speed, and what stands in the comparison. The benchmarks themselves are the program
//! `bench` of the package `tests`, which stands on the same ground as the tests.

use anyhow::{Result, bail};
use clap::{Args, Subcommand, ValueEnum};

use crate::{
    setup::{self, Thing},
    sh::{self, Checkout},
};

/// What is measured.
#[derive(Debug, Subcommand)]
pub(crate) enum What {
    /// The gate in the kernel: nanoseconds per program, rates, latency, throughput, records
    Kernel {
        #[command(flatten)]
        how: How,
        /// Only the parts with this word in their names
        #[arg(long, value_name = "WORD", conflicts_with = "write")]
        only: Option<String>,
    },
    /// One agent with 10,000 grants and 1,000 cgroups: memory, and the processor while nothing happens
    Agent {
        #[command(flatten)]
        how: How,
    },
    /// One control plane with 10,000 agents: connecting after a restart, memory, how fast grants are with their hosts
    Fleet {
        #[command(flatten)]
        how: How,
    },
    /// Asking, deciding and listing: the policy's decision, requests in a second, what is open beside a million that are over
    Access {
        #[command(flatten)]
        how: How,
    },
}

/// How it is measured and told.
#[derive(Debug, Args)]
pub(crate) struct How {
    /// Fewer and shorter rounds, for a look: some 20 seconds in place of three minutes
    #[arg(long)]
    quick: bool,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Also put the figures into docs/benchmarks.md
    #[arg(long, conflicts_with = "quick")]
    write: bool,
}

/// How figures are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Table,
    Json,
}

pub(crate) fn run(checkout: &Checkout, what: &What) -> Result<()> {
    let (name, how, only) = match what {
        What::Kernel { how, only } => ("kernel", how, only.as_deref()),
        What::Agent { how } => ("agent", how, None),
        What::Fleet { how } => ("fleet", how, None),
        What::Access { how } => ("access", how, None),
    };
    setup::ensure(checkout, &[Thing::RustComponents, Thing::BpfLinker])?;
    if name != "fleet" && !sh::is_root() {
        bail!(
            "it loads programs into the kernel, or runs a server of its own, which takes root: try `sudo -E env PATH=\"$PATH\" cargo xtask bench …`"
        );
    }
    if name == "access" {
        setup::ensure(checkout, &[Thing::Postgres])?;
    }
    if name == "kernel" {
        let compared = [Thing::Postgres, Thing::HaProxy, Thing::PgBouncer, Thing::Nftables, Thing::Iproute];
        setup::ensure(checkout, &compared)?;
    }
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
    let programs: &[&str] = match name {
        "agent" => &["control-plane", "agent", "cli"],
        "fleet" => &["control-plane"],
        _ => &[],
    };
    for package in programs {
        sh::run(checkout.cargo().args(["build", "--quiet", "--release", "--package", package, "--bins"]))?;
    }
    let mut bench = sh::command(checkout.target.join("release/bench"));
    bench.arg(name);
    if how.quick {
        bench.arg("--quick");
    }
    if let Some(only) = only {
        bench.args(["--only", only]);
    }
    if how.output == Output::Json {
        bench.args(["--output", "json"]);
    }
    if how.write {
        bench.arg("--write").arg(checkout.root.join("docs/benchmarks.md"));
    }
    sh::run(&mut bench)
}
