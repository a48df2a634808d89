//! What differs between two policies, and which live grants the new one would not permit any more.
//!
//! Owns: how differences are named. Must not know: where policies and grants come from, what is done about it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Debug, Display};

use proto::types::{Difference, GrantId, What};

use crate::decide::{Decision, Outcome, decide};
use crate::facts::{Facts, Stage};
use crate::model::Policy;
use crate::windows::Weekly;

/// A live grant: what it was permitted with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveGrant {
    /// Which.
    pub grant: GrantId,
    /// Its subject, resource, hosts, role and duration, and what is known now. The stage does not matter.
    pub facts: Facts,
}

/// What applying `new` in place of `old` would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// In order of kind and name.
    pub differences: Vec<Difference>,
    /// The grants that the new policy would end, each with why. One that the old one does not permit either is not there.
    pub ends: Vec<(GrantId, Decision)>,
}

/// Compares a policy with the one before it; None: there was none, and every live grant was permitted.
pub fn plan(old: Option<&Policy>, new: &Policy, live: &[LiveGrant]) -> Plan {
    let keeps = |policy: &Policy, grant: &LiveGrant| {
        decide(policy, &Facts { stage: Stage::Keep, ..grant.facts.clone() })
    };
    let is_permitted = |decision: &Decision| matches!(decision.outcome, Outcome::Permitted(_));
    let ended = live.iter().filter(|grant| old.is_none_or(|old| is_permitted(&keeps(old, grant))));
    let ended =
        ended.map(|grant| (grant.grant, keeps(new, grant))).filter(|(_, decision)| !is_permitted(decision));
    Plan { differences: differences(old, new), ends: ended.collect() }
}

fn differences(old: Option<&Policy>, new: &Policy) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut before = old.map(parts).unwrap_or_default();
    for (kind, after) in parts(new) {
        compare(&mut found, kind, before.remove(kind).unwrap_or_default(), after);
    }
    found.sort();
    found
}

/// All that a policy is made of, by kind.
fn parts(policy: &Policy) -> BTreeMap<&'static str, Parts> {
    let weekly = |window: &Weekly| {
        let zone = window.zone.iana_name().unwrap_or_default();
        format!("{:?} {} {} {zone}", window.days, window.from, window.to)
    };
    let conditions = policy.conditions.iter();
    BTreeMap::from([
        ("resource", named(&policy.resources)),
        ("host", named(&policy.hosts)),
        ("subject", named(&policy.directory.subjects)),
        ("group", named(&policy.directory.groups)),
        ("on_call", named(&policy.directory.on_call)),
        ("role", listed(&policy.roles, |role| role.name.to_string(), |role| role.meaning())),
        ("limits", listed(&[policy.limits], |_| String::new(), |limits| format!("{limits:?}"))),
        ("window", listed(&policy.windows, |window| window.name.to_string(), weekly)),
        (
            "maintenance",
            listed(&policy.maintenance, |window| window.name.to_string(), |window| format!("{window:?}")),
        ),
        (
            "condition",
            conditions.map(|condition| (condition.id.to_string(), condition.text.clone())).collect(),
        ),
    ])
}

/// Name and content of each, as text: enough to see whether two are the same.
type Parts = BTreeSet<(String, String)>;

fn named<'a, N: Display + 'a, V: Debug + 'a>(parts: impl IntoIterator<Item = (&'a N, &'a V)>) -> Parts {
    parts.into_iter().map(|(name, part)| (name.to_string(), format!("{part:?}"))).collect()
}

fn listed<T>(parts: &[T], name: impl Fn(&T) -> String, content: impl Fn(&T) -> String) -> Parts {
    parts.iter().map(|part| (name(part), content(part))).collect()
}

fn compare(found: &mut Vec<Difference>, kind: &str, old: Parts, new: Parts) {
    let names = |parts: &Parts| parts.iter().map(|(name, _)| name.clone()).collect::<BTreeSet<_>>();
    let (before, after) = (names(&old), names(&new));
    for (name, _) in old.symmetric_difference(&new) {
        let what = match (before.contains(name), after.contains(name)) {
            (false, _) => What::Added,
            (true, false) => What::Removed,
            (true, true) => What::Changed,
        };
        let difference = Difference { kind: kind.to_owned(), name: name.clone(), what };
        if !found.contains(&difference) {
            found.push(difference);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proto::types::Timestamp;

    use super::*;

    fn policy(maximum: &str, members: &str, roles: &str, conditions: &str) -> Policy {
        let files = [
            ("limits.toml", format!("maximum_duration = \"{maximum}\"\n")),
            ("hosts.toml", "[[host]]\nname = \"app\"\n".to_owned()),
            ("resources.toml", "[[resource]]\nname = \"db\"\nunix = [\"/run/db\"]\n".to_owned()),
            (
                "subjects.toml",
                format!(
                    "[[subject]]\nid = \"user:alice\"\n[[subject]]\nid = \"user:bob\"\n[[group]]\nname = \"dba\"\nmembers = [{members}]\n"
                ),
            ),
            (
                "roles.toml",
                format!(
                    "[[role]]\nname = \"debug\"\nto = [\"group:dba\"]\nresources = [\"db\"]\nhosts = [\"*\"]\nautomatic = true\n{roles}"
                ),
            ),
            ("conditions/a.cedar", conditions.to_owned()),
        ];
        let files: BTreeMap<_, _> = files.into_iter().map(|(name, text)| (name.to_owned(), text)).collect();
        crate::files::read(&files).unwrap_or_else(|problems| panic!("{problems:#?}"))
    }

    #[test]
    fn what_differs_and_what_ends() {
        let old = policy(
            "8h",
            "\"user:alice\", \"user:bob\"",
            "",
            "@id(\"a\") permit (principal, action, resource) when { context.mfa };",
        );
        let more = "[[role]]\nname = \"more\"\nresources = [\"db\"]\nhosts = [\"app\"]\nautomatic = true\n";
        let new = policy(
            "4h",
            "\"user:bob\"",
            more,
            "@id(\"a\")\npermit (principal, action, resource) when { !context.mfa };",
        );
        let now = Timestamp::from_unix_ms(1_795_777_200_000).expect("in range");
        let grant = |subject: &str, hours: u64| {
            let mut facts = Facts::new(now, subject.parse().expect("valid"), "db".parse().expect("valid"));
            facts.role = "debug".parse().ok();
            facts.duration = Some(Duration::from_secs(hours * 3600));
            facts.mfa = true;
            LiveGrant { grant: GrantId::new(), facts }
        };
        let live = [grant("user:alice", 1), grant("user:bob", 1), grant("user:bob", 5), grant("user:bob", 9)];
        let plan = plan(Some(&old), &new, &live);
        let differences: Vec<String> = plan
            .differences
            .iter()
            .map(|difference| format!("{} {} {}", difference.kind, difference.name, difference.what))
            .collect();
        assert_eq!(
            differences,
            ["condition a changed", "limits  changed", "role more added", "subject user:alice changed"]
        );
        let ended: Vec<GrantId> = plan.ends.iter().map(|(id, _)| *id).collect();
        assert_eq!(ended, [live[0].grant, live[2].grant]);
        let unchanged = super::plan(Some(&old), &old, &live);
        assert!(unchanged.differences.is_empty() && unchanged.ends.is_empty());
        let first = super::plan(None, &old, &live);
        assert!(first.differences.iter().all(|difference| difference.what == What::Added));
        assert_eq!(first.ends.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [live[3].grant]);
    }
}
