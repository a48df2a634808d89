//! Asking programs for decisions: what a step of a policy names as `hook:NAME`.
//!
//! Owns: when they are asked, what they are told, what counts as an answer. Must not know: SQL, what a yes leads to.
//!
//! Invariants: only a signed question is asked, over https or on this machine, once, for some seconds. Only `approve` is a yes: another
//! word, an error, no answer in time is a no, and is on record as that. A control plane that dies while it asks asks again, under the same id.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use proto::json::utc;
use proto::types::{HookName, HostName, Request};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::clock;
use crate::config::{DecisionHook, SigningSecrets};
use crate::notify::{DeliveryError, PostError, Poster, PrepareError, signature, told};
use crate::store::{Question, Store, StoreError};

/// How many questions are asked at once.
const AT_ONCE: u32 = 16;

/// Questions are looked for this often at least: other control planes write some, too.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// How long it waits after the database failed.
const RETRY: Duration = Duration::from_secs(1);

/// The largest answer. An honest one has a word and a remark.
const ANSWER_MAX_BYTES: usize = 64 * 1024;

/// The longest remark that is kept, in characters.
const COMMENT_MAX_CHARS: usize = 1000;

/// Everybody who is asked.
#[derive(Debug)]
pub(crate) struct Hooks {
    known: BTreeMap<HookName, Hook>,
}

#[derive(Debug)]
struct Hook {
    poster: Poster,
    secrets: SigningSecrets,
    time_limit: Duration,
}

/// What is asked.
#[derive(Serialize)]
struct Asked<'a> {
    r#type: &'static str,
    timestamp: String,
    data: Data<'a>,
}

/// As docs/policy.md has it.
#[derive(Serialize)]
struct Data<'a> {
    hook: &'a str,
    request: String,
    subject: &'a str,
    requester: &'a str,
    resource: &'a str,
    hosts: Vec<&'a str>,
    duration_seconds: u64,
    reason: String,
    created: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<u64>,
    exactly: bool,
    /// The grant that is to be made longer, by `duration_seconds`.
    #[serde(skip_serializing_if = "Option::is_none")]
    extends: Option<String>,
    /// People who have said yes already.
    approvals: Vec<&'a str>,
}

/// What it says. Other fields are nobody's business.
#[derive(Deserialize)]
struct Answer {
    decision: String,
    #[serde(default)]
    comment: String,
}

impl Hooks {
    /// Asks nobody yet.
    pub(crate) fn new(hooks: Vec<DecisionHook>) -> Result<Self, PrepareError> {
        let hook = |hook: DecisionHook| {
            let DecisionHook { name, endpoint, secrets, time_limit } = hook;
            Ok((name, Hook { poster: Poster::new(endpoint)?, secrets, time_limit }))
        };
        Ok(Self { known: hooks.into_iter().map(hook).collect::<Result<_, _>>()? })
    }

    /// Their names.
    pub(crate) fn names(&self) -> BTreeSet<HookName> {
        self.known.keys().cloned().collect()
    }

    /// Runs until it is dropped.
    pub(crate) async fn run(self, store: Store) {
        let hooks = Arc::new(self);
        let hand = Uuid::now_v7();
        let mut asked = store.questions();
        loop {
            asked.mark_unchanged();
            let pause = match hooks.look(&store, hand).await {
                Ok(pause) => pause,
                Err(error) => {
                    tracing::error!(error = &error as &dyn Error, "cannot look for questions");
                    RETRY
                }
            };
            tokio::select! {
                () = sleep(pause) => {}
                Ok(()) = asked.changed() => {}
            }
        }
    }

    /// Asks some of what is due; returns how long nothing else will be, as far as is known.
    async fn look(self: &Arc<Self>, store: &Store, hand: Uuid) -> Result<Duration, StoreError> {
        let now = clock::now();
        let Some(next) = store.next_question().await? else { return Ok(LOOK_AGAIN) };
        if next > now {
            return Ok(next.since(now).min(LOOK_AGAIN));
        }
        // Twice what an answer may take: whoever is alive has written it down by then.
        let longest = self.known.values().map(|hook| hook.time_limit).max().unwrap_or(RETRY);
        let questions = store.take_questions(hand, AT_ONCE, now.plus(longest * 2), now).await?;
        let mut asking = JoinSet::new();
        for question in questions {
            let (hooks, store) = (Arc::clone(self), store.clone());
            asking.spawn(async move {
                let (yes, comment) = hooks.ask(&question).await;
                store.answer_question(&question, hand, yes, &comment, clock::now()).await
            });
        }
        // One that cannot be written down is asked again.
        asking.join_all().await.into_iter().collect::<Result<(), _>>()?;
        Ok(Duration::ZERO)
    }

