//! `EnrolmentService`: certificates for hosts.

use proto::types::{HostName, Identity, Join, SigningRequest};
use proto::wire::enrolment as wire;
use proto::wire::enrolment::enrolment_service_server::EnrolmentService;
use tonic::{Request, Response, Status};

use super::{Gate, admitted, invalid, status};
use crate::clock;
use crate::identity::TokenHash;
use crate::store::NewCertificate;

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
        let issued = issued
            .map_err(|error| status(proto::status::ErrorKind::InvalidArgument, error.to_string(), ""))?;
        let identity = Identity {
            certificate: issued.certificate.to_vec(),
            authorities: vec![self.0.authority.certificate().to_vec()],
        };
        Ok((identity, NewCertificate { serial: issued.serial, expires: clock::now().plus(lifetime) }))
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
        match self.0.store.join(&join.host, &TokenHash::of(&join.secret), &certificate, clock::now()).await {
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
