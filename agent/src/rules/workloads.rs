//! Which cgroup is which subject.
//!
//! Owns: what a selector stands for among what is there, and the rule that a cgroup belongs to one subject at most. Must not
//! know: how cgroups and pods were observed.
//!
//! Invariant: a selector that could mean several things binds none of them, and is told of.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::ops::Bound;

use proto::types::{CgroupPath, ContainerPrefix, Selector, Subject, SubjectNumber, UnitName, UnixUser};

use super::layouts::{ContainerId, Kind, Place, PodUid};
use super::pods::Pods;

/// Why a selector binds nothing, though something is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// What it names is at several places: one is what a runtime or systemd left behind, or somebody made it up.
    SeveralPlaces(usize),
    /// So many containers' ids begin with it.
    SeveralContainers(usize),
    /// Others than root can make cgroups on the way to it, and so decide what it is.
    Writable {
        /// Where.
        directory: String,
    },
}

impl Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SeveralPlaces(count) => {
                write!(f, "it is at {count} places: remove the cgroups that nobody uses any more")
            }
            Self::SeveralContainers(count) => {
                write!(f, "the ids of {count} containers begin with it: write more digits")
            }
            Self::Writable { directory } => {
                write!(f, "others than root may make cgroups in {directory}: name that one, or one above it")
            }
        }
    }
}

/// What is there on this host that selectors can stand for, by cgroup id. A thing that is at several places has several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    units: BTreeMap<UnitName, BTreeSet<u64>>,
    users: BTreeMap<u32, BTreeSet<u64>>,
    pods: BTreeMap<PodUid, BTreeSet<u64>>,
    containers: BTreeMap<ContainerId, BTreeSet<u64>>,
}

impl Census {
    /// A cgroup came.
    pub fn insert(&mut self, id: u64, place: &Place) {
        if let Some(unit) = &place.unit {
            self.units.entry(unit.clone()).or_default().insert(id);
        }
        match &place.kind {
            Kind::UserSlice(uid) => drop(self.users.entry(*uid).or_default().insert(id)),
            Kind::Pod(uid) => drop(self.pods.entry(uid.clone()).or_default().insert(id)),
            Kind::Container(container) => {
                self.containers.entry(container.clone()).or_default().insert(id);
            }
            Kind::Plain | Kind::Session(_) => {}
        }
    }

    /// It went.
    pub fn remove(&mut self, id: u64, place: &Place) {
        if let Some(unit) = &place.unit {
            remove(&mut self.units, unit, id);
        }
        match &place.kind {
            Kind::UserSlice(uid) => remove(&mut self.users, uid, id),
            Kind::Pod(uid) => remove(&mut self.pods, uid, id),
            Kind::Container(container) => remove(&mut self.containers, container, id),
            Kind::Plain | Kind::Session(_) => {}
        }
    }

    /// Whose slices are there.
    pub fn users(&self) -> impl Iterator<Item = u32> {
        self.users.keys().copied()
    }

    /// Whether pods run here.
    pub fn has_pods(&self) -> bool {
        !self.pods.is_empty()
    }

    /// The cgroups that a selector stands for; none: it is not there.
    pub fn find(&self, selector: &Selector, sight: &impl Sight) -> Result<BTreeSet<u64>, Doubt> {
        match selector {
            Selector::Cgroup(path) => Ok(sight.at(path)?.into_iter().collect()),
            Selector::UnixUser(user) => one_place(sight.uid_of(user).and_then(|uid| self.users.get(&uid))),
            Selector::SystemdUnit(unit) => one_place(self.units.get(unit)),
            Selector::Container(prefix) => self.container(prefix),
            Selector::Kubernetes(wanted) => {
                let mut found = BTreeSet::new();
                for pod in sight.pods().matching(wanted) {
                    found.extend(one_place(self.pods.get(pod))?);
                }
                Ok(found)
            }
        }
    }

    fn container(&self, prefix: &ContainerPrefix) -> Result<BTreeSet<u64>, Doubt> {
        let from = (Bound::Included(prefix.as_str()), Bound::Unbounded);
        let begin_so = self.containers.range::<str, _>(from);
        let begin_so: Vec<_> =
            begin_so.take_while(|(id, _)| id.as_str().starts_with(prefix.as_str())).collect();
        match begin_so.as_slice() {
            [] => Ok(BTreeSet::new()),
            [(_, places)] => one_place(Some(places)),
            several => Err(Doubt::SeveralContainers(several.len())),
        }
    }
}

fn remove<K: Ord>(map: &mut BTreeMap<K, BTreeSet<u64>>, key: &K, id: u64) {
    if let Some(ids) = map.get_mut(key) {
        ids.remove(&id);
        if ids.is_empty() {
            map.remove(key);
        }
    }
}

