//! Hosts as the control plane shows them.

use std::fmt::{self, Display};

use super::{HostName, Invalid, Labels, Timestamp, time};
use crate::wire::access as wire;

/// What is known about a host's gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HostState {
    /// Its agent has just proven it.
    Enforcing,
    /// Enforcing, but without something.
    Degraded,
    /// Its agent says so.
    NotEnforcing,
    /// No agent is connected, so nothing is claimed.
    Unreachable,
}

impl HostState {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Enforcing, Self::Degraded, Self::NotEnforcing, Self::Unreachable];

    /// As people read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enforcing => "enforcing",
            Self::Degraded => "degraded",
            Self::NotEnforcing => "not enforcing",
            Self::Unreachable => "unreachable",
        }
    }
}

impl Display for HostState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl TryFrom<wire::HostState> for HostState {
    type Error = Invalid;

    fn try_from(wire: wire::HostState) -> Result<Self, Invalid> {
        match wire {
            wire::HostState::Enforcing => Ok(Self::Enforcing),
            wire::HostState::Degraded => Ok(Self::Degraded),
            wire::HostState::NotEnforcing => Ok(Self::NotEnforcing),
            wire::HostState::Unreachable => Ok(Self::Unreachable),
            wire::HostState::Unspecified => Err(Invalid::new("state", "is missing or unknown")),
        }
    }
}

impl From<HostState> for wire::HostState {
    fn from(state: HostState) -> Self {
        match state {
            HostState::Enforcing => Self::Enforcing,
            HostState::Degraded => Self::Degraded,
            HostState::NotEnforcing => Self::NotEnforcing,
            HostState::Unreachable => Self::Unreachable,
        }
    }
}

/// A host and what is known of its gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its name.
    pub name: HostName,
    /// Whether it is enforcing.
    pub state: HostState,
    /// What is missing or why not; empty when enforcing.
    pub detail: String,
    /// Of the grant set that the control plane wants there.
    pub generation: u64,
    /// Of the grant set that its kernel holds; 0: none yet.
    pub applied_generation: u64,
    /// The last message of its agent.
    pub seen: Option<Timestamp>,
    /// Empty: never seen.
    pub agent_version: String,
    /// Empty: never seen.
    pub kernel_release: String,
    /// What it is.
    pub labels: Labels,
}

impl TryFrom<wire::Host> for Host {
    type Error = Invalid;

    fn try_from(wire: wire::Host) -> Result<Self, Invalid> {
        Ok(Self {
            state: wire.state().try_into()?,
            name: wire.name.parse()?,
            detail: wire.detail,
            generation: wire.generation,
            applied_generation: wire.applied_generation,
            seen: time::optional("seen", wire.seen)?,
            agent_version: wire.agent_version,
            kernel_release: wire.kernel_release,
            labels: wire.labels.try_into()?,
        })
    }
}

impl From<Host> for wire::Host {
    fn from(host: Host) -> Self {
        Self {
            name: host.name.into(),
            state: wire::HostState::from(host.state).into(),
            detail: host.detail,
            generation: host.generation,
            applied_generation: host.applied_generation,
            seen: host.seen.map(Into::into),
            agent_version: host.agent_version,
            kernel_release: host.kernel_release,
            labels: host.labels.into(),
        }
    }
}
