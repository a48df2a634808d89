//! Resources, subjects, hosts, requests, grants and new tokens as people and programs see them.
//!
//! In JSON: ids and names are strings, times RFC 3339 in UTC, durations whole seconds; a field that does not apply is
//! left out. A state has the same name in both forms.

use std::collections::BTreeMap;

use proto::types::{
    Access, Action, EndReason, Grant, GrantState, HookAnswer, Host, Request, Resource, SignIn, Subject,
    SubjectIdentity, Timestamp, Vote, Waiting,
};
use serde::Serialize;

use super::text::{cut, words};
use super::{Row, View, exact, utc};

/// How much of a free text fits a line of a table.
const TEXT_SHOWN_MAX: usize = 60;

/// A resource.
#[derive(Serialize)]
#[allow(missing_docs, reason = "as in access.proto")]
pub struct ResourceRow {
    pub name: String,
    pub number: u32,
    pub addresses: Vec<String>,
    pub ports: Vec<String>,
    pub unix: Vec<String>,
    pub mode: &'static str,
    pub strict: bool,
    pub check_senders: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub serve_only: Vec<String>,
    pub outage: String,
    pub drafts: bool,
}

impl From<Resource> for ResourceRow {
    fn from(resource: Resource) -> Self {
        Self {
            name: resource.name.to_string(),
            number: resource.number.get(),
            addresses: resource.addresses().iter().map(ToString::to_string).collect(),
            ports: resource.ports.iter().map(ToString::to_string).collect(),
            unix: resource.unix.iter().map(ToString::to_string).collect(),
            mode: resource.options.mode.as_str(),
            strict: resource.options.strict,
            check_senders: resource.options.check_senders,
            serve_only: resource.options.serve_only.iter().map(ToString::to_string).collect(),
            outage: resource.options.outage.to_string(),
            drafts: resource.options.drafts,
        }
    }
}

impl Row for ResourceRow {
    const HEADER: &'static [&'static str] = &["NAME", "MODE", "OPTIONS", "ADDRESSES", "PORTS", "UNIX"];

    fn cells(&self, _: &View) -> Vec<String> {
        let options = [
            ("strict", self.strict),
            ("check-senders", self.check_senders),
            ("serve-only", !self.serve_only.is_empty()),
            (self.outage.as_str(), self.outage != "hold"),
            ("drafts", self.drafts),
        ];
        let options: Vec<String> =
            options.into_iter().filter(|(_, on)| *on).map(|(option, _)| option.to_owned()).collect();
        let (addresses, ports, unix) = (words(&self.addresses), words(&self.ports), words(&self.unix));
        vec![self.name.clone(), self.mode.to_owned(), words(&options), addresses, ports, unix]
    }
}

/// A resource that is not protected any more.
#[derive(Serialize)]
pub struct RemovedRow {
    /// Its name.
    pub removed: String,
}

impl Row for RemovedRow {
    const HEADER: &'static [&'static str] = &["REMOVED"];

    fn cells(&self, _: &View) -> Vec<String> {
        vec![self.removed.clone()]
    }
}

/// A subject.
#[derive(Serialize)]
#[allow(missing_docs, reason = "as in access.proto")]
pub struct SubjectRow {
    pub id: String,
    pub number: u32,
    pub role: &'static str,
    pub selectors: Vec<String>,
    pub disabled: bool,
}

impl From<Subject> for SubjectRow {
    fn from(subject: Subject) -> Self {
        Self {
            id: subject.id.into(),
            number: subject.number.get(),
            role: subject.role.as_str(),
            selectors: subject.selectors.iter().map(ToString::to_string).collect(),
            // Whoever lists them knows.
            disabled: false,
        }
    }
}

impl Row for SubjectRow {
    const HEADER: &'static [&'static str] = &["ID", "ROLE", "DISABLED", "SELECTORS"];

    fn cells(&self, _: &View) -> Vec<String> {
        let disabled = if self.disabled { "yes" } else { "" };
        vec![self.id.clone(), self.role.to_owned(), disabled.to_owned(), words(&self.selectors)]
    }
}

/// Whom the control plane takes somebody for.
#[derive(Serialize)]
#[allow(missing_docs, reason = "as in identity.proto")]
pub struct IdentityRow {
    pub subject: String,
    pub role: &'static str,
    pub credential: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signed_in: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    #[serde(skip)]
    sign_in: Option<SignIn>,
}

