//! A control plane, an identity provider and the people who sign in: the real programs, in a folder of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rcgen::PublicKeyData as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tests::process::{Background, output, wait_for};
use tests::stage::binary;

use crate::browser::Browser;

/// How long anything may take that takes seconds. These machines are shared: it is a bound, not a measure.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// Everything. Dropped, it is ended and taken away.
pub(crate) struct Office {
    control_plane: Option<Background>,
    provider: Background,
    pub(crate) issuer: String,
    /// PEM of the authority that the provider's certificate is from.
    pub(crate) authority: Vec<u8>,
    /// What a real browser believes: SHA-256 of the public keys of provider and console, in base64.
    pub(crate) keys: Vec<String>,
    /// Where the console would be, if a story has one.
    pub(crate) console: String,
    folder: TempDir,
}

/// Where `cargo xtask setup` puts the provider, if it could.
fn modules() -> Option<PathBuf> {
    let here = std::env::current_exe().ok()?;
    let tools = here.ancestors().map(|dir| dir.join("tools/oidc-provider"));
    tools.into_iter().find(|dir| dir.join("node_modules/oidc-provider/package.json").is_file())
}

/// Why no provider can be started here, if so.
pub(crate) fn cannot_be_opened() -> Option<&'static str> {
    modules().is_none().then_some("`oidc-provider` is not installed: run `cargo xtask setup`")
}

/// Who there is: what the provider says of them.
fn accounts() -> Value {
    json!({
        "alice": { "email": "Alice@Example.com", "email_verified": true, "groups": ["pc-engineers", "staff"] },
        "dora": { "email": "dora@example.com", "email_verified": true, "groups": ["pc-approvers"] },
        "zoe": { "email": "zoe@example.com", "email_verified": true, "groups": ["staff"] },
    })
}

/// Where everything listens: on this machine, unless a story has moved into a network of its own.
pub(crate) const ADDRESS: &str = "PORTCULLIS_TEST_ADDRESS";

pub(crate) fn address() -> String {
    std::env::var(ADDRESS).unwrap_or_else(|_| "127.0.0.1".to_owned())
}

/// A port that nobody has just now.
fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind((address(), 0))?.local_addr()?.port())
}

/// By which name browsers know the console.
pub(crate) const CONSOLE_HOST: &str = "console.test";

impl Office {
    /// As an operator sets it up, with more lines for the provider.
    pub(crate) fn open(more: &str) -> Result<Self> {
        Self::open_with(more, Duration::from_secs(60))
    }

    /// The same, with a console.
    pub(crate) fn open_with_console() -> Result<Self> {
        let port = free_port()?;
        let more = format!(
            "client_id = 'portcullis'\nconsole_client_id = 'portcullis-console'\n\
             console_client_secret_file = 'console.secret'\n\n[console]\nlisten = '{}:{port}'\n\
             url = 'https://{CONSOLE_HOST}:{port}'\ncertificate_file = 'console.pem'\nkey_file = 'console.key'\n",
            address()
        );
        Self::set_up(&more, Duration::from_secs(60), port)
    }

    /// The same, with a provider whose device codes live for so long.
    pub(crate) fn open_with(more: &str, device_code_lifetime: Duration) -> Result<Self> {
        Self::set_up(more, device_code_lifetime, 443)
    }

    fn set_up(more: &str, device_code_lifetime: Duration, console_port: u16) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = |name: &str| folder.path().join(name);
        let (authority, keys) = write_certificates(folder.path())?;
        let console = format!("https://{CONSOLE_HOST}:{console_port}");
        fs::write(path("console.secret"), "secret of the console\n")?;
        fs::write(path("accounts.json"), accounts().to_string())?;
        let settings = json!({
            "modules": modules().context("there is no `oidc-provider`: run `cargo xtask setup`")?,
            "address": address(), "certificate": path("provider.pem"), "key": path("provider.key"),
            "accounts": path("accounts.json"), "ready": path("issuer"), "console": console,
            "deviceCodeSeconds": device_code_lifetime.as_secs(),
        });
        fs::write(path("provider.json"), settings.to_string())?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("identity/provider.mjs");
        let mut command = Command::new("node");
        command.arg(script).arg(path("provider.json"));
        let mut provider = Background::start("the identity provider", &mut command, &path("provider.log"))?;
        let issuer = wait_for("the identity provider to listen", SOON, || {
            provider.ensure_running()?;
            Ok(fs::read_to_string(path("issuer")).ok())
        })?;
        let mut office = Self { control_plane: None, provider, issuer, authority, keys, console, folder };
        office.write_configuration(more)?;
        let init = ["init", "--quiet", "--config"];
        output(
            Command::new(binary("portcullis-control-plane")?)
                .args(init)
                .arg(office.path("cp.toml"))
                .arg("--token-file")
                .arg(office.path("admin.token")),
        )?;
        office.start_control_plane()?;
        Ok(office)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write_configuration(&self, more: &str) -> Result<()> {
        let text = format!(
            "listen = '{address}:0'\ndatabase = 'cp.db'\n\n[[identity_provider]]\nname = 'corp'\nissuer = '{issuer}'\n\
             ca_file = 'ca.pem'\nscopes = ['openid', 'email', 'groups', 'offline_access']\ngroups_prefix = 'pc-'\n\
             roles = {{ engineers = 'member', approvers = 'approver' }}\n{more}\n",
            address = address(),
            issuer = self.issuer,
        );
        let client = if more.contains("client_id") { "" } else { "client_id = 'portcullis'\n" };
        fs::write(self.path("cp.toml"), text + client)?;
        Ok(())
    }

