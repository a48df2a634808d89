//! What keeps the gate up without the agent: links and maps pinned in a BPF file system, under the ABI version.
//!
//! Invariant: a map is used only if its kind, sizes and capacity are what this agent would make; aya opens a pin without
//! comparing anything.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use agent_ebpf::abi::{
    self, ABI_VERSION, AddressKey, Admission, ConnectionEntry, GrantKey, GrantRef, GrantSlot, ResourceEntry,
    RingCounters, SubjectEntry, map,
};
use aya::maps::{Map, MapData, MapInfo, MapType};
use aya::programs::links::{FdLink, PinnedLink};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::rings::Record;
use super::{KernelError, RecordRing, Rings, Settings};

/// The directory of one ABI version.
pub(super) struct Pins {
    dir: PathBuf,
}

/// What a map is made like.
pub(super) struct Shape {
    pub(super) name: &'static str,
    kind: MapType,
    key_bytes: u32,
    value_bytes: u32,
    pub(super) max_entries: u32,
}

/// The shapes of all maps that are pinned.
pub(super) fn shapes(settings: &Settings) -> [Shape; 17] {
    // The length of an LPM key stands before what it is matched against.
    const LPM_LENGTH_BYTES: u32 = 4;
    let size = |bytes: usize| bytes as u32;
    let shape = |name, kind, key_bytes, value_bytes, max_entries| Shape {
        name,
        kind,
        key_bytes,
        value_bytes,
        max_entries,
    };
    let array = |name, value: usize, max| shape(name, MapType::Array, 4, size(value), max);
    let ring = |name| shape(name, MapType::RingBuf, 0, 0, settings.ring_bytes);
    [
        array(map::PORT_CLASSES, size_of::<u32>(), abi::PORT_CLASSES_MAX),
        shape(
            map::RESOURCES,
            MapType::LpmTrie,
            LPM_LENGTH_BYTES + size(size_of::<AddressKey>()),
            size(size_of::<ResourceEntry>()),
            settings.resources_max,
        ),
        shape(map::SUBJECTS, MapType::Hash, 8, size(size_of::<SubjectEntry>()), settings.subjects_max),
        shape(
            map::GRANTS,
            MapType::Hash,
            size(size_of::<GrantKey>()),
            size(size_of::<GrantRef>()),
            settings.grants_max,
        ),
        array(map::SLOTS, size_of::<GrantSlot>(), settings.grants_max),
        array(map::DEADLINES, size_of::<u64>(), settings.grants_max),
        array(map::EPOCHS, size_of::<u64>(), settings.grants_max),
        array(map::IDLE_LIMITS, size_of::<u64>(), settings.grants_max),
        array(map::LAST_ACTIVE, size_of::<u64>(), settings.grants_max),
        array(map::LAST_ADMITTED, size_of::<u64>(), settings.grants_max),
        // Its capacity is that of the kernel's memory.
        shape(map::ADMISSIONS, MapType::SkStorage, 4, size(size_of::<Admission>()), 0),
        shape(
            map::CONNECTIONS,
            MapType::Hash,
            8,
            size(size_of::<ConnectionEntry>()),
            settings.connections_max,
        ),
        shape(map::SENDERS, MapType::SockHash, 8, 4, settings.connections_max),
        ring(map::EVENTS_ALLOW),
        ring(map::EVENTS_DENY),
        ring(map::EVENTS_CLOSED),
        shape(map::COUNTERS, MapType::PerCpuArray, 4, size(size_of::<RingCounters>()), abi::RINGS),
    ]
}

impl Pins {
    /// Where this version's pins are, or would be.
    pub(super) fn at(pin_dir: &Path) -> Self {
        Self { dir: pin_dir.join(format!("abi-{ABI_VERSION}")) }
    }

    /// Makes the directories, after a look that they can hold pins.
    pub(super) fn prepare(pin_dir: &Path) -> Result<Self, KernelError> {
        let pins = Self::at(pin_dir);
        pins.restore()?;
        Ok(pins)
    }

