//! Getting certificates: the first one for a join token, or for the token of a pod; each next one for the one before.
//!
//! Owns: the two calls, and their time limit. Must not know: when a certificate is due.

use std::sync::Arc;
use std::time::Duration;

use proto::types::{Evidence, Fingerprint, HostName, Identity, Invalid, Join};
use proto::wire::enrolment as wire;
use proto::wire::enrolment::enrolment_service_client::EnrolmentServiceClient;
use tokio::time::timeout;
use tonic::Status;
use tonic::transport::Channel;

use super::endpoint::{ConnectError, Endpoint};
use super::tls;
use crate::identity::{Identities, IdentityError, NewKey};

/// For a connection and an answer.
const LIMIT: Duration = Duration::from_secs(15);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum EnrolmentError {
    /// The control plane cannot be reached, or is not the one that the token is of.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It does not answer.
    #[error("the control plane at {0} did not answer within {LIMIT:?}")]
    Silent(Endpoint),
    /// It says no.
    #[error("the control plane refused: {}", .0.message())]
    Refused(Box<Status>),
    /// What it said breaks the contract.
    #[error("the control plane sent something that does not check")]
    Invalid(#[from] Invalid),
    /// What it gave cannot be kept.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl From<Status> for EnrolmentError {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

impl EnrolmentError {
    /// What to do next; None: nothing that would help is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Refused(status) => proto::status::hint(status),
            Self::Connect(error) => Some(error.hint().to_owned()),
            Self::Silent(_) | Self::Invalid(_) | Self::Identity(_) => None,
        }
    }
}

/// Trades evidence for the next identity of this host. It is shown to nobody but who has a certificate of `authority`.
pub async fn join(
    endpoint: &Endpoint,
    host: &HostName,
    evidence: Evidence,
    authority: Fingerprint,
    identities: &Identities,
) -> Result<(), EnrolmentError> {
    let new = NewKey::make()?;
    let config = tls::with_fingerprint(authority).map_err(|error| endpoint.insecure(error))?;
    let join = Join { host: host.clone(), evidence, signing_request: new.request.clone() };
    let joined = async {
        let mut client = client(endpoint.connect(Arc::new(config)).await?);
        let joined = client.join(wire::JoinRequest::from(join)).await?.into_inner();
        checked(joined.identity)
    };
    let identity = timeout(LIMIT, joined).await.map_err(|_| EnrolmentError::Silent(endpoint.clone()))??;
    Ok(identities.add(&new, &identity)?)
}

/// Gets the next identity over a connection that the present one has opened.
pub(super) async fn renew(
    channel: Channel,
    endpoint: &Endpoint,
    identities: &Identities,
) -> Result<(), EnrolmentError> {
    let new = NewKey::make()?;
    let renewed = async {
        let renew = wire::RenewRequest { signing_request: new.request.clone().into() };
        checked(client(channel).renew(renew).await?.into_inner().identity)
    };
    let identity = timeout(LIMIT, renewed).await.map_err(|_| EnrolmentError::Silent(endpoint.clone()))??;
    Ok(identities.add(&new, &identity)?)
}

fn client(channel: Channel) -> EnrolmentServiceClient<Channel> {
    EnrolmentServiceClient::new(channel)
}

fn checked(identity: Option<wire::Identity>) -> Result<Identity, EnrolmentError> {
    let identity = identity.ok_or_else(|| Invalid::missing("identity"))?;
    Ok(Identity::try_from(identity).map_err(|error| error.within("identity"))?)
}
