//! Why something asked for is not done: one list, with the kind and the next step for each.
//!
//! Owns: the texts that people read when the control plane says no. Must not know: how they reach them.

use std::time::Duration;

use policy::approval::Ignored;
use proto::status::ErrorKind;
use proto::types::{
    DraftId, FreezeId, GrantId, GrantState, HookName, HostName, IncidentId, ProviderName, RequestId,
    RequestKey, RequestState, ResourceName, RoleName, SubjectId, Timestamp,
};

/// Why something asked for is not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the texts say it")]
pub enum Refusal {
    #[error("resource `{0}` is not known")]
    UnknownResource(ResourceName),
    #[error("subject `{0}` is not known")]
    UnknownSubject(SubjectId),
    #[error("host `{0}` is not known")]
    UnknownHost(HostName),
    #[error("request {0} is not known")]
    UnknownRequest(RequestId),
    #[error("grant {0} is not known")]
    UnknownGrant(GrantId),
    #[error("resource `{0}` is there already")]
    ResourceExists(ResourceName),
    #[error("subject `{0}` is there already")]
    SubjectExists(SubjectId),
    #[error("host `{0}` is there already")]
    HostExists(HostName),
    #[error("selector `{selector}` belongs to subject `{subject}`")]
    SelectorTaken { selector: String, subject: SubjectId },
    #[error("{destination} belongs to resource `{resource}`")]
    DestinationTaken { destination: String, resource: ResourceName },
    #[error("resource `{resource}` cannot be removed: grant {grant} of `{subject}` is {state}{}", and_others(*others))]
    StillGranted {
        resource: ResourceName,
        grant: GrantId,
        subject: SubjectId,
        state: GrantState,
        others: u64,
    },
    #[error("resource `{resource}` was removed after request {request} was made")]
    ResourceRemoved { resource: ResourceName, request: RequestId },
    #[error("key `{key}` is that of request {request}, which asks for something else")]
    KeyUsed { key: RequestKey, request: RequestId },
    #[error("no host is known")]
    NoHost,
    #[error("a cgroup, a run or one use is on one host, and the request is for {0}")]
    OneHostOnly(usize),
    #[error("duration: {} is above the maximum of {}", humantime::format_duration(*asked), humantime::format_duration(*maximum))]
    TooLong { asked: Duration, maximum: Duration },
    #[error("duration: is missing, and no policy is in force that has a default")]
    NoDuration,
    #[error("duration: is missing, and role `{role}` (policy version {version}) has no default")]
    NoDefaultDuration { role: RoleName, version: u64 },
    #[error(
        "idle: {} is not less than the duration, {}",
        humantime::format_duration(*idle),
        humantime::format_duration(*duration)
    )]
    IdleTooLong { idle: Duration, duration: Duration },
    #[error("subject `{caller}` may not ask for `{subject}`")]
    ForSomebodyElse { caller: SubjectId, subject: SubjectId },
    #[error("subject `{approver}` may not decide request {request}: {tie}")]
    OwnRequest { approver: SubjectId, request: RequestId, tie: &'static str },
    #[error("request {request} is {state} already: {} at {}", decider(by.as_ref()), moment(*at))]
    AlreadyDecided { request: RequestId, state: RequestState, by: Option<SubjectId>, at: Timestamp },
    #[error("subject `{approver}` may not decide request {request}: {why}")]
    VoteNotCounted { approver: SubjectId, request: RequestId, why: Ignored },
    #[error(
        "subject `{caller}` may not withdraw request {request}: it did not ask for it, nor is it for itself"
    )]
    NotRequester { caller: SubjectId, request: RequestId },
    #[error("the policy (version {version}) does not permit it: {reasons}{}", that_helps(help))]
    NotPermitted { version: u64, reasons: String, help: String },
    #[error("role `{0}` is not known: no policy is in force")]
    NoPolicy(RoleName),
    #[error("the policy has no version {0}")]
    UnknownPolicy(u64),
    #[error("version {actual} of the policy is in force, not {expected}")]
    OtherPolicy { expected: u64, actual: u64 },
    #[error("the policy is not valid: {problem}{}", and_problems(*others))]
    BadPolicy { problem: String, others: usize },
    #[error("role `{role}` asks hook `{hook}`, which is not configured")]
    UnknownHook { hook: HookName, role: RoleName },
    #[error("its time would have begun at {} and is over since {}", moment(*begins), moment(*until))]
    TimeOver { begins: Timestamp, until: Timestamp },
    #[error("grant {grant} begins by itself at {}", moment(*begins))]
    BeginsByItself { grant: GrantId, begins: Timestamp },
    #[error("grant {0} has not begun")]
    NotBegun(GrantId),
    #[error("resource `{resource}` of the policy is protected as {known}, and the policy says {said}")]
    ResourceDiffers { resource: ResourceName, known: String, said: String },
    #[error("grant {grant} is {state} already")]
    NotLive { grant: GrantId, state: GrantState },
    #[error("resource `{resource}` is frozen until {} by `{by}`: {reason}", moment(*until))]
    Frozen { resource: ResourceName, until: Timestamp, by: SubjectId, reason: String },
    #[error(
        "subject `{caller}` may not review grant {grant}: it is no approver of its role, or used it itself"
    )]
    NotReviewer { caller: SubjectId, grant: GrantId },
    #[error("grant {grant} is reviewed already: by `{by}` at {}", moment(*at))]
    AlreadyReviewed { grant: GrantId, by: SubjectId, at: Timestamp },
    #[error("grant {0} was not had by a role for emergencies")]
    NotBrokenGlass(GrantId),
    #[error("draft {0} is not known")]
    UnknownDraft(DraftId),
    #[error("draft {draft} is of `{resource}` on host `{host}`, and the request is not")]
    OtherThanDraft { draft: DraftId, resource: ResourceName, host: HostName },
    #[error("freeze {0} is not known")]
    UnknownFreeze(FreezeId),
    #[error("freeze {0} is over")]
    FreezeOver(FreezeId),
    #[error("{0} freezes hold already, and no more can")]
    TooManyFreezes(usize),
    #[error("incident `{0}` is not known")]
    UnknownIncident(IncidentId),
    #[error("incident `{0}` is closed")]
    IncidentClosed(IncidentId),
    #[error("{0} incidents are open already, and no more can be")]
    TooManyIncidents(usize),
    #[error("role `{0}` lets nothing be extended")]
    NoExtension(RoleName),
    #[error("grant {grant} has been extended {times} times, which is all that its role permits")]
    ExtendedEnough { grant: GrantId, times: u32 },
    #[error(
        "{} is above the {} by which its role lets it be extended",
        humantime::format_duration(*asked),
        humantime::format_duration(*maximum)
    )]
    ExtensionTooLong { asked: Duration, maximum: Duration },
    #[error(
        "grant {grant} would live for {} in all, and {} is the maximum",
        humantime::format_duration(*total),
        humantime::format_duration(*maximum)
    )]
    ExtendedTooLong { grant: GrantId, total: Duration, maximum: Duration },
    #[error("request {0} is to extend a grant, which is done on all of its hosts")]
    ExtensionHosts(RequestId),
    #[error("subject `{caller}` does not hold grant {grant} and did not ask for it")]
    NotHolder { caller: SubjectId, grant: GrantId },
    #[error("identity provider `{0}` is not known")]
    UnknownProvider(ProviderName),
    #[error("`{0}` is not let in: no group of theirs has a role, and they are not in the directory")]
    NotLetIn(SubjectId),
    #[error(
        "`{subject}` belongs to another account{}",
        if *same_issuer { " of this identity provider" } else { ", at another identity provider" }
    )]
    OtherAccount { subject: SubjectId, same_issuer: bool },
    #[error("this account belongs to `{owner}`, and cannot also be `{subject}`")]
    OtherName { subject: SubjectId, owner: SubjectId },
    #[error("`{0}` is disabled")]
    Disabled(SubjectId),
    #[error("`{0}` is disabled already")]
    AlreadyDisabled(SubjectId),
    #[error("`{0}` is not disabled")]
    NotDisabled(SubjectId),
    #[error("`{0}` cannot disable itself")]
    OwnSubject(SubjectId),
    #[error("`{0}` belongs to no account: nobody has signed in under this name yet")]
    NotBound(SubjectId),
    #[error("the ID token was used before")]
    IdTokenUsed,
    #[error("the token was used {0} times before, which is all that it is good for")]
    TokenUsedUp(u32),
    #[error(
        "host `{host}` was not brought by cluster `{cluster}`, or was revoked: its tokens are no evidence for it"
    )]
    NotOfCluster { host: HostName, cluster: ProviderName },
    #[error("this is a static token, which has no session to end")]
    NoSession,
    #[error("too many sign in with this provider at once")]
    TooManySignIns,
    #[error("after_position: {asked} lies beyond the newest event, {newest}")]
    BeyondNewest { asked: u64, newest: u64 },
    #[error("the join token is not known: it counts once, and ends when another one is issued")]
    UnknownJoinToken,
    #[error("the join token is over")]
    JoinTokenOver,
    #[error("the join token is not for host `{asking}`")]
    OtherHost { asking: HostName },
    #[error("the certificate of host `{0}` is not known here")]
    UnknownCertificate(HostName),
    #[error("the certificate of host `{0}` was revoked")]
    RevokedCertificate(HostName),
    #[error(
        "the certificate of host `{0}` was replaced by another one, which was used since: this is a copy"
    )]
    SupersededCertificate(HostName),
    #[error("the certificate of host `{0}` is over")]
    ExpiredCertificate(HostName),
    #[error("audit.events[{index}].{field}: {problem}")]
    BadEvent { index: usize, field: &'static str, problem: String },
}

