//! The record in a PostgreSQL database: making and opening it, and keeping others away from it.
//!
//! Owns: what only PostgreSQL has. Must not know: what is kept.
//!
//! One control plane uses a database at a time. It holds an advisory lock on a connection of its own, so that a second one does not
//! start; and it is the holder that the timeline names, which each change looks at before anything else, so that one that has lost
//! its lock without knowing cannot write beside the next one.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool, Postgres, migrate};
use tokio::sync::{Mutex, watch};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::StoreError;
use super::sql::{self, Transaction};
use crate::config::PostgresDatabase;

static MIGRATIONS: migrate::Migrator = migrate!("migrations/postgres");

/// Enough for reads to go on while some of them are slow.
const READERS: u32 = 8;

/// The first half of our advisory locks; the other one is the table, as there can be several schemas.
const LOCK: i32 = i32::from_be_bytes(*b"ptcl");

/// How long the lock is waited for: the one before may be just ending.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// How often the connection that holds the lock is looked after, and tried to be had again.
const LOCK_CHECK: Duration = Duration::from_secs(1);

/// How long a server that is there takes to answer or to let in.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How long a change waits for those before it, when a thousand hosts come at once.
const TURN_LIMIT: Duration = Duration::from_secs(30);

/// Settings of every session: what was committed is on disk, a client that is gone is noticed, and nobody waits for long.
const SETTINGS: [(&str, &str); 6] = [
    ("synchronous_commit", "on"),
    ("lock_timeout", "10s"),
    ("idle_in_transaction_session_timeout", "60s"),
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
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

/// That we are the one control plane on a database. Dropped, we are not any more.
#[derive(Debug)]
pub(super) struct Claim {
    holder: i64,
    standing: watch::Receiver<Standing>,
    /// None: it is lost, or given back.
    connection: Arc<Mutex<Option<PgConnection>>>,
    keeper: AbortHandle,
}

/// How it is about our claim, as far as we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Held,
    /// The connection broke; perhaps we get it back.
    Lost,
    /// Another control plane has the database.
    Taken,
}

impl Claim {
    /// Takes a database whose tables are there, and brings them up to date. Others cannot write there from here on.
    pub(super) async fn take(database: &PostgresDatabase) -> Result<Self, StoreError> {
        let mut sql = connect(database).await.map_err(unreachable(database))?;
        let is_there: bool = sqlx::query_scalar("SELECT to_regclass('timeline') IS NOT NULL")
            .fetch_one(&mut sql)
            .await
            .map_err(StoreError::sql("look for tables"))?;
        if !is_there {
            return Err(StoreError::Empty(database.to_string()));
        }
        let deadline = tokio::time::Instant::now() + LOCK_PATIENCE;
        while !lock(&mut sql).await.map_err(StoreError::sql("lock"))? {
            if tokio::time::Instant::now() >= deadline {
                return Err(StoreError::InUse(database.to_string()));
            }
            sleep(Duration::from_millis(20)).await;
        }
        migrate(database, &mut sql).await?;
        let holder: Option<i64> =
            sqlx::query_scalar("UPDATE timeline SET holder = holder + 1 RETURNING holder")
                .fetch_optional(&mut sql)
                .await
                .map_err(StoreError::sql("take over"))?;
        let holder = holder.ok_or_else(|| StoreError::Incomplete(database.to_string()))?;
        let (told, standing) = watch::channel(Standing::Held);
        let connection = Arc::new(Mutex::new(Some(sql)));
        let keeper = tokio::spawn(keep(database.clone(), holder, told, Arc::clone(&connection)));
        Ok(Self { holder, standing, connection, keeper: keeper.abort_handle() })
    }

    /// Enters a change: from here on it is the only one, and only if the database is still ours.
    pub(super) async fn enter(&self, transaction: &mut Transaction) -> Result<(), StoreError> {
        match *self.standing.borrow() {
            Standing::Held => {}
            Standing::Lost => return Err(StoreError::LockLost),
            Standing::Taken => return Err(StoreError::TakenOver),
        }
        // The row stays locked until the change is over.
        let entered = sql::query("UPDATE timeline SET revision = revision + 1 WHERE holder = ?")
            .bind(self.holder)
            .execute(transaction)
            .await
            .map_err(StoreError::sql("wait for the change before"))?;
        if entered == 1 { Ok(()) } else { Err(StoreError::TakenOver) }
    }

    /// Gives the database back.
    pub(super) async fn give_back(&self) {
        self.keeper.abort();
        if let Some(connection) = self.connection.lock().await.take() {
            // The server gives the lock back whatever becomes of the farewell.
            let _ = timeout(ANSWER_LIMIT, connection.close()).await;
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// Whether the lock is this connection's.
async fn lock(sql: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT pg_try_advisory_lock($1, 'timeline'::regclass::oid::int4)")
        .bind(LOCK)
        .fetch_one(sql)
        .await
}

/// Sees to it that the lock is held, and says when it is not.
async fn keep(
    database: PostgresDatabase,
    holder: i64,
    told: watch::Sender<Standing>,
    held: Arc<Mutex<Option<PgConnection>>>,
) {
    loop {
        sleep(LOCK_CHECK).await;
        let mut connection = held.lock().await;
        if let Some(sql) = connection.as_mut() {
            if matches!(timeout(ANSWER_LIMIT, sql.ping()).await, Ok(Ok(()))) {
                continue;
            }
            *connection = None;
            told.send_replace(Standing::Lost);
            tracing::error!(%database, "the lock on the database is lost: nothing is written until it is back");
        }
        match regain(&database, holder).await {
            Ok((Standing::Held, sql)) => {
                *connection = Some(sql);
                told.send_replace(Standing::Held);
                tracing::info!(%database, "the lock on the database is back");
            }
            Ok((Standing::Taken, _)) => {
                told.send_replace(Standing::Taken);
                tracing::error!(%database, "another control plane has taken over the database: restart this one");
                return;
            }
            // The server may hold our own lock a little longer than we knew of it.
            Ok((Standing::Lost, _)) => {}
            Err(error) => tracing::warn!(%database, %error, "cannot take the lock on the database again"),
        }
    }
}

async fn regain(database: &PostgresDatabase, holder: i64) -> Result<(Standing, PgConnection), sqlx::Error> {
    let mut sql = connect(database).await?;
    let is_locked = lock(&mut sql).await?;
    let now: i64 =
        sqlx::query_scalar::<Postgres, _>("SELECT holder FROM timeline").fetch_one(&mut sql).await?;
    let standing = match (now == holder, is_locked) {
        (false, _) => Standing::Taken,
        (true, true) => Standing::Held,
        (true, false) => Standing::Lost,
    };
    Ok((standing, sql))
}
