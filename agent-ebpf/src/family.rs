//! Address families of sockets: their numbers, their names, and which are usual.
//!
//! Owns: the list. Must not know: who may have a socket of which family.

/// `AF_UNIX`.
pub const UNIX: u8 = 1;
/// `AF_INET`.
pub const INET: u8 = 2;
/// `AF_INET6`.
pub const INET6: u8 = 10;
/// `AF_KEY`: keys of IPsec; carries nothing itself.
pub const KEY: u8 = 15;
/// `AF_NETLINK`.
pub const NETLINK: u8 = 16;
/// `AF_PACKET`: packets that the process writes itself, headers and all.
pub const PACKET: u8 = 17;
/// `AF_ALG`: the kernel's ciphers; carries nothing to anywhere.
pub const ALG: u8 = 38;
/// `AF_VSOCK`: between a virtual machine and its host.
pub const VSOCK: u8 = 40;
/// `AF_SMC`: memory of another host, reached past IP where the hardware can.
pub const SMC: u8 = 43;
/// `AF_XDP`: packets that the process writes itself, past the whole network stack.
pub const XDP: u8 = 44;

/// `IPPROTO_SMC`: by this protocol of `AF_INET` and `AF_INET6` (from Linux 6.11 on) the socket is one of [`SMC`] all the same.
const PROTOCOL_SMC: u32 = 256;

/// Those that everybody may have, as a set: bit N stands for family N. Whatever they carry to an IP port passes the gate.
pub const USUAL: u64 =
    set_of(UNIX) | set_of(INET) | set_of(INET6) | set_of(KEY) | set_of(NETLINK) | set_of(ALG);

/// A type of `AF_INET` sockets that no kernel has (`SOCK_DCCP` is 6, the next one is 10). The agent asks for such a socket,
/// to see whether the program that judges families runs; nobody else has a reason to.
pub const PROBE_KIND: u32 = 9;

/// Numbers and names, as the kernel's headers have them (`AF_PACKET` is `packet`).
pub const NAMES: [(u8, &str); 36] = [
    (UNIX, "unix"),
    (INET, "inet"),
    (3, "ax25"),
    (4, "ipx"),
    (5, "appletalk"),
    (6, "netrom"),
    (8, "atmpvc"),
    (9, "x25"),
    (INET6, "inet6"),
    (11, "rose"),
    (KEY, "key"),
    (NETLINK, "netlink"),
    (PACKET, "packet"),
    (20, "atmsvc"),
    (21, "rds"),
    (24, "pppox"),
    (26, "llc"),
    (27, "ib"),
    (28, "mpls"),
    (29, "can"),
    (30, "tipc"),
    (31, "bluetooth"),
    (32, "iucv"),
    (33, "rxrpc"),
    (34, "isdn"),
    (35, "phonet"),
    (36, "ieee802154"),
    (37, "caif"),
    (ALG, "alg"),
    (39, "nfc"),
    (VSOCK, "vsock"),
    (41, "kcm"),
    (42, "qipcrtr"),
    (SMC, "smc"),
    (XDP, "xdp"),
    (45, "mctp"),
];

/// The family whose way a socket goes, by the numbers that it is asked for with.
#[inline(always)]
pub const fn effective(family: u32, protocol: u32) -> u32 {
    if protocol == PROTOCOL_SMC && (family == INET as u32 || family == INET6 as u32) {
        return SMC as u32;
    }
    family
}

/// The set with this family only. Empty for what is no family.
#[inline(always)]
pub const fn set_of(family: u8) -> u64 {
    match family {
        0..64 => 1 << family,
        _ => 0,
    }
}

/// The name of a family. None: one that is newer than this list.
pub fn name(family: u8) -> Option<&'static str> {
    NAMES.iter().find(|(number, _)| *number == family).map(|(_, name)| *name)
}

/// The family of this name.
pub fn by_name(name: &str) -> Option<u8> {
    NAMES.iter().find(|(_, known)| *known == name).map(|(number, _)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_distinct() {
        assert!(NAMES.is_sorted_by_key(|(number, _)| *number));
        for (number, text) in NAMES {
            assert_eq!((name(number), by_name(text)), (Some(text), Some(number)));
        }
        assert_eq!((name(0), by_name("tcp")), (None, None));
    }

    #[test]
    fn a_family_may_have_another_name() {
        assert_eq!(effective(INET.into(), 256), SMC.into());
        assert_eq!(effective(INET6.into(), 256), SMC.into());
        assert_eq!(effective(INET.into(), 6), INET.into());
        assert_eq!(effective(PACKET.into(), 256), PACKET.into());
    }

    #[test]
    fn a_set_knows_its_families() {
        let has = |family: u8| USUAL & set_of(family) != 0;
        assert!([UNIX, INET, INET6, KEY, NETLINK, ALG].into_iter().all(has));
        assert!(![0, PACKET, VSOCK, XDP, 64, u8::MAX].into_iter().any(has));
    }
}
