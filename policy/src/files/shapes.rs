//! The shape of each TOML file, with places, before anything is checked.
//!
//! Owns: keys and which may be left out. Must not know: what values may be.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

type Word = Spanned<String>;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Resources {
    #[serde(default)]
    pub(super) resource: Vec<Resource>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Resource {
    pub(super) name: Word,
    #[serde(default)]
    pub(super) addresses: Vec<Word>,
    #[serde(default)]
    pub(super) ports: Vec<Word>,
    #[serde(default)]
    pub(super) unix: Vec<Word>,
    #[serde(default)]
    pub(super) labels: BTreeMap<String, Word>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Hosts {
    #[serde(default)]
    pub(super) host: Vec<Host>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Host {
    pub(super) name: Word,
    #[serde(default)]
    pub(super) labels: BTreeMap<String, Word>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Subjects {
    #[serde(default)]
    pub(super) subject: Vec<Subject>,
    #[serde(default)]
    pub(super) group: Vec<Group>,
    #[serde(default)]
    pub(super) on_call: Vec<OnCall>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Subject {
    pub(super) id: Word,
    pub(super) manager: Option<Word>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Group {
    pub(super) name: Word,
    #[serde(default)]
    pub(super) members: Vec<Word>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OnCall {
    pub(super) name: Word,
    #[serde(default)]
    pub(super) subjects: Vec<Word>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    pub(super) maximum_duration: Option<Word>,
    pub(super) maximum_idle: Option<Word>,
    pub(super) automatic_maximum_duration: Option<Word>,
    pub(super) maximum_extensions: Option<u32>,
    #[serde(default)]
    pub(super) window: Vec<Window>,
    #[serde(default)]
    pub(super) maintenance: Vec<Maintenance>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Window {
    pub(super) name: Word,
    pub(super) days: Vec<Word>,
    pub(super) from: Word,
    pub(super) to: Word,
    pub(super) zone: Word,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Maintenance {
    pub(super) name: Word,
    pub(super) from: Word,
    pub(super) to: Word,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Roles {
    #[serde(default)]
    pub(super) role: Vec<Role>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Role {
    pub(super) name: Word,
    #[serde(default)]
    pub(super) to: Vec<Word>,
    #[serde(default)]
    pub(super) resources: Vec<Word>,
    #[serde(default)]
    pub(super) hosts: Vec<Word>,
    pub(super) default_duration: Option<Word>,
    pub(super) maximum_duration: Option<Word>,
    pub(super) idle: Option<Word>,
    #[serde(default)]
    pub(super) strict: bool,
    pub(super) extension: Option<Extension>,
    pub(super) clock: Option<Word>,
    #[serde(default)]
    pub(super) automatic: bool,
    pub(super) break_glass: Option<Spanned<bool>>,
    #[serde(default)]
    pub(super) step: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Extension {
    pub(super) times: Spanned<u32>,
    pub(super) by: Word,
    #[serde(default)]
    pub(super) approval: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Step {
    pub(super) approvers: Spanned<Vec<Word>>,
    pub(super) count: Option<Spanned<u32>>,
    pub(super) after: Option<Word>,
    pub(super) then: Option<Word>,
    #[serde(default)]
    pub(super) to: Vec<Word>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cases {
    #[serde(default)]
    pub(super) case: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Case {
    pub(super) name: Word,
    pub(super) at: Word,
    pub(super) subject: Word,
    pub(super) resource: Word,
    pub(super) requester: Option<Word>,
    pub(super) stage: Option<Word>,
    pub(super) channel: Option<Word>,
    pub(super) source: Option<Word>,
    #[serde(default)]
    pub(super) groups: Vec<Word>,
    #[serde(default)]
    pub(super) hosts: Vec<Word>,
    pub(super) role: Option<Word>,
    pub(super) duration: Option<Word>,
    #[serde(default)]
    pub(super) mfa: bool,
    pub(super) login_age: Option<Word>,
    pub(super) device: Option<Device>,
    #[serde(default)]
    pub(super) incidents: Vec<Word>,
    #[serde(default)]
    pub(super) approvals: u32,
    pub(super) expect: Expect,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Device {
    pub(super) managed: bool,
    pub(super) encrypted: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Expect {
    pub(super) outcome: Word,
    pub(super) role: Option<Word>,
    #[serde(default)]
    pub(super) rules: Vec<Word>,
    pub(super) approvals: Option<u32>,
    pub(super) duration: Option<Word>,
}
