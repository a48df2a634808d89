//! What a hook can see: the destination, the calling task, the socket.
//!
//! Owns: every read of a context and every helper about the caller. Must not know: rules, maps.

use core::ffi::c_void;

use agent_ebpf::abi::{Admission, CGROUP_LEVELS_MAX, protocol};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::bpf_get_current_cgroup_id;
use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_boot_ns,
    bpf_sk_storage_get, bpf_skb_ancestor_cgroup_id, bpf_skb_cgroup_id,
};
use aya_ebpf::programs::{SkBuffContext, SockAddrContext};

/// Where a connection or datagram is to go. Aligned, so that the address is copied by words: the compiler does it byte by
/// byte otherwise.
#[repr(C, align(8))]
pub(crate) struct Destination {
    /// Network order; IPv4 as mapped IPv6. The wildcard address is what the kernel makes of it: loopback.
    pub(crate) address: [u8; 16],
    /// Machine order.
    pub(crate) port: u16,
    /// IANA's number; MPTCP counts as TCP.
    pub(crate) protocol: u8,
}

/// `IPPROTO_MPTCP`. Its first subflow is a TCP connection to the same port.
const MPTCP: u32 = 262;

const LOOPBACK4: u32 = 0x7f00_0001_u32.to_be();
const LOOPBACK6: [u32; 4] = [0, 0, 0, 1_u32.to_be()];

/// The destination of a `connect4` or `sendmsg4` context.
#[inline(always)]
pub(crate) fn destination4(ctx: &SockAddrContext) -> Destination {
    let addr = ctx.sock_addr;
    // SAFETY: the kernel hands the program a valid `bpf_sock_addr`; `user_ip4` may be read as 4 bytes in programs for IPv4.
    // Volatile, so that the compiler neither widens nor splits the read, which the verifier would refuse.
    let ip = unsafe { (&raw const (*addr).user_ip4).read_volatile() };
    Destination { address: mapped(ip), port: port(addr), protocol: protocol(addr) }
}

/// The destination of a `connect6` or `sendmsg6` context.
#[inline(always)]
pub(crate) fn destination6(ctx: &SockAddrContext) -> Destination {
    let addr = ctx.sock_addr;
    let mut words = [0u32; 4];
    let mut index = 0;
    while index < words.len() {
        // SAFETY: as in `destination4`; `user_ip6` may be read as four times 4 bytes in programs for IPv6.
        words[index] = unsafe { (&raw const (*addr).user_ip6[index]).read_volatile() };
        index += 1;
    }
    let is_mapped = words[0] == 0 && words[1] == 0 && words[2] == MAPPED;
    let address = if is_mapped {
        mapped(words[3])
    } else if words[0] | words[1] | words[2] | words[3] == 0 {
        bytes(LOOPBACK6)
    } else {
        bytes(words)
    };
    Destination { address, port: port(addr), protocol: protocol(addr) }
}

/// The third word of a mapped address; the first two are 0.
const MAPPED: u32 = 0xffff_u32.to_be();

/// An IPv4 address as mapped IPv6. Connecting to 0.0.0.0 reaches 127.0.0.1.
#[inline(always)]
fn mapped(ip: u32) -> [u8; 16] {
    literally_mapped(if ip == 0 { LOOPBACK4 } else { ip })
}

/// An IPv4 address as mapped IPv6, whatever it is.
#[inline(always)]
pub(crate) fn literally_mapped(ip: u32) -> [u8; 16] {
    bytes([0, 0, MAPPED, ip])
}

/// The bytes of what was copied by words.
#[inline(always)]
pub(crate) fn bytes_of(words: [u64; 2]) -> [u8; 16] {
    // SAFETY: both are 16 bytes of which every pattern is a value.
    unsafe { core::mem::transmute(words) }
}

/// The bytes of an address, from its four words in network order.
#[inline(always)]
pub(crate) fn bytes(words: [u32; 4]) -> [u8; 16] {
    // SAFETY: both are 16 bytes of which every pattern is a value.
    unsafe { core::mem::transmute(words) }
}

#[inline(always)]
fn port(addr: *const bpf_sock_addr) -> u16 {
    // SAFETY: as in `destination4`. The field is 4 bytes wide and holds the port in network order in its first two; the
    // kernel permits the full width only.
    let port = unsafe { (&raw const (*addr).user_port).read_volatile() };
    u16::from_be(port as u16)
}

#[inline(always)]
fn protocol(addr: *const bpf_sock_addr) -> u8 {
    // SAFETY: as in `destination4`.
    match unsafe { (&raw const (*addr).protocol).read_volatile() } {
        MPTCP => protocol::TCP,
        number => number as u8,
    }
}

