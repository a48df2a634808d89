//! Why it was decided so, and what would change it.
//!
//! Owns: trying single changes of the facts, and pairs of them, where a request is denied. Must not know: who asks. What it finds
//! tells of rules: it is for those who keep the policy.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp as Instant;
use proto::types::Timestamp;

use crate::decide::{Decision, Outcome, decide};
use crate::facts::{Channel, Device, Facts};
use crate::files::{duration_text, moment};
use crate::model::Policy;

/// How many yeses are tried.
const APPROVALS_MAX: u32 = 8;

/// A decision, and what else would be permitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What is decided.
    pub decision: Decision,
    /// Changes each of which, by itself, leads to a permit; pairs of changes if no single one does. Empty if permitted.
    pub would_help: Vec<String>,
}

/// A change of the facts, in words.
struct Change {
    text: String,
    apply: Box<dyn Fn(&mut Facts)>,
}

impl Change {
    fn new(text: impl Into<String>, apply: impl Fn(&mut Facts) + 'static) -> Self {
        Self { text: text.into(), apply: Box::new(apply) }
    }
}

/// Explains.
pub fn explain(policy: &Policy, facts: &Facts) -> Explanation {
    let decision = decide(policy, facts);
    let would_help = match decision.outcome {
        Outcome::Permitted(_) => Vec::new(),
        Outcome::Denied { .. } => would_help(policy, facts),
    };
    Explanation { decision, would_help }
}

fn would_help(policy: &Policy, facts: &Facts) -> Vec<String> {
    let changes = changes(policy, facts);
    let is_permitted = |changes: &[&Change]| {
        let mut facts = facts.clone();
        changes.iter().for_each(|change| (change.apply)(&mut facts));
        matches!(decide(policy, &facts).outcome, Outcome::Permitted(_))
    };
    let single: Vec<String> =
        changes.iter().filter(|change| is_permitted(&[change])).map(|change| change.text.clone()).collect();
    if !single.is_empty() {
        return single;
    }
    let pairs = changes
        .iter()
        .enumerate()
        .flat_map(|(at, one)| changes.iter().skip(at + 1).map(move |other| (one, other)));
    let pairs = pairs.filter(|(one, other)| is_permitted(&[one, other]));
    pairs.map(|(one, other)| format!("{}, and {}", one.text, other.text)).collect()
}

fn changes(policy: &Policy, facts: &Facts) -> Vec<Change> {
    let mut changes = Vec::new();
    if !facts.mfa {
        changes.push(Change::new("a sign-in by more than one factor", |facts| facts.mfa = true));
    }
    if facts.login_age.is_none_or(|age| !age.is_zero()) {
        changes.push(Change::new("a new sign-in", |facts| facts.login_age = Some(Duration::ZERO)));
    }
    let best = Device { managed: true, encrypted: true };
    if facts.device != Some(best) {
        let text = "a device that is managed and encrypted";
        changes.push(Change::new(text, move |facts| facts.device = Some(best)));
    }
    for channel in Channel::ALL.into_iter().filter(|channel| *channel != facts.channel) {
        changes.push(Change::new(format!("the channel `{channel}`"), move |facts| facts.channel = channel));
    }
    // The fewest that are enough.
    let enough = (facts.approvals + 1..=facts.approvals.saturating_add(APPROVALS_MAX)).find(|approvals| {
        let facts = Facts { approvals: *approvals, ..facts.clone() };
        matches!(decide(policy, &facts).outcome, Outcome::Permitted(_))
    });
    if let Some(enough) = enough {
        changes
            .push(Change::new(format!("{enough} approvals in place of {}", facts.approvals), move |facts| {
                facts.approvals = enough
            }));
    }
    if facts.incidents.is_empty() {
        changes.push(Change::new("an active incident", |facts| {
            if let Ok(id) = "incident".parse() {
                Arc::make_mut(&mut facts.incidents).insert(id, facts.now.plus(Duration::from_secs(1)));
            }
        }));
    }
    if facts.role.is_some() {
        changes.push(Change::new("another role, by not naming one", |facts| facts.role = None));
    }
    if facts.subject != facts.requester {
        changes.push(Change::new("the subject asks itself", |facts| facts.requester = facts.subject.clone()));
    }
    let roles = policy.roles.iter().filter(|role| role.resources.contains(&facts.resource));
    let longest = policy.limits.maximum_duration;
    let mut shorter: Vec<Duration> =
        roles.map(|role| role.maximum_duration.unwrap_or(longest).min(longest)).collect();
    shorter.extend(policy.limits.automatic_maximum_duration);
    shorter.retain(|duration| facts.duration.is_none_or(|asked| *duration < asked));
    shorter.sort_unstable();
    shorter.dedup();
    // The longest that helps is what is wanted.
    for duration in shorter.into_iter().rev() {
        changes.push(Change::new(format!("a duration of {}", duration_text(duration)), move |facts| {
            facts.duration = Some(duration)
        }));
    }
    if let Some(now) =
        Instant::from_millisecond(facts.now.unix_ms()).ok().filter(|_| !policy.windows.is_empty())
    {
        for window in policy.windows.iter().filter(|window| !window.is_open(facts.now)) {
            let time = window.next(now).and_then(|time| Timestamp::from_unix_ms(time.as_millisecond()).ok());
            changes.extend(time.map(|time| later(window.name.as_str(), time)));
        }
    }
    for window in policy.maintenance.iter().filter(|window| window.from > facts.now) {
        changes.push(later(window.name.as_str(), window.from));
    }
    changes
}

