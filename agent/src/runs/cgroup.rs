//! The cgroups of runs: `/portcullis-runs/ID`, each made for one run, and root's.
//!
//! Owns: making them, putting a process into one, taking them away. Must not know: whose they are.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use proto::types::RunId;

/// Where they lie, below the root.
pub const FOLDER: &str = "portcullis-runs";

/// How many processes are counted.
const COUNTED_MAX: usize = 10_000;

/// The directory of one.
pub fn directory(root: &Path, run: RunId) -> PathBuf {
    root.join(FOLDER).join(run.to_string())
}

/// Makes one. Gives its id.
pub fn make(root: &Path, run: RunId) -> io::Result<u64> {
    let folder = root.join(FOLDER);
    match fs::create_dir(&folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    // Whoever can make cgroups there can make one in the place of ours.
    for path in [folder.clone(), folder.join("cgroup.procs")] {
        let found = fs::symlink_metadata(&path)?;
        if found.uid() != 0 || found.mode() & 0o022 != 0 {
            let problem = format!("others than root can write to {}", path.display());
            return Err(io::Error::other(problem));
        }
    }
    let directory = directory(root, run);
    fs::create_dir(&directory)?;
    Ok(fs::symlink_metadata(&directory)?.ino())
}

/// Moves a process, with all its threads.
pub fn put(root: &Path, run: RunId, pid: i32) -> io::Result<()> {
    fs::write(directory(root, run).join("cgroup.procs"), pid.to_string())
}

/// Whether something is in it, if it is still the one with this id; None: it is not there, or another one.
pub fn is_populated(root: &Path, run: RunId, id: u64) -> Option<bool> {
    let directory = directory(root, run);
    let found = fs::symlink_metadata(&directory).ok()?;
    if !found.is_dir() || found.ino() != id {
        return None;
    }
    let events = fs::read_to_string(directory.join("cgroup.events")).ok()?;
    Some(events.lines().any(|line| line == "populated 1"))
}

/// How many processes are in it.
pub fn processes(root: &Path, run: RunId) -> u32 {
    let listed = fs::read_to_string(directory(root, run).join("cgroup.procs")).unwrap_or_default();
    u32::try_from(listed.lines().take(COUNTED_MAX).count()).unwrap_or(u32::MAX)
}

/// Takes it away, and the folder with the last one. What is in use stays.
pub fn remove(root: &Path, run: RunId) {
    if let Err(error) = fs::remove_dir(directory(root, run))
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, %run, "cannot remove the cgroup of a run");
    }
    let _ = fs::remove_dir(root.join(FOLDER));
}
