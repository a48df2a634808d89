//! The decision: a policy and the facts of a request → permitted, on which terms, or denied, why, and what would help.
//!
//! Owns: which role applies, the order in which rules are asked, hard caps, the texts of refusals. Must not know: where facts come
//! from, what becomes of a decision.
//!
//! Invariants: the same policy and facts lead to the same decision; a `forbid` wins over everything, and so does one that cannot be
//! evaluated; no terms exceed the limits; who could never get a role for the resource is told nothing about its rules.
//!
//! Which role: the one that is named; otherwise, of those that would be permitted, the one with the fewest approvals, then the one
//! with the longest possible duration, then the first by name.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::fmt::{self, Display};
use std::time::Duration;

use proto::types::{HostName, SubjectId};

use crate::approval::{Step, Then};
use crate::conditions::{Action, Answer, Question};
use crate::facts::{Facts, Stage};
use crate::files::duration_text;
use crate::model::{After, ClockStart, Extension, Limits, Policy, Role, StepRule, Who, is_human};
use crate::names::RoleName;

/// What the policy says to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Yes or no.
    pub outcome: Outcome,
    /// The rules that led to it: `role:NAME` for who a role is to, its hosts, durations and approvers; `limit:NAME`; the `@id` of
    /// Cedar policies. Empty if denied because nothing permits it.
    pub decided_by: Vec<String>,
    /// What would help; empty if permitted, or if nothing is known.
    pub missing: Vec<String>,
}

/// Yes or no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// On these terms. If the terms have steps, people have to say yes before.
    Permitted(Box<Terms>),
    /// For these reasons; never empty.
    Denied {
        /// In order of roles.
        reasons: Vec<Reason>,
    },
}

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reason {
    /// The rule that refused; None: nothing permits it.
    pub rule: Option<String>,
    /// In words.
    pub text: String,
}

impl Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.rule {
            Some(rule) => write!(f, "rule `{rule}`: {}", self.text),
            None => f.write_str(&self.text),
        }
    }
}

/// On which terms something is permitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// By which role.
    pub role: RoleName,
    /// How long: what was asked for, or what the role gives.
    pub duration: Duration,
    /// How long it could have been.
    pub maximum_duration: Duration,
    /// How long nothing may be let through until it ends.
    pub idle: Option<Duration>,
    /// Nothing is let through without a record.
    pub strict: bool,
    /// When its time begins.
    pub clock: ClockStart,
    /// None: it cannot be made longer.
    pub extension: Option<Extension>,
    /// Who has to say yes, in order; empty: nobody.
    pub steps: Vec<Step>,
    /// It is for emergencies: nobody has to say yes beforehand, and those who would have to look at it afterwards.
    pub break_glass: bool,
}

impl Terms {
    /// How many have to say yes altogether.
    pub fn approvals(&self) -> u32 {
        self.steps.iter().map(|step| step.count).sum()
    }
}

/// Names in backquotes, with commas; `none` if there are none.
pub(crate) fn quoted<T: Display>(names: &[T]) -> String {
    match names.is_empty() {
        true => "none".to_owned(),
        false => names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
    }
}

/// Why one role does not apply.
struct Refused {
    reasons: Vec<Reason>,
    missing: Vec<String>,
}

impl Refused {
    fn by(rule: String, text: impl Into<String>, help: impl Into<String>) -> Self {
        let reasons = vec![Reason { rule: Some(rule), text: text.into() }];
        Self { reasons, missing: vec![help.into()].into_iter().filter(|help| !help.is_empty()).collect() }
    }
}

/// How the limit for access that nobody approves is named.
const AUTOMATIC: &str = "limit:automatic_maximum_duration";

