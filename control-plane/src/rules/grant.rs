//! The life of a grant: (scheduled →) activating → active → ending → ended.
//!
//! Owns: which step leads where. Must not know: sessions, generations, storage.
//!
//! Invariants: a life never goes back, and its deadline moves later only while it is live; it is active only after every host held
//! the grant; from the deadline on it is ended, whatever the hosts say; before the deadline it is ended only when no host may hold it any more; the reason for
//! its end never changes. A host that ends it by itself ends it for itself only: it goes on elsewhere, and is over, for the
//! reason of the last of them, when it is over on every host.

use std::collections::BTreeMap;

use proto::types::{EndReason, EventKind, GrantState, HostEnd, HostName, Timestamp};

/// What is known of one host's kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holding {
    /// It may hold the grant: the grant is on its way, or nothing has been heard since.
    Unknown,
    /// It holds the grant.
    Held,
    /// It could not take the grant, for this reason. It may hold it yet: a later set with the grant may be on its way, and
    /// there may be room by then.
    Refused(String),
    /// It does not hold the grant any more, and never will; with the reason for which it could not take it, if it was so.
    Free(String),
}

impl Holding {
    /// Whether somebody may be let through there.
    pub fn may_hold(&self) -> bool {
        !matches!(self, Self::Free(_))
    }

    /// What it is once the kernel holds a set from which the grant had been taken out.
    fn freed(&self) -> Self {
        match self {
            Self::Unknown | Self::Held => Self::Free(String::new()),
            Self::Refused(error) | Self::Free(error) => Self::Free(error.clone()),
        }
    }
}

/// What an agent's message says about one grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The kernel holds it.
    Holds,
    /// The kernel could not take it.
    Refuses(String),
    /// The kernel holds a set from which it had been taken out.
    Lacks,
    /// The kernel holds no set at all, as after a boot.
    Blank,
    /// The host has ended it by itself, and lets nobody through by it again, whatever sets are on their way.
    Ends(HostEnd),
}

/// What can happen to a grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The agent of one of its hosts said something.
    Heard(HostName, Answer),
    /// Somebody ends it.
    End(EndReason),
    /// Its time begins, and lasts until then.
    Begin(Timestamp),
    /// It lives until then, if that is later than its deadline.
    Extend(Timestamp),
    /// Nothing but that time goes on.
    Wait,
}

/// A grant's hosts and its deadline: what each state carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    /// From this moment on no kernel lets anybody through by it.
    pub expires: Timestamp,
    /// Never empty.
    pub hosts: BTreeMap<HostName, Holding>,
}

impl Body {
    fn may_be_held(&self) -> bool {
        self.hosts.values().any(Holding::may_hold)
    }

    /// Whether every host has held it and some host does. Before anybody ends a grant only a host itself can let go of it.
    fn is_held_everywhere(&self) -> bool {
        let mut holdings = self.hosts.values();
        holdings.all(|holding| matches!(holding, Holding::Held | Holding::Free(_)))
            && self.hosts.values().any(|holding| *holding == Holding::Held)
    }

    fn extended(self, until: Timestamp) -> Self {
        Self { expires: self.expires.max(until), ..self }
    }

    fn note(&mut self, host: &HostName, answer: Answer) {
        let Some(holding) = self.hosts.get_mut(host) else { return };
        *holding = match (&*holding, answer) {
            // What has been settled for a host stays.
            (Holding::Free(_), _) => return,
            (_, Answer::Holds) => Holding::Held,
            (_, Answer::Refuses(error)) => Holding::Refused(error),
            (before, Answer::Lacks | Answer::Ends(_)) => before.freed(),
            (_, Answer::Blank) => Holding::Unknown,
        };
    }
}

/// Its time has not begun: no host has heard of it, and `expires` is when it is over without having begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scheduled(Body);

/// On its way to its hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activating(Body);

/// Every host's kernel has held it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Active(Body);

/// Ended by somebody; a kernel may still hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending(Body, EndReason);

/// No kernel lets anybody through by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended(Body, EndReason);

/// Where a grant stands, with what is known of its hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the types say it")]
pub enum Life {
    Scheduled(Scheduled),
    Activating(Activating),
    Active(Active),
    Ending(Ending),
    Ended(Ended),
}

impl Scheduled {
    /// A new grant that lapses then, unless it begins before.
    pub fn new(lapses: Timestamp, hosts: impl IntoIterator<Item = HostName>) -> Self {
        let hosts = hosts.into_iter().map(|host| (host, Holding::Free(String::new()))).collect();
        Self(Body { expires: lapses, hosts })
    }

