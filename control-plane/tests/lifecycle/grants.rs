//! Every life of a grant on two hosts.

use std::collections::{BTreeMap, HashSet, VecDeque};

use control_plane::rules::grant::{Activating, Answer, Body, Holding, Life, Scheduled, Step};
use proto::types::{EndReason, GrantState, HostEnd, HostName, Timestamp};

use crate::at;

/// When the deadline is, in minutes.
pub(crate) const DEADLINE: u64 = 10;
/// When one that has not begun is over.
pub(crate) const LAPSES: u64 = 5;
/// When it is once the grant was extended.
pub(crate) const EXTENDED: u64 = 20;

pub(crate) fn hosts() -> Vec<HostName> {
    ["db-7", "db-8"].map(|name| name.parse().expect("valid")).into()
}

pub(crate) fn new() -> Life {
    Life::Activating(Activating::new(at(DEADLINE), hosts()))
}

/// One whose time begins later: it lapses before it could have been over.
pub(crate) fn scheduled() -> Life {
    Life::Scheduled(Scheduled::new(at(LAPSES), hosts()))
}

/// Everything that can happen.
pub(crate) fn steps() -> Vec<Step> {
    let answers = [
        Answer::Holds,
        Answer::Refuses("full".to_owned()),
        Answer::Lacks,
        Answer::Blank,
        Answer::Ends(HostEnd::Idle),
        Answer::Ends(HostEnd::TaskExit),
    ];
    let heard = |host: HostName| answers.clone().map(|answer| Step::Heard(host.clone(), answer));
    let heard = hosts().into_iter().flat_map(heard);
    let extend = [Step::Extend(at(EXTENDED)), Step::Extend(at(DEADLINE - 1)), Step::Begin(at(DEADLINE))];
    heard.chain(EndReason::ALL.map(Step::End)).chain(extend).chain([Step::Wait]).collect()
}

/// A life as something that can be looked up.
type Key = (GrantState, Timestamp, Vec<(HostName, u8)>);

fn key(life: &Life) -> Key {
    let holding = |holding: &Holding| match holding {
        Holding::Unknown => 0,
        Holding::Held => 1,
        Holding::Refused(_) => 2,
        Holding::Free(_) => 3,
    };
    let hosts = life.body().hosts.iter().map(|(host, held)| (host.clone(), holding(held)));
    (life.state(), life.body().expires, hosts.collect())
}

fn rank(state: GrantState) -> u8 {
    match state {
        GrantState::Scheduled => 0,
        GrantState::Activating => 1,
        GrantState::Active => 2,
        GrantState::Ending(_) => 3,
        GrantState::Ended(_) => 4,
    }
}

/// What must be true of a life by itself, at `minute`.
fn check(life: &Life, minute: u64) {
    let Body { hosts, expires } = life.body();
    assert!(
        [at(LAPSES), at(DEADLINE), at(EXTENDED)].contains(expires),
        "{life:?}: a deadline that nobody has given"
    );
    let may_be_held = hosts.values().any(Holding::may_hold);
    match life.state() {
        GrantState::Scheduled => assert!(!may_be_held, "{life:?}: not begun, and a kernel may hold it"),
        GrantState::Ended(_) => assert!(!may_be_held, "{life:?}: ended, and a kernel may hold it"),
        GrantState::Activating | GrantState::Active | GrantState::Ending(_) => {
            assert!(may_be_held, "{life:?}: no kernel may hold it, and it is not ended");
        }
    }
    if at(minute) >= *expires {
        assert_eq!(rank(life.state()), 4, "{life:?}: alive after its deadline");
    }
}

#[test]
fn every_life_of_a_grant() {
    let mut seen: HashSet<Key> = HashSet::new();
    let mut open = VecDeque::from([scheduled(), new()]);
    let mut transitions: BTreeMap<(String, String), usize> = BTreeMap::new();
    while let Some(life) = open.pop_front() {
        if !seen.insert(key(&life)) {
            continue;
        }
        for minute in [0, LAPSES, DEADLINE - 1, DEADLINE, EXTENDED] {
            for step in steps() {
                let before = life.state();
                let Ok(stepped) = life.clone().step(step.clone(), at(minute)) else {
                    // Only ending and extending what has been ended is refused, beginning what has begun, and extending what has not.
                    let is_over = rank(before) >= 3 || at(minute) >= life.body().expires;
                    assert!(
                        match step {
                            Step::End(_) => is_over,
                            Step::Extend(_) => is_over || before == GrantState::Scheduled,
                            Step::Begin(_) => is_over || before != GrantState::Scheduled,
                            Step::Heard(..) | Step::Wait => false,
                        },
                        "{life:?} {step:?}"
                    );
                    continue;
                };
                let after = stepped.life;
                check(&after, minute);
                assert!(after.body().expires >= life.body().expires, "{life:?} {step:?}: shorter");
                let is_extended = after.body().expires > life.body().expires;
                let extends = step == Step::Extend(at(EXTENDED)) && [1, 2].contains(&rank(before));
                let begins = step == Step::Begin(at(DEADLINE)) && before == GrantState::Scheduled;
                assert!(!is_extended || extends || begins, "{life:?} {step:?}");
                assert!(rank(after.state()) >= rank(before), "{life:?} {step:?}: back");
                if let (Some(was), Some(is)) = (before.end_reason(), after.state().end_reason()) {
                    assert_eq!(was, is, "{life:?} {step:?}: the reason changed");
                }
                // Each state that is entered is told, in order, and the last one is where it stands.
                let told = stepped.entered.last().copied().unwrap_or(before);
                assert_eq!(told, after.state(), "{life:?} {step:?}");
                let mut ranks: Vec<u8> = std::iter::once(before).chain(stepped.entered).map(rank).collect();
                let in_order = ranks.clone();
                ranks.sort_unstable();
                ranks.dedup();
                assert_eq!(ranks, in_order, "{life:?} {step:?}: told twice, or backwards");
                if (before, after.state()) == (GrantState::Activating, GrantState::Active) {
                    let holdings = || after.body().hosts.values();
                    assert!(
                        holdings().all(|one| matches!(one, Holding::Held | Holding::Free(_))),
                        "{after:?}"
                    );
                    assert!(holdings().any(|one| *one == Holding::Held), "{after:?}");
                }
                let names = (before.as_str().to_owned(), after.state().as_str().to_owned());
                *transitions.entry(names).or_default() += 1;
                open.push_back(after);
            }
        }
        // Nothing is stuck: the deadline ends it, whoever is silent.
        let end = life.step(Step::Wait, at(EXTENDED)).expect("waiting is never refused");
        assert_eq!(rank(end.life.state()), 4);
    }
    // All of them can be reached, by every way that there is.
    let ways: Vec<String> = transitions.keys().map(|(from, to)| format!("{from}>{to}")).collect();
    assert_eq!(
        ways,
        [
            "activating>activating",
            "activating>active",
            "activating>ended",
            "activating>ending",
            "active>active",
            "active>ended",
            "active>ending",
            "ended>ended",
            "ending>ended",
            "ending>ending",
            "scheduled>activating",
            "scheduled>ended",
            "scheduled>scheduled",
        ]
    );
    assert!(seen.len() > 100, "only {} lives", seen.len());
}