/// The socket that a socket address program judges.
#[inline(always)]
pub(crate) fn socket(ctx: &SockAddrContext) -> *mut bpf_sock {
    // SAFETY: as in `destination4`; `sk` is the one pointer of the union that the kernel sets.
    unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk }
}

/// Whether a socket that is being made is one of MPTCP.
#[inline(always)]
pub(crate) fn is_mptcp(sk: *mut bpf_sock) -> bool {
    // SAFETY: a socket from the context of a socket program, of which this field may be read.
    unsafe { (&raw const (*sk).protocol).read_volatile() == MPTCP }
}

/// The cookie of that socket: unique within a boot.
#[inline(always)]
pub(crate) fn socket_cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the helper takes the context that the kernel handed us.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

/// The cookie of that socket's network namespace.
#[inline(always)]
pub(crate) fn netns_cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: as above.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// The calling task's cgroup.
#[inline(always)]
pub(crate) fn cgroup_id() -> u64 {
    // SAFETY: a helper without preconditions.
    unsafe { bpf_get_current_cgroup_id() }
}

/// What is known of a socket; None: nothing. `sk` comes from the kernel, by way of a context.
#[inline(always)]
pub(crate) fn admission<'a>(sk: *mut bpf_sock) -> Option<&'a mut Admission> {
    storage(sk, 0)
}

/// The same, made if it was not there. None: there is no memory, or the socket is on its way out.
#[inline(always)]
pub(crate) fn admission_or_new<'a>(sk: *mut bpf_sock) -> Option<&'a mut Admission> {
    storage(sk, BPF_SK_STORAGE_GET_F_CREATE.into())
}

#[inline(always)]
fn storage<'a>(sk: *mut bpf_sock, flags: u64) -> Option<&'a mut Admission> {
    let map = (&raw const crate::maps::ADMISSIONS).cast_mut().cast();
    // SAFETY: the map is of socket storage, and its values are `Admission`s; the kernel gives a pointer to one that lives
    // for this program's run, or null. Two programs may see the same one at a time: each field is a word that is read or
    // written at once, and the order in which they are written (see the callers) makes half an admission count as none.
    unsafe { bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), flags).cast::<Admission>().as_mut() }
}

/// Reads a field of a structure of the kernel's, so many bytes from its beginning. Volatile, so that it is one read of this width.
///
/// # Safety
/// The kernel has such a field there.
#[inline(always)]
pub(crate) unsafe fn field<T>(structure: *const c_void, offset: u32) -> T {
    // SAFETY: the caller promises it.
    unsafe { structure.cast::<u8>().add(offset as usize).cast::<T>().read_volatile() }
}

/// `CLOCK_BOOTTIME` in nanoseconds: no clock step moves it, and suspend counts.
#[inline(always)]
pub(crate) fn now_boot_ns() -> u64 {
    // SAFETY: a helper without preconditions.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// The ids of somebody's cgroups, from the root down to its own; `ancestor` gives the one at each level. Ends early with
/// [`CgroupTooDeep`] if there are more levels than [`CGROUP_LEVELS_MAX`].
#[inline(always)]
pub(crate) fn for_each_cgroup(
    ancestor: impl Fn(u32) -> u64,
    mut visit: impl FnMut(u64),
) -> Result<(), CgroupTooDeep> {
    let mut level = 0;
    while level < CGROUP_LEVELS_MAX {
        match ancestor(level) {
            0 => return Ok(()),
            id => visit(id),
        }
        level += 1;
    }
    match ancestor(CGROUP_LEVELS_MAX) {
        0 => Ok(()),
        _ => Err(CgroupTooDeep),
    }
}

/// The task's own cgroup lies deeper than the programs look.
pub(crate) struct CgroupTooDeep;

/// The cgroup at this level above the task, 0 being the root; 0 if the task's own lies higher.
#[inline(always)]
pub(crate) fn ancestor_cgroup_id(level: u32) -> u64 {
    // SAFETY: a helper without preconditions; open to socket address programs from Linux 5.10 on.
    unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) }
}

/// The cgroup that the packet's socket was made in.
#[inline(always)]
pub(crate) fn socket_cgroup_id(ctx: &SkBuffContext) -> u64 {
    // SAFETY: the helper takes the context that the kernel handed us.
    unsafe { bpf_skb_cgroup_id(ctx.skb.skb) }
}

/// The cgroup at this level above it, 0 being the root; 0 if its own lies higher.
#[inline(always)]
pub(crate) fn socket_ancestor_cgroup_id(ctx: &SkBuffContext, level: u32) -> u64 {
    // SAFETY: as above.
    unsafe { bpf_skb_ancestor_cgroup_id(ctx.skb.skb, level as i32) }
}
