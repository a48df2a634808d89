//! How far an approval is: steps, votes and now → waiting, approved, denied or lapsed.
//!
//! Owns: who counts, for which step, how often; time limits of steps; narrowing. Must not know: how votes came, who is told, where
//! approvers were found.
//!
//! Invariants: a person counts once in all steps together; nobody counts for their own request, or one on their behalf; a no by any
//! approver ends it; what is approved is never more than what was asked for. Who is counted for which step is chosen so that as
//! many steps as possible are complete, so the order of votes that may count does not matter.

use std::collections::BTreeSet;
use std::fmt::{self, Display};
use std::time::Duration;

use proto::types::{HookName, HostName, ResourceName, SubjectId, Timestamp};

use crate::model::is_human;

/// How many votes are looked at; more are refused.
pub const VOTES_MAX: usize = 1_000;

/// One step, with the people who may decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Who may decide.
    pub approvers: BTreeSet<SubjectId>,
    /// Programs that are asked when the step begins. Each weighs as one of those who may decide, and is no person.
    pub hooks: BTreeSet<HookName>,
    /// How many of them have to say yes; 0 counts as 1.
    pub count: u32,
    /// What follows when the step has waited for so long.
    pub after: Option<(Duration, Then)>,
}

/// What follows when a step has waited long enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Then {
    /// These may decide, too.
    Escalate(BTreeSet<SubjectId>),
    /// The next step begins.
    Skip,
    /// The request is denied.
    Deny,
}

/// What is asked for, or approved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// How long.
    pub duration: Duration,
    /// What.
    pub resources: BTreeSet<ResourceName>,
    /// From where.
    pub hosts: BTreeSet<HostName>,
}

/// What an approver leaves of it. None: as it was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Narrowing {
    /// At most as long as asked for, and not zero.
    pub duration: Option<Duration>,
    /// Some of those asked for.
    pub resources: Option<BTreeSet<ResourceName>>,
    /// Some of those asked for.
    pub hosts: Option<BTreeSet<HostName>>,
}

/// One person's yes or no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vote {
    /// Whose.
    pub by: SubjectId,
    /// When.
    pub at: Timestamp,
    /// Yes, with what is left of it; None: no.
    pub yes: Option<Narrowing>,
}

/// What a program said that was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Which one.
    pub by: HookName,
    /// When.
    pub at: Timestamp,
    /// Yes; no answer that counts is a no.
    pub yes: bool,
}

/// What is to be approved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approval {
    /// In order. Empty: nobody has to say yes.
    pub steps: Vec<Step>,
    /// What is asked for.
    pub extent: Extent,
    /// Who asks.
    pub requester: SubjectId,
    /// Who it is for.
    pub subject: SubjectId,
    /// When it was asked for.
    pub began: Timestamp,
    /// When it is over if nobody has decided; None: never.
    pub lapses: Option<Timestamp>,
    /// What programs have said that were asked; the first of each counts.
    pub answers: Vec<Answer>,
}

/// Where an approval stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// For people.
    Waiting {
        /// Which step, from 0.
        step: usize,
        /// How many more have to say yes in it.
        more: u32,
        /// Any of these.
        of: BTreeSet<SubjectId>,
        /// And of these programs.
        hooks: BTreeSet<HookName>,
        /// Whether it waits for others than those whom the step began with.
        escalated: bool,
        /// When something follows by itself.
        until: Option<Timestamp>,
    },
    /// To this extent.
    Approved(Extent),
    /// By somebody; None: by a program, by a step's time limit, or because what approvers left has nothing in common.
    Denied(Option<SubjectId>),
    /// Nobody has decided in time.
    Lapsed,
}

/// Why a vote counts for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the texts say it")]
pub enum Ignored {
    OwnRequest,
    NoPerson,
    NotAnApprover,
    NotYet,
    Twice,
    Wider,
    Nothing,
    TooLate,
    TooMany,
}

impl Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::OwnRequest => "nobody approves their own request, or one on their behalf",
            Self::NoPerson => "only people approve",
            Self::NotAnApprover => "is no approver of any step",
            Self::NotYet => "is an approver of a later step: that one has not begun",
            Self::Twice => "has said yes already, and counts once in all steps",
            Self::Wider => "an approver may narrow, never widen",
            Self::Nothing => "an approval has to leave something: deny it in its place",
            Self::TooLate => "it is decided already",
            Self::TooMany => "there are too many votes",
        })
    }
}

/// Where an approval stands, and which votes count for nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Where it stands.
    pub state: State,
    /// Of `votes`, which, and why.
    pub ignored: Vec<(usize, Ignored)>,
}

