//! The agent's unix socket, by which a program on this host runs a command as a subject.
//!
//! Owns: who connects, what is said in which order, and the limits on all of it; the cgroups of runs. Must not know: grants, the
//! kernel's maps, the control plane: what a pass is worth, it is told.
//!
//! Anybody on the host may connect. A connection has a bounded time for each thing it says but for the last, a frame a bounded
//! length, and a user a bounded number of connections, so that nobody can keep others out.

pub mod cgroup;
mod exact;
mod peer;
mod remembered;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proto::types::{
    CHALLENGE_BYTES, Challenge, FRAME_MAX_BYTES, FromAgent, GrantId, HostName, RunId, RunPass, RunRefusal,
    SubjectId, ToAgent,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::clock::now_boot_ns;
use crate::rules::exact::Found;

use exact::Held;
pub use peer::Peer;
pub use remembered::RunsFile;

/// How many connections there can be at a time.
const CONNECTIONS_MAX: usize = 512;
/// How many of them can be one user's.
const CONNECTIONS_OF_USER_MAX: usize = 64;
/// How long a program has for its first message: to ask the control plane for a pass, with a person's patience for a login.
const FIRST_LIMIT: Duration = Duration::from_secs(60);
/// How long a frame has from its first byte to its last, and a program to take an answer.
const FRAME_LIMIT: Duration = Duration::from_secs(5);
/// How long a pass for a challenge counts. No longer than what waits for it.
const CHALLENGE_LIMIT: Duration = FIRST_LIMIT;
/// The pause after the kernel could give no connection: there are no descriptors, and there may be some later.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a program wants of the agent.
#[derive(Debug)]
pub enum Ask {
    /// A run of this subject.
    Open {
        /// Whose.
        subject: SubjectId,
        /// Who asks.
        peer: Peer,
        /// What came of it.
        answer: oneshot::Sender<Result<RunId, Refused>>,
    },
    /// To be put into a run.
    Enter {
        /// Which.
        run: RunId,
        /// Who asks, and is to be in it.
        peer: Peer,
        /// What it is about to become, as it says.
        command: String,
        /// What came of it.
        answer: oneshot::Sender<Result<(), Refused>>,
    },
    /// To know whether a process may be held for a grant of one action.
    Hold {
        /// Which run it wants to be in.
        run: RunId,
        /// Which grant it wants to use up.
        grant: GrantId,
        /// Who asks.
        peer: Peer,
        /// What came of it.
        answer: oneshot::Sender<Result<(), Refused>>,
    },
    /// To put a process that is held into a run, if it has become exactly what the grant is for.
    EnterExactly {
        /// Which run.
        run: RunId,
        /// Which grant is used up.
        grant: GrantId,
        /// Who is to be in it.
        peer: Peer,
        /// What it has become.
        found: Box<Result<Found, Refused>>,
        /// What came of it.
        answer: oneshot::Sender<Result<(), Refused>>,
    },
    /// To know how many processes are still in a run, whose command has ended.
    Finish {
        /// Which.
        run: RunId,
        /// So many; or why the command never began.
        answer: oneshot::Sender<Result<u32, Refused>>,
    },
    /// Nothing any more: the connection that opened this run is closed.
    Gone(RunId),
    /// Nothing: it was refused here.
    Refused {
        /// Who asked; None: it is not known.
        peer: Option<Peer>,
        /// Who they have proven to be.
        subject: Option<SubjectId>,
        /// Which run they meant.
        run: Option<RunId>,
        /// Why.
        refused: Refused,
    },
}

/// Something was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub reason: RunRefusal,
    /// More, for people; may be empty.
    pub detail: String,
}

impl Refused {
    /// For this reason.
    pub fn new(reason: RunRefusal, detail: impl std::fmt::Display) -> Self {
        Self { reason, detail: detail.to_string() }
    }
}

impl Refused {
    /// As the program hears it.
    fn told(&self) -> FromAgent {
        let message = match self.detail.as_str() {
            "" => self.reason.to_string(),
            detail => format!("{}: {detail}", self.reason),
        };
        FromAgent::Refused { reason: self.reason.as_str().to_owned(), message }
    }
}

impl From<RunRefusal> for Refused {
    fn from(reason: RunRefusal) -> Self {
        Self { reason, detail: String::new() }
    }
}

/// Whether an authority of this host has signed a pass. The error says why that cannot be told.
pub type Vouch = dyn Fn(&RunPass) -> Result<bool, String> + Send + Sync;

/// The socket. Dropped, it is not there any more.
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Whatever is at the path then: the next agent makes its own.
        let _ = fs::remove_file(&self.path);
    }
}

