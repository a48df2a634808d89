//! The configuration file → a checked [`Config`].
//!
//! Owns: what an operator may write. Must not know: what the rest does with it.

mod console;
mod database;
mod decision_hooks;
mod issuers;
mod notify;
mod providers;
mod trust_domains;
mod workloads;

pub use console::ConsoleConfig;
pub use database::{Database, Password, PostgresDatabase, PostgresTls};
pub use decision_hooks::DecisionHook;
pub use issuers::{IssuerKeys, KeySource};
pub use notify::{Channel, Endpoint, Mail, MailSafety, NotifyTarget, SigningSecrets};
pub use providers::IdentityProvider;
pub use trust_domains::SpiffeTrustDomain;
pub use workloads::{KubernetesCluster, WorkloadIssuer};

use std::fmt::{self, Display};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

use crate::identity::authority::ServerName;

/// What an operator decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where callers find us; never empty.
    pub listen: Vec<Listen>,
    /// Where the durable record is.
    pub database: Database,
    /// The folder of the authority that signs hosts' certificates.
    pub authority: PathBuf,
    /// By what callers reach us, besides where we listen.
    pub tls_names: Vec<ServerName>,
    /// The certificate that is shown to people and their tools; None: the one that is shown to hosts.
    pub tls_files: Option<CertificateFiles>,
    /// How long a host's certificate counts; it is renewed at half of it. Whole seconds.
    pub host_certificate_lifetime: Duration,
    /// The longest that a grant may live: whole seconds, at least one.
    pub max_grant_duration: Duration,
    /// How long a request waits for its decision: whole seconds, at least one.
    pub request_lifetime: Duration,
    /// Whom people sign in with; at most 16.
    pub identity_providers: Vec<IdentityProvider>,
    /// Whose tokens workloads sign in with; at most 16.
    pub workload_issuers: Vec<WorkloadIssuer>,
    /// Whose certificates workloads sign in with; at most 16.
    pub spiffe_trust_domains: Vec<SpiffeTrustDomain>,
    /// Whose nodes may join; at most 64.
    pub kubernetes_clusters: Vec<KubernetesCluster>,
    /// Where people find the console; None: there is none.
    pub console: Option<ConsoleConfig>,
    /// Programs that policies may ask; at most 16.
    pub decision_hooks: Vec<DecisionHook>,
    /// Who is told of which events; at most 16.
    pub notify: Vec<NotifyTarget>,
}

/// A certificate with its chain, and its key, both in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain, our own certificate first.
    pub certificate: PathBuf,
    /// The key of our own.
    pub key: PathBuf,
}

/// Where callers find us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// TLS on an address. Port 0: whichever is free.
    Tcp(SocketAddr),
    /// The path of a Unix socket, which is not encrypted: it does not leave this machine. Agents do not use it.
    Unix(PathBuf),
}

/// Long enough for any shift, short enough that a forgotten grant ends within the day.
const MAX_GRANT_DURATION_DEFAULT: Duration = Duration::from_secs(12 * 60 * 60);

/// Whoever could decide has been at work once meanwhile.
const REQUEST_LIFETIME_DEFAULT: Duration = Duration::from_secs(24 * 60 * 60);

/// After a month nobody remembers why it was asked for.
const REQUEST_LIFETIME_MAX: Duration = Duration::from_secs(31 * 24 * 60 * 60);

/// Above a year, access is not just in time.
const MAX_GRANT_DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Long enough that a control plane may be away for days, short enough that a host which nobody misses is not believed for long.
const HOST_CERTIFICATE_LIFETIME_DEFAULT: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// For trials. A renewal takes a connection, and a busy machine has to come to it.
const HOST_CERTIFICATE_LIFETIME_MIN: Duration = Duration::from_secs(10);

/// Above a season, a stolen key is worth too much.
const HOST_CERTIFICATE_LIFETIME_MAX: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// Where we listen is one of them; more would be a mistake.
const LISTEN_MAX: usize = 16;

