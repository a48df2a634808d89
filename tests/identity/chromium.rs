//! A real browser, Chromium without a window, told what to do by its DevTools protocol over two pipes.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::os::unix::process::CommandExt as _;
use tempfile::TempDir;
use tests::cleanup;
use tests::process::wait_for;

use crate::office::SOON;

/// Where Debian puts it.
const PROGRAM: &str = "/usr/bin/chromium";

/// Why there is none here, if so.
pub(crate) fn cannot_run() -> Option<&'static str> {
    let is_there = std::path::Path::new(PROGRAM).exists();
    (!is_there).then_some("`chromium` is not installed: run `cargo xtask setup`")
}

/// Somebody before a browser with nothing in it. Dropped, it is closed, with every process of it.
pub(crate) struct Chromium {
    process: Child,
    cleanup: Option<cleanup::Entry>,
    to: ChildStdin,
    from: Receiver<Value>,
    calls: u64,
    /// The tab.
    tab: String,
    _profile: TempDir,
}

impl Chromium {
    /// `hosts`: where names lead, as `MAP console.test 192.0.2.1`, separated by commas; `keys`: SHA-256 of the public keys that are believed, in base64.
    pub(crate) fn start(hosts: &str, keys: &[String]) -> Result<Self> {
        let profile = tempfile::tempdir()?;
        // What we write and read are its descriptors 3 and 4.
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", r#"exec "$@" 3<&0 4>&1 </dev/null >/dev/null"#, "sh", PROGRAM])
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .args(["--disable-dev-shm-usage", "--remote-debugging-pipe"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg(format!("--host-resolver-rules={hosts}"))
            .arg(format!("--ignore-certificate-errors-spki-list={}", keys.join(",")))
            .arg("about:blank");
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot start chromium")?;
        let group = Pid::from_raw(process.id() as i32);
        let cleanup = cleanup::register(move || {
            let _ = killpg(group, Signal::SIGKILL);
        });
        let to = process.stdin.take().context("it is a pipe")?;
        let said = process.stdout.take().context("it is a pipe")?;
        let (sender, from) = channel();
        std::thread::spawn(move || {
            for message in BufReader::new(said).split(0) {
                let Some(message) = message.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()) else {
                    return;
                };
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let (cleanup, tab) = (Some(cleanup), String::new());
        let mut browser = Self { process, cleanup, to, from, calls: 0, tab, _profile: profile };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }))?;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.call("Target.attachToTarget", attach)?;
        browser.tab = attached["sessionId"].as_str().context("a session")?.to_owned();
        Ok(browser)
    }

    /// Goes to an address.
    pub(crate) fn open(&mut self, address: &str) -> Result<()> {
        let gone = self.call("Page.navigate", json!({ "url": address }))?;
        match gone["errorText"].as_str() {
            Some(error) => bail!("{address}: {error}"),
            None => Ok(()),
        }
    }

    /// What an expression of JavaScript gives in the page; an error if there is no page just now.
    pub(crate) fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let asked = json!({ "expression": expression, "returnByValue": true });
        let answer = self.call("Runtime.evaluate", asked)?;
        match answer.get("exceptionDetails") {
            Some(problem) => bail!("{expression}: {problem}"),
            None => Ok(answer["result"]["value"].clone()),
        }
    }

    /// Waits until a page that has loaded shows these words; gives all that it shows.
    pub(crate) fn wait_for(&mut self, words: &str) -> Result<String> {
        const SHOWN: &str = "document.readyState == 'complete' ? document.body.innerText : ''";
        let mut last = String::new();
        let found = wait_for(words, SOON, || {
            // On the way from one page to the next there is none.
            if let Ok(Value::String(text)) = self.evaluate(SHOWN) {
                last = text;
            }
            Ok(last.contains(words).then(|| last.clone()))
        });
        let place = self.evaluate("location.href").unwrap_or_default();
        found.with_context(|| format!("{place} shows: {last}"))
    }

    /// The cookies of the page's site, with all that the browser knows of them.
    pub(crate) fn cookies(&mut self) -> Result<Vec<Value>> {
        let answer = self.call("Network.getCookies", json!({}))?;
        Ok(answer["cookies"].as_array().cloned().unwrap_or_default())
    }

    fn call(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.calls += 1;
        let mut message = json!({ "id": self.calls, "method": method, "params": parameters });
        if !self.tab.is_empty() {
            message["sessionId"] = self.tab.clone().into();
        }
        self.to.write_all(format!("{message}\0").as_bytes())?;
        self.to.flush()?;
        let deadline = Instant::now() + SOON;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let answer = self.from.recv_timeout(left).with_context(|| format!("{method}: no answer"))?;
            if answer["id"] != self.calls {
                continue;
            }
            return match answer.get("error") {
                Some(error) => bail!("{method}: {error}"),
                None => Ok(answer["result"].clone()),
            };
        }
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        drop(self.cleanup.take());
        // It was killed, or has ended by itself.
        let _ = self.process.wait();
    }
}
