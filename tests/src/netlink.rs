//! Network devices, addresses, subflows and one kind of nftables rule, asked of the kernel without `ip` and `nft`.
//!
//! Owns: the messages. Must not know: what they are for. Everything concerns the network namespace of the calling thread,
//! which has to be one that the caller made.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{
    AF_UNSPEC, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NLMSG_ERROR, RTM_NEWADDR, RTM_NEWLINK,
};
use socket2::{Domain, Protocol, Socket, Type};

/// The index of `lo` in every network namespace.
pub const LOOPBACK: i32 = 1;

/// `NETLINK_ROUTE`.
const ROUTE: i32 = 0;
/// `NETLINK_NETFILTER`.
const NETFILTER: i32 = 12;

/// `NETLINK_GENERIC`.
const GENERIC: i32 = 16;

// Attributes of a device.
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;

/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;

/// A message, or the inside of an attribute.
#[derive(Clone, Default)]
struct Body(Vec<u8>);

impl Body {
    fn of(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// Adds an attribute. Everything stands on multiples of 4.
    fn with(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend((value.len() as u16 + 4).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn with_text(self, kind: u16, text: &str) -> Self {
        self.with(kind, &[text.as_bytes(), &[0]].concat())
    }

    fn with_nested(self, kind: u16, inner: Self) -> Self {
        self.with(kind | NESTED, &inner.0)
    }

    fn message(&self, kind: u16, flags: i32, sequence: u32) -> Vec<u8> {
        let mut message = Vec::new();
        message.extend((self.0.len() as u32 + 16).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(((flags | NLM_F_REQUEST) as u16).to_ne_bytes());
        message.extend(sequence.to_ne_bytes());
        message.extend(0u32.to_ne_bytes());
        message.extend(&self.0);
        message
    }
}

/// Sends messages of which `acknowledged` ask for an answer, and fails with the first that the kernel refuses. Gives what
/// came besides, header and all.
fn ask(family: i32, messages: &[u8], acknowledged: usize) -> io::Result<Vec<Vec<u8>>> {
    let mut socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(family)))?;
    socket.set_read_timeout(Some(std::time::Duration::from_secs(5)))?;
    socket.send(messages)?;
    let mut buffer = [0; 8192];
    let mut answered = 0;
    let mut replies = Vec::new();
    while answered < acknowledged {
        let length = socket.read(&mut buffer)?;
        let mut rest = &buffer[..length];
        while let Some((header, body)) = rest.split_first_chunk::<16>() {
            let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
            let kind = u16::from_ne_bytes([header[4], header[5]]);
            if i32::from(kind) == NLMSG_ERROR {
                answered += 1;
                let number = body.first_chunk::<4>().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                if number != 0 {
                    return Err(io::Error::from_raw_os_error(-number));
                }
            } else {
                replies.push(rest[..length.min(rest.len())].to_vec());
            }
            rest = rest.get(length.max(16).next_multiple_of(4)..).unwrap_or_default();
        }
    }
    Ok(replies)
}

/// `struct ifinfomsg`.
fn link(index: i32, up: bool) -> Body {
    let flags = if up { libc::IFF_UP as u32 } else { 0 };
    let mut body = Body::of(&[AF_UNSPEC as u8, 0, 0, 0]);
    body.0.extend(index.to_ne_bytes());
    body.0.extend(flags.to_ne_bytes());
    body.0.extend((libc::IFF_UP as u32).to_ne_bytes());
    body
}

/// Sets a device up, with this many bytes in a packet if not 0.
pub fn set_up(index: i32, mtu: u32) -> io::Result<()> {
    const IFLA_MTU: u16 = 4;
    let mut body = link(index, true);
    if mtu != 0 {
        body = body.with(IFLA_MTU, &mtu.to_ne_bytes());
    }
    ask(ROUTE, &body.message(RTM_NEWLINK, NLM_F_ACK, 1), 1).map(drop)
}

/// Gives a device an address.
pub fn add_address(index: i32, address: IpAddr, prefix_length: u8) -> io::Result<()> {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    /// Usable at once: nobody else can have it.
    const IFA_F_NODAD: u8 = 2;
    let (family, bytes) = match address {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    };
    let mut body = Body::of(&[family as u8, prefix_length, IFA_F_NODAD, 0]);
    body.0.extend(index.to_ne_bytes());
    let body = body.with(IFA_LOCAL, &bytes).with(IFA_ADDRESS, &bytes);
    ask(ROUTE, &body.message(RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE, 1), 1).map(drop)
}

/// A pair of devices, as a cable: one end here, the other in that network namespace.
pub fn add_cable(here: i32, there: i32, namespace: BorrowedFd<'_>) -> io::Result<()> {
    const IFLA_NET_NS_FD: u16 = 28;
    const VETH_INFO_PEER: u16 = 1;
    let peer = link(there, false)
        .with_text(IFLA_IFNAME, "there")
        .with(IFLA_NET_NS_FD, &(namespace.as_raw_fd() as u32).to_ne_bytes());
    let kind = Body::default()
        .with_text(IFLA_INFO_KIND, "veth")
        .with_nested(IFLA_INFO_DATA, Body::default().with_nested(VETH_INFO_PEER, peer));
    let body = link(here, false).with_text(IFLA_IFNAME, "here").with_nested(IFLA_LINKINFO, kind);
    ask(ROUTE, &body.message(RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, 1), 1).map(drop)
}

/// The end of a VXLAN tunnel: what comes to the UDP port for this network comes out of the device.
pub fn add_tunnel(index: i32, network: u32, port: u16) -> io::Result<()> {
    const IFLA_VXLAN_ID: u16 = 1;
    const IFLA_VXLAN_PORT: u16 = 15;
    let data = Body::default()
        .with(IFLA_VXLAN_ID, &network.to_ne_bytes())
        .with(IFLA_VXLAN_PORT, &port.to_be_bytes());
    let kind = Body::default().with_text(IFLA_INFO_KIND, "vxlan").with_nested(IFLA_INFO_DATA, data);
    let body = link(index, false).with_text(IFLA_IFNAME, "tunnel").with_nested(IFLA_LINKINFO, kind);
    ask(ROUTE, &body.message(RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, 1), 1).map(drop)
}

/// What MPTCP connections do besides their first subflow.
pub struct Subflows {
    family: u16,
}

impl Subflows {
    /// From now on: nothing, and two may be added.
    pub fn new() -> io::Result<Self> {
        const FLUSH: u8 = 4;
        const SET_LIMITS: u8 = 5;
        const ATTR_SUBFLOWS: u16 = 3;
        let this = Self { family: generic_family("mptcp_pm")? };
        this.ask(FLUSH, Body::default())?;
        this.ask(SET_LIMITS, Body::default().with(ATTR_SUBFLOWS, &2u32.to_ne_bytes()))?;
        Ok(this)
    }

    /// Has every connection open another subflow from this address.
    pub fn add(&self, from: Ipv4Addr) -> io::Result<()> {
        const ADD: u8 = 1;
        const ATTR_FLAGS: u16 = 6;
        const FLAG_SUBFLOW: u32 = 2;
        self.ask(
            ADD,
            Body::default().with_nested(1, endpoint(from, 2).with(ATTR_FLAGS, &FLAG_SUBFLOW.to_ne_bytes())),
        )
    }

    /// Has every connection close its first subflow, if that is from this address.
    pub fn remove_first(&self, from: Ipv4Addr) -> io::Result<()> {
        const REMOVE: u8 = 2;
        self.ask(REMOVE, Body::default().with_nested(1, endpoint(from, 0)))
    }

    fn ask(&self, command: u8, attributes: Body) -> io::Result<()> {
        let body = Body([vec![command, 1, 0, 0], attributes.0].concat());
        ask(GENERIC, &body.message(self.family, NLM_F_ACK, 1), 1).map(drop)
    }
}

fn endpoint(address: Ipv4Addr, id: u8) -> Body {
    Body::default().with(1, &(libc::AF_INET as u16).to_ne_bytes()).with(2, &[id]).with(3, &address.octets())
}

/// The number that a family of generic netlink has in this kernel.
fn generic_family(name: &str) -> io::Result<u16> {
    const CONTROLLER: u16 = 0x10;
    const GETFAMILY: u8 = 3;
    const FAMILY_ID: u16 = 1;
    const FAMILY_NAME: u16 = 2;
    let body = Body::of(&[GETFAMILY, 1, 0, 0]).with_text(FAMILY_NAME, name);
    let replies = ask(GENERIC, &body.message(CONTROLLER, NLM_F_ACK, 1), 1)?;
    let attributes = replies.first().and_then(|reply| reply.get(20..)).unwrap_or_default();
    let mut rest = attributes;
    while let Some((header, value)) = rest.split_first_chunk::<4>() {
        let (length, kind) =
            (u16::from_ne_bytes([header[0], header[1]]), u16::from_ne_bytes([header[2], header[3]]));
        match value {
            [low, high, ..] if kind == FAMILY_ID => return Ok(u16::from_ne_bytes([*low, *high])),
            _ => rest = rest.get(usize::from(length.max(4)).next_multiple_of(4)..).unwrap_or_default(),
        }
    }
    Err(io::Error::other(format!("this kernel has no generic netlink family {name}")))
}

/// An nftables rule: what this network namespace sends by TCP or UDP to IPv4 port `from` goes to port `to` of this machine.
pub fn redirect(from: u16, to: u16) -> io::Result<()> {
    /// `NF_INET_LOCAL_OUT`.
    const LOCAL_OUT: u32 = 3;
    translate(LOCAL_OUT, from, None, to)
}

/// The same of what this network namespace passes on, and to another address besides, as the hosts of a cluster do for its
/// services.
pub fn forward(from: u16, address: Ipv4Addr, to: u16) -> io::Result<()> {
    /// `NF_INET_PRE_ROUTING`.
    const PRE_ROUTING: u32 = 0;
    translate(PRE_ROUTING, from, Some(address), to)
}

fn translate(hook: u32, from: u16, address: Option<Ipv4Addr>, to: u16) -> io::Result<()> {
    const BATCH_BEGIN: u16 = 0x10;
    const BATCH_END: u16 = 0x11;
    const SUBSYSTEM: u16 = 10 << 8;
    const NEWTABLE: u16 = SUBSYSTEM;
    const DELTABLE: u16 = SUBSYSTEM | 2;
    const NEWCHAIN: u16 = SUBSYSTEM | 3;
    const NEWRULE: u16 = SUBSYSTEM | 6;
    const TABLE: &str = "bypass";
    const CHAIN: &str = "translate";
    /// Where destinations are rewritten.
    const PRIORITY: i32 = -100;
    const ACCEPT: u32 = 1;
    const REGISTER: u32 = 1;
    const ADDRESS_REGISTER: u32 = 2;
    /// `NFT_NAT_DNAT`.
    const DESTINATION: u32 = 1;

    let family = |resource: u16| Body::of(&[libc::AF_INET as u8, 0, (resource >> 8) as u8, resource as u8]);
    let number = |value: u32| value.to_be_bytes();
    let expression = |name: &str, data: Body| {
        const LIST_ELEM: u16 = 1;
        let inner = Body::default().with_text(1, name).with_nested(2, data);
        move |list: Body| list.with_nested(LIST_ELEM, inner.clone())
    };
    let value = |bytes: &[u8]| Body::default().with(1, bytes);
    // Transport header, bytes 2 and 3: the destination port of TCP and UDP both.
    let load = Body::default()
        .with(1, &number(REGISTER))
        .with(2, &number(2))
        .with(3, &number(2))
        .with(4, &number(2));
    let compare = Body::default()
        .with(1, &number(REGISTER))
        .with(2, &number(0))
        .with_nested(3, value(&from.to_be_bytes()));
    let immediate =
        |register: u32, bytes: &[u8]| Body::default().with(1, &number(register)).with_nested(2, value(bytes));
    let redirect = Body::default().with(1, &number(REGISTER)).with(2, &number(REGISTER));
    let mut expressions = Body::default();
    expressions = expression("payload", load)(expressions);
    expressions = expression("cmp", compare)(expressions);
    expressions = expression("immediate", immediate(REGISTER, &to.to_be_bytes()))(expressions);
    expressions = match address {
        None => expression("redir", redirect)(expressions),
        Some(address) => {
            let nat = Body::default()
                .with(1, &number(DESTINATION))
                .with(2, &number(libc::AF_INET as u32))
                .with(3, &number(ADDRESS_REGISTER))
                .with(5, &number(REGISTER));
            let immediate = immediate(ADDRESS_REGISTER, &address.octets());
            expression("nat", nat)(expression("immediate", immediate)(expressions))
        }
    };

    let create = NLM_F_ACK | NLM_F_CREATE;
    let table = family(0).with_text(1, TABLE);
    let hook = Body::default().with(1, &number(hook)).with(2, &PRIORITY.to_be_bytes());
    let chain = family(0)
        .with_text(1, TABLE)
        .with_text(3, CHAIN)
        .with_nested(4, hook)
        .with(5, &number(ACCEPT))
        .with_text(7, "nat");
    let rule = family(0).with_text(1, TABLE).with_text(2, CHAIN).with_nested(4, expressions);
    let batch = [
        family(10).message(BATCH_BEGIN, 0, 1),
        // So that there is one to be taken away: of rules there, the first would count.
        table.message(NEWTABLE, create, 2),
        table.message(DELTABLE, NLM_F_ACK, 3),
        table.message(NEWTABLE, create, 4),
        chain.message(NEWCHAIN, create, 5),
        rule.message(NEWRULE, create | libc::NLM_F_APPEND, 6),
        family(10).message(BATCH_END, 0, 7),
    ];
    ask(NETFILTER, &batch.concat(), 5).map(drop)
}
