//! Steps, votes and time limits, each by example; then what holds of whatever comes.

use proptest::prelude::*;

use super::*;

fn who(name: &str) -> SubjectId {
    format!("user:{name}").parse().expect("valid")
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_unix_ms(1_795_777_200_000 + second * 1000).expect("in range")
}

fn step(approvers: &[&str], count: u32, after: Option<(u64, Then)>) -> Step {
    let after = after.map(|(seconds, then)| (Duration::from_secs(seconds), then));
    Step { approvers: approvers.iter().map(|name| who(name)).collect(), hooks: BTreeSet::new(), count, after }
}

fn approval(steps: Vec<Step>) -> Approval {
    let extent = Extent {
        duration: Duration::from_secs(3600),
        resources: ["db".parse().expect("valid")].into(),
        hosts: ["app-1", "app-2"].map(|host| host.parse().expect("valid")).into(),
    };
    Approval {
        steps,
        extent,
        requester: who("rita"),
        subject: who("alice"),
        began: at(0),
        lapses: Some(at(1000)),
        answers: Vec::new(),
    }
}

fn yes(by: &str, second: i64) -> Vote {
    Vote { by: who(by), at: at(second), yes: Some(Narrowing::default()) }
}

fn no(by: &str, second: i64) -> Vote {
    Vote { yes: None, ..yes(by, second) }
}

fn shown(progress: &Progress) -> String {
    let state = match &progress.state {
        State::Waiting { step, more, of, escalated, until, .. } => {
            let of: Vec<&str> = of.iter().map(|id| id.as_str().trim_start_matches("user:")).collect();
            let until = until.map(|until| until.since(at(0)).as_secs());
            let escalated = if *escalated { ", escalated" } else { "" };
            format!("step {step}: {more} of {}{escalated}, until {until:?}", of.join(" "))
        }
        State::Approved(extent) => {
            let hosts: Vec<&str> = extent.hosts.iter().map(HostName::as_str).collect();
            format!("approved for {} s on {}", extent.duration.as_secs(), hosts.join(" "))
        }
        State::Denied(by) => format!("denied by {by:?}"),
        State::Lapsed => "lapsed".to_owned(),
    };
    let ignored: Vec<String> =
        progress.ignored.iter().map(|(index, why)| format!("; {index}: {why}")).collect();
    state + &ignored.concat()
}

#[track_caller]
fn check(steps: Vec<Step>, votes: &[Vote], now: i64, expected: &str) {
    assert_eq!(shown(&progress(&approval(steps), votes, at(now))), expected);
}

#[test]
fn steps_in_order() {
    let two = || vec![step(&["bob", "carol"], 1, None), step(&["dora", "erin"], 2, None)];
    check(vec![], &[], 0, "approved for 3600 s on app-1 app-2");
    check(two(), &[], 5, "step 0: 1 of bob carol, until Some(1000)");
    check(two(), &[yes("bob", 1)], 5, "step 1: 2 of dora erin, until Some(1000)");
    check(two(), &[yes("bob", 1), yes("dora", 2), yes("erin", 3)], 5, "approved for 3600 s on app-1 app-2");
    check(two(), &[yes("bob", 1), yes("dora", 6)], 5, "step 1: 2 of dora erin, until Some(1000)");
    let early = "is an approver of a later step: that one has not begun";
    check(two(), &[yes("dora", 1)], 5, &format!("step 0: 1 of bob carol, until Some(1000); 0: {early}"));
    check(two(), &[no("erin", 1)], 5, "denied by Some(SubjectId(\"user:erin\"))");
    check(two(), &[yes("bob", 1), no("bob", 2)], 5, "denied by Some(SubjectId(\"user:bob\"))");
    check(
        vec![step(&["bob"], 1, None)],
        &[yes("bob", 1), no("bob", 2)],
        5,
        "approved for 3600 s on app-1 app-2; 1: it is decided already",
    );
    check(two(), &[], 1000, "lapsed");
    check(two(), &[yes("bob", 1000)], 1000, "lapsed; 0: it is decided already");
}

