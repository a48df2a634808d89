//! One change: its rows, its audit events, and whom it wakes.

use std::sync::Arc;

use proto::types::{AuditEvent, EventId, EventKind, HostName, Timestamp};
use uuid::Uuid;

use super::audit::Noted;
use super::line::{Effects, Shared};
use super::outbox::Outbox;
use super::sql::{self, Transaction};
use super::{StoreError, audit, decode};
use crate::rules::actor::Actor;
use crate::rules::notify::Origin;

/// Notes in an event who caused it, and by what they were recognised.
pub(super) fn caused_by(event: &mut AuditEvent, actor: &Actor) {
    event.actor = actor.to_string();
    event.credential = actor.credential().map(|credential| credential.to_string()).unwrap_or_default();
}

/// A change under way. Dropped, it has not happened.
#[derive(Debug)]
pub(super) struct Tx {
    shared: Shared,
    timeline: Uuid,
    effects: Effects,
    outbox: Arc<Outbox>,
}

impl Tx {
    /// One that others are told of.
    pub(super) fn new(shared: Shared, timeline: Uuid, outbox: Arc<Outbox>) -> Self {
        Self { shared, timeline, effects: Effects::default(), outbox }
    }

    /// Those who deliver are woken.
    pub(super) fn fill_outbox(&mut self) {
        self.effects.fills_outbox = true;
    }

    /// Where statements go.
    pub(super) fn sql(&mut self) -> &mut Transaction {
        self.shared.sql()
    }

    /// Those who wait for a request or grant are woken.
    pub(super) fn wake_access(&mut self) {
        self.effects.changes.access = true;
    }

    /// Followers of the audit record are woken.
    pub(super) fn wake_followers(&mut self) {
        self.effects.changes.events = true;
    }

    /// The session of a host is woken, wherever it is: there is news of the host, though its set may be as it was.
    pub(super) async fn wake_session(&mut self, host: &HostName) -> Result<(), StoreError> {
        let revision = self.shared.revision;
        sql::query("UPDATE hosts SET changed = ? WHERE name = ?")
            .bind(revision)
            .bind(host.as_str())
            .execute(self.sql())
            .await
            .map_err(StoreError::sql("note that there is news of a host"))?;
        self.effects.changes.sets.insert(host.clone());
        Ok(())
    }

    /// One line of our own for the record, where it is written when the transaction ends; `fill` says what there is to say.
    pub(super) fn record(&mut self, kind: EventKind, now: Timestamp, fill: impl FnOnce(&mut AuditEvent)) {
        self.record_from(kind, Origin::Itself, now, fill);
    }

    /// The same, of an event that came about so.
    pub(super) fn record_from(
        &mut self,
        kind: EventKind,
        origin: Origin,
        now: Timestamp,
        fill: impl FnOnce(&mut AuditEvent),
    ) {
        // It gets its number when it is written.
        let id = EventId { host: None, epoch: self.timeline, sequence: 0 };
        let mut event = AuditEvent::new(id, kind, now);
        fill(&mut event);
        self.effects.noted.push(Noted { event, origin });
        self.wake_followers();
    }

    /// Puts events of a host, which have their numbers and are not empty, at the end of the record at once: if they cannot be written,
    /// nobody else's change is lost with them.
    pub(super) async fn append(&mut self, events: Vec<AuditEvent>, now: Timestamp) -> Result<(), StoreError> {
        let outbox = Arc::clone(&self.outbox);
        let is_filled = audit::append(self.sql(), &outbox, events, &Origin::Itself, Some(now)).await?;
        self.effects.fills_outbox |= is_filled;
        self.wake_followers();
        Ok(())
    }

    /// Raises a host's generation: its set is another one from here on. Returns the new generation.
    pub(super) async fn raise(&mut self, host: &HostName) -> Result<u64, StoreError> {
        let revision = self.shared.revision;
        let raised = sql::query_scalar(
            "UPDATE hosts SET generation = generation + 1, changed = ? WHERE name = ? RETURNING generation",
        )
        .bind(revision)
        .bind(host.as_str())
        .fetch_one(self.sql())
        .await
        .map_err(StoreError::sql("raise a host's generation"))?;
        self.effects.changes.sets.insert(host.clone());
        decode::number("generation", raised)
    }

    /// Raises the generation of every host: what is in every set has changed.
    pub(super) async fn raise_all(&mut self) -> Result<(), StoreError> {
        sql::query("UPDATE timeline SET directory_revision = directory_revision + 1")
            .execute(self.sql())
            .await
            .map_err(StoreError::sql("raise the directory's revision"))?;
        let revision = self.shared.revision;
        let names: Vec<String> =
            sql::query_scalar("UPDATE hosts SET generation = generation + 1, changed = ? RETURNING name")
                .bind(revision)
                .fetch_all(self.sql())
                .await
                .map_err(StoreError::sql("raise every host's generation"))?;
        for name in names {
            self.effects.changes.sets.insert(decode::text("host", &name)?);
        }
        Ok(())
    }

    /// Makes it durable, then wakes. Once begun it is carried through, even if the caller is gone.
    pub(super) async fn commit(self) -> Result<(), StoreError> {
        let Self { shared, effects, .. } = self;
        shared.done(effects).await
    }
}
