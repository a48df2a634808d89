//! From what the maps hold and what they should hold to the writes that lead there, in an order that is safe at every
//! single step.
//!
//! Owns: the order of the parts, and what becomes of a write that fails. Must not know: aya.
//!
//! Invariants, property-tested after each write and with writes that fail: a destination that was protected before and is
//! to be protected after is protected all the time; nobody is served who was not before and is not to be after; nobody is let
//! through by a grant that is not wanted any more, once its removal has been tried; a reference to a slot is never written
//! before the slot's deadline is; and what was let through goes on exactly as long as the pair's grants, from then on, leave no
//! gap.

mod destinations;
mod entries;
mod layout;
mod pairs;
#[cfg(test)]
pub(super) mod tests;
mod wanted;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use agent_ebpf::abi::GrantKey;
use proto::types::{Refused, RefusedItem, SubjectNumber};

pub use entries::{AddressPrefix, Check, Class, Entries, Write};
use pairs::unions;
pub use wanted::{Peers, ResourceOptions, Wanted, WantedGrant};

/// What came of a reconciliation.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What the kernel could not take.
    pub refused: Vec<Refused>,
    /// Removals that failed: the maps still hold something they should not, and the next reconciliation tries again.
    pub failed: Vec<String>,
}

/// Writes what leads from `present` to `wanted`, and keeps `present` true. `slots_max` is how many slots there are.
///
/// A pair that is let through without a break keeps its slot and epoch, whichever of its grants it is by: a union's deadline
/// moves, and what was let through goes on. Once it has ended, the next grant gets another slot, and revives nothing.
///
/// A union is idle by the most patient of its grants: if one of them has no idle limit, the slot has none, otherwise the
/// largest. Idleness counts from when the slot began, or its limit was last lowered.
pub fn reconcile<E: Display>(
    present: &mut Entries,
    wanted: &Wanted,
    slots_max: u32,
    now_boot_ns: u64,
    write: impl FnMut(&Write) -> Result<(), E>,
) -> Outcome {
    let mut reconciler = Reconciler { present, write, slots_max, now_boot_ns, outcome: Outcome::default() };
    let has_ended = |grant: &WantedGrant| {
        grant.expires_at_boot_ns <= reconciler.now_boot_ns || reconciler.ended_idle(grant)
    };
    let grants = unions(&wanted.grants, has_ended);
    reconciler.remove_grants(&grants);
    reconciler.unbind(&wanted.cgroups);
    reconciler.protect(wanted);
    reconciler.protect_unix(wanted);
    reconciler.bind(&wanted.cgroups);
    reconciler.put_grants(&grants);
    reconciler.refuse_unions(&wanted.grants);
    reconciler.outcome
}

/// The same for the grants of one pair, of which `wanted` ends last; nothing else is looked at. None: it should have none.
pub fn reconcile_pair<E: Display>(
    present: &mut Entries,
    key: GrantKey,
    wanted: Option<&WantedGrant>,
    slots_max: u32,
    now_boot_ns: u64,
    write: impl FnMut(&Write) -> Result<(), E>,
) -> Outcome {
    let mut reconciler = Reconciler { present, write, slots_max, now_boot_ns, outcome: Outcome::default() };
    match wanted {
        Some(grant) => reconciler.put_grants(&BTreeMap::from([(key, *grant)])),
        None => reconciler.remove_grant(key),
    }
    reconciler.outcome
}

struct Reconciler<'a, W> {
    present: &'a mut Entries,
    write: W,
    slots_max: u32,
    now_boot_ns: u64,
    outcome: Outcome,
}

impl<E: Display, W: FnMut(&Write) -> Result<(), E>> Reconciler<'_, W> {
    /// Writes, and mirrors what was written. The error is for people.
    fn try_write(&mut self, write: Write) -> Result<(), String> {
        (self.write)(&write).map_err(|error| format!("cannot {write}: {error}"))?;
        self.present.apply(&write);
        Ok(())
    }

    /// A write that must not fail. Returns whether it did not.
    fn must(&mut self, write: Write) -> bool {
        let result = self.try_write(write);
        let done = result.is_ok();
        self.outcome.failed.extend(result.err());
        done
    }

    /// A write for one item, which is refused if it fails. Returns whether it did not.
    fn offer(&mut self, item: RefusedItem, write: Write) -> bool {
        match self.try_write(write) {
            Ok(()) => true,
            Err(error) => {
                self.refuse(item, error);
                false
            }
        }
    }

    fn refuse(&mut self, item: RefusedItem, error: String) {
        if !self.outcome.refused.iter().any(|refused| refused.item == item) {
            self.outcome.refused.push(Refused { item, error });
        }
    }

    fn unbind(&mut self, wanted: &BTreeMap<u64, SubjectNumber>) {
        let gone: Vec<u64> = self
            .present
            .cgroups
            .iter()
            .filter(|(id, subject)| wanted.get(id).map(|number| number.get()) != Some(**subject))
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.must(Write::UnbindCgroup { id });
        }
    }

    fn bind(&mut self, wanted: &BTreeMap<u64, SubjectNumber>) {
        let mut full: BTreeSet<SubjectNumber> = BTreeSet::new();
        for (id, subject) in wanted {
            if !self.present.cgroups.contains_key(id) && !full.contains(subject) {
                let write = Write::BindCgroup { id: *id, subject: subject.get() };
                if !self.offer(RefusedItem::Subject(*subject), write) {
                    full.insert(*subject);
                }
            }
        }
    }
}
