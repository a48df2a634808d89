//! What was freed and is not needed again soon goes back to the system.
//!
//! Owns: how the allocator is told. Must not know: what was freed.
//!
//! Reading the kernel's description of its types takes more memory than all that follows; glibc keeps what lies between pieces
//! that are still in use, for good.

/// Gives back what it can: takes some milliseconds at the most. Other allocators than glibc's do so by themselves.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, leaves what is in use where it is, and may be called by any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
