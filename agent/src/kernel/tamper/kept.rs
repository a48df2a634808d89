//! What the programs are told to keep, as it lies in their maps.
//!
//! Must not know: what the gate has.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use agent_ebpf::abi::{FileKey, ObjectKey, Tampering, map, tamper_state};
use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, MapError};

use super::super::error::in_full;
use super::super::{KernelError, typed};

/// What the programs are told to keep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Belongings {
    pub(super) files: BTreeMap<FileKey, u32>,
    pub(super) objects: BTreeSet<ObjectKey>,
}

/// The maps of what the programs keep, and what only this has written there.
pub(super) struct Kept {
    files: HashMap<MapData, FileKey, u32>,
    objects: HashMap<MapData, ObjectKey, u32>,
    state: Array<MapData, u64>,
    pub(super) held: Belongings,
}

impl Kept {
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, KernelError> {
        let mut kept = Self {
            files: typed(object, map::TAMPER_FILES)?,
            objects: typed(object, map::TAMPER_OBJECTS)?,
            state: typed(object, map::TAMPER_STATE)?,
            held: Belongings::default(),
        };
        kept.held = kept.read()?;
        Ok(kept)
    }

    fn read(&self) -> Result<Belongings, KernelError> {
        let files: Result<_, _> = self.files.iter().collect();
        let objects: Result<_, _> = self.objects.keys().collect();
        Ok(Belongings {
            files: files.map_err(|error| KernelError::read(map::TAMPER_FILES, error))?,
            objects: objects.map_err(|error| KernelError::read(map::TAMPER_OBJECTS, error))?,
        })
    }

    pub(super) fn keep_file(&mut self, file: FileKey, flags: u32) -> Result<(), String> {
        self.files.insert(file, flags, 0).map_err(|error| in_full(&error))?;
        self.held.files.insert(file, flags);
        Ok(())
    }

    /// Brings the maps to this, whatever is in them; what is new first. Returns whether somebody else had changed them.
    pub(super) fn keep(&mut self, wanted: &Belongings) -> Result<bool, KernelError> {
        let found = self.read()?;
        let changed = found != self.held;
        let of_files = |error: MapError| KernelError::Write { name: map::TAMPER_FILES, source: error.into() };
        let of_objects =
            |error: MapError| KernelError::Write { name: map::TAMPER_OBJECTS, source: error.into() };
        for (file, flags) in wanted.files.iter().filter(|(file, flags)| found.files.get(file) != Some(flags))
        {
            self.files.insert(file, flags, 0).map_err(of_files)?;
        }
        for object in wanted.objects.difference(&found.objects) {
            self.objects.insert(object, 0, 0).map_err(of_objects)?;
        }
        for file in found.files.keys().filter(|file| !wanted.files.contains_key(file)) {
            self.files.remove(file).map_err(of_files)?;
        }
        for object in found.objects.difference(&wanted.objects) {
            self.objects.remove(object).map_err(of_objects)?;
        }
        self.held = wanted.clone();
        Ok(changed)
    }

    pub(super) fn state(&self, index: u32) -> Result<u64, String> {
        self.state.get(&index, 0).map_err(|error| in_full(&error))
    }

    pub(super) fn set_state(&mut self, index: u32, value: u64) -> Result<(), String> {
        self.state.set(index, value, 0).map_err(|error| in_full(&error))
    }

    /// How often the helper was refused something.
    pub(super) fn refused(&self, tampering: Tampering) -> Result<u64, String> {
        self.state(tamper_state::REFUSED + tampering as u32)
    }
}

/// What `stat` says of what lies on a BPF file system, which tells the kernel's own numbers.
pub(super) fn file_at(path: &Path) -> std::io::Result<FileKey> {
    let metadata = fs::symlink_metadata(path)?;
    let (major, minor) = (libc::major(metadata.dev()), libc::minor(metadata.dev()));
    Ok(FileKey { inode: metadata.ino(), device: major << 20 | minor, reserved: 0 })
}
