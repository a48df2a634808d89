//! The life of a request: pending, then approved, denied, withdrawn or lapsed, and nothing after that.
//!
//! Owns: what follows from one person's yes or no, and from time; that there is one decision. Must not know: callers' roles, storage,
//! where approvers are named.

use std::collections::BTreeSet;
use std::time::Duration;

use policy::approval::{self, Approval, Extent, Ignored, Narrowing, Progress, State, Step};
use proto::types::{
    EventKind, HookAnswer, HookName, Request, RequestId, RequestState, SubjectId, Timestamp, Vote, Waiting,
};

use super::Refusal;

/// A request that waits for its decision. Deciding consumes it: there is no second decision.
#[derive(Debug)]
pub struct Pending<'a> {
    request: &'a Request,
    approval: Approval,
}

/// Where a request stands after somebody has said something, or time has passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stand {
    /// It waits; something follows by itself then.
    Waiting(Option<Timestamp>),
    /// It is decided.
    Decided(Decided),
}

impl Stand {
    /// As what it is put on record that somebody's yes or no has led here.
    pub fn event(&self) -> EventKind {
        match self {
            Self::Waiting(_) => EventKind::ApprovalGiven,
            Self::Decided(decided) => decided.outcome.event(),
        }
    }
}

/// The one decision about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// Which request.
    pub request: RequestId,
    /// What became of it.
    pub outcome: Outcome,
    /// Who decided; None: no person.
    pub by: Option<SubjectId>,
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A grant, to this extent.
    Approved(Extent),
    /// Somebody said no, or a step's time limit did, or what approvers left has nothing in common.
    Denied,
    /// Who asked, or whom it was for, took it back.
    Withdrawn,
    /// Nobody decided in time.
    Lapsed,
}

impl Outcome {
    /// As it is shown.
    pub fn state(&self) -> RequestState {
        match self {
            Self::Approved(_) => RequestState::Approved,
            Self::Denied => RequestState::Denied,
            Self::Withdrawn => RequestState::Withdrawn,
            Self::Lapsed => RequestState::Lapsed,
        }
    }

    /// As what it is put on record.
    pub fn event(&self) -> EventKind {
        match self {
            Self::Approved(_) => EventKind::RequestApproved,
            Self::Denied => EventKind::RequestDenied,
            Self::Withdrawn => EventKind::RequestWithdrawn,
            Self::Lapsed => EventKind::RequestLapsed,
        }
    }
}

impl<'a> Pending<'a> {
    /// The request, if it is not decided yet, with the steps of its approval.
    pub fn of(request: &'a Request, steps: Vec<Step>) -> Result<Self, Refusal> {
        if let Some((by, at)) = &request.decided {
            return Err(Refusal::AlreadyDecided {
                request: request.id,
                state: request.state,
                by: by.clone(),
                at: *at,
            });
        }
        let extent = Extent {
            duration: request.duration,
            resources: [request.resource.clone()].into(),
            hosts: request.hosts.iter().cloned().collect(),
        };
        let approval = Approval {
            steps,
            extent,
            requester: request.requester.clone(),
            subject: request.subject.clone(),
            began: request.created,
            lapses: request.lapses,
            answers: request.answers.iter().map(heard).collect(),
        };
        Ok(Self { request, approval })
    }

    /// As when a vote counts that comes now: after those that came before it, whatever the clock did meanwhile.
    pub fn moment(&self, now: Timestamp) -> Timestamp {
        let last = self.last_said();
        last.map_or(now, |last| now.max(last.plus(Duration::from_millis(1))))
    }

    /// When somebody, or a program, last said something.
    fn last_said(&self) -> Option<Timestamp> {
        let votes = self.request.votes.iter().map(|vote| vote.at);
        votes.chain(self.request.answers.iter().map(|answer| answer.at)).max()
    }

    /// A program that was asked says yes or no, at [`Pending::moment`].
    pub fn answer(mut self, answer: &HookAnswer) -> Stand {
        self.approval.answers.push(heard(answer));
        let votes: Vec<approval::Vote> = self.request.votes.iter().map(counted).collect();
        let state = approval::progress(&self.approval, &votes, answer.at).state;
        self.stand(state, None)
    }

    /// Which programs it waits for.
    pub fn asks(&self, now: Timestamp) -> BTreeSet<HookName> {
        match self.progress(now) {
            State::Waiting { hooks, .. } => hooks,
            State::Approved(_) | State::Denied(_) | State::Lapsed => BTreeSet::new(),
        }
    }

    /// Somebody says yes or no, at [`Pending::moment`].
    pub fn vote(self, vote: &Vote) -> Result<Stand, Refusal> {
        if self.request.extends.is_some() && !vote.hosts.is_empty() {
            return Err(Refusal::ExtensionHosts(self.request.id));
        }
        let mut votes: Vec<approval::Vote> = self.request.votes.iter().map(counted).collect();
        votes.push(counted(vote));
        let Progress { state, ignored } = approval::progress(&self.approval, &votes, vote.at);
        let last = votes.len() - 1;
        match ignored.into_iter().find(|(index, _)| *index == last) {
            Some((_, why)) => Err(self.not_counted(&vote.by, why)),
            None => Ok(self.stand(state, Some(&vote.by))),
        }
    }