/// More names than anybody gives to one service.
const NAMES_MAX: usize = 64;

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    listen: OneOrMore,
    database: database::Raw,
    authority: Option<PathBuf>,
    max_grant_duration: Option<String>,
    request_lifetime: Option<String>,
    #[serde(default)]
    identity_provider: Vec<providers::Raw>,
    #[serde(default)]
    workload_issuer: Vec<workloads::RawIssuer>,
    #[serde(default)]
    spiffe_trust_domain: Vec<trust_domains::Raw>,
    #[serde(default)]
    kubernetes_cluster: Vec<workloads::RawCluster>,
    host_certificate_lifetime: Option<String>,
    #[serde(default)]
    tls: RawTls,
    console: Option<console::Raw>,
    #[serde(default)]
    decision_hook: Vec<decision_hooks::Raw>,
    #[serde(default)]
    notify: Vec<notify::Raw>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTls {
    names: Vec<String>,
    certificate_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration `{path}`")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It is not TOML, or has a field that is not known or of the wrong kind.
    #[error("configuration `{path}` is not understood")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Where, and why.
        source: Box<toml::de::Error>,
    },
    /// A value breaks a rule.
    #[error("configuration `{path}`: {field} = \"{value}\" {problem}")]
    Value {
        /// Which file.
        path: PathBuf,
        /// Which field.
        field: &'static str,
        /// What it was set to.
        value: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl Config {
    /// Reads and checks a file, and those that it names. Relative paths are seen from the file's folder.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let config = Self::parse(&text, path)?;
        let seen_from_there = |files: CertificateFiles| CertificateFiles {
            certificate: folder.join(files.certificate),
            key: folder.join(files.key),
        };
        let console = |console: ConsoleConfig| {
            let files = console.files.map(seen_from_there);
            ConsoleConfig { files, ..console }
        };
        Ok(Self {
            database: match config.database {
                Database::Sqlite(file) => Database::Sqlite(folder.join(file)),
                Database::Postgres(database) => Database::Postgres(database),
            },
            authority: folder.join(&config.authority),
            tls_files: config.tls_files.map(seen_from_there),
            console: config.console.map(console),
            ..config
        })
    }

    /// Where the authority of a SQLite file lies, unless the configuration says otherwise.
    pub fn authority_beside(database: &Path) -> PathBuf {
        database.with_file_name("authority")
    }

    /// Checks a text that was read from `path`. Other files that it names are read too.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let raw: Raw = toml::from_str(text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        let refuse = |field, value: &str, problem: String| ConfigError::Value {
            path: path.to_owned(),
            field,
            value: value.to_owned(),
            problem,
        };
        let listen = match raw.listen {
            OneOrMore::One(listen) => vec![listen],
            OneOrMore::More(listen) => listen,
        };
        if !(1..=LISTEN_MAX).contains(&listen.len()) {
            let problem = format!("has {} entries; 1 to {LISTEN_MAX} are possible", listen.len());
            return Err(refuse("listen", "", problem));
        }
        let listen =
            listen.iter().map(|text| text.parse().map_err(|problem| refuse("listen", text, problem)));
        let database = database::check(raw.database, path)?;
        let authority = raw.authority.or_else(|| Self::authority_of(&database)).ok_or_else(|| {
            let problem = "is missing: `database` is no file that the authority's folder could be beside";
            refuse("authority", "", problem.to_owned())
        })?;
        let seconds = |field, text: Option<String>, default, min, max| match text {
            None => Ok(default),
            Some(text) => {
                duration_between(&text, &(min..=max)).map_err(|problem| refuse(field, &text, problem))
            }
        };
        if raw.tls.names.len() > NAMES_MAX {
            let problem = format!("has {} entries; at most {NAMES_MAX} are possible", raw.tls.names.len());
            return Err(refuse("tls.names", "", problem));
        }
        let names = raw
            .tls
            .names
            .iter()
            .map(|text| server_name(text).map_err(|problem| refuse("tls.names", text, problem)));
        let tls_files = match (raw.tls.certificate_file, raw.tls.key_file) {
            (Some(certificate), Some(key)) => Some(CertificateFiles { certificate, key }),
            (None, None) => None,
            (Some(_), None) => {
                return Err(refuse("tls.key_file", "", "is missing beside `certificate_file`".to_owned()));
            }
            (None, Some(_)) => {
                return Err(refuse("tls.certificate_file", "", "is missing beside `key_file`".to_owned()));
            }
        };
        let identity_providers = providers::check(raw.identity_provider, path)?;
        let console = raw.console.map(|raw| console::check(raw, path)).transpose()?;
        if let (Some(console), true) = (&console, identity_providers.is_empty()) {
            let problem = "has no `[[identity_provider]]` beside it: nobody could sign in".to_owned();
            return Err(refuse("console.url", &console.origin, problem));
        }
        Ok(Self {
            identity_providers,
            console,
            decision_hooks: decision_hooks::check(raw.decision_hook, path)?,
            notify: notify::check(raw.notify, path)?,
            workload_issuers: workloads::issuers(raw.workload_issuer, path)?,
            spiffe_trust_domains: trust_domains::trust_domains(raw.spiffe_trust_domain, path)?,
            kubernetes_clusters: workloads::clusters(raw.kubernetes_cluster, path)?,
            listen: listen.collect::<Result<_, _>>()?,
            authority,
            database,
            tls_names: names.collect::<Result<_, _>>()?,
            tls_files,
            host_certificate_lifetime: seconds(
                "host_certificate_lifetime",
                raw.host_certificate_lifetime,
                HOST_CERTIFICATE_LIFETIME_DEFAULT,
                HOST_CERTIFICATE_LIFETIME_MIN,
                HOST_CERTIFICATE_LIFETIME_MAX,
            )?,
            max_grant_duration: seconds(
                "max_grant_duration",
                raw.max_grant_duration,
                MAX_GRANT_DURATION_DEFAULT,
                Duration::from_secs(1),
                MAX_GRANT_DURATION_MAX,
            )?,
            request_lifetime: seconds(
                "request_lifetime",
                raw.request_lifetime,
                REQUEST_LIFETIME_DEFAULT,
                Duration::from_secs(1),
                REQUEST_LIFETIME_MAX,
            )?,
        })
    }
}