fn one_place(places: Option<&BTreeSet<u64>>) -> Result<BTreeSet<u64>, Doubt> {
    match places {
        Some(places) if places.len() > 1 => Err(Doubt::SeveralPlaces(places.len())),
        places => Ok(places.cloned().unwrap_or_default()),
    }
}

/// What else must be known of this host.
pub trait Sight {
    /// The cgroup at a path.
    fn at(&self, path: &CgroupPath) -> Result<Option<u64>, Doubt>;
    /// The uid of an account; None: it is not known here.
    fn uid_of(&self, user: &UnixUser) -> Option<u32>;
    /// The pods of this node.
    fn pods(&self) -> &Pods;
}

/// Whose each cgroup is, and what could not be settled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bindings {
    /// Cgroup id → subject.
    pub cgroups: BTreeMap<u64, SubjectNumber>,
    /// Cgroups that several subjects claim: nobody's, since nothing can say whose a process in them is.
    pub contested: BTreeMap<u64, Vec<SubjectNumber>>,
    /// Selectors that bind nothing, though something is there.
    pub doubts: BTreeMap<(SubjectNumber, Selector), Doubt>,
}

/// Binds the cgroups that the subjects' selectors were found to stand for. A selector without a cgroup binds nothing: its
/// processes are not there (yet).
pub fn bind(subjects: &[Subject], observed: impl Fn(&Selector) -> Result<BTreeSet<u64>, Doubt>) -> Bindings {
    let mut bindings = Bindings::default();
    let mut claims: BTreeMap<u64, Vec<SubjectNumber>> = BTreeMap::new();
    for subject in subjects {
        for selector in &subject.selectors {
            match observed(selector) {
                Ok(ids) => ids.into_iter().for_each(|id| claim(&mut claims, id, subject.number)),
                Err(doubt) => {
                    bindings.doubts.insert((subject.number, selector.clone()), doubt);
                }
            }
        }
    }
    for (id, claimants) in claims {
        match claimants.as_slice() {
            [subject] => drop(bindings.cgroups.insert(id, *subject)),
            _ => drop(bindings.contested.insert(id, claimants)),
        }
    }
    bindings
}

fn claim(claims: &mut BTreeMap<u64, Vec<SubjectNumber>>, id: u64, subject: SubjectNumber) {
    let claimants = claims.entry(id).or_default();
    if !claimants.contains(&subject) {
        claimants.push(subject);
    }
}

#[cfg(test)]
mod tests {
    use proto::types::{NewSubject, SubjectRole};

    use super::*;
    use crate::rules::pods::{Pod, PodsChange};

    const ID: &str = "4c01db0b339c8f6e8d3c1a5b7e9f0a2c4d6e8f0b1c3d5e7f9a0b2c4d6e8f0a1b";
    const LIKE_ID: &str = "4c01db0b339c9999999999999999999999999999999999999999999999999999";
    const UID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";
    const OTHER_UID: &str = "7c9e6679-7425-40de-944b-e07fc1f90ae7";

    /// Cgroup N is the Nth of these, from 0.
    const THERE: [&str; 9] = [
        "/system.slice/nginx.service",
        "/user.slice/user-1000.slice",
        "/system.slice/docker-<ID>.scope",
        "/docker/<LIKE_ID>",
        "/kubepods/pod<UID>",
        "/kubepods/burstable/pod<OTHER_UID>",
        "/app.slice/twice.service",
        "/system.slice/twice.service",
        "/kubepods/burstable/pod<OTHER_UID>/3333333333333333333333333333333333333333333333333333333333333333",
    ];

    struct Told(Pods);

    impl Sight for Told {
        fn at(&self, path: &CgroupPath) -> Result<Option<u64>, Doubt> {
            match path.as_str() {
                "/writable/job" => Err(Doubt::Writable { directory: "/writable".to_owned() }),
                path => Ok(path.trim_start_matches('/').parse().ok()),
            }
        }

        fn uid_of(&self, user: &UnixUser) -> Option<u32> {
            match user {
                UnixUser::Uid(uid) => Some(*uid),
                UnixUser::Name(name) => (name == "alice").then_some(1000),
            }
        }

        fn pods(&self) -> &Pods {
            &self.0
        }
    }

    fn told() -> Told {
        let pod = |uid: &str, account: &str, app: &str| Pod {
            uid: PodUid::parse(uid).expect("valid"),
            namespace: "prod".to_owned(),
            service_account: account.to_owned(),
            labels: [("app".to_owned(), app.to_owned())].into(),
        };
        let mut pods = Pods::default();
        pods.apply(PodsChange::Listed(vec![pod(UID, "web", "shop"), pod(OTHER_UID, "db", "shop")]));
        Told(pods)
    }

    fn census() -> Census {
        let mut census = Census::default();
        for (id, path) in (0..).zip(THERE) {
            let path = path.replace("<ID>", ID).replace("<LIKE_ID>", LIKE_ID);
            let path = path.replace("<UID>", UID).replace("<OTHER_UID>", OTHER_UID);
            census.insert(id, &Place::of(&path));
        }
        census
    }