/// Where `approval` stands at `now`. Votes later than `now` have not been cast.
pub fn progress(approval: &Approval, votes: &[Vote], now: Timestamp) -> Progress {
    let mut course = Course::new(approval);
    let mut ignored = Vec::new();
    let mut order: Vec<(usize, &Vote)> =
        votes.iter().enumerate().filter(|(_, vote)| vote.at <= now).collect();
    order.sort_by(|(_, one), (_, other)| (one.at, &one.by).cmp(&(other.at, &other.by)));
    let mut answers: Vec<&Answer> = approval.answers.iter().filter(|answer| answer.at <= now).collect();
    answers.sort_by(|one, other| (one.at, &one.by).cmp(&(other.at, &other.by)));
    let mut answers = answers.into_iter().peekable();
    for (place, (index, vote)) in order.into_iter().enumerate() {
        while let Some(answer) = answers.next_if(|answer| answer.at <= vote.at) {
            course.hear(answer);
        }
        course.pass(vote.at);
        let counted = if place < VOTES_MAX { course.count(vote) } else { Err(Ignored::TooMany) };
        ignored.extend(counted.err().map(|why| (index, why)));
    }
    answers.for_each(|answer| course.hear(answer));
    course.pass(now);
    ignored.sort_unstable();
    Progress { state: course.state(), ignored }
}

struct Course<'a> {
    approval: &'a Approval,
    /// Whether the time limit of a step has passed while it was waited for.
    passed: Vec<bool>,
    yes: Vec<&'a Vote>,
    /// Programs that have said yes.
    assents: BTreeSet<&'a HookName>,
    /// The step that is waited for; beyond the last: none.
    current: usize,
    since: Timestamp,
    end: Option<State>,
}

impl<'a> Course<'a> {
    fn new(approval: &'a Approval) -> Self {
        let passed = vec![false; approval.steps.len()];
        let (yes, assents) = Default::default();
        Self { approval, passed, yes, assents, current: 0, since: approval.began, end: None }
    }

    fn is_over(&self) -> bool {
        self.end.is_some() || self.current >= self.approval.steps.len()
    }

    /// Lets time pass, up to and with `until`.
    fn pass(&mut self, until: Timestamp) {
        while !self.is_over() {
            let lapses = self.approval.lapses.filter(|lapses| *lapses <= until);
            let due = self.due().filter(|due| *due <= until && lapses.is_none_or(|lapses| *due < lapses));
            match due {
                Some(due) => self.overdue(due),
                None => {
                    self.end = lapses.map(|_| State::Lapsed);
                    return;
                }
            }
        }
    }

    /// When something follows for the current step.
    fn due(&self) -> Option<Timestamp> {
        let step = self.approval.steps.get(self.current)?;
        let waits = self.passed.get(self.current) == Some(&false);
        step.after.as_ref().filter(|_| waits).map(|(after, _)| self.since.plus(*after))
    }

    fn overdue(&mut self, due: Timestamp) {
        if let Some(passed) = self.passed.get_mut(self.current) {
            *passed = true;
        }
        match self.approval.steps.get(self.current).and_then(|step| step.after.as_ref()) {
            Some((_, Then::Deny)) => self.end = Some(State::Denied(None)),
            Some((_, Then::Escalate(_) | Then::Skip)) | None => self.advance(due),
        }
    }

    /// Whether somebody may decide in a step, as it is now.
    fn may_decide(&self, step: usize, who: &SubjectId) -> bool {
        let Some(Step { approvers, after, .. }) = self.approval.steps.get(step) else {
            return false;
        };
        let more = match after {
            Some((_, Then::Escalate(more))) if self.passed.get(step) == Some(&true) => Some(more),
            _ => None,
        };
        approvers.contains(who) || more.is_some_and(|more| more.contains(who))
    }

    fn asks(&self, step: usize, hook: &HookName) -> bool {
        self.approval.steps.get(step).is_some_and(|step| step.hooks.contains(hook))
    }

    fn is_skipped(&self, step: usize) -> bool {
        let then = self.approval.steps.get(step).and_then(|step| step.after.as_ref());
        self.passed.get(step) == Some(&true) && matches!(then, Some((_, Then::Skip)))
    }

    fn count(&mut self, vote: &'a Vote) -> Result<(), Ignored> {
        if self.is_over() {
            return Err(Ignored::TooLate);
        }
        if vote.by == self.approval.requester || vote.by == self.approval.subject {
            return Err(Ignored::OwnRequest);
        }
        if !is_human(&vote.by) {
            return Err(Ignored::NoPerson);
        }
        let steps = self.approval.steps.len();
        let first = (0..steps).find(|step| self.may_decide(*step, &vote.by)).ok_or(Ignored::NotAnApprover)?;
        let Some(narrowing) = &vote.yes else {
            self.end = Some(State::Denied(Some(vote.by.clone())));
            return Ok(());
        };
        if first > self.current {
            return Err(Ignored::NotYet);
        }
        if self.yes.iter().any(|yes| yes.by == vote.by) {
            return Err(Ignored::Twice);
        }
        fits(narrowing, &self.approval.extent)?;
        self.yes.push(vote);
        self.advance(vote.at);
        Ok(())
    }

