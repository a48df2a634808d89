//! Runs: from what a program asks for to a cgroup that the kernel knows, and to its end.

use std::collections::BTreeMap;
use std::path::PathBuf;

use proto::types::{Action, EventKind, GrantId, RunDetails, RunId, RunRefusal, SubjectId};

use crate::clock::now_boot_ns;
use crate::observe;
use crate::rules::audit::RunTold;
use crate::rules::exact::{self, Found};
use crate::rules::runs::{Full, Run, Runs, Stage};
use crate::runs::{Ask, Peer, Refused, RunsFile, cgroup};

use super::Agent;
use super::enforcing::Enforcing;

/// How many refusals are told of in [`REFUSALS_SPAN_NS`]; the others are counted, and told with the next one. Anybody on the host can
/// be refused as often as they like, and must not fill the disk by it.
const REFUSALS_MAX: u32 = 30;
const REFUSALS_SPAN_NS: u64 = 30_000_000_000;

/// The runs of this host, and what belongs to them here.
pub(super) struct Running {
    pub(super) runs: Runs,
    /// Who opened each, of those that nobody has entered.
    openers: BTreeMap<RunId, Peer>,
    file: RunsFile,
    cgroup_root: PathBuf,
    /// Those that were over when this agent began, and have not been told of.
    lost: Vec<(Run, &'static str)>,
    refusals: Refusals,
    /// Why what was held for a run never began to run, until who opened it has heard.
    denied: BTreeMap<RunId, Refused>,
    /// Which run has used up each grant of one action, as it was remembered; to be taken.
    pub(super) recalled: BTreeMap<GrantId, RunId>,
}

/// How many refusals were told of lately.
#[derive(Debug, Default)]
struct Refusals {
    since_boot_ns: u64,
    told: u32,
    untold: u32,
}

impl Refusals {
    /// Whether the next one is told of; if so, with how many others.
    fn note(&mut self, now_boot_ns: u64) -> Option<u32> {
        if now_boot_ns.saturating_sub(self.since_boot_ns) >= REFUSALS_SPAN_NS {
            (self.since_boot_ns, self.told) = (now_boot_ns, 0);
        }
        if self.told >= REFUSALS_MAX {
            self.untold = self.untold.saturating_add(1);
            return None;
        }
        self.told += 1;
        Some(std::mem::take(&mut self.untold))
    }
}

impl Running {
    /// Goes on with the runs of the agent before that are still what they were.
    pub(super) fn new(file: RunsFile, cgroup_root: PathBuf) -> Self {
        let stands = |run: &Run| cgroup::is_populated(&cgroup_root, run.id, run.cgroup_id);
        let remembered = file.read();
        let recalled = remembered.used.clone();
        let (runs, over) = Runs::recall(remembered, |run| stands(run) == Some(true));
        let lost = over.into_iter().map(|run| {
            let reason = if stands(&run) == Some(false) { "exited" } else { "lost" };
            cgroup::remove(&cgroup_root, run.id);
            (run, reason)
        });
        let lost = lost.collect();
        Self {
            runs,
            openers: BTreeMap::new(),
            file,
            cgroup_root,
            lost,
            refusals: Refusals::default(),
            denied: BTreeMap::new(),
            recalled,
        }
    }

    fn open(&mut self, subject: SubjectId, peer: Peer) -> Result<RunId, Refused> {
        let id = RunId::new();
        let cgroup_id = cgroup::make(&self.cgroup_root, id).map_err(|error| {
            Refused::new(RunRefusal::Failed, format_args!("cannot make a cgroup: {error}"))
        })?;
        if let Err(Full) = self.runs.open(id, subject, cgroup_id) {
            cgroup::remove(&self.cgroup_root, id);
            return Err(RunRefusal::TooMany.into());
        }
        self.openers.insert(id, peer);
        Ok(id)
    }

    /// Who may enter: a child of the process that opened the run, of the same user, once.
    fn may_enter(&self, id: RunId, peer: &Peer) -> Result<Option<u32>, Refused> {
        let run = self.runs.get(id).ok_or(RunRefusal::UnknownRun)?;
        if run.stage != Stage::Open {
            return Err(RunRefusal::AlreadyEntered.into());
        }
        let opener = self.openers.get(&id).ok_or(RunRefusal::UnknownRun)?;
        let process = observe::process(peer.pid).ok_or(RunRefusal::Gone)?;
        // As both are still there, neither id was another process's when it was read.
        if !peer.is_there() || !opener.is_there() {
            return Err(RunRefusal::Gone.into());
        }
        if process.parent != opener.pid {
            return Err(RunRefusal::NotAChild.into());
        }
        if peer.uid != opener.uid || process.uid != opener.uid {
            return Err(RunRefusal::OtherUser.into());
        }
        Ok(process.login_uid)
    }

