//! `EnrolmentService`: certificates for hosts.

use proto::status::ErrorKind;
use proto::types::{Evidence, HostName, Identity, Join, SigningRequest, WorkloadToken};
use proto::wire::enrolment as wire;
use proto::wire::enrolment::enrolment_service_server::EnrolmentService;
use tonic::{Request, Response, Status};

use super::{Gate, admitted, invalid, status};
use crate::clock;
use crate::identity::TokenHash;
use crate::identity::oidc::{self, TokenError};
use crate::identity::workloads::NobodyVouches;
use crate::rules::calls::Method;
use crate::rules::throttle::Key;
use crate::rules::workload::{self, ProvenNode, WorkloadError};
use crate::store::{ClusterJoin, NewCertificate, StoreError};

/// Answers for agents that need a certificate.
#[derive(Clone, Debug)]
pub(crate) struct Enrolment(pub(crate) Gate);

impl Enrolment {
    /// Signs; what is signed counts when the store knows it.
    fn certify(
        &self,
        host: &HostName,
        request: &SigningRequest,
    ) -> Result<(Identity, NewCertificate), Status> {
        let lifetime = self.0.host_certificate_lifetime;
        let issued = self.0.authority.certify_host(host, request, lifetime, clock::system_now());
        let issued = issued.map_err(|error| status(ErrorKind::InvalidArgument, error.to_string(), ""))?;
        let identity = Identity {
            certificate: issued.certificate.to_vec(),
            authorities: vec![self.0.authority.certificate().to_vec()],
        };
        // Its date is for others; how long it counts here is told by our clock.
        Ok((identity, NewCertificate { serial: issued.serial, expires: clock::now().plus(lifetime) }))
    }
}

/// Why a cluster's token is not enough.
#[derive(Debug)]
enum NotJoined {
    /// It proves nothing: one word for the record, and what the agent is told.
    Refused(&'static str, Status),
    /// It does, and the record said no, or could not be asked.
    Failed(StoreError),
}

impl From<NobodyVouches> for NotJoined {
    fn from(nobody: NobodyVouches) -> Self {
        let refused =
            |kind, problem: &str, hint| status(kind, format!("the token is refused: {problem}"), hint);
        match nobody {
            NobodyVouches::Unknown => Self::Refused(
                "unknown_cluster",
                refused(
                    ErrorKind::Unauthenticated,
                    "it is of no cluster that is known here",
                    "an operator compares `issuer` of `[[kubernetes_cluster]]` in the control plane's configuration with the token's `iss`",
                ),
            ),
            NobodyVouches::TooMany => Self::Refused(
                "too_many",
                refused(ErrorKind::ResourceExhausted, "too many nodes join at once", "try again in a moment"),
            ),
        }
    }
}

impl From<TokenError> for NotJoined {
    fn from(error: TokenError) -> Self {
        let told = format!("the token is refused: {error}");
        Self::Refused(error.reason(), status(error.kind(), told, error.hint()))
    }
}

impl From<WorkloadError> for NotJoined {
    fn from(error: WorkloadError) -> Self {
        let told = format!("the token is refused: {error}");
        Self::Refused(error.reason(), status(error.kind(), told, error.hint()))
    }
}

impl Enrolment {
    async fn by_cluster(
        &self,
        host: &HostName,
        token: &WorkloadToken,
        certificate: &NewCertificate,
    ) -> Result<(), NotJoined> {
        let vouching = self.0.vouchers.cluster(token.as_str())?;
        let claims = vouching.issuer.claims(token.as_str()).await?;
        let clocks = clock::read();
        let node = workload::check_agent(&claims, &vouching.expected, host, clocks.wall)?;
        let node = ProvenNode { usable_until: clocks.not_before(node.usable_until), ..node };
        let join = ClusterJoin {
            node: &node,
            cluster: &vouching.name,
            labels: &vouching.labels,
            used: oidc::mark(token.as_str()),
        };
        self.0.store.join_by_cluster(&join, certificate, clocks.now).await.map_err(NotJoined::Failed)
    }
}

#[tonic::async_trait]
impl EnrolmentService for Enrolment {
    async fn join(
        &self,
        request: Request<wire::JoinRequest>,
    ) -> Result<Response<wire::JoinResponse>, Status> {
        let caller = admitted(&request)?;
        let join: Join = request.into_inner().try_into().map_err(invalid)?;
        let (identity, certificate) = self.certify(&join.host, &join.signing_request)?;
        let joined = match &join.evidence {
            Evidence::JoinToken(secret) => {
                self.0.store.join(&join.host, &TokenHash::of(secret), &certificate, clock::now()).await
            }
            Evidence::Kubernetes(token) => match self.by_cluster(&join.host, token, &certificate).await {
                Ok(()) => Ok(()),
                Err(NotJoined::Failed(error)) => Err(error),
                Err(NotJoined::Refused(reason, status)) => {
                    let key = Key { caller: None, reason, what: Method::Join.as_str() };
                    self.0.put_on_record(key, &format!("host `{}`: {}", join.host, status.message())).await;
                    return Err(status);
                }
            },
        };
        match joined {
            Ok(()) => Ok(Response::new(wire::JoinResponse { identity: Some(identity.into()) })),
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn renew(
        &self,
        request: Request<wire::RenewRequest>,
    ) -> Result<Response<wire::RenewResponse>, Status> {
        let caller = admitted(&request)?;
        let host = caller.host()?.clone();
        let signing_request = request.into_inner().signing_request.try_into().map_err(invalid)?;
        let (identity, certificate) = self.certify(&host, &signing_request)?;
        match self.0.store.renew(&host, &certificate, clock::now()).await {
            Ok(()) => Ok(Response::new(wire::RenewResponse { identity: Some(identity.into()) })),
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }
}
