//! io_uring: the same calls, made by the kernel for the process, with and without a kernel thread that polls.

use std::io;
use std::os::fd::AsFd;

use tests::raw::Ring;

use crate::probe::{Probe, tcp_socket, udp_socket};
use crate::technique::{Feature, Kept, Place, Service, Stop, TCP, Technique, UDP};

pub(super) const TECHNIQUES: &[Technique] = &[
    Technique { name: "io_uring_connect", run: connect, feature: Feature::IoUring, ..TCP },
    Technique {
        name: "io_uring_connect_polled",
        run: connect_polled,
        feature: Feature::IoUringPolled,
        ..TCP
    },
    Technique {
        name: "io_uring_fast_open",
        run: fast_open,
        feature: Feature::IoUring,
        place: Place::Own,
        kept: Kept::No,
        ..TCP
    },
    Technique { name: "io_uring_udp_sendmsg", run: sendmsg, feature: Feature::IoUring, ..UDP },
    Technique {
        name: "io_uring_udp_sendmsg_polled",
        run: sendmsg_polled,
        feature: Feature::IoUringPolled,
        ..UDP
    },
    Technique {
        name: "io_uring_udp_send",
        run: send,
        feature: Feature::IoUring,
        service: Service::Udp,
        stop: Stop::By("connect; egress after the end"),
        ..TCP
    },
];

fn connect(probe: &mut Probe) -> io::Result<()> {
    connect_by(probe, Ring::new(false)?)
}

fn connect_polled(probe: &mut Probe) -> io::Result<()> {
    connect_by(probe, Ring::new(true)?)
}

fn connect_by(probe: &mut Probe, mut ring: Ring) -> io::Result<()> {
    let socket = tcp_socket(probe.to())?;
    ring.connect(socket.as_fd(), &probe.to().into())?;
    probe.pause()?;
    let result = ring.send(socket.as_fd(), &probe.marker());
    probe.keep(socket);
    result
}

fn fast_open(probe: &mut Probe) -> io::Result<()> {
    let socket = tcp_socket(probe.to())?;
    let flags = libc::MSG_FASTOPEN as u32;
    let result = Ring::new(false)?.send_to(socket.as_fd(), &probe.marker(), flags, &probe.to().into());
    probe.keep(socket);
    result
}

fn sendmsg(probe: &mut Probe) -> io::Result<()> {
    sendmsg_by(probe, Ring::new(false)?)
}

fn sendmsg_polled(probe: &mut Probe) -> io::Result<()> {
    sendmsg_by(probe, Ring::new(true)?)
}

fn sendmsg_by(probe: &mut Probe, mut ring: Ring) -> io::Result<()> {
    let socket = udp_socket(probe.to())?;
    probe.pause()?;
    ring.send_to(socket.as_fd(), &probe.marker(), 0, &probe.to().into())
}

fn send(probe: &mut Probe) -> io::Result<()> {
    let socket = udp_socket(probe.to())?;
    socket.connect(&probe.to().into())?;
    probe.pause()?;
    let result = Ring::new(false)?.send(socket.as_fd(), &probe.marker());
    probe.keep(socket);
    result
}
