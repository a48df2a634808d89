//! What the agent must still know after a restart: the last grant set, and which losses were already reported.
//!
//! Owns: one file, written in one step. Must not know: what the set means.
//!
//! Invariant: what belongs to another boot is not used for anything that was measured by that boot's clock or counters: of
//! its grant set only resources and subjects come back, and so everything is denied until the control plane is heard.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_ebpf::abi::Ring;
use prost::Message;
use proto::types::GrantSet;
use proto::wire::agent as wire;
use uuid::Uuid;

/// What is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Whose set, and the set as it was when it was written.
    pub grants: Option<(Uuid, GrantSet)>,
    /// Records that each ring had lost when it was last reported, in the order of [`Ring::ALL`].
    pub lost: Lost,
}

/// One number for each ring.
pub type Lost = [u64; Ring::ALL.len()];

/// The file.
pub struct MemoryFile {
    path: PathBuf,
    boot_id: Uuid,
}

/// A file that this version wrote begins with this. Another version forgets what it finds.
const MAGIC: &[u8; 8] = b"pcgrant2";

/// Bytes before the grant set: magic, boot id, boot time, a counter for each ring, checksum.
const HEADER_BYTES: usize = 8 + 16 + 8 + size_of::<Lost>() + 4;

impl MemoryFile {
    /// The file in `state_dir`, for the kernel that runs now.
    pub fn new(state_dir: &Path, boot_id: Uuid) -> Self {
        Self { path: state_dir.join("grant-set"), boot_id }
    }

    /// Reads it at `now_boot_ns`. Whatever cannot be used is forgotten, with a line in the log: the control plane sends it
    /// again.
    pub fn read(&self, now_boot_ns: u64) -> Memory {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Memory::default(),
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "cannot read the last grant set; starting without");
                return Memory::default();
            }
        };
        self.decode(&bytes, now_boot_ns).unwrap_or_else(|| {
            tracing::warn!(path = %self.path.display(), "the last grant set is damaged; starting without");
            Memory::default()
        })
    }

    /// Replaces it. `now_boot_ns` is when what is left of each grant was measured.
    pub fn write(&self, memory: &Memory, now_boot_ns: u64) -> io::Result<()> {
        let beside = self.path.with_extension("new");
        let mut file = fs::File::create(&beside)?;
        file.write_all(&self.encode(memory, now_boot_ns))?;
        file.sync_data()?;
        fs::rename(beside, &self.path)
    }

    fn encode(&self, memory: &Memory, now_boot_ns: u64) -> Vec<u8> {
        let mut body = Vec::new();
        if let Some((timeline, set)) = &memory.grants {
            body.extend_from_slice(timeline.as_bytes());
            body.extend(wire::GrantSet::from(set.clone()).encode_to_vec());
        }
        let mut head = Vec::new();
        head.extend_from_slice(self.boot_id.as_bytes());
        head.extend_from_slice(&now_boot_ns.to_le_bytes());
        head.extend(memory.lost.iter().flat_map(|lost| lost.to_le_bytes()));
        let checksum = checksum(&head, &body);
        [&MAGIC[..], &head, &checksum.to_le_bytes(), &body].concat()
    }

    fn decode(&self, bytes: &[u8], now_boot_ns: u64) -> Option<Memory> {
        let (header, body) = bytes.split_at_checked(HEADER_BYTES)?;
        let (magic, rest) = header.split_at_checked(MAGIC.len())?;
        let (head, sum) = rest.split_at_checked(HEADER_BYTES - MAGIC.len() - 4)?;
        if magic != MAGIC || sum != checksum(head, body).to_le_bytes() {
            return None;
        }
        let (boot_id, numbers) = head.split_at_checked(16)?;
        let mut numbers =
            numbers.chunks_exact(8).filter_map(|bytes| bytes.try_into().ok().map(u64::from_le_bytes));
        let (written_boot_ns, lost) = (numbers.next()?, [numbers.next()?, numbers.next()?, numbers.next()?]);
        let same_boot = boot_id == self.boot_id.as_bytes();
        let elapsed = Duration::from_nanos(now_boot_ns.saturating_sub(written_boot_ns));
        let grants = match body.split_at_checked(16) {
            None => None,
            Some((timeline, set)) => {
                let wire = wire::GrantSet::decode(set).ok()?;
                let mut set = GrantSet::try_from(wire).ok()?;
                if !same_boot {
                    // No generation: the kernel holds none of its grants, and the control plane must send them again.
                    set.generation = 0;
                }
                set.grants.retain_mut(|grant| {
                    grant.remaining = grant.remaining.saturating_sub(elapsed);
                    same_boot && !grant.remaining.is_zero()
                });
                Some((Uuid::from_slice(timeline).ok()?, set))
            }
        };
        Some(Memory { grants, lost: if same_boot { lost } else { Lost::default() } })
    }
}