/// A duration in whole seconds, within bounds.
fn duration_between(text: &str, bounds: &RangeInclusive<Duration>) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|error| format!("is not a duration such as `12h` or `30m`: {error}"))?;
    match bounds.contains(&duration) && duration.subsec_nanos() == 0 {
        true => Ok(duration),
        false => {
            let [least, most] = [bounds.start(), bounds.end()].map(|bound| shown(*bound));
            Err(format!("is not a whole number of seconds from {least} to {most}"))
        }
    }
}

/// As it is written, not in months and years.
fn shown(duration: Duration) -> String {
    const DAY_S: u64 = 24 * 60 * 60;
    match duration.as_secs().checked_rem(DAY_S) {
        Some(0) => format!("{}days", duration.as_secs() / DAY_S),
        _ => humantime::format_duration(duration).to_string(),
    }
}

fn server_name(text: &str) -> Result<ServerName, String> {
    if let Ok(address) = text.parse() {
        return Ok(ServerName::Ip(address));
    }
    match rustls::pki_types::DnsName::try_from(text) {
        Ok(_) => Ok(ServerName::Dns(text.to_ascii_lowercase())),
        Err(_) => Err("is neither a DNS name nor an address".to_owned()),
    }
}

impl Listen {
    /// Several, as one line.
    pub fn list(several: &[Self]) -> String {
        several.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.starts_with('/') {
                true => Ok(Self::Unix(path.into())),
                false => Err("needs an absolute path behind `unix:`".to_owned()),
            };
        }
        let address = text.parse();
        address.map(Self::Tcp).map_err(|_| "is not `ADDRESS:PORT` or `unix:/PATH`".to_owned())
    }
}

