//! What a technique is: a way to get a byte to a protected port, what it needs, and what is to come of it.
//!
//! Owns: the declarations. Must not know: how a technique is run.

use std::io;

use libc::{AF_INET, AF_INET6, SOCK_DGRAM, SOCK_SEQPACKET, SOCK_STREAM};
use socket2::{Domain, Protocol, Socket, Type};

use crate::probe::Probe;

/// `IPPROTO_MPTCP`.
pub(crate) const MPTCP: i32 = 262;
/// `IPPROTO_SCTP`.
pub(crate) const SCTP: i32 = 132;
/// `IPPROTO_DCCP`, and its socket type.
pub(crate) const DCCP: i32 = 33;
/// `SOCK_DCCP`.
pub(crate) const SOCK_DCCP: i32 = 6;
/// `IPPROTO_UDPLITE`.
pub(crate) const UDPLITE: i32 = 136;
/// `AF_SMC`.
pub(crate) const AF_SMC: i32 = 43;

/// One way to try.
#[derive(Clone, Copy)]
pub(crate) struct Technique {
    pub(crate) name: &'static str,
    /// Done by the probe, in a process of its own.
    pub(crate) run: fn(&mut Probe) -> io::Result<()>,
    pub(crate) needs: Needs,
    /// What the kernel must know for it.
    pub(crate) feature: Feature,
    pub(crate) service: Service,
    pub(crate) place: Place,
    pub(crate) start: Start,
    /// Somebody else's socket that it uses.
    pub(crate) lender: Option<Lender>,
    pub(crate) stop: Stop,
    /// What stops it where that part of the LSM tier is there, whatever `stop` says.
    pub(crate) tier: Option<Tier>,
    pub(crate) granted: Granted,
    pub(crate) unprotected: Unprotected,
    /// Whether it is also tried with a socket kept past the end of its grant.
    pub(crate) kept: Kept,
}

/// The least privilege that it works with; it is run with no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Run as an account without any capability.
    Nothing,
    NetRaw,
    NetAdmin,
    Root,
}

impl Needs {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::NetRaw => "CAP_NET_RAW",
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::Root => "root",
        }
    }
}

/// Who stops it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// These hooks, or the kernel by itself; it must not get through.
    By(&'static str),
    /// It works on a socket that a subject with a grant opened and gave away, and so lives and ends with that grant. What
    /// comes of it is reported; after the end of the lender's grant nothing must arrive. It is also tried against a resource
    /// with the per-send check.
    Lent { why: &'static str, with_check: WithCheck },
    /// Nothing that is always there; why, and which optional part would. What comes of it is reported.
    Nothing(&'static str),
}

/// A part of the LSM tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tier {
    SocketCreate,
    FileReceive,
}

impl Tier {
    /// As the agent names it when it is missing.
    pub(crate) fn part(self) -> &'static str {
        match self {
            Self::SocketCreate => "packet sockets",
            Self::FileReceive => "handoff",
        }
    }

    pub(crate) fn hook(self) -> &'static str {
        match self {
            Self::SocketCreate => "LSM socket_create",
            Self::FileReceive => "LSM file_receive",
        }
    }

    /// Why a grant does not open it.
    pub(crate) fn why(self) -> &'static str {
        match self {
            Self::SocketCreate => "no such socket can be had, whoever wants it for whichever port",
            Self::FileReceive => "the connection is another subject's",
        }
    }
}

impl Technique {
    /// What comes of it to a port that nobody protects, with this part of the LSM tier there.
    pub(crate) fn unprotected_with(&self, tier: Option<Tier>) -> Unprotected {
        match (tier, self.service) {
            (Some(Tier::SocketCreate), _) => Unprotected::NotTried(Tier::SocketCreate.why()),
            (Some(Tier::FileReceive), Service::Mptcp) => Unprotected::NotTried(
                "an MPTCP socket stays with the subject that made it, wherever it leads",
            ),
            _ => self.unprotected,
        }
    }
}

/// What comes of it where each write is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WithCheck {
    /// It must not get through.
    Stopped,
    /// The check does not see it, and why; it is reported.
    NotSeen(&'static str),
}

