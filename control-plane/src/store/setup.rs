//! Making and opening the database.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proto::types::{NewSubject, SubjectRole, Timestamp};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{SqlitePool, migrate};
use uuid::Uuid;

use super::{Signals, Store, StoreError, decode};
use crate::identity::TokenHash;

static MIGRATIONS: migrate::Migrator = migrate!();

/// Enough for reads to go on while one of them is slow; each costs a thread.
const READERS: u32 = 4;

/// How long a statement waits for another process, such as a backup, to let go of the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the lock is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// The first administrator.
const FIRST_ADMINISTRATOR: &str = "user:admin";

/// How the audit record names what nobody in particular did.
pub(super) const SYSTEM: &str = "system";

impl Store {
    /// Makes the database at `path`, which must not be there, and the first administrator, who signs in with the token of
    /// this hash. A failure leaves no file behind.
    pub async fn create(path: &Path, token: &TokenHash, now: Timestamp) -> Result<(), StoreError> {
        let file = |source| StoreError::File { doing: "make the database", path: path.to_owned(), source };
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(StoreError::Exists(path.to_owned()));
            }
            Err(error) => return Err(file(error)),
        }
        let made = fill(path, token, now).await;
        if made.is_err() {
            for suffix in ["", "-wal", "-shm", ".lock"] {
                // What is not there need not be removed; the error that matters is the first one.
                let _ = std::fs::remove_file(beside(path, suffix));
            }
        }
        made
    }

    /// Opens the database at `path`, and brings its tables up to date.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        if !path.exists() {
            return Err(StoreError::Absent(path.to_owned()));
        }
        let lock = lock(path).await?;
        let writer = connect(path, 1, false).await?;
        migrate(path, &writer).await?;
        let timeline: Option<String> = sqlx::query_scalar("SELECT id FROM timeline")
            .fetch_optional(&writer)
            .await
            .map_err(StoreError::sql("read the timeline"))?;
        let timeline = timeline.ok_or_else(|| StoreError::Incomplete(path.to_owned()))?;
        let timeline = Uuid::try_parse(&timeline).map_err(|_| StoreError::Incomplete(path.to_owned()))?;
        let readers = connect(path, READERS, true).await?;
        Ok(Self {
            writer,
            readers,
            timeline,
            signals: Arc::new(Signals::new()),
            directory: Arc::default(),
            _lock: Arc::new(lock),
        })
    }
}

async fn fill(path: &Path, token: &TokenHash, now: Timestamp) -> Result<(), StoreError> {
    let lock = lock(path).await?;
    let writer = connect(path, 1, false).await?;
    migrate(path, &writer).await?;
    let timeline = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
    let signals = Arc::new(Signals::new());
    let readers = writer.clone();
    let store =
        Store { writer, readers, timeline, signals, directory: Arc::default(), _lock: Arc::new(lock) };

    let mut tx = store.write().await?;
    sqlx::query("INSERT INTO timeline (only_row, id, created_ms) VALUES (1, ?, ?)")
        .bind(timeline.to_string())
        .bind(now.unix_ms())
        .execute(tx.sql())
        .await
        .map_err(StoreError::sql("write the timeline"))?;
    let id = decode::text("subject", FIRST_ADMINISTRATOR)?;
    let administrator = NewSubject { id, selectors: Vec::new(), role: SubjectRole::Administrator };
    let subject = tx.add_subject(administrator, SYSTEM, now).await?;
    tx.issue_subject_token(&subject.id, token, SYSTEM, now).await?;
    tx.commit().await?;
    store.close().await;
    Ok(())
}

async fn connect(path: &Path, connections: u32, only_reads: bool) -> Result<SqlitePool, StoreError> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        .pragma("trusted_schema", "OFF")
        .pragma("query_only", if only_reads { "ON" } else { "OFF" });
    SqlitePoolOptions::new()
        .min_connections(1)
        .max_connections(connections)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_with(options)
        .await
        .map_err(|source| match &source {
            sqlx::Error::Database(error) if error.code().as_deref() == Some("26") => {
                StoreError::Incomplete(path.to_owned())
            }
            _ => StoreError::Sql { doing: "connect", source },
        })
}

async fn migrate(path: &Path, writer: &SqlitePool) -> Result<(), StoreError> {
    let migrated = MIGRATIONS.run(writer).await;
    migrated.map_err(|source| StoreError::Migrate { path: path.to_owned(), source })
}

/// A file of its own: SQLite's locks on the database are lost when any other handle of this process on it is closed.
///
/// It is waited for a little: the one before may be just ending, and a process that is being started holds a copy of every
/// lock until its program runs.
async fn lock(path: &Path) -> Result<File, StoreError> {
    let lock = beside(path, ".lock");
    let failed = |source| StoreError::File { doing: "lock", path: lock.clone(), source };
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock);
    let file = file.map_err(failed)?;
    let deadline = tokio::time::Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(TryLockError::WouldBlock) => return Err(StoreError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