impl From<SubjectIdentity> for IdentityRow {
    fn from(identity: SubjectIdentity) -> Self {
        let sign_in = identity.sign_in.as_ref();
        Self {
            subject: identity.subject.to_string(),
            role: identity.role.as_str(),
            credential: identity.credential().as_str(),
            provider: sign_in.map(|sign_in| sign_in.provider.to_string()),
            signed_in: sign_in.map(|sign_in| utc(sign_in.began)),
            expires: sign_in.map(|sign_in| utc(sign_in.expires)),
            sign_in: identity.sign_in,
        }
    }
}

impl Row for IdentityRow {
    const HEADER: &'static [&'static str] = &["SUBJECT", "ROLE", "CREDENTIAL", "PROVIDER", "UNTIL"];

    fn cells(&self, view: &View) -> Vec<String> {
        vec![
            self.subject.clone(),
            self.role.to_owned(),
            self.credential.to_owned(),
            self.provider.clone().unwrap_or_default(),
            self.sign_in.as_ref().map(|sign_in| view.clock(sign_in.expires)).unwrap_or_default(),
        ]
    }
}

/// A host and what is known of its gate.
#[derive(Serialize)]
#[allow(missing_docs, reason = "as in access.proto")]
pub struct HostRow {
    pub name: String,
    pub state: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
    pub applied_generation: u64,
    pub wanted_generation: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seen: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub agent_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kernel_release: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<String>,
    #[serde(skip)]
    host: Host,
}

impl From<Host> for HostRow {
    fn from(host: Host) -> Self {
        Self {
            name: host.name.to_string(),
            state: host.state.as_str().replace(' ', "_"),
            detail: host.detail.clone(),
            applied_generation: host.applied_generation,
            wanted_generation: host.generation,
            seen: host.seen.map(utc),
            agent_version: host.agent_version.clone(),
            kernel_release: host.kernel_release.clone(),
            confirmed: host.confirmed.map(utc),
            labels: host.labels.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
            host,
        }
    }
}

impl Row for HostRow {
    const HEADER: &'static [&'static str] =
        &["HOST", "STATE", "APPLIED", "WANTED", "SEEN", "AGENT", "KERNEL", "DETAIL"];

    fn cells(&self, view: &View) -> Vec<String> {
        vec![
            self.name.clone(),
            self.state.clone(),
            self.applied_generation.to_string(),
            self.wanted_generation.to_string(),
            self.host.seen.map(|seen| view.since(seen)).unwrap_or_default(),
            one_word(&self.agent_version),
            one_word(&self.kernel_release),
            self.detail.clone(),
        ]
    }
}

/// What an agent said about itself may hold anything; a column holds one word.
fn one_word(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join("_")
}

/// The one thing that a grant may be used for.
#[derive(Serialize)]
#[allow(missing_docs, reason = "as in access.proto")]
pub struct ActionPart {
    pub executable: String,
    pub sha256: String,
    pub arguments: Vec<String>,
}

impl From<Action> for ActionPart {
    fn from(action: Action) -> Self {
        Self {
            executable: action.executable.to_string(),
            sha256: action.sha256.iter().map(|byte| format!("{byte:02x}")).collect(),
            arguments: action.arguments.iter().map(ToString::to_string).collect(),
        }
    }
}

/// A request.
#[derive(Serialize)]
#[allow(missing_docs, reason = "as in access.proto")]
pub struct RequestRow {
    pub id: String,
    pub state: &'static str,
    pub resource: String,
    pub subject: String,
    pub hosts: Vec<String>,
    pub duration_s: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub while_running: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<ActionPart>,
    pub reason: String,
    pub requester: String,
    pub created: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub comment: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lapses: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub votes: Vec<VotePart>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<AnswerPart>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<WaitingPart>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extends: Option<String>,
    #[serde(skip)]
    request: Request,
}

/// One person's yes or no.
#[derive(Serialize)]
#[allow(missing_docs, reason = "as proto has them; an empty or absent part was left out")]
pub struct VotePart {
    pub by: String,
    pub at: String,
    pub yes: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub comment: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_s: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
}

impl From<&Vote> for VotePart {
    fn from(vote: &Vote) -> Self {
        Self {
            by: vote.by.to_string(),
            at: utc(vote.at),
            yes: vote.yes,
            comment: vote.comment.clone(),
            duration_s: vote.duration.map(|duration| duration.as_secs()),
            hosts: vote.hosts.iter().map(ToString::to_string).collect(),
        }
    }
}

/// What a program said that was asked.
#[derive(Serialize)]
#[allow(missing_docs, reason = "as proto has them")]
pub struct AnswerPart {
    pub hook: String,
    pub at: String,
    pub yes: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub comment: String,
}

