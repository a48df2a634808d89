//! The tree of cgroups, followed as cgroups come and go.
//!
//! Owns: which directories are looked into, and whether their names can be trusted. Must not know: who wants to know.
//!
//! Looked into are the directories in which a name means something, and those on the way to a path that is asked for; each is
//! watched, and what the kernel tells is only a hint to list it again. So a lost, late or doubled notice does no harm, and a
//! directory that took the place of another is known by its inode, in the same step in which the other is forgotten.
//!
//! Invariant: all that is known lies in directories in which only root makes cgroups, up to the root. Of what lies elsewhere
//! nothing is known: whoever may write there chooses the names.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirEntryExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use nix::sys::stat::{FileStat, Mode, fstatat};
use proto::types::CgroupPath;

use crate::rules::layouts::Place;
use crate::rules::workloads::{Census, Doubt};

/// How many cgroups are known at most. A kubelet's node has a few thousand.
const NODES_MAX: usize = 65_536;
/// How many directories are watched at most: slices and pods, and the way to each path that is asked for. The kernel's own
/// limit for one user (`fs.inotify.max_user_watches`) is higher by default.
const WATCHES_MAX: usize = 8192;
/// How often notices are taken in one look, some hundred each. What is left waits for the next look.
const READS_MAX: usize = 256;

/// A cgroup.
struct Node {
    id: u64,
    place: Place,
    ground: Ground,
}

/// What lies below a cgroup.
enum Ground {
    /// Nobody asks.
    Shut,
    /// The names of its children.
    Open(BTreeSet<String>),
    /// Somebody else than root chooses the names.
    Writable,
}

/// The tree.
pub(super) struct Tree {
    root: PathBuf,
    /// Who may make cgroups: root.
    owner: u32,
    hierarchy: Option<OwnedFd>,
    notices: Option<Inotify>,
    /// By path; the root's is empty.
    nodes: HashMap<String, Node>,
    watched: HashMap<WatchDescriptor, String>,
    /// All directories on the way to paths that are asked for.
    ways: BTreeSet<String>,
    census: Census,
    /// Something is known to be missing, and so the whole tree is looked at again.
    is_stale: bool,
    has_changed: bool,
    problem: Option<&'static str>,
}

impl Tree {
    /// The tree below this directory, in which nobody but `owner` is trusted. Nothing is known before the first look.
    pub(super) fn new(root: PathBuf, owner: u32) -> Self {
        let flags = InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC;
        let notices = Inotify::init(flags).inspect_err(
            |error| tracing::warn!(%error, "the kernel does not tell which cgroups come and go"),
        );
        Self {
            root,
            owner,
            hierarchy: None,
            notices: notices.ok(),
            nodes: HashMap::new(),
            watched: HashMap::new(),
            ways: BTreeSet::new(),
            census: Census::default(),
            is_stale: true,
            has_changed: false,
            problem: None,
        }
    }

    /// What becomes readable when a cgroup comes or goes; None: nothing does.
    pub(super) fn notices(&self) -> Option<io::Result<OwnedFd>> {
        self.notices.as_ref().map(|notices| notices.as_fd().try_clone_to_owned())
    }

