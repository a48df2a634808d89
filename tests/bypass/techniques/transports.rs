//! Transports that pass few of the hooks, or none.

use std::io;
use std::net::Ipv6Addr;
use std::time::Duration;

use socket2::Type;

use crate::probe::{Probe, connect, ip_socket};
use crate::receiver::set_dccp_service;
use crate::technique::{DCCP, Feature, Place, SCTP, SOCK_DCCP, Service, Stop, TCP, Technique, UDPLITE};

const EGRESS: Stop = Stop::By("egress");

const LITE: Technique =
    Technique { service: Service::UdpLite, feature: Feature::UdpLite, stop: EGRESS, ..TCP };

pub(super) const TECHNIQUES: &[Technique] = &[
    Technique { name: "udplite_sendto", run: lite, stop: Stop::By("sendmsg or egress"), ..LITE },
    Technique { name: "udplite_connect_send", run: lite_connected, ..LITE },
    Technique {
        name: "udplite_routing_header_by_another_address",
        run: lite_routed,
        place: Place::Own6,
        ..LITE
    },
    Technique {
        name: "sctp_one_to_one",
        run: sctp,
        service: Service::Sctp,
        feature: Feature::Sctp,
        stop: EGRESS,
        ..TCP
    },
    Technique {
        name: "sctp_one_to_many",
        run: sctp_to_many,
        service: Service::Sctp,
        feature: Feature::Sctp,
        stop: EGRESS,
        ..TCP
    },
    Technique {
        name: "dccp_connect",
        run: dccp,
        service: Service::Dccp,
        feature: Feature::Dccp,
        stop: EGRESS,
        ..TCP
    },
];

fn lite(probe: &mut Probe) -> io::Result<()> {
    probe.send_to(ip_socket(probe.to(), Type::DGRAM, UDPLITE)?, probe.to(), 0)
}

fn lite_connected(probe: &mut Probe) -> io::Result<()> {
    probe.connect_and_send(ip_socket(probe.to(), Type::DGRAM, UDPLITE)?, probe.to())
}

/// The packet names another address first, and no other hook sees where it goes.
fn lite_routed(probe: &mut Probe) -> io::Result<()> {
    let socket = ip_socket(probe.to(), Type::DGRAM, UDPLITE)?;
    socket.connect(&probe.to().into())?;
    super::options::route_by(&socket, Ipv6Addr::LOCALHOST)?;
    probe.send(socket)
}

fn sctp(probe: &mut Probe) -> io::Result<()> {
    probe.connect_and_send(ip_socket(probe.to(), Type::STREAM, SCTP)?, probe.to())
}

fn sctp_to_many(probe: &mut Probe) -> io::Result<()> {
    let socket = ip_socket(probe.to(), Type::SEQPACKET, SCTP)?;
    // The kernel need not tell that the first packet was refused, and tries again for minutes.
    socket.set_write_timeout(Some(Duration::from_secs(5)))?;
    probe.send_to(socket, probe.to(), 0)
}

fn dccp(probe: &mut Probe) -> io::Result<()> {
    let socket = ip_socket(probe.to(), Type::from(SOCK_DCCP), DCCP)?;
    set_dccp_service(&socket)?;
    connect(&socket, &probe.to().into())?;
    probe.send(socket)
}
