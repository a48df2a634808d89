//! A control plane that knows its answers by heart, on a real unix socket, and a way to run one command line against it.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use proto::status::ErrorKind;
use proto::wire::access::access_service_server::{AccessService, AccessServiceServer};
use proto::wire::access::directory_service_server::{DirectoryService, DirectoryServiceServer};
use proto::wire::access::*;
use proto::wire::audit::audit_service_server::{AuditService, AuditServiceServer};
use proto::wire::audit::*;
use proto::wire::identity::identity_service_server::{IdentityService, IdentityServiceServer};
use proto::wire::identity::*;
use proto::wire::policy::policy_service_server::{PolicyService, PolicyServiceServer};
use proto::wire::policy::*;
use proto::wire::report::report_service_server::{ReportService, ReportServiceServer};
use proto::wire::report::*;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request as Call, Response, Status};

pub(crate) const REQUEST: &str = "019aac1e-7b1c-7c10-9f6b-3f2d6c1f7a01";
pub(crate) const GRANT: &str = "019aac20-1f4e-7d22-8c55-0a9b8c7d6e5f";
pub(crate) const TOKEN: &str = "pct_admin";

/// What comes over a stream; an error ends it.
pub(crate) type Script<T> = Vec<Result<T, (ErrorKind, &'static str, &'static str)>>;

/// What the next streams bring, what each unary call is refused with, and which calls came.
#[derive(Clone, Default)]
pub(crate) struct Canned {
    pub(crate) watches: Arc<Mutex<VecDeque<Script<WatchRequestResponse>>>>,
    pub(crate) tails: Arc<Mutex<VecDeque<Script<TailResponse>>>>,
    pub(crate) refusal: Option<(ErrorKind, &'static str, &'static str)>,
    pub(crate) hosts: Option<Vec<Host>>,
    pub(crate) providers: Vec<Provider>,
    pub(crate) plan: PolicyPlan,
    /// Whether the token is a session's.
    pub(crate) has_session: bool,
    pub(crate) calls: Arc<Mutex<Vec<String>>>,
}

impl Canned {
    /// Remembers the call; refuses it without the right token or when told to.
    fn enter<T: std::fmt::Debug>(&self, call: Call<T>) -> Result<T, Status> {
        let token = call.metadata().get("authorization").map(|value| value.as_bytes().to_vec());
        if token.as_deref() != Some(format!("Bearer {TOKEN}").as_bytes()) {
            let message = "the token is not known";
            return Err(proto::status::status(ErrorKind::Unauthenticated, message, ""));
        }
        let message = call.into_inner();
        self.calls.lock().unwrap().push(format!("{message:?}"));
        match self.refusal {
            Some((kind, message, hint)) => Err(proto::status::status(kind, message, hint)),
            None => Ok(message),
        }
    }
}

pub(crate) fn at(text: &str) -> Option<prost_types::Timestamp> {
    let time: jiff::Timestamp = text.parse().unwrap();
    Some(prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() })
}

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

pub(crate) fn request(state: RequestState) -> Request {
    let decided = state != RequestState::Pending;
    Request {
        id: REQUEST.into(),
        state: state.into(),
        resource: "db-prod".into(),
        subject: "user:alice@example.com".into(),
        hosts: vec!["db-7".into(), "db-8".into()],
        duration: seconds(5400),
        reason: "slow query\nin INC-42, and a text that is far too long to be shown whole in a table".into(),
        requester: "user:alice@example.com".into(),
        created: at("2026-11-22T09:57:30.25Z"),
        decided_by: match state {
            RequestState::Approved | RequestState::Denied => "user:bob".into(),
            RequestState::Withdrawn => "user:alice@example.com".into(),
            _ => String::new(),
        },
        decided: if decided { at("2026-11-22T09:58:00Z") } else { None },
        comment: match state {
            RequestState::Approved | RequestState::Denied => "see INC-42".into(),
            _ => String::new(),
        },
        grant: if state == RequestState::Approved { GRANT.into() } else { String::new() },
        idle: seconds(600),
        while_running: String::new(),
        run: String::new(),
        action: None,
        policy: 7,
        role: "debug-prod".into(),
        lapses: at("2026-11-23T09:57:30Z"),
        votes: match decided {
            true => vec![Vote {
                by: "user:bob".into(),
                at: at("2026-11-22T09:58:00Z"),
                yes: state == RequestState::Approved,
                comment: "see INC-42".into(),
                duration: seconds(1800),
                hosts: vec!["db-7".into()],
            }],
            false => Vec::new(),
        },
        answers: Vec::new(),
        waiting: (!decided).then(|| Waiting {
            hooks: Vec::new(),
            step: 1,
            steps: 2,
            more: 1,
            approvers: vec!["user:bob".into(), "user:eve".into()],
            others: 3,
            until: at("2026-11-22T10:30:00Z"),
        }),
        extends: String::new(),
    }
}

