//! Headers that come between the address and the port.

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::AsFd;

use socket2::Socket;
use tests::raw;

use crate::probe::{Probe, tcp_socket, udp_socket};
use crate::technique::{Feature, Granted, Kept, Needs, Place, TCP, Technique, UDP};

/// `IPV6_HOPOPTS`, `IPV6_RTHDR`, `IPV6_DSTOPTS`.
const HOP_BY_HOP: i32 = 54;
const ROUTING: i32 = 57;
const DESTINATION: i32 = 59;

const TCP6: Technique = Technique { place: Place::Own6, feature: Feature::Ipv6, ..TCP };
const UDP6: Technique = Technique { place: Place::Own6, feature: Feature::Ipv6, ..UDP };
const PRIVILEGED6: Technique = Technique { needs: Needs::NetRaw, ..UDP6 };

pub(super) const TECHNIQUES: &[Technique] = &[
    Technique { name: "ip_options_tcp", run: nop_tcp, ..TCP },
    Technique { name: "ip_options_udp", run: nop_udp, ..UDP },
    Technique {
        name: "ip_source_route_udp",
        run: source_route,
        needs: Needs::NetRaw,
        place: Place::OwnLoopback,
        ..UDP
    },
    Technique { name: "ipv6_routing_header_tcp", run: routing_tcp, ..TCP6 },
    Technique { name: "ipv6_routing_header_udp", run: routing_udp, ..UDP6 },
    Technique {
        name: "ipv6_routing_header_by_another_address",
        run: routing_elsewhere,
        kept: Kept::No,
        ..UDP6
    },
    Technique { name: "ipv6_hop_by_hop_udp", run: hop_by_hop, ..PRIVILEGED6 },
    Technique { name: "ipv6_destination_options_udp", run: destination, ..PRIVILEGED6 },
    Technique { name: "ipv6_every_header_tcp", run: every_header, needs: Needs::NetRaw, ..TCP6 },
    Technique {
        name: "ipv6_longest_headers_udp",
        run: longest_headers,
        granted: Granted::Either("beyond what the program walks, it denies"),
        ..PRIVILEGED6
    },
];

/// As many as there may be.
const NOPS: [u8; 40] = [1; 40];

fn nop_tcp(probe: &mut Probe) -> io::Result<()> {
    let socket = tcp_socket(probe.to())?;
    raw::set_option(socket.as_fd(), libc::IPPROTO_IP, libc::IP_OPTIONS, &NOPS)?;
    probe.connect_and_send(socket, probe.to())
}

fn nop_udp(probe: &mut Probe) -> io::Result<()> {
    let socket = udp_socket(probe.to())?;
    raw::set_option(socket.as_fd(), libc::IPPROTO_IP, libc::IP_OPTIONS, &NOPS)?;
    probe.send_to(socket, probe.to(), 0)
}

/// Loose source route by way of another address of this machine: that is what stands in the packet as its destination.
fn source_route(probe: &mut Probe) -> io::Result<()> {
    let IpAddr::V4(last) = probe.to().ip() else { return Err(io::Error::other("not IPv4")) };
    let mut route = vec![131, 11, 4, 127, 9, 9, 9];
    route.extend(last.octets());
    route.push(0);
    let socket = udp_socket(probe.to())?;
    raw::set_option(socket.as_fd(), libc::IPPROTO_IP, libc::IP_OPTIONS, &route)?;
    probe.send_to(socket, probe.to(), 0)
}

/// A routing header of type 4 (segments), by way of this address.
pub(super) fn route_by(socket: &Socket, by: Ipv6Addr) -> io::Result<()> {
    let mut header = vec![0, 4, 4, 1, 1, 0, 0, 0];
    // The kernel puts the destination here.
    header.extend(Ipv6Addr::UNSPECIFIED.octets());
    header.extend(by.octets());
    raw::set_option(socket.as_fd(), libc::IPPROTO_IPV6, ROUTING, &header)
}

fn ipv6(probe: &Probe) -> io::Result<Ipv6Addr> {
    match probe.to().ip() {
        IpAddr::V6(address) => Ok(address),
        IpAddr::V4(_) => Err(io::Error::other("not IPv6")),
    }
}

fn routing_tcp(probe: &mut Probe) -> io::Result<()> {
    let socket = tcp_socket(probe.to())?;
    route_by(&socket, ipv6(probe)?)?;
    probe.connect_and_send(socket, probe.to())
}

fn routing_udp(probe: &mut Probe) -> io::Result<()> {
    let socket = udp_socket(probe.to())?;
    route_by(&socket, ipv6(probe)?)?;
    probe.send_to(socket, probe.to(), 0)
}

fn routing_elsewhere(probe: &mut Probe) -> io::Result<()> {
    let socket = udp_socket(probe.to())?;
    route_by(&socket, Ipv6Addr::LOCALHOST)?;
    probe.send_to(socket, probe.to(), 0)
}

/// An options header of this many times 8 bytes: one option that whoever does not know it skips, and padding.
fn options(eights: u8) -> Vec<u8> {
    /// Left to experiments.
    const EXPERIMENT: u8 = 0x1e;
    let mut header = vec![0; 8 * usize::from(eights)];
    header[1] = eights - 1;
    let (mut rest, mut at) = (header.len() - 2, 2);
    while rest > 0 {
        // An option's length has one byte, and none may be left that is too short for its two bytes of header.
        let length = rest.min(200);
        header[at] = EXPERIMENT;
        header[at + 1] = length as u8 - 2;
        (at, rest) = (at + length, rest - length);
    }
    header
}

fn with_options(probe: &mut Probe, headers: &[(i32, u8)]) -> io::Result<()> {
    let socket = udp_socket(probe.to())?;
    for (name, eights) in headers {
        raw::set_option(socket.as_fd(), libc::IPPROTO_IPV6, *name, &options(*eights))?;
    }
    probe.send_to(socket, probe.to(), 0)
}

fn hop_by_hop(probe: &mut Probe) -> io::Result<()> {
    with_options(probe, &[(HOP_BY_HOP, 2)])
}

fn destination(probe: &mut Probe) -> io::Result<()> {
    with_options(probe, &[(DESTINATION, 2)])
}

/// 960 bytes of options before the port.
fn longest_headers(probe: &mut Probe) -> io::Result<()> {
    with_options(probe, &[(HOP_BY_HOP, 60), (DESTINATION, 60)])
}

fn every_header(probe: &mut Probe) -> io::Result<()> {
    let socket = tcp_socket(probe.to())?;
    raw::set_option(socket.as_fd(), libc::IPPROTO_IPV6, HOP_BY_HOP, &options(1))?;
    route_by(&socket, ipv6(probe)?)?;
    raw::set_option(socket.as_fd(), libc::IPPROTO_IPV6, DESTINATION, &options(3))?;
    probe.connect_and_send(socket, probe.to())
}
