//! `[[workload_issuer]]` and `[[kubernetes_cluster]]`: whose tokens workloads sign in with, and agents join with.
//!
//! Owns: what an operator may write there, and the files that it names. Must not know: tokens.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::types::{HostName, Labels, ProviderName, SubjectId};
use serde::Deserialize;

use super::ConfigError;
use super::issuers::{self, IssuerKeys, KeySource, Problem, optional_duration, refused};
use crate::rules::workload::{Binding, ClaimPath, Expected, ExpectedAgent, Wanted};

/// Each is asked for its keys, and has limits of its own.
const ISSUERS_MAX: usize = 16;
const CLUSTERS_MAX: usize = 64;

/// Entries of one issuer: an operator wrote each, or had it written; all are compared with each token.
pub(super) const SUBJECTS_MAX: usize = 1000;
const CLAIMS_MAX: usize = 32;

/// The longest name or text of a claim.
const CLAIM_MAX_BYTES: usize = 512;

/// A job asks, uses and releases; below, a command ends in the middle; above an hour it is no job's any more.
const SESSION_LIFETIME_DEFAULT: Duration = Duration::from_secs(15 * 60);
const SESSION_LIFETIME_MIN: Duration = Duration::from_secs(60);
const SESSION_LIFETIME_MAX: Duration = Duration::from_secs(60 * 60);

/// GitLab gives a job its token when it begins: an hour is how long its jobs run unless told otherwise.
const TOKEN_MAX_AGE_DEFAULT: Duration = Duration::from_secs(60 * 60);
const TOKEN_MAX_AGE_MIN: Duration = Duration::from_secs(60);
const TOKEN_MAX_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// For whom an agent's token is unless told otherwise.
const CLUSTER_AUDIENCE_DEFAULT: &str = "portcullis";
/// As `deploy/kubernetes/daemonset.yaml` names it.
const SERVICE_ACCOUNT_DEFAULT: &str = "portcullis/portcullis-agent";

/// What is checked for every token, or is another one in each: no workload is known by it.
const NOBODYS_CLAIMS: [&str; 6] = ["iss", "aud", "exp", "iat", "nbf", "jti"];

/// Issuers that anybody can get a token from, and the claims of which an entry must bind one: all others a stranger can choose, or
/// get when their owner gives up the name.
const OPEN_ISSUERS: [(&str, &[&str]); 2] = [
    (
        "https://token.actions.githubusercontent.com",
        &["repository_id", "repository_owner_id", "enterprise_id"],
    ),
    ("https://gitlab.com", &["project_id", "namespace_id"]),
];

/// An issuer of workloads' tokens, as an operator set it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadIssuer {
    /// Its name here.
    pub name: ProviderName,
    /// Whose signature its tokens have.
    pub keys: IssuerKeys,
    /// What its tokens have to say.
    pub expected: Expected,
    /// How long a session lasts.
    pub session_lifetime: Duration,
}

/// A Kubernetes cluster whose nodes may join, as an operator set it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesCluster {
    /// Its name here.
    pub name: ProviderName,
    /// Whose signature its tokens have.
    pub keys: IssuerKeys,
    /// What its agents' tokens have to say.
    pub expected: ExpectedAgent,
    /// Of each host that it brings.
    pub labels: Labels,
}

