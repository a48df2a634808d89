//! What the agent left on its disk: after a crash, a full disk, or somebody's hands.

use std::fs;
use std::path::{Path, PathBuf};

use agent::kubernetes::PodsFile;
use agent::memory::MemoryFile;
use agent::spool::{Cursor, Spool};
use uuid::Uuid;

use crate::choice;

/// The boot that everything is of.
pub(crate) const BOOT: Uuid = Uuid::from_u128(0x0f8f_ad5b_d9cb_469f_a165_7086_7728_950e);

/// What the memory's file begins with; its check sum follows.
pub(crate) const MEMORY_MAGIC: &[u8] = b"pcgrant2";

const SPOOL_BYTES: u64 = 8 * 1024 * 1024;

pub(crate) fn run(bytes: &[u8]) {
    match choice(bytes, 4) {
        Some((0, bytes)) => memory(bytes),
        // The check sum would keep nearly all from the decoder: here it is right.
        Some((1, content)) => memory(&summed(content)),
        Some((2, bytes)) => spool(bytes),
        Some((_, bytes)) => pods(bytes),
        None => {}
    }
}

fn summed(content: &[u8]) -> Vec<u8> {
    [MEMORY_MAGIC, &crc32fast::hash(content).to_le_bytes(), content].concat()
}

/// What is believed of it is written again as it was.
fn memory(bytes: &[u8]) {
    const NOW: u64 = 1 << 40;
    let file = MemoryFile::new(Path::new("/nowhere"), BOOT);
    let Some(memory) = file.decode(bytes, NOW) else { return };
    let again = file.decode(&file.encode(&memory, NOW), NOW);
    assert_eq!(again.as_ref(), Some(&memory));
}

/// A segment: opened, read, and appended to.
fn spool(bytes: &[u8]) {
    let folder = folder();
    let epoch = folder.path().join(BOOT.to_string());
    fs::create_dir(&epoch).expect("made");
    fs::write(epoch.join(format!("{:020}.seg", 1)), bytes).expect("written");
    let Ok(spool) = Spool::open(folder.path(), BOOT, SPOOL_BYTES) else { return };
    let Ok(events) = spool.read(Cursor::default(), 100) else { return };
    for event in events {
        assert!(event.id.sequence < spool.next_sequence(), "{event:?}");
    }
}

fn pods(bytes: &[u8]) {
    let folder = folder();
    fs::write(folder.path().join("pods.json"), bytes).expect("written");
    let _ = PodsFile::new(folder.path(), BOOT).read();
}

/// In memory, where there is such a place: a disk would be the slowest part.
fn folder() -> tempfile::TempDir {
    let memory = PathBuf::from("/dev/shm");
    let place = if memory.is_dir() { memory } else { std::env::temp_dir() };
    tempfile::tempdir_in(place).expect("a folder")
}
