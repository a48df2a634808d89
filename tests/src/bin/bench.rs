//! Benchmarks, started by `cargo xtask bench`. Everything they make has a name and an address of its own, and is taken away
//! at the end, whatever happens.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use tests::bench::{Effort, access, agent, fleet, kernel, worker};
use tests::cleanup;
use tests::machine::cannot_enforce;

/// Measures, and prints what came of it.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// What the gate in the kernel costs
    Kernel {
        #[command(flatten)]
        how: How,
        /// Only the parts with this word in their names
        #[arg(long, value_name = "WORD", default_value = "")]
        only: String,
    },
    /// What an agent takes for itself
    Agent {
        #[command(flatten)]
        how: How,
    },
    /// What one control plane can carry
    Fleet {
        #[command(flatten)]
        how: How,
    },
    /// What asking, deciding and listing cost a control plane
    Access {
        #[command(flatten)]
        how: How,
    },
}

#[derive(clap::Args)]
struct How {
    /// Fewer and shorter rounds, for a look
    #[arg(long)]
    quick: bool,
    /// Only so much that everything was run once; the figures say nothing
    #[arg(long, conflicts_with = "quick")]
    smoke: bool,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Also put the figures between the markers of this file
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

impl How {
    /// Which of the three is meant.
    fn pick<T>(&self, full: T, quick: T, smoke: T) -> T {
        match (self.quick, self.smoke) {
            (_, true) => smoke,
            (true, _) => quick,
            _ => full,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Table,
    Json,
}

fn main() -> ExitCode {
    worker::run_if_asked();
    let arguments = Arguments::parse();
    let measured = cleanup::on_signals().map_err(Into::into).and_then(|()| measure(&arguments.what));
    cleanup::let_signals_finish();
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(what: &What) -> Result<()> {
    let (name, report, how) = match what {
        What::Kernel { how, only } => {
            if let Some(reason) = cannot_enforce() {
                bail!("the benchmark loads programs into the kernel, and cannot do that here: {reason}");
            }
            ("kernel", kernel::measure(how.pick(Effort::FULL, Effort::QUICK, Effort::SMOKE), only)?, how)
        }
        What::Agent { how } => {
            use agent::Size;
            if let Some(reason) = cannot_enforce() {
                bail!("the benchmark has an agent enforce, and cannot do that here: {reason}");
            }
            ("agent", agent::measure(how.pick(Size::FULL, Size::QUICK, Size::SMOKE))?, how)
        }
        What::Fleet { how } => {
            use fleet::Size;
            ("fleet", fleet::measure(how.pick(Size::FULL, Size::QUICK, Size::SMOKE))?, how)
        }
        What::Access { how } => {
            use access::Size;
            ("access", access::measure(how.pick(Size::FULL, Size::QUICK, Size::SMOKE))?, how)
        }
    };
    let text = match how.output {
        Output::Table => report.text(),
        Output::Json => format!("{:#}\n", report.json()),
    };
    io::stdout().write_all(text.as_bytes())?;
    how.write.as_ref().map_or(Ok(()), |path| report.write(name, path))
}