/// The tables as they are written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawIssuer {
    name: String,
    issuer: String,
    audience: String,
    ca_file: Option<PathBuf>,
    jwks_uri: Option<String>,
    jwks_file: Option<PathBuf>,
    algorithms: Option<Vec<String>>,
    session_lifetime: Option<String>,
    token_max_age: Option<String>,
    #[serde(default)]
    subject: Vec<RawSubject>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSubject {
    id: String,
    claims: BTreeMap<String, RawWanted>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a string, a whole number, or true or false")]
enum RawWanted {
    Flag(bool),
    Number(i64),
    Text(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCluster {
    name: String,
    issuer: String,
    audience: Option<String>,
    ca_file: Option<PathBuf>,
    jwks_uri: Option<String>,
    jwks_file: Option<PathBuf>,
    algorithms: Option<Vec<String>>,
    service_account: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

/// Checks all issuers. `path` is that of the configuration; files are seen from its folder.
pub(super) fn issuers(raw: Vec<RawIssuer>, path: &Path) -> Result<Vec<WorkloadIssuer>, ConfigError> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let check = || {
        at_most("workload_issuer", raw.len(), ISSUERS_MAX)?;
        let checked = raw.into_iter().map(|raw| issuer(raw, folder)).collect::<Result<Vec<_>, _>>()?;
        unique("workload_issuer.name", checked.iter().map(|issuer| issuer.name.as_str()))?;
        // By its issuer alone it is known whose a token is.
        unique("workload_issuer.issuer", checked.iter().map(|issuer| issuer.keys.issuer.as_str()))?;
        Ok(checked)
    };
    check().map_err(refused(path))
}

/// Checks all clusters, as [`issuers`].
pub(super) fn clusters(raw: Vec<RawCluster>, path: &Path) -> Result<Vec<KubernetesCluster>, ConfigError> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let check = || {
        at_most("kubernetes_cluster", raw.len(), CLUSTERS_MAX)?;
        let checked = raw.into_iter().map(|raw| cluster(raw, folder)).collect::<Result<Vec<_>, _>>()?;
        unique("kubernetes_cluster.name", checked.iter().map(|cluster| cluster.name.as_str()))?;
        unique("kubernetes_cluster.issuer", checked.iter().map(|cluster| cluster.keys.issuer.as_str()))?;
        Ok(checked)
    };
    check().map_err(refused(path))
}

fn issuer(raw: RawIssuer, folder: &Path) -> Result<WorkloadIssuer, Problem> {
    let name = named("workload_issuer.name", &raw.name)?;
    issuers::https("workload_issuer.issuer", &raw.issuer)?;
    let ca_file = raw.ca_file.map(|file| issuers::authority("workload_issuer.ca_file", &folder.join(file)));
    let keys = IssuerKeys {
        issuer: raw.issuer.clone(),
        algorithms: issuers::algorithms("workload_issuer.algorithms", raw.algorithms)?,
        source: source(
            ["workload_issuer.jwks_uri", "workload_issuer.jwks_file"],
            raw.jwks_uri,
            raw.jwks_file,
            folder,
        )?,
        authority: ca_file.transpose()?,
    };
    let session_lifetime = session_lifetime("workload_issuer.session_lifetime", raw.session_lifetime)?;
    let age_max = optional_duration(
        "workload_issuer.token_max_age",
        raw.token_max_age,
        TOKEN_MAX_AGE_MIN..=TOKEN_MAX_AGE_MAX,
    )?;
    at_most("workload_issuer.subject", raw.subject.len(), SUBJECTS_MAX)?;
    let bindings = raw.subject.into_iter().map(|subject| binding(subject, &raw.issuer));
    let expected = Expected {
        audience: claim_text("workload_issuer.audience", raw.audience)?,
        age_max: age_max.unwrap_or(TOKEN_MAX_AGE_DEFAULT),
        bindings: bindings.collect::<Result<_, _>>()?,
        issuer: raw.issuer,
    };
    Ok(WorkloadIssuer { name, keys, expected, session_lifetime })
}

fn binding(raw: RawSubject, issuer: &str) -> Result<Binding, Problem> {
    const FIELD: &str = "workload_issuer.subject.claims";
    let subject = workload("workload_issuer.subject.id", &raw.id)?;
    if raw.claims.is_empty() {
        return Err((FIELD, raw.id, "is empty: every token of the issuer would be this subject".to_owned()));
    }
    at_most(FIELD, raw.claims.len(), CLAIMS_MAX)?;
    let mut claims = BTreeMap::new();
    for (written, wanted) in raw.claims {
        let path = ClaimPath::new(&claim_text(FIELD, written)?);
        if NOBODYS_CLAIMS.contains(&path.outermost()) {
            let problem = "names no workload: it is checked by itself, or is another one in each token";
            return Err((FIELD, path.to_string(), problem.to_owned()));
        }
        let wanted = match wanted {
            RawWanted::Text(text) => Wanted::Text(claim_text(FIELD, text)?),
            RawWanted::Number(number) => Wanted::Number(number),
            RawWanted::Flag(flag) => Wanted::Flag(flag),
        };
        claims.insert(path, wanted);
    }
    let open =
        OPEN_ISSUERS.iter().find(|(open, _)| issuer == *open || issuer.starts_with(&format!("{open}/")));
    let owned = open.map_or(&[][..], |(_, owned)| owned);
    if !owned.is_empty() && !claims.keys().any(|path| owned.contains(&path.outermost())) {
        let problem = format!(
            "binds none of {}: anybody can have a token of this issuer, and names can be somebody else's later",
            owned.join(", ")
        );
        return Err((FIELD, raw.id, problem));
    }
    Ok(Binding { subject, claims })
}

/// How long a session of workloads lasts.
pub(super) fn session_lifetime(field: &'static str, raw: Option<String>) -> Result<Duration, Problem> {
    let given = optional_duration(field, raw, SESSION_LIFETIME_MIN..=SESSION_LIFETIME_MAX)?;
    Ok(given.unwrap_or(SESSION_LIFETIME_DEFAULT))
}

/// Who a workload is.
pub(super) fn workload(field: &'static str, id: &str) -> Result<SubjectId, Problem> {
    match id.parse() {
        Ok(subject) if id.starts_with("workload:") => Ok(subject),
        _ => {
            let problem = "is not `workload:NAME`: what proves a workload is nobody else's".to_owned();
            Err((field, id.to_owned(), problem))
        }
    }
}

fn cluster(raw: RawCluster, folder: &Path) -> Result<KubernetesCluster, Problem> {
    let name = named("kubernetes_cluster.name", &raw.name)?;
    issuers::https("kubernetes_cluster.issuer", &raw.issuer)?;
    let ca_file =
        raw.ca_file.map(|file| issuers::authority("kubernetes_cluster.ca_file", &folder.join(file)));
    let keys = IssuerKeys {
        issuer: raw.issuer.clone(),
        algorithms: issuers::algorithms("kubernetes_cluster.algorithms", raw.algorithms)?,
        source: source(
            ["kubernetes_cluster.jwks_uri", "kubernetes_cluster.jwks_file"],
            raw.jwks_uri,
            raw.jwks_file,
            folder,
        )?,
        authority: ca_file.transpose()?,
    };
    let account = raw.service_account.unwrap_or_else(|| SERVICE_ACCOUNT_DEFAULT.to_owned());
    let (namespace, service_account) = match account.split_once('/') {
        // Kubernetes' own rule for both is that of hosts here, near enough to see a mistake.
        Some(parts) if [parts.0, parts.1].iter().all(|part| part.parse::<HostName>().is_ok()) => parts,
        _ => {
            let problem = "is not `NAMESPACE/NAME`".to_owned();
            return Err(("kubernetes_cluster.service_account", account, problem));
        }
    };
    let audience = raw.audience.unwrap_or_else(|| CLUSTER_AUDIENCE_DEFAULT.to_owned());
    let expected = ExpectedAgent {
        issuer: raw.issuer,
        audience: claim_text("kubernetes_cluster.audience", audience)?,
        namespace: namespace.to_owned(),
        service_account: service_account.to_owned(),
    };
    let written =
        raw.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
    let labels = written
        .parse()
        .map_err(|error: proto::types::Invalid| ("kubernetes_cluster.labels", written, error.problem))?;
    Ok(KubernetesCluster { name, keys, expected, labels })
}

fn source(
    [uri_field, file_field]: [&'static str; 2],
    uri: Option<String>,
    file: Option<PathBuf>,
    folder: &Path,
) -> Result<KeySource, Problem> {
    match (uri, file) {
        (None, None) => Ok(KeySource::Discovery),
        (Some(uri), None) => {
            issuers::https(uri_field, &uri)?;
            Ok(KeySource::Address(uri))
        }
        (None, Some(file)) => {
            let file = folder.join(file);
            issuers::read(file_field, &file)?;
            Ok(KeySource::File(file))
        }
        (Some(_), Some(file)) => {
            let problem = "is there beside `jwks_uri`: keys are in one place".to_owned();
            Err((file_field, file.display().to_string(), problem))
        }
    }
}

pub(super) fn named(field: &'static str, text: &str) -> Result<ProviderName, Problem> {
    text.parse().map_err(|error: proto::types::Invalid| (field, text.to_owned(), error.problem))
}

fn claim_text(field: &'static str, text: String) -> Result<String, Problem> {
    match text.is_empty() || text.len() > CLAIM_MAX_BYTES {
        true => Err((field, text, format!("is empty or longer than {CLAIM_MAX_BYTES} bytes"))),
        false => Ok(text),
    }
}

pub(super) fn at_most(field: &'static str, count: usize, most: usize) -> Result<(), Problem> {
    match count > most {
        true => Err((field, count.to_string(), format!("are too many: at most {most} are possible"))),
        false => Ok(()),
    }
}

pub(super) fn unique<'a>(field: &'static str, texts: impl Iterator<Item = &'a str>) -> Result<(), Problem> {
    let mut known = BTreeSet::new();
    for text in texts {
        if !known.insert(text) {
            return Err((field, text.to_owned(), "is there twice".to_owned()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const GITHUB: &str = "[[workload_issuer]]\nname = 'github'\nissuer = 'https://token.actions.githubusercontent.com'\naudience = 'portcullis'\n";
    const CLUSTER: &str =
        "[[kubernetes_cluster]]\nname = 'prod'\nissuer = 'https://kubernetes.default.svc'\n";

    fn parse(tables: &str) -> Result<Config, ConfigError> {
        let text = format!("listen = '127.0.0.1:7400'\ndatabase = 'cp.db'\n{tables}");
        Config::parse(&text, Path::new("cp.toml"))
    }

    #[track_caller]
    fn refused(tables: &str, words: &str) {
        let error = parse(tables).expect_err("is refused");
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        assert!(format!("{error}: {source}").contains(words), "{error}: {source}");
    }

    fn subject(id: &str, claims: &str) -> String {
        format!("{GITHUB}[[workload_issuer.subject]]\nid = '{id}'\nclaims = {{ {claims} }}")
    }

    #[test]
    fn the_least_is_enough() {
        let config = parse(&format!("{GITHUB}{CLUSTER}")).expect("usable");
        let [issuer] = &config.workload_issuers[..] else { panic!("one") };
        assert_eq!((issuer.session_lifetime.as_secs(), issuer.expected.age_max.as_secs()), (900, 3600));
        assert_eq!((&issuer.keys.source, issuer.expected.bindings.len()), (&KeySource::Discovery, 0));
        let [cluster] = &config.kubernetes_clusters[..] else { panic!("one") };
        let ExpectedAgent { audience, namespace, service_account, .. } = &cluster.expected;
        assert_eq!([audience, namespace, service_account], ["portcullis", "portcullis", "portcullis-agent"]);
        let none = parse("").expect("usable");
        assert!(none.workload_issuers.is_empty() && none.kubernetes_clusters.is_empty());
    }

    #[test]
    fn subjects_are_bound_to_claims() {
        let claims = "repository_id = '74', attempt = 1, protected = true, '/a/b' = 'x'";
        let config = parse(&subject("workload:ci/deploy", claims)).expect("usable");
        let binding = &config.workload_issuers[0].expected.bindings[0];
        assert_eq!(binding.subject.as_str(), "workload:ci/deploy");
        assert_eq!(binding.claims.get(&ClaimPath::new("attempt")), Some(&Wanted::Number(1)));
        assert_eq!(binding.claims.get(&ClaimPath::new("protected")), Some(&Wanted::Flag(true)));
        assert_eq!(binding.claims.get(&ClaimPath::new("/a/b")), Some(&Wanted::Text("x".to_owned())));
    }

    #[test]
    fn what_everybody_could_be_is_refused() {
        refused(&subject("workload:a", ""), "claims = \"workload:a\" is empty");
        refused(&subject("user:alice", "repository_id = '74'"), "is not `workload:NAME`");
        refused(&subject("workload:A b", "repository_id = '74'"), "is not `workload:NAME`");
        refused(&subject("workload:a", "repository_id = '74', aud = 'portcullis'"), "names no workload");
        // Anybody can name an environment so, and a repository that was given up.
        refused(&subject("workload:a", "environment = 'production'"), "binds none of repository_id");
        refused(&subject("workload:a", "repository = 'acme/app', sub = 'repo:acme/app'"), "binds none of");
        let gitlab = subject("workload:a", "project_path = 'acme/app'")
            .replace("token.actions.githubusercontent.com", "gitlab.com");
        refused(&gitlab, "binds none of project_id");
        let own = gitlab.replace("gitlab.com", "gitlab.example.com");
        parse(&own).expect("an issuer of one's own has no strangers");
        refused(&subject("workload:a", "repository_id = 7.5"), "a whole number");
        refused(&subject("workload:a", "repository_id = ['74']"), "a whole number");
    }

    #[test]
    fn mistakes_are_named() {
        refused(&format!("{GITHUB}audiences = 'x'"), "unknown field `audiences`");
        refused(&GITHUB.replace("https:", "http:"), "is not https");
        refused(&GITHUB.replace("'portcullis'", "''"), "workload_issuer.audience = \"\" is empty");
        refused(&format!("{GITHUB}{GITHUB}"), "name = \"github\" is there twice");
        refused(&format!("{GITHUB}{}", GITHUB.replace("'github'", "'b'")), "workload_issuer.issuer");
        refused(&format!("{GITHUB}session_lifetime = '2h'"), "from 1m to 1h");
        refused(&format!("{GITHUB}token_max_age = '2days'"), "from 1m to 1days");
        refused(&format!("{GITHUB}algorithms = ['HS256']"), "is not one of RS256");
        refused(&format!("{GITHUB}jwks_uri = 'http://a'"), "jwks_uri = \"http://a\" is not https");
        refused(&format!("{CLUSTER}jwks_file = '/nowhere'"), "cannot be read");
        refused(&format!("{CLUSTER}jwks_uri = 'https://a'\njwks_file = '/nowhere'"), "keys are in one place");
        refused(&format!("{CLUSTER}service_account = 'agent'"), "is not `NAMESPACE/NAME`");
        refused(&format!("{CLUSTER}labels = {{ a = 'b c' }}"), "kubernetes_cluster.labels");
        refused(&format!("{CLUSTER}{CLUSTER}"), "is there twice");
    }
}
