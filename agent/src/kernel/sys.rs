//! The bare `bpf` calls that aya lacks: links that can be pinned more than once, the programs that run at a cgroup, maps whose
//! shape is known only when they are met, maps in memory, and many elements in one call.
//!
//! Owns: the layout of the kernel's arguments. Must not know: what a link or map is for.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::mem::{align_of, size_of};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use aya::Pod;
use nix::unistd::Pid;

/// Commands of `bpf(2)`, from `enum bpf_cmd`.
mod command {
    pub(super) const MAP_LOOKUP_ELEM: u32 = 1;
    pub(super) const MAP_GET_NEXT_KEY: u32 = 4;
    pub(super) const OBJ_PIN: u32 = 6;
    pub(super) const OBJ_GET: u32 = 7;
    pub(super) const PROG_ATTACH: u32 = 8;
    pub(super) const PROG_GET_FD_BY_ID: u32 = 13;
    pub(super) const MAP_GET_FD_BY_ID: u32 = 14;
    pub(super) const OBJ_GET_INFO_BY_FD: u32 = 15;
    pub(super) const PROG_QUERY: u32 = 16;
    pub(super) const RAW_TRACEPOINT_OPEN: u32 = 17;
    pub(super) const MAP_LOOKUP_BATCH: u32 = 24;
    pub(super) const LINK_CREATE: u32 = 28;
    pub(super) const LINK_UPDATE: u32 = 29;
    pub(super) const LINK_GET_FD_BY_ID: u32 = 30;
    pub(super) const LINK_DETACH: u32 = 34;
}

/// `BPF_LINK_TYPE_CGROUP`.
const LINK_TYPE_CGROUP: u32 = 3;

/// What a program can be attached to at a cgroup, from `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct AttachType(pub(super) u32);

impl AttachType {
    pub(super) const INGRESS: Self = Self(0);
    pub(super) const EGRESS: Self = Self(1);
    pub(super) const SOCK_CREATE: Self = Self(2);
    pub(super) const SOCK_OPS: Self = Self(3);
    pub(super) const CONNECT4: Self = Self(10);
    pub(super) const CONNECT6: Self = Self(11);
    pub(super) const SENDMSG4: Self = Self(14);
    pub(super) const SENDMSG6: Self = Self(15);
    pub(super) const SOCK_RELEASE: Self = Self(34);
}

/// What the kernel says of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkInfo {
    /// Its own id.
    pub(super) id: u32,
    /// Of the program that it attaches now.
    pub(super) program: u32,
    /// Where: None: it is no link at a cgroup.
    pub(super) place: Option<CgroupPlace>,
}

/// Where a link at a cgroup attaches its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CgroupPlace {
    /// 0: the link is detached.
    pub(super) cgroup_id: u64,
    pub(super) attach_type: AttachType,
}

/// The beginning of `struct bpf_link_info`, with the part of the union that is a cgroup's.
#[repr(C)]
#[derive(Default)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    cgroup_id: u64,
    attach_type: u32,
    reserved: u32,
}

/// Attaches a program at a cgroup. No flags: the kernel gives every link at a cgroup the meaning of "multi", and refuses the
/// flags that would ask for it.
pub(super) fn link_create(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: AttachType,
) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        program: u32,
        target: u32,
        attach_type: u32,
        flags: u32,
    }
    let mut attributes =
        Attributes { program: raw(program), target: raw(cgroup), attach_type: attach_type.0, flags: 0 };
    // SAFETY: the structure is what `LINK_CREATE` takes, and holds no pointer.
    let fd = unsafe { bpf(command::LINK_CREATE, &mut attributes) }?;
    Ok(owned(fd))
}

/// Attaches a program at the function of the kernel that it was loaded for. `LINK_CREATE` does so only from Linux 5.18 on;
/// this call gives the same link, and has no name to say.
pub(super) fn link_create_at_kernel(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        name: u64,
        program: u32,
        padding: u32,
    }
    let mut attributes = Attributes { name: 0, program: raw(program), padding: 0 };
    // SAFETY: the structure is what `RAW_TRACEPOINT_OPEN` takes, and holds no pointer.
    let fd = unsafe { bpf(command::RAW_TRACEPOINT_OPEN, &mut attributes) }?;
    Ok(owned(fd))
}

