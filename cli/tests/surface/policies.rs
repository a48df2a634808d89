//! `portcullis policy`: what it prints of good, odd and broken policies.

use proto::wire::policy::{PolicyAction, PolicyDifference, PolicyEnd, PolicyPlan};

use crate::canned::{Canned, GRANT, World};

const GOOD: [(&str, &str); 6] = [
    ("limits.toml", "maximum_duration = \"8h\"\n"),
    ("resources.toml", "[[resource]]\nname = \"db\"\naddresses = [\"10.0.0.7\"]\nports = [\"tcp/5432\"]\n"),
    ("hosts.toml", "[[host]]\nname = \"app-1\"\n"),
    (
        "subjects.toml",
        "[[subject]]\nid = \"user:alice\"\nmanager = \"user:bob\"\n[[subject]]\nid = \"user:bob\"\n[[subject]]\nid = \"user:eve\"\n",
    ),
    (
        "roles.toml",
        "[[role]]\nname = \"debug\"\nto = [\"user:alice\"]\nresources = [\"db\"]\nhosts = [\"*\"]\nidle = \"10m\"\nstrict = true\nmaximum_duration = \"2h\"\n\
         extension = { times = 1, by = \"30m\" }\n[[role.step]]\napprovers = [\"manager\"]\nafter = \"30m\"\nthen = \"escalate\"\nto = [\"user:eve\"]\n",
    ),
    (
        "conditions/mfa.cedar",
        "@id(\"mfa\")\n@help(\"sign in with a second factor\")\nforbid (principal, action, resource) unless { context.mfa };\n",
    ),
];

