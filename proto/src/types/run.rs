//! Runs: a command that is run as a subject, and what is said for it.

use std::fmt::{self, Display};

use prost::Message;

use super::{GrantId, HostName, Invalid, RunId, SubjectId, quote};
use crate::wire::run as wire;

/// The longest message on the agent's socket, in bytes.
pub const FRAME_MAX_BYTES: usize = 8 * 1024;

/// How long a challenge is.
pub const CHALLENGE_BYTES: usize = 32;

/// Of what is said on the agent's socket.
const VERSION: u32 = 1;

/// The longest text for people, in bytes; longer ones are cut.
const TEXT_MAX_BYTES: usize = 1000;

/// An ECDSA signature on P-256 in DER has at most 72.
const SIGNATURE_MAX_BYTES: usize = 128;

/// What is signed begins with this. No certificate does: they begin with the byte 0x30.
const SIGNED_PREFIX: &[u8] = b"portcullis run pass 1\0";

/// Bytes that nobody could know before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Challenge(pub [u8; CHALLENGE_BYTES]);

impl TryFrom<Vec<u8>> for Challenge {
    type Error = Invalid;

    fn try_from(bytes: Vec<u8>) -> Result<Self, Invalid> {
        let problem =
            |bytes: Vec<u8>| Invalid::new("challenge", format_args!("has {} bytes, not 32", bytes.len()));
        bytes.try_into().map(Self).map_err(problem)
    }
}

/// What the control plane says to the agent of a host: whoever has got this challenge there is this subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunStatement {
    /// Who.
    pub subject: SubjectId,
    /// Where.
    pub host: HostName,
    /// As the agent gave it.
    pub challenge: Challenge,
}

/// A statement with the signature of the control plane's authority. Whoever takes one checks the signature first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunPass {
    statement: Vec<u8>,
    /// ECDSA on P-256 with SHA-256, in DER, of what [`RunPass::signed`] gives.
    pub signature: Vec<u8>,
}

impl RunStatement {
    /// With a signature; `sign` is given what is to be signed.
    pub fn sign<E>(self, sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>) -> Result<RunPass, E> {
        let statement = wire::RunStatement {
            subject: self.subject.into(),
            host: self.host.into(),
            challenge: self.challenge.0.to_vec(),
        };
        let mut pass = RunPass { statement: statement.encode_to_vec(), signature: Vec::new() };
        pass.signature = sign(&pass.signed())?;
        Ok(pass)
    }
}

impl RunPass {
    /// What the signature is of.
    pub fn signed(&self) -> Vec<u8> {
        [SIGNED_PREFIX, &self.statement].concat()
    }

    /// What it says; worth nothing before the signature is checked.
    pub fn statement(&self) -> Result<RunStatement, Invalid> {
        let broken = |_| Invalid::new("statement", "is not one");
        let statement = wire::RunStatement::decode(self.statement.as_slice()).map_err(broken)?;
        Ok(RunStatement {
            subject: statement.subject.parse()?,
            host: statement.host.parse()?,
            challenge: statement.challenge.try_into()?,
        })
    }
}

impl TryFrom<wire::RunPass> for RunPass {
    type Error = Invalid;

    fn try_from(wire: wire::RunPass) -> Result<Self, Invalid> {
        let wire::RunPass { statement, signature } = wire;
        if statement.len() > FRAME_MAX_BYTES || signature.len() > SIGNATURE_MAX_BYTES {
            let problem =
                format_args!("has {} and {} bytes, which is too many", statement.len(), signature.len());
            return Err(Invalid::new("pass", problem));
        }
        Ok(Self { statement, signature })
    }
}

impl From<RunPass> for wire::RunPass {
    fn from(pass: RunPass) -> Self {
        Self { statement: pass.statement, signature: pass.signature }
    }
}

/// A program to the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToAgent {
    /// Make a run for whom the pass names.
    Open(RunPass),
    /// Put me into this run.
    Enter {
        /// Which.
        run: RunId,
        /// What it is about to become, for people.
        command: String,
        /// A grant of one action, to be used up by it.
        grant: Option<GrantId>,
    },
    /// The command has ended.
    Finish,
}

/// The agent to a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromAgent {
    /// What a pass must be for.
    Challenge {
        /// The host's name.
        host: HostName,
        /// Once, on this connection.
        challenge: Challenge,
    },
    /// The run is there.
    Opened(RunId),
    /// The process that asked is in it.
    Entered,
    /// So many processes are still in it.
    Finished(u32),
    /// Nothing was done.
    Refused {
        /// Why, as one word.
        reason: String,
        /// For people.
        message: String,
    },
}

