//! The kernel programs. Built for the BPF target only; anywhere else this is an empty program, so that plain cargo commands
//! work on the whole workspace.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics))]
#![cfg_attr(target_arch = "bpf", allow(internal_features, reason = "see `record::count`"))]
#![cfg_attr(
    target_arch = "bpf",
    allow(unsafe_code, reason = "the kernel's interface is raw pointers and helpers")
)]

#[cfg(target_arch = "bpf")]
mod context;
#[cfg(target_arch = "bpf")]
mod grants;
#[cfg(target_arch = "bpf")]
mod hooks;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod packet;
#[cfg(target_arch = "bpf")]
mod record;
#[cfg(target_arch = "bpf")]
#[allow(dead_code, reason = "some of it is for other programs")]
mod resources;
#[cfg(target_arch = "bpf")]
mod subjects;
#[cfg(target_arch = "bpf")]
mod task;

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
