//! Requests: wishes with a reason and a duration.

use std::fmt::{self, Display};
use std::str::FromStr;
use std::time::Duration;

use super::{
    Action, CgroupPath, DraftId, GrantId, HookName, HostName, Invalid, RequestId, ResourceName, RoleName,
    RunId, SubjectId, Timestamp, all, duration_from_wire, duration_to_wire, optional_action, optional_cgroup,
    optional_run, time,
};
use crate::wire::access as wire;

/// How many programs may have answered: more than a role can ask.
const ANSWERS_MAX: usize = 64;

/// How many hosts one request may name.
const HOSTS_MAX: usize = 1000;

/// How many requests or grants one call lists at most.
pub const GRANT_LIMIT_MAX: u32 = 1000;

/// The limit of a list call: 0 stands for 100, more than [`GRANT_LIMIT_MAX`] is refused.
pub fn page_limit(limit: u32) -> Result<u32, Invalid> {
    match limit {
        0 => Ok(100),
        1..=GRANT_LIMIT_MAX => Ok(limit),
        _ => Err(Invalid::new("limit", format_args!("{limit} is above {GRANT_LIMIT_MAX}"))),
    }
}

/// Why somebody asks, in their words: 1..=1000 characters, not only white space, no control characters but line feeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason(String);

impl Reason {
    const MAX_CHARS: usize = 1000;

    /// The text, without white space around it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A remark that may be left out, by the same rules otherwise. Empty: none.
    pub fn optional(field: &str, text: &str) -> Result<String, Invalid> {
        match text.trim().is_empty() {
            true => Ok(String::new()),
            false => {
                let reason: Self =
                    text.parse().map_err(|error: Invalid| Invalid::new(field, error.problem))?;
                Ok(reason.0)
            }
        }
    }
}

impl FromStr for Reason {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let text = text.trim();
        let refuse = |problem: &dyn Display| Err(Invalid::new("reason", problem));
        if text.is_empty() {
            return refuse(&"is empty: say what the access is for");
        }
        let chars = text.chars().count();
        if chars > Self::MAX_CHARS {
            return refuse(&format_args!("has {chars} characters, at most {} are possible", Self::MAX_CHARS));
        }
        if text.chars().any(|char| char.is_control() && char != '\n') {
            return refuse(&"has a control character");
        }
        Ok(Self(text.to_owned()))
    }
}

impl Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// By what whoever asks tells a wish from their others, so that it is granted once, however often it is sent: 1 to 64 letters, digits,
/// `.`, `_`, `:` or `-`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestKey(String);

impl RequestKey {
    const MAX_LEN: usize = 64;

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RequestKey {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
        match (1..=Self::MAX_LEN).contains(&text.len()) && text.bytes().all(allowed) {
            true => Ok(Self(text.to_owned())),
            false => {
                let problem =
                    format_args!("is not 1 to {} letters, digits, `.`, `_`, `:` or `-`", Self::MAX_LEN);
                Err(Invalid::new("key", problem))
            }
        }
    }
}

impl Display for RequestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A request as somebody makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRequest {
    /// What is to be reached.
    pub resource: ResourceName,
    /// Who is to reach it; None: the caller.
    pub subject: Option<SubjectId>,
    /// From which hosts; empty: every host known now.
    pub hosts: Vec<HostName>,
    /// For how long, from approval: whole seconds, at least one. The control plane knows the maximum. None: as its role says by default.
    pub duration: Option<Duration>,
    /// Why.
    pub reason: Reason,
    /// How long nothing may be let through until it ends: whole seconds, at least one, less than `duration`, or than what the role says
    /// by default, which the control plane checks. None: no limit.
    pub idle: Option<Duration>,
    /// It ends when this cgroup is empty or gone; then `hosts` names one at most.
    pub while_running: Option<CgroupPath>,
    /// It is for this run, and `hosts` names one at most; None: for all of the subject's processes.
    pub run: Option<RunId>,
    /// It is for this alone, once; None: for whatever the subject does.
    pub action: Option<Action>,
    /// By which role of the policy in force; None: by the one that fits best.
    pub role: Option<RoleName>,
    /// By what it is told from the others of who asks; None: it is a wish of its own each time.
    pub key: Option<RequestKey>,
    /// The draft that it completes: its resource, and its one host; None: none.
    pub draft: Option<DraftId>,
}

