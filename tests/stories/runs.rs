//! `portcullis run`: a command with access that it alone has.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::types::{Challenge, FromAgent, RunId, RunPass, ToAgent};
use proto::wire::identity::IssueRunPassRequest;
use proto::wire::identity::identity_service_client::IdentityServiceClient;
use serde_json::Value;
use tests::ensure_eq;
use tests::listener::Listener;
use tests::probe::FLAG;
use tests::process::wait_for;
use tests::runner::Test;
use tests::sandbox::Cgroup;
use tests::stage::{ADMIN, HOST, SOON, Stage, text};

use crate::life::{connect, stage_with_resource};

pub(crate) const TESTS: &[Test] = &[
    ("runs::a_command_has_access_that_it_alone_has", a_command_has_access_that_it_alone_has),
    ("runs::exit_codes_and_signals_pass_through", exit_codes_and_signals_pass_through),
    ("runs::the_terminal_is_the_commands_own", the_terminal_is_the_commands_own),
    ("runs::a_denied_request_runs_nothing", a_denied_request_runs_nothing),
    ("runs::what_outlives_its_caller_keeps_its_access_until_it_ends", what_outlives_its_caller),
    ("runs::a_run_outlives_the_agent", a_run_outlives_the_agent),
    ("runs::nobody_else_gets_in", nobody_else_gets_in),
    ("runs::a_flood_at_the_socket_keeps_nobody_out", a_flood_at_the_socket_keeps_nobody_out),
];

/// A stage where alice can run commands, and nothing else of hers is known.
pub(crate) fn stage_with_alice() -> Result<(Stage, Listener)> {
    let (stage, listener) = stage_with_resource()?;
    stage.add_subject("user:alice", "member", &[])?;
    stage.wait_until_applied()?;
    Ok((stage, listener))
}

pub(crate) fn socket(stage: &Stage) -> PathBuf {
    stage.path("runs.sock")
}

