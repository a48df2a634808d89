//! Which host holds which grants: the set for each host, and what its agent's answers mean.
//!
//! Owns: what a generation contains. Must not know: sessions, storage.
//!
//! Invariant: a host's set of generation N holds exactly the grants whose span contains N, but for those that had no time
//! left when it was sent.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use proto::types::{
    Action, Applied, CgroupPath, Delta, Digest, GrantId, GrantSet, GrantState, HostName, LiveGrant, Refused,
    RefusedItem, Resource, ResourceNumber, RunId, Subject, SubjectNumber, Timestamp,
};

use super::grant::{Answer, Holding, Life};

/// How many sent sets a session remembers. Beyond it the oldest is forgotten, and the answer to it means nothing: the
/// answers to later sets say it all again.
pub(super) const SENT_MAX: usize = 1024;

/// How near to the end of a grant a digest is not judged.
const DIGEST_LEEWAY: Duration = Duration::from_secs(5);

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
    /// It is for this run; None: for all of the subject's processes.
    pub run: Option<RunId>,
    /// It is for this alone, once; None: for whatever the subject does.
    pub action: Option<Action>,
    /// How often it was extended.
    pub extensions: u32,
}

/// All that one host should enforce, without what depends on the moment of sending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Of the set.
    pub generation: u64,
    /// All resources; the same for all hosts.
    pub resources: Arc<[Resource]>,
    /// All subjects; the same for all hosts.
    pub subjects: Arc<[Subject]>,
    /// The grants of the host.
    pub grants: Vec<Wanted>,
}

impl Wanted {
    /// As it is sent at `now`; None: nothing is left of it.
    fn live(&self, now: Timestamp) -> Option<LiveGrant> {
        let remaining = self.expires.since(now);
        (!remaining.is_zero()).then(|| LiveGrant {
            id: self.id,
            subject: self.subject,
            resource: self.resource,
            remaining,
            idle: self.idle,
            while_running: self.while_running.clone(),
            run: self.run,
            action: self.action.clone(),
            extensions: self.extensions,
        })
    }
}

impl Plan {
    /// The set to send at `now`, and the grants left out of it because nothing is left of them.
    pub fn set(&self, now: Timestamp) -> (GrantSet, Vec<GrantId>) {
        let set = GrantSet {
            generation: self.generation,
            resources: self.resources.to_vec(),
            subjects: self.subjects.to_vec(),
            grants: self.grants.iter().filter_map(|wanted| wanted.live(now)).collect(),
        };
        (set, self.over(now))
    }

    /// What to send at `now` to a host that was sent `before`, and the grants left out of it. None: it is of no later generation.
    pub fn delta(&self, before: &Self, now: Timestamp) -> Option<(Delta, Vec<GrantId>)> {
        if self.generation <= before.generation {
            return None;
        }
        let (put_resources, removed_resources) =
            differences(&before.resources, &self.resources, |resource| resource.number);
        let (put_subjects, removed_subjects) =
            differences(&before.subjects, &self.subjects, |subject| subject.number);
        let (put_grants, removed_grants) = differences(&before.grants, &self.grants, |grant| grant.id);
        let delta = Delta {
            since: before.generation,
            generation: self.generation,
            put_resources,
            removed_resources,
            put_subjects,
            removed_subjects,
            put_grants: put_grants.iter().filter_map(|wanted| wanted.live(now)).collect(),
            removed_grants,
        };
        Some((delta, self.over(now)))
    }

    fn over(&self, now: Timestamp) -> Vec<GrantId> {
        self.grants.iter().filter(|wanted| wanted.expires <= now).map(|wanted| wanted.id).collect()
    }

