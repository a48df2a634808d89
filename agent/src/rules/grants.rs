//! This host's grant set, and the rule by which a new one replaces it.
//!
//! Owns: generations, deadlines on the boot clock, and when this host ends a grant by itself. Must not know: kernel, network.
//!
//! Invariants: within a timeline a generation never goes back; the deadline of a grant never moves later unless somebody has extended
//! it since, nor does a restart move it, or another boot beyond what was left when it was written down; what this host has ended, or
//! what has run out here and was not extended, lets nobody through again, whatever sets come with it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use agent_ebpf::abi::{GrantKey, GrantRef};
use proto::types::{
    Action, CgroupPath, Delta, EndedGrant, GrantId, GrantSet, HostEnd, Invalid, LiveGrant, Resource,
    ResourceNumber, RunId, RunRefusal, Subject, SubjectId, SubjectNumber,
};
use uuid::Uuid;

use super::plan::{Entries, WantedGrant};
use super::runs::{Runs, Subjects};

/// How long a grant that ran out stays in the maps, so that a denial says `expired`. The kernel lets nobody through by it.
const LAPSED_KEPT: Duration = Duration::from_secs(10 * 60);

/// A grant that is taken away this shortly before its deadline ran out: the control plane's clock, by which it did, is ahead
/// of ours by the time that the set was under way.
const NEARLY: Duration = Duration::from_secs(1);

/// How many of those at most: they must never take the room of live ones.
const LAPSED_MAX: usize = 256;

/// What this host should enforce.
#[derive(Clone, Debug, Default)]
pub struct Grants {
    timeline: Option<Uuid>,
    generation: u64,
    resources: Vec<Resource>,
    subjects: Vec<Subject>,
    grants: BTreeMap<GrantId, Held>,
    /// Those of them that may end before their deadline by what is seen here.
    ends_here: BTreeSet<GrantId>,
    lapsed: BTreeMap<GrantId, Lapsed>,
    /// Which run has used up each grant of one action, until a set comes without it: none is used twice.
    used: BTreeMap<GrantId, RunId>,
    /// What this host has ended by itself, until a set comes without it.
    ended: BTreeMap<GrantId, HostEnd>,
    /// The latest deadlines of grants that an earlier agent was told and that are not among the others: by the clock of the control
    /// plane, which may have been set back, they could begin anew.
    latest: BTreeMap<GrantId, u64>,
    /// When the control plane was last heard for certain; None: that is not known.
    heard_boot_ns: Option<u64>,
}

/// A grant of the set, with what ends it before its deadline.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    wanted: WantedGrant,
    /// None: it may be idle.
    idle: Option<Idle>,
    /// None: it is not bound to a cgroup.
    task: Option<Task>,
    /// None: it is for all of the subject's processes.
    run: Option<RunId>,
    /// None: it is for whatever the subject does.
    action: Option<Action>,
    /// The run that has used it up; None: it has not been, or is not for one action.
    used_by: Option<RunId>,
    /// How often it had been extended when its deadline was last told.
    extensions: u32,
}

/// Whom a grant opens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// All of the subject's processes.
    All,
    /// One run of the subject.
    Run(RunId),
    /// Nobody: it is for one action, which has not begun.
    Nobody,
}

impl Scope {
    /// Nobody: there is nobody to ask about.
    fn run(self) -> Option<RunId> {
        match self {
            Self::Run(run) => Some(run),
            Self::All | Self::Nobody => None,
        }
    }
}

/// A grant that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lapsed {
    wanted: WantedGrant,
    scope: Scope,
}

impl Lapsed {
    fn is_forgotten(&self, now_boot_ns: u64) -> bool {
        self.wanted.expires_at_boot_ns.saturating_add(nanoseconds(LAPSED_KEPT)) <= now_boot_ns
    }
}

/// How long nothing may be let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Idle {
    limit: Duration,
    /// When the limit began to count here.
    since_boot_ns: u64,
    /// Before this moment it cannot be reached.
    due_boot_ns: u64,
}

/// The cgroup that must have processes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Task {
    path: CgroupPath,
    /// Which cgroup was there when it was first looked at: another one at the same path is another task.
    id: Option<u64>,
}