    /// Those of which nothing is left; they are forgotten.
    fn take_over(&mut self) -> Vec<(Run, &'static str)> {
        let mut over = std::mem::take(&mut self.lost);
        let is_over = |run: &&Run| match run.stage {
            Stage::Open => !self.openers.get(&run.id).is_some_and(Peer::is_there),
            Stage::Entered => cgroup::is_populated(&self.cgroup_root, run.id, run.cgroup_id) != Some(true),
        };
        let ids: Vec<RunId> = self.runs.iter().filter(is_over).map(|run| run.id).collect();
        over.extend(ids.into_iter().filter_map(|id| self.end(id)));
        over
    }

    fn end(&mut self, id: RunId) -> Option<(Run, &'static str)> {
        let run = self.runs.end(id)?;
        self.openers.remove(&id);
        self.denied.remove(&id);
        cgroup::remove(&self.cgroup_root, id);
        let reason = if run.stage == Stage::Open { "abandoned" } else { "exited" };
        Some((run, reason))
    }

    fn remember(&self, used: &BTreeMap<GrantId, RunId>) -> std::io::Result<()> {
        self.file.write(&self.runs.remembered(used))
    }
}

impl Enforcing {
    fn open_run(&mut self, subject: &SubjectId, peer: Peer) -> Result<RunId, Refused> {
        if !self.grants.subjects().iter().any(|known| known.id == *subject) {
            let detail = format_args!("`{subject}`; it may be on its way, so try again");
            return Err(Refused::new(RunRefusal::UnknownSubject, detail));
        }
        let id = self.running.open(subject.clone(), peer)?;
        self.reconcile();
        Ok(id)
    }

    /// Puts a process into a run. It is remembered first, so that no restart takes what is in there for nobody's.
    fn enter_run(&mut self, id: RunId, peer: &Peer) -> Result<(Run, Option<u32>), Refused> {
        let login_uid = self.running.may_enter(id, peer)?;
        let run = self.running.runs.enter(id).cloned().ok_or(RunRefusal::UnknownRun)?;
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            Refused::new(RunRefusal::Failed, format_args!("cannot {what}: {error}"))
        };
        let entered = self
            .running
            .remember(self.grants.used())
            .map_err(|error| failed("write down the run", &error))
            .and_then(|()| {
                cgroup::put(&self.running.cgroup_root, id, peer.pid)
                    .map_err(|error| failed("move the process", &error))
            })
            .and_then(|()| {
                // The process that was moved is the one that asked only if that is still there.
                let process = observe::process(peer.pid).filter(|_| peer.is_there());
                let is_in = process.is_some_and(|process| self.cgroups.of(&process) == Some(run.cgroup_id));
                if is_in { Ok(()) } else { Err(RunRefusal::Gone.into()) }
            });
        match entered {
            Ok(()) => Ok((run, login_uid)),
            // What nothing is in is over at the next look.
            Err(refused) => Err(refused),
        }
    }

    /// Whether a process may be held for a grant of one action, to be put into this run.
    fn may_hold(&self, id: RunId, grant: GrantId, peer: &Peer) -> Result<&Action, Refused> {
        self.running.may_enter(id, peer)?;
        let run = self.running.runs.get(id).ok_or(RunRefusal::UnknownRun)?;
        Ok(self.grants.action(grant, &run.subject, id, now_boot_ns())?)
    }

    /// The same as [`Enforcing::enter_run`] for a process that is held, if it has become exactly what the grant is for. The grant is
    /// used up first, whatever comes of it.
    fn enter_exactly(
        &mut self,
        id: RunId,
        grant: GrantId,
        peer: &Peer,
        found: Result<Found, Refused>,
    ) -> Result<(Run, Option<u32>), Refused> {
        let found = found?;
        let action = self.may_hold(id, grant, peer)?;
        exact::check(action, &found).map_err(|(reason, detail)| Refused { reason, detail })?;
        self.grants.use_up(grant, id);
        let entered = self.enter_run(id, peer)?;
        // The kernel knows it before the process goes on.
        self.reconcile();
        Ok(entered)
    }

    /// Ends the runs of which nothing is left.
    fn end_runs(&mut self) -> Vec<(Run, &'static str)> {
        let over = self.running.take_over();
        self.forget_runs(&over);
        over
    }

    /// Who opened a run is gone. If nobody has entered it, it is over.
    fn abandon_run(&mut self, id: RunId) -> Option<(Run, &'static str)> {
        let is_open = self.running.runs.get(id).is_some_and(|run| run.stage == Stage::Open);
        let over = if is_open { self.running.end(id) } else { None };
        self.forget_runs(over.as_slice());
        over
    }