/// Has a program judge what is written on the sockets of a map, in the place of the one that did. It belongs to the map from
/// then on, and stays with it.
pub(super) fn attach_to_sockets(map: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    const SK_MSG_VERDICT: u32 = 7;
    #[repr(C)]
    struct Attributes {
        target: u32,
        program: u32,
        attach_type: u32,
        flags: u32,
    }
    let mut attributes =
        Attributes { target: raw(map), program: raw(program), attach_type: SK_MSG_VERDICT, flags: 0 };
    // SAFETY: the structure is what `PROG_ATTACH` takes, and holds no pointer.
    unsafe { bpf(command::PROG_ATTACH, &mut attributes) }.map(drop)
}

/// Exchanges the program of a link, in one step. The kernel compares the programs' types only: that the program belongs at
/// the link's attach type is the caller's to know.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        link: u32,
        program: u32,
        flags: u32,
        old_program: u32,
    }
    let mut attributes = Attributes { link: raw(link), program: raw(program), flags: 0, old_program: 0 };
    // SAFETY: the structure is what `LINK_UPDATE` takes, and holds no pointer.
    unsafe { bpf(command::LINK_UPDATE, &mut attributes) }.map(drop)
}

/// Detaches a link, in one step; what is left of it attaches nothing. Letting go of the last reference does the same, but
/// some time later.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        link: u32,
    }
    // SAFETY: the structure is what `LINK_DETACH` takes, and holds no pointer.
    unsafe { bpf(command::LINK_DETACH, &mut Attributes { link: raw(link) }) }.map(drop)
}

/// What a link is.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = RawLinkInfo::default();
    // SAFETY: a structure of integers only.
    unsafe { info_of(link, &mut info) }?;
    let place = CgroupPlace { cgroup_id: info.cgroup_id, attach_type: AttachType(info.attach_type) };
    let place = (info.kind == LINK_TYPE_CGROUP).then_some(place);
    Ok(LinkInfo { id: info.id, program: info.program, place })
}

/// The id of a map.
pub(super) fn map_id(map: BorrowedFd<'_>) -> io::Result<u32> {
    /// The beginning of `struct bpf_map_info`.
    #[repr(C)]
    #[derive(Default)]
    struct RawMapInfo {
        kind: u32,
        id: u32,
    }
    let mut info = RawMapInfo::default();
    // SAFETY: a structure of integers only.
    unsafe { info_of(map, &mut info) }?;
    Ok(info.id)
}

/// What the kernel says of an object, as far as `info` has room for it.
///
/// # Safety
/// Every pattern of bits must be a value of `T`.
unsafe fn info_of<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        fd: u32,
        length: u32,
        info: u64,
    }
    let length = size_of::<T>() as u32;
    let mut attributes = Attributes { fd: raw(object), length, info: (&raw mut *info) as u64 };
    // SAFETY: the structure is what `OBJ_GET_INFO_BY_FD` takes. The kernel writes at most `length` bytes to `info`, which has
    // that many, is any bytes by the caller's promise, and lives until the call returns.
    unsafe { bpf(command::OBJ_GET_INFO_BY_FD, &mut attributes) }.map(drop)
}

#[repr(C)]
struct PathAttributes {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Gives an object a name in a BPF file system.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = PathAttributes { path: path.as_ptr() as u64, fd: raw(object), flags: 0 };
    // SAFETY: the structure is what `OBJ_PIN` takes; `path` is a string that ends with 0 and lives until the call returns.
    unsafe { bpf(command::OBJ_PIN, &mut attributes) }.map(drop)
}

/// Opens what is pinned.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = PathAttributes { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: as in `pin`; `OBJ_GET` takes the same structure.
    let fd = unsafe { bpf(command::OBJ_GET, &mut attributes) }?;
    Ok(owned(fd))
}

/// Opens the map with this id.
pub(super) fn map_by_id(id: u32) -> io::Result<OwnedFd> {
    open_by_id(command::MAP_GET_FD_BY_ID, id)
}

