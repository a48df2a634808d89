//! What one control plane can carry: thousands of agents, and how fast a change is with those whom it concerns.
//!
//! The control plane is the real program, over TLS, with its database on a disk; the agents are as many connections, each with
//! the certificate of a host of its own, that answer at once and report as agents do. So this measures the control plane and the
//! way to it, not what a kernel takes; and all of it shares one machine.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use control_plane::clock;
use control_plane::identity::authority::{Authority, TRUST_DOMAIN};
use control_plane::identity::{Token, TokenHash};
use control_plane::rules::actor::Actor;
use control_plane::store::{NewCertificate, NewJoinToken, Store};
use hyper_util::rt::TokioIo;
use proto::types::{GrantSet, HostName, Labels, SigningRequest};
use proto::wire::access as wire;
use proto::wire::access::access_service_client::AccessServiceClient;
use proto::wire::access::directory_service_client::DirectoryServiceClient;
use proto::wire::agent as agent_wire;
use proto::wire::agent::agent_service_client::AgentServiceClient;
use proto::wire::agent::session_request::Message as Said;
use proto::wire::agent::session_response::Message as Answer;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpSocket;
use tokio::sync::{broadcast, mpsc, watch};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint, Uri};
use uuid::Uuid;

use super::machine::Machine;
use super::report::{Report, Row, Table, Target, progress};
use super::series::Spread;
use crate::process::{Background, wait_for};
use crate::stage::binary;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// How many hosts there are.
    pub hosts: usize,
    /// How many of them one grant is for that is for many: a request can name 1000.
    pub many: usize,
    /// How often the control plane is started anew.
    pub restarts: usize,
    /// How often one host is granted something, and how often many are.
    pub grants: (usize, usize),
}

impl Size {
    /// For figures that are kept: some three minutes.
    pub const FULL: Self = Self { hosts: 10_000, many: 1000, restarts: 3, grants: (200, 20) };
    /// For a look.
    pub const QUICK: Self = Self { hosts: 1000, many: 500, restarts: 1, grants: (50, 5) };
    /// For seeing that everything still works.
    pub const SMOKE: Self = Self { hosts: 20, many: 10, restarts: 1, grants: (2, 2) };
}

/// How long anything may take before it is given up.
const PATIENCE: Duration = Duration::from_secs(180);

/// The pauses between attempts to connect, as the agent has them.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// How often an agent reports.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// Measures.
pub fn measure(size: Size) -> Result<Report> {
    let mut machine = Machine::look();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let tables = vec![runtime.block_on(measure_fleet(size))?];
    machine.look_again();
    let effort = format!(
        "{} hosts, each a TLS connection with a certificate of its own that reports every 5 s; {} restarts, {} grants to one host, {} to {}",
        size.hosts, size.restarts, size.grants.0, size.grants.1, size.many
    );
    Ok(Report { machine, effort, tables })
}

async fn measure_fleet(size: Size) -> Result<Table> {
    progress(&format!("letting {} hosts join", size.hosts));
    let mut site = Site::make(size.hosts).await?;
    site.start()?;
    let empty_kib = site.resident_kib()?;
    let fleet = Fleet::start(&site, size.hosts)?;
    fleet.wait_for(size.hosts).await?;

    let mut connected_s = Vec::new();
    for round in 0..size.restarts {
        progress(&format!("restart {} of {}", round + 1, size.restarts));
        site.stop()?;
        fleet.wait_for(0).await?;
        let began = Instant::now();
        site.start()?;
        fleet.wait_for(size.hosts).await?;
        connected_s.push(began.elapsed().as_secs_f64());
    }
    // What a burst of connections took is given back, or not, within a moment.
    tokio::time::sleep(2 * REPORT_EVERY).await;
    let each_kib = (site.resident_kib()? - empty_kib) / size.hosts as f64;
    let before = site.processor_s()?;
    tokio::time::sleep(2 * REPORT_EVERY).await;
    let idle = 100.0 * (site.processor_s()? - before) / (2 * REPORT_EVERY).as_secs_f64();

    progress("granting");
    let mut people = People::arrive(&site).await?;
    let one = people.grants(&fleet, size.grants.0, 1).await?;
    let many = people.grants(&fleet, size.grants.1, size.many).await?;
    fleet.stop().await;
    let row = |what: &str, with: &str, values: &[f64], target| {
        let value = Spread::of(values).context("nothing was measured")?;
        Ok::<_, anyhow::Error>(Row { target, ..Row::new(what, with, value) })
    };
    let all = format!("{} hosts", size.hosts);
    Ok(Table {
        title: format!("One control plane and {all}"),
        rows: vec![
            row("s from the start until all are served", &all, &connected_s, Some(Target::AtMost(60.0)))?,
            row("KiB resident for each", &all, &[each_kib], Some(Target::AtMost(60.0)))?,
            row("% of a processor when nothing is asked", &all, &[idle], None)?,
            row("ms from approval until the host has it", "one host", &one.delivered_ms, None)?,
            row(
                "ms from approval until it is active, p99",
                "one host",
                &[one.p99()],
                Some(Target::AtMost(50.0)),
            )?,
            row("ms from approval until it is active", "one host", &one.active_ms, None)?,
            row(
                "ms from approval until it is active",
                &format!("{} hosts", size.many),
                &many.active_ms,
                None,
            )?,
            row(
                "ms from approval until it is active, p99",
                &format!("{} hosts", size.many),
                &[many.p99()],
                Some(Target::AtMost(500.0)),
            )?,
        ],
    })
}

