//! What the agent must still know after a restart: the last grant set, which of its grants this host has ended by itself, and
//! which losses were already reported.
//!
//! Owns: one file, written in one step. Must not know: what the set means.
//!
//! Invariant: what belongs to another boot is not used for anything that was measured by that boot's clock or counters: of
//! its grant set only resources and subjects come back, and so everything is denied until the control plane is heard. What
//! this host has ended stays ended, and no grant goes on for longer than it had left when it was written down, whatever the
//! control plane's clock says when it is heard again.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_ebpf::abi::Ring;
use prost::Message;
use proto::types::{EndedGrant, GrantId, GrantSet};
use proto::wire::agent as wire;
use uuid::Uuid;

/// What is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Whose set, and the set as it was when it was written.
    pub grants: Option<(Uuid, GrantSet)>,
    /// Grants that this host had ended by itself, and that may be in sets yet.
    pub ended: Vec<EndedGrant>,
    /// How much is left, at the most, of grants that are not in the set here, and may be in the control plane's: nothing of those
    /// that have run out, and of those that were told in another boot what was left when they were written down.
    pub left: BTreeMap<GrantId, Duration>,
    /// Records that each ring had lost when it was last reported, in the order of [`Ring::ALL`], by the ABI version of the gate.
    pub lost: BTreeMap<u32, Lost>,
}

/// The file is there, and is not to be used.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// It cannot be read.
    #[error("cannot read the last grant set {path}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what this agent wrote.
    #[error(
        "the last grant set {path} is damaged, or of another version, and so nothing is known to be protected: start the \
         agent, which asks the control plane",
        path = path.display()
    )]
    Damaged {
        /// Which.
        path: PathBuf,
    },
}

/// One number for each ring.
pub type Lost = [u64; Ring::ALL.len()];

/// The file.
pub struct MemoryFile {
    path: PathBuf,
    boot_id: Uuid,
}

/// A file that this version wrote begins with this. Another version forgets what it finds.
const MAGIC: &[u8; 8] = b"pcgrant3";
/// And with this once its grants are no longer those that are enforced.
const STALE_MAGIC: &[u8; MAGIC.len()] = b"pcstale3";

/// Bytes of the head: boot id, boot time, how many versions have counters, of how many grants it is known what is left.
const HEAD_BYTES: usize = 16 + 8 + 4 + 4;
/// Bytes of what is left of one grant: its id, and nanoseconds.
const LEFT_BYTES: usize = 16 + 8;
/// Bytes of the counters of one version: which, and a counter for each ring.
const LOST_BYTES: usize = 4 + size_of::<Lost>();

impl MemoryFile {
    /// The file in `state_dir`, for the kernel that runs now.
    pub fn new(state_dir: &Path, boot_id: Uuid) -> Self {
        Self { path: state_dir.join("grant-set"), boot_id }
    }

    /// Reads it at `now_boot_ns`. Whatever cannot be used is forgotten, with a line in the log: the control plane sends it
    /// again.
    pub fn read(&self, now_boot_ns: u64) -> Memory {
        self.try_read(now_boot_ns).unwrap_or_else(|error| {
            tracing::warn!(%error, "starting without the last grant set");
            Memory::default()
        })
    }

