//! Processes that are moved into somebody's cgroup: by whom, and who.

use std::fs;
use std::process::{Child, Command};
use std::time::Duration;

use agent_ebpf::abi::{MovedRecord, Ring, map};
use anyhow::{Result, bail};
use proto::types::EventKind;
use tests::ensure_eq;
use tests::process::wait_for;
use tests::runner::Test;
use tests::sandbox::Cgroup;
use tests::stage::SOON;

use crate::fixture::{Fixture, SUBJECT};
use crate::workloads;

pub(crate) const TESTS: &[Test] = &[
    ("migrations::who_is_moved_by_whom_is_recorded", who_is_moved_by_whom_is_recorded),
    ("migrations::what_a_full_ring_loses_is_counted", what_a_full_ring_loses_is_counted),
    ("migrations::an_entry_is_an_event", an_entry_is_an_event),
];

/// A process that does nothing, and ends with the test.
struct Sleeper(Child);

impl Sleeper {
    fn new() -> Result<Self> {
        let sleeper = Self(Command::new("sleep").arg("600").spawn()?);
        // A process that becomes another program lets go of whoever waits for that before it has its name.
        let name = format!("/proc/{}/comm", sleeper.0.id());
        wait_for("it to be named `sleep`", SOON, || {
            Ok((fs::read_to_string(&name)? == "sleep\n").then_some(()))
        })?;
        Ok(sleeper)
    }

    fn move_to(&self, cgroup: &Cgroup) -> Result<()> {
        Ok(fs::write(cgroup.directory.join("cgroup.procs"), self.0.id().to_string())?)
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn who_is_moved_by_whom_is_recorded() -> Result<()> {
    let mut fixture = Fixture::new()?;
    ensure_eq!(fixture.gate.missing(), []);
    let (bound, nobodys) = (fixture.subject("subject")?, fixture.sandbox.make_cgroup("nobody")?);
    let below = fixture.sandbox.make_cgroup("subject/below/deeper")?;
    let sleeper = Sleeper::new()?;
    // Into nobody's: nothing. Into the subject's, below it, and out again: two records.
    for cgroup in [&nobodys, &bound, &below, &nobodys] {
        sleeper.move_to(cgroup)?;
    }
    let records: Vec<MovedRecord> = fixture.moved.by_ref().collect();
    let [first, second] = records.as_slice() else { bail!("two records are expected: {records:?}") };
    let mover_cgroup_id = first.mover_cgroup_id;
    let expected = MovedRecord {
        boot_ns: first.boot_ns,
        cgroup_id: bound.id()?,
        bound_cgroup_id: bound.id()?,
        mover_cgroup_id,
        command: *b"sleep\0\0\0\0\0\0\0\0\0\0\0",
        mover_command: first.mover_command,
        pid: sleeper.0.id(),
        mover_pid: std::process::id(),
        subject: SUBJECT,
        ..MovedRecord::EMPTY
    };
    ensure_eq!(*first, expected);
    let expected = MovedRecord { boot_ns: second.boot_ns, cgroup_id: below.id()?, ..expected };
    ensure_eq!(*second, expected);

    // Whoever goes by themselves, as another user.
    let mut command = tests::process::in_cgroup(&bound, "/bin/true");
    let mut child = command.spawn()?;
    child.wait()?;
    let records: Vec<MovedRecord> = fixture.moved.by_ref().collect();
    let [own] = records.as_slice() else { bail!("one record is expected: {records:?}") };
    ensure_eq!((own.pid, own.mover_pid, own.mover_cgroup_id), (child.id(), child.id(), bound.id()?));
    Ok(())
}

/// A flood of them takes nobody else's room.
fn what_a_full_ring_loses_is_counted() -> Result<()> {
    const MOVES: u64 = 100;
    let mut fixture = Fixture::with(|settings| settings.ring_bytes = 4096)?;
    let (bound, nobodys) = (fixture.subject("subject")?, fixture.sandbox.make_cgroup("nobody")?);
    let sleeper = Sleeper::new()?;
    for _ in 0..MOVES {
        sleeper.move_to(&bound)?;
        sleeper.move_to(&nobodys)?;
    }
    let (lost, kept) = (fixture.gate.lost(Ring::Moved)?, fixture.moved.by_ref().count() as u64);
    ensure_eq!(kept + lost, MOVES);
    ensure_eq!(lost > 0 && kept > 0, true, "lost {lost}, kept {kept}");
    ensure_eq!(fixture.gate.lost(Ring::Deny)?, 0);
    Ok(())
}

/// With the names that people know; also of what happened while there was no agent.
fn an_entry_is_an_event() -> Result<()> {
    let (running, _listener) = workloads::start(&["systemd-unit:app.service"])?;
    let unit = running.sandbox.make_cgroup("system.slice/app.service")?;
    wait_for("the unit to be bound", SOON, || {
        Ok(running.pinned.lookup::<8>(map::SUBJECTS, &unit.id()?.to_ne_bytes())?)
    })?;
    let sleeper = Sleeper::new()?;
    sleeper.move_to(&unit)?;
    let pid = sleeper.0.id();
    // Records are read ten milliseconds after the first of them, and then the process is looked at.
    std::thread::sleep(Duration::from_millis(500));
    drop(sleeper);
    let events = running.events_of(EventKind::WorkloadEntered)?;
    let [event] = events.as_slice() else { bail!("one event is expected: {events:?}") };
    ensure_eq!((event.subject.as_str(), event.reason.as_str()), ("workload:app", "granted"));
    ensure_eq!(event.grant.is_empty(), false);
    let begins = format!("sleep (pid {pid}, uid 0), ");
    ensure_eq!(event.comment.starts_with(&begins), true, "{}", event.comment);
    let by = format!(" (pid {}, uid 0)", std::process::id());
    ensure_eq!(event.comment.contains(", by ") && event.comment.contains(&by), true, "{}", event.comment);
    Ok(())
}
