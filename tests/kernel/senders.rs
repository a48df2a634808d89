//! The per-send check: whoever writes on a connection must be the subject that it was let through for.

use std::fs;

use agent::rules::plan::ResourceOptions;
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
use crate::fixture::{Fixture, HOUR, RESOURCE, SUBJECT, reaches};

pub(crate) const TESTS: &[Test] = &[
    ("senders::the_kernel_has_the_check", the_kernel_has_the_check),
    ("senders::whom_it_was_let_through_for_writes", whom_it_was_let_through_for_writes),
    ("senders::somebody_else_does_not", somebody_else_does_not),
    ("senders::somebody_else_does_where_it_is_only_observed", somebody_else_does_where_only_observed),
    ("senders::the_check_can_be_lifted", the_check_can_be_lifted),
    ("senders::taking_over_goes_on_checking", taking_over_goes_on_checking),
];

const CHECKED: ResourceOptions = ResourceOptions { observe: false, strict_audit: false, per_send: true };
const OBSERVED: ResourceOptions = ResourceOptions { observe: true, ..CHECKED };
const UNCHECKED: ResourceOptions = ResourceOptions { per_send: false, ..CHECKED };

fn the_kernel_has_the_check() -> Result<()> {
    let mut fixture = Fixture::new()?;
    ensure_eq!(fixture.gate.missing(), []);
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
    let (mut fixture, server, cgroup) = stage(Protocol::Tcp)?;
    fixture.guard(RESOURCE, options)?;
    fixture.grant(HOUR)?;
    let streaming = Streaming::start(&cgroup, Attempt::TcpStream, server.address())?;
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
    enter(nobody, streaming)?;
    ensure_eq!(streaming.next_line()?, "EACCES");
    let denials = fixture.denials();
    let [record] = denials.as_slice() else { bail!("{denials:?}") };
    ensure_eq!(
        (record.hook, record.verdict, record.reason),
        (Hook::Send as u8, Verdict::Deny as u8, Reason::SenderDiffers as u8)
    );
    ensure_eq!((record.cgroup_id, record.pid, record.subject), (nobody.id()?, streaming.pid(), 0));
    ensure_eq!((record.resource, record.port, record.protocol), (RESOURCE, server.address().port(), 6));
    let name = fixture.entries.slots.values().next().map(|slot| slot.grant);
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