    fn begin(self, until: Timestamp) -> Activating {
        Activating::new(until, self.0.hosts.into_keys())
    }
}

impl Activating {
    /// A new grant: nothing has been heard from any of its hosts.
    pub fn new(expires: Timestamp, hosts: impl IntoIterator<Item = HostName>) -> Self {
        let hosts = hosts.into_iter().map(|host| (host, Holding::Unknown)).collect();
        Self(Body { expires, hosts })
    }

    fn hear(self, host: &HostName, answer: Answer) -> Life {
        // Nobody has taken it out of any set, so a set without it is an older one and says nothing.
        if answer == Answer::Lacks {
            return Life::Activating(self);
        }
        let Self(mut body) = self;
        let end = end_of(&answer);
        body.note(host, answer);
        match () {
            () if has_refused(&body, host) => Life::Ending(Ending(body, EndReason::ActivationFailed)),
            () if !body.may_be_held() => Life::Ending(Ending(body, end)),
            () if body.is_held_everywhere() => Life::Active(Active(body)),
            () => Life::Activating(Self(body)),
        }
    }

    fn end(self, reason: EndReason) -> Ending {
        Ending(self.0, reason)
    }
}

impl Active {
    fn hear(self, host: &HostName, answer: Answer) -> Life {
        if answer == Answer::Lacks {
            return Life::Active(self);
        }
        let Self(mut body) = self;
        let end = end_of(&answer);
        body.note(host, answer);
        match () {
            () if has_refused(&body, host) => Life::Ending(Ending(body, EndReason::ActivationFailed)),
            () if !body.may_be_held() => Life::Ending(Ending(body, end)),
            () => Life::Active(Self(body)),
        }
    }

    fn end(self, reason: EndReason) -> Ending {
        Ending(self.0, reason)
    }
}

impl Ending {
    fn hear(self, host: &HostName, answer: Answer) -> Self {
        let Self(mut body, reason) = self;
        // A kernel without any set does not hold this grant, and none that it gets will have it.
        let answer = if answer == Answer::Blank { Answer::Lacks } else { answer };
        body.note(host, answer);
        Self(body, reason)
    }

    /// Ended as soon as no kernel may hold it.
    fn settle(self) -> Life {
        match self.0.may_be_held() {
            true => Life::Ending(self),
            false => Life::Ended(Ended::new(self.0, self.1)),
        }
    }
}

impl Ended {
    fn new(mut body: Body, reason: EndReason) -> Self {
        for holding in body.hosts.values_mut().filter(|holding| holding.may_hold()) {
            *holding = holding.freed();
        }
        Self(body, reason)
    }
}

/// Why a grant ends with this answer, should nobody hold it after it. Of those before a grant is ended only
/// [`Answer::Ends`] can be the last one.
fn end_of(answer: &Answer) -> EndReason {
    match answer {
        Answer::Ends(end) => (*end).into(),
        Answer::Holds | Answer::Refuses(_) | Answer::Lacks | Answer::Blank => EndReason::ActivationFailed,
    }
}

fn has_refused(body: &Body, host: &HostName) -> bool {
    matches!(body.hosts.get(host), Some(Holding::Refused(_)))
}

/// As what it is put on record that a grant has entered a state.
pub fn event_of(state: GrantState) -> EventKind {
    match state {
        GrantState::Scheduled => EventKind::GrantScheduled,
        GrantState::Activating => EventKind::GrantIssued,
        GrantState::Active => EventKind::GrantActive,
        GrantState::Ending(_) => EventKind::GrantEnding,
        GrantState::Ended(_) => EventKind::GrantEnded,
    }
}

/// What a step led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stepped {
    /// Where the grant stands now.
    pub life: Life,
    /// The states entered by this step, in order; empty: the state stayed.
    pub entered: Vec<GrantState>,
}

/// That cannot be done to a grant in this state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotLive(pub GrantState);

impl Life {
    /// A life as it was kept.
    pub fn kept(state: GrantState, body: Body) -> Self {
        match state {
            GrantState::Scheduled => Self::Scheduled(Scheduled(body)),
            GrantState::Activating => Self::Activating(Activating(body)),
            GrantState::Active => Self::Active(Active(body)),
            GrantState::Ending(reason) => Self::Ending(Ending(body, reason)),
            GrantState::Ended(reason) => Self::Ended(Ended(body, reason)),
        }
    }

    /// The state, without what is known of the hosts.
    pub fn state(&self) -> GrantState {
        match self {
            Self::Scheduled(_) => GrantState::Scheduled,
            Self::Activating(_) => GrantState::Activating,
            Self::Active(_) => GrantState::Active,
            Self::Ending(Ending(_, reason)) => GrantState::Ending(*reason),
            Self::Ended(Ended(_, reason)) => GrantState::Ended(*reason),
        }
    }

