//! Error kinds, their gRPC codes, and whether trying again can help: one table for every service.
//!
//! Owns: the translation between an error and a `tonic::Status`. Must not know: what the services do.

use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

/// What sort of thing went wrong, as far as the other side can act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The call itself is wrong; the message names the value.
    InvalidArgument,
    /// No token, or one that nobody knows.
    Unauthenticated,
    /// The caller may not do this.
    PermissionDenied,
    /// A name or id that nobody knows.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// Right in itself, but not in the present state.
    FailedPrecondition,
    /// A position beyond the end.
    OutOfRange,
    /// A limit is reached; the message names it.
    ResourceExhausted,
    /// Something newer took this one's place.
    Aborted,
    /// The other side cannot be reached or is stopping.
    Unavailable,
    /// Our fault.
    Internal,
}

impl ErrorKind {
    /// All kinds, for tables.
    pub const ALL: [Self; 11] = [
        Self::InvalidArgument,
        Self::Unauthenticated,
        Self::PermissionDenied,
        Self::NotFound,
        Self::AlreadyExists,
        Self::FailedPrecondition,
        Self::OutOfRange,
        Self::ResourceExhausted,
        Self::Aborted,
        Self::Unavailable,
        Self::Internal,
    ];

    /// The gRPC code that carries this kind.
    pub fn code(self) -> Code {
        match self {
            Self::InvalidArgument => Code::InvalidArgument,
            Self::Unauthenticated => Code::Unauthenticated,
            Self::PermissionDenied => Code::PermissionDenied,
            Self::NotFound => Code::NotFound,
            Self::AlreadyExists => Code::AlreadyExists,
            Self::FailedPrecondition => Code::FailedPrecondition,
            Self::OutOfRange => Code::OutOfRange,
            Self::ResourceExhausted => Code::ResourceExhausted,
            Self::Aborted => Code::Aborted,
            Self::Unavailable => Code::Unavailable,
            Self::Internal => Code::Internal,
        }
    }

    /// Whether the same call may succeed later without a change of its own.
    pub fn worth_retrying(self) -> bool {
        match self {
            Self::Unavailable | Self::Aborted | Self::ResourceExhausted => true,
            Self::InvalidArgument
            | Self::Unauthenticated
            | Self::PermissionDenied
            | Self::NotFound
            | Self::AlreadyExists
            | Self::FailedPrecondition
            | Self::OutOfRange
            | Self::Internal => false,
        }
    }

    /// The kind that a received code stands for. Codes that we never send count as [`ErrorKind::Internal`].
    pub fn from_code(code: Code) -> Self {
        match code {
            Code::InvalidArgument => Self::InvalidArgument,
            Code::Unauthenticated => Self::Unauthenticated,
            Code::PermissionDenied => Self::PermissionDenied,
            Code::NotFound => Self::NotFound,
            Code::AlreadyExists => Self::AlreadyExists,
            Code::FailedPrecondition => Self::FailedPrecondition,
            Code::OutOfRange => Self::OutOfRange,
            Code::ResourceExhausted => Self::ResourceExhausted,
            Code::Aborted => Self::Aborted,
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Self::Unavailable,
            Code::Ok | Code::Unknown | Code::Unimplemented | Code::Internal | Code::DataLoss => {
                Self::Internal
            }
        }
    }
}

/// Where a status keeps what to do next: it is not part of the error's text.
const HINT_KEY: &str = "portcullis-hint-bin";

/// Makes the status that carries an error to the other side. An empty hint is left out.
pub fn status(kind: ErrorKind, message: impl Into<String>, hint: &str) -> Status {
    let mut status = Status::new(kind.code(), message);
    if !hint.is_empty() {
        status.metadata_mut().insert_bin(HINT_KEY, MetadataValue::from_bytes(hint.as_bytes()));
    }
    status
}

/// The hint that came with a status, if any.
pub fn hint(status: &Status) -> Option<String> {
    let bytes = status.metadata().get_bin(HINT_KEY)?.to_bytes().ok()?;
    String::from_utf8(bytes.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_the_wire() {
        for kind in ErrorKind::ALL {
            let received = status(kind, "cannot do it", "do it otherwise — später");
            assert_eq!(ErrorKind::from_code(received.code()), kind);
            assert_eq!(hint(&received).as_deref(), Some("do it otherwise — später"));
        }
        assert_eq!(hint(&status(ErrorKind::Internal, "x", "")), None);
    }

    #[test]
    fn table() {
        let table: String = ErrorKind::ALL
            .iter()
            .map(|kind| format!("{kind:?} -> {:?}, retry: {}\n", kind.code(), kind.worth_retrying()))
            .collect();
        insta::assert_snapshot!(table);
    }
}
