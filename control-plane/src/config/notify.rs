//! `[[notify]]`: who is told of which events, and by which way.
//!
//! Owns: what an operator may write there, and the files that it names. Must not know: how messages look.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use lettre::message::Mailbox;
use serde::Deserialize;
use url::{Host, Url};

use super::ConfigError;
use super::issuers::{Problem, authority, optional_duration, refused};
use super::providers::private_secret;
use super::workloads::{at_most, named};
use crate::rules::notify::{Pattern, Severity, Subscription};

/// Each has connections and rows of its own.
const TARGETS_MAX: usize = 16;

/// More than there are kinds of events.
const PATTERNS_MAX: usize = 128;

/// Whom one mail is for.
const RECIPIENTS_MAX: usize = 32;

/// Longer ones are not taken everywhere.
const URL_MAX_BYTES: usize = 2048;

/// While a secret is changed there are two.
const SIGNING_SECRETS_MAX: usize = 3;

/// As the Standard Webhooks specification has it: 192 to 512 bits.
const SIGNING_SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// A day of events of a small fleet; a few megabytes of rows.
const WAITING_MAX_DEFAULT: u32 = 10_000;
const WAITING_MAX_MAX: u32 = 100_000;

/// Long enough for a night without anybody, short enough that nobody is told of what nobody remembers.
const PATIENCE_DEFAULT: Duration = Duration::from_secs(24 * 60 * 60);
/// For trials.
const PATIENCE_MIN: Duration = Duration::from_secs(1);
const PATIENCE_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Enough for a busy service; whoever is slower is asked again.
const TIME_LIMIT_DEFAULT: Duration = Duration::from_secs(10);
pub(super) const TIME_LIMIT_MIN: Duration = Duration::from_secs(1);
pub(super) const TIME_LIMIT_MAX: Duration = Duration::from_secs(30);

/// Who is told of what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotifyTarget {
    /// Of what, and how long that waits.
    pub subscription: Subscription,
    /// How long one try may take.
    pub time_limit: Duration,
    /// By which way.
    pub channel: Channel,
}

/// The way to a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Channel {
    /// Whole events, signed, for programs.
    Webhook(Endpoint, SigningSecrets),
    /// A channel in Slack.
    Slack(Endpoint),
    /// A channel in Teams.
    Teams(Endpoint),
    /// By a mail server.
    Email(Mail),
}

/// Where something is posted to. Its debug form shows the host alone: for chats the address is the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// https, or http on this machine.
    pub url: Url,
    /// PEM: the only authority whose certificates are taken; None: the system's.
    pub authority: Option<Vec<u8>>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("host", &self.url.host_str()).finish_non_exhaustive()
    }
}

/// Keys that messages are signed with, each of them; 1 to 3. Their debug form does not show them.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningSecrets(pub(crate) Vec<Vec<u8>>);

impl SigningSecrets {
    /// `whsec_…`, one a line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let key = |line: &str| {
            let key = line.strip_prefix("whsec_").and_then(|key| BASE64_STANDARD.decode(key).ok());
            key.filter(|key| SIGNING_SECRET_BYTES.contains(&key.len())).ok_or_else(|| {
                "has a line that is not `whsec_` and 24 to 64 bytes in base64: \
                 `echo whsec_$(head -c 32 /dev/urandom | base64)` makes one"
                    .to_owned()
            })
        };
        let keys = lines.map(key).collect::<Result<Vec<_>, _>>()?;
        match (1..=SIGNING_SECRETS_MAX).contains(&keys.len()) {
            true => Ok(Self(keys)),
            false => Err(format!("has {} secrets; 1 to {SIGNING_SECRETS_MAX} are possible", keys.len())),
        }
    }
}

impl fmt::Debug for SigningSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningSecrets({})", self.0.len())
    }
}

/// How mail is sent. Its debug form does not show the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Mail {
    /// The server's name, which its certificate is for.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How the way there is kept safe.
    pub safety: MailSafety,
    /// User and password; None: the server knows us without.
    pub login: Option<(String, String)>,
    /// Who it is from.
    pub from: Mailbox,
    /// Who it is for; never empty.
    pub to: Vec<Mailbox>,
    /// PEM: the only authority whose certificates are taken; None: the system's.
    pub authority: Option<Vec<u8>>,
}

