//! Which executables are the agent: the one that this process runs, and what an upgrade puts in its place.
//!
//! Must not know: what the agent may.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use agent_ebpf::abi::FileKey;

use super::kept::Kept;
use super::loading::Loader;

/// The executable that this process runs, and what lies at its path.
pub(super) struct Executable {
    path: PathBuf,
    pub(super) running: FileKey,
    /// What was last admitted from there, and how it was told from others.
    pub(super) admitted: FileKey,
    told: Option<(u64, u64, i64, i64)>,
}

impl Executable {
    pub(super) fn learn(loader: &Loader, kept: &mut Kept) -> Result<Self, String> {
        let path = std::env::current_exe().map_err(|error| format!("this program has no path: {error}"))?;
        let running = loader.learn(kept, Path::new("/proc/self/exe"))?;
        // Should an upgrade be faster than this, it is seen at the next look.
        let told = told_apart(Path::new("/proc/self/exe"));
        Ok(Self { path, running, admitted: running, told })
    }

    /// Whoever upgrades puts another file there: the next agent must be one to this tier. Only while this agent runs, and only
    /// what nobody but root can have written. Gives what is to be told.
    pub(super) fn look(&mut self, loader: &Loader, kept: &mut Kept) -> Result<Option<String>, String> {
        let told = told_apart(&self.path);
        if told.is_none() || told == self.told {
            return Ok(None);
        }
        self.told = told;
        self.admitted = loader.learn(kept, &self.path)?;
        let path = self.path.display();
        Ok(Some(format!(
            "{path} is another file now: whoever runs it is the agent to the tamper tier as well"
        )))
    }
}

/// None: there is no such file, or others than root may write to it.
fn told_apart(path: &Path) -> Option<(u64, u64, i64, i64)> {
    const OTHERS_WRITE: u32 = 0o022;
    let metadata = fs::metadata(path).ok()?;
    let is_roots = metadata.is_file() && metadata.uid() == 0 && metadata.mode() & OTHERS_WRITE == 0;
    is_roots.then(|| (metadata.dev(), metadata.ino(), metadata.ctime(), metadata.ctime_nsec()))
}
