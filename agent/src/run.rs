//! The agent's life: what happens, in one closed enum, and what follows from it.
//!
//! Owns: the order of effects, the timers, shutdown. Must not know: how effects are done, or what is allowed.
//!
//! Invariants: a grant set is reported as applied only after the maps hold it and a restart would go on from it; a record leaves
//! the kernel's ring only after its event is in the spool, and no more are read before it is, so that what cannot be kept stays in
//! the kernel, where its loss is counted, and what an agent had read when it ended is read again by the next.

mod auditing;
mod enforcing;
mod proving;
mod runs;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agent_ebpf::abi::{ClosedRecord, MovedRecord, Ring, VerdictRecord};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use proto::types::{Applied, EventKind, Hello, PROTOCOL, Report, RunPass};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use uuid::Uuid;

use crate::canary::{self, Told};
use crate::clock::now_boot_ns;
use crate::config::Config;
use crate::identity::Identities;
use crate::kernel::{self, Gate, KernelError, Placed, Rings};
use crate::kubernetes::{self, Following, PodsFile, PodsNews};
use crate::memory::MemoryFile;
use crate::observe::{self, Cgroups, Notices, ObserveError};
use crate::runs::{self as programs, Ask, RunsFile};
use crate::session::{self, Incoming, Outgoing};
use crate::spool::{Spool, SpoolError};
use auditing::Auditing;
use enforcing::Enforcing;
use runs::Running;

/// How often it is looked which addresses came or went, and which grants are over by what is seen here; and which cgroups,
/// should the kernel's notices of them have been lost.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often losses are counted, the disk is asked to keep events, and failed writes are tried again.
const KEEP_EVERY: Duration = Duration::from_secs(1);
/// How often the gate is proven shut, its programs are looked at, and the host's state is reported.
const PROVE_EVERY: Duration = Duration::from_secs(5);
/// How many proofs later the control plane hears again what the kernel holds: every 15 seconds.
const PROOFS_PER_DIGEST: u32 = 3;
/// How often a part of the maps is compared with what was written there: all of them every 5.2 s.
const COMPARE_EVERY: Duration = Duration::from_millis(400);
/// How long the canary is given to end, and its cgroup to go.
const CANARY_END_TIMEOUT: Duration = Duration::from_secs(3);
/// Questions to the canary and answers that wait. There is one at a time, and news.
const CANARY_MAX: usize = 4;
/// Records that are handled in one turn, so that a flood of them does not keep grants waiting.
const RECORDS_MAX: usize = 512;
/// Turns that records of a gate of another ABI version are given at a time.
const PREDECESSORS_TURNS_MAX: usize = 32;
/// What programs want that waits.
const PROGRAMS_MAX: usize = 64;
/// Messages of the control plane that wait.
const INCOMING_MAX: usize = 16;

/// Why the agent ended, or did not start. The gate stays as it was.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The state directory cannot be used.
    #[error("cannot use the state directory {path}", path = path.display())]
    StateDir {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another agent uses it.
    #[error("another agent runs with the state directory {path}: stop it first", path = path.display())]
    Running {
        /// Which.
        path: PathBuf,
    },
    /// This host cannot be observed.
    #[error(transparent)]
    Observe(#[from] ObserveError),
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The spool cannot be used.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// A ring cannot be awaited.
    #[error("cannot wait for the kernel's records")]
    Ring(#[source] io::Error),
    /// Nobody can wait for cgroups to come and go.
    #[error("cannot wait for the kernel's notices of cgroups")]
    Notices(#[source] io::Error),
}

/// Keeps two agents from using one state directory.
pub struct StateLock {
    _file: Flock<std::fs::File>,
}

impl StateLock {
    /// Makes the directory if it is not there, and locks it until the lock is dropped.
    pub fn take(config: &Config) -> Result<Self, RunError> {
        let path = &config.state_dir;
        let refuse = |source| RunError::StateDir { path: path.clone(), source };
        std::fs::create_dir_all(path).map_err(refuse)?;
        let file = std::fs::File::create(path.join("lock")).map_err(refuse)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Self { _file: file }),
            Err((_, Errno::EAGAIN)) => Err(RunError::Running { path: path.clone() }),
            Err((_, errno)) => Err(refuse(errno.into())),
        }
    }
}

/// Everything that can happen to the agent.
enum Event {
    /// The kernel decided.
    Records(Vec<Placed<VerdictRecord>>),
    /// Connections have ended.
    Closed(Vec<Placed<ClosedRecord>>),
    /// Processes were moved into cgroups that are bound.
    Moved(Vec<Placed<MovedRecord>>),
    /// The control plane said something.
    Session(Incoming),
    /// Cgroups came or went.
    Cgroups,
    /// The API server told of pods, or cannot be heard.
    Pods(PodsNews),
    /// Time to look what came and went on this host.
    Look,
    /// Time to keep what must be kept.
    Keep,
    /// Time to prove that the gate is shut.
    Prove,
    /// Time to compare a part of the maps.
    Compare,
    /// The canary said something.
    Canary(Told),
    /// A program on this host wants something.
    Program(Ask),
    /// Somebody asked the agent to end.
    Shutdown,
}

/// Where the agent works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ground {
    /// The gate is up for the processes in this cgroup and below.
    pub cgroup_root: PathBuf,
    /// The agent's own program, to be the canary.
    pub program: PathBuf,
}

