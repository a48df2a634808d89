//! Which agents are connected. One session a host: a newer one ends the older.
//!
//! Owns: the seats, when each host was last heard, and whether two agents take turns as one host. Must not know: what is said in a session.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proto::types::{HostName, Timestamp};
use tokio::sync::oneshot;
use uuid::Uuid;

/// How many earlier runs of an agent are remembered.
const INSTANCES_MAX: usize = 8;

/// The connected agents, by host. Bounded by the known hosts.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    seats: Mutex<Seats>,
}

#[derive(Debug, Default)]
struct Seats {
    taken: u64,
    by_host: HashMap<HostName, Taken>,
}

#[derive(Debug)]
struct Taken {
    number: u64,
    seen: Timestamp,
    /// In what its kernel is not as it should be; None: in nothing that is known.
    disagrees: Option<String>,
    /// Which run of an agent has it.
    instance: Option<Uuid>,
    /// The runs that had it before, newest last; at most [`INSTANCES_MAX`].
    before: Vec<Uuid>,
    /// Dropped when somebody else takes the seat.
    _stop: oneshot::Sender<()>,
    gone: oneshot::Receiver<()>,
}

impl Taken {
    /// The runs of agents that had the seat when this one, which has it now, is followed by `next`.
    fn runs_before(&self, next: Option<Uuid>) -> Vec<Uuid> {
        let mut before = self.before.clone();
        // An agent that comes back because its connection broke takes the seat from itself.
        before.extend(
            self.instance.filter(|instance| Some(*instance) != next && !self.before.contains(instance)),
        );
        before.drain(..before.len().saturating_sub(INSTANCES_MAX));
        before
    }
}

/// The right to be a host's session. Dropped, the seat is free.
#[derive(Debug)]
pub(crate) struct Seat {
    sessions: Arc<Sessions>,
    host: HostName,
    number: u64,
    /// Dropped with the seat: whoever took it over waits for that.
    _gone: oneshot::Sender<()>,
}

/// What comes with a seat.
#[derive(Debug)]
pub(crate) struct Notices {
    /// Resolves when somebody else has taken the seat.
    pub(crate) stopped: Notice,
    /// Resolves when whoever had the seat before is gone; None: nobody had it.
    pub(crate) before_gone: Option<Notice>,
    /// Whoever takes it had it before somebody else took it: two agents have this host's key.
    pub(crate) takes_turns: bool,
}

/// Something that will be the case.
#[derive(Debug)]
pub(crate) struct Notice(oneshot::Receiver<()>);

impl Notice {
    pub(crate) async fn given(self) {
        // The sender is only ever dropped.
        let _ = self.0.await;
    }
}

impl Sessions {
    /// Takes a host's seat, at once. Who had it before is told to go.
    pub(crate) fn take(
        self: &Arc<Self>,
        host: &HostName,
        instance: Option<Uuid>,
        now: Timestamp,
    ) -> (Seat, Notices) {
        let (stop, stopped) = oneshot::channel();
        let (gone_sender, gone) = oneshot::channel();
        let mut seats = self.lock();
        seats.taken += 1;
        let number = seats.taken;
        let earlier = seats.by_host.remove(host);
        let before = earlier.as_ref().map(|taken| taken.runs_before(instance)).unwrap_or_default();
        let takes_turns = instance.is_some_and(|instance| before.contains(&instance));
        seats.by_host.insert(
            host.clone(),
            Taken { number, seen: now, disagrees: None, instance, before, _stop: stop, gone },
        );
        let before_gone = earlier.map(|taken| Notice(taken.gone));
        let seat = Seat { sessions: Arc::clone(self), host: host.clone(), number, _gone: gone_sender };
        (seat, Notices { stopped: Notice(stopped), before_gone, takes_turns })
    }

    /// When a connected host was last heard; None: it is not connected.
    pub(crate) fn seen(&self, host: &HostName) -> Option<Timestamp> {
        self.lock().by_host.get(host).map(|taken| taken.seen)
    }

    /// In what the kernel of a connected host is not as it should be; None: in nothing that is known.
    pub(crate) fn disagreement(&self, host: &HostName) -> Option<String> {
        self.lock().by_host.get(host).and_then(|taken| taken.disagrees.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Seats> {
        // Nothing that holds the lock can panic half way through a change.
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// The agent was heard.
    pub(crate) fn heard(&self, now: Timestamp) {
        if let Some(taken) = self.sessions.lock().by_host.get_mut(&self.host)
            && taken.number == self.number
        {
            taken.seen = now;
        }
    }
}

impl Seat {
    /// Whether the host's kernel is as it should be, or in what it is not.
    pub(crate) fn agrees(&self, disagrees: Option<String>) {
        if let Some(taken) = self.sessions.lock().by_host.get_mut(&self.host)
            && taken.number == self.number
        {
            taken.disagrees = disagrees;
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.sessions.lock();
        if seats.by_host.get(&self.host).is_some_and(|taken| taken.number == self.number) {
            seats.by_host.remove(&self.host);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_newest_has_the_seat() {
        let at = |ms| Timestamp::from_unix_ms(ms).expect("in range");
        let host: HostName = "db-7".parse().expect("valid");
        let sessions = Arc::new(Sessions::default());
        assert_eq!(sessions.seen(&host), None);
        let (older, notices) = sessions.take(&host, None, at(1));
        assert!(notices.before_gone.is_none());
        let (newer, newer_notices) = sessions.take(&host, None, at(2));
        notices.stopped.given().await;
        older.heard(at(3));
        assert_eq!(sessions.seen(&host), Some(at(2)), "the older one speaks for nobody");
        drop(older);
        newer_notices.before_gone.expect("there was one").given().await;
        newer.heard(at(4));
        assert_eq!(sessions.seen(&host), Some(at(4)));
        drop(newer);
        assert_eq!(sessions.seen(&host), None);
    }

    #[tokio::test]
    async fn two_agents_that_take_turns_are_seen() {
        let host: HostName = "db-7".parse().expect("valid");
        let sessions = Arc::new(Sessions::default());
        let (one, other) = (Some(Uuid::from_u128(1)), Some(Uuid::from_u128(2)));
        let mut held = Vec::new();
        let mut take = |instance| {
            let (seat, notices) =
                sessions.take(&host, instance, Timestamp::from_unix_ms(1).expect("in range"));
            held.push(seat);
            notices.takes_turns
        };
        assert!(!take(one));
        assert!(!take(one), "its connection broke");
        assert!(!take(None), "it does not say");
        assert!(!take(other), "the agent was started again");
        assert!(take(one), "both run");
        assert!(take(other), "both run");
    }
}
