//! When the canary is asked, and what its answers and records together show.
//!
//! Owns: the rounds. Must not know: how the canary is reached, what a report says besides.
//!
//! Invariants: one round at a time, so that a grant of the canary's never opens what a round without a grant must find shut;
//! what is claimed is no older than [`STALE_NS`].

use agent_ebpf::abi::{Hook, VerdictRecord};

use crate::canary::{self, Ask, Attempt, Passages, Told, Try};
use crate::status::Flaw;

const SECOND_NS: u64 = 1_000_000_000;

/// How often a connection under a grant is tried, while there is nothing wrong with it.
const PASS_EVERY_NS: u64 = 60 * SECOND_NS;
/// How long that grant lasts.
pub(super) const GRANT_NS: u64 = 2 * SECOND_NS;
/// How long records may be under way.
const RECORDS_WITHIN_NS: u64 = 2 * SECOND_NS;
/// A proof that is older than this says nothing any more.
const STALE_NS: u64 = 20 * SECOND_NS;
/// Records of one round that are looked at. A round leaves some ten.
const RECORDS_MAX: usize = 256;

/// The canary, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// What must be protected.
    pub(super) port: u16,
    /// What must not.
    free_port: u16,
    /// Id of its cgroup, or why it has none.
    pub(super) cgroup: Result<u64, String>,
}

/// What follows from something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing.
    Nothing,
    /// The canary is there, elsewhere, or gone: what is protected changes.
    Moved,
    /// A round ended: there may be something else to report.
    Concluded,
}

/// The rounds so far.
#[derive(Debug, Default)]
pub(super) struct Proving {
    place: Option<Place>,
    round: Option<Round>,
    /// Records of the round.
    records: Vec<VerdictRecord>,
    /// What the last round without a grant showed, and when.
    shut: Option<(Vec<Flaw>, u64)>,
    /// What the last one with a grant showed.
    pass: Vec<Flaw>,
    /// When the next one of those is due.
    pass_due_boot_ns: u64,
    /// The last question.
    last: Option<Ask>,
    /// The canary went away.
    gone: Option<String>,
}

#[derive(Debug)]
struct Round {
    ask: Ask,
    answer: Option<Answer>,
    answered_boot_ns: u64,
}

#[derive(Debug)]
enum Answer {
    Tried(Vec<Try>),
    Passed(Passages),
}

impl Proving {
    /// Where the canary is; None: there is none now.
    pub(super) fn place(&self) -> Option<&Place> {
        self.place.as_ref()
    }

    /// When the canary's grant ends; None: it has none now.
    pub(super) fn granted_until_boot_ns(&self) -> Option<u64> {
        match self.round.as_ref()?.ask {
            Ask::Pass { deadline_boot_ns } => Some(deadline_boot_ns),
            Ask::Deny => None,
        }
    }

    /// Begins a round, if none is under way. None: one is, or there is nobody to ask.
    pub(super) fn begin(&mut self, now_boot_ns: u64) -> Option<Ask> {
        let place = self.place.as_ref().filter(|_| self.round.is_none())?;
        // Without a cgroup of its own it belongs to whom the agent does, and is granted nothing.
        let is_due = place.cgroup.is_ok() && now_boot_ns >= self.pass_due_boot_ns;
        // Never two in a row: that the gate is shut is proven in between.
        let pass = is_due && self.last == Some(Ask::Deny);
        let ask = match pass {
            true => {
                self.pass_due_boot_ns = now_boot_ns.saturating_add(PASS_EVERY_NS);
                Ask::Pass { deadline_boot_ns: now_boot_ns.saturating_add(GRANT_NS) }
            }
            false => Ask::Deny,
        };
        self.last = Some(ask);
        self.records.clear();
        self.round = Some(Round { ask, answer: None, answered_boot_ns: 0 });
        Some(ask)
    }

    /// A record of the kernel. The canary's own are kept for the round.
    pub(super) fn see(&mut self, record: &VerdictRecord) {
        // The tamper tier's helper has its own proofs.
        let is_canarys = record.resource == canary::NUMBER && record.hook != Hook::Tamper as u8;
        if is_canarys && self.round.is_some() && self.records.len() < RECORDS_MAX {
            self.records.push(*record);
        }
    }

