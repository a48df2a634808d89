//! What this host's kernel holds, to be compared with what the control plane wants there.
//!
//! Owns: what of the maps it is made of. Must not know: how they were read.
//!
//! A pair is in it if the kernel would let it through now. A resource is in it if it was not refused; but if the maps lack
//! anything of what protects, or have something that should not be there, none is. The control plane knows no numbers of runs: what
//! lets a run through by a grant of that run alone is in it as the pair of the run's subject.

use std::collections::BTreeSet;
use std::convert::Infallible;

use proto::types::{Digest, Refused, RefusedItem, Resource, ResourceNumber, SubjectNumber};

use super::grants::Grants;
use super::plan::{Entries, Wanted, Write, reconcile};
use super::runs::{FIRST_NUMBER, Runs};

/// Of what was `read` from the maps at `now_boot_ns`, where `wanted` should be, but for what was `refused`. None: there is no set
/// yet.
pub fn digest(
    read: &Entries,
    grants: &Grants,
    runs: &Runs,
    wanted: &Wanted,
    refused: &[Refused],
    slots_max: u32,
    now_boot_ns: u64,
) -> Option<Digest> {
    let (_, generation) = grants.applied()?;
    let known: BTreeSet<ResourceNumber> = grants.resources().iter().map(|resource| resource.number).collect();
    let counting = read.grants.iter().filter(|(_, held)| read.counts(held.slot, held.epoch, now_boot_ns));
    let counting: BTreeSet<(u32, u32)> = counting.map(|(pair, _)| (pair.subject, pair.resource)).collect();
    // The canary's is nobody else's business, and runs are ours.
    let of_subjects = counting.iter().filter(|(subject, _)| *subject < FIRST_NUMBER);
    let mut pairs: BTreeSet<(SubjectNumber, ResourceNumber)> = of_subjects
        .filter_map(|(subject, resource)| Some(((*subject).try_into().ok()?, (*resource).try_into().ok()?)))
        .filter(|(_, resource)| known.contains(resource))
        .collect();
    pairs.extend(grants.of_runs().filter_map(|(grant, run)| {
        let pair = (runs.get(run)?.number.get(), grant.resource.get());
        counting.contains(&pair).then_some((grant.subject, grant.resource))
    }));
    let was_refused =
        |resource: &&Resource| refused.iter().any(|one| one.item == RefusedItem::Resource(resource.number));
    let any_refused = grants.resources().iter().any(|resource| was_refused(&resource));
    let resources: Vec<Resource> = match any_refused || protects(read, wanted, slots_max, now_boot_ns) {
        true => grants.resources().iter().filter(|resource| !was_refused(resource)).cloned().collect(),
        false => Vec::new(),
    };
    Some(Digest::of(generation, &pairs, &resources, grants.subjects()))
}