impl fmt::Debug for Mail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mail").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

/// How the way to a mail server is kept safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MailSafety {
    /// TLS from the first byte on.
    Tls,
    /// TLS before anything is said; never without.
    StartTls,
    /// Not at all: it is this machine.
    None,
}

/// The table as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    name: String,
    kind: String,
    events: Vec<String>,
    severity: Option<String>,
    waiting_max: Option<u32>,
    give_up_after: Option<String>,
    time_limit: Option<String>,
    url: Option<String>,
    url_file: Option<PathBuf>,
    secret_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    server: Option<String>,
    tls: Option<String>,
    user: Option<String>,
    from: Option<String>,
    to: Option<Vec<String>>,
}

/// Checks all of them. `path` is that of the configuration; files are seen from its folder.
pub(super) fn check(raw: Vec<Raw>, path: &Path) -> Result<Vec<NotifyTarget>, ConfigError> {
    let refuse = refused(path);
    at_most("notify", raw.len(), TARGETS_MAX).map_err(refuse)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut names = BTreeSet::new();
    let mut targets = Vec::with_capacity(raw.len());
    for raw in raw {
        let target = check_one(raw, folder).map_err(refuse)?;
        let name = target.subscription.target.clone();
        if !names.insert(name.clone()) {
            return Err(refuse(("notify.name", name.to_string(), "is the name of two targets".to_owned())));
        }
        targets.push(target);
    }
    Ok(targets)
}

fn check_one(mut raw: Raw, folder: &Path) -> Result<NotifyTarget, Problem> {
    let target = named("notify.name", &raw.name)?;
    at_most("notify.events", raw.events.len(), PATTERNS_MAX)?;
    if raw.events.is_empty() {
        let problem = "is empty: write which events it is for, such as \"request.*\"".to_owned();
        return Err(("notify.events", String::new(), problem));
    }
    let pattern = |text: String| text.parse::<Pattern>().map_err(|problem| ("notify.events", text, problem));
    let events = std::mem::take(&mut raw.events).into_iter().map(pattern).collect::<Result<_, _>>()?;
    let severity = match raw.severity.take() {
        None => Severity::Info,
        Some(text) => text.parse().map_err(|problem| ("notify.severity", text, problem))?,
    };
    let waiting_max = raw.waiting_max.unwrap_or(WAITING_MAX_DEFAULT);
    if !(1..=WAITING_MAX_MAX).contains(&waiting_max) {
        let problem = format!("is not a number from 1 to {WAITING_MAX_MAX}");
        return Err(("notify.waiting_max", waiting_max.to_string(), problem));
    }
    let patience =
        optional_duration("notify.give_up_after", raw.give_up_after.take(), PATIENCE_MIN..=PATIENCE_MAX)?;
    let time_limit =
        optional_duration("notify.time_limit", raw.time_limit.take(), TIME_LIMIT_MIN..=TIME_LIMIT_MAX)?;
    let channel = match raw.kind.as_str() {
        "webhook" => {
            not_of_mail(&raw)?;
            let file = raw.secret_file.take().ok_or_else(|| missing("notify.secret_file"))?;
            Channel::Webhook(
                endpoint(&raw, folder)?,
                signing_secrets("notify.secret_file", &folder.join(file))?,
            )
        }
        "slack" | "teams" => {
            not_of_mail(&raw)?;
            if let Some(file) = &raw.secret_file {
                let problem = "has no meaning here: the address is the secret, in `url_file`".to_owned();
                return Err(("notify.secret_file", file.display().to_string(), problem));
            }
            let endpoint = endpoint(&raw, folder)?;
            if raw.kind == "slack" { Channel::Slack(endpoint) } else { Channel::Teams(endpoint) }
        }
        "email" => Channel::Email(mail(raw, folder)?),
        _ => {
            let problem = "is not `webhook`, `slack`, `teams` or `email`".to_owned();
            return Err(("notify.kind", raw.kind, problem));
        }
    };
    Ok(NotifyTarget {
        subscription: Subscription {
            target,
            events,
            severity,
            waiting_max,
            patience: patience.unwrap_or(PATIENCE_DEFAULT),
        },
        time_limit: time_limit.unwrap_or(TIME_LIMIT_DEFAULT),
        channel,
    })
}

