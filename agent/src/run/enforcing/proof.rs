//! Whether the gate is what it was put up as: the canary's rounds, its programs, its maps.
//!
//! Owns: what follows from what is found. Must not know: how the canary is reached.

use agent_ebpf::abi::{GrantKey, VerdictRecord, protocol};
use agent_ebpf::verdict::Reason;
use proto::types::GrantId;

use super::Enforcing;
use crate::canary::{self, Ask, Told};
use crate::clock::now_boot_ns;
use crate::kernel::{Fault, KernelError, Placed};
use crate::rules::drift::{Drift, Part, distrust, drift};
use crate::rules::plan::{Entries, WantedGrant, Write, reconcile_pair};
use crate::run::enforcing::ends::Period;
use crate::run::proving::Step;
use crate::status::Flaw;

impl Enforcing {
    /// Begins a round of the canary, if none is under way. The question is for the canary.
    pub(in crate::run) fn prove(&mut self) -> Option<Ask> {
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
        self.next_end_boot_ns = 0;
    }

    /// The canary said something. Returns whether it is to be asked at once.
    pub(in crate::run) fn hear(&mut self, told: Told) -> bool {
        let step = self.proving.hear(told, now_boot_ns());
        if step == Step::Moved && self.knows_what_is_wanted() {
            self.canary_grant = None;
            self.reconcile();
        }
        self.conclude();
        step == Step::Moved
    }

    pub(in crate::run) fn see(&mut self, records: &[Placed<VerdictRecord>]) {
        records.iter().for_each(|placed| self.proving.see(&placed.record));
        // The kernel shows who made a socket only when a packet leaves: it has refused that, and nobody has told the caller.
        self.strays |= records.iter().any(|placed| placed.record.reason == Reason::CreatorDiffers as u8);
        self.conclude();
    }

    /// Ends the canary's round, if all is there that it needs.
    pub(in crate::run) fn conclude(&mut self) {
        let entries = &self.entries;
        let is_free = |port| entries.protecting(protocol::TCP, port, canary::mapped_address()).is_none();
        if self.proving.conclude(now_boot_ns(), is_free) == Step::Concluded {
            self.grant_canary();
        }
    }

    /// Looks whether programs, links and pins are as they were put up, and puts right what it can. Returns what it put right.
    pub(in crate::run) fn inspect(&mut self) -> Vec<String> {
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
    pub(in crate::run) fn look_for_drift(&mut self) -> Result<Vec<Drift>, KernelError> {
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
}
