//! Making and opening the database, whichever it is.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use proto::types::{NewSubject, SubjectRole, Timestamp};
use uuid::Uuid;

use super::line::Shared;
use super::sql::{self, Pool};
use super::tx::Tx;
use super::{Signals, Store, StoreError, decode, postgres, sqlite};
use crate::config::{Database, PostgresDatabase};
use crate::identity::TokenHash;
use crate::rules::actor::Actor;

/// The first administrator.
const FIRST_ADMINISTRATOR: &str = "user:admin";

/// What we have of the database besides its rows, as long as the store lives.
#[derive(Debug)]
pub(super) enum Hold {
    /// What keeps other processes off a file.
    File { _lock: File },
    /// The server, and who else works there.
    Server(postgres::Server),
}

impl Store {
    /// Makes the record, and the first administrator, who signs in with the token of this hash. A SQLite file must not be there; a
    /// PostgreSQL database must be there and have no tables of ours. A failure leaves all as it was.
    pub async fn create(
        database: impl Into<Database>,
        token: &TokenHash,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        match database.into() {
            Database::Sqlite(path) => {
                sqlite::make_file(&path)?;
                let made = fill_file(&path, token, now).await;
                if made.is_err() {
                    sqlite::discard(&path);
                }
                made
            }
            Database::Postgres(database) => {
                let writer = postgres::open_writer(&database).await?;
                let made = fill_database(&database, &writer, token, now).await;
                writer.close().await;
                made
            }
        }
    }

    /// Makes a copy of a SQLite file as of one moment, in a file that must not be there, while a control plane may be at work.
    pub async fn backup(database: &Database, copy: &Path) -> Result<(), StoreError> {
        match database {
            Database::Sqlite(path) => sqlite::copy(path, copy).await,
            Database::Postgres(_) => Err(StoreError::NoFile(database.to_string())),
        }
    }

    /// Opens the record, and brings its tables up to date.
    pub async fn open(database: impl Into<Database>) -> Result<Self, StoreError> {
        let database = database.into();
        let (writer, readers, hold) = match &database {
            Database::Sqlite(path) => {
                let (writer, lock) = sqlite::open_writer(path).await?;
                let readers = sqlite::open_readers(path).await?;
                (Pool::Sqlite(writer), Pool::Sqlite(readers), Hold::File { _lock: lock })
            }
            Database::Postgres(database) => {
                let server = postgres::Server::open(database).await?;
                let writer = postgres::open_writer(database).await?;
                let readers = postgres::open_readers(database).await?;
                (Pool::Postgres(writer), Pool::Postgres(readers), Hold::Server(server))
            }
        };
        let timeline: Option<String> = sql::query_scalar("SELECT id FROM timeline")
            .fetch_optional(&readers)
            .await
            .map_err(StoreError::sql("read the timeline"))?;
        let incomplete = || StoreError::Incomplete(database.to_string());
        let timeline = timeline.ok_or_else(incomplete)?;
        let timeline = Uuid::try_parse(&timeline).map_err(|_| incomplete())?;
        Ok(Self {
            writer,
            readers,
            timeline,
            replica: uuid::Builder::from_random_bytes(rand::random()).into_uuid(),
            signals: Arc::new(Signals::new()),
            line: Arc::default(),
            waiting: Arc::default(),
            directory: Arc::default(),
            ready: Arc::default(),
            outbox: Arc::default(),
            hooks: Arc::default(),
            hold: Arc::new(hold),
        })
    }
}

async fn fill_file(path: &Path, token: &TokenHash, now: Timestamp) -> Result<(), StoreError> {
    let (writer, _lock) = sqlite::open_writer(path).await?;
    let writer = Pool::Sqlite(writer);
    let transaction = writer.begin_to_write().await.map_err(StoreError::sql("begin a change"))?;
    fill(transaction, token, now).await?;
    writer.close().await;
    Ok(())
}

async fn fill_database(
    database: &PostgresDatabase,
    writer: &sqlx::PgPool,
    token: &TokenHash,
    now: Timestamp,
) -> Result<(), StoreError> {
    fill(postgres::begin_to_make(database, writer).await?, token, now).await
}

async fn fill(transaction: sql::Transaction, token: &TokenHash, now: Timestamp) -> Result<(), StoreError> {
    let timeline = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
    // Nobody waits for what is being made, and it is what revisions begin with.
    let mut tx = Tx::new(Shared::alone(transaction), timeline, Arc::default());
    sql::query("INSERT INTO timeline (only_row, id, created_ms) VALUES (1, ?, ?)")
        .bind(timeline.to_string())
        .bind(now.unix_ms())
        .execute(tx.sql())
        .await
        .map_err(StoreError::sql("write the timeline"))?;
    let id = decode::text("subject", FIRST_ADMINISTRATOR)?;
    let administrator = NewSubject { id, selectors: Vec::new(), role: SubjectRole::Administrator };
    let subject = tx.add_subject(administrator, &Actor::System, now).await?;
    tx.issue_subject_token(&subject.id, token, &Actor::System, now).await?;
    tx.commit().await
}
