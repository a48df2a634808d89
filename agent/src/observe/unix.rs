//! Where the paths of unix sockets lead on this host.
//!
//! Owns: walking a path, and reading the table of mounts. Must not know: what the keys are for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use proto::types::{Resource, ResourceNumber, UnixPath};

use crate::rules::mounts::{self, Mount, Place};

/// Whose view of the file systems counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// The first process's. The agent itself may see less of the host, or something else.
    First,
    /// The agent's.
    Own,
}

impl Host {
    fn of_proc(self, file: &str) -> String {
        match self {
            Self::First => format!("/proc/1/{file}"),
            Self::Own => format!("/proc/self/{file}"),
        }
    }
}

/// The keys of a path: of the place it leads to, and of the one it leads to if its last name is no symbolic link. The error
/// is why it has none.
pub fn unix_keys(host: Host, path: &Path) -> Result<BTreeSet<u64>, String> {
    let text = read(&host.of_proc("mountinfo"))?;
    keys(host, &mounts::mounts(&text), path)
}

fn keys(host: Host, mounts: &[Mount], path: &Path) -> Result<BTreeSet<u64>, String> {
    let root_path = host.of_proc("root");
    let root = File::open(&root_path).map_err(|error| format!("cannot open {root_path}: {error}"))?;
    let mut places = vec![place(&root, path)?];
    if let (Some(directory), Some(name)) = (path.parent(), path.file_name()) {
        let mut literal = place(&root, directory)?;
        literal.rest.push(name.to_string_lossy().into_owned());
        places.push(literal);
    }
    places.iter().map(|place| mounts::key(mounts, place)).collect()
}

/// Where a path leads, as far as it is there.
fn place(root: &File, path: &Path) -> Result<Place, String> {
    let mut rest = Vec::new();
    for there in path.ancestors() {
        match walk(root, there) {
            Ok(found) => {
                rest.reverse();
                let path = fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()));
                let path =
                    path.map_err(|error| format!("cannot tell where {} leads: {error}", there.display()))?;
                let path = path.to_string_lossy().into_owned();
                return Ok(Place { mount_id: mount_id(&found)?, path, rest });
            }
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(error) => return Err(format!("cannot look at {}: {error}", there.display())),
        }
        rest.extend(there.file_name().map(|name| name.to_string_lossy().into_owned()));
    }
    Err(format!("{} leads nowhere", path.display()))
}

fn walk(root: &File, path: &Path) -> Result<OwnedFd, Errno> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    openat2(root.as_fd(), relative, how)
}

fn mount_id(file: &OwnedFd) -> Result<u64, String> {
    let path = format!("/proc/self/fdinfo/{}", file.as_raw_fd());
    let text = read(&path)?;
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or_else(|| format!("{path} names no mount"))
}

fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"))
}

/// The unix sockets of resources, and where their paths lead.
#[derive(Debug, Default)]
pub struct UnixSockets {
    paths: BTreeMap<ResourceNumber, Vec<UnixPath>>,
    mountinfo: String,
    keys: BTreeMap<u64, (ResourceNumber, UnixPath)>,
    errors: BTreeMap<ResourceNumber, String>,
}

impl UnixSockets {
    /// Looks again, if other paths are wanted or something was mounted; `again`: in any case. Returns whether anything is another
    /// one now.
    pub fn look(&mut self, resources: &[Resource], again: bool) -> bool {
        let with_paths = resources.iter().filter(|resource| !resource.unix.is_empty());
        let paths = with_paths.map(|resource| (resource.number, resource.unix.clone()));
        let paths: BTreeMap<ResourceNumber, Vec<UnixPath>> = paths.collect();
        if paths.is_empty() && self.paths.is_empty() {
            return false;
        }
        let mountinfo = read(&Host::First.of_proc("mountinfo")).unwrap_or_default();
        if !again && paths == self.paths && mountinfo == self.mountinfo {
            return false;
        }
        let (known, errors) = (std::mem::take(&mut self.keys), std::mem::take(&mut self.errors));
        let mounts = mounts::mounts(&mountinfo);
        for (number, path) in
            paths.iter().flat_map(|(number, paths)| paths.iter().map(|path| (*number, path)))
        {
            match keys(Host::First, &mounts, Path::new(path.as_str())) {
                // Two paths may lead to one place: the first keeps it, and it is protected either way.
                Ok(keys) => {
                    for key in keys {
                        self.keys.entry(key).or_insert_with(|| (number, path.clone()));
                    }
                }
                Err(why) => {
                    let why = format!("its unix socket {path} cannot be protected: {why}");
                    self.errors.entry(number).or_insert(why);
                    // What protected it before still does.
                    let of_path = known.iter().filter(|(_, known)| known.0 == number && known.1 == *path);
                    self.keys.extend(of_path.map(|(key, known)| (*key, known.clone())));
                }
            }
        }
        (self.paths, self.mountinfo) = (paths, mountinfo);
        self.keys != known || self.errors != errors
    }

    /// By key, what each socket belongs to.
    pub fn keys(&self) -> &BTreeMap<u64, (ResourceNumber, UnixPath)> {
        &self.keys
    }

    /// The resources of which a path has no key, and why.
    pub fn errors(&self) -> &BTreeMap<ResourceNumber, String> {
        &self.errors
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn keys_of(path: &Path) -> BTreeSet<u64> {
        unix_keys(Host::Own, path).expect("has keys")
    }

    #[test]
    fn ways_to_one_place_have_one_key() {
        let dir = tempfile::Builder::new().prefix("s").tempdir().expect("temporary directory");
        let at = |path: &str| dir.path().join(path);
        let absent = keys_of(&at("a/b"));
        assert_eq!(absent.len(), 1);
        fs::create_dir(at("a")).expect("made");
        assert_eq!(keys_of(&at("a/b")), absent);
        fs::write(at("a/b"), "").expect("made");
        assert_eq!(keys_of(&at("a/b")), absent);
        symlink("a", at("way")).expect("made");
        assert_eq!(keys_of(&at("way/b")), absent);
        // What it leads to, and what would take its place.
        symlink("a/b", at("c")).expect("made");
        assert!(keys_of(&at("c")).is_superset(&absent) && keys_of(&at("c")).len() == 2);
        assert!(keys_of(&at("a/c")).is_disjoint(&absent));
    }
}
