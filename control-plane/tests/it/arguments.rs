//! What an operator types, and what comes back.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

pub(crate) fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis-control-plane"));
    command.env_remove("RUST_LOG").env_remove("COLUMNS");
    command
}

pub(crate) fn run(arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = binary().args(arguments).output().expect("runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (status.code().expect("exits"), text(stdout), text(stderr))
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn init_shows_the_token_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let database = folder.path().join("cp.db");
    let (code, token, explanation) = run(&["init", "--database", text(&database)]);
    assert_eq!(code, 0, "{explanation}");
    assert!(token.starts_with("pct_") && token.trim().len() == 68 && token.lines().count() == 1);
    assert!(explanation.contains("the token of `user:admin` is the line on standard output"));
    for secret in [database.clone(), folder.path().join("authority/ca.key")] {
        let mode = std::fs::metadata(&secret).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{secret:?}");
    }
    let (code, stdout, stderr) = run(&["init", "--database", text(&database)]);
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.contains("exists already") && stderr.contains("hint: it was left as it is"), "{stderr}");
}

#[test]
fn mistakes_are_answered() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |listen: &str| {
        let path = folder.path().join("cp.toml");
        std::fs::write(&path, format!("listen = \"{listen}\"\ndatabase = \"cp.db\"\n")).expect("written");
        path
    };
    let config = write("127.0.0.1:0");
    let (code, _, stderr) = run(&["serve", "--config", text(&config)]);
    assert_eq!(code, 1);
    assert!(
        stderr.contains("does not exist") && stderr.contains("portcullis-control-plane init"),
        "{stderr}"
    );
    let config = write("localhost:7400");
    let (code, _, stderr) = run(&["serve", "--config", text(&config)]);
    assert_eq!(code, 2);
    assert!(stderr.contains("listen = \"localhost:7400\" is not `ADDRESS:PORT`"), "{stderr}");
    let (code, _, stderr) = run(&["serve", "--config", "/nowhere.toml"]);
    assert!(code == 2 && stderr.contains("caused by: No such file"), "{stderr}");
    assert_eq!(run(&["init"]).0, 2);
    assert_eq!(run(&["init", "--database", "a", "--config", "b"]).0, 2);
}

#[test]
fn help() {
    let help = |arguments: &[&str]| run(arguments).1;
    insta::assert_snapshot!(
        [
            help(&["--help"]),
            help(&["init", "--help"]),
            help(&["serve", "--help"]),
            help(&["backup", "--help"])
        ]
        .join("\n")
    );
}
