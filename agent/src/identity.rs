//! By what this host proves itself: its keys, their certificates, and whom it believes.
//!
//! Owns: the files under `STATE_DIR/identity`, which nobody but root may read. Must not know: how a certificate is got.
//!
//! There is at most one *current* identity and one *next*, each a file that is written beside and put in place in one step. The
//! next is tried first; once the control plane has welcomed it, it takes the current one's place. If it was refused and the
//! current one was not, it is dropped. So whatever is interrupted, one is left that the control plane knows.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proto::types::{self, SigningRequest};
use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use webpki::EndEntityCert;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Why an identity cannot be used, made or kept.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read or written.
    #[error("cannot {doing} {path}", path = path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file does not hold what was written into it.
    #[error("{path} does not hold a key, its certificate and an authority", path = path.display())]
    Broken {
        /// Which file.
        path: PathBuf,
    },
    /// The control plane gave a certificate that is not of our key.
    #[error("the certificate that came is not one, or of another key")]
    OtherKey,
    /// No key can be made.
    #[error("cannot make a key")]
    Key(#[source] rcgen::Error),
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The one that was welcomed last.
    Current,
    /// The one that is to take its place.
    Next,
}

/// A key, its certificate, and whom its holder believes.
#[derive(Debug)]
pub struct Identity {
    /// Which of the two it was read as.
    pub which: Which,
    /// The key.
    pub key: PrivateKeyDer<'static>,
    /// Its certificate.
    pub certificate: CertificateDer<'static>,
    /// Of those who sign the control plane's certificate; never empty.
    pub authorities: Vec<CertificateDer<'static>>,
    /// When half of its life is over.
    pub renew_at: SystemTime,
    /// After that it does not count any more.
    pub ends_at: SystemTime,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self {
            which: self.which,
            key: self.key.clone_key(),
            certificate: self.certificate.clone(),
            authorities: self.authorities.clone(),
            renew_at: self.renew_at,
            ends_at: self.ends_at,
        }
    }
}

/// A key that waits for its certificate.
pub struct NewKey {
    key: KeyPair,
    /// What to send for it.
    pub request: SigningRequest,
}

impl NewKey {
    /// Makes one.
    pub fn make() -> Result<Self, IdentityError> {
        let key = KeyPair::generate().map_err(IdentityError::Key)?;
        // Nothing but the key counts: the control plane knows who asks.
        let request = CertificateParams::default().serialize_request(&key).map_err(IdentityError::Key)?;
        let request = request.der().to_vec().try_into();
        Ok(Self { key, request: request.map_err(|_| IdentityError::OtherKey)? })
    }
}

/// The files.
#[derive(Clone, Debug)]
pub struct Identities {
    folder: PathBuf,
}

impl Identities {
    /// Those of an agent with this state directory.
    pub fn new(state_dir: &Path) -> Self {
        Self { folder: state_dir.join("identity") }
    }

    /// What there is, in the order in which to try it: none (this host has not joined), one or two.
    pub fn read(&self) -> Result<Vec<Identity>, IdentityError> {
        let both = [Which::Next, Which::Current].into_iter().map(|which| self.read_one(which));
        both.filter_map(Result::transpose).collect()
    }

    fn read_one(&self, which: Which) -> Result<Option<Identity>, IdentityError> {
        let path = self.path(which);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(IdentityError::File { doing: "read", path, source }),
        };
        parse(which, &text).map(Some).ok_or(IdentityError::Broken { path })
    }

    /// Keeps what came for a new key, as the next identity.
    pub fn add(&self, new: &NewKey, identity: &types::Identity) -> Result<(), IdentityError> {
        let key_of = |der: &[u8]| {
            let (_, certificate) = X509Certificate::from_der(der).ok()?;
            Some(certificate.public_key().subject_public_key.data.to_vec())
        };
        if key_of(&identity.certificate).as_deref() != Some(new.key.der_bytes()) {
            return Err(IdentityError::OtherKey);
        }
        let certificates = std::iter::once(&identity.certificate).chain(&identity.authorities);
        let text = certificates.fold(new.key.serialize_pem(), |text, der| text + &pem(der));
        let path = self.path(Which::Next);
        let failed = |source| IdentityError::File { doing: "write", path: path.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder).map_err(failed)?;
        let beside = path.with_extension("new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)
            .map_err(failed)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&beside, &path).map_err(failed)?;
        self.sync()
    }

    /// Whether an authority that this host believes has signed this.
    pub fn have_signed(&self, message: &[u8], signature: &[u8]) -> Result<bool, IdentityError> {
        let known = self.read()?;
        let mut authorities = known.iter().flat_map(|identity| &identity.authorities);
        Ok(authorities.any(|authority| has_signed(authority, message, signature)))
    }

    /// The control plane has welcomed `identity`.
    pub fn welcomed(&self, identity: &Identity) -> Result<(), IdentityError> {
        let next = self.path(Which::Next);
        match identity.which {
            Which::Next => {
                let failed =
                    |source| IdentityError::File { doing: "put in place", path: next.clone(), source };
                fs::rename(&next, self.path(Which::Current)).map_err(failed)?;
            }
            // It was refused before, or it came while this one was on its way: that one stays to be tried.
            Which::Current => return Ok(()),
        }
        self.sync()
    }

    /// The control plane does not know the next identity.
    pub fn drop_next(&self) -> Result<(), IdentityError> {
        let path = self.path(Which::Next);
        fs::remove_file(&path).map_err(|source| IdentityError::File { doing: "remove", path, source })
    }

    fn path(&self, which: Which) -> PathBuf {
        self.folder.join(match which {
            Which::Current => "current.pem",
            Which::Next => "next.pem",
        })
    }

    /// Names must be there after the power has failed, too.
    fn sync(&self) -> Result<(), IdentityError> {
        let failed = |source| IdentityError::File { doing: "write", path: self.folder.clone(), source };
        fs::File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(failed)
    }
}

