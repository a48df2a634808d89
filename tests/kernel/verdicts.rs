//! Who gets through, by every way that the programs guard, and who does not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use proto::types::Protocol;
use tests::ensure_eq;
use tests::listener::Listener;
use tests::probe::Attempt;
use tests::runner::Test;
use tests::sandbox::Cgroup;

use crate::fixture::{Fixture, HOUR, RESOURCE, reaches};

pub(crate) const TESTS: &[Test] = &[
    ("verdicts::tcp_over_ipv4", tcp_over_ipv4),
    ("verdicts::tcp_over_ipv6", tcp_over_ipv6),
    ("verdicts::tcp_to_a_mapped_address", tcp_to_a_mapped_address),
    ("verdicts::tcp_to_the_wildcard_address", tcp_to_the_wildcard_address),
    ("verdicts::udp_over_ipv4", udp_over_ipv4),
    ("verdicts::udp_over_ipv6", udp_over_ipv6),
    ("verdicts::udp_to_a_mapped_address", udp_to_a_mapped_address),
    ("verdicts::a_protected_address_leaves_others_alone", a_protected_address_leaves_others_alone),
    ("verdicts::a_process_of_nobody_is_denied", a_process_of_nobody_is_denied),
    ("verdicts::an_expired_grant", an_expired_grant),
    ("verdicts::a_revoked_grant", a_revoked_grant),
    ("verdicts::a_grant_for_another_resource", a_grant_for_another_resource),
    ("verdicts::a_granted_parent_covers_its_children", a_granted_parent_covers_its_children),
    ("verdicts::a_granted_child_does_not_cover_its_parent", a_granted_child_does_not_cover_its_parent),
    ("verdicts::the_nearest_subject_counts", the_nearest_subject_counts),
    ("verdicts::the_longest_prefix_counts", the_longest_prefix_counts),
    ("verdicts::a_longer_grant_carries_on", a_longer_grant_carries_on),
];

/// Denied without a grant, reached with one, denied again without: by this way, to this address of the listener.
fn check(fixture: &mut Fixture, attempt: Attempt, to: SocketAddr, listener: &Listener) -> Result<()> {
    let cgroup = fixture.subject("subject")?;
    ensure_eq!(reaches(&cgroup, attempt, to, listener)?, false, "without a grant, {attempt:?}");
    fixture.grant(HOUR)?;
    ensure_eq!(reaches(&cgroup, attempt, to, listener)?, true, "with a grant, {attempt:?}");
    fixture.revoke_all()?;
    ensure_eq!(reaches(&cgroup, attempt, to, listener)?, false, "after the grant, {attempt:?}");
    Ok(())
}

fn mapped(address: Ipv4Addr) -> IpAddr {
    address.to_ipv6_mapped().into()
}

fn tcp_over_ipv4() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let listener = fixture.protected(Protocol::Tcp)?;
    check(&mut fixture, Attempt::Tcp, listener.address(), &listener)
}

fn tcp_over_ipv6() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let listener = fixture.protected_at(Protocol::Tcp, Ipv6Addr::LOCALHOST.into())?;
    check(&mut fixture, Attempt::Tcp, listener.address(), &listener)
}

fn tcp_to_a_mapped_address() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let listener = fixture.protected(Protocol::Tcp)?;
    let to = SocketAddr::new(mapped(fixture.sandbox.address()), listener.address().port());
    check(&mut fixture, Attempt::Tcp, to, &listener)
}

/// Connecting to 0.0.0.0 or :: reaches this machine.
fn tcp_to_the_wildcard_address() -> Result<()> {
    let wildcards = [
        (Ipv4Addr::LOCALHOST.into(), Ipv4Addr::UNSPECIFIED.into()),
        (Ipv6Addr::LOCALHOST.into(), Ipv6Addr::UNSPECIFIED.into()),
        (Ipv4Addr::LOCALHOST.into(), mapped(Ipv4Addr::UNSPECIFIED)),
    ];
    for (loopback, wildcard) in wildcards {
        let mut fixture = Fixture::new()?;
        let listener = fixture.protected_at(Protocol::Tcp, loopback)?;
        let to = SocketAddr::new(wildcard, listener.address().port());
        check(&mut fixture, Attempt::Tcp, to, &listener)?;
    }
    Ok(())
}

