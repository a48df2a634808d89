//! Tables and JSON of every result.

use std::os::unix::fs::PermissionsExt;

use proto::wire::access::{Host, HostState};
use proto::wire::identity::Provider;

use crate::canned::{Canned, GRANT, REQUEST, World, host};

/// Each line as a table and as JSON.
async fn check(name: &str, lines: &[&[&str]]) {
    let world = World::start(Canned::default()).await;
    let mut text = String::new();
    for line in lines {
        text += &world.run(line).await;
        text += &world.run(&[line, &["-o", "json"][..]].concat()).await;
    }
    insta::assert_snapshot!(name, text);
}

#[tokio::test]
async fn directory() {
    let add =
        "resource add db --address 10.0.0.0/24,10.1.0.1 --port tcp/5432 --port udp/1-65535 --address ::1";
    let add: Vec<&str> = add.split(' ').collect();
    check(
        "directory",
        &[
            &["resource", "list"],
            &add,
            &[
                "resource",
                "add",
                "own",
                "--address",
                "local",
                "--port",
                "tcp/1",
                "--mode=observe",
                "--strict",
            ],
            &["resource", "set", "db-prod", "--mode", "enforce", "--strict=false"],
            &["resource", "remove", "db-prod"],
            &["subject", "list"],
            &["subject", "add", "user:eve", "--selector", "unix-user:eve", "--role", "auditor"],
            &["subject", "add", "user:eve"],
            &["subject", "token", "user:eve"],
            &["subject", "unbind", "user:eve", "--comment", "HR-311"],
            &["subject", "disable", "user:eve", "--comment", "HR-311"],
            &["subject", "enable", "user:eve"],
            &["host", "add", "db-9"],
            &["status"],
        ],
    )
    .await;
}

#[tokio::test]
async fn access() {
    check(
        "access",
        &[
            &["request", "db-prod", "--for", "1h30m", "--reason", "slow query"],
            &["requests"],
            &["requests", "--all"],
            &["approve", REQUEST, "--comment", "see INC-42"],
            &["approve", REQUEST, "--for", "30m", "--host", "db-7"],
            &["deny", REQUEST],
            &["withdraw", REQUEST],
            &["drafts"],
            &["request", "--draft", "019aac20-1f4e-7d22-8c55-0a9b8c7d6e61", "--reason", "slow query"],
            &["request", "--draft", "019aac20-1f4e-7d22-8c55-0a9b8c7d6e62", "--reason", "slow query"],
            &["draft", "drop", "019aac20-1f4e-7d22-8c55-0a9b8c7d6e61"],
            &["grants"],
            &["grants", "--all"],
            &["who-has"],
            &["who-has", "db-prod", "--subject", "user:alice@example.com", "--at", "2026-11-22T10:00:00Z"],
            &["revoke", GRANT, "--comment", "laptop lost"],
            &["release", GRANT],
            &["activate", GRANT],
            &["extend", GRANT, "--for", "30m"],
            &["extend", GRANT, "--for", "90m", "--reason", "it takes longer"],
            &["reviews"],
            &["reviews", "--all"],
            &["review", GRANT, "--comment", "as discussed"],
            &["freeze", "--resource", "vault,db-prod", "--for", "2h", "--reason", "leak"],
            &["freeze", "--all", "--for", "2h", "--keep-live", "--reason", "failover"],
            &["freezes"],
            &["freezes", "--all"],
            &["thaw", "019aac20-1f4e-7d22-8c55-0a9b8c7d6e60", "--comment", "replaced"],
            &["incident", "open", "inc-42", "--for", "4h", "--reason", "nobody can log in"],
            &["incident", "open", "inc-43", "--for", "4h"],
            &["incidents"],
            &["incidents", "--all"],
            &["incident", "close", "inc-42", "--comment", "rolled back"],
        ],
    )
    .await;
}

