//! Which cgroup is which subject.
//!
//! Owns: the rule that a cgroup belongs to one subject at most. Must not know: how cgroups were observed.

use std::collections::BTreeMap;

use proto::types::{Selector, Subject, SubjectNumber};

/// Whose each cgroup is, and what could not be settled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bindings {
    /// Cgroup id → subject.
    pub cgroups: BTreeMap<u64, SubjectNumber>,
    /// Cgroups that several subjects claim: nobody's, since nothing can say whose a process in them is.
    pub contested: BTreeMap<u64, Vec<SubjectNumber>>,
}

/// Binds the cgroups that the subjects' selectors were found to stand for. A selector without a cgroup binds nothing: its
/// processes are not there (yet).
pub fn bind(subjects: &[Subject], observed: impl Fn(&Selector) -> Option<u64>) -> Bindings {
    let mut claims: BTreeMap<u64, Vec<SubjectNumber>> = BTreeMap::new();
    for subject in subjects {
        for id in subject.selectors.iter().filter_map(&observed) {
            let claimants = claims.entry(id).or_default();
            if !claimants.contains(&subject.number) {
                claimants.push(subject.number);
            }
        }
    }
    let mut bindings = Bindings::default();
    for (id, claimants) in claims {
        match claimants.as_slice() {
            [subject] => drop(bindings.cgroups.insert(id, *subject)),
            _ => drop(bindings.contested.insert(id, claimants)),
        }
    }
    bindings
}

#[cfg(test)]
mod tests {
    use proto::types::{NewSubject, SubjectRole};

    use super::*;

    fn subject(number: u32, selectors: &[&str]) -> Subject {
        let new = NewSubject {
            id: format!("user:u{number}").parse().expect("valid"),
            selectors: selectors.iter().map(|text| text.parse().expect("valid")).collect(),
            role: SubjectRole::Member,
        };
        Subject::numbered(number.try_into().expect("not 0"), new)
    }

    /// `cgroup:/N` is cgroup N.
    fn observed(selector: &Selector) -> Option<u64> {
        match selector {
            Selector::Cgroup(path) => path.as_str().trim_start_matches('/').parse().ok(),
            Selector::UnixUser(_) => None,
        }
    }

    #[track_caller]
    fn check(subjects: &[Subject], bound: &[(u64, u32)], contested: &[u64]) {
        let bindings = bind(subjects, observed);
        let found: Vec<(u64, u32)> =
            bindings.cgroups.iter().map(|(id, subject)| (*id, subject.get())).collect();
        assert_eq!(found, bound);
        assert_eq!(bindings.contested.keys().copied().collect::<Vec<_>>(), contested);
    }

    #[test]
    fn a_cgroup_belongs_to_one_subject_or_to_none() {
        check(&[], &[], &[]);
        check(&[subject(1, &["cgroup:/10", "cgroup:/11"])], &[(10, 1), (11, 1)], &[]);
        check(&[subject(1, &["cgroup:/10"]), subject(2, &["cgroup:/11"])], &[(10, 1), (11, 2)], &[]);
        check(&[subject(1, &["cgroup:/10"]), subject(2, &["cgroup:/10", "cgroup:/11"])], &[(11, 2)], &[10]);
        check(&[subject(1, &["cgroup:/absent", "unix-user:alice"])], &[], &[]);
        // Two selectors of one subject that stand for the same cgroup are no contest.
        check(&[subject(1, &["cgroup:/10", "cgroup:/010"])], &[(10, 1)], &[]);
    }
}
