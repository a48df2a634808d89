//! Who changes the database next, and how many changes share a transaction.
//!
//! Changes are one after the other. What costs most about a small one is making it durable, so those that wait in line share that: who has
//! made a change hands the open transaction on to the next, and whoever has nobody behind them commits it for all. A change that is given
//! up takes nothing of the others with it: each but the first stands behind a savepoint. Nobody is told that a change has happened before
//! all of them are on disk.
//!
//! Owns: the line, the shared transaction and its end. Must not know: what changes are about.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::StoreError;
use super::audit::{self, Noted};
use super::outbox::Outbox;
use super::signals::{Changes, Signals};
use super::sql::{self, Transaction};

/// How many turns a transaction has at the most after the first one: so long that one waits to be told.
const SHARED_MAX: usize = 32;

/// How long a change waits for those before it, when a thousand hosts come at once.
const TURN_LIMIT: Duration = Duration::from_secs(30);

/// Those who wait to change something.
#[derive(Debug, Default)]
pub(super) struct Line(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    is_busy: bool,
    waiting: VecDeque<oneshot::Sender<Turn>>,
}

/// What comes when it is somebody's turn.
#[derive(Debug)]
pub(super) enum Turn {
    /// They begin a transaction.
    First(Permit),
    /// They go on with the one of those before them.
    Next(Box<Shared>),
}

/// The right to have a transaction open. Dropped, it goes to the next.
#[derive(Debug)]
pub(super) struct Permit {
    /// None: it was given on.
    line: Option<Arc<Line>>,
}

/// What is to be written at the end, whom to tell when all is on disk, and what woke.
#[derive(Debug, Default)]
pub(super) struct Effects {
    /// In the order in which it happened.
    pub(super) noted: Vec<Noted>,
    pub(super) changes: Changes,
    /// Whether there is something new in the outbox.
    pub(super) fills_outbox: bool,
}

/// A transaction in which changes are made one after the other. Dropped, the change that was being made has not happened; those before
/// it are carried through.
#[derive(Debug)]
pub(super) struct Shared {
    /// None: it has ended.
    transaction: Option<Transaction>,
    /// None: it has ended.
    permit: Option<Permit>,
    /// Of all changes in it.
    pub(super) revision: i64,
    signals: Arc<Signals>,
    outbox: Arc<Outbox>,
    effects: Effects,
    /// Those whose changes are made, and are told when they are on disk.
    made: Vec<oneshot::Sender<Result<(), StoreError>>>,
    /// How often it was handed on, whether a change came of it or not.
    handed_on: usize,
    stage: Stage,
}

/// How far the change has come that is being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It is the first: giving it up is giving up the transaction.
    First,
    /// Its savepoint is being made, and may be there or not: giving it up is giving up all of them.
    Between,
    /// It can be given up by itself.
    Behind,
    /// There is none: the next one has to give up what was left, if there is something.
    Left { is_clean: bool },
}

impl Line {
    /// Waits for a turn.
    pub(super) async fn turn(self: &Arc<Self>) -> Result<Turn, StoreError> {
        let receiver = {
            let mut state = self.state();
            if !state.is_busy {
                state.is_busy = true;
                return Ok(Turn::First(Permit { line: Some(Arc::clone(self)) }));
            }
            let (sender, receiver) = oneshot::channel();
            state.waiting.push_back(sender);
            receiver
        };
        match timeout(TURN_LIMIT, receiver).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) => Err(StoreError::Abandoned),
            Err(_) => Err(StoreError::sql("wait for the changes before")(sqlx::Error::PoolTimedOut)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that holds the lock can panic half way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(line) = self.line.take() else { return };
        loop {
            let next = {
                let mut state = line.state();
                let next = state.waiting.pop_front();
                state.is_busy = next.is_some();
                next
            };
            let Some(next) = next else { return };
            // Who gets it and does not wait any more drops it, and so gives it on.
            match next.send(Turn::First(Self { line: Some(Arc::clone(&line)) })) {
                Err(Turn::First(mut back)) => back.line = None,
                Err(Turn::Next(_)) | Ok(()) => return,
            }
        }
    }
}

impl Shared {
    /// The first change of a transaction that has just begun.
    pub(super) fn begin(
        permit: Permit,
        transaction: Transaction,
        revision: i64,
        signals: Arc<Signals>,
        outbox: Arc<Outbox>,
    ) -> Self {
        Self {
            transaction: Some(transaction),
            permit: Some(permit),
            revision,
            signals,
            outbox,
            effects: Effects::default(),
            made: Vec::new(),
            handed_on: 0,
            stage: Stage::First,
        }
    }