/// What comes of it with a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Granted {
    Arrives,
    /// Refused all the same, and why that is right.
    Refused(&'static str),
    /// Either is right; it is reported.
    Either(&'static str),
}

/// What comes of it when nobody protects the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unprotected {
    Arrives,
    NotTried(&'static str),
}

/// How a socket is kept past the end of its grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    No,
    /// The grant is revoked.
    Revoked,
    /// The receiver reads nothing until the grant is revoked, so that most of what was sent is still queued then.
    Unread,
    /// The grant's deadline passes; nobody does anything.
    Expired,
}

/// What receives the marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    Tcp,
    Mptcp,
    Sctp,
    Dccp,
    Udp,
    UdpLite,
    Vsock,
    UnixAbstract,
    UnixPath,
    /// TCP, and it is the service that connects, from its own port, to `caller_port`.
    TcpCaller,
}

/// Where a service that connects by itself connects to.
pub(crate) fn caller_port(service_port: u16) -> u16 {
    service_port - 5000
}

impl Service {
    /// Domain, type and protocol of its socket; the domain for IP services depends on the address.
    pub(crate) fn socket(self) -> (Option<i32>, i32, i32) {
        match self {
            Self::Tcp | Self::TcpCaller => (None, SOCK_STREAM, 0),
            Self::Mptcp => (None, SOCK_STREAM, MPTCP),
            Self::Sctp => (None, SOCK_STREAM, SCTP),
            Self::Dccp => (None, SOCK_DCCP, DCCP),
            Self::Udp => (None, SOCK_DGRAM, 0),
            Self::UdpLite => (None, SOCK_DGRAM, UDPLITE),
            Self::Vsock => (Some(libc::AF_VSOCK), SOCK_STREAM, 0),
            Self::UnixAbstract | Self::UnixPath => (Some(libc::AF_UNIX), SOCK_STREAM, 0),
        }
    }
}

/// Where all of it stands: which network namespace, and which address the service has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// This machine's own; an address in 127.0.0.0/8 that nobody else uses.
    Host,
    /// The same, and ::1.
    Host6,
    /// A new network namespace, where everybody may use Fast Open without a cookie; IPv4 and IPv6 addresses of its own.
    Own,
    /// The same; the service has the IPv6 address.
    Own6,
    /// The same, on 127.0.0.1.
    OwnLoopback,
    /// The same, on ::1.
    OwnLoopback6,
    /// The same; the service listens on 0.0.0.0, and the resource is its port on any address.
    OwnAny,
    /// The same on ::.
    OwnAny6,
    /// The service is in a new network namespace, whoever tries in another; there is a cable between the two.
    Cable,
    /// There is a cable too, and whoever tries is with the service, which listens on ::.
    CableAny6,
    /// As `Own`, and the namespace is an end of a tunnel, as on hosts of a container network.
    OwnTunnel,
}

/// Who the probe is when the technique begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// In the sender's cgroup, with no more privilege than it needs.
    Sender,
    /// Root in the runner's cgroup: it moves by itself.
    Root,
}

/// Somebody who has a socket and gives it away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lender {
    pub(crate) from: From,
    pub(crate) socket: Lent,
}

/// Who lends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// A process of another subject, which has a grant.
    Granted,
    /// A process of nobody, started before there was a gate.
    BeforeTheGate,
}

/// What is lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lent {
    Tcp,
    TcpConnected,
    MptcpConnected,
    Udp,
    UdpConnected,
}

/// What a kernel may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Feature {
    None,
    Ipv6,
    Mptcp,
    MptcpFastOpen,
    Sctp,
    Dccp,
    UdpLite,
    Smc,
    Vsock,
    IoUring,
    IoUringPolled,
    Nftables,
    Veth,
    Tunnel,
    UserNamespaces,
    Tun,
    CloneIntoCgroup,
    SetRetval,
}