/// Decides.
pub fn decide(policy: &Policy, facts: &Facts) -> Decision {
    let nothing = |text: String, help: &str| Decision {
        outcome: Outcome::Denied { reasons: vec![Reason { rule: None, text }] },
        decided_by: Vec::new(),
        missing: vec![help.to_owned()],
    };
    if let Some(host) = facts.hosts.iter().find(|host| !policy.hosts.contains_key(*host)) {
        return nothing(format!("host `{host}` is not known"), "name a host of the policy");
    }
    let groups = policy.directory.groups_of(&facts.subject, &facts.groups);
    let question = Question::new(policy, facts, &groups);
    let action = Action::At(facts.stage);
    let mut best: Option<(Terms, Vec<String>)> = None;
    let mut refused: Vec<Refused> = Vec::new();
    for at in policy.candidates.get(&facts.resource).into_iter().flatten() {
        let Some((role, links)) = policy.roles.get(*at).zip(policy.links.get(*at)) else { continue };
        if facts.role.as_ref().is_some_and(|named| *named != role.name) {
            continue;
        }
        let linked = links.hold(&facts.subject, &groups);
        if !linked && !question.could_permit(action, &role.name) {
            continue;
        }
        // Nobody breaks glass by the way.
        if role.break_glass && facts.role.is_none() && facts.stage == Stage::Request {
            refused.push(Refused::by(
                format!("role:{}", role.name),
                format!("role `{}` is for emergencies, and is not had without being named", role.name),
                format!("in an emergency, ask for it by name: `--role {}`", role.name),
            ));
            continue;
        }
        // However it is judged, it cannot come before the best so far.
        if best.as_ref().is_some_and(|(terms, _)| best_rank(policy, facts, &question, role) >= rank(terms)) {
            continue;
        }
        match judge(policy, facts, &question, role, linked) {
            Ok(found) => {
                let is_better = best.as_ref().is_none_or(|(terms, _)| rank(&found.0) < rank(terms));
                if is_better {
                    best = Some(found);
                }
            }
            Err(why) => refused.push(why),
        }
    }
    if let Some((terms, decided_by)) = best {
        return Decision { outcome: Outcome::Permitted(Box::new(terms)), decided_by, missing: Vec::new() };
    }
    if refused.is_empty() {
        // The same whether there is no such resource, no role for it, or only roles that are not theirs.
        let text = format!("no role gives `{}` access to `{}`", facts.subject, facts.resource);
        return nothing(
            text,
            "check the name of the resource and of the role, or ask whoever keeps the policy",
        );
    }
    let (mut reasons, mut missing) = (Vec::new(), Vec::new());
    for why in refused {
        add_new(&mut reasons, why.reasons);
        add_new(&mut missing, why.missing);
    }
    let mut decided_by = Vec::new();
    add_new(&mut decided_by, reasons.iter().filter_map(|reason: &Reason| reason.rule.clone()));
    Decision { outcome: Outcome::Denied { reasons }, decided_by, missing }
}

fn add_new<T: PartialEq>(list: &mut Vec<T>, more: impl IntoIterator<Item = T>) {
    for item in more {
        if !list.contains(&item) {
            list.push(item);
        }
    }
}

fn rank(terms: &Terms) -> (u32, Reverse<Duration>, &RoleName) {
    (terms.approvals(), Reverse(terms.maximum_duration), &terms.role)
}

/// The rank that a role has at best, if it applies.
fn best_rank<'a>(
    policy: &Policy,
    facts: &Facts,
    question: &Question<'_>,
    role: &'a Role,
) -> (u32, Reverse<Duration>, &'a RoleName) {
    let needs_nobody = facts.stage != Stage::Request
        || role.break_glass
        || question.could_permit(Action::Approve, &role.name);
    let approvals = if needs_nobody { 0 } else { role.approvals() };
    (approvals, Reverse(longest(&policy.limits, role, "").0), &role.name)
}

