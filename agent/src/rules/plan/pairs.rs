//! Who may pass: the grants of each pair, and the slots that they lie in.
//!
//! Owns: when a slot goes on, and when the next one begins. Must not know: what is protected.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Display;

use agent_ebpf::abi::{GrantKey, GrantRef};
use proto::types::{GrantId, Refused, RefusedItem};

use super::{Reconciler, WantedGrant, Write};

/// Of the grants of each pair the one that ends last, of equal ones the newest, with the idle limit of all of them. Those that
/// have `ended` count only where the pair has no other.
pub(super) fn unions(
    grants: &[WantedGrant],
    ended: impl Fn(&WantedGrant) -> bool,
) -> BTreeMap<GrantKey, WantedGrant> {
    let mut unions: BTreeMap<GrantKey, (WantedGrant, bool)> = BTreeMap::new();
    for grant in grants {
        let (key, has_ended) = (key_of(grant), ended(grant));
        match unions.get_mut(&key) {
            None => drop(unions.insert(key, (*grant, has_ended))),
            Some(union) if union.1 && !has_ended => *union = (*grant, false),
            Some((_, false)) if has_ended => {}
            Some((union, _)) => {
                let idle_limit_ns = most_patient(union.idle_limit_ns, grant.idle_limit_ns);
                let rank = |grant: &WantedGrant| (grant.expires_at_boot_ns, grant.id);
                let longest = if rank(grant) > rank(union) { grant } else { &*union };
                *union = WantedGrant { idle_limit_ns, ..*longest };
            }
        }
    }
    unions.into_iter().map(|(key, (union, _))| (key, union)).collect()
}

fn key_of(grant: &WantedGrant) -> GrantKey {
    GrantKey { subject: grant.subject.get(), resource: grant.resource.get() }
}

/// 0 is no limit.
pub(super) fn most_patient(a_ns: u64, b_ns: u64) -> u64 {
    if a_ns == 0 || b_ns == 0 { 0 } else { a_ns.max(b_ns) }
}

