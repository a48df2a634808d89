//! Grants that live longer: who may ask, who approves, what bounds them, and that the same grant goes on.

use std::time::Duration;

use proto::status::ErrorKind;
use proto::types::{EventKind, Grant, GrantState, RequestState, SubjectRole};
use proto::wire::access as wire;

use super::policy::{AUTOMATIC, TWO_STEPS, apply, files};
use super::world::{FakeAgent, Story, World, refused};

fn total(grant: &Grant) -> Duration {
    grant.expires.since(grant.issued)
}

/// A grant of alice's for so long, which its host holds.
async fn active(world: &World, story: &mut Story, seconds: u64) -> (FakeAgent, Grant) {
    let (mut agent, _) = FakeAgent::start(world, &story.host).await;
    let request = story.alice.request(seconds).await.expect("made");
    if request.state == RequestState::Pending {
        story.dora.approve(request.id).await.expect("approved");
    }
    let set = agent.set_with(1).await;
    agent.applied(set.generation).await;
    let (_, grant) = story.alice.watch(request.id).await.pop().expect("at least one");
    (agent, grant.expect("approved"))
}

/// Without a policy an approver decides, as about everything.
#[tokio::test]
async fn an_approver_says_yes_and_the_same_grant_goes_on() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let mut mallory = world.subject("user:mallory", SubjectRole::Member).await;
    let (mut agent, grant) = active(&world, &mut story, 600).await;

    refused(mallory.extend(grant.id, 60).await, ErrorKind::PermissionDenied, "does not hold grant");
    refused(story.dora.extend(grant.id, 60).await, ErrorKind::PermissionDenied, "does not hold grant");
    let (request, same) = story.alice.extend(grant.id, 300).await.expect("made");
    assert_eq!(
        (request.state, request.extends, request.grant),
        (RequestState::Pending, Some(grant.id), None)
    );
    assert_eq!((request.reason.as_str(), same.expires), ("ticket 4711", grant.expires));
    assert_eq!(request.lapses, Some(grant.expires), "what has ended is not extended");
    refused(story.alice.approve(request.id).await, ErrorKind::PermissionDenied, "it asked for it itself");
    let elsewhere = story.dora.say_yes(request.id, None, &["db-7"]).await;
    refused(elsewhere, ErrorKind::InvalidArgument, "is done on all of its hosts");

    // The approver leaves less of it.
    let less = Some(Duration::from_secs(120));
    let (approved, longer) = story.dora.say_yes(request.id, less, &[]).await.expect("counted");
    let longer = longer.expect("nobody else has to");
    assert_eq!((approved.state, approved.grant), (RequestState::Approved, Some(grant.id)));
    assert_eq!((longer.id, longer.state, longer.extensions), (grant.id, GrantState::Active, 1));
    assert_eq!((total(&longer), longer.issued), (Duration::from_secs(720), grant.issued));
    let event = world.last(EventKind::GrantExtended).await;
    assert_eq!((event.actor.as_str(), event.comment.as_str()), ("user:dora", "by 2m, 12m in all"));
    assert_eq!((event.expires, event.request), (Some(longer.expires), request.id.to_string()));

    // Its host hears of the same grant, with more time, and that somebody has asked for it.
    let set = agent.set_with(1).await;
    let (sent, ten_minutes) = (&set.grants[0], Duration::from_secs(600));
    assert_eq!((sent.id, sent.extensions, sent.remaining > ten_minutes), (grant.id, 1, true));
    agent.applied(set.generation).await;
    let (_, watched) = story.alice.watch(request.id).await.pop().expect("at least one");
    assert_eq!(watched.map(|grant| grant.extensions), Some(1));

    // It ends as any other; then it is not extended any more, and what was asked for meanwhile opens nothing.
    let (late, _) = story.alice.extend(grant.id, 60).await.expect("made");
    story.dora.revoke(grant.id).await.expect("revoked");
    refused(story.alice.extend(grant.id, 60).await, ErrorKind::FailedPrecondition, "is ending (revoked)");
    refused(story.dora.approve(late.id).await, ErrorKind::FailedPrecondition, "is ending (revoked)");
    let deny = wire::DenyRequestRequest { id: late.id.to_string(), comment: String::new() };
    story.dora.access.deny_request(deny).await.expect("denied");
}

