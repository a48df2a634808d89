//! The story of Portcullis on this machine, with nothing faked: a real kernel, a real PostgreSQL server, real commands.
//!
//! Started by `cargo xtask demo`. Everything it makes has a name, an address and a port of its own, and is taken away at
//! the end, whatever happens.

use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tests::cleanup;
use tests::machine::cannot_enforce;
use tests::postgres::Postgres;
use tests::process::in_cgroup;
use tests::sandbox::{self, Cgroup};
use tests::stage::{ADMIN, Cli, Stage, text};

const PORT: u16 = 5432;
const RESOURCE: &str = "orders-db";
const ALICE: &str = "user:alice";
const BOB: &str = "user:bob";

/// How long the grant of the story lives: long enough to read what happens, short enough to wait for its end.
const GRANT: &str = "10s";

fn main() -> ExitCode {
    let told = cleanup::on_signals().map_err(Into::into).and_then(|()| story());
    sandbox::remove_agents_cgroups();
    cleanup::let_signals_finish();
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn say(text: &str) -> Result<()> {
    writeln!(io::stdout(), "{text}").context("cannot write")
}

/// What somebody types, and what they see.
struct Person<'a> {
    name: &'a str,
    cli: Cli,
    shell: Option<&'a Cgroup>,
}

impl Person<'_> {
    /// Shows a `portcullis` command and runs it; gives back what it printed.
    fn portcullis(&self, arguments: &[&str]) -> Result<String> {
        self.show(&format!("portcullis {}", quoted(arguments)))?;
        let output = self.cli.command(arguments).stderr(Stdio::inherit()).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        indent(&text)?;
        if !output.status.success() {
            bail!("`portcullis {}` ended with {}", arguments.join(" "), output.status);
        }
        Ok(text)
    }

    /// Shows a `psql` command and runs it from the person's own cgroup; returns whether it succeeded.
    fn psql(&self, postgres: &Postgres, query: &str) -> Result<bool> {
        let shell = self.shell.context("this person has a shell")?;
        self.show(&format!("psql -h {} -c \"{query}\"", postgres.address()))?;
        let output =
            in_cgroup(shell, postgres.psql()).args(postgres.arguments()).args(["-c", query]).output()?;
        indent(&String::from_utf8_lossy(&output.stdout))?;
        indent(&String::from_utf8_lossy(&output.stderr))?;
        Ok(output.status.success())
    }

    fn show(&self, line: &str) -> Result<()> {
        say(&format!("   {}$ {line}", self.name))
    }
}

fn quoted(arguments: &[&str]) -> String {
    let quote = |argument: &&str| match argument.contains(' ') {
        true => format!("\"{argument}\""),
        false => (*argument).to_owned(),
    };
    arguments.iter().map(quote).collect::<Vec<_>>().join(" ")
}

fn indent(text: &str) -> Result<()> {
    text.lines().filter(|line| !line.trim().is_empty()).try_for_each(|line| say(&format!("     {line}")))
}

fn expect(what: bool, otherwise: &str) -> Result<()> {
    match what {
        true => Ok(()),
        false => bail!("{otherwise}: this is not the story that was to be shown"),
    }
}

fn story() -> Result<()> {
    if let Some(reason) = cannot_enforce() {
        bail!("the demo loads programs into the kernel, and cannot do that here: {reason}");
    }
    say("Portcullis: a gate that is down unless somebody has been let through.\n")?;
    let began = Instant::now();
    let stage = Stage::start()?;
    let address = stage.sandbox().address();
    let postgres = Postgres::start(stage.sandbox().dir(), address, PORT)?;
    let shell = stage.add_subject_with_cgroup(ALICE)?;
    stage.add_subject(BOB, "approver", &[])?;
    let alice = Person { name: "alice", cli: stage.cli(ALICE)?, shell: Some(&shell) };
    let bob = Person { name: "bob", cli: stage.cli(BOB)?, shell: None };
    let admin = Person { name: "admin", cli: stage.cli(ADMIN)?, shell: None };
    introduce(address)?;

    say("1. An administrator protects the database, and looks whether the host is enforcing.\n")?;
    let at = address.to_string();
    admin.portcullis(&["resource", "add", RESOURCE, "--address", &at, "--port", &format!("tcp/{PORT}")])?;
    stage.wait_until_applied()?;
    admin.portcullis(&["status"])?;

    say("\n2. Alice has no grant. The kernel refuses her connection before a packet leaves.\n")?;
    expect(!alice.psql(&postgres, "select count(*) from pg_class")?, "alice got through without a grant")?;

    say(
        "\n3. She asks for access and waits. Bob, who may approve, looks at what is pending and says yes.\n",
    )?;
    let request = ["request", RESOURCE, "--for", GRANT, "--reason", "slow query, INC-42", "--wait"];
    alice.show(&format!("portcullis {}", quoted(&request)))?;
    let waiting = alice.cli.command(&request).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let id = tests::process::wait_for("the request", tests::stage::SOON, || {
        let requests = bob.cli.json(&["requests"])?;
        requests.get(0).map(|request| text(request, "id")).transpose()
    })?;
    bob.portcullis(&["requests"])?;
    bob.portcullis(&["approve", &id, "--comment", "go ahead"])?;
    let granted = Instant::now();
    let output = waiting.wait_with_output()?;
    say("   alice's command returns as soon as the kernel holds her grant:")?;
    indent(&String::from_utf8_lossy(&output.stdout))?;
    expect(output.status.success(), "the request was not granted")?;

    say("\n4. The same command gets through now, at the first try.\n")?;
    expect(
        alice.psql(&postgres, "select count(*) from pg_class")?,
        "alice did not get through with a grant",
    )?;

    say(
        "\n5. Ten seconds later the grant is over. Nobody has to do anything: the kernel itself compares the clock.\n",
    )?;
    std::thread::sleep(
        (Duration::from_secs(10) + Duration::from_millis(300)).saturating_sub(granted.elapsed()),
    );
    expect(!alice.psql(&postgres, "select count(*) from pg_class")?, "alice got through after the deadline")?;

    say("\n6. All of it is in the audit record; `portcullis audit tail --follow -o json` feeds a SIEM.\n")?;
    stage.wait_for_event("the last denial", |event| event["reason"] == "expired")?;
    admin.portcullis(&["audit", "tail", "--last", "12"])?;

    say(&format!("\nThat was all, in {} seconds. Cleaning up …", began.elapsed().as_secs()))?;
    Ok(())
}

fn introduce(address: Ipv4Addr) -> Result<()> {
    say(&format!(
        "Started on this machine, for this demo alone:\n\
         \x20 - a PostgreSQL server at {address}:{PORT}\n\
         \x20 - a control plane, where access is requested and approved\n\
         \x20 - the host agent, which has put the gate into the kernel (eBPF)\n\
         \x20 - a shell for alice, in a cgroup of its own: that is how the kernel knows her\n"
    ))
}
