//! Connections that are up when their grant ends: nothing of them arrives any more, a later grant revives nothing, and both
//! ends are told.

use std::io::{BufRead, BufReader, ErrorKind, Lines, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use agent::clock::now_boot_ns;
use agent::sockets::{self, Target};
use agent_ebpf::abi::ConnectionEntry;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::types::Protocol;
use tests::ensure_eq;
use tests::listener::StreamServer;
use tests::probe::{self, Attempt};
use tests::process::wait_for;
use tests::runner::Test;
use tests::sandbox::Cgroup;

use crate::fixture::{Fixture, HOUR, RESOURCE, SUBJECT, resource};

pub(crate) const TESTS: &[Test] = &[
    ("connections::a_tcp_flow_starves_at_its_deadline", a_tcp_flow_starves_at_its_deadline),
    ("connections::a_udp_flow_starves_at_its_deadline", a_udp_flow_starves_at_its_deadline),
    ("connections::a_flow_opened_a_second_before_the_deadline_starves", opened_a_second_before_the_deadline),
    ("connections::revoking_starves_and_a_later_grant_revives_nothing", revoking_starves),
    ("connections::another_live_grant_keeps_a_connection_alive", another_live_grant_keeps_alive),
    ("connections::an_ended_connection_is_closed_on_both_sides", closed_on_both_sides),
    ("connections::an_ended_connection_is_closed_in_another_network_namespace", closed_in_another_namespace),
    ("connections::who_was_connected_to_is_unharmed", who_was_connected_to_is_unharmed),
    ("connections::who_writes_to_one_that_is_over_is_told", who_writes_to_one_that_is_over_is_told),
];

/// The promise of SPECIFICATION.md: nothing arrives later than this after the end.
pub(crate) const LATE_MAX_NS: u64 = 1_000_000_000;

/// How long it is watched that nothing arrives: past the bound, and long enough for TCP to try again several times.
pub(crate) const WATCHED: Duration = Duration::from_millis(2500);

pub(crate) const SOON: Duration = Duration::from_secs(10);

/// A process that streams bytes. Dropped, it is killed.
pub(crate) struct Streaming {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Streaming {
    pub(crate) fn start(cgroup: &Cgroup, attempt: Attempt, to: SocketAddr) -> Result<Self> {
        Self::start_command(&mut probe::command(cgroup, attempt, to, "")?)
    }

    /// The same, by any command that says `connected` first.
    pub(crate) fn start_command(command: &mut Command) -> Result<Self> {
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("the probe's output")?).lines();
        let mut streaming = Self { child, lines };
        ensure_eq!(streaming.next_line()?, "connected");
        Ok(streaming)
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Stops it, or lets it go on.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.pid())?), signal)?)
    }

    /// What it says next.
    pub(crate) fn next_line(&mut self) -> Result<String> {
        Ok(self.lines.next().context("the probe said nothing more")??)
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        // It has ended by itself, or does now.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A gate over a server that counts, and a subject.
pub(crate) fn stage(protocol: Protocol) -> Result<(Fixture, StreamServer, Cgroup)> {
    let mut fixture = Fixture::new()?;
    let server = StreamServer::start(protocol, (fixture.sandbox.address(), 0).into())?;
    fixture.wanted.resources.push(resource(RESOURCE, server.address(), protocol)?);
    let cgroup = fixture.subject("subject")?;
    Ok((fixture, server, cgroup))
}

pub(crate) fn wait_for_bytes(server: &StreamServer) -> Result<()> {
    let before = server.arrived();
    wait_for("bytes to arrive", SOON, || Ok((server.arrived() > before).then_some(())))
}

/// Nothing arrived later than the bound after `end_boot_ns`.
pub(crate) fn ensure_starved(server: &StreamServer, end_boot_ns: u64) -> Result<()> {
    std::thread::sleep(WATCHED);
    let last = server.last_boot_ns();
    if last > end_boot_ns + LATE_MAX_NS {
        bail!("a byte arrived {} ms after the end", (last - end_boot_ns) / 1_000_000);
    }
    Ok(())
}

fn starves_at_its_deadline(protocol: Protocol, attempt: Attempt) -> Result<()> {
    let (mut fixture, server, cgroup) = stage(protocol)?;
    let grant = fixture.grant(Duration::from_secs(2))?;
    let _streaming = Streaming::start(&cgroup, attempt, server.address())?;
    wait_for_bytes(&server)?;
    let now = now_boot_ns();
    std::thread::sleep(Duration::from_nanos(grant.expires_at_boot_ns.saturating_sub(now)));
    ensure_starved(&server, grant.expires_at_boot_ns)
}

fn a_tcp_flow_starves_at_its_deadline() -> Result<()> {
    starves_at_its_deadline(Protocol::Tcp, Attempt::TcpStream)
}

fn a_udp_flow_starves_at_its_deadline() -> Result<()> {
    starves_at_its_deadline(Protocol::Udp, Attempt::UdpStream)
}

fn opened_a_second_before_the_deadline() -> Result<()> {
    let (mut fixture, server, cgroup) = stage(Protocol::Tcp)?;
    let grant = fixture.grant(Duration::from_secs(3))?;
    let until_a_second_before = grant.expires_at_boot_ns.saturating_sub(now_boot_ns() + 1_000_000_000);
    std::thread::sleep(Duration::from_nanos(until_a_second_before));
    let _streaming = Streaming::start(&cgroup, Attempt::TcpStream, server.address())?;
    wait_for_bytes(&server)?;
    std::thread::sleep(Duration::from_nanos(grant.expires_at_boot_ns.saturating_sub(now_boot_ns())));
    ensure_starved(&server, grant.expires_at_boot_ns)
}

fn revoking_starves() -> Result<()> {
    let (mut fixture, server, cgroup) = stage(Protocol::Tcp)?;
    fixture.grant(HOUR)?;
    let _streaming = Streaming::start(&cgroup, Attempt::TcpStream, server.address())?;
    wait_for_bytes(&server)?;
    fixture.revoke_all()?;
    let revoked = now_boot_ns();
    ensure_starved(&server, revoked)?;
    // The kernel has bytes queued, and goes on trying: the next grant is not for them.
    let before = server.arrived();
    fixture.grant(HOUR)?;
    std::thread::sleep(WATCHED);
    ensure_eq!(server.arrived(), before);
    Ok(())
}

fn another_live_grant_keeps_alive() -> Result<()> {
    let (mut fixture, server, cgroup) = stage(Protocol::Tcp)?;
    let first = fixture.grant(HOUR)?;
    let _streaming = Streaming::start(&cgroup, Attempt::TcpStream, server.address())?;
    wait_for_bytes(&server)?;
    // A shorter one beside it; then the one that let it through is taken away.
    fixture.grant(HOUR / 2)?;
    fixture.wanted.grants.retain(|grant| grant.id != first.id);
    fixture.apply()?;
    wait_for_bytes(&server)?;
    fixture.revoke_all()?;
    let revoked = now_boot_ns();
    ensure_starved(&server, revoked)
}

/// A connection, as the agent's next step wants it.
pub(crate) fn target((cookie, entry): &(u64, ConnectionEntry)) -> Target {
    Target { cookie: *cookie, netns_cookie: entry.netns_cookie, pid: entry.pid }
}

/// The connections of ended grants.
fn targets(fixture: &Fixture) -> Result<Vec<Target>> {
    let connections = fixture.gate.connections()?;
    let ended = |entry: &ConnectionEntry| !fixture.entries.counts(entry.slot, entry.epoch, now_boot_ns());
    Ok(connections.iter().filter(|(_, entry)| ended(entry)).map(target).collect())
}

fn closed_on_both_sides() -> Result<()> {
    let (mut fixture, server, cgroup) = stage(Protocol::Tcp)?;
    fixture.grant(HOUR)?;
    let mut streaming = Streaming::start(&cgroup, Attempt::TcpStream, server.address())?;
    wait_for_bytes(&server)?;
    ensure_eq!(targets(&fixture)?, []);
    fixture.revoke_all()?;
    let ended = sockets::end(&targets(&fixture)?);
    ensure_eq!((ended.closed.len(), ended.gone.len(), ended.unconfirmed.len()), (1, 0, 0));
    ensure_eq!(streaming.next_line()?, "ECONNABORTED");
    wait_for("the server to be told", SOON, || Ok(server.is_closed().then_some(())))?;
    // Ended already: nothing is left to end, and nothing in doubt.
    let ended = sockets::end(&targets(&fixture)?);
    ensure_eq!((ended.closed.len(), ended.unconfirmed.len()), (0, 0));
    drop(streaming);
    wait_for("the connection to be forgotten", SOON, || {
        Ok(fixture.gate.connections()?.is_empty().then_some(()))
    })
}

fn closed_in_another_namespace() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let to = SocketAddr::new(fixture.sandbox.address().into(), 5432);
    fixture.wanted.resources.push(resource(RESOURCE, to, Protocol::Tcp)?);
    let cgroup = fixture.subject("subject")?;
    fixture.grant(HOUR)?;
    let mut streaming = Streaming::start(&cgroup, Attempt::TcpStreamInNewNamespace, to)?;
    fixture.revoke_all()?;
    let ended = sockets::end(&targets(&fixture)?);
    ensure_eq!((ended.closed.len(), ended.gone.len(), ended.unconfirmed.len()), (1, 0, 0));
    ensure_eq!(streaming.next_line()?, "ECONNABORTED");
    Ok(())
}

