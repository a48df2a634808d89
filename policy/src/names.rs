//! Names of what a policy is made of.
//!
//! Owns: one type for each, all by the rule of `proto`'s names: ASCII, so nothing that only looks like another name gets in.
//! Must not know: what is named.

use std::fmt::{self, Display};
use std::str::FromStr;

use proto::types::{Invalid, ResourceName};

pub use proto::types::{IncidentId, RoleName};

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $field:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(ResourceName);

        impl $type {
            /// The text.
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }
        }

        impl FromStr for $type {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                text.parse().map(Self).map_err(|error: Invalid| Invalid::new($field, error.problem))
            }
        }

        impl Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

name!(
    /// A group's name: 1..=63 of `a-z`, `0-9`, `-`, `.`; starts and ends with a letter or digit.
    GroupName, "group"
);
name!(
    /// A window's name, by the same rule as [`RoleName`].
    WindowName, "window"
);
name!(
    /// The name of those who are on call for something, by the same rule as [`RoleName`].
    RotationName, "on_call"
);
name!(
    /// The `@id` of a Cedar policy, by the same rule as [`RoleName`].
    ConditionId, "id"
);

#[cfg(test)]
mod tests {
    use super::*;

    /// Look-alikes are refused because only ASCII is a name: the letters are Cyrillic, Greek, fullwidth, combined, invisible.
    #[test]
    fn look_alikes_are_no_names() {
        for bad in ["dbа", "οncall", "ｄｂ", "de\u{301}", "d\u{200b}b", "d\u{202e}b", "DB", "d_b"] {
            assert!(bad.parse::<RoleName>().is_err() && bad.parse::<GroupName>().is_err(), "{bad}");
        }
        assert!("db-1.x".parse::<ConditionId>().is_ok());
    }
}