/// `portcullis run` of alice's: these options, then a shell with this script, whose `$@` connects to the resource and says what came
/// of it.
fn run(stage: &Stage, listener: &Listener, options: &[&str], script: &str) -> Result<Command> {
    let socket = socket(stage).display().to_string();
    let mut arguments = vec!["run", "--agent-socket", &socket];
    arguments.extend(options);
    arguments.extend(["--", "/bin/sh", "-c", script, "sh"]);
    let mut command = stage.cli("user:alice")?.command(&arguments);
    command.arg(std::env::current_exe().context("this program's path")?);
    command.args([FLAG, "tcp", &listener.address().to_string(), "marker"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

const ASK: [&str; 6] = ["--resource", "db", "--for", "10m", "--reason", "a story needs it"];

/// Waits for the one request that is pending. Gives its id.
pub(crate) fn pending(stage: &Stage) -> Result<String> {
    let admin = stage.cli(ADMIN)?;
    let request = wait_for("a request", SOON, || {
        Ok(admin.json(&["requests"])?.as_array().and_then(|all| all.first().cloned()))
    })?;
    text(&request, "id")
}

pub(crate) fn approve(stage: &Stage) -> Result<String> {
    let request = pending(stage)?;
    text(&stage.cli(ADMIN)?.json(&["approve", &request])?, "id")
}

/// Reads the next line that a child prints.
pub(crate) fn line(child: &mut Child) -> Result<String> {
    let stdout = child.stdout.as_mut().context("a pipe")?;
    let mut line = Vec::new();
    let mut byte = [0];
    while stdout.read(&mut byte)? == 1 && byte != *b"\n" {
        line.push(byte[0]);
    }
    if line.is_empty() {
        let mut stderr = String::new();
        if let Some(pipe) = child.stderr.as_mut() {
            pipe.read_to_string(&mut stderr)?;
        }
        bail!("it printed nothing:\n{stderr}");
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

pub(crate) fn say(child: &mut Child, text: &str) -> Result<()> {
    Ok(child.stdin.as_mut().context("a pipe")?.write_all(text.as_bytes())?)
}

/// The events about runs, as words: kind, reason, subject.
fn story(stage: &Stage) -> Result<Vec<String>> {
    let is_of_runs = |event: &&Value| event["event"].as_str().is_some_and(|kind| kind.starts_with("run."));
    let words = |event: &Value| {
        let word = |field: &str| event[field].as_str().unwrap_or("-").to_owned();
        format!("{} {} {}", word("event"), word("reason"), word("subject"))
    };
    Ok(stage.events()?.iter().filter(is_of_runs).map(words).collect())
}

fn a_command_has_access_that_it_alone_has() -> Result<()> {
    // 1. A database is protected. Alice has other processes, in a cgroup of hers, and asks for a command only.
    let (stage, listener) = stage_with_resource()?;
    let others: Cgroup = stage.add_subject_with_cgroup("user:alice")?;
    stage.wait_until_applied()?;
    let mut child = run(&stage, &listener, &ASK, r#""$@"; read word; echo "heard $word"; "$@""#)?.spawn()?;

    // 2. Nothing runs before somebody has said yes, who sees that it is for one run.
    let request = pending(&stage)?;
    let asked = stage.cli(ADMIN)?.json(&["requests"])?;
    let run_id = text(&asked[0], "run")?;
    ensure_eq!(asked[0]["hosts"], Value::from(vec![HOST]));
    let folder = agent::runs::cgroup::directory(stage.sandbox().cgroup_root(), run_id.parse()?);
    ensure_eq!(fs::read_to_string(folder.join("cgroup.procs"))?, "");
    let grant = text(&stage.cli(ADMIN)?.json(&["approve", &request])?, "id")?;

    // 3. The command gets through; her other processes do not; its standard input is its own.
    ensure_eq!(line(&mut child)?, "ok");
    ensure_eq!(connect(&others, &listener)?, "EPERM");
    ensure_eq!(stage.wait_for_grant(&grant, "active")?["run"], Value::from(run_id.as_str()));
    say(&mut child, "something\n")?;
    ensure_eq!(line(&mut child)?, "heard something");
    ensure_eq!(line(&mut child)?, "ok");

    // 4. It ends, and with it the grant and the cgroup.
    ensure_eq!(child.wait()?.code(), Some(0));
    ensure_eq!(stage.wait_for_grant(&grant, "ended")?["end_reason"], "task_exit");
    wait_for("the cgroup to be gone", SOON, || Ok((!folder.exists()).then_some(())))?;
    let receipt = stage.wait_for_event("the receipt", |event| event["event"] == "grant.receipt")?;
    ensure_eq!((&receipt["grant"], &receipt["reason"]), (&Value::from(grant), &Value::from("task_exit")));

    // 5. The record says who ran what.
    stage.wait_for_event("the end of the run", |event| event["event"] == "run.ended")?;
    ensure_eq!(
        story(&stage)?,
        ["run.pass_issued - user:alice", "run.started - user:alice", "run.ended exited user:alice"]
    );
    let events = stage.events()?;
    let started = events.iter().find(|event| event["event"] == "run.started").context("it is there")?;
    ensure_eq!(started["run"]["id"], Value::from(run_id));
    ensure_eq!((&started["run"]["uid"], &started["comment"]), (&Value::from(0), &Value::from("/bin/sh")));
    let allowed: Vec<&Value> = events.iter().filter(|event| event["event"] == "conn.allow").collect();
    ensure_eq!(allowed.len(), 2);
    ensure_eq!(allowed.iter().all(|event| event["subject"] == "user:alice"), true, "{allowed:?}");

    // 6. What she is granted otherwise counts in a run, too, and ends there as everywhere.
    let ordinary = stage.grant("user:alice", "db", "10m")?;
    let mut child = run(&stage, &listener, &[], r#""$@"; read word; "$@""#)?.spawn()?;
    ensure_eq!(line(&mut child)?, "ok");
    ensure_eq!(connect(&others, &listener)?, "ok");
    stage.cli(ADMIN)?.run(&["revoke", &ordinary])?;
    stage.wait_for_grant(&ordinary, "ended")?;
    say(&mut child, "go\n")?;
    ensure_eq!(line(&mut child)?, "EPERM");
    ensure_eq!(connect(&others, &listener)?, "EPERM");
    ensure_eq!(child.wait()?.code(), Some(0));

    // 7. What the kernel holds is what the control plane wants, as far as either can tell.
    let disagrees = |event: &Value| event["event"] == "host.disagrees";
    ensure_eq!(stage.events()?.iter().find(|event| disagrees(event)), None);
    Ok(())
}

fn exit_codes_and_signals_pass_through() -> Result<()> {
    let (stage, listener) = stage_with_alice()?;
    let code = |script: &str| -> Result<Option<i32>> {
        Ok(run(&stage, &listener, &[], script)?.output()?.status.code())
    };
    ensure_eq!(code("exit 0")?, Some(0));
    ensure_eq!(code("exit 7")?, Some(7));
    ensure_eq!(code("kill -TERM $$")?, Some(128 + 15));
    ensure_eq!(code("kill -KILL $$")?, Some(128 + 9));

    // Of a command that is none.
    let socket = socket(&stage).display().to_string();
    let alice = stage.cli("user:alice")?;
    alice.fails(
        &["run", "--agent-socket", &socket, "--", "/absent/command"],
        127,
        "cannot run `/absent/command`",
    )?;
    alice.fails(&["run", "--agent-socket", &socket, "--", "/etc/passwd"], 126, "cannot run `/etc/passwd`")?;
    alice.fails(&["run", "--agent-socket", "/absent/socket", "--", "true"], 1, "`/absent/socket`")?;
    alice.fails(&["run", "--resource", "db", "--", "true"], 2, "--reason")?;

    // What is sent to the one who waits is sent on, each signal once.
    let script = "n=0; trap 'n=$((n+1))' INT; trap 'echo got $n; exit 9' TERM; echo ready; while :; do sleep 0.05; done";
    let mut child = run(&stage, &listener, &[], script)?.process_group(0).spawn()?;
    ensure_eq!(line(&mut child)?, "ready");
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    kill(pid, Signal::SIGINT)?;
    std::thread::sleep(Duration::from_millis(300));
    kill(pid, Signal::SIGTERM)?;
    ensure_eq!(line(&mut child)?, "got 1");
    ensure_eq!(child.wait()?.code(), Some(9));
    Ok(())
}

/// What a terminal shows when these keys are typed on it, each after the terminal has shown the words before it. The shell of the
/// terminal runs `script`.
fn at_a_terminal(stage: &Stage, shell: &str, keys: &[(&str, &str)]) -> Result<String> {
    let mut command = stage.cli("user:alice")?.command(&[]);
    let program = command.get_program().to_owned();
    let environment: Vec<_> =
        command.get_envs().map(|(name, value)| (name.to_owned(), value.map(ToOwned::to_owned))).collect();
    command = Command::new("script");
    command.args(["-qfec", shell, "/dev/null"]).env("PORTCULLIS", program).env("TERM", "dumb");
    // A shell that waits: when Ctrl-C ended nothing, bash goes on with its script, and dash ends.
    command.env("SHELL", "/bin/bash");
    command.env("PORTCULLIS_AGENT_SOCKET", socket(stage));
    for (name, value) in environment {
        command.env(name, value.unwrap_or_default());
    }
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut shown = String::new();
    let deadline = Instant::now() + SOON;
    let mut stdout = child.stdout.take().context("a pipe")?;
    nix::fcntl::fcntl(&stdout, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
    let mut read_more = |shown: &mut String| {
        let mut bytes = [0; 4096];
        if let Ok(count) = stdout.read(&mut bytes) {
            shown.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    for (after, typed) in keys {
        let from = shown.len();
        while !shown[from..].contains(after) {
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                bail!("the terminal never shows `{after}`:\n{shown}");
            }
            read_more(&mut shown);
        }
        child.stdin.as_mut().context("a pipe")?.write_all(typed.as_bytes())?;
    }
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            bail!("it does not end:\n{shown}");
        }
        read_more(&mut shown);
    }
    (0..5).for_each(|_| read_more(&mut shown));
    Ok(shown)
}

fn the_terminal_is_the_commands_own() -> Result<()> {
    let (stage, _listener) = stage_with_alice()?;

    // 1. The command sees the terminal, its size, and what is typed; Ctrl-C is the command's, once, and ends nobody else.
    let script = r#"stty rows 33 cols 77; $PORTCULLIS run -- sh -c 'test -t 0 && test -t 1 && test -t 2 && stty size; trap "echo interrupted" INT; until read a; do :; done; echo "typed $a"; exit 5'; echo "code $?""#;
    let shown = at_a_terminal(&stage, script, &[("33 77", "\u{3}"), ("interrupted", "word\n")])?;
    ensure_eq!(shown.matches("interrupted").count(), 1, "{shown}");
    ensure_eq!(shown.contains("typed word") && shown.contains("code 5"), true, "{shown}");

    // 2. Without a trap it ends the command, and what it ended with is told.
    let script = "$PORTCULLIS run -- sh -c 'echo begun; exec sleep 600'; echo \"code $?\"";
    let shown = at_a_terminal(&stage, script, &[("begun", "\u{3}")])?;
    ensure_eq!(shown.contains("code 130"), true, "{shown}");

    // 3. Job control: stopped, told as stopped, gone on with, ended.
    let keys = [
        ("# ", "$PORTCULLIS run -- sh -c 'echo beg''un; read a; echo \"typ''ed $a\"'\n"),
        ("begun", "\u{1a}"),
        ("# ", "jobs\n"),
        ("Stopped", "fg\n"),
        ("PORTCULLIS run", "word\n"),
        ("typed word", "exit 3\n"),
    ];
    let shown = at_a_terminal(&stage, "bash --norc --noprofile -i", &keys)?;
    ensure_eq!(shown.contains("Stopped"), true, "{shown}");
    Ok(())
}

fn a_denied_request_runs_nothing() -> Result<()> {
    let (stage, listener) = stage_with_alice()?;
    let child = run(&stage, &listener, &ASK, "echo it runs")?.spawn()?;
    let request = pending(&stage)?;
    stage.cli(ADMIN)?.run(&["deny", &request, "--comment", "not without a ticket"])?;
    let Output { status, stdout, stderr } = child.wait_with_output()?;
    ensure_eq!((status.code(), stdout), (Some(10), Vec::new()));
    let stderr = String::from_utf8_lossy(&stderr);
    ensure_eq!(stderr.contains("not without a ticket"), true, "{stderr}");
    stage.wait_for_event("the end of the run", |event| event["event"] == "run.ended")?;
    ensure_eq!(story(&stage)?.last().map(String::as_str), Some("run.ended abandoned user:alice"));

    // Who does not wait any more gets nothing by a yes that comes later.
    let mut child = run(&stage, &listener, &ASK, "echo it runs")?.spawn()?;
    let request = pending(&stage)?;
    child.kill()?;
    child.wait()?;
    wait_for("the run to be over", SOON, || {
        Ok((story(&stage)?.iter().filter(|line| line.starts_with("run.ended")).count() == 2).then_some(()))
    })?;
    let grant = text(&stage.cli(ADMIN)?.json(&["approve", &request])?, "id")?;
    ensure_eq!(stage.wait_for_grant(&grant, "ended")?["end_reason"], "task_exit");
    Ok(())
}

fn what_outlives_its_caller() -> Result<()> {
    let (stage, listener) = stage_with_alice()?;

    // 1. The caller is killed: the command goes on, with its access, until it ends.
    let mut child = run(&stage, &listener, &ASK, r#""$@"; read word; "$@""#)?.spawn()?;
    let grant = approve(&stage)?;
    ensure_eq!(line(&mut child)?, "ok");
    let mut stdin = child.stdin.take().context("a pipe")?;
    child.kill()?;
    child.wait()?;
    stdin.write_all(b"go\n")?;
    ensure_eq!(line(&mut child)?, "ok");
    ensure_eq!(stage.wait_for_grant(&grant, "ended")?["end_reason"], "task_exit");

    // 2. What the command leaves behind is in the run, too: that is said, and ends with it or when somebody ends it.
    let script = r#"(read word < /dev/null; sleep 600) & "$@""#;
    let child = run(&stage, &listener, &ASK, script)?.spawn()?;
    let grant = approve(&stage)?;
    let mut child = child;
    ensure_eq!(line(&mut child)?, "ok");
    ensure_eq!(child.wait()?.code(), Some(0));
    let mut stderr = String::new();
    let mut pipe = child.stderr.take().context("a pipe")?;
    let mut bytes = [0; 4096];
    while !stderr.contains("still running") {
        let count = pipe.read(&mut bytes)?;
        if count == 0 {
            bail!("nothing is said of what goes on: {stderr}");
        }
        stderr.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    let shown = stage.wait_for_grant(&grant, "active")?;
    let run_id: RunId = text(&shown, "run")?.parse()?;
    stage.cli("user:alice")?.run(&["release", &grant])?;
    ensure_eq!(stage.wait_for_grant(&grant, "ended")?["end_reason"], "released");
    let folder = agent::runs::cgroup::directory(stage.sandbox().cgroup_root(), run_id);
    for pid in fs::read_to_string(folder.join("cgroup.procs"))?.lines() {
        kill(Pid::from_raw(pid.parse()?), Signal::SIGKILL)?;
    }
    wait_for("the cgroup to be gone", SOON, || Ok((!folder.exists()).then_some(())))
}

fn a_run_outlives_the_agent() -> Result<()> {
    let (mut stage, listener) = stage_with_alice()?;
    let mut child =
        run(&stage, &listener, &ASK, r#""$@"; read word; "$@"; read word; "$@"; read word"#)?.spawn()?;
    let grant = approve(&stage)?;
    ensure_eq!(line(&mut child)?, "ok");

    // 1. Without the agent it goes on, as everything that is granted does.
    stage.kill_agent()?;
    say(&mut child, "go\n")?;
    ensure_eq!(line(&mut child)?, "ok");

    // 2. The next agent knows it.
    stage.start_agent()?;
    stage.wait_for_host("enforcing")?;
    say(&mut child, "go\n")?;
    ensure_eq!(line(&mut child)?, "ok");
    stage.wait_for_grant(&grant, "active")?;

    // 3. It ends while there is none, and the one after finds that out.
    stage.kill_agent()?;
    say(&mut child, "go\n")?;
    ensure_eq!(child.wait()?.code(), Some(0));
    stage.start_agent()?;
    // Whoever is first: the caller cannot ask an agent that is away, and gives the grant back.
    stage.wait_for_grant(&grant, "ended")?;
    stage.wait_for_event("the end of the run", |event| event["event"] == "run.ended")?;
    ensure_eq!(story(&stage)?.last().map(String::as_str), Some("run.ended exited user:alice"));

    // 4. A cgroup in the place of that of a run that an agent remembers is nobody's.
    let mut child = run(&stage, &listener, &ASK, r#""$@"; read word"#)?.spawn()?;
    let grant = approve(&stage)?;
    ensure_eq!(line(&mut child)?, "ok");
    let run_id: RunId = text(&stage.wait_for_grant(&grant, "active")?, "run")?.parse()?;
    stage.kill_agent()?;
    say(&mut child, "go\n")?;
    child.wait()?;
    let folder = agent::runs::cgroup::directory(stage.sandbox().cgroup_root(), run_id);
    fs::remove_dir(&folder)?;
    let place = stage.sandbox().make_cgroup_at(format!("/{}/{run_id}", agent::runs::cgroup::FOLDER))?;
    let mut stranger = tests::process::in_cgroup(&place, "sleep");
    let mut stranger = stranger.arg("600").spawn()?;
    stage.start_agent()?;
    stage.wait_for_host("enforcing")?;
    ensure_eq!(connect(&place, &listener)?, "EPERM");
    stranger.kill()?;
    stranger.wait()?;
    tests::sandbox::remove_cgroup(&place.directory)
}

/// A program that speaks to the agent by itself.
pub(crate) struct Program {
    stream: UnixStream,
    pub(crate) challenge: Challenge,
}

impl Program {
    pub(crate) fn connect(stage: &Stage) -> Result<Self> {
        let stream = UnixStream::connect(socket(stage))?;
        stream.set_read_timeout(Some(SOON))?;
        let mut program = Self { stream, challenge: Challenge([0; 32]) };
        match program.hear()? {
            FromAgent::Challenge { challenge, .. } => program.challenge = challenge,
            other => bail!("it said {other:?} first"),
        }
        Ok(program)
    }

    fn hear(&mut self) -> Result<FromAgent> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length)?;
        let mut frame = vec![0; usize::try_from(u32::from_be_bytes(length))?];
        self.stream.read_exact(&mut frame)?;
        Ok(FromAgent::decode(&frame)?)
    }

    pub(crate) fn ask(&mut self, message: ToAgent) -> Result<FromAgent> {
        let frame = message.encode();
        self.stream.write_all(&[&u32::try_from(frame.len())?.to_be_bytes()[..], &frame].concat())?;
        self.hear()
    }

    #[track_caller]
    fn refused(&mut self, message: ToAgent, expected: &str) -> Result<()> {
        match self.ask(message)? {
            FromAgent::Refused { reason, .. } if reason == expected => Ok(()),
            other => bail!("the agent said {other:?}, expected `{expected}`"),
        }
    }
}

/// The control plane's word for a challenge, as a subject gets it.
pub(crate) fn pass(stage: &Stage, subject: &str, host: &str, challenge: Challenge) -> Result<RunPass> {
    let token = fs::read_to_string(stage.path(&format!("{}.token", subject.replace(':', "-"))))?;
    let path = stage.path("socket");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(async {
        let connector = tower::service_fn(move |_: tonic::transport::Uri| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
        });
        let endpoint = tonic::transport::Endpoint::from_static("http://portcullis.invalid");
        let channel = endpoint.connect_with_connector(connector).await?;
        let message = IssueRunPassRequest { host: host.to_owned(), challenge: challenge.0.to_vec() };
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert("authorization", format!("Bearer {}", token.trim()).parse()?);
        anyhow::Ok(IdentityServiceClient::new(channel).issue_run_pass(request).await?.into_inner())
    })?;
    Ok(answer.pass.context("a pass")?.try_into()?)
}

fn nobody_else_gets_in() -> Result<()> {
    let (stage, listener) = stage_with_alice()?;
    stage.add_subject("user:bob", "member", &[])?;
    stage.wait_until_applied()?;
    stage.cli(ADMIN)?.run(&["host", "add", "db-8"])?;

    // 1. A pass counts on the host that it is for, on the connection that it was asked for on, once; and signed.
    let mut first = Program::connect(&stage)?;
    let right = pass(&stage, "user:alice", HOST, first.challenge)?;
    let mut second = Program::connect(&stage)?;
    second.refused(ToAgent::Open(right.clone()), "other_challenge")?;
    let mut third = Program::connect(&stage)?;
    let elsewhere = pass(&stage, "user:alice", "db-8", third.challenge)?;
    third.refused(ToAgent::Open(elsewhere), "other_host")?;
    let mut fourth = Program::connect(&stage)?;
    let mut signature = pass(&stage, "user:alice", HOST, fourth.challenge)?;
    signature.signature.clone_from(&right.signature);
    fourth.refused(ToAgent::Open(signature), "bad_signature")?;
    let FromAgent::Opened(run) = first.ask(ToAgent::Open(right.clone()))? else { bail!("it is right") };
    first.refused(ToAgent::Open(right), "malformed")?;

    // 2. Nobody gets a pass without a token, nor for a host that there is not.
    let nowhere = pass(&stage, "user:alice", "nowhere", Challenge([0; 32]));
    ensure_eq!(format!("{:?}", nowhere.err()).contains("nowhere"), true);

    // 3. The run went with its connection. Another one: only a child of who opened it can enter.
    Program::connect(&stage)?
        .refused(ToAgent::Enter { run, command: String::new(), grant: None }, "unknown_run")?;
    let mut opener = Program::connect(&stage)?;
    let its = pass(&stage, "user:bob", HOST, opener.challenge)?;
    let FromAgent::Opened(run) = opener.ask(ToAgent::Open(its))? else { bail!("it is right") };
    // This process is its own parent's child, not its own.
    Program::connect(&stage)?
        .refused(ToAgent::Enter { run, command: String::new(), grant: None }, "not_a_child")?;
    // A grandchild is none either.
    let program = tests::stage::binary("portcullis")?;
    let entering = |command: &mut Command| {
        command.args(["--enter-run", &socket(&stage).display().to_string(), &run.to_string(), "-"]);
    };
    let enter = |command: &mut Command| -> Result<Output> {
        entering(command);
        Ok(command.arg("true").output()?)
    };
    let mut grandchild = Command::new("/bin/sh");
    grandchild.args(["-c", r#""$@"; exit $?"#, "sh"]).arg(&program);
    let output = enter(&mut grandchild)?;
    ensure_eq!(output.status.code(), Some(6), "{}", String::from_utf8_lossy(&output.stderr));
    // Nor is a child that runs as another user.
    let everybodys = stage.path("portcullis");
    fs::copy(&program, &everybodys)?;
    fs::set_permissions(stage.sandbox().dir(), PermissionsExt::from_mode(0o755))?;
    let output = enter(Command::new(&everybodys).uid(65534))?;
    ensure_eq!(output.status.code(), Some(6), "{}", String::from_utf8_lossy(&output.stderr));
    // A child gets in, once. It stays meanwhile: a run that nobody is in any more is over, and not known.
    let mut entered = Command::new(&program);
    entering(&mut entered);
    entered.args(["/bin/sh", "-c", "echo in; read word"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut entered = entered.stderr(Stdio::piped()).spawn()?;
    ensure_eq!(line(&mut entered)?, "in");
    let output = enter(&mut Command::new(&program))?;
    let why = String::from_utf8_lossy(&output.stderr);
    ensure_eq!((output.status.code(), why.contains("a run is entered once")), (Some(6), true), "{why}");
    say(&mut entered, "go\n")?;
    ensure_eq!(entered.wait()?.code(), Some(0));
    drop(opener);

    // 4. A grant of one's run opens nothing in another's, though the same user runs both.
    let mut bobs = Program::connect(&stage)?;
    let its = pass(&stage, "user:bob", HOST, bobs.challenge)?;
    let FromAgent::Opened(run) = bobs.ask(ToAgent::Open(its))? else { bail!("it is right") };
    let mut child = run_of(&stage, &listener)?;
    let grant = approve(&stage)?;
    ensure_eq!(line(&mut child)?, "ok");
    let place = format!("/{}/{run}", agent::runs::cgroup::FOLDER);
    let place =
        Cgroup { directory: stage.sandbox().cgroup_root().join(place.trim_start_matches('/')), path: place };
    ensure_eq!(connect(&place, &listener)?, "EPERM");
    // Nobody but root walks into one.
    let alices: RunId = text(&stage.wait_for_grant(&grant, "active")?, "run")?.parse()?;
    let folder = agent::runs::cgroup::directory(stage.sandbox().cgroup_root(), alices);
    let mut walk = Command::new("/bin/sh");
    walk.args(["-c", r#"echo $$ > "$0/cgroup.procs""#]).arg(&folder).uid(65534).stderr(Stdio::null());
    ensure_eq!(walk.status()?.success(), false);
    say(&mut child, "go\n")?;
    ensure_eq!(child.wait()?.code(), Some(0));

    // 5. All of it is on the record.
    for reason in [
        "other_challenge",
        "other_host",
        "bad_signature",
        "malformed",
        "unknown_run",
        "not_a_child",
        "other_user",
        "already_entered",
    ] {
        stage.wait_for_event(reason, |event| event["event"] == "run.refused" && event["reason"] == reason)?;
    }
    Ok(())
}

/// A run of alice's that has access, and waits for a word.
fn run_of(stage: &Stage, listener: &Listener) -> Result<Child> {
    Ok(run(stage, listener, &ASK, r#""$@"; read word"#)?.spawn()?)
}

fn a_flood_at_the_socket_keeps_nobody_out() -> Result<()> {
    let (stage, listener) = stage_with_alice()?;
    // 1. Another user takes all that one user can have, says nothing, or nonsense, or a byte now and then.
    let mut flood = Command::new("/usr/bin/python3");
    let script = "import socket,sys,time\n\
        made=[]\n\
        for i in range(300):\n\
        \x20 s=socket.socket(socket.AF_UNIX)\n\
        \x20 try:\n\
        \x20  s.connect(sys.argv[1]); s.setblocking(False)\n\
        \x20  s.send([b'', b'\\xff'*100, b'\\0\\0\\0\\x08garbage!', b'\\0'][i%4])\n\
        \x20 except OSError: pass\n\
        \x20 made.append(s)\n\
        print('flooded', flush=True)\n\
        time.sleep(600)\n";
    flood.args(["-c", script]).arg(socket(&stage)).uid(65534).stdout(Stdio::piped());
    // The way to the socket is the sandbox's own.
    let reach = fs::metadata(stage.sandbox().dir())?.permissions();
    fs::set_permissions(stage.sandbox().dir(), PermissionsExt::from_mode(0o755))?;
    let mut flood = flood.spawn()?;
    let flooded = line(&mut flood);

    // 2. Nobody else notices.
    let ran = flooded.and_then(|_| Ok(run(&stage, &listener, &[], "exit 4")?.output()?));
    flood.kill()?;
    flood.wait()?;
    fs::set_permissions(stage.sandbox().dir(), reach)?;
    let output = ran?;
    ensure_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stderr));

    // 3. It is on the record, without filling it.
    stage.wait_for_event("a refusal", |event| {
        event["event"] == "run.refused" && event["reason"] == "too_many" && event["run"]["uid"] == 65534
    })?;
    let count = story(&stage)?.iter().filter(|line| line.starts_with("run.refused")).count();
    ensure_eq!(count <= 40, true, "{count} refusals are told of");
    // A frame that claims to be huge is refused before it is read.
    let mut huge = Program::connect(&stage)?;
    huge.stream.write_all(&u32::MAX.to_be_bytes())?;
    ensure_eq!(matches!(huge.hear()?, FromAgent::Refused { reason, .. } if reason == "malformed"), true);
    Ok(())
}
