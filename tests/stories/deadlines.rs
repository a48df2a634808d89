//! A grant ends at its deadline, whoever is still there to end it.

use std::io::{BufRead, BufReader, Lines};
use std::process::{ChildStdout, Stdio};
use std::time::Duration;

use agent::clock::now_boot_ns;
use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use tests::ensure_eq;
use tests::probe::{self, Attempt};
use tests::runner::Test;
use tests::stage::ADMIN;

use crate::life::{connect, stage_with_resource};

pub(crate) const TESTS: &[Test] = &[
    ("deadlines::a_grant_ends_with_the_agent_stopped_and_the_control_plane_killed", alone),
    ("deadlines::a_grant_that_ran_out_is_shown_as_ended", shown_as_ended),
];

/// The promise of SPECIFICATION.md: no connection that begins later than this after the deadline is let through.
const LATE_MAX: Duration = Duration::from_millis(100);

/// Reads what a prober says of its attempts until so many were denied that began [`LATE_MAX`] after `latest`. The deadline lies between
/// `earliest` and `latest`: somebody is let through before, nobody is denied before, and nobody is let through so late. Returns when the first
/// one that was denied began. All moments are of the boot clock, in nanoseconds.
pub(crate) fn until_shut(
    lines: Lines<BufReader<ChildStdout>>,
    earliest: u64,
    latest: u64,
    denials: usize,
) -> Result<u64> {
    let late = latest + u64::try_from(LATE_MAX.as_nanos())?;
    let (mut allowed, mut first_denial, mut denied_late) = (0, None, 0);
    for line in lines {
        let line = line?;
        let (began, result) = line.split_once(' ').context("two words")?;
        let began: u64 = began.parse()?;
        match result {
            "ok" if began >= late => bail!("let through {} ns after the deadline", began - latest),
            "ok" => allowed += 1,
            "EPERM" if began < earliest => bail!("denied {} ns before the deadline", earliest - began),
            "EPERM" => {
                first_denial.get_or_insert(began);
                denied_late += usize::from(began >= late);
            }
            other => bail!("an attempt failed otherwise: {other}"),
        }
        if denied_late >= denials {
            break;
        }
    }
    ensure_eq!(allowed > 0, true, "no attempt before the deadline was let through");
    ensure_eq!(denied_late, denials, "the prober ended too soon");
    first_denial.context("no attempt was denied")
}

fn alone() -> Result<()> {
    const DURATION: Duration = Duration::from_secs(4);
    // 1. Alice has a grant for some seconds, and connects every millisecond.
    let (mut stage, listener) = stage_with_resource()?;
    let alice = stage.add_subject_with_cgroup("user:alice")?;
    let before_boot_ns = now_boot_ns();
    stage.grant("user:alice", "db", &format!("{}s", DURATION.as_secs()))?;
    let active_boot_ns = now_boot_ns();
    let mut command = probe::command(&alice, Attempt::TcpEveryMillisecond, listener.address(), "prober")?;
    let mut prober = command.stdout(Stdio::piped()).spawn()?;
    let lines = BufReader::new(prober.stdout.take().context("the prober's output")?).lines();

    // 2. The agent is stopped, and the control plane is gone.
    stage.agent()?.signal(Signal::SIGSTOP)?;
    stage.kill_control_plane()?;

    // 3. The grant was approved, and so its time began, between asking and seeing it active: its deadline is known to lie
    //    between these two. She is let through before the earlier one, and never once the later one is over.
    let duration_ns = u64::try_from(DURATION.as_nanos())?;
    let (earliest, latest) = (before_boot_ns + duration_ns, active_boot_ns + duration_ns);
    // Long enough to see that it stays shut.
    let first_denial = until_shut(lines, earliest, latest, 500)?;
    prober.kill()?;
    prober.wait()?;

    // 4. Exactly: the deadline that the kernel holds. No attempt begun at or after it was let through, and the first denial
    //    is the end of the grant, not another one.
    ensure_eq!(first_denial >= earliest, true, "{first_denial}");
    stage.agent()?.signal(Signal::SIGCONT)?;
    Ok(())
}

fn shown_as_ended() -> Result<()> {
    let (stage, listener) = stage_with_resource()?;
    let alice = stage.add_subject_with_cgroup("user:alice")?;
    let grant = stage.grant("user:alice", "db", "2s")?;
    let ended = stage.wait_for_grant(&grant, "ended")?;
    ensure_eq!(ended["end_reason"], "time");
    ensure_eq!(connect(&alice, &listener)?, "EPERM");
    // The denial says that there had been a grant, and which.
    let denial = stage.wait_for_event("the denial", |event| event["reason"] == "expired")?;
    ensure_eq!(denial["grant"], grant);
    ensure_eq!(stage.cli(ADMIN)?.json(&["grants"])?.as_array().map(Vec::len), Some(0));
    Ok(())
}
