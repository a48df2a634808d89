//! How a subject's processes are found on a host.
//!
//! Owns: the text of selectors, one form for each. Must not know: where cgroups are, or what runs in them.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::str::FromStr;

use super::{Invalid, quote};

/// A Unix account, as a selector names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UnixUser {
    /// By number.
    Uid(u32),
    /// By name, which each host resolves by its own accounts.
    Name(String),
}

impl UnixUser {
    /// The longest account name of Linux (LOGIN_NAME_MAX less its end).
    const NAME_MAX_BYTES: usize = 255;

    fn parse(account: &str) -> Result<Self, &'static str> {
        let allowed = |char: char| char.is_ascii_alphanumeric() || "._-+@$".contains(char);
        if account.is_empty() || account.len() > Self::NAME_MAX_BYTES || !account.chars().all(allowed) {
            return Err("has no account name or uid behind `unix-user:`");
        }
        if !account.starts_with(|char: char| char.is_ascii_digit()) {
            return Ok(Self::Name(account.to_owned()));
        }
        // `(uid_t) -1` means "none" to the kernel.
        match account.parse() {
            Ok(u32::MAX) | Err(_) => Err("starts with a digit and is not a uid"),
            Ok(uid) => Ok(Self::Uid(uid)),
        }
    }
}

impl Display for UnixUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uid(uid) => uid.fmt(f),
            Self::Name(name) => f.pad(name),
        }
    }
}

/// A cgroup by its path below the cgroup v2 root: absolute, 2..=4095 bytes, not the root itself, no empty, `.` or `..` part, no
/// control character.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CgroupPath(String);

impl CgroupPath {
    /// PATH_MAX of Linux, without its end.
    const MAX_BYTES: usize = 4095;

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parse(path: &str) -> Result<Self, &'static str> {
        let part_ok = |part: &str| !part.is_empty() && part != "." && part != "..";
        let inner = path.strip_prefix('/').ok_or("is not absolute: start the path with `/`")?;
        if inner.is_empty() {
            return Err("is the root, which every process belongs to");
        }
        if path.len() > Self::MAX_BYTES || path.chars().any(char::is_control) {
            return Err("is longer than 4095 bytes or has a control character");
        }
        match inner.split('/').all(part_ok) {
            true => Ok(Self(path.to_owned())),
            false => Err("has an empty, `.` or `..` part"),
        }
    }
}

impl FromStr for CgroupPath {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::parse(text).map_err(|problem| Invalid::new("cgroup", format_args!("{} {problem}", quote(text))))
    }
}

impl Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl From<CgroupPath> for String {
    fn from(path: CgroupPath) -> Self {
        path.0
    }
}

/// A cgroup path that may be absent, which is empty on the wire.
pub(crate) fn optional_cgroup(field: &str, text: &str) -> Result<Option<CgroupPath>, Invalid> {
    let parse = || text.parse().map_err(|error: Invalid| Invalid::new(field, error.problem));
    (!text.is_empty()).then(parse).transpose()
}

/// A unit that has a cgroup, as systemd writes its name: a service, scope or slice; of a template an instance. Escapes (`\x2d`)
/// stay as they are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitName(String);

impl UnitName {
    /// UNIT_NAME_MAX of systemd, without its end.
    const MAX_BYTES: usize = 255;

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name if it is one.
    pub fn parse(name: &str) -> Result<Self, &'static str> {
        let allowed = |char: char| char.is_ascii_alphanumeric() || ":-_.\\@".contains(char);
        if name.len() > Self::MAX_BYTES || !name.chars().all(allowed) {
            return Err(
                "is no name of a unit: at most 255 of A-Z, a-z, 0-9 and `:-_.\\@`, escaped as systemd does",
            );
        }
        let (stem, kind) = name.rsplit_once('.').unwrap_or_default();
        match kind {
            "slice" => Self::check_slice(stem)?,
            "service" | "scope" => Self::check_instance(stem)?,
            _ => return Err("is no unit with a cgroup: end it with `.service`, `.scope` or `.slice`"),
        }
        Ok(Self(name.to_owned()))
    }

    fn check_slice(stem: &str) -> Result<(), &'static str> {
        match stem {
            "-" => Err("is the root, which every process belongs to"),
            _ if stem.split('-').any(str::is_empty) || stem.contains('@') => {
                Err("is no slice: a dash stands between two names, and there are no templates")
            }
            _ => Ok(()),
        }
    }

    fn check_instance(stem: &str) -> Result<(), &'static str> {
        match stem.split_once('@') {
            Some((_, "")) => {
                Err("is a template, which has no processes: name an instance, `NAME@INSTANCE.service`")
            }
            Some(("", _)) => Err("has no name before its `@`"),
            None if stem.is_empty() => Err("has no name before its type"),
            _ => Ok(()),
        }
    }
}

