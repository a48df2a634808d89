//! The memory of a ring of records, as the kernel shares it with whoever reads it.
//!
//! Owns: the layout, and what a position means. Must not know: what records are, and when the room of one is given back, which is
//! [`super::rings`]'.
//!
//! The layout is the kernel's contract with user space (`kernel/bpf/ringbuf.c`): a page with the reader's position, which the
//! reader writes; a page with the writer's; then the data, twice in a row, so that no record is cut in two. Positions are bytes
//! since the ring was made and never go back. A record has a header of 8 bytes, of which the first 4 are its length and two flags.
//!
//! Invariant: of what the kernel says no length is believed before it was compared with what the ring holds.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence};

/// Somebody is writing it.
const BUSY: u32 = 1 << 31;
/// Nobody is to read it.
const DISCARDED: u32 = 1 << 30;
/// Of a record's header; records begin at multiples of it.
const HEADER_BYTES: usize = 8;

/// The mappings of one ring.
pub(super) struct RingMemory {
    /// The reader's page.
    reader: Mapping,
    /// The writer's page, and the data twice.
    writer: Mapping,
    page_bytes: usize,
    /// Of the data: a power of two.
    ring_bytes: usize,
}

/// What lies at a position.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item<'a> {
    /// Nothing that is whole yet.
    None,
    /// Nothing to be read; the next one begins at this position.
    Discarded(usize),
    /// A record; the next one begins at this position.
    Record(&'a [u8], usize),
}

impl RingMemory {
    /// Of a map with so many bytes of data.
    pub(super) fn of_map(map: BorrowedFd<'_>, ring_bytes: u32) -> io::Result<Self> {
        let page_bytes = page_bytes()?;
        let ring_bytes = usize::try_from(ring_bytes).map_err(io::Error::other)?;
        if !ring_bytes.is_power_of_two() || !ring_bytes.is_multiple_of(page_bytes) {
            return Err(io::Error::other(format!("a ring has not {ring_bytes} bytes")));
        }
        let reader = Mapping::new(map, 0, page_bytes, libc::PROT_READ | libc::PROT_WRITE)?;
        let writer = Mapping::new(map, page_bytes, page_bytes + 2 * ring_bytes, libc::PROT_READ)?;
        Ok(Self { reader, writer, page_bytes, ring_bytes })
    }

    /// Where the next reader begins.
    pub(super) fn begin(&self) -> usize {
        self.reader_position().load(Ordering::Acquire)
    }

    /// Gives the room of all that lies before a position back to the kernel: it may be written over from now on.
    pub(super) fn give_back(&self, position: usize) {
        // The kernel reads this before it writes over what was read.
        self.reader_position().store(position, Ordering::Release);
        // And it looks whether the reader waits for the record that it has just finished. Either it sees where the reader is, and
        // wakes it; or what the reader looks at next is seen by that.
        fence(Ordering::SeqCst);
    }

    /// What lies at a position, which is one that this has told.
    ///
    /// # Errors
    /// If that cannot be in a ring.
    pub(super) fn at(&self, position: usize) -> io::Result<Item<'_>> {
        let written = self.writer_position().load(Ordering::Acquire).wrapping_sub(position);
        if written == 0 {
            return Ok(Item::None);
        }
        let broken = |what: &str, value: usize| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{what} {value} at {position} is none of a ring's"),
            )
        };
        if written > self.ring_bytes || written < HEADER_BYTES || !position.is_multiple_of(HEADER_BYTES) {
            return Err(broken("a distance of", written));
        }
        let offset = self.page_bytes + (position & (self.ring_bytes - 1));
        // SAFETY: `offset` is a multiple of 8, as the position and a page are, and less than a page and the data once: a header lies
        // within the mapping, which begins at a page. The kernel writes it atomically.
        let length = unsafe { self.writer.address.add(offset).cast::<AtomicU32>().as_ref() };
        let length = length.load(Ordering::Acquire);
        if length & BUSY != 0 {
            return Ok(Item::None);
        }
        let bytes = (length & !DISCARDED) as usize;
        let whole = bytes.saturating_add(HEADER_BYTES).next_multiple_of(HEADER_BYTES);
        if whole > written {
            return Err(broken("a length of", bytes));
        }
        let next = position.wrapping_add(whole);
        if length & DISCARDED != 0 {
            return Ok(Item::Discarded(next));
        }
        // SAFETY: it begins within the data, and has at most `written` bytes with its header, which is no more than the data has:
        // it ends within the second time that the data is mapped. The kernel has finished it, and writes nothing there before
        // [`RingMemory::give_back`] is given a position behind it; only whoever holds the ring alone does that.
        let data = unsafe {
            let begin = self.writer.address.add(offset + HEADER_BYTES);
            std::slice::from_raw_parts(begin.as_ptr(), bytes)
        };
        Ok(Item::Record(data, next))
    }

    fn reader_position(&self) -> &AtomicUsize {
        // SAFETY: a mapping begins at a page, and the kernel has an `unsigned long` there, which it reads and writes atomically.
        unsafe { self.reader.address.cast().as_ref() }
    }

    fn writer_position(&self) -> &AtomicUsize {
        // SAFETY: as above; this one is only read here.
        unsafe { self.writer.address.cast().as_ref() }
    }
}