/// What can be seen of this host, for grants that it ends by itself.
pub trait Sight {
    /// The id of the cgroup at a path, if there are processes in it or below it.
    fn running(&self, path: &CgroupPath) -> Option<u64>;
    /// Whether a run is there, and is of the subject with this number.
    fn has_run(&self, run: RunId, subject: SubjectNumber) -> bool;
    /// When payload was last sent or received for a pair of this grant, on the boot clock; None: nobody asks the kernel to
    /// know, as another grant of the pair has no idle limit.
    fn last_active_boot_ns(&self, grant: &WantedGrant, run: Option<RunId>) -> Option<u64>;
}

impl Held {
    fn new(grant: &LiveGrant, expires_at_boot_ns: u64, now_boot_ns: u64) -> Self {
        let wanted = WantedGrant {
            id: grant.id,
            subject: grant.subject,
            resource: grant.resource,
            expires_at_boot_ns,
            idle_limit_ns: grant.idle.map_or(0, nanoseconds),
        };
        let idle = |limit| Idle { limit, since_boot_ns: now_boot_ns, due_boot_ns: now_boot_ns };
        let task = |path: &CgroupPath| Task { path: path.clone(), id: None };
        Self {
            wanted,
            idle: grant.idle.map(idle),
            task: grant.while_running.as_ref().map(task),
            run: grant.run,
            action: grant.action.clone(),
            used_by: None,
            extensions: grant.extensions,
        }
    }

    fn live(&self, remaining: Duration) -> LiveGrant {
        LiveGrant {
            id: self.wanted.id,
            subject: self.wanted.subject,
            resource: self.wanted.resource,
            remaining,
            idle: self.idle.map(|idle| idle.limit),
            while_running: self.task.as_ref().map(|task| task.path.clone()),
            run: self.run,
            action: self.action.clone(),
            extensions: self.extensions,
        }
    }

    /// Takes over the deadline that came with a set: an earlier one always, a later one only if somebody has extended the grant since
    /// the last one was told. What is left is measured by the control plane's clock, which may have been set back.
    fn move_deadline(&mut self, deadline_boot_ns: u64, extensions: u32) {
        let expires_at_boot_ns = &mut self.wanted.expires_at_boot_ns;
        match extensions > self.extensions {
            true => *expires_at_boot_ns = deadline_boot_ns,
            false => *expires_at_boot_ns = deadline_boot_ns.min(*expires_at_boot_ns),
        }
        self.extensions = self.extensions.max(extensions);
    }

    fn scope(&self) -> Scope {
        match (&self.action, self.used_by, self.run) {
            (Some(_), Some(run), _) | (None, _, Some(run)) => Scope::Run(run),
            (Some(_), None, _) => Scope::Nobody,
            (None, _, None) => Scope::All,
        }
    }

    /// It ends now, if it had not before: a denial says so for a while.
    fn over(&self, now_boot_ns: u64) -> Lapsed {
        let expires_at_boot_ns = self.wanted.expires_at_boot_ns.min(now_boot_ns);
        Lapsed { wanted: WantedGrant { expires_at_boot_ns, ..self.wanted }, scope: self.scope() }
    }

    /// Whether [`Held::end`] may ever say so.
    fn may_end_here(&self) -> bool {
        self.run.is_some() || self.used_by.is_some() || self.task.is_some() || self.idle.is_some()
    }

    /// Whether it is over, and why.
    fn end(&mut self, sight: &impl Sight, now_boot_ns: u64) -> Option<HostEnd> {
        let mut runs = self.run.into_iter().chain(self.used_by);
        if runs.any(|run| !sight.has_run(run, self.wanted.subject)) {
            return Some(HostEnd::TaskExit);
        }
        if let Some(task) = &mut self.task {
            let running = sight.running(&task.path);
            if running.is_none() || task.id.is_some_and(|id| running != Some(id)) {
                return Some(HostEnd::TaskExit);
            }
            task.id = running;
        }
        let run = self.scope().run();
        let idle = self.idle.as_mut().filter(|idle| idle.due_boot_ns <= now_boot_ns)?;
        let last = sight.last_active_boot_ns(&self.wanted, run)?.max(idle.since_boot_ns);
        idle.due_boot_ns = last.saturating_add(nanoseconds(idle.limit));
        (idle.due_boot_ns <= now_boot_ns).then_some(HostEnd::Idle)
    }
}

/// What a new set meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It replaces what was there.
    Changed,
    /// It is what was there.
    Same,
    /// It is older than what is there, and was left aside.
    Older,
}