/// Opens the program with this id.
pub(super) fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    open_by_id(command::PROG_GET_FD_BY_ID, id)
}

/// Opens the link with this id.
pub(super) fn link_by_id(id: u32) -> io::Result<OwnedFd> {
    open_by_id(command::LINK_GET_FD_BY_ID, id)
}

fn open_by_id(command: u32, id: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        id: u32,
        next_id: u32,
        open_flags: u32,
    }
    // SAFETY: the structure is what all three commands take, and holds no pointer.
    let fd = unsafe { bpf(command, &mut Attributes { id, next_id: 0, open_flags: 0 }) }?;
    Ok(owned(fd))
}

/// A file in memory that has no name in any file system.
pub(super) fn memory_file(name: &CStr) -> io::Result<File> {
    // SAFETY: `name` is a string that ends with 0 and lives until the call returns.
    match unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) } {
        -1 => Err(io::Error::last_os_error()),
        fd => Ok(owned(fd).into()),
    }
}

/// Reads a byte of a process's memory where there is none. An error in any case: EFAULT if it may be read otherwise.
pub(super) fn read_memory(process: Pid) -> io::Result<()> {
    let mut byte = 0u8;
    let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let remote = libc::iovec { iov_base: std::ptr::without_provenance_mut(1), iov_len: 1 };
    // SAFETY: the kernel writes at most one byte to `byte`, which lives until the call returns; `remote` is looked up in the
    // other process only.
    match unsafe { libc::process_vm_readv(process.as_raw(), &raw const local, 1, &raw const remote, 1, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Which programs a cgroup has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Query {
    /// Those attached right there.
    Attached,
    /// Those that run for whoever is there, in the order in which they do.
    Effective,
}

/// The ids of the programs at a cgroup.
pub(super) fn programs_at(
    cgroup: BorrowedFd<'_>,
    attach_type: AttachType,
    query: Query,
) -> io::Result<Vec<u32>> {
    /// The part that every kernel since 4.15 knows.
    #[repr(C)]
    struct Attributes {
        target: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        programs: u64,
        count: u32,
        padding: u32,
    }
    const EFFECTIVE: u32 = 1;
    /// 64 for each cgroup from the root down is the kernel's limit; nobody is that deep with all of them.
    const MAX: usize = 1024;
    let mut programs = vec![0u32; MAX];
    let mut attributes = Attributes {
        target: raw(cgroup),
        attach_type: attach_type.0,
        query_flags: if query == Query::Effective { EFFECTIVE } else { 0 },
        attach_flags: 0,
        programs: programs.as_mut_ptr() as u64,
        count: MAX as u32,
        padding: 0,
    };
    // SAFETY: the structure is what `PROG_QUERY` takes. The kernel writes at most `count` ids to `programs`, which has room
    // for as many and lives until the call returns.
    unsafe { bpf(command::PROG_QUERY, &mut attributes) }?;
    programs.truncate(attributes.count as usize);
    Ok(programs)
}

/// A map whose sizes were asked for, not assumed.
#[derive(Debug)]
pub(super) struct RawMap {
    pub(super) fd: OwnedFd,
    pub(super) key_bytes: usize,
    pub(super) value_bytes: usize,
    pub(super) max_entries: u32,
}

#[repr(C)]
struct ElementAttributes {
    map: u32,
    padding: u32,
    key: u64,
    /// Of the value, or of the next key.
    out: u64,
    flags: u64,
}

impl RawMap {
    /// The value of a key; None: there is none. The key must be as long as the map's keys are.
    pub(super) fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.value_bytes];
        // SAFETY: `element` is given a buffer of the size of the map's values, to which the kernel writes one; this is not
        // called for maps whose values are per CPU, which are larger.
        let found = unsafe { self.element(command::MAP_LOOKUP_ELEM, Some(key), &mut value) }?;
        Ok(found.then_some(value))
    }

    /// The key after this one; None for the first one. None: that was the last.
    pub(super) fn next_key(&self, key: Option<&[u8]>) -> io::Result<Option<Vec<u8>>> {
        let mut next = vec![0; self.key_bytes];
        // SAFETY: `element` is given a buffer of the size of the map's keys, to which the kernel writes one.
        let found = unsafe { self.element(command::MAP_GET_NEXT_KEY, key, &mut next) }?;
        Ok(found.then_some(next))
    }

    /// Returns whether there was such an element.
    ///
    /// # Safety
    /// `out` must be as long as what the command writes.
    unsafe fn element(&self, command: u32, key: Option<&[u8]>, out: &mut [u8]) -> io::Result<bool> {
        if key.is_some_and(|key| key.len() != self.key_bytes) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut attributes = ElementAttributes {
            map: raw(self.fd.as_fd()),
            padding: 0,
            key: key.map_or(0, |key| key.as_ptr() as u64),
            out: out.as_mut_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the structure is what both commands take; the kernel reads a key's length from `key`, which was compared
        // above, and the caller promises for `out`. Both live until the call returns.
        match unsafe { bpf(command, &mut attributes) } {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// An array map, made for it, as words in memory that its programs share.
pub(super) struct SharedWords {
    address: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: the memory belongs to no thread, and is only ever read and written atomically.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Of a map that has `count` words; the kernel refuses one that has fewer.
    pub(super) fn of_map(map: &OwnedFd, count: usize) -> io::Result<Self> {
        let bytes = count * size_of::<AtomicU64>();
        // SAFETY: a new mapping, anywhere, of a file that the caller has open; the kernel checks length and kind.
        let address = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, map.as_raw_fd(), 0)
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { address, count })
    }

    pub(super) fn all(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has so many words, is aligned to a page, and lasts as long as this. Whoever else writes there
        // is the kernel's to order.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.count) }
    }

    pub(super) fn get(&self, index: usize) -> Option<&AtomicU64> {
        self.all().get(index)
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: the mapping made above, to which nothing refers any more.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.count * size_of::<AtomicU64>()) };
    }
}

/// Elements that are asked for in one call: some 100 µs of the kernel's time.
const BATCH: usize = 4096;

/// Elements `first` to `end`, not included, of an array map of `total`. In memory, where the map was made for it: the kernel
/// takes a hundred times as long to hand out each by itself.
pub(super) fn array_elements<V: Pod>(
    map: BorrowedFd<'_>,
    total: u32,
    first: u32,
    end: u32,
) -> io::Result<Vec<V>> {
    let end = end.min(total);
    mapped_elements(map, total, first..end).or_else(|_| asked_elements(map, first..end))
}

fn mapped_elements<V: Pod>(map: BorrowedFd<'_>, total: u32, range: Range<u32>) -> io::Result<Vec<V>> {
    /// An array's elements are this far apart, or a multiple of it.
    const STRIDE: usize = 8;
    const { assert!(align_of::<V>() <= STRIDE) };
    let stride = size_of::<V>().next_multiple_of(STRIDE);
    let length = total as usize * stride;
    // SAFETY: a new mapping, anywhere, of a file that the caller has open; the kernel checks length and kind.
    let address = unsafe {
        libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ, libc::MAP_SHARED, map.as_raw_fd(), 0)
    };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let element = |index: u32| {
        // SAFETY: `range` ends at `total` at the latest, so the element lies within the mapping, which is aligned to a page;
        // every pattern is a value of a `Pod`. Somebody may write to it meanwhile: volatile, so that it is read once.
        unsafe { address.cast::<u8>().add(index as usize * stride).cast::<V>().read_volatile() }
    };
    let elements = range.map(element).collect();
    // SAFETY: the mapping made above, to which nothing refers any more.
    unsafe { libc::munmap(address, length) };
    Ok(elements)
}

