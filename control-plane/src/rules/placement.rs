//! Which host holds which grants: the set for each host, and what its agent's answers mean.
//!
//! Owns: what a generation contains. Must not know: sessions, storage.
//!
//! Invariant: a host's set of generation N holds exactly the grants whose span contains N, but for those that had no time
//! left when it was sent.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use proto::types::{
    Applied, CgroupPath, GrantId, GrantSet, LiveGrant, RefusedItem, Resource, ResourceNumber, Subject,
    SubjectNumber, Timestamp,
};

use super::grant::Answer;

/// How many sent sets a session remembers. Beyond it the oldest is forgotten, and the answer to it means nothing: the
/// answers to later sets say it all again.
const SENT_MAX: usize = 1024;

/// The generations of one host's sets that contain a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first one with it.
    pub since: u64,
    /// The first one without it; None: it has not been taken out.
    pub until: Option<u64>,
}

impl Span {
    fn contains(self, generation: u64) -> bool {
        self.since <= generation && self.until.is_none_or(|until| generation < until)
    }
}

/// A grant that a host's set should hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Which one.
    pub id: GrantId,
    /// Who may.
    pub subject: SubjectNumber,
    /// What may be reached.
    pub resource: ResourceNumber,
    /// Until when.
    pub expires: Timestamp,
    /// The host ends it when nothing was let through by it for this long.
    pub idle: Option<Duration>,
    /// The host ends it when this cgroup is empty or gone.
    pub while_running: Option<CgroupPath>,
}

/// All that one host should enforce, without what depends on the moment of sending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Of the set.
    pub generation: u64,
    /// All resources.
    pub resources: Vec<Resource>,
    /// All subjects.
    pub subjects: Vec<Subject>,
    /// The grants of the host.
    pub grants: Vec<Wanted>,
}

impl Plan {
    /// The set to send at `now`, and the grants left out of it because nothing is left of them.
    pub fn set(self, now: Timestamp) -> (GrantSet, Vec<GrantId>) {
        let (live, over): (Vec<Wanted>, Vec<Wanted>) =
            self.grants.into_iter().partition(|wanted| wanted.expires.since(now) > Duration::ZERO);
        let grants = live.into_iter().map(|wanted| LiveGrant {
            id: wanted.id,
            subject: wanted.subject,
            resource: wanted.resource,
            remaining: wanted.expires.since(now),
            idle: wanted.idle,
            while_running: wanted.while_running,
        });
        let set = GrantSet {
            generation: self.generation,
            resources: self.resources,
            subjects: self.subjects,
            grants: grants.collect(),
        };
        (set, over.into_iter().map(|wanted| wanted.id).collect())
    }
}

/// The sets that one session has sent and whose answers may still come.
#[derive(Debug, Default)]
pub struct Sent {
    left_out: BTreeMap<u64, Vec<GrantId>>,
}

impl Sent {
    /// A set goes out.
    pub fn note(&mut self, generation: u64, left_out: Vec<GrantId>) {
        self.left_out.insert(generation, left_out);
        if self.left_out.len() > SENT_MAX {
            self.left_out.pop_first();
        }
    }

    /// What was left out of the set of this generation; None: it was not sent. Older ones are forgotten: agents answer in
    /// order.
    pub fn answered(&mut self, generation: u64) -> Option<Vec<GrantId>> {
        let left_out = self.left_out.get(&generation)?.clone();
        self.left_out = self.left_out.split_off(&generation);
        Some(left_out)
    }
}

