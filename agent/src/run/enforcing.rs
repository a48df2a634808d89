//! Keeping the maps as they should be, and proving that they do what they should.

use std::collections::{BTreeMap, BTreeSet};

use agent_ebpf::abi::{
    ClosedRecord, ConnectionEntry, EndedBy, GrantKey, ResourceEntry, Ring, VerdictRecord, protocol,
};
use agent_ebpf::verdict::Reason;
use proto::types::{
    Applied, CgroupPath, Delta, Digest, EndReason, EndedGrant, GrantId, GrantSet, Invalid, Refused,
    RefusedItem, Report, RunId, Selector, SubjectNumber,
};
use uuid::Uuid;

use crate::addresses::LocalAddresses;
use crate::canary::{self, Ask, Told};
use crate::clock::now_boot_ns;
use crate::kernel::{Fault, Gate, KernelError, Missing, UNIX_SOCKETS};
use crate::kubernetes::{PodsFile, PodsNews};
use crate::memory::{Lost, Memory, MemoryFile};
use crate::observe::{Cgroups, UnixSockets};
use crate::rules::digest::digest;
use crate::rules::drift::{Drift, Part, distrust, drift};
use crate::rules::grants::{Accepted, Grants, Sight};
use crate::rules::plan::{Entries, Wanted, WantedGrant, Write, reconcile, reconcile_pair};
use crate::rules::pods::{Pods, PodsChange};
use crate::rules::runs::{FIRST_NUMBER, Runs, Subjects};
use crate::rules::{local, workloads};
use crate::sockets::{self, Ended, Target};
use crate::status::{Flaw, Health};

use super::proving::{Proving, Step};
use super::runs::Running;

/// The gate, what it should hold, and what it holds.
pub(super) struct Enforcing {
    gate: Gate,
    entries: Entries,
    pub(super) grants: Grants,
    pub(super) cgroups: Cgroups,
    addresses: LocalAddresses,
    unix_sockets: UnixSockets,
    /// Whose processes may have sockets of any family.
    exempt: Vec<Selector>,
    /// What is known of pods is kept there; None: nobody asks for them.
    pods_file: Option<PodsFile>,
    /// Whose each cgroup was when it was last looked at.
    bound: BTreeMap<u64, SubjectNumber>,
    pub(super) health: Health,
    memory: MemoryFile,
    pub(super) running: Running,
    proving: Proving,
    /// Its grant, while it has one.
    canary_grant: Option<WantedGrant>,
    /// Which part of the maps is compared next.
    next_part: usize,
    /// Found in the maps since the last look at the gate.
    drifted: Vec<Flaw>,
    /// What is let through now, by slot and epoch: to be known when it has ended.
    periods: BTreeMap<(u32, u64), Period>,
    /// Some connection of an ended period may still be there.
    unconfirmed: bool,
    /// Some connection was let through by a call, and then refused for who made its socket.
    strays: bool,
    /// Resources that were only observed when it was last reconciled.
    observed: BTreeSet<u32>,
}

/// A time in which a pair is let through without a break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Period {
    pair: GrantKey,
    /// The grant that it is named after.
    grant: [u8; 16],
}

/// What became of a period that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PeriodEnd {
    pub(super) pair: GrantKey,
    pub(super) grant: [u8; 16],
    /// As far as this host knows: `Revoked` stands for whatever else the control plane ended it for.
    pub(super) reason: EndReason,
    pub(super) closed: u32,
    pub(super) unconfirmed: u32,
    /// On the boot clock; None: nothing was ever let through.
    pub(super) last_admitted_boot_ns: Option<u64>,
}

/// What was ended.
#[derive(Debug, Default)]
pub(super) struct Ends {
    pub(super) periods: Vec<PeriodEnd>,
    /// Connections of which the kernel does not say that they ended.
    pub(super) closed: Vec<ClosedRecord>,
}