    /// Where the control plane listens.
    fn server(&self) -> Result<String> {
        Ok(format!("https://{}", read(&self.path("ready"))?.trim()))
    }

    fn start_control_plane(&mut self) -> Result<()> {
        let ready = self.path("ready");
        let mut command = Command::new(binary("portcullis-control-plane")?);
        command.args(["serve", "--config"]).arg(self.path("cp.toml")).arg("--ready-file").arg(&ready);
        let log = self.path("control-plane.log");
        let process = self.control_plane.insert(Background::start("the control plane", &mut command, &log)?);
        wait_for("the control plane to answer", SOON, || {
            process.ensure_running()?;
            Ok(ready.exists().then_some(()))
        })
    }

    /// What the programs said.
    pub(crate) fn logs(&self) -> String {
        let control_plane = self.control_plane.as_ref().map(Background::log).unwrap_or_default();
        format!("the provider's log:\n{}\nthe control plane's log:\n{control_plane}", self.provider.log())
    }

    /// Ends the provider, as an outage would.
    pub(crate) fn stop_provider(&mut self) -> Result<()> {
        self.provider.kill()
    }

    /// From now on the provider says this of an account.
    pub(crate) fn change(&self, account: &str, claim: &str, value: Value) -> Result<()> {
        let mut accounts: Value = serde_json::from_str(&fs::read_to_string(self.path("accounts.json"))?)?;
        accounts[account][claim] = value;
        // In one step: the provider may be reading.
        fs::write(self.path("accounts.new"), accounts.to_string())?;
        Ok(fs::rename(self.path("accounts.new"), self.path("accounts.json"))?)
    }

    /// A machine of somebody's: its own folder for credentials.
    pub(crate) fn machine(&self, name: &str) -> Machine<'_> {
        Machine { office: self, home: self.path(name) }
    }

    /// Somebody before a browser.
    pub(crate) fn browser(&self, account: &str) -> Result<Browser> {
        Browser::new(account, &self.authority)
    }

    /// What a command of the administrator's printed, who has the static token.
    pub(crate) fn as_admin(&self, arguments: &[&str]) -> Result<String> {
        let token = self.path("admin.token").display().to_string();
        self.machine("admin").run(&[arguments, &["--token-file", &token]].concat())
    }

    /// Makes a resource and a host known, so that there is something to ask for.
    pub(crate) fn protect_something(&self) -> Result<()> {
        self.as_admin(&["resource", "add", "db", "--address", "10.0.0.7", "--port", "tcp/5432"])?;
        self.as_admin(&["host", "add", "db-7"])?;
        Ok(())
    }

    /// Audit events, as the administrator reads them.
    pub(crate) fn events(&self) -> Result<Vec<Value>> {
        let lines = self.as_admin(&["audit", "tail", "--after", "0", "-o", "json"])?;
        lines.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    /// The newest event of a kind.
    pub(crate) fn last(&self, kind: &str) -> Result<Value> {
        let events = self.events()?;
        let newest = events.into_iter().rfind(|event| event["event"] == kind);
        newest.with_context(|| format!("there is no {kind}"))
    }
}

/// An authority, and certificates of its: for `localhost` and the address, and for the console. Gives the authority's PEM, and by what
/// browsers know the keys.
fn write_certificates(folder: &Path) -> Result<(Vec<u8>, Vec<String>)> {
    let mut authority = rcgen::CertificateParams::new(Vec::new())?;
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_key = rcgen::KeyPair::generate()?;
    let authority_certificate = authority.self_signed(&authority_key)?;
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let pem = authority_certificate.pem();
    fs::write(folder.join("ca.pem"), &pem)?;
    let mut keys = Vec::new();
    let provider = ["localhost".to_owned(), address()].to_vec();
    for (whose, names) in [("provider", provider), ("console", vec![CONSOLE_HOST.to_owned()])] {
        let key = rcgen::KeyPair::generate()?;
        let certificate = rcgen::CertificateParams::new(names)?.signed_by(&key, &issuer)?;
        fs::write(folder.join(format!("{whose}.pem")), certificate.pem())?;
        fs::write(folder.join(format!("{whose}.key")), key.serialize_pem())?;
        keys.push(BASE64_STANDARD.encode(Sha256::digest(key.subject_public_key_info())));
    }
    Ok((pem.into_bytes(), keys))
}

