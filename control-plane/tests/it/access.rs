//! From a wish to a grant and to its end.

use std::time::Duration;

use proto::status::ErrorKind;
use proto::types::{
    AccessFilter, Certainty, EndReason, EventKind, GrantId, GrantState, HostEnd, NewRequest, RequestState,
    SubjectRole,
};
use proto::wire::access as wire;
use proto::wire::agent::refused::Item;
use proto::wire::agent::session_request::Message as Said;
use proto::wire::agent::session_response::Message as Answer;

use super::world::{FakeAgent, World, hello, refused, resource, until};

#[tokio::test]
async fn a_grant_from_wish_to_end() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let (mut agent, first) = FakeAgent::start(&world, &story.host).await;
    assert_eq!((first.resources.len(), first.subjects.len(), first.grants.len()), (1, 3, 0));
    agent.applied(first.generation).await;

    let request = story.alice.request(600).await.expect("made");
    assert_eq!(request.state, RequestState::Pending);
    let own = story.alice.approve(request.id).await;
    refused(own, ErrorKind::PermissionDenied, "it asked for it itself");
    let watching = tokio::spawn({
        let mut alice = story.alice.clone();
        async move { alice.watch(request.id).await }
    });
    let grant = story.dora.approve(request.id).await.expect("approved");
    assert_eq!(grant.state, GrantState::Activating);

    let set = agent.set_with(1).await;
    assert!(set.generation > first.generation);
    assert_eq!(set.grants[0].id, grant.id);
    assert!(set.grants[0].remaining.as_secs() >= 590);
    agent.applied(set.generation).await;
    let seen = watching.await.expect("no panic");
    let last = seen.last().expect("at least one").clone();
    assert_eq!(last.0.state, RequestState::Approved);
    let active = last.1.expect("approved");
    assert_eq!(active.state, GrantState::Active);
    assert!(active.hosts[0].held);

    let again = story.dora.approve(request.id).await;
    refused(again, ErrorKind::FailedPrecondition, "is approved already: `user:dora` decided at 20");

    let ending = story.dora.revoke(grant.id).await.expect("revoked");
    assert_eq!(ending.state, GrantState::Ending(EndReason::Revoked));
    assert!(ending.hosts[0].held, "its kernel still may hold it");
    refused(story.dora.revoke(grant.id).await, ErrorKind::FailedPrecondition, "is ending (revoked) already");
    let without = agent.set_with(0).await;
    // A late answer about the set with the grant does not count as its end.
    agent.applied(set.generation).await;
    agent.applied(without.generation).await;
    until(async || story.alice.clone().grants(false).await.is_empty()).await;
    let ended = story.alice.grants(true).await.remove(0);
    assert_eq!(ended.state, GrantState::Ended(EndReason::Revoked));
    assert!(ended.ended.is_some() && !ended.hosts[0].held);

    let record = world.record().await;
    let kinds: Vec<String> = record
        .iter()
        .map(|event| {
            // The serial number of a certificate is a random one.
            let comment = match event.kind {
                EventKind::HostJoined => "certificate …",
                _ => &*event.comment,
            };
            let story =
                [&*event.actor, &*event.credential, &*event.subject, &*event.reason, comment].join(" | ");
            format!("{} | {story}", event.kind)
        })
        .collect();
    // It is the same on each kind of database.
    insta::with_settings!({ prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!(kinds.join("\n"));
    });
    for (index, event) in record.iter().enumerate() {
        assert_eq!((event.position, event.id.sequence), (index as u64 + 1, index as u64 + 1));
        assert_eq!(event.id.source(), "control-plane");
    }
    world.stop().await;
}

