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
pub(crate) mod identity;
pub(crate) mod policy;
pub(crate) mod report;
mod session;

use std::error::Error;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::policy::facts::Channel;
use proto::status::{ErrorKind, status};
use proto::types::{HostName, Invalid, SubjectRole};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};

use crate::clock;
use crate::identity::authority::Authority;
use crate::identity::oidc::Providers;
use crate::identity::svid::TrustDomains;
use crate::identity::workloads::Vouchers;
use crate::identity::{Credential, IdentityError, TokenHash};
use crate::rules::Refusal;
use crate::rules::actor::{Acting, Actor};
use crate::rules::calls::{Caller, Method, Reach};
use crate::rules::policy::{Circumstances, Limits};
use crate::rules::throttle::{Key, Throttle};
use crate::sessions::{Presences, Sessions};
use crate::store::{Store, StoreError, Whose};

/// How many answers of a stream wait for a slow reader.
const STREAM_ANSWERS: usize = 8;

/// How often it is checked that what opened a stream still counts: so long does a stream outlive it.
const CREDENTIAL_CHECK: Duration = Duration::from_secs(2);

/// The answers of a stream.
pub(crate) type Answers<T> = ReceiverStream<Result<T, Status>>;

/// What every service works with. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    pub(crate) store: Store,
    pub(crate) sessions: Arc<Sessions>,
    /// What holds for every request.
    pub(crate) request_limits: Limits,
    pub(crate) authority: Arc<Authority>,
    /// How long a host's certificate counts.
    pub(crate) host_certificate_lifetime: Duration,
    pub(crate) limits: Arc<admission::Limits>,
    /// Becomes true when the control plane stops.
    pub(crate) stopping: watch::Receiver<bool>,
    pub(crate) throttle: Arc<Mutex<Throttle>>,
    pub(crate) providers: Arc<Providers>,
    pub(crate) vouchers: Arc<Vouchers>,
    pub(crate) trust_domains: Arc<TrustDomains>,
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
    /// The subject that calls. The table of calls keeps everybody else out of the methods for subjects.
    fn subject(&self) -> Result<Acting, Status> {
        match &self.caller {
            Caller::Subject { id, credential, .. } => Ok(Acting { id: id.clone(), credential: *credential }),
            Caller::Nobody | Caller::Host(_) => Err(no_subject()),
        }
    }

    /// The same, as the record names it.
    fn actor(&self) -> Result<Actor, Status> {
        self.subject().map(Into::into)
    }

    /// What the subject that calls may do.
    fn role(&self) -> Result<SubjectRole, Status> {
        match &self.caller {
            Caller::Subject { role, .. } => Ok(*role),
            Caller::Nobody | Caller::Host(_) => Err(no_subject()),
        }
    }

    /// What is known of the caller when it asks for something. `agent`: the program that it calls with, as that says.
    async fn circumstances(
        &self,
        store: &Store,
        address: Option<IpAddr>,
        agent: Option<&str>,
    ) -> Result<Circumstances, StoreError> {
        let is_workload =
            matches!(&self.caller, Caller::Subject { credential: proto::types::Credential::Workload, .. });
        let channel = match agent {
            _ if is_workload => Channel::Workload,
            Some(agent) if agent.starts_with("portcullis/") => Channel::Cli,
            Some(_) | None => Channel::Api,
        };
        let known = Circumstances { channel: Some(channel), source: address, ..Circumstances::default() };
        match &self.credential {
            Credential::Token(token) => store.circumstances(token, known).await,
            Credential::None | Credential::Certificate(_) => Ok(known),
        }
    }

    /// Of the token that came with the call.
    fn token(&self) -> Result<&TokenHash, Status> {
        match &self.credential {
            Credential::Token(token) => Ok(token),
            Credential::None | Credential::Certificate(_) => Err(no_subject()),
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
            Reach::Own | Reach::No => Ok(Whose::Of(self.subject()?.id)),
        }
    }
}

impl Gate {
    /// Which hosts are connected, here or at another control plane on the same database.
    async fn presences(&self) -> Result<Presences, StoreError> {
        Ok(Presences { here: Arc::clone(&self.sessions), elsewhere: self.store.elsewhere().await? })
    }

    /// The status for what the store or the rules did not do. A call refused for who called is put on record.
    async fn answer(&self, admitted: &Admitted, error: StoreError) -> Status {
        let reason = match error.kind() {
            ErrorKind::PermissionDenied => "permission_denied",
            ErrorKind::Unauthenticated => "unauthenticated",
            _ => return failed(&error),
        };
        self.refused(admitted.caller.actor(), reason, admitted.method).await;
        failed(&error)
    }

    /// As [`Gate::answer`], for what the rules refused before the store was asked.
    async fn refuse(&self, admitted: &Admitted, refusal: Refusal) -> Status {
        self.answer(admitted, refusal.into()).await
    }

    pub(crate) async fn refused(&self, caller: Option<Actor>, reason: &'static str, method: Method) {
        self.put_on_record(Key { caller, reason, what: method.as_str() }, "").await;
    }

    /// Puts on record that a caller is known and may not do what it asked for.
    async fn note_denied(&self, admitted: &Admitted) {
        self.refused(admitted.caller.actor(), "permission_denied", admitted.method).await;
    }

    /// `detail` is for people, and may be empty.
    pub(crate) async fn put_on_record(&self, key: Key, detail: &str) {
        let line = self.throttle().note(key.clone(), clock::now());
        if let Some(others) = line {
            self.record_refused(key, detail, others).await;
        }
    }

    /// A connection that was closed before anything was said on it. It gets its line within a second or two.
    pub(crate) fn connection_refused(&self, problem: &'static str) {
        let key = Key { caller: None, reason: "connection_refused", what: problem };
        self.throttle().count(key, clock::now());
    }

    async fn record_refused(&self, key: Key, detail: &str, others: u64) {
        let mut comment = key.what.to_owned();
        if !detail.is_empty() {
            comment += &format!(": {detail}");
        }
        if others > 0 {
            comment += &format!(" ({others} more since the last of these lines)");
        }
        let recorded = self.store.call_refused(&key, comment, clock::now()).await;
        if let Err(error) = recorded {
            tracing::error!(error = &error as &dyn Error, ?key, "cannot record a refused call");
        }
    }

    /// Records the refusals that were only counted. Runs until it is dropped.
    pub(crate) async fn record_counted(self) {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        loop {
            tick.tick().await;
            let due = self.throttle().due(clock::now());
            for (key, others) in due {
                self.record_refused(key, "", others).await;
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
                    return status(ErrorKind::Unauthenticated, "the token has ended", self.sign_in_hint());
                }
            }
        }
    }

    /// How somebody who is not known becomes known here.
    fn sign_in_hint(&self) -> &'static str {
        match self.providers.is_empty() {
            true => "sign in with `portcullis login --token-file FILE`",
            false => "sign in with `portcullis login`",
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
