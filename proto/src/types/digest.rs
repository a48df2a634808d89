//! What a host's kernel holds, in a few bytes: agent and control plane each make it, and compare.
//!
//! Two hashes. *Pairs*: of each pair that is let through, subject and resource by their numbers, in order, as two 32-bit numbers
//! in network order. *Definitions*: of each resource that is protected, and then of each subject, in order of their numbers, its
//! wire message behind its length as a 32-bit number in network order; a length of `u32::MAX` stands between the two.

use std::collections::BTreeSet;

use prost::Message;
use sha2::{Digest as _, Sha256};

use super::{Invalid, Resource, ResourceNumber, Subject, SubjectNumber};
use crate::wire::{access, agent as wire};

/// Between resources and subjects.
const DIVIDER: u32 = u32::MAX;

/// What a host's kernel holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    /// The generation that is applied; never 0.
    pub generation: u64,
    /// Of the pairs that are let through.
    pub pairs: [u8; 32],
    /// Of the resources that are protected, and of the subjects.
    pub definitions: [u8; 32],
    /// How many pairs, for people.
    pub pairs_count: u32,
    /// How many resources, for people.
    pub resources_count: u32,
}

impl Digest {
    /// Of these. Order does not matter.
    pub fn of(
        generation: u64,
        pairs: &BTreeSet<(SubjectNumber, ResourceNumber)>,
        resources: &[Resource],
        subjects: &[Subject],
    ) -> Self {
        let mut of_pairs = Sha256::new();
        for (subject, resource) in pairs {
            of_pairs.update(subject.get().to_be_bytes());
            of_pairs.update(resource.get().to_be_bytes());
        }
        let mut of_definitions = Sha256::new();
        let mut resources: Vec<&Resource> = resources.iter().collect();
        resources.sort_unstable_by_key(|resource| resource.number);
        for resource in &resources {
            add(&mut of_definitions, &access::Resource::from((*resource).clone()).encode_to_vec());
        }
        of_definitions.update(DIVIDER.to_be_bytes());
        let mut subjects: Vec<&Subject> = subjects.iter().collect();
        subjects.sort_unstable_by_key(|subject| subject.number);
        for subject in subjects {
            add(&mut of_definitions, &access::Subject::from(subject.clone()).encode_to_vec());
        }
        Self {
            generation,
            pairs: of_pairs.finalize().into(),
            definitions: of_definitions.finalize().into(),
            pairs_count: count(pairs.len()),
            resources_count: count(resources.len()),
        }
    }
}

fn add(hash: &mut Sha256, message: &[u8]) {
    hash.update(count(message.len()).to_be_bytes());
    hash.update(message);
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

impl TryFrom<wire::Digest> for Digest {
    type Error = Invalid;

    fn try_from(wire: wire::Digest) -> Result<Self, Invalid> {
        if wire.generation == 0 {
            return Err(Invalid::new("generation", "0 is no generation"));
        }
        let hash = |field, bytes: Vec<u8>| {
            <[u8; 32]>::try_from(bytes)
                .map_err(|bytes| Invalid::new(field, format_args!("has {} bytes, not 32", bytes.len())))
        };
        Ok(Self {
            generation: wire.generation,
            pairs: hash("pairs", wire.pairs)?,
            definitions: hash("definitions", wire.definitions)?,
            pairs_count: wire.pairs_count,
            resources_count: wire.resources_count,
        })
    }
}

impl From<Digest> for wire::Digest {
    fn from(digest: Digest) -> Self {
        Self {
            generation: digest.generation,
            pairs: digest.pairs.to_vec(),
            definitions: digest.definitions.to_vec(),
            pairs_count: digest.pairs_count,
            resources_count: digest.resources_count,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{NewResource, NewSubject, SubjectRole};

    fn resource(number: u32, address: &str) -> Resource {
        let ports = vec!["tcp/5432".parse().expect("valid")];
        let name = format!("db-{number}").parse().expect("valid");
        let new = NewResource::new(name, vec![address.parse().expect("valid")], ports).expect("valid");
        Resource::numbered(number.try_into().expect("not 0"), new)
    }

    fn subject(number: u32) -> Subject {
        let id = format!("user:u{number}").parse().expect("valid");
        let new = NewSubject { id, selectors: Vec::new(), role: SubjectRole::Member };
        Subject::numbered(number.try_into().expect("not 0"), new)
    }

    fn pairs(pairs: &[(u32, u32)]) -> BTreeSet<(SubjectNumber, ResourceNumber)> {
        let pair = |(subject, resource): &(u32, u32)| {
            ((*subject).try_into().expect("not 0"), (*resource).try_into().expect("not 0"))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn whatever_differs_is_seen() {
        let (one, two) = (resource(1, "10.0.0.1"), resource(2, "10.0.0.2"));
        let of = |given: &[(u32, u32)], resources: &[Resource], subjects: &[Subject]| {
            Digest::of(7, &pairs(given), resources, subjects)
        };
        let digest = of(&[(1, 2), (2, 1)], &[one.clone(), two.clone()], &[subject(1), subject(2)]);
        let other = of(&[(2, 1), (1, 2)], &[two.clone(), one.clone()], &[subject(2), subject(1)]);
        assert_eq!(digest, other, "order does not matter");
        assert_eq!((digest.pairs_count, digest.resources_count), (2, 2));
        assert_ne!(digest.pairs, of(&[(1, 2)], &[], &[]).pairs);
        assert_ne!(digest.pairs, of(&[(1, 2), (2, 2)], &[], &[]).pairs);
        let definitions =
            |resources: &[Resource], subjects: &[Subject]| of(&[], resources, subjects).definitions;
        assert_ne!(digest.definitions, definitions(std::slice::from_ref(&one), &[subject(1), subject(2)]));
        assert_ne!(
            digest.definitions,
            definitions(&[one.clone(), resource(2, "10.0.0.3")], &[subject(1), subject(2)])
        );
        assert_ne!(digest.definitions, definitions(&[one, two], &[subject(1)]));
    }

    #[test]
    fn digests_survive_the_wire() {
        let digest = Digest::of(7, &pairs(&[(1, 1)]), &[], &[]);
        assert_eq!(Digest::try_from(wire::Digest::from(digest)), Ok(digest));
        let short = wire::Digest { pairs: vec![0; 31], ..digest.into() };
        assert!(Digest::try_from(short).is_err());
        assert!(Digest::try_from(wire::Digest { generation: 0, ..digest.into() }).is_err());
    }
}