impl TryFrom<wire::CreateRequestRequest> for NewRequest {
    type Error = Invalid;

    fn try_from(wire: wire::CreateRequestRequest) -> Result<Self, Invalid> {
        let seconds = |field, wire: Option<_>| wire.map(|wire| whole_seconds(field, Some(wire))).transpose();
        let duration = seconds("duration", wire.duration)?;
        let idle = seconds("idle", wire.idle)?;
        if let (Some(idle), Some(duration)) = (idle, duration)
            && idle >= duration
        {
            let problem = format_args!("{idle:?} is not less than the duration, {duration:?}");
            return Err(Invalid::new("idle", problem));
        }
        let mut hosts = hosts(wire.hosts)?;
        hosts.sort_unstable();
        hosts.dedup();
        let while_running = optional_cgroup("while_running", &wire.while_running)?;
        if while_running.is_some() && hosts.len() > 1 {
            let problem = format_args!("a cgroup is on one host, and {} are named", hosts.len());
            return Err(Invalid::new("while_running", problem));
        }
        let run = optional_run(&wire.run)?;
        if run.is_some() && hosts.len() > 1 {
            let problem = format_args!("a run is on one host, and {} are named", hosts.len());
            return Err(Invalid::new("run", problem));
        }
        let action = optional_action(wire.action)?;
        if action.is_some() && hosts.len() > 1 {
            let problem = format_args!("one use is on one host, and {} are named", hosts.len());
            return Err(Invalid::new("action", problem));
        }
        Ok(Self {
            resource: wire.resource.parse()?,
            subject: (!wire.subject.is_empty()).then(|| wire.subject.parse()).transpose()?,
            hosts,
            duration,
            reason: wire.reason.parse()?,
            idle,
            while_running,
            run,
            action,
            role: optional_role(&wire.role)?,
            key: (!wire.key.is_empty()).then(|| wire.key.parse()).transpose()?,
            draft: (!wire.draft.is_empty()).then(|| wire.draft.parse()).transpose()?,
        })
    }
}

/// Empty: None.
fn optional_role(text: &str) -> Result<Option<RoleName>, Invalid> {
    (!text.is_empty()).then(|| text.parse()).transpose()
}

/// A duration that somebody chose.
pub(crate) fn whole_seconds(field: &str, wire: Option<prost_types::Duration>) -> Result<Duration, Invalid> {
    let duration = duration_from_wire(field, wire)?;
    match duration.is_zero() || duration.subsec_nanos() != 0 {
        true => Err(Invalid::new(field, format_args!("{duration:?} is not 1 s or more in whole seconds"))),
        false => Ok(duration),
    }
}

/// The same, of which there is a longest.
pub(crate) fn whole_seconds_up_to(
    maximum: Duration,
    field: &str,
    wire: Option<prost_types::Duration>,
) -> Result<Duration, Invalid> {
    let duration = whole_seconds(field, wire)?;
    let (asked, most) = (duration.as_secs(), maximum.as_secs());
    match duration > maximum {
        true => Err(Invalid::new(field, format_args!("{asked} s is above the maximum of {most} s"))),
        false => Ok(duration),
    }
}

impl From<NewRequest> for wire::CreateRequestRequest {
    fn from(new: NewRequest) -> Self {
        Self {
            resource: new.resource.into(),
            subject: new.subject.map(Into::into).unwrap_or_default(),
            hosts: new.hosts.into_iter().map(Into::into).collect(),
            duration: new.duration.map(duration_to_wire),
            reason: new.reason.0,
            idle: new.idle.map(duration_to_wire),
            while_running: new.while_running.map(Into::into).unwrap_or_default(),
            run: new.run.map(|id| id.to_string()).unwrap_or_default(),
            action: new.action.map(Into::into),
            role: new.role.map(Into::into).unwrap_or_default(),
            key: new.key.map(|key| key.0).unwrap_or_default(),
            draft: new.draft.map(|id| id.to_string()).unwrap_or_default(),
        }
    }
}