/// The same by asking the kernel for many at a time.
fn asked_elements<V: Pod>(map: BorrowedFd<'_>, range: Range<u32>) -> io::Result<Vec<V>> {
    let mut values: Vec<V> = Vec::new();
    let mut before = range.start.checked_sub(1);
    while values.len() < range.len() {
        let batch: Batch<u32, V> = lookup_batch(map, before, BATCH.min(range.len() - values.len()))?;
        before = batch.keys.last().copied().or(before);
        values.extend(batch.values);
        if batch.is_last {
            break;
        }
    }
    Ok(values)
}

/// All elements of a hash map.
pub(super) fn hash_elements<K: Pod, V: Pod>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    let mut elements = Vec::new();
    let (mut cursor, mut room) = (None, BATCH);
    loop {
        match lookup_batch::<K, V>(map, cursor, room) {
            Ok(batch) => {
                elements.extend(batch.keys.into_iter().zip(batch.values));
                if batch.is_last {
                    return Ok(elements);
                }
                cursor = Some(batch.cursor);
            }
            // One bucket holds more than that.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < 1 << 24 => room *= 2,
            Err(error) => return Err(error),
        }
    }
}

struct Batch<K, V> {
    keys: Vec<K>,
    values: Vec<V>,
    /// Where the next call goes on: of an array the last key, of a hash map the kernel's number of a bucket.
    cursor: u32,
    is_last: bool,
}

