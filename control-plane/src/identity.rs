//! Who is calling: from a token to a caller, from an ID token of a provider to a person.
//!
//! Owns: tokens and what they prove; what is said to identity providers. Must not know: what a caller may do, grants.

pub mod oidc;
mod token;

pub use token::{Token, TokenHash};

use proto::status::ErrorKind;
use proto::types::Timestamp;
use tonic::metadata::MetadataMap;

use crate::rules::calls::Caller;
use crate::store::{Store, StoreError};

/// Why nobody was recognised.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// No token came with the call.
    #[error("no token came with the call")]
    Absent,
    /// The header is not `Bearer TOKEN`.
    #[error("the `authorization` header is not `Bearer TOKEN`")]
    Malformed,
    /// The token is nobody's, or not any more.
    #[error("the token is not known, or not any more")]
    Unknown,
    /// The record could not be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl IdentityError {
    /// What sort of error it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Absent | Self::Malformed | Self::Unknown => ErrorKind::Unauthenticated,
            Self::Store(_) => ErrorKind::Internal,
        }
    }
}

/// Who speaks, by the bearer token of a call's headers; and the hash of the token, by which it can be asked again.
pub async fn identify(
    store: &Store,
    headers: &MetadataMap,
    now: Timestamp,
) -> Result<(Caller, TokenHash), IdentityError> {
    let header = headers.get("authorization").ok_or(IdentityError::Absent)?;
    let header = header.to_str().map_err(|_| IdentityError::Malformed)?;
    let (scheme, token) = header.split_once(' ').ok_or(IdentityError::Malformed)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(IdentityError::Malformed);
    }
    let token = TokenHash::of(token.trim());
    let caller = store.caller(&token, now).await?.ok_or(IdentityError::Unknown)?;
    Ok((caller, token))
}