/// Whether one role applies to somebody who might get it, on which terms and by which rules.
fn judge(
    policy: &Policy,
    facts: &Facts,
    question: &Question<'_>,
    role: &Role,
    linked: bool,
) -> Result<(Terms, Vec<String>), Refused> {
    let rule = format!("role:{}", role.name);
    hosts(policy, facts, role, &rule)?;
    let (duration, maximum_duration) = durations(&policy.limits, facts, role, &rule)?;
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    let ask = |action| {
        let answer = question.ask(action, &role.name, seconds, facts.approvals);
        answer.map_err(|error| Refused::by(rule.clone(), format!("the facts cannot be judged: {error}"), ""))
    };
    let answer = ask(Action::At(facts.stage))?;
    forbidden(&answer)?;
    let mut decided_by: Vec<String> = linked.then(|| rule.clone()).into_iter().collect();
    decided_by.extend(answer.permits.iter().map(|condition| condition.id.to_string()));
    if decided_by.is_empty() {
        return Err(nothing_permits(policy, facts, question, role, &answer));
    }
    let mut steps = Vec::new();
    if facts.stage == Stage::Request {
        let answer = ask(Action::Approve)?;
        let is_forbidden = forbidden(&answer);
        let is_short = policy.limits.automatic_maximum_duration.is_none_or(|limit| duration <= limit);
        if role.break_glass {
            is_forbidden?;
            reviewed(policy, facts, role, &rule)?;
        } else if role.steps.is_empty() {
            is_forbidden?;
        } else if is_forbidden.is_ok() && is_short && !answer.permits.is_empty() {
            add_new(&mut decided_by, answer.permits.iter().map(|condition| condition.id.to_string()));
        } else {
            steps = resolved(policy, facts, role, &rule)?;
        }
    }
    let limits = &policy.limits;
    let idle = match (role.idle, limits.maximum_idle) {
        (Some(idle), Some(maximum)) => Some(idle.min(maximum)),
        (idle, maximum) => idle.or(maximum),
    };
    let extension = role.extension.map(|extension| Extension {
        times: extension.times.min(limits.maximum_extensions.unwrap_or(u32::MAX)),
        by: extension.by.min(limits.maximum_duration),
        ..extension
    });
    let terms = Terms {
        role: role.name.clone(),
        duration,
        maximum_duration,
        // An idle limit that the duration does not reach changes nothing, and is refused elsewhere.
        idle: idle.filter(|idle| *idle < duration),
        strict: role.strict,
        clock: role.clock,
        extension: extension.filter(|extension| extension.times > 0),
        steps,
        break_glass: role.break_glass,
    };
    Ok((terms, decided_by))
}

/// That the role is for all hosts that are asked for.
fn hosts(policy: &Policy, facts: &Facts, role: &Role, rule: &str) -> Result<(), Refused> {
    let Some(allowed) = &role.hosts else { return Ok(()) };
    let is_outside = |host: &&HostName| !allowed.contains(*host);
    let outside = match facts.hosts.is_empty() {
        true => policy.hosts.keys().find(is_outside),
        false => facts.hosts.iter().find(is_outside),
    };
    let Some(host) = outside else { return Ok(()) };
    const SHOWN_MAX: usize = 5;
    let mut some: Vec<&HostName> = allowed.iter().collect();
    some.sort_unstable();
    let more = if some.len() > SHOWN_MAX { ", …" } else { "" };
    some.truncate(SHOWN_MAX);
    let help = format!("ask for hosts that the role is for: {}{more}", quoted(&some));
    Err(Refused::by(rule.to_owned(), format!("the role is not for host `{host}`"), help))
}

/// How long a role can be had for, and by which rule not longer; `rule` is the role's own.
fn longest<'a>(limits: &Limits, role: &Role, rule: &'a str) -> (Duration, &'a str) {
    let own = role.maximum_duration.map(|maximum| (maximum, rule));
    let automatic = limits.automatic_maximum_duration.filter(|_| role.steps.is_empty() || role.break_glass);
    let automatic = automatic.map(|maximum| (maximum, AUTOMATIC));
    let bounds = [own, automatic].into_iter().flatten();
    bounds.fold((limits.maximum_duration, "limit:maximum_duration"), |least, bound| match bound.0 < least.0 {
        true => bound,
        false => least,
    })
}

/// How long, and how long at most.
fn durations(
    limits: &Limits,
    facts: &Facts,
    role: &Role,
    rule: &str,
) -> Result<(Duration, Duration), Refused> {
    let (maximum, by) = longest(limits, role, rule);
    let asked = facts.duration.unwrap_or_else(|| role.default_duration.unwrap_or(maximum).min(maximum));
    if asked > maximum {
        let (asked, maximum) = (duration_text(asked), duration_text(maximum));
        let text = format!("{asked} is longer than {maximum}, which role `{}` can be had for", role.name);
        return Err(Refused::by(by.to_owned(), text, format!("ask for {maximum} at most")));
    }
    Ok((asked, maximum))
}