pub(crate) fn grant(state: GrantState, reason: EndReason, hosts: [(bool, &str); 2]) -> Grant {
    let host = |(name, (held, error)): (&str, (bool, &str))| GrantHost {
        name: name.into(),
        held,
        error: error.into(),
        until: at("2026-11-22T11:28:00Z"),
    };
    Grant {
        id: GRANT.into(),
        state: state.into(),
        end_reason: reason.into(),
        request: REQUEST.into(),
        resource: "db-prod".into(),
        subject: "user:alice@example.com".into(),
        hosts: ["db-7", "db-8"].into_iter().zip(hosts).map(host).collect(),
        issued: at("2026-11-22T09:58:00Z"),
        expires: at("2026-11-22T11:28:00Z"),
        ended: if state == GrantState::Ended { at("2026-11-22T09:59:00Z") } else { None },
        idle: seconds(600),
        while_running: "/ci.slice/a".into(),
        run: String::new(),
        action: None,
        extensions: 0,
        begins: at("2026-11-22T09:58:00Z"),
        duration: None,
    }
}

fn review(is_done: bool) -> Review {
    Review {
        grant: GRANT.into(),
        request: REQUEST.into(),
        subject: "user:alice@example.com".into(),
        requester: "user:alice@example.com".into(),
        resource: "vault".into(),
        role: "break-glass".into(),
        policy: 7,
        reason: "INC-42: nobody answers".into(),
        used: at("2026-11-22T09:58:00Z"),
        approvers: vec!["user:bob".into(), "user:eve".into()],
        others: 3,
        reviewed: if is_done { at("2026-11-22T09:59:00Z") } else { None },
        reviewed_by: if is_done { "user:bob".into() } else { String::new() },
        comment: if is_done { "as discussed".into() } else { String::new() },
    }
}

pub(crate) fn draft() -> Draft {
    Draft {
        id: "019aac20-1f4e-7d22-8c55-0a9b8c7d6e61".into(),
        subject: "user:alice@example.com".into(),
        resource: "db-prod".into(),
        host: "db-7".into(),
        first: at("2026-11-22T09:58:00Z"),
        last: at("2026-11-22T09:59:00Z"),
        attempts: 3,
        lapses: at("2026-11-23T09:58:00Z"),
    }
}

pub(crate) fn freeze() -> Freeze {
    Freeze {
        id: "019aac20-1f4e-7d22-8c55-0a9b8c7d6e60".into(),
        resources: vec!["db-prod".into(), "vault".into()],
        began: at("2026-11-22T09:58:00Z"),
        until: at("2026-11-22T11:58:00Z"),
        reason: "INC-42: credentials leaked".into(),
        by: "user:bob".into(),
        keep_live: false,
        ended: None,
        ended_by: String::new(),
    }
}

pub(crate) fn incident() -> Incident {
    Incident {
        id: "inc-42".into(),
        opened: at("2026-11-22T09:58:00Z"),
        until: at("2026-11-22T13:58:00Z"),
        reason: "nobody can log in".into(),
        by: "user:bob".into(),
        closed: None,
        closed_by: String::new(),
    }
}

pub(crate) fn active() -> Grant {
    grant(GrantState::Active, EndReason::Unspecified, [(true, ""), (true, "")])
}

pub(crate) fn resource() -> Resource {
    let port = |protocol: Protocol, first, last| PortRange { protocol: protocol.into(), first, last };
    Resource {
        name: "db-prod".into(),
        number: 1,
        addresses: vec!["10.0.4.17".into(), "2001:db8::/32".into()],
        ports: vec![port(Protocol::Tcp, 5432, 5432), port(Protocol::Udp, 6000, 6010)],
        local: true,
        unix: vec!["/run/postgresql/.s.PGSQL.5432".into()],
        options: Some(ResourceOptions {
            mode: ResourceMode::Observe.into(),
            strict: true,
            check_senders: true,
            serve_only: vec!["10.1.0.0/16".into()],
            outage: Some(Outage { limit: seconds(300) }),
            drafts: true,
        }),
    }
}

pub(crate) fn subjects() -> Vec<Subject> {
    let subject = |id: &str, number, selectors: &[&str], role: SubjectRole| Subject {
        id: id.into(),
        number,
        selectors: selectors.iter().map(ToString::to_string).collect(),
        role: role.into(),
    };
    vec![
        subject("user:alice@example.com", 2, &["unix-user:alice"], SubjectRole::Member),
        subject("user:bob", 3, &[], SubjectRole::Approver),
        subject("workload:ci/deploy", 4, &["cgroup:/ci.slice/a", "unix-user:990"], SubjectRole::Member),
    ]
}

