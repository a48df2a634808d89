//! What keeps the gate up without the agent: links and maps pinned in a BPF file system, under the ABI version.
//!
//! Invariants: a map is used only if its kind, sizes and capacity are what this agent would make; aya opens a pin without
//! comparing anything. A link is given another program only if it attaches where that program belongs; the kernel compares
//! less.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use agent_ebpf::abi::{
    self, AddressKey, Admission, ConnectionEntry, FileKey, GrantKey, GrantRef, GrantSlot, ObjectKey, PeerKey,
    ResourceEntry, RingCounters, SubjectEntry, map, tamper_state,
};
use aya::maps::{Map, MapData, MapInfo, MapType};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::rings::Record;
use super::sys::{self, CgroupPlace, RawMap};
use super::{KernelError, PinnedRings, RecordRing, Settings};

/// The directory of one ABI version.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    version: u32,
    dir: PathBuf,
}

/// A program, loaded, and where it belongs.
pub(super) struct Attachable {
    /// Its name, and that of its pin.
    pub(super) name: &'static str,
    pub(super) place: CgroupPlace,
    /// The kernel's number of it.
    pub(super) id: u32,
    pub(super) fd: OwnedFd,
    /// What attaches it; None: nothing does yet. Held beside the pin: should somebody unmount the file system, it stays.
    pub(super) link: Option<OwnedFd>,
}

impl Attachable {
    /// Has it decide beside what decides already. Nothing pins the link.
    pub(super) fn create_link(&self, cgroup: BorrowedFd<'_>) -> Result<OwnedFd, KernelError> {
        sys::link_create(self.fd.as_fd(), cgroup, self.place.attach_type)
            .map_err(|source| KernelError::attach(self.name, source))
    }
}

/// A map of ours, held beside its pin.
pub(super) struct HeldMap {
    pub(super) name: &'static str,
    pub(super) fd: OwnedFd,
    pub(super) max_entries: u32,
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
pub(super) fn shapes(settings: &Settings) -> [Shape; 20] {
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
    let trie = |name, key: usize, value: usize| {
        shape(name, MapType::LpmTrie, LPM_LENGTH_BYTES + size(key), size(value), settings.resources_max)
    };
    let ring = |name| shape(name, MapType::RingBuf, 0, 0, settings.ring_bytes);
    [
        array(map::PORT_CLASSES, size_of::<u32>(), abi::PORT_CLASSES_MAX),
        trie(map::RESOURCES, size_of::<AddressKey>(), size_of::<ResourceEntry>()),
        trie(map::PEERS, size_of::<PeerKey>(), size_of::<u32>()),
        shape(map::SUBJECTS, MapType::Hash, 8, size(size_of::<SubjectEntry>()), settings.subjects_max),
        shape(
            map::GRANTS,
            MapType::Hash,
            size(size_of::<GrantKey>()),
            size(size_of::<GrantRef>()),
            settings.grants_max,
        ),
        array(map::SLOTS, size_of::<GrantSlot>(), settings.grants_max),
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
        ring(map::EVENTS_MOVED),
        shape(map::COUNTERS, MapType::PerCpuArray, 4, size(size_of::<RingCounters>()), abi::RINGS),
        shape(map::EXEMPT_CGROUPS, MapType::Hash, 8, size(size_of::<u32>()), abi::EXEMPT_CGROUPS_MAX),
        shape(map::UNIX_SOCKETS, MapType::Hash, 8, size(size_of::<ResourceEntry>()), abi::UNIX_SOCKETS_MAX),
        array(map::UNIX_GUARDED, size_of::<u32>(), 1),
        shape(
            map::TAMPER_FILES,
            MapType::Hash,
            size(size_of::<FileKey>()),
            size(size_of::<u32>()),
            abi::TAMPER_FILES_MAX,
        ),
        shape(
            map::TAMPER_OBJECTS,
            MapType::Hash,
            size(size_of::<ObjectKey>()),
            size(size_of::<u32>()),
            abi::TAMPER_OBJECTS_MAX,
        ),
        array(map::TAMPER_STATE, size_of::<u64>(), tamper_state::MAX),
    ]
}

impl Pins {
    /// Where a version's pins are, or would be.
    pub(super) fn at(pin_dir: &Path, version: u32) -> Self {
        Self { version, dir: pin_dir.join(format!("abi-{version}")) }
    }

    /// Those of every version of which there are any, oldest version first.
    pub(super) fn all(pin_dir: &Path) -> Result<Vec<Self>, KernelError> {
        let entries = match fs::read_dir(pin_dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.and_then(Iterator::collect::<io::Result<Vec<_>>>),
        };
        let entries = entries.map_err(|source| KernelError::Pin { path: pin_dir.to_owned(), source })?;
        let version = |name: &str| name.strip_prefix("abi-")?.parse().ok();
        let mut versions: Vec<u32> =
            entries.iter().filter_map(|entry| version(entry.file_name().to_str()?)).collect();
        versions.sort_unstable();
        Ok(versions.into_iter().map(|version| Self::at(pin_dir, version)).collect())
    }

