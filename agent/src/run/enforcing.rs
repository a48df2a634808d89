//! Keeping the maps as they should be, and proving that they do what they should.

use std::collections::{BTreeMap, BTreeSet};

use agent_ebpf::abi::{ClosedRecord, ConnectionEntry, EndedBy, GrantKey, Ring, VerdictRecord, map, protocol};
use proto::types::{Applied, GrantId, GrantSet, Refused, RefusedItem, Report, SubjectNumber};
use uuid::Uuid;

use crate::canary::{self, Ask, Told};
use crate::clock::now_boot_ns;
use crate::kernel::{Fault, Gate, KernelError};
use crate::memory::{Lost, Memory, MemoryFile};
use crate::observe::Cgroups;
use crate::rules::drift::{Drift, Part, distrust, drift};
use crate::rules::grants::{Accepted, Grants};
use crate::rules::plan::{Entries, Wanted, WantedGrant, Write, reconcile, reconcile_pair};
use crate::rules::workloads;
use crate::sockets::{self, Ended, Target};
use crate::status::{Flaw, Health};

use super::proving::{Proving, Step};

/// The gate, what it should hold, and what it holds.
pub(super) struct Enforcing {
    gate: Gate,
    entries: Entries,
    grants: Grants,
    cgroups: Cgroups,
    /// Whose each cgroup was when it was last looked at.
    bound: BTreeMap<u64, SubjectNumber>,
    health: Health,
    memory: MemoryFile,
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
    pub(super) cause: Cause,
    pub(super) closed: u32,
    pub(super) unconfirmed: u32,
    /// On the boot clock; None: nothing was ever let through.
    pub(super) last_admitted_boot_ns: Option<u64>,
}

/// Why a period ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Its deadline passed.
    Time,
    /// It was idle for longer than it may be.
    Idle,
    /// Somebody ended it.
    Revoked,
}

impl Cause {
    /// As receipts name it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Time => "time",
            Self::Idle => "idle",
            Self::Revoked => "revoked",
        }
    }
}

/// What was ended.
#[derive(Debug, Default)]
pub(super) struct Ends {
    pub(super) periods: Vec<PeriodEnd>,
    /// Connections of which the kernel does not say that they ended.
    pub(super) closed: Vec<ClosedRecord>,
}

impl Enforcing {
    /// Starts from what is remembered. If nothing is, a gate that was taken over is left as it is until the control plane
    /// speaks: it holds what an earlier agent was told, and its deadlines pass by themselves.
    pub(super) fn new(
        gate: Gate,
        cgroups: Cgroups,
        remembered: Memory,
        memory: MemoryFile,
    ) -> Result<Self, KernelError> {
        let entries = gate.read()?;
        let mut grants = Grants::default();
        if let Some((timeline, set)) = remembered.grants {
            grants.accept(timeline, set, now_boot_ns());
        }
        let health = Health { missing: gate.missing(), ..Health::default() };
        for missing in &health.missing {
            tracing::warn!(part = missing.part, why = missing.why, "this kernel cannot have all of the gate");
        }
        let bound = BTreeMap::new();
        let periods = BTreeMap::new();
        // What an earlier agent left connected and no grant covers any more is ended now.
        let mut enforcing = Self {
            gate,
            entries,
            grants,
            cgroups,
            bound,
            health,
            memory,
            proving: Proving::default(),
            canary_grant: None,
            next_part: 0,
            drifted: Vec::new(),
            periods,
            unconfirmed: true,
        };
        enforcing.note_periods();
        if enforcing.knows_what_is_wanted() {
            enforcing.look();
            enforcing.reconcile();
        }
        Ok(enforcing)
    }

    /// Otherwise the maps are left as they were found, and nothing is proven.
    fn knows_what_is_wanted(&self) -> bool {
        self.grants.applied().is_some() || !self.gate.took_over()
    }

    pub(super) fn grants(&self) -> &Grants {
        &self.grants
    }

    pub(super) fn cgroups(&mut self) -> &mut Cgroups {
        &mut self.cgroups
    }

    /// Puts a set into the kernel. None: it was older than what is there, or cannot be meant; the control plane hears nothing.
    pub(super) fn apply(&mut self, timeline: Uuid, set: GrantSet) -> Option<Applied> {
        let generation = set.generation;
        let named = set.resources.iter().map(|resource| resource.number.get());
        let mut named = named.chain(set.subjects.iter().map(|subject| subject.number.get()));
        if named.any(|number| number == canary::NUMBER) {
            tracing::error!(generation, "the grant set uses the canary's number; left aside");
            return None;
        }
        match self.grants.accept(timeline, set, now_boot_ns()) {
            Accepted::Older => {
                tracing::warn!(generation, "an older grant set than the one that is enforced; left aside");
                return None;
            }
            Accepted::Same | Accepted::Changed => {}
        }
        self.look();
        self.reconcile();
        let refused = self.health.refused.clone();
        tracing::info!(generation, refused = refused.len(), "grant set applied");
        Some(Applied { generation, refused })
    }

