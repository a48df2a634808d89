//! From what somebody shows to a session: the one road of tools and browsers.
//!
//! Owns: the order on that road, and the words for whoever is turned away on it. Must not know: how they came, how they are told.

use std::error::Error;
use std::time::Duration;

use proto::status::ErrorKind;
use proto::types::{ProviderName, SubjectIdentity, Timestamp};

use crate::clock::{self, Reading};
use crate::identity::oidc::{self, Known, TokenError};
use crate::identity::workloads::NobodyVouches;
use crate::identity::{Svid, TokenHash};
use crate::rpc::Gate;
use crate::rules::Refusal;
use crate::rules::claims::{self, ClaimsError, Expected};
use crate::rules::workload::{self, WorkloadError};
use crate::store::{Entry, HeldBy, StoreError, WorkloadEntry};

/// Why somebody is not signed in.
#[derive(Debug)]
pub(crate) enum NotSignedIn {
    Refusal(Refusal),
    Token(TokenError),
    Claims(ClaimsError),
    Workload(WorkloadError),
    NobodyVouches,
    /// Our fault, or what is said of nobody in particular.
    Failed(StoreError),
}

/// What is shown of an ID token.
pub(crate) struct Shown<'a> {
    pub(crate) known: &'a Known,
    /// What the token has to say.
    pub(crate) expected: &'a Expected,
    pub(crate) id_token: &'a str,
    pub(crate) nonce: Option<&'a str>,
    /// Of the new session's secret.
    pub(crate) token: TokenHash,
    pub(crate) held_by: HeldBy,
    /// The session that the new one takes the place of.
    pub(crate) replaces: Option<TokenHash>,
}

impl From<StoreError> for NotSignedIn {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Refused(refusal) => Self::Refusal(refusal),
            error => Self::Failed(error),
        }
    }
}

impl From<NobodyVouches> for NotSignedIn {
    fn from(nobody: NobodyVouches) -> Self {
        match nobody {
            NobodyVouches::Unknown => Self::NobodyVouches,
            NobodyVouches::TooMany => Self::Refusal(Refusal::TooManySignIns),
        }
    }
}

impl NotSignedIn {
    /// As one word, for the record; None: it is no refusal.
    pub(crate) fn reason(&self) -> Option<&'static str> {
        match self {
            Self::Refusal(Refusal::UnknownProvider(_)) => Some("unknown_provider"),
            Self::Refusal(Refusal::IdTokenUsed | Refusal::TokenUsedUp(_)) => Some("replayed"),
            Self::Refusal(Refusal::NotLetIn(_)) => Some("not_let_in"),
            Self::Refusal(Refusal::Disabled(_)) => Some("disabled"),
            Self::Refusal(Refusal::OtherAccount { .. } | Refusal::OtherName { .. }) => {
                Some("bound_elsewhere")
            }
            Self::Refusal(Refusal::TooManySignIns) => Some("too_many"),
            Self::Refusal(_) => Some("refused"),
            Self::Token(error) => Some(error.reason()),
            Self::Claims(error) => Some(error.reason()),
            Self::Workload(error) => Some(error.reason()),
            Self::NobodyVouches => Some("unknown_provider"),
            Self::Failed(_) => None,
        }
    }

    /// What sort of error it is.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Refusal(refusal) => refusal.kind(),
            Self::Token(error) => error.kind(),
            Self::Claims(_) | Self::NobodyVouches => ErrorKind::Unauthenticated,
            Self::Workload(error) => error.kind(),
            Self::Failed(error) => error.kind(),
        }
    }

    /// What whoever it is about is told. What is our fault goes to our log whole.
    pub(crate) fn message(&self) -> String {
        let refused = |error: &dyn std::fmt::Display| format!("the token is refused: {error}");
        match self {
            Self::Refusal(refusal) => refusal.to_string(),
            Self::Token(error) => refused(error),
            Self::Claims(error) => refused(error),
            Self::Workload(error) => refused(error),
            Self::NobodyVouches => refused(&"it is of no issuer that is known here"),
            Self::Failed(error) => {
                if error.kind() == ErrorKind::Internal {
                    tracing::error!(error = error as &dyn Error, "a sign-in failed");
                }
                error.to_string()
            }
        }
    }

    /// What to do next; empty: nothing that would help is known.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::Refusal(refusal) => refusal.hint(),
            Self::Token(error) => error.hint(),
            Self::Claims(error) => error.hint(),
            Self::Workload(error) => error.hint(),
            Self::NobodyVouches => {
                "an operator compares `issuer` of `[[workload_issuer]]` in the control plane's configuration with the token's `iss`"
            }
            Self::Failed(error) => error.hint(),
        }
    }
}

