//! Every decoder of the project under bytes that nobody meant: what came from the network, from files, from the kernel's listings.
//!
//! Owns: the list of decoders, what is true of each whatever it gets, and bytes to begin with. Must not know: who makes the bytes
//! (`cargo xtask fuzz` with libFuzzer, or the mutations of `tests/decoders.rs`).
//!
//! A target panics if a decoder does, or if what it has taken does not come back from what it is written as.

mod configuration;
mod disk;
mod messages;
mod policies;
mod seeds;
mod texts;
mod tokens;

/// One decoder, or a family of them.
pub struct Target {
    /// As `cargo xtask fuzz NAME` says it, and the folder of its inputs.
    pub name: &'static str,
    /// Takes any bytes.
    pub run: fn(&[u8]),
    /// Bytes that a decoder takes, to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: [Target; 7] = [
    Target { name: "messages", run: messages::run, seeds: seeds::messages },
    Target { name: "texts", run: texts::run, seeds: seeds::texts },
    Target { name: "configuration", run: configuration::run, seeds: seeds::configuration },
    Target { name: "disk", run: disk::run, seeds: seeds::disk },
    Target { name: "tokens", run: tokens::run, seeds: seeds::tokens },
    Target { name: "kubernetes", run: kubernetes, seeds: seeds::kubernetes },
    Target { name: "policies", run: policies::run, seeds: seeds::policies },
];

/// What the API server of a cluster says to an agent.
fn kubernetes(bytes: &[u8]) {
    const NODE: &str = "node-1";
    let _ = agent::kubernetes::wire::Page::parse(bytes, NODE);
    let _ = agent::kubernetes::wire::Line::parse(bytes, NODE);
}

/// The first byte chooses, the others are for what was chosen; none: nothing is to be done.
fn choice(bytes: &[u8], choices: usize) -> Option<(usize, &[u8])> {
    let (first, rest) = bytes.split_first()?;
    Some((usize::from(*first).checked_rem(choices)?, rest))
}