    /// Makes the directories, after a look that they can hold pins.
    pub(super) fn prepare(settings: &Settings) -> Result<Self, KernelError> {
        let pins = Self::at(&settings.pin_dir, settings.abi_version);
        pins.make_directories()?;
        Ok(pins)
    }

    /// Those that are not there.
    fn make_directories(&self) -> Result<(), KernelError> {
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
        self.link_dir().join(program)
    }

    pub(super) fn link_dir(&self) -> PathBuf {
        self.dir.join("links")
    }

    /// The directory of this version.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether the tamper tier of another agent keeps the maps from this one.
    pub(super) fn check_access(&self) -> Result<(), KernelError> {
        match sys::open_pin(&self.map(map::TAMPER_STATE)) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(KernelError::NotTheAgent),
            _ => Ok(()),
        }
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

    pub(super) fn version(&self) -> u32 {
        self.version
    }

    /// Has the program decide where it belongs: by the link that is pinned under its name, so that its place among other
    /// people's programs stays; or by a new link, which takes that name. At no instant does neither the old nor the new
    /// program decide.
    pub(super) fn attach(&self, program: &mut Attachable, cgroup: BorrowedFd<'_>) -> Result<(), KernelError> {
        let path = self.link(program.name);
        let link = match self.update(program, &path)? {
            Some(link) => link,
            None => {
                let link = program.create_link(cgroup)?;
                self.replace_link(program.name, link.as_fd())?;
                link
            }
        };
        // What the kernel was asked for is one thing; what it says it has is another.
        let info =
            sys::link_info(link.as_fd()).map_err(|source| KernelError::attach(program.name, source))?;
        if info.program != program.id || info.place != Some(program.place) {
            return Err(KernelError::NotAttached(program.name));
        }
        program.link = Some(link);
        Ok(())
    }

    /// Gives the pinned link its new program. None: there is no such link, or it attaches somewhere else, or nowhere, as it
    /// does when its cgroup is gone.
    fn update(&self, program: &Attachable, path: &Path) -> Result<Option<OwnedFd>, KernelError> {
        let of_program = |source| KernelError::attach(program.name, source);
        let link = match sys::open_pin(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            link => link.map_err(|source| KernelError::Pin { path: path.to_owned(), source })?,
        };
        // Not even a link: something else lies under the name.
        let Ok(info) = sys::link_info(link.as_fd()) else { return Ok(None) };
        if info.place != Some(program.place) {
            return Ok(None);
        }
        sys::link_update(link.as_fd(), program.fd.as_fd()).map_err(of_program)?;
        Ok(Some(link))
    }

    /// Gives a link, attached already, the name of its program in the place of what has it. The old program goes on deciding
    /// until then; for a moment both do, and a denial by either counts.
    pub(super) fn replace_link(&self, program: &str, link: BorrowedFd<'_>) -> Result<(), KernelError> {
        name(link, &self.link(program))
    }

    /// Takes a program down whose link ends with its pin, as those of the LSM tier do.
    pub(super) fn remove_link(&self, program: &str) -> Result<(), KernelError> {
        let path = self.link(program);
        remove_if_there(&path).map_err(|source| KernelError::Pin { path, source })
    }

    /// Takes a program down, whoever has put it up; nothing if there is none.
    pub(super) fn lower_link(&self, program: &str) -> Result<(), KernelError> {
        let path = self.link(program);
        match PinnedLink::open(path.clone()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            link => link.map_err(|source| KernelError::Pin { path, source })?.lower().map(drop),
        }
    }

    /// Gives objects their names again, and the names their directories.
    pub(super) fn restore<'a>(
        &self,
        mut objects: impl Iterator<Item = (BorrowedFd<'a>, &'a Path)>,
    ) -> Result<(), KernelError> {
        self.make_directories()?;
        objects.try_for_each(|(object, path)| name(object, path))
    }

    /// Every link that is pinned, whatever it attaches.
    pub(super) fn links(&self) -> Result<Vec<PinnedLink>, KernelError> {
        let mut links = Vec::new();
        for path in files(&self.dir.join("links"))? {
            let of_pin = |source: io::Error| match source.kind() {
                io::ErrorKind::PermissionDenied => KernelError::NotTheAgent,
                _ => KernelError::Pin { path: path.clone(), source },
            };
            links.push(PinnedLink::open(path.clone()).map_err(of_pin)?);
        }
        Ok(links)
    }

    /// The rings that there are.
    pub(super) fn open_rings(&self) -> Result<PinnedRings, KernelError> {
        let verdicts = [self.open_ring(map::EVENTS_ALLOW)?, self.open_ring(map::EVENTS_DENY)?];
        Ok(PinnedRings {
            verdicts: verdicts.into_iter().flatten().collect(),
            closed: self.open_ring(map::EVENTS_CLOSED)?.into_iter().collect(),
            moved: self.open_ring(map::EVENTS_MOVED)?.into_iter().collect(),
        })
    }

