//! `[console]`: where people find the console with their browsers.
//!
//! Owns: what an operator may write there. Must not know: routes, pages.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use url::Url;

use super::issuers::{Problem, optional_duration, refused};
use super::{CertificateFiles, ConfigError, LISTEN_MAX, OneOrMore, server_name};
use crate::identity::authority::ServerName;

/// Long enough to read a page and think, short enough for a desk that somebody has left.
const IDLE_LIMIT_DEFAULT: Duration = Duration::from_secs(30 * 60);
const IDLE_LIMIT_MIN: Duration = Duration::from_secs(60);
const IDLE_LIMIT_MAX: Duration = Duration::from_secs(12 * 60 * 60);

/// The console, as an operator set it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsoleConfig {
    /// Where it listens; never empty.
    pub listen: Vec<SocketAddr>,
    /// What people type, and what providers send them back to: `https://HOST[:PORT]`, nothing behind it.
    pub origin: String,
    /// The same as it stands in requests: `HOST[:PORT]`.
    pub authority: String,
    /// The name in it.
    pub name: ServerName,
    /// Its certificate; None: that of `[tls]`, or else the authority's.
    pub files: Option<CertificateFiles>,
    /// After so long without a request a session ends.
    pub idle_limit: Duration,
}

/// The table as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    listen: OneOrMore,
    url: String,
    certificate_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    idle_limit: Option<String>,
}

/// `path` is that of the configuration.
pub(super) fn check(raw: Raw, path: &Path) -> Result<ConsoleConfig, ConfigError> {
    checked(raw).map_err(refused(path))
}

fn checked(raw: Raw) -> Result<ConsoleConfig, Problem> {
    let listen = match raw.listen {
        OneOrMore::One(listen) => vec![listen],
        OneOrMore::More(listen) => listen,
    };
    if !(1..=LISTEN_MAX).contains(&listen.len()) {
        let problem = format!("has {} entries; 1 to {LISTEN_MAX} are possible", listen.len());
        return Err(("console.listen", String::new(), problem));
    }
    let address = |text: String| {
        let refuse = |_| ("console.listen", text.clone(), "is not `ADDRESS:PORT`".to_owned());
        text.parse().map_err(refuse)
    };
    let (origin, authority, name) =
        origin(&raw.url).map_err(|problem| ("console.url", raw.url.clone(), problem))?;
    let missing = |field| (field, String::new(), "is missing beside the other of the two".to_owned());
    let files = match (raw.certificate_file, raw.key_file) {
        (Some(certificate), Some(key)) => Some(CertificateFiles { certificate, key }),
        (None, None) => None,
        (Some(_), None) => return Err(missing("console.key_file")),
        (None, Some(_)) => return Err(missing("console.certificate_file")),
    };
    let idle_limit =
        optional_duration("console.idle_limit", raw.idle_limit, IDLE_LIMIT_MIN..=IDLE_LIMIT_MAX)?;
    Ok(ConsoleConfig {
        listen: listen.into_iter().map(address).collect::<Result<_, _>>()?,
        origin,
        authority,
        name,
        files,
        idle_limit: idle_limit.unwrap_or(IDLE_LIMIT_DEFAULT),
    })
}

/// The origin, its authority, and the name in that.
fn origin(text: &str) -> Result<(String, String, ServerName), String> {
    let url = Url::parse(text).map_err(|error| format!("is no URL: {error}"))?;
    if url.scheme() != "https" {
        return Err("is not an https URL: browsers would send sessions to anybody".to_owned());
    }
    let host = url.host_str().ok_or("names no host")?;
    let is_bare = url.path() == "/"
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    if !is_bare {
        return Err("has more than `https://HOST` or `https://HOST:PORT`".to_owned());
    }
    let origin = url.origin().ascii_serialization();
    let authority = origin.trim_start_matches("https://").to_owned();
    let name = server_name(host.trim_start_matches('[').trim_end_matches(']'))
        .map_err(|problem| format!("names a host that {problem}"))?;
    Ok((origin, authority, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn with(lines: &str) -> Result<ConsoleConfig, String> {
        let text = format!(
            "listen = '127.0.0.1:7400'\ndatabase = 'cp.db'\n[[identity_provider]]\nname = 'corp'\n\
             issuer = 'https://login.example.com'\nclient_id = 'portcullis'\n[console]\n{lines}"
        );
        let parsed = Config::parse(&text, Path::new("cp.toml"));
        let told = |error: ConfigError| {
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            format!("{error}: {source}")
        };
        parsed.map(|config| config.console.expect("is there")).map_err(told)
    }

    #[track_caller]
    fn refused(lines: &str, words: &str) {
        let error = with(lines).expect_err("is refused");
        assert!(error.contains(words), "{error}");
    }

    #[test]
    fn the_least_is_enough() {
        let console = with("listen = '[::]:7443'\nurl = 'https://Portcullis.example.com/'").expect("usable");
        assert_eq!(console.origin, "https://portcullis.example.com");
        assert_eq!(console.authority, "portcullis.example.com");
        assert_eq!(console.idle_limit.as_secs(), 1800);
        assert_eq!(console.files, None);
        let console =
            with("listen = ['10.0.0.7:443', '[::1]:443']\nurl = 'https://[::1]:8443'\nidle_limit = '5m'")
                .expect("usable");
        assert_eq!((console.origin.as_str(), console.listen.len()), ("https://[::1]:8443", 2));
        assert_eq!(console.name, ServerName::Ip([0, 0, 0, 0, 0, 0, 0, 1].into()));
        let console =
            with("listen = '[::]:443'\nurl = 'https://portcullis.example.com:443'").expect("usable");
        assert_eq!(console.origin, "https://portcullis.example.com", "as browsers write it");
    }

    #[test]
    fn mistakes_are_named() {
        const LISTEN: &str = "listen = '[::]:7443'\n";
        for (url, words) in [
            ("http://portcullis.example.com", "is not an https URL"),
            ("portcullis.example.com", "is no URL"),
            ("https://portcullis.example.com/console", "has more than"),
            ("https://portcullis.example.com?a", "has more than"),
            ("https://alice@portcullis.example.com", "has more than"),
            ("", "is no URL"),
        ] {
            refused(&format!("{LISTEN}url = '{url}'"), words);
        }
        const URL: &str = "url = 'https://portcullis.example.com'\n";
        refused(
            &format!("{URL}listen = 'unix:/run/x'"),
            "console.listen = \"unix:/run/x\" is not `ADDRESS:PORT`",
        );
        refused(&format!("{URL}listen = []"), "has 0 entries");
        refused(&format!("{URL}{LISTEN}certificate_file = 'a.pem'"), "console.key_file");
        refused(&format!("{URL}{LISTEN}key_file = 'a.key'"), "console.certificate_file");
        refused(&format!("{URL}{LISTEN}idle_limit = '59s'"), "from 1m to 12h");
        refused(&format!("{URL}{LISTEN}port = 1"), "unknown field `port`");
        refused(LISTEN, "missing field `url`");
        let alone = format!("listen = '127.0.0.1:7400'\ndatabase = 'cp.db'\n[console]\n{URL}{LISTEN}");
        let error = Config::parse(&alone, Path::new("cp.toml")).expect_err("is refused").to_string();
        assert!(error.contains("nobody could sign in"), "{error}");
    }
}
