//! May this be asked for, and may it live on? What is asked, what is known of who asks, and the policy in force → the terms, or no
//! with the rules that say so.
//!
//! Owns: the operator's limits, which hold under every policy; the facts that a policy is asked with. Must not know: storage, what files mean.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ::policy::Policy;
use ::policy::approval::Step;
use ::policy::decide::{Decision, Outcome, Terms, decide, steps_of};
use ::policy::facts::{Channel, Device, Facts, Stage};
use ::policy::model::ClockStart;
use ::policy::names::{GroupName, IncidentId};
use proto::types::{HostName, NewRequest, ResourceName, RoleName, SubjectId, Timestamp};

use super::Refusal;
use super::calls::Reach;

/// What holds for every request, whatever policy is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest that a grant may live.
    pub max_grant_duration: Duration,
    /// How long a request waits for its decision.
    pub request_lifetime: Duration,
}

impl Limits {
    /// Whom the request is for, if `caller` may ask for it.
    pub fn subject(&self, new: &NewRequest, caller: &SubjectId, reach: Reach) -> Result<SubjectId, Refusal> {
        if let Some(asked) = new.duration {
            self.within(asked)?;
        }
        let subject = new.subject.as_ref().unwrap_or(caller);
        if subject != caller && reach != Reach::All {
            return Err(Refusal::ForSomebodyElse { caller: caller.clone(), subject: subject.clone() });
        }
        Ok(subject.clone())
    }

    /// For how long a request is: as it says, else as its role does by default. What `terms` were given for, and by which policy; None: there
    /// is none in force.
    pub fn duration(
        &self,
        new: &NewRequest,
        terms: Option<(&Numbered, &Terms)>,
    ) -> Result<Duration, Refusal> {
        let duration = match (new.duration, terms) {
            (Some(named), _) => named,
            (None, None) => return Err(Refusal::NoDuration),
            (None, Some((in_force, terms))) => {
                // Without a default the policy has judged the longest that can be had: nobody gets that who has not asked for it.
                let role = in_force.policy.role(&terms.role);
                if role.is_none_or(|role| role.default_duration.is_none()) {
                    let role = terms.role.clone();
                    return Err(Refusal::NoDefaultDuration { role, version: in_force.version });
                }
                terms.duration
            }
        };
        self.within(duration)?;
        match new.idle {
            Some(idle) if idle >= duration => Err(Refusal::IdleTooLong { idle, duration }),
            _ => Ok(duration),
        }
    }

    fn within(&self, asked: Duration) -> Result<(), Refusal> {
        let maximum = self.max_grant_duration;
        if asked > maximum { Err(Refusal::TooLong { asked, maximum }) } else { Ok(()) }
    }
}

/// Whether a request may be for so many hosts.
pub fn place(new: &NewRequest, hosts: usize) -> Result<(), Refusal> {
    let is_of_one = new.while_running.is_some() || new.run.is_some() || new.action.is_some();
    match is_of_one && hosts != 1 {
        true => Err(Refusal::OneHostOnly(hosts)),
        false => Ok(()),
    }
}

/// What is known of whoever asks, when they ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Circumstances {
    /// By which way; None: that is not known.
    pub channel: Option<Channel>,
    /// From which address; None: by a unix socket, or that is not known.
    pub source: Option<IpAddr>,
    /// They signed in by more than one factor.
    pub mfa: bool,
    /// When they signed in at their identity provider; None: they did not, or it did not say.
    pub signed_in: Option<Timestamp>,
    /// The groups that it named for them.
    pub groups: BTreeSet<GroupName>,
    /// What it said of the device that they signed in from; None: nothing.
    pub device: Option<Device>,
}

impl Circumstances {
    /// Of a request that `requester` makes for `subject`: whoever asks for somebody else does not bring them their own groups.
    #[must_use]
    pub fn of_request(self, requester: &SubjectId, subject: &SubjectId) -> Self {
        let groups = if requester == subject { self.groups } else { BTreeSet::new() };
        Self { groups, ..self }
    }
}

