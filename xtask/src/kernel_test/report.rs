//! What a guest said: its lines read, its skips judged, its end explained.
//!
//! Pure. The lines that begin with [`MARK`] are written by `init.sh`, the others by libtest-mimic,
//! by the tests, or by the kernel.

use std::collections::VecDeque;

use crate::test;

/// What the guest's own lines begin with.
const MARK: &str = "@@guest ";

/// Bits of `/proc/sys/kernel/tainted` by which a kernel says that something went wrong in it.
const TAINTS: [(u64, &str); 4] = [
    (1 << 5, "a bad page was found"),
    (1 << 7, "the kernel died (BUG or oops)"),
    (1 << 9, "the kernel warned (WARNING)"),
    (1 << 14, "a soft lockup occurred"),
];

/// What a kernel writes to its console when something went wrong in it. `WARNING:` is looked for
/// at the beginning only: speculation flaws of the processor are told as `Spectre: WARNING: …`.
const COMPLAINTS: [&str; 7] =
    ["BUG:", "Oops", "Kernel panic", "general protection fault", "UBSAN:", "KASAN:", "[ cut here ]"];

/// How many of the last lines are shown where there is nothing better.
const TAIL_LINES: usize = 25;

/// A test that some kernel cannot run.
pub(super) struct Skip {
    /// The run of the table; a series stands for all its runs, and with `=` in front for its first one only; `*` for every run.
    pub(super) run: &'static str,
    pub(super) test: &'static str,
    /// Why that kernel cannot.
    pub(super) reason: &'static str,
}

/// What a guest has said so far.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// `uname -r`; None: the guest never got as far as its first program.
    pub(super) kernel: Option<String>,
    passed: u64,
    failed: u64,
    ignored: u64,
    /// As `name` or `name (reason)`.
    skipped: Vec<String>,
    /// What libtest-mimic printed about failed tests.
    failures: Vec<String>,
    /// What else went wrong.
    problems: Vec<String>,
    /// The last of what the programs said before their tests began: why they skip, say.
    foreword: VecDeque<String>,
    running: Option<Program>,
    in_failures: bool,
    taints: Option<u64>,
    last: VecDeque<String>,
    /// Of the bypass suite's table, as JSON.
    rows: Vec<String>,
}

/// A program of tests that has begun.
#[derive(Debug)]
struct Program {
    name: String,
    has_begun: bool,
    /// Failures it told of; None: it has told nothing.
    failed: Option<u64>,
}

/// How the machine came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// It was switched off, by itself or by its kernel's panic.
    Off,
    /// It was ended by us, because of this.
    Stopped(String),
}

/// What one run came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) passed: u64,
    /// Failed tests, and one for each other thing that went wrong.
    pub(super) failed: u64,
    /// Those that may be, as `name (why)`.
    pub(super) skipped: Vec<String>,
    /// To be shown: what failed, and how.
    pub(super) details: Vec<String>,
}

impl Report {
    pub(super) fn read(&mut self, line: &str) {
        let line = line.trim_end();
        match line.strip_prefix(MARK) {
            Some(marked) => self.read_mark(marked),
            None => self.read_output(line),
        }
        push(&mut self.last, line);
    }

    /// The rows of the bypass suite's table, a line each; empty: it did not run.
    pub(super) fn rows(&self) -> String {
        self.rows.iter().map(|row| format!("{row}\n")).collect()
    }

    fn read_mark(&mut self, marked: &str) {
        let (word, rest) = marked.split_once(' ').unwrap_or((marked, ""));
        match word {
            "kernel" => self.kernel = Some(rest.to_owned()),
            "refused" => self.problems.push(format!("the kernel refused its module {rest}")),
            "begin" => self.running = Some(Program { name: rest.to_owned(), has_begun: false, failed: None }),
            "end" => self.close_program(&format!("status {rest}"), rest == "0"),
            "row" => self.rows.push(rest.to_owned()),
            "done" => self.taints = rest.parse().ok(),
            // For whoever reads the log.
            _ => {}
        }
    }

    fn read_output(&mut self, line: &str) {
        let Some(program) = &mut self.running else { return };
        program.has_begun |= line.starts_with("running ");
        // The first summary is the program's; one that comes after it is a test's chatter.
        if let (Some([passed, failed, ignored]), None) = (test::summary(line), program.failed) {
            program.failed = Some(failed);
            self.passed += passed;
            self.failed += failed;
            self.ignored += ignored;
            self.in_failures = false;
        } else if let Some(test) = test::skipped(line) {
            self.skipped.push(test);
        } else if line == "failures:" {
            self.in_failures = true;
        } else if self.in_failures {
            self.failures.push(line.to_owned());
        } else if !program.has_begun {
            push(&mut self.foreword, line);
        }
    }

