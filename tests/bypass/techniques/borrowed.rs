//! Sockets that were made somewhere else: before a move, before the gate, in a granted cgroup, by another process.

use std::io;
use std::os::fd::AsFd;

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use socket2::Socket;
use tests::raw;

use crate::probe::{Probe, connect, tcp_socket, udp_socket};
use crate::technique::{
    Feature, From, Granted, Kept, Lender, Lent, Needs, Service, Start, Stop, TCP, Technique, Tier, UDP,
    Unprotected, WithCheck,
};

use super::tcp::{send_by_splice, send_file, send_zerocopy};
use super::udp::UDP_CORK;

/// A socket opened by a granted process works wherever it is, until that grant ends.
const LENT: Stop = Stop::Lent {
    why: "a granted process gave it away; the per-send check, or LSM file_receive, stops the borrower",
    with_check: WithCheck::Stopped,
};
const LENT_MPTCP: Stop = Stop::Lent {
    why: "a granted process gave it away; LSM file_receive stops the borrower",
    with_check: WithCheck::NotSeen("the kernel itself writes on MPTCP's subflows"),
};
const MOVED: Stop = Stop::Lent {
    why: "opened with a grant, kept across a move; the per-send check stops it",
    with_check: WithCheck::Stopped,
};
const OTHERS: Granted = Granted::Refused("who made the socket is not who uses it");

const MOVES: Technique = Technique { start: Start::Root, kept: Kept::No, granted: OTHERS, ..TCP };
const MOVES_UDP: Technique = Technique { start: Start::Root, kept: Kept::No, granted: OTHERS, ..UDP };

const fn lent(socket: Lent) -> Option<Lender> {
    Some(Lender { from: From::Granted, socket })
}

const fn early(socket: Lent) -> Option<Lender> {
    Some(Lender { from: From::BeforeTheGate, socket })
}

const PASSED: Technique = Technique { lender: lent(Lent::Tcp), granted: OTHERS, kept: Kept::No, ..TCP };
const PASSED_CONNECTED: Technique =
    Technique { lender: lent(Lent::TcpConnected), stop: LENT, tier: Some(Tier::FileReceive), ..TCP };

const PASSED_UDP_CONNECTED: Technique =
    Technique { lender: lent(Lent::UdpConnected), service: Service::Udp, ..PASSED_CONNECTED };

