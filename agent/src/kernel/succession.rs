//! Taking the place of gates of other ABI versions, without an instant in which nobody decides, and without ending what they
//! had let through.
//!
//! Owns: the order of the steps. Must not know: how a version is read ([`super::predecessors`]), or which grant takes over.
//!
//! Invariant: after each step, whatever happens then, some whole gate decides, and an agent of either version can go on.

use agent_ebpf::abi::{
    ClosedRecord, ConnectionEntry, GrantRef, MovedRecord, NEVER, Ring, VerdictRecord, map,
};

use super::pins::Attachable;
use super::predecessors::{Inherited, Predecessor, Superseded};
use super::slots::Word;
use super::sys::{self, AttachType};
use super::{Gate, Kept, KernelError, Placed, loader};
use crate::clock::now_boot_ns;

impl Gate {
    /// Whether a gate of another ABI version is up.
    pub fn is_waiting(&self) -> bool {
        self.predecessors.iter().any(Predecessor::is_up)
    }

    /// The other ABI versions of which something is left: a gate that is up, or records that were not read.
    pub fn predecessors(&self) -> Vec<u32> {
        self.predecessors.iter().map(Predecessor::version).collect()
    }

    /// Whether all programs of this gate are attached.
    pub fn stands(&self) -> bool {
        self.programs.iter().all(|program| program.link.is_some())
    }

    /// Attaches this gate beside those of other ABI versions, so that all of them decide and a denial by any counts. The
    /// maps must hold what they should: from here on they are obeyed.
    ///
    /// `heir` says which live grant of this gate lets such a connection through. One that a predecessor would still let through
    /// goes on under that; every other is known as ended. Does nothing if it stands there already.
    pub fn stand_beside(
        &mut self,
        heir: impl Fn(&ConnectionEntry) -> Option<GrantRef>,
    ) -> Result<(), KernelError> {
        if self.stands() {
            return Ok(());
        }
        // Whatever connects from here on is let through by both, or by neither. What connected before is in the
        // predecessors' maps as soon as the programs that began before have ended; only then are packets judged.
        let judges_packets = |program: &Attachable| program.place.attach_type == AttachType::EGRESS;
        self.attach(|program| !judges_packets(program))?;
        sys::wait_for_programs();
        let calls_boot_ns = now_boot_ns();
        let inherited = self.predecessors.iter().filter(|predecessor| predecessor.is_up());
        let inherited: Result<Vec<_>, _> =
            inherited.map(|predecessor| predecessor.connections(calls_boot_ns)).collect();
        for connection in inherited?.into_iter().flatten() {
            self.inherit(&connection, &heir)?;
        }
        // Before packets are judged: from then on this gate stands, and nothing of it is tried again.
        self.raise_optional(&mut loader(&self.settings, &self.pins))?;
        self.attach(judges_packets)?;
        sys::wait_for_programs();
        let superseded = Superseded { calls_boot_ns, packets_boot_ns: now_boot_ns() };
        self.predecessors.iter_mut().for_each(|predecessor| predecessor.superseded = Some(superseded));
        Ok(())
    }

    /// Remembers a connection that a predecessor let through, unless this gate has done so itself.
    fn inherit(
        &mut self,
        inherited: &Inherited,
        heir: &impl Fn(&ConnectionEntry) -> Option<GrantRef>,
    ) -> Result<(), KernelError> {
        let Inherited { cookie, entry, alive, last_admitted_boot_ns } = *inherited;
        let grant = heir(&entry);
        let known = self.connections.get(&cookie, 0).ok();
        let is_by = |grant: GrantRef| {
            known.is_some_and(|known| (known.slot, known.epoch) == (grant.slot, grant.epoch))
        };
        if grant.is_some_and(is_by) {
            return Ok(());
        }
        // What was only observed goes on being just that.
        if entry.flags & ConnectionEntry::OBSERVED != 0 {
            return self.remember(cookie, entry);
        }
        let (slot, epoch) = match grant.filter(|_| alive) {
            Some(grant) => {
                self.note_admitted(grant.slot, last_admitted_boot_ns)?;
                (grant.slot, grant.epoch)
            }
            // It may say farewell to the other side, and nothing else.
            None => (0, NEVER),
        };
        let flags = entry.flags | ConnectionEntry::INHERITED;
        self.remember(cookie, ConnectionEntry { slot, epoch, flags, ..entry })
    }