/// The methods of a sign-in (`amr`, RFC 8176) → whether it was by more than one factor: the provider has to say so.
pub fn is_mfa<'a>(methods: impl IntoIterator<Item = &'a str>) -> bool {
    methods.into_iter().any(|method| method == "mfa")
}

/// A policy that was put in force, with its number.
#[derive(Clone, Debug)]
pub struct Numbered {
    /// From 1.
    pub version: u64,
    /// What it says.
    pub policy: Arc<Policy>,
}

/// When something is judged, and what is so then for everybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    /// When.
    pub now: Timestamp,
    /// The incidents that are open, each with its end.
    pub incidents: Arc<BTreeMap<IncidentId, Timestamp>>,
}

/// What is to be judged: what is asked for, or was granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Who it is for.
    pub subject: SubjectId,
    /// Who asked.
    pub requester: SubjectId,
    /// What is to be reached.
    pub resource: ResourceName,
    /// From where.
    pub hosts: BTreeSet<HostName>,
    /// By which role; None: by any.
    pub role: Option<RoleName>,
    /// How long; None: nobody has said it, and each role has its own default.
    pub duration: Option<Duration>,
    /// What was known of who asked.
    pub circumstances: Circumstances,
}

impl Wish {
    /// As a policy is asked.
    pub fn facts(&self, stage: Stage, moment: &Moment) -> Facts {
        let now = moment.now;
        let Circumstances { channel, source, mfa, signed_in, groups, device } = &self.circumstances;
        Facts {
            stage,
            requester: self.requester.clone(),
            groups: groups.clone(),
            hosts: self.hosts.clone(),
            role: self.role.clone(),
            duration: self.duration,
            channel: channel.unwrap_or(Channel::Api),
            source: *source,
            mfa: *mfa,
            login_age: signed_in.map(|signed_in| now.since(signed_in)),
            device: *device,
            incidents: Arc::clone(&moment.incidents),
            ..Facts::new(now, self.subject.clone(), self.resource.clone())
        }
    }

    /// On which terms `in_force` lets it be asked for.
    pub fn terms(&self, in_force: &Numbered, moment: &Moment) -> Result<Terms, Refusal> {
        self.terms_at(in_force, Stage::Request, moment)
    }

    /// On which terms `in_force` lets it be asked for, begin, or live on.
    pub fn terms_at(&self, in_force: &Numbered, stage: Stage, moment: &Moment) -> Result<Terms, Refusal> {
        permitted(in_force, decide(&in_force.policy, &self.facts(stage, moment)))
    }

    /// When its time begins, if `in_force` lets it. What begins now is asked about as such; what begins later is asked about again then,
    /// and now only whether it could still be asked for.
    pub fn clock(&self, in_force: &Numbered, moment: &Moment) -> Result<ClockStart, Refusal> {
        let role = self.role.as_ref().and_then(|name| in_force.policy.role(name));
        let stage = match role.map_or(ClockStart::Approval, |role| role.clock) {
            ClockStart::Activation => Stage::Request,
            ClockStart::At(begins) if begins > moment.now => Stage::Request,
            ClockStart::Approval | ClockStart::At(_) => Stage::Activate,
        };
        Ok(self.terms_at(in_force, stage, moment)?.clock)
    }

    /// Whether `in_force` still lets it begin (`Stage::Activate`), or live on (`Stage::Keep`).
    pub fn is_permitted(&self, in_force: &Numbered, stage: Stage, moment: &Moment) -> Result<(), Refusal> {
        self.terms_at(in_force, stage, moment).map(drop)
    }
}

/// Who has to say yes to a request that was judged by this policy; None: the policy has no such role.
pub fn steps(
    policy: &Policy,
    role: &RoleName,
    subject: &SubjectId,
    requester: &SubjectId,
) -> Option<Vec<Step>> {
    steps_of(policy, role, subject, requester)
}

