//! The contract between Portcullis processes: the wire messages, and the checked types everybody works with.
//!
//! Owns: the `.proto` files, the code generated from them ([`wire`]), the checked types ([`types`]), audit events as
//! programs see them ([`json`]), and the table from error kinds to gRPC codes ([`status`]). Must not know: transport set-up, storage, kernel.
//!
//! Invariant: a wire message is turned into a checked type where it enters a process, and nothing else handles it.

pub mod json;
pub mod status;
pub mod types;

/// The generated messages, clients and servers, by package.
pub mod wire {
    pub use generated::portcullis::access::v1 as access;
    pub use generated::portcullis::agent::v1 as agent;
    pub use generated::portcullis::audit::v1 as audit;
    pub use generated::portcullis::enrolment::v1 as enrolment;
    pub use generated::portcullis::identity::v1 as identity;
    pub use generated::portcullis::policy::v1 as policy;
    pub use generated::portcullis::report::v1 as report;
    pub use generated::portcullis::run::v1 as run;

    #[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
    mod generated {
        include!(concat!(env!("OUT_DIR"), "/wire.rs"));
    }
}

/// The name under which an agent asks for the control plane, whatever the address: its authority signs it for nothing else, so a
/// host believes no other certificate.
pub const CONTROL_PLANE_NAME: &str = "control-plane.portcullis.internal";

/// The largest message either side accepts, in bytes. A grant set of 50,000 grants takes about 4 MiB.
pub const MESSAGE_MAX_BYTES: usize = 16 * 1024 * 1024;

/// Every method of every service, as `SERVICE.METHOD`.
pub fn methods() -> Vec<String> {
    include_str!(concat!(env!("OUT_DIR"), "/methods")).lines().map(str::to_owned).collect()
}
