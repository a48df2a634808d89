//! The audit record: what agents send, what followers get.

use proto::status::ErrorKind;
use proto::types::{EventKind, SubjectRole};
use proto::wire::access::IssueTokenRequest;
use proto::wire::audit::{AuditEvent, EventId, TailRequest};

use super::world::{FakeAgent, World, next_event, refused};

async fn agent(world: &mut World) -> FakeAgent {
    let token = world.host("db-7").await;
    FakeAgent::start(world, &token).await.0
}

#[tokio::test]
async fn batches_are_kept_once_and_in_order() {
    let mut world = World::new().await;
    let mut agent = agent(&mut world).await;
    agent.batch(vec![agent.event(1), agent.event(2)]).await;
    assert_eq!(agent.acknowledged().await, 2);
    agent.batch(vec![agent.event(1), agent.event(2)]).await;
    assert_eq!(agent.acknowledged().await, 2, "a repeat is acknowledged again");
    agent.batch(vec![agent.event(2), agent.event(3)]).await;
    assert_eq!(agent.acknowledged().await, 3);
    world.restart().await;
    let record = world.record().await;
    let kept = record.iter().filter(|event| event.id.source() == "db-7");
    let sequences: Vec<u64> = kept.map(|event| event.id.sequence).collect();
    assert_eq!(sequences, [1, 2, 3]);
    assert!(record.iter().zip(1..).all(|(event, position)| event.position == position));
}

#[tokio::test]
async fn what_does_not_continue_the_record_is_refused() {
    type Change = fn(&mut AuditEvent);
    let change: [(Change, &str); 6] = [
        (|event| id(event).sequence = 4, "audit.events[0].id.sequence: expected 3, got 4"),
        (
            |event| id(event).source = "db-8".to_owned(),
            "audit.events[0].id.source: `db-8` is not this session's",
        ),
        (|event| id(event).epoch = uuid::Uuid::from_u128(9).to_string(), "sequence: expected 1, got 3"),
        (|event| event.host = "db-8".to_owned(), "audit.events[0].host: is not this session's host"),
        (|event| event.kind = 999, "audit.events[0].kind: is missing or unknown"),
        (
            |event| event.set_kind(proto::wire::audit::EventKind::RequestApproved),
            "is not for an agent to say",
        ),
    ];
    let mut world = World::new().await;
    let token = world.host("db-7").await;
    for (change, words) in change {
        let (mut agent, _) = FakeAgent::start(&world, &token).await;
        agent.batch(vec![agent.event(1), agent.event(2)]).await;
        assert_eq!(agent.acknowledged().await, 2);
        let mut event = agent.event(3);
        change(&mut event);
        agent.batch(vec![event]).await;
        refused::<()>(Err(agent.end().await), ErrorKind::InvalidArgument, words);
    }
    let (mut agent, _) = FakeAgent::start(&world, &token).await;
    agent.batch(Vec::new()).await;
    refused::<()>(Err(agent.end().await), ErrorKind::InvalidArgument, "a batch is never empty");
    let (mut agent, _) = FakeAgent::start(&world, &token).await;
    agent.batch((3..=515).map(|sequence| agent.event(sequence)).collect()).await;
    refused::<()>(Err(agent.end().await), ErrorKind::InvalidArgument, "is one more than the 512 of a batch");
    let kept = world.record().await.into_iter().filter(|event| event.id.source() == "db-7").count();
    assert_eq!(kept, 2, "nothing of a refused batch is kept");
}

fn id(event: &mut AuditEvent) -> &mut EventId {
    event.id.as_mut().expect("is there")
}

#[tokio::test]
async fn followers_get_what_is_stored() {
    let mut world = World::new().await;
    let agent = agent(&mut world).await;
    let mut otto = world.subject("user:otto", SubjectRole::Auditor).await;
    let newest = world.record().await.len() as u64;
    let follow = TailRequest { after_position: newest, follow: true, last: 0 };
    let mut following = otto.audit.tail(follow).await.expect("allowed").into_inner();
    for first in (1..3000).step_by(500) {
        agent.batch((first..first + 500).map(|sequence| agent.event(sequence)).collect()).await;
    }
    for (position, sequence) in (newest + 1..).zip(1..=3000) {
        let event = next_event(&mut following).await.expect("goes on");
        assert_eq!((event.position, event.id.sequence), (position, sequence));
    }
    let last = otto.tail(TailRequest { after_position: 0, follow: false, last: 2 }).await;
    assert_eq!(last.iter().map(|event| event.id.sequence).collect::<Vec<_>>(), [2999, 3000]);
    let after = otto.tail(TailRequest { after_position: newest + 2999, follow: false, last: 0 }).await;
    assert_eq!(after.len(), 1);
    let none = otto.tail(TailRequest { after_position: newest + 3000, follow: false, last: 0 }).await;
    assert!(none.is_empty());
    let beyond = TailRequest { after_position: newest + 3001, follow: true, last: 0 };
    refused(otto.audit.tail(beyond).await, ErrorKind::OutOfRange, "lies beyond the newest event");
    let many = TailRequest { after_position: 0, follow: false, last: 10_001 };
    refused(otto.audit.tail(many).await, ErrorKind::InvalidArgument, "10001 is above 10000");
    world.stop().await;
    let end = loop {
        match following.message().await {
            // The agent was at another control plane, which stopped earlier.
            Ok(Some(event)) => {
                assert_eq!(
                    event.event.map(|event| event.kind()),
                    Some(proto::wire::audit::EventKind::AgentDisconnected)
                );
            }
            end => break end,
        }
    };
    refused(end, ErrorKind::Unavailable, "the control plane is stopping");
}

#[tokio::test]
async fn a_follower_does_not_outlive_its_token() {
    let mut world = World::new().await;
    let mut otto = world.subject("user:otto", SubjectRole::Auditor).await;
    let follow = TailRequest { after_position: 0, follow: true, last: 0 };
    let mut following = otto.audit.tail(follow).await.expect("allowed").into_inner();
    next_event(&mut following).await.expect("there are some");
    let issue = IssueTokenRequest { subject: "user:otto".to_owned() };
    world.admin.directory.issue_token(issue).await.expect("issued");
    let end = super::world::within(async {
        loop {
            match following.message().await {
                Ok(Some(_)) => {}
                end => return end,
            }
        }
    })
    .await;
    refused(end, ErrorKind::Unauthenticated, "the token has ended");
}

#[tokio::test]
async fn refused_calls_do_not_flood_the_record() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    for _ in 0..50 {
        let refused_call = story.alice.audit.tail(TailRequest::default()).await;
        refused(refused_call, ErrorKind::PermissionDenied, "may not call AuditService.Tail");
    }
    let mut counted = 0;
    let mut lines = 0;
    super::world::within(async {
        while counted < 50 {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            let refusals =
                world.record().await.into_iter().filter(|event| event.kind == EventKind::CallRefused);
            let others = refusals.map(|event| {
                let others = event.comment.split(['(', ' ']).find_map(|word| word.parse::<usize>().ok());
                1 + others.unwrap_or(0)
            });
            let others: Vec<usize> = others.collect();
            (counted, lines) = (others.iter().sum(), others.len());
        }
    })
    .await;
    assert!(counted == 50 && lines <= 10, "{counted} in {lines} lines");
}
