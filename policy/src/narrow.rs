//! A narrower role, from what was used of one.
//!
//! Owns: what can be made narrower, and how `roles.toml` says it. Must not know: how use became known.
//!
//! Invariant: what is suggested is part of the role, and holds all that was used.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use proto::types::{HostName, ResourceName};

use crate::files::duration_text;
use crate::model::{After, ClockStart, Policy, Role, Who};

/// Suggested durations are a multiple of this: what was once enough to the minute is too little the next time.
const STEP: Duration = Duration::from_secs(900);

/// The longest list that a role can have; what needs more stays as it is.
const LIST_MAX: usize = 1000;

/// What was used by a role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Which resources.
    pub resources: BTreeSet<ResourceName>,
    /// From which hosts.
    pub hosts: BTreeSet<HostName>,
    /// From the beginning of a grant to the last use of it, at most.
    pub longest: Duration,
}

/// A role that grants less.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Narrower {
    /// As `roles.toml` has it.
    pub toml: String,
    /// What is narrower, in words.
    pub notes: Vec<String>,
}

/// The role without what was not used; None: there is nothing that could be left out, or nothing was used at all.
pub fn narrower(policy: &Policy, role: &Role, used: &Used) -> Option<Narrower> {
    if used.resources.is_empty() || used.hosts.is_empty() {
        return None;
    }
    let mut narrow = role.clone();
    let mut notes = Vec::new();
    let resources: BTreeSet<ResourceName> = role.resources.intersection(&used.resources).cloned().collect();
    if !resources.is_empty() && resources.len() < role.resources.len() && resources.len() <= LIST_MAX {
        notes.push(format!("{} of {} resources", resources.len(), role.resources.len()));
        narrow.resources = resources;
    }
    // A host that is not in hosts.toml cannot be named there: a role for every host stays one.
    let is_narrower = match &role.hosts {
        None => used.hosts.iter().all(|host| policy.hosts.contains_key(host)),
        Some(hosts) => used.hosts.iter().filter(|host| hosts.contains(*host)).count() < hosts.len(),
    };
    let hosts: BTreeSet<&HostName> = used
        .hosts
        .iter()
        .filter(|host| role.hosts.as_ref().is_none_or(|hosts| hosts.contains(*host)))
        .collect();
    if is_narrower && !hosts.is_empty() && hosts.len() <= LIST_MAX {
        let before = role.hosts.as_ref().map_or("all".to_owned(), |hosts| hosts.len().to_string());
        notes.push(format!("{} of {before} hosts", hosts.len()));
        narrow.hosts = Some(hosts.into_iter().cloned().collect());
    }
    let before = role.maximum_duration.unwrap_or(policy.limits.maximum_duration);
    let longest =
        rounded_up(used.longest.max(role.idle.unwrap_or_default().saturating_add(Duration::from_secs(1))));
    if longest < before {
        notes.push(format!("{} at most instead of {}", duration_text(longest), duration_text(before)));
        narrow.maximum_duration = Some(longest);
        narrow.default_duration = role.default_duration.map(|default| default.min(longest));
    }
    (!notes.is_empty()).then(|| Narrower { toml: written(&narrow), notes })
}

/// To the next multiple of [`STEP`], at least one.
fn rounded_up(duration: Duration) -> Duration {
    let steps = duration.as_secs().div_ceil(STEP.as_secs()).max(1);
    Duration::from_secs(steps.saturating_mul(STEP.as_secs()))
}

/// As `roles.toml` has a role.
fn written(role: &Role) -> String {
    let mut text = format!("[[role]]\nname = {}\n", quoted(&role.name));
    let mut line = |key: &str, value: String| {
        // To a text.
        let _ = writeln!(text, "{key} = {value}");
    };
    if !role.to.is_empty() {
        line("to", list(role.to.iter()));
    }
    line("resources", list(role.resources.iter()));
    let hosts = role.hosts.as_ref().map(|hosts| hosts.iter().collect::<BTreeSet<_>>());
    line("hosts", hosts.map_or_else(|| list(["*"]), list));
    for (key, duration) in [
        ("default_duration", role.default_duration),
        ("maximum_duration", role.maximum_duration),
        ("idle", role.idle),
    ] {
        if let Some(duration) = duration {
            line(key, quoted(duration_text(duration)));
        }
    }
    if role.strict {
        line("strict", "true".to_owned());
    }
    if let Some(extension) = &role.extension {
        let (times, by, approval) = (extension.times, duration_text(extension.by), extension.approval);
        line("extension", format!("{{ times = {times}, by = {}, approval = {approval} }}", quoted(by)));
    }
    if role.clock != ClockStart::Approval {
        line("clock", quoted(role.clock));
    }
    if role.break_glass {
        line("break_glass", "true".to_owned());
    }
    if role.steps.is_empty() {
        line("automatic", "true".to_owned());
    }
    for step in &role.steps {
        text += &format!("\n[[role.step]]\napprovers = {}\n", list(step.approvers.iter()));
        if step.count != 1 {
            text += &format!("count = {}\n", step.count);
        }
        if let Some((after, then)) = &step.after {
            let (word, to): (&str, &[Who]) = match then {
                After::Escalate(to) => ("escalate", to),
                After::Skip => ("skip", &[]),
                After::Deny => ("deny", &[]),
            };
            text += &format!("after = {}\nthen = {}\n", quoted(duration_text(*after)), quoted(word));
            if !to.is_empty() {
                text += &format!("to = {}\n", list(to.iter()));
            }
        }
    }
    text
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(quoted).collect();
    format!("[{}]", items.join(", "))
}

