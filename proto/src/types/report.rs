//! What became of access, as reports say it.

use std::fmt::{self, Display};
use std::time::Duration;

use super::{
    GrantId, HostName, Invalid, RequestId, ResourceName, RoleName, SubjectId, Timestamp, Vote, all,
    duration_from_wire, duration_to_wire, page_limit, time,
};
use crate::wire::report as wire;

/// How many names a report lists of those that were not used, or of those who had something.
pub const NAMES_SHOWN_MAX: usize = 20;
/// How many places are told apart of a grant.
const PLACES_MAX: usize = 200;
/// How many remarks there are about one grant or role.
const NOTES_MAX: usize = 8;
/// How many references one grant has at most in one answer.
pub const EVENTS_SHOWN_MAX: usize = 100;
/// How many people can have said something about one request.
const VOTES_MAX: usize = 1000;

/// What is known of the use of a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Usage {
    /// Nothing is known that was granted for nothing.
    Used,
    /// It was used, but not all of it.
    OverWide,
    /// Every host says that nobody was let through by it.
    Unused,
    /// That cannot be said.
    Unknown,
}

impl Usage {
    /// As people read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Used => "used",
            Self::OverWide => "over_wide",
            Self::Unused => "unused",
            Self::Unknown => "unknown",
        }
    }
}

impl Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One grant, against what was used of it. Fields as in the `.proto`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "report.proto says it, and saying it twice makes one of them wrong")]
pub struct GrantUse {
    pub grant: GrantId,
    pub request: RequestId,
    pub subject: SubjectId,
    pub resource: ResourceName,
    pub role: Option<RoleName>,
    pub usage: Usage,
    pub hosts: u32,
    pub hosts_used: u32,
    pub hosts_unused: Vec<HostName>,
    pub ports: Vec<String>,
    pub ports_used: Vec<String>,
    pub since: Timestamp,
    pub until: Timestamp,
    /// First and last.
    pub used: Option<(Timestamp, Timestamp)>,
    pub connections: u64,
    pub notes: Vec<String>,
}

impl TryFrom<wire::GrantUse> for GrantUse {
    type Error = Invalid;

    fn try_from(wire: wire::GrantUse) -> Result<Self, Invalid> {
        let usage = match wire.usage() {
            wire::Usage::Used => Usage::Used,
            wire::Usage::OverWide => Usage::OverWide,
            wire::Usage::Unused => Usage::Unused,
            wire::Usage::Unknown => Usage::Unknown,
            wire::Usage::Unspecified => return Err(Invalid::new("usage", "is missing or unknown")),
        };
        let first = time::optional("first_used", wire.first_used)?;
        let last = time::optional("last_used", wire.last_used)?;
        Ok(Self {
            grant: wire.grant.parse()?,
            request: wire.request.parse()?,
            subject: wire.subject.parse()?,
            resource: wire.resource.parse()?,
            role: (!wire.role.is_empty()).then(|| wire.role.parse()).transpose()?,
            usage,
            hosts: wire.hosts,
            hosts_used: wire.hosts_used,
            hosts_unused: all("hosts_unused", wire.hosts_unused, NAMES_SHOWN_MAX, |name| name.parse())?,
            ports: all("ports", wire.ports, PLACES_MAX, Ok)?,
            ports_used: all("ports_used", wire.ports_used, PLACES_MAX, Ok)?,
            since: time::required("since", wire.since)?,
            until: time::required("until", wire.until)?,
            used: first.zip(last),
            connections: wire.connections,
            notes: all("notes", wire.notes, NOTES_MAX, Ok)?,
        })
    }
}

impl From<GrantUse> for wire::GrantUse {
    fn from(grant: GrantUse) -> Self {
        let usage = match grant.usage {
            Usage::Used => wire::Usage::Used,
            Usage::OverWide => wire::Usage::OverWide,
            Usage::Unused => wire::Usage::Unused,
            Usage::Unknown => wire::Usage::Unknown,
        };
        Self {
            grant: grant.grant.to_string(),
            request: grant.request.to_string(),
            subject: grant.subject.into(),
            resource: grant.resource.into(),
            role: grant.role.map(Into::into).unwrap_or_default(),
            usage: usage.into(),
            hosts: grant.hosts,
            hosts_used: grant.hosts_used,
            hosts_unused: grant.hosts_unused.into_iter().map(Into::into).collect(),
            ports: grant.ports,
            ports_used: grant.ports_used,
            since: Some(grant.since.into()),
            until: Some(grant.until.into()),
            first_used: grant.used.map(|(first, _)| first.into()),
            last_used: grant.used.map(|(_, last)| last.into()),
            connections: grant.connections,
            notes: grant.notes,
        }
    }
}

