//! Other names for the same place: mapped addresses, the wildcard, other addresses of this machine, everybody at once.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

use crate::place::{CABLE, at};
use crate::probe::{Probe, tcp_socket, udp_socket};
use crate::technique::{Feature, Kept, Place, Stop, TCP, Technique, UDP};

const MAPPED_UDP: Technique = Technique { feature: Feature::Ipv6, ..UDP };
const ANY_UDP: Technique = Technique { place: Place::OwnAny, ..UDP };

pub(super) const TECHNIQUES: &[Technique] = &[
    Technique { name: "tcp_mapped_address", run: tcp_mapped, feature: Feature::Ipv6, ..TCP },
    Technique { name: "udp_mapped_address", run: udp_mapped, ..MAPPED_UDP },
    Technique {
        name: "udp_mapped_address_connected",
        run: udp_mapped_connected,
        stop: Stop::By("connect; egress after the end"),
        ..MAPPED_UDP
    },
    Technique { name: "udp_ipv4_address_on_an_ipv6_socket", run: ipv4_on_ipv6, ..MAPPED_UDP },
    Technique { name: "tcp_wildcard_address", run: tcp_wildcard, place: Place::OwnLoopback, ..TCP },
    Technique { name: "udp_wildcard_address", run: udp_wildcard, place: Place::OwnLoopback, ..UDP },
    Technique {
        name: "tcp_wildcard_address_ipv6",
        run: tcp_wildcard,
        place: Place::OwnLoopback6,
        feature: Feature::Ipv6,
        ..TCP
    },
    Technique {
        name: "udp_wildcard_address_ipv6",
        run: udp_wildcard,
        place: Place::OwnLoopback6,
        feature: Feature::Ipv6,
        ..UDP
    },
    Technique {
        name: "tcp_mapped_wildcard_address",
        run: tcp_mapped_wildcard,
        place: Place::OwnLoopback,
        feature: Feature::Ipv6,
        ..TCP
    },
    Technique { name: "tcp_another_local_address", run: tcp_elsewhere, place: Place::OwnAny, ..TCP },
    Technique { name: "udp_another_local_address", run: udp_elsewhere, ..ANY_UDP },
    Technique {
        name: "tcp_another_local_address_ipv6",
        run: tcp_elsewhere,
        place: Place::OwnAny6,
        feature: Feature::Ipv6,
        ..TCP
    },
    Technique {
        name: "tcp_ipv4_to_an_ipv6_service",
        run: tcp_ipv4,
        place: Place::OwnAny6,
        feature: Feature::Ipv6,
        ..TCP
    },
    Technique { name: "udp_broadcast", run: broadcast, ..ANY_UDP },
    Technique { name: "udp_multicast", run: multicast, kept: Kept::No, ..ANY_UDP },
    Technique {
        name: "udp_multicast_ipv6",
        run: multicast6,
        place: Place::CableAny6,
        feature: Feature::Ipv6,
        kept: Kept::No,
        ..UDP
    },
];

/// The destination as an IPv6 address that stands for an IPv4 one.
fn mapped(to: SocketAddr) -> SocketAddr {
    match to.ip() {
        IpAddr::V4(address) => at(address.to_ipv6_mapped().into(), to.port()),
        IpAddr::V6(_) => to,
    }
}

fn tcp_to(probe: &mut Probe, to: SocketAddr) -> io::Result<()> {
    probe.connect_and_send(tcp_socket(to)?, to)
}

fn udp_to(probe: &mut Probe, to: SocketAddr) -> io::Result<()> {
    probe.send_to(udp_socket(to)?, to, 0)
}

fn tcp_mapped(probe: &mut Probe) -> io::Result<()> {
    tcp_to(probe, mapped(probe.to()))
}

fn udp_mapped(probe: &mut Probe) -> io::Result<()> {
    udp_to(probe, mapped(probe.to()))
}

fn udp_mapped_connected(probe: &mut Probe) -> io::Result<()> {
    let to = mapped(probe.to());
    let socket = udp_socket(to)?;
    socket.connect(&to.into())?;
    probe.send(socket)
}

fn ipv4_on_ipv6(probe: &mut Probe) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
    probe.send_to(socket, probe.to(), 0)
}

fn wildcard(to: SocketAddr) -> SocketAddr {
    match to.ip() {
        IpAddr::V4(_) => at(Ipv4Addr::UNSPECIFIED.into(), to.port()),
        IpAddr::V6(_) => at(Ipv6Addr::UNSPECIFIED.into(), to.port()),
    }
}

fn tcp_wildcard(probe: &mut Probe) -> io::Result<()> {
    tcp_to(probe, wildcard(probe.to()))
}

fn udp_wildcard(probe: &mut Probe) -> io::Result<()> {
    udp_to(probe, wildcard(probe.to()))
}

fn tcp_mapped_wildcard(probe: &mut Probe) -> io::Result<()> {
    tcp_to(probe, mapped(wildcard(probe.to())))
}

/// Another address of this machine, where the service listens just the same.
fn elsewhere(to: SocketAddr) -> SocketAddr {
    match to.ip() {
        IpAddr::V4(_) => at(Ipv4Addr::new(127, 1, 2, 3).into(), to.port()),
        IpAddr::V6(_) => at(Ipv6Addr::LOCALHOST.into(), to.port()),
    }
}

fn tcp_elsewhere(probe: &mut Probe) -> io::Result<()> {
    tcp_to(probe, elsewhere(probe.to()))
}

fn udp_elsewhere(probe: &mut Probe) -> io::Result<()> {
    udp_to(probe, elsewhere(probe.to()))
}

fn tcp_ipv4(probe: &mut Probe) -> io::Result<()> {
    tcp_to(probe, at(Ipv4Addr::LOCALHOST.into(), probe.to().port()))
}

fn broadcast(probe: &mut Probe) -> io::Result<()> {
    let to = at(Ipv4Addr::new(127, 255, 255, 255).into(), probe.to().port());
    let socket = udp_socket(to)?;
    socket.set_broadcast(true)?;
    probe.send_to(socket, to, 0)
}

/// All hosts on this link, of which this machine is one.
fn multicast(probe: &mut Probe) -> io::Result<()> {
    let to = at(Ipv4Addr::new(224, 0, 0, 1).into(), probe.to().port());
    let socket = udp_socket(to)?;
    socket.set_multicast_if_v4(&Ipv4Addr::LOCALHOST)?;
    probe.send_to(socket, to, 0)
}

fn multicast6(probe: &mut Probe) -> io::Result<()> {
    let to = at(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).into(), probe.to().port());
    let socket = udp_socket(to)?;
    socket.set_multicast_if_v6(CABLE as u32)?;
    probe.send_to(socket, to, 0)
}
