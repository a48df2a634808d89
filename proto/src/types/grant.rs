//! Grants as the control plane shows them.

use std::fmt::{self, Display};
use std::time::Duration;

use super::{
    Action, CgroupPath, GrantId, HostName, Invalid, RequestId, ResourceName, RunId, SubjectId, Timestamp,
    duration_from_wire, duration_to_wire, optional_action, optional_cgroup, optional_run, time,
};
use crate::wire::access as wire;

/// Where a grant stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GrantState {
    /// Approved, and its time has not begun; no kernel holds it.
    Scheduled,
    /// On its way to its hosts.
    Activating,
    /// The kernel of every host of it holds it.
    Active,
    /// Ended by somebody; not every host has confirmed yet, and its deadline has not passed.
    Ending(EndReason),
    /// No kernel lets anybody through by it.
    Ended(EndReason),
}

/// Why a grant ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndReason {
    /// Its deadline passed.
    Time,
    /// Its holder gave it back.
    Released,
    /// An approver or administrator took it away.
    Revoked,
    /// A host could not put it into its kernel.
    ActivationFailed,
    /// Nothing was let through by it for as long as its idle limit.
    Idle,
    /// The cgroup that it was bound to is empty or gone.
    TaskExit,
    /// The policy in force does not permit it any more.
    PolicyChanged,
    /// Its subject was disabled.
    IdentityDisabled,
    /// Its resource was closed for a time.
    Frozen,
    /// It was approved, and nobody activated it in time.
    Lapsed,
}

/// Why a host ends a grant by itself, for what only it can see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostEnd {
    /// As [`EndReason::Idle`].
    Idle,
    /// As [`EndReason::TaskExit`].
    TaskExit,
}

impl From<HostEnd> for EndReason {
    fn from(end: HostEnd) -> Self {
        match end {
            HostEnd::Idle => Self::Idle,
            HostEnd::TaskExit => Self::TaskExit,
        }
    }
}

impl TryFrom<EndReason> for HostEnd {
    type Error = Invalid;

    fn try_from(reason: EndReason) -> Result<Self, Invalid> {
        match reason {
            EndReason::Idle => Ok(Self::Idle),
            EndReason::TaskExit => Ok(Self::TaskExit),
            EndReason::Time
            | EndReason::Released
            | EndReason::Revoked
            | EndReason::ActivationFailed
            | EndReason::PolicyChanged
            | EndReason::IdentityDisabled
            | EndReason::Frozen
            | EndReason::Lapsed => {
                Err(Invalid::new("reason", format_args!("`{reason}` is not for a host to find")))
            }
        }
    }
}

impl GrantState {
    /// As people read it, without the reason.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Activating => "activating",
            Self::Active => "active",
            Self::Ending(_) => "ending",
            Self::Ended(_) => "ended",
        }
    }

    /// Why it ended, from `Ending` on.
    pub fn end_reason(self) -> Option<EndReason> {
        match self {
            Self::Scheduled | Self::Activating | Self::Active => None,
            Self::Ending(reason) | Self::Ended(reason) => Some(reason),
        }
    }
}

impl EndReason {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Time,
        Self::Released,
        Self::Revoked,
        Self::ActivationFailed,
        Self::Idle,
        Self::TaskExit,
        Self::PolicyChanged,
        Self::IdentityDisabled,
        Self::Frozen,
        Self::Lapsed,
    ];

    /// As events and people name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Time => "time",
            Self::Released => "released",
            Self::Revoked => "revoked",
            Self::ActivationFailed => "activation_failed",
            Self::Idle => "idle",
            Self::TaskExit => "task_exit",
            Self::PolicyChanged => "policy_changed",
            Self::IdentityDisabled => "identity_disabled",
            Self::Frozen => "frozen",
            Self::Lapsed => "lapsed",
        }
    }
}

impl Display for GrantState {
    /// `ended (time)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.end_reason() {
            None => f.pad(self.as_str()),
            Some(reason) => f.pad(&format!("{} ({})", self.as_str(), reason.as_str())),
        }
    }
}