/// The terms, or why not.
fn permitted(in_force: &Numbered, decision: Decision) -> Result<Terms, Refusal> {
    match decision.outcome {
        Outcome::Permitted(terms) => Ok(*terms),
        Outcome::Denied { reasons } => {
            let reasons = some_of(reasons.iter().map(ToString::to_string).collect());
            let help = some_of(decision.missing);
            Err(Refusal::NotPermitted { version: in_force.version, reasons, help })
        }
    }
}

/// The first few of what there is to be said.
fn some_of(texts: Vec<String>) -> String {
    const SHOWN_MAX: usize = 5;
    const CHARS_MAX: usize = 400;
    let others = texts.len().saturating_sub(SHOWN_MAX);
    // What Cedar says of a condition that it cannot evaluate has no bound of its own.
    let cut = |text: String| text.chars().take(CHARS_MAX).collect::<String>();
    let mut text = texts.into_iter().take(SHOWN_MAX).map(cut).collect::<Vec<_>>().join("; ");
    if others > 0 {
        text += &format!("; and {others} more");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new_request(minutes: u64, subject: Option<&str>) -> NewRequest {
        NewRequest {
            resource: "db".parse().expect("valid"),
            subject: subject.map(|subject| subject.parse().expect("valid")),
            hosts: Vec::new(),
            duration: Some(Duration::from_secs(60 * minutes)),
            reason: "why not".parse().expect("valid"),
            idle: None,
            while_running: None,
            run: None,
            action: None,
            role: None,
            key: None,
            draft: None,
        }
    }

    #[track_caller]
    fn check(minutes: u64, subject: Option<&str>, reach: Reach, expected: Result<&str, &str>) {
        let limits = Limits {
            max_grant_duration: Duration::from_secs(30 * 60),
            request_lifetime: Duration::from_secs(3600),
        };
        let new = new_request(minutes, subject);
        let judged = limits.subject(&new, &"user:alice".parse().expect("valid"), reach);
        let judged = judged.map(|subject| subject.to_string()).map_err(|refusal| refusal.to_string());
        assert_eq!(judged, expected.map(str::to_owned).map_err(str::to_owned));
    }

    #[test]
    fn whom_a_request_is_for() {
        check(30, None, Reach::Own, Ok("user:alice"));
        check(30, Some("user:alice"), Reach::Own, Ok("user:alice"));
        check(30, Some("user:bob"), Reach::All, Ok("user:bob"));
        check(30, Some("user:bob"), Reach::Own, Err("subject `user:alice` may not ask for `user:bob`"));
        check(31, None, Reach::All, Err("duration: 31m is above the maximum of 30m"));
    }

    const FILES: [(&str, &str); 5] = [
        ("limits.toml", "maximum_duration = \"8h\"\n"),
        ("hosts.toml", "[[host]]\nname = \"app\"\n"),
        (
            "resources.toml",
            "[[resource]]\nname = \"db\"\naddresses = [\"192.0.2.1\"]\nports = [\"tcp/5432\"]\n",
        ),
        (
            "subjects.toml",
            "[[subject]]\nid = \"user:alice\"\n[[subject]]\nid = \"user:rita\"\n[[group]]\nname = \"dba\"\nmembers = [\"user:rita\"]\n",
        ),
        (
            "roles.toml",
            "[[role]]\nname = \"debug\"\nto = [\"user:alice\"]\nresources = [\"db\"]\nhosts = [\"*\"]\nmaximum_duration = \"1h\"\nidle = \"10m\"\n\
             [[role.step]]\napprovers = [\"group:dba\"]\n",
        ),
    ];

    fn policy(more: &[(&str, &str)]) -> Numbered {
        let files = FILES.iter().chain(more).map(|(path, text)| ((*path).to_owned(), (*text).to_owned()));
        let policy =
            ::policy::files::read(&files.collect()).unwrap_or_else(|problems| panic!("{problems:?}"));
        Numbered { version: 7, policy: Arc::new(policy) }
    }

    fn wish(subject: &str, minutes: u64) -> Wish {
        Wish {
            subject: subject.parse().expect("valid"),
            requester: subject.parse().expect("valid"),
            resource: "db".parse().expect("valid"),
            hosts: ["app".parse().expect("valid")].into(),
            role: None,
            duration: Some(Duration::from_secs(60 * minutes)),
            circumstances: Circumstances::default(),
        }
    }

    fn now() -> Moment {
        let now = Timestamp::from_unix_ms(1_795_000_000_000).expect("in range");
        Moment { now, incidents: Arc::default() }
    }

    #[test]
    fn a_policy_gives_terms_or_says_why_not() {
        let in_force = policy(&[]);
        let terms = wish("user:alice", 30).terms(&in_force, &now()).expect("permitted");
        assert_eq!((terms.role.as_str(), terms.steps.len()), ("debug", 1));
        assert_eq!(terms.idle, Some(Duration::from_secs(600)));
        let steps = steps(
            &in_force.policy,
            &terms.role,
            &"user:alice".parse().expect("valid"),
            &"user:alice".parse().expect("valid"),
        );
        assert_eq!(steps, Some(terms.steps));
        let refused = |wish: Wish| wish.terms(&in_force, &now()).expect_err("refused").to_string();
        assert_eq!(
            refused(wish("user:alice", 90)),
            "the policy (version 7) does not permit it: rule `role:debug`: 1h 30m is longer than 1h, which role `debug` can be had for \
             (what would help: ask for 1h at most)"
        );
        assert_eq!(
            refused(wish("user:mallory", 30)),
            "the policy (version 7) does not permit it: no role gives `user:mallory` access to `db` \
             (what would help: check the name of the resource and of the role, or ask whoever keeps the policy)"
        );
    }

    /// A role with a default, one that is longer than the operator permits, and one without, which says what it refuses.
    #[test]
    fn how_long_a_request_is_that_does_not_say_it() {
        let limits = Limits {
            max_grant_duration: Duration::from_secs(2 * 3600),
            request_lifetime: Duration::from_secs(3600),
        };
        let role = |name: &str, default: &str| {
            format!(
                "[[role]]\nname = \"{name}\"\nto = [\"user:alice\"]\nresources = [\"db\"]\nhosts = [\"*\"]\n\
                 maximum_duration = \"4h\"\n{default}[[role.step]]\napprovers = [\"group:dba\"]\n"
            )
        };
        let roles = [
            role("a", "default_duration = \"20m\"\n"),
            role("b", "default_duration = \"3h\"\n"),
            role("c", ""),
        ];
        let in_force = policy(&[("roles.toml", &roles.concat())]);
        let judged = |role: Option<&str>, minutes: Option<u64>, idle: Option<u64>| {
            let length = |minutes: u64| Duration::from_secs(60 * minutes);
            let new =
                NewRequest { duration: minutes.map(length), idle: idle.map(length), ..new_request(1, None) };
            let role = role.map(|role| role.parse().expect("valid"));
            let wish = Wish { role, duration: new.duration, ..wish("user:alice", 1) };
            let terms = wish.terms(&in_force, &now())?;
            limits.duration(&new, Some((&in_force, &terms)))
        };
        let told = |judged: Result<Duration, Refusal>| match judged {
            Ok(duration) => humantime::format_duration(duration).to_string(),
            Err(refusal) => format!("{refusal} ({})", refusal.hint()),
        };
        assert_eq!(told(judged(None, None, None)), "20m");
        assert_eq!(told(judged(Some("a"), None, Some(19))), "20m");
        assert_eq!(
            told(judged(Some("a"), None, Some(20))),
            "idle: 20m is not less than the duration, 20m (name a shorter one, or how long, as in `--for 30m`)"
        );
        assert_eq!(told(judged(Some("a"), Some(90), Some(20))), "1h 30m");
        assert_eq!(
            told(judged(Some("b"), None, None)),
            "duration: 3h is above the maximum of 2h (ask for less; an operator can raise `max_grant_duration` in the control plane's configuration)"
        );
        assert_eq!(told(judged(Some("b"), Some(120), None)), "2h");
        assert_eq!(
            told(judged(Some("c"), None, None)),
            "duration: is missing, and role `c` (policy version 7) has no default (name how long, as in `--for 30m`)"
        );
        assert_eq!(told(judged(Some("c"), Some(5), None)), "5m");
        let none = NewRequest { duration: None, ..new_request(1, None) };
        assert_eq!(
            told(limits.duration(&none, None)),
            "duration: is missing, and no policy is in force that has a default (name how long, as in `--for 30m`)"
        );
        assert_eq!(told(limits.duration(&new_request(5, None), None)), "5m");
    }

    #[test]
    fn who_has_shown_one_factor_only_may_not() {
        let condition = "@id(\"mfa\") @help(\"sign in with a second factor\")\nforbid (principal, action, resource) unless { context.mfa };";
        let in_force = policy(&[("conditions/a.cedar", condition)]);
        let mut wish = wish("user:alice", 30);
        assert_eq!(
            wish.terms(&in_force, &now()).expect_err("refused").to_string(),
            "the policy (version 7) does not permit it: rule `mfa`: forbids it (what would help: sign in with a second factor)"
        );
        wish.circumstances.mfa = is_mfa(["pwd", "mfa"]);
        assert!(wish.terms(&in_force, &now()).is_ok());
        assert!(!is_mfa(["pwd", "otp"]));
        for stage in [Stage::Activate, Stage::Keep] {
            wish.role = "debug".parse().ok();
            assert_eq!(wish.is_permitted(&in_force, stage, &now()), Ok(()));
        }
    }

    #[test]
    fn who_has_signed_in_from_no_managed_device_may_not() {
        let condition = "@id(\"managed\")\nforbid (principal, action, resource) unless { context has device && context.device.managed };";
        let in_force = policy(&[("conditions/a.cedar", condition)]);
        for (device, is_managed) in [
            (None, false),
            (Some(Device { managed: false, encrypted: true }), false),
            (Some(Device { managed: true, encrypted: false }), true),
        ] {
            let mut wish = Wish { role: "debug".parse().ok(), ..wish("user:alice", 30) };
            wish.circumstances.device = device;
            for stage in Stage::ALL {
                assert_eq!(
                    wish.is_permitted(&in_force, stage, &now()).is_ok(),
                    is_managed,
                    "{device:?}, {stage}"
                );
            }
        }
    }

    /// The sign-in is whoever's asks; the groups are whoever's it is for.
    #[test]
    fn what_is_known_of_who_asks_for_somebody_else() {
        let known = Circumstances {
            mfa: true,
            groups: ["dba".parse().expect("valid")].into(),
            device: Some(Device { managed: true, encrypted: true }),
            ..Circumstances::default()
        };
        let (alice, bob) = ("user:alice".parse().expect("valid"), "user:bob".parse().expect("valid"));
        assert_eq!(known.clone().of_request(&alice, &alice), known);
        let for_bob = Circumstances { groups: BTreeSet::new(), ..known.clone() };
        assert_eq!(known.of_request(&alice, &bob), for_bob);
    }

    #[test]
    fn what_needs_an_incident_is_permitted_at_each_stage_while_one_is_open() {
        let condition = "@id(\"incident\") @help(\"open one\")\nforbid (principal, action, resource) unless { context.incident_active };";
        let in_force = policy(&[("conditions/a.cedar", condition)]);
        let wish = Wish { role: "debug".parse().ok(), ..wish("user:alice", 30) };
        let ends = |seconds| {
            let end = now().now.plus(Duration::from_secs(seconds));
            Moment { incidents: Arc::new([("inc-42".parse().expect("valid"), end)].into()), ..now() }
        };
        for stage in Stage::ALL {
            assert!(wish.is_permitted(&in_force, stage, &ends(1)).is_ok(), "{stage}");
            for without in [now(), ends(0)] {
                let refused = wish.is_permitted(&in_force, stage, &without).expect_err("none is open");
                assert!(refused.to_string().contains("rule `incident`: forbids it"), "{refused}");
            }
        }
        assert!(wish.clock(&in_force, &ends(1)).is_ok() && wish.clock(&in_force, &now()).is_err());
    }
}
