//! What can go wrong between agent and kernel.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use agent_ebpf::abi::{self, map};
use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;

use super::Settings;

/// A step that the kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The programs do not load.
    #[error("cannot load the kernel programs")]
    Load(#[source] Box<EbpfError>),
    /// One program does not load or attach.
    #[error("cannot load or attach the kernel program `{name}`")]
    Program {
        /// Which.
        name: &'static str,
        /// Why.
        source: Box<ProgramError>,
    },
    /// The embedded object lacks something.
    #[error("the kernel object has no `{0}`: the build is broken")]
    Missing(&'static str),
    /// One program cannot be attached. Links at cgroups came with Linux 5.7; we promise 5.10.
    #[error("cannot attach the kernel program `{name}` (Linux 5.10 or newer is needed)")]
    Attach {
        /// Which.
        name: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The kernel took a program, and says that it attaches another, or elsewhere: somebody interferes.
    #[error(
        "the kernel does not show the program `{0}` where it was just attached: does somebody else change our links?"
    )]
    NotAttached(&'static str),
    /// The cgroup root does not open.
    #[error("cannot open the cgroup v2 root {path}", path = path.display())]
    CgroupRoot {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The pin directory is somewhere else.
    #[error(
        "{path} is not on a BPF file system: mount one with `mount -t bpf bpf /sys/fs/bpf`, or set `kernel.pin_dir`",
        path = path.display()
    )]
    NoBpffs {
        /// The nearest directory that is there.
        path: PathBuf,
    },
    /// A pin cannot be made, moved or removed.
    #[error("cannot change the pin {path}", path = path.display())]
    Pin {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is pinned is not what this version, or this configuration, would make.
    #[error(
        "the pinned map {name} has {field} {found}, and this agent wants {wanted}: set the configuration back, or lift \
         the gate once with `portcullis-agent detach`"
    )]
    Shape {
        /// Which map.
        name: &'static str,
        /// Of what.
        field: &'static str,
        /// What is pinned.
        found: u32,
        /// What should be.
        wanted: u32,
    },
    /// A map has no room.
    #[error("map {name} is full ({max} entries): raise `kernel.{setting}` in the agent's configuration")]
    Full {
        /// Which map.
        name: &'static str,
        /// How many it takes.
        max: u32,
        /// What makes it larger.
        setting: &'static str,
    },
    /// More paths of unix sockets are protected than there is room for.
    #[error(
        "map {} is full ({} paths of unix sockets): spread the resources over fewer hosts",
        map::UNIX_SOCKETS,
        abi::UNIX_SOCKETS_MAX
    )]
    TooManyUnixSockets,
    /// The LSM tier is required, and the kernel cannot have all of it.
    #[error(
        "`kernel.lsm` is \"require\", and this host would be without {missing}: set it to \"prefer\" to go on so"
    )]
    Lsm {
        /// What is missing, and why.
        missing: String,
    },
    /// The tamper tier is required, and the kernel cannot have it.
    #[error(
        "`kernel.tamper` is \"require\", and this host would be without tamper protection ({why}): set it to \"prefer\" to \
         go on so"
    )]
    Tamper {
        /// Why not.
        why: String,
    },
    /// The tamper tier of another agent keeps this one from the gate.
    #[error(
        "the gate is kept from this program by the tamper tier of an agent that is another file: lift it with that one's \
         `portcullis-agent tamper lift`, start this one once that one runs, or reboot"
    )]
    NotTheAgent,
    /// The kernel does not count and time programs.
    #[error("cannot turn the kernel's statistics of programs on: Linux 5.8 or newer and root are needed")]
    Statistics(#[source] io::Error),
    /// There is no such slot.
    #[error(
        "there is no slot {slot} in map {}: the agent's picture of the gate is wrong, restart it",
        map::SLOTS
    )]
    NoSlot {
        /// Its number.
        slot: u32,
    },
    /// A map cannot be written.
    #[error("cannot write map {name}")]
    Write {
        /// Which map.
        name: &'static str,
        /// Why.
        source: Box<MapError>,
    },
    /// A map of another version cannot be read.
    #[error("cannot read map {name} of another ABI version")]
    RawRead {
        /// Which map.
        name: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A map cannot be read as a whole.
    #[error("cannot read the elements of map {name}")]
    Elements {
        /// Which map.
        name: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A map cannot be read.
    #[error("cannot read map {name}")]
    Read {
        /// Which map.
        name: &'static str,
        /// Why.
        source: Box<MapError>,
    },
}

impl KernelError {
    pub(super) fn load(source: EbpfError) -> Self {
        Self::Load(Box::new(source))
    }

    pub(super) fn program(name: &'static str, source: impl Into<ProgramError>) -> Self {
        Self::Program { name, source: Box::new(source.into()) }
    }

    pub(super) fn attach(name: &'static str, source: io::Error) -> Self {
        Self::Attach { name, source }
    }

    pub(super) fn raw_read(name: &'static str, source: io::Error) -> Self {
        Self::RawRead { name, source }
    }

    pub(super) fn read(name: &'static str, source: MapError) -> Self {
        Self::Read { name, source: Box::new(source) }
    }

    /// What a failed write means: nothing, if it was to remove what is not there.
    pub(super) fn from_write(name: &'static str, settings: &Settings, source: MapError) -> Result<(), Self> {
        if matches!(source, MapError::KeyNotFound) {
            return Ok(());
        }
        let MapError::SyscallError(error) = &source else {
            return Err(Self::Write { name, source: Box::new(source) });
        };
        match error.io_error.raw_os_error().map(nix::errno::Errno::from_raw) {
            Some(nix::errno::Errno::ENOENT) => Ok(()),
            // A full hash map says E2BIG, a full LPM trie ENOSPC; ENOMEM is a trie that the kernel has no memory for.
            Some(nix::errno::Errno::E2BIG | nix::errno::Errno::ENOSPC) => Err(Self::full(name, settings)),
            _ => Err(Self::Write { name, source: Box::new(source) }),
        }
    }

    fn full(name: &'static str, settings: &Settings) -> Self {
        if name == map::UNIX_SOCKETS {
            return Self::TooManyUnixSockets;
        }
        let (max, setting) = match name {
            map::RESOURCES | map::PEERS => (settings.resources_max, "resources_max"),
            map::SUBJECTS => (settings.subjects_max, "subjects_max"),
            map::CONNECTIONS => (settings.connections_max, "connections_max"),
            map::EXEMPT_CGROUPS => (abi::EXEMPT_CGROUPS_MAX, "lsm_exempt"),
            _ => (settings.grants_max, "grants_max"),
        };
        Self::Full { name, max, setting }
    }
}

/// An error with its causes, on one line.
pub(super) fn in_full(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
