//! One target under libFuzzer. `cargo xtask fuzz` names it by `PORTCULLIS_FUZZ_TARGET` (`list`: prints which there are), and by
//! `PORTCULLIS_FUZZ_SEEDS` the folder in which the inputs to begin with are put.

#![no_main]

use std::path::PathBuf;
use std::sync::OnceLock;
use std::{env, fs, process};

use fuzz::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;

static CHOSEN: OnceLock<&Target> = OnceLock::new();

fuzz_target!(
    init: prepare(),
    |bytes: &[u8]| {
        if let Some(target) = CHOSEN.get() {
            (target.run)(bytes);
        }
    }
);

#[allow(clippy::print_stdout, clippy::print_stderr, reason = "it is asked on the command line")]
fn prepare() {
    let name = env::var("PORTCULLIS_FUZZ_TARGET").unwrap_or_default();
    if name == "list" {
        TARGETS.iter().for_each(|target| println!("{}", target.name));
        process::exit(0);
    }
    let Some(target) = TARGETS.iter().find(|target| target.name == name) else {
        eprintln!("there is no target `{name}`");
        process::exit(2);
    };
    if let Some(folder) = env::var_os("PORTCULLIS_FUZZ_SEEDS").map(PathBuf::from) {
        for (number, seed) in (target.seeds)().iter().enumerate() {
            fs::write(folder.join(format!("seed-{number}")), seed).expect("the folder can be written");
        }
    }
    let _ = CHOSEN.set(target);
}
