//! How resources are guarded: only observed, or with a record or not at all; switched while connections are up.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use agent::clock::now_boot_ns;
use agent::rules::plan::ResourceOptions;
use agent::sockets;
use agent_ebpf::abi::{ConnectionEntry, Hook, Ring, VerdictRecord};
use agent_ebpf::verdict::{Reason, Verdict};
use anyhow::{Context, Result, bail};
use proto::types::Protocol;
use tests::ensure_eq;
use tests::probe::{self, Attempt};
use tests::process::wait_for;
use tests::runner::Test;

use crate::connections::{SOON, Streaming, ensure_starved, stage, target, wait_for_bytes};
use crate::fixture::{Fixture, HOUR, RESOURCE, reaches};

pub(crate) const TESTS: &[Test] = &[
    ("modes::what_is_only_observed_is_let_through_and_recorded", what_is_only_observed_is_recorded),
    ("modes::a_grant_on_an_observed_resource_is_a_grant", a_grant_on_an_observed_resource_is_a_grant),
    ("modes::a_packet_that_would_be_held_back_is_told_once", a_packet_is_told_once),
    ("modes::enforcing_cuts_what_was_only_observed", enforcing_cuts_what_was_only_observed),
    ("modes::a_granted_connection_lives_through_both_switches", a_granted_connection_lives_on),
    ("modes::a_switch_leaves_no_open_instant", a_switch_leaves_no_open_instant),
    ("modes::no_record_no_access", no_record_no_access),
    ("modes::without_strict_a_full_ring_is_counted", without_strict_a_full_ring_is_counted),
];

const OBSERVE: ResourceOptions = ResourceOptions { observe: true, strict_audit: false, per_send: false };
const STRICT: ResourceOptions = ResourceOptions { observe: false, strict_audit: true, per_send: false };
const ENFORCE: ResourceOptions = ResourceOptions { observe: false, strict_audit: false, per_send: false };

/// Hook, verdict and reason of each record.
fn said(records: &[VerdictRecord]) -> Vec<(u8, u8, u8)> {
    records.iter().map(|record| (record.hook, record.verdict, record.reason)).collect()
}

fn would_deny(hook: Hook, reason: Reason) -> (u8, u8, u8) {
    (hook as u8, Verdict::WouldDeny as u8, reason as u8)
}

/// One record for each attempt, and none for its packets.
fn what_is_only_observed_is_recorded() -> Result<()> {
    for (attempt, protocol, hook) in [
        (Attempt::Tcp, Protocol::Tcp, Hook::Connect4),
        (Attempt::UdpConnect, Protocol::Udp, Hook::Connect4),
        (Attempt::UdpSend, Protocol::Udp, Hook::Sendmsg4),
    ] {
        let mut fixture = Fixture::new()?;
        let listener = fixture.protected(protocol)?;
        fixture.guard(RESOURCE, OBSERVE)?;
        let nobody = fixture.sandbox.make_cgroup("nobody")?;
        ensure_eq!(reaches(&nobody, attempt, listener.address(), &listener)?, true, "{attempt:?}");
        ensure_eq!(said(&fixture.denials()), [would_deny(hook, Reason::UnknownSubject)], "{attempt:?}");
        let subject = fixture.subject("subject")?;
        ensure_eq!(reaches(&subject, attempt, listener.address(), &listener)?, true, "{attempt:?}");
        ensure_eq!(said(&fixture.denials()), [would_deny(hook, Reason::NoLiveGrant)], "{attempt:?}");
        ensure_eq!(fixture.allows().len(), 0);
    }
    Ok(())
}

fn a_grant_on_an_observed_resource_is_a_grant() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let listener = fixture.protected(Protocol::Tcp)?;
    fixture.guard(RESOURCE, OBSERVE)?;
    let subject = fixture.subject("subject")?;
    let grant = fixture.grant(HOUR)?;
    ensure_eq!(reaches(&subject, Attempt::Tcp, listener.address(), &listener)?, true);
    let allows = fixture.allows();
    ensure_eq!(allows.iter().map(|record| record.grant).collect::<Vec<_>>(), [*grant.id.as_bytes()]);
    ensure_eq!(fixture.denials().len(), 0);
    Ok(())
}

/// A connection goes on after its grant was revoked, and one record says that it should not have.
fn a_packet_is_told_once() -> Result<()> {
    let (mut fixture, server, cgroup) = stage(Protocol::Tcp)?;
    fixture.guard(RESOURCE, OBSERVE)?;
    fixture.grant(HOUR)?;
    let _streaming = Streaming::start(&cgroup, Attempt::TcpStream, server.address())?;
    wait_for_bytes(&server)?;
    fixture.revoke_all()?;
    let after_a_while = server.arrived() + 200;
    wait_for("bytes after the end", SOON, || Ok((server.arrived() > after_a_while).then_some(())))?;
    ensure_eq!(said(&fixture.denials()), [would_deny(Hook::Egress, Reason::Revoked)]);
    Ok(())
}

