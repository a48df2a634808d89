//! A session: what is said between an agent and us, from its hello to its end.
//!
//! Owns: the order of messages, the time limits, what ends a session. Must not know: what a set contains.
//!
//! Invariants: after every hello the current set is sent once, whatever the agent says that it holds; what a session writes down counts
//! only until the next one of its host begins, here or at another control plane.

use std::convert::Infallible;
use std::time::Duration;

use proto::status::{ErrorKind, status};
use proto::types::{
    Applied, AuditEvent, Digest, EndedGrant, Hello, HostName, Invalid, PROTOCOL, Report, Welcome,
    resync_reason,
};
use proto::wire::agent as wire;
use proto::wire::agent::session_request::Message as Said;
use proto::wire::agent::session_response::Message as Answer;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tonic::{Status, Streaming};

use super::{Admitted, Gate, failed, invalid, stopping};
use crate::clock;
use crate::identity::IdentityError;
use crate::rules::session::{Judgement, News, Told};
use crate::sessions::Seat;
use crate::store::{SessionNumber, StoreError};

/// How long an agent has for its hello: it has nothing to wait for.
const HELLO_LIMIT: Duration = Duration::from_secs(10);

/// How long an agent may be silent: three of its reports.
const SILENCE_LIMIT: Duration = Duration::from_secs(45);

/// How long a session goes on whose certificate should be over and is not.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How long the session before this one has to write down its end.
const HANDOVER_LIMIT: Duration = Duration::from_secs(5);

/// Why a session ended.
#[derive(Debug)]
enum End {
    /// The agent closed it.
    Closed,
    /// The connection broke.
    Broken(Status),
    /// The agent was silent for too long, or did not take what was sent.
    Silent,
    /// The agent started another session.
    Superseded,
    /// The control plane stops.
    Stopping,
    /// The agent said what it may not say.
    Refused(Status),
    /// Our fault.
    Failed(StoreError),
}

impl From<Invalid> for End {
    fn from(error: Invalid) -> Self {
        Self::Refused(invalid(error))
    }
}

impl From<StoreError> for End {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Refused(_) => Self::Refused(failed(&error)),
            StoreError::Superseded(_) => Self::Superseded,
            error => Self::Failed(error),
        }
    }
}

impl End {
    /// As one word, for the record.
    fn word(&self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Broken(_) => "connection_lost",
            Self::Silent => "silent",
            Self::Superseded => "superseded",
            Self::Stopping => "stopping",
            Self::Refused(_) => "refused",
            Self::Failed(_) => "failed",
        }
    }

    /// What the agent is told; None: it is not there any more, or knows.
    fn status(&self) -> Option<Status> {
        match self {
            Self::Closed | Self::Broken(_) => None,
            Self::Silent => {
                let message = format!("nothing was heard for {} s", SILENCE_LIMIT.as_secs());
                Some(status(ErrorKind::Unavailable, message, "start a new session"))
            }
            Self::Superseded => {
                Some(status(ErrorKind::Aborted, "a newer session of this host took over", ""))
            }
            Self::Stopping => Some(stopping()),
            Self::Refused(status) => Some(status.clone()),
            Self::Failed(error) => Some(failed(error)),
        }
    }

    /// For people.
    fn detail(&self) -> String {
        match self {
            Self::Broken(status) | Self::Refused(status) => status.message().chars().take(1000).collect(),
            Self::Failed(error) => error.to_string(),
            Self::Closed | Self::Silent | Self::Superseded | Self::Stopping => String::new(),
        }
    }
}

/// One session, before and during its life.
pub(super) struct Session {
    gate: Gate,
    caller: Admitted,
    host: HostName,
    incoming: Streaming<wire::SessionRequest>,
    answers: mpsc::Sender<Result<wire::SessionResponse, Status>>,
    /// From its hello on.
    number: SessionNumber,
    /// The version that both speak.
    protocol: u32,
    told: Told,
    /// What the host reported last in this session, and the record says of it.
    reported: Option<Report>,
}

impl Session {
    pub(super) fn new(
        gate: Gate,
        caller: Admitted,
        host: HostName,
        incoming: Streaming<wire::SessionRequest>,
        answers: mpsc::Sender<Result<wire::SessionResponse, Status>>,
    ) -> Self {
        Self {
            gate,
            caller,
            host,
            incoming,
            answers,
            number: SessionNumber::NONE,
            protocol: 1,
            told: Told::new(1),
            reported: None,
        }
    }

