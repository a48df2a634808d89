//! Who can reach what, as the control plane shows it.

use std::fmt::{self, Display};
use std::str::FromStr;

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
    /// Of the grants behind this place; None: of the newest.
    pub after: Option<AccessPlace>,
}

/// How far a list of access has come: newest grants first, of each grant hosts by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessPlace {
    /// The last grant that there were lines of.
    pub grant: GrantId,
    /// The host of the last of them; None: there are no more.
    pub host: Option<HostName>,
}

impl AccessPlace {
    /// Whether it lies further on than another place.
    pub fn is_behind(&self, other: &Self) -> bool {
        match self.grant == other.grant {
            false => self.grant < other.grant,
            true => match (&self.host, &other.host) {
                (Some(host), Some(before)) => host > before,
                (None, Some(_)) => true,
                (_, None) => false,
            },
        }
    }
}

impl Display for AccessPlace {
    /// `GRANT` or `GRANT/HOST`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            None => self.grant.fmt(f),
            Some(host) => write!(f, "{}/{host}", self.grant),
        }
    }
}

impl FromStr for AccessPlace {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (grant, host) = match text.split_once('/') {
            None => (text, None),
            Some((grant, host)) => (grant, Some(host)),
        };
        Ok(Self { grant: grant.parse()?, host: host.map(str::parse).transpose()? })
    }
}

impl TryFrom<wire::ListAccessRequest> for AccessFilter {
    type Error = Invalid;

    fn try_from(wire: wire::ListAccessRequest) -> Result<Self, Invalid> {
        let wire::ListAccessRequest { resource, subject, host, at, limit, after } = wire;
        let after = (!after.is_empty()).then(|| after.parse::<AccessPlace>()).transpose();
        Ok(Self {
            resource: (!resource.is_empty()).then(|| resource.parse()).transpose()?,
            subject: (!subject.is_empty()).then(|| subject.parse()).transpose()?,
            host: (!host.is_empty()).then(|| host.parse()).transpose()?,
            at: time::optional("at", at)?,
            limit: page_limit(limit)?,
            after: after.map_err(|error| Invalid::new("after", error.problem))?,
        })
    }
}

impl From<AccessFilter> for wire::ListAccessRequest {
    fn from(filter: AccessFilter) -> Self {
        let AccessFilter { resource, subject, host, at, limit, after } = filter;
        Self {
            resource: resource.map(Into::into).unwrap_or_default(),
            subject: subject.map(Into::into).unwrap_or_default(),
            host: host.map(Into::into).unwrap_or_default(),
            at: at.map(Into::into),
            limit,
            after: after.map(|after| after.to_string()).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_survive_the_wire_and_lead_on() {
        let (older, newer) = (GrantId::new(), GrantId::new());
        let place = |grant, host: Option<&str>| AccessPlace {
            grant,
            host: host.map(|host| host.parse().expect("valid")),
        };
        let order =
            [place(newer, Some("a")), place(newer, Some("b")), place(newer, None), place(older, None)];
        for (index, one) in order.iter().enumerate() {
            assert_eq!(one.to_string().parse::<AccessPlace>().as_ref(), Ok(one));
            for (other_index, other) in order.iter().enumerate() {
                assert_eq!(one.is_behind(other), index > other_index, "{one} {other}");
            }
        }
        for bad in ["", "/", "x", &format!("{older}/"), &format!("{older}/A B")] {
            assert!(bad.parse::<AccessPlace>().is_err(), "{bad}");
        }
    }
}