    /// Where it stands now, if nobody says anything.
    pub fn wait(self, now: Timestamp) -> Stand {
        let state = self.progress(now);
        self.stand(state, None)
    }

    /// For whom it waits; None: for nobody, as it is over.
    pub fn waiting(&self, now: Timestamp) -> Option<Waiting> {
        match self.progress(now) {
            State::Waiting { step, more, of, hooks, until, .. } => {
                let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
                Some(Waiting {
                    step: number(step).saturating_add(1),
                    steps: number(self.approval.steps.len()),
                    more,
                    others: number(of.len().saturating_sub(Waiting::SHOWN_MAX)),
                    approvers: of.into_iter().take(Waiting::SHOWN_MAX).collect(),
                    hooks: hooks.into_iter().take(Waiting::SHOWN_MAX).collect(),
                    until,
                })
            }
            State::Approved(_) | State::Denied(_) | State::Lapsed => None,
        }
    }

    /// Whoever asked, or whom it is for, takes it back.
    pub fn withdraw(self, by: &SubjectId) -> Result<Decided, Refusal> {
        match *by == self.request.requester || *by == self.request.subject {
            true => Ok(self.decided(Outcome::Withdrawn, Some(by))),
            false => Err(Refusal::NotRequester { caller: by.clone(), request: self.request.id }),
        }
    }

    fn progress(&self, now: Timestamp) -> State {
        let votes: Vec<approval::Vote> = self.request.votes.iter().map(counted).collect();
        // A clock that was put back takes no vote back.
        let last = self.last_said();
        approval::progress(&self.approval, &votes, last.map_or(now, |last| last.max(now))).state
    }

    fn stand(&self, state: State, by: Option<&SubjectId>) -> Stand {
        match state {
            State::Waiting { until, .. } => Stand::Waiting(until),
            State::Approved(extent) => Stand::Decided(self.decided(Outcome::Approved(extent), by)),
            State::Denied(who) => Stand::Decided(self.decided(Outcome::Denied, who.as_ref())),
            State::Lapsed => Stand::Decided(self.decided(Outcome::Lapsed, None)),
        }
    }

    fn decided(&self, outcome: Outcome, by: Option<&SubjectId>) -> Decided {
        Decided { request: self.request.id, outcome, by: by.cloned() }
    }

    fn not_counted(&self, approver: &SubjectId, why: Ignored) -> Refusal {
        let request = self.request.id;
        let approver = approver.clone();
        match why {
            Ignored::OwnRequest if approver == self.request.requester => {
                Refusal::OwnRequest { approver, request, tie: "it asked for it itself" }
            }
            Ignored::OwnRequest => Refusal::OwnRequest { approver, request, tie: "the access is for itself" },
            why => Refusal::VoteNotCounted { approver, request, why },
        }
    }
}

/// A vote as the rules of approval count it.
fn counted(vote: &Vote) -> approval::Vote {
    let hosts: Option<BTreeSet<_>> = (!vote.hosts.is_empty()).then(|| vote.hosts.iter().cloned().collect());
    let narrowing = Narrowing { duration: vote.duration, resources: None, hosts };
    approval::Vote { by: vote.by.clone(), at: vote.at, yes: vote.yes.then_some(narrowing) }
}

fn heard(answer: &HookAnswer) -> approval::Answer {
    approval::Answer { by: answer.hook.clone(), at: answer.at, yes: answer.yes }
}

