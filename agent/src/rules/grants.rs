//! This host's grant set, and the rule by which a new one replaces it.
//!
//! Owns: generations, deadlines on the boot clock, and when this host ends a grant by itself. Must not know: kernel, network.
//!
//! Invariants: within a timeline a generation never goes back; the deadline of a grant never moves later; what this host has
//! ended lets nobody through again, whatever sets come with it.

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
    lapsed: BTreeMap<GrantId, Lapsed>,
    /// Which run has used up each grant of one action, until a set comes without it: none is used twice.
    used: BTreeMap<GrantId, RunId>,
    /// What this host has ended by itself, until a set comes without it.
    ended: BTreeMap<GrantId, HostEnd>,
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
        }
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
            self.used.remove(id);
        }
        self.replace(timeline, set, now_boot_ns);
        Ok(())
    }

    fn replace(&mut self, timeline: Uuid, set: GrantSet, now_boot_ns: u64) {
        let deadline = |grant: &LiveGrant| now_boot_ns.saturating_add(nanoseconds(grant.remaining));
        let mut known = std::mem::take(&mut self.grants);
        for grant in set.grants.iter().filter(|grant| !self.ended.contains_key(&grant.id)) {
            let mut held = known.remove(&grant.id).unwrap_or_else(|| Held::new(grant, u64::MAX, now_boot_ns));
            held.wanted.expires_at_boot_ns = held.wanted.expires_at_boot_ns.min(deadline(grant));
            held.used_by = self.used.get(&grant.id).copied();
            self.grants.insert(grant.id, held);
        }
        let soon_boot_ns = now_boot_ns.saturating_add(nanoseconds(NEARLY));
        let gone = known.into_values();
        let ran_out = gone.filter(|held| held.wanted.expires_at_boot_ns <= soon_boot_ns);
        // It ends now, not then: what is not in the set lets nobody through.
        self.lapsed.extend(ran_out.map(|held| (held.wanted.id, held.over(now_boot_ns))));
        self.forget_lapsed(now_boot_ns);
        self.timeline = Some(timeline);
        self.generation = set.generation;
        self.resources = set.resources;
        self.subjects = set.subjects;
    }

    fn forget_lapsed(&mut self, now_boot_ns: u64) {
        let kept = nanoseconds(LAPSED_KEPT);
        self.lapsed.retain(|_, lapsed| lapsed.wanted.expires_at_boot_ns.saturating_add(kept) > now_boot_ns);
        // Ids grow with time, so the first are the oldest.
        while self.lapsed.len() > LAPSED_MAX {
            self.lapsed.pop_first();
        }
    }

    /// Ends what only this host can see the end of. Returns whether there was anything.
    pub fn find_ends(&mut self, sight: &impl Sight, now_boot_ns: u64) -> bool {
        let found: Vec<(GrantId, HostEnd)> = self
            .grants
            .iter_mut()
            .filter_map(|(id, held)| Some((*id, held.end(sight, now_boot_ns)?)))
            .collect();
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

    /// Goes on from what an earlier agent of this host left, instead of a first set: what it had ended, and for how long the
    /// others have been idle, which the kernel knows.
    pub fn recall(&mut self, set: Option<(Uuid, GrantSet)>, ended: Vec<EndedGrant>, now_boot_ns: u64) {
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
mod tests {
    use proto::types::{NewResource, NewSubject, SubjectRole};

    use super::super::plan::{Wanted, reconcile};
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn set(generation: u64, grants: &[(GrantId, u64)]) -> GrantSet {
        let live = |(id, seconds): &(GrantId, u64)| LiveGrant {
            id: *id,
            subject: 1.try_into().expect("not 0"),
            resource: 1.try_into().expect("not 0"),
            remaining: Duration::from_secs(*seconds),
            idle: None,
            while_running: None,
            run: None,
            action: None,
        };
        GrantSet {
            generation,
            resources: vec![],
            subjects: vec![],
            grants: grants.iter().map(live).collect(),
        }
    }

    /// With the resource and the subject that its grants name.
    fn known(set: GrantSet) -> GrantSet {
        let ports = vec!["tcp/5432".parse().expect("valid")];
        let address = "10.0.0.1".parse().expect("valid");
        let resource = NewResource::new("db".parse().expect("valid"), vec![address], ports).expect("valid");
        let subject = NewSubject {
            id: "user:alice".parse().expect("valid"),
            selectors: vec![],
            role: SubjectRole::Member,
        };
        GrantSet {
            resources: vec![Resource::numbered(1.try_into().expect("not 0"), resource)],
            subjects: vec![Subject::numbered(1.try_into().expect("not 0"), subject)],
            ..set
        }
    }

    /// Those that let somebody through at this second, by id.
    fn live(grants: &Grants, second: u64) -> Vec<(GrantId, u64)> {
        let mut live: Vec<_> =
            deadlines(grants).into_iter().filter(|(_, deadline)| *deadline > second).collect();
        live.sort_unstable_by_key(|(_, deadline)| *deadline);
        live
    }

    fn deadlines(grants: &Grants) -> Vec<(GrantId, u64)> {
        grants
            .wanted(&Runs::default())
            .iter()
            .map(|grant| (grant.id, grant.expires_at_boot_ns / SECOND))
            .collect()
    }

    #[test]
    fn generations_go_forward_within_a_timeline() {
        let (here, elsewhere) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut grants = Grants::default();
        assert_eq!(grants.applied(), None);
        assert_eq!(grants.accept(here, set(5, &[]), 0), Accepted::Changed);
        assert_eq!(grants.accept(here, set(5, &[]), 0), Accepted::Same);
        assert_eq!(grants.accept(here, set(4, &[]), 0), Accepted::Older);
        assert_eq!(grants.applied(), Some((here, 5)));
        assert_eq!(grants.accept(elsewhere, set(1, &[]), 0), Accepted::Changed);
        assert_eq!(grants.applied(), Some((elsewhere, 1)));
    }

    #[test]
    fn a_delta_changes_what_it_names_and_nothing_else() {
        let (here, elsewhere) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let [kept, gone, new] = [GrantId::new(), GrantId::new(), GrantId::new()];
        let nothing = |since, generation| Delta {
            since,
            generation,
            put_resources: vec![],
            removed_resources: vec![],
            put_subjects: vec![],
            removed_subjects: vec![],
            put_grants: vec![],
            removed_grants: vec![],
        };
        let mut grants = Grants::default();
        grants.accept(here, known(set(3, &[(kept, 60), (gone, 600)])), 0);
        assert!(grants.change(elsewhere, &nothing(3, 4), 0).is_err());
        assert!(grants.change(here, &nothing(2, 4), 0).is_err());
        let put_grants = set(0, &[(new, 90)]).grants;
        let delta = Delta { put_grants, removed_grants: vec![gone], ..nothing(3, 5) };
        grants.change(here, &delta, 10 * SECOND).expect("fits");
        assert_eq!(grants.applied(), Some((here, 5)));
        assert_eq!(live(&grants, 10), [(kept, 60), (new, 100)]);
        // What is put again is not longer than it was.
        let delta = Delta { put_grants: set(0, &[(kept, 600)]).grants, ..nothing(5, 6) };
        grants.change(here, &delta, 10 * SECOND).expect("fits");
        assert_eq!(live(&grants, 10), [(kept, 60), (new, 100)]);
    }

    #[test]
    fn what_ended_here_does_not_come_back_by_a_change_of_others() {
        let (here, id, other) = (Uuid::from_u128(1), GrantId::new(), GrantId::new());
        let mut grants = Grants::default();
        grants.recall(
            Some((here, known(set(3, &[(id, 60)])))),
            vec![EndedGrant { grant: id, reason: HostEnd::Idle }],
            0,
        );
        let delta = |since, put_grants, removed_grants| Delta {
            since,
            generation: since + 1,
            put_resources: vec![],
            removed_resources: vec![],
            put_subjects: vec![],
            removed_subjects: vec![],
            put_grants,
            removed_grants,
        };
        grants.change(here, &delta(3, set(0, &[(other, 60)]).grants, vec![]), 0).expect("fits");
        assert_eq!(grants.end_of(id), Some(HostEnd::Idle), "the control plane may not know it yet");
        grants.change(here, &delta(4, set(0, &[(id, 60)]).grants, vec![]), 0).expect("fits");
        assert_eq!(live(&grants, 0), [(other, 60)]);
        grants.change(here, &delta(5, vec![], vec![id]), 0).expect("fits");
        assert_eq!(grants.end_of(id), None, "it knows it");
    }

    #[test]
    fn an_outage_ends_what_it_is_to_end_and_hearing_again_goes_on() {
        let id = GrantId::new();
        let with = |outage: &str| {
            let mut set = known(set(3, &[(id, 600)]));
            set.resources[0].options.outage = outage.parse().expect("valid");
            let mut grants = Grants::default();
            grants.accept(Uuid::from_u128(1), set, 0);
            grants
        };
        let ends = |grants: &Grants| grants.wanted(&Runs::default())[0].expires_at_boot_ns / SECOND;
        let mut held = with("hold");
        assert!(!held.hear(10 * SECOND), "nothing moves by it");
        assert_eq!(ends(&held), 600);
        let mut cut = with("cut");
        assert_eq!(ends(&cut), 0, "nobody knows when it was last heard");
        assert!(cut.hear(10 * SECOND));
        assert_eq!(ends(&cut), 25);
        assert!(cut.hear(20 * SECOND));
        assert!(!cut.hear(15 * SECOND), "an older answer came late");
        assert_eq!(ends(&cut), 35);
        assert_eq!(
            cut.remaining_set(20 * SECOND).grants[0].remaining.as_secs(),
            580,
            "it is not shorter for that"
        );
        let mut shrunk = with("shrink:300s");
        shrunk.hear(10 * SECOND);
        assert_eq!(ends(&shrunk), 310);
        shrunk.hear(500 * SECOND);
        assert_eq!(ends(&shrunk), 600, "never beyond its deadline");
    }

    #[test]
    fn the_next_agent_finds_in_the_maps_when_it_was_heard() {
        let mut set = known(set(3, &[(GrantId::new(), 600)]));
        set.resources[0].options.outage = "shrink:60s".parse().expect("valid");
        let mut before = Grants::default();
        before.accept(Uuid::from_u128(1), set.clone(), 0);
        before.hear(30 * SECOND);
        let mut entries = Entries::default();
        let wanted = Wanted { grants: before.wanted(&Runs::default()), ..Wanted::default() };
        reconcile(&mut entries, &wanted, 64, 30 * SECOND, |_| Ok::<(), std::convert::Infallible>(()));
        let mut next = Grants::default();
        next.recall(Some((Uuid::from_u128(1), set)), Vec::new(), 0);
        next.hear_from_maps(&entries);
        assert_eq!(next.wanted(&Runs::default()), before.wanted(&Runs::default()));
    }

    #[test]
    fn what_ran_out_does_not_look_like_news_of_the_control_plane() {
        let (timeline, over) = (Uuid::from_u128(1), GrantId::new());
        let mut set = known(set(3, &[(over, 69)]));
        set.resources[0].options.outage = "cut".parse().expect("valid");
        let mut before = Grants::default();
        before.accept(timeline, set.clone(), 0);
        before.hear(SECOND);
        // It was cut off long ago when it runs out by the control plane's word, which came late.
        before.accept(timeline, GrantSet { generation: 4, grants: vec![], ..set.clone() }, 69 * SECOND);
        let mut entries = Entries::default();
        let wanted = Wanted { grants: before.wanted(&Runs::default()), ..Wanted::default() };
        reconcile(&mut entries, &wanted, 64, 69 * SECOND, |_| Ok::<(), std::convert::Infallible>(()));
        let mut next = Grants::default();
        next.recall(Some((timeline, GrantSet { generation: 5, ..set })), Vec::new(), 69 * SECOND);
        next.hear_from_maps(&entries);
        assert_eq!(live(&next, 16), [], "it was last heard in the first second");
    }

    #[test]
    fn a_deadline_never_moves_later() {
        let (timeline, id) = (Uuid::from_u128(1), GrantId::new());
        let mut grants = Grants::default();
        grants.accept(timeline, set(1, &[(id, 60)]), 10 * SECOND);
        assert_eq!(deadlines(&grants), [(id, 70)]);
        // The same grant, sent again late: its remaining time was measured before a delay.
        grants.accept(timeline, set(2, &[(id, 60)]), 20 * SECOND);
        assert_eq!(deadlines(&grants), [(id, 70)]);
        // Earlier is taken.
        grants.accept(timeline, set(3, &[(id, 5)]), 20 * SECOND);
        assert_eq!(deadlines(&grants), [(id, 25)]);
        // Another timeline changes nothing about it.
        grants.accept(Uuid::from_u128(2), set(1, &[(id, 600)]), 20 * SECOND);
        assert_eq!(deadlines(&grants), [(id, 25)]);
    }

    #[test]
    fn what_ran_out_stays_so_when_the_control_planes_clock_is_set_back() {
        let (timeline, over) = (Uuid::from_u128(1), GrantId::new());
        let set = known(set(1, &[(over, 60)]));
        let mut grants = Grants::default();
        grants.accept(timeline, set.clone(), 0);
        let mut delta = Delta {
            since: 1,
            generation: 2,
            put_resources: vec![],
            removed_resources: vec![],
            put_subjects: vec![],
            removed_subjects: vec![],
            put_grants: vec![],
            removed_grants: vec![],
        };
        grants.change(timeline, &delta, 70 * SECOND).expect("it fits");
        grants.accept(timeline, GrantSet { generation: 3, ..set }, 80 * SECOND);
        assert_eq!(deadlines(&grants), [(over, 60)], "it is named again, with a minute left");
        (delta.since, delta.generation, delta.removed_grants) = (3, 4, vec![over]);
        grants.change(timeline, &delta, 90 * SECOND).expect("it fits");
        assert_eq!(deadlines(&grants), [(over, 60)], "a denial still says that it is over");
        assert_eq!(grants.remaining_set(90 * SECOND).grants, []);
    }

    #[test]
    fn what_ran_out_is_remembered_for_a_while_and_what_was_revoked_is_not() {
        let (timeline, short, long) = (Uuid::from_u128(1), GrantId::new(), GrantId::new());
        let mut grants = Grants::default();
        grants.accept(timeline, set(1, &[(short, 10), (long, 60)]), 0);
        grants.accept(timeline, set(2, &[]), 10 * SECOND - 1);
        assert_eq!(deadlines(&grants), [(short, 9)], "it ends when it is taken away, not later");
        assert!(grants.remaining_set(10 * SECOND).grants.is_empty());
        grants.accept(timeline, set(3, &[]), (10 + 10 * 60) * SECOND);
        assert_eq!(deadlines(&grants), []);
    }

    #[test]
    fn what_is_kept_on_disk_comes_back_with_the_same_deadlines() {
        let (timeline, id) = (Uuid::from_u128(1), GrantId::new());
        let mut grants = Grants::default();
        grants.accept(timeline, set(7, &[(id, 60)]), 5 * SECOND);
        let kept = grants.remaining_set(25 * SECOND);
        let mut restarted = Grants::default();
        restarted.accept(timeline, kept, 25 * SECOND);
        assert_eq!(deadlines(&restarted), [(id, 65)]);
        assert_eq!(restarted.applied(), Some((timeline, 7)));
    }

    /// A host in which one cgroup may have processes and something was let through at a moment.
    struct Seen(Option<u64>, Option<u64>);

    impl Sight for Seen {
        fn has_run(&self, _: RunId, subject: SubjectNumber) -> bool {
            self.0.is_some() && subject.get() == 1
        }

        fn running(&self, path: &CgroupPath) -> Option<u64> {
            assert_eq!(path.as_str(), "/job");
            self.0
        }

        fn last_active_boot_ns(&self, _: &WantedGrant, _: Option<RunId>) -> Option<u64> {
            self.1
        }
    }

    const NOTHING: Seen = Seen(None, None);

    fn with(idle_s: Option<u64>, while_running: bool) -> (Grants, GrantSet, GrantId) {
        let id = GrantId::new();
        let mut set = set(1, &[(id, 600)]);
        set.grants[0].idle = idle_s.map(Duration::from_secs);
        set.grants[0].while_running = while_running.then(|| "/job".parse().expect("valid"));
        let mut grants = Grants::default();
        grants.accept(Uuid::from_u128(1), set.clone(), SECOND);
        (grants, set, id)
    }

    #[test]
    fn an_idle_grant_ends() {
        let (mut grants, _, id) = with(Some(60), false);
        let active = |seconds: u64| Seen(None, Some(seconds * SECOND));
        // From the moment it came here, whatever was before.
        assert!(!grants.find_ends(&active(0), 60 * SECOND));
        // While nobody knows, it is not idle.
        assert!(!grants.find_ends(&NOTHING, 61 * SECOND));
        // Each time that something is, the limit begins anew.
        assert!(!grants.find_ends(&active(50), 61 * SECOND));
        assert!(!grants.find_ends(&active(50), 110 * SECOND - 1));
        assert!(!grants.find_ends(&active(100), 110 * SECOND));
        assert_eq!(grants.ended(), []);
        assert!(grants.find_ends(&active(100), 160 * SECOND));
        assert_eq!(grants.ended(), [EndedGrant { grant: id, reason: HostEnd::Idle }]);
        assert_eq!(deadlines(&grants), [(id, 160)], "a denial still says that it is over");
        assert!(!grants.find_ends(&active(100), 161 * SECOND), "it ends once");
    }

    #[test]
    fn idleness_goes_on_across_a_restart() {
        let (_, set, id) = with(Some(60), false);
        let mut restarted = Grants::default();
        restarted.recall(Some((Uuid::from_u128(1), set)), Vec::new(), 100 * SECOND);
        assert!(!restarted.find_ends(&Seen(None, Some(50 * SECOND)), 100 * SECOND));
        assert!(restarted.find_ends(&Seen(None, Some(50 * SECOND)), 110 * SECOND));
        assert_eq!(restarted.end_of(id), Some(HostEnd::Idle));
    }

    #[test]
    fn a_grant_ends_with_its_task() {
        let (mut grants, _, id) = with(None, true);
        let running = |id| Seen(Some(id), None);
        assert!(!grants.find_ends(&running(7), 2 * SECOND));
        assert!(!grants.find_ends(&running(7), 3 * SECOND));
        let (mut restarted, mut gone) = (grants.clone(), grants);
        assert!(gone.find_ends(&NOTHING, 4 * SECOND));
        assert!(
            restarted.find_ends(&running(8), 4 * SECOND),
            "another cgroup at the same path is another task"
        );
        for grants in [gone, restarted] {
            assert_eq!(grants.ended(), [EndedGrant { grant: id, reason: HostEnd::TaskExit }]);
        }
    }

    #[test]
    fn a_grant_of_a_run_opens_to_it_alone_and_ends_with_it() {
        let alice: SubjectId = "user:alice".parse().expect("valid");
        let mut runs = Runs::default();
        let run = runs.open(RunId::new(), alice, 42).expect("there is room");
        let (ordinary, of_run) = (GrantId::new(), GrantId::new());
        let mut set = known(set(1, &[(ordinary, 60), (of_run, 60)]));
        set.grants[1].run = Some(run.id);
        let mut grants = Grants::default();
        grants.accept(Uuid::from_u128(1), set.clone(), SECOND);
        let opens = |grants: &Grants, runs: &Runs| {
            let wanted = grants.wanted(runs);
            wanted.iter().map(|grant| (grant.id, grant.subject.get())).collect::<Vec<_>>()
        };
        let number = run.number.get();
        assert_eq!(opens(&grants, &runs), [(ordinary, 1), (ordinary, number), (of_run, number)]);
        assert_eq!(
            opens(&grants, &Runs::default()),
            [(ordinary, 1)],
            "where the run is not, it opens nothing"
        );
        // A restart keeps whom it is for.
        let mut restarted = Grants::default();
        restarted.recall(Some((Uuid::from_u128(1), grants.remaining_set(SECOND))), Vec::new(), SECOND);
        assert_eq!(opens(&restarted, &runs), opens(&grants, &runs));
        // The run is there; and then it is not.
        let running = Seen(Some(1), None);
        assert!(!grants.find_ends(&running, 2 * SECOND));
        assert!(grants.find_ends(&NOTHING, 3 * SECOND));
        assert_eq!(grants.ended(), [EndedGrant { grant: of_run, reason: HostEnd::TaskExit }]);
        assert_eq!(opens(&grants, &Runs::default()), [(ordinary, 1)]);
        // What ran out is over in the run, too, and nowhere else.
        let mut over = Grants::default();
        over.accept(Uuid::from_u128(1), set.clone(), SECOND);
        over.accept(Uuid::from_u128(1), GrantSet { generation: 2, grants: vec![], ..set }, 61 * SECOND);
        let mut lapsed = opens(&over, &runs);
        lapsed.sort_unstable();
        assert_eq!(lapsed, [(ordinary, 1), (ordinary, number), (of_run, number)]);
    }

    #[test]
    fn a_grant_of_one_action_opens_once_to_the_run_that_has_begun_it() {
        let alice: SubjectId = "user:alice".parse().expect("valid");
        let bob: SubjectId = "user:bob".parse().expect("valid");
        let action =
            Action { executable: "/bin/true".parse().expect("valid"), sha256: [7; 32], arguments: vec![] };
        let mut runs = Runs::default();
        let [run, other] =
            [42, 43].map(|cgroup| runs.open(RunId::new(), alice.clone(), cgroup).expect("room"));
        let id = GrantId::new();
        let mut set = known(set(1, &[(id, 60)]));
        set.grants[0].action = Some(action.clone());
        let mut grants = Grants::default();
        grants.accept(Uuid::from_u128(1), set.clone(), SECOND);
        let opens = |grants: &Grants| {
            grants.wanted(&runs).iter().map(|grant| grant.subject.get()).collect::<Vec<_>>()
        };
        let running = Seen(Some(1), None);
        assert_eq!(opens(&grants), [0; 0]);
        assert!(!grants.find_ends(&NOTHING, 2 * SECOND), "it waits");
        // Whose it is, what it is for, and until when.
        let ask =
            |grants: &Grants, subject: &SubjectId, run, now| grants.action(id, subject, run, now).cloned();
        assert_eq!(ask(&grants, &alice, run.id, SECOND), Ok(action));
        assert_eq!(ask(&grants, &bob, run.id, SECOND), Err(RunRefusal::UnknownGrant));
        assert_eq!(ask(&grants, &alice, run.id, 61 * SECOND), Err(RunRefusal::UnknownGrant));
        let unknown = grants.action(GrantId::new(), &alice, run.id, SECOND).cloned();
        assert_eq!(unknown, Err(RunRefusal::UnknownGrant));
        // It is used, and opens to that run; nobody uses it again, after whatever restart.
        grants.use_up(id, run.id);
        assert_eq!(opens(&grants), [run.number.get()]);
        assert_eq!(ask(&grants, &alice, other.id, SECOND), Err(RunRefusal::UsedGrant));
        for kept in [Some((Uuid::from_u128(1), grants.remaining_set(SECOND))), None] {
            let mut restarted = Grants::default();
            restarted.recall(kept, Vec::new(), SECOND);
            restarted.recall_used(grants.used().clone());
            restarted.accept(Uuid::from_u128(1), GrantSet { generation: 2, ..set.clone() }, SECOND);
            assert_eq!(opens(&restarted), [run.number.get()]);
            assert_eq!(ask(&restarted, &alice, run.id, SECOND), Err(RunRefusal::UsedGrant));
            // The run is over, and the grant with it.
            assert!(!restarted.find_ends(&running, 2 * SECOND));
            assert!(restarted.find_ends(&NOTHING, 3 * SECOND));
            assert_eq!(restarted.ended(), [EndedGrant { grant: id, reason: HostEnd::TaskExit }]);
            assert_eq!(ask(&restarted, &alice, run.id, SECOND), Err(RunRefusal::UsedGrant));
            restarted.accept(
                Uuid::from_u128(1),
                GrantSet { generation: 3, grants: vec![], ..set.clone() },
                SECOND,
            );
            assert_eq!(restarted.used().len(), 0, "the control plane knows");
        }
    }

    #[test]
    fn what_has_ended_here_never_comes_back() {
        let (mut grants, set, id) = with(None, true);
        assert!(grants.find_ends(&NOTHING, 2 * SECOND));
        // Sets that were under way still name it.
        let again = GrantSet { generation: 2, ..set.clone() };
        assert_eq!(grants.accept(Uuid::from_u128(1), again.clone(), 3 * SECOND), Accepted::Changed);
        assert_eq!((deadlines(&grants), grants.end_of(id)), (vec![(id, 2)], Some(HostEnd::TaskExit)));
        // Nor does it after a restart, whether it was in the set that was kept or is in the next one.
        let mut restarted = Grants::default();
        restarted.recall(Some((Uuid::from_u128(1), again)), grants.ended(), 4 * SECOND);
        assert_eq!(deadlines(&restarted), []);
        restarted.accept(Uuid::from_u128(1), GrantSet { generation: 3, ..set.clone() }, 4 * SECOND);
        assert_eq!((deadlines(&restarted), restarted.ended()), (vec![], grants.ended()));
        assert!(restarted.remaining_set(4 * SECOND).grants.is_empty());
        // A set without it says that the control plane knows.
        let without = GrantSet { generation: 4, grants: vec![], ..set };
        restarted.accept(Uuid::from_u128(1), without, 5 * SECOND);
        assert_eq!(restarted.ended(), []);
    }
}
