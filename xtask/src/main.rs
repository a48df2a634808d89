//! Every chore of the project, as `cargo xtask VERB`.
//!
//! This file owns the list of verbs; each verb has a module that owns its chore. A verb sets up
//! what it needs itself, silently when everything is there, so no verb has to be run before another.

// Printing is what chores do.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod bypass_table;
mod ci;
mod demo;
mod ebpf;
mod fuzz;
mod kernel_test;
mod setup;
mod sh;
mod test;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::sh::Checkout;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Every chore of the project", version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Check everything the chores need, and install what is missing
    ///
    /// One line for each thing: ok, installed, or what to run. Safe to run again. The other verbs
    /// set up what they need themselves; this one does it all at once.
    Setup,
    /// Show the story: refused, requested, approved, connected, ended, audited
    ///
    /// With a real kernel and a real PostgreSQL server, on an address of its own. Takes root, and
    /// some 15 seconds after the build; everything it makes is taken away at the end.
    Demo,
    /// Build the kernel programs; print the size and the verifier cost of each
    ///
    /// Sizes are read from the object. Verifier cost and jited size come from the kernel, which
    /// loads the programs for that without attaching them; that takes root.
    Ebpf,
    /// Run every test, and end with one line: N passed, N failed, N skipped
    ///
    /// Kernel tests take root; without it they are skipped, by name. Fails when no test ran.
    Test {
        /// Run only tests whose name contains this; each filter is a run of its own
        filters: Vec<String>,
    },
    /// Run the kernel tests on Debian's kernels, each in a virtual machine; end with one line as `test` does
    ///
    /// Kernels are downloaded once, and kept outside the checkout. One that cannot be had is told;
    /// that is a failure if it was asked for, or if fewer than 6.1 and one newer are left.
    KernelTest {
        /// A kernel series, such as 6.1, or 7 for the newest 7.x; or one run of it, such as 5.10+lsm. None: all
        series: Vec<String>,
        /// Run only these tests
        #[arg(long)]
        suite: Option<kernel_test::Suite>,
        /// Run only tests whose name contains this; each filter is a run of its own
        #[arg(last = true)]
        filters: Vec<String>,
    },
    /// Write what the bypass suite saw into the generated section of docs/security.md
    ///
    /// The files are what `PORTCULLIS_BYPASS_TABLE=FILE cargo test -p tests --test bypass` wrote, one
    /// for each kernel; their rows are merged, and the section says which kernels they are from.
    BypassTable {
        /// One file for each kernel
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Change nothing; fail if the section is not what the files say
        #[arg(long)]
        check: bool,
    },
    /// Measure, side by side with doing without and with what could stand in its place
    ///
    /// Takes root, and a machine with nothing else to do for figures that are worth keeping.
    Bench {
        #[command(subcommand)]
        what: bench::What,
    },
    /// Look for bytes that break a decoder, with libFuzzer
    ///
    /// What is found is kept in the target folder; a later run goes on from it.
    Fuzz {
        /// Only these decoders; all of them if none is named
        names: Vec<String>,
        /// How long for each, in seconds
        #[arg(long = "for", default_value_t = 60, value_name = "SECONDS")]
        seconds: u64,
    },
    /// Run all that continuous integration runs, the tests last
    Ci,
    /// Format the code
    Fmt {
        /// Change nothing; fail if something is not formatted
        #[arg(long)]
        check: bool,
    },
    /// Lint the code, for the host and for the kernel; a warning is a failure
    Clippy,
    /// Check dependencies: duplicates, licenses, sources
    ///
    /// Advisories are not checked here: their database has to be fetched, and this must not.
    Deny,
    /// Check that Cargo.lock is current
    Lock,
    /// Check the house rules that no compiler checks: who may import what, module headers, paths
    Tidy,
}

fn main() -> ExitCode {
    match run(Arguments::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            for cause in error.chain().skip(1) {
                eprintln!("  caused by: {cause}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<()> {
    let checkout = Checkout::find()?;
    match verb {
        Verb::Setup => setup::run(&checkout),
        Verb::Demo => demo::run(&checkout),
        Verb::Ebpf => ebpf::run(&checkout),
        Verb::Test { filters } => test::run(&checkout, &filters),
        Verb::KernelTest { series, suite, filters } => {
            kernel_test::run_suite(&checkout, &series, suite, &filters)
        }
        Verb::BypassTable { files, check } => bypass_table::run(&checkout, &files, check),
        Verb::Bench { what } => bench::run(&checkout, &what),
        Verb::Fuzz { names, seconds } => fuzz::run(&checkout, &names, Duration::from_secs(seconds)),
        Verb::Ci => ci::run(&checkout),
        Verb::Fmt { check } => ci::fmt(&checkout, check),
        Verb::Clippy => ci::clippy(&checkout),
        Verb::Deny => ci::deny(&checkout),
        Verb::Lock => ci::lock(&checkout),
        Verb::Tidy => tidy::run(&checkout),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Arguments::command().debug_assert();
    }
}
