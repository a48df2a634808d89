//! The only reads of a clock. Everybody else is told what time it is.

use std::time::SystemTime;

use proto::types::Timestamp;

/// Now, by the wall clock.
pub fn now() -> Timestamp {
    system_now().into()
}

/// The same, as certificates are dated.
pub fn system_now() -> SystemTime {
    SystemTime::now()
}
