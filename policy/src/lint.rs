//! What is odd in a policy that is valid: it can be applied, and somebody should look at it.
//!
//! Owns: which oddities there are, and their texts. Must not know: who reads them.
//!
//! What conditions mean is decided only as far as their scopes and Cedar's type checker tell: a condition that is never true for
//! another reason is not found.

use std::collections::BTreeSet;

use crate::conditions::{Action, Condition, Scope};
use crate::facts::Stage;
use crate::files::duration_text;
use crate::model::{After, Policy, Role, Who};
use crate::problem::Problem;

/// All oddities, in order of file and line.
pub fn lint(policy: &Policy) -> Vec<Problem> {
    let mut found = Vec::new();
    for role in &policy.roles {
        for (text, help) in of_role(policy, role) {
            let text = format!("role `{}` {text}", role.name);
            found.push(Problem { file: "roles.toml".to_owned(), line: role.line, column: 1, text, help });
        }
    }
    for (id, why) in &policy.conditions.never {
        if let Some(condition) = policy.conditions.iter().find(|condition| condition.id == *id) {
            let text = format!("can never apply: {why}");
            found.push(at(condition, text, "correct its scope or its conditions, or leave it out"));
        }
    }
    found.extend(shadowed(policy));
    found.sort();
    found
}

fn at(condition: &Condition, text: String, help: &str) -> Problem {
    let Condition { file, line, column, id, .. } = condition;
    let text = format!("policy `{id}` {text}");
    Problem { file: file.clone(), line: *line, column: *column, text, help: help.to_owned() }
}

/// Of a role: what is odd, and the next step.
fn of_role(policy: &Policy, role: &Role) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut tell = |text: String, help: &str| found.push((text, help.to_owned()));
    if role.resources.is_empty() {
        tell(
            "is for no resource: none has such labels".to_owned(),
            "correct `resources`, or label a resource",
        );
    }
    if role.hosts.as_ref().is_some_and(|hosts| hosts.is_empty()) {
        tell("is for no host: none has such labels".to_owned(), "correct `hosts`, or label a host");
    }
    if !can_be_had(policy, role) {
        let help = "add somebody to `to`, members to its groups, or a Cedar policy that permits it";
        tell("can be had by nobody".to_owned(), help);
    }
    if role.maximum_duration.is_none() {
        let limit = duration_text(policy.limits.maximum_duration);
        tell(
            format!("has no bound of its own: it can be had for {limit}, as long as the limits let it"),
            "add `maximum_duration`",
        );
    }
    let limit = policy.limits.maximum_duration;
    if let Some(own) = role.maximum_duration.filter(|own| *own > limit) {
        let text =
            format!("names {}, and no more than {} is possible", duration_text(own), duration_text(limit));
        tell(text, "lower its `maximum_duration`, or raise that of limits.toml");
    }
    let longest = role.maximum_duration.unwrap_or(limit).min(limit);
    if let Some(idle) = role.idle.filter(|idle| *idle >= longest) {
        tell(
            format!("has an idle limit of {}, which its duration never reaches", duration_text(idle)),
            "make it shorter",
        );
    }
    for (index, step) in role.steps.iter().enumerate() {
        let mut named: Vec<Who> = step.approvers.clone();
        if let Some((_, After::Escalate(to))) = &step.after {
            named.extend(to.iter().cloned());
        }
        // Whose manager it is depends on who asks.
        let open = named.contains(&Who::Manager);
        named.retain(|who| *who != Who::Manager);
        let people = policy.resolve(&named, None);
        let possible = people.len() + usize::from(open) + step.hooks().count();
        let needed = usize::try_from(step.count).unwrap_or(usize::MAX);
        let is_skipped = matches!(step.after, Some((_, After::Skip)));
        if possible < needed && !is_skipped {
            let text = format!("needs {needed} to approve in step {}, and there are {possible}", index + 1);
            tell(text, "add approvers, or ask for fewer");
        }
    }
    found
}

/// Whether somebody is in the files who could be permitted the role.
fn can_be_had(policy: &Policy, role: &Role) -> bool {
    let exists = |scope: &Scope| match scope {
        Scope::Anybody => !policy.directory.subjects.is_empty(),
        Scope::Subject(id) => policy.directory.subjects.contains_key(id),
        Scope::Group(name) => policy.directory.members(name).next().is_some(),
    };
    let is_linked = role.to.iter().any(|who| match who {
        Who::Subject(id) => policy.directory.subjects.contains_key(id),
        Who::Group(name) => policy.directory.members(name).next().is_some(),
        Who::Manager | Who::OnCall(_) | Who::Hook(_) => false,
    });
    let never: BTreeSet<_> = policy.conditions.never.iter().map(|(id, _)| id).collect();
    let is_permitted = |condition: &Condition| {
        !condition.forbids
            && condition.actions.contains(&Action::At(Stage::Request))
            && condition.role.as_ref().is_none_or(|name| *name == role.name)
            && !never.contains(&condition.id)
            && exists(&condition.scope)
    };
    is_linked || policy.conditions.iter().any(is_permitted)
}