pub(crate) fn host(name: &str, state: HostState, detail: &str) -> Host {
    Host {
        name: name.into(),
        state: state.into(),
        detail: detail.into(),
        generation: 42,
        applied_generation: 41,
        seen: at("2026-11-22T09:59:58Z"),
        agent_version: "0.1.0".into(),
        kernel_release: "6.12.9-amd64".into(),
        labels: [("env".to_owned(), "prod".to_owned())].into(),
        confirmed: at("2026-11-22T09:59:30Z"),
    }
}

fn hosts() -> Vec<Host> {
    let unseen = Host {
        name: "new-1".into(),
        state: HostState::Unreachable.into(),
        detail: "its agent never connected".into(),
        ..Host::default()
    };
    vec![
        host("db-7", HostState::Enforcing, ""),
        host("db-8", HostState::NotEnforcing, "connect4 is not attached\u{1b}[2J"),
        unseen,
    ]
}

#[tonic::async_trait]
impl DirectoryService for Canned {
    async fn add_resource(
        &self,
        call: Call<AddResourceRequest>,
    ) -> Result<Response<AddResourceResponse>, Status> {
        let resource = Resource { number: 7, ..self.enter(call)?.resource.unwrap() };
        Ok(Response::new(AddResourceResponse { resource: Some(resource) }))
    }

    async fn list_resources(
        &self,
        call: Call<ListResourcesRequest>,
    ) -> Result<Response<ListResourcesResponse>, Status> {
        self.enter(call)?;
        Ok(Response::new(ListResourcesResponse { resources: vec![resource()] }))
    }

    async fn set_resource(
        &self,
        call: Call<SetResourceRequest>,
    ) -> Result<Response<SetResourceResponse>, Status> {
        let asked = self.enter(call)?;
        let mut resource = resource();
        let options = resource.options.get_or_insert_default();
        options.mode = asked.mode.unwrap_or(options.mode);
        options.strict = asked.strict.unwrap_or(options.strict);
        options.check_senders = asked.check_senders.unwrap_or(options.check_senders);
        if let Some(peers) = asked.serve_only {
            options.serve_only = peers.prefixes;
        }
        Ok(Response::new(SetResourceResponse { resource: Some(resource) }))
    }

    async fn remove_resource(
        &self,
        call: Call<RemoveResourceRequest>,
    ) -> Result<Response<RemoveResourceResponse>, Status> {
        self.enter(call)?;
        Ok(Response::new(RemoveResourceResponse {}))
    }

    async fn add_subject(
        &self,
        call: Call<AddSubjectRequest>,
    ) -> Result<Response<AddSubjectResponse>, Status> {
        let subject = Subject { number: 7, ..self.enter(call)?.subject.unwrap() };
        Ok(Response::new(AddSubjectResponse { subject: Some(subject) }))
    }

    async fn list_subjects(
        &self,
        call: Call<ListSubjectsRequest>,
    ) -> Result<Response<ListSubjectsResponse>, Status> {
        self.enter(call)?;
        let disabled =
            subjects().into_iter().last().map(|last| (last.id, at("2026-11-22T09:00:00Z").unwrap()));
        let disabled = disabled.into_iter().collect();
        Ok(Response::new(ListSubjectsResponse { subjects: subjects(), disabled }))
    }

    async fn issue_token(
        &self,
        call: Call<IssueTokenRequest>,
    ) -> Result<Response<IssueTokenResponse>, Status> {
        self.enter(call)?;
        Ok(Response::new(IssueTokenResponse { token: "pct_new".into() }))
    }

    async fn disable_subject(
        &self,
        call: Call<DisableSubjectRequest>,
    ) -> Result<Response<DisableSubjectResponse>, Status> {
        self.enter(call)?;
        Ok(Response::new(DisableSubjectResponse { grants: 2, requests: 1 }))
    }

    async fn enable_subject(
        &self,
        call: Call<EnableSubjectRequest>,
    ) -> Result<Response<EnableSubjectResponse>, Status> {
        self.enter(call)?;
        Ok(Response::new(EnableSubjectResponse {}))
    }

    async fn unbind_subject(
        &self,
        call: Call<UnbindSubjectRequest>,
    ) -> Result<Response<UnbindSubjectResponse>, Status> {
        self.enter(call)?;
        Ok(Response::new(UnbindSubjectResponse {}))
    }