    fn close_program(&mut self, how: &str, succeeded: bool) {
        self.in_failures = false;
        let Some(Program { name, failed, .. }) = self.running.take() else { return };
        match failed {
            None => self.problems.push(format!("{name} ended without a summary ({how})")),
            Some(0) if !succeeded => {
                self.problems.push(format!("{name} failed ({how}), though no test did"));
            }
            Some(_) => {}
        }
    }

    /// What it came to: with the kernel's console, and the tests that may be skipped in this run.
    pub(super) fn conclude(mut self, run: &str, end: &End, console: &str, may_skip: &[Skip]) -> Outcome {
        self.close_program("the machine ended", false);
        let mut details = std::mem::take(&mut self.failures);
        let complaint = complaint(console);
        if self.taints.is_none() {
            self.problems.push(match end {
                End::Off => "the guest ended without a status".to_owned(),
                End::Stopped(why) => format!("the guest was ended: {why}"),
            });
            // Nothing tells more about an end that nobody reported than what came last.
            details.push("the last lines of the tests:".to_owned());
            details.extend(self.last.drain(..));
            details.push("the last lines of the console:".to_owned());
            let lines: Vec<&str> = console.lines().collect();
            let tail =
                if complaint.is_empty() { lines.len().saturating_sub(TAIL_LINES) } else { lines.len() };
            details.extend(lines[tail..].iter().map(ToString::to_string));
        }
        if !complaint.is_empty() {
            self.problems.push("there is a complaint on the kernel's console".to_owned());
            details.extend(complaint);
        }
        let taints = self.taints.unwrap_or_default();
        self.problems
            .extend(TAINTS.iter().filter(|(bit, _)| taints & bit != 0).map(|(_, what)| (*what).into()));
        let ignored = std::mem::take(&mut self.skipped);
        if ignored.len() as u64 != self.ignored {
            let named = ignored.len();
            self.problems.push(format!("{} tests were skipped, {named} of them by name", self.ignored));
        }
        let (mut skipped, problems) = (Vec::new(), self.problems.len());
        for test in ignored {
            match listed(run, &test, may_skip) {
                Some(skip) => skipped.push(format!("{} ({})", skip.test, skip.reason)),
                None => self
                    .problems
                    .push(format!("{test} was skipped, and is not on the list in kernel_test.rs")),
            }
        }
        if self.problems.len() > problems {
            details.extend(self.foreword);
        }
        let failed = self.failed + self.problems.len() as u64;
        details.extend(self.problems);
        Outcome { passed: self.passed, failed, skipped, details }
    }
}

/// Keeps the last lines.
fn push(lines: &mut VecDeque<String>, line: &str) {
    if lines.len() == TAIL_LINES {
        lines.pop_front();
    }
    lines.push_back(line.to_owned());
}

fn listed<'a>(run: &str, test: &str, may_skip: &'a [Skip]) -> Option<&'a Skip> {
    let name = test.split(' ').next().unwrap_or_default();
    let series = run.split('+').next().unwrap_or_default();
    let stands =
        |of: &str| of == "*" || of.strip_prefix('=').map_or(of == run || of == series, |of| of == run);
    may_skip.iter().find(|skip| skip.test == name && stands(skip.run))
}

