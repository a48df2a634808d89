//! What the next agent must know of runs: the commands go on while it is away.
//!
//! Owns: one file, written in one step. Must not know: what runs are for.
//!
//! Invariant: of another boot nothing is believed but what was used up: its cgroups are gone, and their ids are others' now.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use proto::types::Invalid;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::rules::runs::{Remembered, Run, Stage};

/// The file.
pub struct RunsFile {
    path: PathBuf,
    boot_id: Uuid,
}

/// More is not read: all runs and names that there can be.
const BYTES_MAX: u64 = 4 * 1024 * 1024;

#[derive(Serialize, Deserialize)]
struct Content {
    boot_id: String,
    next: u32,
    runs: Vec<Written>,
    names: BTreeMap<u32, String>,
    #[serde(default)]
    used: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct Written {
    id: String,
    number: u32,
    subject: String,
    cgroup_id: u64,
}

impl RunsFile {
    /// The file in `state_dir`, for the kernel that runs now.
    pub fn new(state_dir: &Path, boot_id: Uuid) -> Self {
        Self { path: state_dir.join("runs.json"), boot_id }
    }

    /// What it says; nothing, with a line in the log, if it cannot be used: then nobody is let through for being in a run.
    pub fn read(&self) -> Remembered {
        match self.try_read() {
            Ok(remembered) => remembered,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Remembered::default(),
            Err(error) => {
                tracing::warn!(%error, path = %self.path.display(), "starting without the runs of the agent before");
                Remembered::default()
            }
        }
    }

    fn try_read(&self) -> io::Result<Remembered> {
        let mut bytes = Vec::new();
        File::open(&self.path)?.take(BYTES_MAX).read_to_end(&mut bytes)?;
        let content: Content = serde_json::from_slice(&bytes)?;
        let one = |(grant, run): (String, String)| Ok((grant.parse()?, run.parse()?));
        let used = content.used.into_iter().map(one).collect::<Result<_, Invalid>>();
        let used = used.map_err(io::Error::other)?;
        if content.boot_id != self.boot_id.to_string() {
            return Ok(Remembered { used, ..Remembered::default() });
        }
        let name = |(number, subject): (u32, String)| Ok((number, subject.parse()?));
        let names = content.names.into_iter().map(name).collect::<Result<_, Invalid>>();
        let runs = content.runs.into_iter().map(Written::run).collect::<Result<_, Invalid>>();
        Ok(Remembered {
            runs: runs.map_err(io::Error::other)?,
            next: content.next,
            names: names.map_err(io::Error::other)?,
            used,
        })
    }

    /// Replaces it.
    pub fn write(&self, remembered: &Remembered) -> io::Result<()> {
        let content = Content {
            boot_id: self.boot_id.to_string(),
            next: remembered.next,
            runs: remembered.runs.iter().map(Written::of).collect(),
            names: remembered.names.iter().map(|(number, id)| (*number, id.to_string())).collect(),
            used: remembered.used.iter().map(|(grant, run)| (grant.to_string(), run.to_string())).collect(),
        };
        let beside = self.path.with_extension("new");
        let mut file = File::create(&beside)?;
        file.write_all(&serde_json::to_vec(&content)?)?;
        file.sync_data()?;
        fs::rename(beside, &self.path)?;
        // What was used up must be known after the power has failed, too.
        self.path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    }
}

impl Written {
    fn of(run: &Run) -> Self {
        Self {
            id: run.id.to_string(),
            number: run.number.get(),
            subject: run.subject.to_string(),
            cgroup_id: run.cgroup_id,
        }
    }

    fn run(self) -> Result<Run, Invalid> {
        Ok(Run {
            id: self.id.parse()?,
            number: self.number.try_into()?,
            subject: self.subject.parse()?,
            cgroup_id: self.cgroup_id,
            stage: Stage::Entered,
        })
    }
}

#[cfg(test)]
mod tests {
    use proto::types::{GrantId, RunId};

    use crate::rules::runs::Runs;

    use super::*;

    #[test]
    fn runs_survive_the_agent_and_not_the_boot() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = |boot| RunsFile::new(dir.path(), Uuid::from_u128(boot));
        assert_eq!(file(1).read(), Remembered::default());
        let mut runs = Runs::default();
        let id = RunId::new();
        runs.open(id, "user:alice".parse().expect("valid"), 42).expect("there is room");
        runs.enter(id).expect("it is there");
        let remembered = runs.remembered(&[(GrantId::new(), id)].into());
        file(1).write(&remembered).expect("written");
        assert_eq!(file(1).read(), remembered);
        let after = Remembered { used: remembered.used.clone(), ..Remembered::default() };
        assert_eq!(file(2).read(), after, "what was used up stays so");
        for broken in ["", "{}", "garbage"] {
            fs::write(dir.path().join("runs.json"), broken).expect("written");
            assert_eq!(file(1).read(), Remembered::default(), "{broken}");
        }
    }
}
