//! What a cgroup is, by where it lies: a unit, a user's slice, a session, a pod, a container.
//!
//! Owns: the layouts of systemd, Docker, containerd, CRI-O, Podman and the kubelet, with either cgroup driver. Must not know: who
//! may write where; what is there.
//!
//! Invariant: every part of a path is matched whole, from the root down, and what lies below a unit or a container is nothing:
//! names there are chosen by whoever runs in it. So nobody can make a name that means somebody else, and what was laid out in
//! a way that is not known here is not found, rather than found wrongly.

use std::borrow::Borrow;
use std::fmt::{self, Display};

use proto::types::UnitName;

/// A container's whole id: 64 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(String);

impl ContainerId {
    const DIGITS: usize = 64;

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parse(text: &str) -> Option<Self> {
        (text.len() == Self::DIGITS && is_hex(text)).then(|| Self(text.to_owned()))
    }
}

impl Borrow<str> for ContainerId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// A pod's uid as Kubernetes writes it: a UUID, or for the pods that a node's own files describe 32 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodUid(String);

impl PodUid {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The uid if it is one.
    pub fn parse(text: &str) -> Option<Self> {
        let is_uuid = || text.split('-').map(str::len).eq([8, 4, 4, 4, 12]) && text.split('-').all(is_hex);
        (is_uuid() || (text.len() == 32 && is_hex(text))).then(|| Self(text.to_owned()))
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// What a cgroup is besides a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing else.
    Plain,
    /// All of a user's processes: sessions, and the manager of the user's own units.
    UserSlice(u32),
    /// One login of a user, by the name that logind gave it.
    Session(String),
    /// All of a pod.
    Pod(PodUid),
    /// All of a container.
    Container(ContainerId),
}

/// What a cgroup is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The unit of the system's manager whose cgroup this is; None: it is none's.
    pub unit: Option<UnitName>,
    /// What else it is.
    pub kind: Kind,
    ground: Ground,
}

/// What the names of a cgroup's children mean.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ground {
    /// Below the root: slices and units, and what is made without systemd.
    Root,
    /// Below a slice, by its name without the ending: slices and units.
    Slice(String),
    /// Containers, by their id: `/docker`, and `/default` of containerd.
    Containers,
    /// Podman without systemd.
    Libpod,
    /// The kubelet as kind sets it up.
    Kubelet,
    /// Guaranteed pods and the two other classes.
    Kubepods,
    /// Pods of one class.
    PodClass,
    /// Containers of a pod.
    Pod,
    /// Nothing.
    Closed,
}

impl Place {
    /// The root itself.
    pub const ROOT: Self = Self { unit: None, kind: Kind::Plain, ground: Ground::Root };

    const NOTHING: Self = Self { unit: None, kind: Kind::Plain, ground: Ground::Closed };

    /// What the cgroup at this path is, below the root. Empty parts do not count.
    pub fn of(path: &str) -> Self {
        path.split('/').filter(|part| !part.is_empty()).fold(Self::ROOT, |place, part| place.child(part))
    }

    /// Whether something of meaning can lie below.
    pub fn is_open(&self) -> bool {
        self.ground != Ground::Closed
    }

    /// What the child of this name is.
    pub fn child(&self, name: &str) -> Self {
        match (&self.ground, name) {
            (Ground::Root, "docker" | "default") => Self::ground(Ground::Containers),
            (Ground::Root, "libpod_parent") => Self::ground(Ground::Libpod),
            (Ground::Root, "kubelet") => Self::ground(Ground::Kubelet),
            (Ground::Root | Ground::Kubelet, "kubepods") => Self::ground(Ground::Kubepods),
            (Ground::Root, _) => unit_child("", name),
            (Ground::Slice(parent), _) => unit_child(parent, name),
            (Ground::Containers, _) => Self::container(Some(name)),
            (Ground::Libpod, _) => Self::container(name.strip_prefix("libpod-")),
            (Ground::Kubepods, "burstable" | "besteffort") => Self::ground(Ground::PodClass),
            (Ground::Kubepods | Ground::PodClass, _) => Self::pod(name),
            (Ground::Pod, _) => Self::container(Some(name.strip_prefix("crio-").unwrap_or(name))),
            (Ground::Kubelet | Ground::Closed, _) => Self::NOTHING,
        }
    }

