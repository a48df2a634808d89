//! The authority that signs the certificates of hosts, and the control plane's own for them.
//!
//! Owns: its key, what a certificate of ours says, how long it counts. Must not know: who may have one.
//!
//! A certificate of a host names it as `spiffe://TRUST-DOMAIN/host/NAME`, in the manner of SPIFFE's X.509-SVID: one URI, no
//! authority of its own, for clients only. Key and certificate of the authority lie in two files of one folder, beside the
//! database; whoever has the key can be any host.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use proto::CONTROL_PLANE_NAME;
use proto::types::{Fingerprint, HostName, RunPass, RunStatement, SigningRequest};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber, SigningKey,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};

use super::certificate::{self, Serial};

/// Of the authority's own certificate: what is signed by it counts no longer than it does.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Of the certificates by which hosts know the control plane; made anew, in memory, at half of it.
pub(crate) const SERVER_LIFETIME: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Clocks of hosts may be behind, or ours ahead, without keeping them out; but the middle of a life must not lie before its begin, for
/// renewal is due then.
const CLOCK_LEEWAY: Duration = Duration::from_secs(24 * 60 * 60);
const LEEWAY_OF_LIFE: u32 = 10;

/// In which hosts are named, unless `init` is told otherwise.
pub const TRUST_DOMAIN: &str = "portcullis.internal";

/// Why the authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file of it cannot be made or read.
    #[error("cannot {doing} `{path}`")]
    File {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file of it holds something else.
    #[error("`{path}` {problem}")]
    Broken {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The name for hosts is none.
    #[error("trust domain `{0}` is not 1 to 255 of a-z, 0-9, `.`, `-` and `_`")]
    TrustDomain(String),
    /// The library could not do it.
    #[error("cannot {doing}")]
    Sign {
        /// What was tried.
        doing: &'static str,
        /// Why not.
        source: rcgen::Error,
    },
}

impl AuthorityError {
    /// What to do next; empty: nothing that would help is known.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::File { doing: "read", .. } => {
                "`portcullis-control-plane init` makes it; without the one that hosts joined by, each has to join again"
            }
            Self::Broken { .. } => {
                "put it back from where it is kept safe; hosts know the control plane by it"
            }
            Self::File { .. } | Self::TrustDomain(_) | Self::Sign { .. } => "",
        }
    }
}

/// Why a host gets no certificate.
#[derive(Debug, thiserror::Error)]
#[error("signing_request: is not a certificate signing request whose signature is right")]
pub struct BadSigningRequest(#[source] rcgen::Error);

/// The authority, ready to sign.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    trust_domain: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("fingerprint", &self.fingerprint()).finish_non_exhaustive()
    }
}

/// A certificate for a host, and what is kept of it.
#[derive(Clone, Debug)]
pub struct Issued {
    /// In DER.
    pub certificate: CertificateDer<'static>,
    /// By which it is known.
    pub serial: Serial,
}

/// The files of an authority.
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    fn of(folder: &Path) -> Self {
        Self { certificate: folder.join("ca.pem"), key: folder.join("ca.key") }
    }
}