#[test]
fn who_counts() {
    let all = || vec![step(&["rita", "alice", "bob", "carol"], 2, None)];
    let own = "nobody approves their own request, or one on their behalf";
    check(all(), &[yes("rita", 1)], 5, &format!("step 0: 2 of bob carol, until Some(1000); 0: {own}"));
    check(all(), &[yes("alice", 1)], 5, &format!("step 0: 2 of bob carol, until Some(1000); 0: {own}"));
    check(all(), &[no("alice", 1)], 5, &format!("step 0: 2 of bob carol, until Some(1000); 0: {own}"));
    let twice = "has said yes already, and counts once in all steps";
    check(
        all(),
        &[yes("bob", 1), yes("bob", 2)],
        5,
        &format!("step 0: 1 of carol, until Some(1000); 1: {twice}"),
    );
    check(
        all(),
        &[yes("zoe", 1)],
        5,
        "step 0: 2 of bob carol, until Some(1000); 0: is no approver of any step",
    );
    // Bob could be in both steps, and Carol in the first only: whoever comes first, both steps are complete.
    let both = || vec![step(&["bob", "carol"], 1, None), step(&["bob"], 1, None)];
    check(both(), &[yes("bob", 1), yes("carol", 2)], 5, "approved for 3600 s on app-1 app-2");
    check(both(), &[yes("carol", 1), yes("bob", 2)], 5, "approved for 3600 s on app-1 app-2");
    check(both(), &[yes("bob", 1)], 5, "step 1: 1 of , until Some(1000)");
}

#[test]
fn time_limits() {
    let escalates = || vec![step(&["bob"], 1, Some((60, Then::Escalate([who("carol")].into()))))];
    check(escalates(), &[], 59, "step 0: 1 of bob, until Some(60)");
    check(
        escalates(),
        &[yes("carol", 59)],
        59,
        "step 0: 1 of bob, until Some(60); 0: is no approver of any step",
    );
    check(escalates(), &[], 60, "step 0: 1 of bob carol, escalated, until Some(1000)");
    check(escalates(), &[yes("carol", 60)], 60, "approved for 3600 s on app-1 app-2");
    let skips =
        || vec![step(&["bob"], 1, Some((60, Then::Skip))), step(&["dora"], 1, Some((60, Then::Deny)))];
    check(skips(), &[], 60, "step 1: 1 of dora, until Some(120)");
    check(skips(), &[yes("dora", 119)], 500, "approved for 3600 s on app-1 app-2");
    check(skips(), &[], 120, "denied by None");
    check(skips(), &[yes("bob", 10)], 69, "step 1: 1 of dora, until Some(70)");
    check(vec![step(&["bob"], 1, Some((60, Then::Skip)))], &[], 60, "approved for 3600 s on app-1 app-2");
}

#[test]
fn narrowing() {
    let two = || vec![step(&["bob", "carol"], 2, None)];
    let with = |by: &str, seconds: u64, hosts: &[&str]| {
        let hosts = hosts.iter().map(|host| host.parse().expect("valid")).collect();
        let narrowing =
            Narrowing { duration: Some(Duration::from_secs(seconds)), resources: None, hosts: Some(hosts) };
        Vote { yes: Some(narrowing), ..yes(by, 1) }
    };
    check(
        two(),
        &[with("bob", 60, &["app-1"]), with("carol", 90, &["app-1", "app-2"])],
        5,
        "approved for 60 s on app-1",
    );
    check(two(), &[with("bob", 60, &["app-1"]), with("carol", 90, &["app-2"])], 5, "denied by None");
    let wider = "an approver may narrow, never widen";
    check(
        two(),
        &[with("bob", 3601, &["app-1"])],
        5,
        &format!("step 0: 2 of bob carol, until Some(1000); 0: {wider}"),
    );
    check(
        two(),
        &[with("bob", 60, &["app-3"])],
        5,
        &format!("step 0: 2 of bob carol, until Some(1000); 0: {wider}"),
    );
    let nothing = "an approval has to leave something: deny it in its place";
    check(
        two(),
        &[with("bob", 0, &["app-1"])],
        5,
        &format!("step 0: 2 of bob carol, until Some(1000); 0: {nothing}"),
    );
    check(
        two(),
        &[with("bob", 60, &[])],
        5,
        &format!("step 0: 2 of bob carol, until Some(1000); 0: {nothing}"),
    );
}

const NAMES: [&str; 8] = ["rita", "alice", "bob", "carol", "dora", "erin", "fred", "gina"];

fn people() -> impl Strategy<Value = BTreeSet<SubjectId>> {
    proptest::collection::btree_set(0..NAMES.len(), 1..=6)
        .prop_map(|picked| picked.into_iter().map(|at| who(NAMES[at])).collect())
}

