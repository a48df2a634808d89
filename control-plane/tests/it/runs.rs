//! Runs: the control plane's word for the agent of a host, and grants that are for one run.

use proto::status::ErrorKind;
use proto::types::{CHALLENGE_BYTES, Challenge, EndReason, EventKind, GrantState, RunId, RunPass};
use proto::wire::access::CreateRequestRequest;
use proto::wire::agent::session_response::Message as Answer;
use proto::wire::identity::IssueRunPassRequest;

use super::world::{FakeAgent, World, hello, refused, until};

fn message(host: &str, challenge: &[u8]) -> IssueRunPassRequest {
    IssueRunPassRequest { host: host.to_owned(), challenge: challenge.to_vec() }
}

#[tokio::test]
async fn a_pass_names_who_asked_and_where() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let challenge = [7; CHALLENGE_BYTES];
    let answer = story.alice.identity.issue_run_pass(message("db-7", &challenge)).await.expect("given");
    let pass: RunPass = answer.into_inner().pass.expect("a pass").try_into().expect("it checks");
    let statement = pass.statement().expect("it checks");
    assert_eq!((statement.subject.as_str(), statement.host.as_str()), ("user:alice", "db-7"));
    assert_eq!(statement.challenge, Challenge(challenge));
    // It is on record, before anybody has it.
    let told = world.last(EventKind::RunPassIssued).await;
    assert_eq!(
        (told.host.as_str(), told.subject.as_str(), told.actor.as_str()),
        ("db-7", "user:alice", "user:alice")
    );
    assert_eq!(told.credential, "token");

    let nowhere = story.alice.identity.issue_run_pass(message("db-9", &challenge)).await;
    refused(nowhere, ErrorKind::NotFound, "host `db-9` is not known");
    let short = story.alice.identity.issue_run_pass(message("db-7", &challenge[1..])).await;
    refused(short, ErrorKind::InvalidArgument, "challenge: has 31 bytes, not 32");
    let mut agent = world.agent(&story.host).await;
    let host = agent.identity.issue_run_pass(message("db-7", &challenge)).await;
    refused(host, ErrorKind::PermissionDenied, "`host:db-7` may not call IdentityService.IssueRunPass");
    let mut nobody = world.caller("pct_0").await;
    let nobody = nobody.identity.issue_run_pass(message("db-7", &challenge)).await;
    refused(nobody, ErrorKind::Unauthenticated, "the token is not known");
}

fn for_run(run: RunId) -> CreateRequestRequest {
    CreateRequestRequest {
        resource: "db".to_owned(),
        hosts: vec!["db-7".to_owned()],
        duration: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        reason: "one command".to_owned(),
        run: run.to_string(),
        ..CreateRequestRequest::default()
    }
}

#[tokio::test]
async fn a_grant_of_a_run_goes_to_its_host_as_one() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let hello = proto::wire::agent::Hello { protocol: 3, ..hello("db-7") };
    let mut agent = FakeAgent::open(&mut world.agent(&story.host).await, hello).await.expect("a session");
    assert!(matches!(agent.next().await, Ok(Answer::Welcome(_))));
    agent.set().await;
    let run = RunId::new();
    let request = story.alice.create(for_run(run)).await.expect("made");
    assert_eq!(request.run, Some(run));
    let grant = story.dora.approve(request.id).await.expect("approved");
    assert_eq!(grant.run, Some(run));
    let Ok(Answer::Delta(delta)) = agent.next().await else { panic!("a delta comes") };
    assert_eq!(delta.put_grants.iter().map(|grant| grant.run.clone()).collect::<Vec<_>>(), [run.to_string()]);
    agent.applied(delta.generation).await;
    until(async || story.alice.clone().grants(false).await[0].state == GrantState::Active).await;
    assert!(world.last(EventKind::GrantIssued).await.comment.contains(&run.to_string()));

    // A run is on one host.
    world.host("db-8").await;
    let everywhere = CreateRequestRequest { hosts: Vec::new(), ..for_run(run) };
    refused(story.alice.create(everywhere).await, ErrorKind::InvalidArgument, "the request is for 2");
}

#[tokio::test]
async fn an_agent_that_cannot_tell_runs_apart_is_sent_no_grant_of_one() {
    for protocol in [0, 2] {
        let mut world = World::new().await;
        let mut story = world.story().await;
        let older = proto::wire::agent::Hello { protocol, ..hello("db-7") };
        let mut agent = FakeAgent::open(&mut world.agent(&story.host).await, older).await.expect("a session");
        assert!(matches!(agent.next().await, Ok(Answer::Welcome(_))));
        agent.set().await;
        let request = story.alice.create(for_run(RunId::new())).await.expect("made");
        story.dora.approve(request.id).await.expect("approved");
        let generation = match agent.next().await {
            Ok(Answer::GrantSet(set)) => {
                assert_eq!(set.grants.len(), 0, "protocol {protocol}");
                set.generation
            }
            Ok(Answer::Delta(delta)) => {
                assert_eq!(delta.put_grants.len(), 0, "protocol {protocol}");
                delta.generation
            }
            answer => panic!("{answer:?}"),
        };
        agent.applied(generation).await;
        until(async || {
            let grants = story.alice.clone().grants(true).await;
            matches!(
                grants[0].state,
                GrantState::Ending(EndReason::ActivationFailed)
                    | GrantState::Ended(EndReason::ActivationFailed)
            )
        })
        .await;
        let grants = story.alice.grants(true).await;
        assert!(grants[0].hosts[0].error.contains("upgrade it"), "{:?}", grants[0]);
    }
}