/// A time that a report is about. The end does not belong to it; None: it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    /// Its beginning.
    pub from: Timestamp,
    /// Its end.
    pub to: Option<Timestamp>,
}

impl Period {
    fn new(
        from: Option<prost_types::Timestamp>,
        to: Option<prost_types::Timestamp>,
    ) -> Result<Self, Invalid> {
        let (from, to) = (time::required("from", from)?, time::optional("to", to)?);
        match to.is_some_and(|to| to <= from) {
            true => Err(Invalid::new("to", "is not after `from`")),
            false => Ok(Self { from, to }),
        }
    }
}

/// Which page of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Behind this one; None: from the beginning.
    pub after: Option<GrantId>,
    /// 1..=1000; as a call, 0 stands for 100.
    pub limit: u32,
}

impl Page {
    fn new(after: &str, limit: u32) -> Result<Self, Invalid> {
        let after = (!after.is_empty()).then(|| after.parse::<GrantId>()).transpose();
        let after = after.map_err(|error| Invalid::new("after", error.problem))?;
        Ok(Self { after, limit: page_limit(limit)? })
    }

    fn wire(self) -> (String, u32) {
        (self.after.map(|after| after.to_string()).unwrap_or_default(), self.limit)
    }
}

/// Which grants a report is about. None: any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UseFilter {
    /// Live then.
    pub period: Period,
    /// Of this one.
    pub subject: Option<SubjectId>,
    /// To this.
    pub resource: Option<ResourceName>,
    /// Which of them.
    pub page: Page,
}

impl TryFrom<wire::ListGrantUsesRequest> for UseFilter {
    type Error = Invalid;

    fn try_from(wire: wire::ListGrantUsesRequest) -> Result<Self, Invalid> {
        let wire::ListGrantUsesRequest { from, to, subject, resource, after, limit } = wire;
        Ok(Self {
            period: Period::new(from, to)?,
            subject: (!subject.is_empty()).then(|| subject.parse()).transpose()?,
            resource: (!resource.is_empty()).then(|| resource.parse()).transpose()?,
            page: Page::new(&after, limit)?,
        })
    }
}

impl From<UseFilter> for wire::ListGrantUsesRequest {
    fn from(filter: UseFilter) -> Self {
        let UseFilter { period, subject, resource, page } = filter;
        let (after, limit) = page.wire();
        Self {
            from: Some(period.from.into()),
            to: period.to.map(Into::into),
            subject: subject.map(Into::into).unwrap_or_default(),
            resource: resource.map(Into::into).unwrap_or_default(),
            after,
            limit,
        }
    }
}

impl TryFrom<wire::SuggestRolesRequest> for Period {
    type Error = Invalid;

    fn try_from(wire: wire::SuggestRolesRequest) -> Result<Self, Invalid> {
        Self::new(wire.from, wire.to)
    }
}

impl From<Period> for wire::SuggestRolesRequest {
    fn from(period: Period) -> Self {
        Self { from: Some(period.from.into()), to: period.to.map(Into::into) }
    }
}

impl TryFrom<wire::ReviewAccessRequest> for (Period, Page) {
    type Error = Invalid;

    fn try_from(wire: wire::ReviewAccessRequest) -> Result<Self, Invalid> {
        Ok((Period::new(wire.from, wire.to)?, Page::new(&wire.after, wire.limit)?))
    }
}

impl From<(Period, Page)> for wire::ReviewAccessRequest {
    fn from((period, page): (Period, Page)) -> Self {
        let (after, limit) = page.wire();
        Self { from: Some(period.from.into()), to: period.to.map(Into::into), after, limit }
    }
}

/// A role, against what was used of it. Fields as in the `.proto`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "as of `GrantUse`")]
pub struct RoleUse {
    pub role: RoleName,
    pub grants: u64,
    pub unused: u64,
    pub unknown: u64,
    pub subjects: Vec<SubjectId>,
    pub other_subjects: u32,
    pub longest: Duration,
    pub maximum: Option<Duration>,
    pub resources_unused: Vec<ResourceName>,
    pub hosts_unused: Vec<HostName>,
    pub suggestion: String,
    pub notes: Vec<String>,
}