    async fn add_host(&self, call: Call<AddHostRequest>) -> Result<Response<AddHostResponse>, Status> {
        let name = self.enter(call)?.name;
        let host = Host { name, state: HostState::Unreachable.into(), ..Host::default() };
        Ok(Response::new(AddHostResponse { host: Some(host), join_token: "pcj_join".into() }))
    }

    async fn issue_join_token(
        &self,
        call: Call<IssueJoinTokenRequest>,
    ) -> Result<Response<IssueJoinTokenResponse>, Status> {
        self.enter(call)?;
        Ok(Response::new(IssueJoinTokenResponse { join_token: "pcj_join".into() }))
    }

    async fn revoke_host(
        &self,
        call: Call<RevokeHostRequest>,
    ) -> Result<Response<RevokeHostResponse>, Status> {
        self.enter(call)?;
        Ok(Response::new(RevokeHostResponse {}))
    }

    async fn list_hosts(&self, call: Call<ListHostsRequest>) -> Result<Response<ListHostsResponse>, Status> {
        self.enter(call)?;
        Ok(Response::new(ListHostsResponse { hosts: self.hosts.clone().unwrap_or_else(hosts) }))
    }
}

type Stream<T> = tokio_stream::Iter<std::vec::IntoIter<Result<T, Status>>>;

fn play<T>(scripts: &Mutex<VecDeque<Script<T>>>) -> Response<Stream<T>> {
    let script = scripts.lock().unwrap().pop_front().expect("the test has a script for each stream");
    let status = |(kind, message, hint)| proto::status::status(kind, message, hint);
    let messages: Vec<_> = script.into_iter().map(|message| message.map_err(status)).collect();
    Response::new(tokio_stream::iter(messages))
}

#[tonic::async_trait]
impl AccessService for Canned {
    type WatchRequestStream = Stream<WatchRequestResponse>;

    async fn create_request(
        &self,
        call: Call<CreateRequestRequest>,
    ) -> Result<Response<CreateRequestResponse>, Status> {
        self.enter(call)?;
        Ok(Response::new(CreateRequestResponse { request: Some(request(RequestState::Pending)) }))
    }

    async fn list_requests(
        &self,
        call: Call<ListRequestsRequest>,
    ) -> Result<Response<ListRequestsResponse>, Status> {
        let states = match self.enter(call)?.all {
            true => vec![RequestState::Pending, RequestState::Approved, RequestState::Denied],
            false => vec![RequestState::Pending],
        };
        Ok(Response::new(ListRequestsResponse { requests: states.into_iter().map(request).collect() }))
    }

    async fn watch_request(
        &self,
        call: Call<WatchRequestRequest>,
    ) -> Result<Response<Self::WatchRequestStream>, Status> {
        self.enter(call)?;
        Ok(play(&self.watches))
    }

    async fn approve_request(
        &self,
        call: Call<ApproveRequestRequest>,
    ) -> Result<Response<ApproveRequestResponse>, Status> {
        // Whoever approves for less is not the last.
        if self.enter(call)?.duration.is_some() {
            let request = Some(request(RequestState::Pending));
            return Ok(Response::new(ApproveRequestResponse { request, grant: None }));
        }
        let grant = grant(GrantState::Activating, EndReason::Unspecified, [(true, ""), (false, "")]);
        let request = Some(request(RequestState::Approved));
        Ok(Response::new(ApproveRequestResponse { request, grant: Some(grant) }))
    }

    async fn deny_request(
        &self,
        call: Call<DenyRequestRequest>,
    ) -> Result<Response<DenyRequestResponse>, Status> {
        self.enter(call)?;
        Ok(Response::new(DenyRequestResponse { request: Some(request(RequestState::Denied)) }))
    }

    async fn withdraw_request(
        &self,
        call: Call<WithdrawRequestRequest>,
    ) -> Result<Response<WithdrawRequestResponse>, Status> {
        self.enter(call)?;
        Ok(Response::new(WithdrawRequestResponse { request: Some(request(RequestState::Withdrawn)) }))
    }

    async fn list_drafts(
        &self,
        call: Call<ListDraftsRequest>,
    ) -> Result<Response<ListDraftsResponse>, Status> {
        self.enter(call)?;
        Ok(Response::new(ListDraftsResponse { drafts: vec![draft()], left_out: 2 }))
    }

    async fn drop_draft(&self, call: Call<DropDraftRequest>) -> Result<Response<DropDraftResponse>, Status> {
        self.enter(call)?;
        Ok(Response::new(DropDraftResponse { draft: Some(draft()) }))
    }

