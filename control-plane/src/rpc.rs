//! The services: who is calling, may they, translate, answer.
//!
//! Owns: the translation between the wire and the store. Must not know: SQL, rules.
//!
//! Invariant: every call comes through [`admission`], which alone makes an [`Admitted`]; without one no method does anything.

pub(crate) mod access;
pub(crate) mod admission;
pub(crate) mod agent;
pub(crate) mod audit;
pub(crate) mod directory;
pub(crate) mod enrolment;
mod session;

use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::status::{ErrorKind, status};
use proto::types::{HostName, Invalid, SubjectId};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};

use crate::clock;
use crate::identity::authority::Authority;
use crate::identity::{Credential, IdentityError};
use crate::rules::Refusal;
use crate::rules::calls::{Caller, Method, Reach};
use crate::rules::policy::Policy;
use crate::rules::throttle::{Key, Throttle};
use crate::sessions::Sessions;
use crate::store::{Store, StoreError, Whose};

/// How many answers of a stream wait for a slow reader.
const STREAM_ANSWERS: usize = 8;

/// How often it is checked that what opened a stream still counts: so long does a stream outlive it.
const CREDENTIAL_CHECK: Duration = Duration::from_secs(2);

/// How the record names callers that nobody recognised; they share one line a second.
const NOBODY: &str = "";

/// The answers of a stream.
pub(crate) type Answers<T> = ReceiverStream<Result<T, Status>>;

/// What every service works with. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    pub(crate) store: Store,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) policy: Policy,
    pub(crate) authority: Arc<Authority>,
    /// How long a host's certificate counts.
    pub(crate) host_certificate_lifetime: Duration,
    pub(crate) limits: Arc<admission::Limits>,
    /// Becomes true when the control plane stops.
    pub(crate) stopping: watch::Receiver<bool>,
    pub(crate) throttle: Arc<Mutex<Throttle>>,
}

/// A caller that may call the method it called.
#[derive(Clone, Debug)]
pub(crate) struct Admitted {
    caller: Caller,
    credential: Credential,
    method: Method,
    pub(crate) reach: Reach,
}

impl Admitted {
    /// The subject that calls. The table of calls keeps hosts out of the methods for subjects.
    fn subject(&self) -> Result<&SubjectId, Status> {
        match &self.caller {
            Caller::Subject { id, .. } => Ok(id),
            Caller::Nobody | Caller::Host(_) => {
                Err(status(ErrorKind::PermissionDenied, "only a subject can do this", ""))
            }
        }
    }

    /// The host that calls. The table of calls keeps subjects out of the methods for hosts.
    fn host(&self) -> Result<&HostName, Status> {
        match &self.caller {
            Caller::Host(name) => Ok(name),
            Caller::Nobody | Caller::Subject { .. } => {
                Err(status(ErrorKind::PermissionDenied, "only an agent can do this", ""))
            }
        }
    }

    /// Whose requests and grants the caller may see.
    fn whose(&self) -> Result<Whose, Status> {
        match self.reach {
            Reach::All => Ok(Whose::Everybodys),
            Reach::Own | Reach::No => Ok(Whose::Of(self.subject()?.clone())),
        }
    }
}

impl Gate {
    /// The status for what the store or the rules did not do. A call refused for who called is put on record.
    async fn answer(&self, admitted: &Admitted, error: StoreError) -> Status {
        let reason = match error.kind() {
            ErrorKind::PermissionDenied => "permission_denied",
            ErrorKind::Unauthenticated => "unauthenticated",
            _ => return failed(&error),
        };
        self.refused(&admission::name(&admitted.caller), reason, admitted.method).await;
        failed(&error)
    }

    /// As [`Gate::answer`], for what the rules refused before the store was asked.
    async fn refuse(&self, admitted: &Admitted, refusal: Refusal) -> Status {
        self.answer(admitted, refusal.into()).await
    }

    async fn refused(&self, caller: &str, reason: &'static str, method: Method) {
        self.put_on_record(Key { caller: caller.to_owned(), reason, what: method.as_str() }).await;
    }

