//! The stories.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::ensure_eq;
use tests::process::output;
use tests::runner::Test;
use tokio::runtime::Runtime;

use crate::chromium;
use crate::office::{ADDRESS, Machine, Office, read};

pub(crate) const TESTS: &[Test] = &[
    ("by_the_browser_of_this_machine", by_the_browser_of_this_machine),
    ("by_a_code_on_another_device", by_a_code_on_another_device),
    (
        "a_code_that_somebody_else_asked_for_is_turned_down",
        a_code_that_somebody_else_asked_for_is_turned_down,
    ),
    ("over_a_network_of_their_own", over_a_network_of_their_own),
    ("a_code_that_nobody_types_runs_out", a_code_that_nobody_types_runs_out),
    ("a_person_who_says_no_is_not_signed_in", a_person_who_says_no_is_not_signed_in),
    ("only_the_answer_that_is_waited_for_counts", only_the_answer_that_is_waited_for_counts),
    ("a_session_is_renewed_until_the_provider_says_no", a_session_is_renewed_until_the_provider_says_no),
    ("what_takes_long_outlives_its_session", what_takes_long_outlives_its_session),
    ("a_session_outlives_an_outage_of_the_provider", a_session_outlives_an_outage_of_the_provider),
    ("logging_out_ends_the_session_and_its_renewal", logging_out_ends_the_session_and_its_renewal),
    ("strangers_are_refused_by_name", strangers_are_refused_by_name),
    (
        "a_name_that_was_given_to_somebody_else_is_not_theirs",
        a_name_that_was_given_to_somebody_else_is_not_theirs,
    ),
    (
        "a_provider_that_wants_a_client_secret_and_a_recent_proof",
        a_provider_that_wants_a_client_secret_and_a_recent_proof,
    ),
    ("the_provider_is_known_by_its_certificate", the_provider_is_known_by_its_certificate),
];

/// The ways to sign in once more, with all that is asked and answered on an address that is not of the loopback network.
fn over_a_network_of_their_own() -> Result<()> {
    const MOVE_IN: &str =
        r#"ip link set lo up && ip address add "$PORTCULLIS_TEST_ADDRESS/32" dev lo && exec "$0" by_"#;
    let mut command = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--net", "/bin/sh", "-c", MOVE_IN]).arg(std::env::current_exe()?).env(ADDRESS, "192.0.2.1");
    let told = output(&mut command)?;
    let at_the_console = chromium::cannot_run().is_none().then_some("by_a_browser_at_the_console");
    for way in
        ["by_the_browser_of_this_machine", "by_a_code_on_another_device"].into_iter().chain(at_the_console)
    {
        ensure!(told.lines().any(|line| line.contains(way) && line.ends_with("ok")), "{told}");
    }
    Ok(())
}

/// Opens an office and tells a story. What the office's programs said is told with what went wrong.
fn story(more: &str, tell: impl FnOnce(&mut Office) -> Result<()>) -> Result<()> {
    let mut office = Office::open(more)?;
    tell(&mut office).with_context(|| office.logs())
}

/// Has somebody try it, who is turned away: what the command ends with, and what it says.
fn turned_away(office: &Office, machine: &Machine<'_>, account: &str) -> Result<(i32, String)> {
    let mut login = machine.login(&["--no-browser"])?;
    let address = login.address("/auth?")?;
    Runtime::new()?.block_on(office.browser(account)?.open(&address))?;
    login.wait()
}

/// Signs somebody in by the browser of their own machine.
pub(crate) fn sign_in(office: &Office, machine: &Machine<'_>, account: &str) -> Result<()> {
    let mut login = machine.login(&["--no-browser"])?;
    let address = login.address("/auth?")?;
    let mut browser = office.browser(account)?;
    let page = Runtime::new()?.block_on(browser.open(&address))?;
    ensure!(page.text.contains("You can close this page"), "{}", page.text);
    let (code, said) = login.wait()?;
    ensure_eq!(code, 0, "{said}");
    Ok(())
}