impl Enforcing {
    /// Starts from what is remembered. If nothing is, a gate that was taken over, of this ABI version or another, is left as it
    /// is until the control plane speaks: it holds what an earlier agent was told, and its deadlines pass by themselves.
    pub(super) fn new(
        gate: Gate,
        mut cgroups: Cgroups,
        exempt: Vec<Selector>,
        pods_file: Option<PodsFile>,
        remembered: Memory,
        memory: MemoryFile,
        mut running: Running,
    ) -> Result<Self, KernelError> {
        if let Some(file) = &pods_file {
            cgroups.pods_mut().apply(PodsChange::Listed(file.read()));
        }
        let entries = gate.read()?;
        let observed = entries.observed();
        let mut grants = Grants::default();
        grants.recall(remembered.grants, remembered.ended, now_boot_ns());
        grants.recall_used(std::mem::take(&mut running.recalled));
        grants.hear_from_maps(&entries);
        let unheard = || "the API server has not been heard yet".to_owned();
        let health = Health { pods: pods_file.is_some().then(unheard), ..Health::default() };
        let addresses = LocalAddresses::default();
        let bound = BTreeMap::new();
        let periods = BTreeMap::new();
        // What an earlier agent left connected and no grant covers any more is ended now.
        let mut enforcing = Self {
            gate,
            entries,
            grants,
            cgroups,
            addresses,
            unix_sockets: UnixSockets::default(),
            exempt,
            pods_file,
            bound,
            health,
            memory,
            running,
            proving: Proving::default(),
            canary_grant: None,
            next_part: 0,
            drifted: Vec::new(),
            periods,
            unconfirmed: true,
            strays: false,
            observed,
        };
        enforcing.note_missing();
        enforcing.note_periods();
        if enforcing.knows_what_is_wanted() {
            enforcing.look_for_set();
            enforcing.find_ends();
            enforcing.reconcile();
        }
        enforcing.succeed();
        Ok(enforcing)
    }

    /// Otherwise the maps are left as they were found, and nothing is proven.
    fn knows_what_is_wanted(&self) -> bool {
        self.grants.applied().is_some() || !self.gate.took_over()
    }

    fn note_missing(&mut self) {
        let missing = self.gate.missing();
        for Missing { part, why } in missing.iter().filter(|part| !self.health.missing.contains(part)) {
            tracing::warn!(part, why, "this kernel cannot have all of the gate");
        }
        self.health.missing = missing;
    }

    /// Takes the place of gates of other ABI versions, once it is known what is to be enforced. Should something go wrong,
    /// they stay, and it is tried again.
    fn succeed(&mut self) {
        if !self.gate.is_waiting() {
            self.health.waiting = None;
            return;
        }
        let waiting = match self.grants.applied() {
            None => Some("until the control plane has been heard".to_owned()),
            Some(_) => self.try_succeed(),
        };
        if waiting.is_some() && waiting != self.health.waiting {
            tracing::warn!(versions = ?self.gate.predecessors(), waiting, "a gate of another ABI version stays up");
        }
        self.health.waiting = waiting;
    }

    /// Gives why not.
    fn try_succeed(&mut self) -> Option<String> {
        let versions = self.gate.predecessors();
        let (entries, now_boot_ns) = (&self.entries, now_boot_ns());
        // Where each write is judged, connections are put when they begin, and these began long ago.
        let judged = entries.classes.values().flat_map(BTreeMap::values);
        let judged: BTreeSet<u32> =
            judged.filter(|entry| entry.has(ResourceEntry::SENDERS)).map(|entry| entry.number).collect();
        let heir = |connection: &ConnectionEntry| {
            if connection.protocol == protocol::TCP && judged.contains(&connection.resource) {
                return None;
            }
            let pair = GrantKey { subject: connection.subject, resource: connection.resource };
            let grant = entries.grants.get(&pair)?;
            entries.counts(grant.slot, grant.epoch, now_boot_ns).then_some(*grant)
        };
        if let Err(error) = self.gate.stand_beside(heir) {
            return Some(format!("for this agent's cannot stand beside it: {error}"));
        }
        self.note_missing();
        // What this gate does not protect, the other may.
        let is_resource = |refused: &&Refused| matches!(refused.item, RefusedItem::Resource(_));
        if let Some(refused) = self.health.refused.iter().find(is_resource) {
            return Some(format!("for this agent's is not whole: {}", refused.error));
        }
        if let Err(error) = self.gate.lower_predecessors() {
            return Some(format!("for it cannot be taken down: {error}"));
        }
        // What could not go on is told that it has ended.
        self.unconfirmed = true;
        tracing::info!(?versions, "took the place of the gate of another ABI version");
        None
    }

    /// Gates of other ABI versions that are up, or have records that were not read.
    pub(super) fn predecessors(&self) -> Vec<u32> {
        self.gate.predecessors()
    }

    /// Records of gates of other ABI versions: at most `max`. None: nothing now.
    pub(super) fn read_predecessors(&mut self, max: usize) -> Vec<VerdictRecord> {
        self.gate.read_predecessors(max)
    }

