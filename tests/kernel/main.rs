//! The kernel programs, for real: each test puts up a gate of its own, over an address of its own, and tries to get through
//! from a cgroup of its own. Needs root and BPF; skipped by name elsewhere.

mod closed;
mod connections;
mod idle;
mod ingress;
mod killed;
mod life;
mod limits;
mod local;
mod lsm;
mod migrations;
mod modes;
mod proof;
mod records;
mod senders;
mod tamper;
mod unix;
mod verdicts;
mod workloads;

use tests::fixture;

fn main() {
    tests::runner::main_with(
        [
            verdicts::TESTS,
            local::TESTS,
            limits::TESTS,
            life::TESTS,
            records::TESTS,
            killed::TESTS,
            migrations::TESTS,
            connections::TESTS,
            modes::TESTS,
            closed::TESTS,
            idle::TESTS,
            senders::TESTS,
            ingress::TESTS,
            lsm::TESTS,
            unix::TESTS,
            tamper::TESTS,
            proof::TESTS,
            workloads::TESTS,
        ]
        .concat(),
        [lsm::CHOOSY, unix::CHOOSY, tamper::CHOOSY, proof::CHOOSY, workloads::CHOOSY].concat(),
    );
}
