//! The contract between the kernel programs and the agent, and the verdict both compute.
//!
//! Owns: map keys, values and the record ([`abi`]), the decision ([`verdict`]), address families ([`family`]), what a
//! unix socket is known by ([`unix`]). Must not know:
//! helpers, maps, the wire, or what a grant means to people.
//!
//! Invariant: whatever is laid out here is compiled by both sides from this one source, and its sizes are asserted when
//! it is compiled; the very function that decides in the kernel is the one that the unit tests run.

#![no_std]
#![deny(unsafe_op_in_unsafe_fn)]

pub mod abi;
pub mod family;
pub mod unix;
pub mod verdict;
