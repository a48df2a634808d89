//! A table of decisions, and what holds of all of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::types::Timestamp;

use super::*;

/// A policy of a few files, a word each.
fn files(conditions: &str) -> BTreeMap<String, String> {
    let files = [
        (
            "limits.toml",
            "maximum_duration = \"8h\"\nmaximum_idle = \"1h\"\nautomatic_maximum_duration = \"1h\"\n\
            [[window]]\nname = \"office\"\ndays = [\"mon\", \"tue\", \"wed\", \"thu\", \"fri\"]\nfrom = \"09:00\"\nto = \"17:00\"\nzone = \"Europe/Berlin\"\n",
        ),
        (
            "resources.toml",
            "[[resource]]\nname = \"db\"\naddresses = [\"10.0.0.7\"]\nports = [\"tcp/5432\"]\nlabels = { env = \"prod\", sensitivity = \"high\" }\n\
            [[resource]]\nname = \"cache\"\naddresses = [\"10.0.0.8\"]\nports = [\"tcp/6379\"]\nlabels = { env = \"test\" }\n",
        ),
        (
            "hosts.toml",
            "[[host]]\nname = \"app-1\"\nlabels = { env = \"prod\" }\n[[host]]\nname = \"app-2\"\nlabels = { env = \"prod\", zone = \"a\" }\n[[host]]\nname = \"lab\"\n",
        ),
        (
            "subjects.toml",
            "[[subject]]\nid = \"user:alice\"\nmanager = \"user:bob\"\n[[subject]]\nid = \"user:bob\"\n[[subject]]\nid = \"user:carol\"\n[[subject]]\nid = \"user:mallory\"\n\
            [[group]]\nname = \"dba\"\nmembers = [\"user:alice\"]\n[[group]]\nname = \"engineers\"\nmembers = [\"group:dba\", \"user:carol\"]\n[[on_call]]\nname = \"db\"\nsubjects = [\"user:carol\"]\n",
        ),
        (
            "roles.toml",
            "[[role]]\nname = \"debug\"\nto = [\"group:engineers\"]\nresources = [\"env=prod\"]\nhosts = [\"env=prod\"]\ndefault_duration = \"30m\"\nmaximum_duration = \"4h\"\nidle = \"10m\"\nstrict = true\n\
            [[role.step]]\napprovers = [\"manager\", \"on-call:db\", \"user:bob\"]\n\
            [[role]]\nname = \"long\"\nto = [\"group:dba\"]\nresources = [\"db\"]\nhosts = [\"*\"]\nmaximum_duration = \"12h\"\n[[role.step]]\napprovers = [\"user:bob\", \"user:carol\"]\ncount = 2\n\
            [[role]]\nname = \"oncall\"\nresources = [\"*\"]\nhosts = [\"*\"]\nautomatic = true\n",
        ),
        ("conditions/all.cedar", conditions),
    ];
    files.into_iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect()
}