fn missing(field: &'static str) -> Problem {
    (field, String::new(), "is missing".to_owned())
}

fn not_of_mail(raw: &Raw) -> Result<(), Problem> {
    let given = [
        ("notify.server", raw.server.is_some()),
        ("notify.tls", raw.tls.is_some()),
        ("notify.user", raw.user.is_some()),
        ("notify.from", raw.from.is_some()),
        ("notify.to", raw.to.is_some()),
    ];
    match given.into_iter().find(|(_, is_given)| *is_given) {
        None => Ok(()),
        Some((field, _)) => Err((field, String::new(), "is for `kind = \"email\"` alone".to_owned())),
    }
}

fn endpoint(raw: &Raw, folder: &Path) -> Result<Endpoint, Problem> {
    let url = match (&raw.url, &raw.url_file) {
        (Some(url), None) => posted_to("notify.url", url)?,
        (None, Some(file)) => {
            let file = folder.join(file);
            posted_to("notify.url_file", &private_secret("notify.url_file", &file)?)?
        }
        (None, None) => return Err(missing("notify.url")),
        (Some(_), Some(file)) => {
            let problem = "is there beside `url`: leave out one of them".to_owned();
            return Err(("notify.url_file", file.display().to_string(), problem));
        }
    };
    let authority = raw.ca_file.as_ref().map(|file| authority("notify.ca_file", &folder.join(file)));
    Ok(Endpoint { url, authority: authority.transpose()? })
}

/// A URL that something is posted to. It may be a secret, and so is never part of an error.
pub(super) fn posted_to(field: &'static str, text: &str) -> Result<Url, Problem> {
    let hidden = |problem: &str| Err((field, "…".to_owned(), problem.to_owned()));
    let url = match Url::parse(text) {
        Ok(url) if url.has_host() && text.len() <= URL_MAX_BYTES => url,
        _ => return hidden("is not a URL such as `https://hooks.example.com/portcullis`"),
    };
    if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return hidden("has an account or a fragment in it, which is never sent");
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_here(url.host()) => Ok(url),
        _ => hidden("is not https, and only on this machine anything else is possible"),
    }
}