    /// The whole session.
    pub(super) async fn run(mut self) {
        let hello = match self.hello().await {
            Ok(hello) => hello,
            Err(end) => return self.say_goodbye(&end).await,
        };
        let (seat, notices) = self.gate.sessions.take(&self.host, clock::now());
        if let Some(before_gone) = notices.before_gone {
            // It says so in the record first, so that the record tells the story in order.
            let _ = timeout(HANDOVER_LIMIT, before_gone.given()).await;
        }
        self.protocol = hello.protocol.min(PROTOCOL);
        self.told = Told::new(self.protocol);
        let connected = match self.gate.store.agent_connected(&hello, clock::now()).await {
            Ok(connected) => connected,
            Err(error) => return self.say_goodbye(&error.into()).await,
        };
        self.number = connected.session;
        tracing::info!(host = %self.host, "agent connected");
        if connected.takes_turns {
            let comment = format!("boot {}, instance {}", hello.boot_id, hello.instance.unwrap_or_default());
            self.gate.key_copied(&self.host, "two_agents", &comment).await;
        }
        let gate = self.gate.clone();
        let end = tokio::select! {
            Err(end) = self.converse(&seat) => end,
            () = notices.stopped.given() => End::Superseded,
            () = gate.stopped() => End::Stopping,
        };
        tracing::info!(host = %self.host, reason = end.word(), detail = end.detail(), "agent disconnected");
        self.write_end(&end).await;
        drop(seat);
        self.say_goodbye(&end).await;
    }

    async fn hello(&mut self) -> Result<Hello, End> {
        let first = tokio::select! {
            first = timeout(HELLO_LIMIT, self.incoming.message()) => first,
            () = self.gate.stopped() => return Err(End::Stopping),
        };
        let late = || {
            let message = format!("no hello within {} s", HELLO_LIMIT.as_secs());
            End::Refused(status(ErrorKind::InvalidArgument, message, ""))
        };
        let Some(first) = first.map_err(|_| late())?.map_err(End::Broken)? else { return Err(End::Closed) };
        let Some(Said::Hello(hello)) = first.message else {
            return Err(Invalid::new("message", "is not `hello`, which comes first").into());
        };
        let hello: Hello = hello.try_into().map_err(|error: Invalid| error.within("hello"))?;
        if hello.host == self.host {
            return Ok(hello);
        }
        self.gate.note_denied(&self.caller).await;
        let message = format!("this certificate is of host `{}`, not of `{}`", self.host, hello.host);
        let hint = "`host` in the agent's configuration is the name under which it has joined";
        Err(End::Refused(status(ErrorKind::PermissionDenied, message, hint)))
    }

    /// Talks until something ends it. Dropped at any point, nothing is half done: what was not committed did not happen,
    /// and was not acknowledged.
    async fn converse(&mut self, seat: &Seat) -> Result<Infallible, End> {
        let mut changed = self.gate.store.signals().set_of(&self.host);
        let welcome = Welcome { timeline: self.gate.store.timeline(), protocol: self.protocol };
        self.answer(Answer::Welcome(welcome.into())).await?;
        changed.mark_unchanged();
        self.send_set().await?;
        let mut silence = std::pin::pin!(sleep(SILENCE_LIMIT));
        let mut over = std::pin::pin!(sleep(self.caller.credential.lifetime(clock::wall())));
        loop {
            tokio::select! {
                said = self.incoming.message() => {
                    let Some(said) = said.map_err(End::Broken)? else { return Err(End::Closed) };
                    seat.heard(clock::now());
                    self.hear(said, seat).await?;
                    silence.set(sleep(SILENCE_LIMIT));
                }
                // The sender lives in the store that the gate holds.
                Ok(()) = changed.changed() => {
                    changed.mark_unchanged();
                    self.still_counts().await?;
                    self.send_set().await?;
                }
                () = &mut silence => return Err(End::Silent),
                // A clock that was set is why the record is asked, too.
                () = &mut over => {
                    self.still_counts().await?;
                    over.set(sleep(LOOK_AGAIN));
                }
            }
        }
    }

    /// The session ends with what it was opened by.
    async fn still_counts(&self) -> Result<(), End> {
        match self.caller.credential.caller(&self.gate.store, clock::now()).await {
            Ok(_) => Ok(()),
            Err(IdentityError::Store(error)) => Err(error.into()),
            Err(error) => Err(End::Refused(status(error.kind(), error.to_string(), ""))),
        }
    }

    /// Sends the set as it is now, or how it differs from what was sent last. It is made when there is room for it, so that what
    /// it says is left of a grant is true.
    async fn send_set(&mut self) -> Result<(), End> {
        let room = timeout(SILENCE_LIMIT, self.answers.reserve()).await.map_err(|_| End::Silent)?;
        let room = room.map_err(|_| End::Closed)?;
        let plan = self.gate.store.plan(&self.host, self.number).await?;
        let message = match self.told.tell(plan, clock::now()) {
            None => return Ok(()),
            Some(News::Set(set)) => Answer::GrantSet(set.into()),
            Some(News::Delta(delta)) => Answer::Delta(delta.into()),
        };
        room.send(Ok(wire::SessionResponse { message: Some(message) }));
        Ok(())
    }