#[tokio::test]
async fn reports() {
    let period = ["--from", "2026-11-01", "--to", "2026-12-01"];
    check(
        "reports",
        &[
            &["report", "grants", "--since", "30d"],
            &["report", "roles", "--since", "2026-11-01"],
            &["report", "roles", "--since", "2026-11-01", "--toml"],
            &["report", "waiting"],
            &[&["report", "review"][..], &period].concat(),
        ],
    )
    .await;
    let world = World::start(Canned::default()).await;
    let csv = world.run(&[&["report", "review", "-o", "csv"][..], &period].concat()).await;
    insta::assert_snapshot!("review_as_csv", csv);
    let filters = ["--until=2026-11-20T10:00:00Z", "--subject=user:eve", "--resource=db"];
    world.run(&[&["report", "grants", "--since=2026-11-01"][..], &filters].concat()).await;
    world.run(&["report", "waiting", "--longer-than", "4h"]).await;
    insta::assert_snapshot!("reports_asked_for", world.canned.calls.lock().unwrap().join("\n"));
}

/// What reaches the control plane, defaults included.
#[tokio::test]
async fn what_is_asked() {
    let world = World::start(Canned::default()).await;
    // Without `--key` each has a key that nobody else has.
    let request =
        ["request", "db-prod", "--for", "90s", "--reason", " x ", "--host=b,a", "--host=a", "--key=1"];
    world.run(&request).await;
    let for_a_job = ["--subject=workload:ci/deploy", "--key=ci:4711"];
    world.run(&[&["request", "db", "--for", "1d", "--reason", "x"][..], &for_a_job].concat()).await;
    let limits = ["--idle=10m", "--while-running=/ci.slice/a b", "--key=3"];
    world.run(&[&["request", "db", "--for", "1d", "--reason", "x"][..], &limits].concat()).await;
    // For so long as the role says, which may be longer than the idle limit.
    world.run(&["request", "db", "--reason", "x", "--role", "debug", "--idle", "1h", "--key=5"]).await;
    let from_a_draft = ["--draft", "019aac20-1f4e-7d22-8c55-0a9b8c7d6e61", "--key=6"];
    world.run(&[&["request", "--for", "30m", "--reason", "x"][..], &from_a_draft].concat()).await;
    world.run(&["resource", "set", "db", "--drafts"]).await;
    world.run(&["resource", "set", "db", "--check-senders"]).await;
    world.run(&["resource", "set", "db", "--strict=false", "--mode=observe"]).await;
    world.run(&["resource", "set", "db", "--serve-only=10.2.0.0/16,::1", "--serve-only=10.1.0.0/16"]).await;
    world.run(&["resource", "set", "db", "--serve-anyone"]).await;
    world.run(&["subject", "add", "user:eve"]).await;
    world.run(&["revoke", GRANT]).await;
    world
        .run(&["who-has", "db", "--host", "a", "--subject", "user:eve", "--at", "2026-11-22T10:00:00Z"])
        .await;
    insta::assert_snapshot!("what_is_asked", world.canned.calls.lock().unwrap().join("\n"));
}

#[tokio::test]
async fn check_of_status() {
    async fn code(hosts: Vec<Host>) -> String {
        let world = World::start(Canned { hosts: Some(hosts), ..Canned::default() }).await;
        world.run(&["status", "--check"]).await
    }
    let degraded = host("db-8", HostState::Degraded, "without ring records");
    let one = || host("db-7", HostState::Enforcing, "");
    let text = code(vec![one()]).await + &code(vec![one(), degraded]).await + &code(vec![]).await;
    insta::assert_snapshot!("check_of_status", text);
}

#[tokio::test]
async fn new_tokens_in_files() {
    let world = World::start(Canned::default()).await;
    let path = world.path("agent.token");
    std::fs::write(&path, "an older and longer one, which others can read").unwrap();
    let file = path.display().to_string();
    let text = world.run(&["host", "add", "db-9", "--new-token-file", &file]).await
        + &world.run(&["subject", "token", "user:eve", "-o", "json", "--new-token-file", &file]).await;
    insta::assert_snapshot!("new_tokens_in_files", text);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "pct_new\n");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    // Nothing is issued if it could not be kept, and what is not a file is left alone.
    world.canned.calls.lock().unwrap().clear();
    for file in ["/nowhere/agent.token", "/dev/null", "/proc"] {
        let text = world.run(&["host", "add", "db-9", "--new-token-file", file]).await;
        assert!(text.contains(&format!("cannot write token file `{file}`")), "{text}");
    }
    assert!(world.canned.calls.lock().unwrap().is_empty());
}

