//! What is right: pure functions from what is known to what follows.
//!
//! Owns: the two lives (request and grant), which host holds what, who may call what, which certificates count, how a host is shown. Must not know:
//! async, clocks, files, the wire, storage. Time is an argument.

pub mod access;
pub mod actor;
pub mod binding;
pub mod browser;
pub mod calls;
pub mod claims;
pub mod draft;
pub mod enrolment;
pub mod expiring;
pub mod extension;
pub mod freeze;
pub mod grant;
pub mod incident;
pub mod notify;
pub mod numbering;
pub mod placement;
pub mod policy;
pub mod refusal;
pub mod report;
pub mod request;
pub mod review;
pub mod roster;
pub mod schedule;
pub mod session;
pub mod steady;
pub mod throttle;
pub mod uses;
pub mod workload;

pub use refusal::Refusal;
