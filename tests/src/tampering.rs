//! What somebody with root can do to a gate behind its agent's back: the faults that tests put in.
//!
//! Owns: writing to what is pinned, and programs of somebody else. Must not know: what the agent makes of it. Nothing of the
//! agent's own code is used, so that a mistake there is not repeated here.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use agent_ebpf::abi::map;

use crate::raw;

/// Commands of `bpf(2)`.
const OBJ_PIN: i32 = 6;
const PROG_GET_FD_BY_ID: i32 = 13;
const MAP_GET_FD_BY_ID: i32 = 14;
const LINK_GET_FD_BY_ID: i32 = 30;
const MAP_LOOKUP_ELEM: i32 = 1;
const MAP_UPDATE_ELEM: i32 = 2;
const MAP_DELETE_ELEM: i32 = 3;
const PROG_LOAD: i32 = 5;
const OBJ_GET: i32 = 7;
const LINK_CREATE: i32 = 28;
const LINK_UPDATE: i32 = 29;
const LINK_DETACH: i32 = 34;

/// A kind of program, from `enum bpf_prog_type`, and where it is attached, from `enum bpf_attach_type`.
type Place = (u64, u64);

const CONNECT4: Place = (18, 10);

/// Where a gate has its programs: `sock_create`, `sock_ops`, `sock_release`, `connect`, `sendmsg`, `egress`.
const OF_GATE: [Place; 8] = [(9, 2), (13, 3), (9, 34), CONNECT4, (18, 11), (18, 14), (18, 15), (8, 1)];

/// The pins of a gate.
pub struct Pinned {
    dir: PathBuf,
}

impl Pinned {
    /// Those below `pin_dir`.
    pub fn at(pin_dir: &Path) -> Self {
        Self { dir: pin_dir.join(format!("abi-{}", agent_ebpf::abi::ABI_VERSION)) }
    }

    /// Where a program's link is pinned.
    pub fn link(&self, program: &str) -> PathBuf {
        self.dir.join("links").join(program)
    }

    /// Where a map is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.dir.join("maps").join(name)
    }

    /// The kernel's numbers of all maps.
    pub fn map_ids(&self) -> io::Result<Vec<u32>> {
        let pins = fs::read_dir(self.dir.join("maps"))?;
        pins.map(|pin| {
            let map = open(&pin?.path())?;
            let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
            let id = info.lines().find_map(|line| line.strip_prefix("map_id:")?.trim().parse().ok());
            id.ok_or_else(|| io::Error::other("the kernel does not say a map's number"))
        })
        .collect()
    }

    /// Writes an element.
    pub fn update(&self, map: &str, key: &[u8], value: &[u8]) -> io::Result<()> {
        let map = open(&self.map(map))?;
        let mut attributes = [map.as_raw_fd() as u64, key.as_ptr() as u64, value.as_ptr() as u64, 0];
        raw::bpf_done(MAP_UPDATE_ELEM, &mut attributes)
    }

    /// The words of a slot; None: there is no such slot.
    pub fn slot(&self, index: u32) -> io::Result<Option<Slot>> {
        let value: Option<[u8; 64]> = self.lookup(map::SLOTS, &index.to_ne_bytes())?;
        Ok(value.map(|bytes| Slot { bytes }))
    }

    /// Changes a word of a slot.
    pub fn set_slot(&self, index: u32, word: Word, value: u64) -> io::Result<()> {
        let mut slot = self.slot(index)?.ok_or(io::ErrorKind::NotFound)?;
        slot.bytes[word as usize..][..8].copy_from_slice(&value.to_ne_bytes());
        self.update(map::SLOTS, &index.to_ne_bytes(), &slot.bytes)
    }

    /// Removes an element.
    pub fn delete(&self, map: &str, key: &[u8]) -> io::Result<()> {
        let map = open(&self.map(map))?;
        raw::bpf_done(MAP_DELETE_ELEM, &mut [map.as_raw_fd() as u64, key.as_ptr() as u64, 0, 0])
    }

    /// An element of `N` bytes; None: there is none.
    pub fn lookup<const N: usize>(&self, map: &str, key: &[u8]) -> io::Result<Option<[u8; N]>> {
        let map = open(&self.map(map))?;
        let mut value = [0; N];
        let mut attributes = [map.as_raw_fd() as u64, key.as_ptr() as u64, value.as_mut_ptr() as u64, 0];
        match raw::bpf_done(MAP_LOOKUP_ELEM, &mut attributes) {
            Ok(()) => Ok(Some(value)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Detaches a program.
    pub fn detach(&self, program: &str) -> io::Result<()> {
        detach(&open(&self.link(program))?)
    }

    /// Has the link of `connect4` attach another program.
    pub fn replace_connect4(&self, program: &OwnedFd) -> io::Result<()> {
        replace(&open(&self.link("connect4"))?, program)
    }
}

/// Where a word of a slot begins.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "named as what they are")]
pub enum Word {
    Epoch = 0,
    Deadline = 8,
    IdleLimit = 24,
    Grant = 40,
}

/// A slot as it lies in its map.
pub struct Slot {
    bytes: [u8; 64],
}

impl Slot {
    /// One of its words.
    pub fn word(&self, word: Word) -> u64 {
        let bytes = &self.bytes[word as usize..];
        u64::from_ne_bytes(*bytes.first_chunk().expect("a word lies within the slot"))
    }
}

/// Detaches a link.
pub fn detach(link: &OwnedFd) -> io::Result<()> {
    raw::bpf_done(LINK_DETACH, &mut [link.as_raw_fd() as u64])
}

/// Has a link attach another program.
pub fn replace(link: &OwnedFd, program: &OwnedFd) -> io::Result<()> {
    let (link, program) = (link.as_raw_fd() as u64, program.as_raw_fd() as u64);
    raw::bpf_done(LINK_UPDATE, &mut [link | program << 32, 0])
}

/// Opens a map by its id.
pub fn map_by_id(id: u32) -> io::Result<OwnedFd> {
    raw::bpf(MAP_GET_FD_BY_ID, &mut [id.into(), 0])
}

/// Opens a program by its id.
pub fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    raw::bpf(PROG_GET_FD_BY_ID, &mut [id.into(), 0])
}

/// Opens a link by its id.
pub fn link_by_id(id: u32) -> io::Result<OwnedFd> {
    raw::bpf(LINK_GET_FD_BY_ID, &mut [id.into(), 0])
}

/// Pins something.
pub fn pin(object: &OwnedFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    raw::bpf_done(OBJ_PIN, &mut [path.as_ptr() as u64, object.as_raw_fd() as u64])
}

/// Opens what is pinned there.
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    raw::bpf(OBJ_GET, &mut [path.as_ptr() as u64, 0])
}

