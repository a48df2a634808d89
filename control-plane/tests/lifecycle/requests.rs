//! Every life of a request in some small worlds: all votes that people can cast, in every order, at every moment that matters.

use std::collections::BTreeSet;
use std::time::Duration;

use control_plane::rules::Refusal;
use control_plane::rules::request::{Decided, Outcome, Pending, Stand};
use policy::approval::{Step, Then};
use proto::types::{HostName, Request, RequestState, SubjectId, Timestamp, Vote};

use crate::{at, person};

/// When a request lapses, in minutes.
pub(crate) const LAPSES: u64 = 4;
const DURATION: Duration = Duration::from_secs(600);

fn hosts() -> Vec<HostName> {
    ["db-7", "db-8"].map(|name| name.parse().expect("valid")).into()
}

pub(crate) fn request() -> Request {
    Request {
        id: "01940000-0000-7000-8000-000000000001".parse().expect("valid"),
        state: RequestState::Pending,
        resource: "db".parse().expect("valid"),
        subject: person("subject"),
        hosts: hosts(),
        duration: DURATION,
        reason: "why not".parse().expect("valid"),
        requester: person("requester"),
        created: at(0),
        decided: None,
        comment: String::new(),
        grant: None,
        idle: None,
        while_running: None,
        run: None,
        action: None,
        judged: None,
        lapses: Some(at(LAPSES)),
        votes: Vec::new(),
        answers: Vec::new(),
        waiting: None,
        extends: None,
    }
}

pub(crate) fn step(approvers: &[&str], count: u32, after: Option<(u64, Then)>) -> Step {
    let approvers = approvers.iter().map(|name| person(name)).collect();
    Step {
        approvers,
        hooks: Default::default(),
        count,
        after: after.map(|(minute, then)| (Duration::from_secs(60 * minute), then)),
    }
}

fn escalate(to: &[&str]) -> Then {
    Then::Escalate(to.iter().map(|name| person(name)).collect())
}

/// Some kinds of approval. Who asks and whom it is for are named as approvers, too: they must not count.
fn worlds() -> Vec<Vec<Step>> {
    let both = ["ann", "ben", "requester", "subject"];
    vec![
        vec![],
        vec![step(&["ann"], 1, None)],
        vec![step(&both, 2, None)],
        vec![step(&["ann"], 1, None), step(&both, 1, None)],
        vec![step(&both, 1, None), step(&["ann"], 1, None)],
        vec![step(&["ann"], 1, Some((1, Then::Skip))), step(&["ben"], 1, None)],
        vec![step(&["ann"], 1, Some((1, Then::Skip)))],
        vec![step(&["ann"], 1, Some((1, Then::Deny)))],
        vec![step(&["ann"], 1, Some((1, escalate(&["ben", "subject"]))))],
        vec![
            step(&["ann"], 1, Some((1, escalate(&["cyd"])))),
            step(&["ann", "ben"], 1, Some((2, Then::Deny))),
        ],
        vec![step(&["ann", "ben", "cyd", "dee"], 3, None)],
        vec![step(&["ann", "ben"], 2, Some((2, Then::Skip))), step(&["ben", "cyd", "dee"], 2, None)],
        vec![
            step(&["ann", "ben"], 1, None),
            step(&["ben", "cyd"], 1, None),
            step(&["ann", "cyd", "dee"], 1, None),
        ],
    ]
}

/// What somebody can say.
fn sayings(at: Timestamp) -> Vec<Vote> {
    let vote = |name: &str, yes: bool, duration: Option<u64>, hosts: &[&str]| Vote {
        by: person(name),
        at,
        yes,
        comment: String::new(),
        duration: duration.map(Duration::from_secs),
        hosts: hosts.iter().map(|name| name.parse().expect("valid")).collect(),
    };
    let mut all = Vec::new();
    for name in ["ann", "ben", "cyd", "dee", "requester", "subject", "mallory"] {
        all.push(vote(name, true, None, &[]));
        all.push(vote(name, false, None, &[]));
    }
    all.push(vote("ann", true, Some(60), &["db-7"]));
    all.push(vote("ben", true, None, &["db-8"]));
    all.push(vote("ben", true, Some(601), &[]));
    all.push(vote("ben", true, None, &["db-9"]));
    let workload = Vote { by: "workload:ann".parse().expect("valid"), ..vote("ann", true, None, &[]) };
    all.push(workload);
    all
}

/// Whether these people are enough for all steps, however they are counted: each at most once. `skipped`: steps that need nobody.
fn are_enough(steps: &[Step], skipped: &[bool], people: &[SubjectId]) -> bool {
    let Some(at) = steps.iter().zip(skipped).position(|(step, skipped)| step.count > 0 && !skipped) else {
        return true;
    };
    let mut rest = steps.to_vec();
    rest[at].count -= 1;
    let fits = |who: &SubjectId| {
        let more = match &steps[at].after {
            Some((_, Then::Escalate(more))) => more.contains(who),
            _ => false,
        };
        steps[at].approvers.contains(who) || more
    };
    (0..people.len()).filter(|index| fits(&people[*index])).any(|index| {
        let mut others = people.to_vec();
        others.remove(index);
        are_enough(&rest, skipped, &others)
    })
}