/// Policies that change nothing because a `forbid` without conditions covers all that they are about.
fn shadowed(policy: &Policy) -> Vec<Problem> {
    let bare: Vec<&Condition> =
        policy.conditions.iter().filter(|condition| condition.forbids && condition.is_bare).collect();
    let covers = |wide: &Condition, narrow: &Condition| {
        let groups = |id| policy.directory.subjects.get(id).map(|person| &person.groups);
        let who = match (&wide.scope, &narrow.scope) {
            (Scope::Anybody, _) => wide.is_for_all_kinds,
            (Scope::Group(wide), Scope::Group(narrow)) => {
                policy.directory.groups.get(narrow).is_some_and(|outer| outer.contains(wide))
            }
            (Scope::Group(wide), Scope::Subject(id)) => {
                groups(id).is_some_and(|groups| groups.contains(wide))
            }
            (wide, narrow) => wide == narrow,
        };
        let role = wide.role.is_none() || wide.role == narrow.role;
        who && role && narrow.actions.iter().all(|action| wide.actions.contains(action))
    };
    let mut found = Vec::new();
    for condition in policy.conditions.iter() {
        let by = bare.iter().find(|wide| wide.id != condition.id && covers(wide, condition));
        // Of two that say the same, the first is told to shadow the second.
        let by = by.filter(|wide| {
            !(condition.forbids && condition.is_bare && covers(condition, wide)) || wide.id < condition.id
        });
        if let Some(wide) = by {
            let text = format!("changes nothing: `{}` forbids all that it is about", wide.id);
            found.push(at(condition, text, "leave one of them out"));
        }
    }
    for role in &policy.roles {
        let by = bare.iter().find(|wide| {
            wide.scope == Scope::Anybody
                && wide.is_for_all_kinds
                && wide.role.as_ref().is_none_or(|name| *name == role.name)
                && wide.actions.contains(&Action::At(Stage::Request))
        });
        if let Some(wide) = by {
            found.push(at(
                wide,
                format!("forbids role `{}` to everybody", role.name),
                "leave the role out, or give the policy a condition",
            ));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn oddities() {
        let files = [
            ("limits.toml", "maximum_duration = \"8h\"\n"),
            ("hosts.toml", "[[host]]\nname = \"app\"\n"),
            ("resources.toml", "[[resource]]\nname = \"db\"\nunix = [\"/run/db\"]\n"),
            (
                "subjects.toml",
                "[[subject]]\nid = \"user:alice\"\n[[group]]\nname = \"empty\"\n[[group]]\nname = \"all\"\nmembers = [\"user:alice\"]\n",
            ),
            (
                "roles.toml",
                "[[role]]\nname = \"nobodys\"\nto = [\"group:empty\"]\nresources = [\"env=prod\"]\nhosts = [\"env=prod\"]\nautomatic = true\n\
                 [[role]]\nname = \"odd\"\nto = [\"group:all\"]\nresources = [\"db\"]\nhosts = [\"*\"]\nmaximum_duration = \"9h\"\nidle = \"8h\"\n\
                 [[role.step]]\napprovers = [\"group:empty\"]\n[[role.step]]\napprovers = [\"manager\"]\n\
                 [[role]]\nname = \"shut\"\nto = [\"group:all\"]\nresources = [\"db\"]\nhosts = [\"*\"]\nmaximum_duration = \"1h\"\nautomatic = true\n",
            ),
            (
                "conditions/a.cedar",
                "@id(\"shut\") forbid (principal, action, resource == Role::\"shut\");\n\
                 @id(\"in-vain\") permit (principal == User::\"alice\", action, resource == Role::\"shut\") when { context.mfa };\n\
                 @id(\"users-only\") forbid (principal is User, action == Action::\"keep\", resource == Role::\"odd\");\n\
                 @id(\"never\") permit (principal, action, resource) when { context.mfa && !context.mfa && false };\n\
                 @id(\"fine\") permit (principal in Group::\"all\", action, resource) when { context.mfa };\n",
            ),
        ];
        let files: BTreeMap<_, _> =
            files.into_iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect();
        let policy = crate::files::read(&files).unwrap_or_else(|problems| panic!("{problems:#?}"));
        let found: Vec<String> = lint(&policy).iter().map(ToString::to_string).collect();
        insta::assert_snapshot!(found.join("\n"));
    }
}
