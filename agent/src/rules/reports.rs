//! Reports, and their answers: how the agent knows when the control plane was there.
//!
//! Owns: which moment an answer stands for. Must not know: the network, clocks.
//!
//! Invariant: an answer never stands for a moment after its report was sent.

use std::collections::VecDeque;

/// The reports of a session that were sent and may still be answered.
#[derive(Debug, Default)]
pub struct Reports {
    sent: u64,
    /// Number and when it was sent, on the boot clock; the newest last.
    waiting: VecDeque<(u64, u64)>,
}

impl Reports {
    /// More than are sent while a connection can be silent and live.
    const WAITING_MAX: usize = 64;

    /// The number of the next one.
    pub fn next(&mut self, now_boot_ns: u64) -> u64 {
        self.sent += 1;
        if self.waiting.len() >= Self::WAITING_MAX {
            self.waiting.pop_front();
        }
        self.waiting.push_back((self.sent, now_boot_ns));
        self.sent
    }

    /// When the report of this number was sent; None: it is not one that waits.
    pub fn answered(&mut self, number: u64) -> Option<u64> {
        let at = self.waiting.iter().position(|(sent, _)| *sent == number)?;
        self.waiting.drain(..=at).next_back().map(|(_, boot_ns)| boot_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_when_its_report_was_sent() {
        let mut reports = Reports::default();
        assert_eq!([reports.next(10), reports.next(20), reports.next(30)], [1, 2, 3]);
        assert_eq!(reports.answered(2), Some(20));
        assert_eq!(reports.answered(1), None, "an older one says nothing new");
        assert_eq!(reports.answered(9), None, "it was not sent");
        assert_eq!(reports.answered(3), Some(30));
        (0..1000).for_each(|at| assert_ne!(reports.next(at), 0));
        assert_eq!(reports.waiting.len(), Reports::WAITING_MAX);
    }
}