fn then() -> impl Strategy<Value = Then> {
    prop_oneof![people().prop_map(Then::Escalate), Just(Then::Skip), Just(Then::Deny)]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let after = proptest::option::weighted(0.3, (1u64..200, then()));
    let step = (people(), 1u32..=3, after).prop_map(|(approvers, count, after)| Step {
        approvers,
        hooks: BTreeSet::new(),
        count,
        after: after.map(|(seconds, then)| (Duration::from_secs(seconds), then)),
    });
    proptest::collection::vec(step, 1..=4)
}

fn a_narrowing() -> impl Strategy<Value = Narrowing> {
    let hosts = proptest::option::of(proptest::sample::subsequence(vec!["app-1", "app-2", "app-3"], 0..=3));
    (proptest::option::of(0u64..4000), hosts).prop_map(|(seconds, hosts)| Narrowing {
        duration: seconds.map(Duration::from_secs),
        resources: None,
        hosts: hosts.map(|hosts| hosts.into_iter().map(|host| host.parse().expect("valid")).collect()),
    })
}

fn votes() -> impl Strategy<Value = Vec<Vote>> {
    let vote = (0..NAMES.len(), 0i64..1200, proptest::option::weighted(0.9, a_narrowing()))
        .prop_map(|(name, second, yes)| Vote { by: who(NAMES[name]), at: at(second), yes });
    proptest::collection::vec(vote, 0..=12)
}

proptest! {
    /// Whatever comes: an approval has enough distinct people, none of them of the request's own, and is never wider.
    #[test]
    fn what_is_approved_was_approved(steps in steps(), votes in votes(), now in 0i64..1300) {
        let approval = approval(steps);
        let Progress { state, ignored } = progress(&approval, &votes, at(now));
        let State::Approved(extent) = state else { return Ok(()) };
        prop_assert!(extent.duration <= approval.extent.duration && !extent.duration.is_zero());
        prop_assert!(extent.hosts.is_subset(&approval.extent.hosts) && !extent.hosts.is_empty());
        let counted: Vec<&Vote> = votes
            .iter()
            .enumerate()
            .filter(|(index, vote)| vote.at <= at(now) && !ignored.iter().any(|(at, _)| at == index))
            .map(|(_, vote)| vote)
            .collect();
        let distinct: BTreeSet<_> = counted.iter().map(|vote| &vote.by).collect();
        prop_assert_eq!(distinct.len(), counted.len());
        prop_assert!(!distinct.contains(&approval.requester) && !distinct.contains(&approval.subject));
        prop_assert!(counted.iter().all(|vote| vote.yes.is_some()));
        // Steps that could not be skipped need that many.
        let needed: u32 = approval
            .steps
            .iter()
            .filter(|step| !matches!(step.after, Some((_, Then::Skip))))
            .map(|step| step.count)
            .sum();
        prop_assert!(distinct.len() >= needed as usize);
        for vote in counted {
            let narrowing = vote.yes.clone().unwrap_or_default();
            prop_assert!(narrowing.duration.is_none_or(|duration| extent.duration <= duration));
            prop_assert!(narrowing.hosts.is_none_or(|hosts| extent.hosts.is_subset(&hosts)));
        }
    }

    /// The same people say the same at the same places in time, in another order: the same comes of it, where no limit of time is
    /// in between and everybody may vote from the start.
    #[test]
    fn order_within_a_step(count in 1u32..=5, approvers in people(), votes in votes(), keys in proptest::collection::vec(0u32..1000, 12)) {
        let approval = approval(vec![Step { approvers, hooks: BTreeSet::new(), count, after: None }]);
        // One vote each: a second one is ignored, and which is the second depends on the order. No more than are needed, as those
        // that come after the decision cannot count.
        let mut seen = BTreeSet::new();
        let mut votes: Vec<Vote> = votes.into_iter().filter(|vote| vote.at < at(1000) && seen.insert(vote.by.clone())).collect();
        let is_valid = |vote: &Vote| progress(&approval, std::slice::from_ref(vote), at(999)).ignored.is_empty();
        votes.retain(is_valid);
        votes.truncate(count as usize);
        let times: Vec<Timestamp> = votes.iter().map(|vote| vote.at).collect();
        let denies = votes.iter().any(|vote| vote.yes.is_none());
        let before = progress(&approval, &votes, at(999)).state;
        let mut shuffled: Vec<(u32, Vote)> = keys.into_iter().zip(votes).collect();
        shuffled.sort_by_key(|(key, _)| *key);
        let shuffled: Vec<Vote> = shuffled.into_iter().zip(times).map(|((_, vote), at)| Vote { at, ..vote }).collect();
        let after = progress(&approval, &shuffled, at(999)).state;
        match denies {
            true => prop_assert!(matches!((before, after), (State::Denied(Some(_)), State::Denied(Some(_))))),
            false => prop_assert_eq!(before, after),
        }
    }

    /// In which order votes lie in the list means nothing.
    #[test]
    fn order_in_the_list(steps in steps(), votes in votes(), now in 0i64..1300) {
        let approval = approval(steps);
        let mut distinct = BTreeSet::new();
        let votes: Vec<Vote> = votes.into_iter().filter(|vote| distinct.insert((vote.at, vote.by.clone()))).collect();
        let reversed: Vec<Vote> = votes.iter().rev().cloned().collect();
        prop_assert_eq!(progress(&approval, &votes, at(now)).state, progress(&approval, &reversed, at(now)).state);
    }

    /// What is decided stays decided: later moments and later votes change nothing.
    #[test]
    fn an_end_is_an_end(steps in steps(), votes in votes(), now in 0i64..1300, later in 0i64..500) {
        let approval = approval(steps);
        let before = progress(&approval, &votes, at(now)).state;
        prop_assume!(!matches!(before, State::Waiting { .. }));
        prop_assert_eq!(progress(&approval, &votes, at(now + later)).state, before);
    }
}

