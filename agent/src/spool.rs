//! A bounded queue on disk for events that are not acknowledged yet.
//!
//! Owns: segments on disk. Must not know: what events say; which of them make room is `rules/queue`'s.
//!
//! Layout: a directory for each epoch (boot), in it segments named by the first sequence number they may hold, in each a
//! run of frames: length and CRC-32 of the payload (little endian, 4 bytes each), then the payload, an `AuditEvent` of the
//! wire with a [`Mark`] behind it. The newest segment stays even when it is empty: its name says where numbering goes on.
//!
//! Invariants: what was appended is read again after a crash of this process; a frame that was cut by a crash of the machine
//! is taken off; when the bound is reached the oldest segment makes room, and a gap event takes the number of the last
//! event lost, so that whoever reads the sequence sees what is missing and why.

mod mark;
mod segment;

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use proto::types::{AuditEvent, EventId, EventKind, Gap, Timestamp};
use uuid::Uuid;

use crate::rules::queue::{self, Dropped, Run};
pub use mark::{Entry, Keepable, Mark, Marks};
use segment::Segment;

/// How large a segment grows before the next one begins. The bound is kept in steps of this.
const SEGMENT_BYTES: u64 = 1024 * 1024;

/// The most that one batch may take, in bytes on disk.
const BATCH_BYTES: u64 = 256 * 1024;

/// Something that the disk refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} the spool at {path}", path = path.display())]
pub struct SpoolError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl SpoolError {
    fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { action, path, source }
    }
}

/// The queue.
pub struct Spool {
    dir: PathBuf,
    epoch: Uuid,
    max_bytes: u64,
    /// Of this epoch, whatever became of the events meanwhile.
    marks: Marks,
    /// Oldest first; those of earlier epochs before those of this one; never empty, and the last one is appended to.
    segments: VecDeque<Segment>,
}

/// How far somebody has read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The last event read, as (epoch, sequence); None: start with the oldest.
    pub after: Option<(Uuid, u64)>,
}

impl Spool {
    /// Opens, or makes, the queue in `dir`. `epoch` is this boot; `max_bytes` bounds the disk it takes.
    pub fn open(dir: &Path, epoch: Uuid, max_bytes: u64) -> Result<Self, SpoolError> {
        let here = dir.join(epoch.to_string());
        fs::create_dir_all(&here).map_err(SpoolError::at("make", &here))?;
        let mut segments = Vec::new();
        for entry in fs::read_dir(dir).map_err(SpoolError::at("read", dir))? {
            let path = entry.map_err(SpoolError::at("read", dir))?.path();
            let Some(epoch) = path.file_name().and_then(|name| Uuid::try_parse(name.to_str()?).ok()) else {
                tracing::warn!(path = %path.display(), "something in the spool is not ours; left alone");
                continue;
            };
            segments.extend(segment::open_all(&path, epoch).map_err(SpoolError::at("read", &path))?);
        }
        // Earlier boots first. Among them the order does not matter: no reader compares events of different boots.
        segments.sort_by_key(|segment| (segment.epoch == epoch, segment.epoch, segment.first));
        let mut marks = Marks::default();
        segments
            .iter()
            .filter(|segment| segment.epoch == epoch)
            .for_each(|segment| marks.add(&segment.marks));
        let mut spool = Self { dir: dir.to_owned(), epoch, max_bytes, marks, segments: segments.into() };
        if spool.segments.back().is_none_or(|newest| newest.epoch != epoch) {
            spool.begin_segment(1)?;
        }
        Ok(spool)
    }

    /// The number that the next event of this boot gets.
    pub fn next_sequence(&self) -> u64 {
        self.segments.back().map_or(1, Segment::next_sequence)
    }

    /// How far the kernel's rings are kept, as far as that is known here: at least what events say that are not acknowledged.
    pub fn marks(&self) -> &Marks {
        &self.marks
    }

    /// Appends events of this boot, numbered from [`Spool::next_sequence`] on. `now` dates the gap, should the oldest have to
    /// make room.
    pub fn append<E: Keepable>(&mut self, events: &[E], now: Timestamp) -> Result<(), SpoolError> {
        let mut rest = events;
        while let Some(event) = rest.first().map(Keepable::event) {
            if self.newest().bytes >= SEGMENT_BYTES {
                self.begin_segment(event.id.sequence)?;
                self.make_room(now)?;
            }
            let newest = self.newest();
            let count =
                newest.append(rest, SEGMENT_BYTES).map_err(SpoolError::at("append to", &newest.path))?;
            let (taken, left) = rest.split_at_checked(count).unwrap_or((rest, &[]));
            taken.iter().for_each(|event| self.marks.note(event.mark()));
            rest = left;
        }
        Ok(())
    }

