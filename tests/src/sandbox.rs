//! A place of one's own: a temporary directory, a BPF file system, cgroups and loopback addresses that nobody else uses.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::cleanup;

/// The place. What it made is taken away when it is dropped.
pub struct Sandbox {
    _cleanup: cleanup::Entry,
    dir: PathBuf,
    bpffs: PathBuf,
    cgroup_root: PathBuf,
    /// Below the root, with a leading slash.
    cgroup: String,
    address: Ipv4Addr,
}

/// What the names of all sandboxes begin with; the process id and a number follow.
const PREFIX: &str = "portcullis-test-";

/// Where an agent keeps its state, below a sandbox's directory.
const STATE: &str = "agent";

/// How long a cgroup may take to become empty: its processes were killed, and the kernel is just burying them.
const EMPTY_TIMEOUT: Duration = Duration::from_secs(5);

impl Sandbox {
    /// Makes it.
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        static CLEARED: Once = Once::new();
        CLEARED.call_once(clear_leftovers);
        let (pid, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let cgroup_root = agent::observe::cgroup_root()?;
        let cgroup = format!("/{PREFIX}{pid}-{count}");
        let dir = std::env::temp_dir().join(format!("{PREFIX}{pid}-{count}"));
        let bpffs = dir.join("bpf");
        let leftover =
            Leftover { dir: dir.clone(), cgroup: cgroup_root.join(cgroup.trim_start_matches('/')) };
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let _cleanup = cleanup::register(move || leftover.remove());
        fs::create_dir(&bpffs)?;
        mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>)
            .context("cannot mount a bpffs")?;
        let sandbox = Self { _cleanup, dir, bpffs, cgroup_root, cgroup, address: address(pid, count) };
        sandbox.make_cgroup("")?;
        Ok(sandbox)
    }

    /// The temporary directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A directory on the sandbox's BPF file system.
    pub fn pin_dir(&self) -> PathBuf {
        self.bpffs.join("portcullis")
    }

    /// Mounts a file system of so many bytes where an agent keeps its state.
    pub fn mount_state(&self, bytes: u64) -> Result<()> {
        let state = self.dir.join(STATE);
        fs::create_dir(&state)?;
        let size = format!("size={bytes},mode=700");
        mount(Some("tmpfs"), &state, Some("tmpfs"), MsFlags::empty(), Some(size.as_str()))
            .with_context(|| format!("cannot mount a tmpfs at {}", state.display()))
    }

    /// The root of cgroup v2.
    pub fn cgroup_root(&self) -> &Path {
        &self.cgroup_root
    }

    /// An address in 127.0.0.0/8 that only this sandbox uses.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Makes a cgroup (and those above it) within the sandbox's own. `path` is relative; empty: the sandbox's own.
    pub fn make_cgroup(&self, path: &str) -> Result<Cgroup> {
        let path = format!("{}/{path}", self.cgroup).trim_end_matches('/').to_owned();
        self.make_cgroup_at(path)
    }

    /// Makes a cgroup anywhere below the root. It is taken away with the sandbox only if it lies within the sandbox's own.
    pub fn make_cgroup_at(&self, path: String) -> Result<Cgroup> {
        let directory = self.cgroup_root.join(path.trim_start_matches('/'));
        fs::create_dir_all(&directory).with_context(|| format!("cannot make the cgroup {path}"))?;
        Ok(Cgroup { path, directory })
    }
}

