//! The audit record as its readers see it: pages from a position on, and waiting for more.
//!
//! Owns: where a reader starts, and that it holds one page in memory however slow it is. Must not know: who may read.

use proto::types::AuditEvent;
use tokio::sync::watch;

use crate::rules::Refusal;
use crate::store::{Store, StoreError};

/// How many events are read at once: about 100 KiB.
const PAGE_EVENTS: u32 = 256;

/// Where a reader wants to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Behind this position.
    After(u64),
    /// With the newest so many.
    Last(u32),
}

/// One reader of the record.
#[derive(Debug)]
pub struct Reader {
    store: Store,
    position: u64,
    /// The last position of interest; None: there is no end.
    end: Option<u64>,
    wake: watch::Receiver<()>,
}

impl Reader {
    /// Begins to read. Without `follow` it ends with what is the newest event now.
    pub async fn open(store: Store, start: Start, follow: bool) -> Result<Self, StoreError> {
        let wake = store.signals().events();
        let newest = store.newest_position().await?;
        let position = match start {
            Start::After(asked) if asked > newest => {
                return Err(Refusal::BeyondNewest { asked, newest }.into());
            }
            Start::After(position) => position,
            Start::Last(count) => newest.saturating_sub(count.into()),
        };
        Ok(Self { store, position, end: (!follow).then_some(newest), wake })
    }

    /// The next events, in order; waits until there are some. Empty: the end.
    pub async fn next(&mut self) -> Result<Vec<AuditEvent>, StoreError> {
        loop {
            if self.end.is_some_and(|end| self.position >= end) {
                return Ok(Vec::new());
            }
            self.wake.mark_unchanged();
            let mut page = self.store.events(self.position, PAGE_EVENTS).await?;
            if let Some(end) = self.end {
                page.retain(|event| event.position <= end);
            }
            if let Some(last) = page.last() {
                self.position = last.position;
                return Ok(page);
            }
            // The sender lives in the store that this reader holds.
            let _ = self.wake.changed().await;
        }
    }
}
