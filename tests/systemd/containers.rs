//! Podman's containers, root's and a person's.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use tests::ensure_eq;
use tests::runner::Test;

use crate::host::{host, session, sh};

pub(crate) const TESTS: &[Test] = &[
    ("containers::one_of_podman_is_let_through_by_its_id", one_of_podman_is_let_through_by_its_id),
    ("containers::a_persons_container_is_the_persons", a_persons_container_is_the_persons),
];

/// Makes an image of busybox, as the person who then runs it.
const IMPORT: &str = "set -e; d=$(mktemp -d); mkdir $d/bin; cp /bin/busybox $d/bin/; ln -s busybox $d/bin/sh; \
                      ln -s busybox $d/bin/nc; ln -s busybox $d/bin/sleep; tar -C $d -c . | podman import - box:1; rm -r $d";

/// It waits; commands are run in it.
const RUN: &str = "podman run --detach --network host box:1 /bin/sleep 1000";

/// A line that sends a marker from a container.
fn send(container: &str, marker: &str) -> String {
    format!("podman exec {container} /bin/sh -c 'echo -n {marker} | nc -w 3 127.78.0.1 5432'")
}

/// The same, once it can, or after half a minute: see [`crate::host::send_patiently`].
fn send_patiently(container: &str, marker: &str) -> String {
    format!(
        "podman exec {container} /bin/sh -c 'for try in 1 2 3 4 5 6 7 8 9 10; do \
         echo -n {marker} | nc -w 3 127.78.0.1 5432 && exit; sleep 3; done; exit 1'"
    )
}

fn as_root(line: &str) -> Command {
    let mut command = Command::new("/bin/bash");
    command.args(["-c", line]);
    command
}

/// In a file system in memory nothing can be laid over something else.
const STORAGE: &str = "[storage]\ndriver = \"vfs\"\nrunroot = \"/run/containers/storage\"\n\
                       graphroot = \"/var/lib/containers/storage\"\n";

fn one_of_podman_is_let_through_by_its_id() -> Result<()> {
    let host = host()?;
    fs::write("/etc/containers/storage.conf", STORAGE)?;
    sh(IMPORT)?;
    let (id, other) = (sh(RUN)?.trim().to_owned(), sh(RUN)?.trim().to_owned());
    let container = host.subject("workload:box", &format!("container:{id}"))?;
    ensure_eq!(host.gets_through("box-before", as_root(&send(&id, "box-before")))?, false);
    let grant = host.grant(&container)?;
    host.is_let_through("box", as_root(&send_patiently(&id, "box")))?;
    ensure_eq!(host.gets_through("other-box", as_root(&send(&other, "other-box")))?, false);
    host.revoke(&grant)?;
    ensure_eq!(host.gets_through("box-after", as_root(&send(&id, "box-after")))?, false);
    sh(&format!("podman rm --force --time 0 {id} {other}")).map(drop)
}

/// Without root a container lies in what is the person's to write: it is let through as the person, and by its id it is nobody.
fn a_persons_container_is_the_persons() -> Result<()> {
    let host = host()?;
    fs::write("/etc/containers/storage.conf", STORAGE)?;
    let as_bob = |line: &str| session("bob", &format!("export XDG_RUNTIME_DIR=/run/user/$(id -u); {line}"));
    let run = |line: &str| tests::process::output(&mut as_bob(line));
    sh("loginctl enable-linger bob")?;
    run(IMPORT).context("an image of bob's")?;
    let id = run(RUN).context("a container of bob's")?.trim().to_owned();
    let by_id = host.subject("workload:bobs-box", &format!("container:{id}"))?;
    let grant = host.grant(&by_id)?;
    ensure_eq!(host.gets_through("rootless-by-id", as_bob(&send(&id, "rootless-by-id")))?, false);
    host.revoke(&grant)?;
    // By the number of the account.
    let bob = host.subject("user:bob", "unix-user:1001")?;
    let grant = host.grant(&bob)?;
    host.is_let_through("rootless", as_bob(&send_patiently(&id, "rootless")))?;
    host.revoke(&grant)?;
    run(&format!("podman rm --force --time 0 {id}"))?;
    sh("loginctl disable-linger bob").map(drop)
}
