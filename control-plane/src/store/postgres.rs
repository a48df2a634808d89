//! The record in a PostgreSQL database: making and opening it, and what several control planes there tell each other.
//!
//! Owns: what only PostgreSQL has. Must not know: what is kept.
//!
//! Any number of control planes work on one database. Each change locks the row of the timeline before anything else, so that changes are
//! one after the other, whoever makes them; and it looks there whether the tables still have the form that this program knows.
//! `NOTIFY` says that there was a change, and nothing else: who missed it looks a moment later.

use std::time::Duration;

use proto::types::{Fingerprint, HostName, Timestamp};
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool, migrate};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout, timeout_at};
use uuid::Uuid;

use super::sql::{self, Transaction};
use super::{StoreError, decode};
use crate::config::PostgresDatabase;
use crate::rules::roster::Presence;

static MIGRATIONS: migrate::Migrator = migrate!("migrations/postgres");

/// Enough for reads to go on while some of them are slow.
const READERS: u32 = 8;

/// The first half of the lock under which tables are changed; the other one is the table, as there can be several schemas.
const LOCK: i32 = i32::from_be_bytes(*b"ptcl");

/// One says that we are at work, one listens.
const BESIDE: u32 = 2;

/// How often it is looked whether others have changed something, when nothing is heard of it.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How long others' changes are gathered before they are looked at.
const GATHER: Duration = Duration::from_millis(2);

/// How long a server that is there takes to answer or to let in.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How long a change waits for those before it, when a thousand hosts come at once.
const TURN_LIMIT: Duration = Duration::from_secs(30);

/// Settings of every session: what was committed is on disk, a client that is gone is noticed, and nobody waits for long: who stops in the
/// middle of a change has lost it soon, and whoever only thinks for long in between (of thousands of grants) has not.
const SETTINGS: [(&str, &str); 7] = [
    ("synchronous_commit", "on"),
    ("lock_timeout", "10s"),
    ("idle_in_transaction_session_timeout", "20s"),
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
    ("client_min_messages", "warning"),
];

fn options(database: &PostgresDatabase, only_reads: bool) -> PgConnectOptions {
    // Where to, as whom and how safely is said here, whatever the environment says: what counts is the configuration.
    let options = PgConnectOptions::new_without_pgpass()
        .host(&database.host)
        .port(database.port)
        .username(&database.user)
        .password(database.password.as_ref().map_or("", |password| password.reveal()))
        .database(&database.name)
        .application_name("portcullis-control-plane")
        .options(SETTINGS)
        .options([("default_transaction_read_only", if only_reads { "on" } else { "off" })]);
    match &database.tls {
        None => options.ssl_mode(PgSslMode::Disable),
        Some(tls) => {
            let authority = tls.authority.clone().unwrap_or_default();
            options.ssl_mode(PgSslMode::VerifyFull).ssl_root_cert_from_pem(authority)
        }
    }
}

/// Wraps what keeps us from the server.
fn unreachable(database: &PostgresDatabase) -> impl Fn(sqlx::Error) -> StoreError {
    move |source| StoreError::Connect { database: database.to_string(), source }
}

async fn pool(database: &PostgresDatabase, connections: u32, only_reads: bool) -> Result<PgPool, StoreError> {
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(if only_reads { ANSWER_LIMIT } else { TURN_LIMIT })
        .connect_with(options(database, only_reads))
        .await
        .map_err(unreachable(database))
}

/// A connection that writes.
pub(super) async fn open_writer(database: &PostgresDatabase) -> Result<PgPool, StoreError> {
    // A pool tries until its time is over, and then says no more than that.
    let first = connect(database).await.map_err(unreachable(database))?;
    first.close().await.map_err(unreachable(database))?;
    pool(database, 1, false).await
}

/// Connections that only read.
pub(super) async fn open_readers(database: &PostgresDatabase) -> Result<PgPool, StoreError> {
    pool(database, READERS, true).await
}

