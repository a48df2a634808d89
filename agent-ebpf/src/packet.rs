//! Reading a packet: where it goes, and where it comes from, by its own headers and nobody's word.
//!
//! Owns: the walk over IP options and IPv6 extension headers, source routes included. Must not know: rules, maps.

use agent_ebpf::abi::protocol;
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::bpf_sk_fullsock;
use aya_ebpf::programs::SkBuffContext;

use crate::context::{self, Destination};

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
    /// Behind the transport header; of protocols other than TCP and UDP with it.
    pub(crate) payload_bytes: u32,
    /// TCP, and only tells the other side that it is over: RST or FIN, and no payload.
    pub(crate) is_farewell: bool,
    /// TCP, and answers a connection request: SYN and ACK.
    pub(crate) is_answer: bool,
    /// TCP, and requests a connection: SYN and no ACK.
    pub(crate) is_request: bool,
    /// TCP, and asks for a connection: how many bytes of options it has, at the end of its header; otherwise 0.
    options_bytes: u32,
}

impl Segment {
    /// TCP, asks for no connection, and carries no payload.
    #[inline(always)]
    pub(crate) fn carries_nothing(&self) -> bool {
        self.destination.protocol == protocol::TCP && self.payload_bytes == 0 && !self.is_request
    }
}

/// What a request for a TCP connection asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opening {
    /// A connection; or it is no request.
    Plain,
    /// A connection of MPTCP, whose first subflow this is to be.
    Mptcp,
    /// A further subflow of one that is up.
    Join,
}

/// What a segment asks for, by its options.
#[inline(always)]
pub(crate) fn opening(ctx: &SkBuffContext, segment: &Segment) -> Opening {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const MPTCP: u8 = 30;
    const JOIN: u8 = 1;
    const OPTIONS_MAX_BYTES: usize = 40;
    // Told by lengths, not by where the headers were found: to the verifier all packets are alike here, and it walks once.
    let end = ctx.len().saturating_sub(segment.payload_bytes);
    // Volatile: the compiler knows that there are no more than 40 and drops the bound of the loop, which the verifier needs.
    //
    // SAFETY: a field of a reference.
    let options_bytes = unsafe { (&raw const segment.options_bytes).read_volatile() };
    let from = end.saturating_sub(options_bytes) as usize;
    // Byte by byte, as in `last_stop4`.
    let mut skip = 0;
    let mut index = 0;
    while index < OPTIONS_MAX_BYTES && index < options_bytes as usize {
        if skip > 0 {
            skip -= 1;
        } else {
            match ctx.load::<u8>(from + index) {
                Ok(NO_OPERATION) => {}
                Err(_) | Ok(END) => return Opening::Plain,
                Ok(kind) => {
                    let Ok([length, subtype]) = ctx.load::<[u8; 2]>(from + index + 1) else {
                        return Opening::Plain;
                    };
                    if kind == MPTCP {
                        return if subtype >> 4 == JOIN { Opening::Join } else { Opening::Mptcp };
                    }
                    if length < 2 {
                        return Opening::Plain;
                    }
                    skip = length - 1;
                }
            }
        }
        index += 1;
    }
    Opening::Plain
}

/// The packet's socket, if it is a whole one: neither a request nor in TIME_WAIT. Null otherwise.
#[inline(always)]
pub(crate) fn full_socket(ctx: &SkBuffContext) -> *mut bpf_sock {
    // SAFETY: the kernel hands the program a valid `__sk_buff`; `sk` is the one pointer of the union that it sets, and the
    // helper takes what is not null.
    unsafe {
        let sk = (*ctx.skb.skb).__bindgen_anon_2.sk;
        if sk.is_null() { sk } else { bpf_sk_fullsock(sk) }
    }
}

/// Both ends of a packet that has arrived: a source route is behind it.
pub(crate) struct Ends {
    pub(crate) from: [u8; 16],
    pub(crate) to: [u8; 16],
}

/// None: it is no IP packet.
#[inline(always)]
pub(crate) fn ends(ctx: &SkBuffContext) -> Option<Ends> {
    match u16::from_be(ctx.skb.protocol() as u16) {
        ETH_P_IP => {
            let [from, to] = ctx.load::<[u32; 2]>(12).ok()?;
            Some(Ends { from: context::literally_mapped(from), to: context::literally_mapped(to) })
        }
        ETH_P_IPV6 => {
            let [from, to] = ctx.load::<[[u32; 4]; 2]>(8).ok()?;
            Some(Ends { from: context::bytes(from), to: context::bytes(to) })
        }
        _ => None,
    }
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
    match plain(ctx) {
        Some(segment) => Packet::ToPort(segment),
        None => walk(ctx),
    }
}