    /// The host and we do not mean the same: it gets a whole set, of a new generation, for it takes none twice.
    async fn send_anew(&mut self, why: &str) -> Result<(), End> {
        tracing::warn!(host = %self.host, why, "a host gets a whole set");
        self.told.tell_anew();
        Ok(self.gate.store.resync(&self.host, self.number, why, clock::now()).await?)
    }

    async fn digest(&mut self, digest: Digest, seat: &Seat) -> Result<(), End> {
        match self.told.judge(&digest, clock::now()) {
            Judgement::Nothing => Ok(()),
            Judgement::Right => {
                seat.confirm(clock::now());
                Ok(())
            }
            Judgement::Wrong { why, anew } => {
                seat.doubt(why.clone());
                if anew { self.send_anew(&why).await } else { Ok(()) }
            }
        }
    }

    async fn hear(&mut self, said: wire::SessionRequest, seat: &Seat) -> Result<(), End> {
        match said.message {
            None => Err(Invalid::new("message", "is missing or unknown").into()),
            Some(Said::Hello(_)) => Err(Invalid::new("message", "is `hello`, which comes only once").into()),
            Some(Said::Applied(applied)) => {
                self.applied(applied.try_into().map_err(|error: Invalid| error.within("applied"))?).await
            }
            Some(Said::Ended(ended)) => {
                let ended: Vec<EndedGrant> =
                    ended.try_into().map_err(|error: Invalid| error.within("ended"))?;
                self.gate.store.agent_ended(&self.host, self.number, &ended, clock::now()).await?;
                self.told.note_ended(&ended);
                Ok(())
            }
            Some(Said::Digest(digest)) => {
                let digest = digest.try_into().map_err(|error: Invalid| error.within("digest"))?;
                self.digest(digest, seat).await
            }
            Some(Said::Resync(resync)) => self.send_anew(&resync_reason(resync)).await,
            Some(Said::Report(report)) => {
                let number = report.number;
                let report: Report = report.try_into().map_err(|error: Invalid| error.within("report"))?;
                // Nearly all reports say the same again: ten thousand hosts must not keep asking the database.
                if self.reported.as_ref() != Some(&report) {
                    self.gate.store.agent_reported(&self.host, self.number, &report, clock::now()).await?;
                    self.reported = Some(report);
                }
                match number {
                    0 => Ok(()),
                    number => self.answer(Answer::Heard(wire::Heard { number })).await,
                }
            }
            Some(Said::Audit(batch)) => self.audit(batch).await,
        }
    }

    async fn applied(&mut self, applied: Applied) -> Result<(), End> {
        let Some(left_out) = self.told.answered(applied.generation) else {
            tracing::warn!(host = %self.host, generation = applied.generation, "an agent applied what was not sent");
            return Ok(());
        };
        let applied = self.told.completed(applied);
        self.gate.store.agent_applied(&self.host, self.number, &applied, &left_out, clock::now()).await?;
        self.told.note_applied(applied);
        Ok(())
    }

    async fn audit(&mut self, batch: wire::AuditBatch) -> Result<(), End> {
        let check = |(index, event): (usize, proto::wire::audit::AuditEvent)| {
            AuditEvent::try_from(event).map_err(|error| error.within(&format!("audit.events[{index}]")))
        };
        let events = batch.events.into_iter().enumerate().map(check).collect::<Result<Vec<_>, _>>()?;
        let stored = self.gate.store.receive(&self.host, events, clock::now()).await?;
        let ack = wire::AuditAck { epoch: stored.epoch.to_string(), sequence: stored.sequence };
        self.answer(Answer::AuditAck(ack)).await
    }

    /// An agent that takes nothing for as long as it may be silent is gone.
    async fn answer(&self, answer: Answer) -> Result<(), End> {
        let answer = wire::SessionResponse { message: Some(answer) };
        let sent = timeout(SILENCE_LIMIT, self.answers.send(Ok(answer))).await.map_err(|_| End::Silent)?;
        sent.map_err(|_| End::Closed)
    }

    async fn write_end(&self, end: &End) {
        let now = clock::now();
        let seen = self.gate.sessions.presence(&self.host).map_or(now, |presence| presence.seen);
        let store = &self.gate.store;
        let written =
            store.agent_disconnected(&self.host, self.number, end.word(), &end.detail(), seen, now).await;
        if let Err(error) = written {
            let error = &error as &dyn std::error::Error;
            tracing::error!(host = %self.host, error, "cannot record the end of a session");
        }
    }

    async fn say_goodbye(&self, end: &End) {
        if let Some(status) = end.status() {
            // An agent that takes nothing any more learns it from the connection.
            let _ = timeout(HANDOVER_LIMIT, self.answers.send(Err(status))).await;
        }
    }
}
