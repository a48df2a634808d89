//! Agents: who may speak for a host, what is claimed of it, what ends a session.

use proto::status::ErrorKind;
use proto::types::{Delta, Digest, EndReason, EventKind, GrantSet, GrantState, HostState, PROTOCOL};
use proto::wire::access::{HostState as WireState, ListHostsRequest};
use proto::wire::agent::refused::Item;
use proto::wire::agent::session_request::Message as Said;
use proto::wire::agent::session_response::Message as Answer;
use proto::wire::agent::{Applied, Hello, Resync};
use tonic::Status;

use super::world::{Caller, FakeAgent, HostIdentity, World, hello, refused, report, until};

impl World {
    async fn is_shown(&self, state: HostState, detail: &str) -> bool {
        let hosts = self.admin.clone().directory.list_hosts(ListHostsRequest {}).await.expect("listed");
        let host = hosts.into_inner().hosts.remove(0);
        host.state() == WireState::from(state) && host.detail == detail
    }
}

#[tokio::test]
async fn a_host_is_what_its_agent_proves() {
    let mut world = World::new().await;
    let story = world.story().await;
    let unreachable = HostState::Unreachable;
    assert!(world.is_shown(unreachable, "its agent has never connected").await);
    let (agent, set) = FakeAgent::start(&world, &story.host).await;
    assert!(world.is_shown(HostState::Enforcing, "").await);
    agent.say(Said::Report(report("no LSM", WireState::Degraded))).await;
    until(async || world.is_shown(HostState::Degraded, "no LSM").await).await;
    agent.say(Said::Report(report("", WireState::Enforcing))).await;
    agent.refuse(set.generation, Item::Resource(1)).await;
    until(async || world.is_shown(HostState::Degraded, "resource db is not protected: map full").await).await;
    agent.applied(set.generation).await;
    until(async || world.is_shown(HostState::Enforcing, "").await).await;
    let host = world.hosts().await.remove(0);
    assert_eq!((host.generation, host.applied_generation), (set.generation, set.generation));
    assert_eq!((host.agent_version.as_str(), host.kernel_release.as_str()), ("0.1.0", "6.12.0"));
    drop(agent);
    let gone = "no agent is connected; it last reported enforcing";
    until(async || world.is_shown(unreachable, gone).await).await;
    let record = world.record().await;
    let states = record.iter().filter(|event| event.kind == EventKind::AgentStateChanged);
    let states: Vec<&str> = states.map(|event| event.reason.as_str()).collect();
    assert_eq!(states, ["enforcing", "degraded", "enforcing", "degraded", "enforcing"]);
    assert_eq!(record.last().expect("not empty").kind, EventKind::AgentDisconnected);
}

#[tokio::test]
async fn a_newer_session_takes_over() {
    let mut world = World::new().await;
    let story = world.story().await;
    let (mut older, _) = FakeAgent::start(&world, &story.host).await;
    let (mut newer, set) = FakeAgent::start(&world, &story.host).await;
    refused::<()>(Err(older.end().await), ErrorKind::Aborted, "a newer session of this host took over");
    newer.applied(set.generation).await;
    world.resource("db2", "10.0.0.8").await;
    assert_eq!(newer.set().await.resources.len(), 2);
    use EventKind::{AgentConnected, AgentDisconnected};
    let record = world.record().await;
    let story: Vec<EventKind> = record
        .iter()
        .map(|event| event.kind)
        .filter(|kind| [AgentConnected, AgentDisconnected].contains(kind))
        .collect();
    assert_eq!(story, [AgentConnected, AgentDisconnected, AgentConnected]);
}

async fn end_of(mut caller: Caller, hello: Hello) -> Status {
    match FakeAgent::open(&mut caller, hello).await {
        Ok(mut agent) => agent.end().await,
        Err(status) => status,
    }
}