/// The same for nearly all packets, without calling the kernel: TCP or UDP right behind an IP header without options, in the
/// part of the packet that can be read in place. None: it is not like that.
#[inline(always)]
fn plain(ctx: &SkBuffContext) -> Option<Segment> {
    let skb = ctx.skb.skb;
    // SAFETY: the kernel hands the program a valid `__sk_buff`; between `data` and `data_end` its packet may be read, and
    // each read is made after a comparison with the latter, which the verifier insists on. Packets need not be aligned on
    // the machines that we are for.
    unsafe {
        let (data, end) = ((*skb).data as usize as *const u8, (*skb).data_end as usize as *const u8);
        let (header_bytes, protocol, address) = match u16::from_be((*skb).protocol as u16) {
            ETH_P_IP => {
                if data.add(20) > end || *data != 0x45 {
                    return None;
                }
                if u16::from_be(data.add(6).cast::<u16>().read()) & 0x1fff != 0 {
                    return None;
                }
                (20, *data.add(9), context::literally_mapped(data.add(16).cast::<u32>().read()))
            }
            ETH_P_IPV6 => {
                if data.add(40) > end {
                    return None;
                }
                (40, *data.add(6), context::bytes(data.add(24).cast::<[u32; 4]>().read()))
            }
            _ => return None,
        };
        let transport = data.add(header_bytes);
        // The first 8 bytes of UDP, the first 14 of TCP.
        let kind = match protocol {
            protocol::TCP if transport.add(14) <= end => {
                tcp(*transport.add(12), *transport.add(13), header_bytes, ctx)
            }
            protocol::UDP if transport.add(8) <= end => other(header_bytes + UDP_HEADER_BYTES, ctx),
            _ => return None,
        };
        let port = u16::from_be(transport.add(2).cast::<u16>().read());
        Some(kind.to(Destination { address, port, protocol }))
    }
}

/// Reads the packet wherever its headers are.
#[inline(always)]
fn walk(ctx: &SkBuffContext) -> Packet {
    match u16::from_be(ctx.skb.protocol() as u16) {
        ETH_P_IP => read4(ctx),
        ETH_P_IPV6 => read6(ctx),
        _ => Packet::WithoutPorts,
    }
}

#[inline(always)]
fn read4(ctx: &SkBuffContext) -> Packet {
    let Ok(header) = ctx.load::<[u32; 5]>(0) else { return Packet::Unreadable };
    let fragment_offset = u32::from_be(header[1]) & 0x1fff;
    if fragment_offset != 0 {
        return Packet::WithoutPorts;
    }
    let header_bytes = ((u32::from_be(header[0]) >> 24 & 0x0f) * 4) as usize;
    let protocol = (u32::from_be(header[2]) >> 16) as u8;
    let Some(address) = last_stop4(ctx, header_bytes, header[4]) else { return Packet::Unreadable };
    ports(ctx, header_bytes, protocol, context::literally_mapped(address))
}

/// Where an IPv4 packet ends up: the last address of a source route that is not used up, otherwise its destination. None: the
/// options are not understood.
#[inline(always)]
fn last_stop4(ctx: &SkBuffContext, header_bytes: usize, destination: u32) -> Option<u32> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE_SOURCE_ROUTE: u8 = 131;
    const STRICT_SOURCE_ROUTE: u8 = 137;
    const HEADER_MAX_BYTES: usize = 60;
    // Byte by byte, with a count of those that belong to the option before: an offset that depends on what was read would
    // give the verifier hundreds of thousands of ways to walk.
    let mut skip = 0;
    let mut offset = 20;
    while offset < HEADER_MAX_BYTES && offset < header_bytes {
        if skip > 0 {
            skip -= 1;
        } else {
            match ctx.load::<u8>(offset).ok()? {
                END => return Some(destination),
                NO_OPERATION => {}
                kind => {
                    let [length, pointer] = ctx.load::<[u8; 2]>(offset + 1).ok()?;
                    let is_route = kind == LOOSE_SOURCE_ROUTE || kind == STRICT_SOURCE_ROUTE;
                    if is_route && length >= 7 && pointer <= length {
                        return ctx.load::<u32>(offset + usize::from(length) - 4).ok();
                    }
                    if length < 2 {
                        return None;
                    }
                    skip = length - 1;
                }
            }
        }
        offset += 1;
    }
    Some(destination)
}