    /// Makes the directories that are not there, after a look that they can hold pins.
    pub(super) fn restore(&self) -> Result<(), KernelError> {
        let there = self.dir.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
        let is_bpffs = statfs(there).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC);
        if !is_bpffs {
            return Err(KernelError::NoBpffs { path: there.to_owned() });
        }
        for dir in [self.dir.join("maps"), self.dir.join("links")] {
            fs::create_dir_all(&dir).map_err(|source| KernelError::Pin { path: dir.clone(), source })?;
        }
        Ok(())
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    pub(super) fn maps(&self) -> PathBuf {
        self.dir.join("maps")
    }

    pub(super) fn link(&self, program: &str) -> PathBuf {
        self.dir.join("links").join(program)
    }

    /// Compares what is pinned with what would be made. Returns whether anything is pinned.
    pub(super) fn check_maps(&self, settings: &Settings) -> Result<bool, KernelError> {
        let mut found = false;
        for shape in shapes(settings) {
            let path = self.map(shape.name);
            if !path.exists() {
                continue;
            }
            found = true;
            let info = MapInfo::from_pin(&path).map_err(|error| KernelError::read(shape.name, error))?;
            let kind = info.map_type().map_err(|error| KernelError::read(shape.name, error))?;
            let fields = [
                ("type", kind as u32, shape.kind as u32),
                ("key size", info.key_size(), shape.key_bytes),
                ("value size", info.value_size(), shape.value_bytes),
                ("capacity", info.max_entries(), shape.max_entries),
            ];
            if let Some((field, found, wanted)) =
                fields.into_iter().find(|(_, found, wanted)| found != wanted)
            {
                return Err(KernelError::Shape { name: shape.name, field, found, wanted });
            }
        }
        Ok(found)
    }

    /// Pins a link in the place of the one that is there. The old program goes on deciding until the new one's pin has
    /// taken its name; for that moment both do, and a denial by either counts.
    pub(super) fn replace_link(&self, program: &str, link: FdLink) -> Result<PinnedLink, KernelError> {
        let path = self.link(program);
        // No dot: the BPF file system refuses names with one.
        let beside = self.link(&format!("{program}-new"));
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| KernelError::Pin { path, source }
        };
        remove_if_there(&beside).map_err(at(&beside))?;
        let pinned = link.pin(&beside).map_err(|error| at(&beside)(io::Error::other(error)))?;
        fs::rename(&beside, &path).map_err(at(&path))?;
        Ok(pinned)
    }

    pub(super) fn open_rings(&self) -> Result<Option<Rings>, KernelError> {
        if !self.dir.exists() {
            return Ok(None);
        }
        Ok(Some(Rings {
            allow: self.open_ring(map::EVENTS_ALLOW)?,
            deny: self.open_ring(map::EVENTS_DENY)?,
            closed: self.open_ring(map::EVENTS_CLOSED)?,
        }))
    }

    fn open_ring<T: Record>(&self, name: &'static str) -> Result<RecordRing<T>, KernelError> {
        let data = MapData::from_pin(self.map(name)).map_err(|error| KernelError::read(name, error))?;
        RecordRing::open(Map::RingBuf(data))
    }

    /// Removes links, then maps, then the directories. Returns whether there were any.
    pub(super) fn remove(&self) -> Result<bool, KernelError> {
        if !self.dir.exists() {
            return Ok(false);
        }
        for inner in ["links", "maps"] {
            let dir = self.dir.join(inner);
            remove_files(&dir).map_err(|source| KernelError::Pin { path: dir, source })?;
        }
        fs::remove_dir(&self.dir).map_err(|source| KernelError::Pin { path: self.dir.clone(), source })?;
        Ok(true)
    }
}

fn remove_files(dir: &Path) -> io::Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(dir)? {
        fs::remove_file(entry?.path())?;
    }
    fs::remove_dir(dir)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