    fn ground(ground: Ground) -> Self {
        Self { ground, ..Self::NOTHING }
    }

    fn container(id: Option<&str>) -> Self {
        let container = id.and_then(ContainerId::parse).map(Kind::Container);
        Self { kind: container.unwrap_or(Kind::Plain), ..Self::NOTHING }
    }

    fn pod(name: &str) -> Self {
        match name.strip_prefix("pod").and_then(PodUid::parse) {
            Some(uid) => Self { kind: Kind::Pod(uid), ..Self::ground(Ground::Pod) },
            None => Self::NOTHING,
        }
    }
}

/// What lies below a slice (`parent` is its name without the ending) or, with none, below the root.
fn unit_child(parent: &str, name: &str) -> Place {
    let Some(unit) = unit_of(name) else { return Place::NOTHING };
    match unit.as_str().rsplit_once('.') {
        Some((stem, "slice")) => slice(parent, stem, &unit),
        Some((stem, kind)) => {
            let kind = if kind == "scope" { scope(parent, stem) } else { Kind::Plain };
            Place { kind, unit: Some(unit), ground: Ground::Closed }
        }
        None => Place::NOTHING,
    }
}

/// The slice `a-b` lies below the slice `a`; anywhere else it is not what its name says.
fn slice(parent: &str, stem: &str, unit: &UnitName) -> Place {
    let within = match parent {
        "" => Some(stem),
        _ => stem.strip_prefix(parent).and_then(|rest| rest.strip_prefix('-')),
    };
    let Some(own) = within.filter(|own| !own.contains('-')) else { return Place::NOTHING };
    let kind = user_slice(parent, own).or_else(|| pod_slice(parent, own)).unwrap_or(Kind::Plain);
    Place { unit: Some(unit.clone()), kind, ground: Ground::Slice(stem.to_owned()) }
}

fn user_slice(parent: &str, own: &str) -> Option<Kind> {
    let uid: u32 = own.parse().ok()?;
    // Nobody else writes `+7` or `007`, and each user has one slice.
    (parent == "user" && uid.to_string() == own).then_some(Kind::UserSlice(uid))
}

fn pod_slice(parent: &str, own: &str) -> Option<Kind> {
    let kubepods = parent.strip_prefix("kubelet-").unwrap_or(parent);
    let holds_pods = matches!(kubepods, "kubepods" | "kubepods-burstable" | "kubepods-besteffort");
    let uid = own.strip_prefix("pod").filter(|_| holds_pods)?;
    // A dash would be another slice.
    PodUid::parse(&uid.replace('_', "-")).map(Kind::Pod)
}

/// What a scope is: runtimes name theirs after the container, logind after the session.
fn scope(parent: &str, stem: &str) -> Kind {
    const RUNTIMES: [&str; 5] = ["docker", "cri-containerd", "crio", "libpod", "nerdctl"];
    let of_runtime = |runtime| ContainerId::parse(stem.strip_prefix(runtime)?.strip_prefix('-')?);
    if let Some(id) = RUNTIMES.into_iter().find_map(of_runtime) {
        return Kind::Container(id);
    }
    let is_id = |id: &&str| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let session = stem.strip_prefix("session-").filter(is_id).filter(|_| parent.starts_with("user-"));
    session.map_or(Kind::Plain, |id| Kind::Session(id.to_owned()))
}

/// The unit that systemd gives a directory of this name.
fn unit_of(name: &str) -> Option<UnitName> {
    let unit = name.strip_prefix('_').unwrap_or(name);
    (is_escaped(unit) == (unit != name)).then(|| UnitName::parse(unit).ok())?
}

/// systemd puts a `_` before names that could be taken for the kernel's own files in a cgroup, or for such an escape.
fn is_escaped(unit: &str) -> bool {
    const KERNELS: [&str; 9] =
        ["cgroup", "cpu", "cpuacct", "cpuset", "io", "blkio", "memory", "devices", "pids"];
    let is_file_of = |controller| unit.strip_prefix(controller).is_some_and(|rest| rest.starts_with('.'));
    unit.starts_with(['_', '.']) || KERNELS.into_iter().any(is_file_of)
}

