//! One issuer of tokens: whose signature is whose, and when it is asked for its keys.
//!
//! Owns: the keys that were last heard, and the pauses between questions. Must not know: what claims mean.

use std::num::NonZeroU32;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use jsonwebtoken::Algorithm;
use proto::status::ErrorKind;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::fetch::{self, FetchError, Fetcher};
use super::keys::{self, Keys};
use crate::config::{IssuerKeys, KeySource};

/// How long an issuer has for one answer.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);

/// How long the keys are believed: a key that an issuer has withdrawn is not taken for longer.
const KEYS_AGE_MAX: Duration = Duration::from_secs(60 * 60);

/// How often strangers with made-up key ids can make us ask for keys: this often, and so many times at once. So long somebody
/// waits at most whose token has a key that the issuer has just made.
const REFRESH_PAUSE: Duration = Duration::from_secs(10);
const REFRESHES_AT_ONCE: NonZeroU32 = NonZeroU32::new(3).expect("is not 0");

/// The longest key id that is looked for.
const KEY_ID_MAX_BYTES: usize = 512;

/// Why a token is not taken before anybody has looked at its claims.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It is no token, or one of a kind that is not understood.
    #[error("it is not a token in compact form: {0}")]
    Malformed(&'static str),
    /// Signed by a method that is not allowed for it.
    #[error("its algorithm `{0}` is not allowed")]
    WrongAlgorithm(String),
    /// Nobody has this key, as far as is known.
    #[error("the issuer has no key `{0}` that may sign with the token's algorithm")]
    UnknownKey(String),
    /// The signature is not the issuer's.
    #[error("its signature is not the issuer's")]
    BadSignature,
    /// The keys cannot be had.
    #[error("the keys of the issuer cannot be had")]
    Keys(#[source] Arc<FetchError>),
}

impl TokenError {
    /// As one word, for the record.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::WrongAlgorithm(_) => "wrong_algorithm",
            Self::UnknownKey(_) => "unknown_key",
            Self::BadSignature => "bad_signature",
            Self::Keys(_) => "provider_unreachable",
        }
    }

    /// What sort of error it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Keys(_) => ErrorKind::Unavailable,
            Self::Malformed(_) | Self::WrongAlgorithm(_) | Self::UnknownKey(_) | Self::BadSignature => {
                ErrorKind::Unauthenticated
            }
        }
    }

    /// What to do next; empty: nothing that would help is known.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::WrongAlgorithm(_) => {
                "an operator compares `algorithms` in the control plane's configuration with the issuer's"
            }
            Self::UnknownKey(_) => "if the issuer has a new key, try again in a moment",
            Self::Keys(_) => "try again in a moment; the control plane's log says what went wrong",
            Self::Malformed(_) | Self::BadSignature => "",
        }
    }
}

/// One issuer, and what was last heard from it.
#[derive(Debug)]
pub struct Issuer {
    /// Exactly as it stands in tokens.
    issuer: String,
    algorithms: Vec<Algorithm>,
    source: KeySource,
    fetcher: Fetcher,
    /// What it last answered, and when. Locked for moments only: who has a known key never waits for who has not.
    keys: std::sync::Mutex<Option<(Instant, Arc<Keys>)>>,
    refreshes: DefaultDirectRateLimiter,
    /// Locked while it is asked, so that it is asked once for all who wait. Why nothing came of it the last time.
    asking: tokio::sync::Mutex<Option<Arc<FetchError>>>,
}

impl Issuer {
    /// Asks nobody yet.
    pub fn new(configured: IssuerKeys) -> Result<Self, FetchError> {
        let IssuerKeys { issuer, algorithms, source, authority } = configured;
        let fetcher = Fetcher::new(authority.as_deref(), REQUEST_LIMIT)?;
        let pause = Quota::with_period(REFRESH_PAUSE).expect("the pause is not zero");
        let refreshes = RateLimiter::direct(pause.allow_burst(REFRESHES_AT_ONCE));
        let (keys, asking) = Default::default();
        Ok(Self { issuer, algorithms, source, fetcher, keys, refreshes, asking })
    }

