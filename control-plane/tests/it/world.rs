//! A control plane of its own for each test, with callers and agents to talk to it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use control_plane::Bound;
use control_plane::clock;
use control_plane::config::{
    Config, ConsoleConfig, DecisionHook, IdentityProvider, KubernetesCluster, Listen, NotifyTarget,
    SpiffeTrustDomain, WorkloadIssuer,
};
use control_plane::identity::Token;
use control_plane::identity::authority::{Authority, TRUST_DOMAIN};
use control_plane::store::Store;
use hyper_util::rt::TokioIo;
use proto::status::ErrorKind;
use proto::types::{
    Access, AccessFilter, AuditEvent, EndedGrant, EventId, EventKind, Freeze, FreezeId, Grant, GrantId,
    GrantSet, Host, HostEnd, Incident, JoinToken, NewApproval, NewExtension, NewRequest, Request, RequestId,
    ResourceOptions, Review, SubjectIdentity, SubjectRole,
};
use proto::wire::access as wire;
use proto::wire::access::access_service_client::AccessServiceClient;
use proto::wire::access::directory_service_client::DirectoryServiceClient;
use proto::wire::agent as agent_wire;
use proto::wire::agent::agent_service_client::AgentServiceClient;
use proto::wire::agent::session_request::Message as Said;
use proto::wire::agent::session_response::Message as Answer;
use proto::wire::audit as audit_wire;
use proto::wire::audit::audit_service_client::AuditServiceClient;
use proto::wire::enrolment as enrolment_wire;
use proto::wire::enrolment::enrolment_service_client::EnrolmentServiceClient;
use proto::wire::enrolment::{JoinRequest, RenewRequest};
use proto::wire::identity as identity_wire;
use proto::wire::identity::identity_service_client::IdentityServiceClient;
use proto::wire::policy::policy_service_client::PolicyServiceClient;
use proto::wire::report::report_service_client::ReportServiceClient;
use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Status, Streaming};
use tower::service_fn;
use uuid::Uuid;

use super::KIND;
use crate::database::{Kind, TestDatabase};

/// Nothing in these tests takes this long; a test that waits for it has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) database: TestDatabase,
    pub(crate) admin: Caller,
    /// Whom everybody believes.
    pub(crate) authority: CertificateDer<'static>,
    trusted: Trusted,
    server: Option<Server>,
    /// Which agents find. On PostgreSQL it is another control plane than the one that people find, so that each story is also about two
    /// on one database.
    of_agents: Option<Server>,
}

/// Whose tokens are believed, and who is told.
#[derive(Clone, Default)]
pub(crate) struct Trusted {
    pub(crate) providers: Vec<IdentityProvider>,
    pub(crate) issuers: Vec<WorkloadIssuer>,
    pub(crate) clusters: Vec<KubernetesCluster>,
    pub(crate) trust_domains: Vec<SpiffeTrustDomain>,
    pub(crate) console: Option<ConsoleConfig>,
    /// Who is told of events.
    pub(crate) notify: Vec<NotifyTarget>,
    /// Whom policies may ask.
    pub(crate) hooks: Vec<DecisionHook>,
}

