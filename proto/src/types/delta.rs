//! How one grant set differs from another.

use std::collections::HashSet;

use super::session::ITEMS_MAX;
use super::{GrantId, GrantSet, Invalid, LiveGrant, Resource, ResourceNumber, Subject, SubjectNumber, all};
use crate::wire::agent as wire;

/// How a host's set differs from the one of an earlier generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// The generation that it is a change of; never 0.
    pub since: u64,
    /// Greater than `since`.
    pub generation: u64,
    /// New ones, and changed ones by their numbers.
    pub put_resources: Vec<Resource>,
    /// Those that are gone.
    pub removed_resources: Vec<ResourceNumber>,
    /// New ones, and changed ones by their numbers.
    pub put_subjects: Vec<Subject>,
    /// Those that are gone.
    pub removed_subjects: Vec<SubjectNumber>,
    /// New ones, and changed ones by their ids.
    pub put_grants: Vec<LiveGrant>,
    /// Those that are gone.
    pub removed_grants: Vec<GrantId>,
}

impl Delta {
    /// The whole set that this makes of `before`, which must be of the generation that it is a change of. By the rules of sets:
    /// nothing twice, and no grant of what is not there.
    pub fn of(&self, before: GrantSet) -> Result<GrantSet, Invalid> {
        if before.generation != self.since {
            let problem = format_args!("{} is not {}, which is held", self.since, before.generation);
            return Err(Invalid::new("since", problem));
        }
        let set = GrantSet {
            generation: self.generation,
            resources: merge(before.resources, &self.put_resources, &self.removed_resources, |item| {
                item.number
            }),
            subjects: merge(before.subjects, &self.put_subjects, &self.removed_subjects, |item| item.number),
            grants: merge(before.grants, &self.put_grants, &self.removed_grants, |item| item.id),
        };
        set.checked()
    }
}

fn merge<T: Clone, K: Eq + std::hash::Hash>(
    mut items: Vec<T>,
    put: &[T],
    removed: &[K],
    key: impl Fn(&T) -> K,
) -> Vec<T> {
    let replaced: HashSet<K> = put.iter().map(&key).collect();
    let removed: HashSet<&K> = removed.iter().collect();
    items.retain(|item| {
        let key = key(item);
        !replaced.contains(&key) && !removed.contains(&key)
    });
    items.extend(put.iter().cloned());
    items
}

impl TryFrom<wire::Delta> for Delta {
    type Error = Invalid;

    fn try_from(wire: wire::Delta) -> Result<Self, Invalid> {
        if wire.since == 0 || wire.generation <= wire.since {
            let problem = format_args!("{} does not come after {}", wire.generation, wire.since);
            return Err(Invalid::new("generation", problem));
        }
        Ok(Self {
            since: wire.since,
            generation: wire.generation,
            put_resources: all("put_resources", wire.put_resources, ITEMS_MAX, TryInto::try_into)?,
            removed_resources: all(
                "removed_resources",
                wire.removed_resources,
                ITEMS_MAX,
                TryInto::try_into,
            )?,
            put_subjects: all("put_subjects", wire.put_subjects, ITEMS_MAX, TryInto::try_into)?,
            removed_subjects: all("removed_subjects", wire.removed_subjects, ITEMS_MAX, TryInto::try_into)?,
            put_grants: all("put_grants", wire.put_grants, ITEMS_MAX, TryInto::try_into)?,
            removed_grants: all("removed_grants", wire.removed_grants, ITEMS_MAX, |id| id.parse())?,
        })
    }
}