/// Writes a policy, in which these files are exchanged, to the folder of that name.
fn write(world: &World, name: &str, files: &[(&str, &str)]) {
    for (file, text) in GOOD.iter().chain(files) {
        let path = world.path(name).join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
}

async fn run(world: &World, verb: &str, name: &str, rest: &[&str]) -> String {
    let folder = world.path(name).display().to_string();
    let place = format!("[DIR]/{name}");
    let args = [&["policy", verb, &folder], rest].concat();
    world.run_bare(&args, &[&["policy", verb, &place], rest].concat()).await
}

#[tokio::test]
async fn validate() {
    let world = World::start(Canned::default()).await;
    write(&world, "good", &[]);
    write(
        &world,
        "odd",
        &[(
            "roles.toml",
            "[[role]]\nname = \"nobodys\"\nresources = [\"db\"]\nhosts = [\"*\"]\nautomatic = true\n",
        )],
    );
    write(
        &world,
        "broken",
        &[
            ("hosts.toml", "[[host]]\nname = \"app\u{430}\"\n"),
            (
                "roles.toml",
                "[[role]]\nname = \"debug\"\nto = [\"group:dba\"]\nresources = [\"\u{1b}[2J\"]\nhosts = [\"app-1\"]\n",
            ),
            (
                "conditions/mfa.cedar",
                "@id(\"mfa\")\nforbid (principal, action, resource) unless { context.mfaa };\n",
            ),
        ],
    );
    write(&world, "not-utf-8", &[]);
    std::fs::write(world.path("not-utf-8").join("hosts.toml"), [b'#', 0xff]).unwrap();
    write(&world, "large", &[]);
    std::fs::write(world.path("large").join("hosts.toml"), "#".repeat(3 << 20)).unwrap();
    std::fs::create_dir(world.path("empty")).unwrap();
    // Beside a policy may lie what is none of it.
    std::fs::write(world.path("good").join("README.md"), "x").unwrap();
    let mut text = String::new();
    for name in ["good", "odd", "broken", "not-utf-8", "large", "empty", "missing"] {
        text += &run(&world, "validate", name, &[]).await;
        text += &run(&world, "validate", name, &["-o", "json"]).await;
    }
    insta::assert_snapshot!("validate_policy", text);
    assert!(world.canned.calls.lock().unwrap().is_empty());
}

#[tokio::test]
async fn test() {
    let world = World::start(Canned::default()).await;
    let case = "at = \"2026-12-01T10:00:00Z\"\nsubject = \"user:alice\"\nresource = \"db\"\n";
    let good = format!(
        "[[case]]\nname = \"with a second factor\"\n{case}mfa = true\nexpect = {{ outcome = \"permitted\", role = \"debug\", approvals = 1 }}\n"
    );
    let bad = format!(
        "{good}[[case]]\nname = \"wrong\"\n{case}expect = {{ outcome = \"permitted\" }}\n\
         [[case]]\nname = \"wrong, too\"\n{case}mfa = true\nexpect = {{ outcome = \"permitted\", role = \"other\", approvals = 2, duration = \"1h\", rules = [\"mfa\"] }}\n\
         [[case]]\nname = \"and this\"\n{case}mfa = true\nexpect = {{ outcome = \"denied\" }}\n"
    );
    write(&world, "good", &[("tests/a.toml", &good)]);
    write(&world, "bad", &[("tests/a.toml", &bad)]);
    write(&world, "broken", &[("tests/a.toml", "[[case]]\n")]);
    write(&world, "none", &[]);
    let mut text = String::new();
    for name in ["good", "bad", "broken", "none"] {
        text += &run(&world, "test", name, &[]).await;
        text += &run(&world, "test", name, &["-o", "json"]).await;
    }
    insta::assert_snapshot!("test_policy", text);
}

#[tokio::test]
async fn explain() {
    let world = World::start(Canned::default()).await;
    write(&world, "p", &[]);
    let mut text = String::new();
    let alice = ["--subject", "user:alice", "--resource", "db"];
    for rest in [
        &alice[..],
        &[&alice[..], &["--mfa", "--for", "1h", "--host", "app-1"]].concat(),
        &[&alice[..], &["--mfa", "--for", "9h"]].concat(),
        &["--subject", "user:bob", "--resource", "db"],
        &[&alice[..], &["--stage=soon"]].concat(),
        &[&alice[..], &["--device=stolen"]].concat(),
        &[&alice[..], &["--at=now"]].concat(),
        &[&alice[..], &["--incident=INC 1"]].concat(),
        &["--resource", "db"],
    ] {
        text += &run(&world, "explain", "p", rest).await;
        text += &run(&world, "explain", "p", &[rest, &["-o", "json"]].concat()).await;
    }
    insta::assert_snapshot!("explain_policy", text);
}

/// A plan with one of each.
fn plan() -> PolicyPlan {
    let difference = |kind: &str, name: &str, action: PolicyAction| PolicyDifference {
        kind: kind.into(),
        name: name.into(),
        action: action.into(),
    };
    PolicyPlan {
        before: 7,
        differences: vec![
            difference("limits", "", PolicyAction::Changed),
            difference("role", "debug", PolicyAction::Added),
        ],
        protects: vec!["logs".into()],
        strict: vec!["db".into()],
        ends: vec![PolicyEnd {
            grant: GRANT.into(),
            subject: "user:alice".into(),
            resource: "db".into(),
            reason: "rule `mfa`: forbids it".into(),
        }],
    }
}

#[tokio::test]
async fn versions() {
    let world = World::start(Canned { plan: plan(), ..Canned::default() }).await;
    write(&world, "good", &[]);
    write(&world, "broken", &[("hosts.toml", "[[host]]\n")]);
    let mut text = String::new();
    for (verb, name, rest) in [
        ("plan", "good", &[][..]),
        ("plan", "broken", &[]),
        ("apply", "good", &["--comment", "infra#211"]),
        ("apply", "good", &["--comment", "infra#211", "--end-grants"]),
    ] {
        for format in [&[][..], &["-o", "json"]] {
            let folder = world.path(name).display().to_string();
            text += &world.run(&[&["policy", verb, &folder][..], rest, format].concat()).await;
        }
    }
    for line in [
        &["policy", "history"][..],
        &["policy", "show"],
        &["policy", "show", "6"],
        &["policy", "rollback", "6", "--end-grants", "--comment", "INC-42"],
        &["policy", "rollback", "0"],
    ] {
        text += &world.run(line).await;
        text += &world.run(&[line, &["-o", "json"]].concat()).await;
    }
    insta::assert_snapshot!("versions_of_a_policy", text);
    insta::assert_snapshot!("versions_of_a_policy_calls", world.canned.calls.lock().unwrap().join("\n"));

    // What differs in nothing is not applied; the files of a version come back as they were.
    let world =
        World::start(Canned { plan: PolicyPlan { before: 7, ..PolicyPlan::default() }, ..Canned::default() })
            .await;
    let told = world.run(&["policy", "rollback", "6"]).await;
    assert!(told.contains("version 7 of the policy says the same: nothing is to be done"), "{told}");
    let to = world.path("out").display().to_string();
    world.run(&["policy", "show", "6", "--to", &to]).await;
    let written = std::fs::read_to_string(world.path("out/conditions/mfa.cedar")).unwrap();
    assert_eq!(written, "// none\n");
    let again = world.run(&["policy", "show", "6", "--to", &to]).await;
    assert!(again.contains("error: cannot write policy"), "{again}");
}
