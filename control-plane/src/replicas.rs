//! Being one of several control planes on a database: saying that we are there, hearing what others change, and ending what they have left.
//!
//! Owns: when. Must not know: what a change is, SQL.

use std::sync::Arc;
use std::time::Duration;

use proto::types::Fingerprint;

use crate::clock;
use crate::sessions::Sessions;
use crate::store::{BEAT, Store, StoreError};

/// How long it waits after the database failed.
const RETRY: Duration = Duration::from_secs(1);

/// Wakes those who wait here for what others have changed. Runs until it is dropped.
pub(crate) async fn follow(store: Store) {
    let mut seen = 0;
    loop {
        match store.wake_for_others(seen).await {
            Ok(revision) => seen = revision,
            Err(error) => {
                complain(&error, "cannot look what other control planes have changed");
                tokio::time::sleep(RETRY).await;
            }
        }
        store.others_change().await;
    }
}

/// Says that we are at work and how our hosts are, and ends the sessions of control planes that say nothing any more. Runs until it is
/// dropped.
pub(crate) async fn beat(store: Store, authority: Fingerprint, sessions: Arc<Sessions>) {
    let mut tick = tokio::time::interval(BEAT);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if let Err(error) = beat_once(&store, authority, &sessions).await {
            complain(&error, "cannot say that this control plane is at work");
        }
    }
}

async fn beat_once(store: &Store, authority: Fingerprint, sessions: &Sessions) -> Result<(), StoreError> {
    let others = store.beat(authority).await?;
    if others.are_there {
        let published = store.publish(sessions.news()).await;
        if published.is_err() {
            sessions.tell_anew();
        }
        published?;
    }
    while others.are_gone && store.end_lost_sessions(clock::now()).await? {}
    Ok(())
}

fn complain(error: &StoreError, what: &'static str) {
    tracing::error!(error = error as &dyn std::error::Error, "{what}");
}
