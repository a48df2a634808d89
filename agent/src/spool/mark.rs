//! What of the kernel's an event stands for, kept with it: so that a restart knows which records of a ring are kept already.

use std::collections::BTreeMap;

use proto::types::AuditEvent;

use crate::kernel::Place;

/// Stands behind an event in its frame. Its numbers are none that an event of the wire ever has (`audit.proto` reserves them),
/// so that whoever reads one does not see the other.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Mark {
    /// The kernel's number of the ring.
    #[prost(uint32, tag = "1000")]
    pub ring: u32,
    /// Of a record: where it ends in the ring. 0: it is about no record.
    #[prost(uint64, tag = "1001")]
    pub end: u64,
    /// Of a gap: how many records the ring had lost since it was made. 0: it is about no gap.
    #[prost(uint64, tag = "1002")]
    pub lost: u64,
}

impl Mark {
    /// Of a record's event.
    pub fn of_record(place: Place) -> Self {
        Self { ring: place.ring, end: place.end, lost: 0 }
    }

    /// Of the event that tells how many records a ring has lost.
    pub fn of_losses(ring: u32, lost: u64) -> Self {
        Self { ring, end: 0, lost }
    }
}

/// An event that is to be kept with its mark.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// What happened.
    pub event: AuditEvent,
    /// None: it stands for nothing of a ring.
    pub mark: Option<Mark>,
}

impl From<AuditEvent> for Entry {
    fn from(event: AuditEvent) -> Self {
        Self { event, mark: None }
    }
}

/// What can be kept: an event with its mark, or without.
pub trait Keepable {
    /// What happened.
    fn event(&self) -> &AuditEvent;
    /// What it stands for.
    fn mark(&self) -> Option<Mark>;
}

impl Keepable for AuditEvent {
    fn event(&self) -> &AuditEvent {
        self
    }

    fn mark(&self) -> Option<Mark> {
        None
    }
}

impl Keepable for Entry {
    fn event(&self) -> &AuditEvent {
        &self.event
    }

    fn mark(&self) -> Option<Mark> {
        self.mark
    }
}

/// How far each ring is kept, by the kernel's number of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks(BTreeMap<u32, Mark>);

impl Marks {
    /// An event with this mark is kept.
    pub fn note(&mut self, mark: Option<Mark>) {
        if let Some(mark) = mark {
            let known = self.0.entry(mark.ring).or_insert(Mark { end: 0, lost: 0, ..mark });
            known.end = known.end.max(mark.end);
            known.lost = known.lost.max(mark.lost);
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        other.0.values().for_each(|mark| self.note(Some(*mark)));
    }

    /// Where the last record ends that is kept. None: it is not known here.
    pub fn end(&self, ring: u32) -> Option<u64> {
        self.0.get(&ring).map(|mark| mark.end).filter(|end| *end > 0)
    }

    /// How many records the ring had lost when a gap was last kept. None: it is not known here.
    pub fn lost(&self, ring: u32) -> Option<u64> {
        self.0.get(&ring).map(|mark| mark.lost).filter(|lost| *lost > 0)
    }
}