/// Why an agent does not do what a program asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunRefusal {
    /// What came is no message, or not now.
    Malformed,
    /// The pass is not signed by an authority of this host.
    BadSignature,
    /// The pass is for another host.
    OtherHost,
    /// The pass is for another challenge, or too late.
    OtherChallenge,
    /// The host has not heard of the subject.
    UnknownSubject,
    /// There are too many runs, or connections.
    TooMany,
    /// There is no such run, or it is over.
    UnknownRun,
    /// Somebody has entered it before.
    AlreadyEntered,
    /// Who asks is no child of who opened the run.
    NotAChild,
    /// Who asks runs as another user than who opened the run.
    OtherUser,
    /// There is no grant of one action of this id for the subject.
    UnknownGrant,
    /// The grant was used before.
    UsedGrant,
    /// What was executed is not the executable that the grant is for.
    OtherExecutable,
    /// It was called by other arguments.
    OtherArguments,
    /// Its environment has what could make it something else.
    OtherEnvironment,
    /// Who asks is not there any more.
    Gone,
    /// The agent could not do it.
    Failed,
}

impl RunRefusal {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::Malformed,
        Self::BadSignature,
        Self::OtherHost,
        Self::OtherChallenge,
        Self::UnknownSubject,
        Self::TooMany,
        Self::UnknownRun,
        Self::AlreadyEntered,
        Self::NotAChild,
        Self::OtherUser,
        Self::UnknownGrant,
        Self::UsedGrant,
        Self::OtherExecutable,
        Self::OtherArguments,
        Self::OtherEnvironment,
        Self::Gone,
        Self::Failed,
    ];

    /// As one word, for the record.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::BadSignature => "bad_signature",
            Self::OtherHost => "other_host",
            Self::OtherChallenge => "other_challenge",
            Self::UnknownSubject => "unknown_subject",
            Self::TooMany => "too_many",
            Self::UnknownRun => "unknown_run",
            Self::AlreadyEntered => "already_entered",
            Self::NotAChild => "not_a_child",
            Self::OtherUser => "other_user",
            Self::UnknownGrant => "unknown_grant",
            Self::UsedGrant => "used_grant",
            Self::OtherExecutable => "other_executable",
            Self::OtherArguments => "other_arguments",
            Self::OtherEnvironment => "other_environment",
            Self::Gone => "gone",
            Self::Failed => "failed",
        }
    }
}

impl Display for RunRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Malformed => "what came is no message, or not one for now",
            Self::BadSignature => "the pass is not signed by an authority of this host",
            Self::OtherHost => "the pass is for another host",
            Self::OtherChallenge => "the pass is for another connection, or came too late",
            Self::UnknownSubject => "this host has not heard of the subject",
            Self::TooMany => "there are too many runs or connections",
            Self::UnknownRun => "there is no such run, or it is over",
            Self::AlreadyEntered => "a run is entered once",
            Self::NotAChild => "only a child of who opened the run can enter it",
            Self::OtherUser => "only the user who opened the run can enter it",
            Self::UnknownGrant => "this host holds no such grant of one action for the subject",
            Self::UsedGrant => "the grant was used before",
            Self::OtherExecutable => "it is not the executable that the grant is for",
            Self::OtherArguments => "these are not the arguments that the grant is for",
            Self::OtherEnvironment => "the environment could make it something else",
            Self::Gone => "the process is not there any more",
            Self::Failed => "the agent could not do it",
        })
    }
}

/// A run, or somebody who wanted one, in an event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunDetails {
    /// None: it is about none.
    pub id: Option<RunId>,
    /// Who was put into it, or was refused; 0: it has ended.
    pub pid: u32,
    /// The user.
    pub uid: u32,
    /// Of the run; 0: it is about none.
    pub cgroup_id: u64,
    /// Who logged in, by the kernel's audit; None: nobody, or it is not known.
    pub login_uid: Option<u32>,
}

/// Empty: none.
pub(crate) fn optional_run(text: &str) -> Result<Option<RunId>, Invalid> {
    (!text.is_empty()).then(|| text.parse()).transpose()
}

