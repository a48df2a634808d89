//! `test`: every test of the workspace, counted.
//!
//! Owns the closing line. Cargo prints a summary for each test binary; this adds them up, and makes
//! sure that what did not run is said: skipped tests by name, a binary that ended without a
//! summary as a failure, and a run without any test as a failure.

use std::{
    fmt,
    io::{self, BufRead as _, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    setup::{self, Thing},
    sh::{self, Checkout},
};

/// Without these nothing can be built, or tests fail: the control plane is tested on each database that it can have, and sends mail, and its
/// clock is set.
const NEEDED: [Thing; 5] =
    [Thing::RustComponents, Thing::BpfLinker, Thing::Postgres, Thing::MailServer, Thing::FakeTime];
/// Without these some tests are skipped.
const WANTED: [Thing; 10] = [
    Thing::SystemdAnalyze,
    Thing::KubernetesValidate,
    Thing::HaProxy,
    Thing::PgBouncer,
    Thing::Nftables,
    Thing::Iproute,
    Thing::OpenSsh,
    Thing::OidcProvider,
    Thing::Chromium,
    Thing::ContainerRuntimes,
];

/// The verb: runs, then prints what was skipped and the closing line.
pub(crate) fn run(checkout: &Checkout, filters: &[String]) -> Result<()> {
    let tally = execute(checkout, filters)?;
    conclude(&tally)
}

/// Builds and runs everything, streaming the output.
pub(crate) fn execute(checkout: &Checkout, filters: &[String]) -> Result<Tally> {
    setup::ensure(checkout, &NEEDED)?;
    setup::ensure_if_possible(checkout, &WANTED);
    if !sh::is_root() {
        eprintln!("not root: kernel tests are skipped");
    }

    // Tests start the programs, so both are built; in one go, so that both use the same
    // dependencies. And before the run, so that a compiler error is not taken for a test's failure.
    sh::run(checkout.cargo().args(["build", "--workspace", "--bins", "--tests"]))?;

    let mut tally = Tally::default();
    if filters.is_empty() {
        tally.add(cargo_test(checkout, None)?);
    }
    // One run for each: libtest takes several filters, libtest-mimic takes one.
    for filter in filters {
        tally.add(cargo_test(checkout, Some(filter))?);
    }
    Ok(tally)
}

/// Prints what was skipped, then the closing line, alone and last.
pub(crate) fn conclude(tally: &Tally) -> Result<()> {
    println!();
    if !tally.skipped.is_empty() {
        println!("skipped:");
        for name in &tally.skipped {
            println!("  {name}");
        }
    }
    for binary in &tally.without_summary {
        println!("{binary} ended without a summary: counted as failed");
    }
    println!("{tally}");
    tally.verdict()
}

fn cargo_test(checkout: &Checkout, filter: Option<&str>) -> Result<Tally> {
    let mut cargo = checkout.cargo();
    // Every binary runs, whatever the one before it came to.
    cargo.args(["test", "--workspace", "--no-fail-fast"]);
    if let Some(filter) = filter {
        cargo.args(["--", filter]);
    }
    let mut tally = Tally::default();
    let succeeded = stream(&mut cargo, &mut io::stdout(), |line| tally.read(line))?;
    tally.finish(succeeded);
    Ok(tally)
}

/// Runs a command, passing on what it prints while handing each line to `read`.
///
/// Output and errors share one pipe: cargo names a binary on the one, the binary reports on the
/// other, and only their order tells which report is whose.
fn stream(command: &mut Command, out: &mut impl io::Write, mut read: impl FnMut(&str)) -> Result<bool> {
    let (reader, writer) = io::pipe().context("cannot make a pipe")?;
    let twin = writer.try_clone().context("cannot duplicate a pipe")?;
    command.stdin(Stdio::null()).stdout(twin).stderr(writer);
    let mut child = command.spawn().context("cannot start `cargo test`")?;
    // Our own ends of the pipe; while they live the reader sees no end.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        let chunk = reader.fill_buf().context("cannot read what the tests print")?;
        if chunk.is_empty() {
            break;
        }
        // Passed on at once: a test that hangs has already printed its name, without a line end.
        out.write_all(chunk).and_then(|()| out.flush()).context("cannot print")?;
        for &byte in chunk {
            if byte == b'\n' {
                read(&String::from_utf8_lossy(&line));
                line.clear();
            } else {
                line.push(byte);
            }
        }
        let consumed = chunk.len();
        reader.consume(consumed);
    }
    let status = child.wait().context("cannot wait for `cargo test`")?;
    Ok(status.success())
}

/// What all test binaries together came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
    /// `binary: test (reason)`.
    skipped: Vec<String>,
    without_summary: Vec<String>,
    /// The binary that is running, until it has printed its summary.
    running: Option<String>,
    /// The binary whose tests are being reported.
    binary: String,
    failed_otherwise: bool,
}

impl Tally {
    fn read(&mut self, line: &str) {
        if let Some(binary) = binary(line) {
            self.close_binary();
            self.running = Some(binary.clone());
            self.binary = binary;
        } else if let Some([passed, failed, ignored]) = summary(line) {
            // The first summary is the binary's; a line that comes after it is a test's chatter.
            if self.running.take().is_some() {
                self.passed += passed;
                self.failed += failed;
                self.ignored += ignored;
            }
        } else if let Some(test) = skipped(line) {
            self.skipped.push(format!("{}: {test}", self.binary));
        }
    }

    fn finish(&mut self, cargo_succeeded: bool) {
        self.close_binary();
        self.failed_otherwise = !cargo_succeeded && self.failed == 0;
    }