    /// The canary said something.
    pub(super) fn hear(&mut self, told: Told, now_boot_ns: u64) -> Step {
        let answer = match told {
            Told::Ready { port, free_port, cgroup } => {
                self.place = Some(Place { port, free_port, cgroup });
                self.gone = None;
                return Step::Moved;
            }
            Told::Gone(why) => {
                (self.place, self.round) = (None, None);
                self.gone = Some(why);
                return Step::Moved;
            }
            Told::Tried(tries) => Answer::Tried(tries),
            Told::Passed(passages) => Answer::Passed(passages),
        };
        if let Some(round) = &mut self.round {
            (round.answer, round.answered_boot_ns) = (Some(answer), now_boot_ns);
        }
        self.conclude(now_boot_ns, |_| true)
    }

    /// Ends the round, if it was answered and its records are there, or late. `is_free`: nobody protects this port of the
    /// canary's address.
    pub(super) fn conclude(&mut self, now_boot_ns: u64, is_free: impl Fn(u16) -> bool) -> Step {
        let (Some(round), Some(place)) = (&self.round, &self.place) else { return Step::Nothing };
        let late = now_boot_ns >= round.answered_boot_ns.saturating_add(RECORDS_WITHIN_NS);
        let flaws = match (&round.answer, round.ask) {
            (Some(Answer::Tried(tries)), Ask::Deny) => {
                let counts = |tried: &&Try| {
                    tried.attempt != Attempt::Free || tried.errno == 0 || is_free(place.free_port)
                };
                let tries: Vec<Try> = tries.iter().filter(counts).copied().collect();
                canary::judge_tries(&tries, &self.records)
            }
            (Some(Answer::Passed(passages)), Ask::Pass { deadline_boot_ns }) => {
                canary::judge_passages(passages, deadline_boot_ns, &self.records)
            }
            (Some(_), _) => vec![Flaw::lesser("the canary answers another question".to_owned())],
            (None, _) => return Step::Nothing,
        };
        // What is missing may only be late.
        if !flaws.is_empty() && !late {
            return Step::Nothing;
        }
        match round.ask {
            Ask::Deny => self.shut = Some((flaws, now_boot_ns)),
            Ask::Pass { .. } => {
                if !flaws.is_empty() {
                    self.pass_due_boot_ns = now_boot_ns;
                }
                self.pass = flaws;
            }
        }
        self.round = None;
        Step::Concluded
    }

    /// What the last rounds showed. None: nothing is proven, or not lately.
    pub(super) fn flaws(&self, now_boot_ns: u64) -> Option<Vec<Flaw>> {
        let (shut, proven_boot_ns) = self.shut.as_ref()?;
        let mut flaws = [shut.as_slice(), &self.pass].concat();
        let age_ns = now_boot_ns.saturating_sub(*proven_boot_ns);
        if age_ns > STALE_NS {
            let why = self.gone.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
            flaws.push(Flaw::grave(format!("nothing was proven for {} s{why}", age_ns / SECOND_NS)));
        }
        if let Some(Err(why)) = self.place.as_ref().map(|place| &place.cgroup) {
            flaws.push(Flaw::lesser(format!(
                "the canary has no cgroup of its own, and proves no grant: {why}"
            )));
        }
        Some(flaws)
    }
}

#[cfg(test)]
mod tests {
    use agent_ebpf::verdict::Verdict;
    use nix::errno::Errno;

    use super::*;
    use crate::canary::Passage;

    fn ready(cgroup: Result<u64, String>) -> Told {
        Told::Ready { port: 1, free_port: 2, cgroup }
    }

    fn denied(cookie: u64) -> VerdictRecord {
        VerdictRecord {
            socket_cookie: cookie,
            resource: canary::NUMBER,
            hook: Hook::Connect4 as u8,
            verdict: Verdict::Deny as u8,
            ..VerdictRecord::EMPTY
        }
    }

    fn tried() -> Told {
        Told::Tried(vec![Try { attempt: Attempt::Tcp4, cookie: 7, errno: Errno::EPERM as i32 }])
    }

    fn texts(proving: &Proving, now: u64) -> Option<Vec<String>> {
        proving.flaws(now).map(|flaws| flaws.into_iter().map(|flaw| flaw.text).collect())
    }

