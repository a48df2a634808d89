//! Grants whose time begins later than their approval.

use std::time::Duration;

use proto::status::ErrorKind;
use proto::types::{EndReason, EventKind, Grant, GrantState, PolicyFiles, SubjectRole};

use super::policy::{TWO_STEPS, apply, files};
use super::world::{Caller, FakeAgent, Story, World, refused, until};

/// One step, and this clock.
pub(crate) fn roles(clock: &str) -> String {
    let one = TWO_STEPS.replace("[[role.step]]\napprovers = [\"user:fay\"]\n", "");
    one.replace("idle = \"10m\"", &format!("clock = \"{clock}\""))
}

/// The grant of a request of alice's that emil has approved.
async fn approved(world: &mut World, story: &mut Story, policy: PolicyFiles) -> (Grant, Caller) {
    let mut emil = world.subject("user:emil", SubjectRole::Member).await;
    apply(&mut world.admin, 0, policy).await.expect("applied");
    let request = story.alice.request(600).await.expect("made");
    (emil.approve(request.id).await.expect("approved"), emil)
}

async fn state_of(story: &mut Story) -> GrantState {
    story.alice.grants(true).await.remove(0).state
}

#[tokio::test]
async fn it_begins_with_who_activates_it() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let mut mallory = world.subject("user:mallory", SubjectRole::Member).await;
    let (agent, first) = FakeAgent::start(&world, &story.host).await;
    agent.applied(first.generation).await;
    let forbid = "@id(\"not-now\")\nforbid (principal, action == Action::\"activate\", resource);\n";
    let closed = files(&roles("activation"), &[("conditions/a.cedar", forbid)]);
    let (grant, _) = approved(&mut world, &mut story, closed).await;
    assert_eq!((grant.state, grant.begins, grant.hosts[0].held), (GrantState::Scheduled, None, false));
    assert_eq!(grant.duration, Some(Duration::from_secs(600)));
    assert_eq!(grant.expires.since(grant.issued), Duration::from_secs(3600), "so long it waits");
    let event = world.last(EventKind::GrantScheduled).await;
    assert_eq!(
        (event.actor.as_str(), event.comment.as_str()),
        ("user:emil", "for 10m from when it is activated")
    );
    assert_eq!(story.alice.who_has(&Default::default()).await, []);

    // It is judged anew, and by who comes.
    refused(story.alice.activate(grant.id).await, ErrorKind::PermissionDenied, "rule `not-now`: forbids it");
    apply(&mut world.admin, 1, files(&roles("activation"), &[])).await.expect("applied");
    refused(mallory.activate(grant.id).await, ErrorKind::PermissionDenied, "does not hold grant");
    refused(story.alice.extend(grant.id, 60).await, ErrorKind::FailedPrecondition, "has not begun");
    world.admin.freeze(&[], 600, true).await.expect("frozen");
    refused(story.alice.activate(grant.id).await, ErrorKind::FailedPrecondition, "is frozen until");
    let freeze = world.admin.freezes(false).await.remove(0).id;
    world.admin.thaw(freeze).await.expect("thawed");

    world.restart().await;
    story.alice = world.caller(&story.alice.token).await;
    let (mut agent, set) = FakeAgent::start(&world, &story.host).await;
    assert_eq!(set.grants, []);
    let begun = story.alice.activate(grant.id).await.expect("it may begin");
    assert_eq!((begun.id, begun.state), (grant.id, GrantState::Activating));
    let begins = begun.begins.expect("it has begun");
    assert_eq!(begun.expires.since(begins), Duration::from_secs(600));
    let event = world.last(EventKind::GrantIssued).await;
    assert_eq!((event.actor.as_str(), event.expires), ("user:alice", Some(begun.expires)));
    let set = agent.set_with(1).await;
    agent.applied(set.generation).await;
    until(async || story.alice.clone().grants(false).await[0].state == GrantState::Active).await;
    refused(story.alice.activate(grant.id).await, ErrorKind::FailedPrecondition, "is active already");
}

#[tokio::test]
async fn it_begins_by_itself_at_its_moment_or_not_at_all() {
    for (condition, expected) in [
        ("", None),
        (
            "@id(\"not-now\")\nforbid (principal, action == Action::\"activate\", resource);\n",
            Some(EndReason::PolicyChanged),
        ),
    ] {
        let mut world = World::new().await;
        let mut story = world.story().await;
        let (mut agent, first) = FakeAgent::start(&world, &story.host).await;
        agent.applied(first.generation).await;
        let soon = std::time::SystemTime::now() + Duration::from_secs(8);
        let roles = roles(&humantime::format_rfc3339_seconds(soon).to_string());
        let (grant, _) =
            approved(&mut world, &mut story, files(&roles, &[("conditions/a.cedar", condition)])).await;
        assert_eq!((grant.state, grant.duration), (GrantState::Scheduled, None));
        let begins = grant.begins.expect("by itself");
        assert_eq!(grant.expires.since(begins), Duration::from_secs(600));
        refused(story.alice.activate(grant.id).await, ErrorKind::FailedPrecondition, "begins by itself at");
        match expected {
            None => {
                let set = agent.set_with(1).await;
                agent.applied(set.generation).await;
                until(async || story.alice.clone().grants(false).await[0].state == GrantState::Active).await;
                let after = story.alice.grants(false).await.remove(0);
                assert_eq!((after.begins, after.expires), (Some(begins), grant.expires));
                assert_eq!(world.last(EventKind::GrantIssued).await.actor, "system");
            }
            Some(reason) => {
                until(async || story.alice.clone().grants(false).await.is_empty()).await;
                assert_eq!(state_of(&mut story).await, GrantState::Ended(reason));
                assert!(world.last(EventKind::GrantEnded).await.comment.contains("rule `not-now`"));
            }
        }
    }
}

/// What waits to be activated ends as anything that lives.
#[tokio::test]
async fn what_waits_is_revoked_released_and_frozen() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let (grant, mut emil) = approved(&mut world, &mut story, files(&roles("activation"), &[])).await;
    story.dora.revoke(grant.id).await.expect("revoked");
    assert_eq!(state_of(&mut story).await, GrantState::Ended(EndReason::Revoked));
    refused(
        story.alice.activate(grant.id).await,
        ErrorKind::FailedPrecondition,
        "is ended (revoked) already",
    );

    // Also by a freeze.
    let request = story.alice.request(600).await.expect("made");
    let waits = emil.approve(request.id).await.expect("approved");
    let (_, ended) = world.admin.freeze(&["db"], 600, false).await.expect("frozen");
    assert_eq!((waits.state, ended), (GrantState::Scheduled, 1));
    assert_eq!(state_of(&mut story).await, GrantState::Ended(EndReason::Frozen));
}

/// Whoever begins with an example can put it in force.
#[tokio::test]
async fn every_example_can_be_applied() {
    let folder = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/policies"));
    for example in std::fs::read_dir(folder).expect("is there") {
        let example = example.expect("readable").path();
        let mut files = std::collections::BTreeMap::new();
        for inner in ["", "conditions", "tests"] {
            for file in std::fs::read_dir(example.join(inner)).into_iter().flatten() {
                let path = file.expect("readable").path();
                if path.is_file() {
                    let name = path.strip_prefix(&example).expect("within").display().to_string();
                    files.insert(name, std::fs::read_to_string(&path).expect("readable"));
                }
            }
        }
        let mut world = World::new().await;
        let files = PolicyFiles::new(files).expect("within bounds");
        apply(&mut world.admin, 0, files).await.unwrap_or_else(|status| panic!("{example:?}: {status:?}"));
    }
}
