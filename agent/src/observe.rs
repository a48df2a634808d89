//! The only reader of `/proc` and cgroupfs.
//!
//! Owns: where the cgroup v2 root is, which cgroups are there, what a process is, where the paths of unix sockets lead. Must not
//! know: what follows from it; what a cgroup's path means, and what a selector stands for, it asks the rules.

mod accounts;
mod process;
mod tree;
mod unix;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::utsname::uname;
use nix::unistd::{Uid, gethostname};
use procfs::process::Process;
use proto::types::{CgroupPath, Selector, Subject, UnixUser};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use uuid::Uuid;

pub use process::{ProcessNow, process};
pub use unix::{Host, UnixSockets, unix_keys};

use crate::clock::now_boot_ns;
use crate::rules::audit::ProcessDetails;
use crate::rules::mounts::unescape;
use crate::rules::pods::Pods;
use crate::rules::workloads::{Doubt, Sight};
use accounts::Accounts;
use tree::Tree;

/// The inode of the root of the whole hierarchy. Any other directory is a container's view, or a subtree: programs
/// attached there would not see the rest of the host.
const ROOT_INODE: u64 = 1;

/// Something about this host that must be known and is not.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// There is no cgroup v2.
    #[error(
        "no cgroup v2 hierarchy is mounted, or only a part of it: mount it with `mount -t cgroup2 none /sys/fs/cgroup`, \
         and give a container the host's cgroup namespace"
    )]
    NoCgroupRoot,
    /// A file of the kernel cannot be read.
    #[error("cannot read {path}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the kernel says something else than expected.
    #[error("cannot make sense of {path}: {text:?}", path = path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// What it says.
        text: String,
    },
}

fn read(path: &str) -> Result<String, ObserveError> {
    fs::read_to_string(path).map_err(|source| ObserveError::Read { path: path.into(), source })
}

/// Where the root of cgroup v2 is mounted.
pub fn cgroup_root() -> Result<PathBuf, ObserveError> {
    let mounts = read("/proc/self/mounts")?;
    let roots = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (path, kind) = (fields.nth(1)?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(unescape(path)))
    });
    roots
        .into_iter()
        .find(|path| fs::metadata(path).is_ok_and(|metadata| metadata.ino() == ROOT_INODE))
        .ok_or(ObserveError::NoCgroupRoot)
}

/// The id of the running kernel.
pub fn boot_id() -> Result<Uuid, ObserveError> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text = read(PATH)?;
    text.trim().parse().map_err(|_| ObserveError::Parse { path: PATH.into(), text })
}

/// The kernel's release; empty if it does not say.
pub fn kernel_release() -> String {
    uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default()
}

/// This machine's name up to the first dot; empty if it has none.
pub fn hostname() -> String {
    let name = gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name.split('.').next().unwrap_or_default().to_lowercase()
}

/// What can be seen below the cgroup root.
pub struct Cgroups {
    root: PathBuf,
    tree: Tree,
    accounts: Accounts,
    /// The pods of this node, as somebody else was told of them.
    pods: Pods,
    /// Paths of cgroups that processes were seen in, for when those processes are gone.
    paths: HashMap<u64, String>,
    /// Processes that were looked at, by pid.
    processes: HashMap<u32, Seen>,
}

/// A process as it was.
struct Seen {
    /// When it was looked at.
    at_boot_ns: u64,
    /// When it had started.
    started_boot_ns: u64,
    executable: String,
    login_uid: Option<u32>,
}

/// What the kernel says of a process that is in no login.
const NO_LOGIN: u32 = u32::MAX;

impl Cgroups {
    /// How many paths are remembered. A host has some hundred cgroups; when there are more, all are looked up anew.
    const PATHS_MAX: usize = 8192;
    /// How many processes are remembered: more than one batch of records can name.
    const PROCESSES_MAX: usize = 1024;

    /// Looks below this root, where only root makes cgroups that mean something.
    pub fn new(root: PathBuf) -> Self {
        Self::owned_by(root, Uid::from_raw(0))
    }

    fn owned_by(root: PathBuf, owner: Uid) -> Self {
        Self {
            tree: Tree::new(root.clone(), owner.as_raw()),
            root,
            accounts: Accounts::default(),
            pods: Pods::default(),
            paths: HashMap::new(),
            processes: HashMap::new(),
        }
    }

    /// The root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What tells when it is time to look; None: only time does.
    pub fn notices(&self) -> io::Result<Option<Notices>> {
        self.tree.notices().map(|fd| Notices::new(fd?)).transpose()
    }

