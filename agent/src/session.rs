//! The one stream to the control plane. The only caller of tonic.
//!
//! Owns: connecting, joining, renewing, back-off, time limits, the translation between wire and checked types. Must not know: the
//! kernel.
//!
//! Invariant: a message that does not check ends the stream; nothing of it is used.

mod endpoint;
mod enrolment;
mod tls;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use proto::MESSAGE_MAX_BYTES;
use proto::types::{
    Applied, AuditEvent, Delta, Digest, EndedGrant, Evidence, Fingerprint, GrantSet, Hello, JoinToken,
    Report, Welcome,
};
use proto::wire::agent as wire;
use proto::wire::agent::agent_service_client::AgentServiceClient;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use uuid::Uuid;

use crate::clock;
use crate::identity::{Identities, Identity, IdentityError, Which};
use crate::rules::reports::Reports;
pub use endpoint::{ConnectError, Endpoint};
pub use enrolment::{EnrolmentError, join};

/// How long the control plane may take to accept the connection, and to welcome us.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the control plane may say nothing, in a session in which it answers reports: three of ours.
const GAP_LIMIT: Duration = Duration::from_secs(30);
/// How long a session lives at most, give or take a half: what it was opened by, and with whom, is looked at anew by then.
const LIFE_LIMIT: Duration = Duration::from_secs(12 * 60 * 60);
/// The first pause after a failure; it doubles with each further one.
const BACK_OFF_MIN: Duration = Duration::from_millis(100);
/// The longest pause.
const BACK_OFF_MAX: Duration = Duration::from_secs(10);
/// A session that lived this long was a good one: the pauses start anew.
const GOOD_SESSION: Duration = Duration::from_secs(30);
/// How often a host without an identity looks whether it has one now.
const LOOK_FOR_IDENTITY: Duration = Duration::from_secs(1);
/// The pause after a certificate could not be renewed; there is half of its life for it.
const RENEW_AGAIN: Duration = Duration::from_secs(10);
/// Messages that wait to be sent. The main loop waits when it is full, which it is only when the stream does not move.
const OUTGOING_MAX: usize = 64;

/// What the main loop says.
#[derive(Debug)]
pub enum Outgoing {
    /// The kernel holds a generation.
    Applied(Applied),
    /// Grants that this host has ended by itself; never empty.
    Ended(Vec<EndedGrant>),
    /// Whether the host is enforcing.
    Report(Report),
    /// Events, in order.
    Audit(Vec<AuditEvent>),
    /// What the kernel holds. Only in a session that knows of digests.
    Digest(Digest),
    /// A whole set is needed, for this reason. As [`Outgoing::Digest`].
    Resync(String),
}

