//! What hosts are, for rules and people: key and value.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Display};
use std::str::FromStr;

use super::{Invalid, ResourceName, quote};

/// How many labels one host may have.
const LABELS_MAX: usize = 32;

/// As Kubernetes bounds the values of its labels.
const VALUE_MAX_BYTES: usize = 63;

/// One label, as people write it: `KEY=VALUE`. A key is a name as [`ResourceName`] is; a value 1..=63 of `a-z`, `A-Z`, `0-9`,
/// `-`, `.`, `_`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    key: String,
    value: String,
}

impl Label {
    fn new(key: &str, value: &str) -> Result<Self, Invalid> {
        key.parse::<ResourceName>().map_err(|error| Invalid::new("", error.problem))?;
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if value.is_empty() || value.len() > VALUE_MAX_BYTES || !value.bytes().all(allowed) {
            let problem = "is not a value: use 1 to 63 of a-z, A-Z, 0-9, `-`, `.` and `_`";
            return Err(Invalid::new("", format_args!("{} of `{key}` {problem}", quote(value))));
        }
        Ok(Self { key: key.to_owned(), value: value.to_owned() })
    }
}

impl FromStr for Label {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let refuse = || Invalid::new("label", format_args!("{} is not `KEY=VALUE`", quote(text)));
        let (key, value) = text.split_once('=').ok_or_else(refuse)?;
        Self::new(key, value).map_err(|error| error.within("label"))
    }
}

/// The labels of one host: at most 32, by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(BTreeMap<String, String>);

impl Labels {
    /// Key and value of each, in order of keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    fn checked(labels: impl IntoIterator<Item = Label>) -> Result<Self, Invalid> {
        let mut checked = BTreeMap::new();
        for Label { key, value } in labels {
            if checked.contains_key(&key) {
                return Err(Invalid::new("labels", format_args!("`{key}` is there twice")));
            }
            checked.insert(key, value);
        }
        match checked.len() > LABELS_MAX {
            true => Err(Invalid::new("labels", format_args!("{} are more than {LABELS_MAX}", checked.len()))),
            false => Ok(Self(checked)),
        }
    }
}

impl TryFrom<Vec<Label>> for Labels {
    type Error = Invalid;

    fn try_from(labels: Vec<Label>) -> Result<Self, Invalid> {
        Self::checked(labels)
    }
}

impl TryFrom<HashMap<String, String>> for Labels {
    type Error = Invalid;

    fn try_from(wire: HashMap<String, String>) -> Result<Self, Invalid> {
        let label =
            |(key, value): (String, String)| Label::new(&key, &value).map_err(|error| error.within("labels"));
        Self::checked(wire.into_iter().map(label).collect::<Result<Vec<_>, _>>()?)
    }
}

impl From<Labels> for HashMap<String, String> {
    fn from(labels: Labels) -> Self {
        labels.0.into_iter().collect()
    }
}

impl FromStr for Labels {
    type Err = Invalid;

    /// As [`Labels`] are shown: separated by commas; empty: none.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let labels = text.split(',').filter(|label| !label.is_empty());
        Self::checked(labels.map(str::parse).collect::<Result<Vec<_>, _>>()?)
    }
}

impl Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels: Vec<String> = self.iter().map(|(key, value)| format!("{key}={value}")).collect();
        f.pad(&labels.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        let labels: Labels = "env=prod,zone=eu-1.A_b".parse().expect("valid");
        assert_eq!(labels.to_string(), "env=prod,zone=eu-1.A_b");
        assert_eq!(Labels::try_from(HashMap::from(labels.clone())), Ok(labels));
        assert_eq!("".parse(), Ok(Labels::default()));
        for bad in [
            "env",
            "=prod",
            "env=",
            "Env=prod",
            "env=a b",
            "env=prod,env=test",
            &format!("a={}", "b".repeat(64)),
        ] {
            assert!(bad.parse::<Labels>().is_err(), "{bad}");
        }
        let many: Vec<String> = (0..33).map(|number| format!("k{number}=v")).collect();
        assert!(many.join(",").parse::<Labels>().is_err());
    }
}
