//! Resources that are closed for a time.

use proto::status::ErrorKind;
use proto::types::{EndReason, EventKind, Frozen, GrantState, RequestState, SubjectRole};

use super::policy::{AUTOMATIC, apply, files};
use super::world::{FakeAgent, World, refused, until};

#[tokio::test]
async fn nothing_opens_what_is_frozen_and_what_is_live_ends() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let mut erin = world.subject("user:erin", SubjectRole::Approver).await;
    world.resource("cache", "10.0.0.9").await;
    let (mut agent, _) = FakeAgent::start(&world, &story.host).await;
    let request = story.alice.request(600).await.expect("made");
    let grant = story.dora.approve(request.id).await.expect("approved");
    let set = agent.set_with(1).await;
    agent.applied(set.generation).await;
    let waiting = story.alice.request(600).await.expect("made");
    let (longer, _) = story.alice.extend(grant.id, 60).await.expect("made");

    let not_theirs = story.alice.freeze(&["db"], 600, false).await;
    refused(not_theirs, ErrorKind::PermissionDenied, "may not call AccessService.Freeze");
    refused(story.dora.freeze(&["nothing"], 600, false).await, ErrorKind::NotFound, "`nothing`");
    let (freeze, ended) = story.dora.freeze(&["db"], 600, false).await.expect("frozen");
    assert_eq!((ended, freeze.by.as_str()), (1, "user:dora"));
    let without = agent.set_with(0).await;
    agent.applied(without.generation).await;
    until(async || story.alice.clone().grants(false).await.is_empty()).await;
    let gone = story.alice.grants(true).await.remove(0);
    assert_eq!((gone.id, gone.state), (grant.id, GrantState::Ended(EndReason::Frozen)));
    let began = world.last(EventKind::FreezeBegan).await;
    assert_eq!((began.resource.as_str(), began.actor.as_str()), ("db", "user:dora"));
    assert_eq!(began.expires, Some(freeze.until));
    assert!(
        began.comment.ends_with(" of db for 10m, which ends 1 of the live grants: leaked"),
        "{}",
        began.comment
    );

    // Neither a new wish, nor what waited, nor more of what was there; a no counts, and other resources are open.
    let words = "resource `db` is frozen until ";
    refused(story.alice.request(600).await, ErrorKind::FailedPrecondition, words);
    refused(story.dora.approve(waiting.id).await, ErrorKind::FailedPrecondition, words);
    refused(erin.approve(longer.id).await, ErrorKind::FailedPrecondition, words);
    refused(story.alice.request(600).await, ErrorKind::FailedPrecondition, "by `user:dora`: leaked");
    let mut other: proto::wire::access::CreateRequestRequest = Default::default();
    (other.resource, other.reason) = ("cache".to_owned(), "x".to_owned());
    other.duration = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    story.alice.create(other).await.expect("it is not frozen");

    // Who closes is not always who opens again.
    assert_eq!(story.alice.freezes(false).await, std::slice::from_ref(&freeze));
    refused(story.dora.thaw(freeze.id).await, ErrorKind::PermissionDenied, "may not call AccessService.Thaw");
    // It outlives a restart.
    world.restart().await;
    let mut alice = world.caller(&story.alice.token).await;
    let mut dora = world.caller(&story.dora.token).await;
    refused(alice.request(600).await, ErrorKind::FailedPrecondition, words);
    let thawed = world.admin.thaw(freeze.id).await.expect("thawed");
    assert_eq!(thawed.ended.map(|(_, by)| by.map(|by| by.to_string())), Some(Some("user:admin".to_owned())));
    refused(world.admin.thaw(freeze.id).await, ErrorKind::FailedPrecondition, "is over");
    let event = world.last(EventKind::FreezeEnded).await;
    assert_eq!((event.reason.as_str(), event.actor.as_str()), ("thawed", "user:admin"));
    dora.approve(waiting.id).await.expect("it waited");
    assert_eq!(
        alice.requests(false).await.len(),
        2,
        "the other resource's, and what would have extended what has ended"
    );
    assert_eq!(world.admin.freezes(false).await, []);
    assert_eq!(world.admin.freezes(true).await.len(), 1);
}

#[tokio::test]
async fn all_of_it_for_a_moment_and_what_is_live_is_kept() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    apply(&mut world.admin, 0, files(AUTOMATIC, &[])).await.expect("applied");
    let request = story.alice.request(300).await.expect("made");
    assert_eq!(request.state, RequestState::Approved);
    let (freeze, ended) = world.admin.freeze(&[], 2, true).await.expect("frozen");
    assert_eq!((ended, &freeze.what), (0, &Frozen::All));
    // Not even what needs nobody's yes.
    refused(story.alice.request(300).await, ErrorKind::FailedPrecondition, "resource `db` is frozen until ");
    assert_eq!(story.alice.grants(false).await.len(), 1);
    // It lifts by itself.
    until(async || story.alice.clone().freezes(false).await.is_empty()).await;
    until(async || story.alice.clone().freezes(true).await[0].ended.is_some()).await;
    story.alice.request(300).await.expect("it is open again");
    let event = world.last(EventKind::FreezeEnded).await;
    assert_eq!((event.reason.as_str(), event.actor.as_str()), ("time", "system"));
}
