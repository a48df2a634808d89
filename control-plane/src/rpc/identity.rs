//! `IdentityService`: signing in with an identity provider or as a workload, and out again.

use proto::status::{ErrorKind, status};
use proto::types::{
    Challenge, HostName, NewSignIn, ProviderName, RunStatement, SubjectIdentity, WorkloadToken,
};
use proto::wire::identity as wire;
use proto::wire::identity::identity_service_server::IdentityService;
use tonic::{Request, Response, Status};

use super::{Gate, admitted, failed, invalid};
use crate::clock;
use crate::identity::oidc::{self, Known, TokenError};
use crate::identity::workloads::NobodyVouches;
use crate::identity::{Token, TokenHash};
use crate::rules::Refusal;
use crate::rules::calls::Method;
use crate::rules::claims::{self, ClaimsError};
use crate::rules::throttle::Key;
use crate::rules::workload::{self, WorkloadError};
use crate::store::{Entry, StoreError, WorkloadEntry};

/// Answers for those who sign in.
#[derive(Clone, Debug)]
pub(crate) struct SignIns(pub(crate) Gate);

/// Why somebody is not signed in.
#[derive(Debug)]
enum NotSignedIn {
    Refusal(Refusal),
    Token(TokenError),
    Claims(ClaimsError),
    Workload(WorkloadError),
    NobodyVouches,
    /// Our fault, or what is said of nobody in particular.
    Failed(StoreError),
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
    fn reason(&self) -> Option<&'static str> {
        match self {
            Self::Refusal(Refusal::UnknownProvider(_)) => Some("unknown_provider"),
            Self::Refusal(Refusal::IdTokenUsed | Refusal::TokenUsedUp(_)) => Some("replayed"),
            Self::Refusal(Refusal::NotLetIn(_)) => Some("not_let_in"),
            Self::Refusal(Refusal::TooManySignIns) => Some("too_many"),
            Self::Refusal(_) => Some("refused"),
            Self::Token(error) => Some(error.reason()),
            Self::Claims(error) => Some(error.reason()),
            Self::Workload(error) => Some(error.reason()),
            Self::NobodyVouches => Some("unknown_provider"),
            Self::Failed(_) => None,
        }
    }

    fn status(&self) -> Status {
        let refused = |error: &dyn std::fmt::Display| format!("the token is refused: {error}");
        match self {
            Self::Refusal(refusal) => status(refusal.kind(), refusal.to_string(), refusal.hint()),
            Self::Token(error) => status(error.kind(), refused(error), error.hint()),
            Self::Claims(error) => status(ErrorKind::Unauthenticated, refused(error), error.hint()),
            Self::Workload(error) => status(error.kind(), refused(error), error.hint()),
            Self::NobodyVouches => status(
                ErrorKind::Unauthenticated,
                refused(&"it is of no issuer that is known here"),
                "an operator compares `issuer` of `[[workload_issuer]]` in the control plane's configuration with the token's `iss`",
            ),
            Self::Failed(error) => failed(error),
        }
    }
}

impl SignIns {
    async fn enter(&self, new: &NewSignIn, token: &Token) -> Result<SubjectIdentity, NotSignedIn> {
        let known = self.known(&new.provider)?;
        let claims = known.issuer.claims(&new.id_token).await.map_err(NotSignedIn::Token)?;
        // The provider may have taken its time with its keys.
        let now = clock::now();
        let proven = claims::check(&claims, &known.expected, new.nonce.as_deref(), now);
        let proven = proven.map_err(NotSignedIn::Claims)?;
        let entry = Entry {
            proven: &proven,
            provider: &known.provider.name,
            expected: &known.expected,
            lifetime: known.session_lifetime,
            id_token: oidc::mark(&new.id_token),
            token: token.hash(),
            replaces: new.replaces.as_deref().map(TokenHash::of),
        };
        Ok(self.0.store.sign_in(&entry, now).await?)
    }

    /// The provider, if one more may try with it.
    fn known(&self, name: &ProviderName) -> Result<&Known, NotSignedIn> {
        let providers = &self.0.providers;
        let unknown = || NotSignedIn::Refusal(Refusal::UnknownProvider(name.clone()));
        let known = providers.get(name).ok_or_else(unknown)?;
        match providers.limits.allow_sign_in(name) {
            true => Ok(known),
            false => Err(NotSignedIn::Refusal(Refusal::TooManySignIns)),
        }
    }