/// Listens at `path`, where everybody on the host can connect. What an earlier agent left there is taken away.
pub fn listen(path: &Path) -> io::Result<Listener> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if is_socket {
        fs::remove_file(path)?;
    }
    // Where no unit has made it; under whatever mask the agent runs, others have to get there.
    if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
        fs::create_dir(directory)?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    }
    let listener = UnixListener::bind(path)?;
    let listener = Listener { listener, path: path.to_owned() };
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// Serves whoever connects, for as long as somebody listens to `asks`.
pub async fn serve(listener: Listener, host: HostName, vouch: Arc<Vouch>, asks: mpsc::Sender<Ask>) {
    let seats = Arc::new(Seats::default());
    while !asks.is_closed() {
        let stream = match listener.listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection of a run");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let asks = asks.clone();
        let refuse = |peer, refused| Ask::Refused { peer, subject: None, run: None, refused };
        let peer = match Peer::of(&stream) {
            Ok(peer) => peer,
            Err(error) => {
                let refused = Refused::new(RunRefusal::Gone, error);
                let _ = asks.send(refuse(None, refused)).await;
                continue;
            }
        };
        let Some(seat) = Seat::take(&seats, peer.uid) else {
            let _ = asks.send(refuse(Some(peer), RunRefusal::TooMany.into())).await;
            continue;
        };
        let (host, vouch) = (host.clone(), Arc::clone(&vouch));
        let conversation = Conversation { stream, host, vouch, asks, subject: None, run: None };
        tokio::spawn(async move {
            conversation.run(peer).await;
            drop(seat);
        });
    }
}

/// Connections that are open, by user.
#[derive(Debug, Default)]
struct Seats(Mutex<HashMap<u32, usize>>);

/// One of them.
struct Seat {
    seats: Arc<Seats>,
    uid: u32,
}

impl Seat {
    fn take(seats: &Arc<Seats>, uid: u32) -> Option<Self> {
        let mut taken = seats.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = taken.values().sum();
        let of_user = taken.get(&uid).copied().unwrap_or(0);
        if all >= CONNECTIONS_MAX || of_user >= CONNECTIONS_OF_USER_MAX {
            return None;
        }
        taken.insert(uid, of_user + 1);
        Some(Self { seats: Arc::clone(seats), uid })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.uid);
            }
        }
    }
}

/// One connection.
struct Conversation {
    stream: UnixStream,
    host: HostName,
    vouch: Arc<Vouch>,
    asks: mpsc::Sender<Ask>,
    /// Who it is with, once that is proven.
    subject: Option<SubjectId>,
    /// Which run it is about, once that is said.
    run: Option<RunId>,
}

impl Conversation {
    async fn run(mut self, peer: Peer) {
        let told = match peer.try_clone() {
            Ok(told) => told,
            Err(error) => return tracing::warn!(%error, "cannot keep an eye on a process"),
        };
        if let Err(refused) = self.converse(peer).await {
            // Whoever does not take it learns it from the connection.
            let _ = self.write(refused.told()).await;
            let ask = Ask::Refused { peer: Some(told), subject: self.subject, run: self.run, refused };
            let _ = self.asks.send(ask).await;
        }
    }

    async fn converse(&mut self, peer: Peer) -> Result<(), Refused> {
        let challenge = Challenge(rand::random::<[u8; CHALLENGE_BYTES]>());
        let made_boot_ns = now_boot_ns();
        self.write(FromAgent::Challenge { host: self.host.clone(), challenge }).await?;
        // Who says nothing, and goes, has done nothing.
        let Some(first) = self.read(Some(FIRST_LIMIT)).await? else { return Ok(()) };
        match first {
            ToAgent::Open(pass) => {
                let subject = self.check(&pass, challenge, made_boot_ns)?;
                self.subject = Some(subject.clone());
                let run = self.ask(|answer| Ask::Open { subject, peer, answer }).await??;
                self.run = Some(run);
                let outcome = self.attend(run).await;
                let _ = self.asks.send(Ask::Gone(run)).await;
                outcome
            }
            ToAgent::Enter { run, command, grant: None } => {
                self.run = Some(run);
                self.ask(|answer| Ask::Enter { run, peer, command, answer }).await??;
                self.write(FromAgent::Entered).await
            }
            ToAgent::Enter { run, grant: Some(grant), .. } => {
                self.run = Some(run);
                self.enter_exactly(run, grant, peer).await
            }
            ToAgent::Finish => Err(RunRefusal::Malformed.into()),
        }
    }