fn is_here(host: Option<Host<&str>>) -> bool {
    match host {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

pub(super) fn signing_secrets(field: &'static str, path: &Path) -> Result<SigningSecrets, Problem> {
    let text = private_secret(field, path)?;
    SigningSecrets::parse(&text).map_err(|problem| (field, path.display().to_string(), problem))
}

fn mail(raw: Raw, folder: &Path) -> Result<Mail, Problem> {
    let foreign = [("notify.url", raw.url.is_some()), ("notify.url_file", raw.url_file.is_some())];
    if let Some((field, _)) = foreign.into_iter().find(|(_, is_given)| *is_given) {
        return Err((field, String::new(), "is not for `kind = \"email\"`".to_owned()));
    }
    let server = raw.server.ok_or_else(|| missing("notify.server"))?;
    let (host, port) = server_of(&server).ok_or_else(|| {
        ("notify.server", server.clone(), "is not `HOST:PORT`, such as `mail.example.com:587`".to_owned())
    })?;
    let is_local = host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
    let safety = match raw.tls.as_deref() {
        None | Some("starttls") => MailSafety::StartTls,
        Some("tls") => MailSafety::Tls,
        Some("none") if is_local => MailSafety::None,
        Some("none") => {
            let problem = format!("is possible on this machine only, and `{host}` may be another one");
            return Err(("notify.tls", "none".to_owned(), problem));
        }
        Some(other) => {
            let problem = "is not `starttls`, `tls` or `none`".to_owned();
            return Err(("notify.tls", other.to_owned(), problem));
        }
    };
    let login = match (raw.user, raw.secret_file) {
        (None, None) => None,
        (Some(user), Some(file)) => Some((user, private_secret("notify.secret_file", &folder.join(file))?)),
        (Some(_), None) => return Err(missing("notify.secret_file")),
        (None, Some(_)) => return Err(missing("notify.user")),
    };
    let to = raw.to.unwrap_or_default();
    at_most("notify.to", to.len(), RECIPIENTS_MAX)?;
    if to.is_empty() {
        return Err(missing("notify.to"));
    }
    let authority = raw.ca_file.map(|file| authority("notify.ca_file", &folder.join(file))).transpose()?;
    Ok(Mail {
        host,
        port,
        safety,
        login,
        from: mailbox("notify.from", raw.from.ok_or_else(|| missing("notify.from"))?)?,
        to: to.into_iter().map(|text| mailbox("notify.to", text)).collect::<Result<_, _>>()?,
        authority,
    })
}

fn server_of(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let is_name = rustls::pki_types::ServerName::try_from(host).is_ok();
    Some((host.to_owned(), port.parse().ok().filter(|port| *port > 0)?)).filter(|_| is_name)
}

fn mailbox(field: &'static str, text: String) -> Result<Mailbox, Problem> {
    match text.parse() {
        Ok(mailbox) if !text.chars().any(char::is_control) => Ok(mailbox),
        _ => Err((
            field,
            text,
            "is no address such as `ops@example.com` or `Ops <ops@example.com>`".to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::Config;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const WEBHOOK: &str = "[[notify]]\nname = 'ops'\nkind = 'webhook'\nevents = ['grant.*']\n";
    const MAIL: &str = "[[notify]]\nname = 'mail'\nkind = 'email'\nevents = ['*']\nserver = 'mail.example.com:587'\n\
        from = 'Portcullis <portcullis@example.com>'\nto = ['ops@example.com']\n";

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str, mode| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("set");
        };
        write("secret", SECRET, 0o600);
        write("two", &format!("{SECRET}\n\n {SECRET}\n"), 0o640);
        write("open", SECRET, 0o644);
        write("short", "whsec_AAAA", 0o600);
        write("url", "https://hooks.slack.com/services/T/B/hush\n", 0o600);
        write("bad-url", "http://hooks.slack.com/services/T/B/hush\n", 0o600);
        folder
    }

    fn parse(tables: &str) -> Result<Vec<NotifyTarget>, String> {
        let folder = folder();
        let text = format!("listen = '127.0.0.1:7400'\ndatabase = 'cp.db'\n{tables}");
        let parsed = Config::parse(&text, &folder.path().join("cp.toml"));
        parsed.map(|config| config.notify).map_err(|error| {
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            format!("{error}: {source}")
        })
    }

    fn webhook(lines: &str) -> Result<Vec<NotifyTarget>, String> {
        parse(&format!("{WEBHOOK}{lines}"))
    }

    #[track_caller]
    fn refused(parsed: Result<Vec<NotifyTarget>, String>, words: &str) {
        let error = parsed.expect_err("is refused");
        assert!(error.contains(words), "{error}");
        assert!(!error.contains("hush") && !error.contains("MfKQ"), "{error}");
    }

    #[test]
    fn the_least_is_enough() {
        let targets =
            webhook("url = 'https://hooks.example.com/a?b=c'\nsecret_file = 'secret'").expect("usable");
        let [NotifyTarget { subscription, time_limit, channel: Channel::Webhook(endpoint, secrets) }] =
            &targets[..]
        else {
            panic!("{targets:?}")
        };
        assert_eq!((subscription.waiting_max, subscription.severity), (10_000, Severity::Info));
        assert_eq!((subscription.patience, time_limit.as_secs()), (PATIENCE_DEFAULT, 10));
        assert_eq!((endpoint.url.as_str(), secrets.0.len()), ("https://hooks.example.com/a?b=c", 1));
        let slack = WEBHOOK.replace("webhook", "slack") + "url_file = 'url'\n";
        assert!(matches!(parse(&slack).expect("usable")[0].channel, Channel::Slack(_)));
        let both = slack + &MAIL.replace("587'", "587'\nuser = 'us'\nsecret_file = 'secret'");
        let targets = parse(&both).expect("usable");
        let Channel::Email(mail) = &targets[1].channel else { panic!("mail") };
        assert_eq!(
            (mail.host.as_str(), mail.port, mail.safety),
            ("mail.example.com", 587, MailSafety::StartTls)
        );
        let shown = format!("{targets:?}");
        assert!(!shown.contains("hush") && !shown.contains("MfKQ"), "{shown}");
        webhook("url = 'http://127.0.0.1:8080/'\nsecret_file = 'two'").expect("this machine");
        webhook("url = 'http://[::1]:8080/'\nsecret_file = 'two'").expect("this machine");
    }

    #[test]
    fn mistakes_are_named() {
        const URL: &str = "url = 'https://hooks.example.com'\n";
        refused(webhook(URL), "notify.secret_file = \"\" is missing");
        refused(webhook("secret_file = 'secret'"), "notify.url = \"\" is missing");
        refused(webhook(&format!("{URL}secret_file = 'open'")), "so that everybody may have it");
        refused(webhook(&format!("{URL}secret_file = 'short'")), "24 to 64 bytes in base64");
        refused(webhook(&format!("{URL}secret_file = 'gone'")), "cannot be read");
        for url in [
            "http://hooks.example.com/hush",
            "ftp://127.0.0.1/hush",
            "https://a:hush@example.com/",
            "https://example.com/#hush",
            "http://127.0.0.1.example.com/hush",
            "/hush",
            "",
        ] {
            refused(webhook(&format!("url = '{url}'\nsecret_file = 'secret'")), "notify.url = \"…\"");
        }
        let good = format!("{URL}secret_file = 'secret'\n");
        refused(webhook(&format!("{good}severity = 'bad'")), "is not one of info, low, medium, high");
        refused(webhook(&format!("{good}waiting_max = 0")), "is not a number from 1 to 100000");
        refused(webhook(&format!("{good}give_up_after = '30days'")), "from 1s to 7days");
        refused(webhook(&format!("{good}time_limit = '1m'")), "from 1s to 30s");
        refused(webhook(&format!("{good}user = 'a'")), "is for `kind = \"email\"` alone");
        refused(webhook(&format!("{good}secret = 'a'")), "unknown field `secret`");
        refused(webhook(&format!("{good}url_file = 'url'")), "leave out one of them");
        refused(parse(&format!("{WEBHOOK}{good}{WEBHOOK}{good}")), "is the name of two targets");
        let events = |events: &str| parse(&format!("{}{good}", WEBHOOK.replace("['grant.*']", events)));
        refused(events("[]"), "notify.events = \"\" is empty");
        refused(events("['grants.*']"), "notify.events = \"grants.*\" is neither");
        refused(parse(&WEBHOOK.replace("webhook", "pager")), "notify.kind = \"pager\"");
        let slack = WEBHOOK.replace("webhook", "slack");
        refused(parse(&format!("{slack}url_file = 'bad-url'")), "notify.url_file = \"…\" is not https");
        refused(
            parse(&format!("{slack}url_file = 'url'\nsecret_file = 'secret'")),
            "the address is the secret",
        );
    }

    #[test]
    fn mistakes_of_mail_are_named() {
        parse(&MAIL.replace("'mail.example.com:587'", "'[::1]:25'\ntls = 'none'")).expect("this machine");
        refused(parse(&MAIL.replace("587'", "587'\ntls = 'none'")), "on this machine only");
        refused(parse(&MAIL.replace("587'", "587'\ntls = 'ssl'")), "is not `starttls`, `tls` or `none`");
        refused(parse(&MAIL.replace(":587", "")), "is not `HOST:PORT`");
        refused(parse(&MAIL.replace(":587", ":0")), "is not `HOST:PORT`");
        refused(parse(&MAIL.replace("587'", "587'\nuser = 'us'")), "notify.secret_file");
        refused(parse(&MAIL.replace("587'", "587'\nurl = 'https://a'")), "is not for `kind = \"email\"`");
        refused(parse(&MAIL.replace("['ops@example.com']", "[]")), "notify.to = \"\" is missing");
        for bad in ["ops", "ops@example.com, b@example.com", "a@b\\r\\nBcc: c@d"] {
            let to = format!("[\"{bad}\"]");
            refused(parse(&MAIL.replace("['ops@example.com']", &to)), "is no address such as");
        }
    }
}
