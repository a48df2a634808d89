//! `tidy`: the house rules that no compiler checks.
//!
//! This file owns reading the tree and printing; the rules are pure functions over files that are
//! already read: [`arrows`] over manifests, [`imports`] over Rust, [`text`] over everything.

mod arrows;
mod imports;
mod text;

use std::{collections::BTreeMap, env, fmt, fs};

use anyhow::{Context as _, Result, bail};

use crate::sh::{self, Checkout};

/// Path in the repository, with `/` → text.
type Tree = BTreeMap<String, String>;

/// One broken rule.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Violation {
    path: String,
    /// From 1.
    line: usize,
    /// Which rule, and what to do.
    rule: String,
}

impl Violation {
    fn new(path: &str, line: usize, rule: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, rule: rule.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, line, rule } = self;
        write!(f, "{path}:{line}: {rule}")
    }
}

pub(crate) fn run(checkout: &Checkout) -> Result<()> {
    let tree = read(checkout)?;
    let violations = check(&tree, &machine_paths(checkout));
    for violation in &violations {
        println!("{violation}");
    }
    if !violations.is_empty() {
        bail!("the tree breaks {} house rules: see above", violations.len());
    }
    println!("tidy: {} files keep the house rules", tree.len());
    Ok(())
}

fn check(tree: &Tree, machine_paths: &[String]) -> Vec<Violation> {
    let mut violations = arrows::check(tree);
    violations.extend(imports::check(tree));
    violations.extend(text::check(tree, machine_paths));
    violations.sort();
    // A line may name the same thing twice.
    violations.dedup();
    violations
}

/// Every text file that is tracked or would be: a new file is checked before it is committed.
fn read(checkout: &Checkout) -> Result<Tree> {
    let listed = sh::output(sh::command("git").current_dir(&checkout.root).args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    let mut tree = Tree::new();
    for path in listed.split_terminator('\0') {
        let absolute = checkout.root.join(path);
        // Listed, and deleted or a submodule: nothing to read.
        if !absolute.is_file() {
            continue;
        }
        let bytes = fs::read(&absolute).with_context(|| format!("cannot read {path}"))?;
        if let Ok(text) = String::from_utf8(bytes) {
            tree.insert(path.to_owned(), text);
        }
    }
    Ok(tree)
}

/// Paths that mean something on this machine only.
fn machine_paths(checkout: &Checkout) -> Vec<String> {
    let homes = ["CARGO_HOME", "RUSTUP_HOME"].into_iter().filter_map(|name| env::var(name).ok());
    let ours = [&checkout.root, &checkout.target].map(|path| path.display().to_string());
    homes.chain(ours).filter(|path| path.len() > 1).collect()
}

/// For the tests of each rule: a tree from (path, text), and what it is told.
#[cfg(test)]
fn told(rule: impl Fn(&Tree) -> Vec<Violation>, files: &[(&str, &str)]) -> Vec<String> {
    let tree = files.iter().map(|(path, text)| ((*path).into(), (*text).into())).collect();
    rule(&tree).iter().map(ToString::to_string).collect()
}