#[tokio::test]
async fn a_certificate_speaks_for_its_host_only() {
    let mut world = World::new().await;
    let story = world.story().await;
    world.host("db-8").await;
    let foreign = end_of(world.agent(&story.host).await, hello("db-8")).await;
    refused::<()>(
        Err(foreign),
        ErrorKind::PermissionDenied,
        "this certificate is of host `db-7`, not of `db-8`",
    );
    let person = end_of(story.alice.clone(), hello("db-7")).await;
    refused::<()>(Err(person), ErrorKind::PermissionDenied, "`user:alice` may not call AgentService.Session");
    let nobody = end_of(world.caller("pct_0").await, hello("db-7")).await;
    refused::<()>(Err(nobody), ErrorKind::Unauthenticated, "the token is not known");
    let broken = Hello { boot_id: "x".to_owned(), ..hello("db-7") };
    let broken = end_of(world.agent(&story.host).await, broken).await;
    refused::<()>(Err(broken), ErrorKind::InvalidArgument, "hello.boot_id: `x` is not a UUID");
    let refusals = world.record().await.into_iter().filter(|event| event.kind == EventKind::CallRefused);
    let actors: Vec<String> = refusals.map(|event| event.actor).collect();
    assert_eq!(actors, ["host:db-7", "user:alice", ""]);
}

#[tokio::test]
async fn what_was_not_sent_is_not_believed() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let (mut agent, first) = FakeAgent::start(&world, &story.host).await;
    let request = story.alice.request(60).await.expect("made");
    story.dora.approve(request.id).await.expect("approved");
    let set = agent.set_with(1).await;
    agent.applied(set.generation + 1).await;
    agent.applied(first.generation).await;
    agent.say(Said::Report(report("heard", WireState::Degraded))).await;
    until(async || world.is_shown(HostState::Degraded, "heard").await).await;
    assert_eq!(story.alice.grants(false).await[0].state, GrantState::Activating);
    agent.say(Said::Applied(Applied { generation: 0, refused: Vec::new() })).await;
    let end = agent.end().await;
    refused::<()>(Err(end), ErrorKind::InvalidArgument, "applied.generation: 0 is no generation");
}

#[tokio::test]
async fn a_hello_says_what_the_kernel_let_go_of() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let (mut agent, _) = FakeAgent::start(&world, &story.host).await;
    let mut grants = Vec::new();
    for held in 1..=2 {
        let request = story.alice.request(60).await.expect("made");
        grants.push(story.dora.approve(request.id).await.expect("approved"));
        let set = agent.set_with(held).await;
        agent.applied(set.generation).await;
        story.alice.watch(request.id).await;
    }
    drop(agent);
    story.dora.revoke(grants[0].id).await.expect("revoked");
    // After a boot the kernel holds nothing: the revoked one has ended, the other one is on its way again.
    let (mut agent, set) = FakeAgent::start(&world, &story.host).await;
    let list = story.alice.grants(true).await;
    let revoked = list.iter().find(|grant| grant.id == grants[0].id).expect("listed");
    let live = list.iter().find(|grant| grant.id == grants[1].id).expect("listed");
    assert_eq!(revoked.state, GrantState::Ended(EndReason::Revoked));
    assert_eq!((live.state, live.hosts[0].held), (GrantState::Active, false));
    agent.applied(set.generation).await;
    until(async || story.alice.clone().grants(false).await[0].hosts[0].held).await;
    // Somebody who holds more than we ever sent comes from a later life of this database: we go past it.
    drop(agent.said);
    agent.answers.message().await.expect("ends well");
    let timeline = world.record().await[0].id.epoch.to_string();
    let ahead = Hello { timeline, applied_generation: 1000, ..hello("db-7") };
    let mut agent = FakeAgent::open(&mut world.agent(&story.host).await, ahead).await.expect("a session");
    assert!(matches!(agent.next().await, Ok(Answer::Welcome(_))));
    assert_eq!(agent.set().await.generation, 1001);
}

