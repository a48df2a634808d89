//! Somebody wants a descriptor of a map, program or link, or changes a link.

use agent_ebpf::abi::{ObjectKey, Tampering};
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;

use crate::GO_ON;
use crate::kernel::{first_word, link_id, map_id, program_id};
use crate::reach::{is_object, judge, task};

/// Whatever way it is asked for, by id, by pin, to read or to write: a program that is loaded with a map that may only be read
/// writes to it all the same.
#[lsm(hook = "bpf_map")]
pub(crate) fn bpf_map(ctx: LsmContext) -> i32 {
    let is_ours = is_object(ObjectKey::MAP, map_id(ctx.arg(0)));
    judge(is_ours, Tampering::OpenMap, 0)
}

/// With a descriptor of a program one replaces it.
#[lsm(hook = "bpf_prog")]
pub(crate) fn bpf_prog(ctx: LsmContext) -> i32 {
    let is_ours = is_object(ObjectKey::PROGRAM, program_id(ctx.arg(0)));
    judge(is_ours, Tampering::OpenProgram, 0)
}

/// The commands of `bpf(2)` that the kernel has no other hook for. It has copied what they are given.
#[lsm(hook = "bpf")]
pub(crate) fn bpf(ctx: LsmContext) -> i32 {
    const LINK_UPDATE: u32 = 29;
    const LINK_GET_FD_BY_ID: u32 = 30;
    const LINK_DETACH: u32 = 34;
    match ctx.arg::<u32>(0) {
        LINK_GET_FD_BY_ID => {
            let is_ours = is_object(ObjectKey::LINK, first_word(ctx.arg(1)));
            judge(is_ours, Tampering::OpenLink, 0)
        }
        // By a descriptor from before the tier was up.
        LINK_UPDATE | LINK_DETACH => {
            let is_ours = is_object(ObjectKey::LINK, link_id(task(), first_word(ctx.arg(1))));
            judge(is_ours, Tampering::ChangeLink, 0)
        }
        _ => GO_ON,
    }
}