/// `count` elements at the most, from `cursor` on. For array and hash maps, whose values are not per CPU.
fn lookup_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    cursor: Option<u32>,
    count: usize,
) -> io::Result<Batch<K, V>> {
    #[repr(C)]
    struct Attributes {
        in_cursor: u64,
        out_cursor: u64,
        keys: u64,
        values: u64,
        count: u32,
        map: u32,
        element_flags: u64,
        flags: u64,
    }
    let (mut keys, mut values) = (zeros::<K>(count), zeros::<V>(count));
    let from = cursor.unwrap_or(0);
    // The kernel writes as many bytes as a key of the map has to where an array's cursor goes, and 4 where a hash map's does.
    let mut next = [0u64; 8];
    let mut attributes = Attributes {
        in_cursor: if cursor.is_some() { (&raw const from) as u64 } else { 0 },
        out_cursor: next.as_mut_ptr() as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: count as u32,
        map: raw(map),
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: the structure is what `MAP_LOOKUP_BATCH` takes. The kernel reads 4 bytes of `from`: an array's keys have 4, a
    // hash map's cursor too. It writes at most `count` keys and values to vectors of as many, whose sizes are those of the
    // map: the caller opened it by its name, and its shape was compared before; values of 4 bytes in an array are 8 apart
    // within the kernel only. All of it lives until the call returns, and every pattern is a value of a `Pod`.
    let result = unsafe { bpf(command::MAP_LOOKUP_BATCH, &mut attributes) };
    let is_last = match result {
        Ok(_) => false,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
        Err(error) => return Err(error),
    };
    let found = attributes.count as usize;
    keys.truncate(found);
    values.truncate(found);
    Ok(Batch { keys, values, cursor: next[0] as u32, is_last })
}

fn zeros<T: Pod>(count: usize) -> Vec<T> {
    // SAFETY: every pattern of bits is a value of a `Pod`, all 0 too.
    vec![unsafe { std::mem::zeroed() }; count]
}

/// Waits until every program that was running has ended its run: what was attached before is seen by whatever starts now.
pub(super) fn wait_for_programs() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_long = 1;
    // SAFETY: a system call that takes three numbers and touches no memory of ours.
    let waited = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    // It is a grace period of the kernel's RCU, under which programs run; a kernel that does not have it (with `nohz_full`)
    // is given time instead. A little time in any case: a datagram is on its way from the one program to the next.
    let pause = if waited == 0 { 20 } else { 200 };
    std::thread::sleep(std::time::Duration::from_millis(pause));
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    // Never negative.
    fd.as_raw_fd() as u32
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// One call of `bpf(2)`. What the structure does not hold, the kernel takes for 0; it may write to the structure.
///
/// # Safety
/// `T` must be `repr(C)`, without uninitialised bytes, and laid out as the command's part of `union bpf_attr`; what it points
/// to must be as the command wants it.
unsafe fn bpf<T>(command: u32, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the kernel reads and writes the structure, whose size it is told; the caller promises for the rest.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    match i32::try_from(result) {
        Ok(result @ 0..) => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