fn asking(approvers: &[&str], hooks: &[&str], count: u32) -> Step {
    let hooks = hooks.iter().map(|name| name.parse().expect("valid")).collect();
    Step { hooks, ..step(approvers, count, None) }
}

#[track_caller]
fn answered(steps: Vec<Step>, answers: &[(&str, i64, bool)], votes: &[Vote], now: i64, expected: &str) {
    let answer = |(by, second, yes): &(&str, i64, bool)| Answer {
        by: by.parse().expect("valid"),
        at: at(*second),
        yes: *yes,
    };
    let approval = Approval { answers: answers.iter().map(answer).collect(), ..approval(steps) };
    let progress = progress(&approval, votes, at(now));
    let shown = match &progress.state {
        State::Waiting { hooks, .. } => {
            let hooks: Vec<&str> = hooks.iter().map(HookName::as_str).collect();
            format!("{}; asks {}", shown(&progress), hooks.join(" "))
        }
        _ => shown(&progress),
    };
    assert_eq!(shown, expected);
}

#[test]
fn a_program_weighs_as_one() {
    const APPROVED: &str = "approved for 3600 s on app-1 app-2";
    let alone = || vec![asking(&[], &["risk"], 1)];
    answered(alone(), &[], &[], 1, "step 0: 1 of , until Some(1000); asks risk");
    answered(alone(), &[("risk", 5, true)], &[], 4, "step 0: 1 of , until Some(1000); asks risk");
    answered(alone(), &[("risk", 5, true)], &[], 5, APPROVED);
    answered(alone(), &[("risk", 5, false)], &[], 5, "denied by None");
    answered(alone(), &[("other", 5, false)], &[], 5, "step 0: 1 of , until Some(1000); asks risk");
    answered(alone(), &[], &[], 1000, "lapsed");
    answered(alone(), &[("risk", 1001, true)], &[], 1001, "lapsed");
    // A person beside it still has to say yes, and one person is not two.
    let both = || vec![asking(&["dora", "emil"], &["risk"], 2)];
    answered(both(), &[("risk", 5, true)], &[], 5, "step 0: 1 of dora emil, until Some(1000); asks ");
    answered(both(), &[("risk", 5, true)], &[yes("dora", 6)], 6, APPROVED);
    answered(both(), &[("risk", 6, true)], &[yes("dora", 5)], 6, APPROVED);
    answered(
        both(),
        &[("risk", 5, true), ("risk", 6, true)],
        &[],
        6,
        "step 0: 1 of dora emil, until Some(1000); asks ",
    );
    answered(both(), &[], &[yes("dora", 5), yes("emil", 6)], 6, APPROVED);
    answered(both(), &[("risk", 6, false)], &[yes("dora", 5)], 6, "denied by None");
    // What it says after it has said yes, or of a step that has not begun, counts for nothing.
    answered(both(), &[("risk", 5, true), ("risk", 6, false)], &[yes("dora", 7)], 7, APPROVED);
    let later = || vec![step(&["dora"], 1, None), asking(&[], &["risk"], 1)];
    answered(later(), &[("risk", 5, true)], &[], 5, "step 0: 1 of dora, until Some(1000); asks ");
    answered(later(), &[], &[yes("dora", 5)], 5, "step 1: 1 of , until Some(1000); asks risk");
    answered(later(), &[("risk", 6, true)], &[yes("dora", 5)], 6, APPROVED);
}
