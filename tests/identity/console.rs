//! The console in a real browser.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::ensure_eq;
use tests::runner::{Choosy, Outcome};

use crate::chromium::{self, Chromium};
use crate::office::{CONSOLE_HOST, Office, address};
use crate::stories::sign_in;

pub(crate) const TESTS: &[Choosy] = &[("by_a_browser_at_the_console", by_a_browser_at_the_console)];

fn by_a_browser_at_the_console() -> Result<Outcome> {
    if let Some(reason) = chromium::cannot_run() {
        return Ok(Outcome::Skipped(reason));
    }
    let office = Office::open_with_console()?;
    tell(&office).with_context(|| office.logs())?;
    Ok(Outcome::Passed)
}

/// Types a name at the provider, and goes on.
fn type_account(browser: &mut Chromium, account: &str) -> Result<()> {
    browser.evaluate(&format!(
        "document.querySelector('input').value = {}; document.querySelector('button').click()",
        json!(account)
    ))?;
    Ok(())
}

fn tell(office: &Office) -> Result<()> {
    // 1. Alice has asked for access by her command line, for a reason that is no HTML; it was approved.
    office.protect_something()?;
    let laptop = office.machine("laptop");
    sign_in(office, &laptop, "alice")?;
    let reason = "<b>look</b><script>document.title = 'owned'</script>";
    let asked = laptop.json(&["request", "db", "--for", "30m", "--reason", reason])?;
    let id = asked["id"].as_str().context("an id")?.to_owned();
    office.as_admin(&["approve", &id])?;

    // 2. She follows a link to her request: she has to sign in first, and is then where she wanted to be.
    // The provider's own pages ask for a font of somebody else's.
    let hosts = format!("MAP {CONSOLE_HOST} {}, MAP *.googleapis.com ~NOTFOUND", address());
    let mut browser = Chromium::start(&hosts, &office.keys)?;
    browser.open(&format!("{}/requests/{id}", office.console))?;
    browser.wait_for("Go on")?;
    ensure!(browser.evaluate("location.href")?.as_str().unwrap_or_default().starts_with(&office.issuer));
    type_account(&mut browser, "alice")?;
    let page = browser.wait_for("Request for db")?;
    ensure!(page.contains(reason), "{page}");
    ensure_eq!(browser.evaluate("document.title")?, json!("Request – Portcullis"));
    ensure_eq!(browser.evaluate("location.pathname")?, json!(format!("/requests/{id}")));

    // 3. She sees her own name and what she holds.
    browser.open(&format!("{}/", office.console))?;
    let page = browser.wait_for("Live grants")?;
    for words in
        ["user:alice@example.com", "member", "engineers", "corp", "db-7", "activating", "You have no request"]
    {
        ensure!(page.contains(words), "{words}: {page}");
    }
    let event = office.last("subject.signed_in")?;
    ensure_eq!(event["comment"], "provider `corp`, account `alice`, role member, by pwd otp, at the console");

    // 4. The one cookie is as promised, and no script sees it; scripts do not run anyway, and the style does.
    let cookies = browser.cookies()?;
    ensure_eq!(cookies.len(), 1, "{cookies:?}");
    let cookie = &cookies[0];
    for (attribute, value) in [
        ("name", json!("__Host-portcullis")),
        ("domain", json!(CONSOLE_HOST)),
        ("path", json!("/")),
        ("secure", json!(true)),
        ("httpOnly", json!(true)),
        ("sameSite", json!("Lax")),
        ("session", json!(true)),
    ] {
        ensure_eq!(cookie[attribute], value, "{attribute}");
    }
    ensure_eq!(browser.evaluate("document.cookie")?, json!(""));
    let script = "const s = document.createElement('script'); s.textContent = 'window.ran = true'; \
                  document.body.append(s); String(window.ran)";
    ensure_eq!(browser.evaluate(script)?, json!("undefined"));
    ensure_eq!(browser.evaluate("getComputedStyle(document.body).marginTop")?, json!("0px"));

    // 5. A page of another site cannot sign her out.
    browser.open(&format!("{}/.well-known/openid-configuration", office.issuer))?;
    browser.wait_for("authorization_endpoint")?;
    browser.evaluate(&format!(
        "document.body.innerHTML = '<form method=post action=\"{}/sign-out\"></form>'; document.forms[0].submit()",
        office.console
    ))?;
    browser.wait_for("403 Forbidden")?;
    ensure_eq!(office.last("call.refused")?["reason"], "foreign_page");
    browser.open(&format!("{}/", office.console))?;
    browser.wait_for("Live grants")?;

    // 6. She can, and is led to the provider, which asks, and sends her back.
    browser.evaluate("document.querySelector('button').click()")?;
    browser.wait_for("sign-out from")?;
    ensure!(browser.evaluate("location.href")?.as_str().unwrap_or_default().starts_with(&office.issuer));
    browser.evaluate("document.querySelector('button').click()")?;
    browser.wait_for("You are signed out here")?;
    ensure_eq!(browser.evaluate("location.origin")?, json!(office.console));
    ensure_eq!(browser.cookies()?, Vec::<Value>::new());
    ensure_eq!(office.last("subject.signed_out")?["actor"], "user:alice@example.com");

    // 7. Who comes next has to say who they are; whoever has no role is refused, with the reason.
    browser.open(&format!("{}/sign-in", office.console))?;
    browser.wait_for("Go on")?;
    type_account(&mut browser, "zoe")?;
    let page = browser.wait_for("403 Forbidden")?;
    ensure!(
        page.contains("`user:zoe@example.com` is not let in") && page.contains("Sign in again"),
        "{page}"
    );
    ensure_eq!(browser.cookies()?, Vec::<Value>::new());
    ensure_eq!(office.last("sign_in.refused")?["reason"], "not_let_in");
    Ok(())
}
