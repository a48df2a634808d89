//! Hosts: how they join and renew, what ends that, and what is done about whoever is none.

use std::sync::Arc;

use proto::status::ErrorKind;
use proto::types::{AuditEvent, EventKind, JoinToken};
use proto::wire::access::{IssueJoinTokenRequest, ListHostsRequest, RevokeHostRequest};
use proto::wire::agent::Hello;
use proto::wire::enrolment::{JoinRequest, RenewRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Status;
use uuid::Uuid;

use super::world::{
    Caller, FakeAgent, HostIdentity, World, hello, refused, signing_request, tls, until, within,
};

/// The session that this identity opens, or why there is none.
pub(crate) async fn session(
    world: &World,
    identity: &HostIdentity,
    hello: Hello,
) -> Result<FakeAgent, Status> {
    let mut agent = FakeAgent::open(&mut world.agent(identity).await, hello).await?;
    agent.next().await?;
    Ok(agent)
}

impl World {
    async fn events_of(&mut self, kind: EventKind) -> Vec<AuditEvent> {
        self.record().await.into_iter().filter(|event| event.kind == kind).collect()
    }

    async fn another_join_token(&mut self, host: &str, seconds: i64) -> JoinToken {
        let join_within = Some(prost_types::Duration { seconds, nanos: 0 });
        let issue = IssueJoinTokenRequest { host: host.to_owned(), join_within };
        let issued = self.admin.directory.issue_join_token(issue).await.expect("issued").into_inner();
        issued.join_token.parse().expect("a join token")
    }
}

#[tokio::test]
async fn a_join_token_counts_once_for_one_host_and_for_minutes() {
    let mut world = World::new().await;
    let token = world.join_token("db-7").await;
    world.join_token("db-8").await;
    refused(
        world.join("db-8", &token).await.map(drop),
        ErrorKind::PermissionDenied,
        "is not for host `db-8`",
    );
    let join = JoinRequest {
        host: "db-7".to_owned(),
        secret: token.secret().to_owned(),
        signing_request: b"garbage".to_vec(),
        ..JoinRequest::default()
    };
    let garbage = world.caller("").await.enrolment.join(join).await;
    refused(garbage, ErrorKind::InvalidArgument, "signing_request: is not a certificate signing request");
    let identity = world.join("db-7", &token).await.expect("what was refused has not used it up");
    let _session = session(&world, &identity, hello("db-7")).await.expect("a session");
    refused(world.join("db-7", &token).await.map(drop), ErrorKind::Unauthenticated, "is not known");

    let first = world.another_join_token("db-8", 60).await;
    let second = world.another_join_token("db-8", 1).await;
    refused(world.join("db-8", &first).await.map(drop), ErrorKind::Unauthenticated, "is not known");
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    refused(world.join("db-8", &second).await.map(drop), ErrorKind::Unauthenticated, "is over");

    let refusals = world.events_of(EventKind::CallRefused).await;
    assert!(refusals.iter().all(|event| event.comment.starts_with("EnrolmentService.Join")), "{refusals:?}");
    assert!(refusals.len() >= 2, "{refusals:?}");
    assert_eq!(world.events_of(EventKind::HostJoined).await.len(), 1);
}

#[tokio::test]
async fn join_tokens_have_bounds() {
    let mut world = World::new().await;
    world.join_token("db-7").await;
    for (seconds, nanos) in [(0, 0), (-1, 0), (86_401, 0), (1, 5)] {
        let join_within = Some(prost_types::Duration { seconds, nanos });
        let issue = IssueJoinTokenRequest { host: "db-7".to_owned(), join_within };
        let issued = world.admin.directory.issue_join_token(issue).await;
        refused(issued, ErrorKind::InvalidArgument, "join_within");
    }
    let issue = IssueJoinTokenRequest { host: "db-9".to_owned(), join_within: None };
    refused(
        world.admin.directory.issue_join_token(issue).await,
        ErrorKind::NotFound,
        "host `db-9` is not known",
    );
}

#[tokio::test]
async fn a_renewal_takes_two_steps() {
    let mut world = World::new().await;
    let old = world.host("db-7").await;
    let _session = session(&world, &old, hello("db-7")).await.expect("a session");
    let lost = old.renew(&world).await.expect("renewed");
    let next = old.renew(&world).await.expect("its answer was lost: it asks again");
    let lost = session(&world, &lost, hello("db-7")).await.map(drop);
    refused(lost, ErrorKind::Unauthenticated, "was revoked");
    let _session = session(&world, &old, hello("db-7")).await.expect("it still counts");
    let _session = session(&world, &next, hello("db-7")).await.expect("it counts from now on");

    let copy = session(&world, &old, hello("db-7")).await.map(drop);
    refused(copy, ErrorKind::Unauthenticated, "this is a copy");
    refused(old.renew(&world).await.map(drop), ErrorKind::Unauthenticated, "this is a copy");
    let copied = world.events_of(EventKind::HostKeyCopied).await;
    assert_eq!((copied[0].host.as_str(), copied[0].reason.as_str()), ("db-7", "superseded"));
    assert_eq!(world.events_of(EventKind::HostRenewed).await.len(), 2);
}

#[tokio::test]
async fn a_host_that_joins_again_keeps_what_it_has_until_then() {
    let mut world = World::new().await;
    let old = world.host("db-7").await;
    let _session = session(&world, &old, hello("db-7")).await.expect("a session");
    let token = world.another_join_token("db-7", 60).await;
    let new = world.join("db-7", &token).await.expect("joined");
    let _session = session(&world, &old, hello("db-7")).await.expect("it still counts");
    let _session = session(&world, &new, hello("db-7")).await.expect("a session");
    refused(
        session(&world, &old, hello("db-7")).await.map(drop),
        ErrorKind::Unauthenticated,
        "this is a copy",
    );
}

#[tokio::test]
async fn a_revoked_host_is_cut_off_at_once() {
    let mut world = World::new().await;
    let identity = world.host("db-7").await;
    let unused = world.another_join_token("db-7", 60).await;
    let mut agent = session(&world, &identity, hello("db-7")).await.expect("a session");
    let revoke = RevokeHostRequest { host: "db-7".to_owned(), comment: "stolen".to_owned() };
    world.admin.directory.revoke_host(revoke).await.expect("revoked");
    refused::<()>(Err(agent.end().await), ErrorKind::Unauthenticated, "was revoked");
    refused(
        session(&world, &identity, hello("db-7")).await.map(drop),
        ErrorKind::Unauthenticated,
        "was revoked",
    );
    refused(world.join("db-7", &unused).await.map(drop), ErrorKind::Unauthenticated, "is not known");
    let revoked = world.events_of(EventKind::HostRevoked).await;
    assert_eq!((revoked[0].actor.as_str(), revoked[0].comment.as_str()), ("user:admin", "stolen"));
    let token = world.another_join_token("db-7", 60).await;
    let again = world.join("db-7", &token).await.expect("joined");
    session(&world, &again, hello("db-7")).await.expect("a session");
}

#[tokio::test]
async fn two_agents_with_one_key_are_noticed() {
    let mut world = World::new().await;
    let identity = world.host("db-7").await;
    let run = |number| Hello { instance: Uuid::from_u128(number).to_string(), ..hello("db-7") };
    for number in [1, 1, 2] {
        session(&world, &identity, run(number)).await.expect("a session");
    }
    let _one = session(&world, &identity, run(1)).await.expect("a session");
    let _other = session(&world, &identity, run(2)).await.expect("a session");
    let _one = session(&world, &identity, run(1)).await.expect("a session");
    until(async || {
        let mut admin = world.admin.clone();
        let events = admin.tail(proto::wire::audit::TailRequest::default()).await;
        let copied = events.iter().find(|event| event.kind == EventKind::HostKeyCopied);
        copied.is_some_and(|event| event.reason == "two_agents" && event.host == "db-7")
    })
    .await;
}

#[tokio::test]
async fn who_shows_a_token_over_a_hosts_connection_is_refused() {
    let mut world = World::new().await;
    let identity = world.host("db-7").await;
    let token = world.admin.token.clone();
    let mut both = Caller::connect(world.address(), &world.authority, Some(&identity), token).await;
    let answer = both.directory.list_hosts(ListHostsRequest {}).await;
    refused(answer, ErrorKind::Unauthenticated, "over a connection that is a host's");
    let nobody =
        world.caller("").await.enrolment.renew(RenewRequest { signing_request: signing_request().1 }).await;
    refused(nobody, ErrorKind::Unauthenticated, "no token came with the call");
}

#[tokio::test]
async fn whoever_is_no_peer_is_closed_counted_and_disturbs_nobody() {
    let mut world = World::new().await;
    let identity = world.host("db-7").await;
    let agent = session(&world, &identity, hello("db-7")).await.expect("a session");
    // In clear text.
    let mut clear = TcpStream::connect(world.address()).await.expect("connected");
    clear.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("written");
    assert_eq!(until_closed(&mut clear).await, "closed");
    // With a certificate of somebody else's.
    let other = World::new().await;
    let mut foreign = tls(&world.authority, Some(&identity));
    let stranger = other_host(other).await;
    let presented = tls(&world.authority, Some(&stranger)).client_auth_cert_resolver;
    foreign.client_auth_cert_resolver = presented;
    assert_eq!(shake_hands(&world, foreign).await, "closed");
    // By an older protocol.
    let mut older = tls(&world.authority, None);
    older.enable_sni = false;
    older.alpn_protocols = vec![b"spdy/1".to_vec()];
    assert_eq!(shake_hands(&world, older).await, "closed");
    // Says nothing at all.
    let _silent = TcpStream::connect(world.address()).await.expect("connected");

    until(async || {
        let mut admin = world.admin.clone();
        let events = admin.tail(proto::wire::audit::TailRequest::default()).await;
        events
            .iter()
            .any(|event| event.kind == EventKind::CallRefused && event.reason == "connection_refused")
    })
    .await;
    agent
        .say(proto::wire::agent::session_request::Message::Report(super::world::report(
            "",
            proto::wire::access::HostState::Enforcing,
        )))
        .await;
    assert_eq!(world.hosts().await.len(), 1, "everybody else is served");
}

async fn other_host(mut other: World) -> HostIdentity {
    other.host("db-7").await
}

async fn until_closed(stream: &mut (impl AsyncReadExt + Unpin)) -> &'static str {
    let mut bytes = Vec::new();
    // An alert may come first; a reset is an end, too.
    let _ = within(stream.read_to_end(&mut bytes)).await;
    "closed"
}

