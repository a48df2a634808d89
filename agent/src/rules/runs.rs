//! Runs: commands that are run as a subject, each in a cgroup of its own.
//!
//! Owns: which runs there are, under which number the kernel knows each, and which grants count in it. Must not know: how a
//! process got into one, sockets, cgroupfs.
//!
//! To the kernel a run is a subject of its own, with a number that the control plane never gives. So a grant of one run opens
//! nothing to its subject's other processes, and the kernel needs no word for runs. What counts for all of a subject's processes
//! counts in its runs, too: there is an entry for each.
//!
//! Invariants: no two runs of one boot have the same number; a run never comes back once it is over.

use std::collections::BTreeMap;

use proto::types::{GrantId, RunId, Subject, SubjectId, SubjectNumber};

use super::plan::WantedGrant;

/// The number of the first run. The control plane counts subjects from 1, and never gets here.
pub const FIRST_NUMBER: u32 = 1 << 31;

/// How many runs there can be at a time. Each costs an entry of the kernel for every grant of its subject.
pub const RUNS_MAX: usize = 1024;

/// How many runs that are over are still known by name: records of them may be on their way.
const NAMES_MAX: usize = 4096;

/// How far a run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nobody has entered it. It is over when who opened it is gone.
    Open,
    /// Somebody has. It is over when nothing is in it.
    Entered,
}

/// A run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// Under which the kernel knows it.
    pub number: SubjectNumber,
    /// Whose it is.
    pub subject: SubjectId,
    /// Id of its cgroup.
    pub cgroup_id: u64,
    /// How far it has come.
    pub stage: Stage,
}

/// What a restart must know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    /// Those that somebody has entered.
    pub runs: Vec<Run>,
    /// The next number; 0: the first.
    pub next: u32,
    /// Whose run each number was.
    pub names: BTreeMap<u32, SubjectId>,
    /// Which run has used up each grant of one action; also of other boots.
    pub used: BTreeMap<GrantId, RunId>,
}

/// All runs of this host.
#[derive(Clone, Debug, Default)]
pub struct Runs {
    runs: BTreeMap<RunId, Run>,
    next: u32,
    names: BTreeMap<u32, SubjectId>,
}