impl Display for Listen {
    /// As it is written, and as callers use it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("cp.toml"))
    }

    #[track_caller]
    fn check(text: &str, expected: Result<(&str, u64), &str>) {
        match (parse(text), expected) {
            (Ok(config), Ok((listen, seconds))) => {
                assert_eq!(config.listen.iter().map(ToString::to_string).collect::<Vec<_>>(), [listen]);
                assert_eq!(config.max_grant_duration.as_secs(), seconds);
            }
            (Err(error), Err(part)) => {
                let source = error.source().map(ToString::to_string).unwrap_or_default();
                let text = format!("{error}: {source}");
                assert!(text.contains(part), "{text}");
            }
            (parsed, expected) => panic!("{parsed:?}, expected {expected:?}"),
        }
    }

    #[track_caller]
    fn check_with(line: &str, expected: Result<(&str, u64), &str>) {
        check(&format!("listen = '127.0.0.1:7400'\ndatabase = 'cp.db'\n{line}"), expected);
    }

    #[track_caller]
    fn check_listen(listen: &str, expected: Result<(), &str>) {
        let text = format!("listen = '{listen}'\ndatabase = 'cp.db'");
        check(&text, expected.map(|()| (listen, 43_200)));
    }

    #[test]
    fn where_it_listens() {
        check_listen("127.0.0.1:7400", Ok(()));
        check_listen("0.0.0.0:0", Ok(()));
        check_listen("[::]:7400", Ok(()));
        check_listen("unix:/run/portcullis/control-plane.sock", Ok(()));
        check_listen("localhost:7400", Err("is not `ADDRESS:PORT`"));
        check_listen("127.0.0.1:65536", Err("is not `ADDRESS:PORT`"));
        check_listen("unix:control-plane.sock", Err("needs an absolute path"));
        let config =
            parse("listen = ['10.0.0.7:7400', 'unix:/run/cp.sock']\ndatabase = 'cp.db'").expect("valid");
        assert_eq!(config.listen.len(), 2);
        check("listen = []\ndatabase = 'cp.db'", Err("has 0 entries"));
        check("listen = 7400\ndatabase = 'cp.db'", Err("expected a string or a list"));
    }

    #[test]
    fn how_it_is_known() {
        let with = |lines: &str| parse(&format!("listen = '[::]:7400'\ndatabase = 'data/cp.db'\n{lines}"));
        let config = with("").expect("valid");
        assert_eq!(config.authority, Path::new("data/authority"));
        assert_eq!((config.tls_names, config.tls_files), (Vec::new(), None));
        let config =
            with("authority = '/safe'\n[tls]\nnames = ['CP.example.com', '10.0.0.7']").expect("valid");
        assert_eq!(config.authority, Path::new("/safe"));
        let name = ServerName::Dns("cp.example.com".to_owned());
        assert_eq!(config.tls_names, [name, ServerName::Ip([10, 0, 0, 7].into())]);
        check_with("[tls]\nnames = ['a b']", Err("tls.names = \"a b\" is neither"));
        check_with("[tls]\ncertificate_file = 'cp.pem'", Err("tls.key_file"));
        check_with("[tls]\nkey_file = 'cp.key'", Err("tls.certificate_file"));
        check_with("[tls]\ncertificate_file = 'cp.pem'\nkey_file = 'cp.key'", Ok(("127.0.0.1:7400", 43_200)));
    }

    #[test]
    fn durations_have_bounds() {
        check_with("max_grant_duration = '8h 30m'", Ok(("127.0.0.1:7400", 30_600)));
        check_with("max_grant_duration = '0s'", Err("1s to 366days"));
        check_with("max_grant_duration = '1500ms'", Err("1s to 366days"));
        check_with("max_grant_duration = '367days'", Err("1s to 366days"));
        check_with("max_grant_duration = 'long'", Err("is not a duration such as"));
        check_with("host_certificate_lifetime = '24h'", Ok(("127.0.0.1:7400", 43_200)));
        check_with("host_certificate_lifetime = '9s'", Err("from 10s to 90days"));
    }

    #[test]
    fn mistakes_are_named() {
        check_with("max_grant_durations = '8h'", Err("unknown field `max_grant_durations`"));
        check_with("max_grant_duration = 8", Err("expected a string"));
        check("database = 'cp.db'", Err("missing field `listen`"));
        check("listen = '127.0.0.1:7400'\ndatabase = ''", Err("database = \"\" is empty"));
        check("listen", Err("is not understood"));
    }
}