    /// These are the selectors that will be asked for, from the next look on.
    pub fn follow<'a>(&mut self, selectors: impl Iterator<Item = &'a Selector> + Clone) {
        let paths = selectors.clone().filter_map(|selector| match selector {
            Selector::Cgroup(path) => Some(path),
            _ => None,
        });
        self.tree.follow(paths);
        self.accounts.follow(selectors.filter_map(|selector| match selector {
            Selector::UnixUser(user) => Some(user),
            _ => None,
        }));
    }

    /// Follows what came and went. `again`: also what there was no notice of. Returns whether a selector may stand for
    /// something else now.
    pub fn look(&mut self, again: bool) -> bool {
        let moved = self.tree.look(again);
        let users = self.tree.census().users().collect();
        self.accounts.look(users, again) || moved
    }

    /// The ids of the cgroups that a selector stands for, as they were at the last look; none: it is not there.
    pub fn find(&self, selector: &Selector) -> Result<BTreeSet<u64>, Doubt> {
        self.tree.census().find(selector, self)
    }

    /// Whether pods run here.
    pub fn has_pods(&self) -> bool {
        self.tree.census().has_pods()
    }

    /// Why not all that is there may be known; None: it is.
    pub fn problem(&self) -> Option<&'static str> {
        self.tree.problem()
    }

    /// What somebody else is told of this node's pods.
    pub fn pods_mut(&mut self) -> &mut Pods {
        &mut self.pods
    }

    /// The id of the cgroup at this path, if there are processes in it or below it. What cannot be read has none.
    pub fn running(&self, path: &CgroupPath) -> Option<u64> {
        let id = self.id_of(path.as_str())?;
        let events = self.root.join(path.as_str().trim_start_matches('/')).join("cgroup.events");
        let events = fs::read_to_string(events).ok()?;
        events.lines().any(|line| line == "populated 1").then_some(id)
    }

    /// The id of the cgroup that a process is in, which is still there.
    pub fn of(&self, process: &ProcessNow) -> Option<u64> {
        self.id_of(process.cgroup_path.as_deref()?)
    }

    /// The id of the cgroup at this absolute path below the root: the inode number of its directory. Symbolic links are not
    /// followed, though cgroupfs has none.
    fn id_of(&self, path: &str) -> Option<u64> {
        let metadata = fs::symlink_metadata(self.root.join(path.trim_start_matches('/'))).ok()?;
        metadata.is_dir().then(|| metadata.ino())
    }

    /// What is still to be learned of the process that a record names. `boot_ns` is the record's time: a process that
    /// started later is another one with the same pid.
    pub fn details(&mut self, pid: u32, cgroup_id: u64, boot_ns: u64) -> ProcessDetails {
        // Who connects often has many records in one batch. What was seen after all of them says as much of each as another
        // look would.
        let seen = self
            .processes
            .get(&pid)
            .filter(|seen| (seen.started_boot_ns..=seen.at_boot_ns).contains(&boot_ns));
        if let (Some(seen), Some(path)) = (seen, self.paths.get(&cgroup_id)) {
            let (executable, cgroup_path) = (seen.executable.clone(), path.clone());
            return ProcessDetails { executable, cgroup_path, login_uid: seen.login_uid };
        }
        let at_boot_ns = now_boot_ns();
        let process = i32::try_from(pid).ok().and_then(|pid| Process::new(pid).ok());
        let started_boot_ns = process.as_ref().map_or(u64::MAX, started_boot_ns);
        let process = process.filter(|_| started_boot_ns <= boot_ns);
        let executable = process.as_ref().and_then(|process| process.exe().ok());
        let executable = executable.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
        // Of a kernel without audit there is none.
        let login_uid = process.as_ref().and_then(|process| process.loginuid().ok());
        let login_uid = login_uid.filter(|uid| *uid != NO_LOGIN);
        if process.is_some() {
            if self.processes.len() >= Self::PROCESSES_MAX {
                self.processes.clear();
            }
            let seen = Seen { at_boot_ns, started_boot_ns, executable: executable.clone(), login_uid };
            self.processes.insert(pid, seen);
        }
        let cgroup_path = self.cgroup_path(process.as_ref(), cgroup_id);
        ProcessDetails { executable, cgroup_path, login_uid }
    }

    /// The accounts by which subjects are found, as far as they are known.
    pub fn accounts_of(&self, subjects: &[Subject]) -> BTreeMap<u32, BTreeSet<u32>> {
        let account = |selector: &Selector| match selector {
            Selector::UnixUser(user) => self.accounts.uid_of(user),
            _ => None,
        };
        let of = |subject: &Subject| {
            (subject.number.get(), subject.selectors.iter().filter_map(account).collect::<BTreeSet<u32>>())
        };
        subjects.iter().map(of).filter(|(_, accounts)| !accounts.is_empty()).collect()
    }

    /// The path of the cgroup with this id, if the process is still in it or one was seen in it before.
    fn cgroup_path(&mut self, process: Option<&Process>, cgroup_id: u64) -> String {
        if let Some(path) = self.paths.get(&cgroup_id) {
            return path.clone();
        }
        let path = process.and_then(unified_path).filter(|path| self.id_of(path) == Some(cgroup_id));
        if let Some(path) = &path {
            if self.paths.len() >= Self::PATHS_MAX {
                self.paths.clear();
            }
            self.paths.insert(cgroup_id, path.clone());
        }
        path.unwrap_or_default()
    }
}

impl Sight for Cgroups {
    fn at(&self, path: &CgroupPath) -> Result<Option<u64>, Doubt> {
        self.tree.at(path)
    }