/// A control plane, and the hosts that have joined it.
struct Site {
    dir: tempfile::TempDir,
    control_plane: Option<Background>,
    address: SocketAddr,
    token: String,
    key: KeyPair,
    authority: CertificateDer<'static>,
    hosts: Vec<(HostName, CertificateDer<'static>)>,
}

impl Site {
    async fn make(count: usize) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let authority = Authority::create(&dir.path().join("authority"), TRUST_DOMAIN, clock::system_now())?;
        let token = Token::for_subject();
        let database = dir.path().join("control-plane.db");
        Store::create(&database, &token.hash(), clock::now()).await?;
        let store = Store::open(&database).await?;
        // One key for all: making keys is not what is measured.
        let key = KeyPair::generate()?;
        let request: SigningRequest =
            CertificateParams::default().serialize_request(&key)?.der().to_vec().try_into()?;
        let lifetime = Duration::from_secs(86_400);
        let mut hosts = Vec::new();
        for number in 0..count {
            let name: HostName = format!("host-{number}").parse()?;
            let issued = authority.certify_host(&name, &request, lifetime, clock::system_now())?;
            let (now, secret) = (clock::now(), TokenHash::of(name.as_str()));
            let expires = now.plus(lifetime);
            let join = NewJoinToken { hash: secret.clone(), expires };
            store.add_host(&name, &Labels::default(), &join, &Actor::System, now).await?;
            let certificate = NewCertificate { serial: issued.serial, expires };
            store.join(&name, &secret, &certificate, now).await?;
            hosts.push((name, issued.certificate));
        }
        store.close().await;
        // A port that is free now, and is taken again and again.
        let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let configuration = format!(
            "listen = \"{address}\"\ndatabase = \"{}\"\n",
            dir.path().join("control-plane.db").display()
        );
        fs::write(dir.path().join("control-plane.toml"), configuration)?;
        let authority = authority.certificate().clone();
        Ok(Self { dir, control_plane: None, address, token: token.reveal(), key, authority, hosts })
    }

    fn start(&mut self) -> Result<()> {
        let path = |name: &str| -> PathBuf { self.dir.path().join(name) };
        let ready = path("ready");
        let _ = fs::remove_file(&ready);
        let mut command = Command::new(binary("portcullis-control-plane")?);
        command.args(["serve", "--config"]).arg(path("control-plane.toml")).arg("--ready-file").arg(&ready);
        command.env("RUST_LOG", "warn");
        let process = Background::start("the control plane", &mut command, &path("control-plane.log"))?;
        let process = self.control_plane.insert(process);
        wait_for("the control plane to answer", PATIENCE, || {
            process.ensure_running()?;
            Ok(ready.exists().then_some(()))
        })
    }

    fn stop(&mut self) -> Result<()> {
        self.control_plane.take().context("it does not run")?.kill()
    }

    fn proc(&self, file: &str) -> Result<String> {
        let process = self.control_plane.as_ref().context("it does not run")?;
        Ok(fs::read_to_string(format!("/proc/{}/{file}", process.pid()))?)
    }