    /// The same of connections that have ended.
    pub(super) fn read_predecessors_closed(&mut self, max: usize) -> Vec<ClosedRecord> {
        self.gate.read_predecessors_closed(max)
    }

    /// What each gate of another ABI version has lost, by ring.
    pub(super) fn predecessors_lost(&self) -> Result<Vec<(u32, Lost)>, KernelError> {
        self.gate.predecessors_lost()
    }

    /// Removes what is left of gates of other ABI versions whose records were read. Gives their versions.
    pub(super) fn forget_predecessors(&mut self) -> Result<Vec<u32>, KernelError> {
        self.gate.forget_predecessors()
    }

    pub(super) fn grants(&self) -> &Grants {
        &self.grants
    }

    pub(super) fn unix_sockets(&self) -> &UnixSockets {
        &self.unix_sockets
    }

    pub(super) fn cgroups(&mut self) -> &mut Cgroups {
        &mut self.cgroups
    }

    /// Puts a set into the kernel. None: it was older than what is there, or cannot be meant; the control plane hears nothing.
    pub(super) fn apply(&mut self, timeline: Uuid, set: GrantSet) -> Option<Applied> {
        let generation = set.generation;
        let named = set.resources.iter().map(|resource| resource.number.get());
        let mut named = named.chain(set.subjects.iter().map(|subject| subject.number.get()));
        if named.any(|number| number >= FIRST_NUMBER) {
            tracing::error!(generation, "the grant set uses numbers of runs or of the canary; left aside");
            return None;
        }
        match self.grants.accept(timeline, set, now_boot_ns()) {
            Accepted::Older => {
                tracing::warn!(generation, "an older grant set than the one that is enforced; left aside");
                return None;
            }
            Accepted::Same | Accepted::Changed => {}
        }
        Some(self.put_into_the_kernel(generation))
    }

    /// The same for a change of the set that is there. The error says why it is none: a whole set is needed.
    pub(super) fn change(&mut self, timeline: Uuid, delta: &Delta) -> Result<Applied, Invalid> {
        let named = delta.put_resources.iter().map(|resource| resource.number.get());
        let mut named = named.chain(delta.put_subjects.iter().map(|subject| subject.number.get()));
        if named.any(|number| number >= FIRST_NUMBER) {
            return Err(Invalid::new("delta", "uses numbers of runs or of the canary"));
        }
        self.grants.change(timeline, delta, now_boot_ns())?;
        Ok(self.put_into_the_kernel(delta.generation))
    }

    fn put_into_the_kernel(&mut self, generation: u64) -> Applied {
        self.look_for_set();
        // What is over before it began lets nobody through at all.
        self.find_ends();
        self.reconcile();
        self.succeed();
        let refused = self.health.refused.clone();
        tracing::info!(generation, refused = refused.len(), "grant set applied");
        Applied { generation, refused }
    }

    /// The control plane was there at `boot_ns`.
    pub(super) fn heard(&mut self, boot_ns: u64) {
        if self.grants.hear(boot_ns) {
            self.reconcile();
        }
    }

    /// What the kernel holds now, read from its maps. None: there is no set yet, or the maps cannot be read, which the next
    /// comparison tells.
    pub(super) fn digest(&self) -> Option<Digest> {
        let read = self.gate.read_whole().ok()?;
        let (wanted, refused) = (self.wanted(), &self.health.refused);
        let runs = &self.running.runs;
        digest(&read, &self.grants, runs, &wanted, refused, self.gate.slots_max(), now_boot_ns())
    }

    /// Follows what came and went on this host: cgroups and addresses. `again`: also asks for what there was no notice of.
    /// Returns whether anything changed.
    pub(super) fn follow(&mut self, again: bool) -> bool {
        let rebound = self.follow_cgroups(again);
        let elsewhere = self.grants.applied().is_some() && self.look_elsewhere(again);
        if elsewhere {
            self.reconcile();
        }
        rebound || elsewhere
    }

    /// The same of cgroups only.
    pub(super) fn follow_cgroups(&mut self, again: bool) -> bool {
        let came_or_went = self.cgroups.look(again);
        if came_or_went || again {
            self.follow_exempt();
        }
        came_or_went && self.follow_bindings()
    }

