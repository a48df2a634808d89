//! Whether the gate is still where it was put: links, programs, their order, pins. And putting it back.
//!
//! Owns: what can be wrong with it, in words. Must not know: who asks, how often, what becomes of it.
//!
//! Invariant: what holds the gate up beside the pins is held here: should somebody remove them, or unmount the file system,
//! programs and maps stay for as long as this process does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::maps::MapInfo;
use aya::programs::loaded_programs;

use super::pins::{Pins, shapes};
use super::sys::{self, AttachType, Query};
use super::{KernelError, PROGRAMS, Settings};

/// Something about the gate that is not as it was put up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What; and, if it was, that it has been put right.
    pub text: String,
    /// While it lasted, something could be let through that must not be.
    pub opens: bool,
    /// It has been put right.
    pub repaired: bool,
}

/// What the gate consists of, to be compared with what the kernel says.
pub(super) struct Guard {
    /// The programs, to be attached again.
    ebpf: Ebpf,
    cgroup: File,
    cgroup_id: u64,
    links: Vec<Held>,
    maps: Vec<HeldMap>,
}

/// A program's link.
struct Held {
    name: &'static str,
    link: OwnedFd,
    program_id: u32,
}

/// A map, with its capacity.
struct HeldMap {
    name: &'static str,
    fd: OwnedFd,
    max_entries: u32,
}

/// What is wrong with a program's link.
enum Wrong {
    /// It attaches nothing.
    Detached(&'static str),
    /// It attaches the program with this id.
    Replaced(&'static str, u32),
    /// It says that it attaches ours, and the kernel does not run it.
    Idle(&'static str),
}

impl Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Detached(name) => write!(f, "{name} was detached"),
            Self::Replaced(name, id) => {
                let names = program_names(std::iter::once(*id));
                let other = names.get(id).map_or(NAMELESS, String::as_str);
                write!(f, "{name} was replaced by the program {other} (id {id})")
            }
            Self::Idle(name) => write!(f, "{name} does not run"),
        }
    }
}

impl Guard {
    /// To be called when everything is attached and pinned.
    pub(super) fn of(
        ebpf: Ebpf,
        cgroup_root: &Path,
        pins: &Pins,
        settings: &Settings,
    ) -> Result<Self, KernelError> {
        let refuse = |source| KernelError::CgroupRoot { path: cgroup_root.to_owned(), source };
        let cgroup = File::open(cgroup_root).map_err(refuse)?;
        let cgroup_id = cgroup.metadata().map_err(refuse)?.ino();
        let open = |path: &Path| {
            sys::open_pin(path).map_err(|source| KernelError::Pin { path: path.to_owned(), source })
        };
        let links = PROGRAMS.into_iter().map(|name| {
            let program = ebpf.program(name).ok_or(KernelError::Missing(name))?;
            let info = program.info().map_err(|source| KernelError::program(name, source))?;
            Ok(Held { name, link: open(&pins.link(name))?, program_id: info.id() })
        });
        let links = links.collect::<Result<_, KernelError>>()?;
        // What this kernel cannot have has no pin.
        let there = shapes(settings).into_iter().filter(|shape| pins.map(shape.name).exists());
        let maps = there.map(|shape| {
            let (name, max_entries) = (shape.name, shape.max_entries);
            Ok(HeldMap { name, fd: open(&pins.map(name))?, max_entries })
        });
        let maps = maps.collect::<Result<_, KernelError>>()?;
        Ok(Self { ebpf, cgroup, cgroup_id, links, maps })
    }

    /// A map of the gate, and its capacity. None: it has none of this name.
    pub(super) fn map(&self, name: &str) -> Option<(BorrowedFd<'_>, u32)> {
        self.maps.iter().find(|map| map.name == name).map(|map| (map.fd.as_fd(), map.max_entries))
    }

    /// Looks at everything, and puts right what it can.
    pub(super) fn inspect(&mut self, pins: &Pins) -> Vec<Fault> {
        let mut faults = Vec::new();
        for index in 0..self.links.len() {
            faults.extend(self.inspect_link(index));
        }
        faults.extend(self.strangers());
        faults.extend(self.inspect_pins(pins));
        faults
    }

    /// Whether one program is attached by its link; puts it back if it is not.
    fn inspect_link(&mut self, index: usize) -> Option<Fault> {
        let wrong = self.wrong_with(&self.links[index])?;
        // Before it is put back: a program that nothing attaches any more has no name.
        let what = wrong.to_string();
        let (text, repaired) = match self.put_back(index, &wrong) {
            Ok(()) => (format!("{what}; put back"), true),
            Err(error) => (format!("{what}, and cannot be put back: {}", in_full(&error)), false),
        };
        Some(Fault { text, opens: true, repaired })
    }

    fn wrong_with(&self, held: &Held) -> Option<Wrong> {
        let name = held.name;
        let Ok(info) = sys::link_info(held.link.as_fd()) else { return Some(Wrong::Detached(name)) };
        if info.place.is_none_or(|place| place.cgroup_id != self.cgroup_id) {
            return Some(Wrong::Detached(name));
        }
        if info.program != held.program_id {
            return Some(Wrong::Replaced(name, info.program));
        }
        let running = sys::programs_at(self.cgroup.as_fd(), attach_type(name)?, Query::Effective);
        let runs = running.is_ok_and(|programs| programs.contains(&held.program_id));
        (!runs).then_some(Wrong::Idle(name))
    }

