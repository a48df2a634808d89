//! What others are to be told of: written down with the event that it is about, taken away when it has arrived or was given up.
//!
//! Owns: the rows, their bound for each target, who has which in hand. Must not know: how messages look or travel.
//!
//! Invariants: an event and the messages about it are one transaction, so that none is lost between them. A message is in one hand at a
//! time, for so long; whoever dies with it in hand loses it to the next one. No target has more rows than it may; what it has too many
//! is given up, the oldest first, and counted. What is given up is on record.

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::types::{AuditEvent, EventKind, ProviderName, Timestamp};
use tokio::sync::watch;
use uuid::Uuid;

use super::sql::{self, Transaction, Value};
use super::tx::{Tx, caused_by};
use super::{Store, StoreError, audit, decode};
use crate::rules::actor::Actor;
use crate::rules::notify::{Origin, Subscription};

/// How many messages one transaction gives up, so that others get their turn at the database in between.
const GIVE_UP_BATCH: u32 = 1000;

/// Who is told of what; nobody, unless the configuration says so.
#[derive(Debug)]
pub(super) struct Outbox {
    subscriptions: Vec<Subscription>,
    filled: watch::Sender<()>,
}

impl Default for Outbox {
    fn default() -> Self {
        Self { subscriptions: Vec::new(), filled: watch::Sender::new(()) }
    }
}

impl Outbox {
    /// Wakes those who deliver.
    pub(super) fn wake(&self) {
        self.filled.send_replace(());
    }
}

/// A message that somebody has in hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it tells of, with its position.
    pub event: AuditEvent,
    /// When it was made.
    pub made: Timestamp,
    /// How often it was tried, and has failed.
    pub tries: u32,
}

/// What became of a message that somebody had in hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has arrived.
    Arrived,
    /// It is tried again then.
    TryAt(Timestamp),
    /// It is not tried again, for this reason.
    GivenUp(String),
}

/// Messages that were given up together.
#[derive(Debug)]
struct GivenUp {
    count: u64,
    first: u64,
    last: u64,
    /// Whether one of them told of a failure.
    told_of_failure: bool,
}

impl Store {
    /// The same store, which writes down who is to be told of what from now on.
    #[must_use]
    pub fn notifying(mut self, subscriptions: Vec<Subscription>) -> Self {
        self.outbox = Arc::new(Outbox { subscriptions, ..Outbox::default() });
        self
    }

    /// Wakes after messages were written down by this process. Others may have written some, too.
    pub fn outbox_filled(&self) -> watch::Receiver<()> {
        self.outbox.filled.subscribe()
    }

    /// When the next message for a target is due; None: none waits.
    pub async fn next_message(&self, target: &ProviderName) -> Result<Option<Timestamp>, StoreError> {
        let next: Option<i64> = sql::query_scalar("SELECT min(due_ms) FROM outbox WHERE target = ?")
            .bind(target.as_str())
            .fetch_one(&self.readers)
            .await
            .map_err(StoreError::sql("read when a message is due"))?;
        next.map(|next| decode::time("due", next)).transpose()
    }

    /// Takes at most so many messages that are due in hand, until `until`: nobody else gets them before that. `hand` is a name that
    /// nobody else has.
    pub async fn take_messages(
        &self,
        target: &ProviderName,
        hand: Uuid,
        limit: u32,
        until: Timestamp,
        now: Timestamp,
    ) -> Result<Vec<Message>, StoreError> {
        let mut tx = self.write().await?;
        let due: Vec<(i64, i64, i64)> = sql::query_as(
            "SELECT position, made_ms, tries FROM outbox WHERE target = ? AND due_ms <= ?
             ORDER BY due_ms, position LIMIT ?",
        )
        .bind(target.as_str())
        .bind(now.unix_ms())
        .bind(limit)
        .fetch_all(tx.sql())
        .await
        .map_err(StoreError::sql("read which messages are due"))?;
        let mut messages = Vec::with_capacity(due.len());
        for (position, made, tries) in due {
            let event = match audit::at(tx.sql(), position).await {
                Err(error @ StoreError::Broken { .. }) => {
                    // One that nobody can read must not be in the way of the others.
                    tracing::error!(
                        position,
                        error = &error as &dyn std::error::Error,
                        "cannot read an event"
                    );
                    tx.give_up_unreadable(target, position, now).await?;
                    continue;
                }
                event => event?,
            };
            sql::query("UPDATE outbox SET due_ms = ?, claimed_by = ? WHERE target = ? AND position = ?")
                .bind(until.unix_ms())
                .bind(hand.to_string())
                .bind(target.as_str())
                .bind(position)
                .execute(tx.sql())
                .await
                .map_err(StoreError::sql("take a message in hand"))?;
            messages.push(Message {
                event,
                made: decode::time("made", made)?,
                tries: decode::number("tries", tries)?,
            });
        }
        tx.commit().await?;
        Ok(messages)
    }