    async fn list_grants(
        &self,
        call: Call<ListGrantsRequest>,
    ) -> Result<Response<ListGrantsResponse>, Status> {
        let mut grants = vec![active()];
        if self.enter(call)?.all {
            let failed = [(false, "map GRANTS is full (65536 entries)"), (false, "")];
            grants.push(grant(GrantState::Ending, EndReason::Released, [(false, ""), (true, "")]));
            grants.push(grant(GrantState::Ended, EndReason::ActivationFailed, failed));
        }
        Ok(Response::new(ListGrantsResponse { grants }))
    }

    async fn list_access(
        &self,
        call: Call<ListAccessRequest>,
    ) -> Result<Response<ListAccessResponse>, Status> {
        let asked = self.enter(call)?;
        let access = |host: &str, certainty: AccessCertainty| Access {
            subject: "user:alice@example.com".into(),
            resource: "db-prod".into(),
            host: host.into(),
            certainty: certainty.into(),
            since: at("2026-11-22T09:58:00Z"),
            until: at("2026-11-22T11:28:00Z"),
            grant: GRANT.into(),
            request: REQUEST.into(),
            role: "debug-prod".into(),
            reason: "slow query, INC-42".into(),
            requester: "user:alice@example.com".into(),
            approvers: vec!["user:bob".into(), "user:eve".into()],
        };
        let is_first = asked.after.is_empty();
        let access = match asked.at {
            None if !is_first => vec![access("db-9", AccessCertainty::Possible)],
            None => vec![access("db-7", AccessCertainty::Held), access("db-8", AccessCertainty::Possible)],
            Some(_) => vec![access("db-7", AccessCertainty::Granted)],
        };
        let more = asked.resource.is_empty() && is_first;
        let next = if more { format!("{GRANT}/db-8") } else { String::new() };
        Ok(Response::new(ListAccessResponse { access, more, next }))
    }

    async fn revoke_grant(
        &self,
        call: Call<RevokeGrantRequest>,
    ) -> Result<Response<RevokeGrantResponse>, Status> {
        self.enter(call)?;
        let grant = grant(GrantState::Ending, EndReason::Revoked, [(true, ""), (false, "")]);
        Ok(Response::new(RevokeGrantResponse { grant: Some(grant) }))
    }

    async fn release_grant(
        &self,
        call: Call<ReleaseGrantRequest>,
    ) -> Result<Response<ReleaseGrantResponse>, Status> {
        self.enter(call)?;
        let grant = grant(GrantState::Ended, EndReason::Released, [(false, ""), (false, "")]);
        Ok(Response::new(ReleaseGrantResponse { grant: Some(grant) }))
    }

    async fn list_reviews(
        &self,
        call: Call<ListReviewsRequest>,
    ) -> Result<Response<ListReviewsResponse>, Status> {
        let mut reviews = vec![review(false)];
        if self.enter(call)?.all {
            reviews.push(review(true));
        }
        Ok(Response::new(ListReviewsResponse { reviews }))
    }

    async fn review_grant(
        &self,
        call: Call<ReviewGrantRequest>,
    ) -> Result<Response<ReviewGrantResponse>, Status> {
        self.enter(call)?;
        Ok(Response::new(ReviewGrantResponse { review: Some(review(true)) }))
    }

    async fn freeze(&self, call: Call<FreezeRequest>) -> Result<Response<FreezeResponse>, Status> {
        let asked = self.enter(call)?;
        let freeze = Freeze { resources: asked.resources, keep_live: asked.keep_live, ..freeze() };
        Ok(Response::new(FreezeResponse { freeze: Some(freeze), grants: 2 }))
    }

    async fn list_freezes(
        &self,
        call: Call<ListFreezesRequest>,
    ) -> Result<Response<ListFreezesResponse>, Status> {
        let mut freezes = vec![freeze()];
        if self.enter(call)?.all {
            let ended = at("2026-11-22T09:59:00Z");
            freezes.push(Freeze { ended, ended_by: "user:admin".into(), resources: vec![], ..freeze() });
            freezes.push(Freeze { ended, ..freeze() });
        }
        Ok(Response::new(ListFreezesResponse { freezes }))
    }

    async fn thaw(&self, call: Call<ThawRequest>) -> Result<Response<ThawResponse>, Status> {
        self.enter(call)?;
        let (ended, ended_by) = (at("2026-11-22T09:59:00Z"), "user:admin".into());
        Ok(Response::new(ThawResponse { freeze: Some(Freeze { ended, ended_by, ..freeze() }) }))
    }

    async fn open_incident(
        &self,
        call: Call<OpenIncidentRequest>,
    ) -> Result<Response<OpenIncidentResponse>, Status> {
        let OpenIncidentRequest { id, reason, .. } = self.enter(call)?;
        Ok(Response::new(OpenIncidentResponse { incident: Some(Incident { id, reason, ..incident() }) }))
    }

