//! The queue on a real disk.

use std::io::Write as _;

use proto::types::HostName;
use tempfile::TempDir;

use super::*;

const PLENTY: u64 = 1 << 30;

fn now() -> Timestamp {
    Timestamp::from_unix_ms(1_795_000_000_000).expect("in range")
}

fn host() -> Option<HostName> {
    "db-7".parse().ok()
}

fn event(epoch: Uuid, sequence: u64) -> AuditEvent {
    let id = EventId { host: host(), epoch, sequence };
    AuditEvent { comment: format!("event {sequence}"), ..AuditEvent::new(id, EventKind::AgentStarted, now()) }
}

/// An event that takes about `bytes` on disk.
fn large(epoch: Uuid, sequence: u64, bytes: usize) -> AuditEvent {
    AuditEvent { comment: "x".repeat(bytes), ..event(epoch, sequence) }
}

fn fill(spool: &mut Spool, epoch: Uuid, count: u64, bytes: usize) {
    for _ in 0..count {
        let event = large(epoch, spool.next_sequence(), bytes);
        spool.append(&[event], now()).expect("appended");
    }
}

/// Reads all there is, checking that it comes in order and without an unexplained hole; returns the numbers.
fn drain(spool: &Spool) -> Vec<(Uuid, u64)> {
    let mut cursor = Cursor::default();
    let mut numbers: Vec<(Uuid, u64)> = Vec::new();
    loop {
        let events = spool.read(cursor, 7).expect("read");
        let Some(last) = events.last() else { return numbers };
        cursor.after = Some((last.id.epoch, last.id.sequence));
        for event in &events {
            let previous =
                numbers.last().filter(|(epoch, _)| *epoch == event.id.epoch).map(|(_, number)| *number);
            if let Some(previous) = previous.filter(|previous| previous + 1 != event.id.sequence) {
                let gap = event.gap.as_ref().and_then(|gap| gap.sequences);
                assert_eq!(gap, Some((previous + 1, event.id.sequence)), "an unexplained hole");
            }
            numbers.push((event.id.epoch, event.id.sequence));
        }
    }
}

fn dir() -> TempDir {
    tempfile::tempdir().expect("temporary directory")
}

#[test]
fn what_was_appended_is_there_after_a_restart() {
    let (dir, epoch) = (dir(), Uuid::now_v7());
    let mut spool = Spool::open(dir.path(), epoch, PLENTY).expect("opened");
    assert_eq!(spool.next_sequence(), 1);
    let events: Vec<AuditEvent> = (1..=20).map(|sequence| event(epoch, sequence)).collect();
    spool.append(&events, now()).expect("appended");
    drop(spool);
    let spool = Spool::open(dir.path(), epoch, PLENTY).expect("opened");
    assert_eq!(spool.next_sequence(), 21);
    assert_eq!(drain(&spool).len(), 20);
    assert_eq!(spool.read(Cursor { after: Some((epoch, 20)) }, 7).expect("read"), []);
    assert_eq!(spool.read(Cursor { after: Some((epoch, 18)) }, 7).expect("read"), events[18..]);
}

#[test]
fn numbering_goes_on_after_everything_was_acknowledged() {
    let (dir, epoch) = (dir(), Uuid::now_v7());
    let mut spool = Spool::open(dir.path(), epoch, PLENTY).expect("opened");
    fill(&mut spool, epoch, 5, 10);
    spool.acknowledge(epoch, 3).expect("acknowledged");
    assert_eq!(spool.next_sequence(), 6);
    spool.acknowledge(epoch, 5).expect("acknowledged");
    assert_eq!(drain(&spool), []);
    drop(spool);
    let mut spool = Spool::open(dir.path(), epoch, PLENTY).expect("opened");
    assert_eq!(spool.next_sequence(), 6);
    fill(&mut spool, epoch, 1, 10);
    assert_eq!(drain(&spool), [(epoch, 6)]);
}

#[test]
fn events_of_an_earlier_boot_come_first_and_go_when_acknowledged() {
    let (dir, before, after) = (dir(), Uuid::from_u128(9), Uuid::from_u128(1));
    let mut spool = Spool::open(dir.path(), before, PLENTY).expect("opened");
    fill(&mut spool, before, 2, 10);
    drop(spool);
    let mut spool = Spool::open(dir.path(), after, PLENTY).expect("opened");
    fill(&mut spool, after, 1, 10);
    assert_eq!(drain(&spool), [(before, 1), (before, 2), (after, 1)]);
    spool.acknowledge(before, 2).expect("acknowledged");
    assert_eq!(drain(&spool), [(after, 1)]);
    assert!(!dir.path().join(before.to_string()).exists());
}