impl Grants {
    /// Takes over a set that came at `now_boot_ns`, unless it is an older one of the same timeline.
    pub fn accept(&mut self, timeline: Uuid, set: GrantSet, now_boot_ns: u64) -> Accepted {
        if self.timeline == Some(timeline) {
            if set.generation < self.generation {
                return Accepted::Older;
            }
            if set.generation == self.generation {
                return Accepted::Same;
            }
        }
        let named: BTreeSet<GrantId> = set.grants.iter().map(|grant| grant.id).collect();
        self.ended.retain(|id, _| named.contains(id));
        self.used.retain(|id, _| named.contains(id));
        self.replace(timeline, set, now_boot_ns);
        // Those that were named have their deadlines now.
        self.latest.clear();
        Accepted::Changed
    }

    /// Takes over a change that came at `now_boot_ns` of the set that is there. The error says why it is none of that.
    pub fn change(&mut self, timeline: Uuid, delta: &Delta, now_boot_ns: u64) -> Result<(), Invalid> {
        if self.timeline != Some(timeline) {
            return Err(Invalid::new("timeline", format_args!("{timeline} is not the one that is held")));
        }
        // What has ended here is not in it, and does not come back by a change of others. What has run out is: were it forgotten
        // while the control plane, whose clock may have been set back, still names it, a whole set would make it a new one.
        let set = delta.of(self.set(now_boot_ns, Duration::ZERO))?;
        for id in &delta.removed_grants {
            self.ended.remove(id);
            self.latest.remove(id);
            self.used.remove(id);
        }
        self.replace(timeline, set, now_boot_ns);
        Ok(())
    }

    fn replace(&mut self, timeline: Uuid, set: GrantSet, now_boot_ns: u64) {
        let deadline = |grant: &LiveGrant| now_boot_ns.saturating_add(nanoseconds(grant.remaining));
        let mut known = std::mem::take(&mut self.grants);
        for grant in set.grants.iter().filter(|grant| !self.ended.contains_key(&grant.id)) {
            let latest = self.latest.remove(&grant.id).unwrap_or(u64::MAX);
            let mut held = known.remove(&grant.id).unwrap_or_else(|| Held::new(grant, latest, now_boot_ns));
            held.move_deadline(deadline(grant), grant.extensions);
            held.used_by = self.used.get(&grant.id).copied();
            self.grants.insert(grant.id, held);
        }
        let soon_boot_ns = now_boot_ns.saturating_add(nanoseconds(NEARLY));
        let gone = known.into_values();
        let ran_out = gone.filter(|held| held.wanted.expires_at_boot_ns <= soon_boot_ns);
        // It ends now, not then: what is not in the set lets nobody through.
        self.lapsed.extend(ran_out.map(|held| (held.wanted.id, held.over(now_boot_ns))));
        self.forget_lapsed(now_boot_ns);
        let ends_here = self.grants.iter().filter(|(_, held)| held.may_end_here());
        self.ends_here = ends_here.map(|(id, _)| *id).collect();
        self.timeline = Some(timeline);
        self.generation = set.generation;
        self.resources = set.resources;
        self.subjects = set.subjects;
    }

    fn forget_lapsed(&mut self, now_boot_ns: u64) {
        self.lapsed.retain(|_, lapsed| !lapsed.is_forgotten(now_boot_ns));
        // Ids grow with time, so the first are the oldest.
        while self.lapsed.len() > LAPSED_MAX {
            self.lapsed.pop_first();
        }
    }

    /// Whether [`Grants::find_ends`] has anything to do: most grants end by their deadline, which the kernel knows.
    pub fn may_find_ends(&self, now_boot_ns: u64) -> bool {
        !self.ends_here.is_empty() || self.lapsed.values().any(|lapsed| lapsed.is_forgotten(now_boot_ns))
    }

    /// Ends what only this host can see the end of. Returns whether there was anything.
    pub fn find_ends(&mut self, sight: &impl Sight, now_boot_ns: u64) -> bool {
        let (grants, ends_here) = (&mut self.grants, &self.ends_here);
        let end = |id: &GrantId| Some((*id, grants.get_mut(id)?.end(sight, now_boot_ns)?));
        let found: Vec<(GrantId, HostEnd)> = ends_here.iter().filter_map(end).collect();
        for (id, end) in &found {
            self.ended.insert(*id, *end);
            if let Some(held) = self.grants.remove(id) {
                self.lapsed.insert(*id, held.over(now_boot_ns));
            }
        }
        self.forget_lapsed(now_boot_ns);
        !found.is_empty()
    }

