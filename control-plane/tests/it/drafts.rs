//! What was denied, as the beginning of a request: opened by events of agents, completed by whom it is for.

use proto::status::ErrorKind;
use proto::types::{AuditEvent, Draft, EventKind, RequestState, SubjectRole};
use proto::wire::access as wire;
use proto::wire::agent::session_response::Message as Answer;
use proto::wire::audit as audit_wire;
use tonic::Status;

use super::world::{Caller, FakeAgent, World, refused};

/// What an agent says of somebody who was let through nowhere.
fn denied(agent: &FakeAgent, sequence: u64, subject: &str, resource: &str) -> audit_wire::AuditEvent {
    let connection = audit_wire::Connection {
        hook: "connect4".to_owned(),
        protocol: "tcp".to_owned(),
        address: "10.0.0.7".to_owned(),
        port: 5432,
        pid: 4711,
        uid: 1000,
        command: "psql".to_owned(),
        executable: "/usr/bin/psql".to_owned(),
        cgroup_id: 5123,
        cgroup_path: "/user.slice/user-1000.slice".to_owned(),
        socket_cookie: 77,
        boot_time_ns: 123_456_789_012,
        ..audit_wire::Connection::default()
    };
    audit_wire::AuditEvent {
        connection: Some(connection),
        kind: audit_wire::EventKind::ConnectionDenied.into(),
        subject: subject.to_owned(),
        resource: resource.to_owned(),
        reason: "no_live_grant".to_owned(),
        ..agent.event(sequence)
    }
}

/// The next acknowledgement, whatever sets come before it.
async fn acknowledged(agent: &mut FakeAgent) -> u64 {
    loop {
        match agent.next().await.expect("the session goes on") {
            Answer::AuditAck(ack) => return ack.sequence,
            _ => continue,
        }
    }
}

async fn want_drafts(world: &mut World, name: &str, wanted: bool) {
    let change = wire::SetResourceRequest {
        name: name.to_owned(),
        drafts: Some(wanted),
        ..wire::SetResourceRequest::default()
    };
    world.admin.directory.set_resource(change).await.expect("set");
}

async fn listed(caller: &mut Caller, own: bool) -> (Vec<Draft>, u64) {
    let list = wire::ListDraftsRequest { own, limit: 1000 };
    let answer = caller.access.list_drafts(list).await.expect("listed").into_inner();
    (answer.drafts.into_iter().map(|draft| draft.try_into().expect("valid")).collect(), answer.left_out)
}

async fn drop_draft(caller: &mut Caller, draft: &Draft) -> Result<(), Status> {
    let asked = wire::DropDraftRequest { id: draft.id.to_string() };
    caller.access.drop_draft(asked).await.map(drop)
}

fn completed(draft: &Draft) -> wire::CreateRequestRequest {
    wire::CreateRequestRequest {
        resource: draft.resource.to_string(),
        hosts: vec![draft.host.to_string()],
        duration: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        reason: "slow query".to_owned(),
        draft: draft.id.to_string(),
        key: "4711".to_owned(),
        ..wire::CreateRequestRequest::default()
    }
}

async fn opened(world: &mut World) -> Vec<AuditEvent> {
    world.record().await.into_iter().filter(|event| event.kind == EventKind::DraftOpened).collect()
}