    fn forget_runs(&mut self, over: &[(Run, &'static str)]) {
        if over.is_empty() {
            return;
        }
        // Grants that were for them alone end with them.
        self.find_ends();
        self.reconcile();
        if over.iter().any(|(run, _)| run.stage == Stage::Entered)
            && let Err(error) = self.running.remember(self.grants.used())
        {
            tracing::error!(%error, "cannot write down which runs are over; the next agent finds them empty");
        }
    }
}

impl Agent {
    /// A program on this host wants something.
    pub(super) fn hear_program(&mut self, ask: Ask) {
        match ask {
            Ask::Open { subject, peer, answer } => {
                let opened = self.enforcing.open_run(&subject, peer);
                if opened.is_ok() {
                    self.auditing.learn_runs(&self.enforcing.running.runs);
                }
                // If nobody waits any more, `Gone` or the next look ends it.
                let _ = answer.send(opened);
            }
            Ask::Enter { run, peer, command, answer } => {
                let entered = self.enforcing.enter_run(run, &peer);
                self.tell_entered(&entered, &peer, command, None);
                let _ = answer.send(entered.map(drop));
            }
            Ask::Hold { run, grant, peer, answer } => {
                let _ = answer.send(self.enforcing.may_hold(run, grant, &peer).map(drop));
            }
            Ask::EnterExactly { run, grant, peer, found, answer } => {
                let command =
                    found.as_ref().as_ref().map(|found| found.executable.clone()).unwrap_or_default();
                let entered = self.enforcing.enter_exactly(run, grant, &peer, *found);
                self.tell_entered(&entered, &peer, command, Some(grant));
                if let Err(refused) = &entered {
                    // Before the process is ended, so that who waits for it hears why.
                    self.enforcing.running.denied.insert(run, refused.clone());
                }
                let _ = answer.send(entered.map(drop));
            }
            Ask::Finish { run, answer } => {
                let running = &mut self.enforcing.running;
                let counted = match (running.denied.remove(&run), running.runs.get(run)) {
                    (Some(refused), _) => Err(refused),
                    (None, Some(_)) => Ok(cgroup::processes(&running.cgroup_root, run)),
                    (None, None) => Ok(0),
                };
                let _ = answer.send(counted);
            }
            Ask::Gone(run) => {
                let over = self.enforcing.abandon_run(run);
                self.tell_runs_over(over.into_iter().collect());
            }
            Ask::Refused { peer, subject, run, refused } => self.tell_refused(peer, subject, run, &refused),
        }
    }

    fn tell_entered(
        &mut self,
        entered: &Result<(Run, Option<u32>), Refused>,
        peer: &Peer,
        comment: String,
        grant: Option<GrantId>,
    ) {
        let Ok((run, login_uid)) = entered else { return };
        let details = RunDetails {
            id: Some(run.id),
            pid: peer.pid.unsigned_abs(),
            uid: peer.uid,
            cgroup_id: run.cgroup_id,
            login_uid: *login_uid,
        };
        let subject = Some(run.subject.clone());
        self.tell_run(EventKind::RunStarted, RunTold { subject, grant, reason: "", comment, run: details });
    }

    /// Looks which runs are over.
    pub(super) fn look_at_runs(&mut self) {
        let over = self.enforcing.end_runs();
        self.tell_runs_over(over);
    }

    fn tell_runs_over(&mut self, over: Vec<(Run, &'static str)>) {
        if over.is_empty() {
            return;
        }
        for (run, reason) in over {
            let details = RunDetails { id: Some(run.id), cgroup_id: run.cgroup_id, ..RunDetails::default() };
            let told = RunTold {
                subject: Some(run.subject),
                grant: None,
                reason,
                comment: String::new(),
                run: details,
            };
            self.tell_run(EventKind::RunEnded, told);
        }
        self.tell_ended();
        self.end_connections(false);
    }

    fn tell_refused(
        &mut self,
        peer: Option<Peer>,
        subject: Option<SubjectId>,
        run: Option<RunId>,
        refused: &Refused,
    ) {
        let Some(others) = self.enforcing.running.refusals.note(now_boot_ns()) else { return };
        let mut comment = refused.detail.clone();
        if others > 0 {
            comment += &format!(" ({others} more since the last of these lines)");
        }
        let process = peer.as_ref().and_then(|peer| observe::process(peer.pid).filter(|_| peer.is_there()));
        let details = RunDetails {
            id: run,
            pid: peer.as_ref().map_or(0, |peer| peer.pid.unsigned_abs()),
            uid: peer.as_ref().map_or(0, |peer| peer.uid),
            cgroup_id: 0,
            login_uid: process.and_then(|process| process.login_uid),
        };
        let comment = comment.trim_start().to_owned();
        let told = RunTold { subject, grant: None, reason: refused.reason.as_str(), comment, run: details };
        self.tell_run(EventKind::RunRefused, told);
    }

    fn tell_run(&mut self, kind: EventKind, told: RunTold) {
        tracing::info!(%kind, subject = ?told.subject, run = ?told.run, reason = told.reason, comment = told.comment, "run");
        self.auditing.run_event(kind, told);
        self.ship();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_is_counted() {
        let mut refusals = Refusals::default();
        let told: u32 = (0..1000).filter_map(|_| refusals.note(REFUSALS_SPAN_NS)).map(|_| 1).sum();
        assert_eq!(told, REFUSALS_MAX);
        assert_eq!(refusals.note(2 * REFUSALS_SPAN_NS), Some(1000 - REFUSALS_MAX));
        assert_eq!(refusals.note(2 * REFUSALS_SPAN_NS), Some(0));
    }
}