    /// What is known of the hosts, and the deadline.
    pub fn body(&self) -> &Body {
        match self {
            Self::Scheduled(Scheduled(body))
            | Self::Activating(Activating(body))
            | Self::Active(Active(body))
            | Self::Ending(Ending(body, _))
            | Self::Ended(Ended(body, _)) => body,
        }
    }

    /// One step at `now`. Only ending and extending what has been ended is refused, beginning what has begun, and extending what has not.
    pub fn step(self, step: Step, now: Timestamp) -> Result<Stepped, NotLive> {
        let mut state = self.state();
        let mut entered = Vec::new();
        let mut note = |life: &Self| {
            if life.state() != state {
                state = life.state();
                entered.push(state);
            }
        };
        let life = self.expire(now);
        note(&life);
        let life = life.take(step)?;
        note(&life);
        let life = life.settle();
        note(&life);
        Ok(Stepped { life, entered })
    }

    /// The deadline ends it, whoever else has begun to.
    fn expire(self, now: Timestamp) -> Self {
        if now < self.body().expires {
            return self;
        }
        match self {
            Self::Scheduled(Scheduled(body)) => Self::Ended(Ended::new(body, EndReason::Lapsed)),
            Self::Activating(Activating(body)) | Self::Active(Active(body)) => {
                Self::Ended(Ended::new(body, EndReason::Time))
            }
            Self::Ending(Ending(body, reason)) => Self::Ended(Ended::new(body, reason)),
            Self::Ended(ended) => Self::Ended(ended),
        }
    }

    fn take(self, step: Step) -> Result<Self, NotLive> {
        Ok(match (self, step) {
            (life, Step::Wait) => life,
            // No set of any host has had it.
            (Self::Scheduled(grant), Step::Heard(..)) => Self::Scheduled(grant),
            (Self::Scheduled(Scheduled(body)), Step::End(reason)) => Self::Ending(Ending(body, reason)),
            (Self::Scheduled(grant), Step::Begin(until)) => Self::Activating(grant.begin(until)),
            (life @ Self::Scheduled(_), Step::Extend(_)) | (life, Step::Begin(_)) => {
                return Err(NotLive(life.state()));
            }
            (Self::Activating(grant), Step::Heard(host, answer)) => grant.hear(&host, answer),
            (Self::Active(grant), Step::Heard(host, answer)) => grant.hear(&host, answer),
            (Self::Ending(grant), Step::Heard(host, answer)) => Self::Ending(grant.hear(&host, answer)),
            (Self::Ended(grant), Step::Heard(..)) => Self::Ended(grant),
            (Self::Activating(Activating(body)), Step::Extend(until)) => {
                Self::Activating(Activating(body.extended(until)))
            }
            (Self::Active(Active(body)), Step::Extend(until)) => Self::Active(Active(body.extended(until))),
            (Self::Activating(grant), Step::End(reason)) => Self::Ending(grant.end(reason)),
            (Self::Active(grant), Step::End(reason)) => Self::Ending(grant.end(reason)),
            (life @ (Self::Ending(_) | Self::Ended(_)), Step::End(_) | Step::Extend(_)) => {
                return Err(NotLive(life.state()));
            }
        })
    }