    fn open_ring<T: Record>(&self, name: &'static str) -> Result<Option<RecordRing<T>>, KernelError> {
        if !self.map(name).exists() {
            return Ok(None);
        }
        let data = MapData::from_pin(self.map(name)).map_err(|error| KernelError::read(name, error))?;
        RecordRing::open(Map::RingBuf(data)).map(Some)
    }

    /// A map of ours. None: there is none, as this kernel cannot have it.
    pub(super) fn hold_map(&self, shape: &Shape) -> Result<Option<HeldMap>, KernelError> {
        let path = self.map(shape.name);
        match sys::open_pin(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(KernelError::Pin { path, source }),
            Ok(fd) => Ok(Some(HeldMap { name: shape.name, fd, max_entries: shape.max_entries })),
        }
    }

    /// A map of a kind that is known and sizes that are not; None: there is none of that name and kind.
    pub(super) fn open_map(&self, name: &'static str, kind: MapType) -> Result<Option<RawMap>, KernelError> {
        let path = self.map(name);
        if !path.exists() {
            return Ok(None);
        }
        let info = MapInfo::from_pin(&path).map_err(|error| KernelError::read(name, error))?;
        if !info.map_type().is_ok_and(|found| found == kind) {
            return Ok(None);
        }
        let fd = sys::open_pin(&path).map_err(|source| KernelError::Pin { path, source })?;
        let (key_bytes, value_bytes) = (info.key_size() as usize, info.value_size() as usize);
        Ok(Some(RawMap { fd, key_bytes, value_bytes, max_entries: info.max_entries() }))
    }

    /// Detaches every program and removes links, then maps, then the directories. Gives the names of the programs that were
    /// attached; None: there was nothing.
    pub(super) fn remove(&self) -> Result<Option<Vec<String>>, KernelError> {
        if !self.dir.exists() {
            return Ok(None);
        }
        let lowered = self.links()?.into_iter().map(PinnedLink::lower).collect::<Result<Vec<_>, _>>()?;
        for inner in ["links", "maps"] {
            let dir = self.dir.join(inner);
            for path in files(&dir)? {
                fs::remove_file(&path).map_err(|source| KernelError::Pin { path, source })?;
            }
            remove_dir_if_there(&dir).map_err(|source| KernelError::Pin { path: dir, source })?;
        }
        fs::remove_dir(&self.dir).map_err(|source| KernelError::Pin { path: self.dir.clone(), source })?;
        Ok(Some(lowered.into_iter().flatten().collect()))
    }
}

/// A link that is pinned.
#[derive(Debug)]
pub(super) struct PinnedLink {
    fd: OwnedFd,
    /// The kernel's number of what it attaches.
    pub(super) program: u32,
    /// None: it is no link at a cgroup.
    pub(super) place: Option<CgroupPlace>,
    path: PathBuf,
}

impl PinnedLink {
    fn open(path: PathBuf) -> io::Result<Self> {
        let fd = sys::open_pin(&path)?;
        let info = sys::link_info(fd.as_fd())?;
        Ok(Self { fd, program: info.program, place: info.place, path })
    }

    /// Whether it attaches anything. What is no link at a cgroup does as long as it is there.
    pub(super) fn is_attached(&self) -> bool {
        self.place.is_none_or(|place| place.cgroup_id != 0)
    }

    /// Detaches it, and removes its pin. Gives its name if it was attached.
    pub(super) fn lower(self) -> Result<Option<String>, KernelError> {
        let attached = self.is_attached();
        // At once, where the kernel can: a link whose last pin is removed goes on for a while on old kernels. What cannot be
        // detached like this ends with its pin.
        if let Err(error) = sys::link_detach(self.fd.as_fd())
            && error.raw_os_error() != Some(libc::EOPNOTSUPP)
        {
            return Err(KernelError::Pin { path: self.path, source: error });
        }
        remove_if_there(&self.path).map_err(|source| KernelError::Pin { path: self.path.clone(), source })?;
        let name = self.path.file_name().map(|name| name.to_string_lossy().into_owned());
        Ok(name.filter(|_| attached))
    }
}

/// Gives an object a name, in the place of whatever has it.
fn name(object: BorrowedFd<'_>, path: &Path) -> Result<(), KernelError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| KernelError::Pin { path, source }
    };
    // No dot: the BPF file system refuses names with one.
    let mut beside = path.as_os_str().to_owned();
    beside.push("-new");
    let beside = PathBuf::from(beside);
    remove_if_there(&beside).map_err(at(&beside))?;
    sys::pin(object, &beside).map_err(at(&beside))?;
    fs::rename(&beside, path).map_err(at(path))
}

/// What lies in a directory; nothing if it is not there.
fn files(dir: &Path) -> Result<Vec<PathBuf>, KernelError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect()),
    };
    entries.map_err(|source| KernelError::Pin { path: dir.to_owned(), source })
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    ignore_absence(fs::remove_file(path))
}

fn remove_dir_if_there(path: &Path) -> io::Result<()> {
    ignore_absence(fs::remove_dir(path))
}

fn ignore_absence(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
