//! Deadlines pass. Timing is not asserted tightly: the kernels enforce deadlines, this side tells the story.

use proto::types::{EndReason, EventKind, GrantState};

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
    until(async || control_plane::clock::now() > grant.expires).await;
    world.start().await;
    until(async || world.admin.clone().grants(false).await.is_empty()).await;
    let (_, set) = FakeAgent::start(&world, &story.host).await;
    assert!(set.grants.is_empty());
}
