//! Packets that the process writes itself, headers and all.

use std::fs::File;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsFd;

use socket2::{Domain, Protocol, Socket, Type};
use tests::{netlink, raw};

use crate::place;
use crate::probe::{Probe, udp_socket};
use crate::technique::{
    Feature, Granted, Kept, Needs, Place, Service, Stop, Technique, Tier, UDP, Unprotected,
};

const RAW: Technique = Technique { needs: Needs::NetRaw, stop: Stop::By("egress"), kept: Kept::No, ..UDP };
const BENEATH: Technique = Technique { place: Place::Own, ..RAW };

pub(super) const TECHNIQUES: &[Technique] = &[
    Technique { name: "raw_udp", run: raw_udp, ..RAW },
    Technique { name: "raw_udp_connected", run: raw_udp_connected, ..RAW },
    Technique { name: "raw_udp_ipv6", run: raw_udp6, place: Place::Host6, feature: Feature::Ipv6, ..RAW },
    Technique { name: "raw_header_included_udp", run: header_included, ..RAW },
    Technique { name: "raw_header_included_udp_with_options", run: header_with_options, ..RAW },
    Technique { name: "raw_header_included_fragments", run: fragments, ..RAW },
    Technique { name: "raw_tcp_data_in_syn", run: raw_tcp, service: Service::Tcp, place: Place::Own, ..RAW },
    Technique { name: "raw_source_route_by_another_address", run: source_route, place: Place::Own, ..RAW },
    Technique {
        name: "raw_routing_header_by_another_address",
        run: routing_header,
        place: Place::Own6,
        feature: Feature::Ipv6,
        ..RAW
    },
    Technique {
        name: "raw_ipv6_with_many_headers",
        run: many_headers,
        place: Place::Own6,
        feature: Feature::Ipv6,
        granted: Granted::Either("beyond what the program walks, it denies"),
        unprotected: Unprotected::NotTried("beyond what the program walks, it denies, whatever the port"),
        ..RAW
    },
    Technique {
        name: "tunnel_of_the_host",
        run: by_tunnel,
        needs: Needs::Nothing,
        place: Place::OwnTunnel,
        stop: Stop::Nothing(
            "a tunnel's end (here VXLAN) takes it for a packet from outside: close its port to local processes, or judge \
             what comes in on the host of the resource",
        ),
        ..BENEATH
    },
    Technique {
        name: "packet_socket",
        run: packet,
        stop: Stop::Nothing("packet sockets pass no cgroup hook; LSM socket_create refuses them"),
        tier: Some(Tier::SocketCreate),
        ..BENEATH
    },
    Technique {
        name: "tun_device",
        run: tun,
        // CAP_NET_ADMIN is enough where the device file may be opened by everybody.
        needs: Needs::Root,
        feature: Feature::Tun,
        stop: Stop::Nothing("the packet comes in as if from outside: no socket of this host sent it"),
        ..BENEATH
    },
];

/// The source port of what is made up.
const SOURCE_PORT: u16 = 9;

/// Somebody who is not there.
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 2);

fn v4(to: SocketAddr) -> io::Result<SocketAddrV4> {
    match to {
        SocketAddr::V4(to) => Ok(to),
        SocketAddr::V6(_) => Err(io::Error::other("not IPv4")),
    }
}

/// A UDP header without a checksum, and the data.
fn datagram(to: u16, data: &[u8]) -> Vec<u8> {
    let length = 8 + data.len() as u16;
    let header = [SOURCE_PORT, to, length, 0].map(u16::to_be_bytes);
    [header.as_flattened(), data].concat()
}

/// The Internet checksum.
fn checksum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// An IPv4 header.
struct Header {
    from: Ipv4Addr,
    to: Ipv4Addr,
    protocol: i32,
    /// A multiple of 4 bytes.
    options: Vec<u8>,
    /// Flags and offset.
    fragment: u16,
    /// What the fragments of one datagram have in common, and no other datagram of the last seconds has.
    identifier: u16,
}

impl Header {
    fn new(from: Ipv4Addr, to: Ipv4Addr, protocol: i32) -> Self {
        Self { from, to, protocol, options: Vec::new(), fragment: 0, identifier: std::process::id() as u16 }
    }

    /// The whole packet.
    fn with(&self, data: &[u8]) -> Vec<u8> {
        let header_length = 20 + self.options.len();
        let mut packet = vec![0x40 | (header_length / 4) as u8, 0];
        packet.extend(((header_length + data.len()) as u16).to_be_bytes());
        packet.extend(self.identifier.to_be_bytes());
        packet.extend(self.fragment.to_be_bytes());
        packet.extend([64, self.protocol as u8, 0, 0]);
        packet.extend(self.from.octets());
        packet.extend(self.to.octets());
        packet.extend(&self.options);
        let sum = checksum(&packet).to_be_bytes();
        packet[10..12].copy_from_slice(&sum);
        packet.extend(data);
        packet
    }
}

fn raw_socket(domain: Domain, protocol: i32) -> io::Result<Socket> {
    Socket::new(domain, Type::RAW, Some(Protocol::from(protocol)))
}