#[tokio::test]
async fn whoami() {
    let mut text = String::new();
    for has_session in [false, true] {
        let world = World::start(Canned { has_session, ..Canned::default() }).await;
        text += &world.run(&["whoami"]).await;
        text += &world.run(&["whoami", "-o", "json"]).await;
    }
    insta::assert_snapshot!("whoami", text);
}

/// What `login` says before anybody is asked, and what it does not keep.
#[tokio::test]
async fn login_with_a_provider() {
    let provider = |name: &str| Provider {
        name: name.into(),
        issuer: "https://localhost:1".into(),
        client_id: "portcullis".into(),
        scopes: vec!["openid".into()],
        ..Provider::default()
    };
    let mut text = String::new();
    for providers in [vec![], vec![provider("corp")], vec![provider("corp"), provider("contractors")]] {
        let world = World::start(Canned { providers, ..Canned::default() }).await;
        let server = format!("unix:{}", world.path("socket").display());
        for line in [&["login"][..], &["login", "--provider", "other"], &["login", "--provider", "Corp"]] {
            text += &world.run_bare(&[line, &["--server", &server]].concat(), line).await;
        }
        text += &world.run(&["login", "--device"]).await;
        assert!(!world.path("config/portcullis/credentials.toml").exists());
    }
    insta::assert_snapshot!("login_with_a_provider", text);
}

#[tokio::test]
async fn logout() {
    let world = World::start(Canned::default()).await;
    let server = format!("unix:{}", world.path("socket").display());
    let mut text = world.run_bare(&["logout"], &["logout"]).await;
    world.run_bare(&["login", "--token-file", "-", "--server", &server], &["login"]).await;
    text += &world.run_bare(&["logout"], &["logout"]).await;
    text += &world.run_bare(&["grants"], &["grants"]).await;
    // A session that cannot be renewed: it ends there, and here.
    let stored = world.path("config/portcullis/credentials.toml");
    let session = "[session]\nprovider = 'corp'\nissuer = 'https://localhost:1'\nclient_id = 'portcullis'\n";
    let store = |expires: &str| {
        let text = format!("server = '{server}'\ntoken = 'pct_admin'\n{session}expires = '{expires}'\n");
        std::fs::write(&stored, text).unwrap();
        std::fs::set_permissions(&stored, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    store("2026-11-22T09:59:59Z");
    text += &world.run_bare(&["grants"], &["grants"]).await;
    store("2026-11-22T10:00:30Z");
    text += &world.run_bare(&["host", "add", "db-9", "-o", "json"], &["host", "add", "db-9"]).await;
    text += &world.run_bare(&["logout"], &["logout"]).await;
    assert!(world.canned.calls.lock().unwrap().iter().any(|call| call.contains("SignOutRequest")));
    assert!(!stored.exists());
    insta::assert_snapshot!("logout", text);
}

#[tokio::test]
async fn login() {
    let world = World::start(Canned::default()).await;
    let server = format!("unix:{}", world.path("socket").display());
    let shown = ["login", "--token-file", "-", "--server", "unix:[DIR]/socket"];
    let mut text = world.run_bare(&["login", "--token-file", "-", "--server", &server], &shown).await;
    // From now on neither is named; and the token is not shown to another server.
    text += &world.run_bare(&["resource", "list"], &["resource", "list"]).await;
    let other = ["resource", "list", "--server", "https://127.0.0.1:1"];
    text += &world.run_bare(&other, &other).await;
    std::fs::write(world.path("bad"), "pct_wrong").unwrap();
    let bad = world.path("bad").display().to_string();
    text += &world.run_bare(&["login", "--token-file", &bad], &["login --token-file [DIR]/bad"]).await;
    text += &world.run_bare(&["login"], &["login"]).await;
    insta::assert_snapshot!("login", text);
    let stored = std::fs::read_to_string(world.path("config/portcullis/credentials.toml")).unwrap();
    assert_eq!(stored, format!("server = \"{server}\"\ntoken = \"pct_admin\"\n"));
}