impl Ground {
    /// The whole host.
    pub fn of_host() -> Result<Self, ObserveError> {
        // Whatever has taken the file's place meanwhile, an upgrade for one.
        let program = PathBuf::from("/proc/self/exe");
        Ok(Self { cgroup_root: observe::cgroup_root()?, program })
    }
}

/// Runs until `shutdown` resolves. The gate stays up after it.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
    run_on(Ground::of_host()?, config, shutdown, drop).await
}

/// The same on some ground; a part of the host only for tests, several of which run on one machine. `watch` is given what the
/// agent would tell the control plane.
pub async fn run_on(
    ground: Ground,
    config: Config,
    shutdown: impl Future<Output = ()>,
    watch: impl FnOnce(watch::Receiver<Hello>),
) -> Result<(), RunError> {
    let _lock = StateLock::take(&config)?;
    let boot_id = observe::boot_id()?;
    let mut cgroups = Cgroups::new(ground.cgroup_root.clone());
    cgroups.follow(config.exempt.iter());
    cgroups.look(true);
    let notices = cgroups.notices().map_err(RunError::Notices)?;
    let memory_file = MemoryFile::new(&config.state_dir, boot_id);
    let spool = Spool::open(&config.state_dir.join("spool"), boot_id, config.spool_max_bytes)?;
    let mut settings = config.kernel.clone();
    settings.lsm.exempt = enforcing::exempt(&cgroups, &config.exempt);
    let (gate, streams) = Gate::raise(&settings, cgroups.root())?;
    let mut diagnostics = streams.diagnostics;
    let Rings { mut allow, mut deny, mut closed, mut moved } = streams.rings;
    let marks = spool.marks();
    for ring in [&mut allow, &mut deny] {
        marks.end(ring.id()).into_iter().for_each(|end| ring.pass_over(end));
    }
    marks.end(closed.id()).into_iter().for_each(|end| closed.pass_over(end));
    marks.end(moved.id()).into_iter().for_each(|end| moved.pass_over(end));
    let mut allow = allow.into_async().map_err(RunError::Ring)?;
    let mut deny = deny.into_async().map_err(RunError::Ring)?;
    let mut closed = closed.into_async().map_err(RunError::Ring)?;
    let mut moved = moved.into_async().map_err(RunError::Ring)?;

    let (asks, to_canary) = mpsc::channel(CANARY_MAX);
    let (from_canary, mut canary_says) = mpsc::channel(CANARY_MAX);
    let canary = canary::keep(ground.program, ground.cgroup_root, to_canary, from_canary);
    let canary = tokio::spawn(canary);

    let mut agent = Agent::new(&config, boot_id, gate, cgroups, spool, memory_file, asks)?;
    let (from_programs, mut programs) = mpsc::channel(PROGRAMS_MAX);
    let identities = Identities::new(&config.state_dir);
    let listening = agent.listen(&config, identities.clone(), from_programs);
    watch(agent.hello.subscribe());
    let (to_agent, mut incoming) = mpsc::channel(INCOMING_MAX);
    let access =
        session::Access { endpoint: config.control_plane.clone(), identities, join: config.join.clone() };
    let session = session::keep(access, agent.hello.subscribe(), to_agent);
    let mut session = tokio::spawn(session);

    let mut pods = config.kubernetes.map(kubernetes::follow);

    let mut look = every(LOOK_EVERY);
    let mut keep = every(KEEP_EVERY);
    let mut prove = every(PROVE_EVERY);
    let mut compare = every(COMPARE_EVERY);
    tokio::pin!(shutdown);
    loop {
        // What is kept needs no room in the kernel any more; what is not stays there, for the next agent if this one ends.
        allow.release(agent.auditing.kept(allow.id()));
        deny.release(agent.auditing.kept(deny.id()));
        closed.release(agent.auditing.kept(closed.id()));
        moved.release(agent.auditing.kept(moved.id()));
        let can_keep = agent.auditing.can_keep_more();
        let event = tokio::select! {
            // Grants before records: a flood of denials must not delay a revocation.
            biased;
            () = &mut shutdown => Event::Shutdown,
            message = incoming.recv() => match message {
                Some(message) => Event::Session(message),
                None => return Ok(()),
            },
            result = notices_of(notices.as_ref()) => {
                result.map_err(RunError::Notices)?;
                Event::Cgroups
            }
            Some(news) = news_of(pods.as_mut()) => Event::Pods(news),
            Some(ask) = programs.recv() => Event::Program(ask),
            _ = prove.tick() => Event::Prove,
            _ = look.tick() => Event::Look,
            _ = keep.tick() => Event::Keep,
            _ = compare.tick() => Event::Compare,
            Some(told) = canary_says.recv() => Event::Canary(told),
            records = deny.read(RECORDS_MAX), if can_keep => Event::Records(records.map_err(RunError::Ring)?),
            records = allow.read(RECORDS_MAX), if can_keep => Event::Records(records.map_err(RunError::Ring)?),
            records = closed.read(RECORDS_MAX), if can_keep => Event::Closed(records.map_err(RunError::Ring)?),
            // Last: whoever moves processes without end keeps nothing else waiting.
            records = moved.read(RECORDS_MAX), if can_keep => Event::Moved(records.map_err(RunError::Ring)?),
            Some(result) = relay(&mut diagnostics) => {
                result.map_err(RunError::Ring)?;
                continue;
            }
            _ = &mut session => return Ok(()),
        };
        if let Event::Shutdown = event {
            // An upgrade may just have put the next agent's program in place: the tamper tier must know it.
            let repaired = agent.enforcing.inspect();
            agent.tell_drift(repaired);
            agent.auditing.sync();
            session.abort();
            listening.inspect(|listening| listening.abort());
            // The canary ends when nobody can ask it any more.
            drop(agent);
            let _ = tokio::time::timeout(CANARY_END_TIMEOUT, canary).await;
            tracing::info!("stopped; the gate stays up");
            return Ok(());
        }
        agent.handle(event);
    }
}

