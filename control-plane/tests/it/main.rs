//! The control plane as callers see it: a real server, a real database, real connections.

mod access;
mod audit;
mod binary;
mod enrolment;
mod expiry;
mod histories;
mod sessions;
mod store;
mod world;
