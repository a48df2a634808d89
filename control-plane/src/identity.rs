//! Who is calling: from a token or certificate to a caller, from an ID token of a provider to what it says.
//!
//! Owns: tokens, certificates, the authority that signs those, and what they prove; what is said to identity providers. Must not
//! know: what a caller may do, grants.

pub mod authority;
pub mod certificate;
pub mod oidc;
pub mod svid;
mod token;
pub mod workloads;

pub use certificate::{HostCertificate, Presented, Serial, Svid};
pub use token::{Token, TokenHash};

use std::time::Duration;

use proto::status::ErrorKind;
use proto::types::Timestamp;
use tonic::metadata::MetadataMap;

use crate::rules::calls::Caller;
use crate::store::{Store, StoreError};

/// What a caller proves itself by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// Nothing.
    None,
    /// A token in the headers of the call.
    Token(TokenHash),
    /// A certificate that its connection has proven.
    Certificate(HostCertificate),
}

/// Why nobody was recognised.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A token came over a connection of a host.
    #[error("a token came over a connection that is a host's")]
    Two,
    /// The header is not `Bearer TOKEN`.
    #[error("the `authorization` header is not `Bearer TOKEN`")]
    Malformed,
    /// The token is nobody's, or not any more.
    #[error("the token is not known, or not any more")]
    Unknown,
    /// The certificate does not count, or the record could not be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl IdentityError {
    /// What sort of error it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Two | Self::Malformed | Self::Unknown => ErrorKind::Unauthenticated,
            Self::Store(error) => error.kind(),
        }
    }
}

impl Credential {
    /// What comes with a call: by its headers, and by its connection.
    pub fn of(headers: &MetadataMap, certificate: Option<&HostCertificate>) -> Result<Self, IdentityError> {
        match (headers.get("authorization"), certificate) {
            (None, None) => Ok(Self::None),
            (None, Some(certificate)) => Ok(Self::Certificate(certificate.clone())),
            (Some(_), Some(_)) => Err(IdentityError::Two),
            (Some(header), None) => {
                let header = header.to_str().map_err(|_| IdentityError::Malformed)?;
                let (scheme, token) = header.split_once(' ').ok_or(IdentityError::Malformed)?;
                match scheme.eq_ignore_ascii_case("bearer") {
                    true => Ok(Self::Token(TokenHash::of(token.trim()))),
                    false => Err(IdentityError::Malformed),
                }
            }
        }
    }

    /// How long it counts from now on, as far as it says itself, for whom the wall clock says `wall`.
    pub fn lifetime(&self, wall: Timestamp) -> Duration {
        match self {
            Self::None | Self::Token(_) => Duration::MAX,
            Self::Certificate(certificate) => {
                let left = certificate.not_after_unix_s.saturating_mul(1000).saturating_sub(wall.unix_ms());
                Duration::from_millis(u64::try_from(left).unwrap_or(0))
            }
        }
    }

    /// Who that is, as of now.
    pub async fn caller(&self, store: &Store, now: Timestamp) -> Result<Caller, IdentityError> {
        match self {
            Self::None => Ok(Caller::Nobody),
            Self::Token(token) => store.caller(token, now).await?.ok_or(IdentityError::Unknown),
            Self::Certificate(certificate) => {
                store.present(certificate, now).await?;
                Ok(Caller::Host(certificate.host.clone()))
            }
        }
    }
}
