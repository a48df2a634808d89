//! Policy as files, from a folder to the kernel; and who has access, from the kernel to whoever asks.

use std::fs;
use std::time::Duration;

use agent_ebpf::abi::map;
use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
use proto::types::Protocol;
use serde_json::Value;
use tests::ensure_eq;
use tests::listener::Listener;
use tests::process::wait_for;
use tests::runner::Test;
use tests::stage::{ADMIN, HOST, SOON, Stage, text};
use tests::tampering::{Pinned, Word};

use crate::life::{connect, stage_with_resource};

pub(crate) const TESTS: &[Test] = &[
    ("policies::a_policy_decides_and_another_one_ends", decides_and_ends),
    ("policies::who_has_is_what_kernels_hold", who_has_is_what_kernels_hold),
];

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

/// What the control plane says of access, and what the host's kernel holds, side by side.
struct Sides {
    stage: Stage,
    pinned: Pinned,
    pair: [u8; 8],
}

impl Sides {
    fn of(stage: Stage, subject: &str, resource: &str) -> Result<Self> {
        let admin = stage.cli(ADMIN)?;
        let number = |list: Value, field: &str, name: &str| {
            let found = list.as_array().into_iter().flatten().find(|it| it[field] == name).cloned();
            let number = found.and_then(|it| u32::try_from(it["number"].as_u64()?).ok());
            number.with_context(|| format!("{name} has no number"))
        };
        let subject = number(admin.json(&["subject", "list"])?, "id", subject)?;
        let resource = number(admin.json(&["resource", "list"])?, "name", resource)?;
        let mut pair = [0; 8];
        pair[..4].copy_from_slice(&subject.to_ne_bytes());
        pair[4..].copy_from_slice(&resource.to_ne_bytes());
        let pinned = Pinned::at(&stage.sandbox().pin_dir());
        Ok(Self { stage, pinned, pair })
    }

    /// By the kernel's own maps: whether it lets the subject through, and by which grant.
    fn in_kernel(&self) -> Result<bool> {
        let Some(reference) = self.pinned.lookup::<16>(map::GRANTS, &self.pair)? else { return Ok(false) };
        let slot = u32::from_ne_bytes(*reference.first_chunk().context("a slot")?);
        let epoch = u64::from_ne_bytes(*reference.last_chunk().context("an epoch")?);
        let slot = self.pinned.slot(slot)?.context("the slot is there")?;
        let now = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?);
        let deadline = Duration::from_nanos(slot.word(Word::Deadline));
        Ok(slot.word(Word::Epoch) == epoch && deadline > now)
    }

    /// Waits until the control plane says this (None: nobody has access), and then until the kernel does the same: its deadline is as much
    /// later as the grant was on its way.
    fn agree(&self, certainty: Option<&str>) -> Result<()> {
        let admin = self.stage.cli(ADMIN)?;
        wait_for(&format!("access to be {certainty:?}"), SOON, || {
            let access = admin.json(&["who-has", "db"])?;
            Ok((access[0]["certainty"].as_str() == certainty).then_some(()))
        })?;
        wait_for(&format!("the kernel to agree with {certainty:?}"), ON_ITS_WAY, || {
            Ok((self.in_kernel()? == certainty.is_some()).then_some(()))
        })
    }
}

/// How long a grant is on its way at most, on a machine that does much else.
const ON_ITS_WAY: Duration = Duration::from_secs(5);

/// After a grant, its expiry, a revocation, and with a host that cannot be reached.
fn who_has_is_what_kernels_hold() -> Result<()> {
    // 1. Nobody has access; then alice has, and the kernel says so.
    let (stage, listener) = stage_with_resource()?;
    let alice = stage.add_subject_with_cgroup("user:alice")?;
    stage.wait_until_applied()?;
    let mut sides = Sides::of(stage, "user:alice", "db")?;
    sides.agree(None)?;
    sides.stage.grant("user:alice", "db", "5s")?;
    sides.agree(Some("held"))?;
    ensure_eq!(connect(&alice, &listener)?, "ok");
    let access = sides.stage.cli(ADMIN)?.json(&["who-has", "db", "--subject", "user:alice"])?;
    ensure_eq!(access[0]["approvers"], serde_json::json!([ADMIN]));
    let during = text(&access[0], "since")?;

    // 2. Its time is over, and nobody has access.
    sides.agree(None)?;
    ensure_eq!(connect(&alice, &listener)?, "EPERM");

    // 3. Another one is taken away.
    let grant = sides.stage.grant("user:alice", "db", "10m")?;
    sides.agree(Some("held"))?;
    sides.stage.cli(ADMIN)?.run(&["revoke", &grant])?;
    sides.agree(None)?;

    // 4. The host is not heard any more: it may let her through, and it does.
    let grant = sides.stage.grant("user:alice", "db", "20s")?;
    sides.agree(Some("held"))?;
    sides.stage.kill_agent()?;
    sides.agree(Some("possible"))?;
    ensure_eq!(connect(&alice, &listener)?, "ok");

    // 5. Taken away, it is shown for as long as the host's kernel may hold it, to the deadline and not beyond.
    sides.stage.cli(ADMIN)?.run(&["revoke", &grant])?;
    sides.agree(Some("possible"))?;
    sides.agree(None)?;
    ensure_eq!(connect(&alice, &listener)?, "EPERM");

    // 6. Of the past it is known who was granted what.
    let then = sides.stage.cli(ADMIN)?.json(&["who-has", "db", "--at", &during])?;
    ensure_eq!((&then[0]["certainty"], &then[0]["subject"]), (&"granted".into(), &"user:alice".into()));
    let before = sides.stage.cli(ADMIN)?.json(&["who-has", "db", "--at", "2026-01-01T00:00:00Z"])?;
    ensure_eq!(before, serde_json::json!([]));
    Ok(())
}