/// A moment as people and machines read it, in UTC.
fn moment(time: Timestamp) -> String {
    let since = Duration::from_millis(u64::try_from(time.unix_ms()).unwrap_or(0));
    humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + since).to_string()
}

/// Who decided, in words.
fn decider(by: Option<&SubjectId>) -> String {
    by.map_or_else(|| "it was decided".to_owned(), |by| format!("`{by}` decided"))
}

/// What would help; empty: nothing is known.
fn that_helps(help: &str) -> String {
    if help.is_empty() { String::new() } else { format!(" (what would help: {help})") }
}

/// How many more problems than the one that is named.
fn and_problems(others: usize) -> String {
    if others == 0 { String::new() } else { format!("; and {others} more") }
}

/// How many more grants than the one that is named.
fn and_others(others: u64) -> String {
    match others {
        0 => String::new(),
        1 => ", and another one is live".to_owned(),
        _ => format!(", and {others} others are live"),
    }
}

impl Refusal {
    /// What sort of refusal it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::UnknownResource(_)
            | Self::UnknownSubject(_)
            | Self::UnknownHost(_)
            | Self::UnknownRequest(_)
            | Self::UnknownGrant(_)
            | Self::UnknownProvider(_)
            | Self::UnknownFreeze(_)
            | Self::UnknownIncident(_)
            | Self::UnknownDraft(_)
            | Self::NotBrokenGlass(_)
            | Self::UnknownPolicy(_) => ErrorKind::NotFound,
            Self::KeyUsed { .. }
            | Self::ResourceExists(_)
            | Self::SubjectExists(_)
            | Self::HostExists(_)
            | Self::SelectorTaken { .. } => ErrorKind::AlreadyExists,
            Self::DestinationTaken { .. }
            | Self::StillGranted { .. }
            | Self::ResourceRemoved { .. }
            | Self::NoHost
            | Self::AlreadyDecided { .. }
            | Self::NotLive { .. }
            | Self::NoExtension(_)
            | Self::ExtendedEnough { .. }
            | Self::Frozen { .. }
            | Self::FreezeOver(_)
            | Self::IncidentClosed(_)
            | Self::AlreadyReviewed { .. }
            | Self::NotBound(_)
            | Self::NotDisabled(_)
            | Self::AlreadyDisabled(_)
            | Self::OtherPolicy { .. }
            | Self::UnknownHook { .. }
            | Self::TimeOver { .. }
            | Self::BeginsByItself { .. }
            | Self::NotBegun(_)
            | Self::ResourceDiffers { .. }
            | Self::NoSession => ErrorKind::FailedPrecondition,
            Self::TooLong { .. }
            | Self::NoDuration
            | Self::OtherThanDraft { .. }
            | Self::NoDefaultDuration { .. }
            | Self::IdleTooLong { .. }
            | Self::ExtensionTooLong { .. }
            | Self::ExtendedTooLong { .. }
            | Self::ExtensionHosts(_)
            | Self::OneHostOnly(_)
            | Self::NoPolicy(_)
            | Self::BadPolicy { .. }
            | Self::BadEvent { .. } => ErrorKind::InvalidArgument,
            Self::VoteNotCounted { why, .. } => match why {
                Ignored::OwnRequest | Ignored::NoPerson | Ignored::NotAnApprover => {
                    ErrorKind::PermissionDenied
                }
                Ignored::NotYet | Ignored::Twice | Ignored::TooLate => ErrorKind::FailedPrecondition,
                Ignored::Wider | Ignored::Nothing => ErrorKind::InvalidArgument,
                Ignored::TooMany => ErrorKind::ResourceExhausted,
            },
            Self::NotPermitted { .. }
            | Self::Disabled(_)
            | Self::OwnSubject(_)
            | Self::NotRequester { .. }
            | Self::ForSomebodyElse { .. }
            | Self::OwnRequest { .. }
            | Self::NotHolder { .. }
            | Self::NotReviewer { .. }
            | Self::NotLetIn(_)
            | Self::OtherAccount { .. }
            | Self::OtherName { .. }
            | Self::NotOfCluster { .. }
            | Self::OtherHost { .. } => ErrorKind::PermissionDenied,
            Self::TooManySignIns | Self::TooManyFreezes(_) | Self::TooManyIncidents(_) => {
                ErrorKind::ResourceExhausted
            }
            Self::IdTokenUsed
            | Self::TokenUsedUp(_)
            | Self::UnknownJoinToken
            | Self::JoinTokenOver
            | Self::UnknownCertificate(_)
            | Self::RevokedCertificate(_)
            | Self::SupersededCertificate(_)
            | Self::ExpiredCertificate(_) => ErrorKind::Unauthenticated,
            Self::BeyondNewest { .. } => ErrorKind::OutOfRange,
        }
    }

    /// What to do next; empty: nothing that would help is known.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::UnknownResource(_) => "list what there is with `portcullis resource list`",
            Self::UnknownSubject(_) => "ask an administrator to add the subject",
            Self::UnknownHost(_) => "list what there is with `portcullis status`",
            Self::UnknownRequest(_) => "list what there is with `portcullis requests`",
            Self::UnknownGrant(_) => "list what there is with `portcullis grants`",
            Self::ResourceExists(_) | Self::SubjectExists(_) | Self::HostExists(_) => "choose another name",
            Self::SelectorTaken { .. } => "a process can belong to one subject only: choose another selector",
            Self::DestinationTaken { .. } => "a destination can belong to one resource only",
            Self::StillGranted { .. } => {
                "revoke what `portcullis grants` shows for it, or wait until it has ended"
            }
            Self::ResourceRemoved { .. } => "deny it; its requester can ask anew for what there is now",
            Self::OneHostOnly(_) => "name the host with `--host HOST`",
            Self::NoHost => "an administrator adds a host first, and starts its agent",
            Self::TooLong { .. } => {
                "ask for less; an operator can raise `max_grant_duration` in the control plane's configuration"
            }
            Self::NoDuration | Self::NoDefaultDuration { .. } => "name how long, as in `--for 30m`",
            Self::IdleTooLong { .. } => "name a shorter one, or how long, as in `--for 30m`",
            Self::ForSomebodyElse { .. } => {
                "leave the subject out to ask for yourself, or ask an administrator"
            }
            Self::OwnRequest { .. } => "another approver has to decide",
            Self::AlreadyDecided { .. } => "make a new request",
            Self::VoteNotCounted { why, .. } => match why {
                Ignored::NotYet => "`portcullis requests` shows for whom it waits",
                Ignored::Wider => "`portcullis requests` shows what was asked for",
                Ignored::Nothing => "deny it with `portcullis deny`",
                Ignored::TooLate => "make a new request",
                Ignored::OwnRequest
                | Ignored::NoPerson
                | Ignored::NotAnApprover
                | Ignored::Twice
                | Ignored::TooMany => "another approver has to decide",
            },
            Self::NotRequester { .. } => "an approver can deny it",
            Self::Disabled(_) => "an administrator lets them in again with `portcullis subject enable`",
            Self::NotDisabled(_) | Self::AlreadyDisabled(_) => "",
            Self::OwnSubject(_) => "another administrator has to do it",
            Self::NotPermitted { .. } => "",
            Self::NoPolicy(_) => "leave `--role` out",
            Self::KeyUsed { .. } => "another wish wants another key",
            Self::UnknownPolicy(_) => "list what there is with `portcullis policy history`",
            Self::OtherPolicy { .. } => {
                "somebody else applied one meanwhile: look at `portcullis policy plan` again"
            }
            Self::BadPolicy { .. } => {
                "run `portcullis policy validate`, of the same version as the control plane"
            }
            Self::UnknownHook { .. } => {
                "an operator adds a `[[decision_hook]]` to the control plane's configuration and restarts it"
            }
            Self::TimeOver { .. } => "whoever keeps the policy gives the role another `clock`",
            Self::BeginsByItself { .. } => "",
            Self::NotBegun(_) => "begin it with `portcullis activate`, or wait until it does",
            Self::ResourceDiffers { .. } => {
                "write into the policy what `portcullis resource list` shows, or remove the resource first"
            }
            Self::NotLive { .. } => "",
            Self::Frozen { .. } => {
                "wait until then; `portcullis freezes` shows what is closed, and an administrator lifts it with `portcullis thaw`"
            }
            Self::UnknownDraft(_) => {
                "list what there is with `portcullis drafts`; the next denied attempt opens another one"
            }
            Self::OtherThanDraft { .. } => "ask without the draft for anything else",
            Self::UnknownFreeze(_) => "list what there is with `portcullis freezes --all`",
            Self::FreezeOver(_) | Self::AlreadyReviewed { .. } => "",
            Self::UnknownIncident(_) => "list what there is with `portcullis incidents --all`",
            Self::IncidentClosed(_) => "open it again with `portcullis incident open`",
            Self::NotReviewer { .. } | Self::NotBrokenGlass(_) => {
                "`portcullis reviews` shows what is to be reviewed, and by whom"
            }
            Self::TooManyIncidents(_) => "close one with `portcullis incident close`",
            Self::TooManyFreezes(_) => "lift one with `portcullis thaw`, or name more resources in one",
            Self::NoExtension(_) | Self::ExtendedEnough { .. } => {
                "ask for access anew, with `portcullis request`"
            }
            Self::ExtensionTooLong { .. } | Self::ExtendedTooLong { .. } => "ask for less",
            Self::ExtensionHosts(_) => "leave `--host` out",
            Self::NotHolder { .. } => "an approver can revoke it",
            Self::UnknownProvider(_) => "run `portcullis login` again: it asks for those that there are now",
            Self::NotLetIn(_) => {
                "ask an administrator to add the subject, or the identity provider's to add you to a group that has a role"
            }
            Self::OtherAccount { .. } => {
                "if the name is yours now, ask an administrator, who lets the next account have it with `portcullis subject unbind SUBJECT`"
            }
            Self::OtherName { .. } => {
                "if your name was changed, ask an administrator, who frees the account with `portcullis subject unbind SUBJECT` for the former one"
            }
            Self::NotBound(_) => "the next account that signs in under it has it",
            Self::IdTokenUsed => "run `portcullis login` again",
            Self::TokenUsedUp(_) => {
                "get another one where this runs; a job that makes many calls signs in once, with `portcullis login`"
            }
            Self::NotOfCluster { .. } => {
                "an administrator lets it join with a token: `portcullis host join-token HOST`"
            }
            Self::NoSession => {
                "an administrator ends a static token by issuing another with `portcullis subject token`"
            }
            Self::TooManySignIns => "try again in a moment",
            Self::BeyondNewest { .. } => {
                "the record is not the one that this position came from: start again from 0"
            }
            Self::UnknownJoinToken | Self::JoinTokenOver | Self::OtherHost { .. } => {
                "an administrator issues one with `portcullis host join-token HOST`"
            }
            Self::UnknownCertificate(_)
            | Self::RevokedCertificate(_)
            | Self::SupersededCertificate(_)
            | Self::ExpiredCertificate(_) => {
                "the host has to join again: `portcullis host join-token HOST`, then `portcullis-agent join` on it"
            }
            Self::BadEvent { .. } => "",
        }
    }
}