pub(super) const TECHNIQUES: &[Technique] = &[
    Technique { name: "socket_made_before_moving_in", run: before_moving_in, ..MOVES },
    Technique { name: "udp_socket_made_before_moving_in", run: udp_before_moving_in, ..MOVES_UDP },
    Technique { name: "socket_made_in_a_granted_cgroup", run: from_granted, ..MOVES },
    Technique { name: "udp_socket_made_in_a_granted_cgroup", run: udp_from_granted, ..MOVES_UDP },
    Technique {
        name: "connection_kept_across_a_move",
        run: connected_from_granted,
        stop: MOVED,
        granted: Granted::Arrives,
        kept: Kept::Revoked,
        ..MOVES
    },
    Technique {
        name: "udp_connection_kept_across_a_move",
        run: udp_connected_from_granted,
        stop: MOVED,
        granted: Granted::Arrives,
        kept: Kept::Revoked,
        ..MOVES_UDP
    },
    Technique {
        name: "clone_into_cgroup_with_socket",
        run: cloned_with_socket,
        feature: Feature::CloneIntoCgroup,
        ..MOVES
    },
    Technique {
        name: "clone_into_a_granted_cgroup",
        run: clone_into_granted,
        feature: Feature::CloneIntoCgroup,
        stop: Stop::By("the kernel: the cgroup belongs to somebody else"),
        granted: Granted::Refused("its own grant does not make that cgroup its own"),
        unprotected: Unprotected::NotTried("nothing is sent: the clone is refused"),
        kept: Kept::No,
        ..TCP
    },
    Technique {
        name: "walk_into_a_granted_cgroup",
        run: walk_into_granted,
        stop: Stop::By("the kernel: the cgroup belongs to somebody else"),
        granted: Granted::Refused("its own grant does not make that cgroup its own"),
        unprotected: Unprotected::NotTried("nothing is sent: the move is refused"),
        kept: Kept::No,
        ..TCP
    },
    Technique {
        name: "walk_into_a_granted_cgroup_as_root",
        run: walk_into_granted_as_root,
        needs: Needs::Root,
        stop: Stop::Nothing("who may write a granted cgroup's cgroup.procs has its grant"),
        kept: Kept::No,
        ..TCP
    },
    Technique {
        name: "socket_made_before_the_gate",
        run: borrow_and_connect,
        lender: early(Lent::Tcp),
        ..PASSED
    },
    Technique {
        name: "udp_socket_made_before_the_gate",
        run: borrow_and_send_to,
        lender: early(Lent::Udp),
        service: Service::Udp,
        stop: Stop::By("sendmsg"),
        ..PASSED
    },
    Technique {
        name: "connection_made_before_the_gate",
        run: borrow_and_write,
        lender: early(Lent::TcpConnected),
        granted: Granted::Refused("nobody let that connection through"),
        stop: Stop::By("egress"),
        ..PASSED
    },
    Technique {
        name: "udp_connected_before_the_gate",
        run: borrow_and_write,
        lender: early(Lent::UdpConnected),
        granted: Granted::Refused("nobody let that connection through"),
        service: Service::Udp,
        stop: Stop::By("egress"),
        ..PASSED
    },
    Technique { name: "passed_socket", run: borrow_and_connect, ..PASSED },
    Technique {
        name: "passed_udp_socket",
        run: borrow_and_send_to,
        lender: lent(Lent::Udp),
        service: Service::Udp,
        stop: Stop::By("sendmsg"),
        ..PASSED
    },
    Technique { name: "stolen_socket", run: steal_and_connect, ..PASSED },
    Technique { name: "passed_connection", run: borrow_and_write, ..PASSED_CONNECTED },
    Technique { name: "passed_connection_sendfile", run: borrow_and_sendfile, ..PASSED_CONNECTED },
    Technique { name: "passed_connection_splice", run: borrow_and_splice, ..PASSED_CONNECTED },
    Technique { name: "passed_connection_zerocopy", run: borrow_and_zerocopy, ..PASSED_CONNECTED },
    Technique { name: "stolen_connection", run: steal_and_write, ..PASSED_CONNECTED },
    Technique { name: "passed_udp_connection", run: borrow_and_write, ..PASSED_UDP_CONNECTED },
    Technique { name: "stolen_udp_connection", run: steal_and_write, ..PASSED_UDP_CONNECTED },
    Technique { name: "passed_udp_connection_corked", run: borrow_and_cork, ..PASSED_UDP_CONNECTED },
    Technique {
        name: "passed_mptcp_connection",
        run: borrow_and_write,
        lender: lent(Lent::MptcpConnected),
        service: Service::Mptcp,
        feature: Feature::Mptcp,
        stop: LENT_MPTCP,
        ..PASSED_CONNECTED
    },
];

/// Goes to the sender's cgroup, as nobody.
fn settle(probe: &Probe) -> io::Result<()> {
    probe.enter(&probe.scene.cgroup)?;
    probe.drop_privileges()
}

fn before_moving_in(probe: &mut Probe) -> io::Result<()> {
    probe.enter(&probe.scene.nobodys_cgroup)?;
    let socket = tcp_socket(probe.to())?;
    settle(probe)?;
    probe.connect_and_send(socket, probe.to())
}

fn udp_before_moving_in(probe: &mut Probe) -> io::Result<()> {
    probe.enter(&probe.scene.nobodys_cgroup)?;
    let socket = udp_socket(probe.to())?;
    settle(probe)?;
    probe.send_to(socket, probe.to(), 0)
}

fn from_granted(probe: &mut Probe) -> io::Result<()> {
    probe.enter(&probe.scene.granted_cgroup)?;
    let socket = tcp_socket(probe.to())?;
    settle(probe)?;
    probe.connect_and_send(socket, probe.to())
}

fn udp_from_granted(probe: &mut Probe) -> io::Result<()> {
    probe.enter(&probe.scene.granted_cgroup)?;
    let socket = udp_socket(probe.to())?;
    settle(probe)?;
    probe.send_to(socket, probe.to(), 0)
}