/// The same at another time. Incidents are taken to go on as they are.
fn later(window: &str, time: Timestamp) -> Change {
    let text = format!("window `{window}`, which opens at {}", moment(time));
    Change::new(text, move |facts| {
        let wait = time.since(facts.now);
        Arc::make_mut(&mut facts.incidents).values_mut().for_each(|end| *end = end.plus(wait));
        facts.now = time;
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[track_caller]
    fn check(conditions: &str, change: impl FnOnce(&mut Facts), expected: &[&str]) {
        let files = [
            (
                "limits.toml",
                "maximum_duration = \"8h\"\n[[window]]\nname = \"office\"\ndays = [\"mon\"]\nfrom = \"09:00\"\nto = \"17:00\"\nzone = \"UTC\"\n",
            ),
            ("hosts.toml", "[[host]]\nname = \"app\"\n"),
            ("resources.toml", "[[resource]]\nname = \"db\"\nunix = [\"/run/db\"]\n"),
            ("subjects.toml", "[[subject]]\nid = \"user:alice\"\n[[subject]]\nid = \"user:bob\"\n"),
            (
                "roles.toml",
                "[[role]]\nname = \"debug\"\nto = [\"user:alice\"]\nresources = [\"db\"]\nhosts = [\"*\"]\nautomatic = true\nmaximum_duration = \"4h\"\n",
            ),
            ("conditions/a.cedar", conditions),
        ];
        let files: BTreeMap<_, _> =
            files.into_iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect();
        let policy = crate::files::read(&files).unwrap_or_else(|problems| panic!("{problems:#?}"));
        // A Friday.
        let now = Timestamp::from_unix_ms(1_795_777_200_000).expect("in range");
        let mut facts = Facts::new(now, "user:alice".parse().expect("valid"), "db".parse().expect("valid"));
        change(&mut facts);
        assert_eq!(explain(&policy, &facts).would_help, expected);
    }

    #[test]
    fn what_would_help() {
        check("", |_| {}, &[]);
        check("", |facts| facts.duration = Some(Duration::from_secs(5 * 3600)), &["a duration of 4h"]);
        check("", |facts| facts.subject = "user:bob".parse().expect("valid"), &[]);
        let forbid =
            |unless: &str| format!("@id(\"x\") forbid (principal, action, resource) unless {{ {unless} }};");
        check(&forbid("context.mfa"), |_| {}, &["a sign-in by more than one factor"]);
        check(&forbid("context.approvals >= 2"), |_| {}, &["2 approvals in place of 0"]);
        check(
            &forbid("context.windows.contains(Window::\"office\") || context.incident_active"),
            |_| {},
            &["an active incident", "window `office`, which opens at 2026-11-30T09:00:00Z"],
        );
        check(
            &forbid("context.mfa && context has login_age && context.login_age < 60"),
            |_| {},
            &["a sign-in by more than one factor, and a new sign-in"],
        );
    }
}
