//! The tables of `docs/lifecycle.md`, made from the rules. With `PORTCULLIS_WRITE_LIFECYCLE` set they are written there.

use std::fmt::Write as _;
use std::path::Path;

use control_plane::rules::calls::{Caller, Method, Reach};
use control_plane::rules::grant::{Answer, Life, Step as GrantStep, event_of};
use control_plane::rules::request::{Pending, Stand};
use policy::approval::{Step, Then};
use proto::types::{Credential, EndReason, EventKind, GrantState, HostEnd, SubjectRole, Vote};

use crate::requests::{LAPSES, request, step};
use crate::{at, grants, person};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/lifecycle.md");
const BEGIN: &str = "<!-- from the rules: ";
const END: &str = "<!-- end -->";

/// Whoever may come to a request, by name.
const PEOPLE: [(&str, &str); 6] = [
    ("requester", "who asked"),
    ("subject", "whom it is for"),
    ("ann", "an approver of the step that it waits for"),
    ("ben", "an approver of a later step"),
    ("dee", "an approver who has said yes already"),
    ("mallory", "anybody else"),
];

fn requests() -> String {
    let mut table =
        "| while `pending` | who may | then | on record as |\n| --- | --- | --- | --- |\n".to_owned();
    let vote = |name: &str, yes: bool| Vote {
        by: person(name),
        at: at(1),
        yes,
        comment: String::new(),
        duration: None,
        hosts: Vec::new(),
    };
    let mut asked = request();
    asked.votes.push(Vote { at: at(0), ..vote("dee", true) });
    let first = || step(&["dee"], 1, None);
    let last = vec![first(), step(&["ann"], 1, None)];
    let not_last = vec![first(), step(&["ann"], 1, None), step(&["ben"], 1, None)];
    for (what, steps, yes) in [
        ("yes, and somebody else has to say it, too", &not_last, true),
        ("yes, the last one", &last, true),
        ("no", &not_last, false),
    ] {
        let say = |name: &str| {
            Pending::of(&asked, steps.clone()).and_then(|pending| pending.vote(&vote(name, yes)))
        };
        let stands: Vec<(&str, Stand)> =
            PEOPLE.iter().filter_map(|(name, who)| Some((*who, say(name).ok()?))).collect();
        row(&mut table, what, &stands);
    }
    let withdraw =
        |name: &str| Pending::of(&asked, last.clone()).and_then(|pending| pending.withdraw(&person(name)));
    let withdrawn: Vec<(&str, Stand)> =
        PEOPLE.iter().filter_map(|(name, who)| Some((*who, Stand::Decided(withdraw(name).ok()?)))).collect();
    row(&mut table, "withdraw", &withdrawn);
    let limit = |then: Then| vec![step(&["ann"], 1, Some((2, then)))];
    let times: [(&str, Vec<Step>, u64); 6] = [
        ("nobody has to approve it", Vec::new(), 0),
        ("a step's time is over: `escalate`", limit(Then::Escalate([person("ben")].into())), 2),
        ("a step's time is over: `skip`, and others follow", [limit(Then::Skip), last.clone()].concat(), 2),
        ("a step's time is over: `skip`, the last one", limit(Then::Skip), 2),
        ("a step's time is over: `deny`", limit(Then::Deny), 2),
        ("`request_lifetime` is over", last.clone(), LAPSES),
    ];
    for (what, steps, minute) in times {
        let stand = Pending::of(&request(), steps).expect("pending").wait(at(minute));
        row(&mut table, what, &[("`system`", stand)]);
    }
    table
}

/// All who may do it do the same by it.
fn row(table: &mut String, what: &str, stands: &[(&str, Stand)]) {
    let who: Vec<&str> = stands.iter().map(|(who, _)| *who).collect();
    let (_, stand) = stands.first().expect("somebody may");
    let is_by_time = who == ["`system`"];
    let state = |stand: &Stand| match stand {
        Stand::Waiting(_) => "pending",
        Stand::Decided(decided) => decided.outcome.state().as_str(),
    };
    assert!(stands.iter().all(|(_, other)| state(other) == state(stand)), "{what}: {stands:?}");
    let event = match stand {
        // Nobody has said anything.
        Stand::Waiting(_) if is_by_time => "–".to_owned(),
        stand => format!("`{}`", stand.event()),
    };
    writeln!(table, "| {what} | {} | `{}` | {event} |", who.join("; "), state(stand))
        .expect("a string takes all");
}