    async fn list_incidents(
        &self,
        call: Call<ListIncidentsRequest>,
    ) -> Result<Response<ListIncidentsResponse>, Status> {
        let mut incidents = vec![incident()];
        if self.enter(call)?.all {
            let closed = at("2026-11-22T09:59:00Z");
            let closed_by = "user:admin".into();
            incidents.push(Incident { id: "inc-41".into(), closed, closed_by, ..incident() });
            incidents.push(Incident { id: "inc-40".into(), closed, reason: String::new(), ..incident() });
        }
        Ok(Response::new(ListIncidentsResponse { incidents }))
    }

    async fn close_incident(
        &self,
        call: Call<CloseIncidentRequest>,
    ) -> Result<Response<CloseIncidentResponse>, Status> {
        self.enter(call)?;
        let (closed, closed_by) = (at("2026-11-22T09:59:00Z"), "user:admin".into());
        let incident = Incident { closed, closed_by, ..incident() };
        Ok(Response::new(CloseIncidentResponse { incident: Some(incident) }))
    }

    async fn activate_grant(
        &self,
        call: Call<ActivateGrantRequest>,
    ) -> Result<Response<ActivateGrantResponse>, Status> {
        self.enter(call)?;
        let grant = grant(GrantState::Activating, EndReason::Unspecified, [(true, ""), (false, "")]);
        Ok(Response::new(ActivateGrantResponse { grant: Some(grant) }))
    }

    async fn extend_grant(
        &self,
        call: Call<ExtendGrantRequest>,
    ) -> Result<Response<ExtendGrantResponse>, Status> {
        // What is longer than an hour has to be approved.
        let asked = self.enter(call)?;
        let state = match asked.duration.is_some_and(|by| by.seconds > 3600) {
            true => RequestState::Pending,
            false => RequestState::Approved,
        };
        let request = Request { extends: GRANT.into(), duration: asked.duration, ..request(state) };
        let grant = Grant { extensions: 1, ..active() };
        Ok(Response::new(ExtendGrantResponse { request: Some(request), grant: Some(grant) }))
    }
}

fn version(version: u64) -> PolicyVersion {
    PolicyVersion {
        version,
        author: "user:admin".into(),
        applied: at("2026-11-22T08:00:00Z"),
        comment: "infra#211".into(),
        restores: if version == 7 { 5 } else { 0 },
    }
}

#[tonic::async_trait]
impl PolicyService for Canned {
    async fn plan_policy(
        &self,
        call: Call<PlanPolicyRequest>,
    ) -> Result<Response<PlanPolicyResponse>, Status> {
        // All of it would be too much to be remembered.
        self.enter(Call::from_parts(call.metadata().clone(), call.extensions().clone(), "PlanPolicy"))?;
        Ok(Response::new(PlanPolicyResponse { plan: Some(self.plan.clone()) }))
    }

    async fn apply_policy(
        &self,
        call: Call<ApplyPolicyRequest>,
    ) -> Result<Response<ApplyPolicyResponse>, Status> {
        let (metadata, extensions, ApplyPolicyRequest { before, comment, restores, .. }) = call.into_parts();
        let said = (before, comment, restores);
        self.enter(Call::from_parts(metadata, extensions, ("ApplyPolicy", said)))?;
        Ok(Response::new(ApplyPolicyResponse { version: Some(version(8)), plan: Some(self.plan.clone()) }))
    }

    async fn list_policies(
        &self,
        call: Call<ListPoliciesRequest>,
    ) -> Result<Response<ListPoliciesResponse>, Status> {
        self.enter(call)?;
        Ok(Response::new(ListPoliciesResponse { versions: vec![version(7), version(6)] }))
    }

    async fn get_policy(&self, call: Call<GetPolicyRequest>) -> Result<Response<GetPolicyResponse>, Status> {
        let asked = self.enter(call)?.version;
        let file = |path: &str, text: &str| PolicyFile { path: path.into(), text: text.into() };
        Ok(Response::new(GetPolicyResponse {
            version: Some(version(if asked == 0 { 7 } else { asked })),
            files: vec![
                file("limits.toml", "maximum_duration = \"8h\"\n"),
                file("conditions/mfa.cedar", "// none\n"),
            ],
        }))
    }
}

#[tonic::async_trait]
impl AuditService for Canned {
    type TailStream = Stream<TailResponse>;

    async fn tail(&self, call: Call<TailRequest>) -> Result<Response<Self::TailStream>, Status> {
        self.enter(call)?;
        Ok(play(&self.tails))
    }
}