/// A wish to have a grant for longer, as its holder says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewExtension {
    /// Which grant.
    pub grant: GrantId,
    /// By how much: whole seconds, at least one.
    pub by: Duration,
    /// Why; None: for what it was asked for.
    pub reason: Option<Reason>,
}

impl TryFrom<wire::ExtendGrantRequest> for NewExtension {
    type Error = Invalid;

    fn try_from(wire: wire::ExtendGrantRequest) -> Result<Self, Invalid> {
        Ok(Self {
            grant: wire.id.parse()?,
            by: whole_seconds("duration", wire.duration)?,
            reason: (!wire.reason.is_empty()).then(|| wire.reason.parse()).transpose()?,
        })
    }
}

impl From<NewExtension> for wire::ExtendGrantRequest {
    fn from(new: NewExtension) -> Self {
        let reason = new.reason.map(|reason| reason.0).unwrap_or_default();
        Self { id: new.grant.to_string(), duration: Some(duration_to_wire(new.by)), reason }
    }
}

/// One person's yes, as they say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewApproval {
    /// To which request.
    pub request: RequestId,
    /// A remark; may be empty.
    pub comment: String,
    /// For at most so long: whole seconds, at least one. None: as asked for.
    pub duration: Option<Duration>,
    /// On these alone; empty: on all that were asked for.
    pub hosts: Vec<HostName>,
}

impl TryFrom<wire::ApproveRequestRequest> for NewApproval {
    type Error = Invalid;

    fn try_from(wire: wire::ApproveRequestRequest) -> Result<Self, Invalid> {
        let mut hosts = hosts(wire.hosts)?;
        hosts.sort_unstable();
        hosts.dedup();
        Ok(Self {
            request: wire.id.parse()?,
            comment: Reason::optional("comment", &wire.comment)?,
            duration: wire.duration.map(|it| whole_seconds("duration", Some(it))).transpose()?,
            hosts,
        })
    }
}

impl From<NewApproval> for wire::ApproveRequestRequest {
    fn from(new: NewApproval) -> Self {
        let NewApproval { request, comment, duration, hosts } = new;
        Self {
            id: request.to_string(),
            comment,
            duration: duration.map(duration_to_wire),
            hosts: hosts.into_iter().map(Into::into).collect(),
        }
    }
}

/// One person's yes or no, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vote {
    /// Whose.
    pub by: SubjectId,
    /// When.
    pub at: Timestamp,
    /// Yes.
    pub yes: bool,
    /// A remark; may be empty.
    pub comment: String,
    /// For at most so long; None: as asked for.
    pub duration: Option<Duration>,
    /// On these alone; empty: as asked for.
    pub hosts: Vec<HostName>,
}

/// What a program said that a step of the policy asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookAnswer {
    /// Which one.
    pub hook: HookName,
    /// When.
    pub at: Timestamp,
    /// Yes. No answer that counts is a no.
    pub yes: bool,
    /// What it said besides, or why there is no answer.
    pub comment: String,
}

impl TryFrom<wire::HookAnswer> for HookAnswer {
    type Error = Invalid;

    fn try_from(wire: wire::HookAnswer) -> Result<Self, Invalid> {
        let wire::HookAnswer { hook, at, yes, comment } = wire;
        Ok(Self { hook: hook.parse()?, at: time::required("at", at)?, yes, comment })
    }
}

impl From<HookAnswer> for wire::HookAnswer {
    fn from(answer: HookAnswer) -> Self {
        let HookAnswer { hook, at, yes, comment } = answer;
        Self { hook: hook.into(), at: Some(at.into()), yes, comment }
    }
}

impl TryFrom<wire::Vote> for Vote {
    type Error = Invalid;

