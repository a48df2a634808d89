//! The record in a SQLite file: making, opening and locking it.
//!
//! Owns: what only SQLite has. Must not know: what is kept.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqlitePool, migrate};

use super::StoreError;

static MIGRATIONS: migrate::Migrator = migrate!("migrations/sqlite");

/// Enough for reads to go on while one of them is slow; each costs a thread.
const READERS: u32 = 4;

/// How long a statement waits for another process, such as a backup, to let go of the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the lock is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Makes an empty file, which must not be there.
pub(super) fn make_file(path: &Path) -> Result<(), StoreError> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            Err(StoreError::Exists(path.display().to_string()))
        }
        Err(source) => Err(StoreError::File { doing: "make the database", path: path.to_owned(), source }),
    }
}

/// Removes a database that was not finished.
pub(super) fn discard(path: &Path) {
    for suffix in ["", "-wal", "-shm", ".lock"] {
        // What is not there need not be removed; the error that matters is the first one.
        let _ = std::fs::remove_file(beside(path, suffix));
    }
}

/// A connection that writes, once the tables are up to date, and the lock that keeps other processes away.
pub(super) async fn open_writer(path: &Path) -> Result<(SqlitePool, File), StoreError> {
    if !path.exists() {
        return Err(StoreError::Absent(path.display().to_string()));
    }
    let lock = lock(path).await?;
    let writer = connect(path, 1, false).await?;
    let failed = |source| StoreError::Migrate { database: path.display().to_string(), source };
    MIGRATIONS.run(&writer).await.map_err(failed)?;
    Ok((writer, lock))
}

/// Connections that only read.
pub(super) async fn open_readers(path: &Path) -> Result<SqlitePool, StoreError> {
    connect(path, READERS, true).await
}

/// Makes a copy as of one moment, in a file that must not be there, while a control plane may be at work. When it returns, the copy
/// is on disk.
pub(super) async fn copy(path: &Path, copy: &Path) -> Result<(), StoreError> {
    if !path.exists() {
        return Err(StoreError::Absent(path.display().to_string()));
    }
    make_file(copy)?;
    let copied = match vacuum_into(path, copy).await {
        Ok(()) => sync(copy).map_err(|source| StoreError::File {
            doing: "make durable",
            path: copy.to_owned(),
            source,
        }),
        Err(error) => Err(error),
    };
    if copied.is_err() {
        discard(copy);
    }
    copied
}

async fn vacuum_into(path: &Path, copy: &Path) -> Result<(), StoreError> {
    let name = copy.to_str().ok_or_else(|| StoreError::File {
        doing: "name to SQLite, which takes only UTF-8,",
        path: copy.to_owned(),
        source: std::io::ErrorKind::InvalidFilename.into(),
    })?;
    let incomplete = |_| StoreError::Incomplete(path.display().to_string());
    let options = SqliteConnectOptions::new().filename(path).busy_timeout(BUSY_TIMEOUT);
    let mut sql = options.connect().await.map_err(StoreError::sql("connect"))?;
    sqlx::query("SELECT id FROM timeline").fetch_one(&mut sql).await.map_err(incomplete)?;
    let copied = sqlx::query("VACUUM INTO ?").bind(name).execute(&mut sql).await;
    copied.map_err(StoreError::sql("copy all"))?;
    sql.close().await.map_err(StoreError::sql("disconnect"))
}

/// The file, and that it is there.
fn sync(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
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
                StoreError::Incomplete(path.display().to_string())
            }
            _ => StoreError::Sql { doing: "connect", source },
        })
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
            Err(TryLockError::WouldBlock) => return Err(StoreError::InUse(path.display().to_string())),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
