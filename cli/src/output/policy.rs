//! What is found in a policy, how its cases went, and why something is decided, as people and programs see it.
//!
//! Owns: the shapes, and their tables. Must not know: how any of it was found out.
//!
//! In JSON: names are strings, durations whole seconds; a field that does not apply is left out.

use policy::approval::{Step, Then};
use policy::cases::CaseResult;
use policy::decide::{Outcome, Terms};
use policy::explain::Explanation;
use serde::Serialize;

use super::{Row, View};

/// One thing that is wrong or odd.
#[derive(Serialize)]
pub struct FindingRow {
    /// `error` or `warning`.
    pub severity: &'static str,
    /// The file's path in the policy's folder.
    pub file: String,
    /// From 1; 0: the file as a whole.
    pub line: usize,
    /// From 1; 0: the file as a whole.
    pub column: usize,
    /// What is wrong.
    pub problem: String,
    /// The next step.
    pub help: String,
}

impl FindingRow {
    /// What keeps the policy from being accepted.
    pub fn error(problem: &policy::Problem) -> Self {
        Self::new("error", problem)
    }

    /// What is odd.
    pub fn warning(problem: &policy::Problem) -> Self {
        Self::new("warning", problem)
    }

    fn new(severity: &'static str, problem: &policy::Problem) -> Self {
        let policy::Problem { file, line, column, text, help } = problem.clone();
        Self { severity, file, line, column, problem: text, help }
    }
}

impl Row for FindingRow {
    const HEADER: &'static [&'static str] = &["SEVERITY", "PLACE", "FINDING"];

    fn cells(&self, _: &View) -> Vec<String> {
        let Self { severity, file, line, column, problem, help } = self;
        let place = match line {
            0 => file.clone(),
            _ => format!("{file}:{line}:{column}"),
        };
        vec![(*severity).to_owned(), place, format!("{problem}; {help}")]
    }
}

/// How one case went.
#[derive(Serialize)]
pub struct CaseRow {
    /// Whether it is decided as it says.
    pub passed: bool,
    /// The file's path in the policy's folder.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// What people call it.
    pub name: String,
    /// What differs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<String>,
}

impl From<CaseResult<'_>> for CaseRow {
    fn from(result: CaseResult<'_>) -> Self {
        let CaseResult { case, differences } = result;
        let passed = differences.is_empty();
        Self { passed, file: case.file.clone(), line: case.line, name: case.name.clone(), differences }
    }
}

impl Row for CaseRow {
    const HEADER: &'static [&'static str] = &["RESULT", "PLACE", "CASE"];

    fn cells(&self, _: &View) -> Vec<String> {
        let result = if self.passed { "passed" } else { "failed" };
        let differs = match self.differences.is_empty() {
            true => String::new(),
            false => format!(": {}", self.differences.join("; ")),
        };
        vec![result.to_owned(), format!("{}:{}", self.file, self.line), format!("{}{differs}", self.name)]
    }
}

/// One step of an approval.
#[derive(Serialize)]
pub struct StepRow {
    /// How many have to say yes.
    pub count: u32,
    /// Of these.
    pub approvers: Vec<String>,
    /// After how long something follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after_seconds: Option<u64>,
    /// What follows: `escalate`, `skip` or `deny`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub then: Option<&'static str>,
    /// Who may decide then, too.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<String>,
}

impl From<Step> for StepRow {
    fn from(step: Step) -> Self {
        let names = |people: &std::collections::BTreeSet<_>| people.iter().map(ToString::to_string).collect();
        let Step { approvers, count, after } = step;
        let (then, to) = match &after {
            None => (None, Vec::new()),
            Some((_, Then::Escalate(to))) => (Some("escalate"), names(to)),
            Some((_, Then::Skip)) => (Some("skip"), Vec::new()),
            Some((_, Then::Deny)) => (Some("deny"), Vec::new()),
        };
        let after_seconds = after.as_ref().map(|(after, _)| after.as_secs());
        Self { count, approvers: names(&approvers), after_seconds, then, to }
    }
}

