//! Putting it together, and taking it down again.
//!
//! Owns: start and stop. Must not know: arguments, the environment.

use std::sync::Arc;
use std::time::Duration;

use proto::MESSAGE_MAX_BYTES;
use proto::types::ID_TOKEN_MAX_BYTES;
use proto::wire::access::access_service_server::AccessServiceServer;
use proto::wire::access::directory_service_server::DirectoryServiceServer;
use proto::wire::agent::agent_service_server::AgentServiceServer;
use proto::wire::audit::audit_service_server::AuditServiceServer;
use proto::wire::identity::identity_service_server::IdentityServiceServer;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tonic::transport::Server;
use tonic::transport::server::Router;

use crate::config::{Config, Listen};
use crate::deadlines;
use crate::identity::oidc::{FetchError, Providers};
use crate::listen::{ListenError, Listener};
use crate::rpc::{Gate, access, agent, audit, directory, identity};
use crate::rules::policy::Policy;
use crate::store::{Store, StoreError};

/// How many calls one connection may have open. An agent needs one; a person's tool a few.
const STREAMS_MAX: u32 = 128;

/// How often a silent connection is asked whether it is there, and how long it has to answer.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_LIMIT: Duration = Duration::from_secs(10);

/// The largest message that callers other than agents may send. The largest honest one, a request that names 1000 hosts,
/// has 70 KiB.
const CALL_MAX_BYTES: usize = 1024 * 1024;

/// The largest message of somebody who may be anybody: an ID token, and what comes with it.
const NEWCOMER_MAX_BYTES: usize = 2 * ID_TOKEN_MAX_BYTES;

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
    /// Identity providers cannot be asked.
    #[error(transparent)]
    Providers(#[from] FetchError),
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
            Self::Providers(_) => "install the system's certificates (ca-certificates), or name a `ca_file`",
            Self::Transport(_) => "",
        }
    }
}

/// Runs a control plane until `shutdown` resolves. `ready` is told where callers find it, once they do.
pub async fn serve(
    config: Config,
    ready: impl FnOnce(&Listen),
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let providers = Providers::new(config.identity_providers)?;
    let store = Store::open(&config.database).await?;
    let listener = Listener::bind(&config.listen).await?;
    let bound = listener.bound();
    let bound = bound.map_err(|source| ListenError::Bind { listen: config.listen.clone(), source })?;
    let (stop, stopping) = watch::channel(false);
    let gate = Gate {
        store: store.clone(),
        sessions: Arc::default(),
        policy: Policy { max_grant_duration: config.max_grant_duration },
        stopping: stopping.clone(),
        throttle: Arc::default(),
        providers: Arc::new(providers),
    };
    let (running, mut sessions) = mpsc::channel(1);
    let background =
        [tokio::spawn(deadlines::run(store.clone())), tokio::spawn(gate.clone().record_counted())];
    let mut told = stopping.clone();
    let told = async move {
        // A dropped sender means the same.
        let _ = told.wait_for(|is_stopping| *is_stopping).await;
    };
    let mut serving = Box::pin(router(gate, running).serve_with_incoming_shutdown(listener.incoming(), told));
    tracing::info!(listen = %bound, timeline = %store.timeline(), "serving");
    ready(&bound);
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
    // Each session still has its end to write down; nobody sends, the channel closes with the last of them.
    let _ = timeout(STOP_LIMIT, sessions.recv()).await;
    background.iter().for_each(tokio::task::JoinHandle::abort);
    store.close().await;
    Ok(served?)
}

fn router(gate: Gate, running: mpsc::Sender<()>) -> Router {
    let directory = DirectoryServiceServer::new(directory::Directory(gate.clone()))
        .max_decoding_message_size(CALL_MAX_BYTES)
        .max_encoding_message_size(MESSAGE_MAX_BYTES);
    let access = AccessServiceServer::new(access::Access(gate.clone()))
        .max_decoding_message_size(CALL_MAX_BYTES)
        .max_encoding_message_size(MESSAGE_MAX_BYTES);
    let audit = AuditServiceServer::new(audit::Audit(gate.clone()))
        .max_decoding_message_size(CALL_MAX_BYTES)
        .max_encoding_message_size(MESSAGE_MAX_BYTES);
    let identity = IdentityServiceServer::new(identity::SignIns(gate.clone()))
        .max_decoding_message_size(NEWCOMER_MAX_BYTES)
        .max_encoding_message_size(MESSAGE_MAX_BYTES);
    let agent = AgentServiceServer::new(agent::Agent { gate, running })
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .max_encoding_message_size(MESSAGE_MAX_BYTES);
    Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_LIMIT))
        .http2_max_header_list_size(HEADERS_MAX_BYTES)
        .add_service(directory)
        .add_service(access)
        .add_service(audit)
        .add_service(identity)
        .add_service(agent)
}
