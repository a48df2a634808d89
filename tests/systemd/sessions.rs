//! People: sessions by logind, their own managers, services in their names; and who gets into whose.

use std::process::{Command, Stdio};

use anyhow::Result;
use tests::ensure_eq;
use tests::runner::Test;

use crate::host::{host, send, send_patiently, session, sh};

pub(crate) const TESTS: &[Test] = &[
    ("sessions::a_person_is_let_through_in_every_session", a_person_is_let_through_in_every_session),
    ("sessions::a_service_is_its_own_subject", a_service_is_its_own_subject),
    ("sessions::nobody_gets_into_somebody_elses", nobody_gets_into_somebody_elses),
];

/// A command of root's: `systemd-run --pipe --wait …`, with a line of bash in the unit that it makes.
fn unit(options: &[&str], line: &str) -> Command {
    let mut command = Command::new("systemd-run");
    command.args(["--quiet", "--pipe", "--wait", "--collect"]).args(options);
    command.args(["/bin/bash", "-c", line]);
    command
}

/// The same by a person's own manager, out of a session.
fn own_unit(person: &str, options: &str, line: &str) -> Command {
    let line = format!(
        "XDG_RUNTIME_DIR=/run/user/$(id -u) systemd-run --user --quiet --pipe --wait --collect {options} \
         /bin/bash -c {}",
        quoted(line)
    );
    session(person, &line)
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// With the grant of a person: sessions that begin after it and one that was there before, units of the person's own manager.
/// Nobody else, and nothing once it is revoked.
fn a_person_is_let_through_in_every_session() -> Result<()> {
    let host = host()?;
    let alice = host.alice()?;
    ensure_eq!(host.reaches("alice", "before")?, false);
    // One that is open when the grant comes, and tries after it.
    let line = format!(
        "touch /tmp/is-open; until [ -e /tmp/go ]; do sleep 1; done; {}",
        send_patiently("open-session")
    );
    let open_session = session("alice", &line);
    let open = std::thread::spawn(move || host.is_let_through("open-session", open_session));
    tests::process::wait_for("the session", tests::stage::SOON, || {
        Ok(std::fs::exists("/tmp/is-open")?.then_some(()))
    })?;
    let grant = host.grant(&alice)?;
    std::fs::write("/tmp/go", "")?;
    open.join().map_err(|_| anyhow::anyhow!("it panicked"))??;
    for number in 0..10 {
        // Each is a scope of its own, which is there for the first time.
        host.lets_through("alice", &format!("session-{number}"))?;
    }
    host.is_let_through("own-unit", own_unit("alice", "", &send_patiently("own-unit")))?;
    ensure_eq!(host.reaches("bob", "bobs")?, false);
    let as_alice = ["--property=User=alice"];
    ensure_eq!(host.gets_through("system-unit", unit(&as_alice, &send("system-unit")))?, false);
    host.revoke(&grant)?;
    ensure_eq!(host.reaches("alice", "after")?, false);
    Ok(())
}

/// Known by its unit, whoever it runs as; a unit of the same name that a person's own manager has is not it.
fn a_service_is_its_own_subject() -> Result<()> {
    let host = host()?;
    let app = host.subject("workload:app", "systemd-unit:app.service")?;
    let grant = host.grant(&app)?;
    let app_unit = ["--unit=app.service", "--property=User=bob"];
    host.is_let_through("app", unit(&app_unit, &send_patiently("app")))?;
    ensure_eq!(host.gets_through("other", unit(&["--unit=other.service"], &send("other")))?, false);
    let forged = own_unit("bob", "--unit=app.service", &send("forged"));
    ensure_eq!(host.gets_through("forged", forged)?, false);
    host.revoke(&grant)
}

/// Every way that a person has who is not root: a unit in the other's slice, a scope there, the other's files, another session of
/// one's own by `su`.
fn nobody_gets_into_somebody_elses() -> Result<()> {
    let host = host()?;
    let alice = host.alice()?;
    let grant = host.grant(&alice)?;
    // She is there, with all that she has.
    let mut there = session("alice", "touch /tmp/alice-is-there; read word").stdin(Stdio::piped()).spawn()?;
    tests::process::wait_for("alice", tests::stage::SOON, || {
        Ok(std::fs::exists("/tmp/alice-is-there")?.then_some(()))
    })?;
    let slice = "/sys/fs/cgroup/user.slice/user-1000.slice";
    // What bob runs to get there; whatever it says of itself, what counts is where he is then.
    let ways = [
        (
            "a scope in her slice",
            "systemd-run --quiet --scope --slice=user-1000.slice -- cat /proc/self/cgroup",
        ),
        (
            "a scope of his own manager, named after her slice",
            "XDG_RUNTIME_DIR=/run/user/$(id -u) systemd-run --user --quiet --scope --slice=user-1000.slice -- cat /proc/self/cgroup",
        ),
        ("her manager", "XDG_RUNTIME_DIR=/run/user/1000 systemd-run --user --scope -- cat /proc/self/cgroup"),
        (
            "a machine of hers",
            "systemd-run --machine=alice@.host --user --quiet --pipe --wait cat /proc/self/cgroup",
        ),
    ];
    for (way, line) in ways {
        let output = session("bob", &format!("{line} 2>&1")).output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        let got_in = said.lines().any(|line| line.starts_with("0::/user.slice/user-1000.slice"));
        ensure_eq!(got_in, false, "{way}: {said}");
    }
    let files = sh(&format!("find {slice} -name cgroup.procs"))?;
    let mut tried = 0;
    for file in files.lines() {
        let line = format!("echo $$ > {file}; exec 3<>/dev/null; {}", send("walked-in"));
        ensure_eq!(host.gets_through("walked-in", session("bob", &line))?, false, "{file}");
        tried += 1;
    }
    ensure_eq!(tried > 2, true, "there are {tried} cgroups in {slice}");
    // And she cannot widen what is hers: a service of the system's is not moved into her slice.
    host.lets_through("alice", "she-herself")?;
    // Her input ends with this, and so does she.
    there.wait()?;
    host.revoke(&grant)
}
