//! Names and ids, each a type of its own.

use std::fmt::{self, Display};
use std::num::NonZeroU32;
use std::str::FromStr;

use uuid::Uuid;

use super::{Invalid, quote};

/// A type that holds a checked string.
macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $field:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(String);

        impl $type {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                let check: fn(&str) -> Result<(), String> = $check;
                check(text).map_err(|problem| Invalid::new($field, format_args!("{} {problem}", quote(text))))?;
                Ok(Self(text.to_owned()))
            }
        }

        impl Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0
            }
        }
    };
}

name!(
    /// A resource's name: 1..=63 of `a-z`, `0-9`, `-`, `.`; starts and ends with a letter or digit.
    ResourceName, "resource", label
);
name!(
    /// A host's name, by the same rule as [`ResourceName`]. `control-plane` is taken: events of its own carry it.
    HostName, "host", |text| {
        if text == super::audit::CONTROL_PLANE_SOURCE {
            return Err("is the control plane's own name; choose another".to_owned());
        }
        label(text)
    }
);
name!(
    /// The name of an identity provider, by the same rule as [`ResourceName`].
    ProviderName, "provider", label
);
name!(
    /// The name of a program that is asked for a decision, by the same rule as [`ResourceName`].
    HookName, "hook", label
);
name!(
    /// The name of a role of a policy, by the same rule as [`ResourceName`].
    RoleName, "role", label
);
name!(
    /// The id of an incident, as people write it, by the same rule as [`ResourceName`].
    IncidentId, "incident", label
);
name!(
    /// A subject's id: `user:NAME` or `workload:NAME`, NAME 1..=128 of `a-z`, `0-9`, `.`, `_`, `-`, `@`, `/`, `+`.
    SubjectId, "subject", subject_id
);

fn label(text: &str) -> Result<(), String> {
    const MAX_BYTES: usize = 63;
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    let outer =
        |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let bytes = text.as_bytes();
    if bytes.len() > MAX_BYTES {
        return Err(format!("is longer than {MAX_BYTES} bytes"));
    }
    if !bytes.iter().copied().all(inner) || !outer(bytes.first()) || !outer(bytes.last()) {
        return Err(
            "is not a name: use a-z, 0-9, `-` and `.`, with a letter or digit at both ends".to_owned()
        );
    }
    Ok(())
}

fn subject_id(text: &str) -> Result<(), String> {
    const NAME_MAX_BYTES: usize = 128;
    let name = text
        .strip_prefix("user:")
        .or_else(|| text.strip_prefix("workload:"))
        .ok_or("is not a subject: write `user:NAME` or `workload:NAME`")?;
    if name.is_empty() || name.len() > NAME_MAX_BYTES {
        return Err(format!("has a name of {} bytes; 1 to {NAME_MAX_BYTES} are possible", name.len()));
    }
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-@/+".contains(&byte);
    match name.bytes().all(allowed) {
        true => Ok(()),
        false => Err("has a character that is not one of a-z, 0-9, `.`, `_`, `-`, `@`, `/`, `+`".to_owned()),
    }
}

/// A type that holds a UUID.
macro_rules! uuid_id {
    ($(#[$doc:meta])* $type:ident, $field:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(Uuid);

        impl $type {
            /// A new one, greater than those before it (UUIDv7).
            #[allow(clippy::new_without_default, reason = "each one is different")]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            /// The 16 bytes, in network order.
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// From 16 bytes in network order. All zero stands for no id: None.
            pub fn from_bytes(bytes: [u8; 16]) -> Option<Self> {
                (bytes != [0; 16]).then(|| Self(Uuid::from_bytes(bytes)))
            }
        }

        impl FromStr for $type {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                Uuid::try_parse(text).ok().and_then(|uuid| Self::from_bytes(*uuid.as_bytes())).ok_or_else(|| {
                    Invalid::new($field, format_args!("{} is not an id: a UUID is expected", quote(text)))
                })
            }
        }

        impl Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0.hyphenated().to_string())
            }
        }
    };
}

uuid_id!(
    /// A request's id.
    RequestId, "request"
);
uuid_id!(
    /// A grant's id.
    GrantId, "grant"
);
uuid_id!(
    /// The draft of a request.
    DraftId, "draft"
);
uuid_id!(
    /// A freeze.
    FreezeId, "freeze"
);
uuid_id!(
    /// The id of a run, which the agent of its host made.
    RunId, "run"
);

/// A type that holds a number by which kernels name something.
macro_rules! number {
    ($(#[$doc:meta])* $type:ident, $field:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(NonZeroU32);

        impl $type {
            /// The number, never 0.
            pub fn get(self) -> u32 {
                self.0.get()
            }
        }

        impl TryFrom<u32> for $type {
            type Error = Invalid;

            fn try_from(number: u32) -> Result<Self, Invalid> {
                NonZeroU32::new(number).map(Self).ok_or_else(|| Invalid::new($field, "0 is not a number of one"))
            }
        }

        impl Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                Display::fmt(&self.0, f)
            }
        }
    };
}

number!(
    /// How kernels name a resource; given by the control plane.
    ResourceNumber, "resource"
);
number!(
    /// How kernels name a subject; given by the control plane.
    SubjectNumber, "subject"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check<T: FromStr<Err = Invalid>>(good: &[&str], bad: &[&str]) {
        for text in good {
            assert!(text.parse::<T>().is_ok(), "{text}");
        }
        for text in bad {
            let error = text.parse::<T>().err().unwrap_or_else(|| panic!("`{text}` was accepted"));
            assert!(error.problem.len() < 300, "{error}");
        }
    }

    #[test]
    fn labels() {
        let (long, longer) = ("a".repeat(63), "a".repeat(64));
        check::<ResourceName>(
            &["a", "db-prod", "db.prod-1", "1", &long],
            &["", "-a", "a-", "A", "a b", "dä", "a_b", "а", "a\n", &longer],
        );
        check::<HostName>(&["db-7"], &["control-plane", ""]);
    }

    #[test]
    fn subjects() {
        let long = format!("user:{}", "a".repeat(129));
        check::<SubjectId>(
            &["user:alice@example.com", "workload:ci/deploy"],
            &["", "alice", "user:", "User:alice", "user:Alice", "user:a b", "group:x", &long],
        );
    }

    #[test]
    fn ids_and_numbers() {
        let id = GrantId::new();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(GrantId::from_bytes(*id.as_bytes()), Some(id));
        check::<GrantId>(&[], &["", "7", "00000000-0000-0000-0000-000000000000"]);
        assert!(ResourceNumber::try_from(0).is_err());
        assert_eq!(SubjectNumber::try_from(7).map(SubjectNumber::get), Ok(7));
    }
}