fn raw_udp(probe: &mut Probe) -> io::Result<()> {
    let socket = raw_socket(Domain::IPV4, libc::IPPROTO_UDP)?;
    let to = v4(probe.to())?;
    let at = SocketAddr::from((*to.ip(), 0));
    socket.send_to(&datagram(to.port(), &probe.marker()), &at.into()).map(drop)
}

/// Connected to the address by a port that nobody protects: raw sockets have none.
fn raw_udp_connected(probe: &mut Probe) -> io::Result<()> {
    let socket = raw_socket(Domain::IPV4, libc::IPPROTO_UDP)?;
    socket.connect(&probe.scene.decoy.into())?;
    socket.send(&datagram(probe.to().port(), &probe.marker())).map(drop)
}

fn raw_udp6(probe: &mut Probe) -> io::Result<()> {
    /// `IPV6_CHECKSUM`: the kernel fills it in at this offset.
    const IPV6_CHECKSUM: i32 = 7;
    let socket = raw_socket(Domain::IPV6, libc::IPPROTO_UDP)?;
    raw::set_option(socket.as_fd(), libc::IPPROTO_IPV6, IPV6_CHECKSUM, &6i32.to_ne_bytes())?;
    let mut to = probe.to();
    to.set_port(0);
    socket.send_to(&datagram(probe.to().port(), &probe.marker()), &to.into()).map(drop)
}

fn send_packets(probe: &Probe, packets: &[Vec<u8>]) -> io::Result<()> {
    let socket = raw_socket(Domain::IPV4, libc::IPPROTO_RAW)?;
    let to = SocketAddr::from((*v4(probe.to())?.ip(), 0)).into();
    packets.iter().try_for_each(|packet| socket.send_to(packet, &to).map(drop))
}

fn header_included(probe: &mut Probe) -> io::Result<()> {
    let to = v4(probe.to())?;
    let header = Header::new(*to.ip(), *to.ip(), libc::IPPROTO_UDP);
    send_packets(probe, &[header.with(&datagram(to.port(), &probe.marker()))])
}

fn header_with_options(probe: &mut Probe) -> io::Result<()> {
    let to = v4(probe.to())?;
    let header = Header { options: vec![1; 40], ..Header::new(*to.ip(), *to.ip(), libc::IPPROTO_UDP) };
    send_packets(probe, &[header.with(&datagram(to.port(), &probe.marker()))])
}

/// The ports are in a fragment of their own, which comes last.
fn fragments(probe: &mut Probe) -> io::Result<()> {
    const MORE: u16 = 0x2000;
    let to = v4(probe.to())?;
    let whole = datagram(to.port(), &probe.marker());
    let (ports, data) = whole.split_at(8);
    let first = Header { fragment: MORE, ..Header::new(*to.ip(), *to.ip(), libc::IPPROTO_UDP) };
    let second = Header { fragment: 1, ..Header::new(*to.ip(), *to.ip(), libc::IPPROTO_UDP) };
    send_packets(probe, &[second.with(data), first.with(ports)])
}

/// Loose source route: the destination is the last address of the option.
fn source_route(probe: &mut Probe) -> io::Result<()> {
    /// The first one; local too.
    const ANOTHER: Ipv4Addr = Ipv4Addr::new(127, 9, 9, 9);
    let to = v4(probe.to())?;
    let options = [&[131, 7, 4][..], &to.ip().octets(), &[0]].concat();
    let header = Header { options, ..Header::new(*to.ip(), ANOTHER, libc::IPPROTO_UDP) };
    let packet = header.with(&datagram(to.port(), &probe.marker()));
    let socket = raw_socket(Domain::IPV4, libc::IPPROTO_RAW)?;
    socket.send_to(&packet, &SocketAddr::from((ANOTHER, 0)).into()).map(drop)
}

fn v6(to: SocketAddr) -> io::Result<Ipv6Addr> {
    match to.ip() {
        IpAddr::V6(address) => Ok(address),
        IpAddr::V4(_) => Err(io::Error::other("not IPv6")),
    }
}

/// An IPv6 packet with these extension headers, each with its number, and a datagram at the end.
fn packet6(probe: &Probe, first: Ipv6Addr, headers: &[(u8, Vec<u8>)]) -> io::Result<Vec<u8>> {
    const UDP: u8 = libc::IPPROTO_UDP as u8;
    let to = v6(probe.to())?;
    let mut datagram = datagram(probe.to().port(), &probe.marker());
    // IPv6 wants a checksum, with the last destination.
    let length = (datagram.len() as u32).to_be_bytes();
    let summed = [&to.octets()[..], &to.octets(), &length, &[0, 0, 0, UDP], &datagram].concat();
    let sum = checksum(&summed).to_be_bytes();
    datagram[6..8].copy_from_slice(&sum);
    let numbers: Vec<u8> = headers.iter().map(|(number, _)| *number).chain([UDP]).collect();
    let mut payload = Vec::new();
    for ((_, header), next) in headers.iter().zip(&numbers[1..]) {
        payload.push(*next);
        payload.extend(&header[1..]);
    }
    payload.extend(datagram);
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([numbers[0], 64]);
    packet.extend(to.octets());
    packet.extend(first.octets());
    packet.extend(payload);
    Ok(packet)
}