impl From<Delta> for wire::Delta {
    fn from(delta: Delta) -> Self {
        Self {
            since: delta.since,
            generation: delta.generation,
            put_resources: delta.put_resources.into_iter().map(Into::into).collect(),
            removed_resources: delta.removed_resources.into_iter().map(ResourceNumber::get).collect(),
            put_subjects: delta.put_subjects.into_iter().map(Into::into).collect(),
            removed_subjects: delta.removed_subjects.into_iter().map(SubjectNumber::get).collect(),
            put_grants: delta.put_grants.into_iter().map(Into::into).collect(),
            removed_grants: delta.removed_grants.into_iter().map(|id| id.to_string()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::types::{NewResource, NewSubject, SubjectRole};

    fn resource(number: u32) -> Resource {
        let ports = vec!["tcp/5432".parse().expect("valid")];
        let address = format!("10.0.0.{number}").parse().expect("valid");
        let new = NewResource::new(format!("db-{number}").parse().expect("valid"), vec![address], ports);
        Resource::numbered(number.try_into().expect("not 0"), new.expect("valid"))
    }

    fn grant(resource: u32) -> LiveGrant {
        LiveGrant {
            id: GrantId::new(),
            subject: 1.try_into().expect("not 0"),
            resource: resource.try_into().expect("not 0"),
            remaining: Duration::from_secs(60),
            idle: None,
            while_running: None,
            run: None,
            action: None,
            extensions: 0,
        }
    }

    fn set() -> GrantSet {
        let new = NewSubject {
            id: "user:alice".parse().expect("valid"),
            selectors: Vec::new(),
            role: SubjectRole::Member,
        };
        let subject = Subject::numbered(1.try_into().expect("not 0"), new);
        GrantSet {
            generation: 3,
            resources: vec![resource(1)],
            subjects: vec![subject],
            grants: vec![grant(1)],
        }
    }

    fn nothing() -> Delta {
        Delta {
            since: 3,
            generation: 4,
            put_resources: Vec::new(),
            removed_resources: Vec::new(),
            put_subjects: Vec::new(),
            removed_subjects: Vec::new(),
            put_grants: Vec::new(),
            removed_grants: Vec::new(),
        }
    }

    #[test]
    fn a_delta_makes_the_next_set() {
        let before = set();
        let longer = LiveGrant { remaining: Duration::from_secs(90), ..before.grants[0].clone() };
        let delta = Delta {
            put_resources: vec![resource(2)],
            put_grants: vec![longer.clone(), grant(2)],
            ..nothing()
        };
        let after = delta.of(before.clone()).expect("fits");
        assert_eq!((after.generation, after.resources.len(), after.grants.len()), (4, 2, 2));
        assert!(after.grants.contains(&longer));
        let gone = Delta {
            since: 4,
            generation: 9,
            removed_grants: after.grants.iter().map(|grant| grant.id).collect(),
            removed_resources: vec![2.try_into().expect("not 0")],
            ..nothing()
        };
        let last = gone.of(after).expect("fits");
        assert_eq!((last.resources, last.grants), (before.resources, Vec::new()));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let check = |delta: Delta, words: &str| {
            let error = delta.of(set()).expect_err(words).to_string();
            assert!(error.contains(words), "{error}");
        };
        check(Delta { since: 2, ..nothing() }, "2 is not 3, which is held");
        check(
            Delta { removed_resources: vec![1.try_into().expect("not 0")], ..nothing() },
            "unknown resource 1",
        );
        check(Delta { put_grants: vec![grant(7)], ..nothing() }, "unknown resource 7");
        let twice = grant(1);
        check(Delta { put_grants: vec![twice.clone(), twice], ..nothing() }, "is there twice");
    }

    #[test]
    fn deltas_survive_the_wire() {
        let delta = Delta {
            put_resources: vec![resource(2)],
            removed_resources: vec![1.try_into().expect("not 0")],
            removed_grants: vec![GrantId::new()],
            put_grants: vec![grant(2)],
            ..nothing()
        };
        assert_eq!(Delta::try_from(wire::Delta::from(delta.clone())), Ok(delta));
        for (since, generation) in [(0, 1), (3, 3), (4, 3)] {
            let wire = wire::Delta { since, generation, ..nothing().into() };
            assert!(Delta::try_from(wire).is_err(), "{since} {generation}");
        }
    }
}