    /// What this host has ended and the control plane may not know of yet.
    pub fn ended(&self) -> Vec<EndedGrant> {
        self.ended.iter().map(|(grant, reason)| EndedGrant { grant: *grant, reason: *reason }).collect()
    }

    /// Why this host has ended a grant; None: it has not.
    pub fn end_of(&self, grant: GrantId) -> Option<HostEnd> {
        self.ended.get(&grant).copied()
    }

    /// Goes on from what an earlier agent of this host left, instead of a first set: what it had ended, what is `left` at the most
    /// of grants that are not in its set, and for how long the others have been idle, which the kernel knows.
    pub fn recall(
        &mut self,
        set: Option<(Uuid, GrantSet)>,
        ended: Vec<EndedGrant>,
        left: BTreeMap<GrantId, Duration>,
        now_boot_ns: u64,
    ) {
        if let Some((timeline, set)) = set {
            self.accept(timeline, set, now_boot_ns);
        }
        for idle in self.grants.values_mut().filter_map(|held| held.idle.as_mut()) {
            idle.since_boot_ns = 0;
        }
        for EndedGrant { grant, reason } in ended {
            self.grants.remove(&grant);
            self.ended.insert(grant, reason);
        }
        let latest = |left: Duration| now_boot_ns.saturating_add(nanoseconds(left));
        self.latest = left.into_iter().map(|(id, left)| (id, latest(left))).collect();
    }

    /// How much is left, at the most, of the grants that [`Grants::remaining_set`] lacks, and that a later set may name.
    pub fn left(&self, now_boot_ns: u64) -> BTreeMap<GrantId, Duration> {
        let left = |deadline: u64| Duration::from_nanos(deadline.saturating_sub(now_boot_ns));
        let held = self.grants.iter().map(|(id, held)| (*id, left(held.wanted.expires_at_boot_ns)));
        let ran_out = held.filter(|(_, left)| left.is_zero());
        self.latest.iter().map(|(id, deadline)| (*id, left(*deadline))).chain(ran_out).collect()
    }

    /// When the next grant runs out, on the boot clock. None: none does any more.
    pub fn next_deadline(&self, now_boot_ns: u64) -> Option<u64> {
        let held = self.grants.values().map(|held| held.wanted.expires_at_boot_ns);
        held.filter(|deadline| *deadline > now_boot_ns).min()
    }

    /// A grant by which this subject was let through at `boot_ns`: the one that ends last. None: there was none.
    pub fn live_of(&self, subject: u32, boot_ns: u64) -> Option<GrantId> {
        let held = self.grants.values().map(|held| &held.wanted);
        let live =
            held.filter(|wanted| wanted.subject.get() == subject && wanted.expires_at_boot_ns > boot_ns);
        live.max_by_key(|wanted| wanted.expires_at_boot_ns).map(|wanted| wanted.id)
    }

    /// Whose set this is, and which; None: none yet.
    pub fn applied(&self) -> Option<(Uuid, u64)> {
        self.timeline.map(|timeline| (timeline, self.generation))
    }

    /// What is protected.
    pub fn resources(&self) -> &[Resource] {
        &self.resources
    }

    /// Who is known.
    pub fn subjects(&self) -> &[Subject] {
        &self.subjects
    }

    /// What the maps should hold: the live grants, and those that ran out lately. A grant of a resource that has a limit for
    /// outages ends, in the kernel, that long after the control plane was last heard; hearing it again moves that on.
    ///
    /// There is one for each pair: of the grant's subject and of each of its runs, or of the one run that it is for.
    pub fn wanted(&self, runs: &Runs) -> Vec<WantedGrant> {
        let (limits, subjects) = (self.outage_limits(), Subjects::of(&self.subjects));
        let limited = |grant: &WantedGrant| {
            let bound = limits.get(&grant.resource).map(|limit| match self.heard_boot_ns {
                Some(heard_boot_ns) => heard_boot_ns.saturating_add(*limit),
                None => 0,
            });
            let expires_at_boot_ns = grant.expires_at_boot_ns.min(bound.unwrap_or(u64::MAX));
            WantedGrant { expires_at_boot_ns, ..*grant }
        };
        // Also those that ran out: no deadline in the maps may claim that the control plane was heard later than it was.
        let held = self.grants.values().map(|held| (&held.wanted, held.scope()));
        let lapsed = self.lapsed.values().map(|lapsed| (&lapsed.wanted, lapsed.scope));
        let open = held.chain(lapsed).filter(|(_, scope)| *scope != Scope::Nobody);
        open.flat_map(|(wanted, scope)| runs.share(limited(wanted), scope.run(), &subjects)).collect()
    }

