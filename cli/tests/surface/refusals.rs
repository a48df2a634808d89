//! What the control plane refuses, as people and scripts see it.

use proto::status::ErrorKind;

use crate::canned::{Canned, GRANT, REQUEST, World};

/// Every kind of refusal, with and without a hint of the control plane's own.
#[tokio::test]
async fn by_the_control_plane() {
    let mut text = String::new();
    for kind in ErrorKind::ALL {
        let refusal = Some((kind, "it says why\u{1b}[2J, with `the value`", ""));
        let world = World::start(Canned { refusal, ..Canned::default() }).await;
        text += &world.run(&["approve", REQUEST]).await;
    }
    let refusal = Some((ErrorKind::FailedPrecondition, "it has ended (time)", "make another request"));
    let world = World::start(Canned { refusal, ..Canned::default() }).await;
    text += &world.run(&["revoke", GRANT]).await;
    insta::assert_snapshot!("by_the_control_plane", text);
}

/// Wrong values: refused with the value named, before any call.
#[tokio::test]
async fn of_arguments() {
    let world = World::start(Canned::default()).await;
    let long = "x".repeat(1001);
    let many: Vec<String> = (0..65).map(|at| format!("--address=10.0.0.{at}")).collect();
    let mut too_many = vec!["resource", "add", "db", "--port=tcp/1"];
    too_many.extend(many.iter().map(String::as_str));
    let request = |rest: &[&'static str]| [&["request", "db", "--for=1m", "--reason=x"], rest].concat();
    let lines: Vec<Vec<&str>> = vec![
        vec!["resource", "add", "db", "--address=10.0.0.300", "--port=tcp/1"],
        vec!["resource", "add", "db", "--address=10.0.0.7/8", "--port=tcp/1"],
        vec!["resource", "add", "db", "--address=10.0.0.7", "--port=tcp/0"],
        vec!["resource", "add", "db", "--address=10.0.0.7", "--port=tcp/65536"],
        vec!["resource", "add", "db", "--address=10.0.0.7", "--port=5432"],
        vec!["resource", "add", "db", "--address=10.0.0.7", "--port=tcp/1-10,tcp/10"],
        vec!["resource", "add", "DB", "--address=10.0.0.7", "--port=tcp/1"],
        vec!["resource", "add", "db", "--port=tcp/1"],
        too_many,
        vec!["resource", "add", "db", "--address=locals", "--port=tcp/1"],
        vec!["resource", "add", "db", "--address=local", "--port=tcp/1", "--mode=ignore"],
        vec!["resource", "set", "db"],
        vec!["resource", "set", "db", "--strict=perhaps"],
        vec!["resource", "remove", "DB"],
        vec!["subject", "add", "alice"],
        vec!["subject", "add", "user:alice", "--role=root"],
        vec!["subject", "add", "user:alice", "--selector=cgroup:relative"],
        vec!["host", "add", "control-plane"],
        vec!["request", "db", "--for=0s", "--reason=x"],
        vec!["request", "db", "--for=1500ms", "--reason=x"],
        vec!["request", "db", "--for=30", "--reason=x"],
        vec!["request", "db", "--for=1m", "--reason= "],
        vec!["request", "db", "--for=1m", "--reason", &long],
        vec!["request", "db", "--for=1m"],
        vec!["request", "--reason=x"],
        vec!["request", "db", "--draft=019aac20-1f4e-7d22-8c55-0a9b8c7d6e61", "--reason=x"],
        vec!["draft", "drop", "mine"],
        vec!["run", "--resource=db", "--", "true"],
        request(&["--host=A"]),
        request(&["--subject=group:x"]),
        request(&["--wait-timeout=1m"]),
        request(&["--idle=1m"]),
        request(&["--idle=500ms"]),
        request(&["--while-running=job"]),
        request(&["--while-running=/job", "--host=a,b"]),
        vec!["approve", "7"],
        vec!["approve", REQUEST, "--comment=\u{1b}[2J"],
        vec!["audit", "tail", "--last=0"],
        vec!["audit", "tail", "--last=10001"],
        vec!["audit", "tail", "--last=1", "--after=1"],
        vec!["grants", "--server=http://10.0.0.1:7400"],
        vec!["host", "add", "db-9", "--label=env"],
        vec!["host", "add", "db-9", "--label=env=a", "--label=env=b"],
        vec!["host", "add", "db-9", "--within=soon"],
        vec!["grants", "-o", "csv"],
        vec!["report", "grants", "-o", "csv", "--since=1d"],
        vec!["report", "grants"],
        vec!["report", "grants", "--since=yesterday"],
        vec!["report", "grants", "--since=2026-11-02", "--until=2026-11-01"],
        vec!["report", "review", "--from=2026-11-01", "--to=2026-11-01"],
        vec!["report", "review", "--from=2026-11-01", "--to=2026-11-31"],
        vec!["report", "waiting", "--longer-than=0s"],
        vec!["frobnicate"],
        vec![],
    ];
    let mut text = String::new();
    for line in lines {
        let shown: Vec<&str> = line.iter().map(|word| &word[..word.len().min(40)]).take(8).collect();
        let server = format!("unix:{}", world.path("socket").display());
        let token = world.path("token").display().to_string();
        let mut args = vec!["--token-file", &token];
        if !line.iter().any(|word| word.starts_with("--server")) {
            args.extend(["--server", &server]);
        }
        let result = world.run_bare(&[&args, line.as_slice()].concat(), &shown).await;
        assert!(result.contains("--- exit code 2"), "{result}");
        // The whole help of a bare `portcullis` is under snapshot already.
        text += &result
            .lines()
            .take(8)
            .collect::<Vec<_>>()
            .join("\n")
            .replace('\u{1b}', "ESC")
            .replace(&long, "[1001 x]");
        text += "\n\n";
    }
    insta::assert_snapshot!("of_arguments", text);
    assert!(world.canned.calls.lock().unwrap().is_empty());
}

/// Nobody there, no token, files that are not what they should be.
#[tokio::test]
async fn of_surroundings() {
    let world = World::start(Canned::default()).await;
    let path = |name: &str| world.path(name).display().to_string();
    for (name, content) in [("empty", ""), ("two-lines", "a\nb"), ("not-text", "\u{0}")] {
        std::fs::write(world.path(name), content).unwrap();
    }
    let mut text = String::new();
    for (server, token) in [
        (path("nobody"), path("token")),
        (path("token"), path("token")),
        (path("socket"), path("missing")),
        (path("socket"), path("empty")),
        (path("socket"), path("two-lines")),
        (path("socket"), path("not-text")),
    ] {
        let server = format!("--server=unix:{server}");
        let token = format!("--token-file={token}");
        let args = ["grants", &server, &token];
        text += &world.run_bare(&args, &args).await;
    }
    let https = ["grants", "--server=https://127.0.0.1:1"];
    let token = format!("--token-file={}", path("token"));
    text += &world.run_bare(&[https[0], https[1], &token], &https).await;
    text += &world.run_bare(&["grants"], &["grants"]).await;
    std::fs::create_dir_all(world.path("config/portcullis")).unwrap();
    std::fs::write(world.path("config/portcullis/credentials.toml"), "server = 'ftp://x'\ntoken = 'a'")
        .unwrap();
    text += &world.run_bare(&["grants"], &["grants"]).await;
    insta::assert_snapshot!("of_surroundings", text);
}

#[test]
fn exit_codes() {
    insta::assert_snapshot!("exit_codes", cli::error::exit_code_help());
}