    fn try_from(wire: wire::Vote) -> Result<Self, Invalid> {
        let duration = wire.duration.map(|it| duration_from_wire("duration", Some(it))).transpose()?;
        Ok(Self {
            by: wire.by.parse::<SubjectId>().map_err(|error| error.within("by"))?,
            at: time::required("at", wire.at)?,
            yes: wire.yes,
            comment: wire.comment,
            duration,
            hosts: hosts(wire.hosts)?,
        })
    }
}

impl From<Vote> for wire::Vote {
    fn from(vote: Vote) -> Self {
        let Vote { by, at, yes, comment, duration, hosts } = vote;
        Self {
            by: by.into(),
            at: Some(at.into()),
            yes,
            comment,
            duration: duration.map(duration_to_wire),
            hosts: hosts.into_iter().map(Into::into).collect(),
        }
    }
}

/// For whom a request waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// From 1.
    pub step: u32,
    /// Of so many.
    pub steps: u32,
    /// How many more have to say yes in this step.
    pub more: u32,
    /// Any of these: the first of them by name, at most [`Waiting::SHOWN_MAX`].
    pub approvers: Vec<SubjectId>,
    /// And so many others.
    pub others: u32,
    /// And of these programs, which are being asked.
    pub hooks: Vec<HookName>,
    /// When something follows by itself; None: nothing does.
    pub until: Option<Timestamp>,
}

impl Waiting {
    /// How many approvers are named.
    pub const SHOWN_MAX: usize = 20;
}

impl TryFrom<wire::Waiting> for Waiting {
    type Error = Invalid;

    fn try_from(wire: wire::Waiting) -> Result<Self, Invalid> {
        let approver = |id: String| id.parse::<SubjectId>();
        let hook = |name: String| name.parse::<HookName>();
        Ok(Self {
            step: wire.step,
            steps: wire.steps,
            more: wire.more,
            hooks: all("hooks", wire.hooks, Self::SHOWN_MAX, hook)?,
            approvers: all("approvers", wire.approvers, Self::SHOWN_MAX, approver)?,
            others: wire.others,
            until: time::optional("until", wire.until)?,
        })
    }
}

impl From<Waiting> for wire::Waiting {
    fn from(waiting: Waiting) -> Self {
        let Waiting { step, steps, more, approvers, others, hooks, until } = waiting;
        let approvers = approvers.into_iter().map(Into::into).collect();
        let hooks = hooks.into_iter().map(Into::into).collect();
        Self { step, steps, more, approvers, others, hooks, until: until.map(Into::into) }
    }
}

fn hosts(wire: Vec<String>) -> Result<Vec<HostName>, Invalid> {
    all("hosts", wire, HOSTS_MAX, |name| {
        name.parse().map_err(|error: Invalid| Invalid::new("", error.problem))
    })
}

/// Where a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestState {
    /// Nobody has decided.
    Pending,
    /// It led to a grant.
    Approved,
    /// It did not.
    Denied,
    /// Who asked, or whom it was for, took it back.
    Withdrawn,
    /// Nobody decided in time.
    Lapsed,
}

impl RequestState {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Pending, Self::Approved, Self::Denied, Self::Withdrawn, Self::Lapsed];

    /// As people read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Approved => "approved",
            Self::Denied => "denied",
            Self::Withdrawn => "withdrawn",
            Self::Lapsed => "lapsed",
        }
    }
}