#[test]
fn the_oldest_make_room_with_a_gap_in_their_place() {
    let (dir, epoch) = (dir(), Uuid::now_v7());
    let mut spool = Spool::open(dir.path(), epoch, 3 * SEGMENT_BYTES).expect("opened");
    fill(&mut spool, epoch, 3000, 4000);
    let numbers = drain(&spool);
    let first = spool.read(Cursor::default(), 1).expect("read").remove(0);
    let (from, to) = first.gap.and_then(|gap| gap.sequences).expect("begins with a gap");
    assert_eq!((from, numbers[0].1, numbers.last().expect("some").1), (1, to, 3000));
    let size: u64 = spool.segments.iter().map(|segment| segment.bytes).sum();
    assert!(size <= 4 * SEGMENT_BYTES, "{size}");
    drop(spool);
    let mut spool = Spool::open(dir.path(), epoch, 3 * SEGMENT_BYTES).expect("opened");
    assert_eq!(drain(&spool), numbers);
    spool.acknowledge(epoch, 3000).expect("acknowledged");
    assert_eq!(drain(&spool), []);
}

#[test]
fn a_cut_frame_is_taken_off() {
    let (dir, epoch) = (dir(), Uuid::now_v7());
    let mut spool = Spool::open(dir.path(), epoch, PLENTY).expect("opened");
    fill(&mut spool, epoch, 3, 10);
    let path = spool.segments[0].path.clone();
    drop(spool);
    let whole = fs::read(&path).expect("read");
    for cut in [1, 5, 20] {
        fs::write(&path, &whole[..whole.len() - cut]).expect("written");
        let mut spool = Spool::open(dir.path(), epoch, PLENTY).expect("opened");
        assert_eq!(spool.next_sequence(), 3, "{cut} bytes cut");
        fill(&mut spool, epoch, 1, 10);
        assert_eq!(drain(&spool).len(), 3);
    }
    let mut file = fs::OpenOptions::new().append(true).open(&path).expect("opened");
    file.write_all(&[0xff; 100]).expect("written");
    assert_eq!(Spool::open(dir.path(), epoch, PLENTY).expect("opened").next_sequence(), 4);
}

#[test]
fn a_wrong_number_is_refused() {
    let (dir, epoch) = (dir(), Uuid::now_v7());
    let mut spool = Spool::open(dir.path(), epoch, PLENTY).expect("opened");
    assert!(spool.append(&[event(epoch, 2)], now()).is_err());
    assert!(spool.append(&[event(Uuid::now_v7(), 1)], now()).is_err());
    assert_eq!(spool.next_sequence(), 1);
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
        let (dir, epoch) = (dir(), Uuid::now_v7());
        let epoch_dir = dir.path().join(epoch.to_string());
        fs::create_dir_all(&epoch_dir).expect("made");
        fs::write(epoch_dir.join("00000000000000000001.seg"), bytes).expect("written");
        Spool::open(dir.path(), epoch, PLENTY).expect("opened");
    }
}

fn entry(epoch: Uuid, sequence: u64, mark: Mark) -> Entry {
    Entry { event: event(epoch, sequence), mark: Some(mark) }
}

/// An agent that ends between the disk and the ring leaves records in the ring that are kept already.
#[test]
fn how_far_a_ring_is_kept_is_known_after_a_restart() {
    let (dir, epoch) = (dir(), Uuid::now_v7());
    let mut spool = Spool::open(dir.path(), epoch, PLENTY).expect("opened");
    let record = |ring, end| Mark { ring, end, lost: 0 };
    let entries =
        [entry(epoch, 1, record(7, 200)), entry(epoch, 2, record(8, 50)), entry(epoch, 3, record(7, 400))];
    spool.append(&entries, now()).expect("appended");
    spool
        .append(&[Entry::from(event(epoch, 4)), entry(epoch, 5, Mark::of_losses(8, 9))], now())
        .expect("appended");
    let check = |marks: &Marks| {
        assert_eq!([7, 8, 9].map(|ring| marks.end(ring)), [Some(400), Some(50), None]);
        assert_eq!([7, 8].map(|ring| marks.lost(ring)), [None, Some(9)]);
    };
    check(spool.marks());
    drop(spool);
    let spool = Spool::open(dir.path(), epoch, PLENTY).expect("opened");
    check(spool.marks());
    // What is sent are the events alone.
    let events = spool.read(Cursor::default(), 9).expect("read");
    assert_eq!(events, (1..=5).map(|sequence| event(epoch, sequence)).collect::<Vec<_>>());
    // Another boot has other rings.
    let another = Spool::open(dir.path(), Uuid::now_v7(), PLENTY).expect("opened");
    assert_eq!(*another.marks(), Marks::default());
}

/// What was cut is not kept, and so its mark does not count.
#[test]
fn the_mark_of_a_frame_that_was_cut_does_not_count() {
    let (dir, epoch) = (dir(), Uuid::now_v7());
    let mut spool = Spool::open(dir.path(), epoch, PLENTY).expect("opened");
    let record = |end| Mark { ring: 7, end, lost: 0 };
    spool.append(&[entry(epoch, 1, record(200)), entry(epoch, 2, record(400))], now()).expect("appended");
    let path = spool.newest().path.clone();
    drop(spool);
    let file = fs::OpenOptions::new().write(true).open(&path).expect("opened");
    file.set_len(file.metadata().expect("it is there").len() - 1).expect("cut");
    let spool = Spool::open(dir.path(), epoch, PLENTY).expect("opened");
    assert_eq!((spool.next_sequence(), spool.marks().end(7)), (2, Some(200)));
}
