//! What the agent decides, without a kernel, a network, a disk or a clock: `now` is always an argument.

pub mod audit;
pub mod digest;
pub mod drift;
pub mod exact;
pub mod grants;
pub mod layouts;
pub mod local;
pub mod mounts;
pub mod plan;
pub mod pods;
pub mod queue;
pub mod reports;
pub mod runs;
pub mod workloads;
