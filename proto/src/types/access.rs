//! Who can reach what, as the control plane shows it.

use std::fmt::{self, Display};

use super::{
    GrantId, HostName, Invalid, RequestId, ResourceName, RoleName, SubjectId, Timestamp, all, page_limit,
    time,
};
use crate::wire::access as wire;

/// How many people can have approved one grant.
const APPROVERS_MAX: usize = 1000;

/// What is known of somebody's access from a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Certainty {
    /// Now: the kernel holds the grant, and nothing that is known says otherwise.
    Held,
    /// Now: the kernel may hold the grant.
    Possible,
    /// Of the past: the grant was live then.
    Granted,
}

impl Certainty {
    /// As people read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Possible => "possible",
            Self::Granted => "granted",
        }
    }
}

impl Display for Certainty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Subject can reach resource from this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// Who.
    pub subject: SubjectId,
    /// What.
    pub resource: ResourceName,
    /// From where.
    pub host: HostName,
    /// What is known of it.
    pub certainty: Certainty,
    /// When the grant was made.
    pub since: Timestamp,
    /// The latest at which the host's kernel can let somebody through by it; of the past: when it ended, or would have.
    pub until: Timestamp,
    /// By which grant.
    pub grant: GrantId,
    /// Which request led to it.
    pub request: RequestId,
    /// Of the policy; None: there was none.
    pub role: Option<RoleName>,
    /// What it was asked for.
    pub reason: String,
    /// Who asked.
    pub requester: SubjectId,
    /// In the order of their yes; empty: nobody had to.
    pub approvers: Vec<SubjectId>,
}

impl TryFrom<wire::Access> for Access {
    type Error = Invalid;

    fn try_from(wire: wire::Access) -> Result<Self, Invalid> {
        let certainty = match wire.certainty() {
            wire::AccessCertainty::Held => Certainty::Held,
            wire::AccessCertainty::Possible => Certainty::Possible,
            wire::AccessCertainty::Granted => Certainty::Granted,
            wire::AccessCertainty::Unspecified => {
                return Err(Invalid::new("certainty", "is missing or unknown"));
            }
        };
        Ok(Self {
            subject: wire.subject.parse()?,
            resource: wire.resource.parse()?,
            host: wire.host.parse()?,
            certainty,
            since: time::required("since", wire.since)?,
            until: time::required("until", wire.until)?,
            grant: wire.grant.parse()?,
            request: wire.request.parse()?,
            role: (!wire.role.is_empty()).then(|| wire.role.parse()).transpose()?,
            reason: wire.reason,
            requester: wire.requester.parse::<SubjectId>().map_err(|error| error.within("requester"))?,
            approvers: all("approvers", wire.approvers, APPROVERS_MAX, |id| id.parse::<SubjectId>())?,
        })
    }
}

impl From<Access> for wire::Access {
    fn from(access: Access) -> Self {
        let certainty = match access.certainty {
            Certainty::Held => wire::AccessCertainty::Held,
            Certainty::Possible => wire::AccessCertainty::Possible,
            Certainty::Granted => wire::AccessCertainty::Granted,
        };
        Self {
            subject: access.subject.into(),
            resource: access.resource.into(),
            host: access.host.into(),
            certainty: certainty.into(),
            since: Some(access.since.into()),
            until: Some(access.until.into()),
            grant: access.grant.to_string(),
            request: access.request.to_string(),
            role: access.role.map(Into::into).unwrap_or_default(),
            reason: access.reason,
            requester: access.requester.into(),
            approvers: access.approvers.into_iter().map(Into::into).collect(),
        }
    }
}

/// Whose access is asked for, to what, from where, and when. None: any; of `at`: now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessFilter {
    /// To this.
    pub resource: Option<ResourceName>,
    /// Of this one.
    pub subject: Option<SubjectId>,
    /// From here.
    pub host: Option<HostName>,
    /// Then.
    pub at: Option<Timestamp>,
    /// The newest so many grants, 1..=1000; as a call, 0 stands for 100.
    pub limit: u32,
}

impl TryFrom<wire::ListAccessRequest> for AccessFilter {
    type Error = Invalid;

    fn try_from(wire: wire::ListAccessRequest) -> Result<Self, Invalid> {
        let wire::ListAccessRequest { resource, subject, host, at, limit } = wire;
        Ok(Self {
            resource: (!resource.is_empty()).then(|| resource.parse()).transpose()?,
            subject: (!subject.is_empty()).then(|| subject.parse()).transpose()?,
            host: (!host.is_empty()).then(|| host.parse()).transpose()?,
            at: time::optional("at", at)?,
            limit: page_limit(limit)?,
        })
    }
}

impl From<AccessFilter> for wire::ListAccessRequest {
    fn from(filter: AccessFilter) -> Self {
        let AccessFilter { resource, subject, host, at, limit } = filter;
        Self {
            resource: resource.map(Into::into).unwrap_or_default(),
            subject: subject.map(Into::into).unwrap_or_default(),
            host: host.map(Into::into).unwrap_or_default(),
            at: at.map(Into::into),
            limit,
        }
    }
}