fn grants() -> String {
    let mut table =
        "| from | what happens | who may | then | on record as |\n| --- | --- | --- | --- | --- |\n"
            .to_owned();
    let hosts = grants::hosts();
    let hear = |life: Life, answer: &Answer| {
        hosts.iter().fold(life, |life, host| {
            life.step(GrantStep::Heard(host.clone(), answer.clone()), at(1))
                .expect("hearing is never refused")
                .life
        })
    };
    let new = grants::new();
    let active = hear(new.clone(), &Answer::Holds);
    let ending = active.clone().step(GrantStep::End(EndReason::Revoked), at(1)).expect("it is live").life;
    let all =
        |answer: Answer| hosts.iter().map(|host| GrantStep::Heard(host.clone(), answer.clone())).collect();
    let one = |answer: Answer| vec![GrantStep::Heard(hosts[0].clone(), answer)];
    let end = |reason| vec![GrantStep::End(reason)];
    let (revokers, releasers) = (who_may(Method::RevokeGrant), who_may(Method::ReleaseGrant));
    let happenings: Vec<(&str, String, Vec<GrantStep>, u64)> = vec![
        ("activate", who_may(Method::ActivateGrant), vec![GrantStep::Begin(at(grants::DEADLINE))], 1),
        ("its moment comes", "`system`".into(), vec![GrantStep::Begin(at(grants::DEADLINE))], 1),
        ("the kernel of every host holds it", "its hosts".into(), all(Answer::Holds), 1),
        ("a kernel cannot take it", "a host of it".into(), one(Answer::Refuses("full".into())), 1),
        ("a host has booted", "a host of it".into(), one(Answer::Blank), 1),
        ("it was idle on its last host", "its hosts".into(), all(Answer::Ends(HostEnd::Idle)), 1),
        ("its cgroup is empty on its last host", "its hosts".into(), all(Answer::Ends(HostEnd::TaskExit)), 1),
        ("revoke", revokers, end(EndReason::Revoked), 1),
        ("release", releasers, end(EndReason::Released), 1),
        (
            "the policy does not permit it any more",
            "who applies one; `system`".into(),
            end(EndReason::PolicyChanged),
            1,
        ),
        ("its resource is frozen", who_may(Method::Freeze), end(EndReason::Frozen), 1),
        ("its subject is disabled", who_may(Method::DisableSubject), end(EndReason::IdentityDisabled), 1),
        (
            "extended, by the last yes to that",
            "as of a request".into(),
            vec![GrantStep::Extend(at(grants::EXTENDED))],
            1,
        ),
        ("every host has let go of it", "its hosts".into(), all(Answer::Lacks), 1),
        ("the deadline passes", "`system`".into(), vec![GrantStep::Wait], grants::DEADLINE),
    ];
    let scheduled = grants::scheduled();
    for life in [&scheduled, &new, &active, &ending] {
        for (what, who, steps, minute) in &happenings {
            let mut entered = Vec::new();
            let mut after = Some(life.clone());
            for step in steps {
                let stepped = after.take().and_then(|life| life.step(step.clone(), at(*minute)).ok());
                after = stepped.map(|stepped| {
                    entered.extend(stepped.entered);
                    stepped.life
                });
            }
            // What is refused, and what changes nothing, is no transition.
            let Some(after) = after else { continue };
            let is_extended = entered.is_empty() && after.body().expires > life.body().expires;
            let Some(last) = entered.last().copied().or(is_extended.then(|| after.state())) else { continue };
            let mut events: Vec<String> =
                entered.iter().map(|state| format!("`{}`", event_of(*state))).collect();
            if is_extended {
                events.push(format!("`{}`", EventKind::GrantExtended));
            }
            let from = life.state().as_str();
            writeln!(table, "| `{from}` | {what} | {who} | `{last}` | {} |", events.join(", "))
                .expect("a string takes all");
        }
    }
    let issued = event_of(GrantState::Activating);
    assert_eq!(issued, EventKind::GrantIssued);
    table
}

/// Who may call a method, by the table of calls.
fn who_may(method: Method) -> String {
    let reach = |role: SubjectRole| {
        method.reach(&Caller::Subject { id: person("x"), role, credential: Credential::Token })
    };
    let with = |wanted: Reach| {
        let roles = SubjectRole::ALL.into_iter().filter(|role| reach(*role) == wanted);
        roles.map(|role| role.as_str()).collect::<Vec<_>>().join(", ")
    };
    let (all, own) = (with(Reach::All), with(Reach::Own));
    let own = (!own.is_empty()).then(|| format!("{own}: what they asked for, or is for them"));
    let all = (!all.is_empty()).then(|| format!("{all}: everybody's"));
    all.into_iter().chain(own).collect::<Vec<_>>().join("; ")
}

/// The page, with this table in the place of the one of that name.
fn with_table(page: &str, name: &str, table: &str) -> String {
    let begin = format!("{BEGIN}{name} -->\n");
    let (before, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("{PAGE} has no `{begin}`"));
    let (_, after) = rest.split_once(END).unwrap_or_else(|| panic!("{PAGE}: `{begin}` has no end"));
    format!("{before}{begin}\n{table}\n{END}{after}")
}

#[test]
fn the_page_says_what_the_rules_do() {
    let page = std::fs::read_to_string(Path::new(PAGE)).expect("the page is there");
    let right = with_table(&with_table(&page, "requests", &requests()), "grants", &grants());
    if std::env::var_os("PORTCULLIS_WRITE_LIFECYCLE").is_some() {
        std::fs::write(PAGE, &right).expect("the page can be written");
        return;
    }
    assert!(
        page == right,
        "docs/lifecycle.md is not what the rules do; write it with \
         `PORTCULLIS_WRITE_LIFECYCLE=1 cargo test -p control-plane --test lifecycle`, and read what changed. It should be:\n{right}"
    );
}
