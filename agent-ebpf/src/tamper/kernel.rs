//! Reading the kernel's own structures.
//!
//! Owns: where their members lie, as the agent writes it here before the programs are loaded, and every read of them. Must not
//! know: what is read for what.
//!
//! What cannot be read is 0, as what is not there: that is no file, map or process of ours.

use core::ffi::c_void;

use agent_ebpf::abi::FileKey;
use aya_ebpf::Global;
use aya_ebpf::helpers::generated::bpf_probe_read_kernel;

/// Offsets in bytes.
macro_rules! offsets {
    ($($name:ident,)*) => {
        $(#[unsafe(no_mangle)] static $name: Global<u64> = Global::new(0);)*
    };
}

// The agent has the same names, with the members that they stand for.
offsets! {
    TASK_MM,
    TASK_FILES,
    MM_EXE_FILE,
    FILES_TABLE,
    TABLE_FILES,
    TABLE_LENGTH,
    FILE_INODE,
    FILE_PRIVATE,
    INODE_NUMBER,
    INODE_SUPER,
    SUPER_DEVICE,
    DENTRY_INODE,
    MAP_ID,
    PROGRAM_AUX,
    AUX_ID,
    LINK_ID,
    // From the part that hooks are given to the number of the whole; the number lies behind it.
    MOUNT_ID,
}

/// A structure of the kernel's.
pub(crate) type Pointer = *const c_void;

#[inline(always)]
fn pointer(from: Pointer, offset: &Global<u64>) -> Pointer {
    word(from, offset.load()) as Pointer
}

#[inline(always)]
fn word(from: Pointer, offset: u64) -> u64 {
    let mut value = 0u64;
    if !from.is_null() {
        // SAFETY: the helper writes as many bytes as `value` has, or none; it checks the address that it reads from.
        unsafe {
            let source = from.cast::<u8>().wrapping_add(offset as usize).cast();
            bpf_probe_read_kernel((&raw mut value).cast(), size_of::<u64>() as u32, source);
        }
    }
    value
}

#[inline(always)]
fn half_word(from: Pointer, offset: u64) -> u32 {
    let mut value = 0u32;
    if !from.is_null() {
        // SAFETY: as in `word`.
        unsafe {
            let source = from.cast::<u8>().wrapping_add(offset as usize).cast();
            bpf_probe_read_kernel((&raw mut value).cast(), size_of::<u32>() as u32, source);
        }
    }
    value
}

/// The executable of a task, as its memory says; all 0 of a thread of the kernel's.
#[inline(always)]
pub(crate) fn executable(task: Pointer) -> FileKey {
    let file = pointer(pointer(task, &TASK_MM), &MM_EXE_FILE);
    inode(pointer(file, &FILE_INODE))
}

/// What a `struct inode` is.
#[inline(always)]
pub(crate) fn inode(inode: Pointer) -> FileKey {
    FileKey { inode: word(inode, INODE_NUMBER.load()), device: device(inode), reserved: 0 }
}

/// What its file system lies on.
#[inline(always)]
pub(crate) fn device(inode: Pointer) -> u32 {
    half_word(pointer(inode, &INODE_SUPER), SUPER_DEVICE.load())
}

/// What a `struct dentry` names; all 0: nothing yet.
#[inline(always)]
pub(crate) fn dentry(dentry: Pointer) -> FileKey {
    inode(pointer(dentry, &DENTRY_INODE))
}

/// The id of a `struct bpf_map`.
#[inline(always)]
pub(crate) fn map_id(map: Pointer) -> u32 {
    half_word(map, MAP_ID.load())
}

/// The id of a `struct bpf_prog`.
#[inline(always)]
pub(crate) fn program_id(program: Pointer) -> u32 {
    half_word(pointer(program, &PROGRAM_AUX), AUX_ID.load())
}

/// The id of the link that a task's descriptor stands for; of something else, any number.
#[inline(always)]
pub(crate) fn link_id(task: Pointer, descriptor: u32) -> u32 {
    let table = pointer(pointer(task, &TASK_FILES), &FILES_TABLE);
    if descriptor >= half_word(table, TABLE_LENGTH.load()) {
        return 0;
    }
    let files = pointer(table, &TABLE_FILES);
    let file = word(files, u64::from(descriptor) * size_of::<u64>() as u64) as Pointer;
    half_word(pointer(file, &FILE_PRIVATE), LINK_ID.load())
}

/// The id of the mount whose `struct vfsmount` this is.
#[inline(always)]
pub(crate) fn mount_id(mount: Pointer) -> u32 {
    half_word(mount, MOUNT_ID.load())
}

/// The first word of what `bpf(2)` was given.
#[inline(always)]
pub(crate) fn first_word(attributes: Pointer) -> u32 {
    half_word(attributes, 0)
}
