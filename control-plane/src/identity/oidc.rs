//! OpenID Connect: from a token to the claims that its issuer has signed.
//!
//! Owns: what is asked of issuers, and when; whose signature counts; the providers that people sign in with. Must not know: what
//! the claims mean (`rules/claims`, `rules/workload`), who is in the directory.
//!
//! Invariants: an issuer is asked over https only, at addresses that the operator or the issuer itself named, for some seconds at
//! most, and for its keys at most once in ten seconds on average, whatever tokens come. Which algorithms are
//! taken is decided by the operator and the key, never by the token.

mod code;
mod fetch;
mod issuer;
mod keys;
mod limits;

pub use code::{Begun, Client, CodeError, Codes};
pub use fetch::FetchError;
pub use issuer::{Issuer, TokenError};
pub use keys::unproven_issuer;
pub use limits::Limits;

use std::time::Duration;

use proto::types::{Provider, ProviderName};

use super::TokenHash;
use crate::config::{IdentityProvider, IssuerKeys, KeySource};
use crate::rules::claims::Expected;

/// All providers of a configuration.
#[derive(Debug)]
pub struct Providers {
    known: Vec<Known>,
    /// How many may try at once.
    pub limits: Limits,
}

/// One of them, and what was last heard from it.
#[derive(Debug)]
pub struct Known {
    /// What tools are told of it.
    pub provider: Provider,
    /// What its tokens have to say.
    pub expected: Expected,
    /// How long a session lasts.
    pub session_lifetime: Duration,
    /// Whose signature its tokens have.
    pub issuer: Issuer,
    /// How browsers sign in with it.
    pub codes: Codes,
    /// What the tokens of browsers have to say: they are for the console's client.
    pub expected_of_browsers: Expected,
}

impl Providers {
    /// Asks nobody yet: a control plane starts whether or not its providers can be reached.
    pub fn new(configured: Vec<IdentityProvider>) -> Result<Self, FetchError> {
        let known = configured.into_iter().map(Known::new).collect::<Result<Vec<_>, _>>()?;
        let limits = Limits::new(known.iter().map(|known| &known.provider.name));
        Ok(Self { known, limits })
    }

    /// Whether nobody can sign in with a provider.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// In the order of the configuration.
    pub fn iter(&self) -> impl Iterator<Item = &Known> {
        self.known.iter()
    }

    /// By name.
    pub fn get(&self, name: &ProviderName) -> Option<&Known> {
        self.known.iter().find(|known| known.provider.name == *name)
    }
}

/// By what it is known whether a token was used before.
pub fn mark(token: &str) -> TokenHash {
    TokenHash::of(keys::signed_part(token))
}

impl Known {
    fn new(configured: IdentityProvider) -> Result<Self, FetchError> {
        let IdentityProvider { provider, expected, session_lifetime, algorithms, authority, console } =
            configured;
        let name = provider.issuer.clone();
        let keys = IssuerKeys { issuer: name.clone(), algorithms, source: KeySource::Discovery, authority };
        let issuer = Issuer::new(keys)?;
        let expected_of_browsers = Expected { client_id: console.id.clone(), ..expected.clone() };
        let fetcher = issuer.fetcher().clone();
        let codes = Codes::new(name, console, &provider.scopes, expected.max_auth_age, fetcher);
        Ok(Self { provider, expected, session_lifetime, issuer, codes, expected_of_browsers })
    }
}
