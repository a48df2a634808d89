//! What a certificate says: which host, by which serial number, or which workload; until when.
//!
//! Owns: reading certificates. Must not know: which of them still count.

use std::fmt::{self, Display};
use std::sync::Arc;

use proto::types::HostName;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use spiffe::SpiffeId;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Why a certificate says nothing that counts here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCertificate {
    /// It is none.
    #[error("is not a certificate")]
    Unreadable,
    /// It names something else.
    #[error("does not name one host as `spiffe://{0}/host/NAME`")]
    NoHost(String),
    /// It names neither a host nor a workload.
    #[error("does not name one workload by its SPIFFE ID")]
    NoWorkload,
    /// Who signs others is no workload.
    #[error("may sign other certificates")]
    Signs,
    /// Ours have 16 bytes.
    #[error("has a serial number that none of ours has")]
    Serial,
    /// It is not the authority's.
    #[error("does not name a trust domain as `spiffe://NAME`")]
    NoTrustDomain,
    /// Another key's.
    #[error("is not of the key beside it")]
    OtherKey,
}

/// By which a certificate of ours is known: 16 bytes, of which 126 bits are random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Serial([u8; 16]);

impl Serial {
    /// A new one.
    pub fn random() -> Self {
        let mut bytes: [u8; 16] = rand::random();
        // A positive number of exactly 16 bytes, so that DER writes no other ones.
        bytes[0] = (bytes[0] & 0x7f) | 0x40;
        Self(bytes)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Whose a connection is, by the certificate that it presented and that the authority has signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostCertificate {
    /// Which host.
    pub host: HostName,
    /// Which of its certificates.
    pub serial: Serial,
    /// After this second it counts no longer.
    pub not_after_unix_s: i64,
}

/// Which workload a connection is, by the X.509-SVID that it presented and that an authority of its trust domain has signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Svid {
    /// Which workload.
    pub id: SpiffeId,
    /// After this second it counts no longer.
    pub not_after_unix_s: i64,
}

/// Whose a certificate is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presented {
    /// A host's, which our authority has signed.
    Host(HostCertificate),
    /// A workload's, of another trust domain.
    Workload(Svid),
}

/// The name of a trust domain, as a URI.
pub(super) fn domain_uri(trust_domain: &str) -> String {
    format!("spiffe://{trust_domain}")
}

/// The name of a host, as a URI.
pub(super) fn host_uri(trust_domain: &str, host: &HostName) -> String {
    format!("{}/host/{host}", domain_uri(trust_domain))
}

/// The first certificate of a PEM text.
pub(super) fn from_pem(text: &[u8]) -> Result<CertificateDer<'static>, BadCertificate> {
    CertificateDer::from_pem_slice(text).map_err(|_| BadCertificate::Unreadable)
}

/// Which host a certificate names. That it is signed, and counts now, was checked before.
pub fn host(certificate: &CertificateDer<'_>, trust_domain: &str) -> Result<HostCertificate, BadCertificate> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| BadCertificate::Unreadable)?;
    let no_host = || BadCertificate::NoHost(trust_domain.to_owned());
    let name = only_uri(&parsed).ok_or_else(no_host)?;
    let name = name.strip_prefix(&domain_uri(trust_domain)).and_then(|path| path.strip_prefix("/host/"));
    let host = name.and_then(|name| name.parse().ok()).ok_or_else(no_host)?;
    let serial = parsed.raw_serial().try_into().map_err(|_| BadCertificate::Serial)?;
    Ok(HostCertificate {
        host,
        serial: Serial(serial),
        not_after_unix_s: parsed.validity().not_after.timestamp(),
    })
}

/// Whose a certificate is that was checked with the authorities of the trust domain that it names. `trust_domain`: ours.
pub fn presented(certificate: &CertificateDer<'_>, trust_domain: &str) -> Result<Presented, BadCertificate> {
    if named_domain(certificate).as_deref() == Some(trust_domain) {
        return host(certificate, trust_domain).map(Presented::Host);
    }
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| BadCertificate::Unreadable)?;
    let uri = only_uri(&parsed).ok_or(BadCertificate::NoWorkload)?;
    // As it is written: two ways to write one id would be two to the eye.
    let id = SpiffeId::new(&uri).ok().filter(|id| id.to_string() == uri).ok_or(BadCertificate::NoWorkload)?;
    // SPIFFE X.509-SVID, 4.3: a leaf signs nothing. That it is no authority, webpki has seen.
    let usage = parsed.key_usage().map_err(|_| BadCertificate::Unreadable)?;
    if usage.is_none_or(|usage| usage.value.key_cert_sign() || usage.value.crl_sign()) {
        return Err(BadCertificate::Signs);
    }
    Ok(Presented::Workload(Svid { id, not_after_unix_s: parsed.validity().not_after.timestamp() }))
}

/// The trust domain of the one SPIFFE ID that a certificate names, whoever has signed it; None: it names none.
pub(super) fn named_domain(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let uri = only_uri(&parsed)?;
    Some(uri.strip_prefix("spiffe://")?.split('/').next()?.to_owned())
}

/// The trust domain that an authority's certificate names, which must be of this public key.
pub(super) fn trust_domain(
    certificate: &CertificateDer<'_>,
    public_key: &[u8],
) -> Result<String, BadCertificate> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| BadCertificate::Unreadable)?;
    if &*parsed.public_key().subject_public_key.data != public_key {
        return Err(BadCertificate::OtherKey);
    }
    let domain = only_uri(&parsed).and_then(|uri| uri.strip_prefix("spiffe://").map(str::to_owned));
    domain.filter(|domain| !domain.contains('/')).ok_or(BadCertificate::NoTrustDomain)
}

/// The URI that a certificate names, if it names one and nothing else.
fn only_uri(certificate: &X509Certificate<'_>) -> Option<String> {
    let names = certificate.subject_alternative_name().ok()??;
    match names.value.general_names.as_slice() {
        [GeneralName::URI(uri)] => Some((*uri).to_owned()),
        _ => None,
    }
}

/// These authorities, and no others.
pub(crate) fn roots(
    authorities: impl IntoIterator<Item = CertificateDer<'static>>,
) -> Result<Arc<RootCertStore>, rustls::Error> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority)?;
    }
    Ok(Arc::new(roots))
}

/// Takes certificates that these authorities signed, and connections without one: people have none.
pub(crate) fn client_verifier(
    roots: Arc<RootCertStore>,
) -> Result<Arc<dyn ClientCertVerifier>, rustls::server::VerifierBuilderError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    WebPkiClientVerifier::builder_with_provider(roots, provider).allow_unauthenticated().build()
}