struct Server {
    address: String,
    console: Option<SocketAddr>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::trusting(Trusted::default()).await
    }

    /// Where people can sign in with these.
    pub(crate) async fn with_providers(providers: Vec<IdentityProvider>) -> Self {
        Self::trusting(Trusted { providers, ..Trusted::default() }).await
    }

    /// Where these are believed.
    pub(crate) async fn trusting(trusted: Trusted) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let token = Token::for_subject();
        let database = TestDatabase::new(KIND);
        Store::create(&database.database, &token.hash(), clock::now()).await.expect("made");
        let authority = folder.path().join("authority");
        let authority = Authority::create(&authority, TRUST_DOMAIN, clock::system_now()).expect("made");
        let authority = authority.certificate().clone();
        let server = start(&folder, &database, &trusted).await;
        let of_agents = start_another(&folder, &database, &trusted).await;
        let admin = Caller::connect(&server.address, &authority, None, token.reveal()).await;
        Self { folder, database, admin, authority, trusted, server: Some(server), of_agents }
    }

    fn config(folder: &tempfile::TempDir, database: &TestDatabase) -> Config {
        Config {
            listen: vec![Listen::Tcp("127.0.0.1:0".parse().expect("valid"))],
            database: database.database.clone(),
            authority: folder.path().join("authority"),
            tls_names: Vec::new(),
            tls_files: None,
            host_certificate_lifetime: Duration::from_secs(3600),
            max_grant_duration: Duration::from_secs(3600),
            request_lifetime: Duration::from_secs(3600),
            identity_providers: Vec::new(),
            workload_issuers: Vec::new(),
            spiffe_trust_domains: Vec::new(),
            kubernetes_clusters: Vec::new(),
            console: None,
            notify: Vec::new(),
            decision_hooks: Vec::new(),
        }
    }

    pub(crate) fn address(&self) -> &str {
        &self.server.as_ref().expect("is running").address
    }

    /// Where browsers find the console.
    pub(crate) fn console(&self) -> SocketAddr {
        self.server.as_ref().and_then(|server| server.console).expect("there is a console")
    }

    /// Stops the control plane as SIGTERM does.
    pub(crate) async fn stop(&mut self) {
        for server in [self.of_agents.take(), self.server.take()].into_iter().flatten() {
            server.stop.send(()).expect("is running");
            tokio::time::timeout(PATIENCE, server.task).await.expect("stops in time").expect("no panic");
        }
    }

    /// These are told of events, once it is started again.
    pub(crate) fn tell(&mut self, notify: Vec<NotifyTarget>) {
        self.trusted.notify = notify;
    }

    /// Stops it and starts it on the same database.
    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.start().await;
    }

    pub(crate) async fn start(&mut self) {
        let server = start(&self.folder, &self.database, &self.trusted).await;
        self.admin = Caller::connect(&server.address, &self.authority, None, self.admin.token.clone()).await;
        self.server = Some(server);
        self.of_agents = start_another(&self.folder, &self.database, &self.trusted).await;
    }

    pub(crate) async fn caller(&self, token: &str) -> Caller {
        Caller::connect(self.address(), &self.authority, None, token.to_owned()).await
    }

    /// A host's agent, over a connection of its own.
    pub(crate) async fn agent(&self, identity: &HostIdentity) -> Caller {
        let address = self.of_agents.as_ref().map_or(self.address(), |server| &server.address);
        Caller::connect(address, &self.authority, Some(identity), String::new()).await
    }

    /// Adds a subject and signs it in.
    pub(crate) async fn subject(&mut self, id: &str, role: SubjectRole) -> Caller {
        let subject = wire::Subject {
            id: id.to_owned(),
            role: wire::SubjectRole::from(role).into(),
            ..wire::Subject::default()
        };
        let add = wire::AddSubjectRequest { subject: Some(subject) };
        self.admin.directory.add_subject(add).await.expect("added");
        let issue = wire::IssueTokenRequest { subject: id.to_owned() };
        let token = self.admin.directory.issue_token(issue).await.expect("issued").into_inner().token;
        self.caller(&token).await
    }

    /// Adds a host, and lets it join.
    pub(crate) async fn host(&mut self, name: &str) -> HostIdentity {
        let token = self.join_token(name).await;
        self.join(name, &token).await.expect("joined")
    }

    /// Adds a host; returns its join token.
    pub(crate) async fn join_token(&mut self, name: &str) -> JoinToken {
        let add = wire::AddHostRequest { name: name.to_owned(), ..wire::AddHostRequest::default() };
        let added = self.admin.directory.add_host(add).await.expect("added").into_inner();
        added.join_token.parse().expect("a join token")
    }

    /// Joins, with a key of its own.
    pub(crate) async fn join(&self, name: &str, token: &JoinToken) -> Result<HostIdentity, Status> {
        let (key, signing_request) = signing_request();
        let secret = token.secret().to_owned();
        let join = JoinRequest { host: name.to_owned(), secret, signing_request, ..JoinRequest::default() };
        let joined = self.caller("").await.enrolment.join(join).await?.into_inner();
        Ok(HostIdentity::new(key, joined.identity))
    }

    /// The same, with a token of a cluster.
    pub(crate) async fn join_by_cluster(&self, name: &str, token: &str) -> Result<HostIdentity, Status> {
        let (key, signing_request) = signing_request();
        let kubernetes_token = token.to_owned();
        let join = JoinRequest {
            host: name.to_owned(),
            signing_request,
            kubernetes_token,
            ..JoinRequest::default()
        };
        let joined = self.caller("").await.enrolment.join(join).await?.into_inner();
        Ok(HostIdentity::new(key, joined.identity))
    }

    pub(crate) async fn resource(&mut self, name: &str, address: &str) -> u32 {
        let added = self.admin.directory.add_resource(resource(name, address)).await.expect("added");
        added.into_inner().resource.expect("is there").number
    }

    /// What most stories begin with: `db`, `db-7`, alice (a member) and dora (an approver).
    pub(crate) async fn story(&mut self) -> Story {
        self.resource("db", "10.0.0.7").await;
        let host = self.host("db-7").await;
        Story {
            host,
            alice: self.subject("user:alice", SubjectRole::Member).await,
            dora: self.subject("user:dora", SubjectRole::Approver).await,
        }
    }

    pub(crate) async fn hosts(&mut self) -> Vec<Host> {
        let hosts = self.admin.directory.list_hosts(wire::ListHostsRequest {}).await.expect("listed");
        hosts.into_inner().hosts.into_iter().map(|host| host.try_into().expect("valid")).collect()
    }

    /// The ids of all subjects.
    pub(crate) async fn subjects(&mut self) -> Vec<String> {
        let listed = self.admin.directory.list_subjects(wire::ListSubjectsRequest {}).await.expect("listed");
        listed.into_inner().subjects.into_iter().map(|subject| subject.id).collect()
    }

    /// The whole record.
    pub(crate) async fn record(&mut self) -> Vec<AuditEvent> {
        self.admin.tail(audit_wire::TailRequest::default()).await
    }

    /// The newest event of its kind.
    pub(crate) async fn last(&mut self, kind: EventKind) -> AuditEvent {
        self.record().await.into_iter().rfind(|event| event.kind == kind).expect("is on record")
    }
}

