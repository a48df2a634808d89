//! The kernel program that sees processes being moved into somebody's cgroup: an object of its own, for the gate must load where
//! this does not. It shares the gate's maps by their pins. Built for the BPF target only, as `main.rs` is.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics))]
#![cfg_attr(target_arch = "bpf", allow(internal_features, reason = "see `record::count`"))]
#![cfg_attr(
    target_arch = "bpf",
    allow(unsafe_code, reason = "the kernel's interface is raw pointers and helpers")
)]

#[cfg(target_arch = "bpf")]
#[path = "migrations/attach_task.rs"]
mod attach_task;
#[cfg(target_arch = "bpf")]
#[allow(dead_code, reason = "most of it is for the gate's programs")]
mod context;
#[cfg(target_arch = "bpf")]
#[allow(dead_code, reason = "most of them are for the gate's programs")]
mod maps;
#[cfg(target_arch = "bpf")]
#[allow(dead_code, reason = "most of it is for the gate's programs")]
mod record;

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