    /// The API server told of this node's pods. Returns whether anything changed.
    pub(super) fn follow_pods(&mut self, news: PodsNews) -> bool {
        let before = self.health.pods.take();
        let moved = match news {
            PodsNews::Changed(change) => self.cgroups.pods_mut().apply(change),
            PodsNews::Unreachable(why) => {
                self.health.pods = Some(why);
                false
            }
        };
        if self.health.pods.is_none() && self.cgroups.pods_mut().left_out() {
            self.health.pods = Some(format!("of more than {} pods some are not known", Pods::MAX));
        }
        if moved {
            self.remember_pods();
            self.follow_exempt();
        }
        let rebound = moved && self.follow_bindings();
        rebound || self.health.pods != before
    }

    fn remember_pods(&mut self) {
        let pods = self.cgroups.pods_mut();
        if let Some(Err(error)) = self.pods_file.as_ref().map(|file| file.write(pods)) {
            tracing::error!(%error, "cannot write down the pods; a restart would wait for the API server");
        }
    }

    fn follow_bindings(&mut self) -> bool {
        let changed = self.grants.applied().is_some() && self.rebind();
        if changed {
            self.reconcile();
        }
        changed
    }

    fn follow_exempt(&mut self) {
        let exempt = exempt(&self.cgroups, &self.exempt);
        if let Err(error) = self.gate.exempt(&exempt) {
            tracing::error!(%error, "cannot change whose processes may have sockets of any family");
        }
    }

    /// Ends the grants of which only this host can see that they are over. Returns whether there were any.
    pub(super) fn end_what_is_over(&mut self) -> bool {
        let any = self.find_ends();
        if any {
            self.reconcile();
        }
        any
    }

    pub(super) fn find_ends(&mut self) -> bool {
        let subjects = self.grants.subjects().to_vec();
        let view = View {
            gate: &self.gate,
            entries: &self.entries,
            cgroups: &self.cgroups,
            runs: &self.running.runs,
            subjects: Subjects::of(&subjects),
        };
        let found = self.grants.find_ends(&view, now_boot_ns());
        if found {
            tracing::info!(ended = ?self.grants.ended(), "grants that this host has ended");
        }
        found
    }

    /// What this host has ended and the control plane may not know of yet.
    pub(super) fn ended(&self) -> Vec<EndedGrant> {
        self.grants.ended()
    }

    /// Tries again what failed.
    pub(super) fn retry(&mut self) {
        if !self.health.refused.is_empty() || !self.health.failed.is_empty() {
            self.reconcile();
        }
        self.succeed();
    }

    /// Looks at everything as a new set wants it.
    fn look_for_set(&mut self) {
        let selectors = self.grants.subjects().iter().flat_map(|subject| &subject.selectors);
        self.cgroups.follow(self.exempt.iter().chain(selectors));
        self.cgroups.look(false);
        self.rebind();
        self.look_elsewhere(false);
    }

    /// Whose each cgroup is now. Returns whether that is another than before.
    fn rebind(&mut self) -> bool {
        let bindings = workloads::bind(self.grants.subjects(), |selector| self.cgroups.find(selector));
        let unknown_pods = self.unknown_pods();
        let changed = bindings.cgroups != self.bound
            || bindings.contested != self.health.contested
            || bindings.doubts != self.health.doubts
            || unknown_pods != self.health.unknown_pods;
        self.bound = bindings.cgroups;
        self.health.contested = bindings.contested;
        self.health.doubts = bindings.doubts;
        self.health.unknown_pods = unknown_pods;
        changed
    }

    /// Whether pods run here that a subject may have, and nobody tells whose they are.
    fn unknown_pods(&self) -> bool {
        let mut selectors = self.grants.subjects().iter().flat_map(|subject| &subject.selectors);
        self.pods_file.is_none()
            && self.cgroups.has_pods()
            && selectors.any(|selector| matches!(selector, Selector::Kubernetes(_)))
    }

    /// Returns whether addresses or paths changed since the last look.
    fn look_elsewhere(&mut self, again: bool) -> bool {
        let is_anything_local = self.grants.resources().iter().any(|resource| resource.local);
        let moved = is_anything_local && self.addresses.look(again);
        let rerouted = self.unix_sockets.look(self.grants.resources(), again);
        moved || rerouted
    }