pub(crate) struct Story {
    pub(crate) host: HostIdentity,
    pub(crate) alice: Caller,
    pub(crate) dora: Caller,
}

/// A second one, where there can be.
async fn start_another(
    folder: &tempfile::TempDir,
    database: &TestDatabase,
    trusted: &Trusted,
) -> Option<Server> {
    match KIND {
        Kind::Sqlite => None,
        Kind::Postgres => Some(start(folder, database, &Trusted { console: None, ..trusted.clone() }).await),
    }
}

async fn start(folder: &tempfile::TempDir, database: &TestDatabase, trusted: &Trusted) -> Server {
    let (stop, stopped) = oneshot::channel();
    let (ready, bound) = oneshot::channel();
    let Trusted { providers, issuers, clusters, trust_domains, console, notify, hooks } = trusted.clone();
    let config = Config {
        identity_providers: providers,
        workload_issuers: issuers,
        kubernetes_clusters: clusters,
        spiffe_trust_domains: trust_domains,
        console,
        notify,
        decision_hooks: hooks,
        ..World::config(folder, database)
    };
    let task = tokio::spawn(async move {
        let ready = |bound: &Bound| ready.send(bound.clone()).expect("somebody waits");
        let shutdown = async move {
            let _ = stopped.await;
        };
        control_plane::serve(config, ready, shutdown).await.expect("serves");
    });
    let Bound { listen, console } = bound.await.expect("is bound");
    let console = console.first().map(|console| match console {
        Listen::Tcp(address) => *address,
        Listen::Unix(_) => panic!("browsers know no such sockets"),
    });
    Server { address: listen[0].to_string(), console, stop, task }
}

pub(crate) fn resource(name: &str, address: &str) -> wire::AddResourceRequest {
    let port = wire::PortRange { protocol: wire::Protocol::Tcp.into(), first: 5432, last: 5432 };
    let resource = wire::Resource {
        name: name.to_owned(),
        number: 0,
        addresses: vec![address.to_owned()],
        ports: vec![port],
        local: false,
        unix: Vec::new(),
        options: Some(ResourceOptions::default().into()),
    };
    wire::AddResourceRequest { resource: Some(resource) }
}

/// Puts the token into each call.
#[derive(Clone)]
pub(crate) struct Bearer(String);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        if !self.0.is_empty() {
            let header = format!("Bearer {}", self.0).parse().expect("ASCII");
            request.metadata_mut().insert("authorization", header);
        }
        Ok(request)
    }
}

type Wire = InterceptedService<Channel, Bearer>;

/// A key, and a request for a certificate.
pub(crate) fn signing_request() -> (KeyPair, Vec<u8>) {
    let key = KeyPair::generate().expect("a key");
    let request = rcgen::CertificateParams::default().serialize_request(&key).expect("signed");
    (key, request.der().to_vec())
}