fn page_bytes() -> io::Result<usize> {
    // SAFETY: a call without preconditions.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes)
        .ok()
        .filter(|bytes| bytes.is_power_of_two())
        .ok_or(io::ErrorKind::Unsupported.into())
}

const _: () = assert!(size_of::<AtomicUsize>() == size_of::<libc::c_ulong>());

/// A part of a map in this process's memory.
struct Mapping {
    address: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory belongs to no thread.
unsafe impl Send for Mapping {}
// SAFETY: it is read and written atomically, but for what the kernel has finished and nobody writes.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(map: BorrowedFd<'_>, offset: usize, bytes: usize, protection: i32) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: a new mapping, anywhere, of a file that the caller has open; the kernel checks length and kind.
        let address = unsafe {
            let nowhere = std::ptr::null_mut();
            libc::mmap(nowhere, bytes, protection, libc::MAP_SHARED, map.as_raw_fd(), offset)
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { address, bytes })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping made above, to which nothing refers any more.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use super::*;

    const PAGE: u64 = 4096;

    /// A file that is laid out as a ring of one page is; it has its data once only, so no record may pass its end.
    fn ring(written: u64, header: u32) -> (File, RingMemory) {
        let file = tempfile::tempfile().expect("temporary file");
        file.set_len(4 * PAGE).expect("it grows");
        assert_eq!(
            page_bytes().ok(),
            Some(PAGE as usize),
            "on another machine this test lays it out in another way"
        );
        file.write_all_at(&written.to_ne_bytes(), PAGE).expect("written");
        file.write_all_at(&header.to_ne_bytes(), 2 * PAGE).expect("written");
        file.write_all_at(b"12345678", 2 * PAGE + 8).expect("written");
        let memory = RingMemory::of_map(file.as_fd(), PAGE as u32).expect("it is mapped");
        (file, memory)
    }

    #[track_caller]
    fn check(written: u64, header: u32, expected: Option<Item<'_>>) {
        assert_eq!(ring(written, header).1.at(0).ok(), expected, "{written} {header:#x}");
    }

    #[test]
    fn no_length_is_believed() {
        check(0, 8, Some(Item::None));
        check(16, 8, Some(Item::Record(b"12345678", 16)));
        check(16, 5, Some(Item::Record(b"12345", 16)));
        check(16, 0, Some(Item::Record(b"", 8)));
        check(16, 8 | BUSY, Some(Item::None));
        check(16, 8 | DISCARDED, Some(Item::Discarded(16)));
        check(16, 9, None);
        check(16, !BUSY, None);
        check(16, !BUSY & !DISCARDED, None);
        check(7, 0, None);
        check(PAGE + 8, 8, None);
        check(u64::MAX, 8, None);
    }

    #[test]
    fn only_what_was_given_back_is_gone_for_the_next_reader() {
        let (file, memory) = ring(16, 8);
        assert_eq!(memory.begin(), 0);
        assert!(matches!(memory.at(0), Ok(Item::Record(_, 16))));
        let another = || RingMemory::of_map(file.as_fd(), PAGE as u32).expect("it is mapped").begin();
        assert_eq!(another(), 0);
        memory.give_back(16);
        assert_eq!(another(), 16);
        assert_eq!(memory.at(16).ok(), Some(Item::None));
        assert!(memory.at(12).is_err(), "not where a record begins");
    }

    #[test]
    fn a_ring_has_whole_pages() {
        let file = tempfile::tempfile().expect("temporary file");
        for bytes in [0, 100, 4096 + 8, 3 * 4096] {
            assert!(RingMemory::of_map(file.as_fd(), bytes).is_err(), "{bytes}");
        }
    }
}