    async fn put_on_record(&self, key: Key) {
        let line = self.throttle().note(key.clone(), clock::now());
        if let Some(others) = line {
            self.record_refused(key, others).await;
        }
    }

    /// A connection that was closed before anything was said on it. It gets its line within a second or two.
    pub(crate) fn connection_refused(&self, problem: &'static str) {
        let key = Key { caller: NOBODY.to_owned(), reason: "connection_refused", what: problem };
        self.throttle().count(key, clock::now());
    }

    async fn record_refused(&self, Key { caller, reason, what }: Key, others: u64) {
        let comment = match others {
            0 => what.to_owned(),
            _ => format!("{what} ({others} more since the last of these lines)"),
        };
        let recorded = self.store.call_refused(&caller, reason, comment, clock::now()).await;
        if let Err(error) = recorded {
            tracing::error!(error = &error as &dyn Error, caller, "cannot record a refused call");
        }
    }

    /// Records the refusals that were only counted. Runs until it is dropped.
    pub(crate) async fn record_counted(self) {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        loop {
            tick.tick().await;
            let due = self.throttle().due(clock::now());
            for (key, others) in due {
                self.record_refused(key, others).await;
            }
            self.limits.forget_the_quiet();
        }
    }

    fn throttle(&self) -> MutexGuard<'_, Throttle> {
        // Nothing that holds the lock can panic half way through a change.
        self.throttle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when what a caller proved itself by has ended, or cannot be checked.
    async fn credential_ended(&self, credential: &Credential) -> Status {
        loop {
            tokio::time::sleep(CREDENTIAL_CHECK).await;
            match credential.caller(&self.store, clock::now()).await {
                Ok(_) => {}
                Err(IdentityError::Store(error)) => return failed(&error),
                Err(_) => {
                    return status(ErrorKind::Unauthenticated, "the token has ended", "sign in again");
                }
            }
        }
    }

    /// Resolves when the control plane stops.
    async fn stopped(&self) {
        // A dropped sender means the same.
        let _ = self.stopping.clone().wait_for(|is_stopping| *is_stopping).await;
    }
}

/// What a stream ends with when the control plane stops.
fn stopping() -> Status {
    status(ErrorKind::Unavailable, "the control plane is stopping", "try again in a moment")
}

/// Who calls, as [`admission`] found out.
fn admitted<T>(request: &Request<T>) -> Result<Admitted, Status> {
    let admitted = request.extensions().get::<Admitted>().cloned();
    admitted.ok_or_else(|| status(ErrorKind::Internal, "nobody has looked at who calls", ""))
}

/// The status for a value that breaks a rule of the contract.
fn invalid(error: Invalid) -> Status {
    status(ErrorKind::InvalidArgument, error.to_string(), "")
}

/// The status for what the store did not do. What is our fault goes to our log whole, and to the caller without details.
fn failed(error: &StoreError) -> Status {
    if error.kind() == ErrorKind::Internal {
        tracing::error!(error = error as &dyn Error, "a call failed");
    }
    status(error.kind(), error.to_string(), error.hint())
}

/// Gives the caller a stream that `feed` fills; it ends when the caller leaves, its token or certificate ends, or the control plane stops.
fn stream<T, F>(
    gate: Gate,
    caller: Admitted,
    feed: impl FnOnce(mpsc::Sender<Result<T, Status>>) -> F,
) -> Answers<T>
where
    T: Send + 'static,
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(STREAM_ANSWERS);
    let feeding = feed(sender.clone());
    tokio::spawn(async move {
        let end = tokio::select! {
            end = feeding => end,
            () = sender.closed() => return,
            () = gate.stopped() => Err(stopping()),
            status = gate.credential_ended(&caller.credential) => Err(status),
        };
        if let Err(status) = end {
            // A caller that left needs no status.
            let _ = sender.send(Err(status)).await;
        }
    });
    ReceiverStream::new(receiver)
}
