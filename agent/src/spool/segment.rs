//! One file of the spool.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use prost::Message;
use proto::types::{AuditEvent, EventKind, HostName};
use proto::wire::audit as wire;
use uuid::Uuid;

use super::mark::{Keepable, Mark, Marks};

/// A frame longer than this is no frame: an event is at most some 50 KiB.
const FRAME_MAX_BYTES: u32 = 256 * 1024;

/// Bytes of a frame before its payload.
const HEADER_BYTES: u64 = 8;

/// A run of events of one epoch in one file.
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) epoch: Uuid,
    /// Number of its first event, whether it is there yet or not.
    pub(super) first: u64,
    /// Size of the file.
    pub(super) bytes: u64,
    /// It stands for events that were dropped.
    pub(super) is_gap: bool,
    /// Of its events; None while it is empty.
    pub(super) host: Option<HostName>,
    last: Option<u64>,
    /// What its events said of the kernel's rings when it was opened.
    pub(super) marks: Marks,
    file: File,
}

impl Segment {
    /// An empty one.
    pub(super) fn create(dir: &Path, epoch: Uuid, first: u64) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let path = dir.join(name(first));
        let file = OpenOptions::new().create_new(true).append(true).open(&path)?;
        let marks = Marks::default();
        Ok(Self { path, epoch, first, bytes: 0, is_gap: false, host: None, last: None, marks, file })
    }

    /// One that is there. A frame that a crash cut short, and what follows it, is taken off.
    fn open(path: PathBuf, epoch: Uuid, first: u64) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).open(&path)?;
        let marks = Marks::default();
        let mut segment =
            Self { path, epoch, first, bytes: 0, is_gap: false, host: None, last: None, marks, file };
        let mut frames = Frames::of(&segment.path)?;
        while let Some((event, mark)) = frames.next()? {
            segment.marks.note(mark);
            segment.is_gap =
                event.kind == EventKind::AuditGap && event.gap.is_some_and(|gap| gap.sequences.is_some());
            segment.host = event.id.host;
            segment.last = Some(event.id.sequence);
            segment.bytes = frames.offset;
        }
        let length = segment.file.metadata()?.len();
        if length > segment.bytes {
            let (path, cut) = (segment.path.display(), length - segment.bytes);
            tracing::warn!(%path, cut, "the end of a spool segment was cut short by a crash; taken off");
            segment.file.set_len(segment.bytes)?;
        }
        Ok(segment)
    }

    /// Puts a gap in the place of the segment that begins with `first`, in one step.
    pub(super) fn replace_by_gap(dir: &Path, first: u64, gap: &AuditEvent) -> io::Result<Self> {
        let beside = dir.join("gap.new");
        let path = dir.join(name(first));
        let mut file = File::create(&beside)?;
        file.write_all(&frame(gap, None)?)?;
        file.sync_data()?;
        fs::rename(&beside, &path)?;
        Self::open(path, gap.id.epoch, first)
    }

    /// The number after its last event.
    pub(super) fn next_sequence(&self) -> u64 {
        self.last.map_or(self.first, |last| last + 1)
    }

    /// Appends events up to the one that brings it to `max_bytes`, in one write. Returns how many; if the disk refuses, none.
    pub(super) fn append<E: Keepable>(&mut self, events: &[E], max_bytes: u64) -> io::Result<usize> {
        let mut frames = Vec::new();
        let mut count = 0;
        for event in events {
            let (event, mark) = (event.event(), event.mark());
            let expected = self.next_sequence() + count as u64;
            if event.id.sequence != expected || event.id.epoch != self.epoch {
                return Err(io::Error::other(format!(
                    "event {} is not number {expected} of {}",
                    event.id, self.epoch
                )));
            }
            frames.extend(frame(event, mark)?);
            count += 1;
            if self.bytes + frames.len() as u64 >= max_bytes {
                break;
            }
        }
        let last = events.get(..count).and_then(<[_]>::last).map(Keepable::event);
        let Some(last) = last else { return Ok(0) };
        if let Err(error) = self.file.write_all(&frames) {
            // What was written of it must not stand before the next one.
            self.file.set_len(self.bytes)?;
            return Err(error);
        }
        self.bytes += frames.len() as u64;
        self.last = Some(last.id.sequence);
        self.host.clone_from(&last.id.host);
        Ok(count)
    }

    /// Events with numbers above `after`, at most `max` and about `max_bytes` of them.
    pub(super) fn read(&self, after: u64, max: usize, max_bytes: u64) -> io::Result<Vec<AuditEvent>> {
        let mut events = Vec::new();
        if self.next_sequence() <= after + 1 {
            return Ok(events);
        }
        let mut frames = Frames::of(&self.path)?;
        let mut bytes = 0;
        while events.len() < max && bytes < max_bytes {
            let start = frames.offset;
            let Some((event, _)) = frames.next()? else { break };
            if event.id.sequence > after {
                bytes += frames.offset - start;
                events.push(event);
            }
        }
        Ok(events)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    pub(super) fn delete(&self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

/// Numbers in file names have this many digits, so that they sort.
fn name(first: u64) -> String {
    format!("{first:020}.seg")
}

/// The segments of an epoch's directory.
pub(super) fn open_all(dir: &Path, epoch: Uuid) -> io::Result<Vec<Segment>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let first = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".seg")?.parse().ok());
        match first {
            Some(first) => segments.push(Segment::open(path, epoch, first)?),
            // What `replace_by_gap` had not finished.
            None => fs::remove_file(path)?,
        }
    }
    Ok(segments)
}

fn frame(event: &AuditEvent, mark: Option<Mark>) -> io::Result<Vec<u8>> {
    let mut payload = wire::AuditEvent::from(event.clone()).encode_to_vec();
    payload.extend(mark.map(|mark| mark.encode_to_vec()).unwrap_or_default());
    let length = u32::try_from(payload.len()).ok().filter(|length| *length <= FRAME_MAX_BYTES);
    let length =
        length.ok_or_else(|| io::Error::other(format!("event {} has {} bytes", event.id, payload.len())))?;
    let mut frame = Vec::with_capacity(payload.len() + 8);
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
    frame.extend_from_slice(&payload);
    Ok(frame)
}

/// Reads frame after frame, up to the first that is not whole.
struct Frames {
    file: BufReader<File>,
    /// Behind the last whole frame.
    offset: u64,
}

impl Frames {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self { file: BufReader::new(File::open(path)?), offset: 0 })
    }

    fn next(&mut self) -> io::Result<Option<(AuditEvent, Option<Mark>)>> {
        let (mut length, mut checksum) = ([0; 4], [0; 4]);
        if !self.fill(&mut length)? || !self.fill(&mut checksum)? {
            return Ok(None);
        }
        let length = u32::from_le_bytes(length);
        if length > FRAME_MAX_BYTES {
            return Ok(None);
        }
        let mut payload = vec![0; length as usize];
        if !self.fill(&mut payload)? || crc32fast::hash(&payload) != u32::from_le_bytes(checksum) {
            return Ok(None);
        }
        let event = wire::AuditEvent::decode(payload.as_slice()).ok().and_then(|wire| wire.try_into().ok());
        if event.is_some() {
            self.offset += HEADER_BYTES + u64::from(length);
        }
        let mark = Mark::decode(payload.as_slice()).ok().filter(|mark| mark.ring != 0);
        Ok(event.map(|event| (event, mark)))
    }

    /// Returns whether there was enough to fill it.
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        match self.file.read_exact(buffer) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            result => result.map(|()| true),
        }
    }
}