fn every(period: Duration) -> tokio::time::Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// Never, where the kernel tells nothing.
async fn notices_of(notices: Option<&Notices>) -> io::Result<()> {
    match notices {
        Some(notices) => notices.next().await,
        None => std::future::pending().await,
    }
}

/// None, for good, where nobody asks for pods.
async fn news_of(pods: Option<&mut Following>) -> Option<PodsNews> {
    pods?.next().await
}

/// None, for good, where there are no diagnostics.
async fn relay(diagnostics: &mut Option<kernel::Diagnostics>) -> Option<io::Result<()>> {
    match diagnostics {
        Some(diagnostics) => Some(diagnostics.relay().await),
        None => None,
    }
}

/// The parts, and where the control plane can be told.
struct Agent {
    enforcing: Enforcing,
    auditing: Auditing,
    /// Of this agent's gate.
    abi_version: u32,
    /// The kernel's numbers of its rings, in the order of [`Ring::ALL`].
    rings: [u32; Ring::ALL.len()],
    /// None: no session.
    outgoing: Option<mpsc::Sender<Outgoing>>,
    timeline: Option<Uuid>,
    /// What is to be told as soon as a restart would go on from it.
    owes_applied: Option<Applied>,
    /// The control plane is to hear what the kernel holds.
    owes_digest: bool,
    /// The session is of a version of the protocol that has digests.
    knows_digests: bool,
    /// Much was freed since the allocator was last asked to give back.
    has_freed: bool,
    /// How often the gate was to be proven.
    proofs: u32,
    hello: watch::Sender<Hello>,
    canary: mpsc::Sender<canary::Ask>,
}

