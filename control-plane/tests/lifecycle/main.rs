//! The two lives, request and grant, in small worlds: every state that can be reached, by everything that can happen.
//!
//! [`requests`] and [`grants`] walk through all of a world and check what must always be true; [`page`] compares the tables of
//! `docs/lifecycle.md` with what the rules do.

mod grants;
mod page;
mod requests;

use proto::types::{SubjectId, Timestamp};

/// So many minutes after the beginning.
fn at(minute: u64) -> Timestamp {
    let begin = Timestamp::from_unix_ms(1_795_000_000_000).expect("in range");
    begin.plus(std::time::Duration::from_secs(60 * minute))
}

fn person(name: &str) -> SubjectId {
    format!("user:{name}").parse().expect("valid")
}
