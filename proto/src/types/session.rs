//! What agent and control plane say to each other.

use std::collections::HashSet;
use std::time::Duration;

use uuid::Uuid;

use super::{
    Action, CgroupPath, EndReason, GrantId, HostEnd, HostName, HostState, Invalid, Resource, ResourceNumber,
    RunId, Subject, SubjectNumber, all, duration_from_wire, duration_to_wire, grant, optional_action,
    optional_cgroup, optional_run, quote,
};
use crate::wire::agent as wire;

/// The most a kernel holds; above it, a set cannot be meant.
pub(super) const ITEMS_MAX: usize = 1_000_000;

/// The longest text that a report or a refusal may carry, in bytes; longer ones are cut.
const DETAIL_MAX_BYTES: usize = 1000;

/// The agent's first message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Which host speaks.
    pub host: HostName,
    /// Which boot of it.
    pub boot_id: Uuid,
    /// Whose grant set the kernel holds, and which; None: none.
    pub applied: Option<(Uuid, u64)>,
    /// Of the agent.
    pub agent_version: String,
    /// Of the kernel.
    pub kernel_release: String,
    /// Whether it is enforcing.
    pub report: Report,
    /// Which run of the agent's process this is; None: an agent that does not say.
    pub instance: Option<Uuid>,
    /// The newest version of the protocol that the agent speaks; from 1.
    pub protocol: u32,
}

/// The newest version of the protocol between agent and control plane. 1: whole sets only. 2: deltas and digests. 3: grants of one
/// run.
pub const PROTOCOL: u32 = 3;

/// The first version whose agents tell runs apart. To an older one a grant of a run would be one of all the subject's processes.
pub const PROTOCOL_OF_RUNS: u32 = 3;

/// The control plane's first message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Whose generations these are.
    pub timeline: Uuid,
    /// The version of the protocol that both speak; from 1, at most [`PROTOCOL`].
    pub protocol: u32,
}

/// What an agent has just proven about its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Never `Unreachable`.
    pub state: HostState,
    /// What is missing or why not; empty when enforcing.
    pub detail: String,
}

/// All that one host should enforce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantSet {
    /// From 1.
    pub generation: u64,
    /// None twice, by number or name.
    pub resources: Vec<Resource>,
    /// None twice, by number or id.
    pub subjects: Vec<Subject>,
    /// None twice; each names a resource and a subject of this set.
    pub grants: Vec<LiveGrant>,
}

/// A grant that a host should let somebody through by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveGrant {
    /// Its id.
    pub id: GrantId,
    /// Who may.
    pub subject: SubjectNumber,
    /// What may be reached.
    pub resource: ResourceNumber,
    /// What was left of it when the set was sent; never zero.
    pub remaining: Duration,
    /// The host ends it when nothing was let through by it for this long; never zero. None: no limit.
    pub idle: Option<Duration>,
    /// The host ends it when this cgroup is empty or gone.
    pub while_running: Option<CgroupPath>,
    /// It is for this run of the subject, and ends with it; None: for all of the subject's processes.
    pub run: Option<RunId>,
    /// It is for this alone, once; None: for whatever the subject does.
    pub action: Option<Action>,
    /// How often it was extended: only a greater number moves its deadline later on a host that knows it.
    pub extensions: u32,
}

/// A grant that a host has ended by itself: its kernel lets nobody through by it, and never will again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedGrant {
    /// Which one.
    pub grant: GrantId,
    /// Why.
    pub reason: HostEnd,
}

/// A kernel holds a generation, apart from what is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Which one; never 0.
    pub generation: u64,
    /// What the kernel could not take.
    pub refused: Vec<Refused>,
}

/// What a kernel could not take, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What.
    pub item: RefusedItem,
    /// Why.
    pub error: String,
}

/// Something of a grant set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RefusedItem {
    /// It lets nobody through.
    Grant(GrantId),
    /// It is not protected.
    Resource(ResourceNumber),
    /// Its processes are nobody's.
    Subject(SubjectNumber),
}

/// A UUID as our processes write it.
pub(crate) fn uuid(field: &str, text: &str) -> Result<Uuid, Invalid> {
    let uuid = Uuid::try_parse(text).ok().filter(|uuid| !uuid.is_nil());
    uuid.ok_or_else(|| Invalid::new(field, format_args!("{} is not a UUID", quote(text))))
}

