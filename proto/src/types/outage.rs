//! What becomes of live grants on a host that does not hear the control plane.

use std::fmt::{self, Display};
use std::str::FromStr;
use std::time::Duration;

use super::{Invalid, duration_from_wire, duration_to_wire, quote};
use crate::wire::access as wire;

/// How long a grant lives at most after its host has last heard the control plane. Nobody new is let through in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Outage(Option<Duration>);

impl Outage {
    /// To its deadline: the control plane may be away for as long as it likes.
    pub const HOLD: Self = Self(None);
    /// For the shortest time that can be told from a quiet line: three of an agent's reports.
    pub const CUT: Self = Self(Some(Duration::from_secs(15)));
    /// A month: above it, `hold` is meant.
    const MAX: Duration = Duration::from_secs(31 * 24 * 60 * 60);

    /// None: to its deadline.
    pub fn limit(self) -> Option<Duration> {
        self.0
    }

    /// A grant lives for this long at most: whole seconds, from those of [`Outage::CUT`] to 31 days.
    fn limited(limit: Duration) -> Result<Self, Invalid> {
        let shortest = Self::CUT.0.unwrap_or_default();
        match (shortest..=Self::MAX).contains(&limit) && limit.subsec_nanos() == 0 {
            true => Ok(Self(Some(limit))),
            false => {
                let problem = format_args!("{limit:?} is not a whole number of seconds from 15 s to 31 days");
                Err(Invalid::new("outage", problem))
            }
        }
    }

    /// As the wire carries it.
    pub(super) fn from_wire(wire: Option<wire::Outage>) -> Result<Self, Invalid> {
        match wire.and_then(|outage| outage.limit) {
            None => Ok(Self::HOLD),
            limit => Self::limited(duration_from_wire("outage", limit)?),
        }
    }
}

impl From<Outage> for wire::Outage {
    fn from(outage: Outage) -> Self {
        Self { limit: outage.0.map(duration_to_wire) }
    }
}

impl Display for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::HOLD => f.pad("hold"),
            Self::CUT => f.pad("cut"),
            Self(limit) => f.pad(&format!("shrink:{}s", limit.unwrap_or_default().as_secs())),
        }
    }
}

impl FromStr for Outage {
    type Err = Invalid;

    /// `hold`, `cut`, or `shrink:SECONDSs`.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let refuse = || {
            Invalid::new(
                "outage",
                format_args!("{} is not `hold`, `cut` or `shrink:TIME`, as `shrink:300s`", quote(text)),
            )
        };
        match text {
            "hold" => Ok(Self::HOLD),
            "cut" => Ok(Self::CUT),
            _ => {
                let seconds = text.strip_prefix("shrink:").and_then(|time| time.strip_suffix('s'));
                let seconds = seconds.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()));
                Self::limited(Duration::from_secs(
                    seconds.and_then(|digits| digits.parse().ok()).ok_or_else(refuse)?,
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outages() {
        for text in ["hold", "cut", "shrink:16s", "shrink:2678400s"] {
            let outage: Outage = text.parse().expect(text);
            assert_eq!(outage.to_string(), text);
            assert_eq!(Outage::from_wire(Some(outage.into())), Ok(outage));
        }
        assert_eq!(Outage::from_wire(None), Ok(Outage::HOLD));
        assert_eq!("shrink:15s".parse(), Ok(Outage::CUT));
        for bad in
            ["", "shrink", "shrink:5m", "shrink:14s", "shrink:2678401s", "shrink:-1s", "shrink:+20s", "Cut"]
        {
            assert!(bad.parse::<Outage>().is_err(), "{bad}");
        }
    }
}
