//! Workloads with certificates of their own: X.509-SVIDs, as a SPIFFE Workload API gives them out.
//!
//! Owns: whose signature counts for which trust domain, and that bundles are read again. Must not know: sessions, what a workload
//! may do.
//!
//! Invariant: a certificate is checked with the authorities of the trust domain that it names, and with no others: who signs for
//! one trust domain cannot name a workload of another, nor a host.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::certificate::{self, Svid};
use crate::config::SpiffeTrustDomain;

/// Why a trust domain cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the bundle `{path}` of trust domain `{name}`: {problem}")]
pub struct BundleError {
    path: PathBuf,
    name: String,
    problem: String,
}

/// Whose certificates count: our authority's for hosts, and those of other trust domains for workloads.
#[derive(Debug)]
pub struct TrustDomains {
    /// In which hosts are.
    own: String,
    /// Checks what our authority has signed. It takes connections without a certificate, too.
    hosts: Arc<dyn ClientCertVerifier>,
    others: Vec<Other>,
}

/// A trust domain of workloads, and who signs for it.
#[derive(Debug)]
struct Other {
    expected: SpiffeTrustDomain,
    in_use: RwLock<InUse>,
}

#[derive(Clone, Debug)]
struct InUse {
    verifier: Arc<dyn ClientCertVerifier>,
    /// Of the bundle's file when it was read.
    modified: Option<SystemTime>,
}

impl TrustDomains {
    /// `hosts` checks certificates of `own`, our trust domain. Reads the bundles of the others.
    pub(crate) fn new(
        own: &str,
        hosts: Arc<dyn ClientCertVerifier>,
        others: Vec<SpiffeTrustDomain>,
    ) -> Result<Self, BundleError> {
        let others = others.into_iter().map(|expected| {
            let is_ours = expected.trust_domain.as_str() == own;
            let in_use = match is_ours {
                true => Err("it is the control plane's own".to_owned()),
                false => read(&expected.bundle_file),
            };
            let in_use = in_use.map_err(|problem| unusable(&expected, problem))?;
            Ok(Other { expected, in_use: RwLock::new(in_use) })
        });
        Ok(Self { own: own.to_owned(), hosts, others: others.collect::<Result<_, _>>()? })
    }

    /// Reads again what has changed. A bundle that cannot be used leaves the one in use; of several, the first is told.
    pub(crate) fn refresh(&self) -> Result<(), BundleError> {
        let mut first = Ok(());
        for Other { expected, in_use } in &self.others {
            // Nothing that holds the lock can panic half way through a change.
            let before = in_use.read().unwrap_or_else(PoisonError::into_inner).modified;
            if modified(&expected.bundle_file) == before {
                continue;
            }
            match read(&expected.bundle_file) {
                Ok(new) => {
                    tracing::info!(trust_domain = %expected.trust_domain, "the bundle was replaced");
                    *in_use.write().unwrap_or_else(PoisonError::into_inner) = new;
                }
                Err(problem) => first = first.and(Err(unusable(expected, problem))),
            }
        }
        first
    }

    /// What an operator has set up for the trust domain of a workload.
    pub(crate) fn expected(&self, svid: &Svid) -> Option<&SpiffeTrustDomain> {
        let known = self.others.iter().find(|other| svid.id.is_member_of(&other.expected.trust_domain));
        known.map(|known| &known.expected)
    }

    /// Who checks certificates of this trust domain.
    fn verifier(&self, trust_domain: &str) -> Option<Arc<dyn ClientCertVerifier>> {
        if trust_domain == self.own {
            return Some(Arc::clone(&self.hosts));
        }
        let other = self.others.iter().find(|other| other.expected.trust_domain.as_str() == trust_domain)?;
        Some(Arc::clone(&other.in_use.read().unwrap_or_else(PoisonError::into_inner).verifier))
    }
}

impl ClientCertVerifier for TrustDomains {
    fn client_auth_mandatory(&self) -> bool {
        self.hosts.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Bundles change, and names of authorities say nothing about who signs for which trust domain.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verifier = certificate::named_domain(end_entity).and_then(|domain| self.verifier(&domain));
        let verifier = verifier.ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        verifier.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.hosts.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.hosts.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.hosts.supported_verify_schemes()
    }
}

fn unusable(expected: &SpiffeTrustDomain, problem: String) -> BundleError {
    BundleError { path: expected.bundle_file.clone(), name: expected.trust_domain.to_string(), problem }
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|data| data.modified()).ok()
}

