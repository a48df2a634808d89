//! Which agents are connected. One session a host: a newer one ends the older, here at once, elsewhere when that looks.
//!
//! Owns: the seats, and when each host was last heard. Must not know: what is said in a session.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proto::types::{HostName, Timestamp};
use tokio::sync::oneshot;

use crate::rules::roster::Presence;

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
    presence: Presence,
    /// Whether the other control planes have not been told of that.
    is_news: bool,
    /// Dropped when somebody else takes the seat.
    _stop: oneshot::Sender<()>,
    gone: oneshot::Receiver<()>,
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
    pub(crate) fn take(self: &Arc<Self>, host: &HostName, now: Timestamp) -> (Seat, Notices) {
        let (stop, stopped) = oneshot::channel();
        let (gone_sender, gone) = oneshot::channel();
        let mut seats = self.lock();
        seats.taken += 1;
        let number = seats.taken;
        let presence = Presence { seen: now, confirmed: None, disagreement: None };
        let taken = Taken { number, presence, is_news: true, _stop: stop, gone };
        let before_gone = seats.by_host.insert(host.clone(), taken).map(|taken| Notice(taken.gone));
        let seat = Seat { sessions: Arc::clone(self), host: host.clone(), number, _gone: gone_sender };
        (seat, Notices { stopped: Notice(stopped), before_gone })
    }

    /// How a host is that is connected here; None: it is not.
    pub(crate) fn presence(&self, host: &HostName) -> Option<Presence> {
        self.lock().by_host.get(host).map(|taken| taken.presence.clone())
    }

    /// How those hosts are of which there is news since this was last asked.
    pub(crate) fn news(&self) -> Vec<(HostName, Presence)> {
        let mut seats = self.lock();
        let told = |(host, taken): (&HostName, &mut Taken)| {
            std::mem::take(&mut taken.is_news).then(|| (host.clone(), taken.presence.clone()))
        };
        seats.by_host.iter_mut().filter_map(told).collect()
    }

    /// Everything is news again: the others do not have it.
    pub(crate) fn tell_anew(&self) {
        self.lock().by_host.values_mut().for_each(|taken| taken.is_news = true);
    }

    fn lock(&self) -> MutexGuard<'_, Seats> {
        // Nothing that holds the lock can panic half way through a change.
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// The agent was heard.
    pub(crate) fn heard(&self, now: Timestamp) {
        self.update(|presence| presence.seen = now);
    }

    /// The host's kernel was found to be as it should be.
    pub(crate) fn confirm(&self, now: Timestamp) {
        self.update(|presence| (presence.disagreement, presence.confirmed) = (None, Some(now)));
    }

    /// The host's kernel was found to be something else than it should be, in this.
    pub(crate) fn doubt(&self, disagrees: String) {
        self.update(|presence| presence.disagreement = Some(disagrees));
    }

    fn update(&self, change: impl FnOnce(&mut Presence)) {
        if let Some(taken) = self.sessions.lock().by_host.get_mut(&self.host)
            && taken.number == self.number
        {
            change(&mut taken.presence);
            taken.is_news = true;
        }
    }
}

/// Who is connected, here or at another control plane.
#[derive(Debug)]
pub(crate) struct Presences {
    pub(crate) here: Arc<Sessions>,
    pub(crate) elsewhere: HashMap<HostName, Presence>,
}

impl Presences {
    /// How a connected host is; None: it is not connected.
    pub(crate) fn of(&self, host: &HostName) -> Option<Presence> {
        self.here.presence(host).or_else(|| self.elsewhere.get(host).cloned())
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
        let seen = || sessions.presence(&host).map(|presence| presence.seen);
        assert_eq!(seen(), None);
        let (older, notices) = sessions.take(&host, at(1));
        assert!(notices.before_gone.is_none());
        let (newer, newer_notices) = sessions.take(&host, at(2));
        notices.stopped.given().await;
        older.heard(at(3));
        assert_eq!(seen(), Some(at(2)), "the older one speaks for nobody");
        drop(older);
        newer_notices.before_gone.expect("there was one").given().await;
        newer.heard(at(4));
        assert_eq!(seen(), Some(at(4)));
        drop(newer);
        assert_eq!(seen(), None);
    }

    #[test]
    fn news_are_told_once() {
        let at = |ms| Timestamp::from_unix_ms(ms).expect("in range");
        let host: HostName = "db-7".parse().expect("valid");
        let sessions = Arc::new(Sessions::default());
        let (seat, _notices) = sessions.take(&host, at(1));
        assert_eq!(sessions.news().len(), 1);
        assert_eq!(sessions.news(), []);
        seat.doubt("1 pair".to_owned());
        let presence = Presence { seen: at(1), confirmed: None, disagreement: Some("1 pair".to_owned()) };
        assert_eq!(sessions.news(), [(host, presence)]);
        sessions.tell_anew();
        assert_eq!(sessions.news().len(), 1);
    }
}
