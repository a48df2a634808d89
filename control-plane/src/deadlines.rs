//! Grants end at their deadline: the one task that watches the time.
//!
//! Owns: when to look. Must not know: what ending means. Kernels end grants by themselves; this is what makes the record
//! and the lists say so. Nothing is kept in memory: after a restart it looks, and goes on.

use std::time::Duration;

use crate::clock;
use crate::store::{Store, StoreError};

/// It looks at least this often, so that a wall clock that was set is noticed.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// How long it waits after the database failed.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until it is dropped.
pub(crate) async fn run(store: Store) {
    let mut changed = store.signals().access();
    loop {
        changed.mark_unchanged();
        let pause = match look(&store).await {
            Ok(pause) => pause,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot end grants");
                RETRY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            Ok(()) = changed.changed() => {}
        }
    }
}

/// Ends what is over; returns how long nothing else will be.
async fn look(store: &Store) -> Result<Duration, StoreError> {
    loop {
        let Some(deadline) = store.next_deadline().await? else { return Ok(LOOK_AGAIN) };
        let now = clock::now();
        if deadline > now {
            return Ok(deadline.since(now).min(LOOK_AGAIN));
        }
        while store.expire(now).await? {}
    }
}
