//! Signing in: identity providers, credentials, and whom the control plane takes a caller for.

use std::fmt::{self, Display};
use std::str::FromStr;
use std::time::Duration;

use super::{
    Invalid, ProviderName, SubjectId, SubjectRole, Timestamp, all, duration_from_wire, duration_to_wire, time,
};
use crate::wire::identity as wire;

/// The most that a control plane may be configured with.
pub const PROVIDERS_MAX: usize = 16;

/// The longest ID token. Providers that put hundreds of groups into one stay below it; Entra stops at 200.
pub const ID_TOKEN_MAX_BYTES: usize = 16 * 1024;

/// The longest nonce. Ours have 43 characters.
const NONCE_MAX_BYTES: usize = 256;

/// The longest URL, client id or secret, and the most scopes: far above any that providers use.
const URL_MAX_BYTES: usize = 2048;
const CLIENT_MAX_BYTES: usize = 512;
const SCOPES_MAX: usize = 32;
const SCOPE_MAX_BYTES: usize = 256;

/// The longest session token that is looked at. Ours have 68 characters.
const SESSION_TOKEN_MAX_BYTES: usize = 256;

/// By what a subject is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Credential {
    /// A static token, which an administrator issued.
    Token,
    /// A session, got by signing in with an identity provider.
    Session,
    /// A session, got for a workload's token.
    Workload,
}

impl Credential {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Token, Self::Session, Self::Workload];

    /// As audit events and people write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Session => "session",
            Self::Workload => "workload",
        }
    }
}

impl Display for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl TryFrom<wire::Credential> for Credential {
    type Error = Invalid;

    fn try_from(wire: wire::Credential) -> Result<Self, Invalid> {
        match wire {
            wire::Credential::Token => Ok(Self::Token),
            wire::Credential::Session => Ok(Self::Session),
            wire::Credential::Workload => Ok(Self::Workload),
            wire::Credential::Unspecified => Err(Invalid::new("credential", "is missing or unknown")),
        }
    }
}

impl From<Credential> for wire::Credential {
    fn from(credential: Credential) -> Self {
        match credential {
            Credential::Token => Self::Token,
            Credential::Session => Self::Session,
            Credential::Workload => Self::Workload,
        }
    }
}

/// Whom the control plane takes a caller for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubjectIdentity {
    /// Who it is.
    pub subject: SubjectId,
    /// What it may do with this credential.
    pub role: SubjectRole,
    /// How it is known; None: by a static token.
    pub sign_in: Option<SignIn>,
}

/// A sign-in, as far as the one who signed in sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignIn {
    /// Who signed in.
    pub by: SignInBy,
    /// With which identity provider, or with a token of which issuer.
    pub provider: ProviderName,
    /// When it began.
    pub began: Timestamp,
    /// When it ends.
    pub expires: Timestamp,
}

/// Who signs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignInBy {
    /// A person, with an identity provider.
    Person,
    /// A workload, with a token that it was given where it runs.
    Workload,
}

impl SignInBy {
    /// By what the subject is recognised from then on.
    pub fn credential(self) -> Credential {
        match self {
            Self::Person => Credential::Session,
            Self::Workload => Credential::Workload,
        }
    }

    /// The other way round; None: by a static token nobody signs in.
    pub fn of(credential: Credential) -> Option<Self> {
        match credential {
            Credential::Token => None,
            Credential::Session => Some(Self::Person),
            Credential::Workload => Some(Self::Workload),
        }
    }
}

impl SubjectIdentity {
    /// By what the subject is recognised.
    pub fn credential(&self) -> Credential {
        self.sign_in.as_ref().map_or(Credential::Token, |sign_in| sign_in.by.credential())
    }
}

impl TryFrom<wire::Identity> for SubjectIdentity {
    type Error = Invalid;

    fn try_from(wire: wire::Identity) -> Result<Self, Invalid> {
        let sign_in = match SignInBy::of(wire.credential().try_into()?) {
            None => None,
            Some(by) => Some(SignIn {
                by,
                provider: wire.provider.parse()?,
                began: time::required("signed_in", wire.signed_in)?,
                expires: time::required("expires", wire.expires)?,
            }),
        };
        Ok(Self { role: wire.role().try_into()?, subject: wire.subject.parse()?, sign_in })
    }
}

