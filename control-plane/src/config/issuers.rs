//! What all issuers of tokens have in common: an https address, algorithms, and where their keys are.
//!
//! Owns: how those are written and checked. Must not know: what an issuer is for.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jsonwebtoken::Algorithm;

use super::{ConfigError, duration_between};

/// Far above any certificate or secret; a larger file is something else.
const FILE_MAX_BYTES: u64 = 256 * 1024;

/// Signatures that an issuer can make and that nobody who only knows its public keys can.
const ALGORITHMS: [(&str, Algorithm); 9] = [
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("EdDSA", Algorithm::EdDSA),
];
pub(super) const ALGORITHMS_DEFAULT: [Algorithm; 5] =
    [Algorithm::RS256, Algorithm::PS256, Algorithm::ES256, Algorithm::ES384, Algorithm::EdDSA];

/// An issuer, and how its signatures are verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerKeys {
    /// An https URL, exactly as it stands in tokens.
    pub issuer: String,
    /// The signatures that are taken; never one that a public key is enough for.
    pub algorithms: Vec<Algorithm>,
    /// Where the keys are.
    pub source: KeySource,
    /// PEM: the only authority whose certificates are taken for the issuer's; None: the system's.
    pub authority: Option<Vec<u8>>,
}

/// Where an issuer's keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// Where the issuer says (OpenID Connect Discovery).
    Discovery,
    /// At this https URL.
    Address(String),
    /// In this file, which somebody keeps up to date.
    File(PathBuf),
}

/// A field, what it was set to, and what is wrong with that.
pub(super) type Problem = (&'static str, String, String);

/// The error that tells of a problem in the configuration at `path`.
pub(super) fn refused(path: &Path) -> impl Fn(Problem) -> ConfigError + Copy {
    move |(field, value, problem)| ConfigError::Value { path: path.to_owned(), field, value, problem }
}

/// An https URL that discovery can be asked under: with a host, without account, query or fragment.
pub(super) fn https(field: &'static str, issuer: &str) -> Result<(), Problem> {
    let refuse = |problem: &str| Err((field, issuer.to_owned(), problem.to_owned()));
    let Ok(url) = url::Url::parse(issuer) else {
        return refuse("is not a URL such as `https://login.example.com`");
    };
    if url.scheme() != "https" {
        return refuse("is not https: keys that came over anything else prove nothing");
    }
    if !url.username().is_empty()
        || url.password().is_some()
        || url.query().is_some()
        || url.fragment().is_some()
    {
        return refuse("has an account, a query or a fragment, which an issuer cannot have");
    }
    Ok(())
}

pub(super) fn optional_duration(
    field: &'static str,
    text: Option<String>,
    bounds: std::ops::RangeInclusive<Duration>,
) -> Result<Option<Duration>, Problem> {
    let check = |text: String| duration_between(&text, &bounds).map_err(|problem| (field, text, problem));
    text.map(check).transpose()
}

pub(super) fn algorithms(field: &'static str, raw: Option<Vec<String>>) -> Result<Vec<Algorithm>, Problem> {
    let Some(names) = raw else { return Ok(ALGORITHMS_DEFAULT.into()) };
    if names.is_empty() {
        return Err((field, String::new(), "is empty: leave it out for the usual ones".to_owned()));
    }
    let known = ALGORITHMS.map(|(name, _)| name).join(", ");
    let find = |name: String| match ALGORITHMS.iter().find(|(known, _)| *known == name) {
        Some((_, algorithm)) => Ok(*algorithm),
        None => Err((field, name, format!("is not one of {known}"))),
    };
    names.into_iter().map(find).collect()
}

pub(super) fn read(field: &'static str, path: &Path) -> Result<Vec<u8>, Problem> {
    let refuse = |problem: String| (field, path.display().to_string(), problem);
    let size = std::fs::metadata(path).map_err(|error| refuse(format!("cannot be read: {error}")))?.len();
    if size > FILE_MAX_BYTES {
        return Err(refuse(format!("has {size} bytes; at most {FILE_MAX_BYTES} are possible")));
    }
    std::fs::read(path).map_err(|error| refuse(format!("cannot be read: {error}")))
}

/// The certificates of an authority, in PEM.
pub(super) fn authority(field: &'static str, path: &Path) -> Result<Vec<u8>, Problem> {
    let pem = read(field, path)?;
    let certificates = reqwest::Certificate::from_pem_bundle(&pem);
    match certificates.is_ok_and(|certificates| !certificates.is_empty()) {
        true => Ok(pem),
        false => Err((field, path.display().to_string(), "holds no certificates in PEM form".to_owned())),
    }
}
