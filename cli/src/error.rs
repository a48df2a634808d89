//! What can go wrong, and for each kind its exit code and hint: one table.
//!
//! Owns: [`Kind`], the texts, the chain as people see it. The hint is no part of an error's text; one that the control plane
//! sent comes before ours.

use std::error::Error as _;
use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use proto::status::ErrorKind;
use proto::types::{EndReason, GrantId, Invalid, RequestId, RequestState, SubjectId};
use tonic::Status;

use crate::connect::Server;
use crate::oidc::Fault;
use crate::output::escape;

/// What sort of thing went wrong, as far as a script can act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Something on this machine.
    Local,
    /// A fault of the control plane, or an answer that breaks the contract.
    Internal,
    /// The command line, or a value in it.
    Usage,
    /// `status --check` found a host that is not enforcing.
    NotEnforcing,
    /// The control plane gives no answer; trying again can help.
    Unreachable,
    /// No token, or one that the control plane does not know.
    Unauthenticated,
    /// The token's subject may not do this.
    PermissionDenied,
    /// A name or id that the control plane does not know.
    NotFound,
    /// Right in itself, but not in the present state.
    Conflict,
    /// `request --wait`: an approver said no.
    Denied,
    /// `request --wait`: the grant ended before it was active.
    EndedBeforeActive,
    /// `request --wait`: nothing was settled in time.
    WaitTimedOut,
    /// Nobody reads our output any more.
    BrokenPipe,
}

impl Kind {
    /// All kinds, for tables.
    pub const ALL: [Self; 13] = [
        Self::Local,
        Self::Internal,
        Self::Usage,
        Self::NotEnforcing,
        Self::Unreachable,
        Self::Unauthenticated,
        Self::PermissionDenied,
        Self::NotFound,
        Self::Conflict,
        Self::Denied,
        Self::EndedBeforeActive,
        Self::WaitTimedOut,
        Self::BrokenPipe,
    ];

    /// What the process ends with. Scripts rely on it: a number never changes its meaning.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Local | Self::Internal => 1,
            // What clap takes, too.
            Self::Usage => 2,
            Self::NotEnforcing => 3,
            Self::Unreachable => 4,
            Self::Unauthenticated => 5,
            Self::PermissionDenied => 6,
            Self::NotFound => 7,
            Self::Conflict => 8,
            Self::Denied => 10,
            Self::EndedBeforeActive => 11,
            Self::WaitTimedOut => 12,
            // What a shell reports for a process that SIGPIPE ended.
            Self::BrokenPipe => 141,
        }
    }

    /// What the exit code means, for `--help`.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Local => "something on this machine failed, such as a file",
            Self::Internal => "the control plane failed, or its answer cannot be understood",
            Self::Usage => "the command line or a value in it is wrong; nothing was done",
            Self::NotEnforcing => "`status --check`: a host is not enforcing, or there is none",
            Self::Unreachable => "the control plane gives no answer or is busy; trying again can help",
            Self::Unauthenticated => {
                "nobody is signed in: no token, one that is not known, or the provider said no"
            }
            Self::PermissionDenied => "the token's subject may not do this",
            Self::NotFound => "the control plane does not know that name or id",
            Self::Conflict => "the name is taken, or the present state does not allow it (decided, ended)",
            Self::Denied => {
                "`request --wait`: the request was denied or withdrawn, or nobody decided in time"
            }
            Self::EndedBeforeActive => "`request --wait`: the grant ended before it was active",
            Self::WaitTimedOut => "`request --wait`: the time to wait is over; request or grant go on",
            Self::BrokenPipe => "nobody reads the output any more",
        }
    }

    /// What to do next, where that is the same for every error of the kind.
    pub fn hint(self) -> Option<&'static str> {
        match self {
            Self::Usage => Some("`portcullis help VERB` shows values and examples"),
            Self::Unreachable => Some(
                "check that `portcullis-control-plane serve` runs and that `--server` or PORTCULLIS_SERVER names its address",
            ),
            Self::Unauthenticated => Some(
                "run `portcullis login`, or `portcullis login --token-file FILE` with a token, which an administrator issues by `portcullis subject token ID`",
            ),
            Self::PermissionDenied => {
                Some("an administrator sees every subject's role with `portcullis subject list`")
            }
            Self::NotFound => {
                Some("`resource list`, `status`, `requests --all` and `grants --all` show what there is")
            }
            Self::Denied => Some("talk to the approver, or ask again with another reason or a shorter time"),
            Self::EndedBeforeActive => Some("`portcullis grants --all -o json` shows what each host said"),
            Self::WaitTimedOut => {
                Some("`portcullis requests --all` and `portcullis grants` show where it stands")
            }
            Self::NotEnforcing => {
                Some("the DETAIL column of `portcullis status` says why; `host add` makes a host known")
            }
            Self::Local | Self::Internal | Self::Conflict | Self::BrokenPipe => None,
        }
    }

    /// The kind of what the control plane answered.
    pub fn of_answer(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::InvalidArgument => Self::Usage,
            ErrorKind::Unauthenticated => Self::Unauthenticated,
            ErrorKind::PermissionDenied => Self::PermissionDenied,
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::AlreadyExists | ErrorKind::FailedPrecondition | ErrorKind::OutOfRange => {
                Self::Conflict
            }
            ErrorKind::ResourceExhausted | ErrorKind::Aborted | ErrorKind::Unavailable => Self::Unreachable,
            ErrorKind::Internal => Self::Internal,
        }
    }
}

