//! What reports are made of, written with the events that say it.
//!
//! Owns: the tables of uses, receipts, gaps and references. Must not know: what reports conclude from them.

use std::collections::{BTreeMap, BTreeSet};

use proto::types::{AuditEvent, EventKind, GrantId, HostName, Timestamp};

use super::sql::{self, Transaction, Value};
use super::{StoreError, decode};
use crate::rules::uses::Seen;

/// Notes what reports need of events that have just been appended, which are all of one source.
pub(super) async fn note(sql: &mut Transaction, events: &[AuditEvent]) -> Result<(), StoreError> {
    let Some(first) = events.first() else { return Ok(()) };
    match first.id.host.clone() {
        None => {
            // What is about a grant is found by the grant, also where it names the request, too.
            let about = |event: &AuditEvent| match event.grant.is_empty() {
                true => event.request.clone(),
                false => event.grant.clone(),
            };
            let refs =
                events.iter().map(|event| (about(event), event)).filter(|(about, _)| !about.is_empty());
            refer(sql, refs.collect()).await
        }
        Some(host) => note_of_host(sql, &host, events).await,
    }
}

async fn note_of_host(
    sql: &mut Transaction,
    host: &HostName,
    events: &[AuditEvent],
) -> Result<(), StoreError> {
    let seen = Seen::of(events);
    if seen == Seen::default() {
        return Ok(());
    }
    let number: i64 = sql::query_scalar("SELECT number FROM hosts WHERE name = ?")
        .bind(host.as_str())
        .fetch_one(&mut *sql)
        .await
        .map_err(StoreError::sql("read a host's number"))?;
    let mut known = BTreeMap::new();
    for grants in chunks(seen.grants()) {
        known.extend(places(sql, number, &grants).await?);
    }
    let refs = events.iter().filter(|event| event.kind == EventKind::GrantReceipt).filter_map(|event| {
        let grant = event.grant.parse::<GrantId>().ok().filter(|grant| known.contains_key(grant))?;
        Some((grant.to_string(), event))
    });
    refer(sql, refs.collect()).await?;
    let seen = seen.bounded(known);
    for uses in chunks(seen.uses) {
        let mut insert = sql::query(
            "INSERT INTO grant_uses (grant_id, host, place, first_ms, last_ms, connections) VALUES ",
        );
        insert.push_rows(uses.into_iter().map(|((grant, place), seen)| {
            [
                Value::from(grant.to_string()),
                number.into(),
                place.into(),
                seen.first.unix_ms().into(),
                seen.last.unix_ms().into(),
                decode::sql(seen.connections).into(),
            ]
        }));
        insert.push(
            " ON CONFLICT (grant_id, host, place) DO UPDATE SET
                 first_ms = CASE WHEN excluded.first_ms < grant_uses.first_ms
                     THEN excluded.first_ms ELSE grant_uses.first_ms END,
                 last_ms = CASE WHEN excluded.last_ms > grant_uses.last_ms
                     THEN excluded.last_ms ELSE grant_uses.last_ms END,
                 connections = grant_uses.connections + excluded.connections",
        );
        insert.execute(&mut *sql).await.map_err(StoreError::sql("note what grants were used for"))?;
    }
    for receipts in chunks(seen.receipts) {
        let mut insert =
            sql::query("INSERT INTO grant_receipts (grant_id, host, exits, ends, admitted_ms) VALUES ");
        insert.push_rows(receipts.into_iter().map(|(grant, receipts)| {
            [
                Value::from(grant.to_string()),
                number.into(),
                decode::sql(receipts.exits).into(),
                decode::sql(receipts.ends).into(),
                receipts.admitted.map(Timestamp::unix_ms).into(),
            ]
        }));
        insert.push(
            " ON CONFLICT (grant_id, host) DO UPDATE SET
                 exits = grant_receipts.exits + excluded.exits,
                 ends = grant_receipts.ends + excluded.ends,
                 admitted_ms = CASE WHEN grant_receipts.admitted_ms IS NULL
                     OR excluded.admitted_ms > grant_receipts.admitted_ms
                     THEN excluded.admitted_ms ELSE grant_receipts.admitted_ms END",
        );
        insert.execute(&mut *sql).await.map_err(StoreError::sql("note hosts' receipts"))?;
    }
    for hours in chunks(seen.gap_hours) {
        let mut insert = sql::query("INSERT INTO use_gaps (host, hour_ms) VALUES ");
        insert.push_rows(hours.into_iter().map(|hour| [Value::from(number), hour.into()]));
        insert.push(" ON CONFLICT (host, hour_ms) DO NOTHING");
        insert.execute(&mut *sql).await.map_err(StoreError::sql("note that verdicts were lost"))?;
    }
    Ok(())
}

/// Of these grants those that a host has or had, with the places that were used there so far.
async fn places(
    sql: &mut Transaction,
    host: i64,
    grants: &[GrantId],
) -> Result<BTreeMap<GrantId, BTreeSet<String>>, StoreError> {
    let mut query = sql::query_as(
        "SELECT grant_hosts.grant_id, grant_uses.place FROM grant_hosts
         LEFT JOIN grant_uses ON grant_uses.grant_id = grant_hosts.grant_id AND grant_uses.host = grant_hosts.host
         WHERE grant_hosts.host = ",
    );
    query.push_bind(host).push(" AND grant_hosts.grant_id IN ");
    query.push_list(grants.iter().map(GrantId::to_string));
    let rows: Vec<(String, Option<String>)> =
        query.fetch_all(sql).await.map_err(StoreError::sql("read what grants were used for"))?;
    let mut known: BTreeMap<GrantId, BTreeSet<String>> = BTreeMap::new();
    for (grant, place) in rows {
        known.entry(decode::text("grant", &grant)?).or_default().extend(place);
    }
    Ok(known)
}

/// Notes which events are about what.
async fn refer(sql: &mut Transaction, refs: Vec<(String, &AuditEvent)>) -> Result<(), StoreError> {
    for refs in chunks(refs) {
        let mut insert = sql::query("INSERT INTO event_refs (about, position, kind) VALUES ");
        insert.push_rows(refs.into_iter().map(|(about, event)| {
            [Value::from(about), decode::sql(event.position).into(), event.kind.as_str().into()]
        }));
        insert.execute(&mut *sql).await.map_err(StoreError::sql("note what an event is about"))?;
    }
    Ok(())
}

/// Parts of a list, none of them empty.
fn chunks<T>(all: impl IntoIterator<Item = T>) -> Vec<Vec<T>> {
    let mut chunks: Vec<Vec<T>> = Vec::new();
    for item in all {
        match chunks.last_mut() {
            Some(last) if last.len() < sql::ROWS_MAX => last.push(item),
            _ => chunks.push(vec![item]),
        }
    }
    chunks
}
