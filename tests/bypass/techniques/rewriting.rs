//! The destination changes after `connect` has looked at it: by NAT, by another program, by a socket put together by hand.

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use socket2::Socket;
use tests::{netlink, raw};

use crate::probe::{Probe, disconnect, tcp_socket, udp_socket};
use crate::technique::{
    Feature, From, Granted, Kept, Lender, Lent, Needs, Place, Service, Stop, TCP, Technique,
};

const SAW_ANOTHER: Granted = Granted::Refused("the socket was judged by another port than the packet has");

const NAT: Technique = Technique {
    needs: Needs::NetAdmin,
    feature: Feature::Nftables,
    place: Place::OwnLoopback,
    stop: Stop::By("egress"),
    granted: SAW_ANOTHER,
    kept: Kept::No,
    ..TCP
};
const PROGRAM: Technique = Technique { needs: Needs::Root, kept: Kept::No, ..TCP };

pub(super) const TECHNIQUES: &[Technique] = &[
    Technique { name: "redirected_tcp", run: redirected_tcp, ..NAT },
    Technique { name: "redirected_tcp_of_an_accepted_socket", run: redirected_accepted, ..NAT },
    Technique { name: "redirected_udp", run: redirected_udp, service: Service::Udp, ..NAT },
    Technique {
        name: "redirected_udp_connected",
        run: redirected_udp_connected,
        service: Service::Udp,
        ..NAT
    },
    Technique { name: "connect_program_in_a_child_cgroup", run: rewritten_before, ..PROGRAM },
    Technique {
        name: "connect_program_behind_ours",
        run: rewritten_behind,
        stop: Stop::By("egress"),
        granted: SAW_ANOTHER,
        ..PROGRAM
    },
    Technique {
        name: "connect_program_that_forgives",
        run: forgiven,
        feature: Feature::SetRetval,
        stop: Stop::By("egress"),
        ..PROGRAM
    },
    Technique {
        name: "tcp_repair",
        run: repaired,
        needs: Needs::NetAdmin,
        lender: Some(Lender { from: From::Granted, socket: Lent::TcpConnected }),
        ..TCP
    },
];

/// To a port that nobody protects; what leaves has the other one.
fn redirect(probe: &Probe) -> io::Result<SocketAddr> {
    netlink::redirect(probe.scene.decoy.port(), probe.to().port())?;
    Ok(probe.scene.decoy)
}

fn redirected_tcp(probe: &mut Probe) -> io::Result<()> {
    let to = redirect(probe)?;
    probe.connect_and_send(tcp_socket(to)?, to)
}

/// As above, by a socket that once was the passive side of a connection.
fn redirected_accepted(probe: &mut Probe) -> io::Result<()> {
    let to = redirect(probe)?;
    let socket = super::tcp::accepted_and_disconnected(to)?;
    probe.connect_and_send(socket, to)
}

fn redirected_udp(probe: &mut Probe) -> io::Result<()> {
    let to = redirect(probe)?;
    probe.send_to(udp_socket(to)?, to, 0)
}

fn redirected_udp_connected(probe: &mut Probe) -> io::Result<()> {
    let to = redirect(probe)?;
    let socket = udp_socket(to)?;
    socket.connect(&to.into())?;
    probe.send(socket)
}

// The programs are a dozen instructions, put together by hand: no compiler has to be there, and every kernel takes them.

const fn instruction(opcode: u8, destination: u8, source: u8, offset: u16, immediate: u32) -> u64 {
    opcode as u64
        | (destination as u64) << 8
        | (source as u64) << 12
        | (offset as u64) << 16
        | (immediate as u64) << 32
}

/// `rD = *(u32 *)(r1 + OFFSET)`.
const fn load(register: u8, offset: u16) -> u64 {
    instruction(0x61, register, CONTEXT, offset, 0)
}

/// `rD = VALUE`, 64 bits wide, so that nothing is extended by its sign.
const fn set(register: u8, value: u32) -> [u64; 2] {
    [instruction(0x18, register, 0, 0, value), 0]
}

/// `if r2 != r3 goto +OFFSET`.
const fn unless_equal(offset: u16) -> u64 {
    instruction(0x5d, 2, 3, offset, 0)
}

/// Where the context lies after the first instruction.
const CONTEXT: u8 = 6;
/// Offsets within `struct bpf_sock_addr`.
const USER_IP4: u16 = 4;
const USER_PORT: u16 = 24;
/// `r6 = r1`, `r0 = 1`, `exit`.
const KEEP_CONTEXT: u64 = instruction(0xbf, CONTEXT, 1, 0, 0);
const GO_ON: [u64; 2] = [instruction(0xb7, 0, 0, 0, 1), instruction(0x95, 0, 0, 0, 0)];