impl Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One host of a grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantHost {
    /// The host.
    pub name: HostName,
    /// Its kernel holds the grant (while ending: still may hold it).
    pub held: bool,
    /// Why its kernel could not hold it; empty: no error.
    pub error: String,
    /// The latest that its kernel can let somebody through, whatever becomes of the host; None: it lets nobody through any more,
    /// or never did.
    pub until: Option<Timestamp>,
}

/// Subject may reach resource, on these hosts, until a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Its id.
    pub id: GrantId,
    /// Where it stands.
    pub state: GrantState,
    /// What it came from.
    pub request: RequestId,
    /// What may be reached.
    pub resource: ResourceName,
    /// Who may.
    pub subject: SubjectId,
    /// From where; never empty.
    pub hosts: Vec<GrantHost>,
    /// When it was approved.
    pub issued: Timestamp,
    /// The longest it can live on any host; of one that waits to be activated: when it lapses.
    pub expires: Timestamp,
    /// None until it has ended.
    pub ended: Option<Timestamp>,
    /// How long nothing may be let through by it on a host until it ends there; None: no limit.
    pub idle: Option<Duration>,
    /// It ends when this cgroup of its one host is empty or gone.
    pub while_running: Option<CgroupPath>,
    /// It is for this run of the subject on its one host; None: for all of the subject's processes.
    pub run: Option<RunId>,
    /// It is for this alone, once; None: for whatever the subject does.
    pub action: Option<Action>,
    /// How often it was extended.
    pub extensions: u32,
    /// When its time began, or begins by itself; None: it waits, or waited, to be activated.
    pub begins: Option<Timestamp>,
    /// How long it will live, once activated; None unless it waits for that.
    pub duration: Option<Duration>,
}

/// None: not ended.
pub(crate) fn end_reason(wire: wire::EndReason) -> Option<EndReason> {
    match wire {
        wire::EndReason::Unspecified => None,
        wire::EndReason::Time => Some(EndReason::Time),
        wire::EndReason::Released => Some(EndReason::Released),
        wire::EndReason::Revoked => Some(EndReason::Revoked),
        wire::EndReason::ActivationFailed => Some(EndReason::ActivationFailed),
        wire::EndReason::Idle => Some(EndReason::Idle),
        wire::EndReason::TaskExit => Some(EndReason::TaskExit),
        wire::EndReason::PolicyChanged => Some(EndReason::PolicyChanged),
        wire::EndReason::IdentityDisabled => Some(EndReason::IdentityDisabled),
        wire::EndReason::Frozen => Some(EndReason::Frozen),
        wire::EndReason::Lapsed => Some(EndReason::Lapsed),
    }
}

impl From<EndReason> for wire::EndReason {
    fn from(reason: EndReason) -> Self {
        match reason {
            EndReason::Time => Self::Time,
            EndReason::Released => Self::Released,
            EndReason::Revoked => Self::Revoked,
            EndReason::ActivationFailed => Self::ActivationFailed,
            EndReason::Idle => Self::Idle,
            EndReason::TaskExit => Self::TaskExit,
            EndReason::PolicyChanged => Self::PolicyChanged,
            EndReason::IdentityDisabled => Self::IdentityDisabled,
            EndReason::Frozen => Self::Frozen,
            EndReason::Lapsed => Self::Lapsed,
        }
    }
}

impl TryFrom<wire::Grant> for Grant {
    type Error = Invalid;