impl TryFrom<wire::RoleUse> for RoleUse {
    type Error = Invalid;

    fn try_from(wire: wire::RoleUse) -> Result<Self, Invalid> {
        let max = NAMES_SHOWN_MAX;
        Ok(Self {
            role: wire.role.parse()?,
            grants: wire.grants,
            unused: wire.unused,
            unknown: wire.unknown,
            subjects: all("subjects", wire.subjects, max, |id| id.parse())?,
            other_subjects: wire.other_subjects,
            longest: duration_from_wire("longest", wire.longest)?,
            maximum: wire.maximum.map(|it| duration_from_wire("maximum", Some(it))).transpose()?,
            resources_unused: all("resources_unused", wire.resources_unused, max, |name| name.parse())?,
            hosts_unused: all("hosts_unused", wire.hosts_unused, max, |name| name.parse())?,
            suggestion: wire.suggestion,
            notes: all("notes", wire.notes, NOTES_MAX, Ok)?,
        })
    }
}

impl From<RoleUse> for wire::RoleUse {
    fn from(role: RoleUse) -> Self {
        Self {
            role: role.role.into(),
            grants: role.grants,
            unused: role.unused,
            unknown: role.unknown,
            subjects: role.subjects.into_iter().map(Into::into).collect(),
            other_subjects: role.other_subjects,
            longest: Some(duration_to_wire(role.longest)),
            maximum: role.maximum.map(duration_to_wire),
            resources_unused: role.resources_unused.into_iter().map(Into::into).collect(),
            hosts_unused: role.hosts_unused.into_iter().map(Into::into).collect(),
            suggestion: role.suggestion,
            notes: role.notes,
        }
    }
}

/// A line of the record that something is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventReference {
    /// Where it stands.
    pub position: u64,
    /// Which line, as [`EventId`](super::EventId) writes it.
    pub id: String,
    /// What kind of line.
    pub event: String,
    /// When it happened.
    pub time: Timestamp,
}

impl EventReference {
    /// The longest id: a host's name, a UUID and a number.
    const ID_MAX_BYTES: usize = 512;
}

impl TryFrom<wire::EventReference> for EventReference {
    type Error = Invalid;

    fn try_from(wire: wire::EventReference) -> Result<Self, Invalid> {
        let wire::EventReference { position, id, event, time } = wire;
        if id.len() > Self::ID_MAX_BYTES {
            return Err(Invalid::new("id", format_args!("has {} bytes", id.len())));
        }
        Ok(Self { position, id, event, time: time::required("time", time)? })
    }
}

impl From<EventReference> for wire::EventReference {
    fn from(reference: EventReference) -> Self {
        let EventReference { position, id, event, time } = reference;
        Self { position, id, event, time: Some(time.into()) }
    }
}

/// One grant, with all that led to it. Fields as in the `.proto`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "as of `GrantUse`")]
pub struct ReviewedAccess {
    pub usage: GrantUse,
    pub requester: SubjectId,
    pub policy: Option<u64>,
    pub reason: String,
    pub requested: Timestamp,
    pub approved: Option<Timestamp>,
    pub active: Option<Timestamp>,
    pub ended: Option<Timestamp>,
    pub state: String,
    pub votes: Vec<Vote>,
    pub hosts: Vec<HostName>,
    pub extensions: u32,
    pub events: Vec<EventReference>,
    pub more_events: bool,
}

impl TryFrom<wire::ReviewedAccess> for ReviewedAccess {
    type Error = Invalid;

    fn try_from(wire: wire::ReviewedAccess) -> Result<Self, Invalid> {
        let usage = wire.r#use.ok_or_else(|| Invalid::missing("use"))?;
        Ok(Self {
            usage: usage.try_into().map_err(|error: Invalid| error.within("use"))?,
            requester: wire.requester.parse::<SubjectId>().map_err(|error| error.within("requester"))?,
            policy: Some(wire.policy).filter(|version| *version != 0),
            reason: wire.reason,
            requested: time::required("requested", wire.requested)?,
            approved: time::optional("approved", wire.approved)?,
            active: time::optional("active", wire.active)?,
            ended: time::optional("ended", wire.ended)?,
            state: wire.state,
            votes: all("votes", wire.votes, VOTES_MAX, Vote::try_from)?,
            hosts: wire.hosts.iter().map(|name| name.parse()).collect::<Result<_, Invalid>>()?,
            extensions: wire.extensions,
            events: all("events", wire.events, EVENTS_SHOWN_MAX, EventReference::try_from)?,
            more_events: wire.more_events,
        })
    }
}