/// From the first complaint on, as many lines as tell what it is about.
fn complaint(console: &str) -> Vec<String> {
    let lines: Vec<&str> = console.lines().map(str::trim_end).collect();
    let first = lines.iter().position(|line| {
        let text = line.split_once("] ").filter(|_| line.starts_with('[')).map_or(*line, |(_, text)| text);
        text.starts_with("WARNING:") || COMPLAINTS.iter().any(|complaint| text.contains(complaint))
    });
    first.map_or(Vec::new(), |first| {
        lines[first..].iter().take(TAIL_LINES).map(|line| (*line).to_owned()).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAY_SKIP: &[Skip] = &[
        Skip { run: "5.10", test: "bypass::mptcp", reason: "no MPTCP before 5.15 in Debian" },
        Skip { run: "5.10+lsm", test: "bypass::cgroup_lsm", reason: "needs 6.0" },
        Skip { run: "=5.10", test: "lsm::runs", reason: "not on its list" },
    ];

    const GOOD: &str = "\
@@guest kernel 6.1.0-56-amd64
@@guest lsm lockdown,bpf
@@guest begin kernel-1f
running 2 tests
test life::lowering_opens  ... ok
test limits::full          ... ok

test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.51s
@@guest end 0
@@guest done 0
";

    fn conclude(run: &str, output: &str, end: &End, console: &str) -> Outcome {
        let mut report = Report::default();
        output.lines().for_each(|line| report.read(line));
        report.conclude(run, end, console, MAY_SKIP)
    }

    #[track_caller]
    fn fails(output: &str, console: &str, told: &str) {
        let outcome = conclude("6.1", output, &End::Off, console);
        assert!(outcome.failed > 0, "{outcome:?}");
        assert!(outcome.details.iter().any(|line| line.contains(told)), "{told}: {outcome:?}");
    }

    #[test]
    fn a_good_run_passes() {
        let outcome = conclude("6.1", GOOD, &End::Off, "[    0.1] Spectre V2 : WARNING: eBPF\n");
        assert_eq!(outcome, Outcome { passed: 2, ..Outcome::default() });
    }

    #[test]
    fn rows_of_the_bypass_table_are_kept() {
        let mut report = Report::default();
        GOOD.replace("@@guest end 0\n", "@@guest end 0\n@@guest row {\"a\":1}\n@@guest row {}\n")
            .lines()
            .for_each(|line| report.read(line));
        assert_eq!(report.rows(), "{\"a\":1}\n{}\n");
    }

    #[test]
    fn serial_lines_may_end_in_carriage_returns() {
        let outcome = conclude("6.1", &GOOD.replace('\n', "\r\n"), &End::Off, "");
        assert_eq!(outcome, Outcome { passed: 2, ..Outcome::default() });
    }

    #[test]
    fn a_failed_test_is_told_with_its_output() {
        let output = "@@guest kernel 6.1
@@guest begin kernel-1f
test a ... FAILED
test b ... ok

failures:

---- a ----
the kernel refused: ENOSPC


failures:
    a

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.51s
@@guest end 101
@@guest done 0";
        let outcome = conclude("6.1", output, &End::Off, "");
        assert_eq!((outcome.passed, outcome.failed), (1, 1));
        assert!(outcome.details.iter().any(|line| line == "the kernel refused: ENOSPC"), "{outcome:?}");
    }

    #[test]
    fn an_end_without_a_status_is_a_failure() {
        let cut = GOOD.replace("@@guest done 0\n", "");
        fails(&cut, "last words", "ended without a status");
        fails(&cut, "last words", "last words");
        let stopped = End::Stopped("nothing was heard for 120 s".into());
        let outcome = conclude("6.1", "", &stopped, "");
        assert!(outcome.details.iter().any(|line| line.contains("nothing was heard")), "{outcome:?}");
    }

    #[test]
    fn a_program_that_dies_is_a_failure() {
        let died = "@@guest begin kernel-1f\ntest a ... ok\n@@guest end 139\n@@guest done 0";
        fails(died, "", "kernel-1f ended without a summary (status 139)");
        fails(&GOOD.replace("end 0", "end 1"), "", "though no test did");
    }

    #[test]
    fn a_kernel_that_complains_is_a_failure() {
        fails(&GOOD.replace("done 0", "done 512"), "", "the kernel warned");
        fails(
            GOOD,
            "[    3.1] WARNING: CPU: 0 PID: 9 at net/core/sock.c:1\n[    3.1] Call Trace:",
            "Call Trace:",
        );
        fails(GOOD, "[    3.1] ------------[ cut here ]------------", "cut here");
        fails(GOOD, "[    3.1] watchdog: BUG: soft lockup", "soft lockup");
        fails(&format!("@@guest refused sctp\n{GOOD}"), "", "refused its module sctp");
    }

    fn skipping(test: &str) -> String {
        GOOD.replace("test limits::full          ... ok", &format!("test {test} ... ignored (no MPTCP)"))
            .replace("2 passed; 0 failed; 0 ignored", "1 passed; 0 failed; 1 ignored")
    }

    #[test]
    fn a_skip_on_the_list_is_a_skip() {
        for run in ["5.10", "5.10+lsm"] {
            let outcome = conclude(run, &skipping("bypass::mptcp"), &End::Off, "");
            assert_eq!((outcome.passed, outcome.failed), (1, 0), "{outcome:?}");
            assert_eq!(outcome.skipped, ["bypass::mptcp (no MPTCP before 5.15 in Debian)"]);
        }
    }

    #[test]
    fn a_program_that_skips_is_heard_about_why() {
        let output = skipping("bypass::mptcp").replace("running 2", "invalid read from stack\n\nrunning 2");
        fails(&output, "", "invalid read from stack");
        let outcome = conclude("5.10", &output, &End::Off, "");
        assert!(outcome.details.is_empty(), "{outcome:?}");
    }

    #[test]
    fn any_other_skip_is_a_failure() {
        fails(&skipping("bypass::mptcp"), "", "bypass::mptcp (no MPTCP) was skipped");
        let outcome = conclude("5.10", &skipping("bypass::cgroup_lsm"), &End::Off, "");
        assert_eq!((outcome.passed, outcome.failed, outcome.skipped.len()), (1, 1, 0));
        let outcomes = ["5.10", "5.10+lsm"].map(|run| conclude(run, &skipping("lsm::runs"), &End::Off, ""));
        assert_eq!(outcomes.map(|outcome| outcome.failed), [0, 1]);
        let unnamed = GOOD.replace("2 passed; 0 failed; 0 ignored", "1 passed; 0 failed; 1 ignored");
        fails(&unnamed, "", "1 tests were skipped, 0 of them by name");
    }
}