    /// Writes down what became of messages that were in hand. Of one that was taken by somebody else meanwhile nothing is written.
    pub async fn settle_messages(
        &self,
        target: &ProviderName,
        hand: Uuid,
        outcomes: &[(Message, Outcome)],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let mut given_up: BTreeMap<&str, GivenUp> = BTreeMap::new();
        for (message, outcome) in outcomes {
            let position = message.event.position;
            if let Outcome::TryAt(next) = outcome {
                sql::query(
                    "UPDATE outbox SET due_ms = ?, tries = tries + 1
                     WHERE target = ? AND position = ? AND claimed_by = ?",
                )
                .bind(next.unix_ms())
                .bind(target.as_str())
                .bind(decode::sql(position))
                .bind(hand.to_string())
                .execute(tx.sql())
                .await
                .map_err(StoreError::sql("note a message that did not arrive"))?;
                continue;
            }
            let gone = sql::query("DELETE FROM outbox WHERE target = ? AND position = ? AND claimed_by = ?")
                .bind(target.as_str())
                .bind(decode::sql(position))
                .bind(hand.to_string())
                .execute(tx.sql())
                .await
                .map_err(StoreError::sql("take a message away"))?;
            count_waiting(tx.sql(), target, -decode::sql(gone)).await?;
            if let (1.., Outcome::GivenUp(why)) = (gone, outcome) {
                let told_of_failure = message.event.kind == EventKind::NotificationFailed;
                let all = given_up.entry(why).or_insert(GivenUp {
                    count: 0,
                    first: position,
                    last: position,
                    told_of_failure: false,
                });
                all.count += 1;
                (all.first, all.last) = (all.first.min(position), all.last.max(position));
                all.told_of_failure |= told_of_failure;
            }
        }
        for (why, all) in given_up {
            tx.record_given_up(target, "undeliverable", &all, why, now);
        }
        tx.commit().await
    }

    /// Puts on record how many messages for a target were given up because too many waited. Returns whether there were some.
    pub async fn record_dropped(&self, target: &ProviderName, now: Timestamp) -> Result<bool, StoreError> {
        const DROPPED: &str = "SELECT dropped, dropped_first, dropped_last FROM outbox_targets
             WHERE target = ? AND dropped > 0";
        type Dropped = Option<(i64, Option<i64>, Option<i64>)>;
        let failed = StoreError::sql("read which messages were given up");
        let seen: Dropped = sql::query_as(DROPPED)
            .bind(target.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(&failed)?;
        if seen.is_none() {
            return Ok(false);
        }
        let mut tx = self.write().await?;
        let dropped: Dropped =
            sql::query_as(DROPPED).bind(target.as_str()).fetch_optional(tx.sql()).await.map_err(&failed)?;
        // Another control plane may have done it meanwhile.
        let Some((count, first, last)) = dropped else { return Ok(false) };
        sql::query(
            "UPDATE outbox_targets SET dropped = 0, dropped_first = NULL, dropped_last = NULL WHERE target = ?",
        )
        .bind(target.as_str())
        .execute(tx.sql())
        .await
        .map_err(StoreError::sql("note that messages were given up"))?;
        let all = GivenUp {
            count: decode::number("dropped", count)?,
            first: decode::number("dropped_first", first.unwrap_or_default())?,
            last: decode::number("dropped_last", last.unwrap_or_default())?,
            // One may have been; nobody is told of it, so that it ends here.
            told_of_failure: false,
        };
        tx.record_given_up(target, "queue_full", &all, "too many waited", now);
        tx.commit().await?;
        Ok(true)
    }

    /// Gives up what waits for targets that the configuration does not have any more. Returns whether there may be more of it.
    pub async fn give_up_strangers(&self, now: Timestamp) -> Result<bool, StoreError> {
        let mut tx = self.write().await?;
        let waiting: Vec<String> = sql::query_scalar("SELECT target FROM outbox_targets WHERE waiting > 0")
            .fetch_all(tx.sql())
            .await
            .map_err(StoreError::sql("read for whom messages wait"))?;
        let is_known =
            |target: &String| self.outbox.subscriptions.iter().any(|known| known.target.as_str() == target);
        let Some(stranger) = waiting.into_iter().find(|target| !is_known(target)) else {
            return Ok(false);
        };
        let stranger = decode::text("target", &stranger)?;
        let all = give_up_oldest(tx.sql(), &stranger, GIVE_UP_BATCH).await?;
        if all.count == 0 {
            // The count was not what it counts: that is put right, so that this comes to an end.
            sql::query("UPDATE outbox_targets SET waiting = 0 WHERE target = ?")
                .bind(stranger.as_str())
                .execute(tx.sql())
                .await
                .map_err(StoreError::sql("count the messages for a target"))?;
        } else {
            let why = "it is not in the configuration any more";
            tx.record_given_up(&stranger, "target_removed", &all, why, now);
        }
        tx.commit().await?;
        Ok(true)
    }
}

impl Outbox {
    /// Writes down who is to be told of these events, which have just got their positions. `received`: when they came here; None: they
    /// are of here. Returns whether somebody is.
    pub(super) async fn post(
        &self,
        sql: &mut Transaction,
        events: &[AuditEvent],
        origin: &Origin,
        received: Option<Timestamp>,
    ) -> Result<bool, StoreError> {
        let mut is_filled = false;
        for subscription in &self.subscriptions {
            let wanted: Vec<&AuditEvent> =
                events.iter().filter(|event| subscription.wants(event, origin)).collect();
            if wanted.is_empty() {
                continue;
            }
            let target = &subscription.target;
            let mut insert = sql::query("INSERT INTO outbox (target, position, made_ms, due_ms) VALUES ");
            insert.push_rows(wanted.iter().map(|event| {
                let made = Value::from(received.unwrap_or(event.time).unix_ms());
                [target.as_str().into(), decode::sql(event.position).into(), made.clone(), made]
            }));
            insert.execute(&mut *sql).await.map_err(StoreError::sql("write down who is to be told"))?;
            let more = i64::try_from(wanted.len()).unwrap_or(i64::MAX);
            let waiting = count_waiting(sql, target, more).await?;
            let excess = waiting - i64::from(subscription.waiting_max);
            if let Ok(excess @ 1..) = u32::try_from(excess) {
                let all = give_up_oldest(sql, target, excess).await?;
                count_dropped(sql, target, &all).await?;
            }
            is_filled = true;
        }
        Ok(is_filled)
    }
}

impl Tx {
    async fn give_up_unreadable(
        &mut self,
        target: &ProviderName,
        position: i64,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let gone = sql::query("DELETE FROM outbox WHERE target = ? AND position = ?")
            .bind(target.as_str())
            .bind(position)
            .execute(self.sql())
            .await
            .map_err(StoreError::sql("take a message away"))?;
        count_waiting(self.sql(), target, -decode::sql(gone)).await?;
        let position = decode::number("position", position)?;
        let all = GivenUp { count: gone, first: position, last: position, told_of_failure: false };
        self.record_given_up(target, "undeliverable", &all, "the event cannot be read", now);
        Ok(())
    }

