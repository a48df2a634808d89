//! Programs that a step of a policy asks, by a real server each.

use std::time::Duration;

use control_plane::config::DecisionHook;
use proto::status::ErrorKind;
use proto::types::{EventKind, Request, RequestId, RequestState};

use super::policy::{apply, files};
use super::world::{FakeAgent, Story, Trusted, World, refused, until};
use crate::receiver::{Does, Received, Receiver};

/// One role of `db` with these steps.
fn role(steps: &str) -> String {
    format!(
        "[[role]]\nname = \"debug\"\nto = [\"user:alice\"]\nresources = [\"db\"]\nhosts = [\"*\"]\n{steps}"
    )
}

const ALONE: &str = "[[role.step]]\napprovers = [\"hook:risk\"]\n";
const BESIDE: &str = "[[role.step]]\napprovers = [\"hook:risk\", \"user:emil\", \"user:fay\"]\ncount = 2\n";
const AFTER: &str =
    "[[role.step]]\napprovers = [\"user:emil\"]\n[[role.step]]\napprovers = [\"hook:risk\"]\n";

fn hook(receiver: &Receiver) -> DecisionHook {
    DecisionHook {
        name: "risk".parse().expect("valid"),
        endpoint: receiver.endpoint(),
        secrets: Receiver::secrets(),
        time_limit: Duration::from_secs(1),
    }
}

async fn asking(receiver: &Receiver, steps: &str) -> (World, Story) {
    let hooks = vec![hook(receiver)];
    let mut world = World::trusting(Trusted { hooks, ..Trusted::default() }).await;
    let story = world.story().await;
    apply(&mut world.admin, 0, files(&role(steps), &[])).await.expect("applied");
    (world, story)
}

/// The request as soon as it is decided.
async fn decided(world: &mut World, id: RequestId) -> Request {
    let find = async |world: &World| {
        let requests = world.admin.clone().requests(true).await;
        requests.into_iter().find(|request| request.id == id).expect("is there")
    };
    until(async || find(world).await.state != RequestState::Pending).await;
    find(world).await
}