impl<E: Display, W: FnMut(&Write) -> Result<(), E>> Reconciler<'_, W> {
    /// Ends every pair that is not wanted at all. The epoch first: it alone closes, and it is one write.
    pub(super) fn remove_grants(&mut self, wanted: &BTreeMap<GrantKey, WantedGrant>) {
        let gone: Vec<GrantKey> =
            self.present.grants.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
        gone.into_iter().for_each(|key| self.remove_grant(key));
    }

    pub(super) fn remove_grant(&mut self, key: GrantKey) {
        if let Some(held) = self.present.grants.get(&key).copied() {
            self.raise_epoch(held.slot);
            self.must(Write::RemoveGrant { key });
        }
    }

    fn raise_epoch(&mut self, slot: u32) {
        // Only somebody else refers to a slot that is not there, and it lets nobody through.
        if slot < self.slots_max {
            // Only somebody else gets to the last epoch. One counts by being the same, so going round does no harm.
            let epoch = self.present.epoch(slot).wrapping_add(1);
            self.must(Write::SetEpoch { slot, epoch });
        }
    }

    pub(super) fn put_grants(&mut self, wanted: &BTreeMap<GrantKey, WantedGrant>) {
        let slots_max = self.slots_max;
        let mut taken: HashSet<u32> = self.present.grants.values().map(|value| value.slot).collect();
        // Lowest first: the maps' first pages are the ones in the caches.
        let mut next_slot = 0;
        for (key, grant) in wanted {
            let old = self.present.grants.get(key).copied();
            if let Some(old) = old {
                // What has ended idle stays, as long as nothing else is wanted, and says so.
                if self.is_exactly(old, grant) || self.ended_idle(grant) {
                    continue;
                }
                if self.is_live(old) {
                    self.carry_on(*key, old, grant);
                    continue;
                }
            }
            while taken.contains(&next_slot) {
                next_slot += 1;
            }
            let item = RefusedItem::Grant(grant.id);
            let put = if next_slot < slots_max {
                taken.insert(next_slot);
                self.put_grant(*key, grant, next_slot)
            } else {
                self.refuse(item, format!("cannot hold more than {slots_max} grants at a time"));
                false
            };
            if let Some(old) = old {
                self.raise_epoch(old.slot);
                if !put {
                    self.must(Write::RemoveGrant { key: *key });
                }
            }
        }
    }

    /// The grants of a pair are one entry: where it was refused by the name of one, none of them lets anybody through.
    pub(super) fn refuse_unions(&mut self, grants: &[WantedGrant]) {
        let errors: HashMap<GrantId, String> = self
            .outcome
            .refused
            .iter()
            .filter_map(|refused| match refused.item {
                RefusedItem::Grant(id) => Some((id, refused.error.clone())),
                RefusedItem::Resource(_) | RefusedItem::Subject(_) => None,
            })
            .collect();
        let refused = grants.iter().filter_map(|grant| Some((key_of(grant), errors.get(&grant.id)?)));
        let pairs: BTreeMap<GrantKey, &String> = refused.collect();
        // Also those that are over: they may be cut off only until the control plane is heard again.
        for grant in grants.iter().filter(|grant| !errors.contains_key(&grant.id)) {
            if let Some(error) = pairs.get(&key_of(grant)) {
                let item = RefusedItem::Grant(grant.id);
                self.outcome.refused.push(Refused { item, error: (*error).clone() });
            }
        }
    }

    /// Whether the reference leads to this grant and no other.
    fn is_exactly(&self, reference: GrantRef, grant: &WantedGrant) -> bool {
        self.present.epoch(reference.slot) == reference.epoch
            && self.present.names.get(&reference.slot) == Some(&name_of(grant))
            && self.present.deadlines.get(&reference.slot) == Some(&grant.expires_at_boot_ns)
            && self.idle_limit(reference.slot) == grant.idle_limit_ns
    }

    fn idle_limit(&self, slot: u32) -> u64 {
        self.present.idle_limits.get(&slot).copied().unwrap_or(0)
    }

    /// Whether the pair's slot is named after the grant, and has been idle for longer than it may.
    pub(super) fn ended_idle(&self, grant: &WantedGrant) -> bool {
        self.present.grants.get(&key_of(grant)).is_some_and(|held| {
            self.present.epoch(held.slot) == held.epoch
                && self.present.names.get(&held.slot) == Some(&name_of(grant))
                && self.present.is_idle(held.slot, self.now_boot_ns)
        })
    }

    /// Whether somebody is let through by the reference, and still will be by the time that this is written.
    fn is_live(&self, reference: GrantRef) -> bool {
        const MARGIN_NS: u64 = 10_000_000;
        self.present.counts(reference.slot, reference.epoch, self.now_boot_ns.saturating_add(MARGIN_NS))
    }

    /// Another grant of the pair takes over while one still counts: the deadline moves, what was let through goes on.
    fn carry_on(&mut self, key: GrantKey, held: GrantRef, grant: &WantedGrant) {
        let (item, slot) = (RefusedItem::Grant(grant.id), held.slot);
        let moved = self.limit(item, slot, grant.idle_limit_ns)
            && self.offer(item, Write::SetDeadline { slot, deadline_boot_ns: grant.expires_at_boot_ns })
            && self.offer(item, Write::NameSlot { slot, grant: name_of(grant) });
        if !moved {
            // Whatever the slot says now is not what is wanted.
            self.raise_epoch(slot);
            self.must(Write::RemoveGrant { key });
        }
    }

    /// Sets the idle limit of a slot that counts. A lower one begins to count now.
    fn limit(&mut self, item: RefusedItem, slot: u32, limit_ns: u64) -> bool {
        let present_ns = self.idle_limit(slot);
        if present_ns == limit_ns {
            return true;
        }
        let is_lowered = limit_ns != most_patient(present_ns, limit_ns);
        let boot_ns = self.now_boot_ns;
        (!is_lowered || self.offer(item, Write::RestartIdling { slot, boot_ns }))
            && self.offer(item, Write::SetIdleLimit { slot, limit_ns })
    }

    fn put_grant(&mut self, key: GrantKey, grant: &WantedGrant, slot: u32) -> bool {
        let item = RefusedItem::Grant(grant.id);
        let value = GrantRef { slot, reserved: 0, epoch: self.present.epoch(slot) };
        self.offer(item, Write::NameSlot { slot, grant: name_of(grant) })
            && self.offer(item, Write::BeginSlot { slot, boot_ns: self.now_boot_ns })
            && (self.idle_limit(slot) == grant.idle_limit_ns
                || self.offer(item, Write::SetIdleLimit { slot, limit_ns: grant.idle_limit_ns }))
            && self.offer(item, Write::SetDeadline { slot, deadline_boot_ns: grant.expires_at_boot_ns })
            && self.offer(item, Write::PutGrant { key, value })
    }
}

fn name_of(grant: &WantedGrant) -> [u8; 16] {
    *grant.id.as_bytes()
}