    pub(super) fn reconcile(&mut self) {
        let now_boot_ns = now_boot_ns();
        // What has ended idle must not be taken for live, nor what is active for ended.
        self.look_at_activity(now_boot_ns);
        let wanted = self.wanted();
        let slots_max = self.gate.slots_max();
        let outcome =
            reconcile(&mut self.entries, &wanted, slots_max, now_boot_ns, |write| self.gate.write(write));
        for refused in &outcome.refused {
            tracing::error!(item = ?refused.item, error = refused.error, "the kernel cannot take this");
        }
        for error in &outcome.failed {
            tracing::error!(error, "the kernel still holds what it should not");
        }
        // The control plane knows nothing of the canary, which tells by itself what it lacks.
        let canary_grant = self.canary_grant.map(|grant| grant.id);
        let is_known = |refused: &Refused| match refused.item {
            RefusedItem::Resource(number) => number.get() != canary::NUMBER,
            RefusedItem::Subject(number) => number.get() != canary::NUMBER,
            RefusedItem::Grant(id) => Some(id) != canary_grant,
        };
        self.health.refused = outcome.refused.into_iter().filter(is_known).collect();
        self.health.failed = outcome.failed;
        self.refuse_local();
        self.refuse_unix();
        // What went on without a grant is to be ended now.
        let observed = self.entries.observed();
        self.unconfirmed |= !self.observed.is_subset(&observed);
        self.observed = observed;
        self.note_periods();
    }

    /// What the control plane wants, and what the canary needs. Nobody else is ever given its cgroup or its destination.
    fn wanted(&self) -> Wanted {
        let resources = local::expand(self.grants.resources().to_vec(), self.addresses.known());
        let runs = &self.running.runs;
        let mut wanted = Wanted {
            unix_sockets: self.unix_sockets.keys().iter().map(|(key, (number, _))| (*key, *number)).collect(),
            // Nobody else can mean the cgroup of a run.
            cgroups: self.bound.iter().map(|(id, subject)| (*id, *subject)).chain(runs.bindings()).collect(),
            grants: self.grants.wanted(runs),
            ..Wanted::guarding(resources)
        };
        let Some(place) = self.proving.place() else { return wanted };
        wanted.resources.insert(0, canary::resource(place.port));
        if let (Ok(id), Ok(subject)) = (&place.cgroup, SubjectNumber::try_from(canary::NUMBER)) {
            wanted.cgroups.insert(*id, subject);
        }
        wanted.grants.extend(self.canary_grant);
        wanted
    }

    /// Of an address that could not be read nobody can say that it is protected.
    fn refuse_local(&mut self) {
        let Some(error) = self.addresses.error() else { return };
        for resource in self.grants.resources().iter().filter(|resource| resource.local) {
            let item = RefusedItem::Resource(resource.number);
            if !self.health.refused.iter().any(|refused| refused.item == item) {
                self.health.refused.push(Refused { item, error: error.to_owned() });
            }
        }
    }

    /// Of a unix socket that this host cannot guard, or whose place it cannot tell, nobody can say that it is protected.
    fn refuse_unix(&mut self) {
        let missing = self.health.missing.iter().find(|missing| missing.part == UNIX_SOCKETS);
        let why = match missing {
            _ if !self.gate.wants_tier() => {
                Some("`kernel.lsm` is \"off\" in the agent's configuration".to_owned())
            }
            missing => missing.map(|missing| missing.why.clone()),
        };
        for resource in self.grants.resources().iter().filter(|resource| !resource.unix.is_empty()) {
            let error = match &why {
                Some(why) => Some(format!("its unix sockets cannot be protected: {why}")),
                None => self.unix_sockets.errors().get(&resource.number).cloned(),
            };
            let item = RefusedItem::Resource(resource.number);
            if let Some(error) = error
                && !self.health.refused.iter().any(|refused| refused.item == item)
            {
                self.health.refused.push(Refused { item, error });
            }
        }
    }

    /// Asks the kernel about the slots that seem to be idle.
    fn look_at_activity(&mut self, now_boot_ns: u64) {
        for slot in self.entries.seeming_idle(now_boot_ns) {
            match self.gate.last_active_boot_ns(slot) {
                Ok(active_boot_ns) => drop(self.entries.active.insert(slot, active_boot_ns)),
                // It is ended then, a little early at the worst.
                Err(error) => tracing::error!(%error, slot, "cannot see when a grant was last active"),
            }
        }
    }

    /// Remembers what is let through now. A period may get another name while it lasts, by a longer grant.
    fn note_periods(&mut self) {
        let now_boot_ns = now_boot_ns();
        for (pair, reference) in &self.entries.grants {
            if self.entries.counts(reference.slot, reference.epoch, now_boot_ns)
                && let Some(name) = self.entries.names.get(&reference.slot)
            {
                let period = Period { pair: *pair, grant: *name };
                self.periods.insert((reference.slot, reference.epoch), period);
            }
        }
    }

