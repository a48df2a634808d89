//! Reports: what was granted against what was used, and the access review.

use proto::status::ErrorKind;
use proto::types::{
    Connection, EndReason, EventKind, GrantId, GrantState, GrantUse, HostEnd, Receipt, RequestState,
    ReviewedAccess, SubjectRole, Usage,
};
use proto::wire::audit::AuditEvent as WireEvent;
use proto::wire::report as wire;
use tonic::Status;

use super::policy::{AUTOMATIC, apply, files};
use super::world::{Caller, FakeAgent, World, refused, until};

/// Long before and long after everything that happens here.
fn always() -> (Option<prost_types::Timestamp>, Option<prost_types::Timestamp>) {
    let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
    (at(1), at(200_000_000_000))
}

async fn uses(caller: &mut Caller) -> Result<Vec<GrantUse>, Status> {
    let (from, to) = always();
    let asked = wire::ListGrantUsesRequest { from, to, ..wire::ListGrantUsesRequest::default() };
    let answer = caller.report.list_grant_uses(asked).await?.into_inner();
    assert_eq!(answer.next, "");
    Ok(answer.grants.into_iter().map(|grant| grant.try_into().expect("valid")).collect())
}

async fn review(caller: &mut Caller, after: &str, limit: u32) -> (Vec<ReviewedAccess>, String) {
    let (from, to) = always();
    let asked = wire::ReviewAccessRequest { from, to, after: after.to_owned(), limit };
    let answer = caller.report.review_access(asked).await.expect("answered").into_inner();
    (answer.grants.into_iter().map(|grant| grant.try_into().expect("valid")).collect(), answer.next)
}

fn allowed(agent: &FakeAgent, sequence: u64, grant: GrantId, port: u16) -> WireEvent {
    let connection = Connection { protocol: "tcp".into(), port, ..Connection::default() };
    WireEvent {
        grant: grant.to_string(),
        connection: Some(connection.into()),
        kind: proto::wire::audit::EventKind::from(EventKind::ConnectionAllowed).into(),
        ..agent.event(sequence)
    }
}

fn receipt(agent: &FakeAgent, sequence: u64, grant: GrantId) -> WireEvent {
    WireEvent {
        grant: grant.to_string(),
        reason: "idle".into(),
        receipt: Some(Receipt::default().into()),
        kind: proto::wire::audit::EventKind::from(EventKind::GrantReceipt).into(),
        ..agent.event(sequence)
    }
}

/// A grant of alice's that dora has approved and `db-7` holds.
async fn granted(story: &mut super::world::Story, agent: &mut FakeAgent, live: usize) -> GrantId {
    let request = story.alice.request(600).await.expect("made");
    let grant = story.dora.approve(request.id).await.expect("approved");
    let set = agent.set_with(live).await;
    agent.applied(set.generation).await;
    until(async || {
        let found = story.alice.clone().grants(true).await;
        found.iter().any(|found| found.id == grant.id && found.state == GrantState::Active)
    })
    .await;
    grant.id
}