    /// A change that shares with nobody: what is being made is nobody else's yet.
    pub(super) fn alone(transaction: Transaction) -> Self {
        let (signals, outbox) = (Arc::new(Signals::new()), Arc::default());
        Self::begin(Permit { line: None }, transaction, 0, signals, outbox)
    }

    /// One more change begins.
    pub(super) async fn next(mut self) -> Result<Self, StoreError> {
        let is_clean = self.stage != Stage::Left { is_clean: false };
        self.stage = Stage::Between;
        if !is_clean {
            self.run("ROLLBACK TO SAVEPOINT change", "give up the change before").await?;
        }
        self.run("SAVEPOINT change", "begin a change behind others").await?;
        self.stage = Stage::Behind;
        Ok(self)
    }

    /// The change is made. Returns when it is on disk, with those before it and those that came behind it. It is carried through, even
    /// if nobody waits for that: else a change could happen and nobody be woken.
    pub(super) async fn done(mut self, effects: Effects) -> Result<(), StoreError> {
        self.effects.noted.extend(effects.noted);
        self.effects.changes.add(effects.changes);
        self.effects.fills_outbox |= effects.fills_outbox;
        self.stage = Stage::Left { is_clean: true };
        let (sender, told) = oneshot::channel();
        self.made.push(sender);
        self.hand_on();
        told.await.unwrap_or(Err(StoreError::Abandoned))
    }

    /// Where statements go.
    pub(super) fn sql(&mut self) -> &mut Transaction {
        self.transaction.as_mut().expect("it is taken only where all of it ends")
    }

    async fn run(&mut self, statement: &'static str, what: &'static str) -> Result<(), StoreError> {
        sql::query(statement).execute(self.sql()).await.map_err(StoreError::sql(what))?;
        Ok(())
    }

    /// To the next who waits, if one more may; else it ends.
    fn hand_on(self) {
        let line = self.permit.as_ref().and_then(|permit| permit.line.clone());
        let mut shared = self;
        // Counted by turns, not by changes: those who find nothing to do must not keep the others waiting for ever.
        while shared.handed_on < SHARED_MAX {
            let next = line.as_ref().and_then(|line| line.state().waiting.pop_front());
            let Some(next) = next else { break };
            shared.handed_on += 1;
            match next.send(Turn::Next(Box::new(shared))) {
                Ok(()) => return,
                // Nobody waits there any more.
                Err(Turn::Next(back)) => shared = *back,
                Err(Turn::First(_)) => return,
            }
        }
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(shared.finish())),
            // The process is being torn down: nothing of it has happened.
            Err(_) => shared.stage = Stage::First,
        }
    }

    /// Makes all of it durable, then wakes and tells.
    async fn finish(mut self) {
        let outcome = self.end().await;
        let (made, effects) = (std::mem::take(&mut self.made), std::mem::take(&mut self.effects));
        if effects.fills_outbox {
            self.outbox.wake();
        }
        // Whoever wakes reads again. When a connection breaks, nobody knows whether the changes have happened; if they have not, the next
        // one has their number.
        let revision = if outcome.is_ok() { self.revision } else { 0 };
        self.signals.give(Changes { revision, ..effects.changes });
        let mut failure = outcome.err();
        for told in made {
            let outcome = match &failure {
                None => Ok(()),
                Some(_) => Err(failure.replace(StoreError::Abandoned).unwrap_or(StoreError::Abandoned)),
            };
            // Who does not wait any more need not be told.
            let _ = told.send(outcome);
        }
    }

    async fn end(&mut self) -> Result<(), StoreError> {
        let is_clean = self.stage != Stage::Left { is_clean: false };
        // Until it is known how this goes, nothing can be kept.
        self.stage = Stage::Between;
        if !is_clean {
            self.run("ROLLBACK TO SAVEPOINT change", "give up the last change").await?;
        }
        let Some(mut transaction) = self.transaction.take() else { return Err(StoreError::Abandoned) };
        let noted = std::mem::take(&mut self.effects.noted);
        self.effects.fills_outbox |= audit::write_down(&mut transaction, &self.outbox, noted).await?;
        transaction.commit().await.map_err(StoreError::sql("commit a change"))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let is_clean = match self.stage {
            // With the transaction all of it has not happened, and whoever waits to be told of it is told so.
            Stage::First | Stage::Between => return,
            Stage::Behind => false,
            Stage::Left { is_clean } => is_clean,
        };
        let Some(transaction) = self.transaction.take() else { return };
        let shared = Self {
            transaction: Some(transaction),
            permit: self.permit.take(),
            revision: self.revision,
            signals: Arc::clone(&self.signals),
            outbox: Arc::clone(&self.outbox),
            effects: std::mem::take(&mut self.effects),
            made: std::mem::take(&mut self.made),
            handed_on: self.handed_on,
            stage: Stage::Left { is_clean },
        };
        shared.hand_on();
    }
}
