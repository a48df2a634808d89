//! Grants of one action: one program, called in one way, once.

use std::fs;
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, bail};
use proto::types::{FromAgent, GrantId, ToAgent};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tests::ensure_eq;
use tests::listener::Listener;
use tests::runner::Test;
use tests::stage::{ADMIN, HOST, Stage, text};

use crate::runs::{Program, approve, line, pass, pending, say, socket, stage_with_alice};

pub(crate) const TESTS: &[Test] = &[
    ("actions::exactly_what_was_approved_runs_once", exactly_what_was_approved_runs_once),
    ("actions::whatever_else_is_held_and_ended", whatever_else_is_held_and_ended),
    ("actions::what_was_used_stays_used_over_a_restart", what_was_used_stays_used),
];

const BASH: &str = "/usr/bin/bash";

/// What bash is told to do: connect, say so, and wait for a word.
fn script(listener: &Listener) -> String {
    let address = listener.address();
    format!("exec 3<>/dev/tcp/{}/{} && echo through; read word; exit 7", address.ip(), address.port())
}

fn run(stage: &Stage, options: &[&str], command: &[&str]) -> Result<Command> {
    let socket = socket(stage).display().to_string();
    let arguments = [&["run", "--agent-socket", &socket][..], options, &["--"], command].concat();
    let mut command = stage.cli("user:alice")?.command(&arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

#[track_caller]
fn refused(output: Output, words: &str) -> Result<()> {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    match output.status.code() == Some(6) && stderr.contains(words) && output.stdout.is_empty() {
        true => Ok(()),
        false => bail!("{}, expected 6 and `{words}`:\n{stderr}", output.status),
    }
}

fn exactly_what_was_approved_runs_once() -> Result<()> {
    let (stage, listener) = stage_with_alice()?;
    let script = script(&listener);
    let bash = [BASH, "-c", &script];

    // 1. Alice asks for exactly one command. Who decides sees which, whole.
    let ask = ["--exactly", "--resource", "db", "--for", "10m", "--reason", "a copy of the night"];
    let mut first = run(&stage, &ask, &bash)?.spawn()?;
    pending(&stage)?;
    let admin = stage.cli(ADMIN)?;
    let shown = admin.json(&["requests"])?;
    let sha256: String = Sha256::digest(fs::read(BASH)?).iter().map(|byte| format!("{byte:02x}")).collect();
    ensure_eq!(shown[0]["action"]["executable"], BASH);
    ensure_eq!(shown[0]["action"]["sha256"], Value::from(sha256.as_str()));
    ensure_eq!(admin.run(&["requests"])?.contains(&format!("{BASH} \"-c\"")), true);
    let grant = approve(&stage)?;

    // 2. It runs, and gets through. Nobody uses it a second time.
    ensure_eq!(line(&mut first)?, "through");
    refused(run(&stage, &["--grant", &grant], &bash)?.output()?, "the grant was used before")?;
    say(&mut first, "go\n")?;
    ensure_eq!(first.wait()?.code(), Some(7));
    ensure_eq!(stage.wait_for_grant(&grant, "ended")?["end_reason"], "task_exit");
    refused(run(&stage, &["--grant", &grant], &bash)?.output()?, "no such grant")?;
    let started = stage.wait_for_event("the start", |event| event["event"] == "run.started")?;
    ensure_eq!((&started["grant"], &started["comment"]), (&Value::from(grant), &Value::from(BASH)));

    // 3. Asked for and approved before, by a file, with a pattern: it waits for its use, and opens nothing.
    let pattern = format!("{}*", script.split("echo").next().unwrap_or_default());
    let grant = granted(&stage, &pattern, None)?.to_string();
    let mut ordinary = run(&stage, &[], &bash)?.spawn()?;
    say(&mut ordinary, "go\n")?;
    let output = ordinary.wait_with_output()?;
    ensure_eq!((output.status.code(), output.stdout), (Some(7), Vec::new()));

    // 4. By other arguments, or another program, nothing is used up.
    let other = [BASH, "-c", "echo something else"];
    refused(run(&stage, &["--grant", &grant], &other)?.output()?, "not the arguments")?;
    refused(run(&stage, &["--grant", &grant], &["/usr/bin/env"])?.output()?, "not the executable")?;
    refused(
        run(&stage, &["--grant", &grant], &[BASH, "-c", &script, "more"])?.output()?,
        "not the arguments",
    )?;
    let mut right = run(&stage, &["--grant", &grant], &bash)?.spawn()?;
    ensure_eq!(line(&mut right)?, "through");
    say(&mut right, "go\n")?;
    ensure_eq!(right.wait()?.code(), Some(7));
    stage.wait_for_grant(&grant, "ended")?;

    // 5. What cannot be said exactly is not asked for.
    let script = stage.path("script");
    fs::write(&script, "#!/bin/sh\n")?;
    let script = script.display().to_string();
    let usage = |command: &[&str], words: &str| -> Result<()> {
        let output = run(&stage, &ask, command)?.output()?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure_eq!((output.status.code(), stderr.contains(words)), (Some(2), true), "{stderr}");
        Ok(())
    };
    usage(&[&script], "it is a script")?;
    usage(&["bash"], "whole path")?;
    let disagrees = |event: &Value| event["event"] == "host.disagrees";
    ensure_eq!(stage.events()?.iter().find(|event| disagrees(event)), None);
    Ok(())
}

/// A grant of alice's for bash, told by a script of this pattern, that is active.
fn granted(stage: &Stage, pattern: &str, sha256: Option<&str>) -> Result<GrantId> {
    let real: String = Sha256::digest(fs::read(BASH)?).iter().map(|byte| format!("{byte:02x}")).collect();
    let file = stage.path("action.toml");
    let arguments = format!("[\"-c\", '{pattern}']");
    let sha256 = sha256.unwrap_or(&real);
    fs::write(&file, format!("executable = \"{BASH}\"\nsha256 = \"{sha256}\"\narguments = {arguments}\n"))?;
    let file = file.display().to_string();
    let request = stage.cli("user:alice")?.json(&[
        "request",
        "db",
        "--host",
        HOST,
        "--for",
        "10m",
        "--reason",
        "later",
        "--action-file",
        &file,
    ])?;
    let grant = text(&stage.cli(ADMIN)?.json(&["approve", &text(&request, "id")?])?, "id")?;
    stage.wait_for_grant(&grant, "active")?;
    Ok(grant.parse()?)
}

/// Enters a run for a grant, as a child of this process that does as it likes: `python` is what it does when it is told to go on, or
/// before (`before`).
fn enter(
    stage: &Stage,
    wrapper: &[&str],
    grant: GrantId,
    before: &str,
    python: &str,
) -> Result<(Program, Child)> {
    let mut opener = Program::connect(stage)?;
    let its = pass(stage, "user:alice", HOST, opener.challenge)?;
    let FromAgent::Opened(run) = opener.ask(ToAgent::Open(its))? else { bail!("it is right") };
    let frame = ToAgent::Enter { run, command: String::new(), grant: Some(grant) }.encode();
    let frame = [&u32::try_from(frame.len())?.to_be_bytes()[..], &frame].concat();
    let frame: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
    let code = format!(
        "import os,socket,sys,ctypes\n\
         s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n\
         def hear():\n\
         \x20 n=int.from_bytes(s.recv(4,socket.MSG_WAITALL),'big'); return s.recv(n,socket.MSG_WAITALL)\n\
         hear()\n\
         {before}\n\
         s.send(bytes.fromhex('{frame}'))\n\
         said=hear()\n\
         if b'_' in said or b'failed' in said or b'gone' in said: sys.exit(6)\n\
         bash='{BASH}'; arguments=[bash,'-c',sys.argv[2]]\n\
         {python}\n"
    );
    let socket = socket(stage).display().to_string();
    let mut words = wrapper.to_vec();
    let script = stage_script(stage)?;
    words.extend(["/usr/bin/python3", "-c", &code, &socket, &script]);
    let (program, rest) = words.split_first().context("a program")?;
    let mut command = Command::new(program);
    command.args(rest).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    Ok((opener, command.spawn()?))
}

/// As the grant says it.
fn stage_script(stage: &Stage) -> Result<String> {
    let text = fs::read_to_string(stage.path("action.toml"))?;
    let script = text.split('\'').nth(1).context("a script")?;
    Ok(script.to_owned())
}

fn whatever_else_is_held_and_ended() -> Result<()> {
    let (stage, listener) = stage_with_alice()?;
    let grant = granted(&stage, &script(&listener), None)?;
    let copy = stage.path("bash");
    fs::copy(BASH, &copy)?;
    let copy = copy.display().to_string();
    let shebang = stage.path("script");
    fs::write(&shebang, format!("#!{BASH}\necho ran\n"))?;
    fs::set_permissions(&shebang, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let shebang = shebang.display().to_string();
    let preload = "os.execve(bash,arguments,{'LD_PRELOAD':'/tmp/evil.so'})";
    let path = "os.execve(bash,arguments,{'PATH':'/tmp'})";
    let bash_env = "os.execve(bash,arguments,{'BASH_ENV':'/tmp/evil'})";
    let by_name = "os.execve(bash,['bash']+arguments[1:],{})";
    let copied = format!("os.execve('{copy}',arguments,{{}})");
    let a_script = format!("os.execve('{shebang}',arguments,{{}})");
    let traced = "ctypes.CDLL(None).ptrace(0,0,0,0)";
    let right = "os.execve(bash,arguments,{})";
    // 1. The same content at another path, the same file under conditions in which it is something else: all of it ends before it begins.
    let cases: [(&[&str], &str, &str, &str); 9] = [
        (&[], "", &copied, "other_executable"),
        (&[], "", &a_script, "other_arguments"),
        (&["unshare", "--mount"], "", right, "other_executable"),
        (&[], "", by_name, "other_arguments"),
        (&[], "", "os.execve(bash,arguments[:2]+['id'],{})", "other_arguments"),
        (&[], "", preload, "other_environment"),
        (&[], "", path, "other_environment"),
        (&[], "", bash_env, "other_environment"),
        (&[], traced, right, "failed"),
    ];
    for (wrapper, before, python, reason) in cases {
        let (mut opener, child) = enter(&stage, wrapper, grant, before, python)?;
        let output = child.wait_with_output()?;
        ensure_eq!((output.status.success(), output.stdout), (false, Vec::new()), "{python}");
        if reason != "failed" {
            // Who opened the run hears why.
            match opener.ask(ToAgent::Finish)? {
                FromAgent::Refused { reason: told, .. } if told == reason => {}
                other => bail!("{python}: the agent said {other:?}, expected `{reason}`"),
            }
        }
        stage.wait_for_event(reason, |event| event["event"] == "run.refused" && event["reason"] == reason)?;
    }
    // 2. Nothing was used up by that. What is right runs, for somebody who does it by themselves, too.
    let (mut opener, mut child) = enter(&stage, &[], grant, "", right)?;
    ensure_eq!(line(&mut child)?, "through");
    say(&mut child, "go\n")?;
    ensure_eq!(child.wait()?.code(), Some(7));
    ensure_eq!(opener.ask(ToAgent::Finish)?, FromAgent::Finished(0));

    // 3. A file that has changed since is another.
    let grant = granted(&stage, &script(&listener), Some(&"ab".repeat(32)))?;
    let (_opener, child) = enter(&stage, &[], grant, "", right)?;
    let output = child.wait_with_output()?;
    ensure_eq!((output.status.success(), output.stdout), (false, Vec::new()));
    stage.wait_for_event("another content", |event| {
        event["event"] == "run.refused"
            && event["comment"].as_str().is_some_and(|text| text.contains("content"))
    })?;

    // 4. Somebody else's grant is none.
    stage.add_subject("user:bob", "member", &[])?;
    stage.wait_until_applied()?;
    let mut bobs = Program::connect(&stage)?;
    let its = pass(&stage, "user:bob", HOST, bobs.challenge)?;
    let FromAgent::Opened(run) = bobs.ask(ToAgent::Open(its))? else { bail!("it is right") };
    let mut other = Command::new(tests::stage::binary("portcullis")?);
    let socket = socket(&stage).display().to_string();
    other.args(["--enter-run", &socket, &run.to_string(), &grant.to_string(), BASH, "-c", "echo ran"]);
    refused(other.output()?, "no such grant")
}

fn what_was_used_stays_used() -> Result<()> {
    let (mut stage, listener) = stage_with_alice()?;
    let grant = granted(&stage, &script(&listener), None)?;
    let right = "os.execve(bash,arguments,{})";
    let (_opener, mut child) = enter(&stage, &[], grant, "", right)?;
    ensure_eq!(line(&mut child)?, "through");

    // 1. The agent ends as in a crash. The run goes on, and the next agent knows that the grant is used.
    stage.kill_agent()?;
    stage.start_agent()?;
    stage.wait_for_host("enforcing")?;
    stage.wait_for_grant(&grant.to_string(), "active")?;
    let script = stage_script(&stage)?;
    let again = run(&stage, &["--grant", &grant.to_string()], &[BASH, "-c", &script])?.output()?;
    refused(again, "the grant was used before")?;

    // 2. It ends while there is no agent, and the grant with it.
    stage.kill_agent()?;
    say(&mut child, "go\n")?;
    ensure_eq!(child.wait()?.code(), Some(7));
    stage.start_agent()?;
    ensure_eq!(stage.wait_for_grant(&grant.to_string(), "ended")?["end_reason"], "task_exit");
    Ok(())
}
