//! The kernel programs of the tamper tier: an object of its own, for the gate must load where these do not. It shares the
//! gate's ring by its pin. Built for the BPF target only, as `main.rs` is.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics))]
#![cfg_attr(target_arch = "bpf", allow(internal_features, reason = "see `record::count`"))]
#![cfg_attr(
    target_arch = "bpf",
    allow(unsafe_code, reason = "the kernel's interface is raw pointers and helpers")
)]

#[cfg(target_arch = "bpf")]
#[allow(dead_code, reason = "most of it is for the gate's programs")]
mod context;
#[cfg(target_arch = "bpf")]
#[path = "tamper/files.rs"]
mod files;
#[cfg(target_arch = "bpf")]
#[path = "tamper/kernel.rs"]
mod kernel;
#[cfg(target_arch = "bpf")]
#[allow(dead_code, reason = "most of them are for the gate's programs")]
mod maps;
#[cfg(target_arch = "bpf")]
#[path = "tamper/objects.rs"]
mod objects;
#[cfg(target_arch = "bpf")]
#[path = "tamper/processes.rs"]
mod processes;
#[cfg(target_arch = "bpf")]
#[path = "tamper/reach.rs"]
mod reach;
#[cfg(target_arch = "bpf")]
#[allow(dead_code, reason = "most of it is for the gate's programs")]
mod record;
#[cfg(target_arch = "bpf")]
#[allow(dead_code, reason = "most of it is for the gate's programs")]
mod task;

/// What a program returns to let a call go on.
#[cfg(target_arch = "bpf")]
const GO_ON: i32 = 0;
/// What it returns to have the caller get EPERM.
#[cfg(target_arch = "bpf")]
const REFUSE: i32 = -1;

/// The helpers we call include some that the kernel gives to GPL-compatible programs only.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier proves that nothing gets here; the linker drops it.
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
