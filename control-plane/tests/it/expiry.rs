//! Deadlines pass. Timing is not asserted tightly: the kernels enforce deadlines, this side tells the story.

use std::time::Duration;

use control_plane::clock;
use control_plane::store::Store;
use proto::types::{EndReason, EventKind, GrantState, Timestamp};

use super::world::{FakeAgent, World, until};

#[tokio::test]
async fn an_active_grant_ends_at_its_deadline() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let (mut agent, _) = FakeAgent::start(&world, &story.host).await;
    let request = story.alice.request(2).await.expect("made");
    let issued = story.dora.approve(request.id).await.expect("approved");
    let set = agent.set_with(1).await;
    agent.applied(set.generation).await;
    let (_, active) = story.alice.watch(request.id).await.pop().expect("at least one");
    assert_eq!(active.expect("approved").state, GrantState::Active);
    until(async || story.alice.clone().grants(false).await.is_empty()).await;
    let ended = story.alice.grants(true).await.remove(0);
    assert_eq!(ended.state, GrantState::Ended(EndReason::Time));
    assert_eq!(ended.expires.since(ended.issued).as_secs(), 2);
    assert!(ended.ended >= Some(issued.expires));
    assert!(!ended.hosts[0].held);
    let last = world.record().await.pop().expect("not empty");
    assert_eq!(
        (last.kind, last.actor.as_str(), last.reason.as_str()),
        (EventKind::GrantEnded, "system", "time")
    );
    // The next set is without it.
    world.resource("db2", "10.0.0.8").await;
    assert!(agent.set().await.grants.is_empty());
}

#[tokio::test]
async fn a_revoked_grant_ends_at_its_deadline_even_if_its_host_never_answers() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let request = story.alice.request(2).await.expect("made");
    let grant = story.dora.approve(request.id).await.expect("approved");
    story.dora.revoke(grant.id).await.expect("revoked");
    until(async || story.alice.clone().grants(false).await.is_empty()).await;
    let ended = story.alice.grants(true).await.remove(0);
    assert_eq!(ended.state, GrantState::Ended(EndReason::Revoked));
    assert!(ended.ended >= Some(grant.expires));
}

#[tokio::test]
async fn a_deadline_that_passes_while_the_control_plane_is_down_is_noticed() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let request = story.alice.request(2).await.expect("made");
    let grant = story.dora.approve(request.id).await.expect("approved");
    world.stop().await;
    until(async || clock::now() > grant.expires).await;
    world.start().await;
    until(async || world.admin.clone().grants(false).await.is_empty()).await;
    let (_, set) = FakeAgent::start(&world, &story.host).await;
    assert!(set.grants.is_empty());
}

/// Before `time`.
fn before(time: Timestamp, seconds: i64) -> Timestamp {
    Timestamp::from_unix_ms(time.unix_ms() - seconds * 1000).expect("in range")
}

/// Each warning is given once for each deadline, to who can still use what ends.
#[tokio::test]
async fn holders_are_warned_before_the_end() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let (mut agent, _) = FakeAgent::start(&world, &story.host).await;
    let mut grants = Vec::new();
    for (held, seconds) in [(1, 600), (2, 200), (3, 600)] {
        let request = story.alice.request(seconds).await.expect("made");
        grants.push(story.dora.approve(request.id).await.expect("approved"));
        let set = agent.set_with(held).await;
        agent.applied(set.generation).await;
    }
    let [long, short, ended] = grants.try_into().expect("three");
    until(async || {
        let grants = world.admin.clone().grants(false).await;
        grants.iter().all(|grant| grant.state == GrantState::Active)
    })
    .await;
    story.dora.revoke(ended.id).await.expect("revoked");
    let request = story.alice.request(600).await.expect("made");
    let never_held = story.dora.approve(request.id).await.expect("approved");
    world.stop().await;
    let store = Store::open(&world.database.database).await.expect("opens");
    let next = async |now| store.next_warning(now).await.expect("reads");
    let warn = async |now| {
        assert!(store.warn(now).await.expect("written"), "one is due");
        assert!(!store.warn(now).await.expect("written"), "and no other");
    };
    assert_eq!(next(clock::now()).await, Some(before(short.expires, 60)));
    assert!(!store.warn(before(short.expires, 61)).await.expect("written"), "it is too early");
    warn(before(short.expires, 30)).await;
    assert_eq!(next(before(short.expires, 30)).await, Some(before(long.expires, 300)));
    warn(before(long.expires, 300)).await;
    assert_eq!(next(before(long.expires, 299)).await, Some(before(long.expires, 60)));
    warn(before(long.expires, 59)).await;
    assert_eq!(next(before(long.expires, 58)).await, None);
    // With another deadline it begins anew; who looks late is told once.
    let move_it = format!("UPDATE grants SET expires_ms = expires_ms + 600000 WHERE id = '{}'", long.id);
    world.database.raw().await.execute(&move_it).await.expect("moved");
    let moved = long.expires.plus(Duration::from_secs(600));
    assert_eq!(next(long.expires).await, Some(before(moved, 300)));
    warn(before(moved, 30)).await;
    assert_eq!(next(before(moved, 29)).await, None);
    let events = store.events(0, 1000).await.expect("reads");
    let warnings: Vec<_> = events
        .iter()
        .filter(|event| event.kind == EventKind::GrantExpiring)
        .map(|event| (event.grant.clone(), event.reason.as_str(), event.expires, event.actor.as_str()))
        .collect();
    let warned = |grant: &proto::types::Grant, reason, expires| {
        (grant.id.to_string(), reason, Some(expires), "system")
    };
    assert_eq!(
        warnings,
        [
            warned(&short, "1m", short.expires),
            warned(&long, "5m", long.expires),
            warned(&long, "1m", long.expires),
            warned(&long, "1m", moved),
        ],
        "and of {} and {}, which had ended or were held by no kernel, nothing",
        ended.id,
        never_held.id
    );
    store.close().await;
}
