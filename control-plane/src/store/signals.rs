//! What changed: wake-ups for those who wait, never the news itself. Whoever wakes reads again.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use proto::types::HostName;
use tokio::sync::watch;

/// Wake-ups, given after the commit.
#[derive(Debug)]
pub struct Signals {
    access: watch::Sender<()>,
    events: watch::Sender<()>,
    /// Bounded by the hosts that have been asked for, which callers have looked up before.
    sets: Mutex<HashMap<HostName, Set>>,
}

/// Who waits for news of one host.
#[derive(Debug)]
struct Set {
    sender: watch::Sender<()>,
    /// The last change of which they were told.
    revision: i64,
}

/// What one transaction changed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Its number; 0: it may not have happened.
    pub(super) revision: i64,
    pub(super) access: bool,
    pub(super) events: bool,
    pub(super) sets: BTreeSet<HostName>,
}

impl Changes {
    /// Those of another change in the same transaction.
    pub(super) fn add(&mut self, other: Self) {
        self.access |= other.access;
        self.events |= other.events;
        self.sets.extend(other.sets);
    }
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
        let mut sets = self.sets();
        let new = || Set { sender: watch::Sender::new(()), revision: 0 };
        sets.entry(host.clone()).or_insert_with(new).sender.subscribe()
    }

    pub(super) fn give(&self, changes: Changes) {
        if changes.access {
            self.access.send_replace(());
        }
        if changes.events {
            self.events.send_replace(());
        }
        let mut sets = self.sets();
        for host in &changes.sets {
            if let Some(set) = sets.get_mut(host) {
                set.revision = set.revision.max(changes.revision);
                set.sender.send_replace(());
            }
        }
    }

    /// Others have changed something; `hosts`: whose sets, in which change.
    pub(super) fn catch_up(&self, hosts: &[(HostName, i64)]) {
        self.access.send_replace(());
        self.events.send_replace(());
        let mut sets = self.sets();
        for (host, revision) in hosts {
            // Our own changes are among them.
            if let Some(set) = sets.get_mut(host).filter(|set| set.revision < *revision) {
                set.revision = *revision;
                set.sender.send_replace(());
            }
        }
    }

    fn sets(&self) -> MutexGuard<'_, HashMap<HostName, Set>> {
        // Nothing that holds the lock can panic half way through a change.
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
