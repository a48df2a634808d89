//! A bounded queue of numbered events, kept in runs: which runs are done with, which make room, and what stands in their place.
//!
//! Owns: the bound, the numbers of what is dropped, and what is sent next. Must not know: disks, sessions, what events say.
//!
//! Invariant: a number that is dropped is in exactly one gap, which is read where its events would have been.

use uuid::Uuid;

/// Consecutive events of one epoch, kept together. Oldest first; those of earlier epochs before those of this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Which boot they are of.
    pub epoch: Uuid,
    /// Number of its first event, whether it is there yet or not.
    pub first: u64,
    /// The first number after it.
    pub next: u64,
    /// How much room it takes.
    pub bytes: u64,
    /// It stands for events that were dropped.
    pub is_gap: bool,
}

/// What makes room: the events of one run, for one gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The run that is dropped, by its place.
    pub index: usize,
    /// The run whose place the gap takes: the same, or the gap just before it, which becomes part of this one.
    pub place: usize,
    /// The first number in the gap.
    pub first: u64,
    /// The last one, which the gap takes itself.
    pub last: u64,
}

/// What is to be dropped first for the runs to take `max_bytes` at most. None: they do; or only the newest, which is written to,
/// and a gap are left.
pub fn to_drop(runs: &[Run], max_bytes: u64) -> Option<Dropped> {
    if runs.iter().map(|run| run.bytes).sum::<u64>() <= max_bytes {
        return None;
    }
    let index = runs.iter().position(|run| !run.is_gap)?;
    let dropped = runs.get(index).filter(|_| index + 1 < runs.len())?;
    let before = index.checked_sub(1).and_then(|before| runs.get(before));
    let merged = before.filter(|gap| gap.is_gap && gap.epoch == dropped.epoch);
    Some(Dropped {
        index,
        place: if merged.is_some() { index - 1 } else { index },
        first: merged.unwrap_or(dropped).first,
        last: dropped.next.saturating_sub(1),
    })
}

/// Where to go on reading after the event of this epoch and number; None: with the oldest.
pub fn start(runs: &[Run], after: Option<(Uuid, u64)>) -> usize {
    let Some((epoch, sequence)) = after else { return 0 };
    let past = |run: &Run| run.epoch == epoch && run.next <= sequence.saturating_add(1);
    // A run that is gone was acknowledged or dropped: go on with the oldest that is there.
    runs.iter().rposition(past).map_or(0, |index| (index + 1).min(runs.len().saturating_sub(1)))
}

/// Whether the newest run is done with, too, when everything of `epoch` up to `sequence` is: the next one is to be begun first.
pub fn is_all(runs: &[Run], epoch: Uuid, sequence: u64) -> bool {
    runs.last().is_some_and(|run| is_done(run, epoch, sequence) && run.bytes > 0)
}

/// The runs, by their places, that are done with when everything of `epoch` up to `sequence` is; never the newest.
pub fn done(runs: &[Run], epoch: Uuid, sequence: u64) -> Vec<usize> {
    let older = runs.len().saturating_sub(1);
    let done = runs.iter().take(older).enumerate().filter(|(_, run)| is_done(run, epoch, sequence));
    done.map(|(index, _)| index).collect()
}

fn is_done(run: &Run, epoch: Uuid, sequence: u64) -> bool {
    run.epoch == epoch && run.next <= sequence.saturating_add(1)
}

/// How far events were sent in one session: one batch at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sending {
    /// The last event that was sent; None: none yet.
    after: Option<(Uuid, u64)>,
    /// Whether an answer to it is awaited.
    in_flight: bool,
}

impl Sending {
    /// After which event to go on; None: an answer is awaited.
    pub fn next(&self) -> Option<Option<(Uuid, u64)>> {
        (!self.in_flight).then_some(self.after)
    }

    /// A batch goes out that ends with this event.
    pub fn send(&mut self, epoch: Uuid, sequence: u64) {
        *self = Self { after: Some((epoch, sequence)), in_flight: true };
    }