/// A host's key and certificate.
#[derive(Clone)]
pub(crate) struct HostIdentity {
    key: Vec<u8>,
    pub(crate) certificate: Vec<u8>,
}

impl HostIdentity {
    pub(crate) fn new(key: KeyPair, identity: Option<enrolment_wire::Identity>) -> Self {
        let identity = identity.expect("is there");
        assert_eq!(identity.authorities.len(), 1);
        Self { key: key.serialize_der(), certificate: identity.certificate }
    }

    /// Of somebody who has not joined.
    pub(crate) fn of(key: &KeyPair, certificate: Vec<u8>) -> Self {
        Self { key: key.serialize_der(), certificate }
    }

    /// The next one, asked for by this one.
    pub(crate) async fn renew(&self, world: &World) -> Result<Self, Status> {
        let (key, signing_request) = signing_request();
        let renewed = world.agent(self).await.enrolment.renew(RenewRequest { signing_request }).await?;
        Ok(Self::new(key, renewed.into_inner().identity))
    }
}

/// TLS that believes the authority, and proves to be a host.
pub(crate) fn tls(authority: &CertificateDer<'static>, identity: Option<&HostIdentity>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone()).expect("an authority");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.expect("versions").with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(HostIdentity { key, certificate }) => {
            let key = PrivatePkcs8KeyDer::from(key.clone()).into();
            builder.with_client_auth_cert(vec![certificate.clone().into()], key).expect("they fit")
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Somebody with a token, or with a host's certificate.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) token: String,
    pub(crate) channel: Channel,
    pub(crate) directory: DirectoryServiceClient<Wire>,
    pub(crate) access: AccessServiceClient<Wire>,
    pub(crate) audit: AuditServiceClient<Wire>,
    pub(crate) agent: AgentServiceClient<Wire>,
    pub(crate) enrolment: EnrolmentServiceClient<Wire>,
    pub(crate) identity: IdentityServiceClient<Wire>,
    pub(crate) policy: PolicyServiceClient<Wire>,
    pub(crate) report: ReportServiceClient<Wire>,
}

impl Caller {
    /// As whom the control plane knows this caller.
    pub(crate) async fn who_am_i(&mut self) -> Result<SubjectIdentity, Status> {
        let answer = self.identity.who_am_i(identity_wire::WhoAmIRequest {}).await?.into_inner();
        Ok(answer.identity.expect("is there").try_into().expect("valid"))
    }

    pub(crate) async fn connect(
        address: &str,
        authority: &CertificateDer<'static>,
        identity: Option<&HostIdentity>,
        token: String,
    ) -> Self {
        let channel = match address.strip_prefix("unix:") {
            Some(_) => Endpoint::from_shared(address.to_owned()).expect("valid").connect().await,
            None => {
                let connector = TlsConnector::from(Arc::new(tls(authority, identity)));
                let address: SocketAddr = address.parse().expect("an address");
                let connector = service_fn(move |_: Uri| {
                    let connector = connector.clone();
                    async move {
                        let stream = TcpStream::connect(address).await?;
                        stream.set_nodelay(true)?;
                        connector.connect(address.ip().into(), stream).await.map(TokioIo::new)
                    }
                });
                Endpoint::from_static("http://control-plane").connect_with_connector(connector).await
            }
        };
        let channel = channel.expect("connected");
        let bearer = Bearer(token.clone());
        Self {
            token,
            channel: channel.clone(),
            directory: DirectoryServiceClient::with_interceptor(channel.clone(), bearer.clone()),
            access: AccessServiceClient::with_interceptor(channel.clone(), bearer.clone()),
            audit: AuditServiceClient::with_interceptor(channel.clone(), bearer.clone()),
            agent: AgentServiceClient::with_interceptor(channel.clone(), bearer.clone()),
            enrolment: EnrolmentServiceClient::with_interceptor(channel.clone(), bearer.clone()),
            identity: IdentityServiceClient::with_interceptor(channel.clone(), bearer.clone()),
            policy: PolicyServiceClient::with_interceptor(channel.clone(), bearer.clone()),
            report: ReportServiceClient::with_interceptor(channel, bearer),
        }
    }