#[tokio::test]
async fn nobody_decides_their_own() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let own = story.dora.request(60).await.expect("made");
    refused(story.dora.approve(own.id).await, ErrorKind::PermissionDenied, "it asked for it itself");
    let new = wire::CreateRequestRequest {
        resource: "db".to_owned(),
        subject: "user:dora".to_owned(),
        duration: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        reason: "why not".to_owned(),
        ..wire::CreateRequestRequest::default()
    };
    let for_dora = world.admin.create(new.clone()).await.expect("administrators ask for anybody");
    refused(story.dora.approve(for_dora.id).await, ErrorKind::PermissionDenied, "the access is for itself");
    refused(world.admin.approve(for_dora.id).await, ErrorKind::PermissionDenied, "it asked for it itself");
    refused(story.alice.create(new).await, ErrorKind::PermissionDenied, "may not ask for `user:dora`");
    assert!(world.admin.grants(true).await.is_empty());
    let refusals = world.record().await.into_iter().filter(|event| event.kind == EventKind::CallRefused);
    // How many of them are only counted depends on the second in which they fall.
    let refusals = refusals.map(|event| {
        let method = event.comment.split(' ').next().unwrap_or_default();
        format!("{} {} {method}", event.actor, event.reason)
    });
    assert_eq!(
        refusals.collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>(),
        [
            "user:admin permission_denied AccessService.ApproveRequest",
            "user:alice permission_denied AccessService.CreateRequest",
            "user:dora permission_denied AccessService.ApproveRequest",
        ]
    );
}

#[tokio::test]
async fn bad_requests_change_nothing() {
    let mut world = World::new().await;
    let good = wire::CreateRequestRequest {
        resource: "db".to_owned(),
        duration: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        reason: "why not".to_owned(),
        ..wire::CreateRequestRequest::default()
    };
    world.resource("db", "10.0.0.7").await;
    let no_host = world.admin.create(good.clone()).await;
    refused(no_host, ErrorKind::FailedPrecondition, "an administrator adds a host first");
    world.host("db-7").await;
    let duration = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
    let bad = [
        (
            wire::CreateRequestRequest { resource: "dc".into(), ..good.clone() },
            ErrorKind::NotFound,
            "resource `dc`",
        ),
        (
            wire::CreateRequestRequest { subject: "user:eve".into(), ..good.clone() },
            ErrorKind::NotFound,
            "`user:eve`",
        ),
        (
            wire::CreateRequestRequest { hosts: vec!["x".into()], ..good.clone() },
            ErrorKind::NotFound,
            "host `x`",
        ),
        (
            wire::CreateRequestRequest { reason: " ".into(), ..good.clone() },
            ErrorKind::InvalidArgument,
            "reason",
        ),
        (
            wire::CreateRequestRequest { duration: duration(0, 0), ..good.clone() },
            ErrorKind::InvalidArgument,
            "0",
        ),
        (
            wire::CreateRequestRequest { duration: duration(1, 5), ..good.clone() },
            ErrorKind::InvalidArgument,
            "1 s",
        ),
        (
            wire::CreateRequestRequest { duration: duration(-1, 0), ..good.clone() },
            ErrorKind::InvalidArgument,
            "-1",
        ),
        (
            wire::CreateRequestRequest { duration: None, ..good.clone() },
            ErrorKind::InvalidArgument,
            "missing",
        ),
        (
            wire::CreateRequestRequest { duration: duration(3601, 0), ..good.clone() },
            ErrorKind::InvalidArgument,
            "duration: 1h 1s is above the maximum of 1h",
        ),
    ];
    for (new, kind, words) in bad {
        refused(world.admin.create(new).await, kind, words);
    }
    refused(
        world.admin.approve("01940000-0000-7000-8000-000000000001".parse().expect("valid")).await,
        ErrorKind::NotFound,
        "is not known",
    );
    refused(world.admin.revoke("7").await, ErrorKind::InvalidArgument, "`7` is not an id");
    let listed = world.admin.access.list_requests(wire::ListRequestsRequest { all: true, limit: 0 }).await;
    assert!(listed.expect("listed").into_inner().requests.is_empty());
}

#[tokio::test]
async fn members_see_their_own() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let mut eve = world.subject("user:eve", SubjectRole::Member).await;
    let mut otto = world.subject("user:otto", SubjectRole::Auditor).await;
    let request = story.alice.request(60).await.expect("made");
    let grant = story.dora.approve(request.id).await.expect("approved");
    for (caller, sees) in [(&mut eve, 0), (&mut otto, 1), (&mut story.alice, 1), (&mut story.dora, 1)] {
        let list = wire::ListRequestsRequest { all: true, limit: 0 };
        let requests = caller.access.list_requests(list).await.expect("listed").into_inner().requests;
        assert_eq!((requests.len(), caller.grants(true).await.len()), (sees, sees));
    }
    let watch = wire::WatchRequestRequest { id: request.id.to_string() };
    refused(eve.access.watch_request(watch).await, ErrorKind::NotFound, "is not known");
    let release = wire::ReleaseGrantRequest { id: grant.id.to_string() };
    let others = eve.access.release_grant(release.clone()).await;
    refused(others, ErrorKind::PermissionDenied, "does not hold grant");
    refused(
        eve.revoke(grant.id).await,
        ErrorKind::PermissionDenied,
        "may not call AccessService.RevokeGrant",
    );
    let released = story.alice.access.release_grant(release).await.expect("released").into_inner();
    assert_eq!(released.grant.expect("is there").end_reason(), wire::EndReason::Released);
}

