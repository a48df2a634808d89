//! The durable record, in SQLite or PostgreSQL.
//!
//! Owns: all SQL; that a change and its audit event are one transaction; waking those who wait for changes, after the
//! commit. Must not know: who may do what, the wire between processes.
//!
//! Invariants: there is one writer at a time, and one process on a database. What a caller was told is on disk
//! (synchronous=FULL, synchronous_commit=on).

mod access;
mod acknowledgements;
mod agents;
mod audit;
mod bindings;
mod browsers;
mod decode;
mod directory;
mod disabling;
mod enrolment;
mod error;
mod grants;
mod hosts;
mod policies;
mod postgres;
mod requests;
mod runs;
mod setup;
mod sign_ins;
mod signals;
mod sql;
mod sqlite;
mod steps;
mod tokens;
mod tx;

pub use access::Known;
pub use audit::Stored;
pub use browsers::BrowserSession;
pub use disabling::EndedWith;
pub use enrolment::{ClusterJoin, NewCertificate, NewJoinToken};
pub use error::StoreError;
pub use hosts::HostRecord;
pub use requests::{RequestFilter, View, Whose};
pub use sign_ins::{Entry, HeldBy, WorkloadEntry};
pub use signals::Signals;

use std::sync::Arc;

use uuid::Uuid;

use setup::Hold;
use sql::{Pool, Transaction};
use tx::Tx;

/// The record. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    writer: Pool,
    readers: Pool,
    timeline: Uuid,
    signals: Arc<Signals>,
    waiting: Arc<acknowledgements::Waiting>,
    /// As it was last read.
    directory: Arc<tokio::sync::Mutex<Option<hosts::Directory>>>,
    ready: Arc<policies::Ready>,
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
        self.readers.close().await;
        self.writer.close().await;
        if let Hold::Claim(claim) = &*self.hold {
            claim.give_back().await;
        }
    }

    /// Begins a change. Without a commit nothing of it happens.
    async fn write(&self) -> Result<Tx, StoreError> {
        let mut inner = self.writer.begin_to_write().await.map_err(StoreError::sql("begin a change"))?;
        match &*self.hold {
            Hold::Claim(claim) => claim.enter(&mut inner).await?,
            Hold::File { .. } => {
                sql::query("UPDATE timeline SET revision = revision + 1")
                    .execute(&mut inner)
                    .await
                    .map_err(StoreError::sql("raise the revision"))?;
            }
        }
        Ok(Tx::new(inner, self.timeline, Arc::clone(&self.signals)))
    }

    /// Several reads of one and the same state.
    async fn read(&self) -> Result<Transaction, StoreError> {
        self.readers.begin_to_read().await.map_err(StoreError::sql("begin to read"))
    }
}
