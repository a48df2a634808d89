//! `fuzz`: the decoders under libFuzzer, which sees the ways that an input takes and looks for others.
//!
//! Owns the way there: building with libFuzzer's instruments, in a target folder of its own, and where inputs are kept. The decoders
//! are the package `fuzz`; a little of this runs with every test (`fuzz/tests/decoders.rs`).

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    setup::{self, Thing},
    sh::{self, Checkout},
};

/// What libFuzzer wants of the compiler: counters on each way, and the values that are compared. Overflows panic.
const RUSTFLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                         -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
                         -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
                         -Cdebug-assertions -Ccodegen-units=1 --cfg=fuzzing";

/// The machine that it runs on is the one that it is built for; named, so that build scripts have no instruments.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// An input that takes longer is a failure.
const INPUT_SECONDS_MAX: u32 = 10;

pub(crate) fn run(checkout: &Checkout, names: &[String], time: Duration) -> Result<()> {
    setup::ensure(checkout, &[Thing::RustComponents, Thing::BpfLinker])?;
    let program = build(checkout)?;
    let known = sh::output(sh::command(&program).env("PORTCULLIS_FUZZ_TARGET", "list"))?;
    let known: Vec<&str> = known.lines().collect();
    if let Some(unknown) = names.iter().find(|name| !known.contains(&name.as_str())) {
        bail!("there is no decoder `{unknown}`: one of {}", known.join(", "));
    }
    let chosen =
        known.into_iter().filter(|name| names.is_empty() || names.iter().any(|wanted| wanted == name));
    for name in chosen {
        println!("== {name} for {} s", time.as_secs());
        one(checkout, &program, name, time)?;
    }
    Ok(())
}

fn build(checkout: &Checkout) -> Result<PathBuf> {
    let target = folder(checkout).join("target");
    let mut cargo = checkout.cargo();
    cargo.args(["build", "--release", "--package", "fuzz", "--features", "libfuzzer", "--bin", "fuzz"]);
    cargo.args(["--target", TARGET]).env("CARGO_TARGET_DIR", &target);
    // The flags are stable ones but for the pass, which the pinned compiler has.
    cargo.env("RUSTFLAGS", RUSTFLAGS).env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTC_BOOTSTRAP", "1");
    cargo.env("CARGO_PROFILE_RELEASE_LTO", "false").env("CARGO_PROFILE_RELEASE_PANIC", "unwind");
    sh::run(&mut cargo)?;
    Ok(target.join(TARGET).join("release/fuzz"))
}

fn one(checkout: &Checkout, program: &Path, name: &str, time: Duration) -> Result<()> {
    let (inputs, failures) =
        (folder(checkout).join("inputs").join(name), folder(checkout).join("failures").join(name));
    for folder in [&inputs, &failures] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    let mut command = sh::command(program);
    command.env("PORTCULLIS_FUZZ_TARGET", name).env("PORTCULLIS_FUZZ_SEEDS", &inputs);
    command.arg(format!("-max_total_time={}", time.as_secs().max(1)));
    command.arg(format!("-timeout={INPUT_SECONDS_MAX}")).arg("-print_final_stats=1").arg("-verbosity=1");
    command.arg(format!("-artifact_prefix={}/", failures.display())).arg(&inputs);
    let kept = checkout.root.join("fuzz/failures").join(name);
    if kept.is_dir() {
        command.arg(kept);
    }
    sh::run(&mut command).with_context(|| {
        format!(
            "`{name}` failed; its input is in {}: put a copy into fuzz/failures/{name}, so that every run of the tests begins with it",
            failures.display()
        )
    })
}

/// Beside what the other chores build.
fn folder(checkout: &Checkout) -> PathBuf {
    checkout.target.join("fuzz")
}
