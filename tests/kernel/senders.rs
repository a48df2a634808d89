//! The per-send check: whoever writes on a connection must be the subject that it was let through for.

use std::fs;

use agent::kernel::part_of_check;
use agent::rules::plan::{Check, ResourceOptions};
use agent_ebpf::abi::Hook;
use agent_ebpf::verdict::{Reason, Verdict};
use anyhow::{Result, bail};
use proto::types::Protocol;
use tests::ensure_eq;
use tests::listener::StreamServer;
use tests::probe::Attempt;
use tests::process::wait_for;
use tests::runner::Test;
use tests::sandbox::Cgroup;

use crate::connections::{SOON, Streaming, stage, wait_for_bytes};
use crate::fixture::{Fixture, HOUR, RESOURCE, SUBJECT, own_faults, reaches};

pub(crate) const TESTS: &[Test] = &[
    ("senders::the_kernel_has_the_check_and_only_while_wanted", the_kernel_has_the_check),
    ("senders::whom_it_was_let_through_for_writes", whom_it_was_let_through_for_writes),
    ("senders::somebody_else_does_not", somebody_else_does_not),
    ("senders::somebody_else_does_where_it_is_only_observed", somebody_else_does_where_only_observed),
    ("senders::the_check_can_be_lifted", the_check_can_be_lifted),
    ("senders::taking_over_goes_on_checking", taking_over_goes_on_checking),
    ("senders::new_kernels_have_the_check_of_datagrams", new_kernels_have_the_check_of_datagrams),
    ("senders::somebody_else_sends_no_datagrams", somebody_else_sends_no_datagrams),
    ("senders::datagrams_where_it_is_only_observed", datagrams_where_only_observed),
    ("senders::the_check_of_datagrams_is_there_only_while_wanted", the_check_of_datagrams_only_while_wanted),
    ("senders::taking_over_goes_on_checking_datagrams", taking_over_goes_on_checking_datagrams),
];

const CHECKED: ResourceOptions = ResourceOptions { observe: false, strict_audit: false, per_send: true };
const OBSERVED: ResourceOptions = ResourceOptions { observe: true, ..CHECKED };
const UNCHECKED: ResourceOptions = ResourceOptions { per_send: false, ..CHECKED };

/// Before anybody wants it, and after, it costs nothing.
fn the_kernel_has_the_check() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let _tcp = fixture.protected(Protocol::Tcp)?;
    let without = fixture.gate.attached();
    fixture.guard(RESOURCE, CHECKED)?;
    ensure_eq!(fixture.gate.missing(), []);
    ensure_eq!(fixture.gate.attached(), without + 1);
    ensure_eq!(fixture.gate.read_whole()?.judged, [Check::Senders].into());
    fixture.guard(RESOURCE, UNCHECKED)?;
    ensure_eq!((fixture.gate.attached(), fixture.gate.read_whole()?.judged), (without, [].into()));
    Ok(())
}

fn whom_it_was_let_through_for_writes() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let listener = fixture.protected(Protocol::Tcp)?;
    fixture.guard(RESOURCE, CHECKED)?;
    let cgroup = fixture.subject("subject")?;
    let within = fixture.sandbox.make_cgroup("subject/within/it")?;
    fixture.grant(HOUR)?;
    for cgroup in [cgroup, within] {
        ensure_eq!(reaches(&cgroup, Attempt::Tcp, listener.address(), &listener)?, true, "{}", cgroup.path);
    }
    ensure_eq!(fixture.denials().len(), 0);
    Ok(())
}

/// A granted process streams under the check, and is moved to nobody's cgroup.
fn moved(options: ResourceOptions) -> Result<(Fixture, StreamServer, Streaming, Cgroup)> {
    moved_by(Protocol::Tcp, options)
}

fn moved_by(
    protocol: Protocol,
    options: ResourceOptions,
) -> Result<(Fixture, StreamServer, Streaming, Cgroup)> {
    let (mut fixture, server, cgroup) = stage(protocol)?;
    fixture.guard(RESOURCE, options)?;
    fixture.grant(HOUR)?;
    let attempt = if protocol == Protocol::Tcp { Attempt::TcpStream } else { Attempt::UdpStream };
    let streaming = Streaming::start(&cgroup, attempt, server.address())?;
    wait_for_bytes(&server)?;
    let nobody = fixture.sandbox.make_cgroup("nobody")?;
    Ok((fixture, server, streaming, nobody))
}

