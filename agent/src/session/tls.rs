//! TLS to the control plane: whom this host believes, and by what it proves itself.
//!
//! Owns: that no byte goes to anybody who cannot prove to be the control plane. Must not know: what is said.
//!
//! Whatever the address, the other side must have a certificate for [`CONTROL_PLANE_NAME`] that one of the host's authorities has
//! signed. A host that has none yet knows the authority by the fingerprint in its join token.

use std::sync::Arc;

use proto::CONTROL_PLANE_NAME;
use proto::types::Fingerprint;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme, version,
};
use sha2::{Digest, Sha256};

use crate::identity::Identity;

/// As the control plane is asked for.
pub(super) fn control_plane_name() -> ServerName<'static> {
    ServerName::try_from(CONTROL_PLANE_NAME).expect("it is a DNS name")
}

/// For a host that has joined.
pub(super) fn with_identity(identity: &Identity) -> Result<ClientConfig, Error> {
    let roots = roots(identity.authorities.iter().cloned())?;
    let builder = builder()?.with_root_certificates(roots);
    builder.with_client_auth_cert(vec![identity.certificate.clone()], identity.key.clone_key()).map(ready)
}

/// For a host that is to join the authority with this fingerprint.
pub(super) fn with_fingerprint(authority: Fingerprint) -> Result<ClientConfig, Error> {
    let verifier = Arc::new(ByFingerprint { authority, provider: Arc::new(aws_lc_rs::default_provider()) });
    let builder = builder()?.dangerous().with_custom_certificate_verifier(verifier);
    Ok(ready(builder.with_no_client_auth()))
}

fn builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&version::TLS13])
}

fn ready(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![b"h2".to_vec()];
    // Each connection proves everything anew.
    config.resumption = rustls::client::Resumption::disabled();
    config
}

fn roots(authorities: impl IntoIterator<Item = CertificateDer<'static>>) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    authorities.into_iter().try_for_each(|authority| roots.add(authority))?;
    Ok(roots)
}

/// Believes what the authority with this fingerprint has signed, which the other side shows beside its own certificate.
#[derive(Debug)]
struct ByFingerprint {
    authority: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ByFingerprint {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let is_it = |shown: &&CertificateDer<'_>| Sha256::digest(shown)[..] == self.authority.as_bytes()[..];
        let authority = intermediates.iter().find(is_it).ok_or(CertificateError::UnknownIssuer)?;
        let roots = Arc::new(roots([authority.clone().into_owned()])?);
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&self.provider)).build();
        let verifier = verifier.map_err(|error| Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    use super::*;

    struct Authority {
        certificate: CertificateDer<'static>,
        issuer: Issuer<'static, KeyPair>,
    }

    fn authority() -> Authority {
        let key = KeyPair::generate().expect("a key");
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = parameters.self_signed(&key).expect("signed").into();
        Authority { issuer: Issuer::from_ca_cert_der(&certificate, key).expect("an authority"), certificate }
    }

    impl Authority {
        fn sign(&self, name: &str) -> CertificateDer<'static> {
            let key = KeyPair::generate().expect("a key");
            let parameters = CertificateParams::new([name.to_owned()]).expect("valid");
            parameters.signed_by(&key, &self.issuer).expect("signed").into()
        }

        fn fingerprint(&self) -> Fingerprint {
            Fingerprint::new(Sha256::digest(&self.certificate).into())
        }
    }

    #[test]
    fn a_fingerprint_is_believed_and_nothing_else() {
        let (ours, other) = (authority(), authority());
        let verifier = ByFingerprint {
            authority: ours.fingerprint(),
            provider: Arc::new(aws_lc_rs::default_provider()),
        };
        let now = UnixTime::since_unix_epoch(Duration::from_secs(1_795_000_000));
        let check = |leaf: &CertificateDer<'_>, shown: &[&Authority]| {
            let shown: Vec<_> = shown.iter().map(|authority| authority.certificate.clone()).collect();
            verifier.verify_server_cert(leaf, &shown, &control_plane_name(), &[], now).is_ok()
        };
        let leaf = ours.sign(CONTROL_PLANE_NAME);
        assert!(check(&leaf, &[&ours]));
        assert!(check(&leaf, &[&other, &ours]));
        assert!(!check(&leaf, &[]), "the authority is not shown");
        assert!(!check(&leaf, &[&other]), "another one is shown");
        assert!(!check(&other.sign(CONTROL_PLANE_NAME), &[&ours]), "signed by another one");
        assert!(!check(&other.sign(CONTROL_PLANE_NAME), &[&other]), "another one altogether");
        assert!(!check(&ours.sign("db-7.example"), &[&ours]), "for another name");
        assert!(!check(&ours.certificate, &[&ours]), "the authority itself");
    }
}