    fn remember(&mut self, cookie: u64, entry: ConnectionEntry) -> Result<(), KernelError> {
        let result = self.connections.insert(cookie, entry, 0);
        result.or_else(|error| KernelError::from_write(map::CONNECTIONS, &self.settings, error))
    }

    /// A slot begins where its predecessor's was.
    fn note_admitted(&mut self, slot: u32, boot_ns: u64) -> Result<(), KernelError> {
        if self.last_admitted_boot_ns(slot)? >= boot_ns {
            return Ok(());
        }
        self.slots.set(slot, Word::LAST_ADMITTED, boot_ns)
    }

    /// Takes down the gates of other ABI versions, beside which this one stands. Their records can be read afterwards.
    pub fn lower_predecessors(&mut self) -> Result<(), KernelError> {
        self.predecessors
            .iter_mut()
            .filter(|predecessor| predecessor.is_up())
            .try_for_each(Predecessor::lower)
    }

    /// Records that the gates of other ABI versions have written and nobody has read: at most `max`. None: nothing now.
    pub fn read_predecessors(&mut self, max: usize) -> Vec<Placed<VerdictRecord>> {
        let mut records = Vec::new();
        for predecessor in &mut self.predecessors {
            records.extend(predecessor.read(max.saturating_sub(records.len())));
        }
        records
    }

    /// The same of connections that have ended.
    pub fn read_predecessors_closed(&mut self, max: usize) -> Vec<Placed<ClosedRecord>> {
        let mut records = Vec::new();
        for predecessor in &mut self.predecessors {
            records.extend(predecessor.read_closed(max.saturating_sub(records.len())));
        }
        records
    }

    /// The same of processes that were moved.
    pub fn read_predecessors_moved(&mut self, max: usize) -> Vec<Placed<MovedRecord>> {
        let mut records = Vec::new();
        for predecessor in &mut self.predecessors {
            records.extend(predecessor.read_moved(max.saturating_sub(records.len())));
        }
        records
    }

    /// Gives the room of what is kept elsewhere back to the kernel, by the number of each ring.
    pub fn release_predecessors(&mut self, kept: impl Fn(u32) -> Kept) {
        self.predecessors.iter_mut().for_each(|predecessor| predecessor.release(&kept));
    }

    /// Passes over what is known to be kept since before a crash, by the number of each ring.
    pub fn skip_predecessors(&mut self, end: impl Fn(u32) -> Option<u64>) {
        self.predecessors.iter_mut().for_each(|predecessor| predecessor.skip(&end));
    }

    /// How many records each ring of each other ABI version has lost since it was made, in the order of [`Ring::ALL`].
    pub fn predecessors_lost(&self) -> Result<Vec<(u32, [u64; Ring::ALL.len()])>, KernelError> {
        let lost = |predecessor: &Predecessor| {
            let mut lost = [0; Ring::ALL.len()];
            for (lost, ring) in lost.iter_mut().zip(Ring::ALL) {
                *lost = predecessor.lost(ring)?;
            }
            Ok((predecessor.version(), lost))
        };
        self.predecessors.iter().map(lost).collect()
    }

    /// Removes what is left of those that are not up any more. Their records must have been read. Gives their versions.
    pub fn forget_predecessors(&mut self) -> Result<Vec<u32>, KernelError> {
        let (up, gone): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.predecessors).into_iter().partition(Predecessor::is_up);
        self.predecessors = up;
        let mut versions = Vec::new();
        for predecessor in gone {
            predecessor.forget()?;
            versions.push(predecessor.version());
        }
        Ok(versions)
    }
}
