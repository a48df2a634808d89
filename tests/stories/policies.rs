//! Policy as files, from a folder to the kernel.

use std::fs;

use anyhow::{Context, Result};
use proto::types::Protocol;
use tests::ensure_eq;
use tests::listener::Listener;
use tests::runner::Test;
use tests::stage::{ADMIN, HOST, Stage, text};

use crate::life::connect;

pub(crate) const TESTS: &[Test] = &[("policies::a_policy_decides_and_another_one_ends", decides_and_ends)];

const SUBJECTS: &str = r#"
[[subject]]
id = "user:alice"
[[subject]]
id = "user:bob"
[[subject]]
id = "user:carol"
"#;
const ROLES: &str = r#"
[[role]]
name = "debug"
to = ["user:alice"]
resources = ["db"]
hosts = ["*"]
maximum_duration = "30m"
strict = true
[[role.step]]
approvers = ["user:bob"]
[[role.step]]
approvers = ["user:carol"]
"#;

fn decides_and_ends() -> Result<()> {
    // 1. A server that nobody protects; whoever keeps the policy writes it down, and looks at what it would do.
    let stage = Stage::start()?;
    let listener = Listener::start(Protocol::Tcp, (stage.sandbox().address(), 0).into())?;
    let alice = stage.add_subject_with_cgroup("user:alice")?;
    for person in ["user:bob", "user:carol"] {
        stage.add_subject(person, "member", &[])?;
    }
    let (address, port) = (listener.address().ip(), listener.address().port());
    let files = [
        ("limits.toml", "maximum_duration = \"8h\"\n".to_owned()),
        ("hosts.toml", format!("[[host]]\nname = \"{HOST}\"\n")),
        ("subjects.toml", SUBJECTS.to_owned()),
        (
            "resources.toml",
            format!("[[resource]]\nname = \"db\"\naddresses = [\"{address}\"]\nports = [\"tcp/{port}\"]\n"),
        ),
        ("roles.toml", ROLES.to_owned()),
    ];
    let folder = stage.path("policy");
    fs::create_dir_all(folder.join("conditions"))?;
    for (name, text) in &files {
        fs::write(folder.join(name), text)?;
    }
    let folder = folder.to_str().context("it is UTF-8")?;
    let admin = stage.cli(ADMIN)?;
    admin.run(&["policy", "validate", folder])?;
    let plan = admin.json(&["policy", "plan", folder])?;
    ensure_eq!(plan["protects"], serde_json::json!(["db"]));
    ensure_eq!(connect(&alice, &listener)?, "ok");

    // 2. In force, it protects the server; alice is refused.
    admin.run(&["policy", "apply", folder, "--comment", "infra#1"])?;
    stage.wait_until_applied()?;
    ensure_eq!(connect(&alice, &listener)?, "EPERM");
    ensure_eq!(admin.json(&["resource", "list"])?[0]["strict"], true);

    // 3. She asks, and learns whose yes it takes. It takes both, in order; the administrator's counts for nothing.
    let [as_alice, as_bob, as_carol] = ["user:alice", "user:bob", "user:carol"].map(|who| stage.cli(who));
    let (as_alice, as_bob, as_carol) = (as_alice?, as_bob?, as_carol?);
    as_alice.fails(
        &["request", "db", "--for", "1h", "--reason", "x"],
        6,
        "which role `debug` can be had for",
    )?;
    as_bob.fails(&["request", "db", "--for", "1m", "--reason", "x"], 6, "no role gives `user:bob` access")?;
    let request = as_alice.json(&["request", "db", "--for", "20m", "--reason", "slow query"])?;
    let id = text(&request, "id")?;
    ensure_eq!(as_alice.json(&["requests"])?[0]["waiting"]["approvers"], serde_json::json!(["user:bob"]));
    admin.fails(&["approve", &id], 6, "is no approver of any step")?;
    as_carol.fails(&["approve", &id], 8, "that one has not begun")?;
    ensure_eq!(as_bob.json(&["approve", &id, "--for", "10m"])?["state"], "pending");
    ensure_eq!(connect(&alice, &listener)?, "EPERM");
    let grant = text(&as_carol.json(&["approve", &id])?, "id")?;
    stage.wait_for_grant(&grant, "active")?;
    ensure_eq!(connect(&alice, &listener)?, "ok");

    // 4. The policy changes, and would end her grant: that is not done by the way.
    let condition =
        "@id(\"freeze\")\n@help(\"wait for the end of the freeze\")\nforbid (principal, action, resource);\n";
    fs::write(format!("{folder}/conditions/freeze.cedar"), condition)?;
    let plan = admin.json(&["policy", "plan", folder])?;
    ensure_eq!(plan["ends"][0]["grant"], grant.as_str());
    admin.fails(&["policy", "apply", folder], 1, "--end-grants")?;
    ensure_eq!(connect(&alice, &listener)?, "ok");

    // 5. If it is meant, it is done at once, by the kernel, and the record says why.
    admin.run(&["policy", "apply", folder, "--end-grants"])?;
    stage.wait_for_grant(&grant, "ended")?;
    ensure_eq!(connect(&alice, &listener)?, "EPERM");
    let event = stage.wait_for_event("the end", |event| event["event"] == "grant.ended")?;
    ensure_eq!((&event["reason"], &event["grant"]), (&"policy_changed".into(), &grant.as_str().into()));
    as_alice.fails(
        &["request", "db", "--for", "1m", "--reason", "x"],
        6,
        "rule `freeze`: forbids it (what would help: wait for the end of the freeze)",
    )?;

    // 6. The version before is put in force again.
    admin.run(&["policy", "rollback", "1", "--comment", "the freeze is over"])?;
    ensure_eq!(admin.json(&["policy", "history"])?[0]["restores"], 1);
    as_alice.run(&["request", "db", "--for", "1m", "--reason", "x"]).map(drop)
}