    /// Reads it at `now_boot_ns`. Nothing is remembered if there is no file.
    ///
    /// # Errors
    /// If there is one that cannot be used.
    pub fn try_read(&self, now_boot_ns: u64) -> Result<Memory, MemoryError> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Memory::default()),
            Err(source) => return Err(MemoryError::Read { path: self.path.clone(), source }),
        };
        let damaged = || MemoryError::Damaged { path: self.path.clone() };
        self.decode(&bytes, now_boot_ns).ok_or_else(damaged)
    }

    /// Replaces it. `now_boot_ns` is when what is left of each grant was measured.
    pub fn write(&self, memory: &Memory, now_boot_ns: u64) -> io::Result<()> {
        let beside = self.path.with_extension("new");
        let mut file = fs::File::create(&beside)?;
        file.write_all(&self.encode(memory, now_boot_ns))?;
        file.sync_data()?;
        fs::rename(beside, &self.path)?;
        // What is protected must be known after the power has failed, too.
        self.path.parent().map_or(Ok(()), |dir| fs::File::open(dir)?.sync_all())
    }

    /// Writes upon what is there that its grants are not those that are enforced any more, where it cannot be replaced: a restart
    /// then knows what is protected, and waits for the control plane. A full disk takes that, one that is not written to does not.
    pub fn spoil(&self) -> io::Result<()> {
        let file = fs::OpenOptions::new().write(true).open(&self.path)?;
        file.write_all_at(STALE_MAGIC, 0)?;
        file.sync_data()
    }

    /// The same of what [`MemoryFile::encode`] gives.
    pub fn spoil_bytes(bytes: &mut [u8]) {
        if let Some(magic) = bytes.first_chunk_mut() {
            *magic = *STALE_MAGIC;
        }
    }

    /// What [`MemoryFile::write`] writes.
    pub fn encode(&self, memory: &Memory, now_boot_ns: u64) -> Vec<u8> {
        let mut content = Vec::new();
        content.extend_from_slice(self.boot_id.as_bytes());
        content.extend_from_slice(&now_boot_ns.to_le_bytes());
        content.extend_from_slice(&(memory.lost.len() as u32).to_le_bytes());
        content.extend_from_slice(&(memory.left.len() as u32).to_le_bytes());
        for (version, lost) in &memory.lost {
            content.extend_from_slice(&version.to_le_bytes());
            content.extend(lost.iter().flat_map(|lost| lost.to_le_bytes()));
        }
        for (grant, left) in &memory.left {
            content.extend_from_slice(grant.as_bytes());
            content.extend_from_slice(&u64::try_from(left.as_nanos()).unwrap_or(u64::MAX).to_le_bytes());
        }
        // What has ended comes before the set, as it may be there without one: its length, then itself.
        content.extend(wire::Ended::from(memory.ended.clone()).encode_length_delimited_to_vec());
        if let Some((timeline, set)) = &memory.grants {
            content.extend_from_slice(timeline.as_bytes());
            content.extend(wire::GrantSet::from(set.clone()).encode_to_vec());
        }
        [&MAGIC[..], &crc32fast::hash(&content).to_le_bytes(), &content].concat()
    }

    /// What [`MemoryFile::read`] makes of it. None: it is damaged.
    pub fn decode(&self, bytes: &[u8], now_boot_ns: u64) -> Option<Memory> {
        let (magic, rest) = bytes.split_at_checked(MAGIC.len())?;
        let (sum, content) = rest.split_at_checked(4)?;
        let is_stale = magic == STALE_MAGIC;
        if !is_stale && magic != MAGIC || sum != crc32fast::hash(content).to_le_bytes() {
            return None;
        }
        let (head, rest) = content.split_at_checked(HEAD_BYTES)?;
        let (boot_id, numbers) = head.split_at_checked(16)?;
        let (written_boot_ns, counts) = numbers.split_at_checked(8)?;
        let (versions, grants) = counts.split_at_checked(4)?;
        let count = |bytes: &[u8]| usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok();
        let (lost, rest) = rest.split_at_checked(count(versions)?.checked_mul(LOST_BYTES)?)?;
        let (left, mut body) = rest.split_at_checked(count(grants)?.checked_mul(LEFT_BYTES)?)?;

        let same_boot = boot_id == self.boot_id.as_bytes();
        let is_current = same_boot && !is_stale;
        let written_boot_ns = u64::from_le_bytes(written_boot_ns.try_into().ok()?);
        // Of another boot nobody knows how long ago that is.
        let elapsed = if same_boot { now_boot_ns.saturating_sub(written_boot_ns) } else { 0 };
        let elapsed = Duration::from_nanos(elapsed);
        let ended = wire::Ended::decode_length_delimited(&mut body).ok()?;
        let ended = ended.grants.into_iter().map(EndedGrant::try_from).collect::<Result<_, _>>().ok()?;
        let lost: Option<BTreeMap<u32, Lost>> = lost.chunks_exact(LOST_BYTES).map(decode_lost).collect();
        let left: Option<BTreeMap<GrantId, Duration>> =
            left.chunks_exact(LEFT_BYTES).map(decode_left).collect();
        let mut left = left?;
        left.values_mut().for_each(|left| *left = left.saturating_sub(elapsed));
        let grants = match body.split_at_checked(16) {
            None => None,
            Some((timeline, set)) => {
                let mut wire = wire::GrantSet::decode(set).ok()?;
                // No generation: the kernel holds none of its grants, and the control plane must send them again. What was
                // written before it did says so, too, which no set of the control plane may.
                let generation = if is_current { wire.generation } else { 0 };
                wire.generation = wire.generation.max(1);
                let mut set = GrantSet::try_from(wire).ok()?;
                set.generation = generation;
                set.grants.retain_mut(|grant| {
                    grant.remaining = grant.remaining.saturating_sub(elapsed);
                    let goes_on = is_current && !grant.remaining.is_zero();
                    if !goes_on {
                        left.insert(grant.id, grant.remaining);
                    }
                    goes_on
                });
                Some((Uuid::from_slice(timeline).ok()?, set))
            }
        };
        Some(Memory { grants, ended, left, lost: lost?.into_iter().filter(|_| same_boot).collect() })
    }
}