fn by_the_browser_of_this_machine() -> Result<()> {
    story("", |office| {
        // 1. Alice signs in; the provider asks her, the browser comes back to the command.
        let laptop = office.machine("laptop");
        sign_in(office, &laptop, "alice")?;
        // 2. The control plane knows her by what the provider says, and her groups give her a role.
        let identity = laptop.json(&["whoami"])?;
        ensure_eq!(identity["subject"], "user:alice@example.com");
        ensure_eq!(identity["role"], "member");
        ensure_eq!(identity["credential"], "session");
        ensure_eq!(identity["provider"], "corp");
        // 3. What she does is on record with how she is known; how she proved it, too.
        laptop.run(&["requests"])?;
        let signed_in = office.last("subject.signed_in")?;
        ensure_eq!(signed_in["credential"], "session");
        let comment = signed_in["comment"].as_str().unwrap_or_default();
        ensure_eq!(comment, "provider `corp`, account `alice`, role member, by pwd otp");
        let refused = laptop.fail(&["audit", "tail"])?;
        ensure_eq!(refused.0, 6, "{}", refused.1);
        ensure_eq!(office.last("call.refused")?["credential"], "session");
        // 4. Only she can read the file.
        let mode = std::fs::metadata(laptop.credentials())?.permissions().mode() & 0o777;
        ensure_eq!(mode, 0o600);
        Ok(())
    })
}

fn by_a_code_on_another_device() -> Result<()> {
    story("", |office| {
        // 1. Dora asks for a code on a server without a browser.
        let server = office.machine("server");
        let mut login = server.login(&["--device"])?;
        let address = login.address("or open")?;
        // 2. On her phone she opens the address, compares the code, and signs in.
        let mut phone = office.browser("dora")?;
        let page = Runtime::new()?.block_on(async {
            let page = phone.open(&address).await?;
            let page = phone.submit(&page, None).await?;
            phone.submit(&page, None).await
        })?;
        ensure!(page.text.contains("Sign-in Success"), "{}", page.text);
        // 3. The command sees it, and she is an approver.
        let (code, said) = login.wait()?;
        ensure_eq!(code, 0, "{said}");
        ensure_eq!(server.json(&["whoami"])?["role"], "approver");
        Ok(())
    })
}

fn a_code_that_somebody_else_asked_for_is_turned_down() -> Result<()> {
    story("", |office| {
        let mut login = office.machine("elsewhere").login(&["--device"])?;
        let address = login.address("or open")?;
        let mut phone = office.browser("dora")?;
        Runtime::new()?.block_on(async {
            let page = phone.open(&address).await?;
            let page = phone.submit(&page, None).await?;
            phone.submit(&page, Some(("abort", "yes"))).await
        })?;
        let (code, said) = login.wait()?;
        ensure_eq!(code, 5, "{said}");
        ensure!(said.contains("the identity provider said `access_denied`"), "{said}");
        Ok(())
    })
}

fn a_code_that_nobody_types_runs_out() -> Result<()> {
    let office = Office::open_with("", Duration::from_secs(6))?;
    let server = office.machine("server");
    let mut login = server.login(&["--device"])?;
    login.wait_for("type the code")?;
    let (code, said) = login.wait()?;
    ensure_eq!(code, 5, "{said}");
    ensure!(said.contains("nobody finished it within 6s"), "{said}");
    ensure!(!server.credentials().exists(), "nothing is stored");
    Ok(())
}

fn a_person_who_says_no_is_not_signed_in() -> Result<()> {
    story("", |office| {
        let laptop = office.machine("laptop");
        let (code, said) = turned_away(office, &laptop, "nobody")?;
        ensure_eq!(code, 5, "{said}");
        ensure!(said.contains("`access_denied`: the person said no"), "{said}");
        ensure!(!laptop.credentials().exists(), "nothing is stored");
        Ok(())
    })
}

fn only_the_answer_that_is_waited_for_counts() -> Result<()> {
    story("", |office| {
        // 1. Another program of the machine answers before the browser does.
        let laptop = office.machine("laptop");
        let mut login = laptop.login(&["--no-browser"])?;
        let address = login.address("/auth?")?;
        let asked = url::Url::parse(&address)?;
        let query = |name: &str| {
            asked
                .query_pairs()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.into_owned())
                .unwrap_or_default()
        };
        ensure_eq!(query("code_challenge_method"), "S256");
        ensure_eq!(query("response_type"), "code");
        let forged = format!("{}?code=forged&state=guessed", query("redirect_uri"));
        let mut browser = office.browser("alice")?;
        let page = Runtime::new()?.block_on(browser.open(&forged))?;
        ensure!(page.text.contains("not the answer that is waited for"), "{}", page.text);
        // 2. It goes on waiting, and takes the right one.
        Runtime::new()?.block_on(browser.open(&address))?;
        let (code, said) = login.wait()?;
        ensure_eq!(code, 0, "{said}");
        Ok(())
    })
}