/// What nobody granted starves at the next packet, and can be found and closed.
fn enforcing_cuts_what_was_only_observed() -> Result<()> {
    for (protocol, attempt) in [(Protocol::Tcp, Attempt::TcpStream), (Protocol::Udp, Attempt::UdpStream)] {
        let (mut fixture, server, cgroup) = stage(protocol)?;
        fixture.guard(RESOURCE, OBSERVE)?;
        let mut streaming = Streaming::start(&cgroup, attempt, server.address())?;
        wait_for_bytes(&server)?;
        fixture.denials();
        fixture.guard(RESOURCE, ENFORCE)?;
        let enforced = now_boot_ns();
        if protocol == Protocol::Udp {
            ensure_eq!(streaming.next_line()?, "EPERM");
            ensure_starved(&server, enforced)?;
        } else {
            ensure_starved(&server, enforced)?;
            let connections = fixture.gate.connections()?;
            let [(_, entry)] = connections.as_slice() else { bail!("{connections:?}") };
            ensure_eq!((entry.flags, entry.resource), (ConnectionEntry::OBSERVED, RESOURCE));
            ensure_eq!(sockets::end(&[target(&connections[0])]).closed.len(), 1);
            ensure_eq!(streaming.next_line()?, "ECONNABORTED");
        }
        let denial = (Hook::Egress as u8, Verdict::Deny as u8, Reason::NotAdmitted as u8);
        ensure_eq!(said(&fixture.denials()), [denial], "{attempt:?}");
    }
    Ok(())
}

fn a_granted_connection_lives_on() -> Result<()> {
    let (mut fixture, server, cgroup) = stage(Protocol::Tcp)?;
    fixture.grant(HOUR)?;
    let _streaming = Streaming::start(&cgroup, Attempt::TcpStream, server.address())?;
    for options in [OBSERVE, ENFORCE, STRICT, OBSERVE, ENFORCE] {
        fixture.guard(RESOURCE, options)?;
        wait_for_bytes(&server)?;
        wait_for_bytes(&server)?;
    }
    ensure_eq!(fixture.denials().len(), 0);
    ensure_eq!(fixture.allows().len(), 1);
    fixture.revoke_all()?;
    let revoked = now_boot_ns();
    ensure_starved(&server, revoked)
}

/// A prober without a grant connects every millisecond while the resource gets other options again and again.
fn a_switch_leaves_no_open_instant() -> Result<()> {
    const TIMES: usize = 200;
    let mut fixture = Fixture::new()?;
    let listener = fixture.protected(Protocol::Tcp)?;
    let cgroup = fixture.sandbox.make_cgroup("nobody")?;
    let mut command = probe::command(&cgroup, Attempt::TcpEveryMillisecond, listener.address(), "prober")?;
    let mut prober = command.stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(prober.stdout.take().context("the prober's output")?).lines();
    let mut next = || -> Result<String> { Ok(lines.next().context("the prober has ended")??) };
    let mut attempts = vec![next()?];
    for time in 0..TIMES {
        fixture.guard(RESOURCE, if time % 2 == 0 { STRICT } else { ENFORCE })?;
        if time % 10 == 0 {
            attempts.push(next()?);
        }
    }
    attempts.push(next()?);
    prober.kill()?;
    attempts.extend(lines.map_while(Result::ok).filter(|line| line.contains(' ')));
    prober.wait()?;
    let open: Vec<&String> = attempts.iter().filter(|line| !line.ends_with(" EPERM")).collect();
    if !open.is_empty() {
        bail!("{} of {} attempts were not denied: {open:?}", open.len(), attempts.len());
    }
    Ok(())
}

/// Nobody reads a ring of some thirty records: whoever gets through has one in it, and nobody else gets through.
fn no_record_no_access() -> Result<()> {
    let (mut fixture, reached, attempts) = fill_the_ring(STRICT)?;
    ensure_eq!(reached > 0 && reached < attempts, true, "{reached} of {attempts}");
    ensure_eq!(fixture.gate.lost(Ring::Allow)?, 0);
    ensure_eq!(fixture.allows().len(), reached);
    let denials = fixture.denials();
    let unavailable = (Hook::Connect4 as u8, Verdict::Deny as u8, Reason::AuditUnavailable as u8);
    ensure_eq!(said(&denials), vec![unavailable; attempts - reached]);
    Ok(())
}

fn without_strict_a_full_ring_is_counted() -> Result<()> {
    let (mut fixture, reached, attempts) = fill_the_ring(ENFORCE)?;
    ensure_eq!(reached, attempts);
    let (kept, lost) = (fixture.allows().len(), fixture.gate.lost(Ring::Allow)?);
    ensure_eq!(kept as u64 + lost, attempts as u64);
    ensure_eq!(lost > 0, true, "lost {lost}");
    ensure_eq!(fixture.denials().len(), 0);
    Ok(())
}

/// Connects more often than a small ring has room for. Gives how often it got through, and how often it tried.
fn fill_the_ring(options: ResourceOptions) -> Result<(Fixture, usize, usize)> {
    const ATTEMPTS: usize = 45;
    let mut fixture = Fixture::with(|settings| settings.ring_bytes = 4096)?;
    let listener = fixture.protected(Protocol::Tcp)?;
    fixture.guard(RESOURCE, options)?;
    let cgroup = fixture.subject("subject")?;
    fixture.grant(HOUR)?;
    let mut reached = 0;
    for _ in 0..ATTEMPTS {
        reached += usize::from(reaches(&cgroup, Attempt::Tcp, listener.address(), &listener)?);
    }
    Ok((fixture, reached, ATTEMPTS))
}