#[tokio::test]
async fn a_denied_request_stays_denied() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let request = story.alice.request(60).await.expect("made");
    let deny = wire::DenyRequestRequest { id: request.id.to_string(), comment: "not today".to_owned() };
    let denied = story.dora.access.deny_request(deny.clone()).await.expect("denied").into_inner();
    assert_eq!(denied.request.expect("is there").comment, "not today");
    refused(story.dora.access.deny_request(deny).await, ErrorKind::FailedPrecondition, "is denied already");
    refused(world.admin.approve(request.id).await, ErrorKind::FailedPrecondition, "is denied already");
    let seen = story.alice.watch(request.id).await;
    assert_eq!(seen.len(), 1, "nothing more can come");
    assert_eq!((seen[0].0.state, &seen[0].1), (RequestState::Denied, &None));
}

#[tokio::test]
async fn what_a_kernel_cannot_take_ends_the_grant() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let other = world.host("db-8").await;
    let (mut agent, _) = FakeAgent::start(&world, &story.host).await;
    let request = story.alice.request(60).await.expect("made");
    let grant = story.dora.approve(request.id).await.expect("approved");
    let set = agent.set_with(1).await;
    agent.refuse(set.generation, Item::Grant(grant.id.to_string())).await;
    let without = agent.set_with(0).await;
    let ending = story.alice.grants(false).await.remove(0);
    assert_eq!(ending.state, GrantState::Ending(EndReason::ActivationFailed));
    assert_eq!((ending.hosts[0].error.as_str(), ending.hosts[1].held), ("map full", true));
    let seen = story.alice.watch(request.id).await;
    assert_eq!(seen.len(), 1, "it cannot become active any more");
    agent.applied(without.generation).await;
    // The other host never had it: its agent's hello says that its kernel holds nothing.
    let mut late = world.agent(&other).await;
    FakeAgent::open(&mut late, hello("db-8")).await.expect("a session");
    until(async || story.alice.clone().grants(false).await.is_empty()).await;
}

#[tokio::test]
async fn restarting_keeps_everything() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let pending = story.alice.request(60).await.expect("made");
    let granted = story.alice.request(120).await.expect("made");
    let grant = story.dora.approve(granted.id).await.expect("approved");
    let before = world.record().await;
    world.restart().await;
    assert_eq!(world.record().await[..before.len()], before[..]);
    let mut alice = world.caller(&story.alice.token).await;
    let list = wire::ListRequestsRequest::default();
    let open = alice.access.list_requests(list).await.expect("listed").into_inner().requests;
    assert_eq!(open.len(), 1);
    assert_eq!(open[0].id, pending.id.to_string());
    let (mut agent, set) = FakeAgent::start(&world, &story.host).await;
    assert_eq!(set.grants[0].id, grant.id);
    agent.applied(set.generation).await;
    assert_eq!(
        alice.watch(granted.id).await.pop().and_then(|seen| seen.1).expect("approved").state,
        GrantState::Active
    );
    world.resource("db2", "10.0.0.8").await;
    assert_eq!(agent.set().await.resources.len(), 2);
}