impl From<SubjectIdentity> for wire::Identity {
    fn from(identity: SubjectIdentity) -> Self {
        let credential = wire::Credential::from(identity.credential()).into();
        let (provider, signed_in, expires) = match identity.sign_in {
            None => (String::new(), None, None),
            Some(sign_in) => {
                (sign_in.provider.into(), Some(sign_in.began.into()), Some(sign_in.expires.into()))
            }
        };
        Self {
            subject: identity.subject.into(),
            role: crate::wire::access::SubjectRole::from(identity.role).into(),
            credential,
            provider,
            signed_in,
            expires,
        }
    }
}

/// What a person's tool has to know of an identity provider.
#[derive(Clone, PartialEq, Eq)]
pub struct Provider {
    /// Its name here.
    pub name: ProviderName,
    /// An https URL, exactly as in the provider's tokens.
    pub issuer: String,
    /// The client that tokens are for.
    pub client_id: String,
    /// Of the client for programs on people's machines, where the provider insists on one.
    pub client_secret: Option<String>,
    /// To ask for.
    pub scopes: Vec<String>,
    /// How long ago a person may have proven who they are; None: no limit.
    pub max_auth_age: Option<Duration>,
}

impl fmt::Debug for Provider {
    /// Without the secret: whoever may know it has it from the wire.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provider")
            .field("name", &self.name)
            .field("issuer", &self.issuer)
            .finish_non_exhaustive()
    }
}

impl TryFrom<wire::Provider> for Provider {
    type Error = Invalid;

    fn try_from(wire: wire::Provider) -> Result<Self, Invalid> {
        let secret = (!wire.client_secret.is_empty()).then_some(wire.client_secret);
        let max_auth_age =
            wire.max_auth_age.map(|age| duration_from_wire("max_auth_age", Some(age))).transpose()?;
        Ok(Self {
            name: wire.name.parse()?,
            issuer: visible("issuer", wire.issuer, URL_MAX_BYTES)?,
            client_id: visible("client_id", wire.client_id, CLIENT_MAX_BYTES)?,
            client_secret: secret
                .map(|secret| visible("client_secret", secret, CLIENT_MAX_BYTES))
                .transpose()?,
            scopes: all("scopes", wire.scopes, SCOPES_MAX, |scope| visible("", scope, SCOPE_MAX_BYTES))?,
            max_auth_age,
        })
    }
}

impl From<Provider> for wire::Provider {
    fn from(provider: Provider) -> Self {
        Self {
            name: provider.name.into(),
            issuer: provider.issuer,
            client_id: provider.client_id,
            client_secret: provider.client_secret.unwrap_or_default(),
            scopes: provider.scopes,
            max_auth_age: provider.max_auth_age.map(duration_to_wire),
        }
    }
}

/// An ID token that somebody wants to sign in with. Nothing of it is proven yet.
#[derive(Clone, PartialEq, Eq)]
pub struct NewSignIn {
    /// Whose token it is said to be.
    pub provider: ProviderName,
    /// In compact form: visible ASCII, at most [`ID_TOKEN_MAX_BYTES`].
    pub id_token: String,
    /// What the tool sent along; None: nothing.
    pub nonce: Option<String>,
    /// The session token that the new one takes the place of.
    pub replaces: Option<String>,
}

impl fmt::Debug for NewSignIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewSignIn").field("provider", &self.provider).finish_non_exhaustive()
    }
}

impl TryFrom<wire::SignInRequest> for NewSignIn {
    type Error = Invalid;

    fn try_from(wire: wire::SignInRequest) -> Result<Self, Invalid> {
        let optional = |field, text: String, max| match text.is_empty() {
            true => Ok(None),
            false => visible(field, text, max).map(Some),
        };
        Ok(Self {
            provider: wire.provider.parse()?,
            id_token: visible("id_token", wire.id_token, ID_TOKEN_MAX_BYTES)?,
            nonce: optional("nonce", wire.nonce, NONCE_MAX_BYTES)?,
            replaces: optional("replaces", wire.replaces, SESSION_TOKEN_MAX_BYTES)?,
        })
    }
}

