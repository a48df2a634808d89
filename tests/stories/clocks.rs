//! The wall clock of the control plane is set by an hour while people work: nothing lasts longer for it, and nothing ends.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use agent::clock::now_boot_ns;
use anyhow::{Context, Result, bail};
use proto::types::Protocol;
use serde_json::Value;
use tests::ensure_eq;
use tests::listener::Listener;
use tests::probe::{self, Attempt};
use tests::runner::Test;
use tests::sandbox::Cgroup;
use tests::stage::{ADMIN, Plan, Stage, text};
use tests::tampering::{Pinned, Word};
use uuid::Uuid;

use crate::deadlines::until_shut;
use crate::life::connect;

pub(crate) const TESTS: &[Test] =
    &[("clocks::an_hour_forward_or_back_neither_ends_nor_stretches_a_grant", an_hour_forward_or_back)];

const HOUR_S: i64 = 3600;

/// How long the short grants of this story last.
const SHORT: Duration = Duration::from_secs(4);

/// A process that ends with the story, however that ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended by itself, or does so now.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until the record says that the wall clock was set, for the how manieth time in all, and how.
fn wait_for_step(stage: &Stage, number: usize, reason: &str, length: &str) -> Result<()> {
    let cli = stage.cli(ADMIN)?;
    let steps = tests::process::wait_for("the step to be on record", tests::stage::SOON, || {
        let events = cli.events()?;
        let steps: Vec<Value> =
            events.into_iter().filter(|event| event["event"] == "clock.stepped").collect();
        Ok((steps.len() >= number).then_some(steps))
    })?;
    let step = steps.last().context("a step")?;
    ensure_eq!((steps.len(), text(step, "reason")?.as_str()), (number, reason), "{steps:?}");
    let comment = text(step, "comment")?;
    // It is told in whole seconds.
    ensure_eq!(comment.contains(&format!(" {reason} by {length}")), true, "{comment}");
    ensure_eq!(comment.contains("grants keep their time"), true, "{comment}");
    Ok(())
}

/// How long the kernel goes on letting somebody through by a grant.
fn left_in_kernel(stage: &Stage, grant: &str) -> Result<Duration> {
    let pinned = Pinned::at(&stage.sandbox().pin_dir());
    // The first half of its id, as it lies in memory.
    let name = u64::from_ne_bytes(*Uuid::try_parse(grant)?.as_bytes().first_chunk().context("a half")?);
    for index in 0.. {
        let slot = pinned.slot(index)?.context("the kernel has no slot of the grant")?;
        if slot.word(Word::Grant) == name {
            return Ok(Duration::from_nanos(slot.word(Word::Deadline).saturating_sub(now_boot_ns())));
        }
    }
    bail!("there are more slots than numbers")
}

/// Somebody gets a grant for some seconds: it lets them through before these are over, and not any more after them.
fn lasts_as_long_as_it_should(
    stage: &Stage,
    subject: &str,
    cgroup: &Cgroup,
    listener: &Listener,
) -> Result<()> {
    let before_boot_ns = now_boot_ns();
    let grant = stage.grant(subject, "db", &format!("{}s", SHORT.as_secs()))?;
    let active_boot_ns = now_boot_ns();
    let mut command = probe::command(cgroup, Attempt::TcpEveryMillisecond, listener.address(), "prober")?;
    let mut prober = Running(command.stdout(Stdio::piped()).spawn()?);
    let lines = BufReader::new(prober.0.stdout.take().context("the prober's output")?).lines();
    // Its time began between asking and seeing it active. The clock of the control plane may go by 1 % faster or slower.
    let short_ns = u64::try_from(SHORT.as_nanos())?;
    let (earliest, latest) =
        (before_boot_ns + short_ns - short_ns / 100, active_boot_ns + short_ns + short_ns / 100);
    until_shut(lines, earliest, latest, 100)?;
    drop(prober);
    let ended = stage.wait_for_grant(&grant, "ended")?;
    ensure_eq!(ended["end_reason"], "time");
    Ok(())
}

