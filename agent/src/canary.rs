//! Proof that the gate denies what it must, lets through what it must, and says so: a process in a cgroup of its own tries.
//!
//! Owns: the canary's destination, what is tried, and what each outcome means. Must not know: who asks for the proof.
//!
//! Nothing leaves the host: the address is the last but one of 127.0.0.0/8, where the canary itself listens; the IPv6 one is
//! of the discard prefix (RFC 6666), and leads nowhere. The port is one that the kernel gives it, so that several gates on
//! one machine do not judge each other's canaries.

mod child;
mod keeper;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent_ebpf::abi::{Hook, VerdictRecord};
use agent_ebpf::verdict::{Reason, Verdict};
use nix::errno::Errno;
use proto::types::{NewResource, PortRange, Protocol, Resource};

use crate::status::Flaw;

pub use child::{serve, try_shut};
pub use keeper::{Ask, CGROUP, Told, keep, remove_cgroup};

/// The canary's number as a resource and as a subject. The control plane counts from 1 and never gets here; a set that does
/// is left aside.
pub const NUMBER: u32 = u32::MAX;

/// The port of a canary that only tries what must be denied, and so need not listen: that of the discard protocol (RFC 863).
pub const SILENT_PORT: u16 = 9;

const ADDRESS4: Ipv4Addr = Ipv4Addr::new(127, 255, 255, 254);
const ADDRESS6: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0x9);

/// The canary's address, as maps hold it.
pub fn mapped_address() -> [u8; 16] {
    ADDRESS4.to_ipv6_mapped().octets()
}

/// What is protected so that the attempts are denied.
pub fn resource(port: u16) -> Resource {
    let new = NUMBER.try_into().and_then(|number| Ok((number, "portcullis-canary".parse()?))).and_then(
        |(number, name)| {
            let range = |protocol| PortRange::new(protocol, port.max(1).into(), port.max(1).into());
            let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::UdpLite];
            let ports = protocols.into_iter().map(range).collect::<Result<_, _>>()?;
            let addresses = vec![IpAddr::from(ADDRESS4).into(), IpAddr::from(ADDRESS6).into()];
            Ok(Resource::numbered(number, NewResource::new(name, addresses, ports)?))
        },
    );
    new.expect("the canary's constants are valid, as its test shows")
}

/// What is tried without a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// A TCP connection, IPv4.
    Tcp4,
    /// The same, IPv6.
    Tcp6,
    /// The same, to the mapped IPv4 address.
    TcpMapped,
    /// An unconnected datagram, IPv4.
    Udp4,
    /// The same, IPv6.
    Udp6,
    /// A connected UDP socket, IPv4.
    UdpConnect,
    /// A packet of a socket that no other hook has seen: UDP-Lite is connected without one.
    Wire,
    /// A TCP connection to a port of the same address that nobody protects.
    Free,
}

impl Attempt {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Tcp4,
        Self::Tcp6,
        Self::TcpMapped,
        Self::Udp4,
        Self::Udp6,
        Self::UdpConnect,
        Self::Wire,
        Self::Free,
    ];

    /// As reports name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp4 => "tcp4",
            Self::Tcp6 => "tcp6",
            Self::TcpMapped => "tcp-mapped",
            Self::Udp4 => "udp4",
            Self::Udp6 => "udp6",
            Self::UdpConnect => "udp-connect",
            Self::Wire => "wire",
            Self::Free => "free",
        }
    }

    /// The program that must deny it. None: nobody may.
    pub fn hook(self) -> Option<Hook> {
        match self {
            Self::Tcp4 | Self::UdpConnect => Some(Hook::Connect4),
            Self::Tcp6 | Self::TcpMapped => Some(Hook::Connect6),
            Self::Udp4 => Some(Hook::Sendmsg4),
            Self::Udp6 => Some(Hook::Sendmsg6),
            Self::Wire => Some(Hook::Egress),
            Self::Free => None,
        }
    }
}

/// An attempt that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Try {
    /// Which.
    pub attempt: Attempt,
    /// Of its socket; 0: there was none.
    pub cookie: u64,
    /// The error; 0: it got through.
    pub errno: i32,
}

/// What became of a connection under a grant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passage {
    /// Of its socket.
    pub cookie: u64,
    /// Why it was not made; 0: it was.
    pub errno: i32,
    /// When the last byte arrived, on the boot clock; 0: none did.
    pub last_arrival_boot_ns: u64,
    /// Both ends were told that it is over; of UDP, which has one: it cannot send any more.
    pub closed: bool,
    /// A packet of it was refused.
    pub refused: bool,
}

