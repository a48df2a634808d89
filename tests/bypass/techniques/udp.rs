//! UDP: every way to send a datagram, connected or not, at once or held back.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{ControlMessage, MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg, sendmsg};
use tests::raw;

use crate::probe::{Probe, disconnect, raw_address, udp_socket};
use crate::technique::{Feature, Kept, Place, Stop, Technique, UDP};

/// `UDP_CORK`.
pub(super) const UDP_CORK: i32 = 1;
/// `UDP_SEGMENT`.
const UDP_SEGMENT: i32 = 103;

const CONNECTED: Technique = Technique { stop: Stop::By("connect; egress after the end"), ..UDP };
const HELD_BACK: Technique = Technique { stop: Stop::By("connect or sendmsg; egress after the end"), ..UDP };

pub(super) const TECHNIQUES: &[Technique] = &[
    Technique { name: "udp_sendto", run: by_sendto, ..UDP },
    Technique { name: "udp_sendto_ipv6", run: by_sendto, place: Place::Host6, feature: Feature::Ipv6, ..UDP },
    Technique { name: "udp_sendmsg", run: by_sendmsg, ..UDP },
    Technique { name: "udp_sendmmsg", run: by_sendmmsg, ..UDP },
    Technique { name: "udp_connect_send", run: connected, ..CONNECTED },
    Technique {
        name: "udp_connect_send_ipv6",
        run: connected,
        place: Place::Host6,
        feature: Feature::Ipv6,
        ..CONNECTED
    },
    Technique { name: "udp_kept_past_the_deadline", run: connected, kept: Kept::Expired, ..CONNECTED },
    Technique { name: "udp_connected_elsewhere_sendto", run: connected_elsewhere, ..UDP },
    Technique { name: "udp_reconnect_after_af_unspec", run: reconnect, ..CONNECTED },
    Technique { name: "udp_cork", run: cork, ..HELD_BACK },
    Technique { name: "udp_cork_past_the_deadline", run: cork, kept: Kept::Expired, ..HELD_BACK },
    Technique { name: "udp_more", run: more, ..HELD_BACK },
    Technique { name: "udp_more_unconnected", run: more_unconnected, ..HELD_BACK },
    Technique { name: "udp_segmented", run: segmented, ..UDP },
    Technique { name: "udp_segmented_connected", run: segmented_connected, ..CONNECTED },
    Technique { name: "udp_af_unspec_address", run: af_unspec_address, ..UDP },
    Technique { name: "udp_fragmented", run: fragmented, place: Place::Own, ..UDP },
    Technique {
        name: "udp_fragmented_ipv6",
        run: fragmented,
        place: Place::Own6,
        feature: Feature::Ipv6,
        ..UDP
    },
];

fn by_sendto(probe: &mut Probe) -> io::Result<()> {
    probe.send_to(udp_socket(probe.to())?, probe.to(), 0)
}

fn by_sendmsg(probe: &mut Probe) -> io::Result<()> {
    let (socket, marker) = (udp_socket(probe.to())?, probe.marker());
    probe.pause()?;
    let to = SockaddrStorage::from(probe.to());
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(&marker)], &[], MsgFlags::empty(), Some(&to))?;
    Ok(())
}

