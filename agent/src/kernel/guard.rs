//! Whether the gate is still where it was put: links, programs, their order, pins. And putting it back.
//!
//! Owns: what can be wrong with it, in words. Must not know: who asks, how often, what becomes of it.
//!
//! Invariant: nothing here takes down what decides: a program is put back by [`Pins::attach`], or, where it cannot be pinned,
//! by a link that lasts as long as this process does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use aya::programs::loaded_programs;

use super::error::in_full;
use super::lsm::Demand;
use super::pins::{Attachable, Pins};
use super::predecessors::Predecessor;
use super::sys::{self, AttachType, Query};
use super::{Gate, KernelError};

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

impl Gate {
    /// Whether programs, links and pins are as they were put up; puts right what it can. Programs that are to be attached later,
    /// beside a gate of another ABI version, have nothing yet to be looked at.
    pub fn inspect(&mut self) -> Vec<Fault> {
        let mut faults = self.inspect_links();
        faults.extend(self.inspect_exempt());
        faults.extend(self.strangers());
        faults.extend(self.inspect_pins());
        faults.extend(self.inspect_tamper());
        faults
    }

    fn inspect_links(&mut self) -> Vec<Fault> {
        let Self { programs, on_demand, pins, cgroup_root, .. } = self;
        let inspect = |program| inspect_link(program, pins, cgroup_root.as_fd());
        let on_demand = on_demand.iter_mut().filter_map(|one| one.program.as_mut());
        programs.iter_mut().chain(on_demand).filter_map(inspect).collect()
    }

    /// Whether the cgroups are exempt from the LSM tier that should be, and no others.
    fn inspect_exempt(&mut self) -> Option<Fault> {
        let drift = match self.exempt.look() {
            Ok(drift) => drift?,
            Err(error) => return Some(Fault { text: in_full(&error), opens: false, repaired: false }),
        };
        let opens = drift.added > 0 && self.settings.lsm.demand != Demand::Off;
        let (text, repaired) = match self.exempt.write(&self.settings) {
            Ok(()) => (format!("{drift}; put right"), true),
            Err(error) => (format!("{drift}, and cannot be put right: {}", in_full(&error)), false),
        };
        Some(Fault { text, opens, repaired })
    }

    /// Programs of somebody else that run after ours where ours decide: they could undo a denial, or send a connection
    /// elsewhere after ours has looked. Those of cgroups above are not meant: the root has none above it. Nor are LSM programs:
    /// there the first refusal is the last word.
    fn strangers(&self) -> Vec<Fault> {
        let predecessors = self.predecessors.iter().flat_map(Predecessor::programs);
        let own: Vec<u32> = predecessors.chain(self.on_demand_programs().map(|program| program.id)).collect();
        let mut found: Vec<(u32, &'static str)> = Vec::new();
        let programs = self.programs.iter().chain(self.on_demand_programs());
        for program in programs.filter(|program| program.link.is_some() && decides(program)) {
            let at = |query| {
                let programs = sys::programs_at(self.cgroup_root.as_fd(), program.place.attach_type, query);
                programs.unwrap_or_default()
            };
            let attached = at(Query::Attached);
            let later = at(Query::Effective).into_iter().skip_while(|id| *id != program.id).skip(1);
            let strangers = later.filter(|id| attached.contains(id) && !own.contains(id));
            found.extend(strangers.map(|id| (id, program.name)));
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
    fn inspect_pins(&self) -> Option<Fault> {
        let programs = self.programs.iter().chain(self.on_demand_programs());
        let programs = programs.filter_map(|program| Some((program.name, program.link.as_ref()?.as_fd())));
        // The kernel lets nobody detach these or give them another program: what is to be looked at are their names.
        let tier = self.tier.links().chain(self.tamper.links()).chain(self.migrations.link());
        let tier = tier.filter(|_| self.stands());
        let links = programs.chain(tier).filter_map(|(name, link)| {
            let path = self.pins.link(name);
            let pinned = sys::open_pin(&path).and_then(|pinned| sys::link_info(pinned.as_fd()));
            (!is_same(pinned, sys::link_info(link))).then_some((name, link, path))
        });
        let maps = self.maps.iter().filter_map(|map| {
            let (fd, path) = (map.fd.as_fd(), self.pins.map(map.name));
            let pinned = sys::open_pin(&path).and_then(|pinned| sys::map_id(pinned.as_fd()));
            (!is_same(pinned, sys::map_id(fd))).then_some((map.name, fd, path))
        });
        let lost: Vec<(&'static str, BorrowedFd<'_>, PathBuf)> = links.chain(maps).collect();
        if lost.is_empty() {
            return None;
        }
        let names: Vec<&str> = lost.iter().map(|(name, ..)| *name).collect();
        let what = format!("{} no longer pinned: {}", count(names.len()), names.join(", "));
        let restored = self.pins.restore(lost.iter().map(|(_, object, path)| (*object, path.as_path())));
        let (text, repaired) = match restored {
            Ok(()) => (format!("{what}; pinned again"), true),
            Err(error) => {
                (format!("{what}; the gate will not outlive this agent: {}", in_full(&error)), false)
            }
        };
        Some(Fault { text, opens: false, repaired })
    }
}

/// Whether one program is attached by its link; puts it back if it is not.
fn inspect_link(program: &mut Attachable, pins: &Pins, cgroup: BorrowedFd<'_>) -> Option<Fault> {
    // Before it is put back: a program that nothing attaches any more has no name.
    let what = wrong_with(program, cgroup)?.to_string();
    let (text, repaired) = match put_back(program, pins, cgroup) {
        Ok(()) => (format!("{what}; put back"), true),
        Err(error) => (format!("{what}, and cannot be put back: {}", in_full(&error)), false),
    };
    Some(Fault { text, opens: true, repaired })
}

fn wrong_with(program: &Attachable, cgroup: BorrowedFd<'_>) -> Option<Wrong> {
    let name = program.name;
    let info = sys::link_info(program.link.as_ref()?.as_fd());
    let Some(info) = info.ok().filter(|info| info.place == Some(program.place)) else {
        return Some(Wrong::Detached(name));
    };
    if info.program != program.id {
        return Some(Wrong::Replaced(name, info.program));
    }
    let running = sys::programs_at(cgroup, program.place.attach_type, Query::Effective);
    let runs = running.is_ok_and(|programs| programs.contains(&program.id));
    (!runs).then_some(Wrong::Idle(name))
}

fn put_back(program: &mut Attachable, pins: &Pins, cgroup: BorrowedFd<'_>) -> Result<(), KernelError> {
    match pins.attach(program, cgroup) {
        // A gate that goes down with this process is better than none.
        Err(KernelError::Pin { .. }) => program.link = Some(program.create_link(cgroup)?),
        result => result?,
    }
    match wrong_with(program, cgroup) {
        None => Ok(()),
        Some(_) => Err(KernelError::NotAttached(program.name)),
    }
}

/// Whether what has the name is what should have it.
fn is_same<T: PartialEq>(pinned: io::Result<T>, held: io::Result<T>) -> bool {
    matches!((pinned, held), (Ok(pinned), Ok(held)) if pinned == held)
}

fn count(names: usize) -> String {
    match names {
        1 => "1 object is".to_owned(),
        many => format!("{many} objects are"),
    }
}

/// Whether a later program at the same place can change what this one has decided.
fn decides(program: &Attachable) -> bool {
    let remembering = [AttachType::SOCK_CREATE, AttachType::SOCK_OPS, AttachType::SOCK_RELEASE];
    !remembering.contains(&program.place.attach_type)
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