    /// Ends the connections of every period that has ended, and says what became of each. The kernel has let nothing of them
    /// through since; this tells both ends.
    ///
    /// `again`: also looks for those that were not found before, which takes a look into every network namespace.
    pub(super) fn end_connections(&mut self, again: bool) -> Result<Ends, KernelError> {
        let now_boot_ns = now_boot_ns();
        self.look_at_activity(now_boot_ns);
        let over = |(slot, epoch): &(u32, u64)| !self.entries.counts(*slot, *epoch, now_boot_ns);
        let ended: Vec<(u32, u64)> = self.periods.keys().filter(|period| over(period)).copied().collect();
        if ended.is_empty() && !self.strays && !(again && self.unconfirmed) {
            return Ok(Ends::default());
        }
        // What is only observed goes on, with a grant or without.
        let is_dead = |entry: &ConnectionEntry| {
            let is_granted = entry.flags & ConnectionEntry::OBSERVED == 0;
            !self.observed.contains(&entry.resource) && (!is_granted || over(&(entry.slot, entry.epoch)))
        };
        let connections = self.gate.connections()?;
        let dead: Vec<(u64, ConnectionEntry)> =
            connections.into_iter().filter(|(_, entry)| is_dead(entry)).collect();
        let outcome = self.end_dead(&dead)?;
        self.unconfirmed = !outcome.unconfirmed.is_empty();
        self.strays = false;

        let mut ends = Ends { closed: untold(&dead, &outcome, now_boot_ns), ..Ends::default() };
        for (slot, epoch) in ended {
            let Some(period) = self.periods.remove(&(slot, epoch)) else { continue };
            if period.pair.resource == canary::NUMBER {
                continue;
            }
            let of_period = dead.iter().filter(|(_, entry)| (entry.slot, entry.epoch) == (slot, epoch));
            let cookies: Vec<u64> = of_period.map(|(cookie, _)| *cookie).collect();
            let count = |set: &BTreeSet<u64>| {
                let known = cookies.iter().filter(|cookie| set.contains(cookie)).count();
                u32::try_from(known).unwrap_or(u32::MAX)
            };
            ends.periods.push(PeriodEnd {
                pair: period.pair,
                grant: period.grant,
                reason: self.end_reason((slot, epoch), &period, now_boot_ns),
                closed: count(&outcome.closed),
                unconfirmed: count(&outcome.unconfirmed),
                last_admitted_boot_ns: Some(self.gate.last_admitted_boot_ns(slot)?).filter(|last| *last > 0),
            });
        }
        Ok(ends)
    }

    /// Why a period has ended, as far as this host knows.
    fn end_reason(&self, (slot, epoch): (u32, u64), period: &Period, now_boot_ns: u64) -> EndReason {
        if let Some(end) = GrantId::from_bytes(period.grant).and_then(|id| self.grants.end_of(id)) {
            return end.into();
        }
        // The grant may go on: here it was that of a run.
        if self.running.runs.is_over(period.pair.subject) && period.pair.subject != canary::NUMBER {
            return EndReason::TaskExit;
        }
        if self.entries.deadlines.get(&slot).is_none_or(|deadline| *deadline <= now_boot_ns) {
            return EndReason::Time;
        }
        let is_current = self.entries.epochs.get(&slot).copied().unwrap_or(0) == epoch;
        match is_current && self.entries.is_idle(slot, now_boot_ns) {
            true => EndReason::Idle,
            false => EndReason::Revoked,
        }
    }

    fn end_dead(&mut self, dead: &[(u64, ConnectionEntry)]) -> Result<Ended, KernelError> {
        if dead.is_empty() {
            return Ok(Ended::default());
        }
        let target = |(cookie, entry): &(u64, ConnectionEntry)| Target {
            cookie: *cookie,
            netns_cookie: entry.netns_cookie,
            pid: entry.pid,
        };
        let outcome = sockets::end(&dead.iter().map(target).collect::<Vec<_>>());
        tracing::info!(
            closed = outcome.closed.len(),
            gone = outcome.gone.len(),
            unconfirmed = outcome.unconfirmed.len(),
            "connections of ended grants"
        );
        for cookie in outcome.closed.iter().chain(&outcome.gone) {
            self.gate.forget_connection(*cookie)?;
        }
        Ok(outcome)
    }

