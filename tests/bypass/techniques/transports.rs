//! Transports that pass few of the hooks, or none.

use std::io;

use socket2::Type;

use crate::probe::{Probe, connect, ip_socket};
use crate::receiver::set_dccp_service;
use crate::technique::{
    DCCP, Feature, Granted, Kept, SCTP, SOCK_DCCP, Service, Stop, TCP, Technique, UDPLITE,
};

const EGRESS: Stop = Stop::By("egress");
const NOBODY_ADMITS: Granted =
    Granted::Either("no hook sees a connection of this transport, so a grant may not open it");

const LITE: Technique =
    Technique { service: Service::UdpLite, feature: Feature::UdpLite, granted: NOBODY_ADMITS, ..TCP };

pub(super) const TECHNIQUES: &[Technique] = &[
    Technique { name: "udplite_sendto", run: lite, stop: Stop::By("sendmsg or egress"), ..LITE },
    Technique { name: "udplite_connect_send", run: lite_connected, stop: EGRESS, kept: Kept::No, ..LITE },
    Technique {
        name: "sctp_one_to_one",
        run: sctp,
        service: Service::Sctp,
        feature: Feature::Sctp,
        stop: EGRESS,
        granted: NOBODY_ADMITS,
        kept: Kept::No,
        ..TCP
    },
    Technique {
        name: "sctp_one_to_many",
        run: sctp_to_many,
        service: Service::Sctp,
        feature: Feature::Sctp,
        stop: EGRESS,
        granted: NOBODY_ADMITS,
        kept: Kept::No,
        ..TCP
    },
    Technique {
        name: "dccp_connect",
        run: dccp,
        service: Service::Dccp,
        feature: Feature::Dccp,
        stop: EGRESS,
        granted: NOBODY_ADMITS,
        kept: Kept::No,
        ..TCP
    },
];

fn lite(probe: &mut Probe) -> io::Result<()> {
    probe.send_to(ip_socket(probe.to(), Type::DGRAM, UDPLITE)?, probe.to(), 0)
}

fn lite_connected(probe: &mut Probe) -> io::Result<()> {
    probe.connect_and_send(ip_socket(probe.to(), Type::DGRAM, UDPLITE)?, probe.to())
}

fn sctp(probe: &mut Probe) -> io::Result<()> {
    probe.connect_and_send(ip_socket(probe.to(), Type::STREAM, SCTP)?, probe.to())
}

fn sctp_to_many(probe: &mut Probe) -> io::Result<()> {
    probe.send_to(ip_socket(probe.to(), Type::SEQPACKET, SCTP)?, probe.to(), 0)
}

fn dccp(probe: &mut Probe) -> io::Result<()> {
    let socket = ip_socket(probe.to(), Type::from(SOCK_DCCP), DCCP)?;
    set_dccp_service(&socket)?;
    connect(&socket, &probe.to().into())?;
    probe.send(socket)
}
