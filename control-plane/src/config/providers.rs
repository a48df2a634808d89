//! `[[identity_provider]]`: whom people sign in with.
//!
//! Owns: what an operator may write there, and the files that it names. Must not know: tokens.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jsonwebtoken::Algorithm;
use proto::types::{PROVIDERS_MAX, Provider, SubjectRole};
use proto::wire::identity as wire;
use serde::Deserialize;

use super::ConfigError;
use super::issuers::{self, Problem, optional_duration, read, refused};
use crate::identity::oidc::Client;
use crate::rules::claims::{DeviceClaims, Expected};

/// Long enough that people do not sign in all day, short enough that who leaves is gone within the hour.
const SESSION_LIFETIME_DEFAULT: Duration = Duration::from_secs(60 * 60);

/// Below five minutes a renewal would come before the command is done; above a working day a session is no proof of anything.
const SESSION_LIFETIME_MIN: Duration = Duration::from_secs(5 * 60);
const SESSION_LIFETIME_MAX: Duration = Duration::from_secs(12 * 60 * 60);

/// A proof that is seconds old would be too old when it arrives; beyond a month it is none.
const MAX_AUTH_AGE_MIN: Duration = Duration::from_secs(60);
const MAX_AUTH_AGE_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Groups that have a role: an operator wrote each by hand.
const ROLES_MAX: usize = 256;

/// The longest name of a claim, a group or a prefix.
const NAME_MAX_BYTES: usize = 256;

/// What is asked for unless told otherwise: who it is, and to be renewed without a browser.
const SCOPES_DEFAULT: [&str; 3] = ["openid", "email", "offline_access"];

/// An identity provider, as an operator set it up.
#[derive(Clone, PartialEq, Eq)]
pub struct IdentityProvider {
    /// What tools are told of it.
    pub provider: Provider,
    /// What its tokens have to say.
    pub expected: Expected,
    /// How long a session lasts.
    pub session_lifetime: Duration,
    /// The signatures that are taken; never one that a public key is enough for.
    pub algorithms: Vec<Algorithm>,
    /// PEM: the only authority whose certificates are taken for the provider's; None: the system's.
    pub authority: Option<Vec<u8>>,
    /// The client that the console is there.
    pub console: Client,
}

impl fmt::Debug for IdentityProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentityProvider").field("provider", &self.provider).finish_non_exhaustive()
    }
}

/// The table as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    name: String,
    issuer: String,
    client_id: String,
    client_secret_file: Option<PathBuf>,
    console_client_id: Option<String>,
    console_client_secret_file: Option<PathBuf>,
    scopes: Option<Vec<String>>,
    subject_claim: Option<String>,
    groups_claim: Option<String>,
    groups_prefix: Option<String>,
    device_managed_claim: Option<String>,
    device_encrypted_claim: Option<String>,
    ca_file: Option<PathBuf>,
    algorithms: Option<Vec<String>>,
    max_auth_age: Option<String>,
    session_lifetime: Option<String>,
    default_role: Option<String>,
    #[serde(default)]
    roles: BTreeMap<String, String>,
}

