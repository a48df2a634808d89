//! What changed: wake-ups for those who wait, never the news itself. Whoever wakes reads again.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use proto::types::HostName;
use tokio::sync::watch;

/// Wake-ups, given after the commit.
#[derive(Debug)]
pub struct Signals {
    access: watch::Sender<()>,
    events: watch::Sender<()>,
    /// Bounded by the hosts that have been asked for, which callers have looked up before.
    sets: Mutex<HashMap<HostName, watch::Sender<()>>>,
}

/// What one transaction changed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) access: bool,
    pub(super) events: bool,
    pub(super) sets: BTreeSet<HostName>,
}

impl Signals {
    pub(super) fn new() -> Self {
        Self { access: watch::Sender::new(()), events: watch::Sender::new(()), sets: Mutex::default() }
    }

    /// Wakes after each change of a request or grant.
    pub fn access(&self) -> watch::Receiver<()> {
        self.access.subscribe()
    }

    /// Wakes after each new audit event.
    pub fn events(&self) -> watch::Receiver<()> {
        self.events.subscribe()
    }

    /// Wakes after each change of this host's grant set.
    pub fn set_of(&self, host: &HostName) -> watch::Receiver<()> {
        let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        sets.entry(host.clone()).or_insert_with(|| watch::Sender::new(())).subscribe()
    }

    pub(super) fn give(&self, changes: Changes) {
        if changes.access {
            self.access.send_replace(());
        }
        if changes.events {
            self.events.send_replace(());
        }
        let sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        for host in &changes.sets {
            if let Some(sender) = sets.get(host) {
                sender.send_replace(());
            }
        }
    }
}
