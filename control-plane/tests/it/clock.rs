//! Where the clock begins when a control plane starts, and what the record tells of it.

use std::time::Duration;

use control_plane::clock;
use control_plane::rules::steady::{Anchor, Start, Step};
use control_plane::store::{RequestFilter, Store, StoreError, Whose};
use proto::types::{AuditEvent, EndReason, EventKind, GrantState, RequestState, SubjectRole, Timestamp};

use super::KIND;
use super::policy::{apply, files};
use super::schedule::roles;
use super::store::{entry, expected, opened, proven};
use super::world::{FakeAgent, World, until};
use crate::database::Kind;

const BEGIN_MS: i64 = 1_795_000_000_000;
const HOUR: i64 = 60 * 60 * 1000;
const DAY: i64 = 24 * HOUR;

fn at(ms: i64) -> Timestamp {
    Timestamp::from_unix_ms(BEGIN_MS + ms).expect("in range")
}

fn boot(ms: i64) -> Duration {
    Duration::from_millis(ms.unsigned_abs())
}

fn anchor(boot_id: &str, boot_ms: i64, steady_ms: i64, wall_ms: i64) -> Anchor {
    Anchor { boot_id: boot_id.to_owned(), boot: boot(boot_ms), steady: at(steady_ms), wall: at(wall_ms) }
}

/// It begins there, and all goes on.
fn goes_on(at_ms: i64, known_ms: i64) -> Start {
    Start { at: at(at_ms), known_ms, lost_ms: None }
}

async fn steps(store: &Store) -> Vec<AuditEvent> {
    let events = store.events(0, 1000).await.expect("reads");
    events.into_iter().filter(|event| event.kind == EventKind::ClockStepped).collect()
}

#[tokio::test]
async fn it_goes_on_from_what_was_kept() {
    let (database, store) = opened().await;
    let begin = async |boot_id, boot_ms, wall_ms| {
        store.begin_clock(boot_id, boot(boot_ms), at(wall_ms)).await.expect("begins")
    };
    // Nothing is known yet: the wall clock is right.
    assert_eq!(begin("a", HOUR, 0).await, goes_on(0, 0));
    // A crash loses nothing but what was noticed since.
    assert_eq!(begin("a", 2 * HOUR, 2 * HOUR).await, goes_on(HOUR, 0));
    // The same boot, from what was kept last; and what is known of the wall clock.
    store.keep_anchor(&anchor("a", 3 * HOUR, 2 * HOUR, 3 * HOUR)).await.expect("kept");
    assert_eq!(begin("a", 5 * HOUR, 5 * HOUR).await, goes_on(4 * HOUR, HOUR));
    assert_eq!(begin("a", 5 * HOUR, 4 * HOUR).await, goes_on(4 * HOUR, HOUR), "it is known until it is told");
    // Another boot: by the wall clock, but never before what was seen.
    assert_eq!(begin("b", 5, 6 * HOUR).await, goes_on(6 * HOUR, 0));
    assert_eq!(begin("c", 5, 5 * HOUR).await, goes_on(6 * HOUR, 0));
    // Machines each have theirs.
    assert_eq!(begin("a", 6 * HOUR, 5 * HOUR).await, goes_on(5 * HOUR, HOUR));
    assert_eq!(steps(&store).await, []);
    let mut sql = database.raw().await;
    assert_eq!(sql.number("SELECT count(*) FROM clock_anchors").await, 3);
    // What is old and not the newest is forgotten.
    assert_eq!(begin("d", 5, 31 * DAY).await, goes_on(31 * DAY, 0));
    assert_eq!(sql.number("SELECT count(*) FROM clock_anchors").await, 1);
    assert_eq!(begin("a", 31 * DAY, 31 * DAY).await, goes_on(31 * DAY, 0));
    store.close().await;
}

#[tokio::test]
async fn a_step_is_on_record() {
    let (_database, store) = opened().await;
    store.begin_clock("a", boot(HOUR), at(0)).await.expect("begins");
    let (step, kept) = (Step { by_ms: HOUR }, anchor("a", 2 * HOUR, HOUR, 2 * HOUR));
    store.clock_stepped(step, "cp-1", &kept).await.expect("written");
    let [event] = &steps(&store).await[..] else { panic!("one step") };
    assert_eq!((event.actor.as_str(), event.reason.as_str(), event.time), ("system", "forward", at(HOUR)));
    assert_eq!(
        event.comment,
        "the wall clock of `cp-1` was set forward by 1h; grants keep their time: see docs/database.md#clocks"
    );
    // It is known from here on, whatever becomes of this process.
    let start = store.begin_clock("a", boot(3 * HOUR), at(3 * HOUR)).await.expect("begins");
    assert_eq!(start, goes_on(2 * HOUR, HOUR));
    store.close().await;
}

/// A day is more than what a clock is wrong by: it was another time. Ahead of where it was, what has run out has run out.
#[tokio::test]
async fn a_wall_clock_that_is_days_ahead_is_believed() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let request = story.alice.request(600).await.expect("made");
    let grant = story.dora.approve(request.id).await.expect("approved");
    world.stop().await;
    let store = Store::open(&world.database.database).await.expect("opens");
    let reading = clock::read();
    store.keep_anchor(&reading.anchor("a")).await.expect("kept");
    let later = reading.now.plus(Duration::from_secs(25 * 3600));
    let start = store.begin_clock("a", reading.boot, later).await.expect("begins");
    assert_eq!((start.at, start.ends_all()), (later, false));
    let [event] = &steps(&store).await[..] else { panic!("one step") };
    assert_eq!((event.reason.as_str(), event.time), ("forward", later));
    assert!(event.comment.starts_with("the wall clock is 1day 1h ahead of where"), "{}", event.comment);
    assert!(grant.expires < start.at);
    while store.expire(start.at).await.expect("expires") {}
    let everything = RequestFilter { all: true, whose: Whose::Everybodys, limit: 10 };
    let [ended] = &store.grants(&everything).await.expect("reads")[..] else { panic!("one grant") };
    assert_eq!(ended.state, GrantState::Ended(EndReason::Time));
    store.close().await;
}