    /// Asks for `db` for itself.
    pub(crate) async fn request(&mut self, seconds: u64) -> Result<Request, Status> {
        let new = NewRequest {
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
            key: None,
            draft: None,
        };
        self.create(new.into()).await
    }

    pub(crate) async fn create(&mut self, new: wire::CreateRequestRequest) -> Result<Request, Status> {
        let created = self.access.create_request(new).await?.into_inner();
        Ok(created.request.expect("is there").try_into().expect("valid"))
    }

    pub(crate) async fn approve(&mut self, id: RequestId) -> Result<Grant, Status> {
        Ok(self.say_yes(id, None, &[]).await?.1.expect("is there"))
    }

    /// One yes, for so long and on these hosts; None and empty: as asked for.
    pub(crate) async fn say_yes(
        &mut self,
        id: RequestId,
        duration: Option<Duration>,
        hosts: &[&str],
    ) -> Result<(Request, Option<Grant>), Status> {
        let hosts = hosts.iter().map(|name| name.parse().expect("valid")).collect();
        let new = NewApproval { request: id, comment: "go ahead".to_owned(), duration, hosts };
        let answer = self.access.approve_request(wire::ApproveRequestRequest::from(new)).await?.into_inner();
        let request = answer.request.expect("is there").try_into().expect("valid");
        Ok((request, answer.grant.map(|grant| grant.try_into().expect("valid"))))
    }

    pub(crate) async fn who_has(&mut self, filter: &AccessFilter) -> Vec<Access> {
        let list = wire::ListAccessRequest::from(filter.clone());
        let lines = self.access.list_access(list).await.expect("listed").into_inner().access;
        lines.into_iter().map(|line| line.try_into().expect("valid")).collect()
    }

    pub(crate) async fn requests(&mut self, all: bool) -> Vec<Request> {
        let list = wire::ListRequestsRequest { all, limit: 0 };
        let requests = self.access.list_requests(list).await.expect("listed").into_inner().requests;
        requests.into_iter().map(|request| request.try_into().expect("valid")).collect()
    }

    pub(crate) async fn reviews(&mut self, all: bool) -> Vec<Review> {
        let list = wire::ListReviewsRequest { all, limit: 0 };
        let reviews = self.access.list_reviews(list).await.expect("listed").into_inner().reviews;
        reviews.into_iter().map(|review| review.try_into().expect("valid")).collect()
    }

    pub(crate) async fn review(&mut self, grant: GrantId, comment: &str) -> Result<Review, Status> {
        let review = wire::ReviewGrantRequest { id: grant.to_string(), comment: comment.to_owned() };
        let answer = self.access.review_grant(review).await?.into_inner();
        Ok(answer.review.expect("is there").try_into().expect("valid"))
    }

    /// Closes these resources for so long; none: all of them. Returns how many grants have ended.
    pub(crate) async fn freeze(
        &mut self,
        names: &[&str],
        seconds: i64,
        keep_live: bool,
    ) -> Result<(Freeze, u32), Status> {
        let freeze = wire::FreezeRequest {
            resources: names.iter().map(ToString::to_string).collect(),
            all: names.is_empty(),
            duration: Some(prost_types::Duration { seconds, nanos: 0 }),
            reason: "leaked".to_owned(),
            keep_live,
        };
        let answer = self.access.freeze(freeze).await?.into_inner();
        Ok((answer.freeze.expect("is there").try_into().expect("valid"), answer.grants))
    }

    pub(crate) async fn thaw(&mut self, id: FreezeId) -> Result<Freeze, Status> {
        let thaw = wire::ThawRequest { id: id.to_string(), comment: "replaced".to_owned() };
        let answer = self.access.thaw(thaw).await?.into_inner();
        Ok(answer.freeze.expect("is there").try_into().expect("valid"))
    }

    pub(crate) async fn freezes(&mut self, all: bool) -> Vec<Freeze> {
        let list = wire::ListFreezesRequest { all, limit: 0 };
        let freezes = self.access.list_freezes(list).await.expect("listed").into_inner().freezes;
        freezes.into_iter().map(|freeze| freeze.try_into().expect("valid")).collect()
    }

    /// Opens an incident for so long.
    pub(crate) async fn open_incident(&mut self, id: &str, seconds: i64) -> Result<Incident, Status> {
        let open = wire::OpenIncidentRequest {
            id: id.to_owned(),
            duration: Some(prost_types::Duration { seconds, nanos: 0 }),
            reason: "nobody can log in".to_owned(),
        };
        let answer = self.access.open_incident(open).await?.into_inner();
        Ok(answer.incident.expect("is there").try_into().expect("valid"))
    }