fn an_hour_forward_or_back() -> Result<()> {
    // 1. Alice has a grant for some minutes, and works by it: a byte every millisecond.
    let mut stage = Stage::start_as(Plan { has_own_clock: true, ..Plan::default() })?;
    let own = stage.sandbox().address();
    // One for the connection that goes on, and one for all that come and go.
    let [lasting, listener] =
        [Listener::start(Protocol::Tcp, (own, 0).into())?, Listener::start(Protocol::Tcp, (own, 0).into())?];
    let mut add = vec!["resource".to_owned(), "add".to_owned(), "db".to_owned()];
    add.extend(["--address".to_owned(), own.to_string()]);
    for server in [&lasting, &listener] {
        add.extend(["--port".to_owned(), format!("tcp/{}", server.address().port())]);
    }
    stage.cli(ADMIN)?.run(&add.iter().map(String::as_str).collect::<Vec<_>>())?;
    stage.wait_until_applied()?;
    let alice = stage.add_subject_with_cgroup("user:alice")?;
    let bob = stage.add_subject_with_cgroup("user:bob")?;
    let before_boot_ns = now_boot_ns();
    let grant = stage.grant("user:alice", "db", "10m")?;
    let mut command = probe::command(&alice, Attempt::TcpStream, lasting.address(), "worker")?;
    let mut worker = Running(command.stdout(Stdio::piped()).spawn()?);
    let mut lines = BufReader::new(worker.0.stdout.take().context("the worker's output")?).lines();
    ensure_eq!(lines.next().context("a line")??, "connected");
    let expires = text(&stage.wait_for_grant(&grant, "active")?, "expires")?;

    // 2. The wall clock of the control plane is set an hour forward. That is on record, and nothing ends.
    stage.set_wall_clock(HOUR_S)?;
    wait_for_step(&stage, 1, "forward", "1h")?;
    stage.wait_for_grant(&grant, "active")?;
    ensure_eq!(worker.0.try_wait()?, None);

    // 3. A new grant lasts as long as it should.
    lasts_as_long_as_it_should(&stage, "user:bob", &bob, &listener)?;

    // 4. The control plane is restarted, and another time it crashes: it goes on as if it had not. The agent comes back, though by the
    //    wall clock the control plane's new certificate is of the future.
    stage.control_plane()?.stop()?;
    stage.start_control_plane()?;
    stage.wait_for_host("enforcing")?;
    stage.wait_for_grant(&grant, "active")?;
    stage.kill_control_plane()?;
    stage.start_control_plane()?;
    stage.wait_for_host("enforcing")?;
    lasts_as_long_as_it_should(&stage, "user:bob", &bob, &listener)?;
    ensure_eq!(text(&stage.wait_for_grant(&grant, "active")?, "expires")?, expires);
    ensure_eq!(worker.0.try_wait()?, None);

    // 5. It is set two hours back, and so one behind what is right. What a host first sees now lasts no longer, be it short or long.
    stage.set_wall_clock(-HOUR_S)?;
    wait_for_step(&stage, 2, "back", "2h")?;
    lasts_as_long_as_it_should(&stage, "user:bob", &bob, &listener)?;
    stage.control_plane()?.stop()?;
    stage.start_control_plane()?;
    stage.wait_for_host("enforcing")?;
    lasts_as_long_as_it_should(&stage, "user:bob", &bob, &listener)?;
    let long = stage.grant("user:bob", "db", "30m")?;
    let left = left_in_kernel(&stage, &long)?;
    ensure_eq!(left <= Duration::from_secs(30 * 60), true, "{left:?}");
    ensure_eq!(left > Duration::from_secs(25 * 60), true, "{left:?}");

    // 6. What was granted before all that is as it was, on the host, too.
    ensure_eq!(text(&stage.wait_for_grant(&grant, "active")?, "expires")?, expires);
    let left = left_in_kernel(&stage, &grant)? + Duration::from_nanos(now_boot_ns() - before_boot_ns);
    let (ten, tolerated) = (Duration::from_secs(10 * 60), tests::stage::SOON);
    ensure_eq!(left >= ten && left < ten + tolerated, true, "{left:?}");
    ensure_eq!(worker.0.try_wait()?, None);
    ensure_eq!(connect(&alice, &listener)?, "ok");

    // 7. Its end is one that somebody makes, and the steps have made none.
    let ended_by_steps = |event: &Value| event["event"] == "grant.ending";
    ensure_eq!(stage.events()?.iter().any(ended_by_steps), false);
    stage.cli(ADMIN)?.run(&["revoke", &grant])?;
    stage.wait_for_grant(&grant, "ended")?;
    let end = lines.next().context("a line")??;
    ensure_eq!(end.starts_with('E'), true, "{end}");
    worker.0.wait()?;
    Ok(())
}
