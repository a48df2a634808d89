//! Keeping the maps as they should be, and proving that they do what they should.

use std::collections::{BTreeMap, BTreeSet};

use agent_ebpf::abi::{ClosedRecord, ConnectionEntry, EndedBy, GrantKey, Ring, protocol};
use proto::types::{Applied, GrantSet, Refused, RefusedItem, Report, Selector, SubjectNumber};
use uuid::Uuid;

use crate::canary;
use crate::clock::now_boot_ns;
use crate::kernel::{Gate, KernelError};
use crate::memory::{Lost, Memory, MemoryFile};
use crate::observe::Cgroups;
use crate::rules::grants::{Accepted, Grants};
use crate::rules::plan::{Entries, Wanted, reconcile};
use crate::rules::workloads;
use crate::sockets::{self, Ended, Target};
use crate::status::Health;

/// The gate, what it should hold, and what it holds.
pub(super) struct Enforcing {
    gate: Gate,
    entries: Entries,
    grants: Grants,
    cgroups: Cgroups,
    /// Whose processes may have sockets of any family.
    exempt: Vec<Selector>,
    /// Whose each cgroup was when it was last looked at.
    bound: BTreeMap<u64, SubjectNumber>,
    health: Health,
    memory: MemoryFile,
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
        exempt: Vec<Selector>,
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
            exempt,
            bound,
            health,
            memory,
            periods,
            unconfirmed: true,
        };
        enforcing.note_periods();
        if enforcing.grants.applied().is_some() || !enforcing.gate.took_over() {
            enforcing.look();
            enforcing.reconcile();
        }
        enforcing.prove();
        Ok(enforcing)
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
        if set.resources.iter().any(|resource| resource.number.get() == canary::RESOURCE_NUMBER) {
            tracing::error!(generation, "the grant set uses the canary's resource number; left aside");
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
        let exempt = self.exempt.iter().filter_map(|selector| self.cgroups.resolve(selector)).collect();
        if let Err(error) = self.gate.exempt(&exempt) {
            tracing::error!(%error, "cannot change whose processes may have sockets of any family");
        }
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
        let mut resources = self.grants.resources().to_vec();
        resources.push(canary::resource());
        let now_boot_ns = now_boot_ns();
        // What has ended idle must not be taken for live, nor what is active for ended.
        self.look_at_activity(now_boot_ns);
        let wanted = Wanted {
            resources,
            options: BTreeMap::new(),
            cgroups: self.bound.clone(),
            grants: self.grants.wanted(),
        };
        let slots_max = self.gate.slots_max();
        let outcome =
            reconcile(&mut self.entries, &wanted, slots_max, now_boot_ns, |write| self.gate.write(write));
        for refused in &outcome.refused {
            tracing::error!(item = ?refused.item, error = refused.error, "the kernel cannot take this");
        }
        for error in &outcome.failed {
            tracing::error!(error, "the kernel still holds what it should not");
        }
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

    /// Runs the canary.
    pub(super) fn prove(&mut self) {
        self.health.canary = Some(canary::test());
        self.health.missing = self.gate.missing();
    }

    /// `spool_error` is why events cannot be kept; None: they can.
    pub(super) fn report(&self, spool_error: Option<&str>) -> Report {
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

/// The control plane knows nothing of the canary, which its own test reports.
fn is_known(refused: &Refused) -> bool {
    !matches!(refused.item, RefusedItem::Resource(number) if number.get() == canary::RESOURCE_NUMBER)
}
