//! Somebody opens, removes, moves or adds a pin, or unmounts what the pins lie on.

use agent_ebpf::abi::{FileKey, ObjectKey, Tampering, tamper_state};
use agent_ebpf::verdict::tamper::opens;
use aya_ebpf::Global;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;

use crate::GO_ON;
use crate::kernel::{self, Pointer};
use crate::reach::{is_file, is_object, judge, set_state};

/// The device of the file system that holds the pins: see [`FileKey::device`]. Written by the agent, as the next one is.
#[unsafe(no_mangle)]
static PINS_DEVICE: Global<u32> = Global::new(0);

/// The thread of the agent that looks up a file to learn the kernel's numbers of it.
#[unsafe(no_mangle)]
static LEARNER: Global<u32> = Global::new(0);

/// Links have no hook of their own. Asked of every file and directory that anybody comes by: whatever is only passed, or lies
/// elsewhere, goes on at once.
#[lsm(hook = "inode_permission")]
pub(crate) fn inode_permission(ctx: LsmContext) -> i32 {
    if !opens(ctx.arg::<u32>(1)) {
        return GO_ON;
    }
    let inode = ctx.arg(0);
    if kernel::device(inode) != PINS_DEVICE.load() {
        return GO_ON;
    }
    judge(is_file(kernel::inode(inode), FileKey::PIN), Tampering::OpenPin, 0)
}

/// Attached only while the agent learns: the last file that it comes by is what it asked for.
#[lsm(hook = "inode_permission")]
pub(crate) fn learn(ctx: LsmContext) -> i32 {
    if opens(ctx.arg::<u32>(1)) && bpf_get_current_pid_tgid() as u32 == LEARNER.load() {
        let file = kernel::inode(ctx.arg(0));
        set_state(tamper_state::LEARNT_INODE, file.inode);
        set_state(tamper_state::LEARNT_DEVICE, u64::from(file.device));
    }
    GO_ON
}

#[lsm(hook = "inode_unlink")]
pub(crate) fn inode_unlink(ctx: LsmContext) -> i32 {
    judge(touches(ctx.arg(0), ctx.arg(1)), Tampering::RemovePin, 0)
}

#[lsm(hook = "inode_rmdir")]
pub(crate) fn inode_rmdir(ctx: LsmContext) -> i32 {
    judge(touches(ctx.arg(0), ctx.arg(1)), Tampering::RemovePin, 0)
}

#[lsm(hook = "inode_rename")]
pub(crate) fn inode_rename(ctx: LsmContext) -> i32 {
    let is_ours = touches(ctx.arg(0), ctx.arg(1)) || touches(ctx.arg(2), ctx.arg(3));
    judge(is_ours, Tampering::MovePin, 0)
}

/// A directory that looks like one of another version's gate, for the next agent to find.
#[lsm(hook = "inode_mkdir")]
pub(crate) fn inode_mkdir(ctx: LsmContext) -> i32 {
    judge(is_closed(ctx.arg(0)), Tampering::AddPin, 0)
}

/// Pinning, too.
#[lsm(hook = "inode_create")]
pub(crate) fn inode_create(ctx: LsmContext) -> i32 {
    judge(is_closed(ctx.arg(0)), Tampering::AddPin, 0)
}

#[lsm(hook = "inode_symlink")]
pub(crate) fn inode_symlink(ctx: LsmContext) -> i32 {
    judge(is_closed(ctx.arg(0)), Tampering::AddPin, 0)
}

#[lsm(hook = "inode_link")]
pub(crate) fn inode_link(ctx: LsmContext) -> i32 {
    judge(is_closed(ctx.arg(1)), Tampering::AddPin, 0)
}

/// Lazily or not. With what a mount is mounted on, it goes as well.
#[lsm(hook = "sb_umount")]
pub(crate) fn sb_umount(ctx: LsmContext) -> i32 {
    let is_ours = is_object(ObjectKey::MOUNT, kernel::mount_id(ctx.arg(0)));
    judge(is_ours, Tampering::Unmount, 0)
}

#[inline(always)]
fn is_closed(directory: Pointer) -> bool {
    is_file(kernel::inode(directory), FileKey::CLOSED)
}

/// Whether a name in a directory is the gate's.
#[inline(always)]
fn touches(directory: Pointer, entry: Pointer) -> bool {
    is_closed(directory) || is_file(kernel::dentry(entry), FileKey::STAYS)
}
