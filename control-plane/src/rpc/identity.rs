//! `IdentityService`: signing in with an identity provider or as a workload, and out again.

use proto::status::{ErrorKind, status};
use proto::types::{Challenge, HostName, NewSignIn, RunStatement, SubjectIdentity, WorkloadToken};
use proto::wire::identity as wire;
use proto::wire::identity::identity_service_server::IdentityService;
use tonic::{Request, Response, Status};

use super::{Gate, admitted, invalid};
use crate::clock;
use crate::identity::{Token, TokenHash};
use crate::listen::Peer;
use crate::rules::calls::Method;
use crate::rules::throttle::Key;
use crate::sign_in::{NotSignedIn, Shown};
use crate::store::HeldBy;

/// Answers for those who sign in.
#[derive(Clone, Debug)]
pub(crate) struct SignIns(pub(crate) Gate);

impl SignIns {
    /// Puts the refusal on record, and gives what the caller is told.
    async fn refuse(&self, method: Method, whose: &str, error: &NotSignedIn) -> Status {
        let status = status(error.kind(), error.message(), error.hint());
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
        let entered = match self.0.provider(&new.provider) {
            Ok(known) => {
                self.0
                    .sign_in(Shown {
                        known,
                        expected: &known.expected,
                        id_token: &new.id_token,
                        nonce: new.nonce.as_deref(),
                        token: token.hash(),
                        held_by: HeldBy::Tool,
                        replaces: new.replaces.as_deref().map(TokenHash::of),
                    })
                    .await
            }
            Err(error) => Err(error),
        };
        match entered {
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
        match self.0.sign_in_workload(shown.as_str(), token.hash()).await {
            Ok(identity) => Ok(Response::new(wire::SignInWorkloadResponse {
                token: token.reveal(),
                identity: Some(identity.into()),
            })),
            Err(error) => Err(self.refuse(Method::SignInWorkload, "a workload", &error).await),
        }
    }

    async fn sign_in_with_certificate(
        &self,
        request: Request<wire::SignInWithCertificateRequest>,
    ) -> Result<Response<wire::SignInWithCertificateResponse>, Status> {
        admitted(&request)?;
        let svid = request.extensions().get::<Peer>().and_then(Peer::workload);
        let token = Token::for_session();
        match self.0.sign_in_certified(svid, token.hash()).await {
            Ok(identity) => Ok(Response::new(wire::SignInWithCertificateResponse {
                token: token.reveal(),
                identity: Some(identity.into()),
            })),
            Err(error) => {
                let whose = svid.map_or_else(|| "a workload".to_owned(), |svid| format!("`{}`", svid.id));
                Err(self.refuse(Method::SignInWithCertificate, &whose, &error).await)
            }
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