#[tokio::test]
async fn a_denial_opens_a_draft_that_its_subject_completes() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let mut mallory = world.subject("user:mallory", SubjectRole::Member).await;
    world.resource("cache", "10.0.0.9").await;
    let (mut agent, _) = FakeAgent::start(&world, &story.host).await;

    // Nobody wants it yet.
    agent.batch(vec![denied(&agent, 1, "user:alice", "db")]).await;
    assert_eq!(acknowledged(&mut agent).await, 1);
    assert_eq!(listed(&mut world.admin, false).await, (Vec::new(), 0));

    want_drafts(&mut world, "db", true).await;
    let batch = vec![
        denied(&agent, 2, "user:alice", "db"),
        denied(&agent, 3, "user:alice", "db"),
        denied(&agent, 4, "user:alice", "cache"),
        denied(&agent, 5, "user:nobody", "db"),
        denied(&agent, 6, "", "db"),
        denied(&agent, 7, "user:alice", "nothing"),
    ];
    agent.batch(batch.clone()).await;
    assert_eq!(acknowledged(&mut agent).await, 7);
    // What is sent again is not counted again.
    agent.batch(batch).await;
    assert_eq!(acknowledged(&mut agent).await, 7);
    agent.batch(vec![denied(&agent, 8, "user:alice", "db")]).await;
    assert_eq!(acknowledged(&mut agent).await, 8);

    let (own, _) = listed(&mut story.alice, false).await;
    let [draft] = own.as_slice() else { panic!("{own:?} is not one") };
    assert_eq!((draft.resource.as_str(), draft.host.as_str(), draft.attempts), ("db", "db-7", 3));
    assert_eq!(draft.lapses.since(draft.first).as_secs(), 24 * 3600);
    assert_eq!(listed(&mut story.dora, false).await.0, own);
    assert_eq!(listed(&mut story.dora, true).await.0, []);
    assert_eq!(listed(&mut mallory, false).await.0, []);
    let events = opened(&mut world).await;
    assert_eq!(events.len(), 1, "one draft, one event");
    let told = format!("complete it with: portcullis request --draft {} --for 30m --reason TEXT", draft.id);
    assert_eq!((events[0].subject.as_str(), events[0].comment.as_str()), ("user:alice", told.as_str()));
    assert_eq!((events[0].host.as_str(), events[0].expires), ("db-7", Some(draft.lapses)));
    assert_eq!(story.alice.requests(true).await.len(), 0, "it is no request");

    // It is for its subject only, and for what it is of.
    let unknown = format!("draft {} is not known", draft.id);
    refused(mallory.create(completed(draft)).await, ErrorKind::NotFound, &unknown);
    refused(world.admin.create(completed(draft)).await, ErrorKind::NotFound, &unknown);
    let other = wire::CreateRequestRequest { hosts: Vec::new(), key: "1".to_owned(), ..completed(draft) };
    refused(story.alice.create(other).await, ErrorKind::InvalidArgument, "is of `db` on host `db-7`");
    refused(drop_draft(&mut mallory, draft).await, ErrorKind::NotFound, &unknown);
    refused(drop_draft(&mut story.dora, draft).await, ErrorKind::NotFound, &unknown);

    let made = story.alice.create(completed(draft)).await.expect("made");
    assert_eq!(made.state, RequestState::Pending);
    assert_eq!(listed(&mut world.admin, false).await.0, []);
    assert_eq!(story.alice.create(completed(draft)).await.expect("is there").id, made.id, "the same wish");
    let again = wire::CreateRequestRequest { key: "2".to_owned(), ..completed(draft) };
    refused(story.alice.create(again).await, ErrorKind::NotFound, &unknown);

    // The next attempt opens another one; it is dropped, or gone with its resource.
    agent.batch(vec![denied(&agent, 9, "user:alice", "db")]).await;
    assert_eq!(acknowledged(&mut agent).await, 9);
    let (own, _) = listed(&mut story.alice, true).await;
    drop_draft(&mut story.alice, &own[0]).await.expect("dropped");
    assert_eq!(listed(&mut story.alice, true).await.0, []);
    want_drafts(&mut world, "db", false).await;
    agent.batch(vec![denied(&agent, 10, "user:alice", "db")]).await;
    assert_eq!(acknowledged(&mut agent).await, 10);
    assert_eq!(listed(&mut story.alice, true).await.0, []);
}

#[tokio::test]
async fn one_subject_fills_no_list_but_its_own() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    for number in 0..=101 {
        let name = format!("r-{number}");
        world.resource(&name, &format!("10.1.0.{number}")).await;
        want_drafts(&mut world, &name, true).await;
    }
    let (mut agent, _) = FakeAgent::start(&world, &story.host).await;
    let tries = (0..=101).map(|at| denied(&agent, at + 1, "user:alice", &format!("r-{at}"))).collect();
    agent.batch(tries).await;
    assert_eq!(acknowledged(&mut agent).await, 102);
    let (own, left_out) = listed(&mut story.alice, true).await;
    assert_eq!((own.len(), left_out), (100, 0), "how many were left out is for those who see them all");
    agent.batch(vec![denied(&agent, 103, "user:dora", "r-0")]).await;
    assert_eq!(acknowledged(&mut agent).await, 103);
    let (all, left_out) = listed(&mut world.admin, false).await;
    assert_eq!((all.len(), left_out), (101, 2));
    assert_eq!(opened(&mut world).await.len(), 101);
}