    /// What the kernel of a host should hold at `now` that was sent this, refused these items and has ended these grants by
    /// itself. None: so near to the end of a grant nobody can say, for the clocks of two machines differ, and messages take time.
    pub fn digest(&self, refused: &[Refused], ended: &HashSet<GrantId>, now: Timestamp) -> Option<Digest> {
        let is_refused = |item: RefusedItem| refused.iter().any(|refused| refused.item == item);
        let holds =
            |wanted: &&Wanted| !ended.contains(&wanted.id) && !is_refused(RefusedItem::Grant(wanted.id));
        let meant: Vec<&Wanted> = self.grants.iter().filter(holds).collect();
        let is_near =
            |wanted: &&Wanted| wanted.expires.since(now).max(now.since(wanted.expires)) < DIGEST_LEEWAY;
        if meant.iter().any(is_near) {
            return None;
        }
        // What is for one action opens only once it is used, and the host alone knows whether it is.
        let live = meant.iter().filter(|wanted| wanted.expires > now && wanted.action.is_none());
        let pairs = live.map(|wanted| (wanted.subject, wanted.resource)).collect();
        let resources: Vec<Resource> = self
            .resources
            .iter()
            .filter(|resource| !is_refused(RefusedItem::Resource(resource.number)))
            .cloned()
            .collect();
        Some(Digest::of(self.generation, &pairs, &resources, &self.subjects))
    }
}

/// What is new or changed, and the keys of what is gone.
fn differences<T: Clone + PartialEq, K: Copy + Eq + std::hash::Hash>(
    before: &[T],
    after: &[T],
    key: impl Fn(&T) -> K,
) -> (Vec<T>, Vec<K>) {
    // Mostly it is one and the same list.
    if std::ptr::eq(before, after) {
        return (Vec::new(), Vec::new());
    }
    let known: HashMap<K, &T> = before.iter().map(|item| (key(item), item)).collect();
    let named: HashSet<K> = after.iter().map(&key).collect();
    let put = after.iter().filter(|item| known.get(&key(item)) != Some(item)).cloned().collect();
    (put, before.iter().map(&key).filter(|key| !named.contains(key)).collect())
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

/// What the first message of a session says about a grant that the host's kernel may hold. `held`: the generation of ours that
/// it holds; None: none, or somebody else's, which says nothing about our grants but that they are not there.
pub fn greeted(span: Span, held: Option<u64>) -> Option<Answer> {
    match held {
        None => Some(Answer::Blank),
        Some(held) => lacks(span, held).then_some(Answer::Lacks),
    }
}

/// How a step of a grant's life changes the sets of its hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    /// Not at all.
    Nowhere,
    /// It was ended before its deadline: it is taken out everywhere, and the sets are sent anew.
    Early,
    /// At its deadline the kernels end it by themselves: it is taken out everywhere, and the next set will be without it.
    AtDeadline,
    /// It goes on, but for these hosts, which have ended it by themselves: their sets are sent without it.
    Of(Vec<HostName>),
}

/// What follows for the sets from a step that has entered these states.
pub fn removal(before: &Life, after: &Life, entered: &[GrantState]) -> Removal {
    // No set has had it.
    if before.state() == GrantState::Scheduled {
        return Removal::Nowhere;
    }
    match (before.state().end_reason(), after.state().end_reason()) {
        (Some(_), _) => Removal::Nowhere,
        (None, Some(_)) => match entered.iter().any(|state| matches!(state, GrantState::Ending(_))) {
            true => Removal::Early,
            false => Removal::AtDeadline,
        },
        (None, None) => {
            let may_hold =
                |life: &Life, host: &HostName| life.body().hosts.get(host).is_some_and(Holding::may_hold);
            let is_over = |host: &&HostName| may_hold(before, host) && !may_hold(after, host);
            let hosts: Vec<HostName> = after.body().hosts.keys().filter(is_over).cloned().collect();
            if hosts.is_empty() { Removal::Nowhere } else { Removal::Of(hosts) }
        }
    }
}

/// Whether a kernel that holds this generation has let go of the grant.
pub fn lacks(span: Span, generation: u64) -> bool {
    span.until.is_some_and(|until| until <= generation)
}

#[cfg(test)]
mod tests {
    use proto::types::{NewResource, NewSubject, SubjectRole};

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

    fn now() -> Timestamp {
        Timestamp::from_unix_ms(1_795_000_000_000).expect("in range")
    }

    fn wanted(left: Duration) -> Wanted {
        Wanted {
            id: GrantId::new(),
            subject: 1.try_into().expect("valid"),
            resource: 1.try_into().expect("valid"),
            expires: now().plus(left),
            idle: Some(Duration::from_secs(60)),
            while_running: None,
            run: None,
            action: None,
            extensions: 0,
        }
    }

