//! The way in: who calls, may they, and do they not call too often. Each call passes here before any method sees it.
//!
//! Owns: that order. Must not know: what methods do.

use std::convert::Infallible;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::task::{Context, Poll};

use governor::{DefaultKeyedRateLimiter, Quota};
use proto::status::{ErrorKind, status};
use proto::types::HostName;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::metadata::MetadataMap;
use tower::{Layer, Service};

use super::{Admitted, Gate, Key, failed};
use crate::clock;
use crate::identity::{Credential, IdentityError};
use crate::listen::Peer;
use crate::rules::Refusal;
use crate::rules::actor::Actor;
use crate::rules::calls::{Caller, Method, Reach};
use crate::store::StoreError;

/// How often one caller may call, by who it is. Each has its own; nobody that is known shares by address.
#[derive(Debug)]
pub(crate) struct Limits {
    subjects: DefaultKeyedRateLimiter<String>,
    /// An agent opens a session and renews its certificate.
    hosts: DefaultKeyedRateLimiter<String>,
    nobody: DefaultKeyedRateLimiter<String>,
}

const fn quota(each_second: u32, at_once: u32) -> Quota {
    match (NonZeroU32::new(each_second), NonZeroU32::new(at_once)) {
        (Some(each_second), Some(at_once)) => Quota::per_second(each_second).allow_burst(at_once),
        _ => panic!("a quota of 0"),
    }
}

/// A script that polls, and then some.
const OF_SUBJECT: Quota = quota(100, 1000);
const OF_HOST: Quota = quota(5, 50);
/// Many people can sit behind one address.
const OF_NOBODY: Quota = quota(20, 200);

impl Default for Limits {
    fn default() -> Self {
        Self {
            subjects: DefaultKeyedRateLimiter::keyed(OF_SUBJECT),
            hosts: DefaultKeyedRateLimiter::keyed(OF_HOST),
            nobody: DefaultKeyedRateLimiter::keyed(OF_NOBODY),
        }
    }
}

impl Limits {
    pub(crate) fn allow(&self, caller: &Caller, peer: &Peer) -> bool {
        let (limiter, key) = match caller {
            Caller::Subject { id, .. } => (&self.subjects, id.to_string()),
            Caller::Host(name) => (&self.hosts, name.to_string()),
            Caller::Nobody => {
                (&self.nobody, peer.address.map(|address| address.to_string()).unwrap_or_default())
            }
        };
        limiter.check_key(&key).is_ok()
    }

    /// Those who have not called for a while need no memory.
    pub(super) fn forget_the_quiet(&self) {
        [&self.subjects, &self.hosts, &self.nobody]
            .into_iter()
            .for_each(DefaultKeyedRateLimiter::retain_recent);
    }
}

/// Puts [`Admitting`] before the services.
#[derive(Clone, Debug)]
pub(crate) struct Admission(pub(crate) Gate);

impl<S> Layer<S> for Admission {
    type Service = Admitting<S>;

    fn layer(&self, inner: S) -> Admitting<S> {
        Admitting { gate: self.0.clone(), inner }
    }
}

/// Lets calls through to the services, each with an [`Admitted`] among its extensions.
#[derive(Clone, Debug)]
pub(crate) struct Admitting<S> {
    gate: Gate,
    inner: S,
}

impl<S> Service<Request<Body>> for Admitting<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let gate = self.gate.clone();
        // The one that is ready is the one to be called.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        Box::pin(async move {
            let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
            let headers = MetadataMap::from_headers(request.headers().clone());
            match gate.admit(request.uri().path(), &headers, &peer).await {
                Ok(admitted) => {
                    request.extensions_mut().insert(admitted);
                    inner.call(request).await
                }
                Err(status) => Ok(status.into_http()),
            }
        })
    }
}

impl Gate {
    /// The one place where it is checked who calls and whether they may.
    async fn admit(&self, path: &str, headers: &MetadataMap, peer: &Peer) -> Result<Admitted, Status> {
        let Some(method) = Method::by_path(path) else {
            self.put_on_record(Key { caller: None, reason: "unknown_method", what: "a call" }, "").await;
            return Err(Status::unimplemented("this control plane has no such method"));
        };
        let credential = match Credential::of(headers, peer.host()) {
            Ok(credential) => credential,
            Err(error) => return Err(self.unknown(method, peer, &error).await),
        };
        let caller = match credential.caller(&self.store, clock::now()).await {
            Ok(caller) => caller,
            Err(IdentityError::Store(error)) => {
                return Err(self.uncounted(method, &credential, &error).await);
            }
            Err(error) => return Err(self.unknown(method, peer, &error).await),
        };
        self.limit(&caller, peer, method).await?;
        let reach = method.reach(&caller);
        match (reach, &caller) {
            (Reach::No, Caller::Nobody) => {
                self.refused(None, "unauthenticated", method).await;
                Err(status(ErrorKind::Unauthenticated, "no token came with the call", self.sign_in_hint()))
            }
            (Reach::No, _) => {
                self.refused(caller.actor(), "permission_denied", method).await;
                let message = format!("`{caller}` may not call {}", method.as_str());
                Err(status(ErrorKind::PermissionDenied, message, "ask an administrator"))
            }
            (Reach::Own | Reach::All, _) => Ok(Admitted { caller, credential, method, reach }),
        }
    }

    async fn limit(&self, caller: &Caller, peer: &Peer, method: Method) -> Result<(), Status> {
        if self.limits.allow(caller, peer) {
            return Ok(());
        }
        self.refused(caller.actor(), "too_many_calls", method).await;
        let message = format!("`{caller}` calls too often");
        Err(status(ErrorKind::ResourceExhausted, message, "wait a second between calls"))
    }

    async fn unknown(&self, method: Method, peer: &Peer, error: &IdentityError) -> Status {
        // Nobody tries one token after another.
        if let Err(status) = self.limit(&Caller::Nobody, peer, method).await {
            return status;
        }
        self.refused(None, "unauthenticated", method).await;
        status(error.kind(), error.to_string(), self.sign_in_hint())
    }

    /// A certificate that does not count, or a record that cannot be asked.
    async fn uncounted(&self, method: Method, credential: &Credential, error: &StoreError) -> Status {
        if let (StoreError::Refused(refusal), Credential::Certificate(certificate)) = (error, credential) {
            let caller = Actor::Host(certificate.host.clone());
            self.refused(Some(caller), "unauthenticated", method).await;
            if matches!(refusal, Refusal::SupersededCertificate(_)) {
                let comment = format!("certificate {}", certificate.serial);
                self.key_copied(&certificate.host, "superseded", &comment).await;
            }
        }
        failed(error)
    }

    /// Puts on record that somebody has a copy of a host's key; at most once a second for one host.
    pub(super) async fn key_copied(&self, host: &HostName, reason: &'static str, comment: &str) {
        let key = Key { caller: Some(Actor::Host(host.clone())), reason, what: "a session" };
        let line = self.throttle().note(key, clock::now());
        if line.is_none() {
            return;
        }
        tracing::warn!(%host, reason, comment, "somebody has a copy of a host's key");
        if let Err(error) = self.store.key_copied(host, reason, comment.to_owned(), clock::now()).await {
            tracing::error!(%host, error = &error as &dyn std::error::Error, "cannot record a copied key");
        }
    }
}