/// What somebody else's program for `connect4` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Does {
    /// Nothing.
    Nothing,
    /// Refuses everything.
    Refuses,
    /// Undoes what others have refused. Linux 5.18 and newer.
    Forgives,
}

/// Loads it, under the name `stranger`.
pub fn connect4_program(does: Does) -> io::Result<OwnedFd> {
    load(CONNECT4, does)
}

/// Attaches programs that do nothing wherever a gate has one; gone as soon as the descriptors are closed.
pub fn attach_idle(cgroup: &Path) -> io::Result<Vec<OwnedFd>> {
    OF_GATE.into_iter().map(|place| attach(place, &load(place, Does::Nothing)?, cgroup)).collect()
}

fn load((kind, attach_type): Place, does: Does) -> io::Result<OwnedFd> {
    const fn instruction(opcode: u64, destination: u64, immediate: u64) -> u64 {
        opcode | destination << 8 | immediate << 32
    }
    const SET_RETVAL: u64 = 187;
    let (set, exit) = (|register, value| instruction(0xb7, register, value), instruction(0x95, 0, 0));
    let code = match does {
        Does::Nothing => vec![set(0, 1), exit],
        Does::Refuses => vec![set(0, 0), exit],
        Does::Forgives => vec![set(1, 0), instruction(0x85, 0, SET_RETVAL), set(0, 1), exit],
    };
    let license = c"GPL";
    let mut name = [0u8; 16];
    name[..8].copy_from_slice(b"stranger");
    let [name_start, name_end] =
        [&name[..8], &name[8..]].map(|part| u64::from_ne_bytes(part.try_into().expect("8 bytes")));
    let mut attributes = [
        kind | (code.len() as u64) << 32,
        code.as_ptr() as u64,
        license.as_ptr() as u64,
        0,
        0,
        0,
        name_start,
        name_end,
        attach_type << 32,
    ];
    raw::bpf(PROG_LOAD, &mut attributes)
}

/// Attaches it at a cgroup; gone as soon as the descriptor is closed.
pub fn attach_connect4(program: &OwnedFd, cgroup: &Path) -> io::Result<OwnedFd> {
    attach(CONNECT4, program, cgroup)
}

fn attach((_, attach_type): Place, program: &OwnedFd, cgroup: &Path) -> io::Result<OwnedFd> {
    let cgroup = File::open(cgroup)?;
    let (program, cgroup) = (program.as_raw_fd() as u64, cgroup.as_raw_fd() as u64);
    raw::bpf(LINK_CREATE, &mut [program | cgroup << 32, attach_type])
}
