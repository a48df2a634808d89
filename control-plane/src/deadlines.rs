//! What follows by itself when time passes: the one task that watches it.
//!
//! Owns: when to look. Must not know: what ending or deciding means. Kernels end grants by themselves at their deadlines; this is what
//! makes the record and the lists say so, what warns of it, what decides requests for which nobody has, what begins grants whose time
//! has come, what notes that a freeze or an incident is over, and what asks the policy again about grants that live. It also looks after the wall
//! clock, and writes down where ours is. But for what was seen of that nothing is kept in memory: after a restart it looks, and goes on.

use std::time::Duration;

use nix::unistd::gethostname;

use crate::clock::{self, Reading};
use crate::rules::steady::Watch;
use crate::store::{Store, StoreError};

/// It looks at least this often, so that a wall clock that was set is noticed while it is of interest.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// How often the policy is asked about live grants: so long can one outlive what permits it, and ends within a minute.
const ASK_AGAIN: Duration = Duration::from_secs(20);

/// How long it waits after the database failed.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until it is dropped. `watch` is what was seen of the wall clock on this boot of the machine.
pub(crate) async fn run(store: Store, boot_id: String, mut watch: Watch) {
    let mut changed = store.signals().access();
    loop {
        changed.mark_unchanged();
        if let Err(error) = look_at_clocks(&store, &boot_id, &mut watch).await {
            // It is seen again the next time.
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "cannot write down what was seen of the clocks"
            );
        }
        let pause = match look(&store).await {
            Ok(pause) => pause,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot do what is due");
                RETRY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            Ok(()) = changed.changed() => {}
        }
    }
}

/// Puts it on record when the wall clock was set, says so when it is far from ours, and writes down where ours is.
async fn look_at_clocks(store: &Store, boot_id: &str, watch: &mut Watch) -> Result<(), StoreError> {
    let reading = clock::read();
    let Reading { now, wall, .. } = reading;
    let look = watch.look(now, wall);
    let anchor = reading.anchor(boot_id);
    if let Some(step) = look.step {
        let machine = gethostname().unwrap_or_default();
        tracing::warn!(
            by = step.length(),
            direction = step.word(),
            "the wall clock was set; grants keep their time"
        );
        store.clock_stepped(step, &machine.to_string_lossy(), &anchor).await?;
    } else if look.keeps {
        store.keep_anchor(&anchor).await?;
    }
    if let Some(apart) = &look.apart {
        tracing::warn!(
            steady = apart,
            "the wall clock is not where ours is, which comes to it by 1 % of the time: see docs/database.md#clocks"
        );
    }
    watch.done(&look, now, wall);
    Ok(())
}

/// Asks the policy in force about live grants, again and again. Runs until it is dropped.
pub(crate) async fn ask_policy(store: Store) {
    let mut tick = tokio::time::interval(ASK_AGAIN);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        match store.end_what_is_not_permitted(clock::now()).await {
            Ok(0) => {}
            Ok(ended) => tracing::info!(ended, "grants that the policy does not permit any more have ended"),
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "cannot ask the policy about live grants"
                );
            }
        }
    }
}

/// Does what is due; returns how long nothing else will be.
async fn look(store: &Store) -> Result<Duration, StoreError> {
    loop {
        let next = [
            store.next_deadline().await?,
            store.next_due_request().await?,
            store.next_thaw().await?,
            store.next_closing().await?,
            store.next_warning(clock::now()).await?,
            store.next_beginning().await?,
        ];
        let Some(next) = next.into_iter().flatten().min() else { return Ok(LOOK_AGAIN) };
        let now = clock::now();
        if next > now {
            return Ok(next.since(now).min(LOOK_AGAIN));
        }
        while store.begin_due(now).await? {}
        while store.expire(now).await? {}
        while store.settle_due_requests(now).await? {}
        store.note_thawed(now).await?;
        store.note_closed(now).await?;
        while store.warn(now).await? {}
    }
}
