//! The durable record, in SQLite or PostgreSQL.
//!
//! Owns: all SQL; that a change and its audit event are one transaction; waking those who wait for changes, after the
//! commit. Must not know: who may do what, the wire between processes.
//!
//! Invariants: there is one writer at a time, and one process on a file. What a caller was told is on disk (synchronous=FULL,
//! synchronous_commit=on).

mod access;
mod acknowledgements;
mod agents;
mod audit;
mod beginnings;
mod bindings;
mod browsers;
mod clock;
mod decode;
mod directory;
mod disabling;
mod drafts;
mod enrolment;
mod error;
mod expiring;
mod extensions;
mod footing;
mod freezes;
mod grants;
mod hooks;
mod hosts;
mod incidents;
mod line;
mod outbox;
mod policies;
mod postgres;
mod replicas;
mod reports;
mod requests;
mod reviews;
mod runs;
mod setup;
mod sign_ins;
mod signals;
mod sql;
mod sqlite;
mod steps;
mod tokens;
mod tx;
mod uses;

pub use access::Known;
pub use agents::Connected;
pub use audit::Stored;
pub use browsers::BrowserSession;
pub use disabling::EndedWith;
pub use enrolment::{ClusterJoin, NewCertificate, NewJoinToken};
pub use error::StoreError;
pub use hooks::Question;
pub use hosts::HostRecord;
pub use outbox::{Message, Outcome};
pub use replicas::{BEAT, Others, SessionNumber};
pub use requests::{RequestFilter, View, Whose};
pub use sign_ins::{Entry, HeldBy, WorkloadEntry};
pub use signals::Signals;

use std::collections::BTreeSet;
use std::sync::Arc;

use proto::types::HookName;

use uuid::Uuid;

use line::{Line, Shared, Turn};
use setup::Hold;
use sql::{Pool, Transaction};
use tx::Tx;

/// The record. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    writer: Pool,
    readers: Pool,
    timeline: Uuid,
    /// Which of the control planes on the database we are; made at each start.
    replica: Uuid,
    signals: Arc<Signals>,
    line: Arc<Line>,
    waiting: Arc<acknowledgements::Waiting>,
    /// As it was last read.
    directory: Arc<tokio::sync::Mutex<Option<hosts::Directory>>>,
    ready: Arc<policies::Ready>,
    outbox: Arc<outbox::Outbox>,
    /// Programs that policies may ask.
    hooks: Arc<BTreeSet<HookName>>,
    hold: Arc<Hold>,
}

impl Store {
    /// A UUID made with the database.
    pub fn timeline(&self) -> Uuid {
        self.timeline
    }

    /// What to wait for.
    pub fn signals(&self) -> &Signals {
        &self.signals
    }

    /// Lets running statements finish, and closes the connections.
    pub async fn close(&self) {
        if let Err(error) = self.leave().await {
            // The others find out by themselves.
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot tell others that we stop");
        }
        self.readers.close().await;
        self.writer.close().await;
        if let Hold::Server(server) = &*self.hold {
            server.close().await;
        }
    }

    /// Begins a change. Without a commit nothing of it happens.
    async fn write(&self) -> Result<Tx, StoreError> {
        let shared = match self.line.turn().await? {
            Turn::Next(shared) => shared.next().await?,
            Turn::First(permit) => {
                let mut inner =
                    self.writer.begin_to_write().await.map_err(StoreError::sql("begin a change"))?;
                let revision = match &*self.hold {
                    Hold::Server(server) => server.enter(&mut inner, self.replica).await?,
                    Hold::File { .. } => {
                        sql::query_scalar("UPDATE timeline SET revision = revision + 1 RETURNING revision")
                            .fetch_one(&mut inner)
                            .await
                            .map_err(StoreError::sql("raise the revision"))?
                    }
                };
                let signals = Arc::clone(&self.signals);
                Shared::begin(permit, inner, revision, signals, Arc::clone(&self.outbox))
            }
        };
        Ok(Tx::new(shared, self.timeline, Arc::clone(&self.outbox)))
    }

    /// Several reads of one and the same state.
    async fn read(&self) -> Result<Transaction, StoreError> {
        self.readers.begin_to_read().await.map_err(StoreError::sql("begin to read"))
    }
}