fn policy(conditions: &str) -> Policy {
    crate::files::read(&files(conditions)).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

/// With a role for emergencies, for as long as it says, reviewed by these.
fn with_glass(maximum: &str, approvers: &str, more: &str) -> Result<Policy, Vec<crate::Problem>> {
    let mut files = files("");
    if let Some(roles) = files.get_mut("roles.toml") {
        *roles += &format!(
            "[[role]]\nname = \"glass\"\nto = [\"user:mallory\", \"user:alice\"]\nresources = [\"db\"]\nhosts = [\"*\"]\n\
             maximum_duration = \"{maximum}\"\nbreak_glass = true\n{more}\n[[role.step]]\napprovers = [{approvers}]\n"
        );
    }
    crate::files::read(&files)
}

#[test]
fn glass_is_broken_by_name_only_and_somebody_can_look_at_it() {
    let policy = with_glass("50m", "\"user:bob\"", "").unwrap_or_else(|problems| panic!("{problems:#?}"));
    let decided = |subject: &str, role: Option<&str>| {
        let mut facts = facts(subject, "db", "app-1");
        facts.role = role.map(|role| role.parse().expect("valid"));
        match decide(&policy, &facts).outcome {
            Outcome::Permitted(terms) => Ok((terms.role.to_string(), terms.steps.len(), terms.break_glass)),
            Outcome::Denied { reasons } => {
                Err(reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
            }
        }
    };
    assert_eq!(decided("user:alice", None), Ok(("debug".to_owned(), 1, false)));
    assert_eq!(decided("user:alice", Some("glass")), Ok(("glass".to_owned(), 0, true)));
    let unnamed = "rule `role:glass`: role `glass` is for emergencies, and is not had without being named";
    assert_eq!(decided("user:mallory", None), Err(unnamed.to_owned()));
    let alone = with_glass("50m", "\"user:alice\"", "").unwrap_or_else(|problems| panic!("{problems:#?}"));
    let mut facts = facts("user:alice", "db", "app-1");
    facts.role = "glass".parse().ok();
    let refused = decide(&alone, &facts);
    assert!(refused.missing.iter().any(|help| help.ends_with("names more approvers")), "{refused:?}");
    for stage in [Stage::Activate, Stage::Keep] {
        facts.stage = stage;
        assert!(matches!(decide(&policy, &facts).outcome, Outcome::Permitted(_)));
    }
}

#[test]
fn a_role_for_emergencies_is_short_and_simple() {
    let problems = |maximum: &str, more: &str| {
        let problems = with_glass(maximum, "\"user:bob\"", more).err().unwrap_or_default();
        problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(problems("4h", ""), "");
    assert!(problems("5h", "").contains("a role for emergencies has a `maximum_duration` of 4h at most"));
    let extended = problems("1h", "extension = { times = 1, by = \"5m\" }");
    assert!(extended.contains("a role for emergencies cannot be extended"));
    let later = problems("1h", "clock = \"activation\"");
    assert!(later.contains("the time of a role for emergencies begins at once"));
    assert!(problems("1h", "automatic = true").contains("is `automatic` and has steps"));
}

/// A Friday, at noon in Berlin.
fn facts(subject: &str, resource: &str, host: &str) -> Facts {
    let now = Timestamp::from_unix_ms(1_795_777_200_000).expect("in range");
    let mut facts = Facts::new(now, subject.parse().expect("valid"), resource.parse().expect("valid"));
    facts.hosts.insert(host.parse().expect("valid"));
    facts
}

/// One line for a decision.
fn shown(decision: &Decision) -> String {
    let by = decision.decided_by.join(" ");
    match &decision.outcome {
        Outcome::Permitted(terms) => {
            let steps: Vec<String> = terms
                .steps
                .iter()
                .map(|step| {
                    format!(
                        "{}{:?}",
                        step.count,
                        step.approvers.iter().map(|id| id.as_str()).collect::<Vec<_>>()
                    )
                })
                .collect();
            format!(
                "{} for {} of {} [{by}] {}",
                terms.role,
                duration_text(terms.duration),
                duration_text(terms.maximum_duration),
                steps.join(" ")
            )
        }
        Outcome::Denied { reasons } => {
            let reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
            format!("denied: {} | {}", reasons.join("; "), decision.missing.join("; "))
        }
    }
}

/// Whoever changes what is decided sees it here.
#[test]
fn decisions() {
    let mut table = String::new();
    let mut check = |what: &str, conditions: &str, change: &dyn Fn(&mut Facts)| {
        let mut facts = facts("user:alice", "db", "app-1");
        change(&mut facts);
        table += &format!("{what}\n    {}\n", shown(&decide(&policy(conditions), &facts)));
    };
    let hours = |hours: u64| Some(Duration::from_secs(hours * 3600));
    let oncall = "@id(\"incident\") @help(\"wait for an incident\") permit (principal, action, resource == Role::\"oncall\") when { context.incident_active };";
    let with_incident = |facts: &mut Facts| {
        Arc::make_mut(&mut facts.incidents)
            .insert("inc-1".parse().expect("valid"), facts.now.plus(Duration::from_secs(1)));
    };
    check("fewest approvals first", "", &|_| {});
    check("by name", "", &|facts| facts.role = "long".parse().ok());
    check("only one is long enough, and the limit is shorter than the role", "", &|facts| {
        facts.duration = hours(8)
    });
    check("longer than the limit, and than one role", "", &|facts| facts.duration = hours(9));
    check("only one is for all hosts", "", &|facts| facts.hosts.clear());
    check("not for that host", "", &|facts| {
        facts.hosts = ["lab".parse().expect("valid")].into();
        facts.role = "debug".parse().ok();
    });
    check("an inner group's member", "", &|facts| facts.subject = "user:carol".parse().expect("valid"));
    check("a group by the provider", "", &|facts| {
        facts.subject = "user:mallory".parse().expect("valid");
        facts.groups = ["engineers".parse().expect("valid"), "unknown".parse().expect("valid")].into();
    });
    check("nobody but the requester could approve", "", &|facts| {
        facts.subject = "user:carol".parse().expect("valid");
        facts.requester = "user:bob".parse().expect("valid");
    });
    check("a stranger", oncall.replace("principal,", "principal in Group::\"dba\",").as_str(), &|facts| {
        facts.subject = "user:mallory".parse().expect("valid")
    });
    check("no such resource", "", &|facts| facts.resource = "nowhere".parse().expect("valid"));
    check("no such host", "", &|facts| facts.hosts = ["nowhere".parse().expect("valid")].into());
    check("a condition that permits, met; nobody approves", oncall, &with_incident);
    check("met, and too long without approval", oncall, &|facts| {
        with_incident(facts);
        facts.duration = hours(2);
        facts.role = "oncall".parse().ok();
    });
    check("not met", oncall, &|facts| facts.role = "oncall".parse().ok());
    check("an incident that is over", oncall, &|facts| {
        facts.role = "oncall".parse().ok();
        Arc::make_mut(&mut facts.incidents).insert("inc-1".parse().expect("valid"), facts.now);
    });
    let forbid = "@id(\"mfa\") @help(\"sign in with a second factor\") forbid (principal, action, resource) unless { context.mfa };";
    check("forbid wins over a link", forbid, &|_| {});
    check("forbid wins over a permit", &format!("{oncall} {forbid}"), &with_incident);
    check("and does not", forbid, &|facts| facts.mfa = true);
    let broken = "@id(\"broken\") EFFECT (principal, action, resource) when { context.duration * 9223372036854775807 > 0 };";
    check("a forbid that cannot be evaluated denies", &broken.replace("EFFECT", "forbid"), &|_| {});
    check(
        "a permit that cannot be evaluated permits nothing",
        &broken.replace("EFFECT", "permit"),
        &|facts| facts.role = "oncall".parse().ok(),
    );
    let approve = "@id(\"short\") permit (principal, action == Action::\"approve\", resource == Role::\"debug\") when { context.duration <= 7200 };";
    check("approved by policy", approve, &|_| {});
    check("approved by policy, longer than that may be", approve, &|facts| facts.duration = hours(2));
    let no_approve = "@id(\"high\") forbid (principal, action == Action::\"approve\", resource) when { context.resource.hasTag(\"sensitivity\") && context.resource.getTag(\"sensitivity\") == \"high\" };";
    check("never by policy alone", &format!("{approve} {no_approve}"), &|_| {});
    check("an automatic role that may not be", &format!("{oncall} {no_approve}"), &|facts| {
        with_incident(facts);
        facts.role = "oncall".parse().ok();
    });
    let two = "@id(\"two\") forbid (principal, action == Action::\"activate\", resource) when { context.approvals < 2 };";
    check("asked for", two, &|_| {});
    check("not activated with one", two, &|facts| {
        facts.stage = Stage::Activate;
        facts.approvals = 1;
    });
    check("activated with two", two, &|facts| {
        facts.stage = Stage::Activate;
        facts.approvals = 2;
    });
    let office = "@id(\"office\") forbid (principal, action, resource) unless { context.windows.contains(Window::\"office\") };";
    check("in office hours", office, &|_| {});
    check("kept until their end", office, &|facts| {
        facts.stage = Stage::Keep;
        facts.now = facts.now.plus(Duration::from_secs(5 * 3600));
    });
    let rest = "@id(\"rest\") permit (principal is User, action in [Action::\"request\", Action::\"keep\"], resource == Role::\"oncall\") when {
        context has source && context.source.isInRange(ip(\"10.0.0.0/8\")) && context.channel == Channel::\"web\" && context has device && context.device.managed
        && context has login_age && context.login_age < 600 && !context.on_behalf && context.hosts.contains(Host::\"app-1\")
        && context.host_labels.contains(\"zone=a\") && !context.common_host_labels.contains(\"zone=a\") && context.resource == Resource::\"db\" };";
    let all = |facts: &mut Facts| {
        facts.source = "10.1.2.3".parse().ok();
        facts.channel = crate::facts::Channel::Web;
        facts.device = Some(crate::facts::Device { managed: true, encrypted: false });
        facts.login_age = Some(Duration::from_secs(599));
        facts.hosts.insert("app-2".parse().expect("valid"));
    };
    check("every other fact", rest, &all);
    check("one of them absent", rest, &|facts| {
        all(facts);
        facts.source = None;
        facts.role = "oncall".parse().ok();
    });
    insta::assert_snapshot!(table);
}

/// What Cedar is told is what policies were checked against.
#[test]
fn facts_keep_to_the_schema() {
    let policy = policy("");
    let mut least = facts("workload:ci/deploy", "cache", "lab");
    for all in [false, true] {
        if all {
            least = facts("user:alice", "db", "app-2");
            least.source = "::ffff:10.0.0.1".parse().ok();
            least.device = Some(crate::facts::Device { managed: true, encrypted: false });
            least.login_age = Some(Duration::MAX);
            least.hosts.clear();
            Arc::make_mut(&mut least.incidents)
                .insert("inc-1".parse().expect("valid"), least.now.plus(Duration::from_secs(1)));
        }
        let groups = policy.directory.groups_of(&least.subject, &least.groups);
        let question = Question::new(&policy, &least, &groups);
        assert_eq!(question.keeps_to_schema(&"debug".parse().expect("valid")), Ok(()));
    }
}

mod any {
    use proptest::prelude::*;

    use super::*;

    const CONDITIONS: &str = "@id(\"mfa\") forbid (principal, action, resource == Role::\"long\") unless { context.mfa };
        @id(\"incident\") permit (principal in Group::\"engineers\", action, resource == Role::\"oncall\") when { context.incident_active };
        @id(\"short\") permit (principal, action == Action::\"approve\", resource == Role::\"debug\") when { context.duration < 3000 };
        @id(\"broken\") forbid (principal, action, resource == Role::\"oncall\") when { context.duration + 9223372036854770000 > 0 && context.mfa };";

    /// One policy, and the same with everything forbidden.
    static POLICIES: std::sync::LazyLock<(Policy, Policy)> = std::sync::LazyLock::new(|| {
        let shut = format!("{CONDITIONS} @id(\"shut\") forbid (principal, action, resource);");
        (policy(CONDITIONS), policy(&shut))
    });

    fn any_facts() -> impl Strategy<Value = Facts> {
        let subject = proptest::sample::select(vec![
            "user:alice",
            "user:bob",
            "user:carol",
            "user:mallory",
            "workload:x",
        ]);
        let resource = proptest::sample::select(vec!["db", "cache", "nowhere"]);
        let host = proptest::sample::select(vec!["app-1", "app-2", "lab"]);
        let role = proptest::option::of(proptest::sample::select(vec!["debug", "long", "oncall", "none"]));
        let stage = proptest::sample::select(Stage::ALL.to_vec());
        let rest = (proptest::option::of(1u64..40_000), any::<bool>(), any::<bool>(), 0u32..3, 0u64..10_000);
        (subject, resource, host, role, stage, rest).prop_map(
            |(subject, resource, host, role, stage, rest)| {
                let (seconds, mfa, incident, approvals, minutes) = rest;
                let mut facts = facts(subject, resource, host);
                facts.now = facts.now.plus(Duration::from_secs(minutes * 60));
                facts.role = role.map(|role| role.parse().expect("valid"));
                facts.duration = seconds.map(Duration::from_secs);
                (facts.stage, facts.mfa, facts.approvals) = (stage, mfa, approvals);
                if incident {
                    Arc::make_mut(&mut facts.incidents)
                        .insert("inc-1".parse().expect("valid"), facts.now.plus(Duration::from_secs(1)));
                }
                facts
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn what_is_permitted_is_bounded(all in proptest::collection::vec(any_facts(), 20)) {
            let (policy, shut) = &*POLICIES;
            for facts in all {
                let decision = decide(policy, &facts);
                prop_assert_eq!(&decision, &decide(policy, &facts));
                let is_shut = matches!(decide(shut, &facts).outcome, Outcome::Denied { .. });
                prop_assert!(is_shut);
                match decision.outcome {
                    Outcome::Denied { reasons } => prop_assert!(!reasons.is_empty()),
                    Outcome::Permitted(terms) => {
                        let limits = &policy.limits;
                        let role = policy.role(&terms.role).expect("one of the policy's");
                        prop_assert!(!decision.decided_by.is_empty() && decision.missing.is_empty());
                        prop_assert!(terms.duration <= terms.maximum_duration);
                        prop_assert!(terms.maximum_duration <= limits.maximum_duration);
                        prop_assert!(role.maximum_duration.is_none_or(|maximum| terms.maximum_duration <= maximum));
                        prop_assert!(facts.duration.is_none_or(|asked| asked == terms.duration));
                        prop_assert!(facts.role.is_none_or(|named| named == terms.role));
                        prop_assert!(role.resources.contains(&facts.resource));
                        prop_assert!(role.hosts.as_ref().is_none_or(|hosts| facts.hosts.iter().all(|host| hosts.contains(host))));
                        prop_assert!(terms.idle.is_none_or(|idle| Some(idle) <= limits.maximum_idle && idle < terms.duration));
                        for step in &terms.steps {
                            prop_assert!(!step.approvers.contains(&facts.subject) && !step.approvers.contains(&facts.requester));
                        }
                        if facts.stage == Stage::Request && terms.steps.is_empty() {
                            prop_assert!(limits.automatic_maximum_duration.is_none_or(|limit| terms.duration <= limit));
                        }
                    }
                }
            }
        }
    }
}