/// Whether nothing would have to be written for the maps to protect what they should.
fn protects(read: &Entries, wanted: &Wanted, slots_max: u32, now_boot_ns: u64) -> bool {
    let mut is_whole = true;
    let mut present = read.clone();
    reconcile(&mut present, wanted, slots_max, now_boot_ns, |write| {
        is_whole &= match write {
            Write::SetPort { .. }
            | Write::AddAddress { .. }
            | Write::RemoveAddress { .. }
            | Write::GuardUnix { .. }
            | Write::FreeUnix { .. }
            | Write::AddPeer { .. }
            | Write::RemovePeer { .. }
            | Write::Judge { .. } => false,
            Write::BindCgroup { .. }
            | Write::UnbindCgroup { .. }
            | Write::NameSlot { .. }
            | Write::SetDeadline { .. }
            | Write::SetIdleLimit { .. }
            | Write::BeginSlot { .. }
            | Write::RestartIdling { .. }
            | Write::SetEpoch { .. }
            | Write::PutGrant { .. }
            | Write::RemoveGrant { .. } => true,
        };
        Ok::<(), Infallible>(())
    });
    is_whole
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proto::types::{GrantId, GrantSet, LiveGrant, NewResource, NewSubject, RunId, Subject, SubjectRole};
    use uuid::Uuid;

    use super::*;

    const SLOTS_MAX: u32 = 64;

    fn grants() -> Grants {
        grants_of(None)
    }

    fn grants_of(run: Option<RunId>) -> Grants {
        let ports = vec!["tcp/5432".parse().expect("valid")];
        let address = "10.0.0.1".parse().expect("valid");
        let resource = NewResource::new("db".parse().expect("valid"), vec![address], ports).expect("valid");
        let id = "user:alice".parse().expect("valid");
        let subject = NewSubject { id, selectors: vec![], role: SubjectRole::Member };
        let live = LiveGrant {
            id: GrantId::new(),
            subject: 1.try_into().expect("not 0"),
            resource: 1.try_into().expect("not 0"),
            remaining: Duration::from_secs(60),
            idle: None,
            while_running: None,
            run,
            action: None,
            extensions: 0,
        };
        let mut grants = Grants::default();
        let set = GrantSet {
            generation: 7,
            resources: vec![Resource::numbered(1.try_into().expect("not 0"), resource)],
            subjects: vec![Subject::numbered(1.try_into().expect("not 0"), subject)],
            grants: vec![live],
        };
        grants.accept(Uuid::from_u128(1), set, 0);
        grants
    }

    fn wanted(grants: &Grants) -> Wanted {
        wanted_with(grants, &Runs::default())
    }

    fn wanted_with(grants: &Grants, runs: &Runs) -> Wanted {
        Wanted { grants: grants.wanted(runs), ..Wanted::guarding(grants.resources().to_vec()) }
    }

    fn entries(wanted: &Wanted) -> Entries {
        let mut entries = Entries::default();
        reconcile(&mut entries, wanted, SLOTS_MAX, 0, |_| Ok::<(), Infallible>(()));
        entries
    }

    fn of(entries: &Entries, grants: &Grants, refused: &[Refused], now_boot_ns: u64) -> Digest {
        let runs = Runs::default();
        digest(entries, grants, &runs, &wanted(grants), refused, SLOTS_MAX, now_boot_ns)
            .expect("there is a set")
    }

    #[test]
    fn it_is_what_the_control_plane_makes_of_its_set() {
        let grants = grants();
        let read = entries(&wanted(&grants));
        let pair = (1.try_into().expect("not 0"), 1.try_into().expect("not 0"));
        let expected = Digest::of(7, &[pair].into(), grants.resources(), grants.subjects());
        assert_eq!(of(&read, &grants, &[], 0), expected);
        let without = Digest::of(7, &BTreeSet::new(), grants.resources(), grants.subjects());
        assert_eq!(
            of(&read, &grants, &[], 61_000_000_000),
            without,
            "the kernel lets nobody through any more"
        );
        let (nothing, no_runs) = (Grants::default(), Runs::default());
        assert_eq!(digest(&read, &nothing, &no_runs, &Wanted::default(), &[], SLOTS_MAX, 0), None);
    }

    #[test]
    fn what_opens_to_one_run_counts_as_its_subjects() {
        let mut runs = Runs::default();
        let alice: proto::types::SubjectId = "user:alice".parse().expect("valid");
        let [run, other] =
            [1, 2].map(|cgroup| runs.open(RunId::new(), alice.clone(), cgroup).expect("there is room"));
        let pair = (1.try_into().expect("not 0"), 1.try_into().expect("not 0"));
        for of in [None, Some(run.id)] {
            let grants = grants_of(of);
            let wanted = wanted_with(&grants, &runs);
            let (read, expected) = (entries(&wanted), [pair].into());
            let told = digest(&read, &grants, &runs, &wanted, &[], SLOTS_MAX, 0).expect("there is a set");
            assert_eq!(told, Digest::of(7, &expected, grants.resources(), grants.subjects()), "{of:?}");
        }
        // Another run's pair says nothing of it.
        let grants = grants_of(Some(run.id));
        let wanted = Wanted::guarding(grants.resources().to_vec());
        let (mut read, from) = (entries(&wanted), entries(&wanted_with(&grants_of(Some(other.id)), &runs)));
        read.grants = from.grants.clone();
        (read.deadlines, read.epochs) = (from.deadlines, from.epochs);
        let told = digest(&read, &grants, &runs, &wanted, &[], SLOTS_MAX, 0).expect("there is a set");
        assert_eq!(told.pairs_count, 0);
    }

    #[test]
    fn whatever_is_missing_in_the_maps_is_seen() {
        let grants = grants();
        let whole = entries(&wanted(&grants));
        let expected = of(&whole, &grants, &[], 0);
        let changes: [fn(&mut Entries); 4] = [
            |entries| entries.ports.clear(),
            |entries| entries.classes.clear(),
            |entries| entries.grants.clear(),
            |entries| entries.deadlines.clear(),
        ];
        for (index, change) in changes.into_iter().enumerate() {
            let mut changed = whole.clone();
            change(&mut changed);
            assert_ne!(of(&changed, &grants, &[], 0), expected, "change {index}");
        }
    }

    #[test]
    fn what_was_refused_is_left_out() {
        let grants = grants();
        let item = RefusedItem::Resource(1.try_into().expect("not 0"));
        let refused = [Refused { item, error: "map full".to_owned() }];
        let digest = of(&Entries::default(), &grants, &refused, 0);
        assert_eq!(digest, Digest::of(7, &BTreeSet::new(), &[], grants.subjects()));
    }
}