    fn resident_kib(&self) -> Result<f64> {
        let status = self.proc("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// The processor time that it has used.
    fn processor_s(&self) -> Result<f64> {
        let stat = self.proc("stat")?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).context("no time");
        Ok((ticks(11)? + ticks(12)?) / 100.0)
    }

    fn tls(&self, host: Option<&CertificateDer<'static>>) -> Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.clone())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?;
        let builder = builder.with_root_certificates(roots);
        let mut config = match host {
            None => builder.with_no_client_auth(),
            Some(certificate) => {
                let key = PrivatePkcs8KeyDer::from(self.key.serialize_der()).into();
                builder.with_client_auth_cert(vec![certificate.clone()], key)?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Arc::new(config))
    }
}

/// Connects from an address of its own, as each host has one.
async fn connect(number: usize, to: SocketAddr, config: Arc<ClientConfig>) -> Result<Channel> {
    let from = Ipv4Addr::new(127, 77, (number / 250) as u8, (number % 250 + 1) as u8);
    let connector = tower::service_fn(move |_: Uri| {
        let connector = TlsConnector::from(Arc::clone(&config));
        async move {
            let socket = TcpSocket::new_v4()?;
            socket.bind(SocketAddr::new(IpAddr::V4(from), 0))?;
            let stream = socket.connect(to).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from(proto::CONTROL_PLANE_NAME).map_err(std::io::Error::other)?;
            connector.connect(name, stream).await.map(TokioIo::new)
        }
    });
    Ok(Endpoint::from_static("http://control-plane").connect_with_connector(connector).await?)
}

/// The agents, and how many of them are served.
struct Fleet {
    served: Arc<AtomicUsize>,
    /// When an agent was told of a change.
    news: broadcast::Sender<Instant>,
    stop: watch::Sender<bool>,
}

/// What every agent shares.
#[derive(Clone)]
struct Shared {
    served: Arc<AtomicUsize>,
    stop: watch::Receiver<bool>,
    news: broadcast::Sender<Instant>,
}

impl Fleet {
    fn start(site: &Site, count: usize) -> Result<Self> {
        let (stop, stopping) = watch::channel(false);
        let (news, _) = broadcast::channel(1 << 14);
        let shared = Shared { served: Arc::default(), stop: stopping, news: news.clone() };
        for (number, (name, certificate)) in site.hosts.iter().take(count).enumerate() {
            let agent = Agent {
                number,
                name: name.clone(),
                address: site.address,
                config: site.tls(Some(certificate))?,
                shared: shared.clone(),
            };
            tokio::spawn(agent.run());
        }
        Ok(Self { served: shared.served, news, stop })
    }

    async fn wait_for(&self, count: usize) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.served.load(Ordering::Relaxed) != count {
            let served = self.served.load(Ordering::Relaxed);
            ensure!(Instant::now() < deadline, "{served} agents are served, and should be {count}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    async fn stop(&self) {
        self.stop.send_replace(true);
        let _ = self.wait_for(0).await;
    }
}

/// One agent without a kernel.
struct Agent {
    number: usize,
    name: HostName,
    address: SocketAddr,
    config: Arc<ClientConfig>,
    shared: Shared,
}

impl Agent {
    async fn run(self) {
        let mut pause = BACK_OFF.0;
        let mut stop = self.shared.stop.clone();
        while !*stop.borrow() {
            let mut is_served = false;
            tokio::select! {
                _ = self.session(&mut is_served) => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
            if is_served {
                self.shared.served.fetch_sub(1, Ordering::Relaxed);
                pause = BACK_OFF.0;
            }
            let share = 0.5 + f64::from(rand_of(self.number, pause));
            tokio::time::sleep(pause.mul_f64(share)).await;
            pause = (2 * pause).min(BACK_OFF.1);
        }
    }

    async fn session(&self, is_served: &mut bool) -> Result<()> {
        let channel = connect(self.number, self.address, Arc::clone(&self.config)).await?;
        let mut client = AgentServiceClient::new(channel).max_decoding_message_size(proto::MESSAGE_MAX_BYTES);
        let (say, said) = mpsc::channel(8);
        let say_it = async |message| {
            let message = agent_wire::SessionRequest { message: Some(message) };
            say.send(message).await.context("the session is over")
        };
        say_it(Said::Hello(self.hello())).await?;
        let mut answers = client.session(ReceiverStream::new(said)).await?.into_inner();
        let mut reports = tokio::time::interval(REPORT_EVERY);
        reports.tick().await;
        let mut number = 0;
        loop {
            let generation = tokio::select! {
                answer = answers.message() => match answer?.context("closed")?.message {
                    Some(Answer::GrantSet(set)) => GrantSet::try_from(set)?.generation,
                    Some(Answer::Delta(delta)) => {
                        let _ = self.shared.news.send(Instant::now());
                        delta.generation
                    }
                    _ => continue,
                },
                _ = reports.tick() => {
                    number += 1;
                    say_it(Said::Report(agent_wire::Report { number, ..report() })).await?;
                    continue;
                }
            };
            say_it(Said::Applied(agent_wire::Applied { generation, refused: Vec::new() })).await?;
            if !*is_served {
                *is_served = true;
                self.shared.served.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn hello(&self) -> agent_wire::Hello {
        agent_wire::Hello {
            host: self.name.to_string(),
            boot_id: Uuid::from_u128(1 + self.number as u128).to_string(),
            timeline: String::new(),
            applied_generation: 0,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel_release: "6.12.0".to_owned(),
            report: Some(report()),
            instance: Uuid::from_u128(1 + self.number as u128).to_string(),
            protocol: proto::types::PROTOCOL,
        }
    }
}

fn report() -> agent_wire::Report {
    agent_wire::Report { state: wire::HostState::Enforcing.into(), detail: String::new(), number: 0 }
}

/// 0 to 1, another one for each agent and attempt; the same in each run.
fn rand_of(number: usize, pause: Duration) -> f32 {
    let mixed = (number as u64 ^ pause.as_nanos() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 40) as f32 / (1u64 << 24) as f32
}

/// Who asks, and who approves.
struct People {
    alice: Caller,
    admin: Caller,
    hosts: Vec<String>,
}

struct Caller {
    directory: DirectoryServiceClient<Channel>,
    access: AccessServiceClient<Channel>,
    bearer: MetadataValue<Ascii>,
}

/// How long grants took.
struct Took {
    delivered_ms: Vec<f64>,
    active_ms: Vec<f64>,
}

impl Took {
    fn p99(&self) -> f64 {
        let mut sorted = self.active_ms.clone();
        sorted.sort_by(f64::total_cmp);
        let place = (sorted.len() * 99).div_ceil(100).saturating_sub(1);
        sorted.get(place).copied().unwrap_or(f64::NAN)
    }
}

impl Caller {
    async fn new(site: &Site, token: &str) -> Result<Self> {
        let channel = connect(0, site.address, site.tls(None)?).await?;
        Ok(Self {
            directory: DirectoryServiceClient::new(channel.clone()),
            access: AccessServiceClient::new(channel),
            bearer: format!("Bearer {token}").parse()?,
        })
    }

    fn call<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.bearer.clone());
        request
    }
}

impl People {
    async fn arrive(site: &Site) -> Result<Self> {
        let mut admin = Caller::new(site, &site.token).await?;
        let id = "user:alice".to_owned();
        let role = wire::SubjectRole::Member.into();
        let subject = wire::Subject { id: id.clone(), role, ..wire::Subject::default() };
        let add = admin.call(wire::AddSubjectRequest { subject: Some(subject) });
        admin.directory.add_subject(add).await?;
        let issue = admin.call(wire::IssueTokenRequest { subject: id });
        let token = admin.directory.issue_token(issue).await?.into_inner().token;
        let port = wire::PortRange { protocol: wire::Protocol::Tcp.into(), first: 5432, last: 5432 };
        let resource = wire::Resource {
            name: "db".to_owned(),
            addresses: vec!["10.0.0.7".to_owned()],
            ports: vec![port],
            options: Some(proto::types::ResourceOptions::default().into()),
            ..wire::Resource::default()
        };
        let add = admin.call(wire::AddResourceRequest { resource: Some(resource) });
        admin.directory.add_resource(add).await?;
        // Every host hears of it; what is measured comes after.
        tokio::time::sleep(2 * REPORT_EVERY).await;
        let hosts = site.hosts.iter().map(|(name, _)| name.to_string()).collect();
        Ok(Self { alice: Caller::new(site, &token).await?, admin, hosts })
    }

    /// So many grants, one after the other, each for so many hosts.
    async fn grants(&mut self, fleet: &Fleet, count: usize, hosts: usize) -> Result<Took> {
        let mut took = Took { delivered_ms: Vec::new(), active_ms: Vec::new() };
        for round in 0..count {
            let first = (round * hosts) % self.hosts.len().saturating_sub(hosts).max(1);
            let request = self.alice.call(wire::CreateRequestRequest {
                resource: "db".to_owned(),
                hosts: self.hosts[first..first + hosts].to_vec(),
                duration: Some(prost_types::Duration { seconds: 600, nanos: 0 }),
                reason: "a measurement".to_owned(),
                ..wire::CreateRequestRequest::default()
            });
            let request = self.alice.access.create_request(request).await?.into_inner().request;
            let id = request.context("no request")?.id;
            let watch = self.alice.call(wire::WatchRequestRequest { id: id.clone() });
            let mut watched = self.alice.access.watch_request(watch).await?.into_inner();
            let mut news = fleet.news.subscribe();
            let began = Instant::now();
            let approve =
                self.admin.call(wire::ApproveRequestRequest { id, ..wire::ApproveRequestRequest::default() });
            self.admin.access.approve_request(approve).await?;
            while !is_active(watched.message().await?) {}
            took.active_ms.push(began.elapsed().as_secs_f64() * 1000.0);
            if let Ok(at) = news.try_recv() {
                took.delivered_ms.push(at.duration_since(began).as_secs_f64() * 1000.0);
            }
        }
        Ok(took)
    }
}

/// A stream that has ended says so by its last message.
fn is_active(answer: Option<wire::WatchRequestResponse>) -> bool {
    let state = answer.map(|answer| answer.grant.map(|grant| grant.state()));
    !matches!(state, Some(None | Some(wire::GrantState::Activating)))
}