#[tokio::test]
async fn sessions_end_when_the_control_plane_stops() {
    let mut world = World::new().await;
    let story = world.story().await;
    let (mut agent, _) = FakeAgent::start(&world, &story.host).await;
    world.stop().await;
    refused::<()>(Err(agent.end().await), ErrorKind::Unavailable, "the control plane is stopping");
    world.start().await;
    let last = world.record().await.pop().expect("not empty");
    assert_eq!((last.kind, last.reason.as_str()), (EventKind::AgentDisconnected, "stopping"));
}

impl FakeAgent {
    /// Opens a session of `db-7` that speaks protocol 2, and waits for the first set.
    async fn of_today(world: &World, identity: &HostIdentity) -> (Self, GrantSet) {
        let hello = Hello { protocol: 9, ..hello("db-7") };
        let mut agent = Self::open(&mut world.agent(identity).await, hello).await.expect("a session");
        let Ok(Answer::Welcome(welcome)) = agent.next().await else { panic!("a welcome comes first") };
        assert_eq!(welcome.protocol, PROTOCOL, "the newest that both speak");
        let set = agent.set().await;
        (agent, set)
    }

    async fn delta(&mut self) -> Delta {
        match self.next().await {
            Ok(Answer::Delta(delta)) => delta.try_into().expect("valid"),
            answer => panic!("{answer:?} is no delta"),
        }
    }

    async fn holds(&self, set: &GrantSet) {
        let pairs = set.grants.iter().map(|grant| (grant.subject, grant.resource)).collect();
        let digest = Digest::of(set.generation, &pairs, &set.resources, &set.subjects);
        self.say(Said::Digest(digest.into())).await;
    }
}

#[tokio::test]
async fn changes_come_as_deltas() {
    let mut world = World::new().await;
    let mut story = world.story().await;
    let (mut agent, first) = FakeAgent::of_today(&world, &story.host).await;
    world.resource("db-2", "10.0.0.8").await;
    let delta = agent.delta().await;
    assert_eq!((delta.put_resources.len(), delta.put_subjects.len(), delta.put_grants.len()), (1, 0, 0));
    let second = delta.of(first).expect("it fits");
    let request = story.alice.request(600).await.expect("made");
    story.dora.approve(request.id).await.expect("approved");
    let delta = agent.delta().await;
    assert_eq!((delta.put_resources.len(), delta.put_grants.len()), (0, 1));
    let third = delta.of(second).expect("it fits");
    assert_eq!((third.resources.len(), third.grants.len()), (2, 1));
    agent.applied(third.generation).await;
    let grant = story.alice.grants(false).await[0].id;
    story.dora.revoke(grant).await.expect("revoked");
    assert_eq!(agent.delta().await.removed_grants, [grant]);
}

#[tokio::test]
async fn a_wrong_digest_leads_to_a_whole_set() {
    let mut world = World::new().await;
    let story = world.story().await;
    let (mut agent, set) = FakeAgent::of_today(&world, &story.host).await;
    agent.applied(set.generation).await;
    agent.holds(&set).await;
    // Somebody protects nothing there any more.
    agent.holds(&GrantSet { resources: Vec::new(), ..set.clone() }).await;
    let again = agent.set().await;
    assert!(again.generation > set.generation, "it would not take the same one twice");
    assert_eq!(again.resources, set.resources);
    let problem =
        "its kernel does not hold what it should: 0 resources are protected, and should be 1, or other ones";
    until(async || world.is_shown(HostState::Degraded, problem).await).await;
    agent.applied(again.generation).await;
    agent.holds(&again).await;
    until(async || world.is_shown(HostState::Enforcing, "").await).await;
    let told = world.record().await.into_iter().find(|event| event.kind == EventKind::HostDisagrees);
    assert_eq!(told.map(|event| event.comment).as_deref(), Some(problem));
}

#[tokio::test]
async fn an_agent_that_cannot_follow_gets_a_whole_set() {
    let mut world = World::new().await;
    let story = world.story().await;
    let (mut agent, set) = FakeAgent::of_today(&world, &story.host).await;
    agent.say(Said::Resync(Resync { reason: "since: 2 is not 3, which is held".to_owned() })).await;
    assert_eq!(agent.set().await.generation, set.generation + 1);
}