    /// The process is traced before it is told to go on; what it then executes begins to run only if it is what the grant is for.
    async fn enter_exactly(&mut self, run: RunId, grant: GrantId, peer: Peer) -> Result<(), Refused> {
        let again = || peer.try_clone().map_err(|error| Refused::new(RunRefusal::Failed, error));
        let asker = again()?;
        self.ask(|answer| Ask::Hold { run, grant, peer: asker, answer }).await??;
        let mut held = Held::take(peer.pid).await?;
        // The process that is traced is the one that asked only if that is still there.
        if !peer.is_there() {
            let _ = held.answer(false).await;
            return Err(RunRefusal::Gone.into());
        }
        let told = self.write(FromAgent::Entered).await;
        let found = Box::new(held.found().await.and_then(|found| told.map(|()| found)));
        let asker = again()?;
        let entered = self.ask(|answer| Ask::EnterExactly { run, grant, peer: asker, found, answer }).await;
        let entered = entered.and_then(|entered| entered);
        let ended = held.answer(entered.is_ok()).await;
        entered.and(ended)
    }

    /// Who the pass says it is.
    fn check(&self, pass: &RunPass, challenge: Challenge, made_boot_ns: u64) -> Result<SubjectId, Refused> {
        let vouched = (self.vouch)(pass).map_err(|error| Refused::new(RunRefusal::BadSignature, error))?;
        if !vouched {
            return Err(RunRefusal::BadSignature.into());
        }
        let statement = pass.statement().map_err(|error| Refused::new(RunRefusal::Malformed, error))?;
        if statement.host != self.host {
            let detail = format_args!("it is for `{}`, and this is `{}`", statement.host, self.host);
            return Err(Refused::new(RunRefusal::OtherHost, detail));
        }
        if statement.challenge != challenge || !counts(made_boot_ns, now_boot_ns()) {
            return Err(RunRefusal::OtherChallenge.into());
        }
        Ok(statement.subject)
    }

    /// Waits until nobody needs the run any more.
    async fn attend(&mut self, run: RunId) -> Result<(), Refused> {
        self.write(FromAgent::Opened(run)).await?;
        match self.read(None).await? {
            None => Ok(()),
            Some(ToAgent::Finish) => {
                match self.ask(|answer| Ask::Finish { run, answer }).await? {
                    Ok(processes) => self.write(FromAgent::Finished(processes)).await,
                    // It is on the record already.
                    Err(refused) => self.write(refused.told()).await,
                }
            }
            Some(ToAgent::Open(_) | ToAgent::Enter { .. }) => Err(RunRefusal::Malformed.into()),
        }
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Refused> {
        let (answer, answered) = oneshot::channel();
        let ends = |_| Refused::from(RunRefusal::Failed);
        self.asks.send(ask(answer)).await.map_err(|_| Refused::from(RunRefusal::Failed))?;
        answered.await.map_err(ends)
    }

    /// The next message; None: the connection is closed. `limit` is how long it may take to begin; None: as long as it likes.
    async fn read(&mut self, limit: Option<Duration>) -> Result<Option<ToAgent>, Refused> {
        let late = |_| Refused::new(RunRefusal::Malformed, "nothing whole came in time");
        let mut first = [0];
        let begun = self.stream.read(&mut first);
        let count = match limit {
            None => begun.await,
            Some(limit) => timeout(limit, begun).await.map_err(late)?,
        };
        // A connection that breaks is a connection that is closed.
        if count.unwrap_or(0) == 0 {
            return Ok(None);
        }
        let whole = timeout(FRAME_LIMIT, rest_of_frame(&mut self.stream, first[0])).await;
        let frame = whole.map_err(late)?.map_err(|error| Refused::new(RunRefusal::Malformed, error))?;
        ToAgent::decode(&frame).map(Some).map_err(|error| Refused::new(RunRefusal::Malformed, error))
    }

    async fn write(&mut self, message: FromAgent) -> Result<(), Refused> {
        let frame = message.encode();
        let length = u32::try_from(frame.len()).unwrap_or(u32::MAX).to_be_bytes();
        let bytes = [&length[..], &frame].concat();
        let written = timeout(FRAME_LIMIT, self.stream.write_all(&bytes)).await;
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Refused::new(RunRefusal::Gone, "it does not take what it is told")),
        }
    }
}

/// Whether a pass for a challenge that was made then still counts now.
fn counts(made_boot_ns: u64, now_boot_ns: u64) -> bool {
    u128::from(now_boot_ns.saturating_sub(made_boot_ns)) <= CHALLENGE_LIMIT.as_nanos()
}