fn quoted(text: impl ToString) -> String {
    toml::Value::String(text.to_string()).to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const HOSTS: &str = "[[host]]\nname = \"a\"\n[[host]]\nname = \"b\"\n[[host]]\nname = \"c\"\n";
    const RESOURCES: &str = "[[resource]]\nname = \"cache\"\naddresses = [\"10.0.0.8\"]\nports = [\"tcp/6379\"]\n\
        [[resource]]\nname = \"db\"\naddresses = [\"10.0.0.7\"]\nports = [\"tcp/5432\"]\n";
    const SUBJECTS: &str = "[[subject]]\nid = \"user:alice\"\n[[subject]]\nid = \"user:emil\"\n\
        [[group]]\nname = \"dba\"\nmembers = [\"user:emil\"]\n";

    fn read(roles: &str) -> Policy {
        let files: BTreeMap<String, String> = [
            ("limits.toml", "maximum_duration = \"8h\"\n"),
            ("hosts.toml", HOSTS),
            ("resources.toml", RESOURCES),
            ("subjects.toml", SUBJECTS),
            ("roles.toml", roles),
        ]
        .map(|(path, text)| (path.to_owned(), text.to_owned()))
        .into();
        crate::files::read(&files).unwrap_or_else(|problems| panic!("{problems:#?}\n{roles}"))
    }

    fn used(resources: &[&str], hosts: &[&str], minutes: u64) -> Used {
        Used {
            resources: resources.iter().map(|name| name.parse().expect("valid")).collect(),
            hosts: hosts.iter().map(|name| name.parse().expect("valid")).collect(),
            longest: Duration::from_secs(60 * minutes),
        }
    }

    const WIDE: &str = r#"
[[role]]
name = "debug"
to = ["group:dba", "user:alice"]
resources = ["*"]
hosts = ["*"]
default_duration = "2h"
maximum_duration = "4h"
idle = "15m"
strict = true
extension = { times = 2, by = "30m", approval = true }
clock = "approval"

[[role.step]]
approvers = ["group:dba"]
after = "30m"
then = "escalate"
to = ["user:emil"]

[[role.step]]
approvers = ["user:emil", "user:alice"]
count = 2
after = "1h"
then = "deny"
"#;

    #[test]
    fn what_was_not_used_is_left_out_and_nothing_else_changes() {
        let policy = read(WIDE);
        let role = &policy.roles[0];
        let narrow = narrower(&policy, role, &used(&["db"], &["a", "b"], 22)).expect("narrower");
        assert_eq!(narrow.notes, ["1 of 2 resources", "2 of all hosts", "30m at most instead of 4h"]);
        let read_back = read(&narrow.toml);
        let expected = Role {
            resources: used(&["db"], &[], 0).resources,
            hosts: Some(used(&[], &["a", "b"], 0).hosts.into_iter().collect()),
            default_duration: Some(Duration::from_secs(1800)),
            maximum_duration: Some(Duration::from_secs(1800)),
            ..role.clone()
        };
        assert_eq!(read_back.roles[0].meaning(), expected.meaning(), "{}", narrow.toml);
        // That is as narrow as it gets.
        let policy = read(&narrow.toml);
        assert_eq!(narrower(&policy, &policy.roles[0], &used(&["db"], &["a", "b"], 22)), None);
    }

    #[test]
    fn what_cannot_be_narrower_stays() {
        let automatic = "[[role]]\nname = \"x\"\nto = [\"user:alice\"]\nresources = [\"db\"]\nhosts = [\"a\", \"b\"]\n\
            maximum_duration = \"1h\"\nidle = \"50m\"\nautomatic = true\n";
        let policy = read(automatic);
        let role = &policy.roles[0];
        assert_eq!(narrower(&policy, role, &used(&[], &[], 0)), None, "whether it is needed, people decide");
        assert_eq!(
            narrower(&policy, role, &used(&["db"], &["a", "b"], 5)),
            None,
            "an idle limit is below it"
        );
        let narrow = narrower(&policy, role, &used(&["db"], &["a", "gone"], 60)).expect("narrower");
        assert_eq!(narrow.notes, ["1 of 2 hosts"]);
        assert!(narrow.toml.contains("hosts = [\"a\"]\n") && narrow.toml.contains("automatic = true\n"));
        read(&narrow.toml);
        // A host that the policy does not name cannot be named.
        let policy = read(&automatic.replace("[\"a\", \"b\"]", "[\"*\"]"));
        assert_eq!(narrower(&policy, &policy.roles[0], &used(&["db"], &["a", "new"], 60)), None);
    }
}