/// There are as many runs as there can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Runs {
    /// Goes on from what an earlier agent of this boot left, of which `lives` says which runs are still what they were. Gives the
    /// others: they are over.
    pub fn recall(remembered: Remembered, lives: impl Fn(&Run) -> bool) -> (Self, Vec<Run>) {
        let (living, over): (Vec<Run>, Vec<Run>) = remembered.runs.into_iter().partition(|run| lives(run));
        let runs = living.into_iter().map(|run| (run.id, run)).collect();
        (Self { runs, next: remembered.next, names: remembered.names }, over)
    }

    /// What the next agent must know, with which run has used up each grant of one action.
    pub fn remembered(&self, used: &BTreeMap<GrantId, RunId>) -> Remembered {
        let entered = self.runs.values().filter(|run| run.stage == Stage::Entered);
        Remembered {
            runs: entered.cloned().collect(),
            next: self.next,
            names: self.names.clone(),
            used: used.clone(),
        }
    }

    /// A new run of a subject, in this cgroup.
    pub fn open(&mut self, id: RunId, subject: SubjectId, cgroup_id: u64) -> Result<Run, Full> {
        let number = self.next.max(FIRST_NUMBER);
        // The last number is the canary's; nobody gets so far in one boot.
        if self.runs.len() >= RUNS_MAX || number >= u32::MAX - 1 {
            return Err(Full);
        }
        let run = Run {
            id,
            number: number.try_into().map_err(|_| Full)?,
            subject: subject.clone(),
            cgroup_id,
            stage: Stage::Open,
        };
        self.next = number + 1;
        self.names.insert(number, subject);
        while self.names.len() > NAMES_MAX + RUNS_MAX {
            let over = |number: &&u32| !self.runs.values().any(|run| run.number.get() == **number);
            let Some(oldest) = self.names.keys().find(over).copied() else { break };
            self.names.remove(&oldest);
        }
        self.runs.insert(id, run.clone());
        Ok(run)
    }

    /// Somebody has entered it. None: there is no such run.
    pub fn enter(&mut self, id: RunId) -> Option<&Run> {
        let run = self.runs.get_mut(&id)?;
        run.stage = Stage::Entered;
        Some(run)
    }

    /// It is over. None: it was.
    pub fn end(&mut self, id: RunId) -> Option<Run> {
        self.runs.remove(&id)
    }

    /// A run.
    pub fn get(&self, id: RunId) -> Option<&Run> {
        self.runs.get(&id)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Run> {
        self.runs.values()
    }

    /// Whose run each number is, or was.
    pub fn names(&self) -> impl Iterator<Item = (u32, &SubjectId)> {
        self.names.iter().map(|(number, subject)| (*number, subject))
    }

    /// Whether a run is there, and is this subject's.
    pub fn is_of(&self, id: RunId, subject: &SubjectId) -> bool {
        self.runs.get(&id).is_some_and(|run| run.subject == *subject)
    }

    /// Whether a number is that of a run which is over.
    pub fn is_over(&self, number: u32) -> bool {
        number >= FIRST_NUMBER && !self.runs.values().any(|run| run.number.get() == number)
    }

    /// Whose each cgroup of a run is.
    pub fn bindings(&self) -> impl Iterator<Item = (u64, SubjectNumber)> {
        self.runs.values().map(|run| (run.cgroup_id, run.number))
    }

    /// The pairs by which a grant lets through: of its subject and of each of the subject's runs; or of the one run that it is for.
    pub fn share(&self, grant: WantedGrant, run: Option<RunId>, subjects: &Subjects<'_>) -> Vec<WantedGrant> {
        let id = subjects.id(grant.subject);
        let is_its = |of: &&Run| id == Some(&of.subject) && run.is_none_or(|one| one == of.id);
        let of_runs = self.runs.values().filter(is_its);
        let of_runs = of_runs.map(|run| WantedGrant { subject: run.number, ..grant });
        run.is_none().then_some(grant).into_iter().chain(of_runs).collect()
    }
}

/// The subjects of a set, by number.
pub struct Subjects<'a>(BTreeMap<SubjectNumber, &'a SubjectId>);

impl<'a> Subjects<'a> {
    /// Of these.
    pub fn of(subjects: &'a [Subject]) -> Self {
        Self(subjects.iter().map(|subject| (subject.number, &subject.id)).collect())
    }

    /// Whose number it is.
    pub fn id(&self, number: SubjectNumber) -> Option<&'a SubjectId> {
        self.0.get(&number).copied()
    }
}

#[cfg(test)]
mod tests {
    use proto::types::{NewSubject, SubjectRole};

    use super::*;

    fn id(name: &str) -> SubjectId {
        format!("user:{name}").parse().expect("valid")
    }

    fn number(number: u32) -> SubjectNumber {
        number.try_into().expect("not 0")
    }

    fn subject(number: u32, name: &str) -> Subject {
        let new = NewSubject { id: id(name), selectors: vec![], role: SubjectRole::Member };
        Subject::numbered(number.try_into().expect("not 0"), new)
    }

    fn grant(subject: u32) -> WantedGrant {
        WantedGrant {
            id: GrantId::new(),
            subject: number(subject),
            resource: 1.try_into().expect("not 0"),
            expires_at_boot_ns: 7,
            idle_limit_ns: 0,
        }
    }

    /// Whose numbers the grant opens to.
    #[track_caller]
    fn check(runs: &Runs, subject_number: u32, run: Option<RunId>, expected: &[u32]) {
        let subjects = [subject(1, "alice"), subject(2, "bob")];
        let shared = runs.share(grant(subject_number), run, &Subjects::of(&subjects));
        let numbers: Vec<u32> = shared.iter().map(|grant| grant.subject.get()).collect();
        assert_eq!(numbers, expected);
    }