fn a_session_is_renewed_until_the_provider_says_no() -> Result<()> {
    story("", |office| {
        let laptop = office.machine("laptop");
        sign_in(office, &laptop, "alice")?;
        let before = read(&laptop.credentials())?;
        // 1. Her session nears its end: the next call renews it, and the one before is over.
        laptop.let_the_session_end()?;
        ensure_eq!(laptop.json(&["whoami"])?["subject"], "user:alice@example.com");
        ensure!(read(&laptop.credentials())? != before, "there is a new session");
        ensure_eq!(office.last("subject.signed_in")?["reason"], "renewed");
        // 2. Several commands at once renew it once: a refresh token that is seen twice would end them all.
        laptop.let_the_session_end()?;
        let together: Vec<Result<_>> = std::thread::scope(|scope| {
            let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| laptop.json(&["whoami"]))).collect();
            runs.into_iter().map(|run| run.join().expect("no panic")).collect()
        });
        for one in together {
            one?;
        }
        let renewals = office.events()?.iter().filter(|event| event["reason"] == "renewed").count();
        ensure_eq!(renewals, 2);
        // 3. Her groups change: with the next renewal so does what she may do.
        office.change("alice", "groups", json!(["pc-approvers"]))?;
        laptop.let_the_session_end()?;
        ensure_eq!(laptop.json(&["whoami"])?["role"], "approver");
        // 4. She leaves the company's groups: she is not let in any more, and told why.
        office.change("alice", "groups", json!(["staff"]))?;
        laptop.let_the_session_end()?;
        let (code, said) = laptop.fail(&["whoami"])?;
        ensure_eq!(code, 6, "{said}");
        ensure!(said.contains("no group of theirs has a role"), "{said}");
        ensure_eq!(office.last("sign_in.refused")?["reason"], "not_let_in");
        Ok(())
    })
}

fn what_takes_long_outlives_its_session() -> Result<()> {
    story("", |office| {
        // 1. Dora watches for a request of hers to be approved, longer than her session lasts.
        office.protect_something()?;
        let laptop = office.machine("laptop");
        sign_in(office, &laptop, "dora")?;
        let mut waiting =
            laptop.start(&["request", "db", "--for", "10m", "--reason", "a story", "--wait"])?;
        waiting.wait_for("is pending")?;
        // 2. Another command of hers renews the session; the one before is over.
        laptop.let_the_session_end()?;
        laptop.run(&["whoami"])?;
        // 3. The request is turned down a while later, and she hears of it.
        std::thread::sleep(Duration::from_secs(4));
        let requests: Value = serde_json::from_str(&office.as_admin(&["requests", "-o", "json"])?)?;
        office.as_admin(&["deny", requests[0]["id"].as_str().unwrap_or_default(), "--comment", "not now"])?;
        let (code, said) = waiting.wait()?;
        ensure_eq!(code, 10, "{said}");
        ensure!(said.contains("not now"), "{said}");
        Ok(())
    })
}

fn a_session_outlives_an_outage_of_the_provider() -> Result<()> {
    story("", |office| {
        sign_in(office, &office.machine("laptop"), "alice")?;
        office.stop_provider()?;
        // 1. The session is good for its time.
        let laptop = office.machine("laptop");
        laptop.run(&["whoami"])?;
        // 2. It cannot be renewed, and the command says whom it could not ask.
        laptop.let_the_session_end()?;
        let (code, said) = laptop.fail(&["whoami"])?;
        ensure_eq!(code, 4, "{said}");
        ensure!(said.contains("does not answer"), "{said}");
        Ok(())
    })
}

fn logging_out_ends_the_session_and_its_renewal() -> Result<()> {
    story("", |office| {
        let laptop = office.machine("laptop");
        sign_in(office, &laptop, "alice")?;
        let stolen = read(&laptop.credentials())?;
        laptop.run(&["logout"])?;
        ensure!(!laptop.credentials().exists(), "the file is gone");
        ensure_eq!(office.last("subject.signed_out")?["actor"], "user:alice@example.com");
        // 1. A copy of the file is of no use: neither for a call,
        let thief = office.machine("thief");
        std::fs::create_dir_all(thief.credentials().parent().expect("has a folder"))?;
        std::fs::write(thief.credentials(), &stolen)?;
        let (code, said) = thief.fail(&["whoami"])?;
        ensure_eq!(code, 5, "{said}");
        // 2. nor for a renewal.
        thief.let_the_session_end()?;
        let (code, said) = thief.fail(&["whoami"])?;
        ensure_eq!(code, 5, "{said}");
        ensure!(said.contains("is over") && said.contains("`invalid_grant`"), "{said}");
        ensure!(said.contains("hint: run `portcullis login`"), "{said}");
        Ok(())
    })
}