#[tokio::test]
async fn names_and_destinations_belong_to_one() {
    let mut world = World::new().await;
    world.story().await;
    let mut add = async |name, address| world.admin.directory.add_resource(resource(name, address)).await;
    refused(add("db", "10.0.0.9").await, ErrorKind::AlreadyExists, "resource `db` is there already");
    let taken = "10.0.0.7 on tcp/5432 belongs to resource `db`";
    refused(add("db2", "10.0.0.7").await, ErrorKind::FailedPrecondition, taken);
    refused(add("db2", "::ffff:10.0.0.7").await, ErrorKind::FailedPrecondition, taken);
    refused(add("db2", "10.0.0.7/33").await, ErrorKind::InvalidArgument, "10.0.0.7/33");
    add("net", "10.0.0.0/24").await.expect("a shorter prefix is no conflict");
    let subject = |id: &str, selector: &str| wire::AddSubjectRequest {
        subject: Some(wire::Subject {
            id: id.to_owned(),
            number: 0,
            selectors: vec![selector.to_owned()],
            role: wire::SubjectRole::Member.into(),
        }),
    };
    let directory = &mut world.admin.directory;
    directory.add_subject(subject("user:bob", "unix-user:bob")).await.expect("added");
    let taken = directory.add_subject(subject("user:bob2", "unix-user:bob")).await;
    refused(taken, ErrorKind::AlreadyExists, "selector `unix-user:bob` belongs to subject `user:bob`");
    let again = directory.add_subject(subject("user:alice", "unix-user:alice")).await;
    refused(again, ErrorKind::AlreadyExists, "subject `user:alice` is there already");
    let host = directory
        .add_host(wire::AddHostRequest { name: "db-7".to_owned(), ..wire::AddHostRequest::default() })
        .await;
    refused(host, ErrorKind::AlreadyExists, "host `db-7` is there already");
    let token = directory.issue_token(wire::IssueTokenRequest { subject: "user:nobody".to_owned() }).await;
    refused(token, ErrorKind::NotFound, "subject `user:nobody` is not known");
    let subjects = directory.list_subjects(wire::ListSubjectsRequest {}).await.expect("listed").into_inner();
    assert_eq!(subjects.subjects.len(), 4, "what was refused half way left nothing");
}

#[tokio::test]
async fn a_new_token_ends_the_one_before() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let issue = wire::IssueTokenRequest { subject: "user:alice".to_owned() };
    let token = world.admin.directory.issue_token(issue).await.expect("issued").into_inner().token;
    let old = story.alice.directory.list_hosts(wire::ListHostsRequest {}).await;
    refused(old, ErrorKind::Unauthenticated, "the token is not known");
    world.caller(&token).await.directory.list_hosts(wire::ListHostsRequest {}).await.expect("allowed");
    let nobody = world.caller("").await.directory.list_hosts(wire::ListHostsRequest {}).await;
    refused(nobody, ErrorKind::Unauthenticated, "no token came with the call");
    let host = world.agent(&story.host).await.access.list_grants(wire::ListGrantsRequest::default()).await;
    refused(host, ErrorKind::PermissionDenied, "`host:db-7` may not call AccessService.ListGrants");
}