/// All that bounds it counts from the beginning of the grant.
#[tokio::test]
async fn the_role_says_how_often_by_how_much_and_who() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let mut emil = world.subject("user:emil", SubjectRole::Member).await;
    let mut fay = world.subject("user:fay", SubjectRole::Member).await;
    let routine = AUTOMATIC.replace(
        "automatic = true",
        "automatic = true\nextension = { times = 2, by = \"4m\", approval = false }",
    );
    apply(&mut world.admin, 0, files(&routine, &[])).await.expect("applied");
    let (_agent, grant) = active(&world, &mut story, 120).await;
    refused(story.alice.extend(grant.id, 241).await, ErrorKind::InvalidArgument, "4m 1s is above the 4m");
    let (request, once) = story.alice.extend(grant.id, 180).await.expect("made");
    assert_eq!((request.state, total(&once)), (RequestState::Approved, Duration::from_secs(300)));
    assert_eq!(world.last(EventKind::GrantExtended).await.actor, "system");
    // Ten minutes in all, says the role.
    let (_, twice) = story.alice.extend(grant.id, 240).await.expect("made");
    assert_eq!((total(&twice), twice.extensions), (Duration::from_secs(540), 2));
    refused(
        story.alice.extend(grant.id, 60).await,
        ErrorKind::FailedPrecondition,
        "has been extended 2 times, which is all that its role permits",
    );

    // The role that the next policy has says otherwise: it needs both steps again, and 30 minutes are the most.
    let two = TWO_STEPS.replace("idle = \"10m\"", "extension = { times = 1, by = \"20m\", approval = true }");
    apply(&mut world.admin, 1, files(&[&two, AUTOMATIC].concat(), &[])).await.expect("applied");
    refused(
        story.alice.extend(grant.id, 30).await,
        ErrorKind::FailedPrecondition,
        "role `routine` lets nothing be extended",
    );
    let new = wire::CreateRequestRequest {
        resource: "db".into(),
        duration: Some(prost_types::Duration { seconds: 900, nanos: 0 }),
        reason: "debug".into(),
        role: "debug".into(),
        ..wire::CreateRequestRequest::default()
    };
    let request = story.alice.create(new).await.expect("made");
    emil.say_yes(request.id, None, &[]).await.expect("counted");
    let grant = fay.approve(request.id).await.expect("approved");
    refused(
        story.alice.extend(grant.id, 901).await,
        ErrorKind::PermissionDenied,
        "30m 1s is longer than 30m",
    );
    let (request, _) = story.alice.extend(grant.id, 900).await.expect("made");
    emil.say_yes(request.id, None, &[]).await.expect("counted");
    assert_eq!(story.alice.grants(false).await[0].extensions, 0, "one yes is not enough");
    let (_, longer) = fay.say_yes(request.id, None, &[]).await.expect("counted");
    assert_eq!(longer.map(|grant| total(&grant)), Some(Duration::from_secs(1800)));
}

/// The operator's maximum is for the grant in all; it holds without a policy, too.
#[tokio::test]
async fn the_operators_maximum_is_for_all_of_it() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let request = story.alice.request(3600).await.expect("made");
    let grant = story.dora.approve(request.id).await.expect("approved");
    refused(story.alice.extend(grant.id, 1).await, ErrorKind::InvalidArgument, "is the maximum");

    // Two that were asked for at once do not make it longer together.
    let request = story.alice.request(3200).await.expect("made");
    let grant = story.dora.approve(request.id).await.expect("approved");
    let (one, _) = story.alice.extend(grant.id, 300).await.expect("made");
    let (two, _) = story.alice.extend(grant.id, 300).await.expect("made");
    story.dora.approve(one.id).await.expect("approved");
    refused(story.dora.approve(two.id).await, ErrorKind::InvalidArgument, "is the maximum");
}
