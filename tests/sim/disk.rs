//! A host's disk: the spool and the agent's memory, as they are after a crash.
//!
//! Owns: what a crash of the agent, and of the machine, leaves. Must not know: what events say. Which events make room is
//! `agent::rules::queue`'s, and what the memory's bytes mean `agent::memory`'s; the spool's files are modelled.

use std::collections::VecDeque;
use std::path::Path;

use agent::memory::{Memory, MemoryFile};
use agent::rules::queue::{self, Run};
use agent::spool::{Entry, Marks};
use proto::types::{AuditEvent, EventId, EventKind, Gap, Timestamp};
use uuid::Uuid;

/// Events that a segment holds; each takes a byte, so to speak.
const SEGMENT: usize = 6;
/// Events that the spool holds, but for the segment that is written to.
const SPOOL_MAX: u64 = 24;
/// Events that one message carries.
const BATCH_MAX: usize = 5;

#[derive(Clone, Debug)]
struct Segment {
    epoch: Uuid,
    first: u64,
    entries: Vec<Entry>,
    is_gap: bool,
}

impl Segment {
    fn next(&self) -> u64 {
        self.entries.last().map_or(self.first, |entry| entry.event.id.sequence + 1)
    }
}

/// The disk.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// It refuses events and a new memory.
    pub(crate) is_full: bool,
    /// While it does, it refuses everything: what is there cannot be written upon either.
    is_read_only: bool,
    segments: VecDeque<Segment>,
    /// The last number of the newest epoch that is safe from a loss of power.
    synced: u64,
    /// As the agent wrote it.
    memory: Option<Vec<u8>>,
}

impl Disk {
    pub(crate) fn new(is_read_only: bool) -> Self {
        Self { is_read_only, ..Self::default() }
    }

    /// What is in the spool, oldest first.
    pub(crate) fn events(&self) -> impl Iterator<Item = &AuditEvent> {
        self.segments.iter().flat_map(|segment| &segment.entries).map(|entry| &entry.event)
    }

    /// The machine is gone: what was not synced is, too. Gives it.
    pub(crate) fn lose_power(&mut self) -> Vec<AuditEvent> {
        let synced = self.synced;
        let Some(newest) = self.segments.back().map(|segment| segment.epoch) else { return Vec::new() };
        let mut lost = Vec::new();
        for segment in self.segments.iter_mut().filter(|segment| segment.epoch == newest && !segment.is_gap) {
            let kept = segment.entries.partition_point(|entry| entry.event.id.sequence <= synced);
            lost.extend(segment.entries.drain(kept..).map(|entry| entry.event));
        }
        lost
    }

    /// An agent of this boot starts. Gives the next number.
    pub(crate) fn open(&mut self, epoch: Uuid) -> u64 {
        if self.segments.back().is_none_or(|segment| segment.epoch != epoch) {
            self.segments.push_back(Segment { epoch, first: 1, entries: Vec::new(), is_gap: false });
            self.synced = 0;
        }
        self.next_sequence()
    }

    /// The number that the next event gets.
    pub(crate) fn next_sequence(&self) -> u64 {
        self.segments.back().map_or(1, Segment::next)
    }

    /// How far the kernel's rings are kept, as the events of this boot say that are there.
    pub(crate) fn marks(&self, epoch: Uuid) -> Marks {
        let mut marks = Marks::default();
        let segments = self.segments.iter().filter(|segment| segment.epoch == epoch);
        segments.flat_map(|segment| &segment.entries).for_each(|entry| marks.note(entry.mark));
        marks
    }

    /// Takes an event, or refuses it.
    pub(crate) fn append(&mut self, entry: &Entry, at: Timestamp) {
        if self.is_full {
            return;
        }
        let newest = self.segments.back().expect("it was opened");
        if newest.entries.len() >= SEGMENT {
            let epoch = newest.epoch;
            let first = entry.event.id.sequence;
            self.segments.push_back(Segment { epoch, first, entries: Vec::new(), is_gap: false });
            self.make_room(at);
        }
        self.segments.back_mut().expect("it was opened").entries.push(entry.clone());
    }