fn decode_lost(bytes: &[u8]) -> Option<(u32, Lost)> {
    let (version, counters) = bytes.split_at_checked(4)?;
    let mut lost = Lost::default();
    for (lost, bytes) in lost.iter_mut().zip(counters.chunks_exact(8)) {
        *lost = u64::from_le_bytes(bytes.try_into().ok()?);
    }
    Some((u32::from_le_bytes(version.try_into().ok()?), lost))
}

fn decode_left(bytes: &[u8]) -> Option<(GrantId, Duration)> {
    let (grant, left) = bytes.split_first_chunk::<16>()?;
    Some((GrantId::from_bytes(*grant)?, Duration::from_nanos(u64::from_le_bytes(left.try_into().ok()?))))
}

#[cfg(test)]
mod tests {
    use proto::types::{HostEnd, LiveGrant, NewResource, Resource};
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
            idle: Some(Duration::from_secs(10)),
            while_running: None,
            run: None,
            action: None,
            extensions: 0,
        };
        let set = GrantSet {
            generation: 7,
            resources: vec![Resource::numbered(1.try_into().expect("not 0"), new.expect("valid"))],
            subjects: vec![Subject::numbered(2.try_into().expect("not 0"), subject)],
            grants: vec![grant],
        };
        let ended = vec![EndedGrant { grant: GrantId::new(), reason: HostEnd::Idle }];
        let lost = [(1, [3, 4, 5, 6]), (2, [7, 8, 9, 10])].into();
        let left = [(GrantId::new(), Duration::from_secs(30)), (GrantId::new(), Duration::ZERO)].into();
        Memory { grants: Some((Uuid::from_u128(5), set)), ended, left, lost }
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
        let written = memory();
        file.write(&written, 100 * SECOND).expect("written");
        assert_eq!(remaining(&file.read(120 * SECOND)), [40]);
        assert_eq!(file.read(100 * SECOND), written);
        let no_set = Memory { grants: None, ..written };
        file.write(&no_set, 100 * SECOND).expect("written");
        assert_eq!(file.read(100 * SECOND), no_set);
        file.write(&memory(), 100 * SECOND).expect("written");
        assert_eq!(remaining(&file.read(160 * SECOND)), [0; 0]);
    }

    #[test]
    fn after_a_boot_only_what_is_protected_comes_back() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let written = memory();
        MemoryFile::new(dir.path(), Uuid::from_u128(1)).write(&written, 100 * SECOND).expect("written");
        let memory = MemoryFile::new(dir.path(), Uuid::from_u128(2)).read(5 * SECOND);
        assert_eq!((remaining(&memory), memory.lost), (vec![], BTreeMap::new()));
        assert_eq!(memory.ended, written.ended, "what has ended does not come back by a boot");
        assert_eq!(memory.grants.map(|(_, set)| (set.generation, set.resources.len())), Some((0, 1)));
    }

    #[test]
    fn what_is_protected_outlives_boots_without_a_control_plane() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let boot = |number| MemoryFile::new(dir.path(), Uuid::from_u128(number));
        let written = memory();
        boot(1).write(&written, 100 * SECOND).expect("written");
        for number in 2..5 {
            let known = boot(number).try_read(5 * SECOND).expect("it can be read");
            assert_eq!(known.ended, written.ended);
            assert_eq!(
                known.grants.as_ref().map(|(_, set)| (set.generation, set.resources.len())),
                Some((0, 1))
            );
            boot(number).write(&known, 6 * SECOND).expect("written");
            assert_eq!(
                boot(number).try_read(6 * SECOND).expect("it can be read"),
                known,
                "within the boot, too"
            );
        }
    }

    /// What has run out is not in the set any more, and must not be taken for new.
    #[test]
    fn what_is_left_of_a_grant_only_shrinks() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let boot = |number| MemoryFile::new(dir.path(), Uuid::from_u128(number));
        let left = |known: &Memory, id: GrantId| known.left.get(&id).map(Duration::as_secs);
        let written = memory();
        let (_, set) = written.grants.clone().expect("there is one");
        let (granted, carried) = (set.grants[0].id, *written.left.keys().next().expect("there is one"));
        boot(1).write(&written, 100 * SECOND).expect("written");
        // 60 s and 30 s were left then.
        let checks = [(1, 100, None, 30), (1, 120, None, 10), (1, 200, Some(0), 0), (2, 1, Some(60), 30)];
        for (number, now, granted_left, carried_left) in checks {
            let known = boot(number).read(now * SECOND);
            let found = (left(&known, granted), left(&known, carried));
            assert_eq!(found, (granted_left, Some(carried_left)), "boot {number} at {now}");
        }
        // The next boot, without a control plane, ten seconds later.
        boot(2).write(&boot(2).read(SECOND), 11 * SECOND).expect("written");
        let known = boot(2).read(31 * SECOND);
        assert_eq!((left(&known, granted), left(&known, carried)), (Some(40), Some(10)));
    }

    /// It protects, and lets nobody through by itself.
    #[test]
    fn what_is_spoilt_is_as_of_another_boot() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = MemoryFile::new(dir.path(), Uuid::from_u128(1));
        assert_eq!(file.spoil().map_err(|error| error.kind()), Err(io::ErrorKind::NotFound));
        let written = memory();
        file.write(&written, 100 * SECOND).expect("written");
        file.spoil().expect("written");
        let known = file.try_read(110 * SECOND).expect("it can be read");
        assert_eq!((remaining(&known), known.lost.clone()), (vec![], written.lost.clone()));
        assert_eq!(known.ended, written.ended);
        let (_, set) = written.grants.clone().expect("there is one");
        assert_eq!(known.left.get(&set.grants[0].id), Some(&Duration::from_secs(50)));
        assert_eq!(known.grants.map(|(_, set)| (set.generation, set.resources.len())), Some((0, 1)));
        file.write(&written, 100 * SECOND).expect("written");
        assert_eq!(file.read(100 * SECOND), written, "written anew, it counts again");
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
        fs::write(&file.path, &whole[1..]).expect("written");
        assert!(matches!(file.try_read(0), Err(MemoryError::Damaged { .. })));
        assert_eq!(file.read(0), Memory::default());
    }
}