impl From<&HookAnswer> for AnswerPart {
    fn from(answer: &HookAnswer) -> Self {
        let HookAnswer { hook, at, yes, comment } = answer;
        Self { hook: hook.to_string(), at: utc(*at), yes: *yes, comment: comment.clone() }
    }
}

/// For whom a request waits.
#[derive(Serialize)]
#[allow(missing_docs, reason = "as proto has them")]
pub struct WaitingPart {
    pub step: u32,
    pub steps: u32,
    pub more: u32,
    pub approvers: Vec<String>,
    pub others: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

impl From<&Waiting> for WaitingPart {
    fn from(waiting: &Waiting) -> Self {
        Self {
            step: waiting.step,
            steps: waiting.steps,
            more: waiting.more,
            approvers: waiting.approvers.iter().map(ToString::to_string).collect(),
            others: waiting.others,
            hooks: waiting.hooks.iter().map(ToString::to_string).collect(),
            until: waiting.until.map(utc),
        }
    }
}

/// `1 of user:emil,user:fay`.
fn waits_for(waiting: &Waiting) -> String {
    let others = if waiting.others > 0 { format!(",+{}", waiting.others) } else { String::new() };
    let mut names: Vec<String> = waiting.approvers.iter().map(ToString::to_string).collect();
    names.extend(waiting.hooks.iter().map(|hook| format!("hook:{hook}")));
    format!("{} of {}{others}", waiting.more, words(&names))
}

impl From<Request> for RequestRow {
    fn from(request: Request) -> Self {
        Self {
            id: request.id.to_string(),
            state: request.state.as_str(),
            resource: request.resource.to_string(),
            subject: request.subject.to_string(),
            hosts: request.hosts.iter().map(ToString::to_string).collect(),
            duration_s: request.duration.as_secs(),
            idle_s: request.idle.map(|idle| idle.as_secs()),
            while_running: request.while_running.as_ref().map(ToString::to_string),
            run: request.run.map(|id| id.to_string()),
            action: request.action.clone().map(Into::into),
            reason: request.reason.to_string(),
            requester: request.requester.to_string(),
            created: utc(request.created),
            decided_by: request.decided.as_ref().and_then(|(by, _)| by.as_ref()).map(ToString::to_string),
            decided: request.decided.as_ref().map(|(_, when)| utc(*when)),
            comment: request.comment.clone(),
            grant: request.grant.map(|id| id.to_string()),
            policy: request.judged.as_ref().map(|(version, _)| *version),
            role: request.judged.as_ref().map(|(_, role)| role.to_string()),
            lapses: request.lapses.map(utc),
            votes: request.votes.iter().map(VotePart::from).collect(),
            answers: request.answers.iter().map(AnswerPart::from).collect(),
            waiting: request.waiting.as_ref().map(WaitingPart::from),
            extends: request.extends.map(|id| id.to_string()),
            request,
        }
    }
}

impl Row for RequestRow {
    const HEADER: &'static [&'static str] = &[
        "ID",
        "STATE",
        "AGE",
        "FOR",
        "SUBJECT",
        "RESOURCE",
        "HOSTS",
        "REQUESTER",
        "DECIDED-BY",
        "WAITS-FOR",
        "REASON",
    ];

    fn cells(&self, view: &View) -> Vec<String> {
        vec![
            self.id.clone(),
            self.state.to_owned(),
            view.since(self.request.created),
            match self.extends {
                Some(_) => format!("+{}", exact(self.request.duration)),
                None => exact(self.request.duration),
            },
            self.subject.clone(),
            self.resource.clone(),
            words(&self.hosts),
            self.requester.clone(),
            self.decided_by.clone().unwrap_or_default(),
            self.request.waiting.as_ref().map(waits_for).unwrap_or_default(),
            match &self.request.action {
                None => cut(&self.reason, TEXT_SHOWN_MAX),
                // Who decides must see it, whole.
                Some(action) => format!("{}; only, and once: {action}", cut(&self.reason, TEXT_SHOWN_MAX)),
            },
        ]
    }
}

/// A grant.
#[derive(Serialize)]
#[allow(missing_docs, reason = "as in access.proto")]
pub struct GrantRow {
    pub id: String,
    pub state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_reason: Option<&'static str>,
    pub request: String,
    pub resource: String,
    pub subject: String,
    pub hosts: Vec<String>,
    /// Those of `hosts` whose kernel holds it.
    pub hosts_held: Vec<String>,
    /// Host to why its kernel could not hold it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub host_errors: BTreeMap<String, String>,
    /// Host to the latest moment at which its kernel can let somebody through by it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub host_until: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub while_running: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<ActionPart>,
    pub issued: String,
    pub expires: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    pub extensions: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub begins: Option<String>,
    /// How long it will live, once activated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_s: Option<u64>,
    #[serde(skip)]
    grant: Grant,
}