    pub(crate) fn sync(&mut self) {
        self.synced = self.next_sequence() - 1;
    }

    fn runs(&self) -> Vec<Run> {
        let run = |segment: &Segment| Run {
            epoch: segment.epoch,
            first: segment.first,
            next: segment.next(),
            bytes: segment.entries.len() as u64,
            is_gap: segment.is_gap,
        };
        self.segments.iter().map(run).collect()
    }

    fn make_room(&mut self, at: Timestamp) {
        while let Some(dropped) = queue::to_drop(&self.runs(), SPOOL_MAX) {
            let segment = self.segments.get(dropped.index).expect("the rule knows it");
            let (epoch, host) =
                (segment.epoch, segment.entries.first().and_then(|entry| entry.event.id.host.clone()));
            let id = EventId { host, epoch, sequence: dropped.last };
            let (first, last) = (dropped.first, dropped.last);
            let gap =
                Gap { place: "spool".to_owned(), lost: last - first + 1, sequences: Some((first, last)) };
            let event = AuditEvent { gap: Some(gap), ..AuditEvent::new(id, EventKind::AuditGap, at) };
            if dropped.place != dropped.index {
                self.segments.remove(dropped.index);
            }
            self.segments[dropped.place] =
                Segment { epoch, first, entries: vec![event.into()], is_gap: true };
        }
    }

    /// The next events after the one that was read last.
    pub(crate) fn read(&self, after: Option<(Uuid, u64)>) -> Vec<AuditEvent> {
        let start = queue::start(&self.runs(), after);
        let is_new = |event: &&AuditEvent| {
            after.is_none_or(|(epoch, sequence)| event.id.epoch != epoch || event.id.sequence > sequence)
        };
        let batches = self.segments.iter().skip(start).map(|segment| {
            let events = segment.entries.iter().map(|entry| &entry.event);
            events.filter(is_new).take(BATCH_MAX).cloned().collect::<Vec<_>>()
        });
        batches.into_iter().find(|batch| !batch.is_empty()).unwrap_or_default()
    }

    pub(crate) fn acknowledge(&mut self, epoch: Uuid, sequence: u64) {
        if queue::is_all(&self.runs(), epoch, sequence) {
            let first = self.next_sequence();
            let epoch = self.segments.back().map_or(epoch, |newest| newest.epoch);
            self.segments.push_back(Segment { epoch, first, entries: Vec::new(), is_gap: false });
        }
        for index in queue::done(&self.runs(), epoch, sequence).into_iter().rev() {
            self.segments.remove(index);
        }
    }

    /// Replaces the memory, in one step. A full disk refuses that. Returns whether it was done.
    pub(crate) fn remember(&mut self, boot: Uuid, memory: &Memory, now_boot_ns: u64) -> bool {
        if !self.is_full {
            self.memory = Some(file(boot).encode(memory, now_boot_ns));
        }
        !self.is_full
    }

    /// Writes upon the memory that its grants are not those that are enforced.
    /// Returns whether there is none that counts after it.
    pub(crate) fn spoil(&mut self) -> bool {
        let refuses = self.is_full && self.is_read_only;
        let memory = self.memory.iter_mut().filter(|_| !refuses);
        memory.for_each(|bytes| MemoryFile::spoil_bytes(bytes));
        !refuses || self.memory.is_none()
    }

    /// As an agent of this boot reads it; what cannot be read is forgotten.
    pub(crate) fn recall(&self, boot: Uuid, now_boot_ns: u64) -> Memory {
        let decoded = self.memory.as_ref().map(|bytes| file(boot).decode(bytes, now_boot_ns));
        decoded.flatten().unwrap_or_default()
    }

    /// Whether there is a memory that cannot be read, although nothing but an agent has written it.
    pub(crate) fn is_memory_damaged(&self, boot: Uuid) -> bool {
        self.memory.as_ref().is_some_and(|bytes| file(boot).decode(bytes, 0).is_none())
    }
}

fn file(boot: Uuid) -> MemoryFile {
    MemoryFile::new(Path::new("nowhere"), boot)
}