impl Display for RequestState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A request as the control plane keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its id.
    pub id: RequestId,
    /// Where it stands.
    pub state: RequestState,
    /// What is to be reached.
    pub resource: ResourceName,
    /// Whose processes are to be let through.
    pub subject: SubjectId,
    /// From which hosts; never empty.
    pub hosts: Vec<HostName>,
    /// Of the grant, from approval.
    pub duration: Duration,
    /// Why.
    pub reason: Reason,
    /// Who asked.
    pub requester: SubjectId,
    /// When it was made.
    pub created: Timestamp,
    /// Who decided (None: no person, but the policy, or time), and when; None while pending.
    pub decided: Option<(Option<SubjectId>, Timestamp)>,
    /// What who decided said; may be empty.
    pub comment: String,
    /// What it led to; None unless approved.
    pub grant: Option<GrantId>,
    /// Of the grant: how long nothing may be let through until it ends. None: no limit.
    pub idle: Option<Duration>,
    /// Of the grant: it ends when this cgroup is empty or gone.
    pub while_running: Option<CgroupPath>,
    /// Of the grant: it is for this run; None: for all of the subject's processes.
    pub run: Option<RunId>,
    /// It is for this alone, once; None: for whatever the subject does.
    pub action: Option<Action>,
    /// By which version of the policy it was judged, and which role of it; None: there was none.
    pub judged: Option<(u64, RoleName)>,
    /// When it is over if nobody has decided; None: never.
    pub lapses: Option<Timestamp>,
    /// In the order in which they came.
    pub votes: Vec<Vote>,
    /// Of programs that were asked, in the order in which they came.
    pub answers: Vec<HookAnswer>,
    /// For whom it waits; None unless it is pending and judged by a policy.
    pub waiting: Option<Waiting>,
    /// The grant that is to live longer by `duration`; None: it asks for a new one.
    pub extends: Option<GrantId>,
}

/// How many people can have voted about one request.
const VOTES_MAX: usize = 1000;

impl TryFrom<wire::Request> for Request {
    type Error = Invalid;

    fn try_from(wire: wire::Request) -> Result<Self, Invalid> {
        let state = match wire.state() {
            wire::RequestState::Pending => RequestState::Pending,
            wire::RequestState::Approved => RequestState::Approved,
            wire::RequestState::Denied => RequestState::Denied,
            wire::RequestState::Withdrawn => RequestState::Withdrawn,
            wire::RequestState::Lapsed => RequestState::Lapsed,
            wire::RequestState::Unspecified => return Err(Invalid::new("state", "is missing or unknown")),
        };
        let decided = match time::optional("decided", wire.decided)? {
            None => None,
            Some(when) => {
                let by = (!wire.decided_by.is_empty()).then(|| wire.decided_by.parse::<SubjectId>());
                Some((by.transpose().map_err(|error| error.within("decided_by"))?, when))
            }
        };
        let judged = match (wire.policy, optional_role(&wire.role)?) {
            (0, None) => None,
            (version @ 1.., Some(role)) => Some((version, role)),
            (0, Some(_)) | (_, None) => {
                return Err(Invalid::new("role", "is there without a policy, or not with one"));
            }
        };
        Ok(Self {
            id: wire.id.parse()?,
            state,
            resource: wire.resource.parse()?,
            subject: wire.subject.parse()?,
            hosts: hosts(wire.hosts)?,
            duration: duration_from_wire("duration", wire.duration)?,
            reason: wire.reason.parse()?,
            requester: wire.requester.parse()?,
            created: time::required("created", wire.created)?,
            decided,
            comment: wire.comment,
            grant: (!wire.grant.is_empty()).then(|| wire.grant.parse()).transpose()?,
            idle: wire.idle.map(|idle| duration_from_wire("idle", Some(idle))).transpose()?,
            while_running: optional_cgroup("while_running", &wire.while_running)?,
            run: optional_run(&wire.run)?,
            action: optional_action(wire.action)?,
            judged,
            lapses: time::optional("lapses", wire.lapses)?,
            votes: all("votes", wire.votes, VOTES_MAX, TryInto::try_into)?,
            answers: all("answers", wire.answers, ANSWERS_MAX, TryInto::try_into)?,
            waiting: wire.waiting.map(TryInto::try_into).transpose()?,
            extends: (!wire.extends.is_empty()).then(|| wire.extends.parse()).transpose()?,
        })
    }
}