/// As authorities are made: ECDSA on P-256 with SHA-256, the signature in DER.
fn has_signed(authority: &CertificateDer<'_>, message: &[u8], signature: &[u8]) -> bool {
    let algorithm = webpki::aws_lc_rs::ECDSA_P256_SHA256;
    // Whose certificate it is was settled when this host joined; here it is a key.
    EndEntityCert::try_from(authority)
        .is_ok_and(|authority| authority.verify_signature(algorithm, message, signature).is_ok())
}

fn parse(which: Which, text: &[u8]) -> Option<Identity> {
    let key = PrivateKeyDer::from_pem_slice(text).ok()?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(text).collect::<Result<_, _>>().ok()?;
    let (certificate, authorities) = certificates.split_first()?;
    if authorities.is_empty() {
        return None;
    }
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let [begins, ends] = [parsed.validity().not_before, parsed.validity().not_after]
        .map(|time| u64::try_from(time.timestamp()).unwrap_or(0));
    let at = |seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    Some(Identity {
        which,
        key,
        certificate: certificate.clone(),
        authorities: authorities.to_vec(),
        renew_at: at(begins.midpoint(ends))?,
        ends_at: at(ends)?,
    })
}

fn pem(der: &[u8]) -> String {
    ::pem::encode(&::pem::Pem::new("CERTIFICATE", der))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a control plane would give for this key.
    fn given(new: &NewKey) -> types::Identity {
        let certificate = CertificateParams::default().self_signed(&new.key).expect("signed");
        let authority = rcgen::generate_simple_self_signed(["authority".to_owned()]).expect("made").cert;
        types::Identity {
            certificate: certificate.der().to_vec(),
            authorities: vec![authority.der().to_vec()],
        }
    }

    fn which(identities: &Identities) -> Vec<Which> {
        identities.read().expect("readable").iter().map(|identity| identity.which).collect()
    }

    #[test]
    fn the_next_takes_the_place_of_the_current() {
        let folder = tempfile::tempdir().expect("a folder");
        let identities = Identities::new(folder.path());
        assert_eq!(which(&identities), []);
        let first = NewKey::make().expect("made");
        identities.add(&first, &given(&first)).expect("kept");
        assert_eq!(which(&identities), [Which::Next]);
        identities.welcomed(&identities.read().expect("readable")[0]).expect("in place");
        assert_eq!(which(&identities), [Which::Current]);

        let second = NewKey::make().expect("made");
        identities.add(&second, &given(&second)).expect("kept");
        assert_eq!(which(&identities), [Which::Next, Which::Current]);
        identities.drop_next().expect("dropped");
        assert_eq!(which(&identities), [Which::Current]);
        identities.add(&second, &given(&second)).expect("kept");
        let [next, _] = identities.read().expect("readable").try_into().expect("two");
        identities.welcomed(&next).expect("in place");
        let [current] = identities.read().expect("readable").try_into().expect("one");
        assert_eq!(current.certificate, next.certificate);
        assert!(current.renew_at < current.ends_at);
    }

    #[test]
    fn what_an_authority_has_signed_is_known_by_its_certificate() {
        use rcgen::SigningKey;

        let folder = tempfile::tempdir().expect("a folder");
        let identities = Identities::new(folder.path());
        assert!(!identities.have_signed(b"word", b"").expect("readable"), "nobody is believed");
        let new = NewKey::make().expect("made");
        let authority = KeyPair::generate().expect("made");
        let its = CertificateParams::default().self_signed(&authority).expect("signed");
        let given = types::Identity { authorities: vec![its.der().to_vec()], ..given(&new) };
        identities.add(&new, &given).expect("kept");
        let check =
            |message: &[u8], signature: &[u8]| identities.have_signed(message, signature).expect("readable");
        let signature = authority.sign(b"word").expect("signed");
        assert!(check(b"word", &signature));
        assert!(!check(b"other", &signature));
        assert!(!check(b"word", &new.key.sign(b"word").expect("signed")), "a host is no authority");
        assert!(!check(b"word", b"") && !check(b"word", &[0; 64]));
    }

    #[test]
    fn what_is_broken_or_of_another_key_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let identities = Identities::new(folder.path());
        let (one, other) = (NewKey::make().expect("made"), NewKey::make().expect("made"));
        assert!(matches!(identities.add(&one, &given(&other)), Err(IdentityError::OtherKey)));
        identities.add(&one, &given(&one)).expect("kept");
        let path = identities.path(Which::Next);
        let whole = fs::read_to_string(&path).expect("readable");
        for broken in ["", "garbage", &whole[..whole.len() / 2]] {
            fs::write(&path, broken).expect("written");
            assert!(matches!(identities.read(), Err(IdentityError::Broken { .. })), "{broken:?}");
        }
    }
}