    fn close_binary(&mut self) {
        if let Some(binary) = self.running.take() {
            self.failed += 1;
            self.without_summary.push(binary);
        }
    }

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.skipped.extend(other.skipped);
        self.without_summary.extend(other.without_summary);
        self.failed_otherwise |= other.failed_otherwise;
    }

    fn verdict(&self) -> Result<()> {
        if self.failed > 0 {
            bail!("{} tests failed", self.failed);
        }
        if self.failed_otherwise {
            bail!("cargo test failed, though no test did: see above");
        }
        if self.passed == 0 {
            bail!("no test ran: if a filter was given, it matches no test that can run here");
        }
        Ok(())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.ignored)
    }
}

/// The name in cargo's announcement: `Running tests/a.rs (target/debug/deps/a-0123456789abcdef)`.
fn binary(line: &str) -> Option<String> {
    if let Some(package) = line.strip_prefix("   Doc-tests ") {
        return Some(format!("{package} (documentation)"));
    }
    let announced = line.strip_prefix("     Running ")?;
    let (_, path) = announced.strip_suffix(')')?.rsplit_once(" (")?;
    let file = path.rsplit('/').next()?;
    let (name, _hash) = file.rsplit_once('-')?;
    Some(name.to_owned())
}

/// Passed, failed and ignored of a summary.
pub(crate) fn summary(line: &str) -> Option<[u64; 3]> {
    let line = line.strip_prefix("test result: ")?;
    let (_, counts) = line.split_once(". ")?;
    let mut counts = counts.split("; ");
    let mut count = |what| counts.next()?.strip_suffix(what)?.trim().parse().ok();
    Some([count("passed")?, count("failed")?, count("ignored")?])
}

/// A skipped test and its reason, from `test a ... ignored, why` (libtest) or
/// `test a ... ignored (why)` (libtest-mimic).
pub(crate) fn skipped(line: &str) -> Option<String> {
    let (name, outcome) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let name = name.trim_end();
    let reason = outcome.strip_prefix("ignored")?;
    match reason.strip_prefix(", ").or_else(|| reason.strip_prefix(" (")?.strip_suffix(')')) {
        Some(reason) => Some(format!("{name} ({reason})")),
        None => Some(name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(output: &str, cargo_succeeded: bool) -> Tally {
        let mut tally = Tally::default();
        output.lines().for_each(|line| tally.read(line));
        tally.finish(cargo_succeeded);
        tally
    }

    const TWO_BINARIES: &str = "
     Running unittests src/lib.rs (target/debug/deps/agent-00d1c8f4b1a2c3d4)

running 3 tests
test rules::plan::removals_come_first ... ok
test rules::grants::later ... ignored, needs a slow disk
test rules::grants::never_back ... ok

test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s

     Running kernel/main.rs (target/debug/deps/kernel-7a1e05c3d2f9b846)

running 2 tests
test connect4_denied      ... ignored (needs root)
test map_full             ... ignored

test result: ok. 0 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    #[test]
    fn all_binaries_are_added_up() {
        let tally = tally(TWO_BINARIES, true);
        assert_eq!(tally.to_string(), "2 passed, 0 failed, 3 skipped");
        assert_eq!(
            tally.skipped,
            [
                "agent: rules::grants::later (needs a slow disk)",
                "kernel: connect4_denied (needs root)",
                "kernel: map_full"
            ]
        );
        tally.verdict().expect("nothing failed");
    }

    #[test]
    fn a_failed_test_is_a_failure() {
        let output = "     Running a.rs (target/debug/deps/a-00d1c8f4b1a2c3d4)
test result: FAILED. 4 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        let tally = tally(output, false);
        assert_eq!(tally.to_string(), "4 passed, 1 failed, 0 skipped");
        assert!(tally.verdict().is_err());
    }

    #[test]
    fn a_binary_without_a_summary_is_a_failure() {
        let crashed = "     Running b.rs (target/debug/deps/b-00d1c8f4b1a2c3d4)
test first ... ok
     Running c.rs (target/debug/deps/c-00d1c8f4b1a2c3d4)
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        let tally = tally(crashed, false);
        assert_eq!(tally.to_string(), "1 passed, 1 failed, 0 skipped");
        assert_eq!(tally.without_summary, ["b"]);
        assert!(tally.verdict().is_err());
    }

    #[test]
    fn no_test_at_all_is_a_failure() {
        assert!(tally("", true).verdict().is_err());
        let filtered = "     Running b.rs (target/debug/deps/b-00d1c8f4b1a2c3d4)
test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out; finished in 0.00s";
        assert!(tally(filtered, true).verdict().is_err());
    }

    #[test]
    fn cargo_failing_by_itself_is_a_failure() {
        assert!(tally(TWO_BINARIES, false).verdict().is_err());
    }

    #[test]
    fn a_summary_printed_by_a_test_is_not_counted() {
        let output = "     Running a.rs (target/debug/deps/a-00d1c8f4b1a2c3d4)
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s
test result: ok. 9 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(tally(output, true).to_string(), "1 passed, 0 failed, 0 skipped");
    }

    #[test]
    fn a_command_is_streamed_whole_and_in_order() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two >&2; echo three; exit 1"]);
        let (mut lines, mut out) = (Vec::new(), Vec::new());
        let succeeded =
            stream(&mut command, &mut out, |line| lines.push(line.to_owned())).expect("sh starts");
        assert_eq!(lines, ["one", "two", "three"]);
        assert_eq!(out, b"one\ntwo\nthree\n");
        assert!(!succeeded);
    }
}
