//! This host's grant set, and the rule by which a new one replaces it.
//!
//! Owns: generations, and deadlines on the boot clock. Must not know: kernel, network.
//!
//! Invariants: within a timeline a generation never goes back; the deadline of a grant never moves later.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::types::{GrantId, GrantSet, LiveGrant, Resource, Subject};
use uuid::Uuid;

use super::plan::WantedGrant;

/// How long a grant that ran out stays in the maps, so that a denial says `expired`. The kernel lets nobody through by it.
const LAPSED_KEPT: Duration = Duration::from_secs(10 * 60);

/// A grant that is taken away this shortly before its deadline ran out: the control plane's clock, by which it did, is ahead
/// of ours by the time that the set was under way.
const NEARLY: Duration = Duration::from_secs(1);

/// How many of those at most: they must never take the room of live ones.
const LAPSED_MAX: usize = 256;

/// What this host should enforce.
#[derive(Clone, Debug, Default)]
pub struct Grants {
    timeline: Option<Uuid>,
    generation: u64,
    resources: Vec<Resource>,
    subjects: Vec<Subject>,
    grants: BTreeMap<GrantId, WantedGrant>,
    lapsed: BTreeMap<GrantId, WantedGrant>,
}

/// What a new set meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It replaces what was there.
    Changed,
    /// It is what was there.
    Same,
    /// It is older than what is there, and was left aside.
    Older,
}

impl Grants {
    /// Takes over a set that came at `now_boot_ns`, unless it is an older one of the same timeline.
    pub fn accept(&mut self, timeline: Uuid, set: GrantSet, now_boot_ns: u64) -> Accepted {
        if self.timeline == Some(timeline) {
            if set.generation < self.generation {
                return Accepted::Older;
            }
            if set.generation == self.generation {
                return Accepted::Same;
            }
        }
        let deadline = |grant: &LiveGrant| now_boot_ns.saturating_add(nanoseconds(grant.remaining));
        let known = std::mem::take(&mut self.grants);
        for grant in &set.grants {
            let before = known.get(&grant.id).map_or(u64::MAX, |known| known.expires_at_boot_ns);
            let wanted = WantedGrant {
                id: grant.id,
                subject: grant.subject,
                resource: grant.resource,
                expires_at_boot_ns: deadline(grant).min(before),
                idle_limit_ns: 0,
            };
            self.grants.insert(grant.id, wanted);
        }
        let soon_boot_ns = now_boot_ns.saturating_add(nanoseconds(NEARLY));
        let gone = known.into_iter().filter(|(id, _)| !self.grants.contains_key(id));
        let ran_out = gone.filter(|(_, grant)| grant.expires_at_boot_ns <= soon_boot_ns);
        // It ends now, not then: what is not in the set lets nobody through.
        self.lapsed.extend(ran_out.map(|(id, grant)| {
            (id, WantedGrant { expires_at_boot_ns: grant.expires_at_boot_ns.min(now_boot_ns), ..grant })
        }));
        self.forget_lapsed(now_boot_ns);
        self.timeline = Some(timeline);
        self.generation = set.generation;
        self.resources = set.resources;
        self.subjects = set.subjects;
        Accepted::Changed
    }

    fn forget_lapsed(&mut self, now_boot_ns: u64) {
        let kept = nanoseconds(LAPSED_KEPT);
        self.lapsed.retain(|_, grant| grant.expires_at_boot_ns.saturating_add(kept) > now_boot_ns);
        // Ids grow with time, so the first are the oldest.
        while self.lapsed.len() > LAPSED_MAX {
            self.lapsed.pop_first();
        }
    }

    /// Whose set this is, and which; None: none yet.
    pub fn applied(&self) -> Option<(Uuid, u64)> {
        self.timeline.map(|timeline| (timeline, self.generation))
    }

    /// What is protected.
    pub fn resources(&self) -> &[Resource] {
        &self.resources
    }

    /// Who is known.
    pub fn subjects(&self) -> &[Subject] {
        &self.subjects
    }

    /// What the maps should hold: the live grants, and those that ran out lately.
    pub fn wanted(&self) -> Vec<WantedGrant> {
        self.grants.values().chain(self.lapsed.values()).copied().collect()
    }

