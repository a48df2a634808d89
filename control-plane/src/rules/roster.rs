//! Hosts: what may be claimed about each.
//!
//! Owns: how report, session and refusals become the state that people see; whether two agents are one host. Must not know: streams, storage.
//!
//! Invariant: nothing is claimed of a host without a session, and no refused item is kept quiet.

use std::fmt;
use std::str::FromStr;

use proto::types::{HostState, Invalid, Outage, Report, ResourceName, SubjectId, Timestamp};
use uuid::Uuid;

/// How it is about a host's session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presence {
    /// When its agent was last heard.
    pub seen: Timestamp,
    /// When its kernel was last found to be as it should be; None: not yet.
    pub confirmed: Option<Timestamp>,
    /// In what it was not; None: in nothing that is known.
    pub disagreement: Option<String>,
}

/// The runs of a host's agent that had its session, newest last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Instances(Vec<Uuid>);

impl Instances {
    /// How many are remembered.
    const MAX: usize = 8;

    /// This run has the session now. Returns whether it had it before another one did: then two agents have the host's key.
    pub fn take(&mut self, instance: Uuid) -> bool {
        // An agent that comes back because its connection broke takes the session from itself.
        if self.0.last() == Some(&instance) {
            return false;
        }
        let before = self.0.len();
        self.0.retain(|known| *known != instance);
        let takes_turns = self.0.len() < before;
        self.0.push(instance);
        self.0.drain(..self.0.len().saturating_sub(Self::MAX));
        takes_turns
    }
}

/// As it is kept: separated by spaces.
impl fmt::Display for Instances {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.0.iter().map(Uuid::to_string).collect();
        f.write_str(&texts.join(" "))
    }
}

impl FromStr for Instances {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let parse = |text: &str| Uuid::try_parse(text).map_err(|error| Invalid::new("instances", error));
        text.split_whitespace().map(parse).collect::<Result<_, _>>().map(Self)
    }
}

/// Something that a host's kernel could not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// It is not protected there.
    Resource(ResourceName, String),
    /// Its processes are nobody's there.
    Subject(SubjectId, String),
}

impl Missing {
    fn sentence(&self) -> String {
        match self {
            Self::Resource(name, error) => format!("resource {name} is not protected: {error}"),
            Self::Subject(id, error) => format!("subject {id} has no processes: {error}"),
        }
    }
}

/// What a connected agent's word is worth: its report, less what its kernel could not take.
pub fn claimed(report: &Report, missing: &[Missing]) -> Report {
    let state = match report.state {
        HostState::Enforcing if !missing.is_empty() => HostState::Degraded,
        state => state,
    };
    let detail = (!report.detail.is_empty()).then(|| report.detail.clone());
    let sentences: Vec<String> = detail.into_iter().chain(missing.iter().map(Missing::sentence)).collect();
    Report { state, detail: sentences.join("; ") }
}

/// How a host is shown. `disagreement`: in what its kernel was last found to hold something else than it should.
pub fn shown(
    is_connected: bool,
    report: Option<&Report>,
    missing: &[Missing],
    disagreement: Option<&str>,
) -> (HostState, String) {
    match (is_connected, report) {
        (true, Some(report)) => {
            let claimed = claimed(report, missing);
            match (disagreement, claimed.state) {
                (None, state) => (state, claimed.detail),
                (Some(problem), HostState::Enforcing) => (HostState::Degraded, problem.to_owned()),
                (Some(problem), state) => (state, format!("{}; {problem}", claimed.detail)),
            }
        }
        (_, None) => (HostState::Unreachable, "its agent has never connected".to_owned()),
        (false, Some(report)) => {
            let detail = format!("no agent is connected; it last reported {}", report.state);
            (HostState::Unreachable, detail)
        }
    }
}

/// The latest that a host's kernel can let somebody through by a grant that ends at `expires`, for a resource with this limit for
/// outages, if the host has certainly not heard us after `heard`.
pub fn lives_until(expires: Timestamp, outage: Outage, heard: Timestamp) -> Timestamp {
    outage.limit().map_or(expires, |limit| expires.min(heard.plus(limit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(
        is_connected: bool,
        report: Option<(HostState, &str)>,
        is_missing: bool,
        expected: (HostState, &str),
    ) {
        let missing = match is_missing {
            true => vec![Missing::Resource("db".parse().expect("valid"), "map full".to_owned())],
            false => Vec::new(),
        };
        let report = report.map(|(state, detail)| Report { state, detail: detail.to_owned() });
        let (state, detail) = shown(is_connected, report.as_ref(), &missing, None);
        assert_eq!((state, detail.as_str()), expected);
    }

    #[test]
    fn nothing_is_claimed_without_a_session() {
        use HostState::{Degraded, Enforcing, NotEnforcing, Unreachable};
        let refused = "resource db is not protected: map full";
        check(true, Some((Enforcing, "")), false, (Enforcing, ""));
        check(true, Some((Enforcing, "")), true, (Degraded, refused));
        check(true, Some((Degraded, "no LSM")), true, (Degraded, &format!("no LSM; {refused}")));
        check(true, Some((NotEnforcing, "canary")), true, (NotEnforcing, &format!("canary; {refused}")));
        let gone = "no agent is connected; it last reported enforcing";
        check(false, Some((Enforcing, "")), true, (Unreachable, gone));
        check(false, None, false, (Unreachable, "its agent has never connected"));
    }

    #[test]
    fn a_kernel_that_holds_something_else_is_told() {
        let check = |state, detail: &str, expected: (HostState, &str)| {
            let report = Report { state, detail: detail.to_owned() };
            let (state, detail) = shown(true, Some(&report), &[], Some("2 pairs"));
            assert_eq!((state, detail.as_str()), expected);
        };
        check(HostState::Enforcing, "", (HostState::Degraded, "2 pairs"));
        check(HostState::NotEnforcing, "canary", (HostState::NotEnforcing, "canary; 2 pairs"));
    }

    #[test]
    fn two_agents_that_take_turns_are_seen() {
        let mut instances = Instances::default();
        let mut take = |number| {
            let takes_turns = instances.take(Uuid::from_u128(number));
            instances = instances.to_string().parse().expect("its own text");
            takes_turns
        };
        assert!(!take(1));
        assert!(!take(1), "its connection broke");
        assert!(!take(2), "the agent was started again");
        assert!(take(1), "both run");
        assert!(take(2), "both run");
        assert!(!(10..30).any(&mut take), "it is started again and again");
        assert!(!take(1), "that is long ago");
        assert!("1 2".parse::<Instances>().is_err());
    }

    #[test]
    fn a_grant_lives_no_longer_than_its_host_can_be_cut_off() {
        let at =
            |seconds: i64| Timestamp::from_unix_ms(1_795_000_000_000 + 1000 * seconds).expect("in range");
        let until = |outage: &str, heard| lives_until(at(600), outage.parse().expect("valid"), at(heard));
        assert_eq!(until("hold", 0), at(600));
        assert_eq!(until("cut", 10), at(25));
        assert_eq!(until("shrink:300s", 10), at(310));
        assert_eq!(until("shrink:300s", 400), at(600));
    }
}