#[inline(always)]
fn read6(ctx: &SkBuffContext) -> Packet {
    const HEADER_BYTES: usize = 40;
    let Ok(next) = ctx.load::<u8>(6) else { return Packet::Unreadable };
    let Ok(address) = ctx.load::<[u32; 4]>(24) else { return Packet::Unreadable };
    let mut address = context::bytes(address);
    let (mut next, mut offset) = (next, HEADER_BYTES);
    let mut count = 0;
    while count < EXTENSIONS_MAX {
        let Ok([following, length]) = ctx.load::<[u8; 2]>(offset) else { return Packet::WithoutPorts };
        let bytes = match next {
            HOP_BY_HOP | DESTINATION_OPTIONS | MOBILITY => (usize::from(length) + 1) * 8,
            ROUTING => {
                match last_stop6(ctx, offset, length) {
                    Route::Ahead(last) => address = last,
                    Route::Done => {}
                    Route::Unknown => return Packet::Unreadable,
                }
                (usize::from(length) + 1) * 8
            }
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

/// What a routing header says.
enum Route {
    /// The packet is where it is to be.
    Done,
    /// It goes on, to here in the end.
    Ahead([u8; 16]),
    /// Its kind is not known.
    Unknown,
}

/// Reads the routing header at `offset`, of `length` times 8 bytes after the first 8.
#[inline(always)]
fn last_stop6(ctx: &SkBuffContext, offset: usize, length: u8) -> Route {
    const SOURCE_ROUTE: u8 = 0;
    const MOBILE_HOME: u8 = 2;
    const SEGMENTS: u8 = 4;
    let Ok([kind, stops_left]) = ctx.load::<[u8; 2]>(offset + 2) else { return Route::Unknown };
    if stops_left == 0 {
        return Route::Done;
    }
    // Segments stand last first, the others first first.
    let place = match kind {
        SEGMENTS => offset + 8,
        SOURCE_ROUTE | MOBILE_HOME if length >= 2 => offset + usize::from(length) * 8 - 8,
        _ => return Route::Unknown,
    };
    match ctx.load::<[u32; 4]>(place) {
        Ok(address) => Route::Ahead(context::bytes(address)),
        Err(_) => Route::Unknown,
    }
}

/// The transport header. All protocols that are judged have the destination port in the same place.
#[inline(always)]
fn ports(ctx: &SkBuffContext, offset: usize, protocol: u8, address: [u8; 16]) -> Packet {
    if !protocol::ALL.contains(&protocol) {
        return Packet::WithoutPorts;
    }
    let Ok(port) = ctx.load::<[u8; 2]>(offset + 2) else { return Packet::Unreadable };
    let destination = Destination { address, port: u16::from_be_bytes(port), protocol };
    let kind = match protocol {
        protocol::TCP => match ctx.load::<[u8; 2]>(offset + 12) {
            Ok([length, flags]) => tcp(length, flags, offset, ctx),
            Err(_) => other(offset, ctx),
        },
        protocol::UDP => other(offset + UDP_HEADER_BYTES, ctx),
        _ => other(offset, ctx),
    };
    Packet::ToPort(kind.to(destination))
}

const UDP_HEADER_BYTES: usize = 8;

/// What a segment is, beside where it goes.
struct Kind {
    payload_bytes: u32,
    is_farewell: bool,
    is_answer: bool,
    is_request: bool,
    options_bytes: u32,
}

impl Kind {
    #[inline(always)]
    fn to(self, destination: Destination) -> Segment {
        let Self { payload_bytes, is_farewell, is_answer, is_request, options_bytes } = self;
        Segment { destination, payload_bytes, is_farewell, is_answer, is_request, options_bytes }
    }
}

/// A TCP segment, from the two bytes of its header that tell; the header begins at `offset`.
#[inline(always)]
fn tcp(length: u8, flags: u8, offset: usize, ctx: &SkBuffContext) -> Kind {
    const FIN: u8 = 1;
    const SYN: u8 = 2;
    const RST: u8 = 4;
    const ACK: u8 = 16;
    const HEADER_BYTES: u32 = 20;
    let header_bytes = u32::from(length >> 4) * 4;
    let payload_bytes = behind(offset + header_bytes as usize, ctx);
    let is_farewell = payload_bytes == 0 && flags & (FIN | RST) != 0 && flags & SYN == 0;
    let is_answer = flags & (SYN | ACK) == (SYN | ACK);
    let is_request = flags & (SYN | ACK) == SYN;
    let options_bytes = if is_request { header_bytes.saturating_sub(HEADER_BYTES) } else { 0 };
    Kind { payload_bytes, is_farewell, is_answer, is_request, options_bytes }
}

/// Anything else, of which the payload begins at `offset`.
#[inline(always)]
fn other(offset: usize, ctx: &SkBuffContext) -> Kind {
    Kind {
        payload_bytes: behind(offset, ctx),
        is_farewell: false,
        is_answer: false,
        is_request: false,
        options_bytes: 0,
    }
}

/// How many bytes of the packet lie behind `offset`.
#[inline(always)]
fn behind(offset: usize, ctx: &SkBuffContext) -> u32 {
    ctx.len().saturating_sub(offset as u32)
}