/// The table of exit codes as `--help` shows it.
pub fn exit_code_help() -> String {
    let mut text = "Exit codes:\n    0  done\n".to_owned();
    for (at, kind) in Kind::ALL.into_iter().enumerate() {
        // Local and internal faults share a number.
        let same = at > 0 && Kind::ALL[at - 1].exit_code() == kind.exit_code();
        let code = if same { String::new() } else { kind.exit_code().to_string() };
        text += &format!("  {code:>3}  {}{}\n", if same { "or " } else { "" }, kind.meaning());
    }
    text
}

/// What could not be done.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the text of each variant says it")]
pub enum Error {
    #[error("cannot start")]
    Runtime(#[source] io::Error),
    #[error("cannot write the output")]
    Output(#[source] io::Error),
    #[error("{0}")]
    Usage(String),
    #[error("cannot read {what} `{}`", path.display())]
    ReadFile { what: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot read {what} `{}`", path.display())]
    BadFile { what: &'static str, path: PathBuf, source: Problem },
    #[error("cannot write {what} `{}`", path.display())]
    WriteFile { what: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot tell where to store credentials: neither XDG_CONFIG_HOME nor HOME is an absolute path")]
    NoConfigDir,
    #[error("no token for the control plane at `{server}`")]
    NoToken { server: Server },
    #[error("the session at `{server}` is over")]
    SessionOver { server: Server, source: Option<Box<Error>> },
    #[error("cannot {what}")]
    Provider { what: String, source: Fault },
    #[error("cannot get a certificate from the Workload API at `{endpoint}`")]
    WorkloadApi { endpoint: String, source: Problem },
    #[error("the control plane at `{server}` has no identity provider")]
    NoProvider { server: Server },
    #[error("cannot reach the control plane at `{server}`")]
    Connect { server: Server, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("cannot {what}")]
    Refused { what: String, source: Answer },
    #[error("cannot {what}")]
    NoAnswer { what: String, source: Problem },
    #[error("cannot {what}")]
    Malformed { what: String, source: Problem },
    #[error("cannot reach the agent of this host at `{}`", path.display())]
    NoAgent { path: PathBuf, source: io::Error },
    #[error("cannot {what}")]
    Agent { what: String, source: Problem },
    #[error("the agent of this host refused to {what}")]
    AgentRefused { what: String, source: Problem },
    #[error("cannot run `{}`", command.to_string_lossy())]
    Start { command: std::ffi::OsString, source: io::Error },
    #[error("cannot follow the command that runs")]
    Follow(#[source] io::Error),
    #[error("{} of {hosts} hosts are fully enforcing", hosts - unready)]
    NotEnforcing { unready: usize, hosts: usize },
    #[error("the policy in `{}` is not valid: {problems} {}", folder.display(), if *problems == 1 { "problem" } else { "problems" })]
    BadPolicy { folder: PathBuf, problems: usize },
    #[error("{failed} of {cases} cases are not decided as they say")]
    CasesFailed { failed: usize, cases: usize },
    #[error("cannot read {count} of the events")]
    UnreadableEvents { count: u64 },
    #[error("live grants that the policy does not permit any more: {0}")]
    WouldEndGrants(usize),
    #[error("request `{request}` {}{}{}", became(*state), by(decided_by), remark(comment))]
    Denied { request: RequestId, state: RequestState, decided_by: Option<SubjectId>, comment: String },
    #[error("grant `{grant}` ended before it was active: {reason}{}", remark(detail))]
    EndedBeforeActive { grant: GrantId, reason: EndReason, detail: String },
    #[error("request `{request}` led to no active grant within {}", humantime::format_duration(*limit))]
    WaitTimedOut { request: RequestId, limit: Duration, source: Problem },
}

/// The kind of what an identity provider did not do.
fn of_fault(fault: &Fault) -> Kind {
    match fault {
        Fault::Prepare(_) | Fault::Listen(_) => Kind::Local,
        Fault::Unreachable { .. } => Kind::Unreachable,
        Fault::Status { .. } if fault.worth_retrying() => Kind::Unreachable,
        Fault::Status { .. } | Fault::Malformed { .. } => Kind::Internal,
        Fault::Refused { .. } | Fault::TimedOut(_) => Kind::Unauthenticated,
        Fault::NotOffered(_) => Kind::Usage,
    }
}

/// What became of a request that led to no grant.
fn became(state: RequestState) -> &'static str {
    match state {
        RequestState::Withdrawn => "was withdrawn",
        RequestState::Lapsed => "has lapsed, as nobody decided in time",
        RequestState::Denied | RequestState::Pending | RequestState::Approved => "was denied",
    }
}

fn by(subject: &Option<SubjectId>) -> String {
    subject.as_ref().map(|subject| format!(" by `{subject}`")).unwrap_or_default()
}

fn remark(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

/// A cause in words, where no other error stands behind it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Problem(pub String);

impl From<Invalid> for Problem {
    fn from(error: Invalid) -> Self {
        Self(format!("the answer breaks the contract: {error}"))
    }
}

/// What came back instead of an answer: what the control plane said, or how the way to it broke.
#[derive(Debug)]
pub struct Answer(Box<Status>);

impl Answer {
    /// Whether the same call may succeed later.
    pub(crate) fn worth_retrying(&self) -> bool {
        self.kind().worth_retrying()
    }

    fn kind(&self) -> ErrorKind {
        // A status with a source was made on this side of the wire, from a broken connection.
        match self.0.source().is_some() {
            true => ErrorKind::Unavailable,
            false => ErrorKind::from_code(self.0.code()),
        }
    }
}

impl From<Status> for Answer {
    fn from(status: Status) -> Self {
        Self(Box::new(status))
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.source().is_some(), self.0.message()) {
            (true, _) => f.write_str("the connection to the control plane broke"),
            (false, "") => write!(f, "the control plane refused: {}", self.0.code()),
            (false, message) => f.write_str(message),
        }
    }
}

impl std::error::Error for Answer {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

impl Error {
    /// Which kind it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => Kind::BrokenPipe,
            Self::Runtime(_)
            | Self::Output(_)
            | Self::ReadFile { .. }
            | Self::BadFile { .. }
            | Self::WriteFile { .. }
            | Self::NoConfigDir
            | Self::NoAgent { .. }
            | Self::Agent { .. }
            | Self::Start { .. }
            | Self::BadPolicy { .. }
            | Self::CasesFailed { .. }
            | Self::WouldEndGrants(_)
            | Self::Follow(_) => Kind::Local,
            Self::AgentRefused { .. } => Kind::PermissionDenied,
            Self::Usage(_) => Kind::Usage,
            Self::NoToken { .. } | Self::SessionOver { .. } => Kind::Unauthenticated,
            Self::NoProvider { .. } => Kind::Conflict,
            Self::Provider { source, .. } => of_fault(source),
            Self::Connect { .. } | Self::NoAnswer { .. } | Self::WorkloadApi { .. } => Kind::Unreachable,
            Self::Refused { source, .. } => Kind::of_answer(source.kind()),
            Self::Malformed { .. } | Self::UnreadableEvents { .. } => Kind::Internal,
            Self::NotEnforcing { .. } => Kind::NotEnforcing,
            Self::Denied { .. } => Kind::Denied,
            Self::EndedBeforeActive { .. } => Kind::EndedBeforeActive,
            Self::WaitTimedOut { .. } => Kind::WaitTimedOut,
        }
    }

    /// What to do next: what the control plane advised, else what its kind advises.
    pub fn hint(&self) -> Option<String> {
        let sent = match self {
            Self::Refused { source, .. } => proto::status::hint(&source.0),
            Self::NoProvider { .. } => Some(
                "sign in with a token: `portcullis login --token-file FILE`; an operator adds an `[[identity_provider]]`".into(),
            ),
            Self::SessionOver { .. } => Some("run `portcullis login`".into()),
            Self::NoAgent { .. } => Some(
                "is `portcullis-agent` running here, with `[runs]` not switched off? `--agent-socket` names another socket".into(),
            ),
            Self::AgentRefused { .. } => {
                Some("`portcullis audit tail` has the refusal as `run.refused`".into())
            }
            Self::Provider { source: Fault::Unreachable { .. }, .. } => Some(
                "check the way to the provider; `login --provider-ca-file` names the authority of a certificate that the system does not know".into(),
            ),
            Self::WorkloadApi { .. } => Some(
                "compare SPIFFE_ENDPOINT_SOCKET with where the Workload API is, and look whether it knows this workload; or name a token with `--workload-token-file`".into(),
            ),
            Self::WouldEndGrants(_) => Some(
                "`portcullis policy plan` shows whose; `--end-grants` ends them".into(),
            ),
            Self::CasesFailed { .. } => Some(
                "`portcullis policy explain` shows how a request is decided: correct the policy, or the case".into(),
            ),
            Self::UnreadableEvents { .. } => {
                Some("is the control plane newer than this `portcullis`? it may send kinds that are not known here".into())
            }
            _ => None,
        };
        sent.or_else(|| self.kind().hint().map(str::to_owned))
    }

    /// The error and what is next behind it, in one line.
    pub(crate) fn with_cause(&self) -> String {
        self.source().map_or(self.to_string(), |cause| format!("{self}: {cause}"))
    }

    /// Whether the same may succeed later: the way to the control plane is broken, or it is busy.
    pub(crate) fn worth_retrying(&self) -> bool {
        match self {
            Self::Refused { source, .. } => source.worth_retrying(),
            _ => self.kind() == Kind::Unreachable,
        }
    }
}

/// Prints an error, what caused it and what to do next. Nothing at all when the reader has gone.
pub fn print(err: &mut dyn Write, error: &Error) -> io::Result<()> {
    if error.kind() == Kind::BrokenPipe {
        return Ok(());
    }
    writeln!(err, "error: {}", escape(&error.to_string()))?;
    let mut said = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        // Some libraries repeat their source's text; each thing is said once.
        if !said.contains(&text) {
            writeln!(err, "  caused by: {}", escape(&text))?;
        }
        said = text;
        source = cause.source();
    }
    if let Some(hint) = error.hint() {
        writeln!(err, "hint: {}", escape(&hint))?;
    }
    err.flush()
}