/// Cuts a text from outside to what we keep, at a character's edge.
fn cut(mut text: String) -> String {
    let end = (0..=DETAIL_MAX_BYTES.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.truncate(end.unwrap_or(0));
    text
}

impl TryFrom<wire::Hello> for Hello {
    type Error = Invalid;

    fn try_from(wire: wire::Hello) -> Result<Self, Invalid> {
        let applied = match (wire.timeline.is_empty(), wire.applied_generation) {
            (true, _) | (_, 0) => None,
            (false, generation) => Some((uuid("timeline", &wire.timeline)?, generation)),
        };
        Ok(Self {
            host: wire.host.parse()?,
            boot_id: uuid("boot_id", &wire.boot_id)?,
            applied,
            agent_version: cut(wire.agent_version),
            kernel_release: cut(wire.kernel_release),
            report: wire.report.ok_or_else(|| Invalid::missing("report"))?.try_into()?,
            instance: match wire.instance.is_empty() {
                true => None,
                false => Some(uuid("instance", &wire.instance)?),
            },
            protocol: wire.protocol.max(1),
        })
    }
}

impl From<Hello> for wire::Hello {
    fn from(hello: Hello) -> Self {
        let (timeline, applied_generation) = hello.applied.unzip();
        Self {
            host: hello.host.into(),
            boot_id: hello.boot_id.to_string(),
            timeline: timeline.map(|timeline| timeline.to_string()).unwrap_or_default(),
            applied_generation: applied_generation.unwrap_or(0),
            agent_version: hello.agent_version,
            kernel_release: hello.kernel_release,
            report: Some(hello.report.into()),
            instance: hello.instance.map(|instance| instance.to_string()).unwrap_or_default(),
            protocol: hello.protocol,
        }
    }
}

impl TryFrom<wire::Welcome> for Welcome {
    type Error = Invalid;

    fn try_from(wire: wire::Welcome) -> Result<Self, Invalid> {
        match wire.protocol.max(1) {
            protocol @ 1..=PROTOCOL => Ok(Self { timeline: uuid("timeline", &wire.timeline)?, protocol }),
            newer => Err(Invalid::new("protocol", format_args!("{newer} is newer than {PROTOCOL}"))),
        }
    }
}

impl From<Welcome> for wire::Welcome {
    fn from(welcome: Welcome) -> Self {
        Self { timeline: welcome.timeline.to_string(), protocol: welcome.protocol }
    }
}

/// Why an agent needs a whole set, for people.
pub fn resync_reason(wire: wire::Resync) -> String {
    cut(wire.reason)
}

impl TryFrom<wire::Report> for Report {
    type Error = Invalid;

    fn try_from(wire: wire::Report) -> Result<Self, Invalid> {
        match wire.state().try_into()? {
            HostState::Unreachable => Err(Invalid::new("state", "`unreachable` is not for an agent to say")),
            state => Ok(Self { state, detail: cut(wire.detail) }),
        }
    }
}

impl From<Report> for wire::Report {
    fn from(report: Report) -> Self {
        Self {
            state: crate::wire::access::HostState::from(report.state).into(),
            detail: report.detail,
            number: 0,
        }
    }
}

impl TryFrom<wire::GrantSet> for GrantSet {
    type Error = Invalid;

    fn try_from(wire: wire::GrantSet) -> Result<Self, Invalid> {
        if wire.generation == 0 {
            return Err(Invalid::new("generation", "0 is no generation"));
        }
        let set = Self {
            generation: wire.generation,
            resources: all("resources", wire.resources, ITEMS_MAX, TryInto::try_into)?,
            subjects: all("subjects", wire.subjects, ITEMS_MAX, TryInto::try_into)?,
            grants: all("grants", wire.grants, ITEMS_MAX, TryInto::try_into)?,
        };
        set.checked()
    }
}

impl GrantSet {
    /// By the rules between its parts.
    pub(super) fn checked(self) -> Result<Self, Invalid> {
        let set = self;
        let resources = distinct("resources", set.resources.iter().map(|resource| resource.number))?;
        distinct("resources", set.resources.iter().map(|resource| &resource.name))?;
        let subjects = distinct("subjects", set.subjects.iter().map(|subject| subject.number))?;
        distinct("subjects", set.subjects.iter().map(|subject| &subject.id))?;
        distinct("grants", set.grants.iter().map(|grant| grant.id))?;
        for grant in &set.grants {
            if !resources.contains(&grant.resource) {
                let problem =
                    format_args!("grant {} names the unknown resource {}", grant.id, grant.resource);
                return Err(Invalid::new("grants", problem));
            }
            if !subjects.contains(&grant.subject) {
                let problem = format_args!("grant {} names the unknown subject {}", grant.id, grant.subject);
                return Err(Invalid::new("grants", problem));
            }
        }
        Ok(set)
    }
}

fn distinct<T: Eq + std::hash::Hash + std::fmt::Display>(
    field: &str,
    items: impl Iterator<Item = T>,
) -> Result<HashSet<T>, Invalid> {
    let mut seen = HashSet::new();
    for item in items {
        if seen.contains(&item) {
            return Err(Invalid::new(field, format_args!("`{item}` is there twice")));
        }
        seen.insert(item);
    }
    Ok(seen)
}

impl From<GrantSet> for wire::GrantSet {
    fn from(set: GrantSet) -> Self {
        Self {
            generation: set.generation,
            resources: set.resources.into_iter().map(Into::into).collect(),
            subjects: set.subjects.into_iter().map(Into::into).collect(),
            grants: set.grants.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<wire::LiveGrant> for LiveGrant {
    type Error = Invalid;

    fn try_from(wire: wire::LiveGrant) -> Result<Self, Invalid> {
        let remaining = duration_from_wire("remaining", wire.remaining)?;
        if remaining.is_zero() {
            return Err(Invalid::new(
                "remaining",
                format_args!("grant {} has no time left", quote(&wire.id)),
            ));
        }
        let idle = wire.idle.map(|idle| duration_from_wire("idle", Some(idle))).transpose()?;
        if idle.is_some_and(|idle| idle.is_zero()) {
            return Err(Invalid::new("idle", format_args!("grant {} has a limit of 0", quote(&wire.id))));
        }
        Ok(Self {
            id: wire.id.parse()?,
            subject: wire.subject.try_into()?,
            resource: wire.resource.try_into()?,
            remaining,
            idle,
            while_running: optional_cgroup("while_running", &wire.while_running)?,
            run: optional_run(&wire.run)?,
            action: optional_action(wire.action)?,
            extensions: wire.extensions,
        })
    }
}

impl From<LiveGrant> for wire::LiveGrant {
    fn from(grant: LiveGrant) -> Self {
        Self {
            id: grant.id.to_string(),
            subject: grant.subject.get(),
            resource: grant.resource.get(),
            remaining: Some(duration_to_wire(grant.remaining)),
            idle: grant.idle.map(duration_to_wire),
            while_running: grant.while_running.map(Into::into).unwrap_or_default(),
            run: grant.run.map(|id| id.to_string()).unwrap_or_default(),
            action: grant.action.map(Into::into),
            extensions: grant.extensions,
        }
    }
}

/// The grants that an agent says it has ended; never empty.
impl TryFrom<wire::Ended> for Vec<EndedGrant> {
    type Error = Invalid;

    fn try_from(wire: wire::Ended) -> Result<Self, Invalid> {
        match wire.grants.is_empty() {
            true => Err(Invalid::missing("grants")),
            false => all("grants", wire.grants, ITEMS_MAX, TryInto::try_into),
        }
    }
}

impl From<Vec<EndedGrant>> for wire::Ended {
    fn from(ended: Vec<EndedGrant>) -> Self {
        Self { grants: ended.into_iter().map(Into::into).collect() }
    }
}

impl TryFrom<wire::EndedGrant> for EndedGrant {
    type Error = Invalid;

    fn try_from(wire: wire::EndedGrant) -> Result<Self, Invalid> {
        let reason = grant::end_reason(wire.reason());
        let reason = reason.ok_or_else(|| Invalid::new("reason", "is missing or unknown"))?;
        Ok(Self { grant: wire.grant.parse()?, reason: reason.try_into()? })
    }
}

impl From<EndedGrant> for wire::EndedGrant {
    fn from(ended: EndedGrant) -> Self {
        let reason = crate::wire::access::EndReason::from(EndReason::from(ended.reason));
        Self { grant: ended.grant.to_string(), reason: reason.into() }
    }
}

impl TryFrom<wire::Applied> for Applied {
    type Error = Invalid;

    fn try_from(wire: wire::Applied) -> Result<Self, Invalid> {
        if wire.generation == 0 {
            return Err(Invalid::new("generation", "0 is no generation"));
        }
        let refused = all("refused", wire.refused, ITEMS_MAX, TryInto::try_into)?;
        Ok(Self { generation: wire.generation, refused })
    }
}

impl From<Applied> for wire::Applied {
    fn from(applied: Applied) -> Self {
        Self {
            generation: applied.generation,
            refused: applied.refused.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<wire::Refused> for Refused {
    type Error = Invalid;

    fn try_from(wire: wire::Refused) -> Result<Self, Invalid> {
        let item = match wire.item.ok_or_else(|| Invalid::missing("item"))? {
            wire::refused::Item::Grant(id) => RefusedItem::Grant(id.parse()?),
            wire::refused::Item::Resource(number) => RefusedItem::Resource(number.try_into()?),
            wire::refused::Item::Subject(number) => RefusedItem::Subject(number.try_into()?),
        };
        match wire.error.is_empty() {
            true => Err(Invalid::missing("error")),
            false => Ok(Self { item, error: cut(wire.error) }),
        }
    }
}

impl From<Refused> for wire::Refused {
    fn from(refused: Refused) -> Self {
        let item = match refused.item {
            RefusedItem::Grant(id) => wire::refused::Item::Grant(id.to_string()),
            RefusedItem::Resource(number) => wire::refused::Item::Resource(number.get()),
            RefusedItem::Subject(number) => wire::refused::Item::Subject(number.get()),
        };
        Self { item: Some(item), error: refused.error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::access;

    fn set() -> wire::GrantSet {
        let ports =
            vec![access::PortRange { protocol: access::Protocol::Tcp.into(), first: 5432, last: 5432 }];
        let resource = access::Resource {
            name: "db".into(),
            number: 1,
            addresses: vec!["10.0.0.1".into()],
            ports,
            local: false,
            unix: vec![],
            options: Some(crate::types::ResourceOptions::default().into()),
        };
        let role = access::SubjectRole::Member.into();
        let subject = access::Subject { id: "user:alice".into(), number: 2, selectors: vec![], role };
        let remaining = Some(duration_to_wire(Duration::from_millis(1500)));
        let grant = wire::LiveGrant {
            id: GrantId::new().to_string(),
            subject: 2,
            resource: 1,
            remaining,
            idle: Some(duration_to_wire(Duration::from_secs(60))),
            while_running: "/job".into(),
            run: RunId::new().to_string(),
            action: None,
            extensions: 2,
        };
        wire::GrantSet {
            generation: 7,
            resources: vec![resource],
            subjects: vec![subject],
            grants: vec![grant],
        }
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut wire::GrantSet), expected: Result<(), &str>) {
        let mut wire = set();
        change(&mut wire);
        match (GrantSet::try_from(wire.clone()), expected) {
            (Ok(set), Ok(())) => assert_eq!(wire::GrantSet::from(set), wire),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (got, expected) => panic!("{got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn grant_sets() {
        check(|_| {}, Ok(()));
        check(|set| set.generation = 0, Err("generation"));
        check(|set| set.resources.push(set.resources[0].clone()), Err("resources: `1` is there twice"));
        check(|set| set.subjects.push(set.subjects[0].clone()), Err("subjects: `2` is there twice"));
        check(|set| set.grants.push(set.grants[0].clone()), Err("is there twice"));
        check(|set| set.resources.clear(), Err("names the unknown resource 1"));
        check(|set| set.subjects.clear(), Err("names the unknown subject 2"));
        check(|set| set.resources[0].number = 0, Err("resources.number"));
        check(|set| set.grants[0].remaining = None, Err("grants.remaining: is missing"));
        check(
            |set| set.grants[0].remaining = Some(prost_types::Duration::default()),
            Err("has no time left"),
        );
        check(|set| set.grants[0].idle = None, Ok(()));
        check(|set| set.grants[0].idle = Some(prost_types::Duration::default()), Err("has a limit of 0"));
        check(|set| set.grants[0].while_running = "job".into(), Err("grants.while_running: `job` is not"));
        check(|set| set.grants[0].run = "job".into(), Err("grants.run: `job` is not an id"));
    }

    #[test]
    fn ends_that_a_host_finds() {
        let ended: Vec<EndedGrant> = [HostEnd::Idle, HostEnd::TaskExit]
            .into_iter()
            .map(|reason| EndedGrant { grant: GrantId::new(), reason })
            .collect();
        let wire = wire::Ended::from(ended.clone());
        assert_eq!(Vec::<EndedGrant>::try_from(wire), Ok(ended));
        assert!(Vec::<EndedGrant>::try_from(wire::Ended::default()).is_err());
        let grant = GrantId::new().to_string();
        for reason in [access::EndReason::Unspecified, access::EndReason::Revoked] {
            let one = wire::EndedGrant { grant: grant.clone(), reason: reason.into() };
            assert!(Vec::<EndedGrant>::try_from(wire::Ended { grants: vec![one] }).is_err(), "{reason:?}");
        }
    }

    #[test]
    fn reports() {
        let unreachable = access::HostState::Unreachable.into();
        let wire = wire::Report { state: unreachable, ..wire::Report::default() };
        assert!(Report::try_from(wire).is_err());
        assert!(Report::try_from(wire::Report { state: 99, ..wire::Report::default() }).is_err());
        let long =
            wire::Report { state: access::HostState::Degraded.into(), detail: "ä".repeat(1000), number: 7 };
        assert_eq!(Report::try_from(long).map(|report| report.detail.len()), Ok(DETAIL_MAX_BYTES));
    }
}