    fn try_from(wire: wire::Grant) -> Result<Self, Invalid> {
        let reason = end_reason(wire.end_reason());
        let with_reason = || reason.ok_or_else(|| Invalid::missing("end_reason"));
        let state = match wire.state() {
            wire::GrantState::Scheduled => GrantState::Scheduled,
            wire::GrantState::Activating => GrantState::Activating,
            wire::GrantState::Active => GrantState::Active,
            wire::GrantState::Ending => GrantState::Ending(with_reason()?),
            wire::GrantState::Ended => GrantState::Ended(with_reason()?),
            wire::GrantState::Unspecified => return Err(Invalid::new("state", "is missing or unknown")),
        };
        let host = |host: wire::GrantHost| {
            Ok(GrantHost {
                name: host.name.parse()?,
                held: host.held,
                error: host.error,
                until: time::optional("until", host.until)?,
            })
        };
        Ok(Self {
            id: wire.id.parse()?,
            state,
            request: wire.request.parse()?,
            resource: wire.resource.parse()?,
            subject: wire.subject.parse()?,
            hosts: wire.hosts.into_iter().map(host).collect::<Result<_, Invalid>>()?,
            issued: time::required("issued", wire.issued)?,
            expires: time::required("expires", wire.expires)?,
            ended: time::optional("ended", wire.ended)?,
            idle: wire.idle.map(|idle| duration_from_wire("idle", Some(idle))).transpose()?,
            while_running: optional_cgroup("while_running", &wire.while_running)?,
            run: optional_run(&wire.run)?,
            action: optional_action(wire.action)?,
            extensions: wire.extensions,
            begins: time::optional("begins", wire.begins)?,
            duration: wire.duration.map(|it| duration_from_wire("duration", Some(it))).transpose()?,
        })
    }
}

impl From<Grant> for wire::Grant {
    fn from(grant: Grant) -> Self {
        let state = match grant.state {
            GrantState::Scheduled => wire::GrantState::Scheduled,
            GrantState::Activating => wire::GrantState::Activating,
            GrantState::Active => wire::GrantState::Active,
            GrantState::Ending(_) => wire::GrantState::Ending,
            GrantState::Ended(_) => wire::GrantState::Ended,
        };
        let end_reason = grant.state.end_reason().map_or(wire::EndReason::Unspecified, Into::into);
        let host = |host: GrantHost| wire::GrantHost {
            name: host.name.into(),
            held: host.held,
            error: host.error,
            until: host.until.map(Into::into),
        };
        Self {
            id: grant.id.to_string(),
            state: state.into(),
            end_reason: end_reason.into(),
            request: grant.request.to_string(),
            resource: grant.resource.into(),
            subject: grant.subject.into(),
            hosts: grant.hosts.into_iter().map(host).collect(),
            issued: Some(grant.issued.into()),
            expires: Some(grant.expires.into()),
            ended: grant.ended.map(Into::into),
            idle: grant.idle.map(duration_to_wire),
            while_running: grant.while_running.map(Into::into).unwrap_or_default(),
            run: grant.run.map(|id| id.to_string()).unwrap_or_default(),
            action: grant.action.map(Into::into),
            extensions: grant.extensions,
            begins: grant.begins.map(Into::into),
            duration: grant.duration.map(duration_to_wire),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_survive_the_wire() {
        let now = Timestamp::from_unix_ms(1_795_000_000_000).expect("in range");
        let reasons = EndReason::ALL
            .into_iter()
            .flat_map(|reason| [GrantState::Ending(reason), GrantState::Ended(reason)]);
        for state in
            [GrantState::Scheduled, GrantState::Activating, GrantState::Active].into_iter().chain(reasons)
        {
            let grant = Grant {
                id: GrantId::new(),
                state,
                request: RequestId::new(),
                resource: "db".parse().expect("valid"),
                subject: "user:alice".parse().expect("valid"),
                hosts: vec![GrantHost {
                    name: "db-7".parse().expect("valid"),
                    held: true,
                    error: String::new(),
                    until: Some(now),
                }],
                issued: now,
                expires: now,
                ended: None,
                idle: Some(Duration::from_secs(60)),
                while_running: "/job".parse().ok(),
                run: Some(RunId::new()),
                action: None,
                extensions: 3,
                begins: Some(now),
                duration: Some(Duration::from_secs(60)),
            };
            assert_eq!(Grant::try_from(wire::Grant::from(grant.clone())), Ok(grant));
        }
    }

    #[test]
    fn a_host_finds_some_ends_only() {
        for reason in EndReason::ALL {
            match HostEnd::try_from(reason) {
                Ok(end) => assert_eq!(EndReason::from(end), reason),
                Err(error) => assert!(error.to_string().contains(reason.as_str()), "{error}"),
            }
        }
        assert!(HostEnd::try_from(EndReason::Revoked).is_err());
    }
}