async fn rest_of_frame(stream: &mut UnixStream, first: u8) -> io::Result<Vec<u8>> {
    let mut length = [first, 0, 0, 0];
    stream.read_exact(&mut length[1..]).await?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > FRAME_MAX_BYTES {
        let problem = format!("a frame has {length} bytes, at most {FRAME_MAX_BYTES} are possible");
        return Err(io::Error::other(problem));
    }
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame).await?;
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use proto::types::RunStatement;

    use super::*;

    /// What the agent answers to a pass that is made for its challenge, and signed by `sign`.
    async fn answer(
        statement: impl Fn(Challenge) -> RunStatement,
        sign: impl Fn(&[u8]) -> Vec<u8>,
    ) -> (FromAgent, Option<Ask>) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let peer = Peer::of(&ours).expect("it is us");
        let (asks, mut asked) = mpsc::channel(4);
        let vouch: Arc<Vouch> = Arc::new(|pass: &RunPass| match pass.signature.as_slice() {
            b"broken" => Err("no authority can be read".to_owned()),
            signature => Ok(signature == b"right"),
        });
        let host = "db-7".parse().expect("valid");
        let conversation = Conversation { stream: ours, host, vouch, asks, subject: None, run: None };
        let ended = tokio::spawn(conversation.run(peer));
        let mut theirs = theirs;
        let FromAgent::Challenge { challenge, .. } = hear(&mut theirs).await else {
            panic!("it speaks first")
        };
        let pass = statement(challenge).sign(|signed| Ok::<_, ()>(sign(signed))).expect("signed");
        let frame = ToAgent::Open(pass).encode();
        let length = u32::try_from(frame.len()).expect("small").to_be_bytes();
        theirs.write_all(&[&length[..], &frame].concat()).await.expect("written");
        let ask = asked.recv().await;
        let told = match ask {
            Some(Ask::Open { subject, answer, .. }) => {
                assert_eq!(subject.to_string(), "user:alice");
                answer.send(Ok(RunId::new())).expect("it waits");
                (hear(&mut theirs).await, None)
            }
            ask => (hear(&mut theirs).await, ask),
        };
        drop(theirs);
        ended.await.expect("it ends");
        told
    }

    async fn hear(stream: &mut UnixStream) -> FromAgent {
        let mut first = [0];
        stream.read_exact(&mut first).await.expect("an answer");
        FromAgent::decode(&rest_of_frame(stream, first[0]).await.expect("an answer")).expect("it checks")
    }

    fn statement(challenge: Challenge) -> RunStatement {
        let (subject, host) = ("user:alice".parse().expect("valid"), "db-7".parse().expect("valid"));
        RunStatement { subject, host, challenge }
    }

    #[tokio::test]
    async fn only_a_signed_pass_for_this_host_and_connection_counts() {
        let right = |_: &[u8]| b"right".to_vec();
        let (told, _) = answer(statement, right).await;
        assert!(matches!(told, FromAgent::Opened(_)), "{told:?}");
        let check =
            async |made: &dyn Fn(Challenge) -> RunStatement, signature: &[u8], expected: RunRefusal| {
                let (told, ask) = answer(made, |_| signature.to_vec()).await;
                let FromAgent::Refused { reason, .. } = told else { panic!("{told:?}") };
                assert_eq!(reason, expected.as_str());
                // It is told for the record, too.
                let Some(Ask::Refused { peer: Some(_), refused, .. }) = ask else { panic!("{ask:?}") };
                assert_eq!(refused.reason, expected);
            };
        check(&statement, b"wrong", RunRefusal::BadSignature).await;
        check(&statement, b"broken", RunRefusal::BadSignature).await;
        let elsewhere =
            |challenge| RunStatement { host: "db-8".parse().expect("valid"), ..statement(challenge) };
        check(&elsewhere, b"right", RunRefusal::OtherHost).await;
        let replayed = |_| statement(Challenge([7; CHALLENGE_BYTES]));
        check(&replayed, b"right", RunRefusal::OtherChallenge).await;
    }

    #[test]
    fn a_challenge_is_soon_over() {
        let limit_ns = u64::try_from(CHALLENGE_LIMIT.as_nanos()).expect("small");
        assert!(counts(5, 5 + limit_ns));
        assert!(!counts(5, 6 + limit_ns));
    }

    #[test]
    fn one_user_cannot_take_all_connections() {
        let seats = Arc::new(Seats::default());
        let mut of_one: Vec<Seat> =
            (0..CONNECTIONS_OF_USER_MAX).filter_map(|_| Seat::take(&seats, 7)).collect();
        assert_eq!(of_one.len(), CONNECTIONS_OF_USER_MAX);
        assert!(Seat::take(&seats, 7).is_none());
        assert!(Seat::take(&seats, 8).is_some());
        of_one.pop();
        assert!(Seat::take(&seats, 7).is_some());
        let rest: Vec<Seat> = (100..1000).filter_map(|uid| Seat::take(&seats, uid)).collect();
        assert_eq!(of_one.len() + rest.len(), CONNECTIONS_MAX);
    }
}