#[tokio::test]
async fn a_program_decides_alone() {
    let receiver = Receiver::secure().await;
    receiver.next([
        Does::Say(r#"{"decision":"approve","comment":"low risk"}"#),
        Does::Say(r#"{"decision":"deny","comment":"frozen"}"#),
    ]);
    let (mut world, mut story) = asking(&receiver, ALONE).await;
    let (mut agent, _) = FakeAgent::start(&world, &story.host).await;
    let made = story.alice.request(600).await.expect("made");
    let request = decided(&mut world, made.id).await;
    assert_eq!((request.state, request.comment.as_str()), (RequestState::Approved, "low risk"));
    assert_eq!(request.answers.len(), 1);
    assert!(request.answers[0].yes && request.votes.is_empty() && request.answers[0].hook.as_str() == "risk");
    assert_eq!(agent.set_with(1).await.grants.len(), 1);
    let approved = world.last(EventKind::RequestApproved).await;
    assert_eq!((approved.actor.as_str(), approved.credential.as_str()), ("hook:risk", ""));
    assert_eq!(world.last(EventKind::GrantIssued).await.actor, "hook:risk");
    let asked = receiver.received().remove(0);
    assert!(asked.is_signed() && asked.id() == format!("ask_{}_risk", made.id), "{}", asked.id());
    let asked = asked.json();
    assert_eq!(asked["type"], "decision.asked");
    let data = &asked["data"];
    assert_eq!((&data["subject"], &data["resource"]), (&"user:alice".into(), &"db".into()));
    assert_eq!((&data["duration_seconds"], &data["role"]), (&600.into(), &"debug".into()));
    let made = story.alice.request(600).await.expect("made");
    let request = decided(&mut world, made.id).await;
    assert_eq!((request.state, request.comment.as_str()), (RequestState::Denied, "frozen"));
    let denied = world.last(EventKind::RequestDenied).await;
    assert_eq!((denied.actor.as_str(), denied.comment.as_str()), ("hook:risk", "frozen"));
}

#[tokio::test]
async fn no_answer_is_a_no() {
    let receiver = Receiver::secure().await;
    let (mut world, mut story) = asking(&receiver, ALONE).await;
    for (does, why) in [
        (Does::Hang, "no answer: no answer within 1 s"),
        (Does::Answer(500), "no answer: it answered 500 Internal Server Error"),
        (Does::Redirect, "no answer: it answered 307 Temporary Redirect"),
        (Does::Answer(204), "no answer: what it said is not understood"),
        (Does::Say("{}"), "no answer: what it said is not understood"),
        (Does::Say(r#"{"decision":"yes"}"#), "no answer: `yes` is neither `approve` nor `deny`"),
    ] {
        receiver.next([does]);
        let made = story.alice.request(600).await.expect("made");
        let request = decided(&mut world, made.id).await;
        assert_eq!((request.state, request.comment.as_str()), (RequestState::Denied, why));
        assert!(!request.answers[0].yes);
    }
    assert_eq!(receiver.received().len(), 6, "each was asked once");
    drop(receiver);
    let made = story.alice.request(600).await.expect("made");
    let request = decided(&mut world, made.id).await;
    assert!(request.comment.starts_with("no answer: cannot post"), "{}", request.comment);
    assert!(world.admin.grants(true).await.is_empty());
}

#[tokio::test]
async fn a_program_counts_as_one_and_as_nobody() {
    use proto::types::SubjectRole;

    let receiver = Receiver::secure().await;
    receiver.always(Does::Say(r#"{"decision":"approve"}"#));
    let (mut world, mut story) = asking(&receiver, BESIDE).await;
    let mut emil = world.subject("user:emil", SubjectRole::Member).await;
    let made = story.alice.request(600).await.expect("made");
    until(async || {
        let requests = world.admin.clone().requests(false).await;
        requests[0].waiting.as_ref().is_some_and(|waiting| waiting.hooks.is_empty())
    })
    .await;
    let waiting = world.admin.requests(false).await.remove(0).waiting.expect("it waits");
    assert_eq!((waiting.more, waiting.approvers.len()), (1, 2));
    assert_eq!(world.last(EventKind::ApprovalGiven).await.actor, "hook:risk");
    let (request, grant) = emil.say_yes(made.id, None, &[]).await.expect("counts");
    assert!(request.state == RequestState::Approved && grant.is_some());
}

#[tokio::test]
async fn it_is_asked_when_its_step_begins() {
    use proto::types::SubjectRole;

    let receiver = Receiver::secure().await;
    receiver.always(Does::Say(r#"{"decision":"approve"}"#));
    let (mut world, mut story) = asking(&receiver, AFTER).await;
    let mut emil = world.subject("user:emil", SubjectRole::Member).await;
    let made = story.alice.request(600).await.expect("made");
    assert_eq!(world.database.raw().await.number("SELECT count(*) FROM hook_questions").await, 0);
    emil.say_yes(made.id, None, &[]).await.expect("counts");
    let request = decided(&mut world, made.id).await;
    assert_eq!((request.state, request.votes.len(), request.answers.len()), (RequestState::Approved, 1, 1));
    assert_eq!(receiver.received()[0].json()["data"]["approvals"][0], "user:emil");
    assert_eq!(world.database.raw().await.number("SELECT count(*) FROM hook_questions").await, 0);
}

/// The control plane goes away while it asks: it asks again, under the same id, and one answer counts.
#[tokio::test]
async fn a_question_survives_the_control_plane() {
    let receiver = Receiver::secure().await;
    receiver.next([Does::Hang]);
    receiver.always(Does::Say(r#"{"decision":"approve"}"#));
    let (mut world, mut story) = asking(&receiver, ALONE).await;
    let made = story.alice.request(600).await.expect("made");
    until(async || receiver.received().len() == 1).await;
    // What was being asked is lost with it.
    world.restart().await;
    let request = decided(&mut world, made.id).await;
    let got = receiver.received();
    assert!(got.iter().all(|one: &Received| one.is_signed() && one.id() == got[0].id()));
    assert_eq!(request.answers.len(), 1);
    // If it went away only after a second, that was the answer.
    assert_eq!(request.state == RequestState::Approved, got.len() == 2);
}

#[tokio::test]
async fn a_policy_asks_nobody_who_is_not_there() {
    let mut world = World::new().await;
    let _story: Story = world.story().await;
    let applied = apply(&mut world.admin, 0, files(&role(ALONE), &[])).await;
    refused(applied, ErrorKind::FailedPrecondition, "role `debug` asks hook `risk`, which is not configured");
}