impl From<ReviewedAccess> for wire::ReviewedAccess {
    fn from(access: ReviewedAccess) -> Self {
        Self {
            r#use: Some(access.usage.into()),
            requester: access.requester.into(),
            policy: access.policy.unwrap_or_default(),
            reason: access.reason,
            requested: Some(access.requested.into()),
            approved: access.approved.map(Into::into),
            active: access.active.map(Into::into),
            ended: access.ended.map(Into::into),
            state: access.state,
            votes: access.votes.into_iter().map(Into::into).collect(),
            hosts: access.hosts.into_iter().map(Into::into).collect(),
            extensions: access.extensions,
            events: access.events.into_iter().map(Into::into).collect(),
            more_events: access.more_events,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(second: i64) -> Timestamp {
        Timestamp::from_unix_ms(1_795_000_000_000 + second * 1000).expect("in range")
    }

    fn usage() -> GrantUse {
        GrantUse {
            grant: GrantId::new(),
            request: RequestId::new(),
            subject: "user:alice".parse().expect("valid"),
            resource: "db".parse().expect("valid"),
            role: Some("debug".parse().expect("valid")),
            usage: Usage::OverWide,
            hosts: 2,
            hosts_used: 1,
            hosts_unused: vec!["db-8".parse().expect("valid")],
            ports: vec!["tcp/5432".into()],
            ports_used: vec!["tcp/5432".into()],
            since: time(0),
            until: time(9),
            used: Some((time(1), time(2))),
            connections: 3,
            notes: vec!["1 of 2 hosts was not used".into()],
        }
    }

    #[test]
    fn reports_survive_the_wire() {
        for used in [Usage::Used, Usage::OverWide, Usage::Unused, Usage::Unknown] {
            let report = GrantUse { usage: used, ..usage() };
            assert_eq!(GrantUse::try_from(wire::GrantUse::from(report.clone())), Ok(report));
        }
        let reviewed = ReviewedAccess {
            usage: usage(),
            requester: "user:rita".parse().expect("valid"),
            policy: Some(7),
            reason: "why not".into(),
            requested: time(0),
            approved: Some(time(1)),
            active: None,
            ended: Some(time(3)),
            state: "ended (time)".into(),
            votes: Vec::new(),
            hosts: vec!["db-7".parse().expect("valid")],
            extensions: 1,
            events: vec![EventReference {
                position: 4,
                id: "control-plane/x/4".into(),
                event: "grant.issued".into(),
                time: time(1),
            }],
            more_events: true,
        };
        assert_eq!(ReviewedAccess::try_from(wire::ReviewedAccess::from(reviewed.clone())), Ok(reviewed));
    }

    #[test]
    fn what_is_asked_for_is_checked() {
        let whole = wire::ListGrantUsesRequest {
            from: Some(time(0).into()),
            to: Some(time(9).into()),
            ..wire::ListGrantUsesRequest::default()
        };
        let filter = UseFilter::try_from(whole.clone()).expect("valid");
        assert_eq!(filter.page, Page { after: None, limit: 100 });
        let problem =
            |change: wire::ListGrantUsesRequest| UseFilter::try_from(change).expect_err("not valid").field;
        assert_eq!(problem(wire::ListGrantUsesRequest { from: None, ..whole.clone() }), "from");
        assert_eq!(problem(wire::ListGrantUsesRequest { to: whole.from, ..whole.clone() }), "to");
        assert_eq!(problem(wire::ListGrantUsesRequest { after: "x".into(), ..whole.clone() }), "after");
        assert_eq!(problem(wire::ListGrantUsesRequest { limit: 1001, ..whole.clone() }), "limit");
        assert_eq!(problem(wire::ListGrantUsesRequest { subject: "x".into(), ..whole }), "subject");
    }
}