    pub(crate) async fn close_incident(&mut self, id: &str) -> Result<Incident, Status> {
        let close = wire::CloseIncidentRequest { id: id.to_owned(), comment: "rolled back".to_owned() };
        let answer = self.access.close_incident(close).await?.into_inner();
        Ok(answer.incident.expect("is there").try_into().expect("valid"))
    }

    pub(crate) async fn incidents(&mut self, all: bool) -> Vec<Incident> {
        let list = wire::ListIncidentsRequest { all, limit: 0 };
        let incidents = self.access.list_incidents(list).await.expect("listed").into_inner().incidents;
        incidents.into_iter().map(|incident| incident.try_into().expect("valid")).collect()
    }

    /// Begins the time of a grant.
    pub(crate) async fn activate(&mut self, grant: GrantId) -> Result<Grant, Status> {
        let activate = wire::ActivateGrantRequest { id: grant.to_string() };
        let answer = self.access.activate_grant(activate).await?.into_inner();
        Ok(answer.grant.expect("is there").try_into().expect("valid"))
    }

    /// Asks for a grant to live longer.
    pub(crate) async fn extend(&mut self, grant: GrantId, seconds: u64) -> Result<(Request, Grant), Status> {
        let new = NewExtension { grant, by: Duration::from_secs(seconds), reason: None };
        let answer = self.access.extend_grant(wire::ExtendGrantRequest::from(new)).await?.into_inner();
        let request = answer.request.expect("is there").try_into().expect("valid");
        Ok((request, answer.grant.expect("is there").try_into().expect("valid")))
    }

    pub(crate) async fn revoke(&mut self, id: impl ToString) -> Result<Grant, Status> {
        let revoke = wire::RevokeGrantRequest { id: id.to_string(), comment: "enough".to_owned() };
        let revoked = self.access.revoke_grant(revoke).await?.into_inner();
        Ok(revoked.grant.expect("is there").try_into().expect("valid"))
    }

    pub(crate) async fn grants(&mut self, all: bool) -> Vec<Grant> {
        let list = wire::ListGrantsRequest { all, limit: 0 };
        let grants = self.access.list_grants(list).await.expect("listed").into_inner().grants;
        grants.into_iter().map(|grant| grant.try_into().expect("valid")).collect()
    }

    /// Reads a stream of events to its end.
    pub(crate) async fn tail(&mut self, tail: audit_wire::TailRequest) -> Vec<AuditEvent> {
        let mut stream = self.audit.tail(tail).await.expect("allowed").into_inner();
        let mut events = Vec::new();
        while let Some(event) = next_event(&mut stream).await {
            events.push(event);
        }
        events
    }

    /// Watches a request until its stream ends.
    pub(crate) async fn watch(&mut self, id: RequestId) -> Vec<(Request, Option<Grant>)> {
        let watch = wire::WatchRequestRequest { id: id.to_string() };
        let mut stream = self.access.watch_request(watch).await.expect("allowed").into_inner();
        let mut seen = Vec::new();
        while let Some(answer) = within(stream.message()).await.expect("no error") {
            let grant = answer.grant.map(|grant| grant.try_into().expect("valid"));
            seen.push((answer.request.expect("is there").try_into().expect("valid"), grant));
        }
        seen
    }
}

pub(crate) async fn next_event(stream: &mut Streaming<audit_wire::TailResponse>) -> Option<AuditEvent> {
    let answer = within(stream.message()).await.expect("no error")?;
    Some(answer.event.expect("is there").try_into().expect("valid"))
}

/// Fails the test instead of hanging it.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

/// Checks that a call was refused: with which kind, and with which words in its text or hint.
#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T, Status>, kind: ErrorKind, words: &str) {
    let status = result.expect_err("is refused");
    let text = format!("{} / {}", status.message(), proto::status::hint(&status).unwrap_or_default());
    assert_eq!(ErrorKind::from_code(status.code()), kind, "{text}");
    assert!(text.contains(words), "{text}");
}

/// An agent without a kernel: it says what it is told to say.
pub(crate) struct FakeAgent {
    pub(crate) said: mpsc::Sender<agent_wire::SessionRequest>,
    pub(crate) answers: Streaming<agent_wire::SessionResponse>,
    pub(crate) boot: Uuid,
}