/// What the main loop hears.
#[derive(Debug)]
pub enum Incoming {
    /// A session began: what was sent to an earlier one may be lost. Messages for this one go here.
    Connected {
        /// Whose generations these are.
        timeline: Uuid,
        /// Where to send.
        outgoing: mpsc::Sender<Outgoing>,
        /// The version of the protocol that both speak.
        protocol: u32,
    },
    /// A new grant set.
    GrantSet(GrantSet),
    /// A change of the set that was sent before.
    Delta(Box<Delta>),
    /// Events are stored.
    AuditAck {
        /// Of which boot.
        epoch: Uuid,
        /// Up to and including this one.
        sequence: u64,
    },
    /// The control plane was there at this moment of the boot clock.
    Heard {
        /// In nanoseconds.
        boot_ns: u64,
    },
    /// The session ended; a next one is tried.
    Disconnected,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("this host has not joined a control plane: run `portcullis-agent join` on it")]
    NotJoined,
    #[error(
        "this host's certificate is over: an administrator runs `portcullis host join-token`, and then `portcullis-agent join` here"
    )]
    Over,
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("cannot read the token to join with {path}", path = .0.display())]
    JoinToken(PathBuf, #[source] std::io::Error),
    #[error("this host cannot join")]
    Join(#[from] EnrolmentError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the control plane at {0} did not answer within {WELCOME_TIMEOUT:?}")]
    Silent(Endpoint),
    #[error("the control plane at {0} has said nothing for {GAP_LIMIT:?}")]
    Gap(Endpoint),
    #[error("the control plane refused: {}", .0.message())]
    Refused(Box<Status>),
    #[error("the control plane sent something that does not check")]
    Invalid(#[from] proto::types::Invalid),
    #[error("the control plane ended the stream")]
    Ended,
}

impl From<Status> for SessionError {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

/// How a host comes to a session.
#[derive(Clone, Debug)]
pub struct Access {
    /// Where the control plane is.
    pub endpoint: Endpoint,
    /// By what this host proves itself.
    pub identities: Identities,
    /// How it joins, for as long as it has none that counts; None: an operator lets it.
    pub join: Option<JoinBy>,
}

/// How a host joins by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JoinBy {
    /// With the join token in this file.
    TokenFile(PathBuf),
    /// With the token in this file, which a Kubernetes cluster gives to the agent's pod and replaces from time to time.
    Kubernetes {
        /// Which file.
        token_file: PathBuf,
        /// Of the authority that signs the control plane's certificate: nobody else is shown the token.
        authority: Fingerprint,
    },
}

/// Keeps a session, for as long as somebody listens to `incoming`. `hello` is what is true when a session begins.
pub async fn keep(access: Access, hello: watch::Receiver<Hello>, incoming: mpsc::Sender<Incoming>) {
    let mut pause = BACK_OFF_MIN;
    // How often the control plane refused an identity since it took one.
    let mut refusals = 0;
    while !incoming.is_closed() {
        let began = tokio::time::Instant::now();
        let hello_now = hello.borrow().clone();
        let ended = session(&access, &mut refusals, hello_now, &incoming).await;
        let has_none = matches!(ended, Err(SessionError::NotJoined | SessionError::Over));
        match ended {
            // The next one has only to be opened.
            Ok(Ended::Renewed) => pause = BACK_OFF_MIN,
            Ok(Ended::Left) => break,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "no session with the control plane; the gate goes on with what it has");
            }
        }
        if incoming.send(Incoming::Disconnected).await.is_err() {
            break;
        }
        if began.elapsed() >= GOOD_SESSION {
            pause = BACK_OFF_MIN;
        }
        tokio::select! {
            () = tokio::time::sleep(jittered(pause)) => {}
            () = comes(&access.identities), if has_none => pause = BACK_OFF_MIN,
        }
        pause = (pause * 2).min(BACK_OFF_MAX);
    }
}

/// Resolves when there is an identity that counts: an operator has let this host join.
async fn comes(identities: &Identities) {
    loop {
        tokio::time::sleep(LOOK_FOR_IDENTITY).await;
        let now = clock::now_wall();
        if identities.read().is_ok_and(|known| known.iter().any(|identity| identity.ends_at > now)) {
            return;
        }
    }
}

/// Why a session has ended for which nobody is to blame.
enum Ended {
    /// Nobody listens any more.
    Left,
    /// Another one is to be opened: there is a new certificate, or this one has lived for long enough.
    Renewed,
}

/// Half to one and a half of the pause, so that agents do not come back all at once.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.5..1.5))
}

