//! The Portcullis control plane: requests, approvals, grants, their distribution, the audit record.
//!
//! Owns: [`serve`] and [`Store::create`](store::Store::create), which the binary and tests call. Must not know: arguments,
//! the environment.

pub mod audit;
pub mod clock;
pub mod config;
mod console;
mod deadlines;
mod hooks;
pub mod identity;
pub mod listen;
pub mod notify;
mod replicas;
mod rpc;
pub mod rules;
mod run;
mod sessions;
mod sign_in;
pub mod store;

pub use run::{Bound, ServeError, serve};
