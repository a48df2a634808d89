//! Grants that end when nothing is sent or received by them for a while: what counts as activity, and what does not.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use agent::clock::now_boot_ns;
use agent_ebpf::verdict::Reason;
use anyhow::Result;
use nix::sys::signal::Signal;
use proto::types::Protocol;
use tests::ensure_eq;
use tests::listener::Listener;
use tests::probe::Attempt;
use tests::runner::Test;
use tests::sandbox::Cgroup;

use crate::connections::{Streaming, ensure_starved, stage, wait_for_bytes};
use crate::fixture::{Fixture, HOUR, RESOURCE, reaches, resource};

pub(crate) const TESTS: &[Test] = &[
    ("idle::a_flow_that_pauses_too_long_has_ended", a_flow_that_pauses_too_long_has_ended),
    ("idle::a_flow_that_goes_on_is_not_idle", a_flow_that_goes_on_is_not_idle),
    ("idle::what_is_received_is_activity", what_is_received_is_activity),
    ("idle::a_keepalive_is_no_activity", a_keepalive_is_no_activity),
    ("idle::a_grant_that_was_never_used_ends", a_grant_that_was_never_used_ends),
    ("idle::the_most_patient_grant_counts", the_most_patient_grant_counts),
];

const LIMIT: Duration = Duration::from_secs(2);

/// Well beyond it.
const TOO_LONG: Duration = Duration::from_millis(2500);

/// Whether a new connection is let through; if not, it is because of idleness.
fn still_reaches(fixture: &mut Fixture, cgroup: &Cgroup, listener: &Listener) -> Result<bool> {
    fixture.denials();
    let reached = reaches(cgroup, Attempt::Tcp, listener.address(), listener)?;
    let reasons: Vec<u8> = fixture.denials().iter().map(|record| record.reason).collect();
    ensure_eq!(reasons, if reached { vec![] } else { vec![Reason::Idle as u8] });
    Ok(reached)
}

/// Neither goes on when it wants to go on, nor is a new connection let through, nor does a later grant revive it.
fn a_flow_that_pauses_too_long_has_ended() -> Result<()> {
    for (protocol, attempt) in [(Protocol::Tcp, Attempt::TcpStream), (Protocol::Udp, Attempt::UdpStream)] {
        let (mut fixture, server, cgroup) = stage(protocol)?;
        fixture.grant_unless_idle(LIMIT)?;
        let streaming = Streaming::start(&cgroup, attempt, server.address())?;
        wait_for_bytes(&server)?;
        streaming.signal(Signal::SIGSTOP)?;
        let paused = now_boot_ns();
        std::thread::sleep(TOO_LONG);
        streaming.signal(Signal::SIGCONT)?;
        ensure_starved(&server, paused)?;
        let reasons: Vec<u8> = fixture.denials().iter().map(|record| record.reason).collect();
        ensure_eq!(reasons, [Reason::Idle as u8], "{attempt:?}");
        let before = server.arrived();
        fixture.grant(HOUR)?;
        std::thread::sleep(TOO_LONG);
        ensure_eq!(server.arrived(), before, "{attempt:?}");
    }
    Ok(())
}

fn a_flow_that_goes_on_is_not_idle() -> Result<()> {
    let (mut fixture, server, cgroup) = stage(Protocol::Tcp)?;
    fixture.grant_unless_idle(LIMIT)?;
    let _streaming = Streaming::start(&cgroup, Attempt::TcpStream, server.address())?;
    std::thread::sleep(TOO_LONG);
    wait_for_bytes(&server)?;
    ensure_eq!(fixture.denials().len(), 0);
    Ok(())
}

/// A gate over two servers of one resource: one to probe with, and one of the test's own.
fn two_servers(fixture: &mut Fixture) -> Result<(Listener, TcpListener, SocketAddr)> {
    let listener = Listener::start(Protocol::Tcp, (fixture.sandbox.address(), 0).into())?;
    let own = TcpListener::bind((fixture.sandbox.address(), 0))?;
    let to = own.local_addr()?;
    let mut both = resource(RESOURCE, listener.address(), Protocol::Tcp)?;
    both.ports.extend(resource(RESOURCE, to, Protocol::Tcp)?.ports);
    fixture.wanted.resources.push(both);
    fixture.apply()?;
    Ok((listener, own, to))
}

/// The client only listens, and acknowledges.
fn what_is_received_is_activity() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let (listener, server, to) = two_servers(&mut fixture)?;
    let cgroup = fixture.subject("subject")?;
    fixture.grant_unless_idle(LIMIT)?;
    std::thread::spawn(move || -> Result<()> {
        let (mut stream, _) = server.accept()?;
        loop {
            stream.write_all(b"x")?;
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let _reading = Streaming::start(&cgroup, Attempt::TcpListen, to)?;
    std::thread::sleep(TOO_LONG);
    ensure_eq!(still_reaches(&mut fixture, &cgroup, &listener)?, true);
    Ok(())
}

/// The kernel asks once a second whether the other side is there, and is answered.
fn a_keepalive_is_no_activity() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let (listener, server, to) = two_servers(&mut fixture)?;
    let cgroup = fixture.subject("subject")?;
    fixture.grant_unless_idle(LIMIT)?;
    std::thread::spawn(move || -> Result<usize> {
        let (mut stream, _) = server.accept()?;
        Ok(stream.read(&mut [0; 1])?)
    });
    let _quiet = Streaming::start(&cgroup, Attempt::TcpListen, to)?;
    std::thread::sleep(TOO_LONG);
    ensure_eq!(still_reaches(&mut fixture, &cgroup, &listener)?, false);
    Ok(())
}

fn a_grant_that_was_never_used_ends() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let listener = fixture.protected(Protocol::Tcp)?;
    let cgroup = fixture.subject("subject")?;
    fixture.grant_unless_idle(LIMIT)?;
    std::thread::sleep(TOO_LONG);
    ensure_eq!(still_reaches(&mut fixture, &cgroup, &listener)?, false);
    // The same set again revives nothing; another grant is another.
    fixture.apply()?;
    ensure_eq!(still_reaches(&mut fixture, &cgroup, &listener)?, false);
    fixture.grant(HOUR / 2)?;
    ensure_eq!(still_reaches(&mut fixture, &cgroup, &listener)?, true);
    Ok(())
}

fn the_most_patient_grant_counts() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let listener = fixture.protected(Protocol::Tcp)?;
    let cgroup = fixture.subject("subject")?;
    fixture.grant_unless_idle(LIMIT)?;
    let endless = fixture.grant(HOUR)?;
    std::thread::sleep(TOO_LONG);
    ensure_eq!(still_reaches(&mut fixture, &cgroup, &listener)?, true);
    // The limit that is left counts from now on.
    fixture.wanted.grants.retain(|grant| grant.id != endless.id);
    fixture.apply()?;
    ensure_eq!(still_reaches(&mut fixture, &cgroup, &listener)?, true);
    std::thread::sleep(TOO_LONG);
    ensure_eq!(still_reaches(&mut fixture, &cgroup, &listener)?, false);
    Ok(())
}
