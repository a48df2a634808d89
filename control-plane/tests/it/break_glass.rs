//! Access at once in an emergency, and who looks at it afterwards.

use proto::status::ErrorKind;
use proto::types::{EventKind, RequestState, SubjectId, SubjectRole};
use proto::wire::access as wire;

use super::policy::{TWO_STEPS, apply, files};
use super::world::{World, refused};

const GLASS: &str = r#"
[[role]]
name = "break-glass"
to = ["group:dba"]
resources = ["db"]
hosts = ["*"]
maximum_duration = "20m"
break_glass = true
[[role.step]]
approvers = ["group:dba"]
"#;

fn by_glass(seconds: i64) -> wire::CreateRequestRequest {
    wire::CreateRequestRequest {
        resource: "db".into(),
        duration: Some(prost_types::Duration { seconds, nanos: 0 }),
        reason: "INC-42: nobody answers".into(),
        role: "break-glass".into(),
        ..wire::CreateRequestRequest::default()
    }
}

#[tokio::test]
async fn who_was_not_asked_looks_at_it_afterwards() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let mut emil = world.subject("user:emil", SubjectRole::Member).await;
    let mut mallory = world.subject("user:mallory", SubjectRole::Member).await;
    apply(&mut world.admin, 0, files(&[GLASS, TWO_STEPS].concat(), &[])).await.expect("applied");

    // Nobody breaks glass by the way, for long, for nothing, or without being of those who may.
    assert_eq!(story.alice.request(600).await.expect("made").state, RequestState::Pending);
    refused(story.alice.create(by_glass(1201)).await, ErrorKind::PermissionDenied, "is longer than 20m");
    let silent = wire::CreateRequestRequest { reason: String::new(), ..by_glass(600) };
    refused(story.alice.create(silent).await, ErrorKind::InvalidArgument, "reason: is empty");
    refused(mallory.create(by_glass(600)).await, ErrorKind::PermissionDenied, "no role gives `user:mallory`");
    assert_eq!(world.admin.reviews(true).await, []);

    let request = story.alice.create(by_glass(600)).await.expect("made");
    assert_eq!(request.state, RequestState::Approved);
    let grant = request.grant.expect("at once");
    let used = world.last(EventKind::BreakGlassUsed).await;
    assert_eq!((used.actor.as_str(), used.grant), ("user:alice", grant.to_string()));
    assert_eq!(
        used.comment,
        "role break-glass (policy version 1): INC-42: nobody answers; not asked: user:emil, user:fay"
    );

    // It is there until somebody of those who were not asked has looked at it.
    let open = emil.reviews(false).await.remove(0);
    let names: Vec<&str> = open.approvers.iter().map(SubjectId::as_str).collect();
    assert_eq!((open.grant, names, &open.reviewed), (grant, vec!["user:emil", "user:fay"], &None));
    assert_eq!(story.alice.reviews(false).await.len(), 1);
    assert_eq!(mallory.reviews(false).await, []);
    let words = "may not review grant";
    refused(story.alice.review(grant, "fine").await, ErrorKind::PermissionDenied, words);
    refused(world.admin.review(grant, "fine").await, ErrorKind::PermissionDenied, words);
    refused(emil.review(grant, " ").await, ErrorKind::InvalidArgument, "comment: is empty");
    let done = emil.review(grant, "as it should be").await.expect("reviewed");
    assert_eq!(
        done.reviewed.as_ref().map(|(by, _, said)| (by.as_str(), said.as_str())),
        Some(("user:emil", "as it should be"))
    );
    refused(emil.review(grant, "again").await, ErrorKind::FailedPrecondition, "is reviewed already");
    let event = world.last(EventKind::BreakGlassReviewed).await;
    assert_eq!((event.actor.as_str(), event.comment.as_str()), ("user:emil", "as it should be"));
    assert_eq!(world.admin.reviews(false).await, []);
    world.restart().await;
    assert_eq!(world.admin.reviews(true).await, [done]);
}

#[tokio::test]
async fn it_passes_no_freeze_and_other_grants_need_no_review() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    apply(&mut world.admin, 0, files(GLASS, &[])).await.expect("applied");
    let unnamed = wire::CreateRequestRequest { role: String::new(), ..by_glass(600) };
    refused(
        story.alice.create(unnamed).await,
        ErrorKind::PermissionDenied,
        "ask for it by name: `--role break-glass`",
    );
    world.admin.freeze(&["db"], 600, false).await.expect("frozen");
    refused(story.alice.create(by_glass(600)).await, ErrorKind::FailedPrecondition, "is frozen until");
    assert_eq!(world.admin.reviews(true).await, []);
    let freeze = world.admin.freezes(false).await.remove(0).id;
    world.admin.thaw(freeze).await.expect("thawed");
    let grant = story.alice.create(by_glass(600)).await.expect("made").grant.expect("at once");
    refused(story.alice.extend(grant, 60).await, ErrorKind::FailedPrecondition, "lets nothing be extended");

    // Of one that was approved there is nothing to review.
    apply(&mut world.admin, 1, files(&GLASS.replace("break_glass = true", ""), &[])).await.expect("applied");
    let mut emil = world.subject("user:emil", SubjectRole::Member).await;
    let asked = story.alice.request(600).await.expect("made");
    let approved = emil.approve(asked.id).await.expect("approved");
    refused(
        emil.review(approved.id, "fine").await,
        ErrorKind::NotFound,
        "was not had by a role for emergencies",
    );
}