#[tokio::test]
async fn what_was_granted_against_what_was_used() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let mut otto = world.subject("user:otto", SubjectRole::Auditor).await;
    let (mut agent, first) = FakeAgent::start(&world, &story.host).await;
    agent.applied(first.generation).await;
    let used = granted(&mut story, &mut agent, 1).await;

    let of = async |otto: &mut Caller, grant: GrantId| {
        let found = uses(otto).await.expect("allowed");
        found.into_iter().find(|found| found.grant == grant).expect("is there")
    };
    let before = of(&mut otto, used).await;
    assert_eq!((before.usage, before.hosts, before.hosts_used), (Usage::Unknown, 1, 0));
    assert_eq!(before.notes, ["it has not ended; nobody is known to have been let through so far"]);

    // What it let through counts, once however often it is sent; what is said of grants that the host never had does not.
    let stranger = GrantId::new();
    let batch = |agent: &FakeAgent| {
        vec![
            allowed(agent, 1, used, 5432),
            allowed(agent, 2, used, 5432),
            allowed(agent, 3, stranger, 5432),
            receipt(agent, 4, stranger),
        ]
    };
    for _ in 0..2 {
        agent.batch(batch(&agent)).await;
        assert_eq!(agent.acknowledged().await, 4);
    }
    agent.batch(vec![allowed(&agent, 5, used, 5433)]).await;
    assert_eq!(agent.acknowledged().await, 5);
    let after = of(&mut otto, used).await;
    assert_eq!((after.usage, after.hosts_used, after.connections), (Usage::Used, 1, 3));
    assert_eq!(after.ports_used, ["tcp/5432", "tcp/5433"]);
    assert!(after.used.is_some_and(|(first, last)| first <= last && first >= after.since));

    // Many ports are one line.
    let many = (6..=200).map(|sequence| allowed(&agent, sequence, used, 10_000 + sequence as u16));
    agent.batch(many.collect()).await;
    assert_eq!(agent.acknowledged().await, 200);
    let after = of(&mut otto, used).await;
    assert_eq!((after.connections, after.ports_used.len()), (198, 64));

    // Ended, with the host's word that nobody was let through: unused, until it tells of lost verdicts.
    story.dora.revoke(used).await.expect("revoked");
    let set = agent.set_with(0).await;
    agent.applied(set.generation).await;
    let idle = granted(&mut story, &mut agent, 1).await;
    agent.ended(idle, HostEnd::Idle).await;
    let set = agent.set_with(0).await;
    agent.applied(set.generation).await;
    until(async || {
        let grants = story.alice.clone().grants(true).await;
        grants.iter().any(|it| it.id == idle && it.state == GrantState::Ended(EndReason::Idle))
    })
    .await;
    let silent = of(&mut otto, idle).await;
    assert_eq!(
        (silent.usage, silent.notes),
        (Usage::Unknown, vec!["no word of 1 of 1 hosts: db-7".to_owned()])
    );
    agent.batch(vec![receipt(&agent, 201, idle)]).await;
    assert_eq!(agent.acknowledged().await, 201);
    assert_eq!(of(&mut otto, idle).await.usage, Usage::Unused);
    let gap = proto::wire::audit::Gap { r#where: "kernel.allow".into(), lost: 1, ..Default::default() };
    let gap = WireEvent {
        gap: Some(gap),
        kind: proto::wire::audit::EventKind::AuditGap.into(),
        ..agent.event(202)
    };
    agent.batch(vec![gap]).await;
    assert_eq!(agent.acknowledged().await, 202);
    let lost = of(&mut otto, idle).await;
    assert_eq!((lost.usage, &*lost.notes[0]), (Usage::Unknown, "1 of 1 hosts lost verdicts meanwhile: db-7"));

    // Filters, and who may ask.
    let (from, to) = always();
    let asked = wire::ListGrantUsesRequest { from, to, limit: 1, ..wire::ListGrantUsesRequest::default() };
    let first = otto.report.list_grant_uses(asked.clone()).await.expect("allowed").into_inner();
    assert_eq!((first.grants[0].grant.clone(), first.next.clone()), (used.to_string(), used.to_string()));
    let asked = wire::ListGrantUsesRequest { after: first.next, ..asked };
    let second = otto.report.list_grant_uses(asked.clone()).await.expect("allowed").into_inner();
    assert_eq!((second.grants[0].grant.clone(), second.next), (idle.to_string(), String::new()));
    for (subject, resource, found) in [("user:alice", "db", 2), ("user:dora", "", 0), ("", "vault", 0)] {
        let asked = wire::ListGrantUsesRequest {
            subject: subject.into(),
            resource: resource.into(),
            after: String::new(),
            limit: 0,
            ..asked.clone()
        };
        let grants = otto.report.list_grant_uses(asked).await.expect("allowed").into_inner().grants;
        assert_eq!(grants.len(), found, "{subject} {resource}");
    }
    let earlier = wire::ListGrantUsesRequest {
        to: from.map(|from| prost_types::Timestamp { seconds: from.seconds + 1, nanos: 0 }),
        after: String::new(),
        ..asked.clone()
    };
    assert!(otto.report.list_grant_uses(earlier).await.expect("allowed").into_inner().grants.is_empty());
    let bad = wire::ListGrantUsesRequest { from: to, to: from, ..asked };
    refused(otto.report.list_grant_uses(bad).await, ErrorKind::InvalidArgument, "to: is not after `from`");
    refused(uses(&mut story.dora).await, ErrorKind::PermissionDenied, "ReportService.ListGrantUses");
    refused(uses(&mut story.alice).await, ErrorKind::PermissionDenied, "ReportService.ListGrantUses");
    let kept = of(&mut otto, used).await;
    world.restart().await;
    assert_eq!(of(&mut world.admin, used).await, kept);
}

#[tokio::test]
async fn a_role_that_is_too_wide_has_a_narrower_one() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let ask = |period: (Option<prost_types::Timestamp>, Option<prost_types::Timestamp>)| {
        wire::SuggestRolesRequest { from: period.0, to: period.1 }
    };
    let none = world.admin.report.suggest_roles(ask(always())).await;
    refused(none, ErrorKind::NotFound, "policy");
    apply(&mut world.admin, 0, files(AUTOMATIC, &[])).await.expect("applied");
    let (mut agent, first) = FakeAgent::start(&world, &story.host).await;
    agent.applied(first.generation).await;
    let grant = story.alice.request(60).await.expect("made").grant.expect("at once");
    let set = agent.set_with(1).await;
    agent.applied(set.generation).await;
    agent.batch(vec![allowed(&agent, 1, grant, 5432)]).await;
    assert_eq!(agent.acknowledged().await, 1);
    let answer = world.admin.report.suggest_roles(ask(always())).await.expect("allowed").into_inner();
    assert!(!answer.more);
    let role = &answer.roles[0];
    assert_eq!((&*role.role, role.grants, role.unused, role.unknown), ("routine", 1, 0, 0));
    assert_eq!(role.subjects, ["user:alice"]);
    let mut dora = story.dora.clone();
    refused(dora.report.suggest_roles(ask(always())).await, ErrorKind::PermissionDenied, "SuggestRoles");
}