fn enter(nobody: &Cgroup, streaming: &Streaming) -> Result<()> {
    Ok(fs::write(nobody.directory.join("cgroup.procs"), streaming.pid().to_string())?)
}

/// It is told EACCES, nothing more arrives, and one record says who it was.
fn is_refused(
    fixture: &mut Fixture,
    server: &StreamServer,
    streaming: &mut Streaming,
    nobody: &Cgroup,
) -> Result<()> {
    is_refused_at((Hook::Send, "EACCES", 6), fixture, server, streaming, nobody)
}

fn is_refused_at(
    (hook, error, protocol): (Hook, &str, u8),
    fixture: &mut Fixture,
    server: &StreamServer,
    streaming: &mut Streaming,
    nobody: &Cgroup,
) -> Result<()> {
    enter(nobody, streaming)?;
    ensure_eq!(streaming.next_line()?, error);
    let denials = fixture.denials();
    let [record] = denials.as_slice() else { bail!("{denials:?}") };
    ensure_eq!(
        (record.hook, record.verdict, record.reason),
        (hook as u8, Verdict::Deny as u8, Reason::SenderDiffers as u8)
    );
    ensure_eq!((record.cgroup_id, record.pid, record.subject), (nobody.id()?, streaming.pid(), 0));
    let port = server.address().port();
    ensure_eq!((record.resource, record.port, record.protocol), (RESOURCE, port, protocol));
    let name = fixture.entries.names.values().next().copied();
    ensure_eq!((Some(record.grant), record.socket_cookie != 0), (name, true));
    Ok(())
}

fn somebody_else_does_not() -> Result<()> {
    let (mut fixture, server, mut streaming, nobody) = moved(CHECKED)?;
    is_refused(&mut fixture, &server, &mut streaming, &nobody)
}

fn wait_for_a_while(server: &StreamServer) -> Result<()> {
    let after_a_while = server.arrived() + 200;
    wait_for("some bytes", SOON, || Ok((server.arrived() > after_a_while).then_some(())))
}

fn somebody_else_does_where_only_observed() -> Result<()> {
    let (mut fixture, server, streaming, nobody) = moved(OBSERVED)?;
    enter(&nobody, &streaming)?;
    wait_for_a_while(&server)?;
    let denials = fixture.denials();
    let said: Vec<(u8, u8)> = denials.iter().map(|record| (record.verdict, record.reason)).collect();
    ensure_eq!(said, [(Verdict::WouldDeny as u8, Reason::SenderDiffers as u8)]);
    Ok(())
}

fn the_check_can_be_lifted() -> Result<()> {
    let (mut fixture, server, streaming, nobody) = moved(CHECKED)?;
    fixture.guard(RESOURCE, UNCHECKED)?;
    enter(&nobody, &streaming)?;
    wait_for_a_while(&server)?;
    ensure_eq!(fixture.denials().len(), 0);
    Ok(())
}

/// A connection from before stays checked, and so does the next one.
fn taking_over_goes_on_checking() -> Result<()> {
    let (mut fixture, server, mut streaming, nobody) = moved(CHECKED)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut next = runtime.block_on(async {
        agent::kernel::Gate::raise(&fixture.settings, fixture.sandbox.cgroup_root()).map(|(gate, _)| gate)
    })?;
    ensure_eq!(next.missing(), []);
    fixture.gate = next;
    is_refused(&mut fixture, &server, &mut streaming, &nobody)?;
    let listener = fixture.protected(Protocol::Tcp)?;
    fixture.guard(RESOURCE + 1, CHECKED)?;
    fixture.grant_to(SUBJECT, RESOURCE + 1, HOUR)?;
    let cgroup = fixture.sandbox.make_cgroup("subject")?;
    let mut streaming = Streaming::start(&cgroup, Attempt::TcpStream, listener.address())?;
    enter(&nobody, &streaming)?;
    ensure_eq!(streaming.next_line()?, "EACCES");
    Ok(())
}

const DATAGRAM: (Hook, &str, u8) = (Hook::Datagram, "EPERM", 17);

/// Whether the gate judges who sends datagrams, as far as it is asked to.
fn lacks_datagrams(fixture: &mut Fixture) -> Result<bool> {
    match fixture.gate.missing().as_slice() {
        [] => Ok(false),
        [missing] if missing.part == part_of_check(Check::Datagrams) => Ok(true),
        missing => bail!("{missing:?}"),
    }
}

