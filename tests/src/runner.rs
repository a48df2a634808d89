//! Runs a list of tests under libtest's manners, and skips by name what cannot run here.

use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::{cleanup, confined, machine, other_agent, probe, sandbox, socket_probe, stranger, unix_probe};

/// One test: its name and what it does.
pub type Test = (&'static str, fn() -> Result<()>);

/// The same, of a test that may find out by itself that it cannot run here.
pub type Choosy = (&'static str, fn() -> Result<Outcome>);

/// One test that may find out by itself that it cannot run here.
pub struct Case {
    /// Its name.
    pub name: String,
    /// What it does.
    pub run: Box<dyn FnOnce() -> Result<Outcome> + Send>,
}

/// What came of a test that did not fail.
pub enum Outcome {
    /// All is as it should be.
    Passed,
    /// It cannot run here, and why.
    Skipped(&'static str),
}

/// Runs tests that need to enforce. A process that was started as a probe never gets that far.
pub fn main(tests: Vec<Test>) {
    main_with(tests, Vec::new());
}

/// The same, with some that may find out by themselves that they cannot run.
pub fn main_with(tests: Vec<Test>, choosy: Vec<Choosy>) {
    probe::run_if_asked();
    socket_probe::run_if_asked();
    unix_probe::run_if_asked();
    other_agent::run_if_asked();
    confined::run_if_asked();
    stranger::run_if_asked();
    let choosy = choosy.into_iter().map(|(name, test)| Case { name: name.to_owned(), run: Box::new(test) });
    run(cases(&tests).into_iter().chain(choosy).collect(), || {
        sandbox::remove_agents_cgroups();
        Ok(())
    });
}

/// Runs tests that need to enforce, and then does what is to be done after the last.
pub fn run(cases: Vec<Case>, conclude: impl FnOnce() -> Result<()>) {
    run_unless(machine::cannot_enforce(), &Arguments::from_args(), cases, conclude);
}

/// Runs tests that change the whole machine, one after the other; `reason`: why they must not run here.
pub fn main_in_turn(reason: Option<&str>, tests: &[Test]) {
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let case = |&(name, test): &Test| Case {
        name: name.to_owned(),
        // Told at once: the machine may not live to the end of all.
        run: Box::new(move || {
            test().inspect_err(|error| say(&format!("\n{name}: {error:#}"))).map(|()| Outcome::Passed)
        }),
    };
    run_unless(reason, &arguments, tests.iter().map(case).collect(), || Ok(()));
}

/// Runs tests that need neither root nor a kernel of ours; `reason`: why they cannot run here. Some may find out by themselves that
/// they cannot.
pub fn main_unless(reason: Option<&str>, tests: &[Test], choosy: &[Choosy]) {
    let choosy = choosy.iter().map(|(name, test)| Case { name: (*name).to_owned(), run: Box::new(*test) });
    run_unless(reason, &Arguments::from_args(), cases(tests).into_iter().chain(choosy).collect(), || Ok(()));
}

fn cases(tests: &[Test]) -> Vec<Case> {
    let case = |&(name, test): &Test| Case {
        name: name.to_owned(),
        run: Box::new(move || test().map(|()| Outcome::Passed)),
    };
    tests.iter().map(case).collect()
}

fn run_unless(
    reason: Option<&str>,
    arguments: &Arguments,
    cases: Vec<Case>,
    conclude: impl FnOnce() -> Result<()>,
) {
    cleanup::on_signals().expect("signals can be handled");
    if let Some(reason) = reason {
        say(&format!("skipping {} tests: {reason}", cases.len()));
    }
    let trials = cases.into_iter().map(|Case { name, run }| {
        let run = move || match run() {
            Ok(Outcome::Passed) => Ok(Completion::Completed),
            Ok(Outcome::Skipped(reason)) => Ok(Completion::ignored_with(reason)),
            Err(error) => Err(Failed::from(format!("{error:#}"))),
        };
        Trial::ignorable_test(name, run).with_ignored_flag(reason.is_some())
    });
    let conclusion = libtest_mimic::run(arguments, trials.collect());
    let concluded = conclude();
    cleanup::let_signals_finish();
    if let Err(error) = concluded {
        say(&format!("error: {error:#}"));
        std::process::exit(1);
    }
    conclusion.exit();
}

#[allow(clippy::print_stderr, reason = "the test runner talks to a person")]
fn say(text: &str) {
    eprintln!("{text}");
}

/// Fails the test unless the two are equal; says what was compared.
#[macro_export]
macro_rules! ensure_eq {
    ($found:expr, $expected:expr $(, $($context:tt)+)?) => {{
        match (&$found, &$expected) {
            (found, expected) => {
                if *found != *expected {
                    let context: String = String::new() $(+ &format!($($context)+))?;
                    anyhow::bail!("{} is {found:?}, expected {expected:?} {context}", stringify!($found));
                }
            }
        }
    }};
}