/// What must be true of a decision that comes of these votes.
fn check_decision(steps: &[Step], votes: &[Vote], now: Timestamp, decided: &Decided) {
    let yes: Vec<SubjectId> = votes.iter().filter(|vote| vote.yes).map(|vote| vote.by.clone()).collect();
    let not_theirs: BTreeSet<SubjectId> = [person("requester"), person("subject")].into();
    match &decided.outcome {
        Outcome::Approved(extent) => {
            assert!(votes.iter().all(|vote| vote.yes), "approved, and somebody said no: {votes:?}");
            assert!(yes.iter().all(|who| !not_theirs.contains(who)), "counted for themselves: {votes:?}");
            // Time may have let a step be skipped.
            let skipped = |step: &Step| matches!(step.after, Some((_, Then::Skip))) && now >= at(1);
            let skipped: Vec<bool> = steps.iter().map(skipped).collect();
            assert!(are_enough(steps, &skipped, &yes), "too few for {steps:?}: {votes:?}");
            assert!(extent.duration <= DURATION && !extent.duration.is_zero());
            assert!(!extent.hosts.is_empty() && extent.hosts.iter().all(|host| hosts().contains(host)));
            for vote in votes {
                assert!(
                    vote.duration.is_none_or(|duration| extent.duration <= duration),
                    "wider than {vote:?}"
                );
                assert!(vote.hosts.is_empty() || extent.hosts.iter().all(|host| vote.hosts.contains(host)));
            }
        }
        Outcome::Denied => {
            let no = votes.iter().any(|vote| !vote.yes);
            let has_limit = steps.iter().any(|step| matches!(step.after, Some((_, Then::Deny))));
            let nothing_left = votes.iter().filter(|vote| !vote.hosts.is_empty()).count() > 1;
            assert!(no || has_limit && now >= at(1) || nothing_left, "denied by nothing: {votes:?}");
            assert_eq!(decided.by.is_some(), no, "{votes:?}");
        }
        Outcome::Lapsed => assert!(now >= at(LAPSES), "lapsed early"),
        Outcome::Withdrawn => panic!("nobody withdrew"),
    }
}

/// Goes on from a pending request at `minute`, by everything that can happen; counts the histories.
fn walk(steps: &[Step], request: &Request, minute: u64, histories: &mut u64) {
    *histories += 1;
    let pending = || Pending::of(request, steps.to_vec()).expect("pending");
    let now = at(minute);
    // Time alone: what has been decided stays decided, at every later moment, and by the same.
    match pending().wait(now) {
        Stand::Decided(decided) => {
            check_decision(steps, &request.votes, now, &decided);
            for later in minute..=LAPSES + 1 {
                assert_eq!(
                    pending().wait(at(later)),
                    Stand::Decided(decided.clone()),
                    "{request:?} at {later}"
                );
            }
            return;
        }
        Stand::Waiting(until) => {
            assert!(minute < LAPSES, "stuck: {request:?}");
            let until = until.expect("a request that lapses waits for a moment");
            assert!(now < until && until <= at(LAPSES), "{request:?} waits until {until}");
            let waiting = pending().waiting(now).expect("waits");
            assert!(waiting.more > 0 && waiting.step <= waiting.steps);
            assert!(
                !waiting.approvers.iter().any(|who| [person("requester"), person("subject")].contains(who))
            );
        }
    }
    for vote in sayings(now) {
        match pending().vote(&vote) {
            Err(refusal) => {
                let is_of_votes =
                    matches!(refusal, Refusal::VoteNotCounted { .. } | Refusal::OwnRequest { .. });
                assert!(is_of_votes, "{refusal}");
            }
            Ok(Stand::Decided(decided)) => {
                let votes = [request.votes.clone(), vec![vote.clone()]].concat();
                check_decision(steps, &votes, now, &decided);
                // As it is read again, with the vote among the others, it is the same.
                let read = Request { votes, ..request.clone() };
                let again = Pending::of(&read, steps.to_vec()).expect("pending").wait(now);
                let Stand::Decided(again) = again else { panic!("{read:?} is not decided any more") };
                assert_eq!(again.outcome, decided.outcome);
                // And then nothing more can be said.
                let closed = Request {
                    state: decided.outcome.state(),
                    decided: Some((decided.by.clone(), now)),
                    ..read
                };
                let refused = Pending::of(&closed, steps.to_vec()).expect_err("decided");
                assert!(matches!(refused, Refusal::AlreadyDecided { .. }));
            }
            Ok(Stand::Waiting(_)) => {
                assert!(vote.yes, "a no that counts decides");
                assert!(!request.votes.iter().any(|before| before.by == vote.by), "counted twice: {vote:?}");
                let votes = [request.votes.clone(), vec![vote]].concat();
                walk(steps, &Request { votes, ..request.clone() }, minute, histories);
            }
        }
    }
    walk(steps, request, minute + 1, histories);
}

#[test]
fn every_life_of_a_request() {
    let mut histories = 0;
    for steps in worlds() {
        walk(&steps, &request(), 0, &mut histories);
    }
    assert!(histories > 2_000, "only {histories} histories");
}

/// Both ways of taking it back, in every world, at every moment before it is over; and nobody else's.
#[test]
fn who_asked_takes_it_back() {
    for steps in worlds() {
        for name in ["requester", "subject", "ann", "mallory"] {
            let request = request();
            let pending = Pending::of(&request, steps.clone()).expect("pending");
            let may = ["requester", "subject"].contains(&name);
            match pending.withdraw(&person(name)) {
                Ok(decided) => assert!(may && decided.outcome == Outcome::Withdrawn),
                Err(refusal) => assert!(!may && matches!(refusal, Refusal::NotRequester { .. })),
            }
        }
    }
}