fn send6(to: Ipv6Addr, packet: &[u8]) -> io::Result<()> {
    let socket = raw_socket(Domain::IPV6, libc::IPPROTO_RAW)?;
    socket.send_to(packet, &SocketAddr::from((to, 0)).into()).map(drop)
}

/// Routing header of type 4 (segments): the destination is its first segment, the packet's address the second.
fn routing_header(probe: &mut Probe) -> io::Result<()> {
    const ROUTING: u8 = 43;
    let by = Ipv6Addr::LOCALHOST;
    let header = [&[0, 4, 4, 1, 1, 0, 0, 0][..], &v6(probe.to())?.octets(), &by.octets()].concat();
    send6(by, &packet6(probe, by, &[(ROUTING, header)])?)
}

fn many_headers(probe: &mut Probe) -> io::Result<()> {
    const DESTINATION_OPTIONS: u8 = 60;
    let to = v6(probe.to())?;
    // One option that pads all 6 bytes.
    let header = (DESTINATION_OPTIONS, vec![0, 0, 1, 4, 0, 0, 0, 0]);
    send6(to, &packet6(probe, to, &vec![header; 7])?)
}

/// A datagram to the tunnel's end, with a frame in it.
fn by_tunnel(probe: &mut Probe) -> io::Result<()> {
    const HAS_NETWORK: u8 = 8;
    let to = v4(probe.to())?;
    let (network, port) = place::TUNNEL;
    let mut data = vec![HAS_NETWORK, 0, 0, 0];
    data.extend((network << 8).to_be_bytes());
    // To everybody on that network, from somebody there; IPv4.
    data.extend([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 0]);
    let inner = Header::new(NEIGHBOUR, *to.ip(), libc::IPPROTO_UDP);
    data.extend(inner.with(&datagram(to.port(), &probe.marker())));
    let at = SocketAddr::from((*to.ip(), port));
    udp_socket(at)?.send_to(&data, &at.into()).map(drop)
}

/// A SYN that carries the marker, to a server that takes it so.
fn raw_tcp(probe: &mut Probe) -> io::Result<()> {
    const SYN: u8 = 2;
    let to = v4(probe.to())?;
    let source_port = place::own_port();
    let mut segment = [source_port, to.port()].map(u16::to_be_bytes).concat();
    segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, SYN, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(probe.marker());
    let mut summed = [to.ip().octets(), to.ip().octets()].concat();
    summed.extend([0, libc::IPPROTO_TCP as u8]);
    summed.extend((segment.len() as u16).to_be_bytes());
    summed.extend(&segment);
    let sum = checksum(&summed).to_be_bytes();
    segment[16..18].copy_from_slice(&sum);
    let header = Header::new(*to.ip(), *to.ip(), libc::IPPROTO_TCP);
    send_packets(probe, &[header.with(&segment)])
}

fn packet(probe: &mut Probe) -> io::Result<()> {
    const ETH_P_IP: u16 = 0x0800;
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(i32::from(ETH_P_IP.to_be()))))?;
    let to = v4(probe.to())?;
    let header = Header::new(*to.ip(), *to.ip(), libc::IPPROTO_UDP);
    let packet = header.with(&datagram(to.port(), &probe.marker()));
    // `struct sockaddr_ll`: lo, and the hardware address 0.
    let mut address = (libc::AF_PACKET as u16).to_ne_bytes().to_vec();
    address.extend(ETH_P_IP.to_be_bytes());
    address.extend(netlink::LOOPBACK.to_ne_bytes());
    address.extend([0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0]);
    raw::send_to(socket.as_fd(), &packet, 0, &address)
}

/// A network device whose packets are what is written to a file.
fn make_tun() -> io::Result<(File, i32)> {
    const TUNSETIFF: u64 = 0x4004_54ca;
    const IFF_TUN: u16 = 1;
    const IFF_NO_PI: u16 = 0x1000;
    const NAME: &str = "bypass";
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut request = [0; 40];
    request[..NAME.len()].copy_from_slice(NAME.as_bytes());
    request[16..18].copy_from_slice(&(IFF_TUN | IFF_NO_PI).to_ne_bytes());
    raw::ioctl(file.as_fd(), TUNSETIFF, &mut request)?;
    let index = nix::net::if_::if_nametoindex(NAME)?;
    Ok((file, index as i32))
}

/// Whether this kernel has such devices.
pub(crate) fn has_tun() -> bool {
    place::alone(|| make_tun().map(drop))
}

/// As if it came from a neighbour.
fn tun(probe: &mut Probe) -> io::Result<()> {
    let (mut file, index) = make_tun()?;
    netlink::set_up(index, 0)?;
    let to = v4(probe.to())?;
    let header = Header::new(NEIGHBOUR, *to.ip(), libc::IPPROTO_UDP);
    file.write_all(&header.with(&datagram(to.port(), &probe.marker())))
}
