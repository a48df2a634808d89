//! The services: who is calling, may they, translate, answer.
//!
//! Owns: the translation between the wire and the store. Must not know: SQL, rules.
//!
//! Invariant: every method begins with [`Gate::admit`], and there is no other way to a [`Caller`].

pub(crate) mod access;
pub(crate) mod agent;
pub(crate) mod audit;
pub(crate) mod directory;
pub(crate) mod identity;
mod session;

use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::status::{ErrorKind, status};
use proto::types::{HostName, Invalid, SubjectRole};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::clock;
use crate::identity::oidc::Providers;
use crate::identity::{IdentityError, TokenHash, identify};
use crate::rules::Refusal;
use crate::rules::actor::{Acting, Actor};
use crate::rules::calls::{Caller, Method, Reach};
use crate::rules::policy::Policy;
use crate::rules::throttle::{Refused, Throttle};
use crate::sessions::Sessions;
use crate::store::{Store, StoreError, Whose};

/// How many answers of a stream wait for a slow reader.
const STREAM_ANSWERS: usize = 8;

/// How often it is checked that the token which opened a stream is still one: so long does a stream outlive it.
const TOKEN_CHECK: Duration = Duration::from_secs(2);

/// The answers of a stream.
pub(crate) type Answers<T> = ReceiverStream<Result<T, Status>>;

/// What every service works with. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    pub(crate) store: Store,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) policy: Policy,
    /// Becomes true when the control plane stops.
    pub(crate) stopping: watch::Receiver<bool>,
    pub(crate) throttle: Arc<Mutex<Throttle>>,
    pub(crate) providers: Arc<Providers>,
}

/// A caller that may call the method it called.
#[derive(Clone, Debug)]
pub(crate) struct Admitted {
    caller: Caller,
    /// None: the caller is nobody.
    token: Option<TokenHash>,
    method: Method,
    pub(crate) reach: Reach,
}

impl Admitted {
    /// The subject that calls. The table of calls keeps everybody else out of the methods for subjects.
    fn subject(&self) -> Result<Acting, Status> {
        match &self.caller {
            Caller::Subject { id, credential, .. } => Ok(Acting { id: id.clone(), credential: *credential }),
            Caller::Host(_) | Caller::Nobody => Err(no_subject()),
        }
    }

    /// What the subject that calls may do.
    fn role(&self) -> Result<SubjectRole, Status> {
        match &self.caller {
            Caller::Subject { role, .. } => Ok(*role),
            Caller::Host(_) | Caller::Nobody => Err(no_subject()),
        }
    }

    /// Of the token that came with the call.
    fn token(&self) -> Result<&TokenHash, Status> {
        self.token.as_ref().ok_or_else(no_subject)
    }

    /// The same, as the record names it.
    fn actor(&self) -> Result<Actor, Status> {
        self.subject().map(Into::into)
    }

    /// The host that calls. The table of calls keeps everybody else out of the methods for hosts.
    fn host(&self) -> Result<&HostName, Status> {
        match &self.caller {
            Caller::Host(name) => Ok(name),
            Caller::Subject { .. } | Caller::Nobody => {
                Err(status(ErrorKind::PermissionDenied, "only an agent can do this", ""))
            }
        }
    }

    /// Whose requests and grants the caller may see.
    fn whose(&self) -> Result<Whose, Status> {
        match self.reach {
            Reach::All => Ok(Whose::Everybodys),
            Reach::Own | Reach::No => Ok(Whose::Of(self.subject()?.id)),
        }
    }
}

impl Gate {
    /// The one place where it is checked who calls and whether they may.
    async fn admit(&self, headers: &MetadataMap, method: Method) -> Result<Admitted, Status> {
        let (caller, token) = match identify(&self.store, headers, clock::now()).await {
            Ok((caller, token)) => (caller, Some(token)),
            // Who shows nothing at all is nobody, and may do what nobody may; who shows something wrong is told so.
            Err(IdentityError::Absent) if method.reach(&Caller::Nobody) != Reach::No => {
                (Caller::Nobody, None)
            }
            Err(IdentityError::Store(error)) => return Err(failed(&error)),
            Err(error) => {
                self.refused(Refused { actor: None, method, reason: "unauthenticated" }, "").await;
                return Err(status(error.kind(), error.to_string(), self.sign_in_hint()));
            }
        };
        let reach = method.reach(&caller);
        let admitted = Admitted { caller, token, method, reach };
        if reach == Reach::No {
            self.note_denied(&admitted).await;
            let message = format!("`{}` may not call {}", admitted.caller, method.as_str());
            return Err(status(ErrorKind::PermissionDenied, message, "ask an administrator"));
        }
        Ok(admitted)
    }