/// On which terms something is permitted.
#[derive(Serialize)]
#[allow(missing_docs, reason = "as docs/policy.md has them")]
pub struct TermsRow {
    pub role: String,
    pub duration_seconds: u64,
    pub maximum_duration_seconds: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_seconds: Option<u64>,
    pub strict: bool,
    pub clock: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extensions: Option<u32>,
    pub steps: Vec<StepRow>,
}

impl From<Terms> for TermsRow {
    fn from(terms: Terms) -> Self {
        Self {
            role: terms.role.to_string(),
            duration_seconds: terms.duration.as_secs(),
            maximum_duration_seconds: terms.maximum_duration.as_secs(),
            idle_seconds: terms.idle.map(|idle| idle.as_secs()),
            strict: terms.strict,
            clock: terms.clock.to_string(),
            extensions: terms.extension.map(|extension| extension.times),
            steps: terms.steps.into_iter().map(Into::into).collect(),
        }
    }
}

/// What is decided, why, and what would change it.
#[derive(Serialize)]
pub struct ExplanationRow {
    /// `permitted` or `denied`.
    pub outcome: &'static str,
    /// On which terms.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub terms: Option<TermsRow>,
    /// The rules that led to it.
    pub decided_by: Vec<String>,
    /// Why not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    /// What the requester is told would help.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
    /// Changes that were tried and lead to a permit.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub would_help: Vec<String>,
}

impl From<Explanation> for ExplanationRow {
    fn from(explanation: Explanation) -> Self {
        let Explanation { decision, would_help } = explanation;
        let (outcome, terms, reasons) = match decision.outcome {
            Outcome::Permitted(terms) => ("permitted", Some(TermsRow::from(*terms)), Vec::new()),
            Outcome::Denied { reasons } => {
                ("denied", None, reasons.iter().map(ToString::to_string).collect())
            }
        };
        let (decided_by, missing) = (decision.decided_by, decision.missing);
        Self { outcome, terms, decided_by, reasons, missing, would_help }
    }
}

impl Row for ExplanationRow {
    const HEADER: &'static [&'static str] = &["OUTCOME", "DECIDED-BY"];

    fn cells(&self, _: &View) -> Vec<String> {
        vec![self.outcome.to_owned(), self.decided_by.join(" ")]
    }
}

/// One line of an explanation, as people read it.
#[derive(Serialize)]
pub struct ExplanationLine {
    what: &'static str,
    text: String,
}

impl ExplanationRow {
    /// The same for people, a line each.
    pub fn lines(&self) -> Vec<ExplanationLine> {
        let mut lines = vec![ExplanationLine { what: "outcome", text: self.outcome.to_owned() }];
        let mut add = |what, text| lines.push(ExplanationLine { what, text });
        if let Some(terms) = &self.terms {
            add("role", terms.role.clone());
            let (duration, maximum) =
                (seconds(terms.duration_seconds), seconds(terms.maximum_duration_seconds));
            add("duration", format!("{duration}, at most {maximum}; from {}", terms.clock));
            terms.idle_seconds.into_iter().for_each(|idle| add("idle", seconds(idle)));
            terms.extensions.into_iter().for_each(|times| add("extensions", times.to_string()));
            if terms.strict {
                add("audit", "strict".to_owned());
            }
            if terms.steps.is_empty() {
                add("approval", "nobody".to_owned());
            }
            for step in &terms.steps {
                let mut text = format!("{} of {}", step.count, step.approvers.join(", "));
                if let (Some(after), Some(then)) = (step.after_seconds, step.then) {
                    text += &format!("; after {} {then} {}", seconds(after), step.to.join(", "));
                }
                add("approval", text.trim_end().to_owned());
            }
        }
        self.decided_by.iter().for_each(|rule| add("decided-by", rule.clone()));
        self.reasons.iter().for_each(|reason| add("reason", reason.clone()));
        self.missing.iter().for_each(|missing| add("missing", missing.clone()));
        self.would_help.iter().for_each(|change| add("would-help", change.clone()));
        lines
    }
}

fn seconds(seconds: u64) -> String {
    humantime::format_duration(std::time::Duration::from_secs(seconds)).to_string()
}

impl Row for ExplanationLine {
    const HEADER: &'static [&'static str] = &["WHAT", "EXPLANATION"];

    fn cells(&self, _: &View) -> Vec<String> {
        vec![self.what.to_owned(), self.text.clone()]
    }
}
