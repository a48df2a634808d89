//! What the programs write down.

use std::os::unix::process::CommandExt;

use agent::clock::now_boot_ns;
use agent_ebpf::abi::{Hook, Ring, VerdictRecord};
use agent_ebpf::verdict::{Reason, Verdict};
use anyhow::{Context, Result, bail};
use proto::types::Protocol;
use tests::ensure_eq;
use tests::probe::{self, Attempt};
use tests::runner::Test;

use crate::fixture::{Fixture, HOUR, RESOURCE, SUBJECT, reaches};

pub(crate) const TESTS: &[Test] = &[
    ("records::a_denial_says_who_and_where", a_denial_says_who_and_where),
    ("records::an_allow_names_its_grant", an_allow_names_its_grant),
    ("records::every_hook_names_itself", every_hook_names_itself),
    ("records::what_a_full_ring_loses_is_counted", what_a_full_ring_loses_is_counted),
];

fn one(records: Vec<VerdictRecord>) -> Result<VerdictRecord> {
    let [record] = records.as_slice() else { bail!("one record is expected: {records:?}") };
    Ok(*record)
}

fn a_denial_says_who_and_where() -> Result<()> {
    const UID: u32 = 4242;
    let mut fixture = Fixture::new()?;
    let listener = fixture.protected(Protocol::Tcp)?;
    let cgroup = fixture.sandbox.make_cgroup("nobody")?;
    let before = now_boot_ns();
    // The shell moves into the cgroup as root; a second one drops to the uid.
    let command = probe::command(&cgroup, Attempt::Tcp, listener.address(), "marker")?;
    let program = command.get_args().nth(3).context("the probe's path")?.to_owned();
    let arguments: Vec<_> = command.get_args().skip(4).map(ToOwned::to_owned).collect();
    let mut command = tests::process::in_cgroup(&cgroup, "/usr/bin/setpriv");
    command
        .args([format!("--reuid={UID}"), "--clear-groups".into()])
        .arg(program)
        .args(arguments)
        .process_group(0);
    let child = command.stdout(std::process::Stdio::piped()).spawn()?;
    let pid = child.id();
    let output = child.wait_with_output()?;
    ensure_eq!(String::from_utf8_lossy(&output.stdout).trim(), "EPERM");

    let record = one(fixture.denials())?;
    let expected = VerdictRecord {
        boot_ns: record.boot_ns,
        cgroup_id: cgroup.id()?,
        socket_cookie: record.socket_cookie,
        netns_cookie: record.netns_cookie,
        address: fixture.sandbox.address().to_ipv6_mapped().octets(),
        command: record.command,
        pid,
        uid: UID,
        resource: RESOURCE,
        port: listener.address().port(),
        protocol: 6,
        hook: Hook::Connect4 as u8,
        verdict: Verdict::Deny as u8,
        reason: Reason::UnknownSubject as u8,
        ..VerdictRecord::EMPTY
    };
    ensure_eq!(record, expected);
    ensure_eq!((before..now_boot_ns()).contains(&record.boot_ns), true, "the record's time");
    ensure_eq!(record.command.starts_with(b"kernel-"), true, "{:?}", record.command);
    ensure_eq!(record.socket_cookie != 0 && record.netns_cookie != 0, true, "the cookies");
    Ok(())
}

fn an_allow_names_its_grant() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let listener = fixture.protected(Protocol::Tcp)?;
    let cgroup = fixture.subject("subject")?;
    let grant = fixture.grant(HOUR)?;
    ensure_eq!(reaches(&cgroup, Attempt::Tcp, listener.address(), &listener)?, true);
    let record = one(fixture.allows())?;
    ensure_eq!(record.grant, *grant.id.as_bytes());
    ensure_eq!((record.subject, record.resource), (SUBJECT, RESOURCE));
    ensure_eq!((record.verdict, record.reason), (Verdict::Allow as u8, Reason::Granted as u8));
    ensure_eq!(fixture.denials().len(), 0);
    Ok(())
}

fn every_hook_names_itself() -> Result<()> {
    let v6 = std::net::Ipv6Addr::LOCALHOST;
    for (attempt, protocol, is_v6, hook) in [
        (Attempt::Tcp, Protocol::Tcp, false, Hook::Connect4),
        (Attempt::Tcp, Protocol::Tcp, true, Hook::Connect6),
        (Attempt::UdpSend, Protocol::Udp, false, Hook::Sendmsg4),
        (Attempt::UdpSend, Protocol::Udp, true, Hook::Sendmsg6),
    ] {
        let mut fixture = Fixture::new()?;
        let address = if is_v6 { v6.into() } else { fixture.sandbox.address().into() };
        let listener = fixture.protected_at(protocol, address)?;
        let cgroup = fixture.sandbox.make_cgroup("nobody")?;
        ensure_eq!(reaches(&cgroup, attempt, listener.address(), &listener)?, false);
        ensure_eq!(one(fixture.denials())?.hook, hook as u8);
    }
    Ok(())
}

/// Nobody reads a ring of 31 records while 100 are written.
fn what_a_full_ring_loses_is_counted() -> Result<()> {
    const ATTEMPTS: u64 = 100;
    let mut fixture = Fixture::with(|settings| settings.ring_bytes = 4096)?;
    let listener = fixture.protected(Protocol::Tcp)?;
    let cgroup = fixture.sandbox.make_cgroup("nobody")?;
    for _ in 0..ATTEMPTS {
        ensure_eq!(reaches(&cgroup, Attempt::Tcp, listener.address(), &listener)?, false);
    }
    let (lost, kept) = (fixture.gate.lost(Ring::Deny)?, fixture.denials().len() as u64);
    ensure_eq!(kept + lost, ATTEMPTS);
    ensure_eq!(lost > 0 && kept > 0, true, "lost {lost}, kept {kept}");
    ensure_eq!(fixture.gate.lost(Ring::Allow)?, 0);
    // Room again: the next record comes, and its number tells how many are missing before it.
    ensure_eq!(reaches(&cgroup, Attempt::Tcp, listener.address(), &listener)?, false);
    ensure_eq!(fixture.denials().len(), 1);
    Ok(())
}
