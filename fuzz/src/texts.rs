//! Texts that people and kernels write: text → value → text → the same value.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use agent::rules::{layouts::Place, mounts};
use proto::types::{
    Address, CgroupPath, Fingerprint, HostName, JoinToken, Label, Labels, Outage, PortRange, Prefix,
    ProviderName, Reason, ResourceMode, ResourceName, Selector, SubjectId, SubjectRole, UnixPath,
    WorkloadToken,
};

use crate::choice;

/// As in `messages`: a new one goes to the end.
const PARSERS: [fn(&str); 22] = [
    same::<Selector>,
    same::<CgroupPath>,
    same::<SubjectId>,
    same::<HostName>,
    same::<ResourceName>,
    same::<ProviderName>,
    parsed::<Label>,
    same::<Labels>,
    same::<PortRange>,
    same::<Prefix>,
    same::<Address>,
    same::<UnixPath>,
    same::<ResourceMode>,
    same::<SubjectRole>,
    same::<Outage>,
    same::<Fingerprint>,
    parsed::<Reason>,
    parsed::<JoinToken>,
    parsed::<WorkloadToken>,
    cgroup,
    mount_table,
    listen,
];

pub(crate) fn run(bytes: &[u8]) {
    if let Some((which, bytes)) = choice(bytes, PARSERS.len())
        && let Ok(text) = str::from_utf8(bytes)
    {
        PARSERS[which](text);
    }
}

fn same<T: FromStr<Err: Debug> + Display + PartialEq + Debug>(text: &str) {
    let Ok(value) = text.parse::<T>() else { return };
    let written = value.to_string();
    let again =
        written.parse::<T>().unwrap_or_else(|error| panic!("{value:?}, written as {written:?}: {error:?}"));
    assert_eq!(again, value, "written as {written:?}");
}

fn parsed<T: FromStr>(text: &str) {
    let _ = text.parse::<T>();
}

/// What a cgroup is by its path; below what others may write, nothing.
fn cgroup(text: &str) {
    let _ = Place::of(text).is_open();
}

fn mount_table(text: &str) {
    for mount in mounts::mounts(text) {
        let _ = format!("{mount:?}");
    }
    let _ = mounts::unescape(text);
}

fn listen(text: &str) {
    let _ = text.parse::<control_plane::config::Listen>();
}
