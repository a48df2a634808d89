//! Rows → checked types. What does not fit is a broken row, never a panic.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use prost::Message;
use proto::types::{Action, EndReason, GrantState, Invalid, Timestamp};

use proto::wire::access as wire;

use super::StoreError;

/// A text that we wrote.
pub(super) fn text<T: FromStr<Err = Invalid>>(what: &'static str, text: &str) -> Result<T, StoreError> {
    text.parse().map_err(StoreError::broken(what))
}

/// A number that we wrote.
pub(super) fn number<T>(what: &'static str, value: i64) -> Result<T, StoreError>
where
    T: TryFrom<i64>,
    T::Error: Display,
{
    T::try_from(value).map_err(|error| StoreError::broken(what)(Invalid::new(what, error)))
}

/// A number of a resource or subject.
pub(super) fn id_number<T: TryFrom<u32, Error = Invalid>>(
    what: &'static str,
    value: i64,
) -> Result<T, StoreError> {
    T::try_from(number::<u32>(what, value)?).map_err(StoreError::broken(what))
}

/// A moment that we wrote.
pub(super) fn time(what: &'static str, unix_ms: i64) -> Result<Timestamp, StoreError> {
    Timestamp::from_unix_ms(unix_ms).map_err(StoreError::broken(what))
}

/// An action that we wrote, if we did.
pub(super) fn action(bytes: Option<Vec<u8>>) -> Result<Option<Action>, StoreError> {
    let Some(bytes) = bytes else { return Ok(None) };
    let broken = |_| Invalid::new("action", "is not one");
    let wire = wire::Action::decode(bytes.as_slice()).map_err(broken);
    wire.and_then(TryInto::try_into).map(Some).map_err(StoreError::broken("action"))
}

/// A duration that we wrote in whole seconds, if we did.
pub(super) fn seconds(what: &'static str, seconds: Option<i64>) -> Result<Option<Duration>, StoreError> {
    seconds.map(|seconds| Ok(Duration::from_secs(number(what, seconds)?))).transpose()
}

/// A number on its way into a row. Beyond what SQL can hold it is cut: generations and durations never get there.
pub(super) fn sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// One of a closed list, by its name.
pub(super) fn one_of<T: Copy>(
    what: &'static str,
    all: &[T],
    name: impl Fn(T) -> &'static str,
    found: &str,
) -> Result<T, StoreError> {
    let unknown = || StoreError::broken(what)(Invalid::new(what, format_args!("`{found}` is not known")));
    all.iter().copied().find(|known| name(*known) == found).ok_or_else(unknown)
}

/// A grant's state and the reason for its end.
pub(super) fn grant_state(state: &str, reason: Option<&str>) -> Result<GrantState, StoreError> {
    let reason = match reason {
        None => None,
        Some(reason) => Some(one_of("end_reason", &EndReason::ALL, EndReason::as_str, reason)?),
    };
    match (state, reason) {
        ("scheduled", None) => Ok(GrantState::Scheduled),
        ("activating", None) => Ok(GrantState::Activating),
        ("active", None) => Ok(GrantState::Active),
        ("ending", Some(reason)) => Ok(GrantState::Ending(reason)),
        ("ended", Some(reason)) => Ok(GrantState::Ended(reason)),
        _ => Err(StoreError::broken("state")(Invalid::new("state", format_args!("`{state}` is not known")))),
    }
}
