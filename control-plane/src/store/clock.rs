//! Where the clock is, in the record: what it goes on from after a restart.
//!
//! What is kept is one anchor for each boot of a machine. Nothing is decided here: see `rules/steady.rs`.

use std::time::Duration;

use proto::types::{EndReason, EventKind, Timestamp};

use super::grants::{GRANTS, read};
use super::incidents::open_incidents;
use super::requests::request;
use super::setup::Hold;
use super::sql::{self, Transaction};
use super::steps::Cause;
use super::tx::Tx;
use super::{Store, StoreError, decode, postgres};
use crate::rules::actor::Actor;
use crate::rules::request::{Decided, Outcome};
use crate::rules::steady::{self, Anchor, Start, Step};

/// How long an anchor is kept that is not the newest: a machine that comes back later than that finds its boot ended, or is as good as
/// another one.
const KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Why a time that nobody knows has ended.
const WHY: &str = "the clock was a day and more behind the record: nobody can say how long it would have had";

impl Store {
    /// That our wall clock and the server's are about the same; a file has only ours. `wall` reads it.
    pub async fn compare_clocks(&self, wall: impl Fn() -> Timestamp) -> Result<(), StoreError> {
        let Hold::Server(server) = &*self.hold else { return Ok(()) };
        let mut sql = self.read().await?;
        let before = wall();
        let theirs = postgres::now(&mut sql).await?;
        let ours = wall();
        match steady::is_far(theirs, before, ours) {
            true => Err(StoreError::ClocksApart { database: server.name().to_owned(), ours, theirs }),
            false => Ok(()),
        }
    }

    /// Where the clock begins on this boot, when the boot clock says `boot` and the wall clock `wall`. It is kept, and what nobody can say
    /// the time of has ended.
    pub async fn begin_clock(
        &self,
        boot_id: &str,
        boot: Duration,
        wall: Timestamp,
    ) -> Result<Start, StoreError> {
        let mut tx = self.write().await?;
        let same = anchor(tx.sql(), boot_id).await?;
        let newest: Option<i64> = sql::query_scalar("SELECT max(steady_ms) FROM clock_anchors")
            .fetch_one(tx.sql())
            .await
            .map_err(StoreError::sql("read where the clock was"))?;
        let newest = newest.map(|newest| decode::time("steady", newest)).transpose()?;
        let start = steady::start(boot, wall, same.as_ref(), newest);
        if let Some(lost_ms) = start.lost_ms {
            tx.lose_time(Step { by_ms: lost_ms }, &start).await?;
        }
        let known = start.known_ms.saturating_add(start.at.unix_ms());
        let wall = Timestamp::from_unix_ms(known).unwrap_or(wall);
        tx.keep_anchor(&Anchor { boot_id: boot_id.to_owned(), boot, steady: start.at, wall }).await?;
        tx.forget_anchors(&start).await?;
        tx.commit().await?;
        Ok(start)
    }

    /// Keeps where the clock is.
    pub async fn keep_anchor(&self, anchor: &Anchor) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        tx.keep_anchor(anchor).await?;
        tx.commit().await
    }

    /// The wall clock of the machine of this name was set: that is on record, and known from here on.
    pub async fn clock_stepped(&self, step: Step, machine: &str, anchor: &Anchor) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let machine: String = machine.chars().flat_map(char::escape_debug).collect();
        let comment = format!(
            "the wall clock of `{machine}` was set {} by {}; grants keep their time: see docs/database.md#clocks",
            step.word(),
            step.length()
        );
        tx.record_step_of_clock(step, comment, anchor.steady);
        tx.keep_anchor(anchor).await?;
        tx.commit().await
    }
}

async fn anchor(sql: &mut Transaction, boot_id: &str) -> Result<Option<Anchor>, StoreError> {
    let row: Option<(i64, i64, i64)> =
        sql::query_as("SELECT boot_ms, steady_ms, wall_ms FROM clock_anchors WHERE boot = ?")
            .bind(boot_id)
            .fetch_optional(sql)
            .await
            .map_err(StoreError::sql("read where the clock was on this boot"))?;
    let decode = |(boot, steady, wall): (i64, i64, i64)| {
        Ok(Anchor {
            boot_id: boot_id.to_owned(),
            boot: Duration::from_millis(decode::number("boot", boot)?),
            steady: decode::time("steady", steady)?,
            wall: decode::time("wall", wall)?,
        })
    };
    row.map(decode).transpose()
}

