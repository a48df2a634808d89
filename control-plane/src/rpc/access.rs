//! `AccessService`: from a wish to a grant and to its end.

use std::collections::HashMap;
use std::net::IpAddr;

use proto::status::{ErrorKind, status};
use proto::types::{
    AccessFilter, AccessPlace, DraftId, EndReason, FreezeId, Grant, GrantId, GrantState, HostName,
    IncidentId, Invalid, NewApproval, NewExtension, NewFreeze, NewIncident, NewRequest, Outage, Reason,
    RequestId, RequestState, ResourceName, Timestamp, page_limit,
};
use proto::wire::access as wire;
use proto::wire::access::access_service_server::AccessService;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use super::{Admitted, Answers, Gate, admitted, failed, invalid, stream};
use crate::clock;
use crate::listen::Peer;
use crate::rules::{access, roster};
use crate::store::{Known, RequestFilter, StoreError, View, Whose};

/// How many lines one answer about access has at most: with the longest reasons it still is a message.
const ACCESS_MAX: usize = 3000;

/// Answers for requests and grants.
#[derive(Clone, Debug)]
pub(crate) struct Access(pub(crate) Gate);

impl Gate {
    /// With how long each can live on hosts that do not answer.
    async fn bounded(&self, mut grants: Vec<Grant>) -> Result<Vec<Grant>, StoreError> {
        let resources = self.store.resources().await?;
        let outage = |resource: &ResourceName| {
            let found = resources.iter().find(|known| known.name == *resource);
            found.map_or(Outage::HOLD, |found| found.options.outage)
        };
        if !resources.iter().any(|resource| resource.options.outage != Outage::HOLD) {
            return Ok(grants);
        }
        let now = clock::now();
        let presences = self.presences().await?;
        let gone: HashMap<HostName, Option<Timestamp>> = self
            .store
            .hosts()
            .await?
            .into_iter()
            .filter(|host| presences.of(&host.name).is_none())
            .map(|host| (host.name, host.seen))
            .collect();
        for grant in &mut grants {
            let outage = outage(&grant.resource);
            for host in &mut grant.hosts {
                // A host that was never heard has nothing.
                let heard = gone.get(&host.name).copied().flatten().unwrap_or(now);
                host.until = host.until.map(|until| roster::lives_until(until, outage, heard));
            }
        }
        Ok(grants)
    }
}

impl Access {
    /// Who has access, or had it then; and behind which place there is more.
    async fn access(
        &self,
        filter: &AccessFilter,
        whose: &Whose,
    ) -> Result<(Vec<proto::types::Access>, Option<AccessPlace>), StoreError> {
        let gate = &self.0;
        let mut found = gate.store.accesses(filter, whose).await?;
        let more = found.len() > filter.limit as usize;
        found.truncate(filter.limit as usize);
        let last = found.last().filter(|_| more).map(|(grant, _)| grant.id);
        let (grants, requests): (Vec<Grant>, Vec<_>) = found.into_iter().unzip();
        let presences = gate.presences().await?;
        let is_sound =
            |host: &HostName| presences.of(host).is_some_and(|presence| presence.disagreement.is_none());
        let lines: Vec<_> = match filter.at {
            None => {
                let (grants, now) = (gate.bounded(grants).await?, clock::now());
                let pairs = grants.iter().zip(&requests);
                pairs.flat_map(|(grant, request)| access::at_present(grant, request, now, is_sound)).collect()
            }
            Some(at) => {
                let pairs = grants.iter().zip(&requests);
                pairs.flat_map(|(grant, request)| access::then(grant, request, at)).collect()
            }
        };
        let is_there = |host: &HostName| filter.host.as_ref().is_none_or(|wanted| wanted == host);
        let lines = lines.into_iter().filter(|line| is_there(&line.host)).collect();
        Ok(access::page(lines, filter.after.as_ref(), last, ACCESS_MAX))
    }

