//! The Portcullis host agent.
//!
//! Loads the gate into the kernel, binds subjects to cgroups, keeps the maps right and ships audit events. Decisions are in
//! [`rules`]; everything else is the edges: [`kernel`] is the only caller of aya, [`session`] the only caller of tonic,
//! [`observe`] the only reader of `/proc` and cgroupfs, [`clock`] the only reader of clocks.

pub mod addresses;
pub mod canary;
pub mod clock;
pub mod config;
pub mod detach;
pub mod identity;
pub mod kernel;
pub mod kubernetes;
pub mod memory;
mod netlink;
pub mod observe;
pub mod raise;
pub mod rules;
pub mod run;
pub mod runs;
pub mod session;
pub mod sockets;
pub mod spool;
pub mod status;
