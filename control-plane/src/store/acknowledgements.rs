//! What agents say they have applied: many at once, when many hosts get a grant.
//!
//! Each waits for its turn at the one writer; whoever gets it writes down, in one transaction, what all have said meanwhile. So
//! a thousand answers cost a few commits, and a single one waits for nobody.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use proto::types::{Applied, GrantId, HostName, Timestamp};
use tokio::sync::oneshot;

use super::agents::{open_grants, replace_refusals};
use super::hosts::host;
use super::replicas::SessionNumber;
use super::sql;
use super::tx::Tx;
use super::{Store, StoreError, decode};
use crate::rules::grant::Answer;
use crate::rules::placement;

/// How many are written down in one transaction, so that others get their turn at the writer in between.
const BATCH_MAX: usize = 1000;

/// A host's kernel holds a set that was sent to it, without what was left out of it.
#[derive(Clone, Debug)]
struct Acknowledgement {
    host: HostName,
    session: SessionNumber,
    applied: Applied,
    left_out: Vec<GrantId>,
    at: Timestamp,
}

/// One that waits to be written down, and where it is told that somebody has begun to, and what came of it.
type Turn = (Acknowledgement, oneshot::Sender<()>, oneshot::Sender<Result<(), StoreError>>);

/// All that wait to be written down.
#[derive(Debug, Default)]
pub(super) struct Waiting(Mutex<Vec<Turn>>);

impl Store {
    /// A host's kernel holds a set that was sent to it, without what was left out of it. When it returns, that is on disk.
    pub async fn agent_applied(
        &self,
        host: &HostName,
        session: SessionNumber,
        applied: &Applied,
        left_out: &[GrantId],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let acknowledgement = Acknowledgement {
            host: host.clone(),
            session,
            applied: applied.clone(),
            left_out: left_out.to_vec(),
            at: now,
        };
        let (begun, mut taken) = oneshot::channel();
        let (outcome, told) = oneshot::channel();
        self.waiting.lock().push((acknowledgement, begun, outcome));
        loop {
            tokio::select! {
                biased;
                // Whoever goes on waiting for a turn would keep the transaction open in which theirs is.
                _ = &mut taken => return told.await.unwrap_or(Err(StoreError::Abandoned)),
                turn = self.write() => self.write_down(turn?).await,
            }
        }
    }

    /// Writes down what waits. Once begun it is carried through, even if the caller is gone: others wait for it.
    async fn write_down(&self, tx: Tx) {
        let batch: Vec<_> = {
            let mut waiting = self.waiting.lock();
            let count = waiting.len().min(BATCH_MAX);
            waiting.drain(..count).collect()
        };
        if batch.is_empty() {
            return;
        }
        let store = self.clone();
        let carried_through = tokio::spawn(async move {
            let mut said = Vec::with_capacity(batch.len());
            let mut outcomes = Vec::with_capacity(batch.len());
            for (one, begun, outcome) in batch {
                // Whose session has ended need not know.
                let _ = begun.send(());
                said.push(one);
                outcomes.push(outcome);
            }
            if write_all(tx, &said).await.is_ok() {
                return outcomes.into_iter().for_each(|outcome| drop(outcome.send(Ok(()))));
            }
            // One that cannot be written down must not take the others with it.
            for (one, outcome) in said.into_iter().zip(outcomes) {
                let written = match store.write().await {
                    Ok(tx) => write_all(tx, std::slice::from_ref(&one)).await,
                    Err(error) => Err(error),
                };
                // Whose session has ended needs no outcome.
                let _ = outcome.send(written);
            }
        });
        // The task does not panic; whoever waits for it is told by its channel.
        let _ = carried_through.await;
    }
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Vec<Turn>> {
        // Nothing that holds the lock can panic half way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn write_all(mut tx: Tx, said: &[Acknowledgement]) -> Result<(), StoreError> {
    let mut by_grant: BTreeMap<GrantId, Vec<(HostName, Answer)>> = BTreeMap::new();
    let Some(latest) = said.iter().map(|one| one.at).max() else { return Ok(()) };
    for Acknowledgement { host: name, session, applied, left_out, at } in said {
        let (number, before) = host(tx.sql(), name).await?;
        let noted = sql::query(
            "UPDATE hosts SET applied_generation = ?, seen_ms = ? WHERE number = ? AND session = ?",
        )
        .bind(decode::sql(applied.generation))
        .bind(at.unix_ms())
        .bind(number)
        .bind(session.0)
        .execute(tx.sql())
        .await
        .map_err(StoreError::sql("note what an agent applied"))?;
        if noted == 0 {
            return Err(StoreError::Superseded(name.clone()));
        }
        replace_refusals(tx.sql(), number, applied).await?;
        tx.note_state(name, &before, *at).await?;
        let open = open_grants(tx.sql(), name).await?;
        for (grant, answer) in placement::answers(applied, left_out, &open) {
            by_grant.entry(grant).or_default().push((name.clone(), answer));
        }
    }
    for (grant, answers) in by_grant {
        tx.heard_from(grant, answers, latest).await?;
    }
    tx.commit().await
}
