//! `[[spiffe_trust_domain]]`: whose certificates workloads sign in with.
//!
//! Owns: what an operator may write there. Must not know: certificates.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::types::{ProviderName, SubjectId};
use serde::Deserialize;
use spiffe::{SpiffeId, TrustDomain};

use super::ConfigError;
use super::issuers::{self, Problem, refused};
use super::workloads::{SUBJECTS_MAX, at_most, named, session_lifetime, unique, workload};

/// Each has a bundle that is read again and again.
const TRUST_DOMAINS_MAX: usize = 16;

/// A trust domain of workloads, as an operator set it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpiffeTrustDomain {
    /// Its name here.
    pub name: ProviderName,
    /// Its name in SPIFFE IDs.
    pub trust_domain: TrustDomain,
    /// The authorities that sign for it, in PEM. Read again when it changes.
    pub bundle_file: PathBuf,
    /// How long a session lasts, unless the certificate ends before.
    pub session_lifetime: Duration,
    /// Who its workloads are; who is none of them is refused.
    pub subjects: BTreeMap<SpiffeId, SubjectId>,
}

/// The table as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    name: String,
    trust_domain: String,
    bundle_file: PathBuf,
    session_lifetime: Option<String>,
    #[serde(default)]
    subject: Vec<RawSubject>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSubject {
    id: String,
    spiffe_id: String,
}

/// Checks all. `path` is that of the configuration; files are seen from its folder.
pub(super) fn trust_domains(raw: Vec<Raw>, path: &Path) -> Result<Vec<SpiffeTrustDomain>, ConfigError> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let check = || {
        at_most("spiffe_trust_domain", raw.len(), TRUST_DOMAINS_MAX)?;
        let checked = raw.into_iter().map(|raw| trust_domain(raw, folder)).collect::<Result<Vec<_>, _>>()?;
        unique("spiffe_trust_domain.name", checked.iter().map(|known| known.name.as_str()))?;
        unique("spiffe_trust_domain.trust_domain", checked.iter().map(|known| known.trust_domain.as_str()))?;
        Ok(checked)
    };
    check().map_err(refused(path))
}

fn trust_domain(raw: Raw, folder: &Path) -> Result<SpiffeTrustDomain, Problem> {
    let name = named("spiffe_trust_domain.name", &raw.name)?;
    let bad = |error: spiffe::SpiffeIdError| {
        ("spiffe_trust_domain.trust_domain", raw.trust_domain.clone(), format!("is no trust domain: {error}"))
    };
    let trust_domain = TrustDomain::new(&raw.trust_domain).map_err(bad)?;
    let bundle_file = folder.join(raw.bundle_file);
    issuers::read("spiffe_trust_domain.bundle_file", &bundle_file)?;
    let session_lifetime = session_lifetime("spiffe_trust_domain.session_lifetime", raw.session_lifetime)?;
    at_most("spiffe_trust_domain.subject", raw.subject.len(), SUBJECTS_MAX)?;
    let mut subjects = BTreeMap::new();
    for RawSubject { id, spiffe_id } in raw.subject {
        let subject = workload("spiffe_trust_domain.subject.id", &id)?;
        const FIELD: &str = "spiffe_trust_domain.subject.spiffe_id";
        let refuse = |problem: String| (FIELD, spiffe_id.clone(), problem);
        let parsed =
            SpiffeId::new(&spiffe_id).map_err(|error| refuse(format!("is no SPIFFE ID: {error}")))?;
        if !parsed.is_member_of(&trust_domain) || parsed.path().is_empty() {
            return Err(refuse(format!("names no workload of `{trust_domain}`")));
        }
        if subjects.insert(parsed, subject).is_some() {
            return Err(refuse("is there twice".to_owned()));
        }
    }
    Ok(SpiffeTrustDomain { name, trust_domain, bundle_file, session_lifetime, subjects })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn parse(subjects: &str, change: impl Fn(String) -> String) -> Result<Config, String> {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("bundle.pem"), "what is in it is looked at when it is used")
            .expect("written");
        let table = "[[spiffe_trust_domain]]\nname = 'prod'\ntrust_domain = 'prod.example'\nbundle_file = 'bundle.pem'\n";
        let text =
            format!("listen = '127.0.0.1:7400'\ndatabase = 'cp.db'\n{}{subjects}", change(table.to_owned()));
        Config::parse(&text, &folder.path().join("cp.toml")).map_err(|error| {
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            format!("{error}: {source}")
        })
    }

    fn subject(id: &str, spiffe_id: &str) -> String {
        format!("[[spiffe_trust_domain.subject]]\nid = '{id}'\nspiffe_id = '{spiffe_id}'\n")
    }

    #[test]
    fn ids_are_bound_whole() {
        let config =
            parse(&subject("workload:ci/deploy", "spiffe://prod.example/ns/ci/sa/deploy"), |table| table);
        let [known] = &config.expect("usable").spiffe_trust_domains[..] else { panic!("one") };
        let id = SpiffeId::new("spiffe://prod.example/ns/ci/sa/deploy").expect("valid");
        assert_eq!(known.subjects.get(&id).map(SubjectId::as_str), Some("workload:ci/deploy"));
        assert_eq!(known.session_lifetime, Duration::from_secs(900));
    }

    #[test]
    fn mistakes_are_named() {
        let refused = |subjects: &str, words: &str| {
            let error = parse(subjects, |table| table).expect_err(words);
            assert!(error.contains(words), "{error}");
        };
        refused(&subject("user:alice", "spiffe://prod.example/a"), "is not `workload:NAME`");
        refused(&subject("workload:a", "spiffe://other.example/a"), "names no workload of `prod.example`");
        refused(&subject("workload:a", "spiffe://prod.example"), "names no workload of `prod.example`");
        refused(&subject("workload:a", "spiffe://prod.example/*"), "is no SPIFFE ID");
        let twice = subject("workload:a", "spiffe://prod.example/a").repeat(2);
        refused(&twice, "is there twice");
        let changed = |from: &str, to: &str, words: &str| {
            let error = parse("", |table| table.replace(from, to)).expect_err(words);
            assert!(error.contains(words), "{error}");
        };
        changed("prod.example", "Prod Example", "is no trust domain");
        changed("bundle.pem", "nowhere.pem", "cannot be read");
        changed("name =", "session_lifetime = '2h'\nname =", "from 1m to 1h");
        let error = parse("", |table| table.repeat(2)).expect_err("twice");
        assert!(error.contains("is there twice"), "{error}");
    }
}
