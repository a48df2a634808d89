//! The control plane as callers see it: a real server, a real database, real connections.

mod access;
mod audit;
mod binary;
mod enrolment;
mod expiry;
mod histories;
mod provider;
mod runs;
mod sessions;
mod sign_in;
mod store;
mod workloads;
mod world;