    /// Everything of `epoch` up to `sequence` is stored. That may be more than was sent in this session: the answers of an earlier
    /// one were lost.
    pub fn acknowledge(&mut self, epoch: Uuid, sequence: u64) {
        if self.after.is_some_and(|(sent, last)| sent == epoch && last <= sequence) {
            *self = Self { after: Some((epoch, sequence)), in_flight: false };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Uuid = Uuid::from_u128(2);
    const BEFORE: Uuid = Uuid::from_u128(1);

    fn run(epoch: Uuid, first: u64, next: u64) -> Run {
        Run { epoch, first, next, bytes: (next - first) * 10, is_gap: false }
    }

    fn gap(epoch: Uuid, first: u64, next: u64) -> Run {
        Run { bytes: 5, is_gap: true, ..run(epoch, first, next) }
    }

    #[track_caller]
    fn check_drop(runs: &[Run], max_bytes: u64, expected: Option<(usize, usize, u64, u64)>) {
        let dropped = to_drop(runs, max_bytes);
        assert_eq!(dropped.map(|drop| (drop.index, drop.place, drop.first, drop.last)), expected);
    }

    #[test]
    fn the_oldest_makes_room() {
        let runs = [run(HERE, 1, 3), run(HERE, 3, 6)];
        check_drop(&runs, 50, None);
        check_drop(&runs, 49, Some((0, 0, 1, 2)));
        check_drop(&[run(HERE, 1, 9)], 10, None);
        check_drop(&[gap(HERE, 1, 3), run(HERE, 3, 6)], 10, None);
        check_drop(&[gap(HERE, 1, 3), run(HERE, 3, 6), run(HERE, 6, 7)], 10, Some((1, 0, 1, 5)));
        // A gap of another boot stays for itself.
        check_drop(&[gap(BEFORE, 1, 3), run(HERE, 1, 6), run(HERE, 6, 7)], 10, Some((1, 1, 1, 5)));
    }

    #[test]
    fn reading_goes_on_behind_what_was_read() {
        let runs = [run(BEFORE, 1, 3), run(HERE, 1, 3), run(HERE, 3, 6)];
        let starts = [None, Some((BEFORE, 2)), Some((HERE, 1)), Some((HERE, 2)), Some((HERE, 5))];
        assert_eq!(starts.map(|after| start(&runs, after)), [0, 1, 0, 2, 2]);
    }

    #[test]
    fn one_batch_is_sent_at_a_time() {
        let mut sending = Sending::default();
        assert_eq!(sending.next(), Some(None));
        sending.send(HERE, 5);
        assert_eq!(sending.next(), None);
        for (epoch, sequence) in [(HERE, 4), (BEFORE, 5)] {
            sending.acknowledge(epoch, sequence);
            assert_eq!(sending.next(), None, "{epoch} {sequence} is not what was sent");
        }
        let mut ahead = sending;
        sending.acknowledge(HERE, 5);
        assert_eq!(sending.next(), Some(Some((HERE, 5))));
        ahead.acknowledge(HERE, 9);
        assert_eq!(ahead.next(), Some(Some((HERE, 9))), "more was stored than is known here");
    }

    #[test]
    fn what_is_acknowledged_is_done_with() {
        let runs = [run(BEFORE, 1, 3), run(HERE, 1, 3), run(HERE, 3, 6)];
        assert_eq!(done(&runs, HERE, 1), [0; 0]);
        assert_eq!(done(&runs, HERE, 2), [1]);
        assert_eq!(done(&runs, HERE, 9), [1], "the newest is begun anew instead");
        assert_eq!(done(&runs, BEFORE, 2), [0]);
        assert_eq!([4, 5].map(|sequence| is_all(&runs, HERE, sequence)), [false, true]);
        assert!(!is_all(&[run(HERE, 6, 6)], HERE, 5), "it is empty");
    }
}
