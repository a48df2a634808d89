//! Multipath TCP: the first subflow is a connection like any other; it has Fast Open too.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use socket2::Type;
use tests::netlink::Subflows;

use crate::probe::{Probe, connect, ip_socket};
use crate::technique::{Feature, Granted, Kept, MPTCP, Needs, Place, Service, Stop, TCP, Technique};

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
    Technique {
        name: "mptcp_later_subflow",
        run: later_subflow,
        // Whoever set the machine up for it; the process itself needs nothing.
        needs: Needs::NetAdmin,
        place: Place::Own,
        stop: Stop::By("connect; egress after the end"),
        granted: Granted::Either("a connection stays on its first subflow, which is gone here"),
        ..BASE
    },
];

/// The connection opens another subflow and gives up its first; the kernel does that for it, not the process.
fn later_subflow(probe: &mut Probe) -> io::Result<()> {
    /// Where the later subflow comes from.
    const ANOTHER: Ipv4Addr = Ipv4Addr::new(127, 7, 7, 7);
    /// Long enough for a handshake within one machine.
    const HANDSHAKE: Duration = Duration::from_millis(500);
    let subflows = Subflows::new()?;
    let socket = ip_socket(probe.to(), Type::STREAM, MPTCP)?;
    connect(&socket, &probe.to().into())?;
    let Some(IpAddr::V4(first)) = socket.local_addr()?.as_socket().map(|address| address.ip()) else {
        return Err(io::Error::other("not IPv4"));
    };
    // Only a connection that has heard from its peer may have more subflows: that takes a byte, and its acknowledgement.
    socket.send(b".")?;
    std::thread::sleep(HANDSHAKE);
    probe.pause()?;
    subflows.add(ANOTHER)?;
    std::thread::sleep(HANDSHAKE);
    subflows.remove_first(first)?;
    std::thread::sleep(HANDSHAKE);
    let result = socket.send(&probe.marker());
    probe.keep(socket);
    result.map(drop)
}

fn plain(probe: &mut Probe) -> io::Result<()> {
    probe.connect_and_send(ip_socket(probe.to(), Type::STREAM, MPTCP)?, probe.to())
}

fn fast_open(probe: &mut Probe) -> io::Result<()> {
    let (socket, to) = (ip_socket(probe.to(), Type::STREAM, MPTCP)?, probe.to());
    socket.set_write_timeout(Some(Duration::from_secs(2)))?;
    probe.send_to(socket, to, libc::MSG_FASTOPEN)
}