/// Both connections under one grant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passages {
    /// TCP.
    pub tcp: Passage,
    /// Connected UDP.
    pub udp: Passage,
}

/// How long after the end of a grant something may still arrive: what is promised.
const CUT_WITHIN_NS: u64 = 1_000_000_000;

/// What is wrong with attempts without a grant, by their outcomes and the records that they left.
pub fn judge_tries(tries: &[Try], records: &[VerdictRecord]) -> Vec<Flaw> {
    tries.iter().filter_map(|tried| judge_try(tried, records)).collect()
}

fn judge_try(tried: &Try, records: &[VerdictRecord]) -> Option<Flaw> {
    let (name, errno) = (tried.attempt.as_str(), Errno::from_raw(tried.errno));
    let Some(hook) = tried.attempt.hook() else {
        return (tried.errno != 0).then(|| {
            Flaw::lesser(format!("the canary cannot reach a port that nobody protects: {errno:?}"))
        });
    };
    match errno {
        // No such protocol, no IPv6, no address of it to bind to: nobody on this host can try.
        Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL | Errno::EPROTONOSUPPORT | Errno::ESOCKTNOSUPPORT => {
            return None;
        }
        Errno::EPERM => {}
        _ => return Some(Flaw::grave(format!("{} lets the canary through ({name})", hook.as_str()))),
    }
    let of_socket =
        |record: &&VerdictRecord| record.socket_cookie == tried.cookie && record.resource == NUMBER;
    let denials: Vec<&VerdictRecord> =
        records.iter().filter(of_socket).filter(|record| record.verdict == Verdict::Deny as u8).collect();
    if denials.iter().any(|record| record.hook == hook as u8) {
        return None;
    }
    Some(match denials.first().and_then(|record| Hook::from_code(record.hook)) {
        // The last line held; the first one did not.
        Some(other) => Flaw::grave(format!(
            "{} lets the canary through ({name}), and only {} stops it",
            hook.as_str(),
            other.as_str()
        )),
        None => Flaw::lesser(format!("{} left no record of a denial ({name})", hook.as_str())),
    })
}

/// The same of connections under a grant that ended at `deadline_boot_ns`.
pub fn judge_passages(passages: &Passages, deadline_boot_ns: u64, records: &[VerdictRecord]) -> Vec<Flaw> {
    let one = |(name, passage): (&str, &Passage)| judge_passage(name, passage, deadline_boot_ns, records);
    [("tcp", &passages.tcp), ("udp", &passages.udp)].into_iter().flat_map(one).collect()
}