    #[test]
    fn a_round_ends_with_its_records() {
        let mut proving = Proving::default();
        assert_eq!(proving.begin(0), None, "nobody is there");
        assert_eq!(proving.hear(ready(Ok(9)), 0), Step::Moved);
        assert_eq!((proving.begin(0), proving.begin(0)), (Some(Ask::Deny), None));
        assert_eq!(proving.hear(tried(), 5), Step::Nothing, "the record is under way");
        assert_eq!(texts(&proving, 5), None);
        proving.see(&denied(7));
        assert_eq!(proving.conclude(6, |_| true), Step::Concluded);
        assert_eq!(texts(&proving, 6), Some(vec![]));
        // Next is one with a grant. It is answered as none should be.
        assert_eq!(proving.begin(10), Some(Ask::Pass { deadline_boot_ns: 10 + GRANT_NS }));
        assert_eq!(proving.granted_until_boot_ns(), Some(10 + GRANT_NS));
        assert_eq!(proving.hear(Told::Passed(Passages::default()), 20), Step::Nothing);
        assert_eq!(proving.conclude(20 + RECORDS_WITHIN_NS, |_| true), Step::Concluded);
        assert!(texts(&proving, 30).is_some_and(|texts| texts.len() >= 2));
        assert_eq!((proving.granted_until_boot_ns(), proving.begin(40)), (None, Some(Ask::Deny)));
        // So there is another one, as soon as the gate was found shut once more.
        proving.hear(Told::Tried(Vec::new()), 50);
        assert_eq!(proving.begin(u64::MAX), Some(Ask::Pass { deadline_boot_ns: u64::MAX }));
    }

    #[test]
    fn a_good_grant_is_tried_again_in_a_minute() {
        let mut proving = Proving::default();
        proving.hear(ready(Ok(9)), 0);
        let shut = |proving: &mut Proving, now| {
            assert_eq!(proving.begin(now), Some(Ask::Deny));
            assert_eq!(proving.hear(Told::Tried(Vec::new()), now), Step::Concluded);
        };
        shut(&mut proving, 0);
        assert_eq!(proving.begin(0), Some(Ask::Pass { deadline_boot_ns: GRANT_NS }));
        let passage = Passage { cookie: 7, errno: 0, last_arrival_boot_ns: 1, closed: true, refused: false };
        proving.see(&VerdictRecord { verdict: Verdict::Allow as u8, ..denied(7) });
        let passages = Passages { tcp: passage, udp: passage };
        assert_eq!(proving.hear(Told::Passed(passages), 1), Step::Concluded);
        shut(&mut proving, 2);
        shut(&mut proving, PASS_EVERY_NS - 1);
        assert!(matches!(proving.begin(PASS_EVERY_NS), Some(Ask::Pass { .. })));
    }

    #[test]
    fn a_record_that_does_not_come_is_missed() {
        let mut proving = Proving::default();
        proving.hear(ready(Ok(9)), 0);
        proving.begin(0);
        proving.see(&denied(8));
        proving.hear(tried(), 5);
        assert_eq!(proving.conclude(5 + RECORDS_WITHIN_NS - 1, |_| true), Step::Nothing);
        assert_eq!(proving.conclude(5 + RECORDS_WITHIN_NS, |_| true), Step::Concluded);
        let silent = "connect4 left no record of a denial (tcp4)".to_owned();
        assert_eq!(texts(&proving, 9), Some(vec![silent]));
    }

    #[test]
    fn a_proof_does_not_last() {
        let mut proving = Proving::default();
        proving.hear(ready(Err("read-only".to_owned())), 0);
        proving.begin(0);
        proving.see(&denied(7));
        proving.hear(tried(), 0);
        let outside = "the canary has no cgroup of its own, and proves no grant: read-only".to_owned();
        assert_eq!(texts(&proving, STALE_NS), Some(vec![outside]));
        assert_eq!(proving.begin(1), Some(Ask::Deny), "no grant without a cgroup");
        proving.hear(Told::Gone("killed".to_owned()), 2);
        assert_eq!(proving.place(), None);
        let late = texts(&proving, STALE_NS + SECOND_NS);
        assert_eq!(late, Some(vec!["nothing was proven for 21 s: killed".to_owned()]));
    }

    #[test]
    fn a_port_that_somebody_protects_is_not_free() {
        let mut proving = Proving::default();
        proving.hear(ready(Ok(9)), 0);
        proving.begin(0);
        let refused = Try { attempt: Attempt::Free, cookie: 7, errno: Errno::EPERM as i32 };
        proving.hear(Told::Tried(vec![refused]), 0);
        assert_eq!(proving.conclude(1, |port| port != 2), Step::Concluded);
        assert_eq!(texts(&proving, 1), Some(vec![]));
    }
}