/// Days behind what the record has seen: nobody can say how long anything would have had.
#[tokio::test]
async fn what_nobody_can_say_the_time_of_ends() {
    // 1. A live grant, one whose time has not begun, a request that waits, a session, a join token, an incident.
    let mut world = World::new().await;
    let mut story = world.story().await;
    let (mut agent, _) = FakeAgent::start(&world, &story.host).await;
    let mut emil = world.subject("user:emil", SubjectRole::Member).await;
    apply(&mut world.admin, 0, files(&roles("activation"), &[])).await.expect("applied");
    let request = story.alice.request(600).await.expect("made");
    let live = emil.approve(request.id).await.expect("approved");
    story.alice.activate(live.id).await.expect("begins");
    let set = agent.set_with(1).await;
    agent.applied(set.generation).await;
    until(async || story.alice.clone().grants(false).await[0].state == GrantState::Active).await;
    let request = story.alice.request(600).await.expect("made");
    let scheduled = emil.approve(request.id).await.expect("approved");
    assert_eq!(scheduled.state, GrantState::Scheduled);
    let waiting = story.alice.request(600).await.expect("made");
    story.dora.open_incident("inc-42", 3600).await.expect("opened");
    world.join_token("db-8").await;
    drop(agent);
    world.stop().await;
    let store = Store::open(&world.database.database).await.expect("opens");
    let (expected, proven) = (expected(), proven("user:fred", "f"));
    store.sign_in(&entry(&proven, &expected), clock::now()).await.expect("is let in");

    // 2. The machine comes back with a clock that is 25 hours behind.
    let now = clock::now();
    let back = Timestamp::from_unix_ms(now.unix_ms() - 25 * HOUR).expect("in range");
    let start = store.begin_clock("another", boot(5), back).await.expect("begins");
    assert_eq!((start.at, start.ends_all()), (back, true));

    // 3. All of that has ended, and the record says why before it says what.
    let everything = RequestFilter { all: true, whose: Whose::Everybodys, limit: 10 };
    let grants = store.grants(&everything).await.expect("reads");
    let state = |id| grants.iter().find(|grant| grant.id == id).expect("is there").state;
    assert_eq!(state(live.id), GrantState::Ending(EndReason::Revoked), "its host has yet to say so");
    assert_eq!(state(scheduled.id), GrantState::Ended(EndReason::Revoked));
    let requests = store.requests(&everything, back).await.expect("reads");
    let denied = requests.iter().find(|request| request.id == waiting.id).expect("is there");
    assert_eq!(denied.state, RequestState::Denied);
    assert_eq!(store.incidents(false, 10, back).await.expect("reads"), []);
    let mut sql = world.database.raw().await;
    for table in ["sign_ins", "join_tokens"] {
        assert_eq!(sql.number(&format!("SELECT count(*) FROM {table}")).await, 0, "{table}");
    }
    let events = store.events(0, 1000).await.expect("reads");
    let step = events.iter().position(|event| event.kind == EventKind::ClockStepped).expect("is on record");
    assert_eq!((events[step].reason.as_str(), events[step].time), ("back", back));
    let words = "ended: grants 2, requests 1, sessions 1, join tokens 1, incidents 1";
    assert!(events[step].comment.contains(words), "{}", events[step].comment);
    let after: Vec<EventKind> = events[step + 1..].iter().map(|event| event.kind).collect();
    for kind in
        [EventKind::GrantEnding, EventKind::GrantEnded, EventKind::RequestDenied, EventKind::IncidentClosed]
    {
        assert!(after.contains(&kind), "{kind}");
    }
    assert!(events[step + 1..].iter().all(|event| event.actor == "system"));

    // 4. It happens once. What begins from here on has its time.
    assert_eq!(store.begin_clock("another", boot(10), back).await.expect("begins").lost_ms, None);
    assert_eq!(store.begin_clock("a third", boot(10), back).await.expect("begins").lost_ms, None);
    store.close().await;
    drop(store);
    world.start().await;
    let (agent, set) = FakeAgent::start(&world, &story.host).await;
    assert_eq!(set.grants, []);
    agent.applied(set.generation).await;
    until(async || world.admin.clone().grants(false).await.is_empty()).await;
}

/// A machine with a wrong clock must not end what others have granted.
#[tokio::test]
async fn whose_clock_is_not_the_servers_does_not_start() {
    let (_database, store) = opened().await;
    store.compare_clocks(clock::wall).await.expect("it is the same machine");
    let ahead = || clock::wall().plus(Duration::from_secs(90));
    let behind = || Timestamp::from_unix_ms(clock::wall().unix_ms() - 90_000).expect("in range");
    for compared in [store.compare_clocks(ahead).await, store.compare_clocks(behind).await] {
        match (KIND, compared) {
            // There is nobody to compare with.
            (Kind::Sqlite, compared) => compared.expect("goes on"),
            (Kind::Postgres, compared) => {
                let error = compared.expect_err("far apart");
                assert!(matches!(error, StoreError::ClocksApart { .. }), "{error}");
                let text = error.to_string();
                assert!(text.starts_with("the wall clock of this machine says 2"), "{text}");
                assert!(text.contains("and that of the server of database `postgresql://"), "{text}");
                assert!(error.hint().contains("start again"), "{}", error.hint());
            }
        }
    }
    store.close().await;
}