fn udp_over_ipv4() -> Result<()> {
    for attempt in [Attempt::UdpSend, Attempt::UdpConnect] {
        let mut fixture = Fixture::new()?;
        let listener = fixture.protected(Protocol::Udp)?;
        check(&mut fixture, attempt, listener.address(), &listener)?;
    }
    Ok(())
}

fn udp_over_ipv6() -> Result<()> {
    for attempt in [Attempt::UdpSend, Attempt::UdpConnect] {
        let mut fixture = Fixture::new()?;
        let listener = fixture.protected_at(Protocol::Udp, Ipv6Addr::LOCALHOST.into())?;
        check(&mut fixture, attempt, listener.address(), &listener)?;
    }
    Ok(())
}

fn udp_to_a_mapped_address() -> Result<()> {
    for attempt in [Attempt::UdpSend, Attempt::UdpConnect] {
        let mut fixture = Fixture::new()?;
        let listener = fixture.protected(Protocol::Udp)?;
        let to = SocketAddr::new(mapped(fixture.sandbox.address()), listener.address().port());
        check(&mut fixture, attempt, to, &listener)?;
    }
    Ok(())
}

/// Another port, another protocol and another address: nobody needs a grant for those.
fn a_protected_address_leaves_others_alone() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let protected = fixture.protected(Protocol::Tcp)?;
    let cgroup = fixture.sandbox.make_cgroup("nobody")?;
    let (address, port) = (protected.address().ip(), protected.address().port());
    let other_port = Listener::start(Protocol::Tcp, SocketAddr::new(address, 0))?;
    let other_protocol = Listener::start(Protocol::Udp, SocketAddr::new(address, port))?;
    let IpAddr::V4(v4) = address else { anyhow::bail!("an IPv4 address is expected") };
    let neighbour = Ipv4Addr::from(u32::from(v4) ^ 0x0000_8000);
    let other_address = Listener::start(Protocol::Tcp, SocketAddr::new(neighbour.into(), port))?;
    ensure_eq!(reaches(&cgroup, Attempt::Tcp, protected.address(), &protected)?, false);
    ensure_eq!(reaches(&cgroup, Attempt::Tcp, other_port.address(), &other_port)?, true);
    ensure_eq!(reaches(&cgroup, Attempt::UdpSend, other_protocol.address(), &other_protocol)?, true);
    ensure_eq!(reaches(&cgroup, Attempt::UdpConnect, other_protocol.address(), &other_protocol)?, true);
    ensure_eq!(reaches(&cgroup, Attempt::Tcp, other_address.address(), &other_address)?, true);
    ensure_eq!(fixture.denials().len(), 1);
    ensure_eq!(fixture.allows().len(), 0);
    Ok(())
}

/// Managed or not: a cgroup that no subject owns is denied, also while somebody else has a grant.
fn a_process_of_nobody_is_denied() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let listener = fixture.protected(Protocol::Tcp)?;
    fixture.subject("subject")?;
    fixture.grant(HOUR)?;
    let root = Cgroup { path: "/".into(), directory: fixture.sandbox.cgroup_root().to_owned() };
    for cgroup in [fixture.sandbox.make_cgroup("nobody")?, root] {
        ensure_eq!(reaches(&cgroup, Attempt::Tcp, listener.address(), &listener)?, false, "{}", cgroup.path);
    }
    Ok(())
}

/// Nobody takes the grant away: its deadline alone does.
fn an_expired_grant() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let listener = fixture.protected(Protocol::Tcp)?;
    let cgroup = fixture.subject("subject")?;
    fixture.grant(Duration::ZERO)?;
    ensure_eq!(reaches(&cgroup, Attempt::Tcp, listener.address(), &listener)?, false);
    let reasons: Vec<u8> = fixture.denials().iter().map(|record| record.reason).collect();
    ensure_eq!(reasons, [agent_ebpf::verdict::Reason::Expired as u8]);
    Ok(())
}

/// The epoch alone closes, before the entry is even removed.
fn a_revoked_grant() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let listener = fixture.protected(Protocol::Tcp)?;
    let cgroup = fixture.subject("subject")?;
    fixture.grant(HOUR)?;
    ensure_eq!(reaches(&cgroup, Attempt::Tcp, listener.address(), &listener)?, true);
    let slot = fixture.entries.grants.values().next().map_or(0, |value| value.slot);
    fixture.gate.write(&agent::rules::plan::Write::SetEpoch { slot, epoch: 7 })?;
    ensure_eq!(reaches(&cgroup, Attempt::Tcp, listener.address(), &listener)?, false);
    let reasons: Vec<u8> = fixture.denials().iter().map(|record| record.reason).collect();
    ensure_eq!(reasons, [agent_ebpf::verdict::Reason::Revoked as u8]);
    Ok(())
}