impl Display for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A container by its whole id, or by how it begins: 12..=64 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerPrefix(String);

impl ContainerPrefix {
    /// As much as `docker ps` shows.
    const MIN_DIGITS: usize = 12;
    /// A whole id.
    const MAX_DIGITS: usize = 64;

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parse(id: &str) -> Result<Self, &'static str> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        match (Self::MIN_DIGITS..=Self::MAX_DIGITS).contains(&id.len()) && id.bytes().all(is_digit) {
            true => Ok(Self(id.to_owned())),
            false => {
                Err("is no id of a container: 64 lower-case hexadecimal digits, or at least the first 12")
            }
        }
    }
}

impl Display for ContainerPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Pods of one namespace: those of a service account, those with certain labels, or those with both.
///
/// A service account is given by whoever may make pods in the namespace, and cannot change afterwards; labels can be changed by
/// whoever may change pods.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodSelector {
    namespace: String,
    service_account: Option<String>,
    labels: BTreeMap<String, String>,
}

impl PodSelector {
    /// More do not make it clearer.
    const LABELS_MAX: usize = 8;

    /// Whether a pod is one of them. `label` gives the value of a label that the pod has.
    pub fn matches<'a>(
        &self,
        namespace: &str,
        service_account: &str,
        label: impl Fn(&str) -> Option<&'a str>,
    ) -> bool {
        self.namespace == namespace
            && self.service_account.as_deref().is_none_or(|wanted| wanted == service_account)
            && self.labels.iter().all(|(key, value)| label(key) == Some(value))
    }

    fn parse(text: &str) -> Result<Self, &'static str> {
        let (place, labels) = match text.split_once('?') {
            Some((place, labels)) => (place, Self::parse_labels(labels)?),
            None => (text, BTreeMap::new()),
        };
        let (namespace, service_account) = match place.split_once('/') {
            Some((namespace, account)) => (namespace, Some(account)),
            None => (place, None),
        };
        if !is_dns_label(namespace) {
            return Err("has no name of a namespace behind `kubernetes:`");
        }
        if service_account.is_some_and(|account| !is_dns_name(account)) {
            return Err("has no name of a service account behind its `/`");
        }
        if service_account.is_none() && labels.is_empty() {
            return Err("is a whole namespace: add `/SERVICE-ACCOUNT` or `?LABEL=VALUE,...`");
        }
        let (namespace, service_account) = (namespace.to_owned(), service_account.map(str::to_owned));
        Ok(Self { namespace, service_account, labels })
    }

    fn parse_labels(text: &str) -> Result<BTreeMap<String, String>, &'static str> {
        let mut labels = BTreeMap::new();
        for label in text.split(',') {
            let (key, value) = label.split_once('=').ok_or("has a label without `=VALUE`")?;
            if !is_label_key(key) || !(value.is_empty() || is_label_name(value)) {
                return Err(
                    "has a label that Kubernetes would not take: [PREFIX/]NAME=VALUE, at most 63 characters each",
                );
            }
            if labels.insert(key.to_owned(), value.to_owned()).is_some() {
                return Err("has a label twice");
            }
        }
        match labels.len() > Self::LABELS_MAX {
            true => Err("has more than 8 labels"),
            false => Ok(labels),
        }
    }
}

impl Display for PodSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.namespace)?;
        if let Some(account) = &self.service_account {
            write!(f, "/{account}")?;
        }
        for (index, (key, value)) in self.labels.iter().enumerate() {
            let mark = if index == 0 { '?' } else { ',' };
            write!(f, "{mark}{key}={value}")?;
        }
        Ok(())
    }
}