    /// From the next look on these paths are known too, if they are there.
    pub(super) fn follow<'a>(&mut self, paths: impl Iterator<Item = &'a CgroupPath>) {
        let ways = paths.flat_map(|path| parents(path.as_str())).map(ToOwned::to_owned).collect();
        self.is_stale |= ways != self.ways;
        self.ways = ways;
    }

    /// What is there.
    pub(super) fn census(&self) -> &Census {
        &self.census
    }

    /// Why not everything may be known; None: everything is.
    pub(super) fn problem(&self) -> Option<&'static str> {
        self.problem
    }

    /// The cgroup at a path that is followed.
    pub(super) fn at(&self, path: &CgroupPath) -> Result<Option<u64>, Doubt> {
        if let Some(node) = self.nodes.get(path.as_str()) {
            return Ok(Some(node.id));
        }
        let is_writable =
            |way: &&str| self.nodes.get(*way).is_some_and(|node| matches!(node.ground, Ground::Writable));
        match parents(path.as_str()).find(is_writable) {
            Some(directory) => Err(Doubt::Writable { directory: format!("{directory}/") }),
            None => Ok(None),
        }
    }

    /// Follows what came and went: what the kernel has told of, or everything where it could not, or when `again`. Returns
    /// whether anything did.
    pub(super) fn look(&mut self, again: bool) -> bool {
        let hints = self.hints();
        match hints {
            Some(paths) if !again && !self.is_stale => self.look_into(paths, false),
            _ => {
                self.is_stale = false;
                self.problem = None;
                self.look_at_root();
                self.look_into([String::new()].into(), true);
                self.watched.retain(|_, path| self.nodes.contains_key(path));
            }
        }
        std::mem::take(&mut self.has_changed)
    }

    /// Which directories have changed; None: perhaps all.
    fn hints(&mut self) -> Option<BTreeSet<String>> {
        let mut hints = BTreeSet::new();
        for _ in 0..READS_MAX {
            let events = match self.notices.as_ref()?.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => break,
                Err(_) => return None,
            };
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    return None;
                }
                if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    self.watched.remove(&event.wd);
                }
                hints.extend(self.watched.get(&event.wd).cloned());
            }
        }
        Some(hints)
    }

    /// Knows the root, whichever directory it is now.
    fn look_at_root(&mut self) {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let opened = open(&self.root, flags, Mode::empty());
        let found = opened.and_then(|directory| Ok((stat(&directory, "")?.st_ino, directory)));
        let Ok((id, directory)) = found else {
            self.forget("");
            self.problem = Some("the root of cgroup v2 cannot be opened");
            return;
        };
        if self.nodes.get("").is_none_or(|root| root.id != id) {
            self.forget("");
            self.nodes.insert(String::new(), Node { id, place: Place::ROOT, ground: Ground::Shut });
        }
        self.hierarchy = Some(directory);
    }

    /// Brings up to date what is known of these directories, and of what comes to light below; `whole`: of all that lies
    /// below.
    fn look_into(&mut self, mut paths: BTreeSet<String>, whole: bool) {
        while let Some(path) = paths.pop_first() {
            let Some(node) = self.nodes.get(&path) else { continue };
            let (id, place) = (node.id, node.place.clone());
            if !place.is_open() && !self.ways.contains(&path) {
                self.shut(&path, Ground::Shut);
                continue;
            }
            // What is not there any more, or is another, is for the list of its parent.
            let Some(directory) = self.open(&path).filter(|(_, found)| *found == id) else { continue };
            let children = self.children(&path, &directory.0);
            for name in children {
                let child = format!("{path}/{name}");
                if self.nodes.contains_key(&child) {
                    paths.extend(whole.then_some(child));
                } else if self.learn(&child, place.child(&name)) {
                    paths.insert(child);
                }
            }
        }
    }

    /// Watches a directory, then lists it, forgetting what is not there any more. Gives the names that are there.
    fn children(&mut self, path: &str, directory: &OwnedFd) -> BTreeSet<String> {
        self.watch(path, directory);
        if self.is_writable(directory) {
            self.shut(path, Ground::Writable);
            return BTreeSet::new();
        }
        // One that cannot be listed is just going.
        let listed = list(directory).unwrap_or_default();
        let is_gone = |name: &&String| {
            let known = self.nodes.get(&format!("{path}/{name}"));
            known.is_some_and(|node| listed.get(*name) != Some(&node.id))
        };
        let before = match self.nodes.get(path).map(|node| &node.ground) {
            Some(Ground::Open(names)) => names.iter().filter(is_gone).cloned().collect(),
            _ => Vec::new(),
        };
        before.iter().for_each(|name| self.forget(&format!("{path}/{name}")));
        let names: BTreeSet<String> = listed.into_keys().collect();
        if let Some(node) = self.nodes.get_mut(path) {
            node.ground = Ground::Open(names.clone());
        }
        names
    }

    /// Whether the kernel could be asked is noted; where not, everything is looked at each time.
    fn watch(&mut self, path: &str, directory: &OwnedFd) {
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_ONLYDIR;
        let link = format!("/proc/self/fd/{}", directory.as_raw_fd());
        let watch = self.notices.as_ref().map(|notices| notices.add_watch(link.as_str(), flags));
        match watch {
            Some(Ok(watch)) if self.watched.len() < WATCHES_MAX || self.watched.contains_key(&watch) => {
                self.watched.insert(watch, path.to_owned());
            }
            _ => {
                self.is_stale = true;
                self.problem = Some(
                    "the kernel does not tell which cgroups come and go, and all are looked at ten times a second: \
                     raise `fs.inotify.max_user_watches` and `fs.inotify.max_user_instances`",
                );
            }
        }
    }

    /// Whether somebody else than the owner may make cgroups in a directory, or move processes into it. What cannot be told
    /// counts as well.
    fn is_writable(&self, directory: &OwnedFd) -> bool {
        let by_others = |file: FileStat| {
            let by_group = file.st_mode & 0o020 != 0 && file.st_gid != 0;
            file.st_uid != self.owner || by_group || file.st_mode & 0o002 != 0
        };
        ["", "cgroup.procs", "cgroup.threads"]
            .into_iter()
            .any(|name| stat(directory, name).map_or(true, by_others))
    }

    /// Gets to know a cgroup. Returns whether it was there.
    fn learn(&mut self, path: &str, place: Place) -> bool {
        if self.nodes.len() >= NODES_MAX {
            self.problem = Some("there are more than 65536 cgroups, and some are not known");
            return false;
        }
        let Some((_, id)) = self.open(path) else { return false };
        self.census.insert(id, &place);
        self.nodes.insert(path.to_owned(), Node { id, place, ground: Ground::Shut });
        self.has_changed = true;
        true
    }

    /// Forgets what lies below a cgroup.
    fn shut(&mut self, path: &str, ground: Ground) {
        let Some(node) = self.nodes.get_mut(path) else { return };
        let was = std::mem::replace(&mut node.ground, ground);
        let Ground::Open(names) = was else { return };
        names.iter().for_each(|name| self.forget(&format!("{path}/{name}")));
    }

    /// Forgets a cgroup and all below.
    fn forget(&mut self, path: &str) {
        let mut paths = vec![path.to_owned()];
        while let Some(path) = paths.pop() {
            let Some(node) = self.nodes.remove(&path) else { continue };
            self.census.remove(node.id, &node.place);
            self.has_changed = true;
            if let Ground::Open(names) = node.ground {
                paths.extend(names.iter().map(|name| format!("{path}/{name}")));
            }
        }
    }

    /// The directory at a path below the root, and its id: the inode number. Nothing that is mounted there, and no link, is
    /// taken for a cgroup. None: it is not there, or, which is a problem, this process may not look.
    fn open(&mut self, path: &str) -> Option<(OwnedFd, u64)> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let resolve = ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_MAGICLINKS
            | ResolveFlag::RESOLVE_NO_XDEV;
        let how = OpenHow::new().flags(flags).resolve(resolve);
        let relative = if path.is_empty() { "." } else { path.trim_start_matches('/') };
        match openat2(self.hierarchy.as_ref()?, relative, how) {
            Ok(directory) => {
                let id = stat(&directory, "").ok()?.st_ino;
                Some((directory, id))
            }
            // It is just going, another has its place, or it is none.
            Err(
                Errno::ENOENT | Errno::ENODEV | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV | Errno::EAGAIN,
            ) => None,
            Err(_) => {
                self.problem = Some(
                    "cgroups cannot be opened, and no process is anybody's: what confines the agent, such as \
                     `RestrictSUIDSGID=` of its unit, must leave it `openat2`",
                );
                None
            }
        }
    }
}

fn stat(directory: &OwnedFd, name: &str) -> nix::Result<FileStat> {
    fstatat(directory, name, AtFlags::AT_EMPTY_PATH | AtFlags::AT_SYMLINK_NOFOLLOW)
}

/// The directories in a directory, by name, with their inodes. A name that is no text is nobody's.
fn list(directory: &OwnedFd) -> io::Result<BTreeMap<String, u64>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir()
            && let Ok(name) = entry.file_name().into_string()
        {
            found.insert(name, entry.ino());
        }
    }
    Ok(found)
}

/// All directories on the way to a path, from the root, whose path is empty.
fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

#[cfg(test)]
mod tests;