/// Checks all of them. `path` is that of the configuration; files are seen from its folder.
pub(super) fn check(raw: Vec<Raw>, path: &Path) -> Result<Vec<IdentityProvider>, ConfigError> {
    let refuse = refused(path);
    if raw.len() > PROVIDERS_MAX {
        let problem = format!("tables are too many: at most {PROVIDERS_MAX} are possible");
        return Err(refuse(("identity_provider", raw.len().to_string(), problem)));
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let (mut names, mut issuers) = (BTreeSet::new(), BTreeSet::new());
    let mut providers = Vec::with_capacity(raw.len());
    for raw in raw {
        let provider = check_one(raw, folder).map_err(refuse)?;
        let Provider { name, issuer, client_id, .. } = &provider.provider;
        if !names.insert(name.clone()) {
            let problem = "is the name of two identity providers".to_owned();
            return Err(refuse(("identity_provider.name", name.to_string(), problem)));
        }
        if !issuers.insert((issuer.clone(), client_id.clone())) {
            let problem = "has two identity providers with the same `client_id`".to_owned();
            return Err(refuse(("identity_provider.issuer", issuer.clone(), problem)));
        }
        providers.push(provider);
    }
    Ok(providers)
}

fn check_one(raw: Raw, folder: &Path) -> Result<IdentityProvider, Problem> {
    issuers::https("identity_provider.issuer", &raw.issuer)?;
    let max_auth_age = optional_duration(
        "identity_provider.max_auth_age",
        raw.max_auth_age,
        MAX_AUTH_AGE_MIN..=MAX_AUTH_AGE_MAX,
    )?;
    let session_lifetime = optional_duration(
        "identity_provider.session_lifetime",
        raw.session_lifetime,
        SESSION_LIFETIME_MIN..=SESSION_LIFETIME_MAX,
    )?;
    let client_secret = match raw.client_secret_file {
        None => String::new(),
        Some(file) => secret("identity_provider.client_secret_file", &folder.join(file))?,
    };
    let console_secret = raw
        .console_client_secret_file
        .map(|file| secret("identity_provider.console_client_secret_file", &folder.join(file)))
        .transpose()?;
    let console = match raw.console_client_id {
        Some(id) => Client { id: short("identity_provider.console_client_id", id)?, secret: console_secret },
        // What is told to every tool is no secret, but the provider wants it of this client.
        None => Client {
            id: raw.client_id.clone(),
            secret: console_secret
                .or_else(|| Some(client_secret.clone()).filter(|secret| !secret.is_empty())),
        },
    };
    let authority =
        raw.ca_file.map(|file| issuers::authority("identity_provider.ca_file", &folder.join(file)));
    let authority = authority.transpose()?;
    let scopes = raw.scopes.unwrap_or_else(|| SCOPES_DEFAULT.map(str::to_owned).into());
    if !scopes.iter().any(|scope| scope == "openid") {
        let problem = "lacks `openid`, without which there is no ID token".to_owned();
        return Err(("identity_provider.scopes", scopes.join(" "), problem));
    }
    let wire = wire::Provider {
        name: raw.name,
        issuer: raw.issuer,
        client_id: raw.client_id,
        client_secret,
        scopes,
        max_auth_age: max_auth_age.map(proto::types::duration_to_wire),
    };
    // By way of the wire, whose rules hold for what tools are told.
    let name = wire.name.clone();
    let provider = Provider::try_from(wire)
        .map_err(|error| ("identity_provider", name, format!("is not usable: {error}")))?;
    let expected = Expected {
        issuer: provider.issuer.clone(),
        client_id: provider.client_id.clone(),
        subject_claim: claim("identity_provider.subject_claim", raw.subject_claim, "email")?,
        groups_claim: claim("identity_provider.groups_claim", raw.groups_claim, "groups")?,
        groups_prefix: optional("identity_provider.groups_prefix", raw.groups_prefix)?.unwrap_or_default(),
        device: DeviceClaims {
            managed: optional("identity_provider.device_managed_claim", raw.device_managed_claim)?,
            encrypted: optional("identity_provider.device_encrypted_claim", raw.device_encrypted_claim)?,
        },
        roles: roles(raw.roles)?,
        default_role: raw
            .default_role
            .map(|text| role("identity_provider.default_role", text))
            .transpose()?,
        max_auth_age,
    };
    Ok(IdentityProvider {
        provider,
        expected,
        session_lifetime: session_lifetime.unwrap_or(SESSION_LIFETIME_DEFAULT),
        algorithms: issuers::algorithms("identity_provider.algorithms", raw.algorithms)?,
        authority,
        console,
    })
}

fn short(field: &'static str, text: String) -> Result<String, Problem> {
    match text.is_empty() || text.len() > NAME_MAX_BYTES {
        true => Err((field, text, format!("is empty or longer than {NAME_MAX_BYTES} bytes"))),
        false => Ok(text),
    }
}

fn claim(field: &'static str, text: Option<String>, default: &str) -> Result<String, Problem> {
    text.map_or_else(|| Ok(default.to_owned()), |text| short(field, text))
}

fn optional(field: &'static str, text: Option<String>) -> Result<Option<String>, Problem> {
    text.map(|text| short(field, text)).transpose()
}

fn role(field: &'static str, text: String) -> Result<SubjectRole, Problem> {
    text.parse().map_err(|_| (field, text, "is not member, approver, auditor or administrator".to_owned()))
}

fn roles(raw: BTreeMap<String, String>) -> Result<BTreeMap<String, SubjectRole>, Problem> {
    const FIELD: &str = "identity_provider.roles";
    if raw.len() > ROLES_MAX {
        return Err((
            FIELD,
            raw.len().to_string(),
            format!("groups are too many: at most {ROLES_MAX} are possible"),
        ));
    }
    let group = |group: String| match group.contains('\n') {
        true => Err((FIELD, group, "has more than one line".to_owned())),
        false => short(FIELD, group),
    };
    raw.into_iter().map(|(name, of_it)| Ok((group(name)?, role(FIELD, of_it)?))).collect()
}

/// The value is never part of an error.
pub(super) fn secret(field: &'static str, path: &Path) -> Result<String, Problem> {
    let refuse = |problem: &str| (field, path.display().to_string(), problem.to_owned());
    let text = String::from_utf8(read(field, path)?).map_err(|_| refuse("is not text"))?;
    match text.trim() {
        "" => Err(refuse("is empty")),
        secret => Ok(secret.to_owned()),
    }
}

/// The same, of a file that not everybody may read.
pub(super) fn private_secret(field: &'static str, path: &Path) -> Result<String, Problem> {
    let secret = secret(field, path)?;
    let refuse = |problem: String| (field, path.display().to_string(), problem);
    let metadata = std::fs::metadata(path).map_err(|error| refuse(format!("cannot be read: {error}")))?;
    let mode = metadata.permissions().mode() & 0o777;
    match mode & 0o007 {
        0 => Ok(secret),
        _ => Err(refuse(format!("has mode {mode:03o}, so that everybody may have it: `chmod o-rwx` it"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::issuers::ALGORITHMS_DEFAULT;

    const LEAST: &str = "name = 'corp'\nissuer = 'https://login.example.com'\nclient_id = 'portcullis'\n";

    fn parse(tables: &str) -> Result<Vec<IdentityProvider>, ConfigError> {
        let text = format!("listen = '127.0.0.1:7400'\ndatabase = 'cp.db'\n{tables}");
        Config::parse(&text, Path::new("cp.toml")).map(|config| config.identity_providers)
    }

    fn with(lines: &str) -> Result<Vec<IdentityProvider>, ConfigError> {
        parse(&format!("[[identity_provider]]\n{LEAST}{lines}"))
    }

    #[track_caller]
    fn taken(lines: &str) -> IdentityProvider {
        with(lines).expect("usable").pop().expect("one")
    }

    #[track_caller]
    fn refused(lines: &str, words: &str) {
        let error = with(lines).expect_err("is refused");
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        assert!(format!("{error}: {source}").contains(words), "{error}: {source}");
    }

    #[test]
    fn the_least_is_enough() {
        let IdentityProvider { provider, expected, session_lifetime, algorithms, authority, console } =
            taken("");
        assert_eq!(console, Client { id: "portcullis".to_owned(), secret: None });
        assert_eq!((provider.name.as_str(), provider.client_secret), ("corp", None));
        assert_eq!(provider.scopes, SCOPES_DEFAULT);
        assert_eq!((expected.subject_claim.as_str(), expected.groups_claim.as_str()), ("email", "groups"));
        assert_eq!((expected.default_role, expected.max_auth_age), (None, None));
        assert_eq!(expected.device, DeviceClaims::default());
        assert_eq!(session_lifetime.as_secs(), 3600);
        assert_eq!((algorithms.as_slice(), authority), (ALGORITHMS_DEFAULT.as_slice(), None));
        assert!(parse("").expect("usable").is_empty());
    }

    #[test]
    fn roles_are_named() {
        let expected = taken("default_role = 'member'\nroles = { sre = 'approver' }").expected;
        assert_eq!(expected.default_role, Some(SubjectRole::Member));
        assert_eq!(expected.roles.get("sre"), Some(&SubjectRole::Approver));
        refused("roles = { sre = 'root' }", "identity_provider.roles = \"root\" is not member");
        refused("default_role = 'nobody'", "default_role = \"nobody\" is not member");
    }

    #[test]
    fn claims_about_devices_are_named() {
        let device = |lines: &str| taken(lines).expected.device;
        let managed = device("device_managed_claim = 'managed'");
        assert_eq!((managed.managed.as_deref(), managed.encrypted), (Some("managed"), None));
        let encrypted = device("device_encrypted_claim = 'https://login.example.com/encrypted'").encrypted;
        assert_eq!(encrypted.as_deref(), Some("https://login.example.com/encrypted"));
        refused(
            "device_managed_claim = ''",
            "identity_provider.device_managed_claim = \"\" is empty or longer than",
        );
        refused("device_encrypted_claim = true", "expected a string");
    }

    #[test]
    fn nothing_but_https_is_an_issuer() {
        let issuer = |issuer: &str| {
            parse(&format!("[[identity_provider]]\nname = 'a'\nclient_id = 'b'\nissuer = '{issuer}'"))
        };
        for bad in [
            "http://login.example.com",
            "login.example.com",
            "https://",
            "https://a@login.example.com",
            "https://login.example.com?a",
            "https://login.example.com#a",
            "",
        ] {
            assert!(issuer(bad).is_err(), "{bad}");
        }
        assert!(issuer("https://login.example.com:8443/realms/corp").is_ok());
    }

    #[test]
    fn no_algorithm_that_a_public_key_is_enough_for() {
        assert_eq!(taken("algorithms = ['RS512']").algorithms, [Algorithm::RS512]);
        for bad in ["HS256", "none", "rs256", ""] {
            refused(&format!("algorithms = ['{bad}']"), "is not one of RS256");
        }
        refused("algorithms = []", "is empty");
    }

    #[test]
    fn durations_have_bounds() {
        assert_eq!(taken("session_lifetime = '12h'").session_lifetime.as_secs(), 43_200);
        refused("session_lifetime = '4m'", "is not a whole number of seconds from 5m to 12h");
        refused("session_lifetime = '13h'", "from 5m to 12h");
        assert_eq!(taken("max_auth_age = '8h'").expected.max_auth_age, Some(Duration::from_secs(28_800)));
        refused("max_auth_age = '59s'", "from 1m to 30days");
    }

    #[test]
    fn mistakes_are_named() {
        refused("issuers = 'x'", "unknown field `issuers`");
        refused("scopes = ['email']", "lacks `openid`");
        refused("scopes = ['openid', 'a b']", "scopes");
        refused("subject_claim = ''", "is empty or longer than");
        refused("ca_file = '/nowhere.pem'", "ca_file = \"/nowhere.pem\" cannot be read");
        refused("client_secret_file = '/nowhere'", "cannot be read");
        let twice = format!("[[identity_provider]]\n{LEAST}[[identity_provider]]\n{LEAST}");
        assert!(parse(&twice).expect_err("is refused").to_string().contains("two identity providers"));
    }

    #[test]
    fn files_lie_beside_the_configuration() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("secret"), "hush\n").expect("written");
        std::fs::write(folder.path().join("ca.pem"), "nothing").expect("written");
        let write = |line: &str| {
            let path = folder.path().join("cp.toml");
            let text =
                format!("listen = '127.0.0.1:0'\ndatabase = 'a'\n[[identity_provider]]\n{LEAST}{line}");
            std::fs::write(&path, text).expect("written");
            Config::read(&path)
        };
        let config = write("client_secret_file = 'secret'").expect("usable");
        assert_eq!(config.identity_providers[0].provider.client_secret.as_deref(), Some("hush"));
        assert!(!format!("{config:?}").contains("hush"));
        assert_eq!(config.identity_providers[0].console.secret.as_deref(), Some("hush"));
        let config =
            write("console_client_id = 'web'\nconsole_client_secret_file = 'secret'").expect("usable");
        assert_eq!(config.identity_providers[0].provider.client_secret, None, "tools are not told");
        let console = Client { id: "web".to_owned(), secret: Some("hush".to_owned()) };
        assert_eq!(config.identity_providers[0].console, console);
        let config = write("client_secret_file = 'secret'\nconsole_client_id = 'web'").expect("usable");
        assert_eq!(config.identity_providers[0].console.secret, None, "another client's");
        let error = write("ca_file = 'ca.pem'").expect_err("is refused").to_string();
        assert!(error.contains("holds no certificates in PEM form"), "{error}");
    }
}