    fn record_given_up(
        &mut self,
        target: &ProviderName,
        reason: &str,
        all: &GivenUp,
        why: &str,
        now: Timestamp,
    ) {
        let GivenUp { count, first, last, told_of_failure } = all;
        tracing::warn!(%target, reason, count, first, last, why, "notifications were given up");
        let origin = match told_of_failure {
            true => Origin::FailureToTellOfFailure,
            false => Origin::FailureOf(target.clone()),
        };
        self.record_from(EventKind::NotificationFailed, origin, now, |event| {
            caused_by(event, &Actor::System);
            event.reason = reason.to_owned();
            event.comment = format!(
                "target `{target}`: {count} notifications, of events at positions {first} to {last}: {why}"
            );
        });
    }
}

/// Counts messages that came or went. Returns how many wait now.
async fn count_waiting(sql: &mut Transaction, target: &ProviderName, more: i64) -> Result<i64, StoreError> {
    sql::query_scalar(
        "INSERT INTO outbox_targets (target, waiting) VALUES (?, ?)
         ON CONFLICT (target) DO UPDATE SET waiting = outbox_targets.waiting + ? RETURNING waiting",
    )
    .bind(target.as_str())
    .bind(more.max(0))
    .bind(more)
    .fetch_one(sql)
    .await
    .map_err(StoreError::sql("count the messages for a target"))
}

async fn count_dropped(
    sql: &mut Transaction,
    target: &ProviderName,
    all: &GivenUp,
) -> Result<(), StoreError> {
    if all.count == 0 {
        return Ok(());
    }
    sql::query(
        "UPDATE outbox_targets SET dropped = dropped + ?, dropped_first = coalesce(dropped_first, ?),
         dropped_last = ? WHERE target = ?",
    )
    .bind(decode::sql(all.count))
    .bind(decode::sql(all.first))
    .bind(decode::sql(all.last))
    .bind(target.as_str())
    .execute(&mut *sql)
    .await
    .map_err(StoreError::sql("count messages that were given up"))?;
    Ok(())
}

/// Takes at most so many messages away, the oldest first.
async fn give_up_oldest(
    sql: &mut Transaction,
    target: &ProviderName,
    count: u32,
) -> Result<GivenUp, StoreError> {
    let oldest: Vec<i64> =
        sql::query_scalar("SELECT position FROM outbox WHERE target = ? ORDER BY position LIMIT ?")
            .bind(target.as_str())
            .bind(count)
            .fetch_all(&mut *sql)
            .await
            .map_err(StoreError::sql("read the oldest messages"))?;
    let (Some(first), Some(last)) = (oldest.first(), oldest.last()) else {
        return Ok(GivenUp { count: 0, first: 0, last: 0, told_of_failure: false });
    };
    let gone = sql::query("DELETE FROM outbox WHERE target = ? AND position <= ?")
        .bind(target.as_str())
        .bind(*last)
        .execute(&mut *sql)
        .await
        .map_err(StoreError::sql("take the oldest messages away"))?;
    count_waiting(sql, target, -decode::sql(gone)).await?;
    let (first, last) = (decode::number("position", *first)?, decode::number("position", *last)?);
    Ok(GivenUp { count: gone, first, last, told_of_failure: false })
}