#[tokio::test]
async fn who_waits_for_long_is_told() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let first = story.alice.request(60).await.expect("made");
    let second = story.alice.request(120).await.expect("made");
    let ask = |seconds: i64, limit| wire::ListWaitingRequest {
        longer_than: Some(prost_types::Duration { seconds, nanos: 0 }),
        limit,
    };
    let waiting = async |caller: &mut Caller, seconds, limit| {
        let answer = caller.report.list_waiting(ask(seconds, limit)).await.expect("allowed").into_inner();
        answer.requests.into_iter().map(|request| request.id).collect::<Vec<_>>()
    };
    assert_eq!(waiting(&mut story.dora, 0, 0).await, [first.id.to_string(), second.id.to_string()]);
    assert_eq!(waiting(&mut story.dora, 0, 1).await, [first.id.to_string()], "the oldest first");
    assert!(waiting(&mut story.dora, 3600, 0).await.is_empty());
    assert!(waiting(&mut story.dora, i64::MAX, 0).await.is_empty());
    let negative = story.dora.report.list_waiting(ask(-1, 0)).await;
    refused(negative, ErrorKind::InvalidArgument, "longer_than: -1 s is negative");
    refused(story.alice.report.list_waiting(ask(0, 0)).await, ErrorKind::PermissionDenied, "ListWaiting");
}

#[tokio::test]
async fn the_review_names_everything_with_its_events() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let mut otto = world.subject("user:otto", SubjectRole::Auditor).await;
    let (mut agent, first) = FakeAgent::start(&world, &story.host).await;
    agent.applied(first.generation).await;
    let grant = granted(&mut story, &mut agent, 1).await;
    let (longer, _) = story.alice.extend(grant, 60).await.expect("asked");
    assert_eq!(longer.state, RequestState::Pending);
    story.dora.approve(longer.id).await.expect("approved");
    let set = agent.set_with(1).await;
    agent.applied(set.generation).await;
    agent.batch(vec![allowed(&agent, 1, grant, 5432), receipt(&agent, 2, grant)]).await;
    assert_eq!(agent.acknowledged().await, 2);
    story.dora.revoke(grant).await.expect("revoked");
    let set = agent.set_with(0).await;
    agent.applied(set.generation).await;
    until(async || story.alice.clone().grants(false).await.is_empty()).await;
    let other = granted(&mut story, &mut agent, 1).await;

    let (page, next) = review(&mut otto, "", 1).await;
    assert_eq!(next, grant.to_string());
    let line = &page[0];
    assert_eq!(
        (line.usage.grant, line.requester.as_str(), &*line.state),
        (grant, "user:alice", "ended (revoked)")
    );
    assert_eq!((line.usage.usage, line.usage.connections), (Usage::Used, 1));
    assert_eq!(line.hosts.iter().map(|host| host.as_str()).collect::<Vec<_>>(), ["db-7"]);
    let votes: Vec<(&str, bool)> = line.votes.iter().map(|vote| (vote.by.as_str(), vote.yes)).collect();
    assert_eq!(votes, [("user:dora", true), ("user:dora", true)], "also those about a longer time");
    assert_eq!(line.extensions, 1);
    assert!(line.requested <= line.approved.expect("was") && line.approved <= line.active);
    assert!(line.active <= line.ended && line.ended.is_some());
    let events: Vec<&str> = line.events.iter().map(|event| event.event.as_str()).collect();
    assert_eq!(
        events,
        [
            "request.created",
            "request.approved",
            "grant.issued",
            "grant.active",
            "request.created",
            "request.approved",
            "grant.extended",
            "grant.receipt",
            "grant.ending",
            "grant.ended"
        ]
    );
    assert!(!line.more_events);
    // Each of them is the line of the record that it says.
    let record = world.record().await;
    for reference in &line.events {
        let event = record.iter().find(|event| event.position == reference.position).expect("is there");
        assert_eq!(
            (event.id.to_string(), event.kind.to_string(), event.time),
            (reference.id.clone(), reference.event.clone(), reference.time)
        );
    }
    let (page, next) = review(&mut otto, &next, 1).await;
    assert_eq!((page[0].usage.grant, next), (other, String::new()));
    assert_eq!((page[0].ended, &*page[0].state), (None, "active"));
    let (whole, _) = review(&mut world.admin, "", 0).await;
    assert_eq!(whole.len(), 2);
    let (from, to) = always();
    let asked = wire::ReviewAccessRequest { from, to, ..wire::ReviewAccessRequest::default() };
    refused(
        story.dora.report.review_access(asked.clone()).await,
        ErrorKind::PermissionDenied,
        "ReviewAccess",
    );
    let bad = wire::ReviewAccessRequest { after: "nobody".into(), ..asked };
    refused(otto.report.review_access(bad).await, ErrorKind::InvalidArgument, "after:");
}