impl Agent {
    fn new(
        config: &Config,
        boot_id: Uuid,
        gate: Gate,
        cgroups: Cgroups,
        spool: Spool,
        memory_file: MemoryFile,
        canary: mpsc::Sender<canary::Ask>,
    ) -> Result<Self, RunError> {
        let memory = memory_file.read(now_boot_ns());
        let (took_over, predecessors, rings) = (gate.took_over(), gate.predecessors(), gate.rings());
        let abi_version = config.kernel.abi_version;
        let mut lost = memory.lost.clone();
        // An agent that ends in between has kept an event of losses, and not written down that they are told.
        for (ring, id) in Ring::ALL.into_iter().zip(rings) {
            if let Some(told) = spool.marks().lost(id) {
                lost.entry(abi_version).or_default()[ring as usize] = told;
            }
        }
        let pods_file = config.kubernetes.as_ref().map(|_| PodsFile::new(&config.state_dir, boot_id));
        let running = Running::new(RunsFile::new(&config.state_dir, boot_id), cgroups.root().to_owned());
        let mut enforcing =
            Enforcing::new(gate, cgroups, config.exempt.clone(), pods_file, memory, memory_file, running)?;
        let mut auditing = Auditing::new(config.host.clone(), boot_id, spool, lost);
        auditing.learn(&enforcing);
        enforcing.skip_predecessors(|ring| auditing.end(ring));
        auditing.learn_runs(&enforcing.running.runs);
        let how = match (took_over, predecessors.as_slice()) {
            (_, [first, ..]) => format!("met the gate of ABI version {first}, itself having {abi_version}"),
            (true, []) => "took over the gate that was up".to_owned(),
            (false, []) => "put up the gate".to_owned(),
        };
        auditing.host_event(EventKind::AgentStarted, format!("{how}; version {}", env!("CARGO_PKG_VERSION")));
        let hello = watch::Sender::new(Hello {
            host: config.host.clone(),
            boot_id,
            applied: None,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel_release: observe::kernel_release(),
            report: enforcing.report(auditing.error()),
            instance: Some(Uuid::from_u128(rand::random())),
            protocol: PROTOCOL,
        });
        let mut agent = Self {
            enforcing,
            auditing,
            abi_version,
            rings,
            outgoing: None,
            timeline: None,
            owes_applied: None,
            owes_digest: false,
            knows_digests: false,
            has_freed: true,
            proofs: 0,
            hello,
            canary,
        };
        agent.refresh_hello();
        tracing::info!(host = %config.host, took_over, "the gate is up");
        Ok(agent)
    }

