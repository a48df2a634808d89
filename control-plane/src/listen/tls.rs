//! TLS: by which certificate the control plane is known, and whose a connection is.
//!
//! Owns: the certificates in use, and that they are replaced without a restart. Must not know: what is said on a connection.
//!
//! There are two certificates. Hosts ask for [`CONTROL_PLANE_NAME`] and get one that our authority has signed; it is made here, and
//! made anew at half of its life. Everybody else gets the one from the files that an operator has named, if any, and else the
//! same as hosts. TLS 1.3 only; nothing is resumed, so that each connection proves its certificate anew. The console has a pair of
//! its own.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use proto::CONTROL_PLANE_NAME;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, version};

use crate::clock;
use crate::config::{CertificateFiles, SpiffeTrustDomain};
use crate::identity::authority::{Authority, AuthorityError, SERVER_LIFETIME, ServerName};
use crate::identity::certificate;
use crate::identity::svid::{BundleError, TrustDomains};

/// How often the files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file of the operator's certificate cannot be used.
    #[error("cannot use `{path}`: {problem}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Ours cannot be made.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// A trust domain of workloads cannot be used.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The library could not do it.
    #[error("cannot set up TLS")]
    Setup(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The certificates in use.
#[derive(Debug)]
pub(crate) struct Certificates {
    authority: Arc<Authority>,
    names: Vec<ServerName>,
    files: Option<CertificateFiles>,
    trust_domains: Arc<TrustDomains>,
    in_use: RwLock<InUse>,
}

#[derive(Clone, Debug)]
struct InUse {
    /// Signed by our authority.
    own: Arc<CertifiedKey>,
    own_since: SystemTime,
    /// From the operator's files, as they were then.
    given: Option<(Arc<CertifiedKey>, Stamp)>,
}

/// By which a change of the two files is seen.
type Stamp = [Option<SystemTime>; 2];

impl Certificates {
    pub(crate) fn new(
        authority: Arc<Authority>,
        names: Vec<ServerName>,
        files: Option<CertificateFiles>,
        others: Vec<SpiffeTrustDomain>,
        now: SystemTime,
    ) -> Result<Self, TlsError> {
        let setup = |error: Box<dyn std::error::Error + Send + Sync>| TlsError::Setup(error);
        let roots =
            certificate::roots([authority.certificate().clone()]).map_err(|error| setup(error.into()))?;
        let hosts = certificate::client_verifier(roots).map_err(|error| setup(error.into()))?;
        let trust_domains = Arc::new(TrustDomains::new(authority.trust_domain(), hosts, others)?);
        let own = own(&authority, &names, now)?;
        let given =
            files.as_ref().map(|files| Ok::<_, TlsError>((read(files)?, stamp(files)))).transpose()?;
        let in_use = RwLock::new(InUse { own, own_since: now, given });
        Ok(Self { authority, names, files, trust_domains, in_use })
    }

    /// What each connection is served by.
    pub(crate) fn server_config(self: &Arc<Self>) -> Result<ServerConfig, TlsError> {
        let setup = |error: Box<dyn std::error::Error + Send + Sync>| TlsError::Setup(error);
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|error| setup(error.into()))?
            .with_client_cert_verifier(Arc::clone(&self.trust_domains) as Arc<dyn ClientCertVerifier>)
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// Whose certificates count besides hosts'.
    pub(crate) fn trust_domains(&self) -> Arc<TrustDomains> {
        Arc::clone(&self.trust_domains)
    }

    /// The same for browsers: also TLS 1.2, which proxies of companies still speak, and HTTP/1.1. Nobody shows a certificate.
    pub(crate) fn config_for_browsers(self: &Arc<Self>) -> Result<ServerConfig, TlsError> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])
            .map_err(|error| TlsError::Setup(error.into()))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// In which hosts are named.
    pub(crate) fn trust_domain(&self) -> &str {
        self.authority.trust_domain()
    }

    /// Replaces what is due, as long as it runs. What cannot be replaced stays in use, and is said.
    pub(crate) async fn keep_fresh(self: Arc<Self>) {
        let mut tick = tokio::time::interval(LOOK_INTERVAL);
        loop {
            tick.tick().await;
            if let Err(error) = self.refresh(clock::system_now()) {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the certificate in use stays as it is"
                );
            }
            if let Err(error) = self.trust_domains.refresh() {
                tracing::error!(error = &error as &dyn std::error::Error, "the bundle in use stays as it is");
            }
        }
    }

    fn refresh(&self, now: SystemTime) -> Result<(), TlsError> {
        let InUse { own_since, given, .. } = self.in_use();
        // A clock that was set back makes a new one, too.
        if !now.duration_since(own_since).is_ok_and(|age| age < SERVER_LIFETIME / 2) {
            let own = own(&self.authority, &self.names, now)?;
            self.replace(|in_use| (in_use.own, in_use.own_since) = (own, now));
        }
        let Some(files) = &self.files else { return Ok(()) };
        let stamp = stamp(files);
        if given.is_some_and(|(_, before)| before == stamp) {
            return Ok(());
        }
        let given = read(files)?;
        tracing::info!(certificate = %files.certificate.display(), "the certificate was replaced");
        self.replace(|in_use| in_use.given = Some((given, stamp)));
        Ok(())
    }

    fn in_use(&self) -> InUse {
        // Nothing that holds the lock can panic half way through a change.
        self.in_use.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, change: impl FnOnce(&mut InUse)) {
        change(&mut self.in_use.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn for_name(&self, name: Option<&str>) -> Arc<CertifiedKey> {
        let InUse { own, given, .. } = self.in_use();
        match given {
            Some((given, _)) if name != Some(CONTROL_PLANE_NAME) => given,
            _ => own,
        }
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.for_name(hello.server_name()))
    }
}

