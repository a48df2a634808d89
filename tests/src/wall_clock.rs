//! A wall clock of one's own for a program, which is set while it runs.
//!
//! Owns: what the program is shown, by libfaketime, and that nothing of that is left. Only the wall clock is another one, of that process
//! alone: what waits, or measures, goes by the others.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, Result};
use nix::unistd::Pid;

use crate::cleanup;

/// The clock.
pub struct WallClock {
    library: PathBuf,
    /// By how much it is off, as the library reads it.
    file: PathBuf,
    /// What the library leaves when its program is killed.
    leftovers: Mutex<Vec<cleanup::Entry>>,
}

impl WallClock {
    /// One that is right, kept in `dir`.
    pub fn new(dir: &Path) -> Result<Self> {
        // Where Debian has it.
        let of_machines = fs::read_dir("/usr/lib")?.filter_map(Result::ok);
        let mut libraries = of_machines.map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"));
        let library = libraries.find(|path| path.is_file());
        let library = library.context("libfaketime is not installed: run `cargo xtask setup`")?;
        let clock = Self { library, file: dir.join("wall-clock"), leftovers: Mutex::default() };
        clock.set(0)?;
        Ok(clock)
    }

    /// Sets it so many seconds before or after what is right.
    pub fn set(&self, off_seconds: i64) -> Result<()> {
        // At once: it is read at any moment.
        let new = self.file.with_extension("new");
        fs::write(&new, format!("{off_seconds:+}\n"))?;
        fs::rename(&new, &self.file)?;
        Ok(())
    }

    /// Has a program go by it.
    pub fn show(&self, command: &mut Command) {
        command.env("LD_PRELOAD", &self.library).env("FAKETIME_TIMESTAMP_FILE", &self.file);
        let settings =
            ["FAKETIME_NO_CACHE", "FAKETIME_DONT_FAKE_MONOTONIC", "FAKETIME_DONT_RESET", "NO_FAKE_STAT"];
        command.envs(settings.map(|setting| (setting, "1")));
    }

    /// The program runs, as this process.
    pub fn is_shown_to(&self, pid: Pid) {
        let entry = cleanup::register(move || {
            for name in [format!("faketime_shm_{pid}"), format!("sem.faketime_sem_{pid}")] {
                // Nothing is left by one that has ended by itself.
                let _ = fs::remove_file(Path::new("/dev/shm").join(name));
            }
        });
        self.leftovers.lock().expect("no holder panics").push(entry);
    }
}