impl Gate {
    /// The provider, if one more may try with it.
    pub(crate) fn provider(&self, name: &ProviderName) -> Result<&Known, NotSignedIn> {
        let unknown = || NotSignedIn::Refusal(Refusal::UnknownProvider(name.clone()));
        let known = self.providers.get(name).ok_or_else(unknown)?;
        match self.providers.limits.allow_sign_in(name) {
            true => Ok(known),
            false => Err(NotSignedIn::Refusal(Refusal::TooManySignIns)),
        }
    }

    /// Begins a person's session, if the ID token is worth one.
    pub(crate) async fn sign_in(&self, shown: Shown<'_>) -> Result<SubjectIdentity, NotSignedIn> {
        let Shown { known, expected, id_token, nonce, token, held_by, replaces } = shown;
        let claims = known.issuer.claims(id_token).await.map_err(NotSignedIn::Token)?;
        // The provider may have taken its time with its keys. What it has dated is compared with the wall clock, and kept by ours.
        let clocks = clock::read();
        let proven = claims::check(&claims, expected, nonce, clocks.wall).map_err(NotSignedIn::Claims)?;
        let proven = claims::Proven {
            usable_until: clocks.not_before(proven.usable_until),
            proven: proven.proven.map(|date| clocks.dated(date)),
            ..proven
        };
        let entry = Entry {
            proven: &proven,
            provider: &known.provider.name,
            expected,
            lifetime: known.session_lifetime,
            id_token: oidc::mark(id_token),
            token,
            held_by,
            replaces,
        };
        Ok(self.store.sign_in(&entry, clocks.now).await?)
    }

    /// Begins a workload's session, if its token is worth one.
    pub(crate) async fn sign_in_workload(
        &self,
        shown: &str,
        token: TokenHash,
    ) -> Result<SubjectIdentity, NotSignedIn> {
        let vouching = self.vouchers.issuer(shown)?;
        let claims = vouching.issuer.claims(shown).await.map_err(NotSignedIn::Token)?;
        let clocks = clock::read();
        let proven = workload::check(&claims, &vouching.expected, clocks.wall);
        let proven = proven.map_err(NotSignedIn::Workload)?;
        let proven = workload::Proven { usable_until: clocks.not_before(proven.usable_until), ..proven };
        let entry = WorkloadEntry {
            proven: &proven,
            issuer: &vouching.name,
            lifetime: vouching.session_lifetime,
            used: Some(oidc::mark(shown)),
            token,
        };
        Ok(self.store.sign_in_workload(&entry, clocks.now).await?)
    }

    /// The same of a workload that its connection's certificate names; None: it has shown none.
    pub(crate) async fn sign_in_certified(
        &self,
        svid: Option<&Svid>,
        token: TokenHash,
    ) -> Result<SubjectIdentity, NotSignedIn> {
        let Reading { now, wall, .. } = clock::read();
        let no_certificate = || NotSignedIn::Workload(WorkloadError::NoCertificate);
        let svid = svid.ok_or_else(no_certificate)?;
        let known = self.trust_domains.expected(svid).ok_or_else(no_certificate)?;
        // One that is out of range is over.
        let not_after = Timestamp::from_unix_ms(svid.not_after_unix_s.saturating_mul(1000)).unwrap_or(wall);
        let proven = workload::check_id(&svid.id, not_after, &known.subjects, wall);
        let proven = proven.map_err(NotSignedIn::Workload)?;
        let left = Duration::from_millis(u64::try_from(not_after.unix_ms() - wall.unix_ms()).unwrap_or(0));
        let entry = WorkloadEntry {
            proven: &proven,
            issuer: &known.name,
            lifetime: known.session_lifetime.min(left),
            used: None,
            token,
        };
        Ok(self.store.sign_in_workload(&entry, now).await?)
    }
}
