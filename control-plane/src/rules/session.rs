//! What a session has told its host, and what it has heard of it: which set or change goes out next, and what an answer or a
//! digest means.
//!
//! Owns: what both sides know of each other within one session. Must not know: streams, time limits, storage.
//!
//! Invariant: a change is only ever made of what was sent before in the same session; the first thing that is sent is a whole
//! set; a grant of one run is never sent to a host that does not tell runs apart: it counts as refused there.

use std::collections::{BTreeMap, HashSet};

use proto::types::{
    Applied, Delta, Digest, EndedGrant, GrantId, GrantSet, PROTOCOL_OF_RUNS, Refused, RefusedItem, Timestamp,
};

use super::placement::{Plan, SENT_MAX, Sent, Wanted};

/// What goes out to a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// All that it should enforce.
    Set(GrantSet),
    /// How that differs from what was sent before.
    Delta(Delta),
}

/// What a digest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Nothing: the host is about to hear something else, or a grant is about to end.
    Nothing,
    /// The host holds what it should.
    Right,
    /// It does not.
    Wrong {
        /// In what, for people.
        why: String,
        /// It is to get a whole set, of a new generation. A host that goes on being wrong does not get set after set: it is
        /// shown, and looked at now and then.
        anew: bool,
    },
}

/// One session's knowledge.
#[derive(Debug)]
pub struct Told {
    /// The version of the protocol that is spoken.
    protocol: u32,
    sent: Sent,
    /// What was sent last, for the next delta and to compare digests with.
    last: Option<Plan>,
    /// What the host has refused of what it applied last, and which generation that was.
    applied: (u64, Vec<Refused>),
    /// What the host has ended by itself of what was sent last.
    ended: HashSet<GrantId>,
    /// What was kept from the host of each plan that was sent, by generation.
    withheld: BTreeMap<u64, Vec<GrantId>>,
    /// How many digests in a row were wrong.
    wrong_digests: u32,
}

impl Told {
    /// Nothing yet, in a session of this version of the protocol.
    pub fn new(protocol: u32) -> Self {
        Self {
            protocol,
            sent: Sent::default(),
            last: None,
            applied: (0, Vec::new()),
            ended: HashSet::new(),
            withheld: BTreeMap::new(),
            wrong_digests: 0,
        }
    }

    /// What is to go out at `now`, now that this is what the host should enforce. None: it has been told.
    pub fn tell(&mut self, mut plan: Plan, now: Timestamp) -> Option<News> {
        self.withhold(&mut plan);
        // From the second version on the host understands changes, and speaks of digests.
        let before = self.last.as_ref().filter(|_| self.protocol >= 2);
        if before.is_some_and(|before| before.generation == plan.generation) {
            return None;
        }
        let delta = before.and_then(|before| plan.delta(before, now));
        let (news, left_out) = match delta {
            Some((delta, left_out)) => (News::Delta(delta), left_out),
            None => {
                let (set, left_out) = plan.set(now);
                (News::Set(set), left_out)
            }
        };
        self.sent.note(plan.generation, left_out);
        self.ended.retain(|id| plan.grants.iter().any(|wanted| wanted.id == *id));
        self.last = Some(plan);
        Some(news)
    }

    /// Takes out of the plan what the host would take for something else.
    fn withhold(&mut self, plan: &mut Plan) {
        if self.protocol >= PROTOCOL_OF_RUNS {
            return;
        }
        let (of_runs, sent): (Vec<Wanted>, Vec<Wanted>) = std::mem::take(&mut plan.grants)
            .into_iter()
            .partition(|wanted| wanted.run.is_some() || wanted.action.is_some());
        plan.grants = sent;
        if !of_runs.is_empty() {
            self.withheld.insert(plan.generation, of_runs.iter().map(|wanted| wanted.id).collect());
        }
        // What was sent so long ago has no answer any more.
        while self.withheld.len() > SENT_MAX {
            self.withheld.pop_first();
        }
    }

    /// What the host has said of the set that it applied, and what it would say if it knew of what was kept from it.
    pub fn completed(&mut self, mut applied: Applied) -> Applied {
        self.withheld = self.withheld.split_off(&applied.generation);
        let withheld = self.withheld.get(&applied.generation).into_iter().flatten();
        applied.refused.extend(withheld.map(|id| Refused {
            item: RefusedItem::Grant(*id),
            error: format!(
                "the host's agent speaks version {} of the protocol and cannot tell a run from the subject's other processes: \
                 upgrade it",
                self.protocol
            ),
        }));
        applied
    }

    /// The next thing that goes out is a whole set.
    pub fn tell_anew(&mut self) {
        self.last = None;
    }

    /// What was left out of the set that the host has applied; None: it was not sent, and the answer means nothing.
    pub fn answered(&mut self, generation: u64) -> Option<Vec<GrantId>> {
        self.sent.answered(generation)
    }

    /// The host has applied this, and that is on record.
    pub fn note_applied(&mut self, applied: Applied) {
        self.applied = (applied.generation, applied.refused);
    }

    /// The host has ended these by itself, and that is on record.
    pub fn note_ended(&mut self, ended: &[EndedGrant]) {
        self.ended.extend(ended.iter().map(|ended| ended.grant));
    }

