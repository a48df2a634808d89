//! Putting it together, and taking it down again.
//!
//! Owns: start and stop. Must not know: arguments, the environment.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use proto::MESSAGE_MAX_BYTES;
use proto::types::{ID_TOKEN_MAX_BYTES, PolicyFiles};
use proto::wire::access::access_service_server::AccessServiceServer;
use proto::wire::access::directory_service_server::DirectoryServiceServer;
use proto::wire::agent::agent_service_server::AgentServiceServer;
use proto::wire::audit::audit_service_server::AuditServiceServer;
use proto::wire::enrolment::enrolment_service_server::EnrolmentServiceServer;
use proto::wire::identity::identity_service_server::IdentityServiceServer;
use proto::wire::policy::policy_service_server::PolicyServiceServer;
use proto::wire::report::report_service_server::ReportServiceServer;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tower::layer::util::{Identity, Stack};

use crate::clock::{BOOT_ID, Reading};
use crate::config::{CertificateFiles, Config, ConsoleConfig, Listen};
use crate::console::{self, Console};
use crate::hooks::Hooks;
use crate::identity::authority::{Authority, AuthorityError, ServerName};
use crate::identity::oidc::{FetchError, Providers};
use crate::identity::workloads::Vouchers;
use crate::listen::{Certificates, ListenError, Listener, Security, TlsError, incoming};
use crate::notify::{Notifier, PrepareError};
use crate::rpc::admission::Admission;
use crate::rpc::{Gate, access, agent, audit, directory, enrolment, identity, policy, report};
use crate::rules::calls;
use crate::rules::policy::Limits;
use crate::rules::steady::Watch;
use crate::store::{Store, StoreError};
use crate::{clock, deadlines, replicas};

/// How many calls one connection may have open. An agent needs one; a person's tool a few.
const STREAMS_MAX: u32 = 128;

/// How often a silent connection is asked whether it is there, and how long it has to answer.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_LIMIT: Duration = Duration::from_secs(10);

/// The largest message of a call that brings a policy: its files, and some bytes for each.
const POLICY_MAX_BYTES: usize = PolicyFiles::MAX_BYTES + 128 * 1024;

/// The largest message that callers other than agents may send otherwise. The largest honest one, a request that names 1000 hosts,
/// has 70 KiB.
const CALL_MAX_BYTES: usize = 1024 * 1024;

/// The largest message of a host that joins or renews: a request for a certificate, and a secret or a token.
const ENROLMENT_MAX_BYTES: usize = 2 * ID_TOKEN_MAX_BYTES;

/// The largest message of somebody who signs in: an ID token, and what comes with it.
const SIGN_IN_MAX_BYTES: usize = 2 * ID_TOKEN_MAX_BYTES;

/// The largest header list: a token and what gRPC adds.
const HEADERS_MAX_BYTES: u32 = 16 * 1024;

/// How long open calls have to end when the control plane stops.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Why the control plane does not run, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The record cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nobody could reach us.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Hosts' certificates cannot be signed.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// Nobody could reach us safely.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Identity providers cannot be asked.
    #[error(transparent)]
    Providers(#[from] FetchError),
    /// Nobody could be told of anything.
    #[error(transparent)]
    Notify(#[from] PrepareError),
    /// It cannot be told whether the machine was started again.
    #[error("cannot read `{BOOT_ID}`")]
    Boot(#[source] std::io::Error),
    /// There are methods of which nobody has said who may call them, or the other way round: a fault of the program.
    #[error("the table of calls is not whole: without {lacking:?}, with {besides:?}")]
    Calls {
        /// Methods that it lacks.
        lacking: Vec<String>,
        /// What it has that is no method.
        besides: Vec<&'static str>,
    },
    /// The server stopped by itself.
    #[error("cannot serve")]
    Transport(#[from] tonic::transport::Error),
}

impl ServeError {
    /// What to do next; empty: nothing that would help is known.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Store(error) => error.hint(),
            Self::Listen(_) => "choose another `listen` in the configuration, or stop what uses it",
            Self::Authority(error) => error.hint(),
            Self::Tls(_) => "mend what `[tls]` or `[[spiffe_trust_domain]]` in the configuration names",
            Self::Providers(_) => "install the system's certificates (ca-certificates), or name a `ca_file`",
            Self::Notify(_) => {
                "compare `[[notify]]` and `[[decision_hook]]` in the configuration with docs/notifications.md"
            }
            Self::Boot(_) => {
                "let it be read: see that /proc is mounted where this runs, and that a unit has no `ProcSubset=pid`"
            }
            Self::Calls { .. } | Self::Transport(_) => "",
        }
    }
}

/// Where a control plane is found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bound {
    /// By callers.
    pub listen: Vec<Listen>,
    /// By browsers; empty: there is no console.
    pub console: Vec<Listen>,
}

