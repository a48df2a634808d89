//! A policy whose every part is checked.
//!
//! Owns: what roles, steps, limits and the directory are, and which hosts and resources a selector means. Must not know: files,
//! conditions, who asks.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::{self, Display};
use std::time::Duration;

use proto::types::{
    Address, HookName, HostName, Labels, PortRange, ResourceName, SubjectId, Timestamp, UnixPath,
};

use crate::cases::Case;
use crate::conditions::Conditions;
use crate::names::{GroupName, RoleName, RotationName, WindowName};
use crate::windows::{Maintenance, Weekly};

/// A protected destination, as policy sees it. It has an address or a unix path at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Where it is; at most 64.
    pub addresses: Vec<Address>,
    /// Its ports; at most 64.
    pub ports: Vec<PortRange>,
    /// Its unix sockets; at most 64.
    pub unix: Vec<UnixPath>,
    /// What it is.
    pub labels: Labels,
}

/// Somebody of `subjects.toml`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Person {
    /// Whom they report to.
    pub manager: Option<SubjectId>,
    /// Every group that they are in, by way of inner groups too.
    pub groups: BTreeSet<GroupName>,
}

/// Who there is, and how they belong together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    /// People and workloads.
    pub subjects: BTreeMap<SubjectId, Person>,
    /// Each group with all groups that it is in, itself included.
    pub groups: BTreeMap<GroupName, BTreeSet<GroupName>>,
    /// Who is on call for what.
    pub on_call: BTreeMap<RotationName, BTreeSet<SubjectId>>,
}

impl Directory {
    /// All groups of a subject: by the files, and by those that its identity provider named. A group that the files do not
    /// have counts for nothing.
    pub fn groups_of(&self, subject: &SubjectId, named: &BTreeSet<GroupName>) -> BTreeSet<GroupName> {
        let known = self.subjects.get(subject).map(|person| person.groups.clone()).unwrap_or_default();
        let named = named.iter().filter_map(|group| self.groups.get(group));
        named.fold(known, |mut all, outer| {
            all.extend(outer.iter().cloned());
            all
        })
    }

    /// Whoever is in the group by the files.
    pub fn members(&self, group: &GroupName) -> impl Iterator<Item = &SubjectId> {
        self.subjects.iter().filter(|(_, person)| person.groups.contains(group)).map(|(id, _)| id)
    }
}

/// Whom a list means.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// This one.
    Subject(SubjectId),
    /// Whoever is in the group: `group:NAME`.
    Group(GroupName),
    /// The subject's manager: `manager`. For approvers only.
    Manager,
    /// Who is on call: `on-call:NAME`. For approvers only.
    OnCall(RotationName),
    /// A program that the control plane asks: `hook:NAME`. For approvers of a step only, and nobody who counts as a person.
    Hook(HookName),
}

impl Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Subject(id) => id.fmt(f),
            Self::Group(name) => write!(f, "group:{name}"),
            Self::Manager => f.write_str("manager"),
            Self::OnCall(name) => write!(f, "on-call:{name}"),
            Self::Hook(name) => write!(f, "hook:{name}"),
        }
    }
}

/// What follows when a step has waited for so long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum After {
    /// These may decide, too.
    Escalate(Vec<Who>),
    /// The next step begins.
    Skip,
    /// The request is denied.
    Deny,
}

/// One step of an approval, as a role has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepRule {
    /// Who may decide; never empty.
    pub approvers: Vec<Who>,
    /// How many of them have to say yes, 1..=8.
    pub count: u32,
    /// What follows after how long; None: it waits until the request lapses.
    pub after: Option<(Duration, After)>,
}

impl StepRule {
    /// The programs among those who may decide.
    pub fn hooks(&self) -> impl Iterator<Item = &HookName> {
        self.approvers.iter().filter_map(|who| match who {
            Who::Hook(name) => Some(name),
            Who::Subject(_) | Who::Group(_) | Who::Manager | Who::OnCall(_) => None,
        })
    }
}

/// When the time of a grant begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockStart {
    /// When the last approver has said yes.
    Approval,
    /// When it is used first.
    Activation,
    /// Then.
    At(Timestamp),
}

impl Display for ClockStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Approval => f.write_str("approval"),
            Self::Activation => f.write_str("activation"),
            Self::At(time) => f.write_str(&crate::files::moment(*time)),
        }
    }
}

/// How a live grant may be made longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extension {
    /// How often, 1..=100.
    pub times: u32,
    /// By how much at most, each time.
    pub by: Duration,
    /// Whether somebody has to approve it again.
    pub approval: bool,
}

/// A template of access: what, from where, how long, and who has to say yes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    /// Its name.
    pub name: RoleName,
    /// Who may ask for it, unless a condition forbids it; conditions can permit it to others.
    pub to: Vec<Who>,
    /// What can be reached.
    pub resources: BTreeSet<ResourceName>,
    /// From which hosts; None: from all.
    pub hosts: Option<HashSet<HostName>>,
    /// How long if nothing is said; None: as long as at most.
    pub default_duration: Option<Duration>,
    /// How long at most; None: as long as the limits let it.
    pub maximum_duration: Option<Duration>,
    /// How long nothing may be let through until it ends.
    pub idle: Option<Duration>,
    /// Nothing is let through without a record.
    pub strict: bool,
    /// None: it cannot be made longer.
    pub extension: Option<Extension>,
    /// Who has to say yes, in order. Empty: nobody, which the file has to say.
    pub steps: Vec<StepRule>,
    /// When its time begins.
    pub clock: ClockStart,
    /// For emergencies: it is had at once by whoever names it, and those who would have to say yes look at it afterwards.
    pub break_glass: bool,
    /// Where it stands in roles.toml.
    pub(crate) line: usize,
}