/// Programs at packets are told who runs from Linux 6.12 on. Elsewhere the lack is told, once a resource asks for it.
fn new_kernels_have_the_check_of_datagrams() -> Result<()> {
    let mut fixture = Fixture::new()?;
    let _tcp = fixture.protected(Protocol::Tcp)?;
    fixture.guard(RESOURCE, CHECKED)?;
    ensure_eq!(fixture.gate.missing(), [], "TCP does not want it");
    let _udp = fixture.protected(Protocol::Udp)?;
    ensure_eq!(fixture.gate.missing(), [], "nobody wants it");
    fixture.guard(RESOURCE + 1, CHECKED)?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let is_new = (numbers.next(), numbers.next()) >= (Some(6), Some(12));
    let lacks = lacks_datagrams(&mut fixture)?;
    ensure_eq!(is_new && lacks, false, "{release}: {:?}", fixture.gate.missing());
    fixture.guard(RESOURCE + 1, UNCHECKED)?;
    ensure_eq!(fixture.gate.missing(), []);
    Ok(())
}

fn somebody_else_sends_no_datagrams() -> Result<()> {
    let (mut fixture, server, mut streaming, nobody) = moved_by(Protocol::Udp, CHECKED)?;
    if lacks_datagrams(&mut fixture)? {
        enter(&nobody, &streaming)?;
        return wait_for_a_while(&server);
    }
    is_refused_at(DATAGRAM, &mut fixture, &server, &mut streaming, &nobody)?;
    // Unconnected, each datagram is its sender's.
    let listener = fixture.protected(Protocol::Udp)?;
    fixture.guard(RESOURCE + 1, CHECKED)?;
    fixture.grant_to(SUBJECT, RESOURCE + 1, HOUR)?;
    let cgroup = fixture.sandbox.make_cgroup("subject")?;
    for attempt in [Attempt::UdpSend, Attempt::UdpConnect] {
        ensure_eq!(reaches(&cgroup, attempt, listener.address(), &listener)?, true, "{attempt:?}");
    }
    ensure_eq!(fixture.denials().len(), 0);
    Ok(())
}

fn datagrams_where_only_observed() -> Result<()> {
    let (mut fixture, server, streaming, nobody) = moved_by(Protocol::Udp, OBSERVED)?;
    enter(&nobody, &streaming)?;
    wait_for_a_while(&server)?;
    let said: Vec<(u8, u8)> = fixture.denials().iter().map(|record| (record.hook, record.verdict)).collect();
    match lacks_datagrams(&mut fixture)? {
        true => ensure_eq!(said, []),
        false => ensure_eq!(said, [(Hook::Datagram as u8, Verdict::WouldDeny as u8)]),
    }
    Ok(())
}

/// Before anybody wants it, and after, it costs nothing; and who was let through before is judged too.
fn the_check_of_datagrams_only_while_wanted() -> Result<()> {
    let (mut fixture, server, mut streaming, nobody) = moved_by(Protocol::Udp, UNCHECKED)?;
    let without = fixture.gate.attached();
    fixture.guard(RESOURCE, CHECKED)?;
    let lacks = lacks_datagrams(&mut fixture)?;
    ensure_eq!(fixture.gate.attached(), without + usize::from(!lacks));
    ensure_eq!(fixture.gate.read_whole()?.judged.contains(&Check::Datagrams), true);
    ensure_eq!(own_faults(&mut fixture.gate), []);
    fixture.guard(RESOURCE, UNCHECKED)?;
    ensure_eq!(fixture.gate.attached(), without);
    if !lacks {
        fixture.guard(RESOURCE, CHECKED)?;
        is_refused_at(DATAGRAM, &mut fixture, &server, &mut streaming, &nobody)?;
    }
    Ok(())
}

fn taking_over_goes_on_checking_datagrams() -> Result<()> {
    let (mut fixture, server, mut streaming, nobody) = moved_by(Protocol::Udp, CHECKED)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (attached, lacks) = (fixture.gate.attached(), lacks_datagrams(&mut fixture)?);
    let next = runtime.block_on(async {
        agent::kernel::Gate::raise(&fixture.settings, fixture.sandbox.cgroup_root()).map(|(gate, _)| gate)
    })?;
    fixture.gate = next;
    ensure_eq!(fixture.gate.attached(), attached);
    // Of what the kernel lacks nothing is left: the next agent wants it anew, and is told.
    ensure_eq!(fixture.gate.read()?.judged.contains(&Check::Datagrams), !lacks);
    match lacks {
        true => Ok(()),
        false => is_refused_at(DATAGRAM, &mut fixture, &server, &mut streaming, &nobody),
    }
}