/// RFC 1123: 1..=63 of a-z, 0-9 and `-`, which stands within.
fn is_dns_label(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(allowed)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// RFC 1123: such labels with dots between, at most 253 bytes.
fn is_dns_name(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

/// What Kubernetes takes as the name, or as the value, of a label.
fn is_label_name(text: &str) -> bool {
    let within = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let at_the_ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.iter().copied().all(within)
        && at_the_ends(bytes.first())
        && at_the_ends(bytes.last())
}

fn is_label_key(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_dns_name(prefix) && is_label_name(name),
        None => is_label_name(text),
    }
}

/// How a subject's processes are found on a host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Selector {
    /// The cgroup at this path below the cgroup v2 root, and those within it: `cgroup:/app.slice/job`.
    Cgroup(CgroupPath),
    /// The systemd slice of an account, and what is within it: `unix-user:alice` or `unix-user:1000`.
    UnixUser(UnixUser),
    /// A unit of the system's own manager, and what is within it: `systemd-unit:nginx.service`.
    SystemdUnit(UnitName),
    /// A container: `container:4c01db0b339c`.
    Container(ContainerPrefix),
    /// Pods on this node: `kubernetes:prod/billing` (their service account), `kubernetes:prod?app=billing,tier=web` (their labels).
    Kubernetes(PodSelector),
}

impl Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cgroup(path) => write!(f, "cgroup:{path}"),
            Self::UnixUser(user) => write!(f, "unix-user:{user}"),
            Self::SystemdUnit(name) => write!(f, "systemd-unit:{name}"),
            Self::Container(id) => write!(f, "container:{id}"),
            Self::Kubernetes(pods) => write!(f, "kubernetes:{pods}"),
        }
    }
}

impl FromStr for Selector {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let selector = match text.split_once(':') {
            Some(("cgroup", path)) => CgroupPath::parse(path).map(Self::Cgroup),
            Some(("unix-user", account)) => UnixUser::parse(account).map(Self::UnixUser),
            Some(("systemd-unit", name)) => UnitName::parse(name).map(Self::SystemdUnit),
            Some(("container", id)) => ContainerPrefix::parse(id).map(Self::Container),
            Some(("kubernetes", pods)) => PodSelector::parse(pods).map(Self::Kubernetes),
            Some(("run", _)) => Err("cannot be used yet: `run` is kept for commands that an agent starts"),
            _ => {
                Err("is not a selector: write `cgroup:/PATH`, `unix-user:NAME-OR-UID`, `systemd-unit:NAME`, \
                      `container:ID`, `kubernetes:NAMESPACE/SERVICE-ACCOUNT` or `kubernetes:NAMESPACE?LABEL=VALUE,...`")
            }
        };
        selector.map_err(|problem| Invalid::new("selectors", format_args!("{} {problem}", quote(text))))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "4c01db0b339c8f6e8d3c1a5b7e9f0a2c4d6e8f0b1c3d5e7f9a0b2c4d6e8f0a1b";

    #[test]
    fn what_is_taken_is_shown_as_it_was() {
        let container = format!("container:{ID}");
        let good = [
            "cgroup:/a",
            "cgroup:/a.slice/b:c",
            "unix-user:alice",
            "unix-user:0",
            "unix-user:4294967294",
            "systemd-unit:nginx.service",
            "systemd-unit:getty@tty1.service",
            "systemd-unit:a@b@c.service",
            r"systemd-unit:system-systemd\x2dcryptsetup.slice",
            "systemd-unit:session-3.scope",
            "systemd-unit:cpu.service",
            "systemd-unit:_x.service",
            "systemd-unit:user-1000.slice",
            "container:4c01db0b339c",
            &container,
            "kubernetes:prod/billing",
            "kubernetes:prod/a.b-c",
            "kubernetes:prod?app=billing",
            "kubernetes:prod?app.kubernetes.io/name=x,empty=,tier=Web_1.2",
            "kubernetes:prod/billing?tier=web",
        ];
        for text in good {
            assert_eq!(text.parse::<Selector>().map(|selector| selector.to_string()).as_deref(), Ok(text));
        }
        let shuffled = "kubernetes:prod?b=2,a=1".parse::<Selector>().expect("valid");
        assert_eq!(shuffled.to_string(), "kubernetes:prod?a=1,b=2");
    }

