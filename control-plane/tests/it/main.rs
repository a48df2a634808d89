//! The control plane as callers see it: a real server, a real database, real connections.

mod access;
mod audit;
mod binary;
mod browser;
mod console;
mod enrolment;
mod expiry;
mod histories;
mod peers;
mod provider;
mod runs;
mod sessions;
mod sign_in;
mod store;
mod svid;
mod workloads;
mod world;