impl Authority {
    /// Makes a new one in `folder`, where there must be none. A failure leaves no file behind.
    pub fn create(folder: &Path, trust_domain: &str, now: SystemTime) -> Result<Self, AuthorityError> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
        // As SPIFFE bounds it.
        if trust_domain.is_empty() || trust_domain.len() > 255 || !trust_domain.bytes().all(allowed) {
            return Err(AuthorityError::TrustDomain(trust_domain.to_owned()));
        }
        let key = KeyPair::generate().map_err(failed("make a key"))?;
        let certificate = own_parameters(trust_domain, now)?
            .self_signed(&key)
            .map_err(failed("sign the authority's certificate"))?;
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|source| AuthorityError::File { doing: "make", path: folder.to_owned(), source })?;
        let files = Files::of(folder);
        write_new(&files.key, &key.serialize_pem())?;
        if let Err(error) = write_new(&files.certificate, &certificate.pem()) {
            // The error that matters is the first one.
            let _ = fs::remove_file(&files.key);
            return Err(error);
        }
        Self::open(folder)
    }

    /// Takes away what [`Authority::create`] has made.
    pub fn discard(folder: &Path) {
        let files = Files::of(folder);
        // What is not there need not be removed.
        let _ =
            fs::remove_file(files.certificate).and(fs::remove_file(files.key)).and(fs::remove_dir(folder));
    }

    /// Reads the one in `folder`.
    pub fn open(folder: &Path) -> Result<Self, AuthorityError> {
        let files = Files::of(folder);
        let read = |path: &Path| {
            fs::read_to_string(path).map_err(|source| AuthorityError::File {
                doing: "read",
                path: path.to_owned(),
                source,
            })
        };
        let broken = |path: &Path| {
            let path = path.to_owned();
            move |problem: String| AuthorityError::Broken { path, problem }
        };
        let key = KeyPair::from_pem(&read(&files.key)?)
            .map_err(|error| broken(&files.key)(format!("holds no private key: {error}")))?;
        let certificate = certificate::from_pem(read(&files.certificate)?.as_bytes())
            .map_err(|error| broken(&files.certificate)(error.to_string()))?;
        let trust_domain = certificate::trust_domain(&certificate, key.public_key_raw())
            .map_err(|error| broken(&files.certificate)(error.to_string()))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|error| broken(&files.certificate)(format!("holds no authority: {error}")))?;
        Ok(Self { issuer, certificate, trust_domain })
    }

    /// Its own certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// In which hosts are named.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// By which hosts that have a join token know it.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::new(Sha256::digest(&self.certificate).into())
    }

    /// A certificate for the key of this request; all else that the request says is left out.
    pub fn certify_host(
        &self,
        host: &HostName,
        request: &SigningRequest,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, BadSigningRequest> {
        let request = CertificateSigningRequestDer::from(request.der());
        let key = CertificateSigningRequestParams::from_der(&request).map_err(BadSigningRequest)?.public_key;
        let name = certificate::host_uri(&self.trust_domain, host);
        // A host's name and a trust domain are ASCII.
        let name = SanType::URI(name.try_into().map_err(BadSigningRequest)?);
        let mut parameters = leaf(vec![name], ExtendedKeyUsagePurpose::ClientAuth, lifetime, now);
        parameters.distinguished_name.push(DnType::CommonName, host.as_str());
        let serial = Serial::random();
        parameters.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
        let certificate = parameters.signed_by(&key, &self.issuer).map_err(BadSigningRequest)?;
        Ok(Issued { certificate: certificate.into(), serial })
    }

    /// Our word for the agent of a host, which checks it by the authority's certificate that it has, without asking anybody.
    ///
    /// The key that signs certificates signs it: what is signed begins with words that no certificate begins with.
    pub fn sign_run_pass(&self, statement: RunStatement) -> Result<RunPass, AuthorityError> {
        statement.sign(|signed| self.issuer.key().sign(signed)).map_err(failed("sign a run pass"))
    }

    /// A certificate of the control plane, good for the name by which hosts ask for it and for these, with its key.
    pub fn certify_server(
        &self,
        names: &[ServerName],
        now: SystemTime,
    ) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), AuthorityError> {
        let failed = failed("sign the control plane's certificate");
        let key = KeyPair::generate().map_err(&failed)?;
        let mut all = vec![SanType::DnsName(CONTROL_PLANE_NAME.try_into().map_err(&failed)?)];
        for name in names {
            all.push(match name {
                ServerName::Dns(name) => SanType::DnsName(name.as_str().try_into().map_err(&failed)?),
                ServerName::Ip(address) => SanType::IpAddress(*address),
            });
        }
        let mut parameters = leaf(all, ExtendedKeyUsagePurpose::ServerAuth, SERVER_LIFETIME, now);
        parameters.distinguished_name.push(DnType::CommonName, "Portcullis control plane");
        let certificate = parameters.signed_by(&key, &self.issuer).map_err(&failed)?;
        Ok((certificate.into(), PrivatePkcs8KeyDer::from(key.serialize_der()).into()))
    }
}

/// By what callers reach the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerName {
    /// A name of the DNS.
    Dns(String),
    /// An address.
    Ip(IpAddr),
}

fn failed(doing: &'static str) -> impl Fn(rcgen::Error) -> AuthorityError {
    move |source| AuthorityError::Sign { doing, source }
}

fn own_parameters(trust_domain: &str, now: SystemTime) -> Result<CertificateParams, AuthorityError> {
    let mut parameters = CertificateParams::default();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, format!("Portcullis authority of {trust_domain}"));
    let name = certificate::domain_uri(trust_domain).try_into().map_err(failed("name the authority"))?;
    parameters.subject_alt_names = vec![SanType::URI(name)];
    parameters.not_before = (now - CLOCK_LEEWAY).into();
    parameters.not_after = (now + AUTHORITY_LIFETIME).into();
    Ok(parameters)
}

