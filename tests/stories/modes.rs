//! From being watched to being guarded, with connections up all the while.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result};
use proto::types::Protocol;
use serde_json::json;
use tests::ensure_eq;
use tests::listener::{Listener, StreamServer};
use tests::probe::{self, Attempt};
use tests::runner::Test;
use tests::stage::{ADMIN, Stage};

pub(crate) const TESTS: &[Test] =
    &[("modes::a_service_is_observed_and_then_enforced", a_service_is_observed_and_then_enforced)];

fn a_service_is_observed_and_then_enforced() -> Result<()> {
    // 1. A service is only observed. Somebody whom nobody knows uses it; the record says what would become of that.
    let stage = Stage::start()?;
    let admin = stage.cli(ADMIN)?;
    let server = StreamServer::start(Protocol::Tcp, (stage.sandbox().address(), 0).into())?;
    let (address, port) = (server.address().ip().to_string(), format!("tcp/{}", server.address().port()));
    admin.run(&["resource", "add", "db", "--address", &address, "--port", &port, "--mode", "observe"])?;
    stage.wait_until_applied()?;
    let nobody = stage.sandbox().make_cgroup("nobody")?;
    let mut command = probe::command(&nobody, Attempt::TcpStream, server.address(), "")?;
    let mut streaming = command.stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(streaming.stdout.take().context("the probe's output")?).lines();
    let mut next = || -> Result<String> { Ok(lines.next().context("the probe said nothing more")??) };
    ensure_eq!(next()?, "connected");
    let told = stage.wait_for_event("what would be", |event| event["event"] == "conn.would_deny")?;
    ensure_eq!((&told["resource"], &told["reason"]), (&json!("db"), &json!("unknown_subject")));

    // 2. It is enforced: the connection is closed under its owner, and the record says what it was.
    admin.run(&["resource", "set", "db", "--mode", "enforce"])?;
    ensure_eq!(next()?, "ECONNABORTED");
    streaming.wait()?;
    let end = stage.wait_for_event("the end", |event| event["event"] == "conn.closed")?;
    ensure_eq!((&end["resource"], &end["reason"]), (&json!("db"), &json!("reset")));
    ensure_eq!(end["closed"]["socket_cookie"], told["connection"]["socket_cookie"]);
    ensure_eq!(end["closed"]["bytes_sent"].as_u64().is_some_and(|sent| sent > 0), true, "{end}");
    ensure_eq!(end.get("grant").is_none() && end.get("subject").is_none(), true, "{end}");

    // 3. Whoever has a grant is let through; the end of that connection names the grant.
    let listener = Listener::start(Protocol::Tcp, (stage.sandbox().address(), 0).into())?;
    let port = format!("tcp/{}", listener.address().port());
    admin.run(&["resource", "add", "web", "--address", &address, "--port", &port, "--strict"])?;
    let alice = stage.add_subject_with_cgroup("user:alice")?;
    let grant = stage.grant("user:alice", "web", "10m")?;
    ensure_eq!(probe::run(&alice, Attempt::Tcp, listener.address(), "nine byte")?, "ok");
    let end = stage.wait_for_event("the end", |event| {
        event["event"] == "conn.closed" && event["grant"] == json!(grant)
    })?;
    ensure_eq!((&end["subject"], &end["reason"]), (&json!("user:alice"), &json!("self")));
    ensure_eq!(end["closed"]["bytes_sent"], 9);
    Ok(())
}
