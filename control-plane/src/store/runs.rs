//! Runs, as far as the control plane has to do with them.

use proto::types::{EventKind, HostName, Timestamp};

use super::sql;
use super::tx::caused_by;
use super::{Store, StoreError};
use crate::rules::Refusal;
use crate::rules::actor::Acting;

impl Store {
    /// A subject is given our word for the agent of this host.
    pub async fn run_pass_issued(
        &self,
        host: &HostName,
        subject: &Acting,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let known: Option<i64> = sql::query_scalar("SELECT number FROM hosts WHERE name = ?")
            .bind(host.as_str())
            .fetch_optional(tx.sql())
            .await
            .map_err(StoreError::sql("look up a host"))?;
        known.ok_or_else(|| Refusal::UnknownHost(host.clone()))?;
        tx.record(EventKind::RunPassIssued, now, |event| {
            event.host = host.to_string();
            event.subject = subject.id.to_string();
            caused_by(event, &subject.clone().into());
        });
        tx.commit().await
    }
}