impl Feature {
    /// Why a technique that wants it cannot be tried on this kernel, decided by trying; None: it can.
    ///
    /// These are all the reasons there are.
    pub(crate) fn lacking(self) -> Option<&'static str> {
        let (present, reason) = match self {
            Self::None => return None,
            Self::Ipv6 => (has_socket(AF_INET6, SOCK_DGRAM, 0), "this kernel has no IPv6"),
            Self::Mptcp => (has_socket(AF_INET, SOCK_STREAM, MPTCP), "this kernel has no MPTCP"),
            Self::MptcpFastOpen => (has_mptcp_fast_open(), "this kernel has no Fast Open for MPTCP"),
            Self::Sctp => (has_socket(AF_INET, SOCK_SEQPACKET, SCTP), "this kernel has no SCTP"),
            Self::Dccp => (has_socket(AF_INET, SOCK_DCCP, DCCP), "this kernel has no DCCP"),
            Self::UdpLite => (has_socket(AF_INET, SOCK_DGRAM, UDPLITE), "this kernel has no UDP-Lite"),
            Self::Smc => (has_socket(AF_SMC, SOCK_STREAM, 0), "this kernel has no SMC"),
            Self::Vsock => (has_vsock_loopback(), "this kernel has no loopback for vsock"),
            Self::IoUring => (tests::raw::Ring::new(false).is_ok(), "this kernel lets nobody use io_uring"),
            Self::IoUringPolled => (
                tests::raw::Ring::new(true).is_ok() && kernel_at_least(5, 11),
                "this kernel lets only root have an io_uring with SQPOLL",
            ),
            Self::Nftables => (
                crate::place::alone(|| tests::netlink::redirect(1, 2)),
                "this kernel has no nftables redirect",
            ),
            Self::Veth => (crate::place::alone(crate::place::has_cable), "this kernel has no veth devices"),
            Self::Tunnel => {
                (crate::place::alone(crate::place::add_tunnel), "this kernel has no VXLAN devices")
            }
            Self::UserNamespaces => (has_user_namespaces(), "this kernel has no user namespaces"),
            Self::Tun => (crate::techniques::beneath::has_tun(), "this kernel has no tun devices"),
            Self::CloneIntoCgroup => (kernel_at_least(5, 7), "this kernel cannot clone into a cgroup"),
            Self::SetRetval => (kernel_at_least(5, 18), "this kernel's programs cannot change a verdict"),
        };
        (!present).then_some(reason)
    }
}

fn has_socket(domain: i32, kind: i32, protocol: i32) -> bool {
    Socket::new(Domain::from(domain), Type::from(kind), Some(Protocol::from(protocol))).is_ok()
}

fn has_mptcp_fast_open() -> bool {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::from(MPTCP)));
    // A port where nobody listens.
    let nowhere = std::net::SocketAddr::from(([127, 0, 0, 1], 1)).into();
    socket.is_ok_and(|socket| {
        let result = socket.send_to_with_flags(b"x", &nowhere, libc::MSG_FASTOPEN);
        !matches!(result, Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP))
    })
}

fn has_vsock_loopback() -> bool {
    let Ok(socket) = Socket::new(Domain::VSOCK, Type::STREAM, None) else { return false };
    let here = socket2::SockAddr::vsock(libc::VMADDR_CID_LOCAL, 1);
    let refused = [libc::ECONNRESET, libc::ECONNREFUSED];
    match socket.connect(&here) {
        Ok(()) => true,
        Err(error) => error.raw_os_error().is_some_and(|number| refused.contains(&number)),
    }
}

fn has_user_namespaces() -> bool {
    std::fs::read_to_string("/proc/sys/user/max_user_namespaces").is_ok_and(|count| count.trim() != "0")
}

fn kernel_at_least(major: u32, minor: u32) -> bool {
    let release = crate::table::kernel_release();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    found >= (major, minor)
}

const NOTHING: fn(&mut Probe) -> io::Result<()> = |_| Ok(());

/// What the declarations start from: a connection of an unprivileged process in the host's network namespace.
pub(crate) const TCP: Technique = Technique {
    name: "",
    run: NOTHING,
    needs: Needs::Nothing,
    feature: Feature::None,
    service: Service::Tcp,
    place: Place::Host,
    start: Start::Sender,
    lender: None,
    stop: Stop::By("connect"),
    tier: None,
    granted: Granted::Arrives,
    unprotected: Unprotected::Arrives,
    kept: Kept::Revoked,
};

/// The same by datagrams.
pub(crate) const UDP: Technique = Technique { service: Service::Udp, stop: Stop::By("sendmsg"), ..TCP };
