//! Running other programs, and where things are: the checkout, cargo's target directory.
//!
//! Owns the environment that children get. A chore that cargo started inherits variables that
//! describe xtask itself; passed on, they make build scripts believe that something has changed.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

/// The checkout that the chores work on.
#[derive(Debug)]
pub(crate) struct Checkout {
    /// The folder of the workspace's `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// Cargo's target directory, wherever configuration or environment put it.
    pub(crate) target: PathBuf,
}

impl Checkout {
    /// Finds the checkout from what cargo told us at start; works from any folder inside it.
    pub(crate) fn find() -> Result<Self> {
        let manifest = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let root = Path::new(&manifest)
            .parent()
            .context("xtask has no parent folder: run it as `cargo xtask` inside the checkout")?
            .to_path_buf();

        #[derive(Deserialize)]
        struct Metadata {
            target_directory: PathBuf,
        }
        let metadata = output(cargo(&root).args(["metadata", "--no-deps", "--format-version", "1"]))?;
        let metadata: Metadata =
            serde_json::from_str(&metadata).context("cannot read what `cargo metadata` printed")?;
        Ok(Self { root, target: metadata.target_directory })
    }

    /// Cargo, in the root of the checkout.
    pub(crate) fn cargo(&self) -> Command {
        cargo(&self.root)
    }

    /// Where tools are kept that are neither cargo's nor the system's.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }
}

/// Any program, without the variables that describe xtask itself.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        if describes_xtask(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
    command
}

fn cargo(root: &Path) -> Command {
    let mut command = command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}

fn describes_xtask(name: &str) -> bool {
    // LD_LIBRARY_PATH: set by cargo and rustup, it would hide that bpf-linker's rpath is broken.
    matches!(name, "LD_LIBRARY_PATH" | "OUT_DIR" | "CARGO_MANIFEST_DIR" | "CARGO_MANIFEST_PATH")
        || name.starts_with("CARGO_PKG_")
        || name.starts_with("CARGO_BIN_")
}

/// Runs to the end with our own output; what was run is printed first.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = line(command);
    eprintln!("$ {line}");
    let status = command.status().with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(())
}

/// Runs quietly and gives back what was printed; on failure, what was complained about.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let line = line(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("`{line}` failed ({}): {}", output.status, complaint.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{line}` printed no UTF-8"))
}

/// The command as a person would type it, with the variables we set.
fn line(command: &Command) -> String {
    let set = command.get_envs().filter_map(|(name, value)| {
        Some(format!("{}={}", name.to_string_lossy(), quoted(&value?.to_string_lossy())))
    });
    // `$CARGO` is a long path that nobody types.
    let program =
        Path::new(command.get_program()).file_name().unwrap_or(command.get_program()).to_string_lossy();
    let words = command.get_args().map(|word| quoted(&word.to_string_lossy()));
    set.chain([program.into_owned()]).chain(words).collect::<Vec<_>>().join(" ")
}

/// The word as a shell wants it.
pub(crate) fn quoted(word: &str) -> String {
    if word.is_empty() || word.contains([' ', '\'', '"', '*', '$']) {
        format!("'{}'", word.replace('\'', r"'\''"))
    } else {
        word.to_owned()
    }
}

/// The first program of this name on `PATH`, as a shell would find it.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// A program for administrators, which is not on everybody's `PATH`.
pub(crate) fn administration(program: &str) -> PathBuf {
    which(program).unwrap_or_else(|| Path::new("/usr/sbin").join(program))
}

/// Whether we may install packages and load programs into the kernel.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_reads_as_typed() {
        let mut command = Command::new("/somewhere/bin/cargo");
        command.env("RUSTC_BOOTSTRAP", "1").args(["test", "two words"]);
        assert_eq!(line(&command), "RUSTC_BOOTSTRAP=1 cargo test 'two words'");
    }

    #[test]
    fn a_failing_command_is_named_with_its_complaint() {
        let error = output(Command::new("sh").args(["-c", "echo no such port >&2; exit 3"]))
            .expect_err("exit 3 is a failure");
        let text = error.to_string();
        assert!(text.contains("no such port") && text.contains("exit status: 3"), "{text}");
    }

    #[test]
    fn children_do_not_inherit_what_describes_xtask() {
        assert!(describes_xtask("CARGO_PKG_NAME"));
        assert!(describes_xtask("LD_LIBRARY_PATH"));
        assert!(!describes_xtask("CARGO_TARGET_DIR"));
        assert!(!describes_xtask("RUSTUP_TOOLCHAIN"));
    }
}
