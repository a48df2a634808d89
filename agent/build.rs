//! Builds the kernel programs of `agent-ebpf` and leaves the object where `kernel.rs` embeds it from.
//!
//! Needs `bpf-linker` and the toolchain's `rust-src`; `cargo xtask setup` installs both.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Little endian, as the machines we build for are.
const TARGET: &str = "bpfel-unknown-none";

/// The gate, the per-send checks, the LSM tier, the tamper tier, and what sees migrations.
const PROGRAMS: [&str; 6] = [
    "portcullis-ebpf",
    "portcullis-senders",
    "portcullis-datagrams",
    "portcullis-lsm",
    "portcullis-tamper",
    "portcullis-migrations",
];

/// Socket storage maps need BTF, which comes from debug information.
const BTF_FLAGS: [&str; 2] = ["-Cdebuginfo=2", "-Clink-arg=--btf"];

fn main() -> Result<()> {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("cargo sets CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?);
    let root = here.parent().context("the package lies in the workspace")?;
    for input in
        ["agent-ebpf/src", "agent-ebpf/Cargo.toml", "Cargo.toml", "Cargo.lock", "rust-toolchain.toml"]
    {
        println!("cargo:rerun-if-changed={}", root.join(input).display());
    }
    println!("cargo:rerun-if-env-changed=PATH");

    // Beside the profile's other output, not in OUT_DIR: `core` need not be built again whenever this script changes.
    let target_dir = out.ancestors().nth(3).context("OUT_DIR lies in the target directory")?.join("ebpf");
    let mut cargo = Command::new(env::var_os("CARGO").context("cargo sets CARGO")?);
    cargo
        .current_dir(root)
        .args(["build", "--release", "--locked", "--package", "agent-ebpf"])
        .args(PROGRAMS.iter().flat_map(|program| ["--bin", program]))
        .args(["-Z", "build-std=core", "--target", TARGET, "--target-dir"])
        .arg(&target_dir)
        // The stable toolchain builds `core` for this target when asked like this; nothing else unstable is used.
        .env("RUSTC_BOOTSTRAP", "1")
        // aya reads the symbol table and BTF.
        .env("CARGO_PROFILE_RELEASE_STRIP", "none");
    // What cargo and clippy set for the host build must not reach this one.
    for name in [
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
    ] {
        cargo.env_remove(name);
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", BTF_FLAGS.join("\x1f"));
    let status = cargo.status().context("cannot start cargo for the kernel programs")?;
    if !status.success() {
        bail!("cannot build the kernel programs ({status}); if a tool is missing, run `cargo xtask setup`");
    }
    for program in PROGRAMS {
        let object = target_dir.join(TARGET).join("release").join(program);
        let embedded = out.join(program);
        std::fs::copy(&object, &embedded)
            .with_context(|| format!("cannot copy {} to {}", object.display(), embedded.display()))?;
    }
    Ok(())
}