/// The server's answers, and connections that a protected host itself opens to somebody, are nobody's access: here the
/// server's side of a connection goes to a port that is protected too.
fn who_was_connected_to_is_unharmed() -> Result<()> {
    let (mut fixture, server, cgroup) = stage(Protocol::Tcp)?;
    // Every port of the address, so also the one that the client happens to get.
    let mut everything = fixture.wanted.resources[0].clone();
    everything.number = 2.try_into()?;
    everything.name = "everything".parse()?;
    everything.ports = vec!["tcp/1-65535".parse()?];
    everything.addresses = vec!["127.0.0.1".parse()?];
    fixture.wanted.resources.push(everything);
    fixture.grant_to(SUBJECT, RESOURCE, HOUR)?;
    let _streaming = Streaming::start(&cgroup, Attempt::TcpStream, server.address())?;
    // The client's address is 127.0.0.1: without the server's acknowledgements nothing would go on.
    let after_a_while = server.arrived() + 500;
    wait_for("half a second's bytes", SOON, || Ok((server.arrived() > after_a_while).then_some(())))
}

/// The kernel answers for a connection that is not there any more, by a socket of its own: nobody's access, and no denial.
fn who_writes_to_one_that_is_over_is_told() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let listener = TcpListener::bind((fixture.sandbox.address(), 0))?;
    let address = listener.local_addr()?;
    fixture.wanted.resources.push(resource(RESOURCE, address, Protocol::Tcp)?);
    let cgroup = fixture.subject("subject")?;
    fixture.grant(HOUR)?;
    ensure_eq!(probe::run(&cgroup, Attempt::TcpVanish, address, "x")?, "ok");
    let (mut accepted, _) = listener.accept()?;
    accepted.write_all(b"y")?;
    let error = wait_for("the answer to what nobody reads", SOON, || Ok(accepted.take_error()?))?;
    ensure_eq!(error.kind(), ErrorKind::ConnectionReset);
    ensure_eq!(fixture.denials(), []);
    Ok(())
}