async fn session(
    access: &Access,
    refusals: &mut usize,
    hello: Hello,
    incoming: &mpsc::Sender<Incoming>,
) -> Result<Ended, SessionError> {
    let endpoint = &access.endpoint;
    let identity = choose(access, *refusals, &hello).await?;
    let began_boot_ns = clock::now_boot_ns();
    let opened = tokio::time::timeout(WELCOME_TIMEOUT, open(endpoint, &identity, hello)).await;
    let Opened { channel, send, mut stream, welcome } =
        match opened.map_err(|_| SessionError::Silent(endpoint.clone()))? {
            Ok(opened) => opened,
            Err(error) => {
                *refusals += usize::from(error.is_about_the_identity());
                return Err(error);
            }
        };
    let Welcome { timeline, protocol } = welcome;
    tracing::info!(%endpoint, %timeline, protocol, "session with the control plane");
    if std::mem::take(refusals) > 0 && identity.which == Which::Current {
        tracing::warn!("the next identity was refused and is dropped");
        access.identities.drop_next()?;
    }
    access.identities.welcomed(&identity)?;

    let (outgoing, mut to_send) = mpsc::channel(OUTGOING_MAX);
    // It was there after we had begun; when exactly is not known.
    let heard = Incoming::Heard { boot_ns: began_boot_ns };
    for news in [Incoming::Connected { timeline, outgoing, protocol }, heard] {
        if incoming.send(news).await.is_err() {
            return Ok(Ended::Left);
        }
    }
    let mut reports = Reports::default();
    let mut renewal = std::pin::pin!(tokio::time::sleep(until(identity.renew_at)));
    let mut gap = std::pin::pin!(tokio::time::sleep(if protocol >= 2 { GAP_LIMIT } else { Duration::MAX }));
    let mut life = std::pin::pin!(tokio::time::sleep(jittered(LIFE_LIMIT)));
    loop {
        tokio::select! {
            () = &mut gap => return Err(SessionError::Gap(endpoint.clone())),
            () = &mut life => {
                tracing::info!("the session has lived long enough: another one is opened");
                return Ok(Ended::Renewed);
            }
            message = stream.next() => {
                if protocol >= 2 {
                    gap.set(tokio::time::sleep(GAP_LIMIT));
                }
                let message = message.ok_or(SessionError::Ended)??;
                let Some(message) = check(message, &mut reports)? else { continue };
                if incoming.send(message).await.is_err() {
                    return Ok(Ended::Left);
                }
            }
            message = to_send.recv() => match message {
                Some(message) => {
                    let message = to_wire(message, &mut reports);
                    send.send(message).await.map_err(|_| SessionError::Ended)?;
                }
                None => return Ok(Ended::Left),
            },
            () = &mut renewal => match enrolment::renew(channel.clone(), endpoint, &access.identities).await {
                Ok(()) => {
                    tracing::info!("this host has a new certificate");
                    return Ok(Ended::Renewed);
                }
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot renew this host's certificate");
                    renewal.set(tokio::time::sleep(jittered(RENEW_AGAIN)));
                }
            },
        }
    }
}

/// The identity to try: the next one, if there is one; each time that one was refused, the other. A host that has none joins.
async fn choose(access: &Access, refusals: usize, hello: &Hello) -> Result<Identity, SessionError> {
    let mut known = access.identities.read()?;
    let now = clock::now_wall();
    let had = known.len();
    known.retain(|identity| identity.ends_at > now);
    if let Some(identity) = known.get(refusals % known.len().max(1)) {
        return Ok(identity.clone());
    }
    let nothing = || if had == 0 { SessionError::NotJoined } else { SessionError::Over };
    let (evidence, authority) = evidence(access.join.as_ref().ok_or_else(nothing)?)?;
    join(&access.endpoint, &hello.host, evidence, authority, &access.identities).await?;
    tracing::info!("this host has joined");
    // The new one is the first to be tried.
    access.identities.read()?.into_iter().next().ok_or(SessionError::NotJoined)
}

/// What the host shows to join, and to whom.
fn evidence(by: &JoinBy) -> Result<(Evidence, Fingerprint), SessionError> {
    let read = |path: &PathBuf| {
        std::fs::read_to_string(path).map_err(|error| SessionError::JoinToken(path.clone(), error))
    };
    match by {
        JoinBy::TokenFile(path) => {
            let token: JoinToken = read(path)?.parse()?;
            Ok((Evidence::JoinToken(token.secret().to_owned()), token.authority))
        }
        JoinBy::Kubernetes { token_file, authority } => {
            Ok((Evidence::Kubernetes(read(token_file)?.parse()?), *authority))
        }
    }
}