impl From<Grant> for GrantRow {
    fn from(grant: Grant) -> Self {
        let failed = grant.hosts.iter().filter(|host| !host.error.is_empty());
        let until = grant.hosts.iter().filter_map(|host| Some((host, host.until?)));
        Self {
            id: grant.id.to_string(),
            state: grant.state.as_str(),
            end_reason: grant.state.end_reason().map(EndReason::as_str),
            request: grant.request.to_string(),
            resource: grant.resource.to_string(),
            subject: grant.subject.to_string(),
            hosts: grant.hosts.iter().map(|host| host.name.to_string()).collect(),
            hosts_held: grant
                .hosts
                .iter()
                .filter(|host| host.held)
                .map(|host| host.name.to_string())
                .collect(),
            host_errors: failed.map(|host| (host.name.to_string(), host.error.clone())).collect(),
            host_until: until.map(|(host, until)| (host.name.to_string(), utc(until))).collect(),
            idle_s: grant.idle.map(|idle| idle.as_secs()),
            while_running: grant.while_running.as_ref().map(ToString::to_string),
            run: grant.run.map(|id| id.to_string()),
            action: grant.action.clone().map(Into::into),
            issued: utc(grant.issued),
            expires: utc(grant.expires),
            ended: grant.ended.map(utc),
            extensions: grant.extensions,
            begins: grant.begins.map(utc),
            duration_s: grant.duration.map(|duration| duration.as_secs()),
            grant,
        }
    }
}

impl Row for GrantRow {
    const HEADER: &'static [&'static str] =
        &["ID", "STATE", "HELD", "REMAINING", "EXPIRES", "IDLE", "SUBJECT", "RESOURCE", "HOSTS"];

    fn cells(&self, view: &View) -> Vec<String> {
        let remaining = match self.grant.state {
            GrantState::Ended(_) => String::new(),
            // Once it has begun.
            GrantState::Scheduled => self.grant.duration.map(exact).unwrap_or_default(),
            GrantState::Activating | GrantState::Active | GrantState::Ending(_) => {
                view.until(self.grant.expires)
            }
        };
        vec![
            self.id.clone(),
            self.grant.state.to_string().replace(' ', ""),
            format!("{}/{}", self.hosts_held.len(), self.hosts.len()),
            remaining,
            view.clock(self.grant.expires),
            self.grant.idle.map(exact).unwrap_or_default(),
            self.subject.clone(),
            self.resource.clone(),
            words(&self.hosts),
        ]
    }
}

/// A token that was just issued, or where it was written.
#[derive(Serialize)]
pub struct TokenRow {
    /// Whose it is; None: a host's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Whose agent's it is; None: a subject's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The token; None: it was written to a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Where it was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<String>,
}

/// Who can reach what, from one host.
#[derive(Serialize)]
#[allow(missing_docs, reason = "as proto has them; an empty or absent part was left out")]
pub struct AccessRow {
    pub subject: String,
    pub resource: String,
    pub host: String,
    pub certainty: &'static str,
    pub since: String,
    pub until: String,
    pub grant: String,
    pub request: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    pub reason: String,
    pub requester: String,
    pub approvers: Vec<String>,
    #[serde(skip)]
    ends: Timestamp,
}

impl From<Access> for AccessRow {
    fn from(access: Access) -> Self {
        Self {
            subject: access.subject.to_string(),
            resource: access.resource.to_string(),
            host: access.host.to_string(),
            certainty: access.certainty.as_str(),
            since: utc(access.since),
            until: utc(access.until),
            grant: access.grant.to_string(),
            request: access.request.to_string(),
            role: access.role.map(|role| role.to_string()),
            reason: access.reason,
            requester: access.requester.to_string(),
            approvers: access.approvers.iter().map(ToString::to_string).collect(),
            ends: access.until,
        }
    }
}

impl Row for AccessRow {
    const HEADER: &'static [&'static str] =
        &["SUBJECT", "RESOURCE", "HOST", "CERTAINTY", "UNTIL", "GRANT", "ROLE", "APPROVED-BY", "REASON"];

    fn cells(&self, view: &View) -> Vec<String> {
        vec![
            self.subject.clone(),
            self.resource.clone(),
            self.host.clone(),
            self.certainty.to_owned(),
            view.clock(self.ends),
            self.grant.clone(),
            self.role.clone().unwrap_or_default(),
            words(&self.approvers),
            cut(&self.reason, TEXT_SHOWN_MAX),
        ]
    }
}
