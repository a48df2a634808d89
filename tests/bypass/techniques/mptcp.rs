//! Multipath TCP: the first subflow is a connection like any other; it has Fast Open too.

use std::io;
use std::time::Duration;

use socket2::Type;

use crate::probe::{Probe, ip_socket};
use crate::technique::{Feature, Kept, MPTCP, Place, Service, Stop, TCP, Technique};

const BASE: Technique = Technique { service: Service::Mptcp, feature: Feature::Mptcp, ..TCP };

pub(super) const TECHNIQUES: &[Technique] = &[
    Technique { name: "mptcp_connect", run: plain, ..BASE },
    Technique {
        name: "mptcp_kept_past_the_deadline",
        run: plain,
        stop: Stop::By("connect; egress after the end"),
        kept: Kept::Expired,
        ..BASE
    },
    Technique { name: "mptcp_connect_to_a_tcp_service", run: plain, service: Service::Tcp, ..BASE },
    Technique {
        name: "mptcp_fast_open_sendto",
        run: fast_open,
        feature: Feature::MptcpFastOpen,
        place: Place::Own,
        kept: Kept::No,
        ..BASE
    },
];

fn plain(probe: &mut Probe) -> io::Result<()> {
    probe.connect_and_send(ip_socket(probe.to(), Type::STREAM, MPTCP)?, probe.to())
}

fn fast_open(probe: &mut Probe) -> io::Result<()> {
    let (socket, to) = (ip_socket(probe.to(), Type::STREAM, MPTCP)?, probe.to());
    socket.set_write_timeout(Some(Duration::from_secs(2)))?;
    probe.send_to(socket, to, libc::MSG_FASTOPEN)
}