    #[test]
    fn what_is_refused_is_named_with_the_rule() {
        let long_unit = format!("systemd-unit:{}.service", "a".repeat(248));
        let long_container = format!("container:{ID}0");
        let long_namespace = format!("kubernetes:{}/a", "n".repeat(64));
        let labels = (0..9).map(|number| format!("l{number}=v")).collect::<Vec<_>>().join(",");
        let many_labels = format!("kubernetes:prod?{labels}");
        let bad = [
            ("", "is not a selector"),
            ("alice", "is not a selector"),
            ("run:x", "cannot be used yet"),
            ("cgroup:", "is not absolute"),
            ("cgroup:a", "is not absolute"),
            ("cgroup:/", "every process"),
            ("cgroup:/a/", "part"),
            ("cgroup://a", "part"),
            ("cgroup:/a/../b", "part"),
            ("cgroup:/.", "part"),
            ("cgroup:/a\nb", "control character"),
            ("unix-user:", "no account"),
            ("unix-user:1a", "not a uid"),
            ("unix-user:4294967295", "not a uid"),
            ("unix-user:99999999999", "not a uid"),
            ("unix-user:a/b", "no account"),
            ("systemd-unit:", "end it with"),
            ("systemd-unit:nginx", "end it with"),
            ("systemd-unit:sshd.socket", "end it with"),
            ("systemd-unit:.service", "no name"),
            ("systemd-unit:@a.service", "no name"),
            ("systemd-unit:getty@.service", "name an instance"),
            ("systemd-unit:a/b.service", "no name of a unit"),
            ("systemd-unit:a b.service", "no name of a unit"),
            ("systemd-unit:-.slice", "every process"),
            ("systemd-unit:.slice", "no slice"),
            ("systemd-unit:a--b.slice", "no slice"),
            ("systemd-unit:a-.slice", "no slice"),
            (&long_unit, "no name of a unit"),
            ("container:", "hexadecimal"),
            ("container:4c01db0b339", "hexadecimal"),
            ("container:4C01DB0B339C", "hexadecimal"),
            ("container:my-container", "hexadecimal"),
            (&long_container, "hexadecimal"),
            ("kubernetes:", "namespace"),
            ("kubernetes:prod", "whole namespace"),
            ("kubernetes:Prod/a", "namespace"),
            ("kubernetes:-a/a", "namespace"),
            ("kubernetes:prod/", "service account"),
            ("kubernetes:prod/a/b", "service account"),
            ("kubernetes:prod?", "=VALUE"),
            ("kubernetes:prod?app", "=VALUE"),
            ("kubernetes:prod?app=a,app=b", "twice"),
            ("kubernetes:prod?app=-a", "would not take"),
            ("kubernetes:prod?a/b/c=d", "would not take"),
            (&long_namespace, "namespace"),
            (&many_labels, "more than 8"),
        ];
        for (text, rule) in bad {
            let error = text.parse::<Selector>().expect_err(text).to_string();
            assert!(error.contains(rule), "{text}: {error}");
            assert!(error.contains(&quote(text)), "{text}: {error}");
        }
    }

    #[test]
    fn pods_are_those_of_the_account_with_all_the_labels() {
        let matches = |selector: &str, namespace: &str, account: &str| {
            let labels = BTreeMap::from([("app", "billing"), ("tier", "web")]);
            let Ok(Selector::Kubernetes(pods)) = selector.parse() else { panic!("no pods: {selector}") };
            pods.matches(namespace, account, |key| labels.get(key).copied())
        };
        assert!(matches("kubernetes:prod/billing", "prod", "billing"));
        assert!(!matches("kubernetes:prod/billing", "test", "billing"));
        assert!(!matches("kubernetes:prod/billing", "prod", "billing2"));
        assert!(matches("kubernetes:prod?app=billing", "prod", "any"));
        assert!(!matches("kubernetes:prod?app=billing,x=", "prod", "any"));
        assert!(!matches("kubernetes:prod/billing?app=other", "prod", "billing"));
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_taken_survives(
            kind in "(cgroup:/|unix-user:|systemd-unit:|container:|kubernetes:|run:|)",
            rest in "[a-f0-9@._/?=,\\\\-]{0,40}(|.service|.slice|\\PC{0,4})",
        ) {
            if let Ok(selector) = format!("{kind}{rest}").parse::<Selector>() {
                prop_assert_eq!(selector.to_string().parse(), Ok(selector));
            }
        }
    }
}