fn until(moment: SystemTime) -> Duration {
    moment.duration_since(clock::now_wall()).unwrap_or(Duration::ZERO)
}

impl SessionError {
    /// Another identity may be taken.
    fn is_about_the_identity(&self) -> bool {
        match self {
            Self::Refused(status) => status.code() == Code::Unauthenticated,
            _ => false,
        }
    }
}

/// A session that has begun.
struct Opened {
    channel: Channel,
    send: mpsc::Sender<wire::SessionRequest>,
    stream: Streaming<wire::SessionResponse>,
    welcome: Welcome,
}

/// Connects, says hello and waits for the welcome.
async fn open(endpoint: &Endpoint, identity: &Identity, hello: Hello) -> Result<Opened, SessionError> {
    let config = tls::with_identity(identity).map_err(|error| endpoint.insecure(error))?;
    let channel = endpoint.connect(Arc::new(config)).await?;
    let mut client = AgentServiceClient::new(channel.clone())
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .max_encoding_message_size(MESSAGE_MAX_BYTES);
    let (send, to_send) = mpsc::channel(OUTGOING_MAX);
    let hello = wire::SessionRequest { message: Some(wire::session_request::Message::Hello(hello.into())) };
    // The channel is new and has room.
    send.send(hello).await.map_err(|_| SessionError::Ended)?;
    let mut stream = client.session(Request::new(ReceiverStream::new(to_send))).await?.into_inner();
    let first = stream.next().await.ok_or(SessionError::Ended)??;
    match first.message {
        Some(wire::session_response::Message::Welcome(welcome)) => {
            Ok(Opened { channel, send, stream, welcome: welcome.try_into()? })
        }
        _ => Err(proto::types::Invalid::new("message", "the first one is not a welcome").into()),
    }
}

/// None: there is nothing to tell.
fn check(message: wire::SessionResponse, reports: &mut Reports) -> Result<Option<Incoming>, SessionError> {
    use wire::session_response::Message;
    let incoming = match message.message {
        Some(Message::Heard(heard)) => {
            return Ok(reports.answered(heard.number).map(|boot_ns| Incoming::Heard { boot_ns }));
        }
        Some(Message::GrantSet(set)) => Ok(Incoming::GrantSet(set.try_into()?)),
        Some(Message::Delta(delta)) => Ok(Incoming::Delta(Box::new(delta.try_into()?))),
        Some(Message::AuditAck(ack)) => {
            let epoch = Uuid::try_parse(&ack.epoch)
                .map_err(|_| proto::types::Invalid::new("audit_ack.epoch", "is not a UUID"))?;
            Ok(Incoming::AuditAck { epoch, sequence: ack.sequence })
        }
        Some(Message::Welcome(_)) => Err(proto::types::Invalid::new("message", "a second welcome").into()),
        None => Err(proto::types::Invalid::missing("message").into()),
    };
    incoming.map(Some)
}

fn to_wire(message: Outgoing, reports: &mut Reports) -> wire::SessionRequest {
    use wire::session_request::Message;
    let message = match message {
        Outgoing::Applied(applied) => Message::Applied(applied.into()),
        Outgoing::Ended(ended) => Message::Ended(ended.into()),
        Outgoing::Report(report) => {
            let number = reports.next(clock::now_boot_ns());
            Message::Report(wire::Report { number, ..report.into() })
        }
        Outgoing::Digest(digest) => Message::Digest(digest.into()),
        Outgoing::Resync(reason) => Message::Resync(wire::Resync { reason }),
        Outgoing::Audit(events) => {
            Message::Audit(wire::AuditBatch { events: events.into_iter().map(Into::into).collect() })
        }
    };
    wire::SessionRequest { message: Some(message) }
}