    /// Begins a round of the canary, if none is under way. The question is for the canary.
    pub(super) fn prove(&mut self) -> Option<Ask> {
        // While only a gate of another ABI version decides, nothing can be proven of this one.
        if !self.knows_what_is_wanted() || !self.gate.stands() {
            return None;
        }
        let ask = self.proving.begin(now_boot_ns())?;
        self.grant_canary();
        Some(ask)
    }

    /// Gives the canary the grant of its round, or takes the last one away. Its pair alone is looked at: a host may hold tens of
    /// thousands.
    fn grant_canary(&mut self) {
        let until_boot_ns = self.proving.granted_until_boot_ns();
        if self.canary_grant.map(|grant| grant.expires_at_boot_ns) == until_boot_ns {
            return;
        }
        let key = GrantKey { subject: canary::NUMBER, resource: canary::NUMBER };
        self.canary_grant = until_boot_ns.and_then(|expires_at_boot_ns| {
            let (subject, resource) = (key.subject.try_into().ok()?, key.resource.try_into().ok()?);
            Some(WantedGrant { id: GrantId::new(), subject, resource, expires_at_boot_ns, idle_limit_ns: 0 })
        });
        let slots_max = self.gate.slots_max();
        let (entries, grant) = (&mut self.entries, self.canary_grant.as_ref());
        let write = |write: &Write| self.gate.write(write);
        let outcome = reconcile_pair(entries, key, grant, slots_max, now_boot_ns(), write);
        // A grant that was refused lets nobody through, which the canary finds out.
        self.health.failed.extend(outcome.failed);
        if let (Some(reference), Some(grant)) = (self.entries.grants.get(&key), &self.canary_grant) {
            let period = Period { pair: key, grant: *grant.id.as_bytes() };
            self.periods.insert((reference.slot, reference.epoch), period);
        }
    }

    /// The canary said something. Returns whether it is to be asked at once.
    pub(super) fn hear(&mut self, told: Told) -> bool {
        let step = self.proving.hear(told, now_boot_ns());
        if step == Step::Moved && self.knows_what_is_wanted() {
            self.canary_grant = None;
            self.reconcile();
        }
        self.conclude();
        step == Step::Moved
    }

    pub(super) fn see(&mut self, records: &[VerdictRecord]) {
        records.iter().for_each(|record| self.proving.see(record));
        // The kernel shows who made a socket only when a packet leaves: it has refused that, and nobody has told the caller.
        self.strays |= records.iter().any(|record| record.reason == Reason::CreatorDiffers as u8);
        self.conclude();
    }

    /// Ends the canary's round, if all is there that it needs.
    pub(super) fn conclude(&mut self) {
        let entries = &self.entries;
        let is_free = |port| entries.protecting(protocol::TCP, port, canary::mapped_address()).is_none();
        if self.proving.conclude(now_boot_ns(), is_free) == Step::Concluded {
            self.grant_canary();
        }
    }

    /// Looks whether programs, links and pins are as they were put up, and puts right what it can. Returns what it put right.
    pub(super) fn inspect(&mut self) -> Vec<String> {
        let faults = self.gate.inspect();
        self.note_missing();
        let flaw = |fault: &Fault| Flaw { is_grave: fault.opens, text: fault.text.clone() };
        let flaws: Vec<Flaw> = faults.iter().map(flaw).chain(self.drifted.drain(..)).collect();
        // What lasts is told once.
        for flaw in flaws.iter().filter(|flaw| !self.health.gate.contains(flaw)) {
            tracing::error!(flaw = flaw.text, "the gate is not as it was put up");
        }
        self.health.gate = flaws;
        faults.into_iter().filter(|fault| fault.repaired).map(|fault| fault.text).collect()
    }

    /// Compares the next part of the maps with what was written there, and puts right what somebody else has changed. Returns
    /// what was found. All parts have had their turn after [`Part::COUNT`] calls.
    pub(super) fn look_for_drift(&mut self) -> Result<Vec<Drift>, KernelError> {
        if !self.knows_what_is_wanted() {
            return Ok(Vec::new());
        }
        let part = Part::nth(self.next_part);
        self.next_part += 1;
        let mut read = Entries::default();
        self.gate.read_part(part, &mut read)?;
        match drift(part, &self.entries, &read) {
            None => Ok(Vec::new()),
            // Whoever has changed this has perhaps changed more.
            Some(_) => self.repair(),
        }
    }

