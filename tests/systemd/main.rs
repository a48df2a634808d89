//! The project installed as a package does it, on a host whose first process is systemd: its units as they are shipped, people who
//! sign in by ssh, services, and containers. It changes the whole machine, and so runs in a virtual one only:
//! `cargo xtask kernel-test --suite systemd`.

mod containers;
mod host;
mod sessions;
mod units;

use std::fs;

fn main() {
    let first = fs::read_to_string("/proc/1/comm").unwrap_or_default();
    let is_guest = first.trim() == "systemd" && fs::exists("/tests/guest.sh").unwrap_or_default();
    let reason = (!is_guest).then_some("this is no guest of `cargo xtask kernel-test --suite systemd`");
    tests::runner::main_in_turn(reason, &[units::TESTS, sessions::TESTS, containers::TESTS].concat());
}
