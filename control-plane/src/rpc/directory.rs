//! `DirectoryService`: resources, subjects, hosts.

use std::time::Duration;

use proto::types::{
    Host, HostName, Invalid, JoinToken, Labels, NewResource, NewSubject, Reason, ResourceChange,
    ResourceName, SubjectId, duration_from_wire,
};
use proto::wire::access as wire;
use proto::wire::access::directory_service_server::DirectoryService;
use tonic::{Request, Response, Status};

use super::{Gate, admitted, invalid};
use crate::clock;
use crate::identity::{Token, TokenHash};
use crate::rules::roster::{self, Presence};
use crate::store::{EndedWith, HostRecord, NewJoinToken};

/// Long enough to carry it to a host, short enough that a forgotten one is worth nothing.
const JOIN_WITHIN_DEFAULT: Duration = Duration::from_secs(15 * 60);
/// An image that is built today and started tomorrow is no place for a secret.
const JOIN_WITHIN_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Answers for the directory.
#[derive(Clone, Debug)]
pub(crate) struct Directory(pub(crate) Gate);

impl Directory {
    /// A new join token, and what is kept of it.
    fn join_token(&self, within: Option<prost_types::Duration>) -> Result<(JoinToken, NewJoinToken), Status> {
        let within = match within {
            None => JOIN_WITHIN_DEFAULT,
            within => duration_from_wire("join_within", within).map_err(invalid)?,
        };
        if !(Duration::from_secs(1)..=JOIN_WITHIN_MAX).contains(&within) || within.subsec_nanos() != 0 {
            let problem = "is not a whole number of seconds from 1 s to 1 day";
            return Err(invalid(Invalid::new("join_within", problem)));
        }
        let token = JoinToken::new(rand::random(), self.0.authority.fingerprint());
        let hash = TokenHash::of(token.secret());
        Ok((token, NewJoinToken { hash, expires: clock::now().plus(within) }))
    }
}

/// A host as it is shown.
fn shown(record: HostRecord, presence: Option<Presence>) -> Host {
    let disagreement = presence.as_ref().and_then(|presence| presence.disagreement.as_deref());
    let (state, detail) =
        roster::shown(presence.is_some(), record.report.as_ref(), &record.missing, disagreement);
    Host {
        name: record.name,
        state,
        detail,
        generation: record.generation,
        applied_generation: record.applied_generation,
        seen: presence.as_ref().map(|presence| presence.seen).or(record.seen),
        agent_version: record.agent_version,
        kernel_release: record.kernel_release,
        labels: record.labels,
        confirmed: presence.and_then(|presence| presence.confirmed),
    }
}