    /// The set as it can be kept on disk: with what is left of each grant at `now_boot_ns`; grants with nothing left are
    /// left out.
    pub fn remaining_set(&self, now_boot_ns: u64) -> GrantSet {
        let live = |grant: &WantedGrant| {
            let remaining = Duration::from_nanos(grant.expires_at_boot_ns.saturating_sub(now_boot_ns));
            (!remaining.is_zero()).then_some(LiveGrant {
                id: grant.id,
                subject: grant.subject,
                resource: grant.resource,
                remaining,
            })
        };
        GrantSet {
            generation: self.generation,
            resources: self.resources.clone(),
            subjects: self.subjects.clone(),
            grants: self.grants.values().filter_map(live).collect(),
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn set(generation: u64, grants: &[(GrantId, u64)]) -> GrantSet {
        let live = |(id, seconds): &(GrantId, u64)| LiveGrant {
            id: *id,
            subject: 1.try_into().expect("not 0"),
            resource: 1.try_into().expect("not 0"),
            remaining: Duration::from_secs(*seconds),
        };
        GrantSet {
            generation,
            resources: vec![],
            subjects: vec![],
            grants: grants.iter().map(live).collect(),
        }
    }

    fn deadlines(grants: &Grants) -> Vec<(GrantId, u64)> {
        grants.wanted().iter().map(|grant| (grant.id, grant.expires_at_boot_ns / SECOND)).collect()
    }

    #[test]
    fn generations_go_forward_within_a_timeline() {
        let (here, elsewhere) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut grants = Grants::default();
        assert_eq!(grants.applied(), None);
        assert_eq!(grants.accept(here, set(5, &[]), 0), Accepted::Changed);
        assert_eq!(grants.accept(here, set(5, &[]), 0), Accepted::Same);
        assert_eq!(grants.accept(here, set(4, &[]), 0), Accepted::Older);
        assert_eq!(grants.applied(), Some((here, 5)));
        assert_eq!(grants.accept(elsewhere, set(1, &[]), 0), Accepted::Changed);
        assert_eq!(grants.applied(), Some((elsewhere, 1)));
    }

    #[test]
    fn a_deadline_never_moves_later() {
        let (timeline, id) = (Uuid::from_u128(1), GrantId::new());
        let mut grants = Grants::default();
        grants.accept(timeline, set(1, &[(id, 60)]), 10 * SECOND);
        assert_eq!(deadlines(&grants), [(id, 70)]);
        // The same grant, sent again late: its remaining time was measured before a delay.
        grants.accept(timeline, set(2, &[(id, 60)]), 20 * SECOND);
        assert_eq!(deadlines(&grants), [(id, 70)]);
        // Earlier is taken.
        grants.accept(timeline, set(3, &[(id, 5)]), 20 * SECOND);
        assert_eq!(deadlines(&grants), [(id, 25)]);
        // Another timeline changes nothing about it.
        grants.accept(Uuid::from_u128(2), set(1, &[(id, 600)]), 20 * SECOND);
        assert_eq!(deadlines(&grants), [(id, 25)]);
    }

    #[test]
    fn what_ran_out_is_remembered_for_a_while_and_what_was_revoked_is_not() {
        let (timeline, short, long) = (Uuid::from_u128(1), GrantId::new(), GrantId::new());
        let mut grants = Grants::default();
        grants.accept(timeline, set(1, &[(short, 10), (long, 60)]), 0);
        grants.accept(timeline, set(2, &[]), 10 * SECOND - 1);
        assert_eq!(deadlines(&grants), [(short, 9)], "it ends when it is taken away, not later");
        assert!(grants.remaining_set(10 * SECOND).grants.is_empty());
        grants.accept(timeline, set(3, &[]), (10 + 10 * 60) * SECOND);
        assert_eq!(deadlines(&grants), []);
    }

    #[test]
    fn what_is_kept_on_disk_comes_back_with_the_same_deadlines() {
        let (timeline, id) = (Uuid::from_u128(1), GrantId::new());
        let mut grants = Grants::default();
        grants.accept(timeline, set(7, &[(id, 60)]), 5 * SECOND);
        let kept = grants.remaining_set(25 * SECOND);
        let mut restarted = Grants::default();
        restarted.accept(timeline, kept, 25 * SECOND);
        assert_eq!(deadlines(&restarted), [(id, 65)]);
        assert_eq!(restarted.applied(), Some((timeline, 7)));
    }
}
