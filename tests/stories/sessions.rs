//! Sessions of real programs: whatever is under way when a grant ends, nothing of it arrives later than a second after.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tests::ensure_eq;
use tests::process::{in_cgroup, output, wait_for};
use tests::runner::Test;
use tests::sandbox::Cgroup;
use tests::ssh::Ssh;
use tests::stage::{ADMIN, SOON, Stage};

use crate::psql::database;

pub(crate) const TESTS: &[Test] = &[
    ("sessions::psql_says_nothing_more_after_the_deadline", || psql(End::Deadline)),
    ("sessions::psql_says_nothing_more_after_a_revocation", || psql(End::Revocation)),
    ("sessions::ssh_says_nothing_more_after_the_deadline", || ssh(End::Deadline)),
    ("sessions::ssh_says_nothing_more_after_a_revocation", || ssh(End::Revocation)),
];

/// The promise of SPECIFICATION.md: nothing arrives later than this after the end.
const LATE_MAX: Duration = Duration::from_secs(1);

/// How long it is watched that nothing arrives: past the bound, and long enough for TCP to try again several times.
const WATCHED: Duration = Duration::from_millis(3500);

/// How long a grant lives whose deadline is waited for. A login takes its time on a busy machine.
const SHORT: Duration = Duration::from_secs(6);

/// How a grant ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Deadline,
    Revocation,
}

/// A client that goes on and on. Dropped, it is ended.
struct Client(Child);

impl Drop for Client {
    fn drop(&mut self) {
        // It has ended by itself, or does now.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Grants, starts the client, waits until something has arrived, ends the grant, and watches. `arrived` tells how much has.
fn ends(
    stage: &Stage,
    end: End,
    client: &mut Command,
    mut arrived: impl FnMut() -> Result<usize>,
) -> Result<()> {
    let asked = Instant::now();
    let duration = match end {
        End::Deadline => format!("{}s", SHORT.as_secs()),
        End::Revocation => "10m".to_owned(),
    };
    let grant = stage.grant("user:alice", "db", &duration)?;
    let granted = Instant::now();
    let mut client = Client(client.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    wait_for("something to arrive", SOON, || Ok((arrived()? > 0).then_some(())))?;
    // The grant began between asking and seeing it active; what is promised counts from the later moment on.
    let ended = match end {
        End::Deadline => granted + SHORT,
        End::Revocation => {
            stage.cli(ADMIN)?.run(&["revoke", &grant])?;
            stage.wait_for_grant(&grant, "ended")?;
            Instant::now()
        }
    };
    let (mut count, mut last) = (arrived()?, Instant::now());
    while Instant::now() < ended + WATCHED {
        let now = arrived()?;
        if now != count {
            (count, last) = (now, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    if last > ended + LATE_MAX {
        bail!("something arrived {:?} after the end", last - ended);
    }
    if end == End::Deadline && last < asked + SHORT - LATE_MAX {
        bail!("nothing arrived any more {:?} before the deadline", asked + SHORT - last);
    }
    // The client was told, and has given up.
    wait_for("the client to end", SOON, || Ok(client.0.try_wait()?.map(drop)))
}

fn psql(end: End) -> Result<()> {
    let (stage, postgres, shell) = database()?;
    // Somebody else looks, with a grant of her own.
    let watcher = stage.add_subject_with_cgroup("user:carol")?;
    stage.grant("user:carol", "db", "10m")?;
    let ask = |query: &str| {
        let mut command = in_cgroup(&watcher, postgres.psql());
        output(command.args(postgres.arguments()).args(["-tAc", query]))
    };
    ask("create table arrived (at timestamptz)")?;
    let mut client = in_cgroup(&shell, "/bin/sh");
    // One statement after the other, each a transaction; the first error ends it.
    let line =
        r#"while :; do echo "insert into arrived values (clock_timestamp());"; sleep 0.01; done | "$@""#;
    client.args(["-c", line, "sh"]).arg(postgres.psql()).args(postgres.arguments());
    client.args(["-q", "-v", "ON_ERROR_STOP=1"]);
    ends(&stage, end, &mut client, || Ok(ask("select count(*) from arrived")?.trim().parse()?))
}

fn ssh(end: End) -> Result<()> {
    const PORT: u16 = 2222;
    let stage = Stage::start()?;
    let address = stage.sandbox().address();
    let ssh = Ssh::start(stage.sandbox().dir(), address, PORT)?;
    let (at, port) = (address.to_string(), format!("tcp/{PORT}"));
    stage.cli(ADMIN)?.run(&["resource", "add", "db", "--address", &at, "--port", &port])?;
    let shell = stage.add_subject_with_cgroup("user:alice")?;
    stage.wait_until_applied()?;
    let arrived = stage.path("arrived");
    ensure_eq!(login(&shell, &ssh, &arrived).status()?.success(), false);
    ensure_eq!(arrived.exists(), false);
    ends(&stage, end, &mut login(&shell, &ssh, &arrived), || {
        Ok(fs::metadata(&arrived).map_or(0, |file| file.len() as usize))
    })
}

/// A session that writes what it is sent, a byte every hundredth of a second, to a file at the other end.
fn login(shell: &Cgroup, ssh: &Ssh, arrived: &Path) -> Command {
    let mut client = in_cgroup(shell, "/bin/sh");
    let line = r#"while :; do printf x; sleep 0.01; done | "$@""#;
    client.args(["-c", line, "sh", "ssh"]).args(ssh.arguments());
    client.arg(format!("cat > '{}'", arrived.display()));
    client
}
