//! What is known of a request when it is judged.
//!
//! Owns: the shape of the facts, by which conditions and cases judge. Must not know: where they come from, what follows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use proto::types::{HostName, Invalid, ResourceName, SubjectId, Timestamp};

use crate::names::{GroupName, IncidentId, RoleName};
use crate::problem::quote;

/// What is asked of the policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// May it be asked for?
    #[default]
    Request,
    /// May the grant begin?
    Activate,
    /// May the grant live on?
    Keep,
}

impl Stage {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Request, Self::Activate, Self::Keep];

    /// As people write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Activate => "activate",
            Self::Keep => "keep",
        }
    }
}

/// By which way a request came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// `portcullis`.
    #[default]
    Cli,
    /// Another program.
    Api,
    /// A browser.
    Web,
    /// A service that signed in by itself.
    Workload,
}

impl Channel {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Cli, Self::Api, Self::Web, Self::Workload];

    /// As people write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cli => "cli",
            Self::Api => "api",
            Self::Web => "web",
            Self::Workload => "workload",
        }
    }
}

macro_rules! words {
    ($type:ident, $field:literal, $list:literal) => {
        impl Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $type {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                let known = Self::ALL.into_iter().find(|known| known.as_str() == text);
                known.ok_or_else(|| Invalid::new($field, format_args!("{} is not {}", quote(text), $list)))
            }
        }
    };
}

words!(Stage, "stage", "request, activate or keep");
words!(Channel, "channel", "cli, api, web or workload");

/// What is known of the device that somebody signed in from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// It belongs to those that somebody looks after.
    pub managed: bool,
    /// Its disk is encrypted.
    pub encrypted: bool,
}

/// What is known of a request. What is None or empty is not known; conditions see it as absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// When it is judged.
    pub now: Timestamp,
    /// What is asked.
    pub stage: Stage,
    /// Who the access is for.
    pub subject: SubjectId,
    /// Who asks.
    pub requester: SubjectId,
    /// The subject's groups by its identity provider, beside those in the files.
    pub groups: BTreeSet<GroupName>,
    /// What is to be reached.
    pub resource: ResourceName,
    /// From which hosts; empty: from all that the policy knows.
    pub hosts: BTreeSet<HostName>,
    /// By which role; None: by whichever fits best.
    pub role: Option<RoleName>,
    /// How long; None: as long as the role says.
    pub duration: Option<Duration>,
    /// By which way it came.
    pub channel: Channel,
    /// From which address.
    pub source: Option<IpAddr>,
    /// The sign-in was by more than one factor.
    pub mfa: bool,
    /// How long ago the sign-in was.
    pub login_age: Option<Duration>,
    /// From which device.
    pub device: Option<Device>,
    /// Incidents, each with its end. One whose end is not after `now` is over.
    /// Shared: the same for all that is judged at a time.
    pub incidents: Arc<BTreeMap<IncidentId, Timestamp>>,
    /// How many people have said yes so far.
    pub approvals: u32,
}

impl Facts {
    /// Somebody asks for themselves, and nothing else is known.
    pub fn new(now: Timestamp, subject: SubjectId, resource: ResourceName) -> Self {
        Self {
            now,
            stage: Stage::default(),
            requester: subject.clone(),
            subject,
            groups: BTreeSet::new(),
            resource,
            hosts: BTreeSet::new(),
            role: None,
            duration: None,
            channel: Channel::default(),
            source: None,
            mfa: false,
            login_age: None,
            device: None,
            incidents: Arc::default(),
            approvals: 0,
        }
    }
}