async fn connect(database: &PostgresDatabase) -> Result<PgConnection, sqlx::Error> {
    let options = options(database, false);
    timeout(ANSWER_LIMIT, options.connect()).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

/// Begins to make our tables, in a database that has none of them.
pub(super) async fn begin_to_make(
    database: &PostgresDatabase,
    writer: &PgPool,
) -> Result<Transaction, StoreError> {
    let mut sql = writer.begin().await.map_err(StoreError::sql("begin to make the tables"))?;
    let (encoding, is_there): (String, bool) =
        sqlx::query_as("SELECT current_setting('server_encoding'), to_regclass('timeline') IS NOT NULL")
            .fetch_one(&mut *sql)
            .await
            .map_err(StoreError::sql("look for tables"))?;
    if encoding != "UTF8" {
        return Err(StoreError::Encoding { database: database.to_string(), encoding });
    }
    if is_there {
        return Err(StoreError::Exists(database.to_string()));
    }
    migrate(database, &mut sql).await?;
    Ok(Transaction::Postgres(sql))
}

async fn migrate(database: &PostgresDatabase, sql: &mut PgConnection) -> Result<(), StoreError> {
    let failed = |source| StoreError::Migrate { database: database.to_string(), source };
    // Not `run`: of what takes any connection the compiler cannot say that its future can be sent.
    MIGRATIONS.run_direct(None, sql, false).await.map_err(failed)
}

/// The server, besides what is read and changed there.
#[derive(Debug)]
pub(super) struct Server {
    /// As it is named to people.
    database: String,
    /// The form of the tables that this program knows: its newest migration.
    form: i64,
    /// Neither waits behind changes: who has many of them to make is at work all the same.
    beside: PgPool,
    listener: Mutex<Option<PgListener>>,
}

impl Server {
    /// Takes a database whose tables are there, and brings them up to date. Who knows only older ones cannot write there from here on.
    pub(super) async fn open(database: &PostgresDatabase) -> Result<Self, StoreError> {
        let mut sql = connect(database).await.map_err(unreachable(database))?;
        let is_there: bool = sqlx::query_scalar("SELECT to_regclass('timeline') IS NOT NULL")
            .fetch_one(&mut sql)
            .await
            .map_err(StoreError::sql("look for tables"))?;
        if !is_there {
            return Err(StoreError::Empty(database.to_string()));
        }
        // All of it, or nothing; one program at a time.
        let mut sql = sql.begin().await.map_err(StoreError::sql("begin to bring the tables up to date"))?;
        sqlx::query("SELECT pg_advisory_xact_lock($1, 'timeline'::regclass::oid::int4)")
            .bind(LOCK)
            .execute(&mut *sql)
            .await
            .map_err(StoreError::sql("wait for others to bring the tables up to date"))?;
        migrate(database, &mut sql).await?;
        let form = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default();
        sqlx::query("UPDATE timeline SET form = $1 WHERE form <> $1")
            .bind(form)
            .execute(&mut *sql)
            .await
            .map_err(StoreError::sql("note the form of the tables"))?;
        sql.commit().await.map_err(StoreError::sql("bring the tables up to date"))?;
        let beside = pool(database, BESIDE, false).await?;
        Ok(Self { database: database.to_string(), form, beside, listener: Mutex::default() })
    }

    /// Enters a change of `replica`: from here on it is the only one. Returns its revision.
    pub(super) async fn enter(
        &self,
        transaction: &mut Transaction,
        replica: Uuid,
    ) -> Result<i64, StoreError> {
        // The row stays locked until the change is over; the notice is given then.
        let entered: Option<(i64, String)> = sql::query_as(
            "UPDATE timeline SET revision = revision + 1 WHERE form = ?
             RETURNING revision, pg_notify('portcullis', ?)::text",
        )
        .bind(self.form)
        .bind(replica.to_string())
        .fetch_optional(transaction)
        .await
        .map_err(StoreError::sql("wait for the change before"))?;
        let outdated = || StoreError::Outdated(self.database.clone());
        entered.map(|(revision, _)| revision).ok_or_else(outdated)
    }

    /// Says that `replica` is at work. Returns how many others are, and how many have not said so for longer than that.
    pub(super) async fn beat(
        &self,
        replica: Uuid,
        authority: Fingerprint,
        gone_after_ms: i64,
    ) -> Result<(i64, i64), StoreError> {
        sqlx::query_as(
            "WITH present AS (SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS ms),
             ours AS (
                 INSERT INTO replicas (id, authority, seen_ms) SELECT $1, $2, ms FROM present
                 ON CONFLICT (id) DO UPDATE SET seen_ms = excluded.seen_ms
             )
             SELECT count(*) FILTER (WHERE seen_ms >= ms - $3), count(*) FILTER (WHERE seen_ms < ms - $3)
             FROM replicas, present WHERE id <> $1",
        )
        .bind(replica.to_string())
        .bind(authority.to_string())
        .bind(gone_after_ms)
        .fetch_one(&self.beside)
        .await
        .map_err(StoreError::sql("note that we are at work"))
    }

    /// Keeps how the hosts are whose sessions `replica` has.
    pub(super) async fn publish(
        &self,
        replica: Uuid,
        presences: Vec<(HostName, Presence)>,
    ) -> Result<(), StoreError> {
        let mut names = Vec::with_capacity(presences.len());
        let mut seen = Vec::with_capacity(presences.len());
        let mut confirmed = Vec::with_capacity(presences.len());
        let mut disagreements = Vec::with_capacity(presences.len());
        for (host, presence) in presences {
            names.push(host.to_string());
            seen.push(presence.seen.unix_ms());
            confirmed.push(presence.confirmed.map(Timestamp::unix_ms));
            disagreements.push(presence.disagreement);
        }
        // In the order of their numbers: two that have some in common never wait for each other.
        sqlx::query(
            "INSERT INTO presences (host, replica, seen_ms, confirmed_ms, disagreement)
             SELECT hosts.number, $1, said.seen, said.confirmed, said.disagreement
             FROM unnest($2::text[], $3::bigint[], $4::bigint[], $5::text[]) AS said (name, seen, confirmed, disagreement)
             JOIN hosts ON hosts.name = said.name AND hosts.replica = $1 ORDER BY hosts.number
             ON CONFLICT (host) DO UPDATE SET replica = excluded.replica, seen_ms = excluded.seen_ms,
                 confirmed_ms = excluded.confirmed_ms, disagreement = excluded.disagreement",
        )
        .bind(replica.to_string())
        .bind(names)
        .bind(seen)
        .bind(confirmed)
        .bind(disagreements)
        .execute(&self.beside)
        .await
        .map_err(StoreError::sql("publish how hosts are"))?;
        Ok(())
    }

    /// Resolves when somebody else than `replica` may have changed something: at the latest after [`LOOK_AGAIN`].
    pub(super) async fn others_change(&self, replica: Uuid) {
        let own = replica.to_string();
        let deadline = tokio::time::Instant::now() + LOOK_AGAIN;
        let mut listener = self.listener.lock().await;
        loop {
            let Some(listening) = listener.as_mut() else {
                match timeout(ANSWER_LIMIT, self.listen()).await.unwrap_or(Err(sqlx::Error::PoolTimedOut)) {
                    // What was said before is not known.
                    Ok(listening) => *listener = Some(listening),
                    Err(error) => {
                        tracing::warn!(database = self.database, %error, "cannot listen to other control planes");
                        tokio::time::sleep_until(deadline).await;
                    }
                }
                return;
            };
            match timeout_at(deadline, listening.recv()).await {
                Err(_) => return,
                Ok(Ok(notice)) if notice.payload() == own => {}
                Ok(Ok(_)) => break,
                Ok(Err(error)) => {
                    tracing::warn!(database = self.database, %error, "cannot listen to other control planes");
                    *listener = None;
                    tokio::time::sleep_until(deadline).await;
                    return;
                }
            }
        }
        // Changes come in crowds: one look is enough for those that are there by then.
        sleep(GATHER).await;
        if let Some(listening) = listener.as_mut() {
            while let Ok(Ok(_)) = timeout(Duration::ZERO, listening.recv()).await {}
        }
    }

    async fn listen(&self) -> Result<PgListener, sqlx::Error> {
        let mut listener = PgListener::connect_with(&self.beside).await?;
        listener.listen("portcullis").await?;
        Ok(listener)
    }

    /// The database, as it is named to people.
    pub(super) fn name(&self) -> &str {
        &self.database
    }

    /// Closes the connections.
    pub(super) async fn close(&self) {
        self.listener.lock().await.take();
        // The server takes a connection back whatever becomes of the farewell.
        let _ = timeout(ANSWER_LIMIT, self.beside.close()).await;
    }
}

/// The clock of the server.
pub(super) async fn now(sql: &mut Transaction) -> Result<Timestamp, StoreError> {
    let now = sql::query_scalar("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")
        .fetch_one(sql)
        .await
        .map_err(StoreError::sql("read the database's clock"))?;
    decode::time("clock", now)
}
