//! What the maps say about grants, the slots that they lie in, and what a gate of another ABI version had let through.
//!
//! Owns: the look-ups, and the times of a slot. Must not know: what follows from them.

use agent_ebpf::abi::{Admission, ConnectionEntry, GrantKey, GrantRef};
use agent_ebpf::verdict::Slot;

use crate::{context, maps};

/// What a look-up found, with a value in any case. The compiler leaves the inside of a `None` unset, and may load it early
/// where it is not used later; Linux 5.10 refuses a program that does.
pub(crate) struct Found<T> {
    value: T,
    is_there: bool,
}

impl<T: Copy + Default> From<Option<T>> for Found<T> {
    #[inline(always)]
    fn from(option: Option<T>) -> Self {
        match option {
            Some(value) => Self { value, is_there: true },
            None => Self { value: T::default(), is_there: false },
        }
    }
}

impl<T: Copy> Found<T> {
    #[inline(always)]
    pub(crate) fn as_ref(&self) -> Option<&T> {
        if self.is_there { Some(&self.value) } else { None }
    }

    #[inline(always)]
    pub(crate) fn get(&self) -> Option<T> {
        self.as_ref().copied()
    }
}

/// The grant of a pair.
#[inline(always)]
pub(crate) fn grant(key: GrantKey) -> Option<GrantRef> {
    // SAFETY: the kernel replaces a whole entry when the agent writes it, and frees the old one only after this program's
    // run; what is copied here is one or the other.
    unsafe { maps::GRANTS.get(key).copied() }
}

/// The epoch last: see [`Slot`].
#[inline(always)]
pub(crate) fn slot(index: u32) -> Option<Slot> {
    let slot = maps::SLOTS.get_ptr(index)?;
    // SAFETY: the pointer is to an aligned element of an array map, valid for the program's run. Volatile, so that each word is
    // read once, and in this order.
    unsafe {
        Some(Slot {
            deadline_boot_ns: (&raw const (*slot).deadline_boot_ns).read_volatile(),
            idle_limit_ns: (&raw const (*slot).idle_limit_ns).read_volatile(),
            active_boot_ns: (&raw const (*slot).last_active_boot_ns).read_volatile(),
            epoch: (&raw const (*slot).epoch).read_volatile(),
        })
    }
}

/// The connection that the socket of this cookie is, if it is remembered.
///
/// In the instant in which it is closed the entry may become another connection's: what is written to it must not matter then.
#[inline(always)]
pub(crate) fn connection<'a>(cookie: u64) -> Option<&'a mut ConnectionEntry> {
    // SAFETY: the entry's memory is the map's for the program's run. Each of its numbers is read or written at once.
    maps::CONNECTIONS.get_ptr_mut(cookie).map(|entry| unsafe { &mut *entry })
}

/// Puts into `found` what a gate of another ABI version had let the socket of this cookie through to, as the agent wrote it
/// down. Returns whether it had.
#[inline(always)]
pub(crate) fn inherit(cookie: u64, found: &mut Admission) -> bool {
    let Some(entry) = connection(cookie) else { return false };
    if entry.has(ConnectionEntry::OBSERVED) || !entry.has(ConnectionEntry::INHERITED) {
        return false;
    }
    found.resource = entry.resource;
    found.subject = entry.subject;
    found.slot = entry.slot;
    found.epoch = entry.epoch;
    true
}

/// Writes down what the slot is called now. All 0: it has no name.
#[inline(always)]
pub(crate) fn write_name(index: u32, name: &mut [u8; 16]) {
    if let Some(slot) = maps::SLOTS.get_ptr(index) {
        // SAFETY: the pointer is to an aligned element of an array map, valid for the program's run; the name lies at a
        // multiple of 8 bytes, and so it is copied by words.
        let words = unsafe { (&raw const (*slot).grant).cast::<[u64; 2]>().read() };
        *name = context::bytes_of(words);
    }
}

/// Writes down that the slot let something through just now. Several CPUs may at once: any of their times is right.
#[inline(always)]
pub(crate) fn note_admitted(index: u32, now_boot_ns: u64) {
    if let Some(slot) = maps::SLOTS.get_ptr_mut(index) {
        // SAFETY: the pointer is to an aligned element of an array map, valid for the program's run.
        unsafe { (&raw mut (*slot).last_admitted_boot_ns).write_volatile(now_boot_ns) };
    }
}

/// The same of activity, as an idle limit counts it.
#[inline(always)]
pub(crate) fn note_active(index: u32, now_boot_ns: u64) {
    if let Some(slot) = maps::SLOTS.get_ptr_mut(index) {
        // SAFETY: as in `note_admitted`.
        unsafe { (&raw mut (*slot).last_active_boot_ns).write_volatile(now_boot_ns) };
    }
}