/// The authorities in a file of PEM certificates. The time is taken first: a change while it is read is seen at the next look.
fn read(path: &Path) -> Result<InUse, String> {
    let modified = modified(path);
    let certificates: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).and_then(|certificates| certificates.collect());
    let certificates = certificates.map_err(|error| error.to_string())?;
    if certificates.is_empty() {
        return Err("it holds no certificate in PEM".to_owned());
    }
    let roots = certificate::roots(certificates).map_err(|error| error.to_string())?;
    let verifier = certificate::client_verifier(roots).map_err(|error| error.to_string())?;
    Ok(InUse { verifier, modified })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};

    use super::*;
    use crate::identity::certificate::{BadCertificate, Presented, presented};

    const OWN: &str = "portcullis";

    struct Signer {
        key: KeyPair,
        params: CertificateParams,
    }

    impl Signer {
        fn new() -> Self {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            Self { key: KeyPair::generate().expect("a key"), params }
        }

        fn pem(&self) -> String {
            self.params.self_signed(&self.key).expect("signed").pem()
        }

        fn der(&self) -> CertificateDer<'static> {
            self.params.self_signed(&self.key).expect("signed").der().clone()
        }

        fn leaf(&self, uris: &[&str], usages: Vec<KeyUsagePurpose>) -> CertificateDer<'static> {
            let mut params = CertificateParams::default();
            let names = uris.iter().map(|uri| SanType::URI((*uri).try_into().expect("ASCII")));
            params.subject_alt_names = names.collect();
            params.key_usages = usages;
            let key = KeyPair::generate().expect("a key");
            let issuer = Issuer::from_params(&self.params, &self.key);
            params.signed_by(&key, &issuer).expect("signed").der().clone()
        }

        fn svid(&self, uri: &str) -> CertificateDer<'static> {
            self.leaf(&[uri], vec![KeyUsagePurpose::DigitalSignature])
        }
    }

    fn expected(name: &str, bundle_file: PathBuf) -> SpiffeTrustDomain {
        SpiffeTrustDomain {
            name: name.parse().expect("valid"),
            trust_domain: spiffe::TrustDomain::new(name).expect("valid"),
            bundle_file,
            session_lifetime: Duration::from_secs(60),
            subjects: [].into(),
        }
    }

    fn takes(domains: &TrustDomains, certificate: &CertificateDer<'_>) -> bool {
        domains.verify_client_cert(certificate, &[], UnixTime::now()).is_ok()
    }

    #[test]
    fn who_signs_for_one_trust_domain_signs_for_no_other() {
        let folder = tempfile::tempdir().expect("a folder");
        let [ours, theirs, others] = [Signer::new(), Signer::new(), Signer::new()];
        let roots = certificate::roots([ours.der()]).expect("an authority");
        let hosts = certificate::client_verifier(roots).expect("set up");
        let files = ["theirs.example", "others.example"].map(|name| folder.path().join(name));
        std::fs::write(&files[0], theirs.pem()).expect("written");
        std::fs::write(&files[1], others.pem()).expect("written");
        let [their_file, other_file] = files;
        let known =
            vec![expected("theirs.example", their_file.clone()), expected("others.example", other_file)];
        let domains = TrustDomains::new(OWN, hosts, known).expect("usable");
        let [host, job] = ["spiffe://portcullis/host/db-7", "spiffe://theirs.example/job"];
        assert!(takes(&domains, &ours.svid(host)) && takes(&domains, &theirs.svid(job)));
        for (signer, uri) in
            [(&theirs, host), (&others, job), (&ours, job), (&theirs, "spiffe://nobodys/job")]
        {
            assert!(!takes(&domains, &signer.svid(uri)), "{uri}");
        }
        assert!(!takes(&domains, &theirs.leaf(&[job, host], vec![KeyUsagePurpose::DigitalSignature])));
        assert!(!takes(&domains, &theirs.leaf(&["https://theirs.example/job"], Vec::new())));

        // Another bundle, while it serves; then one that is none.
        let next = Signer::new();
        let replace = |text: &str, seconds| {
            std::fs::write(&their_file, text).expect("written");
            let file = std::fs::OpenOptions::new().append(true).open(&their_file).expect("opened");
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).expect("set");
        };
        replace(&next.pem(), 1_795_000_000);
        domains.refresh().expect("read");
        assert!(takes(&domains, &next.svid(job)) && !takes(&domains, &theirs.svid(job)));
        replace("garbage", 1_795_000_001);
        domains.refresh().expect_err("is no bundle");
        assert!(takes(&domains, &next.svid(job)), "the one that works stays");
    }

    #[test]
    fn our_own_trust_domain_is_nobody_elses() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("bundle");
        let signer = Signer::new();
        std::fs::write(&file, signer.pem()).expect("written");
        let hosts = || {
            let roots = certificate::roots([signer.der()]).expect("an authority");
            certificate::client_verifier(roots).expect("set up")
        };
        let ours = TrustDomains::new(OWN, hosts(), vec![expected(OWN, file.clone())]).expect_err("is ours");
        assert!(ours.to_string().contains("the control plane's own"), "{ours}");
        std::fs::write(&file, "").expect("written");
        TrustDomains::new(OWN, hosts(), vec![expected("a.example", file)]).expect_err("is empty");
    }

    #[test]
    fn a_certificate_is_a_hosts_or_a_workloads() {
        let signer = Signer::new();
        let uri = "spiffe://theirs.example/ns/ci/sa/deploy";
        let found = presented(&signer.svid(uri), OWN).expect("a workload");
        assert!(matches!(&found, Presented::Workload(svid) if svid.id.to_string() == uri), "{found:?}");
        let signs =
            signer.leaf(&[uri], vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign]);
        assert_eq!(presented(&signs, OWN), Err(BadCertificate::Signs));
        assert_eq!(presented(&signer.leaf(&[uri], Vec::new()), OWN), Err(BadCertificate::Signs));
        for bad in ["spiffe://theirs.example/a/../b", "spiffe://Theirs/job", "https://theirs.example/job"] {
            assert_eq!(presented(&signer.svid(bad), OWN), Err(BadCertificate::NoWorkload), "{bad}");
        }
    }
}