/// `connect4` to this address: `then`; to any other: nothing.
fn program_for(to: SocketAddr, then: &[u64]) -> io::Result<OwnedFd> {
    let IpAddr::V4(address) = to.ip() else { return Err(io::Error::other("not IPv4")) };
    let mut code = vec![KEEP_CONTEXT, load(2, USER_IP4)];
    code.extend(set(3, u32::from_ne_bytes(address.octets())));
    // Past the port's load, its constant, the comparison, and what comes then.
    code.push(unless_equal(4 + then.len() as u16));
    code.push(load(2, USER_PORT));
    code.extend(set(3, to.port().to_be().into()));
    code.push(unless_equal(then.len() as u16));
    code.extend(then);
    code.extend(GO_ON);
    load_program(&code)
}

/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR` for `BPF_CGROUP_INET4_CONNECT`.
const SOCK_ADDR: u64 = 18;
const CONNECT4: u64 = 10;

fn load_program(code: &[u64]) -> io::Result<OwnedFd> {
    const PROG_LOAD: i32 = 5;
    let license = c"GPL";
    let mut attributes = [
        SOCK_ADDR | (code.len() as u64) << 32,
        code.as_ptr() as u64,
        license.as_ptr() as u64,
        0,
        0,
        0,
        0,
        0,
        CONNECT4 << 32,
    ];
    raw::bpf(PROG_LOAD, &mut attributes)
}

/// Gone as soon as the descriptor is closed.
fn attach(program: &OwnedFd, cgroup: &File) -> io::Result<OwnedFd> {
    const LINK_CREATE: i32 = 28;
    let (program, cgroup) = (program.as_raw_fd() as u64, cgroup.as_raw_fd() as u64);
    raw::bpf(LINK_CREATE, &mut [program | cgroup << 32, CONNECT4])
}

/// `*(u32 *)(r6 + USER_PORT) = PORT`.
fn rewrite_port(port: u16) -> Vec<u64> {
    let mut code = set(2, port.to_be().into()).to_vec();
    code.push(instruction(0x63, CONTEXT, 2, USER_PORT, 0));
    code
}

fn root_cgroup() -> io::Result<File> {
    File::open(agent::observe::cgroup_root().map_err(io::Error::other)?)
}

fn rewritten(probe: &mut Probe, cgroup: &File) -> io::Result<()> {
    let decoy = probe.scene.decoy;
    let program = program_for(decoy, &rewrite_port(probe.to().port()))?;
    let link = attach(&program, cgroup)?;
    let result = probe.connect_and_send(tcp_socket(decoy)?, decoy);
    drop(link);
    result
}

/// A program of a child runs before those of its parents.
fn rewritten_before(probe: &mut Probe) -> io::Result<()> {
    let cgroup = File::open(&probe.scene.cgroup)?;
    rewritten(probe, &cgroup)
}

/// On one cgroup, programs run in the order in which they came.
fn rewritten_behind(probe: &mut Probe) -> io::Result<()> {
    let cgroup = root_cgroup()?;
    rewritten(probe, &cgroup)
}

/// Makes a refusal undone: `bpf_set_retval(0)`.
fn forgiven(probe: &mut Probe) -> io::Result<()> {
    const SET_RETVAL: u32 = 187;
    let then = [instruction(0xb7, 1, 0, 0, 0), instruction(0x85, 0, 0, 0, SET_RETVAL)];
    let program = program_for(probe.to(), &then)?;
    let link = attach(&program, &root_cgroup()?)?;
    let result = probe.connect_and_send(tcp_socket(probe.to())?, probe.to());
    drop(link);
    result
}

const TCP_REPAIR: i32 = 19;
const TCP_REPAIR_QUEUE: i32 = 20;
const TCP_QUEUE_SEQ: i32 = 21;
/// The queues.
const RECEIVED: i32 = 1;
const SENT: i32 = 2;

/// The lender's connection comes to an end without a word to its peer, and is put together again as another socket.
fn repaired(probe: &mut Probe) -> io::Result<()> {
    let set = |socket: &Socket, name: i32, value: i32| {
        raw::set_option(socket.as_fd(), libc::IPPROTO_TCP, name, &value.to_ne_bytes())
    };
    let old = Socket::from(probe.borrow()?);
    let (from, to) = (old.local_addr()?, old.peer_addr()?);
    set(&old, TCP_REPAIR, 1)?;
    let mut numbers = Vec::new();
    for queue in [SENT, RECEIVED] {
        set(&old, TCP_REPAIR_QUEUE, queue)?;
        numbers.push((queue, raw::option(old.as_fd(), libc::IPPROTO_TCP, TCP_QUEUE_SEQ)?));
    }
    disconnect(old.as_fd())?;

    let socket = tcp_socket(probe.to())?;
    set(&socket, TCP_REPAIR, 1)?;
    socket.set_reuse_address(true)?;
    socket.bind(&from)?;
    for (queue, number) in numbers {
        set(&socket, TCP_REPAIR_QUEUE, queue)?;
        set(&socket, TCP_QUEUE_SEQ, number)?;
    }
    socket.connect(&to)?;
    set(&socket, TCP_REPAIR, 0)?;
    probe.send(socket)
}