/// Two datagrams by one call: one to a port that everybody may reach, and one to the other.
fn by_sendmmsg(probe: &mut Probe) -> io::Result<()> {
    let (socket, marker) = (udp_socket(probe.to())?, probe.marker());
    probe.pause()?;
    let to = [probe.scene.decoy, probe.to()].map(|to| Some(SockaddrStorage::from(to)));
    let parts = [[IoSlice::new(&marker)], [IoSlice::new(&marker)]];
    let mut headers = MultiHeaders::preallocate(2, None);
    let none: [ControlMessage<'_>; 0] = [];
    sendmmsg(socket.as_raw_fd(), &mut headers, &parts, to, none, MsgFlags::empty())?;
    Ok(())
}

fn connected(probe: &mut Probe) -> io::Result<()> {
    let socket = udp_socket(probe.to())?;
    socket.connect(&probe.to().into())?;
    probe.send(socket)
}

fn connected_elsewhere(probe: &mut Probe) -> io::Result<()> {
    let socket = udp_socket(probe.to())?;
    socket.connect(&probe.scene.decoy.into())?;
    probe.send_to(socket, probe.to(), 0)
}

fn reconnect(probe: &mut Probe) -> io::Result<()> {
    let socket = udp_socket(probe.to())?;
    socket.connect(&probe.scene.decoy.into())?;
    disconnect(socket.as_fd())?;
    socket.connect(&probe.to().into())?;
    probe.send(socket)
}

/// The datagram is complete before the end of the grant, and let go after it.
fn cork(probe: &mut Probe) -> io::Result<()> {
    let socket = udp_socket(probe.to())?;
    socket.connect(&probe.to().into())?;
    raw::set_option(socket.as_fd(), libc::IPPROTO_UDP, UDP_CORK, &1i32.to_ne_bytes())?;
    socket.send(&probe.marker())?;
    probe.pause()?;
    let result = raw::set_option(socket.as_fd(), libc::IPPROTO_UDP, UDP_CORK, &0i32.to_ne_bytes());
    probe.keep(socket);
    result
}

fn more(probe: &mut Probe) -> io::Result<()> {
    let socket = udp_socket(probe.to())?;
    socket.connect(&probe.to().into())?;
    socket.send_with_flags(&probe.marker(), libc::MSG_MORE)?;
    probe.pause()?;
    let result = socket.send(b".");
    probe.keep(socket);
    result.map(drop)
}

/// The second part is for another address; the datagram goes where the first one said.
fn more_unconnected(probe: &mut Probe) -> io::Result<()> {
    let socket = udp_socket(probe.to())?;
    socket.send_to_with_flags(&probe.marker(), &probe.to().into(), libc::MSG_MORE)?;
    probe.pause()?;
    let result = socket.send_to(b".", &probe.scene.decoy.into());
    probe.keep(socket);
    result.map(drop)
}

/// Several datagrams as one.
fn segments(probe: &Probe) -> Vec<u8> {
    let mut segments = vec![b'.'; 100];
    segments.splice(..probe.marker().len(), probe.marker());
    segments.repeat(3)
}

fn segmented(probe: &mut Probe) -> io::Result<()> {
    let (socket, data) = (udp_socket(probe.to())?, segments(probe));
    raw::set_option(socket.as_fd(), libc::IPPROTO_UDP, UDP_SEGMENT, &100i32.to_ne_bytes())?;
    probe.pause()?;
    socket.send_to(&data, &probe.to().into()).map(drop)
}

fn segmented_connected(probe: &mut Probe) -> io::Result<()> {
    let (socket, data) = (udp_socket(probe.to())?, segments(probe));
    raw::set_option(socket.as_fd(), libc::IPPROTO_UDP, UDP_SEGMENT, &100i32.to_ne_bytes())?;
    socket.connect(&probe.to().into())?;
    probe.pause()?;
    let result = socket.send(&data);
    probe.keep(socket);
    result.map(drop)
}

/// The kernel takes an address of no family for an IPv4 address.
fn af_unspec_address(probe: &mut Probe) -> io::Result<()> {
    let socket = udp_socket(probe.to())?;
    probe.pause()?;
    let result = raw::send_to(socket.as_fd(), &probe.marker(), 0, &raw_address(libc::AF_UNSPEC, probe.to()));
    probe.keep(socket);
    result
}

/// More than fits into one packet of this network namespace; the marker is in the last fragment.
fn fragmented(probe: &mut Probe) -> io::Result<()> {
    let (socket, to): (_, SocketAddr) = (udp_socket(probe.to())?, probe.to());
    let data = [vec![b'.'; 4000], probe.marker()].concat();
    probe.pause()?;
    let result = socket.send_to(&data, &to.into());
    probe.keep(socket);
    result.map(drop)
}
