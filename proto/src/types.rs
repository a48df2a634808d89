//! The checked types: whoever holds one may rely on its rules.
//!
//! Each has `TryFrom` its wire message, with an error that names the field, and `From` itself into the wire message.

mod access;
mod action;
mod audit;
mod delta;
mod digest;
mod draft;
mod enrolment;
mod freeze;
mod grant;
mod host;
mod identity;
mod ids;
mod incident;
mod labels;
mod outage;
mod policy;
mod report;
mod request;
mod resource;
mod review;
mod run;
mod selector;
mod session;
mod subject;
mod time;

pub use access::{Access, AccessFilter, AccessPlace, Certainty};
pub use action::{ACTION_PATH, Action, ArgumentPattern, ExecutablePath, may_be_in_environment};
pub use audit::{AuditEvent, Change, Closed, Connection, EventId, EventKind, Gap, Receipt};
pub use delta::Delta;
pub use digest::Digest;
pub use draft::Draft;
pub use enrolment::{Evidence, Fingerprint, Identity, Join, JoinToken, SigningRequest};
pub use freeze::{Freeze, Frozen, NewFreeze};
pub use grant::{EndReason, Grant, GrantHost, GrantState, HostEnd};
pub use host::{Host, HostState};
pub use identity::{
    Credential, ID_TOKEN_MAX_BYTES, NewSignIn, PROVIDERS_MAX, Provider, SignIn, SignInBy, SubjectIdentity,
    WorkloadToken,
};
pub use ids::{
    DraftId, FreezeId, GrantId, HookName, HostName, IncidentId, ProviderName, RequestId, ResourceName,
    ResourceNumber, RoleName, RunId, SubjectId, SubjectNumber,
};
pub use incident::{Incident, NewIncident};
pub use labels::{Label, Labels};
pub use outage::Outage;
pub use policy::{Difference, NewPolicy, PlannedEnd, PolicyFiles, PolicyPlan, PolicyVersion, What};
pub use report::{
    EVENTS_SHOWN_MAX, EventReference, GrantUse, NAMES_SHOWN_MAX, Page, Period, ReviewedAccess, RoleUse,
    Usage, UseFilter,
};
pub use request::{
    GRANT_LIMIT_MAX, HookAnswer, NewApproval, NewExtension, NewRequest, Reason, Request, RequestKey,
    RequestState, Vote, Waiting, page_limit,
};
pub use resource::{
    Address, NewResource, PortRange, Prefix, Protocol, Resource, ResourceChange, ResourceMode,
    ResourceOptions, UnixPath,
};
pub use selector::{CgroupPath, ContainerPrefix, PodSelector, Selector, UnitName, UnixUser};
pub use session::{
    Applied, EndedGrant, GrantSet, Hello, LiveGrant, PROTOCOL, PROTOCOL_OF_RUNS, Refused, RefusedItem,
    Report, Welcome, resync_reason,
};
pub use subject::{NewSubject, Subject, SubjectRole};
pub use time::{Timestamp, duration_from_wire, duration_to_wire};

pub use review::Review;
pub use run::{
    CHALLENGE_BYTES, Challenge, FRAME_MAX_BYTES, FromAgent, RunDetails, RunPass, RunRefusal, RunStatement,
    ToAgent,
};

pub(crate) use action::optional_action;
pub(crate) use run::optional_run;
pub(crate) use selector::optional_cgroup;

use std::fmt::{self, Display};

/// A value that breaks a rule: which field, which value, and what the rule is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Invalid {
    /// The field, as the wire names it, with the outer ones in front (`resource.ports`).
    pub field: String,
    /// What is wrong with it, the value included.
    pub problem: String,
}

impl Invalid {
    /// A broken rule of `field`.
    pub fn new(field: impl Into<String>, problem: impl Display) -> Self {
        Self { field: field.into(), problem: problem.to_string() }
    }

    /// A field that must be there and is not.
    pub fn missing(field: impl Into<String>) -> Self {
        Self::new(field, "is missing")
    }

    /// The same, seen from the message that contains this one.
    pub fn within(mut self, outer: &str) -> Self {
        self.field = if self.field.is_empty() { outer.to_owned() } else { format!("{outer}.{}", self.field) };
        self
    }
}

/// Quotes a value for an error text, cut where it grows unreadable. What came from outside is shown escaped.
pub(crate) fn quote(value: &str) -> String {
    const SHOWN_MAX: usize = 80;
    let shown: String = value.chars().take(SHOWN_MAX).flat_map(char::escape_debug).collect();
    let dots = if value.chars().nth(SHOWN_MAX).is_some() { "…" } else { "" };
    format!("`{shown}{dots}`")
}

/// Checks each of a list, and that there are not too many.
pub(crate) fn all<W, T>(
    field: &str,
    values: Vec<W>,
    max: usize,
    check: impl Fn(W) -> Result<T, Invalid>,
) -> Result<Vec<T>, Invalid> {
    if values.len() > max {
        return Err(Invalid::new(
            field,
            format_args!("has {} entries, at most {max} are possible", values.len()),
        ));
    }
    values.into_iter().map(check).collect::<Result<_, _>>().map_err(|error| error.within(field))
}

/// Shows a list as people write it.
pub(crate) struct List<'a, T>(pub(crate) &'a [T]);

impl<T: Display> Display for List<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, item) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            item.fmt(f)?;
        }
        Ok(())
    }
}