impl From<Request> for wire::Request {
    fn from(request: Request) -> Self {
        let state = match request.state {
            RequestState::Pending => wire::RequestState::Pending,
            RequestState::Approved => wire::RequestState::Approved,
            RequestState::Denied => wire::RequestState::Denied,
            RequestState::Withdrawn => wire::RequestState::Withdrawn,
            RequestState::Lapsed => wire::RequestState::Lapsed,
        };
        let (decided_by, decided) = request.decided.unzip();
        let (policy, role) = request.judged.unzip();
        Self {
            id: request.id.to_string(),
            state: state.into(),
            resource: request.resource.into(),
            subject: request.subject.into(),
            hosts: request.hosts.into_iter().map(Into::into).collect(),
            duration: Some(duration_to_wire(request.duration)),
            reason: request.reason.0,
            requester: request.requester.into(),
            created: Some(request.created.into()),
            decided_by: decided_by.flatten().map(Into::into).unwrap_or_default(),
            decided: decided.map(Into::into),
            comment: request.comment,
            grant: request.grant.map(|id| id.to_string()).unwrap_or_default(),
            idle: request.idle.map(duration_to_wire),
            while_running: request.while_running.map(Into::into).unwrap_or_default(),
            run: request.run.map(|id| id.to_string()).unwrap_or_default(),
            action: request.action.map(Into::into),
            policy: policy.unwrap_or(0),
            role: role.map(Into::into).unwrap_or_default(),
            lapses: request.lapses.map(Into::into),
            votes: request.votes.into_iter().map(Into::into).collect(),
            answers: request.answers.into_iter().map(Into::into).collect(),
            waiting: request.waiting.map(Into::into),
            extends: request.extends.map(|id| id.to_string()).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(change: impl FnOnce(&mut wire::CreateRequestRequest), expected: Result<(), &str>) {
        let mut wire = wire::CreateRequestRequest {
            resource: "db".into(),
            subject: "user:alice".into(),
            hosts: vec![],
            duration: Some(duration_to_wire(Duration::from_secs(60))),
            reason: "look at the slow query".into(),
            idle: None,
            while_running: String::new(),
            run: String::new(),
            action: None,
            role: String::new(),
            key: String::new(),
            draft: String::new(),
        };
        change(&mut wire);
        match (NewRequest::try_from(wire), expected) {
            (Ok(new), Ok(())) => {
                assert_eq!(NewRequest::try_from(wire::CreateRequestRequest::from(new.clone())), Ok(new))
            }
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (got, expected) => panic!("{got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn new_requests() {
        check(|_| {}, Ok(()));
        check(|wire| wire.subject.clear(), Ok(()));
        check(|wire| wire.hosts = vec!["b".into(), "a".into()], Ok(()));
        check(|wire| wire.resource.clear(), Err("resource: "));
        check(|wire| wire.duration = None, Ok(()));
        check(|wire| wire.duration = Some(duration_to_wire(Duration::ZERO)), Err("duration: 0ns is not 1 s"));
        check(|wire| wire.duration = Some(duration_to_wire(Duration::from_millis(1500))), Err("1.5s is not"));
        check(|wire| wire.reason = " \n ".into(), Err("reason: is empty"));
        check(|wire| wire.reason = "x".repeat(1001), Err("reason: has 1001 characters"));
        check(|wire| wire.reason = "a\u{1b}[31m".into(), Err("reason: has a control character"));
        check(|wire| wire.hosts = vec!["A!".into()], Err("hosts: `A!` is not a name"));
        check(|wire| wire.hosts = vec!["a".into(); 1001], Err("hosts: has 1001 entries"));
        check(|wire| wire.key = "ci:job-4711.2_a".into(), Ok(()));
        check(|wire| wire.draft = DraftId::new().to_string(), Ok(()));
        check(|wire| wire.draft = "mine".into(), Err("`mine` is not an id"));
        check(|wire| wire.key = "a b".into(), Err("key: is not 1 to 64 letters"));
        check(|wire| wire.key = "x".repeat(65), Err("key: is not 1 to 64 letters"));
    }

    /// What is far too much is refused before anybody looks at it, and what only looks like a name is none.
    #[test]
    fn too_much_and_look_alikes() {
        check(|wire| wire.reason = "x".repeat(1 << 20), Err("reason: has 1048576 characters, at most 1000"));
        check(|wire| wire.hosts = vec!["a".into(); 10_000], Err("hosts: has 10000 entries"));
        check(|wire| wire.resource = "d".repeat(1 << 20), Err("is longer than 63 bytes"));
        // Cyrillic a, fullwidth b, a combining mark, and one that nobody sees.
        for look_alike in ["d\u{430}", "d\u{ff42}", "db\u{301}", "d\u{200b}b", "DB"] {
            check(|wire| wire.resource = look_alike.into(), Err("is not a name"));
            check(|wire| wire.hosts = vec![look_alike.into()], Err("is not a name"));
            check(|wire| wire.role = look_alike.into(), Err("is not a name"));
            check(
                |wire| wire.subject = format!("user:{look_alike}"),
                Err("has a character that is not one of"),
            );
        }
        check(|wire| wire.subject = "us\u{435}r:alice".into(), Err("is not a subject"));
    }

    #[test]
    fn extensions() {
        let wire = |reason: &str, seconds| wire::ExtendGrantRequest {
            id: GrantId::new().to_string(),
            duration: Some(duration_to_wire(Duration::from_secs(seconds))),
            reason: reason.to_owned(),
        };
        for good in [wire("", 60), wire("it takes longer", 1)] {
            let new = NewExtension::try_from(good.clone()).expect("valid");
            assert_eq!(wire::ExtendGrantRequest::from(new), good);
        }
        let refused = |wire: wire::ExtendGrantRequest| {
            NewExtension::try_from(wire).expect_err("is refused").to_string()
        };
        assert!(refused(wire("", 0)).contains("duration: 0ns is not 1 s"));
        assert!(refused(wire(&"x".repeat(1 << 20), 60)).contains("reason: has 1048576 characters"));
        assert!(refused(wire(" ", 60)).contains("reason: is empty"));
        let nameless = wire::ExtendGrantRequest { id: "mine".into(), ..wire("", 60) };
        assert!(refused(nameless).contains("`mine` is not an id"));
    }

    #[test]
    fn ends_before_the_deadline() {
        let seconds = |seconds| Some(duration_to_wire(Duration::from_secs(seconds)));
        check(|wire| wire.idle = seconds(59), Ok(()));
        check(|wire| wire.idle = seconds(60), Err("idle: 60s is not less than the duration, 60s"));
        // The control plane knows how long that is.
        check(|wire| (wire.duration, wire.idle) = (None, seconds(60)), Ok(()));
        check(|wire| wire.idle = seconds(0), Err("idle: 0ns is not 1 s or more"));
        check(
            |wire| wire.idle = Some(duration_to_wire(Duration::from_millis(1500))),
            Err("idle: 1.5s is not"),
        );
        check(|wire| wire.while_running = "/app.slice/job".into(), Ok(()));
        check(
            |wire| wire.while_running = "app.slice".into(),
            Err("while_running: `app.slice` is not absolute"),
        );
        check(|wire| wire.while_running = "/".into(), Err("while_running: `/` is the root"));
        let on = |hosts: &'static [&'static str]| {
            move |wire: &mut wire::CreateRequestRequest| {
                wire.while_running = "/job".into();
                wire.hosts = hosts.iter().map(ToString::to_string).collect();
            }
        };
        check(on(&["a", "a"]), Ok(()));
        check(on(&["a", "b"]), Err("while_running: a cgroup is on one host, and 2 are named"));
    }

    #[test]
    fn for_one_run() {
        let on = |hosts: &'static [&'static str]| {
            move |wire: &mut wire::CreateRequestRequest| {
                wire.run = RunId::new().to_string();
                wire.hosts = hosts.iter().map(ToString::to_string).collect();
            }
        };
        check(on(&[]), Ok(()));
        check(on(&["a"]), Ok(()));
        check(on(&["a", "b"]), Err("run: a run is on one host, and 2 are named"));
        check(|wire| wire.run = "mine".into(), Err("run: `mine` is not an id"));
    }
}