/// Whether somebody is an approver of one of these steps, now or later.
pub fn may_decide(steps: &[Step], who: &SubjectId) -> bool {
    steps.iter().any(|step| {
        let more = match &step.after {
            Some((_, approval::Then::Escalate(more))) => Some(more),
            _ => None,
        };
        step.approvers.contains(who) || more.is_some_and(|more| more.contains(who))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minute: u64) -> Timestamp {
        let begin = Timestamp::from_unix_ms(1_795_000_000_000).expect("in range");
        begin.plus(Duration::from_secs(60 * minute))
    }

    fn id(name: &str) -> SubjectId {
        format!("user:{name}").parse().expect("valid")
    }

    fn request(state: RequestState) -> Request {
        Request {
            id: "01940000-0000-7000-8000-000000000001".parse().expect("valid"),
            state,
            resource: "db".parse().expect("valid"),
            subject: id("alice"),
            hosts: vec!["db-7".parse().expect("valid"), "db-8".parse().expect("valid")],
            duration: Duration::from_secs(600),
            reason: "why not".parse().expect("valid"),
            requester: id("rita"),
            created: at(0),
            decided: (state != RequestState::Pending).then(|| (Some(id("dora")), at(0))),
            comment: String::new(),
            grant: None,
            idle: None,
            while_running: None,
            run: None,
            action: None,
            judged: None,
            lapses: Some(at(60)),
            votes: Vec::new(),
            answers: Vec::new(),
            waiting: None,
            extends: None,
        }
    }

    fn step(approvers: &[&str], count: u32) -> Step {
        let approvers = approvers.iter().map(|name| id(name)).collect();
        Step { approvers, hooks: BTreeSet::new(), count, after: None }
    }

    fn yes(name: &str, minute: u64) -> Vote {
        let (by, at) = (id(name), at(minute));
        Vote { by, at, yes: true, comment: String::new(), duration: None, hosts: Vec::new() }
    }

    fn told(stand: Result<Stand, Refusal>) -> String {
        match stand {
            Ok(Stand::Waiting(_)) => "waits".to_owned(),
            Ok(Stand::Decided(Decided { outcome, by, .. })) => {
                let by = by.map_or("nobody".to_owned(), |by| by.to_string());
                let left = match &outcome {
                    Outcome::Approved(extent) => {
                        format!(" for {:?} on {} hosts", extent.duration, extent.hosts.len())
                    }
                    _ => String::new(),
                };
                format!("{} by {by}{left}", outcome.state())
            }
            Err(refusal) => format!("refused: {refusal}"),
        }
    }

    /// Every state, everybody who may come, everything that can be said.
    #[test]
    fn transitions() {
        let steps = || vec![step(&["dora", "rita", "alice"], 1)];
        let mut table = String::new();
        for state in RequestState::ALL {
            let request = request(state);
            for name in ["rita", "alice", "dora", "mallory"] {
                for verb in ["approve", "deny", "withdraw"] {
                    let pending = Pending::of(&request, steps());
                    let vote = Vote { yes: verb == "approve", ..yes(name, 1) };
                    let after = pending.and_then(|pending| match verb {
                        "withdraw" => pending.withdraw(&vote.by).map(Stand::Decided),
                        _ => pending.vote(&vote),
                    });
                    table += &format!("{state:9} {verb:8} by {name:7} -> {}\n", told(after));
                }
            }
            for minute in [59, 60] {
                let after = Pending::of(&request, steps()).map(|pending| pending.wait(at(minute)));
                table += &format!("{state:9} {minute} minutes pass -> {}\n", told(after));
            }
        }
        insta::assert_snapshot!(table);
    }

    #[test]
    fn each_step_waits_for_its_own_people() {
        let steps = vec![step(&["dora", "emil"], 2), step(&["fay"], 1)];
        let mut request = request(RequestState::Pending);
        let say = |request: &Request, vote: &Vote| {
            Pending::of(request, steps.clone()).and_then(|pending| pending.vote(vote))
        };
        let waits = |request: &Request| {
            let pending = Pending::of(request, steps.clone()).expect("pending");
            pending.waiting(at(5)).map(|waiting| (waiting.step, waiting.more, waiting.approvers))
        };
        assert_eq!(waits(&request), Some((1, 2, vec![id("dora"), id("emil")])));
        assert_eq!(
            told(say(&request, &yes("fay", 1))).as_str(),
            "refused: subject `user:fay` may not decide request 01940000-0000-7000-8000-000000000001: is an approver of a later step: that one has not begun"
        );
        assert_eq!(told(say(&request, &yes("dora", 1))), "waits");
        request.votes.push(yes("dora", 1));
        assert!(told(say(&request, &yes("dora", 2))).contains("has said yes already"));
        assert_eq!(waits(&request), Some((1, 1, vec![id("emil")])));
        let narrower = Vote { duration: Some(Duration::from_secs(60)), ..yes("emil", 2) };
        assert_eq!(told(say(&request, &narrower)), "waits");
        let wider = Vote { duration: Some(Duration::from_secs(601)), ..yes("emil", 2) };
        assert!(told(say(&request, &wider)).contains("never widen"));
        request.votes.push(narrower);
        assert_eq!(waits(&request), Some((2, 1, vec![id("fay")])));
        let hosts = vec!["db-8".parse().expect("valid")];
        let last = Vote { hosts, ..yes("fay", 3) };
        assert_eq!(told(say(&request, &last)), "approved by user:fay for 60s on 1 hosts");
        // The clock was put back: what was said was said, and what is said now comes after it.
        let moment = Pending::of(&request, steps.clone()).expect("pending").moment(at(0));
        assert_eq!(moment, at(2).plus(Duration::from_millis(1)));
        assert_eq!(
            told(say(&request, &Vote { at: moment, ..last })),
            "approved by user:fay for 60s on 1 hosts"
        );
        let no = Vote { yes: false, ..yes("fay", 3) };
        assert_eq!(told(say(&request, &no)), "denied by user:fay");
    }
}