    /// By which it is asked.
    pub(super) fn fetcher(&self) -> &Fetcher {
        &self.fetcher
    }

    /// Exactly as it stands in tokens.
    pub fn as_str(&self) -> &str {
        &self.issuer
    }

    /// The claims of a token that this issuer has signed. What they say is not looked at.
    pub async fn claims(&self, token: &str) -> Result<Map<String, Value>, TokenError> {
        let (algorithm, key_id) = self.header(token)?;
        let key = self.key(algorithm, key_id.as_deref()).await?;
        keys::verified(token, algorithm, &key)
    }

    fn header(&self, token: &str) -> Result<(Algorithm, Option<String>), TokenError> {
        let header = keys::header(token)?;
        let known = self.algorithms.iter().find(|known| keys::name(**known) == header.alg);
        let algorithm = known.ok_or_else(|| TokenError::WrongAlgorithm(keys::shown(&header.alg)))?;
        if !header.may_be_id_token() {
            return Err(TokenError::Malformed("its header says that it is another kind of token (`typ`)"));
        }
        if header.crit.is_some() {
            return Err(TokenError::Malformed("its header demands what is not understood (`crit`)"));
        }
        if header.kid.as_ref().is_some_and(|id| id.len() > KEY_ID_MAX_BYTES) {
            return Err(TokenError::Malformed("its key id is too long"));
        }
        Ok((*algorithm, header.kid))
    }

    /// The key with this id, if it may sign so. Asks the issuer, if what is known is too old or has no such key, and it was
    /// not asked just now.
    async fn key(&self, algorithm: Algorithm, id: Option<&str>) -> Result<keys::Key, TokenError> {
        if let Some(key) = self.cached(algorithm, id) {
            return Ok(key);
        }
        let mut failed = self.asking.lock().await;
        // Somebody else may have asked while this one waited.
        if let Some(key) = self.cached(algorithm, id) {
            return Ok(key);
        }
        if self.refreshes.check().is_ok() {
            *failed = self.refresh().await.err().map(Arc::new);
        }
        match (self.cached(algorithm, id), &*failed) {
            (Some(key), _) => Ok(key),
            (None, Some(error)) => Err(TokenError::Keys(Arc::clone(error))),
            (None, None) => Err(TokenError::UnknownKey(keys::shown(id.unwrap_or_default()))),
        }
    }

    fn cached(&self, algorithm: Algorithm, id: Option<&str>) -> Option<keys::Key> {
        let (got, keys) = self.keys.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        if got.elapsed() > KEYS_AGE_MAX {
            return None;
        }
        keys.find(algorithm, id)
    }

    async fn refresh(&self) -> Result<(), FetchError> {
        // They are as old as the question, however long the answer takes.
        let now = Instant::now();
        match self.fetch_keys().await {
            Ok(keys) => {
                *self.keys.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, Arc::new(keys)));
                Ok(())
            }
            Err(error) => {
                let source = &error as &dyn std::error::Error;
                tracing::warn!(error = source, issuer = self.issuer, "cannot get an issuer's keys");
                Err(error)
            }
        }
    }

    async fn fetch_keys(&self) -> Result<Keys, FetchError> {
        let published: keys::Published = match &self.source {
            KeySource::Discovery => self.fetcher.get(&self.discover().await?).await?,
            KeySource::Address(address) => self.fetcher.get(address).await?,
            KeySource::File(path) => fetch::read(path).await?,
        };
        Ok(published.into())
    }

    /// Asks the issuer where its keys are.
    async fn discover(&self) -> Result<String, FetchError> {
        #[derive(Deserialize)]
        struct Metadata {
            issuer: String,
            jwks_uri: String,
        }

        let issuer = &self.issuer;
        let address = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let metadata: Metadata = self.fetcher.get(&address).await?;
        match metadata.issuer == *issuer {
            true => Ok(metadata.jwks_uri),
            false => Err(FetchError::OtherIssuer {
                found: keys::shown(&metadata.issuer),
                expected: issuer.clone(),
            }),
        }
    }
}