impl Role {
    /// How many have to say yes altogether.
    pub fn approvals(&self) -> u32 {
        self.steps.iter().map(|step| step.count).sum()
    }

    /// All but where it stands, to compare two.
    pub(crate) fn meaning(&self) -> String {
        let hosts: Option<BTreeSet<_>> = self.hosts.as_ref().map(|hosts| hosts.iter().collect());
        format!("{hosts:?} {:?}", Self { hosts: None, line: 0, ..self.clone() })
    }
}

/// What no rule can exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long a grant can live at most.
    pub maximum_duration: Duration,
    /// The longest idle limit; roles without one get it. None: no bound.
    pub maximum_idle: Option<Duration>,
    /// For how long access can be approved without anybody's yes. None: as long as with it.
    pub automatic_maximum_duration: Option<Duration>,
    /// How often a grant can be made longer. None: no bound.
    pub maximum_extensions: Option<u32>,
}

/// All that the files say, checked. `conditions` and `candidates` are made for fast answers.
#[derive(Clone, Debug)]
pub struct Policy {
    /// By name.
    pub resources: BTreeMap<ResourceName, Resource>,
    /// By name, with their labels.
    pub hosts: BTreeMap<HostName, Labels>,
    /// Who there is.
    pub directory: Directory,
    /// In the order of their names.
    pub roles: Vec<Role>,
    /// What no rule can exceed.
    pub limits: Limits,
    /// Weekly windows.
    pub windows: Vec<Weekly>,
    /// Maintenance windows.
    pub maintenance: Vec<Maintenance>,
    /// The cases that are kept beside the policy.
    pub cases: Vec<Case>,
    pub(crate) conditions: Conditions,
    /// Which of `roles` are about a resource.
    pub(crate) candidates: HashMap<ResourceName, Vec<usize>>,
    /// Of each role, who may ask for it, for fast look-ups.
    pub(crate) links: Vec<Links>,
}

/// Who may ask for a role.
#[derive(Clone, Debug, Default)]
pub(crate) struct Links {
    pub(crate) subjects: HashSet<SubjectId>,
    pub(crate) groups: HashSet<GroupName>,
}

impl Links {
    pub(crate) fn of(role: &Role) -> Self {
        let mut links = Self::default();
        for who in &role.to {
            match who {
                Who::Subject(id) => drop(links.subjects.insert(id.clone())),
                Who::Group(name) => drop(links.groups.insert(name.clone())),
                // The files refuse these here.
                Who::Manager | Who::OnCall(_) | Who::Hook(_) => {}
            }
        }
        links
    }

    pub(crate) fn hold(&self, subject: &SubjectId, groups: &BTreeSet<GroupName>) -> bool {
        self.subjects.contains(subject) || groups.iter().any(|group| self.groups.contains(group))
    }
}

impl Policy {
    /// How many Cedar policies there are.
    pub fn conditions(&self) -> usize {
        self.conditions.iter().count()
    }

    /// The role of that name.
    pub fn role(&self, name: &RoleName) -> Option<&Role> {
        self.roles.binary_search_by(|role| role.name.cmp(name)).ok().and_then(|at| self.roles.get(at))
    }

    /// The names of the weekly and of the maintenance windows that are open at `now`.
    pub fn open_windows(&self, now: Timestamp) -> (BTreeSet<&WindowName>, BTreeSet<&WindowName>) {
        let weekly = self.windows.iter().filter(|window| window.is_open(now)).map(|window| &window.name);
        let planned = self.maintenance.iter().filter(|window| window.is_open(now)).map(|window| &window.name);
        (weekly.collect(), planned.collect())
    }

    /// Who may decide in a step about access for `subject`; None: nobody's manager is known.
    pub fn resolve(&self, approvers: &[Who], subject: Option<&SubjectId>) -> BTreeSet<SubjectId> {
        let mut found = BTreeSet::new();
        for who in approvers {
            match who {
                Who::Subject(id) => drop(found.insert(id.clone())),
                Who::Group(name) => found.extend(self.directory.members(name).cloned()),
                Who::Manager => {
                    let person = subject.and_then(|subject| self.directory.subjects.get(subject));
                    found.extend(person.and_then(|person| person.manager.clone()));
                }
                Who::OnCall(name) => {
                    found.extend(self.directory.on_call.get(name).into_iter().flatten().cloned())
                }
                // That is no person: see `StepRule::hooks`.
                Who::Hook(_) => {}
            }
        }
        // What is no person cannot weigh anything.
        found.retain(is_human);
        found
    }
}

/// Whether it is a person: only those approve.
pub(crate) fn is_human(subject: &SubjectId) -> bool {
    subject.as_str().starts_with("user:")
}
