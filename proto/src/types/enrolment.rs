//! How hosts get their certificates.

use std::fmt::{self, Display};
use std::str::FromStr;

use super::{HostName, Invalid, WorkloadToken, all};
use crate::wire::enrolment as wire;

/// A request for an elliptic-curve key has some 200 bytes, one for the longest RSA key in use some 1500.
const SIGNING_REQUEST_MAX_BYTES: usize = 4096;

/// Far above any certificate of ours.
const CERTIFICATE_MAX_BYTES: usize = 16 * 1024;

/// More than one only while an authority is being replaced by the next.
const AUTHORITIES_MAX: usize = 8;

/// SHA-256 of an authority's certificate (DER), written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// From the hash.
    pub fn new(sha256: [u8; 32]) -> Self {
        Self(sha256)
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl FromStr for Fingerprint {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let bytes = hex(text).ok_or_else(|| Invalid::new("fingerprint", "is not 64 hexadecimal digits"))?;
        Ok(Self(bytes))
    }
}

fn hex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 || !digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// The evidence that a host may join, and how it knows whom it joins: `pcj_SECRET.FINGERPRINT`. Its debug form does not show the
/// secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    secret: String,
    /// Of the authority that signs the control plane's certificate.
    pub authority: Fingerprint,
}

impl JoinToken {
    /// It lets people, and scanners for leaked secrets, see what it is.
    const PREFIX: &'static str = "pcj_";

    /// From 256 random bits.
    pub fn new(secret: [u8; 32], authority: Fingerprint) -> Self {
        Self { secret: Fingerprint(secret).to_string(), authority }
    }

    /// What the control plane is shown: 64 hexadecimal digits.
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// The whole of it, for the one time that it is shown.
    pub fn reveal(&self) -> String {
        format!("{}{}.{}", Self::PREFIX, self.secret, self.authority)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken(…)")
    }
}

impl FromStr for JoinToken {
    type Err = Invalid;

    /// The error does not show the text: it may be a secret that is only cut short.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let refuse = || {
            Invalid::new("join token", "is not `pcj_SECRET.FINGERPRINT`, as `portcullis host add` shows it")
        };
        let (secret, authority) = text
            .trim()
            .strip_prefix(Self::PREFIX)
            .and_then(|rest| rest.split_once('.'))
            .ok_or_else(refuse)?;
        hex(secret).ok_or_else(refuse)?;
        Ok(Self { secret: secret.to_owned(), authority: authority.parse().map_err(|_| refuse())? })
    }
}

/// What an agent sends to join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    /// What it calls itself.
    pub host: HostName,
    /// Why it may.
    pub evidence: Evidence,
    /// A request for a certificate.
    pub signing_request: SigningRequest,
}

/// Why a host may join.
#[derive(Clone, PartialEq, Eq)]
pub enum Evidence {
    /// The secret of its join token.
    JoinToken(String),
    /// The token that a Kubernetes cluster has given to its agent's pod.
    Kubernetes(WorkloadToken),
}

impl fmt::Debug for Evidence {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::JoinToken(_) => "JoinToken(…)",
            Self::Kubernetes(_) => "Kubernetes(…)",
        })
    }
}

impl TryFrom<wire::JoinRequest> for Join {
    type Error = Invalid;

    fn try_from(wire: wire::JoinRequest) -> Result<Self, Invalid> {
        Ok(Self {
            host: wire.host.parse()?,
            evidence: evidence(wire.secret, &wire.kubernetes_token)?,
            signing_request: wire.signing_request.try_into()?,
        })
    }
}

impl From<Join> for wire::JoinRequest {
    fn from(join: Join) -> Self {
        let (secret, kubernetes_token) = match join.evidence {
            Evidence::JoinToken(secret) => (secret, String::new()),
            Evidence::Kubernetes(token) => (String::new(), token.as_str().to_owned()),
        };
        Self { host: join.host.into(), secret, signing_request: join.signing_request.0, kubernetes_token }
    }
}

fn evidence(secret: String, kubernetes_token: &str) -> Result<Evidence, Invalid> {
    match (secret.is_empty(), kubernetes_token.is_empty()) {
        (false, false) => {
            Err(Invalid::new("secret", "is there beside `kubernetes_token`: one of them is evidence"))
        }
        (true, false) => {
            let token = kubernetes_token.parse::<WorkloadToken>();
            token.map(Evidence::Kubernetes).map_err(|error| Invalid::new("kubernetes_token", error.problem))
        }
        (_, true) => match hex(&secret) {
            Some(_) => Ok(Evidence::JoinToken(secret)),
            None => Err(Invalid::new("secret", "is not 64 hexadecimal digits")),
        },
    }
}

/// A PKCS #10 request in DER, of a size that one has. What it says is not checked here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SigningRequest(Vec<u8>);

