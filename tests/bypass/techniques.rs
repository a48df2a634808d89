//! The techniques, by what they have in common.

mod addresses;
pub(crate) mod beneath;
mod borrowed;
mod families;
mod mptcp;
mod namespaces;
mod options;
mod rewriting;
mod tcp;
mod transports;
mod udp;
mod uring;

use crate::technique::Technique;

/// All of them, in the order in which they are reported.
pub(crate) fn all() -> Vec<&'static Technique> {
    let parts = [
        tcp::TECHNIQUES,
        mptcp::TECHNIQUES,
        udp::TECHNIQUES,
        uring::TECHNIQUES,
        transports::TECHNIQUES,
        addresses::TECHNIQUES,
        options::TECHNIQUES,
        borrowed::TECHNIQUES,
        namespaces::TECHNIQUES,
        rewriting::TECHNIQUES,
        beneath::TECHNIQUES,
        families::TECHNIQUES,
    ];
    parts.into_iter().flatten().collect()
}