fn a_grant_for_another_resource() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let granted = fixture.protected(Protocol::Tcp)?;
    let other = fixture.protected(Protocol::Tcp)?;
    let cgroup = fixture.subject("subject")?;
    fixture.grant(HOUR)?;
    ensure_eq!(reaches(&cgroup, Attempt::Tcp, granted.address(), &granted)?, true);
    ensure_eq!(reaches(&cgroup, Attempt::Tcp, other.address(), &other)?, false);
    Ok(())
}

fn a_granted_parent_covers_its_children() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let listener = fixture.protected(Protocol::Tcp)?;
    fixture.subject("subject")?;
    let deep = fixture.sandbox.make_cgroup("subject/a/b/c/d/e/f/g")?;
    ensure_eq!(reaches(&deep, Attempt::Tcp, listener.address(), &listener)?, false);
    fixture.grant(HOUR)?;
    ensure_eq!(reaches(&deep, Attempt::Tcp, listener.address(), &listener)?, true);
    Ok(())
}

fn a_granted_child_does_not_cover_its_parent() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let listener = fixture.protected(Protocol::Tcp)?;
    let child = fixture.subject("parent/child")?;
    let (parent, sibling) =
        (fixture.sandbox.make_cgroup("parent")?, fixture.sandbox.make_cgroup("parent/sibling")?);
    fixture.grant(HOUR)?;
    ensure_eq!(reaches(&child, Attempt::Tcp, listener.address(), &listener)?, true);
    for cgroup in [parent, sibling] {
        ensure_eq!(reaches(&cgroup, Attempt::Tcp, listener.address(), &listener)?, false, "{}", cgroup.path);
    }
    Ok(())
}

/// A process belongs to one subject: a container within somebody's session has not that somebody's grants.
fn the_nearest_subject_counts() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let listener = fixture.protected(Protocol::Tcp)?;
    let outer = fixture.subject("outer")?;
    let inner = fixture.sandbox.make_cgroup("outer/inner")?;
    fixture.bind(&inner, 2)?;
    fixture.grant(HOUR)?;
    ensure_eq!(reaches(&outer, Attempt::Tcp, listener.address(), &listener)?, true);
    ensure_eq!(reaches(&inner, Attempt::Tcp, listener.address(), &listener)?, false);
    fixture.grant_to(2, RESOURCE, HOUR)?;
    ensure_eq!(reaches(&inner, Attempt::Tcp, listener.address(), &listener)?, true);
    Ok(())
}

/// A single address within a protected network is a resource of its own.
fn the_longest_prefix_counts() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let listener = fixture.protected(Protocol::Tcp)?;
    let mut wide = fixture.wanted.resources[0].clone();
    let network = u32::from(fixture.sandbox.address()) & 0xffff_ff00;
    wide.number = 2.try_into()?;
    wide.name = "wide".parse()?;
    wide.addresses = vec![format!("{}/24", Ipv4Addr::from(network)).parse()?];
    fixture.wanted.resources.push(wide);
    let cgroup = fixture.subject("subject")?;
    fixture.grant_to(1, 2, HOUR)?;
    ensure_eq!(reaches(&cgroup, Attempt::Tcp, listener.address(), &listener)?, false);
    let neighbour = SocketAddr::new(Ipv4Addr::from(network | 254).into(), listener.address().port());
    let in_network = Listener::start(Protocol::Tcp, neighbour)?;
    ensure_eq!(reaches(&cgroup, Attempt::Tcp, neighbour, &in_network)?, true);
    Ok(())
}

/// Grants are a union: when one of two ends, the other lets through.
fn a_longer_grant_carries_on() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let listener = fixture.protected(Protocol::Tcp)?;
    let cgroup = fixture.subject("subject")?;
    fixture.grant(HOUR)?;
    let longer = fixture.grant(HOUR * 2)?;
    fixture.wanted.grants.retain(|grant| grant.id != longer.id);
    fixture.apply()?;
    ensure_eq!(reaches(&cgroup, Attempt::Tcp, listener.address(), &listener)?, true);
    fixture.revoke_all()?;
    ensure_eq!(reaches(&cgroup, Attempt::Tcp, listener.address(), &listener)?, false);
    Ok(())
}