#[tokio::test]
async fn a_grant_goes_on_where_no_host_has_ended_it() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let other_token = world.host("db-8").await;
    let (mut agent, _) = FakeAgent::start(&world, &story.host).await;
    let mut other =
        FakeAgent::open(&mut world.agent(&other_token).await, hello("db-8")).await.expect("a session");
    let mut new: wire::CreateRequestRequest = NewRequest {
        resource: "db".parse().expect("valid"),
        subject: None,
        hosts: Vec::new(),
        duration: Some(Duration::from_secs(600)),
        reason: "ticket 4711".parse().expect("valid"),
        idle: Some(Duration::from_secs(60)),
        while_running: None,
        run: None,
        action: None,
        role: None,
        key: None,
        draft: None,
    }
    .into();
    let request = story.alice.create(new.clone()).await.expect("made");
    let grant = story.dora.approve(request.id).await.expect("approved");
    assert_eq!(grant.idle, Some(Duration::from_secs(60)));
    let set = agent.set_with(1).await;
    assert_eq!(set.grants[0].idle, Some(Duration::from_secs(60)));
    agent.applied(set.generation).await;

    // It is idle on one host before the other has answered: the next set there is without it, and it becomes active.
    agent.ended(grant.id, HostEnd::Idle).await;
    let without = agent.set_with(0).await;
    agent.applied(set.generation).await;
    agent.applied(without.generation).await;
    let Ok(Answer::Welcome(_)) = other.next().await else { panic!("a welcome comes first") };
    let set = other.set_with(1).await;
    other.applied(set.generation).await;
    let active = async || story.alice.clone().grants(false).await.remove(0);
    until(async || active().await.state == GrantState::Active).await;
    let held: Vec<bool> = active().await.hosts.iter().map(|host| host.held).collect();
    assert_eq!(held, [false, true]);

    // Who was not given a grant cannot end it, nor can anybody end what nobody knows, or twice.
    let own = wire::CreateRequestRequest { hosts: vec!["db-8".to_owned()], ..new.clone() };
    let own = story.alice.create(own).await.expect("made");
    let elsewhere = story.dora.approve(own.id).await.expect("approved");
    agent.ended(elsewhere.id, HostEnd::Idle).await;
    agent.ended(GrantId::new(), HostEnd::TaskExit).await;
    agent.ended(grant.id, HostEnd::TaskExit).await;
    agent.batch(vec![agent.event(1)]).await;
    agent.acknowledged().await;
    assert!(story.alice.grants(false).await.iter().all(|grant| grant.state.end_reason().is_none()));

    // It is over when it is over everywhere, for the reason of the last.
    other.ended(grant.id, HostEnd::Idle).await;
    until(async || story.alice.clone().grants(false).await.len() == 1).await;
    let ended = story.alice.grants(true).await.into_iter().find(|found| found.id == grant.id).expect("there");
    assert_eq!(ended.state, GrantState::Ended(EndReason::Idle));
    let record = world.record().await;
    let story_of: Vec<(EventKind, &str, &str)> = record
        .iter()
        .filter(|event| event.grant == grant.id.to_string())
        .map(|event| (event.kind, event.actor.as_str(), event.reason.as_str()))
        .collect();
    assert_eq!(
        story_of,
        [
            (EventKind::GrantIssued, "user:dora", ""),
            (EventKind::GrantActive, "host:db-8", ""),
            (EventKind::GrantEnding, "host:db-8", "idle"),
            (EventKind::GrantEnded, "host:db-8", "idle"),
        ]
    );

    // A host finds some ends only.
    new.while_running = "/job".to_owned();
    refused(story.alice.create(new).await, ErrorKind::InvalidArgument, "the request is for 2");
    let revoked = proto::wire::agent::EndedGrant {
        grant: grant.id.to_string(),
        reason: wire::EndReason::Revoked.into(),
    };
    agent.say(Said::Ended(proto::wire::agent::Ended { grants: vec![revoked] })).await;
    refused::<()>(Err(agent.end().await), ErrorKind::InvalidArgument, "is not for a host to find");
}

#[tokio::test]
async fn a_removed_resource_leaves_its_past() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let (mut agent, _) = FakeAgent::start(&world, &story.host).await;
    let request = story.alice.request(60).await.expect("made");
    let pending = story.alice.request(60).await.expect("made");
    let grant = story.dora.approve(request.id).await.expect("approved");
    let remove = || wire::RemoveResourceRequest { name: "db".to_owned() };
    let live = world.admin.directory.remove_resource(remove()).await;
    let words = format!("grant {} of `user:alice` is activating / revoke", grant.id);
    refused(live, ErrorKind::FailedPrecondition, &words);
    let set = agent.set_with(1).await;
    story.dora.revoke(grant.id).await.expect("revoked");
    agent.applied(set.generation).await;
    let without = agent.set_with(0).await;
    let ending = world.admin.directory.remove_resource(remove()).await;
    refused(ending, ErrorKind::FailedPrecondition, "is ending (revoked)");
    agent.applied(without.generation).await;
    until(async || world.admin.clone().directory.remove_resource(remove()).await.is_ok()).await;
    assert_eq!(agent.set().await.resources, []);
    let gone = world.admin.directory.remove_resource(remove()).await;
    refused(gone, ErrorKind::NotFound, "resource `db` is not known");
    refused(story.dora.approve(pending.id).await, ErrorKind::FailedPrecondition, "resource `db` was removed");
    assert_ne!(world.resource("db", "10.0.0.7").await, 1, "a number never gets another name");
    assert_eq!(story.alice.grants(true).await[0].resource.as_str(), "db");
    refused(story.dora.approve(pending.id).await, ErrorKind::FailedPrecondition, "resource `db` was removed");
    let kinds: Vec<EventKind> = world.record().await.iter().map(|event| event.kind).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == EventKind::ResourceRemoved).count(), 1);
}