#[tonic::async_trait]
impl DirectoryService for Directory {
    async fn add_resource(
        &self,
        request: Request<wire::AddResourceRequest>,
    ) -> Result<Response<wire::AddResourceResponse>, Status> {
        let caller = admitted(&request)?;
        let resource = request.into_inner().resource.ok_or_else(|| missing("resource"))?;
        let new: NewResource = resource.try_into().map_err(within("resource"))?;
        match self.0.store.add_resource(new, &caller.actor()?, clock::now()).await {
            Ok(resource) => Ok(Response::new(wire::AddResourceResponse { resource: Some(resource.into()) })),
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn list_resources(
        &self,
        request: Request<wire::ListResourcesRequest>,
    ) -> Result<Response<wire::ListResourcesResponse>, Status> {
        let caller = admitted(&request)?;
        match self.0.store.resources().await {
            Ok(resources) => {
                let resources = resources.into_iter().map(Into::into).collect();
                Ok(Response::new(wire::ListResourcesResponse { resources }))
            }
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn set_resource(
        &self,
        request: Request<wire::SetResourceRequest>,
    ) -> Result<Response<wire::SetResourceResponse>, Status> {
        let caller = admitted(&request)?;
        let change: ResourceChange = request.into_inner().try_into().map_err(invalid)?;
        match self.0.store.set_resource(&change, &caller.actor()?, clock::now()).await {
            Ok(resource) => Ok(Response::new(wire::SetResourceResponse { resource: Some(resource.into()) })),
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn remove_resource(
        &self,
        request: Request<wire::RemoveResourceRequest>,
    ) -> Result<Response<wire::RemoveResourceResponse>, Status> {
        let caller = admitted(&request)?;
        let name: ResourceName = request.into_inner().name.parse().map_err(invalid)?;
        match self.0.store.remove_resource(&name, &caller.actor()?, clock::now()).await {
            Ok(()) => Ok(Response::new(wire::RemoveResourceResponse {})),
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn add_subject(
        &self,
        request: Request<wire::AddSubjectRequest>,
    ) -> Result<Response<wire::AddSubjectResponse>, Status> {
        let caller = admitted(&request)?;
        let subject = request.into_inner().subject.ok_or_else(|| missing("subject"))?;
        let new: NewSubject = subject.try_into().map_err(within("subject"))?;
        match self.0.store.add_subject(new, &caller.actor()?, clock::now()).await {
            Ok(subject) => Ok(Response::new(wire::AddSubjectResponse { subject: Some(subject.into()) })),
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn list_subjects(
        &self,
        request: Request<wire::ListSubjectsRequest>,
    ) -> Result<Response<wire::ListSubjectsResponse>, Status> {
        let caller = admitted(&request)?;
        let store = &self.0.store;
        let found = match store.subjects().await {
            Ok(subjects) => store.disabled().await.map(|disabled| (subjects, disabled)),
            Err(error) => Err(error),
        };
        match found {
            Ok((subjects, disabled)) => {
                let subjects = subjects.into_iter().map(Into::into).collect();
                let disabled = disabled.into_iter().map(|(id, since)| (id.into(), since.into())).collect();
                Ok(Response::new(wire::ListSubjectsResponse { subjects, disabled }))
            }
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn issue_token(
        &self,
        request: Request<wire::IssueTokenRequest>,
    ) -> Result<Response<wire::IssueTokenResponse>, Status> {
        let caller = admitted(&request)?;
        let subject: SubjectId = request.into_inner().subject.parse().map_err(invalid)?;
        let token = Token::for_subject();
        let actor = caller.actor()?;
        match self.0.store.issue_token(&subject, &token.hash(), &actor, clock::now()).await {
            Ok(()) => Ok(Response::new(wire::IssueTokenResponse { token: token.reveal() })),
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn unbind_subject(
        &self,
        request: Request<wire::UnbindSubjectRequest>,
    ) -> Result<Response<wire::UnbindSubjectResponse>, Status> {
        let caller = admitted(&request)?;
        let wire::UnbindSubjectRequest { subject, comment } = request.into_inner();
        let subject: SubjectId = subject.parse().map_err(invalid)?;
        let comment = Reason::optional("comment", &comment).map_err(invalid)?;
        match self.0.store.unbind(&subject, &caller.actor()?, &comment, clock::now()).await {
            Ok(()) => Ok(Response::new(wire::UnbindSubjectResponse {})),
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn disable_subject(
        &self,
        request: Request<wire::DisableSubjectRequest>,
    ) -> Result<Response<wire::DisableSubjectResponse>, Status> {
        let caller = admitted(&request)?;
        let wire::DisableSubjectRequest { subject, comment } = request.into_inner();
        let subject: SubjectId = subject.parse().map_err(invalid)?;
        let comment = Reason::optional("comment", &comment).map_err(invalid)?;
        match self.0.store.disable(&subject, &caller.subject()?, &comment, clock::now()).await {
            Ok(EndedWith { grants, requests }) => {
                Ok(Response::new(wire::DisableSubjectResponse { grants, requests }))
            }
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn enable_subject(
        &self,
        request: Request<wire::EnableSubjectRequest>,
    ) -> Result<Response<wire::EnableSubjectResponse>, Status> {
        let caller = admitted(&request)?;
        let wire::EnableSubjectRequest { subject, comment } = request.into_inner();
        let subject: SubjectId = subject.parse().map_err(invalid)?;
        let comment = Reason::optional("comment", &comment).map_err(invalid)?;
        match self.0.store.enable(&subject, &caller.actor()?, &comment, clock::now()).await {
            Ok(()) => Ok(Response::new(wire::EnableSubjectResponse {})),
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn add_host(
        &self,
        request: Request<wire::AddHostRequest>,
    ) -> Result<Response<wire::AddHostResponse>, Status> {
        let caller = admitted(&request)?;
        let wire::AddHostRequest { name, labels, join_within } = request.into_inner();
        let name: HostName = name.parse().map_err(invalid)?;
        let labels: Labels = labels.try_into().map_err(invalid)?;
        let (token, kept) = self.join_token(join_within)?;
        let store = &self.0.store;
        let actor = caller.actor()?;
        let host = match store.add_host(&name, &labels, &kept, &actor, clock::now()).await {
            Ok(()) => store.host(&name).await,
            Err(error) => Err(error),
        };
        match host {
            Ok(host) => Ok(Response::new(wire::AddHostResponse {
                // Nobody can have connected as one that was not there.
                host: Some(shown(host, None).into()),
                join_token: token.reveal(),
            })),
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn issue_join_token(
        &self,
        request: Request<wire::IssueJoinTokenRequest>,
    ) -> Result<Response<wire::IssueJoinTokenResponse>, Status> {
        let caller = admitted(&request)?;
        let wire::IssueJoinTokenRequest { host, join_within } = request.into_inner();
        let host: HostName = host.parse().map_err(invalid)?;
        let (token, kept) = self.join_token(join_within)?;
        let actor = caller.actor()?;
        match self.0.store.issue_join_token(&host, &kept, &actor, clock::now()).await {
            Ok(()) => Ok(Response::new(wire::IssueJoinTokenResponse { join_token: token.reveal() })),
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn revoke_host(
        &self,
        request: Request<wire::RevokeHostRequest>,
    ) -> Result<Response<wire::RevokeHostResponse>, Status> {
        let caller = admitted(&request)?;
        let wire::RevokeHostRequest { host, comment } = request.into_inner();
        let host: HostName = host.parse().map_err(invalid)?;
        let comment = Reason::optional("comment", &comment).map_err(invalid)?;
        match self.0.store.revoke_host(&host, &caller.actor()?, &comment, clock::now()).await {
            Ok(()) => Ok(Response::new(wire::RevokeHostResponse {})),
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn list_hosts(
        &self,
        request: Request<wire::ListHostsRequest>,
    ) -> Result<Response<wire::ListHostsResponse>, Status> {
        let caller = admitted(&request)?;
        let read = async { Ok((self.0.store.hosts().await?, self.0.presences().await?)) };
        match read.await {
            Ok((hosts, presences)) => {
                let shown = |host: HostRecord| {
                    let presence = presences.of(&host.name);
                    shown(host, presence).into()
                };
                let hosts = hosts.into_iter().map(shown).collect();
                Ok(Response::new(wire::ListHostsResponse { hosts }))
            }
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }
}

fn missing(field: &str) -> Status {
    invalid(Invalid::missing(field))
}

fn within(field: &'static str) -> impl Fn(Invalid) -> Status {
    move |error| invalid(error.within(field))
}