    /// Lets programs of this host in, if that is wanted. That it cannot be is told, and keeps nothing else from going on.
    fn listen(
        &mut self,
        config: &Config,
        identities: Identities,
        asks: mpsc::Sender<Ask>,
    ) -> Option<JoinHandle<()>> {
        let path = config.runs_socket.as_ref()?;
        let listener = match programs::listen(path) {
            Ok(listener) => listener,
            Err(error) => {
                let why = format!("cannot listen at {}: {error}", path.display());
                tracing::error!(why, "nobody can run a command as a subject");
                self.enforcing.health.runs = Some(why);
                return None;
            }
        };
        let vouch = move |pass: &RunPass| {
            let signed = identities.have_signed(&pass.signed(), &pass.signature);
            signed.map_err(|error| error.to_string())
        };
        Some(tokio::spawn(programs::serve(listener, config.host.clone(), Arc::new(vouch), asks)))
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Records(records) => {
                self.auditing.records(&records, self.enforcing.cgroups());
                self.ship();
                self.enforcing.see(&records);
                self.report_if_changed();
            }
            Event::Closed(records) => {
                self.auditing.closed(&records);
                self.ship();
            }
            Event::Moved(records) => {
                self.auditing.moved(&records, self.enforcing.grants_and_cgroups());
                self.ship();
            }
            Event::Session(incoming) => self.hear(incoming),
            Event::Cgroups => {
                if self.enforcing.follow_cgroups(false) {
                    self.report_if_changed();
                }
            }
            Event::Pods(news) => {
                if self.enforcing.follow_pods(news) {
                    self.report_if_changed();
                }
            }
            Event::Look => {
                if self.enforcing.follow(false) {
                    self.auditing.learn(&self.enforcing);
                    self.report();
                }
                self.look_at_runs();
                if self.enforcing.end_what_is_over(self.auditing.lost()) {
                    self.tell_ended();
                }
                self.end_connections(false);
            }
            Event::Keep => {
                if std::mem::take(&mut self.has_freed) {
                    kernel::give_back();
                }
                self.enforcing.retry();
                self.enforcing.conclude();
                self.report_if_changed();
                self.read_predecessors();
                self.count_losses();
                self.auditing.sync();
                self.ship();
                if self.owes_digest {
                    self.tell_digest();
                }
            }
            Event::Prove => {
                self.proofs = self.proofs.wrapping_add(1);
                self.owes_digest |= self.proofs.is_multiple_of(PROOFS_PER_DIGEST);
                if self.enforcing.follow(true) {
                    self.auditing.learn(&self.enforcing);
                }
                let repaired = self.enforcing.inspect();
                self.tell_drift(repaired);
                self.ask_canary();
                self.end_connections(true);
                self.report();
            }
            Event::Compare => self.compare(),
            Event::Canary(told) => {
                if self.enforcing.hear(told) {
                    self.ask_canary();
                }
                self.report_if_changed();
            }
            Event::Program(ask) => self.hear_program(ask),
            // Ends the loop before it gets here.
            Event::Shutdown => {}
        }
    }

    fn hear(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Connected { timeline, outgoing, protocol } => {
                self.timeline = Some(timeline);
                self.outgoing = Some(outgoing);
                self.knows_digests = protocol >= 2;
                self.tell_ended();
                self.auditing.rewind();
                self.ship();
            }
            Incoming::GrantSet(set) => {
                // A session welcomes before it sends sets.
                let Some(timeline) = self.timeline else { return };
                if let Some(applied) = self.enforcing.apply(timeline, set) {
                    self.tell_applied(applied);
                }
            }
            Incoming::Delta(delta) => {
                let Some(timeline) = self.timeline else { return };
                match self.enforcing.change(timeline, &delta) {
                    Ok(applied) => self.tell_applied(applied),
                    Err(error) => {
                        tracing::warn!(%error, "what came is no change of what is held: a whole set is asked for");
                        self.send(Outgoing::Resync(error.to_string()));
                    }
                }
            }
            Incoming::Heard { boot_ns } => self.enforcing.heard(boot_ns),
            Incoming::AuditAck { epoch, sequence } => {
                self.auditing.acknowledged(epoch, sequence);
                self.ship();
            }
            Incoming::Disconnected => {
                self.outgoing = None;
                // The next session begins with a set.
                self.owes_applied = None;
                self.auditing.rewind();
            }
        }
    }

    fn tell_applied(&mut self, applied: Applied) {
        // Only when it is written down: an agent that ends here must not leave the one before as what the next one goes back to,
        // and revive what the control plane shows as ended.
        self.owes_applied = Some(applied);
        self.has_freed = true;
        self.tell_what_is_kept();
        // Also what was only observed until now.
        self.end_connections(true);
        self.auditing.learn(&self.enforcing);
        self.owes_digest = true;
        self.ask_canary();
        self.report();
    }

    /// Writes down what a restart must know, and tells what was waiting for that. If it cannot be, it is tried again.
    fn tell_what_is_kept(&mut self) {
        if !self.enforcing.remember(self.auditing.lost()) {
            return;
        }
        // First, so that nobody takes what ended at once for active.
        let ended = self.enforcing.ended();
        if !ended.is_empty() {
            self.send(Outgoing::Ended(ended));
        }
        if let Some(applied) = self.owes_applied.take() {
            self.send(Outgoing::Applied(applied));
        }
    }

    /// Tells what the kernel holds, if the control plane is to hear it.
    fn tell_digest(&mut self) {
        if self.knows_digests
            && self.outgoing.is_some()
            && let Some(digest) = self.enforcing.digest()
        {
            self.owes_digest = false;
            self.send(Outgoing::Digest(digest));
        }
    }

    /// Tells what this host has ended by itself, again and again until a set comes without it; and writes it down, so that a
    /// restart revives nothing.
    fn tell_ended(&mut self) {
        if !self.enforcing.ended().is_empty() {
            self.tell_what_is_kept();
        }
    }

    /// Sends the next events, if a session is there and the ones before are acknowledged.
    fn ship(&mut self) {
        if self.outgoing.is_some()
            && let Some(events) = self.auditing.next_batch()
        {
            self.send(Outgoing::Audit(events));
        }
    }

    /// Ends the connections of grants that have ended, and writes down what became of them.
    fn end_connections(&mut self, again: bool) {
        match self.enforcing.end_connections(again) {
            Ok(ends) => {
                self.auditing.closed_here(&ends.closed);
                self.auditing.receipts(&ends.periods);
                self.ship();
            }
            Err(error) => tracing::error!(%error, "cannot end the connections of grants that have ended"),
        }
    }

    /// Keeps what gates of other ABI versions have recorded, and lets go of them when that is done.
    fn read_predecessors(&mut self) {
        if self.enforcing.predecessors().is_empty() {
            return;
        }
        for _ in 0..PREDECESSORS_TURNS_MAX {
            if !self.auditing.can_keep_more() {
                return;
            }
            let records = self.enforcing.read_predecessors(RECORDS_MAX);
            let closed = self.enforcing.read_predecessors_closed(RECORDS_MAX);
            let moved = self.enforcing.read_predecessors_moved(RECORDS_MAX);
            if records.is_empty() && closed.is_empty() && moved.is_empty() {
                self.forget_predecessors();
                return;
            }
            self.auditing.records(&records, self.enforcing.cgroups());
            self.auditing.closed(&closed);
            self.auditing.moved(&moved, self.enforcing.grants_and_cgroups());
            let auditing = &self.auditing;
            self.enforcing.release_predecessors(|ring| auditing.kept(ring));
        }
    }

    fn forget_predecessors(&mut self) {
        let forgotten = self.enforcing.predecessors_lost().and_then(|lost| {
            for (version, lost) in lost {
                for (ring, lost) in Ring::ALL.into_iter().zip(lost) {
                    self.auditing.count_lost(version, ring, lost, None);
                }
            }
            self.enforcing.forget_predecessors()
        });
        match forgotten {
            Ok(versions) => versions.into_iter().for_each(|version| self.auditing.forget_lost(version)),
            Err(error) => tracing::error!(%error, "cannot let go of the gate of another ABI version"),
        }
    }

    /// Begins a round of the canary, unless one is under way.
    fn ask_canary(&mut self) {
        if let Some(ask) = self.enforcing.prove()
            && self.canary.try_send(ask).is_err()
        {
            // There is one question at a time: it has just gone, and says so itself.
            tracing::warn!("the canary cannot be asked");
        }
    }

    fn compare(&mut self) {
        match self.enforcing.look_for_drift() {
            Ok(drifts) if drifts.is_empty() => {}
            Ok(drifts) => {
                self.tell_drift(drifts.iter().map(|drift| format!("{drift}; put right")).collect());
                self.end_connections(true);
                self.report();
            }
            Err(error) => tracing::error!(%error, "cannot compare the maps with what was written there"),
        }
    }

    fn tell_drift(&mut self, texts: Vec<String>) {
        for text in texts {
            self.auditing.host_event(EventKind::HostDrift, text);
        }
        self.ship();
    }

    fn count_losses(&mut self) {
        for ring in Ring::ALL {
            match self.enforcing.lost(ring) {
                Ok(lost) => {
                    let id = self.rings[ring as usize];
                    self.auditing.count_lost(self.abi_version, ring, lost, Some(id));
                }
                Err(error) => tracing::error!(%error, "cannot count lost records"),
            }
        }
        if self.auditing.take_lost_changed() || self.enforcing.owes_memory() {
            self.tell_what_is_kept();
        }
    }

    /// Tells the state if it changed, or as a sign of life.
    fn report(&mut self) {
        let report = self.current_report();
        if self.hello.borrow().report != report {
            tracing::info!(state = %report.state, detail = report.detail, "this host's state");
        }
        self.refresh_hello();
        self.send(Outgoing::Report(report));
    }

    /// Tells the state only if it is another one than was told last.
    fn report_if_changed(&mut self) {
        if self.current_report() != self.hello.borrow().report {
            self.report();
        }
    }

    fn current_report(&mut self) -> Report {
        self.enforcing.report(self.auditing.error())
    }

    fn refresh_hello(&mut self) {
        let report = self.current_report();
        self.hello.send_modify(|hello| {
            hello.applied = self.enforcing.confirmed();
            hello.report = report;
        });
    }

    /// Without a session nothing is sent: the next one begins with what is true then. A session that does not take what it
    /// is given is given up.
    fn send(&mut self, message: Outgoing) {
        if let Some(outgoing) = &self.outgoing
            && let Err(mpsc::error::TrySendError::Full(_)) = outgoing.try_send(message)
        {
            tracing::warn!("the session with the control plane does not move; beginning a new one");
            self.outgoing = None;
        }
    }
}
