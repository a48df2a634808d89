//! `ebpf`: builds the kernel programs and prints what each costs.
//!
//! Sizes come from the object, verifier cost from the agent: it is the only caller of aya, and the
//! kernel must see the programs loaded exactly as it will load them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SectionKind, SymbolKind};
use serde::Deserialize;

use crate::{
    setup::{self, Thing},
    sh::{self, Checkout},
};

/// Every instruction of eBPF is this long; a 64-bit load counts as two.
const INSTRUCTION_BYTES: u64 = 8;

const PACKAGE: &str = "agent-ebpf";
/// The gate, the per-send checks, the LSM tier, and the tamper tier.
const PROGRAMS: [&str; 6] = [
    "portcullis-ebpf",
    "portcullis-senders",
    "portcullis-datagrams",
    "portcullis-lsm",
    "portcullis-tamper",
    "portcullis-migrations",
];
const TARGET: &str = "bpfel-unknown-none";

pub(crate) fn run(checkout: &Checkout) -> Result<()> {
    setup::ensure(checkout, &[Thing::RustComponents, Thing::BpfLinker])?;
    let mut all = Vec::new();
    for object in build(checkout)? {
        let bytes = fs::read(&object).with_context(|| format!("cannot read {}", object.display()))?;
        let sizes = sizes(&bytes).with_context(|| format!("cannot parse {}", object.display()))?;
        if sizes.is_empty() {
            bail!("there is no program in {}: is anything in a program section?", object.display());
        }
        println!("{}: {} bytes", object.display(), bytes.len());
        all.extend(sizes);
    }
    println!();
    if !sh::is_root() {
        print!("{}", table(&all, &BTreeMap::new()));
        println!("\nloaded, verified and jited are the kernel's to say: run this as root");
        return Ok(());
    }
    let costs = costs(checkout);
    print!("{}", table(&all, costs.as_ref().unwrap_or(&BTreeMap::new())));
    costs.map(drop)
}

/// A cargo command on the kernel programs: `build` or `clippy`.
///
/// The same command as in `agent/build.rs`, in the same target directory: `core` is built once for
/// both, and what is measured here is what the agent embeds.
pub(crate) fn cargo(checkout: &Checkout, verb: &str) -> Command {
    let mut cargo = checkout.cargo();
    cargo
        // `build-std` is not stable; this lets the pinned stable toolchain have it.
        .env("RUSTC_BOOTSTRAP", "1")
        // aya reads the symbol table, and so do we.
        .env("CARGO_PROFILE_RELEASE_STRIP", "none")
        // What is set for the host is not meant; socket storage maps need BTF, which comes from debug information.
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", "-Cdebuginfo=2\x1f-Clink-arg=--btf")
        .args([verb, "--release", "--locked", "-Z", "build-std=core", "--target", TARGET])
        .args(["--package", PACKAGE])
        .args(PROGRAMS.iter().flat_map(|program| ["--bin", program]))
        .arg("--target-dir")
        .arg(target_dir(checkout));
    cargo
}

fn build(checkout: &Checkout) -> Result<Vec<PathBuf>> {
    sh::run(&mut cargo(checkout, "build"))?;
    let release = target_dir(checkout).join(TARGET).join("release");
    Ok(PROGRAMS.iter().map(|program| release.join(program)).collect())
}

fn target_dir(checkout: &Checkout) -> PathBuf {
    checkout.target.join("debug/ebpf")
}

/// A function of the object: a program, or one that programs call.
#[derive(Debug, PartialEq, Eq)]
struct Size {
    name: String,
    section: String,
    instructions: u64,
}

fn sizes(object: &[u8]) -> Result<Vec<Size>> {
    let file = object::File::parse(object)?;
    let mut sizes = Vec::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
        let Some(section) = symbol.section_index() else { continue };
        let section = file.section_by_index(section)?;
        if section.kind() != SectionKind::Text || symbol.size() == 0 {
            continue;
        }
        sizes.push(Size {
            // Programs have plain names; functions that were not inlined have Rust's.
            name: format!("{:#}", rustc_demangle::demangle(symbol.name()?)),
            section: section.name()?.to_owned(),
            instructions: symbol.size() / INSTRUCTION_BYTES,
        });
    }
    sizes.sort_by(|a, b| (&a.section, &a.name).cmp(&(&b.section, &b.name)));
    Ok(sizes)
}

/// What the kernel says of one loaded program: one element of what `portcullis-agent programs` prints.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Cost {
    name: String,
    /// Instructions after the kernel rewrote the program.
    instructions: u64,
    /// Instructions the verifier walked, over all paths. It gives up at a million. Kernels before
    /// 5.16 do not say.
    verified_instructions: Option<u64>,
    jited_bytes: u64,
}

fn costs(checkout: &Checkout) -> Result<BTreeMap<String, Cost>> {
    sh::run(checkout.cargo().args(["build", "--quiet", "--package", "agent"]))?;
    let agent = checkout.target.join("debug/portcullis-agent");
    parse_costs(&sh::output(sh::command(&agent).arg("programs"))?, &agent)
}

fn parse_costs(printed: &str, agent: &Path) -> Result<BTreeMap<String, Cost>> {
    let costs: Vec<Cost> = serde_json::from_str(printed)
        .with_context(|| format!("cannot read what `{} programs` printed", agent.display()))?;
    if costs.is_empty() {
        bail!("`{} programs` names no program", agent.display());
    }
    Ok(costs.into_iter().map(|cost| (cost.name.clone(), cost)).collect())
}

fn table(sizes: &[Size], costs: &BTreeMap<String, Cost>) -> String {
    let mut rows = vec![["section", "object", "loaded", "verified", "jited B", "program"].map(str::to_owned)];
    for size in sizes {
        let cost = costs.get(&size.name);
        let number = |of: fn(&Cost) -> Option<u64>| {
            cost.and_then(of).map_or("-".to_owned(), |number| number.to_string())
        };
        rows.push([
            size.section.clone(),
            size.instructions.to_string(),
            number(|cost| Some(cost.instructions)),
            number(|cost| cost.verified_instructions),
            number(|cost| Some(cost.jited_bytes)),
            size.name.clone(),
        ]);
    }
    let line = |[section, object, loaded, verified, jited, name]: [String; 6]| {
        format!("{section:<18} {object:>8} {loaded:>8} {verified:>9} {jited:>8}  {name}\n")
    };
    rows.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_joins_object_and_kernel() {
        let size = |name: &str, section: &str, instructions| Size {
            name: name.into(),
            section: section.into(),
            instructions,
        };
        let sizes = [size("memset", ".text", 9), size("connect4", "cgroup/connect4", 210)];
        let printed = r#"[{"name": "connect4", "instructions": 230,
            "verified_instructions": 1804, "jited_bytes": 1300}]"#;
        let costs = parse_costs(printed, Path::new("portcullis-agent")).expect("it is well formed");
        assert_eq!(
            table(&sizes, &costs),
            "\
section              object   loaded  verified  jited B  program
.text                     9        -         -        -  memset
cgroup/connect4         210      230      1804     1300  connect4
"
        );
    }

    #[test]
    fn an_agent_that_names_no_program_is_an_error() {
        assert!(parse_costs("[]", Path::new("portcullis-agent")).is_err());
        assert!(parse_costs("{}", Path::new("portcullis-agent")).is_err());
    }

    #[test]
    fn what_is_not_an_object_is_an_error() {
        assert!(sizes(b"not an object").is_err());
    }
}
