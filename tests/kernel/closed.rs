//! What is written down when a connection ends.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use agent::sockets;
use agent_ebpf::abi::{ClosedRecord, EndedBy, Ring, protocol};
use anyhow::{Result, bail};
use proto::types::Protocol;
use tests::ensure_eq;
use tests::probe::{self, Attempt};
use tests::process::wait_for;
use tests::runner::Test;

use crate::connections::{SOON, Streaming, stage, target, wait_for_bytes};
use crate::fixture::{Fixture, HOUR, RESOURCE, SUBJECT, reaches, resource};

pub(crate) const TESTS: &[Test] = &[
    ("closed::a_connection_that_this_side_ends", a_connection_that_this_side_ends),
    ("closed::a_connection_that_the_other_side_ends", a_connection_that_the_other_side_ends),
    ("closed::a_connection_that_its_grant_ends", a_connection_that_its_grant_ends),
    ("closed::a_connection_that_nobody_takes", a_connection_that_nobody_takes),
    ("closed::a_udp_connection", a_udp_connection),
    ("closed::what_a_full_ring_loses_is_counted", what_a_full_ring_loses_is_counted),
];

/// The one end that comes.
fn one_end(fixture: &mut Fixture) -> Result<ClosedRecord> {
    let end = wait_for("the end of the connection", SOON, || {
        let ends = fixture.ends();
        match ends.as_slice() {
            [] => Ok(None),
            [end] => Ok(Some(*end)),
            _ => bail!("one end is expected: {ends:?}"),
        }
    })?;
    ensure_eq!(fixture.gate.connections()?, [], "what has ended is not remembered");
    Ok(end)
}

fn a_connection_that_this_side_ends() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let listener = fixture.protected(Protocol::Tcp)?;
    let cgroup = fixture.subject("subject")?;
    let grant = fixture.grant(HOUR)?;
    ensure_eq!(probe::run(&cgroup, Attempt::Tcp, listener.address(), "nine byte")?, "ok");
    let end = one_end(&mut fixture)?;
    let allows = fixture.allows();
    let [allow] = allows.as_slice() else { bail!("{allows:?}") };
    let expected = ClosedRecord {
        boot_ns: end.boot_ns,
        admitted_boot_ns: allow.boot_ns,
        bytes_sent: 9,
        bytes_received: end.bytes_received,
        socket_cookie: allow.socket_cookie,
        netns_cookie: allow.netns_cookie,
        epoch: allow.epoch,
        grant: *grant.id.as_bytes(),
        address: allow.address,
        resource: RESOURCE,
        subject: SUBJECT,
        pid: allow.pid,
        port: listener.address().port(),
        protocol: protocol::TCP,
        ended_by: EndedBy::Own as u8,
        reserved: [0; 8],
    };
    ensure_eq!(end, expected);
    // The other side's farewell may count, if it came in time.
    ensure_eq!(end.bytes_received <= 1 && end.boot_ns > end.admitted_boot_ns, true, "{end:?}");
    Ok(())
}

/// The server answers with a thousand bytes and closes.
fn a_connection_that_the_other_side_ends() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let listener = TcpListener::bind((fixture.sandbox.address(), 0))?;
    let to = listener.local_addr()?;
    fixture.wanted.resources.push(resource(RESOURCE, to, Protocol::Tcp)?);
    let cgroup = fixture.subject("subject")?;
    fixture.grant(HOUR)?;
    let server = std::thread::spawn(move || -> Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.read_exact(&mut [0; 6])?;
        Ok(stream.write_all(&[b'x'; 1000])?)
    });
    ensure_eq!(probe::run(&cgroup, Attempt::TcpRead, to, "please")?, "ok");
    server.join().expect("the server does not panic")?;
    let end = one_end(&mut fixture)?;
    ensure_eq!((end.bytes_sent, end.bytes_received, end.ended_by), (6, 1000, EndedBy::Peer as u8));
    Ok(())
}

fn a_connection_that_its_grant_ends() -> Result<()> {
    let (mut fixture, server, cgroup) = stage(Protocol::Tcp)?;
    let grant = fixture.grant(HOUR)?;
    let mut streaming = Streaming::start(&cgroup, Attempt::TcpStream, server.address())?;
    wait_for_bytes(&server)?;
    fixture.revoke_all()?;
    // Another grant must not lend it its name.
    fixture.grant(HOUR)?;
    let connections = fixture.gate.connections()?;
    let [connection] = connections.as_slice() else { bail!("{connections:?}") };
    ensure_eq!(sockets::end(&[target(connection)]).closed.len(), 1);
    ensure_eq!(streaming.next_line()?, "ECONNABORTED");
    let end = one_end(&mut fixture)?;
    ensure_eq!((end.ended_by, end.grant), (EndedBy::Grant as u8, *grant.id.as_bytes()));
    ensure_eq!(end.bytes_sent > 0 && end.bytes_sent <= server.arrived(), true, "{end:?}");
    Ok(())
}

fn a_connection_that_nobody_takes() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let to = TcpListener::bind((fixture.sandbox.address(), 0))?.local_addr()?;
    fixture.wanted.resources.push(resource(RESOURCE, to, Protocol::Tcp)?);
    let cgroup = fixture.subject("subject")?;
    fixture.grant(HOUR)?;
    ensure_eq!(probe::run(&cgroup, Attempt::Tcp, to, "")?, "ECONNREFUSED");
    let end = one_end(&mut fixture)?;
    ensure_eq!((end.bytes_sent, end.bytes_received, end.ended_by), (0, 0, EndedBy::Reset as u8));
    Ok(())
}

fn a_udp_connection() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let listener = fixture.protected(Protocol::Udp)?;
    let cgroup = fixture.subject("subject")?;
    fixture.grant(HOUR)?;
    // Unconnected datagrams make no connection, and so none ends.
    ensure_eq!(reaches(&cgroup, Attempt::UdpSend, listener.address(), &listener)?, true);
    ensure_eq!(probe::run(&cgroup, Attempt::UdpConnect, listener.address(), "nine byte")?, "ok");
    let end = one_end(&mut fixture)?;
    ensure_eq!(
        (end.protocol, end.bytes_sent, end.bytes_received, end.ended_by),
        (protocol::UDP, 9, ClosedRecord::UNKNOWN, EndedBy::Own as u8)
    );
    Ok(())
}

/// Nobody reads a ring of 34 records while 60 connections end.
fn what_a_full_ring_loses_is_counted() -> Result<()> {
    const ATTEMPTS: u64 = 60;
    let mut fixture = Fixture::with(|settings| settings.ring_bytes = 4096)?;
    let listener = fixture.protected(Protocol::Udp)?;
    let cgroup = fixture.subject("subject")?;
    fixture.grant(HOUR)?;
    for _ in 0..ATTEMPTS {
        ensure_eq!(probe::run(&cgroup, Attempt::UdpConnect, listener.address(), "marker")?, "ok");
    }
    std::thread::sleep(Duration::from_millis(50));
    let (lost, kept) = (fixture.gate.lost(Ring::Closed)?, fixture.ends().len() as u64);
    ensure_eq!(kept + lost, ATTEMPTS);
    ensure_eq!(lost > 0 && kept > 0, true, "lost {lost}, kept {kept}");
    Ok(())
}
