//! Telling others what has happened: from the outbox to webhooks, chats and mail.
//!
//! Owns: when the outbox is looked at, what is in hand, tries and what becomes of them. Must not know: SQL, who wants to hear of what.
//!
//! Invariants: nothing is sent while a transaction is open. What is in hand is somebody else's after a while, so that whoever dies
//! with it loses nothing; so a message arrives at least once, and always under the same id. A target that does not answer holds up no
//! other one.

mod chat;
mod http;
mod mail;
mod message;
pub(crate) mod signature;

pub(crate) use http::{PostError, Poster};

pub use http::PrepareError;

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use proto::types::{AuditEvent, ProviderName, Timestamp};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::clock;
use crate::config::{Channel, NotifyTarget, SigningSecrets};
use crate::rules::notify::{Next, after_failure};
use crate::store::{Message, Outcome, Store, StoreError};
use mail::Mailer;

/// How many messages for one target are on their way at once.
const AT_ONCE: u32 = 8;

/// The outbox is looked at this often at least: other control planes write into it, too.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// How long it waits after the database failed.
const RETRY: Duration = Duration::from_secs(1);

/// How often it is put on record that messages were given up because too many waited.
const TELL_DROPPED: Duration = Duration::from_secs(60);

/// The longest text that is kept of what went wrong, in characters.
const WHY_MAX_CHARS: usize = 200;

/// Everybody who is told.
#[derive(Debug)]
pub(crate) struct Notifier {
    targets: Vec<Arc<Target>>,
}

/// Somebody who is told, and the way to them.
#[derive(Debug)]
struct Target {
    name: ProviderName,
    patience: Duration,
    time_limit: Duration,
    way: Way,
    /// `https://HOST[:PORT]` of the console; None: there is none.
    console: Option<String>,
}

#[derive(Debug)]
enum Way {
    Webhook(Poster, SigningSecrets),
    Slack(Poster),
    Teams(Poster),
    Email(Box<Mailer>),
}

/// Why a message did not arrive.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeliveryError {
    #[error("no answer within {} s", .0.as_secs())]
    Late(Duration),
    #[error(transparent)]
    Http(#[from] PostError),
    #[error(transparent)]
    Mail(#[from] mail::MailError),
}

impl Notifier {
    /// Asks nobody yet: a control plane starts whether or not they can be reached.
    pub(crate) fn new(targets: Vec<NotifyTarget>, console: Option<&str>) -> Result<Self, PrepareError> {
        let target = |target: NotifyTarget| {
            let NotifyTarget { subscription, time_limit, channel } = target;
            let way = match channel {
                Channel::Webhook(endpoint, secrets) => Way::Webhook(Poster::new(endpoint)?, secrets),
                Channel::Slack(endpoint) => Way::Slack(Poster::new(endpoint)?),
                Channel::Teams(endpoint) => Way::Teams(Poster::new(endpoint)?),
                Channel::Email(mail) => Way::Email(Box::new(Mailer::new(mail, time_limit)?)),
            };
            let (name, patience) = (subscription.target, subscription.patience);
            Ok(Arc::new(Target { name, patience, time_limit, way, console: console.map(str::to_owned) }))
        };
        Ok(Self { targets: targets.into_iter().map(target).collect::<Result<_, _>>()? })
    }

    /// Runs until it is dropped.
    pub(crate) async fn run(self, store: Store) {
        while let Err(error) = give_up_strangers(&store).await {
            tracing::error!(
                error = &error as &dyn Error,
                "cannot look for targets that are not configured any more"
            );
            sleep(RETRY).await;
        }
        let mut serving = JoinSet::new();
        for target in self.targets {
            serving.spawn(target.serve(store.clone()));
        }
        // None of them ends by itself.
        while serving.join_next().await.is_some() {}
    }
}

async fn give_up_strangers(store: &Store) -> Result<(), StoreError> {
    while store.give_up_strangers(clock::now()).await? {}
    Ok(())
}

impl Target {
    async fn serve(self: Arc<Self>, store: Store) {
        let hand = Uuid::now_v7();
        let mut filled = store.outbox_filled();
        let mut told_dropped = None;
        loop {
            filled.mark_unchanged();
            let pause = match self.look(&store, hand, &mut told_dropped).await {
                Ok(pause) => pause,
                Err(error) => {
                    tracing::error!(error = &error as &dyn Error, target = %self.name, "cannot look into the outbox");
                    RETRY
                }
            };
            tokio::select! {
                () = sleep(pause) => {}
                Ok(()) = filled.changed() => {}
            }
        }
    }

    /// Sends some of what is due; returns how long nothing else will be, as far as is known.
    async fn look(
        self: &Arc<Self>,
        store: &Store,
        hand: Uuid,
        told_dropped: &mut Option<Instant>,
    ) -> Result<Duration, StoreError> {
        if told_dropped.is_none_or(|told| told.elapsed() >= TELL_DROPPED)
            && store.record_dropped(&self.name, clock::now()).await?
        {
            *told_dropped = Some(Instant::now());
        }
        let now = clock::now();
        let Some(next) = store.next_message(&self.name).await? else { return Ok(LOOK_AGAIN) };
        if next > now {
            return Ok(next.since(now).min(LOOK_AGAIN));
        }
        // Twice what a try may take: whoever is alive has written down by then what became of it.
        let until = now.plus(self.time_limit * 2);
        let messages = store.take_messages(&self.name, hand, AT_ONCE, until, now).await?;
        let mut trying = JoinSet::new();
        for message in messages {
            let (target, timeline) = (Arc::clone(self), store.timeline());
            trying.spawn(async move {
                let outcome = target.attempt(timeline, &message).await;
                (message, outcome)
            });
        }
        let outcomes = trying.join_all().await;
        store.settle_messages(&self.name, hand, &outcomes, clock::now()).await?;
        Ok(Duration::ZERO)
    }

    /// Tries once.
    async fn attempt(&self, timeline: Uuid, message: &Message) -> Outcome {
        let id = message::id(timeline, message.event.position);
        let tried = timeout(self.time_limit, self.send(&id, &message.event, clock::wall())).await;
        let Err(error) = tried.unwrap_or(Err(DeliveryError::Late(self.time_limit))) else {
            return Outcome::Arrived;
        };
        let why = told(&error);
        tracing::warn!(target = %self.name, position = message.event.position, why, "a notification did not arrive");
        let now = clock::now();
        match after_failure(message.tries + 1, message.made, self.patience, now, rand::random()) {
            Next::TryAt(next) => Outcome::TryAt(next),
            Next::GiveUp => Outcome::GivenUp(why),
        }
    }

    async fn send(&self, id: &str, event: &AuditEvent, now: Timestamp) -> Result<(), DeliveryError> {
        let summary = || message::summary(event, self.console.as_deref());
        match &self.way {
            Way::Webhook(poster, secrets) => {
                let body = message::whole(event);
                let headers = signature::headers(secrets, id, now, &body);
                poster.post(body, &headers).await?;
            }
            Way::Slack(poster) => drop(poster.post(chat::slack(&summary()), &[]).await?),
            Way::Teams(poster) => drop(poster.post(chat::teams(&summary()), &[]).await?),
            Way::Email(mailer) => mailer.send(id, &summary(), now).await?,
        }
        Ok(())
    }
}

/// An error and what it comes from, in one line that fits into the record. None of them names an address.
pub(crate) fn told(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).take(WHY_MAX_CHARS).collect()
}