/// A grant on its way, held, and of a host that is not heard; members see their own.
#[tokio::test]
async fn who_has_access_is_what_hosts_have_confirmed() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let mut mallory = world.subject("user:mallory", SubjectRole::Member).await;
    let (mut agent, first) = FakeAgent::start(&world, &story.host).await;
    agent.applied(first.generation).await;
    let any = AccessFilter { limit: 10, ..AccessFilter::default() };
    assert_eq!(world.admin.who_has(&any).await, []);
    let request = story.alice.request(600).await.expect("made");
    let grant = story.dora.approve(request.id).await.expect("approved");
    let lines = world.admin.who_has(&any).await;
    assert_eq!(lines.iter().map(|line| line.certainty).collect::<Vec<_>>(), [Certainty::Possible]);
    let set = agent.set_with(1).await;
    agent.applied(set.generation).await;
    until(async || world.admin.clone().who_has(&any).await[0].certainty == Certainty::Held).await;

    let line = story.alice.who_has(&any).await.remove(0);
    assert_eq!((line.grant, line.until, line.reason.as_str()), (grant.id, grant.expires, "ticket 4711"));
    assert_eq!(line.approvers, ["user:dora".parse().expect("valid")]);
    assert_eq!(mallory.who_has(&any).await, []);
    let of = |subject: &str, host: &str, resource: &str| AccessFilter {
        subject: Some(subject.parse().expect("valid")),
        host: Some(host.parse().expect("valid")),
        resource: Some(resource.parse().expect("valid")),
        ..any.clone()
    };
    assert_eq!(world.admin.who_has(&of("user:alice", "db-7", "db")).await, std::slice::from_ref(&line));
    for (subject, host, resource) in
        [("user:dora", "db-7", "db"), ("user:alice", "db-8", "db"), ("user:alice", "db-7", "dc")]
    {
        assert_eq!(
            world.admin.who_has(&of(subject, host, resource)).await,
            [],
            "{subject} {host} {resource}"
        );
    }

    // Its agent is gone: the kernel may go on.
    drop(agent);
    until(async || world.admin.clone().who_has(&any).await[0].certainty == Certainty::Possible).await;
    story.dora.revoke(grant.id).await.expect("revoked");
    let lines = world.admin.who_has(&any).await;
    assert_eq!((lines.len(), lines[0].certainty, lines[0].until), (1, Certainty::Possible, grant.expires));

    // Of the past it is what was live then; a moment before there was none.
    let then = |at| AccessFilter { at: Some(at), ..any.clone() };
    let past = world.admin.who_has(&then(grant.issued)).await;
    assert_eq!((past.len(), past[0].certainty), (1, Certainty::Granted));
    assert_eq!(
        world.admin.who_has(&then(request.created)).await.len(),
        usize::from(request.created == grant.issued)
    );
}

/// Sessions, token, grants and requests, at once; enabled again they have a token, and nothing else.
#[tokio::test]
async fn whoever_is_disabled_is_out() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let (mut agent, first) = FakeAgent::start(&world, &story.host).await;
    agent.applied(first.generation).await;
    let granted = story.alice.request(600).await.expect("made");
    let grant = story.dora.approve(granted.id).await.expect("approved");
    let set = agent.set_with(1).await;
    agent.applied(set.generation).await;
    let waiting = story.alice.request(600).await.expect("made");
    let disable = |id: &str| wire::DisableSubjectRequest { subject: id.into(), comment: "HR-311".into() };
    let enable = |id: &str| wire::EnableSubjectRequest { subject: id.into(), comment: String::new() };
    let directory = &mut world.admin.directory;
    for (id, kind, words) in [
        ("user:eve", ErrorKind::NotFound, "subject `user:eve` is not known"),
        ("user:admin", ErrorKind::PermissionDenied, "cannot disable itself"),
    ] {
        refused(directory.disable_subject(disable(id)).await, kind, words);
    }
    refused(
        directory.enable_subject(enable("user:alice")).await,
        ErrorKind::FailedPrecondition,
        "`user:alice` is not disabled",
    );
    let ended = directory.disable_subject(disable("user:alice")).await.expect("disabled").into_inner();
    assert_eq!((ended.grants, ended.requests), (1, 1));
    refused(
        directory.disable_subject(disable("user:alice")).await,
        ErrorKind::FailedPrecondition,
        "`user:alice` is disabled already",
    );
    let listed = directory.list_subjects(wire::ListSubjectsRequest {}).await.expect("listed").into_inner();
    assert_eq!(listed.disabled.keys().collect::<Vec<_>>(), ["user:alice"]);

    // Her kernel entry goes, her token counts for nothing, and nobody gets her anything.
    let without = agent.set_with(0).await;
    agent.applied(without.generation).await;
    let out = story.alice.request(600).await;
    refused(out, ErrorKind::Unauthenticated, "the token is not known, or not any more");
    until(async || world.admin.clone().grants(false).await.is_empty()).await;
    let state = world.admin.grants(true).await.remove(0).state;
    assert_eq!(state, GrantState::Ended(EndReason::IdentityDisabled));
    refused(story.dora.approve(waiting.id).await, ErrorKind::FailedPrecondition, "is denied already");
    let for_her = wire::CreateRequestRequest {
        resource: "db".into(),
        subject: "user:alice".into(),
        duration: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        reason: "for her".into(),
        ..wire::CreateRequestRequest::default()
    };
    let for_her = world.admin.create(for_her).await;
    refused(for_her, ErrorKind::PermissionDenied, "`user:alice` is disabled");
    let told = world.last(EventKind::SubjectDisabled).await;
    assert_eq!(told.comment, "sessions 0, grants 1, requests 1: HR-311");
    assert_eq!(world.last(EventKind::GrantEnded).await.grant, grant.id.to_string());

    world.admin.directory.enable_subject(enable("user:alice")).await.expect("enabled");
    assert_eq!(story.alice.grants(false).await, []);
    assert_eq!(story.alice.request(600).await.expect("made").state, RequestState::Pending);
}