/// Runs a control plane until `shutdown` resolves. `ready` is told where it is found, once it is.
pub async fn serve(
    config: Config,
    ready: impl FnOnce(&Bound),
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let (lacking, besides) = calls::compare(&[proto::methods(), console::names()].concat());
    if !lacking.is_empty() || !besides.is_empty() {
        return Err(ServeError::Calls { lacking, besides });
    }
    let providers = Providers::new(config.identity_providers)?;
    let vouchers = Vouchers::new(config.workload_issuers, config.kubernetes_clusters)?;
    let subscriptions = config.notify.iter().map(|target| target.subscription.clone()).collect();
    let console_origin = config.console.as_ref().map(|console| console.origin.as_str());
    let notifier = Notifier::new(config.notify, console_origin)?;
    let hooks = Hooks::new(config.decision_hooks)?;
    let store = Store::open(&config.database).await?.notifying(subscriptions).asking(hooks.names());
    // Before anything asks what time it is.
    let (boot_id, watch) = begin_clock(&store).await?;
    let authority = Arc::new(Authority::open(&config.authority)?);
    let fingerprint = authority.fingerprint();
    store.begin_work(fingerprint, clock::now()).await?;
    let (listeners, bound) = bind(&config.listen).await?;
    let door = match &config.console {
        None => None,
        Some(console) => Some(bind_console(console, &config.tls_files, &authority).await?),
    };
    let names = names(&config.tls_names, &bound);
    let certificates = Arc::new(Certificates::new(
        Arc::clone(&authority),
        names,
        config.tls_files,
        config.spiffe_trust_domains,
        clock::system_now(),
    )?);
    let (stop, stopping) = watch::channel(false);
    let gate = Gate {
        store: store.clone(),
        sessions: Arc::default(),
        request_limits: Limits {
            max_grant_duration: config.max_grant_duration,
            request_lifetime: config.request_lifetime,
        },
        authority,
        host_certificate_lifetime: config.host_certificate_lifetime,
        limits: Arc::default(),
        stopping: stopping.clone(),
        throttle: Arc::default(),
        providers: Arc::new(providers),
        vouchers: Arc::new(vouchers),
        trust_domains: certificates.trust_domains(),
    };
    let acceptor = Arc::new(certificates.server_config()?).into();
    let refusing = gate.clone();
    let refused: Arc<dyn Fn(&'static str) + Send + Sync> =
        Arc::new(move |problem| refusing.connection_refused(problem));
    let security = Security {
        acceptor,
        certificates: Arc::clone(&certificates),
        only_http2: true,
        refused: Arc::clone(&refused),
    };
    let (running, mut sessions) = mpsc::channel(1);
    let mut background = vec![
        tokio::spawn(deadlines::run(store.clone(), boot_id.clone(), watch)),
        tokio::spawn(deadlines::ask_policy(store.clone())),
        tokio::spawn(replicas::follow(store.clone())),
        tokio::spawn(replicas::beat(store.clone(), fingerprint, Arc::clone(&gate.sessions))),
        tokio::spawn(notifier.run(store.clone())),
        tokio::spawn(hooks.run(store.clone())),
        tokio::spawn(gate.clone().record_counted()),
        tokio::spawn(certificates.keep_fresh()),
    ];
    let mut found = Bound { listen: bound, console: Vec::new() };
    let mut browsers = None;
    if let (Some(door), Some(configured)) = (door, &config.console) {
        let acceptor = Arc::new(door.certificates.config_for_browsers()?).into();
        let security =
            Security { acceptor, certificates: Arc::clone(&door.certificates), only_http2: false, refused };
        background.push(tokio::spawn(door.certificates.keep_fresh()));
        let routes = console::router(Console::new(gate.clone(), configured));
        let connections = incoming(door.listeners, security);
        found.console = door.bound;
        browsers = Some(tokio::spawn(console::serve(connections, routes, stopping.clone())));
    }
    let mut told = stopping.clone();
    let told = async move {
        // A dropped sender means the same.
        let _ = told.wait_for(|is_stopping| *is_stopping).await;
    };
    let connections = incoming(listeners, security);
    let mut serving = Box::pin(router(gate, running).serve_with_incoming_shutdown(connections, told));
    let Bound { listen, console } = &found;
    tracing::info!(
        listen = %Listen::list(listen), console = %Listen::list(console), timeline = %store.timeline(), "serving"
    );
    ready(&found);
    let served = tokio::select! {
        served = &mut serving => served,
        () = shutdown => {
            tracing::info!("stopping");
            stop.send_replace(true);
            // Who does not let go in time is cut off.
            timeout(STOP_LIMIT, &mut serving).await.unwrap_or(Ok(()))
        }
    };
    stop.send_replace(true);
    drop(serving);
    if let Some(browsers) = &mut browsers {
        // Who does not let go in time is cut off.
        let _ = timeout(STOP_LIMIT, &mut *browsers).await;
        browsers.abort();
    }
    // Each session still has its end to write down; nobody sends, the channel closes with the last of them.
    let _ = timeout(STOP_LIMIT, sessions.recv()).await;
    background.iter().for_each(tokio::task::JoinHandle::abort);
    if let Err(error) = store.keep_anchor(&clock::read().anchor(&boot_id)).await {
        // The next one goes on from what was kept before.
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot write down where the clock is");
    }
    store.close().await;
    Ok(served?)
}

/// Has the clock begin where the record says. Returns which boot of the machine it is, and what watches the wall clock from here on.
async fn begin_clock(store: &Store) -> Result<(String, Watch), ServeError> {
    let boot_id = clock::boot_id().map_err(ServeError::Boot)?;
    store.compare_clocks(clock::wall).await?;
    let Reading { boot, wall, .. } = clock::peek();
    let start = store.begin_clock(&boot_id, boot, wall).await?;
    clock::begin(start.at, boot);
    Ok((boot_id, Watch::new(&start)))
}

async fn bind(listen: &[Listen]) -> Result<(Vec<Listener>, Vec<Listen>), ListenError> {
    let (mut listeners, mut bound) = (Vec::new(), Vec::new());
    for listen in listen {
        let listener = Listener::bind(listen).await?;
        let failed = |source| ListenError::Bind { listen: listen.clone(), source };
        bound.push(listener.bound().map_err(failed)?);
        listeners.push(listener);
    }
    Ok((listeners, bound))
}

/// Where browsers come in.
struct Door {
    listeners: Vec<Listener>,
    bound: Vec<Listen>,
    certificates: Arc<Certificates>,
}

async fn bind_console(
    config: &ConsoleConfig,
    tls_files: &Option<CertificateFiles>,
    authority: &Arc<Authority>,
) -> Result<Door, ServeError> {
    let listen: Vec<Listen> = config.listen.iter().copied().map(Listen::Tcp).collect();
    let (listeners, bound) = bind(&listen).await?;
    let files = config.files.clone().or_else(|| tls_files.clone());
    let names = names(std::slice::from_ref(&config.name), &bound);
    // Nobody shows a certificate there.
    let certificates =
        Certificates::new(Arc::clone(authority), names, files, Vec::new(), clock::system_now())?;
    Ok(Door { listeners, bound, certificates: Arc::new(certificates) })
}

/// By what callers may reach us: as configured, where we listen, and from this machine.
fn names(configured: &[ServerName], bound: &[Listen]) -> Vec<ServerName> {
    let mut names = configured.to_vec();
    let addresses = bound.iter().filter_map(|listen| match listen {
        Listen::Tcp(address) => Some(address.ip()).filter(|address| !address.is_unspecified()),
        Listen::Unix(_) => None,
    });
    names.push(ServerName::Dns("localhost".to_owned()));
    let here = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    for name in addresses.chain(here).map(ServerName::Ip) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn router(gate: Gate, running: mpsc::Sender<()>) -> Router<Stack<Admission, Identity>> {
    let admission = Admission(gate.clone());
    let directory = DirectoryServiceServer::new(directory::Directory(gate.clone()))
        .max_decoding_message_size(CALL_MAX_BYTES)
        .max_encoding_message_size(MESSAGE_MAX_BYTES);
    let access = AccessServiceServer::new(access::Access(gate.clone()))
        .max_decoding_message_size(CALL_MAX_BYTES)
        .max_encoding_message_size(MESSAGE_MAX_BYTES);
    let audit = AuditServiceServer::new(audit::Audit(gate.clone()))
        .max_decoding_message_size(CALL_MAX_BYTES)
        .max_encoding_message_size(MESSAGE_MAX_BYTES);
    let enrolment = EnrolmentServiceServer::new(enrolment::Enrolment(gate.clone()))
        .max_decoding_message_size(ENROLMENT_MAX_BYTES)
        .max_encoding_message_size(MESSAGE_MAX_BYTES);
    let identity = IdentityServiceServer::new(identity::SignIns(gate.clone()))
        .max_decoding_message_size(SIGN_IN_MAX_BYTES)
        .max_encoding_message_size(MESSAGE_MAX_BYTES);
    let policy = PolicyServiceServer::new(policy::Policies(gate.clone()))
        .max_decoding_message_size(POLICY_MAX_BYTES)
        .max_encoding_message_size(MESSAGE_MAX_BYTES);
    let report = ReportServiceServer::new(report::Reports(gate.clone()))
        .max_decoding_message_size(CALL_MAX_BYTES)
        .max_encoding_message_size(MESSAGE_MAX_BYTES);
    let agent = AgentServiceServer::new(agent::Agent { gate, running })
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .max_encoding_message_size(MESSAGE_MAX_BYTES);
    Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_LIMIT))
        .http2_max_header_list_size(HEADERS_MAX_BYTES)
        .layer(admission)
        .add_service(directory)
        .add_service(access)
        .add_service(audit)
        .add_service(enrolment)
        .add_service(identity)
        .add_service(policy)
        .add_service(report)
        .add_service(agent)
}
