//! Cases that are kept beside a policy: facts, and what should be decided.
//!
//! Owns: comparing what is decided with what is expected. Must not know: files, how a decision is made.

use std::time::Duration;

use crate::decide::{Outcome, decide};
use crate::facts::Facts;
use crate::files::duration_text;
use crate::model::Policy;
use crate::names::RoleName;

/// One case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The file's path in the policy's folder.
    pub file: String,
    /// Where it stands there, from 1.
    pub line: usize,
    /// What people call it.
    pub name: String,
    /// What is asked.
    pub facts: Facts,
    /// What should come of it.
    pub expected: Expected,
}

/// What a case expects. What is None or empty may be anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Whether it is permitted.
    pub permitted: bool,
    /// By which role.
    pub role: Option<RoleName>,
    /// Rules that decide, as [`crate::Decision::decided_by`] names them; others may be there, too.
    pub rules: Vec<String>,
    /// How many people have to say yes altogether.
    pub approvals: Option<u32>,
    /// For how long.
    pub duration: Option<Duration>,
}

/// How one case went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaseResult<'a> {
    /// Which case.
    pub case: &'a Case,
    /// What differs, in words; empty: nothing.
    pub differences: Vec<String>,
}

/// Runs all cases of a policy, in order of file and line.
pub fn run(policy: &Policy) -> Vec<CaseResult<'_>> {
    policy.cases.iter().map(|case| CaseResult { case, differences: differences(policy, case) }).collect()
}

fn differences(policy: &Policy, case: &Case) -> Vec<String> {
    let decision = decide(policy, &case.facts);
    let Expected { permitted, role, rules, approvals, duration } = &case.expected;
    let mut differences = Vec::new();
    let mut tell = |text: String| differences.push(text);
    match (&decision.outcome, permitted) {
        (Outcome::Denied { reasons }, true) => {
            let why: Vec<String> = reasons.iter().map(ToString::to_string).collect();
            tell(format!("expected permitted, got denied: {}", why.join("; ")));
        }
        (Outcome::Permitted(terms), false) => {
            tell(format!("expected denied, got permitted by role `{}`", terms.role))
        }
        (Outcome::Denied { .. }, false) => {}
        (Outcome::Permitted(terms), true) => {
            if let Some(role) = role.as_ref().filter(|role| **role != terms.role) {
                tell(format!("expected role `{role}`, got `{}`", terms.role));
            }
            if let Some(count) = approvals.filter(|count| *count != terms.approvals()) {
                tell(format!("expected {count} approvals, got {}", terms.approvals()));
            }
            if let Some(duration) = duration.filter(|duration| *duration != terms.duration) {
                let (expected, got) = (duration_text(duration), duration_text(terms.duration));
                tell(format!("expected a duration of {expected}, got {got}"));
            }
        }
    }
    for rule in rules.iter().filter(|rule| !decision.decided_by.contains(*rule)) {
        tell(format!("expected rule `{rule}`, got {}", crate::decide::quoted(&decision.decided_by)));
    }
    differences
}