/// Shakes hands, and waits until the other side closes.
async fn shake_hands(world: &World, config: rustls::ClientConfig) -> &'static str {
    let stream = TcpStream::connect(world.address()).await.expect("connected");
    let address: std::net::SocketAddr = world.address().parse().expect("an address");
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    match within(connector.connect(address.ip().into(), stream)).await {
        Ok(mut stream) => until_closed(&mut stream).await,
        Err(_) => "closed",
    }
}

#[tokio::test]
async fn who_calls_too_often_is_told_to_wait() {
    let mut world = World::new().await;
    let mut guessing = world.caller("pct_0").await;
    let mut last = None;
    for _ in 0..1000 {
        last = guessing.directory.list_hosts(ListHostsRequest {}).await.err();
        if last.as_ref().is_some_and(|status| status.code() != tonic::Code::Unauthenticated) {
            break;
        }
    }
    refused::<()>(Err(last.expect("refused")), ErrorKind::ResourceExhausted, "calls too often");
    assert_eq!(world.hosts().await.len(), 0, "nobody else is kept waiting");
    let refusals = world.events_of(EventKind::CallRefused).await;
    assert!(refusals.iter().any(|event| event.reason == "too_many_calls"), "{refusals:?}");
}

#[tokio::test]
async fn a_method_that_is_not_in_the_table_is_not_there() {
    let world = World::new().await;
    let channel = world.admin.channel.clone();
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.expect("ready");
    let path = "/portcullis.access.v1.DirectoryService/Bypass".parse().expect("a path");
    let codec = tonic_prost::ProstCodec::<ListHostsRequest, ListHostsRequest>::default();
    let answer = client.unary(tonic::Request::new(ListHostsRequest {}), path, codec).await;
    assert_eq!(answer.expect_err("is refused").code(), tonic::Code::Unimplemented);
}