pub(crate) fn hello(host: &str) -> agent_wire::Hello {
    agent_wire::Hello {
        host: host.to_owned(),
        boot_id: Uuid::from_u128(1).to_string(),
        timeline: String::new(),
        applied_generation: 0,
        agent_version: "0.1.0".to_owned(),
        kernel_release: "6.12.0".to_owned(),
        report: Some(report("", wire::HostState::Enforcing)),
        instance: String::new(),
        protocol: 0,
    }
}

pub(crate) fn report(detail: &str, state: wire::HostState) -> agent_wire::Report {
    agent_wire::Report { state: state.into(), detail: detail.to_owned(), number: 0 }
}

impl FakeAgent {
    /// Opens a session and says hello.
    pub(crate) async fn open(caller: &mut Caller, hello: agent_wire::Hello) -> Result<Self, Status> {
        let (said, receiver) = mpsc::channel(8);
        let boot = hello.boot_id.parse().unwrap_or_default();
        said.send(agent_wire::SessionRequest { message: Some(Said::Hello(hello)) }).await.expect("open");
        let answers = caller.agent.session(ReceiverStream::new(receiver)).await?.into_inner();
        Ok(Self { said, answers, boot })
    }

    /// Opens a session of `db-7`, and waits for the welcome and the first set.
    pub(crate) async fn start(world: &World, identity: &HostIdentity) -> (Self, GrantSet) {
        let mut agent = Self::open(&mut world.agent(identity).await, hello("db-7")).await.expect("a session");
        let Ok(Answer::Welcome(_)) = agent.next().await else { panic!("a welcome comes first") };
        let set = agent.set().await;
        (agent, set)
    }

    pub(crate) async fn say(&self, said: Said) {
        self.said
            .send(agent_wire::SessionRequest { message: Some(said) })
            .await
            .expect("the session is open");
    }

    pub(crate) async fn next(&mut self) -> Result<Answer, Status> {
        let answer = within(self.answers.message()).await?;
        Ok(answer.and_then(|answer| answer.message).expect("the session is open"))
    }

    /// The next grant set; anything else is a failure.
    pub(crate) async fn set(&mut self) -> GrantSet {
        match self.next().await {
            Ok(Answer::GrantSet(set)) => set.try_into().expect("valid"),
            answer => panic!("{answer:?} is no grant set"),
        }
    }

    /// The next set that holds so many grants.
    pub(crate) async fn set_with(&mut self, grants: usize) -> GrantSet {
        loop {
            let set = self.set().await;
            if set.grants.len() == grants {
                return set;
            }
        }
    }

    pub(crate) async fn applied(&self, generation: u64) {
        self.say(Said::Applied(agent_wire::Applied { generation, refused: Vec::new() })).await;
    }

    pub(crate) async fn refuse(&self, generation: u64, item: agent_wire::refused::Item) {
        let refused = agent_wire::Refused { item: Some(item), error: "map full".to_owned() };
        self.say(Said::Applied(agent_wire::Applied { generation, refused: vec![refused] })).await;
    }

    pub(crate) async fn ended(&self, grant: GrantId, reason: HostEnd) {
        self.say(Said::Ended(vec![EndedGrant { grant, reason }].into())).await;
    }

    pub(crate) fn event(&self, sequence: u64) -> audit_wire::AuditEvent {
        let host = "db-7".parse().expect("valid");
        let id = EventId { host: Some(host), epoch: self.boot, sequence };
        AuditEvent::new(id, EventKind::AgentStarted, clock::now()).into()
    }

    pub(crate) async fn batch(&self, events: Vec<audit_wire::AuditEvent>) {
        self.say(Said::Audit(agent_wire::AuditBatch { events })).await;
    }

    /// The next acknowledgement: its sequence number.
    pub(crate) async fn acknowledged(&mut self) -> u64 {
        match self.next().await {
            Ok(Answer::AuditAck(ack)) => ack.sequence,
            answer => panic!("{answer:?} is no acknowledgement"),
        }
    }

    /// The status that the session ends with.
    pub(crate) async fn end(&mut self) -> Status {
        loop {
            match within(self.answers.message()).await {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok("closed"),
                Err(status) => return status,
            }
        }
    }
}

/// Asks again and again until it is so.
pub(crate) async fn until<F: Future<Output = bool>>(mut is_so: impl FnMut() -> F) {
    within(async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}