#[tonic::async_trait]
impl IdentityService for Canned {
    async fn list_providers(
        &self,
        _: Call<ListProvidersRequest>,
    ) -> Result<Response<ListProvidersResponse>, Status> {
        Ok(Response::new(ListProvidersResponse { providers: self.providers.clone() }))
    }

    async fn sign_in(&self, _: Call<SignInRequest>) -> Result<Response<SignInResponse>, Status> {
        Err(Status::unimplemented("the stories sign in for real"))
    }

    async fn sign_in_workload(
        &self,
        _: Call<SignInWorkloadRequest>,
    ) -> Result<Response<SignInWorkloadResponse>, Status> {
        Err(Status::unimplemented("the stories sign in for real"))
    }

    async fn sign_in_with_certificate(
        &self,
        _: Call<SignInWithCertificateRequest>,
    ) -> Result<Response<SignInWithCertificateResponse>, Status> {
        Err(Status::unimplemented("the stories sign in for real"))
    }

    async fn sign_out(&self, call: Call<SignOutRequest>) -> Result<Response<SignOutResponse>, Status> {
        self.enter(call)?;
        Ok(Response::new(SignOutResponse {}))
    }

    async fn issue_run_pass(
        &self,
        call: Call<IssueRunPassRequest>,
    ) -> Result<Response<IssueRunPassResponse>, Status> {
        self.enter(call)?;
        Err(Status::not_found("host `db-7` is not known"))
    }

    async fn who_am_i(&self, call: Call<WhoAmIRequest>) -> Result<Response<WhoAmIResponse>, Status> {
        self.enter(call)?;
        let token = Identity {
            subject: "user:alice@example.com".into(),
            role: SubjectRole::Approver.into(),
            credential: Credential::Token.into(),
            ..Identity::default()
        };
        let session = Identity {
            credential: Credential::Session.into(),
            provider: "corp".into(),
            signed_in: at("2026-11-22T09:30:00Z"),
            expires: at("2026-11-22T10:30:00Z"),
            ..token.clone()
        };
        let identity = Some(if self.has_session { session } else { token });
        Ok(Response::new(WhoAmIResponse { identity }))
    }
}

pub(crate) const NEXT_GRANT: &str = "019aac20-1f4e-7d22-8c55-0a9b8c7d6e70";

fn grant_use(grant: &str, usage: Usage) -> GrantUse {
    let is_used = usage == Usage::OverWide;
    GrantUse {
        grant: grant.into(),
        request: REQUEST.into(),
        subject: "user:alice@example.com".into(),
        resource: "db-prod".into(),
        role: "debug-prod".into(),
        usage: usage.into(),
        hosts: 3,
        hosts_used: u32::from(is_used),
        hosts_unused: vec!["db-8".into(), "db-9".into()],
        ports: vec!["tcp/5432".into(), "tcp/6000-6010".into()],
        ports_used: if is_used { vec!["tcp/5432".into()] } else { Vec::new() },
        since: at("2026-11-20T09:00:00Z"),
        until: at("2026-11-20T11:00:00Z"),
        first_used: if is_used { at("2026-11-20T09:05:00Z") } else { None },
        last_used: if is_used { at("2026-11-20T09:20:30Z") } else { None },
        connections: if is_used { 12 } else { 0 },
        notes: match is_used {
            true => {
                vec!["2 of 3 hosts were not used: db-8, db-9".into(), "last used after 20m 30s of 2h".into()]
            }
            false => Vec::new(),
        },
    }
}

#[tonic::async_trait]
impl ReportService for Canned {
    async fn list_grant_uses(
        &self,
        call: Call<ListGrantUsesRequest>,
    ) -> Result<Response<ListGrantUsesResponse>, Status> {
        let is_first = self.enter(call)?.after.is_empty();
        Ok(Response::new(match is_first {
            true => {
                ListGrantUsesResponse { grants: vec![grant_use(GRANT, Usage::OverWide)], next: GRANT.into() }
            }
            false => ListGrantUsesResponse {
                grants: vec![grant_use(NEXT_GRANT, Usage::Unused)],
                next: String::new(),
            },
        }))
    }

    async fn suggest_roles(
        &self,
        call: Call<SuggestRolesRequest>,
    ) -> Result<Response<SuggestRolesResponse>, Status> {
        self.enter(call)?;
        let role = RoleUse {
            role: "debug-prod".into(),
            grants: 7,
            unused: 2,
            unknown: 1,
            subjects: vec!["user:alice@example.com".into(), "user:bob".into()],
            other_subjects: 4,
            longest: seconds(1380),
            maximum: seconds(7200),
            resources_unused: vec!["vault".into()],
            hosts_unused: vec!["db-9".into()],
            suggestion: "[[role]]\nname = \"debug-prod\"\nresources = [\"db-prod\"]\n".into(),
            notes: vec!["1 of 2 resources".into(), "30m at most instead of 2h".into()],
        };
        Ok(Response::new(SuggestRolesResponse { roles: vec![role], more: true }))
    }