/// Where somebody types.
pub(crate) struct Machine<'a> {
    office: &'a Office,
    home: PathBuf,
}

impl Machine<'_> {
    fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(binary("portcullis")?);
        command.args(arguments).env_clear().env("XDG_CONFIG_HOME", &self.home).stdin(Stdio::null());
        // Who has signed in need not say where, nor whom to believe.
        if !self.credentials().exists() {
            command.env("PORTCULLIS_SERVER", self.office.server()?);
            command.env("PORTCULLIS_CA_FILE", self.office.path("authority/ca.pem"));
        }
        Ok(command)
    }

    /// What a command printed; an error if it failed.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<String> {
        output(&mut self.command(arguments)?)
    }

    /// What a command that fails ends with, and what it says.
    pub(crate) fn fail(&self, arguments: &[&str]) -> Result<(i32, String)> {
        let output = self.command(arguments)?.output()?;
        told(&output)
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Result<Value> {
        let printed = self.run(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&printed).with_context(|| format!("{arguments:?} printed {printed:?}"))
    }

    /// Begins a `login`, which waits for somebody.
    pub(crate) fn login(&self, arguments: &[&str]) -> Result<Waiting> {
        let authority = self.office.path("ca.pem").display().to_string();
        let common = ["login", "--provider-ca-file", &authority];
        self.start(&[&common, arguments].concat())
    }

    /// Begins a command that waits.
    pub(crate) fn start(&self, arguments: &[&str]) -> Result<Waiting> {
        fs::create_dir_all(&self.home)?;
        let said = self.home.join("said.log");
        let mut command = self.command(arguments)?;
        let child = command.stdout(Stdio::null()).stderr(fs::File::create(&said)?).spawn()?;
        Ok(Waiting { child, said })
    }

    pub(crate) fn credentials(&self) -> PathBuf {
        self.home.join("portcullis/credentials.toml")
    }

    /// Turns the clock forward, as far as the session's end is concerned: the next call has to renew it.
    pub(crate) fn let_the_session_end(&self) -> Result<()> {
        // Tokens that the provider makes for the same person in the same second are the same token, which is taken once.
        std::thread::sleep(Duration::from_millis(1100));
        let text = fs::read_to_string(self.credentials())?;
        let mut stored: toml::Table = text.parse()?;
        let session = stored.get_mut("session").and_then(toml::Value::as_table_mut).context("a session")?;
        session.insert("expires".to_owned(), "2026-01-01T00:00:00.000Z".into());
        Ok(fs::write(self.credentials(), toml::to_string(&stored)?)?)
    }
}

fn told(output: &Output) -> Result<(i32, String)> {
    let code = output.status.code().context("no signal ended it")?;
    if code == 0 {
        bail!("it succeeded: {}", String::from_utf8_lossy(&output.stdout));
    }
    Ok((code, String::from_utf8_lossy(&output.stderr).into_owned()))
}

/// A command that waits. Dropped, it is ended.
pub(crate) struct Waiting {
    child: Child,
    said: PathBuf,
}

impl Waiting {
    /// What it has said so far.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap_or_default()
    }

    /// Waits until it has said a line with these words, and gives it.
    pub(crate) fn wait_for(&mut self, words: &str) -> Result<String> {
        wait_for(words, SOON, || {
            let said = self.said();
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended ({status}): {said}");
            }
            Ok(said.lines().find(|line| line.contains(words)).map(str::to_owned))
        })
    }

    /// The same, and gives the address in that line.
    pub(crate) fn address(&mut self, words: &str) -> Result<String> {
        let line = self.wait_for(words)?;
        let address = line.split(' ').find(|word| word.starts_with("https://"));
        address.map(str::to_owned).with_context(|| format!("there is no address in: {line}"))
    }

    /// Waits until it ends: its exit code, and all that it said.
    pub(crate) fn wait(mut self) -> Result<(i32, String)> {
        let status = wait_for("the command to end", SOON, || Ok(self.child.try_wait()?))?;
        Ok((status.code().context("no signal ended it")?, self.said()))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // It has ended by itself, or does now.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file, whole.
pub(crate) fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