    async fn end(
        &self,
        caller: &Admitted,
        id: &str,
        reason: EndReason,
        comment: &str,
    ) -> Result<Grant, Status> {
        let id: GrantId = id.parse().map_err(invalid)?;
        let comment = Reason::optional("comment", comment).map_err(invalid)?;
        let whose = caller.whose()?;
        let ended =
            self.0.store.end_grant(id, reason, &caller.subject()?, &whose, &comment, clock::now()).await;
        let ended = match ended {
            Ok(grant) => self.0.bounded(vec![grant]).await,
            Err(error) => Err(error),
        };
        match ended.map(|mut grants| grants.pop()) {
            Ok(Some(grant)) => Ok(grant),
            Ok(None) => Err(status(ErrorKind::Internal, "the grant is gone", "")),
            Err(error) => Err(self.0.answer(caller, error).await),
        }
    }
}

#[tonic::async_trait]
impl AccessService for Access {
    async fn create_request(
        &self,
        request: Request<wire::CreateRequestRequest>,
    ) -> Result<Response<wire::CreateRequestResponse>, Status> {
        let caller = admitted(&request)?;
        let way = Way::of(&request);
        let new: NewRequest = request.into_inner().try_into().map_err(invalid)?;
        let requester = caller.subject()?;
        let limits = &self.0.request_limits;
        let subject = match limits.subject(&new, &requester.id, caller.reach) {
            Ok(subject) => subject,
            Err(refusal) => return Err(self.0.refuse(&caller, refusal).await),
        };
        let store = &self.0.store;
        let circumstances = match caller.circumstances(store, way.address, way.agent.as_deref()).await {
            Ok(circumstances) => circumstances,
            Err(error) => return Err(self.0.answer(&caller, error).await),
        };
        let circumstances = circumstances.of_request(&requester.id, &subject);
        let known = Known { circumstances: &circumstances, limits };
        match store.create_request(new, &subject, &requester, known, clock::now()).await {
            Ok(request) => Ok(Response::new(wire::CreateRequestResponse { request: Some(request.into()) })),
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn list_requests(
        &self,
        request: Request<wire::ListRequestsRequest>,
    ) -> Result<Response<wire::ListRequestsResponse>, Status> {
        let caller = admitted(&request)?;
        let wire::ListRequestsRequest { all, limit } = request.into_inner();
        let limit = page_limit(limit).map_err(invalid)?;
        match self.0.store.requests(&RequestFilter { all, whose: caller.whose()?, limit }, clock::now()).await
        {
            Ok(requests) => {
                let requests = requests.into_iter().map(Into::into).collect();
                Ok(Response::new(wire::ListRequestsResponse { requests }))
            }
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    type WatchRequestStream = Answers<wire::WatchRequestResponse>;

    async fn watch_request(
        &self,
        request: Request<wire::WatchRequestRequest>,
    ) -> Result<Response<Self::WatchRequestStream>, Status> {
        let caller = admitted(&request)?;
        let id: RequestId = request.into_inner().id.parse().map_err(invalid)?;
        let whose = caller.whose()?;
        let gate = self.0.clone();
        // What is not there is said by the call itself, not by its stream.
        if let Err(error) = gate.store.view(id, &whose, clock::now()).await {
            return Err(gate.answer(&caller, error).await);
        }
        Ok(Response::new(stream(gate.clone(), caller, |answers| watch(gate, id, whose, answers))))
    }

    async fn approve_request(
        &self,
        request: Request<wire::ApproveRequestRequest>,
    ) -> Result<Response<wire::ApproveRequestResponse>, Status> {
        let caller = admitted(&request)?;
        let new: NewApproval = request.into_inner().try_into().map_err(invalid)?;
        match self.0.store.approve(&new, &caller.subject()?, caller.reach, clock::now()).await {
            Ok((request, grant)) => Ok(Response::new(wire::ApproveRequestResponse {
                request: Some(request.into()),
                grant: grant.map(Into::into),
            })),
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn deny_request(
        &self,
        request: Request<wire::DenyRequestRequest>,
    ) -> Result<Response<wire::DenyRequestResponse>, Status> {
        let caller = admitted(&request)?;
        let wire::DenyRequestRequest { id, comment } = request.into_inner();
        let id: RequestId = id.parse().map_err(invalid)?;
        let comment = Reason::optional("comment", &comment).map_err(invalid)?;
        match self.0.store.deny(id, &caller.subject()?, caller.reach, &comment, clock::now()).await {
            Ok(request) => Ok(Response::new(wire::DenyRequestResponse { request: Some(request.into()) })),
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn withdraw_request(
        &self,
        request: Request<wire::WithdrawRequestRequest>,
    ) -> Result<Response<wire::WithdrawRequestResponse>, Status> {
        let caller = admitted(&request)?;
        let id: RequestId = request.into_inner().id.parse().map_err(invalid)?;
        match self.0.store.withdraw(id, &caller.subject()?, clock::now()).await {
            Ok(request) => Ok(Response::new(wire::WithdrawRequestResponse { request: Some(request.into()) })),
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn list_drafts(
        &self,
        request: Request<wire::ListDraftsRequest>,
    ) -> Result<Response<wire::ListDraftsResponse>, Status> {
        let caller = admitted(&request)?;
        let wire::ListDraftsRequest { own, limit } = request.into_inner();
        let limit = page_limit(limit).map_err(invalid)?;
        let everybodys = caller.whose()?;
        let whose = if own { Whose::Of(caller.subject()?.id) } else { everybodys.clone() };
        match self.0.store.drafts(&whose, limit, clock::now()).await {
            Ok((drafts, left_out)) => {
                let drafts = drafts.into_iter().map(Into::into).collect();
                let left_out = if everybodys == Whose::Everybodys { left_out } else { 0 };
                Ok(Response::new(wire::ListDraftsResponse { drafts, left_out }))
            }
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn drop_draft(
        &self,
        request: Request<wire::DropDraftRequest>,
    ) -> Result<Response<wire::DropDraftResponse>, Status> {
        let caller = admitted(&request)?;
        let id: DraftId = request.into_inner().id.parse().map_err(invalid)?;
        match self.0.store.drop_draft(id, &caller.whose()?, clock::now()).await {
            Ok(draft) => Ok(Response::new(wire::DropDraftResponse { draft: Some(draft.into()) })),
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn list_grants(
        &self,
        request: Request<wire::ListGrantsRequest>,
    ) -> Result<Response<wire::ListGrantsResponse>, Status> {
        let caller = admitted(&request)?;
        let wire::ListGrantsRequest { all, limit } = request.into_inner();
        let limit = page_limit(limit).map_err(invalid)?;
        let grants = self.0.store.grants(&RequestFilter { all, whose: caller.whose()?, limit }).await;
        let grants = match grants {
            Ok(grants) => self.0.bounded(grants).await,
            Err(error) => Err(error),
        };
        match grants {
            Ok(grants) => {
                let grants = grants.into_iter().map(Into::into).collect();
                Ok(Response::new(wire::ListGrantsResponse { grants }))
            }
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn list_access(
        &self,
        request: Request<wire::ListAccessRequest>,
    ) -> Result<Response<wire::ListAccessResponse>, Status> {
        let caller = admitted(&request)?;
        let filter: AccessFilter = request.into_inner().try_into().map_err(invalid)?;
        match self.access(&filter, &caller.whose()?).await {
            Ok((access, next)) => {
                let access = access.into_iter().map(Into::into).collect();
                let (more, next) = (next.is_some(), next.map(|next| next.to_string()).unwrap_or_default());
                Ok(Response::new(wire::ListAccessResponse { access, more, next }))
            }
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn revoke_grant(
        &self,
        request: Request<wire::RevokeGrantRequest>,
    ) -> Result<Response<wire::RevokeGrantResponse>, Status> {
        let caller = admitted(&request)?;
        let wire::RevokeGrantRequest { id, comment } = request.into_inner();
        let grant = self.end(&caller, &id, EndReason::Revoked, &comment).await?;
        Ok(Response::new(wire::RevokeGrantResponse { grant: Some(grant.into()) }))
    }

    async fn release_grant(
        &self,
        request: Request<wire::ReleaseGrantRequest>,
    ) -> Result<Response<wire::ReleaseGrantResponse>, Status> {
        let caller = admitted(&request)?;
        let grant = self.end(&caller, &request.into_inner().id, EndReason::Released, "").await?;
        Ok(Response::new(wire::ReleaseGrantResponse { grant: Some(grant.into()) }))
    }

    async fn activate_grant(
        &self,
        request: Request<wire::ActivateGrantRequest>,
    ) -> Result<Response<wire::ActivateGrantResponse>, Status> {
        let caller = admitted(&request)?;
        let way = Way::of(&request);
        let id: GrantId = request.into_inner().id.parse().map_err(invalid)?;
        let store = &self.0.store;
        let circumstances = match caller.circumstances(store, way.address, way.agent.as_deref()).await {
            Ok(circumstances) => circumstances,
            Err(error) => return Err(self.0.answer(&caller, error).await),
        };
        match store.activate_grant(id, &caller.subject()?, circumstances, clock::now()).await {
            Ok(grant) => Ok(Response::new(wire::ActivateGrantResponse { grant: Some(grant.into()) })),
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn extend_grant(
        &self,
        request: Request<wire::ExtendGrantRequest>,
    ) -> Result<Response<wire::ExtendGrantResponse>, Status> {
        let caller = admitted(&request)?;
        let way = Way::of(&request);
        let new: NewExtension = request.into_inner().try_into().map_err(invalid)?;
        let store = &self.0.store;
        let circumstances = match caller.circumstances(store, way.address, way.agent.as_deref()).await {
            Ok(circumstances) => circumstances,
            Err(error) => return Err(self.0.answer(&caller, error).await),
        };
        let known = Known { circumstances: &circumstances, limits: &self.0.request_limits };
        match store.extend_grant(new, &caller.subject()?, known, clock::now()).await {
            Ok((request, grant)) => Ok(Response::new(wire::ExtendGrantResponse {
                request: Some(request.into()),
                grant: Some(grant.into()),
            })),
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn list_reviews(
        &self,
        request: Request<wire::ListReviewsRequest>,
    ) -> Result<Response<wire::ListReviewsResponse>, Status> {
        let caller = admitted(&request)?;
        let wire::ListReviewsRequest { all, limit } = request.into_inner();
        let limit = page_limit(limit).map_err(invalid)?;
        match self.0.store.reviews(all, &caller.whose()?, limit).await {
            Ok(reviews) => {
                let reviews = reviews.into_iter().map(Into::into).collect();
                Ok(Response::new(wire::ListReviewsResponse { reviews }))
            }
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn review_grant(
        &self,
        request: Request<wire::ReviewGrantRequest>,
    ) -> Result<Response<wire::ReviewGrantResponse>, Status> {
        let caller = admitted(&request)?;
        let wire::ReviewGrantRequest { id, comment } = request.into_inner();
        let id: GrantId = id.parse().map_err(invalid)?;
        let comment: Reason =
            comment.parse().map_err(|error: Invalid| invalid(Invalid::new("comment", error.problem)))?;
        match self.0.store.review(id, &comment, &caller.subject()?, clock::now()).await {
            Ok(review) => Ok(Response::new(wire::ReviewGrantResponse { review: Some(review.into()) })),
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn freeze(
        &self,
        request: Request<wire::FreezeRequest>,
    ) -> Result<Response<wire::FreezeResponse>, Status> {
        let caller = admitted(&request)?;
        let new: NewFreeze = request.into_inner().try_into().map_err(invalid)?;
        match self.0.store.freeze(new, &caller.subject()?, clock::now()).await {
            Ok((freeze, grants)) => {
                Ok(Response::new(wire::FreezeResponse { freeze: Some(freeze.into()), grants }))
            }
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn list_freezes(
        &self,
        request: Request<wire::ListFreezesRequest>,
    ) -> Result<Response<wire::ListFreezesResponse>, Status> {
        let caller = admitted(&request)?;
        let wire::ListFreezesRequest { all, limit } = request.into_inner();
        let limit = page_limit(limit).map_err(invalid)?;
        match self.0.store.freezes(all, limit, clock::now()).await {
            Ok(freezes) => {
                let freezes = freezes.into_iter().map(Into::into).collect();
                Ok(Response::new(wire::ListFreezesResponse { freezes }))
            }
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn thaw(
        &self,
        request: Request<wire::ThawRequest>,
    ) -> Result<Response<wire::ThawResponse>, Status> {
        let caller = admitted(&request)?;
        let wire::ThawRequest { id, comment } = request.into_inner();
        let id: FreezeId = id.parse().map_err(invalid)?;
        let comment = Reason::optional("comment", &comment).map_err(invalid)?;
        match self.0.store.thaw(id, &caller.subject()?, &comment, clock::now()).await {
            Ok(freeze) => Ok(Response::new(wire::ThawResponse { freeze: Some(freeze.into()) })),
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn open_incident(
        &self,
        request: Request<wire::OpenIncidentRequest>,
    ) -> Result<Response<wire::OpenIncidentResponse>, Status> {
        let caller = admitted(&request)?;
        let new: NewIncident = request.into_inner().try_into().map_err(invalid)?;
        match self.0.store.open_incident(new, &caller.subject()?, clock::now()).await {
            Ok(incident) => Ok(Response::new(wire::OpenIncidentResponse { incident: Some(incident.into()) })),
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn list_incidents(
        &self,
        request: Request<wire::ListIncidentsRequest>,
    ) -> Result<Response<wire::ListIncidentsResponse>, Status> {
        let caller = admitted(&request)?;
        let wire::ListIncidentsRequest { all, limit } = request.into_inner();
        let limit = page_limit(limit).map_err(invalid)?;
        match self.0.store.incidents(all, limit, clock::now()).await {
            Ok(incidents) => {
                let incidents = incidents.into_iter().map(Into::into).collect();
                Ok(Response::new(wire::ListIncidentsResponse { incidents }))
            }
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }

    async fn close_incident(
        &self,
        request: Request<wire::CloseIncidentRequest>,
    ) -> Result<Response<wire::CloseIncidentResponse>, Status> {
        let caller = admitted(&request)?;
        let wire::CloseIncidentRequest { id, comment } = request.into_inner();
        let id: IncidentId = id.parse().map_err(invalid)?;
        let comment = Reason::optional("comment", &comment).map_err(invalid)?;
        match self.0.store.close_incident(&id, &caller.subject()?, &comment, clock::now()).await {
            Ok(incident) => {
                Ok(Response::new(wire::CloseIncidentResponse { incident: Some(incident.into()) }))
            }
            Err(error) => Err(self.0.answer(&caller, error).await),
        }
    }
}

/// By which way a call came.
struct Way {
    /// None: by a unix socket, or that is not known.
    address: Option<IpAddr>,
    /// The program, as that says itself.
    agent: Option<String>,
}

impl Way {
    fn of<T>(request: &Request<T>) -> Self {
        let agent = request.metadata().get("user-agent").and_then(|agent| agent.to_str().ok());
        Self {
            address: request.extensions().get::<Peer>().and_then(|peer| peer.address),
            agent: agent.map(str::to_owned),
        }
    }
}

/// Sends a request as it is now and after each change, until nothing can come of it that the caller waits for.
async fn watch(
    gate: Gate,
    id: RequestId,
    whose: Whose,
    answers: mpsc::Sender<Result<wire::WatchRequestResponse, Status>>,
) -> Result<(), Status> {
    let mut changed = gate.store.signals().access();
    let mut sent = None;
    loop {
        changed.mark_unchanged();
        let view = gate.store.view(id, &whose, clock::now()).await.map_err(|error| failed(&error))?;
        if sent.as_ref() != Some(&view) {
            let grant = view.grant.clone().map(Into::into);
            let answer = wire::WatchRequestResponse { request: Some(view.request.clone().into()), grant };
            if answers.send(Ok(answer)).await.is_err() {
                return Ok(());
            }
        }
        if is_settled(&view) {
            return Ok(());
        }
        sent = Some(view);
        // The sender lives in the store that the gate holds.
        let _ = changed.changed().await;
    }
}

fn is_settled(view: &View) -> bool {
    match (view.request.state, view.grant.as_ref().map(|grant| grant.state)) {
        (RequestState::Denied | RequestState::Withdrawn | RequestState::Lapsed, _) => true,
        (_, Some(GrantState::Active | GrantState::Ending(_) | GrantState::Ended(_))) => true,
        (
            RequestState::Pending | RequestState::Approved,
            Some(GrantState::Scheduled | GrantState::Activating) | None,
        ) => false,
    }
}
