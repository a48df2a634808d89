//! How long a decision takes: `cargo run --release -p policy --example decide`.
//!
//! 100 roles for one resource each ten, and so many Cedar policies, each of which permits one role to one group; every role
//! also has a condition that everybody is asked. Whoever asks is in ten groups.

#![allow(clippy::print_stdout, clippy::expect_used, reason = "a measurement says what it measured")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use policy::decide::Outcome;
use policy::facts::Facts;
use policy::{Policy, decide, files};
use proto::types::Timestamp;

const ROLES: usize = 100;
const GROUPS: usize = 200;

fn policy(links: usize, as_conditions: bool) -> Policy {
    let list = |count: usize, entry: &dyn Fn(usize) -> String| (0..count).map(entry).collect::<String>();
    let groups_of = |role: usize| (0..links / ROLES).map(move |link| (role * 7 + link) % GROUPS);
    let roles = list(ROLES, &|role| {
        let to: Vec<String> = groups_of(role).map(|group| format!("\"group:g-{group}\"")).collect();
        let to = if as_conditions { String::new() } else { to.join(", ") };
        format!(
            "[[role]]\nname = \"r-{role}\"\nto = [{to}]\nresources = [\"db-{}\"]\nhosts = [\"*\"]\nautomatic = true\nmaximum_duration = \"1h\"\n",
            role / 10
        )
    });
    let permits = list(ROLES, &|role| {
        let each = groups_of(role).enumerate().map(|(at, group)| {
            format!(
                "@id(\"p-{role}-{at}\") permit (principal in Group::\"g-{group}\", action, resource == Role::\"r-{role}\") when {{ context.mfa }};\n"
            )
        });
        each.collect::<String>()
    });
    let forbids = list(ROLES, &|role| {
        format!(
            "@id(\"f-{role}\") forbid (principal, action, resource == Role::\"r-{role}\") unless {{ context.mfa && context.duration <= 7200 }};\n"
        )
    });
    let subjects = list(1000, &|at| format!("[[subject]]\nid = \"user:u-{at}\"\n"));
    let groups = list(GROUPS, &|group| {
        let members: Vec<String> =
            (0..5).map(|at| format!("\"user:u-{}\"", (group * 5 + at * 100) % 500)).collect();
        format!("[[group]]\nname = \"g-{group}\"\nmembers = [{}]\n", members.join(", "))
    });
    let mut tree = BTreeMap::from([
        ("limits.toml".to_owned(), "maximum_duration = \"8h\"\n".to_owned()),
        (
            "hosts.toml".to_owned(),
            list(20, &|at| format!("[[host]]\nname = \"h-{at}\"\nlabels = {{ env = \"prod\" }}\n")),
        ),
        (
            "resources.toml".to_owned(),
            list(10, &|at| {
                format!(
                    "[[resource]]\nname = \"db-{at}\"\nunix = [\"/run/db\"]\nlabels = {{ env = \"prod\" }}\n"
                )
            }),
        ),
        ("subjects.toml".to_owned(), subjects + &groups),
        ("roles.toml".to_owned(), roles),
        ("conditions/forbids.cedar".to_owned(), forbids),
    ]);
    if as_conditions {
        // As large as files may be.
        for (at, part) in permits.lines().collect::<Vec<_>>().chunks(4000).enumerate() {
            tree.insert(format!("conditions/p-{at}.cedar"), part.join("\n"));
        }
    }
    files::read(&tree).expect("a valid policy")
}

fn main() {
    let now = Timestamp::from_unix_ms(1_795_777_200_000).expect("in range");
    for (links, as_conditions) in [(1_000, false), (1_000, true), (9_900, false), (9_900, true)] {
        let began = Instant::now();
        let policy = policy(links, as_conditions);
        let read = began.elapsed();
        let facts: Vec<Facts> = (0..1000)
            .map(|at| {
                let subject = format!("user:u-{}", at * 5 % 500).parse().expect("valid");
                let mut facts = Facts::new(now, subject, format!("db-{}", at % 10).parse().expect("valid"));
                facts.hosts.insert("h-1".parse().expect("valid"));
                facts.mfa = true;
                facts
            })
            .collect();
        let mut times: Vec<Duration> = Vec::new();
        let mut permitted = 0;
        for facts in facts.iter().cycle().take(5000) {
            let began = Instant::now();
            let decision = black_box(decide(&policy, black_box(facts)));
            let elapsed = began.elapsed();
            // Who has nothing to do with a resource is told so at once: that is not what takes time.
            if matches!(decision.outcome, Outcome::Permitted(_)) {
                times.push(elapsed);
                permitted += 1;
            }
        }
        times.sort_unstable();
        let kind = if as_conditions { "Cedar policies" } else { "entries of `to`" };
        println!(
            "{ROLES} roles, {links} links as {kind}: median {:?}, 99 of 100 {:?}, {permitted} of 5000 permitted; read in {read:?}",
            times[times.len() / 2],
            times[times.len() * 99 / 100],
        );
    }
}
