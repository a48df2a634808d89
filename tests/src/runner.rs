//! Runs a list of tests under libtest's manners, and skips by name what cannot run here.

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};

use crate::{cleanup, machine, probe};

/// One test: its name and what it does.
pub type Test = (&'static str, fn() -> Result<()>);

/// Runs tests that need to enforce. A process that was started as a probe never gets that far.
pub fn main(tests: Vec<Test>) {
    probe::run_if_asked();
    cleanup::on_signals().expect("signals can be handled");
    let arguments = Arguments::from_args();
    let reason = machine::cannot_enforce();
    if let Some(reason) = reason {
        say(&format!("skipping {} tests: {reason}", tests.len()));
    }
    let trials = tests.into_iter().map(|(name, test)| {
        let run = move || test().map_err(|error| Failed::from(format!("{error:#}")));
        Trial::test(name, run).with_ignored_flag(reason.is_some())
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    cleanup::let_signals_finish();
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
