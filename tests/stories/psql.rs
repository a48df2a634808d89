//! An engineer's command line: ask, wait, and the next command works.

use std::process::Stdio;

use anyhow::{Context, Result, bail};
use tests::ensure_eq;
use tests::postgres::Postgres;
use tests::process::in_cgroup;
use tests::runner::Test;
use tests::sandbox::Cgroup;
use tests::stage::{ADMIN, Stage, text};

pub(crate) const TESTS: &[Test] = &[
    ("psql::a_hundred_times_the_first_connection_succeeds", a_hundred_times_the_first_connection_succeeds),
    ("psql::a_session_ends_with_its_grant", a_session_ends_with_its_grant),
];

/// A stage with a server that is protected as `db`, and a shell of alice's.
pub(crate) fn database() -> Result<(Stage, Postgres, Cgroup)> {
    const PORT: u16 = 5432;
    let stage = Stage::start()?;
    let address = stage.sandbox().address();
    let postgres = Postgres::start(stage.sandbox().dir(), address, PORT)?;
    let (address, port) = (address.to_string(), format!("tcp/{PORT}"));
    stage.cli(ADMIN)?.run(&["resource", "add", "db", "--address", &address, "--port", &port])?;
    let shell = stage.add_subject_with_cgroup("user:alice")?;
    Ok((stage, postgres, shell))
}

/// A query is running when the grant is taken away: psql is told at once, the server gives the session up, and the record
/// says what became of it.
fn a_session_ends_with_its_grant() -> Result<()> {
    let (stage, postgres, shell) = database()?;
    let admin = stage.cli(ADMIN)?;
    let watcher = stage.add_subject_with_cgroup("user:carol")?;
    stage.grant("user:carol", "db", "10m")?;
    let sessions = || -> Result<String> {
        let query =
            "select count(*) from pg_stat_activity where query like '%pg_sleep%' and pid <> pg_backend_pid()";
        let mut command = in_cgroup(&watcher, postgres.psql());
        Ok(tests::process::output(command.args(postgres.arguments()).args(["-tAc", query]))?
            .trim()
            .to_owned())
    };

    // 1. Alice has a grant, and a query that takes its time.
    let grant = stage.grant("user:alice", "db", "10m")?;
    let mut command = in_cgroup(&shell, postgres.psql());
    command.args(postgres.arguments()).args(["-c", "select pg_sleep(600)"]);
    let psql = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    tests::process::wait_for("the query to run", tests::stage::SOON, || {
        Ok((sessions()? == "1").then_some(()))
    })?;

    // 2. The grant is taken away: psql ends by itself.
    admin.run(&["revoke", &grant])?;
    let output = psql.wait_with_output()?;
    ensure_eq!(output.status.success(), false);
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure_eq!(stderr.contains("connection"), true, "{stderr}");

    // 3. So does the session at the server, which was told; carol's is as it was.
    tests::process::wait_for("the session to end", tests::stage::SOON, || {
        Ok((sessions()? == "0").then_some(()))
    })?;

    // 4. The record has the receipt.
    let receipt = stage.wait_for_event("the receipt", |event| event["event"] == "grant.receipt")?;
    ensure_eq!(receipt["grant"], grant);
    ensure_eq!(receipt["reason"], "revoked");
    ensure_eq!(
        (receipt["receipt"]["closed"].as_u64(), receipt["receipt"]["unconfirmed"].as_u64()),
        (Some(1), Some(0))
    );
    ensure_eq!(receipt["receipt"]["last_admitted"].is_string(), true);
    Ok(())
}

/// `portcullis request … --wait && psql …`, a hundred times in a row, each with a grant of its own.
fn a_hundred_times_the_first_connection_succeeds() -> Result<()> {
    const TIMES: usize = 100;
    let (stage, postgres, shell) = database()?;
    let admin = stage.cli(ADMIN)?;
    let alice = stage.cli("user:alice")?;
    for turn in 1..=TIMES {
        let line = r#""$0" request db --for 5m --reason "turn" --wait -o json && "$@" -tAc 'select 6 * 7'"#;
        let mut command = in_cgroup(&shell, "/bin/sh");
        command
            .args(["-c", line])
            .arg(tests::stage::binary("portcullis")?)
            .arg(postgres.psql())
            .args(postgres.arguments());
        for (name, value) in alice.command(&[]).get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let request = tests::process::wait_for("the request", tests::stage::SOON, || {
            let requests = admin.json(&["requests"])?;
            requests.get(0).map(|request| text(request, "id")).transpose()
        })?;
        let grant = text(&admin.json(&["approve", &request])?, "id")?;
        let output = child.wait_with_output()?;
        let answer = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() || answer.lines().last() != Some("42") {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("turn {turn}: {}\n{answer}\n{stderr}", output.status);
        }
        alice.run(&["release", &grant])?;
        stage.wait_for_grant(&grant, "ended")?;
    }
    // It was the grants that let psql through.
    let mut command = in_cgroup(&shell, postgres.psql());
    let refused = command.args(postgres.arguments()).args(["-c", "select 1"]).output().context("psql")?;
    ensure_eq!(refused.status.success(), false);
    ensure_eq!(String::from_utf8_lossy(&refused.stderr).contains("Operation not permitted"), true);
    Ok(())
}
