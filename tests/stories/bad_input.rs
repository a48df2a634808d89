//! What people get wrong: a clear error that names the value, and nothing half done.

use std::fs;
use std::process::Command;

use anyhow::{Result, bail};
use tests::ensure_eq;
use tests::process::wait_for;
use tests::runner::Test;
use tests::stage::{ADMIN, HOST, SOON, Stage, binary, text};

pub(crate) const TESTS: &[Test] = &[
    ("bad_input::wrong_values_are_named_and_change_nothing", wrong_values),
    ("bad_input::a_malformed_agent_configuration_is_refused", malformed_agent_configuration),
    ("bad_input::a_malformed_control_plane_configuration_is_refused", malformed_control_plane_configuration),
    ("bad_input::a_revoked_host_gets_nowhere_until_it_joins_again", revoked_host),
];

fn wrong_values() -> Result<()> {
    let stage = Stage::start()?;
    let address = stage.sandbox().address().to_string();
    let admin = stage.cli(ADMIN)?;
    let resource = ["resource", "add", "db", "--address", &address, "--port", "tcp/5432"];
    admin.run(&resource)?;
    stage.add_subject("user:alice", "member", &[])?;
    let alice = stage.cli("user:alice")?;
    let before = stage.events()?.len();

    // Names that nobody knows, and names that are taken.
    let request = |resource: &'static str, more: &[&'static str]| {
        [&["request", resource, "--reason", "r"][..], more].concat()
    };
    alice.fails(&request("nope", &["--for", "1m"]), 7, "nope")?;
    alice.fails(&request("db", &["--for", "1m", "--host", "nowhere"]), 7, "nowhere")?;
    admin.fails(&request("db", &["--for", "1m", "--subject", "user:zoe"]), 7, "user:zoe")?;
    admin.fails(&resource, 8, "db")?;
    let same = ["resource", "add", "db2", "--address", &address, "--port", "tcp/5000-6000"];
    admin.fails(&same, 8, "db")?;
    admin.fails(&["host", "add", HOST], 8, HOST)?;
    let unknown = "01890000-0000-7000-8000-000000000000";
    admin.fails(&["approve", unknown], 7, unknown)?;
    admin.fails(&["revoke", unknown], 7, unknown)?;
    // Values that break a rule.
    alice.fails(&request("db", &["--for", "13h"]), 2, "13h")?;
    alice.fails(&request("db", &["--for", "0s"]), 2, "0s")?;
    admin.fails(&["resource", "add", "x", "--address", "10.0.0.1/8", "--port", "tcp/1"], 2, "10.0.0.0/8")?;
    admin.fails(&["resource", "add", "x", "--address", "10.0.0.1", "--port", "tcp/0"], 2, "port 0")?;
    admin.fails(&["resource", "add", "x", "--address", "10.0.0.1", "--port", "tcp/65536"], 2, "65536")?;
    // What is not theirs.
    alice.fails(&["resource", "add", "x", "--address", "10.0.0.1", "--port", "tcp/1"], 6, "administrator")?;
    alice.fails(&request("db", &["--for", "1m", "--subject", "user:admin"]), 6, "user:admin")?;
    let refused_calls = |event: &serde_json::Value| event["event"] == "call.refused";
    let changes = stage.events()?.into_iter().skip(before).filter(|event| !refused_calls(event)).count();
    ensure_eq!(changes, 0, "a refused call changed something");

    // A request is decided once.
    let id = text(&alice.json(&request("db", &["--for", "1m"]))?, "id")?;
    admin.run(&["approve", &id])?;
    admin.fails(&["approve", &id], 8, ADMIN)?;
    Ok(())
}

/// Runs a program with a configuration; it must refuse it with these words.
fn refuses(program: &str, verb: &str, configuration: &str, words: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("configuration.toml");
    fs::write(&path, configuration)?;
    let output = Command::new(binary(program)?).args([verb, "--config"]).arg(&path).output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    if output.status.success() || !stderr.contains(words) {
        bail!("{program} took {configuration:?} ({}), expected `{words}`:\n{stderr}", output.status);
    }
    Ok(())
}

fn malformed_agent_configuration() -> Result<()> {
    let least = "control_plane = \"https://192.0.2.1:7400\"\nstate_dir = \"/nowhere/state\"\n";
    for verb in ["run", "check"] {
        refuses("portcullis-agent", verb, "", "missing field `control_plane`")?;
        refuses("portcullis-agent", verb, "control_plane = [", "configuration.toml")?;
        refuses("portcullis-agent", verb, &format!("{least}grants_max = 1\n"), "unknown field `grants_max`")?;
        refuses(
            "portcullis-agent",
            verb,
            &format!("{least}[kernel]\ngrants_max = 0\n"),
            "kernel.grants_max",
        )?;
        let clear = least.replace("https:", "http:");
        refuses("portcullis-agent", verb, &clear, "is not `https://HOST:PORT`")?;
    }
    Ok(())
}

fn malformed_control_plane_configuration() -> Result<()> {
    let with = |listen: &str| format!("listen = \"{listen}\"\ndatabase = \"control-plane.db\"\n");
    let program = "portcullis-control-plane";
    refuses(program, "serve", "", "listen")?;
    refuses(program, "serve", &with("localhost:7400"), "is not `ADDRESS:PORT`")?;
    refuses(program, "serve", &format!("{}clear = true\n", with("127.0.0.1:0")), "unknown field `clear`")?;
    refuses(program, "serve", &with("127.0.0.1:0"), "init")?;
    Ok(())
}

fn revoked_host() -> Result<()> {
    let mut stage = Stage::start()?;
    stage.cli(ADMIN)?.run(&["host", "revoke", HOST, "--comment", "lost"])?;
    stage.wait_for_host("unreachable")?;
    let process = stage.agent()?;
    wait_for("the refusal", SOON, || {
        process.ensure_running()?;
        Ok(process.log().contains("was revoked").then_some(()))
    })?;
    stage.join()?;
    stage.wait_for_host("enforcing")
}