    #[track_caller]
    fn finds(selector: &str, ids: &[u64]) {
        let found = census().find(&selector.parse().expect("valid"), &told());
        assert_eq!(found, Ok(ids.iter().copied().collect()), "{selector}");
    }

    #[track_caller]
    fn doubts(selector: &str, text: &str) {
        let doubt = census().find(&selector.parse().expect("valid"), &told()).expect_err(selector);
        assert!(doubt.to_string().contains(text), "{selector}: {doubt}");
    }

    #[test]
    fn selectors_stand_for_what_is_there() {
        finds("cgroup:/77", &[77]);
        finds("cgroup:/absent", &[]);
        finds("systemd-unit:nginx.service", &[0]);
        finds("systemd-unit:absent.service", &[]);
        finds("unix-user:1000", &[1]);
        finds("unix-user:alice", &[1]);
        finds("unix-user:bob", &[]);
        finds("unix-user:0", &[]);
        finds(&format!("container:{ID}"), &[2]);
        finds(&format!("container:{}", &ID[..13]), &[2]);
        finds(&format!("container:{LIKE_ID}"), &[3]);
        finds("container:aaaaaaaaaaaa", &[]);
        finds("kubernetes:prod/web", &[4]);
        finds("kubernetes:prod?app=shop", &[4, 5]);
        finds("kubernetes:prod/db?app=shop", &[5]);
        finds("kubernetes:test/web", &[]);
    }

    #[test]
    fn what_could_be_several_things_is_none() {
        doubts(&format!("container:{}", &ID[..12]), "2 containers");
        doubts("systemd-unit:twice.service", "2 places");
        doubts("cgroup:/writable/job", "others than root may make cgroups in /writable");
        let mut census = census();
        census.insert(99, &Place::of(&format!("/kubepods/besteffort/pod{UID}")));
        let web = "kubernetes:prod/web".parse().expect("valid");
        assert_eq!(census.find(&web, &told()), Err(Doubt::SeveralPlaces(2)));
        census.remove(4, &Place::of(&format!("/kubepods/pod{UID}")));
        assert_eq!(census.find(&web, &told()), Ok([99].into()));
    }

    #[test]
    fn what_went_leaves_nothing() {
        let mut left = census();
        for (id, path) in (0..).zip(THERE) {
            let path = path.replace("<ID>", ID).replace("<LIKE_ID>", LIKE_ID);
            let path = path.replace("<UID>", UID).replace("<OTHER_UID>", OTHER_UID);
            left.remove(id, &Place::of(&path));
        }
        assert_eq!(left, Census::default());
    }

    fn subject(number: u32, selectors: &[&str]) -> Subject {
        let new = NewSubject {
            id: format!("user:u{number}").parse().expect("valid"),
            selectors: selectors.iter().map(|text| text.parse().expect("valid")).collect(),
            role: SubjectRole::Member,
        };
        Subject::numbered(number.try_into().expect("not 0"), new)
    }

    /// `cgroup:/N` is cgroup N.
    #[track_caller]
    fn check(subjects: &[Subject], bound: &[(u64, u32)], contested: &[u64], doubts: usize) {
        let bindings = bind(subjects, |selector| census().find(selector, &told()));
        let found: Vec<(u64, u32)> =
            bindings.cgroups.iter().map(|(id, subject)| (*id, subject.get())).collect();
        assert_eq!(found, bound);
        assert_eq!(bindings.contested.keys().copied().collect::<Vec<_>>(), contested);
        assert_eq!(bindings.doubts.len(), doubts);
    }

    #[test]
    fn a_cgroup_belongs_to_one_subject_or_to_none() {
        check(&[], &[], &[], 0);
        check(&[subject(1, &["cgroup:/10", "cgroup:/11"])], &[(10, 1), (11, 1)], &[], 0);
        check(&[subject(1, &["cgroup:/10"]), subject(2, &["cgroup:/11"])], &[(10, 1), (11, 2)], &[], 0);
        let both = [subject(1, &["cgroup:/10"]), subject(2, &["cgroup:/10", "cgroup:/11"])];
        check(&both, &[(11, 2)], &[10], 0);
        check(&[subject(1, &["cgroup:/absent", "unix-user:bob"])], &[], &[], 0);
        // Two selectors of one subject that stand for the same cgroup are no contest.
        check(&[subject(1, &["cgroup:/10", "cgroup:/010"])], &[(10, 1)], &[], 0);
        check(
            &[subject(1, &["kubernetes:prod?app=shop"]), subject(2, &["kubernetes:prod/db"])],
            &[(4, 1)],
            &[5],
            0,
        );
        // A doubt about one selector is none about the others.
        check(&[subject(1, &["systemd-unit:twice.service", "cgroup:/10"])], &[(10, 1)], &[], 1);
    }
}
