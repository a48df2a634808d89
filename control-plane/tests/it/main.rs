//! The control plane as callers see it: a real server, real connections, and each kind of database for real.

mod arguments;
mod database;
mod postgres_server;
mod provider;
mod receiver;
mod replicas;
mod sqlite_file;

/// All stories, on a SQLite file.
#[expect(clippy::duplicate_mod, reason = "each story is told on each kind of database")]
#[path = "."]
mod sqlite {
    pub(crate) const KIND: crate::database::Kind = crate::database::Kind::Sqlite;

    mod access;
    mod audit;
    mod binary;
    mod break_glass;
    mod browser;
    mod clock;
    mod console;
    mod drafts;
    mod enrolment;
    mod expiry;
    mod extension;
    mod freeze;
    mod histories;
    mod hooks;
    mod incidents;
    mod notify;
    // It ends before any database is asked.
    mod peers;
    mod policy;
    mod reports;
    mod runs;
    mod schedule;
    mod sessions;
    mod sign_in;
    pub(crate) mod store;
    mod svid;
    mod workloads;
    mod world;
}

/// The same, on a PostgreSQL server.
#[expect(clippy::duplicate_mod, reason = "each story is told on each kind of database")]
#[path = "."]
mod postgres {
    pub(crate) const KIND: crate::database::Kind = crate::database::Kind::Postgres;

    mod access;
    mod audit;
    mod binary;
    mod break_glass;
    mod browser;
    mod clock;
    mod console;
    mod drafts;
    mod enrolment;
    mod expiry;
    mod extension;
    mod freeze;
    mod histories;
    mod hooks;
    mod incidents;
    mod notify;
    mod policy;
    mod reports;
    mod runs;
    mod schedule;
    mod sessions;
    mod sign_in;
    mod store;
    mod svid;
    mod workloads;
    pub(crate) mod world;
}