/// A token that a workload wants to sign in with. Nothing of it is proven yet.
#[derive(Clone, PartialEq, Eq)]
pub struct WorkloadToken(String);

impl WorkloadToken {
    /// In compact form: visible ASCII, at most [`ID_TOKEN_MAX_BYTES`].
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for WorkloadToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WorkloadToken(…)")
    }
}

impl FromStr for WorkloadToken {
    type Err = Invalid;

    /// White space around it, as files have it, does not count. The error does not show the text.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        visible("token", text.trim().to_owned(), ID_TOKEN_MAX_BYTES).map(Self)
    }
}

impl TryFrom<wire::SignInWorkloadRequest> for WorkloadToken {
    type Error = Invalid;

    fn try_from(wire: wire::SignInWorkloadRequest) -> Result<Self, Invalid> {
        wire.token.parse()
    }
}

impl From<WorkloadToken> for wire::SignInWorkloadRequest {
    fn from(token: WorkloadToken) -> Self {
        Self { token: token.0 }
    }
}

/// A text of visible ASCII that is not empty. What does not pass is not quoted: it may be a secret.
fn visible(field: &str, text: String, max_bytes: usize) -> Result<String, Invalid> {
    if text.is_empty() {
        return Err(Invalid::missing(field));
    }
    match text.len() <= max_bytes && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(text),
        false => Err(Invalid::new(
            field,
            format_args!("has {} bytes; it is at most {max_bytes} visible ASCII characters", text.len()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_survive_the_wire() {
        let moment = |ms| Timestamp::from_unix_ms(ms).expect("in range");
        let sign_in = |by| SignIn {
            by,
            provider: "corp".parse().expect("valid"),
            began: moment(1_795_000_000_000),
            expires: moment(1_795_003_600_000),
        };
        for sign_in in [None, Some(sign_in(SignInBy::Person)), Some(sign_in(SignInBy::Workload))] {
            let subject = "user:alice@example.com".parse().expect("valid");
            let identity = SubjectIdentity { subject, role: SubjectRole::Approver, sign_in };
            assert_eq!(SubjectIdentity::try_from(wire::Identity::from(identity.clone())), Ok(identity));
        }
        assert!(SubjectIdentity::try_from(wire::Identity::default()).is_err());
    }

    #[test]
    fn providers_survive_the_wire_and_keep_their_secret() {
        let provider = Provider {
            name: "corp".parse().expect("valid"),
            issuer: "https://login.example.com/realms/corp".to_owned(),
            client_id: "portcullis".to_owned(),
            client_secret: Some("hush".to_owned()),
            scopes: vec!["openid".to_owned()],
            max_auth_age: Some(Duration::from_secs(3600)),
        };
        assert!(!format!("{provider:?}").contains("hush"));
        assert_eq!(Provider::try_from(wire::Provider::from(provider.clone())), Ok(provider));
    }

    #[test]
    fn workload_tokens_are_bounded_and_not_shown() {
        let token: WorkloadToken = " a.b.c\n".parse().expect("valid");
        assert_eq!((token.as_str(), format!("{token:?}").as_str()), ("a.b.c", "WorkloadToken(…)"));
        for bad in ["", " ", "hush hush", "ä", &"x".repeat(ID_TOKEN_MAX_BYTES + 1)] {
            let error = bad.parse::<WorkloadToken>().expect_err("is refused");
            assert!(!error.to_string().contains("hush"), "{error}");
        }
    }

    #[test]
    fn sign_ins_are_bounded() {
        let wire = |id_token: &str, nonce: &str| wire::SignInRequest {
            provider: "corp".to_owned(),
            id_token: id_token.to_owned(),
            nonce: nonce.to_owned(),
            replaces: String::new(),
        };
        assert!(NewSignIn::try_from(wire("a.b.c", "")).is_ok());
        for (id_token, nonce) in [
            ("", ""),
            ("a b", ""),
            ("ä", ""),
            (&*"x".repeat(ID_TOKEN_MAX_BYTES + 1), ""),
            ("a.b.c", &*"x".repeat(NONCE_MAX_BYTES + 1)),
        ] {
            let error = NewSignIn::try_from(wire(id_token, nonce)).expect_err("is refused");
            assert!(!error.to_string().contains("a b"), "{error}");
        }
    }
}