    /// Binds cgroups that came, and unbinds those that went. Returns whether there were any.
    pub(super) fn follow_cgroups(&mut self) -> bool {
        let changed = self.grants.applied().is_some() && self.look();
        if changed {
            self.reconcile();
        }
        changed
    }

    /// Tries again what failed.
    pub(super) fn retry(&mut self) {
        if !self.health.refused.is_empty() || !self.health.failed.is_empty() {
            self.reconcile();
        }
    }

    /// Returns whether something changed since the last look.
    fn look(&mut self) -> bool {
        let bindings = workloads::bind(self.grants.subjects(), |selector| self.cgroups.resolve(selector));
        let changed = bindings.cgroups != self.bound || bindings.contested != self.health.contested;
        self.bound = bindings.cgroups;
        self.health.contested = bindings.contested;
        changed
    }

    fn reconcile(&mut self) {
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
        self.note_periods();
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

    /// What the control plane wants, and what the canary needs. Nobody else is ever given its cgroup or its destination.
    fn wanted(&self) -> Wanted {
        let mut wanted = Wanted {
            resources: self.grants.resources().to_vec(),
            options: BTreeMap::new(),
            cgroups: self.bound.clone(),
            grants: self.grants.wanted(),
        };
        let Some(place) = self.proving.place() else { return wanted };
        wanted.resources.insert(0, canary::resource(place.port));
        if let (Ok(id), Ok(subject)) = (&place.cgroup, SubjectNumber::try_from(canary::NUMBER)) {
            wanted.cgroups.insert(*id, subject);
        }
        wanted.grants.extend(self.canary_grant);
        wanted
    }

    /// Remembers what is let through now. A period may get another name while it lasts, by a longer grant.
    fn note_periods(&mut self) {
        let now_boot_ns = now_boot_ns();
        for (pair, reference) in &self.entries.grants {
            if self.entries.counts(reference.slot, reference.epoch, now_boot_ns)
                && let Some(name) = self.entries.slots.get(&reference.slot)
            {
                let period = Period { pair: *pair, grant: name.grant };
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
        if ended.is_empty() && !(again && self.unconfirmed) {
            return Ok(Ends::default());
        }
        let observed = self.entries.observed();
        // What is only observed goes on, with a grant or without.
        let is_dead = |entry: &ConnectionEntry| {
            let is_granted = entry.flags & ConnectionEntry::OBSERVED == 0;
            !observed.contains(&entry.resource) && (!is_granted || over(&(entry.slot, entry.epoch)))
        };
        let connections = self.gate.connections()?;
        let dead: Vec<(u64, ConnectionEntry)> =
            connections.into_iter().filter(|(_, entry)| is_dead(entry)).collect();
        let outcome = self.end_dead(&dead)?;
        self.unconfirmed = !outcome.unconfirmed.is_empty() || !observed.is_empty();

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
                cause: self.cause(slot, epoch, now_boot_ns),
                closed: count(&outcome.closed),
                unconfirmed: count(&outcome.unconfirmed),
                last_admitted_boot_ns: Some(self.gate.last_admitted_boot_ns(slot)?).filter(|last| *last > 0),
            });
        }
        Ok(ends)
    }

    /// Why a period has ended.
    fn cause(&self, slot: u32, epoch: u64, now_boot_ns: u64) -> Cause {
        if self.entries.deadlines.get(&slot).is_none_or(|deadline| *deadline <= now_boot_ns) {
            return Cause::Time;
        }
        let is_current = self.entries.epochs.get(&slot).copied().unwrap_or(0) == epoch;
        if is_current && self.entries.is_idle(slot, now_boot_ns) { Cause::Idle } else { Cause::Revoked }
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
        if !self.knows_what_is_wanted() {
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
            // Names of grants open nothing.
            let is_grave = drift.map != map::SLOTS;
            self.drifted.push(Flaw { is_grave, text: format!("{drift}; put right") });
        }
        let drifted = self.drifted.iter().cloned();
        self.health.gate.extend(drifted);
        Ok(drifts)
    }

    /// `spool_error` is why events cannot be kept; None: they can.
    pub(super) fn report(&mut self, spool_error: Option<&str>) -> Report {
        self.health.canary = self.proving.flaws(now_boot_ns());
        self.health.report(spool_error)
    }

    pub(super) fn lost(&self, ring: Ring) -> Result<u64, KernelError> {
        self.gate.lost(ring)
    }

    /// Writes down what a restart must know.
    pub(super) fn remember(&self, lost: Lost) {
        let now_boot_ns = now_boot_ns();
        let grants =
            self.grants.applied().map(|(timeline, _)| (timeline, self.grants.remaining_set(now_boot_ns)));
        if let Err(error) = self.memory.write(&Memory { grants, lost }, now_boot_ns) {
            tracing::error!(%error, "cannot write down the grant set; a restart would wait for the control plane");
        }
    }
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