impl SigningRequest {
    /// The bytes.
    pub fn der(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<Vec<u8>> for SigningRequest {
    type Error = Invalid;

    fn try_from(der: Vec<u8>) -> Result<Self, Invalid> {
        match (1..=SIGNING_REQUEST_MAX_BYTES).contains(&der.len()) {
            true => Ok(Self(der)),
            false => Err(Invalid::new(
                "signing_request",
                format_args!("has {} bytes; 1 to {SIGNING_REQUEST_MAX_BYTES} are possible", der.len()),
            )),
        }
    }
}

impl From<SigningRequest> for Vec<u8> {
    fn from(request: SigningRequest) -> Self {
        request.0
    }
}

/// What an agent keeps beside its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// In DER; not looked at here.
    pub certificate: Vec<u8>,
    /// Whom the agent believes, in DER; never empty.
    pub authorities: Vec<Vec<u8>>,
}

impl TryFrom<wire::Identity> for Identity {
    type Error = Invalid;

    fn try_from(wire: wire::Identity) -> Result<Self, Invalid> {
        let certificate = |der: Vec<u8>| match (1..=CERTIFICATE_MAX_BYTES).contains(&der.len()) {
            true => Ok(der),
            false => Err(Invalid::new(
                "",
                format_args!("has {} bytes; 1 to {CERTIFICATE_MAX_BYTES} are possible", der.len()),
            )),
        };
        if wire.authorities.is_empty() {
            return Err(Invalid::missing("authorities"));
        }
        Ok(Self {
            certificate: certificate(wire.certificate).map_err(|error| error.within("certificate"))?,
            authorities: all("authorities", wire.authorities, AUTHORITIES_MAX, certificate)?,
        })
    }
}

impl From<Identity> for wire::Identity {
    fn from(identity: Identity) -> Self {
        Self { certificate: identity.certificate, authorities: identity.authorities }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn join_tokens() {
        let token = JoinToken::new([0xab; 32], Fingerprint::new([0x01; 32]));
        let text = token.reveal();
        assert_eq!(text.len(), "pcj_".len() + 64 + 1 + 64);
        assert_eq!(text.parse(), Ok(token.clone()));
        assert_eq!(format!(" {text}\n").parse(), Ok(token.clone()));
        assert_eq!(format!("{token:?}"), "JoinToken(…)");
        let cut = &text[..text.len() - 1];
        for bad in ["", "pcj_", "pcj_.", cut, &text.to_uppercase(), &text.replace("pcj_", "pch_")] {
            let error = bad.parse::<JoinToken>().expect_err(bad).to_string();
            assert!(!error.contains("abab"), "{error}");
        }
    }

    #[test]
    fn what_joins_is_bounded() {
        let join = |evidence| Join {
            host: "db-7".parse().expect("valid"),
            evidence,
            signing_request: vec![1].try_into().expect("valid"),
        };
        let secret = join(Evidence::JoinToken("a".repeat(64)));
        let kubernetes = join(Evidence::Kubernetes("a.b.c".parse().expect("valid")));
        for join in [&secret, &kubernetes] {
            assert_eq!(Join::try_from(wire::JoinRequest::from(join.clone())).as_ref(), Ok(join));
            assert!(!format!("{join:?}").contains('a'.to_string().repeat(64).as_str()));
        }
        let none = wire::JoinRequest { secret: String::new(), ..secret.clone().into() };
        assert!(Join::try_from(none).is_err());
        let both = wire::JoinRequest { kubernetes_token: "a.b.c".to_owned(), ..secret.into() };
        assert!(Join::try_from(both).is_err());
        for size in [0, SIGNING_REQUEST_MAX_BYTES + 1] {
            assert!(SigningRequest::try_from(vec![0; size]).is_err(), "{size}");
        }
        let identity = Identity { certificate: vec![1], authorities: vec![vec![2]] };
        let check = |change: fn(&mut wire::Identity), expected: Option<&str>| {
            let mut wire = wire::Identity::from(identity.clone());
            change(&mut wire);
            let error = Identity::try_from(wire).err().map(|error| error.to_string());
            assert!(
                error.as_deref().unwrap_or_default().starts_with(expected.unwrap_or_default()),
                "{error:?}"
            );
            assert_eq!(error.is_some(), expected.is_some(), "{error:?}");
        };
        check(|_| {}, None);
        check(|identity| identity.certificate.clear(), Some("certificate: has 0 bytes"));
        check(|identity| identity.authorities.clear(), Some("authorities: is missing"));
        check(|identity| identity.authorities = vec![vec![1]; 9], Some("authorities: has 9 entries"));
        check(|identity| identity.authorities[0].clear(), Some("authorities: has 0 bytes"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,150}") {
            let _ = text.parse::<JoinToken>();
        }
    }
}
