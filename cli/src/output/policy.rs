//! What is found in a policy, how its cases went, and why something is decided, as people and programs see it.
//!
//! Owns: the shapes, and their tables. Must not know: how any of it was found out.
//!
//! In JSON: names are strings, durations whole seconds; a field that does not apply is left out.

use policy::approval::{Step, Then};
use policy::cases::CaseResult;
use policy::decide::{Outcome, Terms};
use policy::explain::Explanation;
use proto::json::utc;
use proto::types::{Difference, PlannedEnd, PolicyPlan, PolicyVersion, Timestamp};
use serde::Serialize;

use super::text::cut;
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
        let Step { approvers, hooks, count, after } = step;
        let (then, to) = match &after {
            None => (None, Vec::new()),
            Some((_, Then::Escalate(to))) => (Some("escalate"), names(to)),
            Some((_, Then::Skip)) => (Some("skip"), Vec::new()),
            Some((_, Then::Deny)) => (Some("deny"), Vec::new()),
        };
        let after_seconds = after.as_ref().map(|(after, _)| after.as_secs());
        let mut approvers: Vec<String> = names(&approvers);
        approvers.extend(hooks.iter().map(|hook| format!("hook:{hook}")));
        Self { count, approvers, after_seconds, then, to }
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
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub break_glass: bool,
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
            break_glass: terms.break_glass,
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
                let afterwards = if terms.break_glass { ", but reviewed afterwards" } else { "" };
                add("approval", format!("nobody{afterwards}"));
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

/// A version of the policy.
#[derive(Serialize)]
pub struct VersionRow {
    /// From 1.
    pub version: u64,
    /// When it was put in force.
    pub applied: String,
    /// By whom.
    pub author: String,
    /// Its files are those of this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restores: Option<u64>,
    /// Why.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub comment: String,
    #[serde(skip)]
    at: Timestamp,
}

impl From<PolicyVersion> for VersionRow {
    fn from(version: PolicyVersion) -> Self {
        let PolicyVersion { version, author, applied, comment, restores } = version;
        let author = author.to_string();
        Self { version, applied: utc(applied), author, restores, comment, at: applied }
    }
}

impl Row for VersionRow {
    const HEADER: &'static [&'static str] = &["VERSION", "AGE", "AUTHOR", "RESTORES", "COMMENT"];

    fn cells(&self, view: &View) -> Vec<String> {
        let restores = self.restores.map(|restores| restores.to_string()).unwrap_or_default();
        vec![
            self.version.to_string(),
            view.since(self.at),
            self.author.clone(),
            restores,
            cut(&self.comment, COMMENT_SHOWN_MAX),
        ]
    }
}

/// How much of a comment tables show, in characters.
const COMMENT_SHOWN_MAX: usize = 60;

/// One file of a policy.
#[derive(Serialize)]
pub struct FileRow {
    /// Its path in the policy's folder.
    pub path: String,
    /// What stands in it.
    pub text: String,
}

impl From<(String, String)> for FileRow {
    fn from((path, text): (String, String)) -> Self {
        Self { path, text }
    }
}

impl Row for FileRow {
    const HEADER: &'static [&'static str] = &["PATH", "LINES"];

    fn cells(&self, _: &View) -> Vec<String> {
        vec![self.path.clone(), self.text.lines().count().to_string()]
    }
}

/// What a policy does when it is put in force.
#[derive(Serialize)]
pub struct PlanRow {
    /// The version in force; 0: none.
    pub before: u64,
    /// What differs from it.
    pub differences: Vec<DifferencePart>,
    /// Resources that are not protected yet.
    pub protects: Vec<String>,
    /// Protected resources that become strict.
    pub strict: Vec<String>,
    /// Live grants that end.
    pub ends: Vec<EndPart>,
}

/// One difference.
#[derive(Serialize)]
#[allow(missing_docs, reason = "as proto has them")]
pub struct DifferencePart {
    pub what: String,
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
}

/// One live grant that ends.
#[derive(Serialize)]
#[allow(missing_docs, reason = "as proto has them")]
pub struct EndPart {
    pub grant: String,
    pub subject: String,
    pub resource: String,
    pub reason: String,
}

impl From<PolicyPlan> for PlanRow {
    fn from(plan: PolicyPlan) -> Self {
        let PolicyPlan { before, differences, protects, strict, ends } = plan;
        let difference = |difference: Difference| {
            let Difference { kind, name, what } = difference;
            DifferencePart { what: what.to_string(), kind, name }
        };
        let end = |end: PlannedEnd| EndPart {
            grant: end.grant.to_string(),
            subject: end.subject.to_string(),
            resource: end.resource.to_string(),
            reason: end.reason,
        };
        Self {
            before,
            differences: differences.into_iter().map(difference).collect(),
            protects: protects.iter().map(ToString::to_string).collect(),
            strict: strict.iter().map(ToString::to_string).collect(),
            ends: ends.into_iter().map(end).collect(),
        }
    }
}

impl Row for PlanRow {
    const HEADER: &'static [&'static str] = &["BEFORE", "DIFFERENCES", "ENDS"];

    fn cells(&self, _: &View) -> Vec<String> {
        let Self { before, differences, ends, .. } = self;
        vec![before.to_string(), differences.len().to_string(), ends.len().to_string()]
    }
}

/// One line of a plan, as people read it.
#[derive(Serialize)]
pub struct PlanLine {
    what: String,
    kind: String,
    name: String,
    detail: String,
}

impl PlanRow {
    /// The same for people, a line each.
    pub fn lines(&self) -> Vec<PlanLine> {
        let line = |what: &str, kind: &str, name: &str, detail: String| PlanLine {
            what: what.to_owned(),
            kind: kind.to_owned(),
            name: name.to_owned(),
            detail,
        };
        let differences = self.differences.iter();
        let differences = differences.map(|part| line(&part.what, &part.kind, &part.name, String::new()));
        let protects = self.protects.iter();
        let protects =
            protects.map(|name| line("protected", "resource", name, "from now on, on every host".to_owned()));
        let strict = self
            .strict
            .iter()
            .map(|name| line("strict", "resource", name, "as a role asks for it".to_owned()));
        let ends = self.ends.iter().map(|end| {
            line("ends", "grant", &end.grant, format!("{} to {}: {}", end.subject, end.resource, end.reason))
        });
        differences.chain(protects).chain(strict).chain(ends).collect()
    }
}

impl PlanLine {
    /// In one line.
    pub fn words(&self) -> String {
        let Self { what, kind, name, detail } = self;
        let parts = [what, kind, name, detail];
        parts.into_iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join(" ")
    }
}

impl Row for PlanLine {
    const HEADER: &'static [&'static str] = &["WHAT", "KIND", "NAME", "DETAIL"];

    fn cells(&self, _: &View) -> Vec<String> {
        vec![self.what.clone(), self.kind.clone(), self.name.clone(), self.detail.clone()]
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