/// Takes away what agents that were killed here left at the machine's root: the cgroups of their runs, and of their canary,
/// which may be ending yet. One that is in use, by somebody else's, stays. For the end of a run: agents that are up may be about to use it.
pub fn remove_agents_cgroups() {
    // A round of the canary takes two seconds, and is not cut short.
    const TRIES: usize = 500;
    let Ok(cgroup_root) = agent::observe::cgroup_root() else { return };
    // Agents that were killed have left those of their runs. What is in use stays.
    let runs = cgroup_root.join(agent::runs::cgroup::FOLDER);
    for run in fs::read_dir(&runs).into_iter().flatten().flatten() {
        let _ = fs::remove_dir(run.path());
    }
    let _ = fs::remove_dir(runs);
    for _ in 0..TRIES {
        agent::canary::remove_cgroup(&cgroup_root);
        if !cgroup_root.join(agent::canary::CGROUP).exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What a sandbox leaves behind unless it is taken away.
struct Leftover {
    dir: PathBuf,
    cgroup: PathBuf,
}

impl Leftover {
    fn remove(self) {
        // Pins go with the file system, and programs with their pins. It was never mounted if making the sandbox failed.
        let _ = umount2(&self.dir.join("bpf"), MntFlags::MNT_DETACH);
        // Whatever is mounted there: mostly nothing is.
        while umount2(&self.dir.join(STATE), MntFlags::MNT_DETACH).is_ok() {}
        remove_cgroup(&self.cgroup).unwrap_or_else(|error| complain(&format!("{error:#}")));
        fs::remove_dir_all(&self.dir)
            .unwrap_or_else(|error| complain(&format!("{}: {error}", self.dir.display())));
    }
}

#[allow(clippy::print_stderr, reason = "the test runner talks to a person")]
fn complain(text: &str) {
    eprintln!("cannot clean up: {text}");
}

/// Takes away what processes left behind that were killed outright: their file systems and directories, and cgroups that are
/// empty.
fn clear_leftovers() {
    let Ok(cgroup_root) = agent::observe::cgroup_root() else { return };
    for place in [std::env::temp_dir(), cgroup_root.clone()] {
        let entries = fs::read_dir(&place).into_iter().flatten().filter_map(Result::ok);
        for name in entries.filter_map(|entry| entry.file_name().into_string().ok()) {
            let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<i32>().ok());
            if pid.is_some_and(|pid| kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH)) {
                let dir = std::env::temp_dir().join(&name);
                let _ = umount2(&dir.join("bpf"), MntFlags::MNT_DETACH);
                while umount2(&dir.join(STATE), MntFlags::MNT_DETACH).is_ok() {}
                let _ = fs::remove_dir_all(dir);
                let _ = remove_cgroup(&cgroup_root.join(&name));
            }
        }
    }
}

/// The cgroups right below the root that no test made: ids and names.
pub fn strangers() -> Result<BTreeMap<u64, String>> {
    let mut strangers = BTreeMap::new();
    for entry in fs::read_dir(agent::observe::cgroup_root()?)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() && !name.starts_with(PREFIX) {
            strangers.insert(entry.metadata()?.ino(), name);
        }
    }
    Ok(strangers)
}

/// Removes a cgroup and what is within it, once it is empty.
pub fn remove_cgroup(directory: &Path) -> Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_cgroup(&path)?;
        }
    }
    let deadline = Instant::now() + EMPTY_TIMEOUT;
    while let Err(error) = fs::remove_dir(directory) {
        if Instant::now() > deadline {
            bail!("cgroup {} is not empty: {error}", directory.display());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// 127.64.0.0/10, by process and count; never the first or last address of a /24.
fn address(pid: u32, count: u32) -> Ipv4Addr {
    let [_, high, low, _] = (pid << 8).to_be_bytes();
    Ipv4Addr::new(127, 64 + (high ^ (count / 250) as u8) % 64, low, 1 + (count % 250) as u8)
}

/// A cgroup that exists.
#[derive(Clone, Debug)]
pub struct Cgroup {
    /// Below the root, with a leading slash.
    pub path: String,
    /// Its directory.
    pub directory: PathBuf,
}

impl Cgroup {
    /// Its id: the inode number.
    pub fn id(&self) -> Result<u64> {
        Ok(fs::metadata(&self.directory).with_context(|| format!("no cgroup {}", self.path))?.ino())
    }
}