    fn settle(self) -> Self {
        match self {
            Self::Ending(ending) => ending.settle(),
            life => life,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Just, Strategy, any, prop_oneof};

    use super::*;

    const DEADLINE_MS: i64 = 1_795_000_060_000;

    fn at(unix_ms: i64) -> Timestamp {
        Timestamp::from_unix_ms(unix_ms).expect("in range")
    }

    fn host(name: &str) -> HostName {
        name.parse().expect("valid")
    }

    fn new() -> Life {
        Life::Activating(Activating::new(at(DEADLINE_MS), [host("a"), host("b")]))
    }

    fn answers() -> [(&'static str, Answer); 5] {
        [
            ("holds", Answer::Holds),
            ("refuses", Answer::Refuses("map full".to_owned())),
            ("lacks", Answer::Lacks),
            ("blank", Answer::Blank),
            ("is idle", Answer::Ends(HostEnd::Idle)),
        ]
    }

    fn show(life: &Life) -> String {
        let hosts = life.body().hosts.values();
        let hosts: Vec<&str> = hosts
            .map(|holding| match holding {
                Holding::Unknown => "unknown",
                Holding::Held => "held",
                Holding::Refused(_) => "refused",
                Holding::Free(_) => "free",
            })
            .collect();
        format!("{} a:{} b:{}", life.state(), hosts[0], hosts[1])
    }

    /// Every life that two hosts can lead to, found by walking from a new one.
    fn reachable(steps: &[(String, Step)]) -> Vec<Life> {
        let mut found = vec![new()];
        let mut next = 0;
        while let Some(life) = found.get(next).cloned() {
            next += 1;
            for (_, step) in steps {
                if let Ok(stepped) = life.clone().step(step.clone(), at(0))
                    && !found.contains(&stepped.life)
                {
                    found.push(stepped.life);
                }
            }
        }
        found
    }

    fn steps() -> Vec<(String, Step)> {
        let mut steps: Vec<(String, Step)> = Vec::new();
        for name in ["a", "b"] {
            let heard =
                answers().map(|(verb, answer)| (format!("{name} {verb}"), Step::Heard(host(name), answer)));
            steps.extend(heard);
        }
        steps.push(("released".to_owned(), Step::End(EndReason::Released)));
        steps
    }

    #[test]
    fn transitions() {
        let steps = steps();
        let mut table = String::new();
        for life in reachable(&steps) {
            table += &format!("{}\n", show(&life));
            let late = [("deadline".to_owned(), Step::Wait)];
            for ((name, step), now) in
                steps.iter().map(|step| (step, at(0))).chain(late.iter().map(|step| (step, at(DEADLINE_MS))))
            {
                let after = match life.clone().step(step.clone(), now) {
                    Ok(Stepped { life: after, .. }) if after == life => continue,
                    Ok(stepped) => {
                        let entered: Vec<String> = stepped.entered.iter().map(ToString::to_string).collect();
                        format!("{} [{}]", show(&stepped.life), entered.join(", "))
                    }
                    Err(NotLive(state)) => format!("refused: {state} already"),
                };
                table += &format!("    {name:10} -> {after}\n");
            }
        }
        insta::assert_snapshot!(table);
    }

    fn rank(state: GrantState) -> usize {
        match state {
            // These histories begin with the grant's time.
            GrantState::Scheduled | GrantState::Activating => 0,
            GrantState::Active => 1,
            GrantState::Ending(_) => 2,
            GrantState::Ended(_) => 3,
        }
    }

    fn any_step() -> impl Strategy<Value = Step> {
        let answer = prop_oneof![
            4 => Just(Answer::Holds),
            1 => Just(Answer::Refuses("map full".to_owned())),
            2 => Just(Answer::Lacks),
            1 => Just(Answer::Blank),
            1 => Just(Answer::Ends(HostEnd::Idle)),
            1 => Just(Answer::Ends(HostEnd::TaskExit)),
        ];
        let name = prop_oneof![Just("a"), Just("b"), Just("stranger")];
        let heard = (name, answer).prop_map(|(name, answer)| Step::Heard(host(name), answer));
        let reason = prop_oneof![Just(EndReason::Released), Just(EndReason::Revoked)];
        prop_oneof![6 => heard, 1 => reason.prop_map(Step::End), 1 => Just(Step::Wait)]
    }

    proptest::proptest! {
        #[test]
        fn histories_never_contradict(
            history in proptest::collection::vec((any_step(), any::<u8>()), 0..40)
        ) {
            let mut life = new();
            let mut now = DEADLINE_MS - 2000;
            for (step, pause_ms) in history {
                now += i64::from(pause_ms);
                let before = life.clone();
                let Ok(stepped) = life.step(step, at(now)) else {
                    assert!(rank(before.state()) >= 2 || now >= DEADLINE_MS, "only what has ended is refused");
                    life = before;
                    continue;
                };
                let ranks: Vec<usize> = stepped.entered.iter().map(|state| rank(*state)).collect();
                assert!(ranks.is_sorted() && ranks.iter().all(|rank_of| *rank_of > rank(before.state())));
                life = stepped.life;
                if stepped.entered == [GrantState::Active] {
                    assert!(life.body().hosts.values().all(|holding| match holding {
                        Holding::Held => true,
                        Holding::Free(_) => life.body().may_be_held(),
                        Holding::Unknown | Holding::Refused(_) => false,
                    }));
                }
                for (name, holding) in &before.body().hosts {
                    assert!(holding.may_hold() || !life.body().hosts[name].may_hold(), "nothing comes back");
                }
                if let Some(reason) = before.state().end_reason() {
                    assert_eq!(life.state().end_reason(), Some(reason));
                }
                let is_ended = matches!(life.state(), GrantState::Ended(_));
                assert!(now < DEADLINE_MS || is_ended);
                assert!(!is_ended || !life.body().may_be_held());
                assert_eq!(life.body().hosts.len(), 2);
            }
        }
    }
}
