//! The whole system, as people use it: the real binaries, a real kernel, real servers. Each story is numbered steps that an
//! operator would recognise. Needs root and BPF; skipped by name elsewhere.

mod actions;
mod bad_input;
mod benchmarks;
mod borrowed;
mod clocks;
mod deadlines;
mod full_disk;
mod hosts;
mod jobs;
mod life;
mod longer;
mod lsm;
mod modes;
mod options;
mod outages;
mod policies;
mod proof;
mod psql;
mod replicas;
mod runs;
mod sessions;
mod upgrades;

fn main() {
    tests::runner::main(
        [
            life::TESTS,
            longer::TESTS,
            psql::TESTS,
            sessions::TESTS,
            deadlines::TESTS,
            clocks::TESTS,
            full_disk::TESTS,
            outages::TESTS,
            upgrades::TESTS,
            proof::TESTS,
            hosts::TESTS,
            jobs::TESTS,
            bad_input::TESTS,
            lsm::TESTS,
            options::TESTS,
            modes::TESTS,
            benchmarks::TESTS,
            borrowed::TESTS,
            runs::TESTS,
            actions::TESTS,
            policies::TESTS,
            replicas::TESTS,
        ]
        .concat(),
    );
}