    fn uid_of(&self, user: &UnixUser) -> Option<u32> {
        self.accounts.uid_of(user)
    }

    fn pods(&self) -> &Pods {
        &self.pods
    }
}

/// The kernel's word that cgroups came or went.
pub struct Notices(AsyncFd<OwnedFd>);

impl Notices {
    #[expect(
        deprecated,
        reason = "an `OwnedFd` is what the one without `unsafe` is sound for: it stays open, and the same"
    )]
    fn new(fd: OwnedFd) -> io::Result<Self> {
        AsyncFd::with_interest(fd, Interest::READABLE).map(Self)
    }

    /// Returns when there is something to look at that was not there when it returned last.
    pub async fn next(&self) -> io::Result<()> {
        self.0.readable().await?.clear_ready();
        Ok(())
    }
}

/// The path of a process's cgroup in the v2 hierarchy.
fn unified_path(process: &Process) -> Option<String> {
    let cgroups = process.cgroups().ok()?;
    cgroups
        .into_iter()
        .find(|cgroup| cgroup.hierarchy == 0)
        .map(|cgroup| from_the_root(&cgroup.pathname).to_owned())
}

/// An agent in a cgroup namespace of its own is told paths that begin with as many `/..` as its own cgroup has levels. What
/// is left may still be relative to some other cgroup; whoever uses it compares the id.
fn from_the_root(path: &str) -> &str {
    let mut rest = path;
    while let Some(shorter) = rest.strip_prefix("/..") {
        rest = shorter;
    }
    rest
}

/// When it started, on the boot clock; never: it cannot be told.
fn started_boot_ns(process: &Process) -> u64 {
    let ticks_per_second = u128::from(procfs::ticks_per_second().max(1));
    let started = process.stat().map(|stat| u128::from(stat.starttime) * 1_000_000_000 / ticks_per_second);
    started.ok().and_then(|started| u64::try_from(started).ok()).unwrap_or(u64::MAX)
}

/// The mounts of the file system on this device, here and as the host's first process sees them, and all that they are mounted
/// on: their ids.
pub fn mounts_that_carry(device: u64) -> BTreeSet<u32> {
    let here = ["/proc/self/mountinfo", "/proc/1/mountinfo"];
    let texts = here.into_iter().filter_map(|path| fs::read_to_string(path).ok());
    let device = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    texts.flat_map(|text| carrying(&text, &format!("{}:{}", device.0, device.1))).collect()
}

fn carrying(mountinfo: &str, device: &str) -> BTreeSet<u32> {
    let mut parents = BTreeMap::new();
    let mut found = Vec::new();
    for line in mountinfo.lines() {
        let mut words = line.split(' ');
        let mut number = || words.next()?.parse::<u32>().ok();
        let (Some(id), Some(parent)) = (number(), number()) else { continue };
        parents.insert(id, parent);
        found.extend(words.next().filter(|word| *word == device).map(|_| id));
    }
    let mut carrying = BTreeSet::new();
    while let Some(id) = found.pop() {
        if parents.contains_key(&id) && carrying.insert(id) {
            found.extend(parents.get(&id));
        }
    }
    carrying
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_mount_stands_on_carries_it() {
        let mountinfo = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                         23 22 0:21 / /sys rw - sysfs sysfs rw\n\
                         24 22 0:22 / /proc rw - proc proc rw\n\
                         30 23 0:27 / /sys/fs/bpf rw - bpf bpf rw\nnonsense\n";
        assert_eq!(carrying(mountinfo, "0:27"), [22, 23, 30].into());
        assert_eq!(carrying(mountinfo, "0:99"), BTreeSet::new());
    }

    #[test]
    fn a_cgroup_runs_while_it_is_populated() {
        let root = tempfile::tempdir().expect("temporary directory");
        let job = root.path().join("job");
        let cgroups = Cgroups::new(root.path().to_owned());
        let running = || cgroups.running(&"/job".parse().expect("valid"));
        assert_eq!(running(), None);
        fs::create_dir(&job).expect("made");
        assert_eq!(running(), None);
        fs::write(job.join("cgroup.events"), "populated 1\nfrozen 0\n").expect("written");
        assert_eq!(running(), Some(fs::metadata(&job).expect("there").ino()));
        fs::write(job.join("cgroup.events"), "populated 0\nfrozen 1\n").expect("written");
        assert_eq!(running(), None);
    }

    #[test]
    fn this_host_can_be_observed() {
        assert!(boot_id().is_ok());
        assert!(!kernel_release().is_empty());
        assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
        assert_eq!(from_the_root("/../../system.slice/a"), "/system.slice/a");
        assert_eq!(from_the_root("/system.slice/a"), "/system.slice/a");
    }

    #[test]
    fn a_process_that_started_later_is_another_one() {
        let mut cgroups = Cgroups::new("/nowhere".into());
        assert_eq!(cgroups.details(std::process::id(), 1, 0), ProcessDetails::default());
        assert!(!cgroups.details(std::process::id(), 1, u64::MAX).executable.is_empty());
        assert_eq!(cgroups.details(u32::MAX, 1, u64::MAX), ProcessDetails::default());
    }
}