fn own(authority: &Authority, names: &[ServerName], now: SystemTime) -> Result<Arc<CertifiedKey>, TlsError> {
    let (certificate, key) = authority.certify_server(names, now)?;
    // The authority's own comes with it: who joins knows only its fingerprint.
    certified(vec![certificate, authority.certificate().clone()], key)
        .map_err(|error| TlsError::Setup(error.into()))
}

fn read(files: &CertificateFiles) -> Result<Arc<CertifiedKey>, TlsError> {
    let refuse = |path: &Path, problem: String| TlsError::File { path: path.to_owned(), problem };
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(&files.certificate).and_then(|certificates| certificates.collect());
    let chain = chain.map_err(|error| refuse(&files.certificate, error.to_string()))?;
    if chain.is_empty() {
        return Err(refuse(&files.certificate, "it holds no certificate".to_owned()));
    }
    let key =
        PrivateKeyDer::from_pem_file(&files.key).map_err(|error| refuse(&files.key, error.to_string()))?;
    certified(chain, key)
        .map_err(|error| refuse(&files.key, format!("with the certificate beside it: {error}")))
}

fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<CertifiedKey>, rustls::Error> {
    CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).map(Arc::new)
}

fn stamp(files: &CertificateFiles) -> Stamp {
    [&files.certificate, &files.key].map(|path| std::fs::metadata(path).and_then(|data| data.modified()).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::authority::TRUST_DOMAIN;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000 + seconds)
    }

    fn give(files: &CertificateFiles, name: &str, modified: u64) {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("made");
        std::fs::write(&files.certificate, made.cert.pem()).expect("written");
        std::fs::write(&files.key, made.signing_key.serialize_pem()).expect("written");
        touch(files, modified);
    }

    fn touch(files: &CertificateFiles, modified: u64) {
        for path in [&files.certificate, &files.key] {
            let file = std::fs::OpenOptions::new().append(true).open(path).expect("opened");
            file.set_modified(at(modified)).expect("set");
        }
    }

    #[test]
    fn certificates_are_replaced_while_they_serve() {
        let folder = tempfile::tempdir().expect("a folder");
        let authority =
            Arc::new(Authority::create(&folder.path().join("authority"), TRUST_DOMAIN, at(0)).expect("made"));
        let files = CertificateFiles {
            certificate: folder.path().join("server.pem"),
            key: folder.path().join("server.key"),
        };
        give(&files, "portcullis.example", 0);
        let certificates =
            Certificates::new(authority, Vec::new(), Some(files.clone()), Vec::new(), at(0)).expect("made");
        let served = |name| certificates.for_name(name).cert.clone();
        let (own, given) = (served(Some(CONTROL_PLANE_NAME)), served(Some("portcullis.example")));
        assert_ne!(own, given);
        assert_eq!(served(None), given, "who asks by an address is no host");
        certificates.refresh(at(60)).expect("nothing to do");
        assert_eq!((served(Some(CONTROL_PLANE_NAME)), served(None)), (own.clone(), given.clone()));

        give(&files, "portcullis.example", 70);
        certificates.refresh(at(75)).expect("replaced");
        let next = served(None);
        assert_ne!(next, given);
        std::fs::write(&files.key, "broken").expect("written");
        touch(&files, 80);
        certificates.refresh(at(85)).expect_err("cannot be used");
        assert_eq!(served(None), next, "the one that works stays");

        give(&files, "portcullis.example", 90);
        certificates.refresh(at(SERVER_LIFETIME.as_secs() / 2)).expect("renewed");
        assert_ne!(served(Some(CONTROL_PLANE_NAME)), own);
    }
}
