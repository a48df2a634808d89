//! Taking the place of gates of other ABI versions.
//!
//! Owns: when they go, and what goes on. Must not know: how programs and maps are exchanged, which is the gate's.

use std::collections::{BTreeMap, BTreeSet};

use agent_ebpf::abi::{
    ClosedRecord, ConnectionEntry, GrantKey, MovedRecord, ResourceEntry, VerdictRecord, protocol,
};
use proto::types::{Refused, RefusedItem};

use super::Enforcing;
use crate::clock::now_boot_ns;
use crate::kernel::{Kept, KernelError, Placed};
use crate::memory::Lost;

impl Enforcing {
    /// Takes the place of gates of other ABI versions, once it is known what is to be enforced. Should something go wrong,
    /// they stay, and it is tried again.
    pub(super) fn succeed(&mut self) {
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
    pub(in crate::run) fn predecessors(&self) -> Vec<u32> {
        self.gate.predecessors()
    }

    /// Records of gates of other ABI versions: at most `max`. None: nothing now.
    pub(in crate::run) fn read_predecessors(&mut self, max: usize) -> Vec<Placed<VerdictRecord>> {
        self.gate.read_predecessors(max)
    }

    /// The same of connections that have ended.
    pub(in crate::run) fn read_predecessors_closed(&mut self, max: usize) -> Vec<Placed<ClosedRecord>> {
        self.gate.read_predecessors_closed(max)
    }

    /// The same of processes that were moved.
    pub(in crate::run) fn read_predecessors_moved(&mut self, max: usize) -> Vec<Placed<MovedRecord>> {
        self.gate.read_predecessors_moved(max)
    }

    /// Gives the room of what is kept of that back to the kernel; says of each ring how far that is.
    pub(in crate::run) fn release_predecessors(&mut self, kept: impl Fn(u32) -> Kept) {
        self.gate.release_predecessors(kept);
    }

    /// Passes over what an earlier agent has kept of that; says of each ring where it ends.
    pub(in crate::run) fn skip_predecessors(&mut self, end: impl Fn(u32) -> Option<u64>) {
        self.gate.skip_predecessors(end);
    }

    /// What each gate of another ABI version has lost, by ring.
    pub(in crate::run) fn predecessors_lost(&self) -> Result<Vec<(u32, Lost)>, KernelError> {
        self.gate.predecessors_lost()
    }

    /// Removes what is left of gates of other ABI versions whose records were read. Gives their versions.
    pub(in crate::run) fn forget_predecessors(&mut self) -> Result<Vec<u32>, KernelError> {
        self.gate.forget_predecessors()
    }
}