    async fn enter_workload(
        &self,
        shown: &WorkloadToken,
        token: &Token,
    ) -> Result<SubjectIdentity, NotSignedIn> {
        let vouching = self.0.vouchers.issuer(shown.as_str())?;
        let claims = vouching.issuer.claims(shown.as_str()).await.map_err(NotSignedIn::Token)?;
        let now = clock::now();
        let proven = workload::check(&claims, &vouching.expected, now).map_err(NotSignedIn::Workload)?;
        let entry = WorkloadEntry {
            proven: &proven,
            issuer: &vouching.name,
            lifetime: vouching.session_lifetime,
            used: oidc::mark(shown.as_str()),
            token: token.hash(),
        };
        Ok(self.0.store.sign_in_workload(&entry, now).await?)
    }

    /// Puts the refusal on record, and gives what the caller is told.
    async fn refuse(&self, method: Method, whose: &str, error: &NotSignedIn) -> Status {
        let status = error.status();
        if let Some(reason) = error.reason() {
            let detail = format!("{whose}: {}", status.message());
            let key = Key { caller: None, reason, what: method.as_str() };
            self.0.put_on_record(key, &detail).await;
        }
        status
    }
}

#[tonic::async_trait]
impl IdentityService for SignIns {
    async fn list_providers(
        &self,
        request: Request<wire::ListProvidersRequest>,
    ) -> Result<Response<wire::ListProvidersResponse>, Status> {
        admitted(&request)?;
        let providers = self.0.providers.iter().map(|known| known.provider.clone().into()).collect();
        Ok(Response::new(wire::ListProvidersResponse { providers }))
    }

    async fn sign_in(
        &self,
        request: Request<wire::SignInRequest>,
    ) -> Result<Response<wire::SignInResponse>, Status> {
        admitted(&request)?;
        let new: NewSignIn = request.into_inner().try_into().map_err(invalid)?;
        let token = Token::for_session();
        match self.enter(&new, &token).await {
            Ok(identity) => Ok(Response::new(wire::SignInResponse {
                token: token.reveal(),
                identity: Some(identity.into()),
            })),
            Err(error) => {
                let whose = format!("provider `{}`", new.provider);
                Err(self.refuse(Method::SignIn, &whose, &error).await)
            }
        }
    }

    async fn sign_in_workload(
        &self,
        request: Request<wire::SignInWorkloadRequest>,
    ) -> Result<Response<wire::SignInWorkloadResponse>, Status> {
        admitted(&request)?;
        let shown: WorkloadToken = request.into_inner().try_into().map_err(invalid)?;
        let token = Token::for_session();
        match self.enter_workload(&shown, &token).await {
            Ok(identity) => Ok(Response::new(wire::SignInWorkloadResponse {
                token: token.reveal(),
                identity: Some(identity.into()),
            })),
            Err(error) => Err(self.refuse(Method::SignInWorkload, "a workload", &error).await),
        }
    }

    async fn sign_out(
        &self,
        request: Request<wire::SignOutRequest>,
    ) -> Result<Response<wire::SignOutResponse>, Status> {
        let caller = admitted(&request)?;
        match self.0.store.sign_out(caller.token()?, &caller.subject()?, clock::now()).await {
            Ok(()) => Ok(Response::new(wire::SignOutResponse {})),
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn who_am_i(
        &self,
        request: Request<wire::WhoAmIRequest>,
    ) -> Result<Response<wire::WhoAmIResponse>, Status> {
        let caller = admitted(&request)?;
        let session = self.0.store.session(caller.token()?, clock::now()).await;
        let sign_in = match session {
            Ok(sign_in) => sign_in,
            Err(error) => return Err(self.0.answer(&caller, error).await),
        };
        let identity = SubjectIdentity { subject: caller.subject()?.id, role: caller.role()?, sign_in };
        Ok(Response::new(wire::WhoAmIResponse { identity: Some(identity.into()) }))
    }

    async fn issue_run_pass(
        &self,
        request: Request<wire::IssueRunPassRequest>,
    ) -> Result<Response<wire::IssueRunPassResponse>, Status> {
        let caller = admitted(&request)?;
        let wire::IssueRunPassRequest { host, challenge } = request.into_inner();
        let host: HostName = host.parse().map_err(invalid)?;
        let challenge: Challenge = challenge.try_into().map_err(invalid)?;
        let subject = caller.subject()?;
        // On record before anybody has it.
        if let Err(error) = self.0.store.run_pass_issued(&host, &subject, clock::now()).await {
            return Err(self.0.answer(&caller, error).await);
        }
        let statement = RunStatement { subject: subject.id, host, challenge };
        match self.0.authority.sign_run_pass(statement) {
            Ok(pass) => Ok(Response::new(wire::IssueRunPassResponse { pass: Some(pass.into()) })),
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot sign a run pass");
                Err(status(ErrorKind::Internal, error.to_string(), ""))
            }
        }
    }
}
