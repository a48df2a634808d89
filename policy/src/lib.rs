//! Policy as files: who may reach what, under which conditions, and who has to say yes.
//!
//! Owns: the files' meaning ([`files`], with their conditions in Cedar), the decision ([`decide`]), the course of an approval
//! ([`approval`]), and what is worth knowing before a policy counts ([`cases`]). Must not know: clocks, files, networks, storage.
//!
//! Invariants: everything here is a function of its arguments; `now` is one of them. What is not permitted is denied.

pub mod approval;
pub mod cases;
pub mod decide;
pub mod explain;
pub mod facts;
pub mod files;
pub mod lint;
pub mod model;
pub mod names;
pub mod narrow;
pub mod plan;

mod conditions;
mod problem;
mod windows;

pub use conditions::SCHEMA;
pub use decide::{Decision, decide};
pub use model::Policy;
pub use problem::Problem;
pub use windows::{Maintenance, Weekly};