fn leaf(
    names: Vec<SanType>,
    purpose: ExtendedKeyUsagePurpose,
    lifetime: Duration,
    now: SystemTime,
) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.is_ca = IsCa::ExplicitNoCa;
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![purpose];
    parameters.use_authority_key_identifier_extension = true;
    parameters.subject_alt_names = names;
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters.not_before = (now - CLOCK_LEEWAY.min(lifetime / LEEWAY_OF_LIFE)).into();
    parameters.not_after = (now + lifetime).into();
    parameters
}

/// Only its owner can read it, and it is on the disk.
fn write_new(path: &Path, text: &str) -> Result<(), AuthorityError> {
    let written =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
    written.map_err(|source| AuthorityError::File { doing: "write", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::UnixTime;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000 + seconds)
    }

    fn request() -> SigningRequest {
        let key = KeyPair::generate().expect("a key");
        // What it asks for besides its key is not given.
        let mut parameters = CertificateParams::new(["db-8.example".to_owned()]).expect("valid");
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let request = parameters.serialize_request(&key).expect("signed");
        request.der().to_vec().try_into().expect("in bounds")
    }

    fn authority() -> (tempfile::TempDir, Authority) {
        let folder = tempfile::tempdir().expect("a folder");
        let authority =
            Authority::create(&folder.path().join("authority"), TRUST_DOMAIN, at(0)).expect("made");
        (folder, authority)
    }

    #[test]
    fn a_host_is_what_its_certificate_says() {
        let (folder, made) = authority();
        let authority = Authority::open(&folder.path().join("authority")).expect("opened");
        assert_eq!(authority.fingerprint(), made.fingerprint());
        let host: HostName = "db-7".parse().expect("valid");
        let issued =
            authority.certify_host(&host, &request(), Duration::from_secs(60), at(0)).expect("signed");
        let known = certificate::host(&issued.certificate, TRUST_DOMAIN).expect("ours");
        assert_eq!((known.host, known.serial), (host, issued.serial));
        assert_eq!(known.not_after_unix_s, 1_795_000_060);
        let foreign = certificate::host(&issued.certificate, "example.com").expect_err("another domain");
        assert!(foreign.to_string().contains("spiffe://example.com/host/"), "{foreign}");
    }

    #[test]
    fn certificates_serve_one_purpose() {
        let (_folder, authority) = authority();
        let roots = certificate::roots([authority.certificate().clone()]).expect("an authority");
        let clients = certificate::client_verifier(roots).expect("a verifier");
        let check = |certificate: &CertificateDer<'_>, seconds: u64| {
            let now = UnixTime::since_unix_epoch(Duration::from_secs(1_795_000_000 + seconds));
            clients.verify_client_cert(certificate, &[], now).map(drop)
        };
        let host: HostName = "db-7".parse().expect("valid");
        let issued =
            authority.certify_host(&host, &request(), Duration::from_secs(60), at(0)).expect("signed");
        check(&issued.certificate, 0).expect("counts");
        check(&issued.certificate, 61).expect_err("is over");
        let (server, _) = authority.certify_server(&[], at(0)).expect("signed");
        check(&server, 0).expect_err("is for a server");
        let (_elsewhere, other) = self::authority();
        let foreign = other.certify_host(&host, &request(), Duration::from_secs(60), at(0)).expect("signed");
        check(&foreign.certificate, 0).expect_err("is another authority's");
    }

    #[test]
    fn only_requests_are_signed() {
        let (_folder, authority) = authority();
        let host: HostName = "db-7".parse().expect("valid");
        let sign = |der: Vec<u8>| {
            let request = der.try_into().expect("in bounds");
            authority.certify_host(&host, &request, Duration::from_secs(60), at(0)).map(drop)
        };
        let good = request().der().to_vec();
        sign(good.clone()).expect("signed");
        sign(b"garbage".to_vec()).expect_err("is no request");
        let mut forged = good.clone();
        let last = forged.len() - 1;
        forged[last] ^= 1;
        sign(forged).expect_err("its signature is wrong");
    }

    #[test]
    fn one_authority_a_folder() {
        let (folder, made) = authority();
        let place = folder.path().join("authority");
        let error = Authority::create(&place, TRUST_DOMAIN, at(0)).expect_err("there is one");
        assert!(matches!(error, AuthorityError::File { .. }), "{error}");
        assert_eq!(Authority::open(&place).expect("left alone").fingerprint(), made.fingerprint());
        fs::write(place.join("ca.key"), KeyPair::generate().expect("a key").serialize_pem())
            .expect("written");
        let error = Authority::open(&place).expect_err("another key").to_string();
        assert!(error.contains("is not of the key beside it"), "{error}");
        for bad in ["", "Example.com", "a/b", "ä"] {
            assert!(Authority::create(&folder.path().join("other"), bad, at(0)).is_err(), "{bad}");
        }
    }
}
