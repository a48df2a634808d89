//! The audit record's rows: appended in order, read by position, never changed.

use prost::Message;
use proto::types::{AuditEvent, EventKind, HostName, Timestamp};
use proto::wire::audit as wire;
use uuid::Uuid;

use super::outbox::Outbox;
use super::sql::{self, Transaction, Value};
use super::tx::caused_by;
use super::{Store, StoreError, decode, uses};
use crate::rules::calls::Method;
use crate::rules::notify::Origin;
use crate::rules::numbering;
use crate::rules::throttle::Key;

/// What was kept of an agent's batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Which epoch.
    pub epoch: Uuid,
    /// The last sequence number of it that is on disk.
    pub sequence: u64,
}

impl Store {
    /// Keeps the new events of an agent's batch; what is there already is left out. On return they are on disk.
    pub async fn receive(
        &self,
        host: &HostName,
        events: Vec<AuditEvent>,
        now: Timestamp,
    ) -> Result<Stored, StoreError> {
        let epoch = numbering::epoch(host, &events)?;
        let mut tx = self.write().await?;
        let stored = last_sequence(tx.sql(), Some(host), epoch).await?;
        let new = numbering::continuation(stored, events)?;
        let Some(last) = new.last() else { return Ok(Stored { epoch, sequence: stored }) };
        let sequence = last.id.sequence;
        tx.append(new.clone(), now).await?;
        tx.open_drafts(host, &new, now).await?;
        tx.commit().await?;
        Ok(Stored { epoch, sequence })
    }

    /// At most `limit` events after `position`, in order.
    pub async fn events(&self, position: u64, limit: u32) -> Result<Vec<AuditEvent>, StoreError> {
        let rows: Vec<(i64, Vec<u8>)> = sql::query_as(
            "SELECT position, payload FROM audit_events WHERE position > ? ORDER BY position LIMIT ?",
        )
        .bind(decode::sql(position))
        .bind(limit)
        .fetch_all(&self.readers)
        .await
        .map_err(StoreError::sql("read audit events"))?;
        rows.into_iter().map(|(position, payload)| event(position, &payload)).collect()
    }

    /// The position of the newest event; 0: there is none.
    pub async fn newest_position(&self) -> Result<u64, StoreError> {
        let newest: i64 = sql::query_scalar("SELECT coalesce(max(position), 0) FROM audit_events")
            .fetch_one(&self.readers)
            .await
            .map_err(StoreError::sql("read the newest position"))?;
        decode::number("position", newest)
    }

    /// Records that a call was refused; `comment` says which, and more for people.
    pub async fn call_refused(
        &self,
        refused: &Key,
        comment: String,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let is_sign_in = [
            Method::SignIn,
            Method::SignInWorkload,
            Method::SignInWithCertificate,
            Method::BeginSignIn,
            Method::FinishSignIn,
        ]
        .iter()
        .any(|method| refused.what == method.as_str());
        let kind = match is_sign_in {
            true => EventKind::SignInRefused,
            false => EventKind::CallRefused,
        };
        let mut tx = self.write().await?;
        tx.record(kind, now, |event| {
            if let Some(actor) = &refused.caller {
                caused_by(event, actor);
            }
            event.reason = refused.reason.to_owned();
            event.comment = comment;
        });
        tx.commit().await
    }
}

/// The last sequence number kept of a source (None: ourselves) and epoch; 0: none.
pub(super) async fn last_sequence(
    sql: &mut Transaction,
    host: Option<&HostName>,
    epoch: Uuid,
) -> Result<u64, StoreError> {
    // Not `max(…)`: PostgreSQL, as long as it takes the table for small, reads all of a source's events for that.
    let last: Option<i64> = sql::query_scalar(
        "SELECT sequence FROM audit_events WHERE source = ? AND epoch = ? ORDER BY sequence DESC LIMIT 1",
    )
    .bind(source(host))
    .bind(epoch.to_string())
    .fetch_optional(sql)
    .await
    .map_err(StoreError::sql("read the last sequence number"))?;
    decode::number("sequence", last.unwrap_or(0))
}