    fn put_back(&mut self, index: usize, wrong: &Wrong) -> Result<(), KernelError> {
        let held = &mut self.links[index];
        let name = held.name;
        let program = self.ebpf.program(name).ok_or(KernelError::Missing(name))?;
        let program = program.fd().map_err(|source| KernelError::program(name, source))?;
        let refuse = |source| KernelError::Attach { name, source };
        match wrong {
            // In one step, so that no instant is without either. The link's attach type never changes.
            Wrong::Replaced(..) => sys::link_update(held.link.as_fd(), program.as_fd()).map_err(refuse),
            Wrong::Detached(_) | Wrong::Idle(_) => {
                let attach_type = attach_type(name).ok_or(KernelError::Missing(name))?;
                held.link =
                    sys::link_create(program.as_fd(), self.cgroup.as_fd(), attach_type).map_err(refuse)?;
                Ok(())
            }
        }
    }

    /// Programs of somebody else that run after ours where ours decide: they could undo a denial, or send a connection
    /// elsewhere after ours has looked. Those of cgroups above are not meant: the root has none above it.
    fn strangers(&self) -> Vec<Fault> {
        let mut found: Vec<(u32, &'static str)> = Vec::new();
        for held in &self.links {
            let Some(attach_type) = attach_type(held.name).filter(|_| decides(held.name)) else { continue };
            let query = |query| sys::programs_at(self.cgroup.as_fd(), attach_type, query).unwrap_or_default();
            let attached = query(Query::Attached);
            let later = query(Query::Effective).into_iter().skip_while(|id| *id != held.program_id).skip(1);
            found.extend(later.filter(|id| attached.contains(id)).map(|id| (id, held.name)));
        }
        let names = program_names(found.iter().map(|(id, _)| *id));
        let tell = |(id, place): (u32, &'static str)| {
            let name = names.get(&id).map_or(NAMELESS, String::as_str);
            let text = format!("program {name} (id {id}) runs after ours at {place}");
            Fault { text, opens: false, repaired: false }
        };
        found.into_iter().map(tell).collect()
    }

    /// Whether links and maps have their names in the file system; gives them anew.
    fn inspect_pins(&self, pins: &Pins) -> Vec<Fault> {
        let links = self.links.iter().filter(|held| {
            let pinned = sys::open_pin(&pins.link(held.name)).and_then(|link| sys::link_info(link.as_fd()));
            let id = sys::link_info(held.link.as_fd()).map(|info| info.id);
            !matches!((pinned, id), (Ok(pinned), Ok(id)) if pinned.id == id)
        });
        let maps = self.maps.iter().filter(|map| {
            let pinned = MapInfo::from_pin(pins.map(map.name)).map(|info| info.id()).ok();
            pinned.is_none() || pinned != sys::map_id(map.fd.as_fd()).ok()
        });
        let lost: Vec<(&'static str, &OwnedFd, PathBuf)> = links
            .map(|held| (held.name, &held.link, pins.link(held.name)))
            .chain(maps.map(|map| (map.name, &map.fd, pins.map(map.name))))
            .collect();
        if lost.is_empty() {
            return Vec::new();
        }
        let names: Vec<&str> = lost.iter().map(|(name, ..)| *name).collect();
        let what = format!("{} no longer pinned: {}", count(names.len()), names.join(", "));
        let restored = pins.restore().and_then(|()| {
            lost.iter().try_for_each(|(_, fd, path)| {
                repin(fd, path).map_err(|source| KernelError::Pin { path: path.clone(), source })
            })
        });
        let (text, repaired) = match restored {
            Ok(()) => (format!("{what}; pinned again"), true),
            Err(error) => {
                (format!("{what}; the gate will not outlive this agent: {}", in_full(&error)), false)
            }
        };
        vec![Fault { text, opens: false, repaired }]
    }
}

fn count(names: usize) -> String {
    match names {
        1 => "1 object is".to_owned(),
        many => format!("{many} objects are"),
    }
}

/// Gives an object a name, in the place of whatever has it.
fn repin(fd: &OwnedFd, path: &Path) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push("-new");
    let _ = fs::remove_file(&beside);
    sys::pin(fd.as_fd(), Path::new(&beside))?;
    fs::rename(&beside, path)
}

/// Where a program is attached. None: it is none of ours.
fn attach_type(name: &str) -> Option<AttachType> {
    match name {
        "sock_create" => Some(AttachType::SOCK_CREATE),
        "sock_ops" => Some(AttachType::SOCK_OPS),
        "sock_release" => Some(AttachType::SOCK_RELEASE),
        "connect4" => Some(AttachType::CONNECT4),
        "connect6" => Some(AttachType::CONNECT6),
        "sendmsg4" => Some(AttachType::SENDMSG4),
        "sendmsg6" => Some(AttachType::SENDMSG6),
        "egress" => Some(AttachType::EGRESS),
        _ => None,
    }
}

/// Whether a later program at the same place can change what this one has decided.
fn decides(name: &str) -> bool {
    !matches!(name, "sock_create" | "sock_ops" | "sock_release")
}

/// What a program is called that has no name, or is gone.
const NAMELESS: &str = "without a name";

/// The names of programs, as far as they have any. Looks at every program of the host, once, if there is any to look for.
fn program_names(ids: impl Iterator<Item = u32>) -> BTreeMap<u32, String> {
    let ids: BTreeSet<u32> = ids.collect();
    let mut names = BTreeMap::new();
    if !ids.is_empty() {
        for info in loaded_programs().flatten().filter(|info| ids.contains(&info.id())) {
            let name = info.name_as_str().filter(|name| !name.is_empty());
            names.extend(name.map(|name| (info.id(), name.to_owned())));
        }
    }
    names
}

/// An error with its causes, on one line.
fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text += &format!(": {source}");
        cause = source.source();
    }
    text
}