    async fn list_waiting(
        &self,
        call: Call<ListWaitingRequest>,
    ) -> Result<Response<ListWaitingResponse>, Status> {
        self.enter(call)?;
        Ok(Response::new(ListWaitingResponse { requests: vec![request(RequestState::Pending)] }))
    }

    async fn review_access(
        &self,
        call: Call<ReviewAccessRequest>,
    ) -> Result<Response<ReviewAccessResponse>, Status> {
        let is_first = self.enter(call)?.after.is_empty();
        let event = |position: u64, event: &str| EventReference {
            position,
            id: format!("control-plane/00000000-0000-0000-0000-000000000001/{position}"),
            event: event.into(),
            time: at("2026-11-20T09:00:00Z"),
        };
        let votes = request(RequestState::Approved).votes;
        let reviewed = |grant, usage, reason: &str, votes| ReviewedAccess {
            r#use: Some(grant_use(grant, usage)),
            requester: "user:rita".into(),
            policy: 7,
            reason: reason.into(),
            requested: at("2026-11-20T08:50:00Z"),
            approved: at("2026-11-20T09:00:00Z"),
            active: at("2026-11-20T09:00:01Z"),
            ended: at("2026-11-20T11:00:00Z"),
            state: "ended (time)".into(),
            votes,
            hosts: vec!["db-7".into(), "db-8".into(), "db-9".into()],
            extensions: 1,
            events: vec![event(41, "request.created"), event(43, "grant.issued")],
            more_events: is_first,
        };
        Ok(Response::new(match is_first {
            true => ReviewAccessResponse {
                grants: vec![reviewed(GRANT, Usage::OverWide, "slow \"query\",\nINC-42", votes)],
                next: GRANT.into(),
            },
            false => ReviewAccessResponse {
                grants: vec![reviewed(NEXT_GRANT, Usage::Unused, "=HYPERLINK(\"http://x\")", Vec::new())],
                next: String::new(),
            },
        }))
    }
}

/// A running canned control plane, with a folder of its own.
pub(crate) struct World {
    pub(crate) canned: Canned,
    pub(crate) dir: tempfile::TempDir,
}

impl World {
    pub(crate) async fn start(canned: Canned) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), TOKEN).unwrap();
        let listener = tokio::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(DirectoryServiceServer::new(canned.clone()))
            .add_service(AccessServiceServer::new(canned.clone()))
            .add_service(AuditServiceServer::new(canned.clone()))
            .add_service(IdentityServiceServer::new(canned.clone()))
            .add_service(PolicyServiceServer::new(canned.clone()))
            .add_service(ReportServiceServer::new(canned.clone()))
            .serve_with_incoming(UnixListenerStream::new(listener));
        tokio::spawn(server);
        Self { canned, dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs one command line at 10:00 UTC and shows all that came of it.
    pub(crate) async fn run(&self, line: &[&str]) -> String {
        let server = format!("--server=unix:{}", self.path("socket").display());
        let token = format!("--token-file={}", self.path("token").display());
        self.run_bare(&[line, &[&server, &token]].concat(), line).await
    }

    /// The same, without naming server and token.
    pub(crate) async fn run_bare(&self, args: &[&str], shown: &[&str]) -> String {
        let mut shown = shown.join(" ");
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let surroundings = cli::Surroundings {
            out: &mut out,
            err: &mut err,
            input: &mut TOKEN.as_bytes(),
            now: || "2026-11-22T10:00:00Z".parse().unwrap(),
            zone: jiff::tz::TimeZone::UTC,
            config_dir: Some(self.path("config/portcullis")),
            job: cli::Job::default(),
            browser: None,
        };
        let args = ["portcullis"].iter().chain(args).map(Into::into);
        let code = cli::run(args, surroundings).await;
        shown.insert_str(0, "$ portcullis ");
        for (name, text) in [("out", out), ("err", err)] {
            let text = String::from_utf8(text).unwrap();
            if !text.is_empty() {
                write!(shown, "\n--- {name}\n{}", text.trim_end()).unwrap();
            }
        }
        write!(shown, "\n--- exit code {code}\n\n").unwrap();
        without(&shown, self.dir.path())
    }
}

/// A text without the name of a folder that differs from run to run.
pub(crate) fn without(text: &str, dir: &Path) -> String {
    text.replace(&dir.display().to_string(), "[DIR]")
}
