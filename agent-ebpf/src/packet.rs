//! Reading a packet on its way out: where it goes, by its own headers and nobody's word.
//!
//! Owns: the walk over IP options and IPv6 extension headers. Must not know: rules, maps.

use agent_ebpf::abi::protocol;
use aya_ebpf::programs::SkBuffContext;

use crate::context::Destination;

/// What was found.
pub(crate) enum Packet {
    /// It carries no ports, or is a later fragment: the first one has them, and without it nothing is put together.
    WithoutPorts,
    /// Its headers are not understood.
    Unreadable,
    /// It goes to a port.
    ToPort(Segment),
}

/// The packet's destination and, for TCP, what ends a connection.
pub(crate) struct Segment {
    pub(crate) destination: Destination,
    /// TCP, and only tells the other side that it is over: RST or FIN, and no payload.
    pub(crate) is_farewell: bool,
    /// TCP, and answers a connection request: SYN and ACK.
    pub(crate) is_answer: bool,
}

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;

/// The kernel lets a socket set four extension headers; whoever writes more is up to something.
const EXTENSIONS_MAX: usize = 6;

// Extension headers, by IANA's protocol numbers.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;

/// Reads the packet from its IP header on.
#[inline(always)]
pub(crate) fn read(ctx: &SkBuffContext) -> Packet {
    match u16::from_be(ctx.skb.protocol() as u16) {
        ETH_P_IP => read4(ctx),
        ETH_P_IPV6 => read6(ctx),
        _ => Packet::WithoutPorts,
    }
}

#[inline(always)]
fn read4(ctx: &SkBuffContext) -> Packet {
    let Ok(header) = ctx.load::<[u8; 20]>(0) else { return Packet::Unreadable };
    let fragment_offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    if fragment_offset != 0 {
        return Packet::WithoutPorts;
    }
    let [.., a, b, c, d] = header;
    let address = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d];
    ports(ctx, usize::from(header[0] & 0x0f) * 4, header[9], address)
}

#[inline(always)]
fn read6(ctx: &SkBuffContext) -> Packet {
    const HEADER_BYTES: usize = 40;
    let Ok(next) = ctx.load::<u8>(6) else { return Packet::Unreadable };
    let Ok(address) = ctx.load::<[u8; 16]>(24) else { return Packet::Unreadable };
    let (mut next, mut offset) = (next, HEADER_BYTES);
    let mut count = 0;
    while count < EXTENSIONS_MAX {
        let Ok([following, length]) = ctx.load::<[u8; 2]>(offset) else { return Packet::WithoutPorts };
        let bytes = match next {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | MOBILITY => (usize::from(length) + 1) * 8,
            AUTHENTICATION => (usize::from(length) + 2) * 4,
            FRAGMENT => {
                let Ok(place) = ctx.load::<[u8; 2]>(offset + 2) else { return Packet::Unreadable };
                if u16::from_be_bytes(place) >> 3 != 0 {
                    return Packet::WithoutPorts;
                }
                8
            }
            _ => return ports(ctx, offset, next, address),
        };
        offset += bytes;
        next = following;
        count += 1;
    }
    Packet::Unreadable
}

/// The transport header. All protocols that are judged have the destination port in the same place.
#[inline(always)]
fn ports(ctx: &SkBuffContext, offset: usize, protocol: u8, address: [u8; 16]) -> Packet {
    if !protocol::ALL.contains(&protocol) {
        return Packet::WithoutPorts;
    }
    let Ok(port) = ctx.load::<[u8; 2]>(offset + 2) else { return Packet::Unreadable };
    let destination = Destination { address, port: u16::from_be_bytes(port), protocol };
    let (is_farewell, is_answer) = match protocol {
        protocol::TCP => tcp_flags(ctx, offset),
        _ => (false, false),
    };
    Packet::ToPort(Segment { destination, is_farewell, is_answer })
}

/// Whether a TCP segment is a farewell, and whether it is an answer.
#[inline(always)]
fn tcp_flags(ctx: &SkBuffContext, offset: usize) -> (bool, bool) {
    const FIN: u8 = 1;
    const SYN: u8 = 2;
    const RST: u8 = 4;
    const ACK: u8 = 16;
    let Ok([length, flags]) = ctx.load::<[u8; 2]>(offset + 12) else { return (false, false) };
    let header_end = offset + usize::from(length >> 4) * 4;
    let is_empty = ctx.len() as usize <= header_end;
    let is_farewell = is_empty && flags & (FIN | RST) != 0 && flags & SYN == 0;
    (is_farewell, flags & (SYN | ACK) == (SYN | ACK))
}