    /// Yes or no, and what there is to say of it.
    async fn ask(&self, question: &Question) -> (bool, String) {
        let Some(hook) = self.known.get(&question.hook) else {
            return (false, "no answer: no hook of this name is configured".to_owned());
        };
        let answered = timeout(hook.time_limit, hook.ask(question)).await;
        match answered.unwrap_or(Err(DeliveryError::Late(hook.time_limit))) {
            Ok(body) => decision(&body),
            Err(error) => {
                let why = told(&error);
                tracing::warn!(hook = %question.hook, request = %question.request.id, why, "a hook gave no answer");
                (false, format!("no answer: {why}"))
            }
        }
    }
}

impl Hook {
    async fn ask(&self, question: &Question) -> Result<Vec<u8>, DeliveryError> {
        let body = asked(question);
        let headers = signature::headers(&self.secrets, &id(question), clock::wall(), &body);
        let mut response = self.poster.post(body, &headers).await?;
        let mut answer = Vec::new();
        while let Some(chunk) =
            response.chunk().await.map_err(|error| PostError::Post(error.without_url()))?
        {
            if answer.len() + chunk.len() > ANSWER_MAX_BYTES {
                return Err(PostError::TooLarge(ANSWER_MAX_BYTES).into());
            }
            answer.extend_from_slice(&chunk);
        }
        Ok(answer)
    }
}

/// The same however often it is asked. It has no full stop, which the signature separates by.
fn id(question: &Question) -> String {
    format!("ask_{}_{}", question.request.id, question.hook.as_str().replace('.', "_"))
}

fn asked(question: &Question) -> Vec<u8> {
    let Question { hook, request } = question;
    let Request { id, subject, requester, resource, hosts, duration, reason, created, judged, .. } = request;
    let asked = Asked {
        r#type: "decision.asked",
        timestamp: utc(*created),
        data: Data {
            hook: hook.as_str(),
            request: id.to_string(),
            subject: subject.as_str(),
            requester: requester.as_str(),
            resource: resource.as_str(),
            hosts: hosts.iter().map(HostName::as_str).collect(),
            duration_seconds: duration.as_secs(),
            reason: reason.to_string(),
            created: utc(*created),
            role: judged.as_ref().map(|(_, role)| role.as_str()),
            policy: judged.as_ref().map(|(version, _)| *version),
            exactly: request.action.is_some(),
            extends: request.extends.map(|grant| grant.to_string()),
            approvals: request.votes.iter().filter(|vote| vote.yes).map(|vote| vote.by.as_str()).collect(),
        },
    };
    serde_json::to_vec(&asked).expect("texts and numbers are JSON")
}

/// Yes, if it says exactly that.
fn decision(body: &[u8]) -> (bool, String) {
    // A list of the same values would be taken for the object.
    let is_object = body.trim_ascii_start().starts_with(b"{");
    let Some(Answer { decision, comment }) = is_object.then(|| serde_json::from_slice(body).ok()).flatten()
    else {
        return (false, "no answer: what it said is not understood".to_owned());
    };
    let shown = |text: &str, most| -> String {
        text.chars().map(|char| if char.is_control() { ' ' } else { char }).take(most).collect()
    };
    match decision.as_str() {
        "approve" => (true, shown(&comment, COMMENT_MAX_CHARS)),
        "deny" => (false, shown(&comment, COMMENT_MAX_CHARS)),
        other => (false, format!("no answer: `{}` is neither `approve` nor `deny`", shown(other, 40))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(body: &str, yes: bool, comment: &str) {
        assert_eq!(decision(body.as_bytes()), (yes, comment.to_owned()), "{body}");
    }

    #[test]
    fn only_one_word_is_a_yes() {
        check(r#"{"decision":"approve"}"#, true, "");
        check(r#"{"decision":"approve","comment":"low\nrisk","score":7}"#, true, "low risk");
        check(r#"{"decision":"deny","comment":"frozen"}"#, false, "frozen");
        for body in [
            "",
            "approve",
            "{}",
            r#"{"decision":true}"#,
            r#"{"decision":["approve"]}"#,
            r#"["approve"]"#,
            r#"{"decision":"deny","decision":"approve"}"#,
        ] {
            check(body, false, "no answer: what it said is not understood");
        }
        for word in ["Approve", "approved", "yes", " approve", ""] {
            let comment = format!("no answer: `{word}` is neither `approve` nor `deny`");
            check(&format!(r#"{{"decision":"{word}","comment":"x"}}"#), false, &comment);
        }
        let long = "x".repeat(5000);
        assert_eq!(decision(format!(r#"{{"decision":"deny","comment":"{long}"}}"#).as_bytes()).1.len(), 1000);
    }
}