impl Tx {
    async fn keep_anchor(&mut self, anchor: &Anchor) -> Result<(), StoreError> {
        sql::query(
            "INSERT INTO clock_anchors (boot, boot_ms, steady_ms, wall_ms) VALUES (?, ?, ?, ?)
             ON CONFLICT (boot) DO UPDATE SET boot_ms = excluded.boot_ms, steady_ms = excluded.steady_ms,
                 wall_ms = excluded.wall_ms",
        )
        .bind(&anchor.boot_id)
        .bind(i64::try_from(anchor.boot.as_millis()).unwrap_or(i64::MAX))
        .bind(anchor.steady.unix_ms())
        .bind(anchor.wall.unix_ms())
        .execute(self.sql())
        .await
        .map_err(StoreError::sql("keep where the clock is"))?;
        Ok(())
    }

    async fn forget_anchors(&mut self, start: &Start) -> Result<(), StoreError> {
        sql::query(
            "DELETE FROM clock_anchors
             WHERE steady_ms < ? AND steady_ms < (SELECT max(steady_ms) FROM clock_anchors)",
        )
        .bind(start.at.unix_ms().saturating_sub(i64::try_from(KEPT.as_millis()).unwrap_or(i64::MAX)))
        .execute(self.sql())
        .await
        .map_err(StoreError::sql("forget old anchors of the clock"))?;
        Ok(())
    }

    fn record_step_of_clock(&mut self, step: Step, comment: String, now: Timestamp) {
        self.record(EventKind::ClockStepped, now, |event| {
            event.actor = Actor::System.to_string();
            event.reason = step.word().to_owned();
            event.comment = comment;
        });
    }

    /// The clock begins anew, so far from where it was that it is another time. Ahead, what has run out has run out. Behind, nobody can
    /// say how long anything would have had: what lets somebody in for a time ends.
    async fn lose_time(&mut self, step: Step, start: &Start) -> Result<(), StoreError> {
        let now = start.at;
        if !start.ends_all() {
            let comment = format!(
                "the wall clock is {} ahead of where it was expected to be: the control plane goes by it",
                step.length()
            );
            self.record_step_of_clock(step, comment, now);
            return Ok(());
        }
        let mut query = sql::query_as(GRANTS);
        query.push(" WHERE grants.state IN ('scheduled', 'activating', 'active')");
        let live = read(self.sql(), query).await?;
        let waiting: Vec<String> = sql::query_scalar("SELECT id FROM requests WHERE state = 'pending'")
            .fetch_all(self.sql())
            .await
            .map_err(StoreError::sql("read which requests wait"))?;
        let incidents = open_incidents(self.sql()).await?;
        let sessions = self.forget("DELETE FROM sign_ins").await?;
        let join_tokens = self.forget("DELETE FROM join_tokens").await?;
        // They would begin with what was, and the next boot would find them ahead again.
        self.forget("DELETE FROM clock_anchors").await?;
        let comment = format!(
            "the wall clock is {} behind what the record has seen, and nobody can say how long anything would have had; \
             ended: grants {}, requests {}, sessions {sessions}, join tokens {join_tokens}, incidents {}",
            step.length(),
            live.len(),
            waiting.len(),
            incidents.len()
        );
        self.record_step_of_clock(step, comment, now);
        for kept in live {
            let cause = Cause { actor: Actor::System, comment: WHY.to_owned() };
            self.end(kept, EndReason::Revoked, cause, now).await?;
        }
        for id in waiting {
            let before = request(self.sql(), decode::text("request", &id)?).await?;
            let decided = Decided { request: before.id, outcome: Outcome::Denied, by: None };
            self.decide(&before, &decided, Actor::System, WHY, now).await?;
        }
        for incident in incidents {
            self.close_incident(&incident, None, &Actor::System, "closed", WHY, now).await?;
        }
        // What waits to be told was to be told long after now.
        sql::query("UPDATE outbox SET due_ms = ? WHERE due_ms > ?")
            .bind(now.unix_ms())
            .bind(now.unix_ms())
            .execute(self.sql())
            .await
            .map_err(StoreError::sql("have what waits told now"))?;
        Ok(())
    }

    async fn forget(&mut self, statement: &'static str) -> Result<u64, StoreError> {
        sql::query(statement)
            .execute(self.sql())
            .await
            .map_err(StoreError::sql("end what the clock is lost of"))
    }
}