    /// A program that the current step asks, or an earlier one did, has said something.
    fn hear(&mut self, answer: &'a Answer) {
        self.pass(answer.at);
        let begun = self.approval.steps.iter().take(self.current.saturating_add(1));
        if self.is_over() || !begun.into_iter().any(|step| step.hooks.contains(&answer.by)) {
            return;
        }
        match answer.yes {
            true => {
                self.assents.insert(&answer.by);
                self.advance(answer.at);
            }
            // Of one that has said yes the first answer counts.
            false if self.assents.contains(&answer.by) => {}
            false => self.end = Some(State::Denied(None)),
        }
    }

    /// Goes on to the first step that is not complete.
    fn advance(&mut self, at: Timestamp) {
        while self.current < self.approval.steps.len() && self.lacks(self.current) == 0 {
            self.current += 1;
            self.since = at;
        }
    }

    /// How many a step lacks, if all before it are complete: as many as possible of those who said yes are given a place.
    fn lacks(&self, last: usize) -> u32 {
        let steps =
            self.approval.steps.iter().enumerate().take(last + 1).filter(|(at, _)| !self.is_skipped(*at));
        // A place is a (step, number) that one person fills.
        let places: Vec<usize> =
            steps.flat_map(|(at, step)| (0..step.count.max(1)).map(move |_| at)).collect();
        let mut filled: Vec<Option<usize>> = vec![None; places.len()];
        let taken = (0..self.yes.len() + self.assents.len())
            .filter(|who| self.seat(*who, &places, &mut filled, &mut vec![false; places.len()]));
        u32::try_from(places.len() - taken.count()).unwrap_or(u32::MAX)
    }

    /// Gives somebody a place, moving others if need be.
    fn seat(
        &self,
        who: usize,
        places: &[usize],
        filled: &mut Vec<Option<usize>>,
        tried: &mut Vec<bool>,
    ) -> bool {
        for (place, step) in places.iter().enumerate() {
            let may = match who.checked_sub(self.yes.len()) {
                None => self.yes.get(who).is_some_and(|vote| self.may_decide(*step, &vote.by)),
                Some(hook) => self.assents.iter().nth(hook).is_some_and(|hook| self.asks(*step, hook)),
            };
            if !may || std::mem::replace(&mut tried[place], true) {
                continue;
            }
            let is_free = match filled[place] {
                None => true,
                Some(other) => self.seat(other, places, filled, tried),
            };
            if is_free {
                filled[place] = Some(who);
                return true;
            }
        }
        false
    }

    fn state(self) -> State {
        if let Some(end) = self.end {
            return end;
        }
        let Some(step) = self.approval.steps.get(self.current) else {
            return match self.left() {
                Some(extent) => State::Approved(extent),
                None => State::Denied(None),
            };
        };
        let mut of = step.approvers.clone();
        let escalated = self.passed.get(self.current) == Some(&true);
        if let (true, Some((_, Then::Escalate(more)))) = (escalated, &step.after) {
            of.extend(more.iter().cloned());
        }
        let has_said_yes = |id: &SubjectId| self.yes.iter().any(|vote| vote.by == *id);
        of.retain(|id| {
            *id != self.approval.requester
                && *id != self.approval.subject
                && !has_said_yes(id)
                && is_human(id)
        });
        let until = match (self.due(), self.approval.lapses) {
            (Some(due), Some(lapses)) => Some(due.min(lapses)),
            (due, lapses) => due.or(lapses),
        };
        let hooks = step.hooks.iter().filter(|hook| !self.assents.contains(hook)).cloned().collect();
        State::Waiting { step: self.current, more: self.lacks(self.current), of, hooks, escalated, until }
    }

    /// What all who said yes left of it; None: nothing.
    fn left(&self) -> Option<Extent> {
        let mut extent = self.approval.extent.clone();
        for narrowing in self.yes.iter().filter_map(|vote| vote.yes.as_ref()) {
            let Narrowing { duration, resources, hosts } = narrowing;
            extent.duration = duration.map_or(extent.duration, |duration| duration.min(extent.duration));
            extent.resources.retain(|name| resources.as_ref().is_none_or(|left| left.contains(name)));
            extent.hosts.retain(|name| hosts.as_ref().is_none_or(|left| left.contains(name)));
        }
        let asked = &self.approval.extent;
        let is_empty = extent.resources.is_empty() && !asked.resources.is_empty()
            || extent.hosts.is_empty() && !asked.hosts.is_empty();
        (!is_empty).then_some(extent)
    }
}

/// That a narrowing leaves something, and no more than there was.
fn fits(narrowing: &Narrowing, extent: &Extent) -> Result<(), Ignored> {
    let Narrowing { duration, resources, hosts } = narrowing;
    let is_wider = duration.is_some_and(|duration| duration > extent.duration)
        || resources.as_ref().is_some_and(|names| !names.is_subset(&extent.resources))
        || hosts.as_ref().is_some_and(|names| !names.is_subset(&extent.hosts));
    let is_nothing = duration.is_some_and(|duration| duration.is_zero())
        || resources.as_ref().is_some_and(BTreeSet::is_empty)
        || hosts.as_ref().is_some_and(BTreeSet::is_empty);
    match (is_wider, is_nothing) {
        (true, _) => Err(Ignored::Wider),
        (false, true) => Err(Ignored::Nothing),
        (false, false) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
