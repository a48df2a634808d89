//! The one stream to the control plane. The only caller of tonic.
//!
//! Owns: connecting, back-off, time limits, the translation between wire and checked types. Must not know: the kernel.
//!
//! Invariant: a message that does not check ends the stream; nothing of it is used.

mod endpoint;

use std::time::Duration;

use proto::MESSAGE_MAX_BYTES;
use proto::types::{Applied, AuditEvent, EndedGrant, GrantSet, Hello, Report};
use proto::wire::agent as wire;
use proto::wire::agent::agent_service_client::AgentServiceClient;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Request, Status, Streaming};
use uuid::Uuid;

pub use endpoint::Endpoint;

/// How long the control plane may take to accept the connection, and to welcome us.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// The first pause after a failure; it doubles with each further one.
const BACK_OFF_MIN: Duration = Duration::from_millis(100);
/// The longest pause.
const BACK_OFF_MAX: Duration = Duration::from_secs(10);
/// A session that lived this long was a good one: the pauses start anew.
const GOOD_SESSION: Duration = Duration::from_secs(30);
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
    },
    /// A new grant set.
    GrantSet(GrantSet),
    /// Events are stored.
    AuditAck {
        /// Of which boot.
        epoch: Uuid,
        /// Up to and including this one.
        sequence: u64,
    },
    /// The session ended; a next one is tried.
    Disconnected,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("cannot reach the control plane at {0}")]
    Connect(Endpoint, #[source] tonic::transport::Error),
    #[error("the control plane at {0} did not answer within {WELCOME_TIMEOUT:?}")]
    Silent(Endpoint),
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

/// A token cannot stand in a header.
#[derive(Debug, thiserror::Error)]
#[error("the token has a character that no token has: is this the right file?")]
pub struct BadToken;

/// Keeps a session, for as long as somebody listens to `incoming`. `hello` is what is true when a session begins.
pub async fn keep(
    endpoint: Endpoint,
    token: String,
    hello: watch::Receiver<Hello>,
    incoming: mpsc::Sender<Incoming>,
) -> Result<(), BadToken> {
    let bearer: MetadataValue<Ascii> = format!("Bearer {token}").parse().map_err(|_| BadToken)?;
    let mut pause = BACK_OFF_MIN;
    while !incoming.is_closed() {
        let began = tokio::time::Instant::now();
        let hello_now = hello.borrow().clone();
        if let Err(error) = session(&endpoint, &bearer, hello_now, &incoming).await {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!(%error, cause, "no session with the control plane; the gate goes on with what it has");
        }
        if incoming.send(Incoming::Disconnected).await.is_err() {
            break;
        }
        if began.elapsed() >= GOOD_SESSION {
            pause = BACK_OFF_MIN;
        }
        tokio::time::sleep(jittered(pause)).await;
        pause = (pause * 2).min(BACK_OFF_MAX);
    }
    Ok(())
}

/// Half to one and a half of the pause, so that agents do not come back all at once.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.5..1.5))
}

async fn session(
    endpoint: &Endpoint,
    bearer: &MetadataValue<Ascii>,
    hello: Hello,
    incoming: &mpsc::Sender<Incoming>,
) -> Result<(), SessionError> {
    let (send, mut stream, timeline) = tokio::time::timeout(WELCOME_TIMEOUT, open(endpoint, bearer, hello))
        .await
        .map_err(|_| SessionError::Silent(endpoint.clone()))??;
    tracing::info!(%endpoint, %timeline, "session with the control plane");

    let (outgoing, mut to_send) = mpsc::channel(OUTGOING_MAX);
    if incoming.send(Incoming::Connected { timeline, outgoing }).await.is_err() {
        return Ok(());
    }
    loop {
        tokio::select! {
            message = stream.next() => {
                let message = message.ok_or(SessionError::Ended)??;
                if incoming.send(check(message)?).await.is_err() {
                    return Ok(());
                }
            }
            message = to_send.recv() => match message {
                Some(message) => send.send(to_wire(message)).await.map_err(|_| SessionError::Ended)?,
                None => return Ok(()),
            },
        }
    }
}

type Opened = (mpsc::Sender<wire::SessionRequest>, Streaming<wire::SessionResponse>, Uuid);

/// Connects, says hello and waits for the welcome.
async fn open(
    endpoint: &Endpoint,
    bearer: &MetadataValue<Ascii>,
    hello: Hello,
) -> Result<Opened, SessionError> {
    let channel =
        endpoint.connect().await.map_err(|source| SessionError::Connect(endpoint.clone(), source))?;
    let mut client = AgentServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .max_encoding_message_size(MESSAGE_MAX_BYTES);
    let (send, to_send) = mpsc::channel(OUTGOING_MAX);
    let hello = wire::SessionRequest { message: Some(wire::session_request::Message::Hello(hello.into())) };
    // The channel is new and has room.
    send.send(hello).await.map_err(|_| SessionError::Ended)?;
    let mut request = Request::new(ReceiverStream::new(to_send));
    request.metadata_mut().insert("authorization", bearer.clone());
    let mut stream = client.session(request).await?.into_inner();
    let first = stream.next().await.ok_or(SessionError::Ended)??;
    match first.message {
        Some(wire::session_response::Message::Welcome(welcome)) => {
            let timeline = Uuid::try_parse(&welcome.timeline)
                .map_err(|_| proto::types::Invalid::new("timeline", "is not a UUID"))?;
            Ok((send, stream, timeline))
        }
        _ => Err(proto::types::Invalid::new("message", "the first one is not a welcome").into()),
    }
}

fn check(message: wire::SessionResponse) -> Result<Incoming, SessionError> {
    use wire::session_response::Message;
    match message.message {
        Some(Message::GrantSet(set)) => Ok(Incoming::GrantSet(set.try_into()?)),
        Some(Message::AuditAck(ack)) => {
            let epoch = Uuid::try_parse(&ack.epoch)
                .map_err(|_| proto::types::Invalid::new("audit_ack.epoch", "is not a UUID"))?;
            Ok(Incoming::AuditAck { epoch, sequence: ack.sequence })
        }
        Some(Message::Welcome(_)) => Err(proto::types::Invalid::new("message", "a second welcome").into()),
        None => Err(proto::types::Invalid::missing("message").into()),
    }
}

fn to_wire(message: Outgoing) -> wire::SessionRequest {
    use wire::session_request::Message;
    let message = match message {
        Outgoing::Applied(applied) => Message::Applied(applied.into()),
        Outgoing::Ended(ended) => Message::Ended(ended.into()),
        Outgoing::Report(report) => Message::Report(report.into()),
        Outgoing::Audit(events) => {
            Message::Audit(wire::AuditBatch { events: events.into_iter().map(Into::into).collect() })
        }
    };
    wire::SessionRequest { message: Some(message) }
}