/// What an agent's message says about each grant that its kernel may hold; nothing about the others.
pub fn answers(applied: &Applied, left_out: &[GrantId], open: &[(GrantId, Span)]) -> Vec<(GrantId, Answer)> {
    let refused: HashMap<GrantId, &str> = applied
        .refused
        .iter()
        .filter_map(|refused| match refused.item {
            RefusedItem::Grant(id) => Some((id, refused.error.as_str())),
            RefusedItem::Resource(_) | RefusedItem::Subject(_) => None,
        })
        .collect();
    let answer = |(id, span): &(GrantId, Span)| {
        let generation = applied.generation;
        match (span.contains(generation) && !left_out.contains(id), refused.get(id)) {
            (true, Some(error)) => Some((*id, Answer::Refuses((*error).to_owned()))),
            (true, None) => Some((*id, Answer::Holds)),
            (false, _) if lacks(*span, generation) => Some((*id, Answer::Lacks)),
            (false, _) => None,
        }
    };
    open.iter().filter_map(answer).collect()
}

/// Whether a kernel that holds this generation has let go of the grant.
pub fn lacks(span: Span, generation: u64) -> bool {
    span.until.is_some_and(|until| until <= generation)
}

#[cfg(test)]
mod tests {
    use proto::types::Refused;

    use super::*;

    fn id() -> GrantId {
        "01940000-0000-7000-8000-000000000001".parse().expect("valid")
    }

    #[track_caller]
    fn check(span: (u64, Option<u64>), generation: u64, is_refused: bool, expected: Option<Answer>) {
        let refusal = Refused { item: RefusedItem::Grant(id()), error: "map full".to_owned() };
        let applied = Applied { generation, refused: if is_refused { vec![refusal] } else { Vec::new() } };
        let open = [(id(), Span { since: span.0, until: span.1 })];
        let answer = answers(&applied, &[], &open).pop().map(|(_, answer)| answer);
        assert_eq!(answer, expected);
    }

    #[test]
    fn answers_mean_what_their_generation_contained() {
        check((5, None), 4, false, None);
        check((5, None), 5, false, Some(Answer::Holds));
        check((5, None), 9, false, Some(Answer::Holds));
        check((5, None), 5, true, Some(Answer::Refuses("map full".to_owned())));
        check((5, Some(7)), 4, false, None);
        check((5, Some(7)), 6, false, Some(Answer::Holds));
        check((5, Some(7)), 7, false, Some(Answer::Lacks));
        check((5, Some(7)), 9, false, Some(Answer::Lacks));
    }

    #[test]
    fn what_was_left_out_is_not_held() {
        let applied = Applied { generation: 5, refused: Vec::new() };
        let open = [(id(), Span { since: 5, until: None })];
        assert_eq!(answers(&applied, &[id()], &open), Vec::new());
    }

    #[test]
    fn only_what_was_sent_is_answered() {
        let mut sent = Sent::default();
        sent.note(4, Vec::new());
        sent.note(6, vec![id()]);
        assert_eq!(sent.answered(5), None);
        assert_eq!(sent.answered(6), Some(vec![id()]));
        assert_eq!(sent.answered(4), None, "the agent has gone on");
        assert_eq!(sent.answered(6), Some(vec![id()]), "a repeat counts");
        (10..10 + 2 * SENT_MAX as u64).for_each(|generation| sent.note(generation, Vec::new()));
        assert_eq!(sent.left_out.len(), SENT_MAX);
    }

    #[test]
    fn a_set_holds_what_has_time_left() {
        let now = Timestamp::from_unix_ms(1_795_000_000_000).expect("in range");
        let wanted = |expires: Timestamp| Wanted {
            id: GrantId::new(),
            subject: 1.try_into().expect("valid"),
            resource: 1.try_into().expect("valid"),
            expires,
            idle: Some(Duration::from_secs(60)),
            while_running: None,
        };
        let (live, over) = (wanted(now.plus(Duration::from_millis(1))), wanted(now));
        let plan = Plan {
            generation: 3,
            resources: Vec::new(),
            subjects: Vec::new(),
            grants: vec![live.clone(), over.clone()],
        };
        let (set, left_out) = plan.set(now);
        assert_eq!(left_out, [over.id]);
        assert_eq!(set.generation, 3);
        assert_eq!(set.grants.len(), 1);
        assert_eq!((set.grants[0].id, set.grants[0].remaining), (live.id, Duration::from_millis(1)));
    }
}