    /// Compares what a host holds with what it should at `now`.
    pub fn judge(&mut self, digest: &Digest, now: Timestamp) -> Judgement {
        let is_current =
            |plan: &&Plan| plan.generation == digest.generation && self.applied.0 == digest.generation;
        let plan = self.last.as_ref().filter(is_current);
        let Some(expected) = plan.and_then(|plan| plan.digest(&self.applied.1, &self.ended, now)) else {
            return Judgement::Nothing;
        };
        if *digest == expected {
            self.wrong_digests = 0;
            return Judgement::Right;
        }
        self.wrong_digests += 1;
        Judgement::Wrong { why: disagreement(digest, &expected), anew: self.wrong_digests.is_power_of_two() }
    }
}

/// In what a host's kernel is not as it should be.
fn disagreement(digest: &Digest, expected: &Digest) -> String {
    let mut parts = Vec::new();
    if digest.pairs != expected.pairs {
        parts.push(format!(
            "{} pairs are let through, and should be {}",
            digest.pairs_count, expected.pairs_count
        ));
    }
    if digest.definitions != expected.definitions {
        let (held, wanted) = (digest.resources_count, expected.resources_count);
        parts.push(format!("{held} resources are protected, and should be {wanted}, or other ones"));
    }
    format!("its kernel does not hold what it should: {}", parts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_unix_ms(1_795_000_000_000).expect("in range")
    }

    fn plan(generation: u64) -> Plan {
        Plan { generation, resources: [].into(), subjects: [].into(), grants: Vec::new() }
    }

    /// Generation of a set, or from which to which a delta leads.
    fn generations(news: Option<News>) -> Option<(u64, Option<u64>)> {
        news.map(|news| match news {
            News::Set(set) => (set.generation, None),
            News::Delta(delta) => (delta.generation, Some(delta.since)),
        })
    }

    #[track_caller]
    fn check(protocol: u32, expected: [Option<(u64, Option<u64>)>; 4]) {
        let mut told = Told::new(protocol);
        let tell = |told: &mut Told, generation| generations(told.tell(plan(generation), now()));
        let mut found = vec![tell(&mut told, 3), tell(&mut told, 3), tell(&mut told, 5)];
        told.tell_anew();
        found.push(tell(&mut told, 6));
        assert_eq!(found, expected);
    }

    #[test]
    fn a_whole_set_first_and_then_changes() {
        check(2, [Some((3, None)), None, Some((5, Some(3))), Some((6, None))]);
        check(1, [Some((3, None)), Some((3, None)), Some((5, None)), Some((6, None))]);
    }

    #[test]
    fn a_grant_of_one_run_is_never_sent_as_one_of_all_processes() {
        let action = proto::types::Action {
            executable: "/bin/true".parse().expect("valid"),
            sha256: [7; 32],
            arguments: Vec::new(),
        };
        let grant = |run, action| Wanted {
            id: GrantId::new(),
            subject: 1.try_into().expect("not 0"),
            resource: 1.try_into().expect("not 0"),
            expires: now().plus(std::time::Duration::from_secs(60)),
            idle: None,
            while_running: None,
            run,
            action,
            extensions: 0,
        };
        let of_all = grant(None, None);
        let of_run = grant(Some(proto::types::RunId::new()), None);
        let of_action = grant(None, Some(action));
        let with = |generation| Plan {
            grants: vec![of_all.clone(), of_run.clone(), of_action.clone()],
            ..plan(generation)
        };
        let applied = |generation| Applied { generation, refused: Vec::new() };
        for protocol in 1..=3 {
            let mut told = Told::new(protocol);
            let generations = [3, 5];
            for generation in generations {
                let sent: Vec<GrantId> = match told.tell(with(generation), now()) {
                    Some(News::Set(set)) => set.grants.iter().map(|grant| grant.id).collect(),
                    Some(News::Delta(delta)) => delta.put_grants.iter().map(|grant| grant.id).collect(),
                    None => panic!("there is news"),
                };
                for id in [of_run.id, of_action.id] {
                    let is_new = protocol >= 3 && generation == 3;
                    assert_eq!(sent.contains(&id), is_new, "{protocol} {generation}");
                }
            }
            // Whichever the answer is about, it is refused there.
            for generation in generations {
                let refused = told.completed(applied(generation)).refused;
                let refused: Vec<RefusedItem> = refused.into_iter().map(|refused| refused.item).collect();
                let withheld = [of_run.id, of_action.id].map(RefusedItem::Grant).to_vec();
                let expected = if protocol < 3 { withheld } else { Vec::new() };
                assert_eq!(refused, expected, "{protocol}");
            }
        }
    }

    #[test]
    fn a_host_that_goes_on_being_wrong_is_not_sent_set_after_set() {
        let mut told = Told::new(2);
        told.tell(plan(3), now());
        let wrong =
            Digest::of(3, &[(1.try_into().expect("not 0"), 1.try_into().expect("not 0"))].into(), &[], &[]);
        assert_eq!(told.judge(&wrong, now()), Judgement::Nothing, "it has not applied anything");
        told.note_applied(Applied { generation: 3, refused: Vec::new() });
        let judged: Vec<bool> = (0..5)
            .map(|_| match told.judge(&wrong, now()) {
                Judgement::Wrong { anew, .. } => anew,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(judged, [true, true, false, true, false]);
        let right = Digest::of(3, &[].into(), &[], &[]);
        assert_eq!(told.judge(&right, now()), Judgement::Right);
    }
}