fn judge_passage(
    name: &str,
    passage: &Passage,
    deadline_boot_ns: u64,
    records: &[VerdictRecord],
) -> Vec<Flaw> {
    let mut flaws = Vec::new();
    let of_socket: Vec<&VerdictRecord> =
        records.iter().filter(|record| record.socket_cookie == passage.cookie).collect();
    if passage.errno != 0 {
        let mut denials = of_socket.iter().filter(|record| record.verdict == Verdict::Deny as u8);
        let why = denials.find_map(|record| Reason::from_code(record.reason)).map(Reason::as_str);
        let why = why.map_or_else(|| format!("{:?}", Errno::from_raw(passage.errno)), ToOwned::to_owned);
        return vec![Flaw::lesser(format!("the canary's grant lets nobody through ({name}): {why}"))];
    }
    if passage.last_arrival_boot_ns == 0 {
        flaws.push(Flaw::lesser(format!("nothing arrives under the canary's grant ({name})")));
    }
    if passage.last_arrival_boot_ns > deadline_boot_ns.saturating_add(CUT_WITHIN_NS) {
        let late_ms = (passage.last_arrival_boot_ns - deadline_boot_ns) / 1_000_000;
        let text = format!("a connection outlives its grant: data arrived {late_ms} ms later ({name})");
        flaws.push(Flaw::grave(text));
    }
    if !passage.closed {
        flaws.push(Flaw::lesser(format!("a connection is not closed at the end of its grant ({name})")));
    }
    let has = |verdict: Verdict| of_socket.iter().any(|record| record.verdict == verdict as u8);
    if !has(Verdict::Allow) {
        flaws.push(Flaw::lesser(format!("an allowed connection left no record ({name})")));
    }
    if passage.refused && !has(Verdict::Deny) {
        flaws.push(Flaw::lesser(format!("egress left no record of a denial ({name})")));
    }
    flaws
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(cookie: u64, hook: Hook, verdict: Verdict) -> VerdictRecord {
        VerdictRecord {
            socket_cookie: cookie,
            resource: NUMBER,
            hook: hook as u8,
            verdict: verdict as u8,
            ..VerdictRecord::EMPTY
        }
    }

    fn tried(attempt: Attempt, errno: Errno) -> Try {
        Try { attempt, cookie: 7, errno: errno as i32 }
    }

    #[track_caller]
    fn check(tried: Try, records: &[VerdictRecord], flaw: Option<(bool, &str)>) {
        let found = judge_tries(&[tried], records);
        let found: Vec<(bool, &str)> = found.iter().map(|flaw| (flaw.is_grave, flaw.text.as_str())).collect();
        assert_eq!(found, Vec::from_iter(flaw));
    }

    #[test]
    fn the_canary_is_a_resource() {
        let resource = resource(9);
        assert_eq!(resource.number.get(), NUMBER);
        assert_eq!(resource.destination(), "127.255.255.254, 100::9 on tcp/9, udp/9, udplite/9");
    }

    #[test]
    fn only_a_denial_with_a_record_is_a_closed_gate() {
        let denied = [record(7, Hook::Connect4, Verdict::Deny)];
        let refused = tried(Attempt::Tcp4, Errno::EPERM);
        check(refused, &denied, None);
        check(tried(Attempt::Tcp6, Errno::EAFNOSUPPORT), &[], None);
        let open = Some((true, "connect4 lets the canary through (tcp4)"));
        for errno in [Errno::UnknownErrno, Errno::ECONNREFUSED, Errno::ENETUNREACH, Errno::ETIMEDOUT] {
            check(tried(Attempt::Tcp4, errno), &denied, open);
        }
        let silent = Some((false, "connect4 left no record of a denial (tcp4)"));
        check(refused, &[], silent);
        check(refused, &[record(8, Hook::Connect4, Verdict::Deny)], silent);
        check(refused, &[record(7, Hook::Connect4, Verdict::Allow)], silent);
        check(refused, &[VerdictRecord { resource: 1, ..denied[0] }], silent);
        let late = Some((true, "sendmsg4 lets the canary through (udp4), and only egress stops it"));
        check(tried(Attempt::Udp4, Errno::EPERM), &[record(7, Hook::Egress, Verdict::Deny)], late);
    }

    #[test]
    fn what_nobody_protects_must_be_reached() {
        check(Try { attempt: Attempt::Free, cookie: 7, errno: 0 }, &[], None);
        let refused = Some((false, "the canary cannot reach a port that nobody protects: EPERM"));
        check(tried(Attempt::Free, Errno::EPERM), &[], refused);
    }

    #[test]
    fn a_grant_opens_and_ends() {
        const DEADLINE: u64 = 10_000_000_000;
        let records = [record(7, Hook::Connect4, Verdict::Allow), record(7, Hook::Egress, Verdict::Deny)];
        let good =
            Passage { cookie: 7, errno: 0, last_arrival_boot_ns: DEADLINE - 1, closed: true, refused: true };
        let flaws = |tcp: Passage, records: &[VerdictRecord]| {
            let found = judge_passages(&Passages { tcp, udp: good }, DEADLINE, records);
            found.into_iter().map(|flaw| flaw.text).collect::<Vec<_>>()
        };
        assert_eq!(flaws(good, &records), [""; 0]);
        let check = |tcp: Passage, flaw: &str| assert_eq!(flaws(tcp, &records), [flaw]);
        check(
            Passage { last_arrival_boot_ns: DEADLINE + CUT_WITHIN_NS + 1_000_000, ..good },
            "a connection outlives its grant: data arrived 1001 ms later (tcp)",
        );
        check(Passage { closed: false, ..good }, "a connection is not closed at the end of its grant (tcp)");
        check(Passage { last_arrival_boot_ns: 0, ..good }, "nothing arrives under the canary's grant (tcp)");
        let refused = VerdictRecord {
            reason: Reason::ConnectionsFull as u8,
            ..record(7, Hook::Connect4, Verdict::Deny)
        };
        let found = flaws(Passage { errno: Errno::EPERM as i32, ..good }, &[refused]);
        assert_eq!(found[0], "the canary's grant lets nobody through (tcp): connections_full");
        assert!(
            flaws(good, &records[1..]).contains(&"an allowed connection left no record (tcp)".to_owned())
        );
        assert!(flaws(good, &records[..1]).contains(&"egress left no record of a denial (tcp)".to_owned()));
    }
}
