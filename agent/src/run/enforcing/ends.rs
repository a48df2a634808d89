//! What ends: grants of which only this host sees the end, and the connections of every time that is over.
//!
//! Owns: which times are let through now, and what became of each. Must not know: how a socket is destroyed.

use std::collections::{BTreeMap, BTreeSet};

use agent_ebpf::abi::{ClosedRecord, ConnectionEntry, EndedBy, GrantKey, protocol};
use proto::types::{CgroupPath, EndReason, EndedGrant, GrantId, RunId, SubjectNumber};

use super::Enforcing;
use crate::canary;
use crate::clock::now_boot_ns;
use crate::kernel::{Gate, KernelError};
use crate::memory::Lost;
use crate::observe::Cgroups;
use crate::rules::grants::Sight;
use crate::rules::plan::{Entries, WantedGrant};
use crate::rules::runs::{Runs, Subjects};
use crate::sockets::{self, Ended, Target};

/// A time in which a pair is let through without a break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Period {
    pub(super) pair: GrantKey,
    /// The grant that it is named after.
    pub(super) grant: [u8; 16],
}

/// What became of a period that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::run) struct PeriodEnd {
    pub(in crate::run) pair: GrantKey,
    pub(in crate::run) grant: [u8; 16],
    /// As far as this host knows: `Revoked` stands for whatever else the control plane ended it for.
    pub(in crate::run) reason: EndReason,
    pub(in crate::run) closed: u32,
    pub(in crate::run) unconfirmed: u32,
    /// On the boot clock; None: nothing was ever let through.
    pub(in crate::run) last_admitted_boot_ns: Option<u64>,
}

/// What was ended.
#[derive(Debug, Default)]
pub(in crate::run) struct Ends {
    pub(in crate::run) periods: Vec<PeriodEnd>,
    /// Connections of which the kernel does not say that they ended.
    pub(in crate::run) closed: Vec<ClosedRecord>,
}

impl Enforcing {
    /// Ends the grants of which only this host can see that they are over. Returns whether there were any.
    ///
    /// Written down first, with what was `lost`: an agent that ends in between must not leave to the next what would revive them.
    pub(in crate::run) fn end_what_is_over(&mut self, lost: BTreeMap<u32, Lost>) -> bool {
        let any = self.find_ends();
        if any {
            self.remember(lost);
            self.reconcile();
        }
        any
    }

    pub(in crate::run) fn find_ends(&mut self) -> bool {
        // Ten times a second, and mostly for nothing.
        let now_boot_ns = now_boot_ns();
        if !self.grants.may_find_ends(now_boot_ns) {
            return false;
        }
        let subjects = self.grants.subjects().to_vec();
        let view = View {
            gate: &self.gate,
            entries: &self.entries,
            cgroups: &self.cgroups,
            runs: &self.running.runs,
            subjects: Subjects::of(&subjects),
        };
        let found = self.grants.find_ends(&view, now_boot_ns);
        if found {
            tracing::info!(ended = ?self.grants.ended(), "grants that this host has ended");
        }
        found
    }

    /// What this host has ended and the control plane may not know of yet.
    pub(in crate::run) fn ended(&self) -> Vec<EndedGrant> {
        self.grants.ended()
    }

    /// Asks the kernel about the slots that seem to be idle.
    pub(super) fn look_at_activity(&mut self, now_boot_ns: u64) {
        for slot in self.entries.seeming_idle(now_boot_ns) {
            match self.gate.last_active_boot_ns(slot) {
                Ok(active_boot_ns) => drop(self.entries.active.insert(slot, active_boot_ns)),
                // It is ended then, a little early at the worst.
                Err(error) => tracing::error!(%error, slot, "cannot see when a grant was last active"),
            }
        }
    }

    /// Remembers what is let through now. A period may get another name while it lasts, by a longer grant.
    pub(super) fn note_periods(&mut self) {
        let now_boot_ns = now_boot_ns();
        for (pair, reference) in &self.entries.grants {
            if self.entries.counts(reference.slot, reference.epoch, now_boot_ns)
                && let Some(name) = self.entries.names.get(&reference.slot)
            {
                let period = Period { pair: *pair, grant: *name };
                self.periods.insert((reference.slot, reference.epoch), period);
            }
        }
        self.next_end_boot_ns = 0;
    }

    /// Ends the connections of every period that has ended, and says what became of each. The kernel has let nothing of them
    /// through since; this tells both ends.
    ///
    /// `again`: also looks for those that were not found before, which takes a look into every network namespace.
    pub(in crate::run) fn end_connections(&mut self, again: bool) -> Result<Ends, KernelError> {
        let now_boot_ns = now_boot_ns();
        let is_anything_left = self.strays || (again && self.unconfirmed);
        // A host may hold tens of thousands, and this is asked ten times a second.
        if now_boot_ns < self.next_end_boot_ns && !is_anything_left {
            return Ok(Ends::default());
        }
        self.look_at_activity(now_boot_ns);
        let mut ended = Vec::new();
        let mut next_end_boot_ns = u64::MAX;
        for period @ (slot, epoch) in self.periods.keys() {
            match self.entries.counts_until(*slot, *epoch, now_boot_ns) {
                Some(until_boot_ns) => next_end_boot_ns = next_end_boot_ns.min(until_boot_ns),
                None => ended.push(*period),
            }
        }
        if ended.is_empty() {
            self.next_end_boot_ns = next_end_boot_ns;
            if !is_anything_left {
                return Ok(Ends::default());
            }
        }
        // What is only observed goes on, with a grant or without.
        let is_dead = |entry: &ConnectionEntry| {
            let is_granted = entry.flags & ConnectionEntry::OBSERVED == 0;
            let goes_on = is_granted && self.entries.counts(entry.slot, entry.epoch, now_boot_ns);
            !self.observed.contains(&entry.resource) && !goes_on
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