/// As the corpus writes it: `unit NAME`, `pod UID` and so on, or `nothing`.
impl Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = self.unit.as_ref().map(|unit| format!("unit {unit}"));
        let kind = match &self.kind {
            Kind::Plain => None,
            Kind::UserSlice(uid) => Some(format!("user {uid}")),
            Kind::Session(id) => Some(format!("session {id}")),
            Kind::Pod(uid) => Some(format!("pod {}", uid.as_str())),
            Kind::Container(id) => Some(format!("container {}", id.as_str())),
        };
        let parts: Vec<String> = unit.into_iter().chain(kind).collect();
        f.write_str(if parts.is_empty() { "nothing" } else { "" })?;
        f.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `PATH` lines, each followed by an indented line that says what it is. `ID`, `UID` and `UID_` stand for an id, a pod's uid
    /// and the same as systemd writes it; `#` begins a comment.
    const CORPUS: [(&str, &str); 10] = [
        ("systemd", include_str!("layouts/corpus/systemd.txt")),
        ("logind", include_str!("layouts/corpus/logind.txt")),
        ("docker", include_str!("layouts/corpus/docker.txt")),
        ("containerd", include_str!("layouts/corpus/containerd.txt")),
        ("podman", include_str!("layouts/corpus/podman.txt")),
        ("kubernetes-systemd", include_str!("layouts/corpus/kubernetes-systemd.txt")),
        ("kubernetes-cgroupfs", include_str!("layouts/corpus/kubernetes-cgroupfs.txt")),
        ("crio", include_str!("layouts/corpus/crio.txt")),
        ("kind-and-k3s", include_str!("layouts/corpus/kind-and-k3s.txt")),
        ("forged", include_str!("layouts/corpus/forged.txt")),
    ];

    const ID: &str = "4c01db0b339c8f6e8d3c1a5b7e9f0a2c4d6e8f0b1c3d5e7f9a0b2c4d6e8f0a1b";
    const UID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

    fn expand(text: &str) -> String {
        text.replace("<ID>", ID).replace("<UID>", UID).replace("<UID_>", &UID.replace('-', "_"))
    }

    #[test]
    fn each_cgroup_of_the_corpus_is_what_it_is() {
        for (name, text) in CORPUS {
            let is_said = |line: &&str| !line.trim().is_empty() && !line.starts_with('#');
            let lines: Vec<&str> = text.lines().filter(is_said).collect();
            assert!(lines.len() > 10 && lines.len().is_multiple_of(2), "{name} is cut off");
            for pair in lines.chunks_exact(2) {
                let [path, what] = pair else { panic!("{name}: {pair:?}") };
                assert!(path.starts_with('/') && what.starts_with("    "), "{name}: {pair:?}");
                assert_eq!(Place::of(&expand(path)).to_string(), expand(what.trim()), "{name}: {path}");
            }
        }
    }

    /// Whatever is put below a unit or a container, by whoever runs there.
    #[test]
    fn below_units_and_containers_there_is_nothing() {
        let homes = [
            "/system.slice/app.service",
            "/user.slice/user-1000.slice/user@1000.service",
            "/user.slice/user-1000.slice/session-3.scope",
            "/system.slice/docker-<ID>.scope",
            "/docker/<ID>",
            "/kubepods/burstable/pod<UID>/<ID>",
            "/machine.slice/libpod-<ID>.scope",
        ];
        for (name, text) in CORPUS {
            for path in text.lines().filter(|line| line.starts_with('/') && *line != "/") {
                for home in homes {
                    let forged = expand(&format!("{home}{path}"));
                    assert_eq!(Place::of(&forged), Place::NOTHING, "{name}: {forged}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn no_path_panics(path in "(/[a-z0-9@._\\\\-]{0,12}(\\.slice|\\.scope|\\.service|)){0,6}\\PC{0,8}") {
            let _ = Place::of(&path).to_string();
        }

        #[test]
        fn what_is_not_the_whole_name_is_nothing(before in "[a-z0-9-]{1,3}", after in "[a-z0-9.-]{1,3}") {
            for name in [format!("{before}{ID}"), format!("{ID}{after}"), format!("{before}{ID}{after}")] {
                prop_assert_eq!(Place::of(&format!("/docker/{name}")), Place::NOTHING);
                prop_assert_eq!(Place::of(&format!("/kubepods/pod{UID}/{name}")), Place::NOTHING);
                let scope = Place::of(&format!("/system.slice/docker-{name}.scope"));
                prop_assert_eq!(scope.kind, Kind::Plain);
            }
        }
    }
}
