//! What the kernel tests, the stories and the demo stand on: own cgroups and addresses, real processes, real servers.
//!
//! Owns: making all that, and taking it away again, also after a failure. Everything made here has a name or an address of
//! its own, and only processes started here are ever ended.

pub mod api_server;
pub mod bench;
pub mod cleanup;
pub mod confined;
pub mod container;
pub mod fixture;
pub mod issuer;
pub mod listener;
pub mod machine;
pub mod netlink;
pub mod network;
pub mod other_agent;
pub mod postgres;
pub mod probe;
pub mod process;
pub mod raw;
pub mod runner;
pub mod sandbox;
pub mod socket_probe;
pub mod ssh;
pub mod stage;
pub mod stranger;
pub mod tampering;
pub mod unix_probe;
pub mod wall_clock;
pub mod workload_api;