/// An event of our own that is to be written into the record. It has no number yet.
#[derive(Debug)]
pub(super) struct Noted {
    pub(super) event: AuditEvent,
    pub(super) origin: Origin,
}

/// Numbers our own events, which are all of one epoch, and puts them at the end of the record. Returns whether somebody is to be told
/// of one.
pub(super) async fn write_down(
    sql: &mut Transaction,
    outbox: &Outbox,
    noted: Vec<Noted>,
) -> Result<bool, StoreError> {
    let Some(first) = noted.first() else { return Ok(false) };
    let mut sequence = last_sequence(sql, None, first.event.id.epoch).await?;
    let mut is_filled = false;
    let mut noted = noted.into_iter().peekable();
    while let Some(Noted { event, origin }) = noted.next() {
        let mut events = vec![event];
        while events.len() < sql::ROWS_MAX
            && let Some(next) = noted.next_if(|next| next.origin == origin)
        {
            events.push(next.event);
        }
        for event in &mut events {
            sequence = sequence.saturating_add(1);
            event.id.sequence = sequence;
        }
        is_filled |= append(sql, outbox, events, &origin, None).await?;
    }
    Ok(is_filled)
}

/// Puts events, which are not empty, of one source and have their numbers, at the end of the record, with who is to be told of them.
/// Returns whether somebody is. `received`: when they came here; None: they are of here.
pub(super) async fn append(
    sql: &mut Transaction,
    outbox: &Outbox,
    mut events: Vec<AuditEvent>,
    origin: &Origin,
    received: Option<Timestamp>,
) -> Result<bool, StoreError> {
    let newest: i64 = sql::query_scalar("SELECT coalesce(max(position), 0) FROM audit_events")
        .fetch_one(&mut *sql)
        .await
        .map_err(StoreError::sql("read the newest position"))?;
    let mut rows = Vec::with_capacity(events.len());
    for (position, event) in (newest + 1..).zip(&mut events) {
        let payload = wire::AuditEvent { position: 0, ..event.clone().into() }.encode_to_vec();
        rows.push([
            position.into(),
            source(event.id.host.as_ref()).into(),
            event.id.epoch.to_string().into(),
            decode::sql(event.id.sequence).into(),
            Value::from(payload),
        ]);
        event.position = decode::number("position", position)?;
    }
    let mut insert =
        sql::query("INSERT INTO audit_events (position, source, epoch, sequence, payload) VALUES ");
    insert.push_rows(rows);
    insert.execute(&mut *sql).await.map_err(StoreError::sql("append audit events"))?;
    uses::note(sql, &events).await?;
    outbox.post(sql, &events, origin, received).await
}

/// The event at a position.
pub(super) async fn at(sql: &mut Transaction, position: i64) -> Result<AuditEvent, StoreError> {
    let payload: Vec<u8> = sql::query_scalar("SELECT payload FROM audit_events WHERE position = ?")
        .bind(position)
        .fetch_one(sql)
        .await
        .map_err(StoreError::sql("read an audit event"))?;
    event(position, &payload)
}

fn source(host: Option<&HostName>) -> &str {
    host.map_or("control-plane", HostName::as_str)
}

/// Reads a row.
pub(super) fn event(position: i64, payload: &[u8]) -> Result<AuditEvent, StoreError> {
    let broken = |problem: String| {
        StoreError::broken("audit event")(proto::types::Invalid::new(format!("position {position}"), problem))
    };
    let wire = wire::AuditEvent::decode(payload).map_err(|error| broken(error.to_string()))?;
    let event = AuditEvent::try_from(wire).map_err(StoreError::broken("audit event"))?;
    Ok(AuditEvent { position: decode::number("position", position)?, ..event })
}