/// The same wish is one request; another one with its key is refused by name.
#[tokio::test]
async fn a_key_is_of_one_wish() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let wish = |seconds: u64| NewRequest {
        resource: "db".parse().expect("valid"),
        subject: None,
        hosts: Vec::new(),
        duration: Some(Duration::from_secs(seconds)),
        reason: "ticket 4711".parse().expect("valid"),
        idle: None,
        while_running: None,
        run: None,
        action: None,
        role: None,
        key: "4711".parse().ok(),
        draft: None,
    };
    let made = story.alice.create(wish(60).into()).await.expect("made");
    assert_eq!(story.alice.create(wish(60).into()).await.expect("is there").id, made.id);
    let other = story.alice.create(wish(61).into()).await.expect_err("is another wish");
    assert_eq!(
        other.message(),
        format!("key `4711` is that of request {}, which asks for something else", made.id)
    );
    assert_ne!(story.dora.create(wish(60).into()).await.expect("is dora's own").id, made.id);
    story.dora.approve(made.id).await.expect("approved");
    assert_eq!(story.alice.create(wish(60).into()).await.expect("is there").state.as_str(), "approved");
    let created = world.record().await.into_iter().filter(|event| event.kind == EventKind::RequestCreated);
    assert_eq!(created.count(), 2);
}

#[tokio::test]
async fn lists_of_access_come_in_pages() {
    let mut world = World::new().await;
    world.host("db-8").await;
    let mut story = world.story().await;
    let mut grants = Vec::new();
    for seconds in [60, 120, 180] {
        let request = story.alice.request(seconds).await.expect("made");
        grants.push(story.dora.approve(request.id).await.expect("approved").id);
    }
    grants.reverse();
    let mut list = wire::ListAccessRequest { limit: 1, ..wire::ListAccessRequest::default() };
    for (index, grant) in grants.iter().enumerate() {
        let page = world.admin.access.list_access(list.clone()).await.expect("listed").into_inner();
        let lines: Vec<_> =
            page.access.iter().map(|line| (line.grant.as_str(), line.host.as_str())).collect();
        let grant = grant.to_string();
        assert_eq!(lines, [(grant.as_str(), "db-7"), (grant.as_str(), "db-8")]);
        let next = if index < 2 { grant.clone() } else { String::new() };
        assert_eq!((page.more, &page.next), (index < 2, &next));
        list.after = next;
    }
    // In the middle of a grant.
    list.after = format!("{}/db-7", grants[0]);
    let page = world.admin.access.list_access(list.clone()).await.expect("listed").into_inner();
    assert_eq!((page.access.len(), page.access[0].host.as_str()), (1, "db-8"));
    assert_eq!(page.next, grants[0].to_string());
    list.after = "db-7".to_owned();
    refused(world.admin.access.list_access(list).await, ErrorKind::InvalidArgument, "after:");
}
