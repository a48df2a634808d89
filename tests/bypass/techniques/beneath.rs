//! Packets that the process writes itself, headers and all.

use std::fs::File;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsFd;

use socket2::{Domain, Protocol, Socket, Type};
use tests::{netlink, raw};

use crate::place;
use crate::probe::Probe;
use crate::technique::{Feature, Granted, Kept, Needs, Place, Service, Stop, Technique, UDP};

const NO_ADMISSION: Granted = Granted::Refused("the socket was not admitted: no hook saw where it sends");

const RAW: Technique = Technique {
    needs: Needs::NetRaw,
    stop: Stop::By("egress"),
    granted: NO_ADMISSION,
    kept: Kept::No,
    ..UDP
};
const BENEATH: Technique = Technique { granted: Granted::Arrives, place: Place::Own, ..RAW };

pub(super) const TECHNIQUES: &[Technique] = &[
    Technique { name: "raw_udp", run: raw_udp, ..RAW },
    Technique { name: "raw_udp_connected", run: raw_udp_connected, ..RAW },
    Technique { name: "raw_udp_ipv6", run: raw_udp6, place: Place::Host6, feature: Feature::Ipv6, ..RAW },
    Technique { name: "raw_header_included_udp", run: header_included, ..RAW },
    Technique { name: "raw_header_included_udp_with_options", run: header_with_options, ..RAW },
    Technique { name: "raw_header_included_fragments", run: fragments, ..RAW },
    Technique { name: "raw_tcp_data_in_syn", run: raw_tcp, service: Service::Tcp, place: Place::Own, ..RAW },
    Technique {
        name: "packet_socket",
        run: packet,
        stop: Stop::Nothing("packet sockets pass no cgroup hook; LSM socket_create refuses them"),
        ..BENEATH
    },
    Technique {
        name: "tun_device",
        run: tun,
        needs: Needs::NetAdmin,
        feature: Feature::Tun,
        stop: Stop::Nothing("the packet comes in as if from outside: no socket of this host sent it"),
        ..BENEATH
    },
];

/// The source port of what is made up.
const SOURCE_PORT: u16 = 9;

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
    options: &'static [u8],
    /// Flags and offset.
    fragment: u16,
}

impl Header {
    fn new(from: Ipv4Addr, to: Ipv4Addr, protocol: i32) -> Self {
        Self { from, to, protocol, options: &[], fragment: 0 }
    }

    /// The whole packet.
    fn with(&self, data: &[u8]) -> Vec<u8> {
        const IDENTIFIER: u16 = 4242;
        let header_length = 20 + self.options.len();
        let mut packet = vec![0x40 | (header_length / 4) as u8, 0];
        packet.extend(((header_length + data.len()) as u16).to_be_bytes());
        packet.extend(IDENTIFIER.to_be_bytes());
        packet.extend(self.fragment.to_be_bytes());
        packet.extend([64, self.protocol as u8, 0, 0]);
        packet.extend(self.from.octets());
        packet.extend(self.to.octets());
        packet.extend(self.options);
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
    let header = Header { options: &[1; 40], ..Header::new(*to.ip(), *to.ip(), libc::IPPROTO_UDP) };
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
    let header = Header::new(Ipv4Addr::new(10, 200, 0, 2), *to.ip(), libc::IPPROTO_UDP);
    file.write_all(&header.with(&datagram(to.port(), &probe.marker())))
}