    /// The one thing that a run of this subject may begin by a grant.
    pub fn action(
        &self,
        id: GrantId,
        subject: &SubjectId,
        run: RunId,
        now_boot_ns: u64,
    ) -> Result<&Action, RunRefusal> {
        if self.used.contains_key(&id) {
            return Err(RunRefusal::UsedGrant);
        }
        let held = self.grants.get(&id).ok_or(RunRefusal::UnknownGrant)?;
        let is_its = Subjects::of(&self.subjects).id(held.wanted.subject) == Some(subject)
            && held.run.is_none_or(|of| of == run)
            && held.wanted.expires_at_boot_ns > now_boot_ns;
        held.action.as_ref().filter(|_| is_its).ok_or(RunRefusal::UnknownGrant)
    }

    /// The grant is used up by this run, for good.
    pub fn use_up(&mut self, id: GrantId, run: RunId) {
        self.used.insert(id, run);
        if let Some(held) = self.grants.get_mut(&id) {
            held.used_by = Some(run);
            self.ends_here.insert(id);
        }
    }

    /// What a restart must know: which run has used up each grant of one action.
    pub fn used(&self) -> &BTreeMap<GrantId, RunId> {
        &self.used
    }

    /// Goes on from what an earlier agent of this host left, whatever boot it was of.
    pub fn recall_used(&mut self, used: BTreeMap<GrantId, RunId>) {
        used.into_iter().for_each(|(id, run)| self.use_up(id, run));
    }

    /// The grants that are for one run only: the pair of each as the control plane names it, and the run.
    pub fn of_runs(&self) -> impl Iterator<Item = (&WantedGrant, RunId)> {
        let of_runs = self.grants.values().filter(|held| held.action.is_none());
        of_runs.filter_map(|held| Some((&held.wanted, held.run?)))
    }

    /// The control plane was there at `boot_ns`. Returns whether the end of a grant moves by that.
    pub fn hear(&mut self, boot_ns: u64) -> bool {
        let is_news = self.heard_boot_ns.is_none_or(|heard_boot_ns| heard_boot_ns < boot_ns);
        if is_news {
            self.heard_boot_ns = Some(boot_ns);
        }
        let limits = self.outage_limits();
        is_news && self.grants.values().any(|held| limits.contains_key(&held.wanted.resource))
    }

    /// When an earlier agent had last heard the control plane at the least, as what it has left in the maps shows.
    pub fn hear_from_maps(&mut self, entries: &Entries) {
        let limits = self.outage_limits();
        let of_pair = |(pair, held): (&GrantKey, &GrantRef)| {
            let limit = limits.get(&pair.resource.try_into().ok()?)?;
            entries.deadlines.get(&held.slot)?.checked_sub(*limit)
        };
        if let Some(heard_boot_ns) = entries.grants.iter().filter_map(of_pair).max() {
            self.hear(heard_boot_ns);
        }
    }

    /// In nanoseconds, of the resources that have one.
    fn outage_limits(&self) -> BTreeMap<ResourceNumber, u64> {
        let limits = self.resources.iter().filter_map(|resource| {
            let limit = resource.options.outage.limit()?;
            Some((resource.number, nanoseconds(limit)))
        });
        limits.collect()
    }

    /// The set as it can be kept on disk: with what is left of each grant at `now_boot_ns`; grants with nothing left are
    /// left out.
    pub fn remaining_set(&self, now_boot_ns: u64) -> GrantSet {
        self.set(now_boot_ns, Duration::from_nanos(1))
    }

    /// With the grants of which this much is left.
    fn set(&self, now_boot_ns: u64, at_least: Duration) -> GrantSet {
        let live = |held: &Held| {
            let left = Duration::from_nanos(held.wanted.expires_at_boot_ns.saturating_sub(now_boot_ns));
            (left >= at_least).then(|| held.live(left))
        };
        GrantSet {
            generation: self.generation,
            resources: self.resources.clone(),
            subjects: self.subjects.clone(),
            grants: self.grants.values().filter_map(live).collect(),
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
