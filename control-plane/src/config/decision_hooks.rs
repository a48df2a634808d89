//! `[[decision_hook]]`: programs that steps of a policy ask.
//!
//! Owns: what an operator may write there, and the files that it names. Must not know: what is asked.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::types::{HookName, Invalid};
use serde::Deserialize;

use super::ConfigError;
use super::issuers::{Problem, authority, optional_duration, refused};
use super::notify::{Endpoint, SigningSecrets, TIME_LIMIT_MAX, TIME_LIMIT_MIN, posted_to, signing_secrets};
use super::workloads::at_most;

/// More programs than anybody asks.
const HOOKS_MAX: usize = 16;

/// Somebody waits for it: shorter than for a notification.
const TIME_LIMIT_DEFAULT: Duration = Duration::from_secs(5);

/// A program that is asked for decisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecisionHook {
    /// As policies name it, behind `hook:`.
    pub name: HookName,
    /// Where it is asked.
    pub endpoint: Endpoint,
    /// What questions are signed with.
    pub secrets: SigningSecrets,
    /// How long it has; no answer within that is a no.
    pub time_limit: Duration,
}

/// The table as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    name: String,
    url: String,
    secret_file: PathBuf,
    ca_file: Option<PathBuf>,
    time_limit: Option<String>,
}

/// Checks all of them. `path` is that of the configuration; files are seen from its folder.
pub(super) fn check(raw: Vec<Raw>, path: &Path) -> Result<Vec<DecisionHook>, ConfigError> {
    let refuse = refused(path);
    at_most("decision_hook", raw.len(), HOOKS_MAX).map_err(refuse)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut names = BTreeSet::new();
    let mut hooks = Vec::with_capacity(raw.len());
    for raw in raw {
        let hook = check_one(raw, folder).map_err(refuse)?;
        if !names.insert(hook.name.clone()) {
            let problem = "is the name of two hooks".to_owned();
            return Err(refuse(("decision_hook.name", hook.name.to_string(), problem)));
        }
        hooks.push(hook);
    }
    Ok(hooks)
}

fn check_one(raw: Raw, folder: &Path) -> Result<DecisionHook, Problem> {
    let Raw { name, url, secret_file, ca_file, time_limit } = raw;
    let name = name.parse().map_err(|error: Invalid| ("decision_hook.name", name.clone(), error.problem))?;
    let limits = TIME_LIMIT_MIN..=TIME_LIMIT_MAX;
    let time_limit = optional_duration("decision_hook.time_limit", time_limit, limits)?;
    let authority = ca_file.map(|file| authority("decision_hook.ca_file", &folder.join(file))).transpose()?;
    Ok(DecisionHook {
        name,
        endpoint: Endpoint { url: posted_to("decision_hook.url", &url)?, authority },
        secrets: signing_secrets("decision_hook.secret_file", &folder.join(secret_file))?,
        time_limit: time_limit.unwrap_or(TIME_LIMIT_DEFAULT),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::Config;

    fn parse(tables: &str) -> Result<Vec<DecisionHook>, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let secret = folder.path().join("secret");
        std::fs::write(&secret, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("written");
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).expect("set");
        let text = format!("listen = '127.0.0.1:7400'\ndatabase = 'cp.db'\n{tables}");
        let parsed = Config::parse(&text, &folder.path().join("cp.toml"));
        parsed.map(|config| config.decision_hooks).map_err(|error| {
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            format!("{error}: {source}")
        })
    }

    #[track_caller]
    fn refused(tables: &str, words: &str) {
        let error = parse(tables).expect_err("is refused");
        assert!(error.contains(words), "{error}");
    }

    #[test]
    fn mistakes_are_named() {
        const HOOK: &str = "[[decision_hook]]\nname = 'risk'\nurl = 'https://risk.example.com/ask'\nsecret_file = 'secret'\n";
        let hooks = parse(HOOK).expect("usable");
        assert_eq!((hooks[0].name.as_str(), hooks[0].time_limit.as_secs()), ("risk", 5));
        refused(&HOOK.replace("https", "http"), "decision_hook.url = \"…\" is not https");
        refused(&HOOK.replace("'risk'", "'Risk'"), "decision_hook.name = \"Risk\"");
        refused(&HOOK.replace("'secret'", "'gone'"), "cannot be read");
        refused(&format!("{HOOK}{HOOK}"), "is the name of two hooks");
        refused(&format!("{HOOK}time_limit = '2m'"), "from 1s to 30s");
        refused(&format!("{HOOK}retries = 3"), "unknown field `retries`");
    }
}
