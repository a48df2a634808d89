//! `ci`: all that continuous integration runs, in order, each step also a verb of its own.
//!
//! Cheap steps come first, so that a slip is known in seconds; the tests come last, so that their
//! closing line is the last of the whole run.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::{
    ebpf,
    kernel_test::{self, Selection, Suite},
    setup::{self, Thing},
    sh::{self, Checkout},
    test, tidy,
};

/// What kernel tests run on beside this machine's own kernel: the oldest that has nearly all that there is.
const OTHER_KERNEL: &str = "6.1";
/// Which of them: a processor in software takes half an hour and more for all, which `cargo xtask kernel-test` runs. These are some
/// for each program of the base tier, and what kernels without BPF's LSM, as this machine's may be, skip.
const OTHER_KERNEL_TESTS: [&str; 4] = ["verdicts::", "migrations::", "unix::", "tamper::"];

pub(crate) fn run(checkout: &Checkout) -> Result<()> {
    let mut times = Vec::new();
    let mut step = |name, chore: &dyn Fn() -> Result<()>| -> Result<()> {
        println!("== {name}");
        let start = Instant::now();
        chore().with_context(|| format!("step `{name}` failed; alone it is `cargo xtask {name}`"))?;
        times.push((name, start.elapsed()));
        Ok(())
    };
    step("fmt", &|| fmt(checkout, true))?;
    step("tidy", &|| tidy::run(checkout))?;
    step("clippy", &|| clippy(checkout))?;
    step("deny", &|| deny(checkout))?;
    step("lock", &|| lock(checkout))?;
    step("kernel-test", &|| {
        let (series, filters) = ([OTHER_KERNEL.to_owned()], OTHER_KERNEL_TESTS.map(str::to_owned));
        let kernel = Selection { suite: Suite::Kernel, filters: &filters };
        // All of it: nothing else runs the units in their sandboxes, or finds people by real sessions. Its guest runs beside the
        // other; where their processors are software, both take seven or eight minutes.
        let systemd = Selection { suite: Suite::Systemd, filters: &[] };
        kernel_test::run(checkout, &series, &[kernel, systemd])
    })?;

    println!("== test");
    let start = Instant::now();
    let tally = test::execute(checkout, &[])?;
    times.push(("test", start.elapsed()));

    println!("\n{}", report(&times));
    test::conclude(&tally)
}

fn report(times: &[(&str, Duration)]) -> String {
    let total = times.iter().map(|(_, time)| time).sum();
    let lines = times.iter().copied().chain([("in all", total)]);
    let lines = lines.map(|(name, time)| format!("{name:<11} {:>7.1} s", time.as_secs_f64()));
    lines.collect::<Vec<_>>().join("\n")
}

pub(crate) fn fmt(checkout: &Checkout, check: bool) -> Result<()> {
    setup::ensure(checkout, &[Thing::RustComponents])?;
    let mut cargo = checkout.cargo();
    cargo.args(["fmt", "--all"]);
    if check {
        cargo.arg("--check");
    }
    sh::run(&mut cargo)
}

pub(crate) fn clippy(checkout: &Checkout) -> Result<()> {
    // The agent's build script builds the kernel programs, hence the linker.
    setup::ensure(checkout, &[Thing::RustComponents, Thing::BpfLinker])?;
    let mut host = checkout.cargo();
    host.args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]);
    sh::run(&mut host)?;
    sh::run(ebpf::cargo(checkout, "clippy").args(["--", "-D", "warnings"]))
}

pub(crate) fn deny(checkout: &Checkout) -> Result<()> {
    setup::ensure(checkout, &[Thing::CargoDeny])?;
    let mut cargo = checkout.cargo();
    // What is in the lock file, nothing newer. No `advisories`: see deny.toml.
    cargo.args(["deny", "--locked", "--all-features", "check", "--hide-inclusion-graph"]);
    cargo.args(["bans", "licenses", "sources"]);
    sh::run(&mut cargo)
}

/// Cargo itself says what is wrong when Cargo.lock does not fit the manifests.
///
/// Under the alias `cargo xtask` the lock file has been brought up to date by then, unless cargo
/// was told not to: `.ci/run` says `cargo --locked xtask ci`.
pub(crate) fn lock(checkout: &Checkout) -> Result<()> {
    sh::output(checkout.cargo().args(["metadata", "--locked", "--format-version", "1"]))
        .context("Cargo.lock does not fit the manifests: run `cargo update --workspace`, commit it")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_adds_up() {
        let times = [("fmt", Duration::from_millis(1500)), ("test", Duration::from_secs(200))];
        assert_eq!(report(&times), "fmt             1.5 s\ntest          200.0 s\nin all        201.5 s");
    }
}