    fn repair(&mut self) -> Result<Vec<Drift>, KernelError> {
        let read = self.gate.read_whole()?;
        let drifts: Vec<Drift> = Part::all().filter_map(|part| drift(part, &self.entries, &read)).collect();
        let writes = distrust(&self.entries, &read, self.gate.slots_max());
        self.entries = read;
        let mut failed = Vec::new();
        for write in writes {
            match self.gate.write(&write) {
                Ok(()) => self.entries.apply(&write),
                Err(error) => failed.push(format!("cannot {write}: {error}")),
            }
        }
        self.reconcile();
        self.health.failed.extend(failed);
        // Connections of slots that are not trusted any more.
        self.unconfirmed = true;
        for drift in &drifts {
            tracing::error!(%drift, "somebody has changed the gate's maps");
            let flaw = Flaw { is_grave: drift.is_grave, text: format!("{drift}; put right") };
            self.health.gate.push(flaw.clone());
            self.drifted.push(flaw);
        }
        Ok(drifts)
    }

    /// `spool_error` is why events cannot be kept; None: they can.
    pub(super) fn report(&mut self, spool_error: Option<&str>) -> Report {
        self.health.canary = self.proving.flaws(now_boot_ns());
        self.health.cgroups = self.cgroups.problem();
        self.health.report(spool_error)
    }

    pub(super) fn lost(&self, ring: Ring) -> Result<u64, KernelError> {
        self.gate.lost(ring)
    }

    /// Writes down what a restart must know.
    pub(super) fn remember(&self, lost: BTreeMap<u32, Lost>) {
        let now_boot_ns = now_boot_ns();
        let grants =
            self.grants.applied().map(|(timeline, _)| (timeline, self.grants.remaining_set(now_boot_ns)));
        let memory = Memory { grants, ended: self.grants.ended(), lost };
        if let Err(error) = self.memory.write(&memory, now_boot_ns) {
            tracing::error!(%error, "cannot write down the grant set; a restart would wait for the control plane");
        }
    }
}

/// The cgroups of these selectors, all of which mean the same. What could be several things is not exempt.
pub(super) fn exempt(cgroups: &Cgroups, selectors: &[Selector]) -> BTreeSet<u64> {
    selectors.iter().filter_map(|selector| cgroups.find(selector).ok()).flatten().collect()
}

/// What was ended here without the kernel's programs being told: they hear of the end of TCP connections only. What such a
/// connection carried, they alone know.
fn untold(dead: &[(u64, ConnectionEntry)], outcome: &Ended, now_boot_ns: u64) -> Vec<ClosedRecord> {
    let ended_here = dead
        .iter()
        .filter(|(cookie, entry)| entry.protocol != protocol::TCP && outcome.closed.contains(cookie));
    let record = |(cookie, entry): &(u64, ConnectionEntry)| ClosedRecord {
        ended_by: EndedBy::Grant as u8,
        ..ClosedRecord::of(entry, *cookie, now_boot_ns)
    };
    ended_here.map(record).collect()
}

/// What the rules for ends ask of this host.
struct View<'a> {
    gate: &'a Gate,
    entries: &'a Entries,
    cgroups: &'a Cgroups,
    runs: &'a Runs,
    subjects: Subjects<'a>,
}

impl Sight for View<'_> {
    fn running(&self, path: &CgroupPath) -> Option<u64> {
        self.cgroups.running(path)
    }

    fn has_run(&self, run: RunId, subject: SubjectNumber) -> bool {
        self.subjects.id(subject).is_some_and(|subject| self.runs.is_of(run, subject))
    }

    /// Of the subject's own pair, and of those of its runs, the one that was active last.
    fn last_active_boot_ns(&self, grant: &WantedGrant, run: Option<RunId>) -> Option<u64> {
        let mut last_boot_ns = None;
        for pair in self.runs.share(*grant, run, &self.subjects) {
            let key = GrantKey { subject: pair.subject.get(), resource: pair.resource.get() };
            let Some(held) = self.entries.grants.get(&key) else { continue };
            // Where a grant without a limit covers the pair as well, the kernel does not keep it.
            self.entries.idle_limits.get(&held.slot)?;
            let last = self.gate.last_active_boot_ns(held.slot);
            let last =
                last.inspect_err(|error| tracing::error!(%error, "cannot tell whether a grant is idle"));
            last_boot_ns = last_boot_ns.max(Some(last.ok()?));
        }
        last_boot_ns
    }
}