    /// The next events after the cursor, of one epoch, at most `max`; empty: none yet.
    pub fn read(&self, cursor: Cursor, max: usize) -> Result<Vec<AuditEvent>, SpoolError> {
        let start = queue::start(&self.runs(), cursor.after);
        let after = |segment: &Segment| match cursor.after {
            Some((epoch, sequence)) if epoch == segment.epoch => sequence,
            _ => 0,
        };
        for segment in self.segments.iter().skip(start) {
            let events = segment.read(after(segment), max, BATCH_BYTES);
            let events = events.map_err(SpoolError::at("read", &segment.path))?;
            if !events.is_empty() {
                return Ok(events);
            }
        }
        Ok(Vec::new())
    }

    /// Forgets everything of `epoch` up to and including `sequence`.
    pub fn acknowledge(&mut self, epoch: Uuid, sequence: u64) -> Result<(), SpoolError> {
        if queue::is_all(&self.runs(), epoch, sequence) {
            let next = self.next_sequence();
            self.begin_segment(next)?;
        }
        for index in queue::done(&self.runs(), epoch, sequence).into_iter().rev() {
            if let Some(segment) = self.segments.remove(index) {
                segment.delete().map_err(SpoolError::at("shorten", &segment.path))?;
            }
        }
        if epoch != self.epoch && self.segments.iter().all(|segment| segment.epoch != epoch) {
            let dir = self.dir.join(epoch.to_string());
            fs::remove_dir(&dir).map_err(SpoolError::at("shorten", &dir))?;
        }
        Ok(())
    }

    /// Asks the disk to keep what was appended, also through a loss of power.
    pub fn sync(&mut self) -> Result<(), SpoolError> {
        let newest = self.newest();
        newest.sync().map_err(SpoolError::at("sync", &newest.path))
    }

    fn newest(&mut self) -> &mut Segment {
        // `open` leaves at least one segment, and only ones before the last are ever removed.
        self.segments.back_mut().expect("the spool has a newest segment")
    }

    fn runs(&self) -> Vec<Run> {
        let run = |segment: &Segment| Run {
            epoch: segment.epoch,
            first: segment.first,
            next: segment.next_sequence(),
            bytes: segment.bytes,
            is_gap: segment.is_gap,
        };
        self.segments.iter().map(run).collect()
    }

    fn begin_segment(&mut self, first: u64) -> Result<(), SpoolError> {
        let dir = self.dir.join(self.epoch.to_string());
        let segment = Segment::create(&dir, self.epoch, first).map_err(SpoolError::at("extend", &dir))?;
        self.segments.push_back(segment);
        Ok(())
    }

    /// Drops the oldest segments until the rest fits, each for one gap event.
    fn make_room(&mut self, now: Timestamp) -> Result<(), SpoolError> {
        while let Some(dropped) = queue::to_drop(&self.runs(), self.max_bytes) {
            self.drop_segment(dropped, now)?;
        }
        Ok(())
    }

    fn drop_segment(&mut self, dropped: Dropped, now: Timestamp) -> Result<(), SpoolError> {
        let Dropped { index, place, first, last } = dropped;
        let Some(dropped) = self.segments.get(index) else { return Ok(()) };
        let epoch = dropped.epoch;
        let host = dropped.host.clone();
        tracing::error!(%epoch, first, last, "the spool is full: events are dropped, with a gap event in their place");
        let event = AuditEvent {
            gap: Some(Gap {
                place: "spool".to_owned(),
                lost: last - first + 1,
                sequences: Some((first, last)),
            }),
            ..AuditEvent::new(EventId { host, epoch, sequence: last }, EventKind::AuditGap, now)
        };
        let dir = self.dir.join(epoch.to_string());
        let gap = Segment::replace_by_gap(&dir, first, &event).map_err(SpoolError::at("shorten", &dir))?;
        if place != index
            && let Some(segment) = self.segments.remove(index)
        {
            segment.delete().map_err(SpoolError::at("shorten", &segment.path))?;
        }
        if let Some(place) = self.segments.get_mut(place) {
            *place = gap;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