    #[test]
    fn what_is_for_one_run_opens_nothing_else() {
        let mut runs = Runs::default();
        let [first, second, bobs] = [("alice", 10), ("alice", 11), ("bob", 12)]
            .map(|(name, cgroup)| runs.open(RunId::new(), id(name), cgroup).expect("there is room"));
        let numbers = [&first, &second, &bobs].map(|run| run.number.get() - FIRST_NUMBER);
        assert_eq!(numbers, [0, 1, 2]);
        check(&runs, 1, None, &[1, FIRST_NUMBER, FIRST_NUMBER + 1]);
        check(&runs, 2, None, &[2, FIRST_NUMBER + 2]);
        check(&runs, 1, Some(second.id), &[FIRST_NUMBER + 1]);
        check(&runs, 1, Some(bobs.id), &[]);
        check(&runs, 1, Some(RunId::new()), &[]);
        check(&runs, 3, None, &[3]);
        check(&runs, 3, Some(second.id), &[]);
        assert!(runs.is_of(first.id, &id("alice")) && !runs.is_of(first.id, &id("bob")));
        assert_eq!(runs.bindings().map(|(cgroup, _)| cgroup).collect::<Vec<_>>(), [10, 11, 12]);

        assert_eq!(runs.end(first.id).map(|run| run.id), Some(first.id));
        assert_eq!(runs.end(first.id), None);
        check(&runs, 1, None, &[1, FIRST_NUMBER + 1]);
        check(&runs, 1, Some(first.id), &[]);
        assert!(runs.is_over(FIRST_NUMBER) && !runs.is_over(FIRST_NUMBER + 1) && !runs.is_over(1));
        let next = runs.open(RunId::new(), id("bob"), 10).expect("there is room");
        assert_eq!(next.number.get(), FIRST_NUMBER + 3, "no number comes back");
        assert_eq!(
            runs.names().next(),
            Some((FIRST_NUMBER, &id("alice"))),
            "records of it may be on their way"
        );
    }

    #[test]
    fn a_restart_goes_on_with_what_was_entered() {
        let mut runs = Runs::default();
        let mut open = |cgroup| runs.open(RunId::new(), id("alice"), cgroup).expect("there is room").id;
        let (waiting, living, gone) = (open(1), open(2), open(3));
        assert!(runs.enter(living).is_some() && runs.enter(gone).is_some());
        assert_eq!(runs.enter(RunId::new()), None);
        let (recalled, over) = Runs::recall(runs.remembered(&BTreeMap::new()), |run| run.cgroup_id == 2);
        assert_eq!(recalled.iter().map(|run| run.id).collect::<Vec<_>>(), [living]);
        assert_eq!(over.iter().map(|run| run.id).collect::<Vec<_>>(), [gone]);
        assert_eq!(recalled.get(waiting), None, "who waited for it is not there any more");
        let mut recalled = recalled;
        let next = recalled.open(RunId::new(), id("bob"), 9).expect("there is room");
        assert_eq!(next.number.get(), FIRST_NUMBER + 3);
    }

    #[test]
    fn there_are_so_many_at_most() {
        let mut runs = Runs::default();
        let mut last = None;
        for cgroup in 0..RUNS_MAX {
            last = runs.open(RunId::new(), id("alice"), cgroup as u64).ok();
        }
        assert_eq!(runs.open(RunId::new(), id("alice"), 0), Err(Full));
        runs.end(last.expect("there was room").id);
        for _ in 0..NAMES_MAX * 2 {
            let run = runs.open(RunId::new(), id("alice"), 0).expect("there is room");
            runs.end(run.id);
        }
        assert!(runs.names().count() <= NAMES_MAX + RUNS_MAX);
        assert!(runs.iter().all(|run| runs.names().any(|(number, _)| number == run.number.get())));
    }
}
