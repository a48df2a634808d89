//! Who causes what the record tells of.
//!
//! Owns: how the record names them, and by what they were recognised. Must not know: what they may do.

use std::fmt::{self, Display};

use proto::types::{Credential, HookName, HostName, SubjectId};

/// A subject that does something, and by what it was recognised.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Acting {
    /// Which one.
    pub id: SubjectId,
    /// By what it was recognised.
    pub credential: Credential,
}

/// Who causes something.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Actor {
    /// A person or service.
    Subject(Acting),
    /// The agent of a host.
    Host(HostName),
    /// A program that was asked for a decision.
    Hook(HookName),
    /// Nobody in particular: time passed, or somebody with access to the control plane's machine.
    System,
}

impl Actor {
    /// By what a subject was recognised; None: it is no subject.
    pub fn credential(&self) -> Option<Credential> {
        match self {
            Self::Subject(acting) => Some(acting.credential),
            Self::Host(_) | Self::Hook(_) | Self::System => None,
        }
    }
}

impl From<Acting> for Actor {
    fn from(acting: Acting) -> Self {
        Self::Subject(acting)
    }
}

impl Display for Actor {
    /// As audit events name it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Subject(acting) => f.pad(acting.id.as_str()),
            Self::Host(name) => write!(f, "host:{name}"),
            Self::Hook(name) => write!(f, "hook:{name}"),
            Self::System => f.pad("system"),
        }
    }
}