/// That nothing forbids it, and that whatever could forbid it was able to say so.
fn forbidden(answer: &Answer<'_>) -> Result<(), Refused> {
    let mut refused = Refused { reasons: Vec::new(), missing: Vec::new() };
    for condition in &answer.forbids {
        refused.reasons.push(Reason { rule: Some(condition.id.to_string()), text: "forbids it".to_owned() });
        refused.missing.extend(condition.help.clone());
    }
    for (condition, error) in answer.failed.iter().filter(|(condition, _)| condition.forbids) {
        let text = format!("forbids something, and cannot be evaluated: {error}");
        refused.reasons.push(Reason { rule: Some(condition.id.to_string()), text });
        refused.missing.push(format!("whoever keeps the policy has to correct `{}`", condition.id));
    }
    if refused.reasons.is_empty() { Ok(()) } else { Err(refused) }
}

/// The refusal of somebody who might get the role if conditions were met.
fn nothing_permits(
    policy: &Policy,
    facts: &Facts,
    question: &Question<'_>,
    role: &Role,
    answer: &Answer<'_>,
) -> Refused {
    let possible = question.permits(Action::At(facts.stage), &role.name);
    let failed: HashSet<&str> = answer.failed.iter().map(|(condition, _)| condition.id.as_str()).collect();
    let mut refused = Refused { reasons: Vec::new(), missing: Vec::new() };
    for condition in policy.conditions.iter().filter(|condition| possible.contains(condition.id.as_str())) {
        let text = match failed.contains(condition.id.as_str()) {
            true => format!("would permit role `{}`, but cannot be evaluated", role.name),
            false => format!("would permit role `{}`, but its conditions are not met", role.name),
        };
        refused.reasons.push(Reason { rule: Some(condition.id.to_string()), text });
        refused.missing.extend(condition.help.clone());
    }
    refused
}

/// Who has to say yes to a request by a role, in order, with the people who may; None: there is no such role. The same policy, role,
/// subject and requester lead to the same steps.
pub fn steps_of(
    policy: &Policy,
    role: &RoleName,
    subject: &SubjectId,
    requester: &SubjectId,
) -> Option<Vec<Step>> {
    let role = policy.role(role)?;
    let people = |approvers: &[Who]| {
        let mut found = policy.resolve(approvers, Some(subject));
        found.retain(|id| id != subject && id != requester && is_human(id));
        found
    };
    let step = |step: &StepRule| {
        let after = step.after.as_ref().map(|(after, then)| {
            let then = match then {
                After::Escalate(to) => Then::Escalate(people(to)),
                After::Skip => Then::Skip,
                After::Deny => Then::Deny,
            };
            (*after, then)
        });
        let hooks = step.hooks().cloned().collect();
        Step { approvers: people(&step.approvers), hooks, count: step.count, after }
    };
    Some(role.steps.iter().map(step).collect())
}

/// That somebody else is there who can look at it afterwards.
fn reviewed(policy: &Policy, facts: &Facts, role: &Role, rule: &str) -> Result<(), Refused> {
    let steps = steps_of(policy, &role.name, &facts.subject, &facts.requester).unwrap_or_default();
    match steps.iter().any(|step| !step.approvers.is_empty()) {
        true => Ok(()),
        false => Err(Refused::by(
            rule.to_owned(),
            "nobody besides the requester could look at it afterwards",
            "whoever keeps the policy names more approvers",
        )),
    }
}

/// The role's steps, if enough people may decide in each.
fn resolved(policy: &Policy, facts: &Facts, role: &Role, rule: &str) -> Result<Vec<Step>, Refused> {
    let steps = steps_of(policy, &role.name, &facts.subject, &facts.requester).unwrap_or_default();
    for (at, Step { approvers, hooks, count, after }) in steps.iter().enumerate() {
        let people = match after {
            Some((_, Then::Escalate(more))) => approvers.union(more).count(),
            _ => approvers.len(),
        };
        let possible = people + hooks.len();
        let needed = usize::try_from(*count).unwrap_or(usize::MAX);
        if possible < needed && !matches!(after, Some((_, Then::Skip))) {
            let number = at + 1;
            let text = format!(
                "step {number} needs {needed} to approve, and {possible} besides the requester could"
            );
            return Err(Refused::by(
                rule.to_owned(),
                text,
                format!("whoever keeps the policy names more approvers in step {number}"),
            ));
        }
    }
    Ok(steps)
}

#[cfg(test)]
mod tests;
