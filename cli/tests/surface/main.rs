//! All that people and scripts see of `portcullis`: help, tables, JSON, errors and exit codes, under snapshot.
//!
//! The control plane behind it is a canned one: the real one is tested in `tests/`.

#![allow(clippy::unwrap_used, clippy::wildcard_imports, reason = "a test that cannot go on shall panic")]

mod canned;
mod documented;
mod help;
mod policies;
mod process;
mod refusals;
mod results;
mod tail;
mod waiting;