    fn resource(number: u32, port: &str) -> Resource {
        let ports = vec![port.parse().expect("valid")];
        let address = vec!["10.0.0.1".parse().expect("valid")];
        let new = NewResource::new(format!("db-{number}").parse().expect("valid"), address, ports);
        Resource::numbered(number.try_into().expect("not 0"), new.expect("valid"))
    }

    fn subject() -> Subject {
        let id = "user:alice".parse().expect("valid");
        let new = NewSubject { id, selectors: Vec::new(), role: SubjectRole::Member };
        Subject::numbered(1.try_into().expect("not 0"), new)
    }

    fn plan(generation: u64, resources: &[Resource], grants: &[Wanted]) -> Plan {
        Plan {
            generation,
            resources: resources.into(),
            subjects: [subject()].into(),
            grants: grants.to_vec(),
        }
    }

    #[test]
    fn a_set_holds_what_has_time_left() {
        let (live, over) = (wanted(Duration::from_millis(1)), wanted(Duration::ZERO));
        let plan = plan(3, &[resource(1, "tcp/1")], &[live.clone(), over.clone()]);
        let (set, left_out) = plan.set(now());
        assert_eq!(left_out, [over.id]);
        assert_eq!(set.generation, 3);
        assert_eq!(set.grants.len(), 1);
        assert_eq!((set.grants[0].id, set.grants[0].remaining), (live.id, Duration::from_millis(1)));
    }

    #[test]
    fn a_set_and_its_deltas_are_the_next_set() {
        let [kept, gone, new] = [60, 60, 60].map(|seconds| wanted(Duration::from_secs(seconds)));
        let moved = Wanted { expires: now().plus(Duration::from_secs(30)), ..kept.clone() };
        let first = plan(3, &[resource(1, "tcp/1"), resource(2, "tcp/2")], &[kept, gone]);
        let second = plan(7, &[resource(1, "tcp/11"), resource(3, "tcp/3")], &[moved, new]);
        let (delta, left_out) = second.delta(&first, now()).expect("it is later");
        assert_eq!(left_out, []);
        let mut made = delta.of(first.set(now()).0).expect("it fits");
        let (mut expected, _) = second.set(now());
        for set in [&mut made, &mut expected] {
            set.resources.sort_unstable_by_key(|resource| resource.number);
            set.grants.sort_unstable_by_key(|grant| grant.id);
        }
        assert_eq!(made, expected);
        assert_eq!(first.delta(&second, now()), None);
        assert_eq!(second.delta(&second.clone(), now()), None);
    }

    #[test]
    fn a_digest_is_of_what_should_be_held() {
        let [one, other] = [60, 600].map(|seconds| wanted(Duration::from_secs(seconds)));
        let other = Wanted { resource: 2.try_into().expect("not 0"), ..other };
        let plan = plan(3, &[resource(1, "tcp/1"), resource(2, "tcp/2")], &[one.clone(), other.clone()]);
        let counts = |refused: &[RefusedItem], ended: &[GrantId], seconds: u64| {
            let refuse = |item: &RefusedItem| Refused { item: *item, error: "map full".to_owned() };
            let refused: Vec<_> = refused.iter().map(refuse).collect();
            let ended = ended.iter().copied().collect();
            let digest = plan.digest(&refused, &ended, now().plus(Duration::from_secs(seconds)))?;
            Some((digest.pairs_count, digest.resources_count))
        };
        assert_eq!(counts(&[], &[], 0), Some((2, 2)));
        assert_eq!(counts(&[], &[], 54), Some((2, 2)));
        assert_eq!(counts(&[], &[], 56), None, "it is about to end");
        assert_eq!(counts(&[], &[one.id], 56), Some((1, 2)), "it has ended already");
        assert_eq!(counts(&[], &[], 64), None);
        assert_eq!(counts(&[], &[], 66), Some((1, 2)));
        let refused = [RefusedItem::Grant(other.id), RefusedItem::Resource(2.try_into().expect("not 0"))];
        assert_eq!(counts(&refused, &[], 0), Some((1, 1)));
    }
}