fn checksum(head: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(body);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use proto::types::{GrantId, LiveGrant, NewResource, Resource};
    use proto::types::{NewSubject, Subject, SubjectRole};

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn memory() -> Memory {
        let new = NewResource::new(
            "db".parse().expect("valid"),
            vec!["10.0.0.1".parse().expect("valid")],
            vec!["tcp/5432".parse().expect("valid")],
        );
        let subject = NewSubject {
            id: "user:alice".parse().expect("valid"),
            selectors: vec![],
            role: SubjectRole::Member,
        };
        let grant = LiveGrant {
            id: GrantId::new(),
            subject: 2.try_into().expect("not 0"),
            resource: 1.try_into().expect("not 0"),
            remaining: Duration::from_secs(60),
        };
        let set = GrantSet {
            generation: 7,
            resources: vec![Resource::numbered(1.try_into().expect("not 0"), new.expect("valid"))],
            subjects: vec![Subject::numbered(2.try_into().expect("not 0"), subject)],
            grants: vec![grant],
        };
        Memory { grants: Some((Uuid::from_u128(5), set)), lost: [3, 4, 5] }
    }

    fn remaining(memory: &Memory) -> Vec<u64> {
        let set = memory.grants.iter().flat_map(|(_, set)| &set.grants);
        set.map(|grant| grant.remaining.as_secs()).collect()
    }

    #[test]
    fn within_a_boot_everything_comes_back_with_less_time() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = MemoryFile::new(dir.path(), Uuid::from_u128(1));
        assert_eq!(file.read(0), Memory::default());
        file.write(&memory(), 100 * SECOND).expect("written");
        assert_eq!(remaining(&file.read(120 * SECOND)), [40]);
        assert_eq!(file.read(100 * SECOND).lost, [3, 4, 5]);
        assert_eq!(remaining(&file.read(160 * SECOND)), [0; 0]);
    }

    #[test]
    fn after_a_boot_only_what_is_protected_comes_back() {
        let dir = tempfile::tempdir().expect("temporary directory");
        MemoryFile::new(dir.path(), Uuid::from_u128(1)).write(&memory(), 100 * SECOND).expect("written");
        let memory = MemoryFile::new(dir.path(), Uuid::from_u128(2)).read(5 * SECOND);
        assert_eq!((remaining(&memory), memory.lost), (vec![], [0, 0, 0]));
        assert_eq!(memory.grants.map(|(_, set)| (set.generation, set.resources.len())), Some((0, 1)));
    }

    #[test]
    fn damage_is_noticed() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = MemoryFile::new(dir.path(), Uuid::from_u128(1));
        let whole = file.encode(&memory(), 0);
        assert!(file.decode(&whole, 0).is_some());
        for index in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[index] ^= 1;
            assert_eq!(file.decode(&damaged, 0), None, "byte {index}");
            assert_eq!(file.decode(&whole[..index], 0), None, "{index} bytes");
        }
    }
}
