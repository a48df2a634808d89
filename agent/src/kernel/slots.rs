//! The slots of grants, in memory that the programs share: each word of one is read and written by itself.
//!
//! Owns: where each word lies. Must not know: what a slot means.

use std::mem::{offset_of, size_of};
use std::sync::atomic::{AtomicU64, Ordering};

use agent_ebpf::abi::{GrantSlot, map};

use super::KernelError;
use super::pins::HeldMap;
use super::sys::SharedWords;
use crate::rules::plan::Entries;

/// Words of 8 bytes that a slot has.
const WORDS: usize = size_of::<GrantSlot>() / size_of::<u64>();

/// A word of a slot, by its place.
#[derive(Clone, Copy)]
pub(super) struct Word(usize);

impl Word {
    pub(super) const EPOCH: Self = Self::at(offset_of!(GrantSlot, epoch));
    pub(super) const DEADLINE: Self = Self::at(offset_of!(GrantSlot, deadline_boot_ns));
    pub(super) const LAST_ADMITTED: Self = Self::at(offset_of!(GrantSlot, last_admitted_boot_ns));
    pub(super) const IDLE_LIMIT: Self = Self::at(offset_of!(GrantSlot, idle_limit_ns));
    pub(super) const LAST_ACTIVE: Self = Self::at(offset_of!(GrantSlot, last_active_boot_ns));
    const GRANT: Self = Self::at(offset_of!(GrantSlot, grant));
    const GRANT_REST: Self = Self::at(offset_of!(GrantSlot, grant) + size_of::<u64>());

    const fn at(offset: usize) -> Self {
        Self(offset / size_of::<u64>())
    }
}

/// The map, for as long as the gate is held.
pub(super) struct Slots {
    memory: SharedWords,
}

impl Slots {
    pub(super) fn open(map: &HeldMap) -> Result<Self, KernelError> {
        let memory = SharedWords::of_map(&map.fd, map.max_entries as usize * WORDS);
        let memory = memory.map_err(|source| KernelError::Elements { name: map::SLOTS, source })?;
        Ok(Self { memory })
    }

    pub(super) fn get(&self, slot: u32, word: Word) -> Result<u64, KernelError> {
        let word = self.memory.get(place(slot, word)).ok_or(KernelError::NoSlot { slot })?;
        Ok(word.load(Ordering::Acquire))
    }

    /// What was written before is there for the programs before this is.
    pub(super) fn set(&self, slot: u32, word: Word, value: u64) -> Result<(), KernelError> {
        let word = self.memory.get(place(slot, word)).ok_or(KernelError::NoSlot { slot })?;
        word.store(value, Ordering::Release);
        Ok(())
    }

    /// Two writes: a name read in between is nobody's.
    pub(super) fn set_name(&self, slot: u32, grant: [u8; 16]) -> Result<(), KernelError> {
        let ([first, rest], []) = grant.as_chunks() else { return Err(KernelError::NoSlot { slot }) };
        self.set(slot, Word::GRANT, u64::from_ne_bytes(*first))?;
        self.set(slot, Word::GRANT_REST, u64::from_ne_bytes(*rest))
    }

    /// Reads what the agent writes, of all slots.
    pub(super) fn read(&self, entries: &mut Entries) {
        // Built in one go from what is in order already: a fraction of the work of as many insertions.
        entries.epochs = self.non_zero(Word::EPOCH).collect();
        entries.deadlines = self.non_zero(Word::DEADLINE).collect();
        entries.idle_limits = self.non_zero(Word::IDLE_LIMIT).collect();
        let name = |(slot, words): (u32, &[AtomicU64])| {
            let (first, rest) = (load(words, Word::GRANT), load(words, Word::GRANT_REST));
            let mut grant = [0; 16];
            grant[..8].copy_from_slice(&first.to_ne_bytes());
            grant[8..].copy_from_slice(&rest.to_ne_bytes());
            (grant != [0; 16]).then_some((slot, grant))
        };
        entries.names = self.all().filter_map(name).collect();
    }

    fn all(&self) -> impl Iterator<Item = (u32, &[AtomicU64])> {
        (0..).zip(self.memory.all().chunks_exact(WORDS))
    }

    /// This word of each slot where it is not 0.
    fn non_zero(&self, word: Word) -> impl Iterator<Item = (u32, u64)> {
        self.all().map(move |(slot, words)| (slot, load(words, word))).filter(|(_, value)| *value != 0)
    }
}

fn load(words: &[AtomicU64], Word(place): Word) -> u64 {
    words.get(place).map_or(0, |word| word.load(Ordering::Acquire))
}

fn place(slot: u32, Word(place): Word) -> usize {
    slot as usize * WORDS + place
}