fn strangers_are_refused_by_name() -> Result<()> {
    story("", |office| {
        // 1. Zoe has an account, but no group of hers has a role.
        let laptop = office.machine("laptop");
        let (code, said) = turned_away(office, &laptop, "zoe")?;
        ensure_eq!(code, 6, "{said}");
        ensure!(said.contains("`user:zoe@example.com` is not let in"), "{said}");
        ensure!(!laptop.credentials().exists(), "nothing is stored");
        // 2. An administrator adds her: her next try succeeds, with what the directory says.
        office.as_admin(&["subject", "add", "user:zoe@example.com", "--role", "auditor"])?;
        sign_in(office, &laptop, "zoe")?;
        ensure_eq!(laptop.json(&["whoami"])?["role"], "auditor");
        // 3. A name with a look-alike of a letter is nobody's.
        office.change("zoe", "email", json!("z\u{43e}e@example.com"))?;
        let other = office.machine("other");
        let (code, said) = turned_away(office, &other, "zoe")?;
        ensure_eq!(code, 5, "{said}");
        ensure!(said.contains("names nobody that can be a subject"), "{said}");
        Ok(())
    })
}

fn a_name_that_was_given_to_somebody_else_is_not_theirs() -> Result<()> {
    story("", |office| {
        // 1. Alice signs in. Later her address is given to Dora, who approves.
        let laptop = office.machine("laptop");
        sign_in(office, &laptop, "alice")?;
        office.change("dora", "email", json!("alice@example.com"))?;
        let doras = office.machine("doras");
        let (code, said) = turned_away(office, &doras, "dora")?;
        ensure_eq!(code, 6, "{said}");
        ensure!(said.contains("`user:alice@example.com` belongs to another account"), "{said}");
        ensure!(said.contains("portcullis subject unbind"), "{said}");
        ensure_eq!(office.last("sign_in.refused")?["reason"], "bound_elsewhere");
        ensure_eq!(laptop.json(&["whoami"])?["role"], "member");
        // 2. Alice's own address changes: she is nobody else.
        office.change("alice", "email", json!("alice.smith@example.com"))?;
        laptop.let_the_session_end()?;
        let (code, said) = laptop.fail(&["whoami"])?;
        ensure_eq!(code, 6, "{said}");
        ensure!(said.contains("belongs to `user:alice@example.com`"), "{said}");
        // 3. An administrator who knows all this frees the name; both are let in as who they are now.
        office.as_admin(&["subject", "unbind", "user:alice@example.com", "--comment", "HR-311"])?;
        ensure!(office.last("subject.unbound")?["comment"].as_str().unwrap_or_default().ends_with("HR-311"));
        sign_in(office, &doras, "dora")?;
        let identity = doras.json(&["whoami"])?;
        ensure_eq!(
            (&identity["subject"], &identity["role"]),
            (&json!("user:alice@example.com"), &json!("approver"))
        );
        sign_in(office, &laptop, "alice")?;
        ensure_eq!(laptop.json(&["whoami"])?["subject"], "user:alice.smith@example.com");
        Ok(())
    })
}

fn a_provider_that_wants_a_client_secret_and_a_recent_proof() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "not-so-secret\n")?;
    let more = format!(
        "client_id = 'portcullis-desktop'\nclient_secret_file = '{}'\nmax_auth_age = '1h'\nsession_lifetime = '5m'",
        secret.display()
    );
    story(&more, |office| {
        let laptop = office.machine("laptop");
        sign_in(office, &laptop, "alice")?;
        laptop.let_the_session_end()?;
        laptop.run(&["whoami"])?;
        laptop.run(&["logout"])?;
        Ok(())
    })
}

fn the_provider_is_known_by_its_certificate() -> Result<()> {
    story("", |office| {
        let (code, said) = office.machine("laptop").fail(&["login", "--no-browser"])?;
        ensure_eq!(code, 4, "{said}");
        ensure!(said.contains("does not answer") && said.contains("--provider-ca-file"), "{said}");
        let (code, said) = office.machine("laptop").fail(&["login", "--provider", "other"])?;
        ensure_eq!(code, 2, "{said}");
        ensure!(said.contains("choose one by `--provider`: `corp`"), "{said}");
        Ok(())
    })
}