fn cut(mut text: String) -> String {
    let end = (0..=TEXT_MAX_BYTES.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.truncate(end.unwrap_or(0));
    text
}

impl ToAgent {
    /// From a frame.
    pub fn decode(frame: &[u8]) -> Result<Self, Invalid> {
        use wire::to_agent::Message as Said;
        let broken = |_| Invalid::new("message", "is not one");
        match wire::ToAgent::decode(frame).map_err(broken)?.message {
            Some(Said::Open(open)) => {
                open.pass.ok_or_else(|| Invalid::missing("open.pass"))?.try_into().map(Self::Open)
            }
            Some(Said::Enter(enter)) => {
                let grant = (!enter.grant.is_empty()).then(|| enter.grant.parse()).transpose()?;
                Ok(Self::Enter { run: enter.run.parse()?, command: cut(enter.command), grant })
            }
            Some(Said::Finish(_)) => Ok(Self::Finish),
            None => Err(Invalid::new("message", "is missing or unknown")),
        }
    }

    /// As a frame.
    pub fn encode(self) -> Vec<u8> {
        use wire::to_agent::Message as Said;
        let message = match self {
            Self::Open(pass) => Said::Open(wire::Open { pass: Some(pass.into()) }),
            Self::Enter { run, command, grant } => {
                let grant = grant.map(|id| id.to_string()).unwrap_or_default();
                Said::Enter(wire::Enter { run: run.to_string(), command: cut(command), grant })
            }
            Self::Finish => Said::Finish(wire::Finish {}),
        };
        wire::ToAgent { message: Some(message) }.encode_to_vec()
    }
}

impl FromAgent {
    /// From a frame.
    pub fn decode(frame: &[u8]) -> Result<Self, Invalid> {
        use wire::from_agent::Message as Said;
        let broken = |_| Invalid::new("message", "is not one");
        match wire::FromAgent::decode(frame).map_err(broken)?.message {
            Some(Said::Challenge(told)) if told.version == VERSION => {
                Ok(Self::Challenge { host: told.host.parse()?, challenge: told.challenge.try_into()? })
            }
            Some(Said::Challenge(told)) => {
                Err(Invalid::new("version", format_args!("{} is not {VERSION}", told.version)))
            }
            Some(Said::Opened(opened)) => opened.run.parse().map(Self::Opened),
            Some(Said::Entered(_)) => Ok(Self::Entered),
            Some(Said::Finished(finished)) => Ok(Self::Finished(finished.processes)),
            Some(Said::Refused(refused)) => {
                let known = RunRefusal::ALL.iter().any(|reason| reason.as_str() == refused.reason);
                match known {
                    true => Ok(Self::Refused { reason: refused.reason, message: cut(refused.message) }),
                    false => {
                        Err(Invalid::new("reason", format_args!("{} is not known", quote(&refused.reason))))
                    }
                }
            }
            None => Err(Invalid::new("message", "is missing or unknown")),
        }
    }

    /// As a frame.
    pub fn encode(self) -> Vec<u8> {
        use wire::from_agent::Message as Said;
        let message = match self {
            Self::Challenge { host, challenge } => Said::Challenge(wire::Challenge {
                version: VERSION,
                host: host.into(),
                challenge: challenge.0.to_vec(),
            }),
            Self::Opened(run) => Said::Opened(wire::Opened { run: run.to_string() }),
            Self::Entered => Said::Entered(wire::Entered {}),
            Self::Finished(processes) => Said::Finished(wire::Finished { processes }),
            Self::Refused { reason, message } => {
                Said::Refused(wire::Refused { reason, message: cut(message) })
            }
        };
        wire::FromAgent { message: Some(message) }.encode_to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass() -> RunPass {
        let statement = RunStatement {
            subject: "user:alice".parse().expect("valid"),
            host: "db-7".parse().expect("valid"),
            challenge: Challenge([7; CHALLENGE_BYTES]),
        };
        let signed = statement.clone().sign(|signed| Ok::<_, ()>(signed[..4].to_vec())).expect("signed");
        assert_eq!(signed.statement(), Ok(statement));
        signed
    }

    #[test]
    fn what_is_signed_is_no_certificate() {
        let pass = pass();
        assert_eq!(pass.signature, b"port");
        assert!(pass.signed().starts_with(b"portcullis run pass 1\0"));
        assert_eq!(RunPass::try_from(wire::RunPass::from(pass.clone())), Ok(pass.clone()));
        let long = wire::RunPass { signature: vec![0; SIGNATURE_MAX_BYTES + 1], ..pass.into() };
        assert!(RunPass::try_from(long).is_err());
        let nonsense = RunPass { statement: b"nonsense".to_vec(), signature: Vec::new() };
        assert!(nonsense.statement().is_err());
    }

    #[test]
    fn messages_survive_the_wire() {
        let run = RunId::new();
        let enter = ToAgent::Enter { run, command: "psql".into(), grant: Some(GrantId::new()) };
        for message in [ToAgent::Open(pass()), enter, ToAgent::Finish] {
            assert_eq!(ToAgent::decode(&message.clone().encode()), Ok(message));
        }
        let host: HostName = "db-7".parse().expect("valid");
        let challenge = FromAgent::Challenge { host, challenge: Challenge([9; CHALLENGE_BYTES]) };
        let refused =
            FromAgent::Refused { reason: RunRefusal::Gone.as_str().into(), message: "it is gone".into() };
        let all = [challenge, FromAgent::Opened(run), FromAgent::Entered, FromAgent::Finished(3), refused];
        for message in all {
            assert_eq!(FromAgent::decode(&message.clone().encode()), Ok(message));
        }
        let long = ToAgent::Enter { run, command: "ä".repeat(5000), grant: None };
        assert!(long.encode().len() <= FRAME_MAX_BYTES);
        for broken in [&b""[..], b"nonsense", &wire::FromAgent::default().encode_to_vec()] {
            assert!(ToAgent::decode(broken).is_err());
            assert!(FromAgent::decode(broken).is_err());
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = ToAgent::decode(&bytes);
            let _ = FromAgent::decode(&bytes);
        }
    }
}