fn connected_from_granted(probe: &mut Probe) -> io::Result<()> {
    probe.enter(&probe.scene.granted_cgroup)?;
    let socket = tcp_socket(probe.to())?;
    connect(&socket, &probe.to().into())?;
    settle(probe)?;
    probe.send(socket)
}

fn udp_connected_from_granted(probe: &mut Probe) -> io::Result<()> {
    probe.enter(&probe.scene.granted_cgroup)?;
    let socket = udp_socket(probe.to())?;
    connect(&socket, &probe.to().into())?;
    settle(probe)?;
    probe.send(socket)
}

/// A child starts in the sender's cgroup, with a socket that its parent made in a granted one.
fn cloned_with_socket(probe: &mut Probe) -> io::Result<()> {
    probe.enter(&probe.scene.granted_cgroup)?;
    let socket = tcp_socket(probe.to())?;
    let cgroup = std::fs::File::open(&probe.scene.cgroup)?;
    let (to, marker) = (probe.to(), probe.marker());
    raw::clone_into(cgroup.as_fd(), || {
        // What comes of it is seen at the receiver.
        let _ = probe
            .drop_privileges()
            .and_then(|()| connect(&socket, &to.into()))
            .and_then(|()| socket.send(&marker));
    })?;
    probe.keep(socket);
    Ok(())
}

fn clone_into_granted(probe: &mut Probe) -> io::Result<()> {
    let cgroup = std::fs::File::open(&probe.scene.granted_cgroup)?;
    let (to, marker) = (probe.to(), probe.marker());
    raw::clone_into(cgroup.as_fd(), || {
        let _ = tcp_socket(to).and_then(|socket| {
            connect(&socket, &to.into())?;
            socket.send(&marker)
        });
    })
}

fn walk_into_granted(probe: &mut Probe) -> io::Result<()> {
    probe.enter(&probe.scene.granted_cgroup)?;
    probe.connect_and_send(tcp_socket(probe.to())?, probe.to())
}

fn walk_into_granted_as_root(probe: &mut Probe) -> io::Result<()> {
    walk_into_granted(probe)
}

fn borrow_and_connect(probe: &mut Probe) -> io::Result<()> {
    let socket = Socket::from(probe.borrow()?);
    probe.connect_and_send(socket, probe.to())
}

fn borrow_and_send_to(probe: &mut Probe) -> io::Result<()> {
    let socket = Socket::from(probe.borrow()?);
    probe.send_to(socket, probe.to(), 0)
}

fn borrow_and_write(probe: &mut Probe) -> io::Result<()> {
    let socket = Socket::from(probe.borrow()?);
    probe.send(socket)
}

fn borrow_and(probe: &mut Probe, send: fn(&Socket, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let socket = Socket::from(probe.borrow()?);
    probe.pause()?;
    let result = send(&socket, &probe.marker());
    probe.keep(socket);
    result
}

fn borrow_and_sendfile(probe: &mut Probe) -> io::Result<()> {
    borrow_and(probe, send_file)
}

fn borrow_and_splice(probe: &mut Probe) -> io::Result<()> {
    borrow_and(probe, send_by_splice)
}

fn borrow_and_zerocopy(probe: &mut Probe) -> io::Result<()> {
    borrow_and(probe, send_zerocopy)
}

/// Holds the datagram back at first.
fn borrow_and_cork(probe: &mut Probe) -> io::Result<()> {
    borrow_and(probe, |socket, marker| {
        let cork = |on: i32| raw::set_option(socket.as_fd(), libc::IPPROTO_UDP, UDP_CORK, &on.to_ne_bytes());
        cork(1)?;
        socket.send(marker)?;
        cork(0)
    })
}

/// Takes the lender's socket without its help, as a debugger could.
fn steal(probe: &Probe) -> io::Result<Socket> {
    let (pid, number) = probe.lender()?;
    let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other("the lender's process id is 0"))?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    Ok(Socket::from(pidfd_getfd(process, number, PidfdGetfdFlags::empty())?))
}

fn steal_and_connect(probe: &mut Probe) -> io::Result<()> {
    let socket = steal(probe)?;
    probe.connect_and_send(socket, probe.to())
}

fn steal_and_write(probe: &mut Probe) -> io::Result<()> {
    let socket = steal(probe)?;
    probe.send(socket)
}