    /// As [`Gate::admit`], for the methods that anybody may call: not too often.
    async fn admit_newcomer(&self, headers: &MetadataMap, method: Method) -> Result<Admitted, Status> {
        if !self.providers.limits.allow_call() {
            self.refused(Refused { actor: None, method, reason: "too_many" }, "").await;
            return Err(failed(&Refusal::TooManyNewcomers.into()));
        }
        self.admit(headers, method).await
    }

    /// How somebody who is not known becomes known here.
    fn sign_in_hint(&self) -> &'static str {
        match self.providers.is_empty() {
            true => "sign in with `portcullis login --token-file FILE`",
            false => "sign in with `portcullis login`",
        }
    }

    /// The status for what the store or the rules did not do. A call refused for who called is put on record.
    async fn answer(&self, admitted: &Admitted, error: StoreError) -> Status {
        if let StoreError::Refused(refusal) = &error
            && refusal.kind() == ErrorKind::PermissionDenied
        {
            self.note_denied(admitted).await;
        }
        failed(&error)
    }

    /// As [`Gate::answer`], for what the rules refused before the store was asked.
    async fn refuse(&self, admitted: &Admitted, refusal: Refusal) -> Status {
        self.answer(admitted, refusal.into()).await
    }

    /// Puts on record that a caller is known and may not do what it asked for.
    async fn note_denied(&self, admitted: &Admitted) {
        let (actor, method) = (admitted.caller.actor(), admitted.method);
        self.refused(Refused { actor, method, reason: "permission_denied" }, "").await;
    }

    /// Puts on record that a call was refused; `detail` is for people, and may be empty.
    async fn refused(&self, refused: Refused, detail: &str) {
        let line = self.throttle().note(refused.clone(), clock::now());
        if let Some(others) = line {
            self.record_refused(refused, detail, others).await;
        }
    }

    async fn record_refused(&self, refused: Refused, detail: &str, others: u64) {
        let mut comment = refused.method.as_str().to_owned();
        if !detail.is_empty() {
            comment += &format!(": {detail}");
        }
        if others > 0 {
            comment += &format!(" ({others} more since the last of these lines)");
        }
        let recorded = self.store.call_refused(&refused, comment, clock::now()).await;
        if let Err(error) = recorded {
            tracing::error!(error = &error as &dyn Error, ?refused, "cannot record a refused call");
        }
    }

    /// Records the refusals that were only counted. Runs until it is dropped.
    pub(crate) async fn record_counted(self) {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        loop {
            tick.tick().await;
            let due = self.throttle().due(clock::now());
            for (refused, others) in due {
                self.record_refused(refused, "", others).await;
            }
        }
    }

    fn throttle(&self) -> MutexGuard<'_, Throttle> {
        // Nothing that holds the lock can panic half way through a change.
        self.throttle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when the token of a caller has ended, or cannot be checked. Nobody's has no end.
    async fn token_ended(&self, token: Option<&TokenHash>) -> Status {
        let Some(token) = token else { return std::future::pending().await };
        loop {
            tokio::time::sleep(TOKEN_CHECK).await;
            match self.store.caller(token, clock::now()).await {
                Ok(Some(_)) => {}
                Ok(None) => {
                    return status(ErrorKind::Unauthenticated, "the token has ended", self.sign_in_hint());
                }
                Err(error) => return failed(&error),
            }
        }
    }

    /// Resolves when the control plane stops.
    async fn stopped(&self) {
        // A dropped sender means the same.
        let _ = self.stopping.clone().wait_for(|is_stopping| *is_stopping).await;
    }
}

fn no_subject() -> Status {
    status(ErrorKind::PermissionDenied, "only a subject can do this", "")
}

/// What a stream ends with when the control plane stops.
fn stopping() -> Status {
    status(ErrorKind::Unavailable, "the control plane is stopping", "try again in a moment")
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

/// Gives the caller a stream that `feed` fills; it ends when the caller leaves, its token ends or the control plane stops.
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
            status = gate.token_ended(caller.token.as_ref()) => Err(status),
        };
        if let Err(status) = end {
            // A caller that left needs no status.
            let _ = sender.send(Err(status)).await;
        }
    });
    ReceiverStream::new(receiver)
}
