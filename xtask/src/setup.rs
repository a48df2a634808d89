//! `setup`: what the chores need on this machine, checked and installed where missing.
//!
//! Owns the versions of tools that Cargo.lock does not know. A check costs milliseconds, so every
//! verb calls [`ensure`] for its own subset; nothing is printed when nothing had to be done.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::sh::{self, Checkout};

/// Links our kernel programs.
const BPF_LINKER_VERSION: &str = "0.13.0";
/// The LLVM inside the pinned rustc; bpf-linker has a feature for each. Changes with the toolchain.
const RUSTC_LLVM_MAJOR: &str = "22";
const CARGO_DENY_VERSION: &str = "0.20.2";
/// The validator carries the schemas of the Kubernetes release of the same number.
const KUBERNETES_VALIDATE_VERSION: &str = "1.37.0";

/// The programs that `kernel-test` starts or copies, and Debian's packages of them.
const VIRTUAL_MACHINES: [(&str, &str); 7] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("modprobe", "kmod"),
    ("xz", "xz-utils"),
    ("setpriv", "util-linux"),
    ("mmdebstrap", "mmdebstrap"),
];

/// The programs that tests with containers start or copy, and Debian's packages of them.
const CONTAINER_RUNTIMES: [(&str, &str); 3] =
    [("crun", "crun"), ("runc", "runc"), ("busybox", "busybox-static")];

/// Something a chore needs that is not in the checkout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Thing {
    /// The components that rust-toolchain.toml names.
    RustComponents,
    /// The linker for the BPF target.
    BpfLinker,
    /// Checks bans, licenses and sources of dependencies.
    CargoDeny,
    /// A PostgreSQL server and `psql`, to have a real database behind the gate.
    Postgres,
    /// `systemd-analyze`, which checks our units.
    SystemdAnalyze,
    /// Checks our manifests against the schemas of Kubernetes.
    KubernetesValidate,
    /// What runs other kernels than this machine's, and packs what they boot into.
    VirtualMachines,
    /// A proxy, to compare the gate with.
    HaProxy,
    /// A proxy for PostgreSQL, to compare the gate with.
    PgBouncer,
    /// A packet filter, to compare the gate with.
    Nftables,
    /// `ip`, which brings up the loopback device of a new network namespace.
    Iproute,
    /// An OpenSSH server and client, to have real sessions behind the gate.
    OpenSsh,
    /// An identity provider, for Node, to sign in with.
    OidcProvider,
    /// A browser, to sign in at the console with.
    Chromium,
    /// What is below Docker, containerd, CRI-O and Podman, and something to run in a container.
    ContainerRuntimes,
    /// A mail server, for Debian's Python, to be told of events by.
    MailServer,
    /// A library that shows a program another wall clock.
    FakeTime,
}

impl Thing {
    const ALL: [Self; 17] = [
        Self::RustComponents,
        Self::BpfLinker,
        Self::CargoDeny,
        Self::Postgres,
        Self::SystemdAnalyze,
        Self::KubernetesValidate,
        Self::VirtualMachines,
        Self::HaProxy,
        Self::PgBouncer,
        Self::Nftables,
        Self::Iproute,
        Self::OpenSsh,
        Self::OidcProvider,
        Self::Chromium,
        Self::ContainerRuntimes,
        Self::MailServer,
        Self::FakeTime,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::RustComponents => "rust components",
            Self::BpfLinker => "bpf-linker",
            Self::CargoDeny => "cargo-deny",
            Self::Postgres => "postgresql",
            Self::SystemdAnalyze => "systemd-analyze",
            Self::KubernetesValidate => "kubernetes-validate",
            Self::VirtualMachines => "virtual machines",
            Self::HaProxy => "haproxy",
            Self::PgBouncer => "pgbouncer",
            Self::Nftables => "nftables",
            Self::Iproute => "iproute2",
            Self::OpenSsh => "openssh",
            Self::OidcProvider => "oidc-provider",
            Self::Chromium => "chromium",
            Self::ContainerRuntimes => "container runtimes",
            Self::MailServer => "aiosmtpd",
            Self::FakeTime => "libfaketime",
        }
    }

    /// What is there, or why what is there will not do.
    fn check(self, checkout: &Checkout) -> Result<String> {
        match self {
            Self::RustComponents => check_rust_components(checkout),
            Self::BpfLinker => check_version("bpf-linker", BPF_LINKER_VERSION),
            Self::CargoDeny => check_version("cargo-deny", CARGO_DENY_VERSION),
            Self::Postgres => check_postgres(),
            Self::SystemdAnalyze => check_program("systemd-analyze"),
            Self::KubernetesValidate => check_kubernetes_validate(checkout),
            Self::VirtualMachines => check_virtual_machines(),
            Self::HaProxy => check_program("haproxy"),
            Self::PgBouncer => check_program("pgbouncer"),
            Self::Nftables => check_program("nft"),
            Self::Iproute => check_program("ip"),
            Self::OpenSsh => check_program("ssh").and_then(|_| check_program("sshd")),
            Self::OidcProvider => check_oidc_provider(checkout),
            Self::Chromium => check_program("chromium"),
            Self::ContainerRuntimes => CONTAINER_RUNTIMES
                .iter()
                .map(|(program, _)| check_program(program))
                .collect::<Result<Vec<_>>>()
                .map(|paths| paths.join(", ")),
            Self::MailServer => check_mail_server(),
            Self::FakeTime => check_fake_time(),
        }
    }

    fn install(self, checkout: &Checkout) -> Result<()> {
        match self {
            Self::RustComponents => install_rust_components(checkout),
            Self::BpfLinker => install_bpf_linker(checkout),
            Self::CargoDeny => install_cargo_deny(),
            Self::Postgres => install_postgres(),
            Self::SystemdAnalyze => apt_install(&["systemd"]),
            Self::KubernetesValidate => install_kubernetes_validate(checkout),
            Self::VirtualMachines => apt_install(&VIRTUAL_MACHINES.map(|(_, package)| package)),
            Self::HaProxy => install_asleep("haproxy"),
            Self::PgBouncer => install_asleep("pgbouncer"),
            Self::Nftables => apt_install(&["nftables"]),
            Self::Iproute => apt_install(&["iproute2"]),
            Self::OpenSsh => {
                apt_install(&["openssh-client"])?;
                install_asleep("openssh-server")
            }
            Self::OidcProvider => install_oidc_provider(checkout),
            Self::Chromium => apt_install(&["chromium"]),
            Self::ContainerRuntimes => apt_install(&CONTAINER_RUNTIMES.map(|(_, package)| package)),
            Self::MailServer => apt_install(&["python3-aiosmtpd"]),
            Self::FakeTime => apt_install(&["libfaketime"]),
        }
    }
}

/// The verb: everything, one line each, and what only tests look at.
pub(crate) fn run(checkout: &Checkout) -> Result<()> {
    let mut missing = 0;
    for thing in Thing::ALL {
        let name = thing.name();
        match provide(checkout, thing) {
            Ok(Provided::WasThere(what)) => println!("{name:<20} ok: {what}"),
            Ok(Provided::Installed(what)) => println!("{name:<20} installed: {what}"),
            Err(error) => {
                missing += 1;
                println!("{name:<20} MISSING: {error:#}");
            }
        }
    }
    println!("{:<20} {}", "cgroup v2", cgroup2_report()?);
    println!("{:<20} {}", "bpffs", bpffs_report()?);
    println!("{:<20} {}", "kernel tests", root_report());
    if missing > 0 {
        bail!("{missing} of {} things are missing: see above", Thing::ALL.len());
    }
    Ok(())
}

/// Makes sure that these are there; the first that cannot be had is an error.
pub(crate) fn ensure(checkout: &Checkout, things: &[Thing]) -> Result<()> {
    for &thing in things {
        provide(checkout, thing).with_context(|| format!("{} is needed", thing.name()))?;
    }
    Ok(())
}

/// Tries to have these; what cannot be had is said, and whoever wanted it does without.
pub(crate) fn ensure_if_possible(checkout: &Checkout, things: &[Thing]) {
    for &thing in things {
        if let Err(error) = provide(checkout, thing) {
            eprintln!("warning: going on without {}: {error:#}", thing.name());
        }
    }
}

enum Provided {
    WasThere(String),
    Installed(String),
}

fn provide(checkout: &Checkout, thing: Thing) -> Result<Provided> {
    let why = match thing.check(checkout) {
        Ok(what) => return Ok(Provided::WasThere(what)),
        Err(why) => why,
    };
    eprintln!("setting up {}: {why:#}", thing.name());
    thing.install(checkout)?;
    thing.check(checkout).map(Provided::Installed).context("it was installed, and still does not work")
}

/// The program has to run, not only to exist: bpf-linker finds LLVM in the toolchain that it was
/// linked against, and stops working when that toolchain moves.
fn check_version(program: &str, wanted: &str) -> Result<String> {
    let path = installed_by_cargo(program)
        .with_context(|| format!("`{program}` is neither on PATH nor in cargo's bin folder"))?;
    let printed = sh::output(sh::command(path).arg("--version"))?;
    let found = printed.split_whitespace().nth(1).unwrap_or_default();
    if found != wanted {
        bail!("{program} is version `{found}`, wanted {wanted}");
    }
    Ok(found.to_owned())
}

fn installed_by_cargo(program: &str) -> Option<PathBuf> {
    sh::which(program).or_else(|| {
        let home =
            env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cargo")))?;
        Some(home.join("bin").join(program)).filter(|path| path.is_file())
    })
}

fn shown(path: impl AsRef<Path>) -> String {
    path.as_ref().display().to_string()
}

// Rust components

#[derive(Deserialize)]
struct ToolchainFile {
    toolchain: Toolchain,
}

#[derive(Deserialize)]
struct Toolchain {
    channel: String,
    components: Vec<String>,
}

fn toolchain(checkout: &Checkout) -> Result<Toolchain> {
    let path = checkout.root.join("rust-toolchain.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let file: ToolchainFile =
        toml::from_str(&text).with_context(|| format!("cannot parse {}", path.display()))?;
    Ok(file.toolchain)
}

fn sysroot(checkout: &Checkout) -> Result<PathBuf> {
    let mut rustc = sh::command("rustc");
    let printed = sh::output(rustc.current_dir(&checkout.root).args(["--print", "sysroot"]))?;
    Ok(printed.trim().into())
}

fn check_rust_components(checkout: &Checkout) -> Result<String> {
    let Toolchain { channel, components } = toolchain(checkout)?;
    let sysroot = sysroot(checkout)?;
    for component in &components {
        let witness = match component.as_str() {
            "rust-src" => "lib/rustlib/src/rust/library/core/Cargo.toml",
            "clippy" => "bin/cargo-clippy",
            "rustfmt" => "bin/rustfmt",
            other => bail!(
                "component `{other}` of rust-toolchain.toml is unknown to xtask/src/setup.rs: \
                 name a file that shows whether it is there"
            ),
        };
        if !sysroot.join(witness).is_file() {
            bail!("{component} is not in the toolchain {}", sysroot.display());
        }
    }
    Ok(format!("{channel} with {}", components.join(", ")))
}

fn install_rust_components(checkout: &Checkout) -> Result<()> {
    let Toolchain { channel, components } = toolchain(checkout)?;
    if sh::which("rustup").is_none() {
        bail!(
            "there is no rustup on PATH: install {} for {} by hand",
            components.join(", "),
            sysroot(checkout)?.display()
        );
    }
    let mut rustup = sh::command("rustup");
    rustup.args(["component", "add", "--toolchain", &channel]);
    sh::run(rustup.args(components))
}

// Programs from crates.io

/// Links bpf-linker against the LLVM that rustc carries, so that no LLVM has to be installed, and
/// so that the linker reads exactly the bitcode that this rustc writes.
fn install_bpf_linker(checkout: &Checkout) -> Result<()> {
    let lib = sysroot(checkout)?.join("lib");
    let llvm = fs::read_dir(&lib)
        .with_context(|| format!("cannot list {}", lib.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&format!("libLLVM.so.{RUSTC_LLVM_MAJOR}."))
        })
        .with_context(|| {
            format!(
                "rustc carries no LLVM {RUSTC_LLVM_MAJOR} in {}: set RUSTC_LLVM_MAJOR in \
                 xtask/src/setup.rs to the number of its libLLVM.so.*",
                lib.display()
            )
        })?;

    let prefix = tempfile::tempdir().context("cannot make a temporary folder")?;
    let prefix_lib = prefix.path().join("lib");
    fs::create_dir(&prefix_lib)
        .and_then(|()| std::os::unix::fs::symlink(&llvm, prefix_lib.join("libLLVM.so")))
        .with_context(|| format!("cannot link to {}", llvm.display()))?;

    let feature = format!("llvm-{RUSTC_LLVM_MAJOR}");
    let mut cargo = cargo_install("bpf-linker", BPF_LINKER_VERSION);
    cargo
        .args(["--no-default-features", "--features", &feature])
        .env("LLVM_PREFIX", prefix.path())
        .env("RUSTFLAGS", format!("-Clink-arg=-Wl,-rpath,{}", lib.display()));
    sh::run(&mut cargo)
}

/// Unoptimised and without debug information: a fraction of the time to build, and a check of our
/// dependencies takes it a second or two all the same.
fn install_cargo_deny() -> Result<()> {
    let mut cargo = cargo_install("cargo-deny", CARGO_DENY_VERSION);
    sh::run(cargo.arg("--debug").env("CARGO_PROFILE_DEV_DEBUG", "0"))
}

fn cargo_install(package: &str, version: &str) -> std::process::Command {
    let mut cargo = sh::command("cargo");
    // Forced: one that is there and does not run counts as installed.
    cargo.args(["install", "--quiet", "--locked", "--force", package, "--version", version]);
    cargo
}

// Debian packages

fn check_postgres() -> Result<String> {
    sh::which("psql").context("`psql` is not on PATH")?;
    // Debian keeps servers out of PATH, a folder for each major version.
    let of_debian = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin/postgres")))
        .find(|path| path.is_file());
    of_debian.or_else(|| sh::which("postgres")).map(shown).context("there is no PostgreSQL server")
}

/// Installs the server without the database that Debian makes with it: a test command has no
/// business leaving a server running.
fn install_postgres() -> Result<()> {
    apt_install(&["postgresql-common"])?;
    let path = "/etc/postgresql-common/createcluster.conf";
    let original = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let quiet = format!("{original}\ncreate_main_cluster = off\n");
    fs::write(path, quiet).with_context(|| format!("cannot write {path}"))?;
    let installed = apt_install(&["postgresql"]);
    fs::write(path, original).with_context(|| format!("cannot restore {path}"))?;
    installed
}

/// By Debian's Python, whichever other one is first on PATH: the package is for that one.
fn check_mail_server() -> Result<String> {
    let printed = sh::output(
        sh::command("/usr/bin/python3").args(["-c", "import aiosmtpd; print(aiosmtpd.__version__)"]),
    )?;
    Ok(printed.trim().to_owned())
}

/// Where Debian has it; `tests/src/wall_clock.rs` looks there too.
fn check_fake_time() -> Result<String> {
    let of_machines = fs::read_dir("/usr/lib").context("cannot list /usr/lib")?;
    of_machines
        .filter_map(|entry| Some(entry.ok()?.path().join("faketime/libfaketimeMT.so.1")))
        .find(|path| path.is_file())
        .map(shown)
        .context("`libfaketimeMT.so.1` is not below /usr/lib")
}

fn check_virtual_machines() -> Result<String> {
    let missing = VIRTUAL_MACHINES.map(|(program, _)| program);
    let missing: Vec<&str> =
        missing.into_iter().filter(|program| !sh::administration(program).is_file()).collect();
    if !missing.is_empty() {
        bail!("{} not on PATH", missing.join(", "));
    }
    Ok(shown(sh::administration("qemu-system-x86_64")))
}

/// The program, or that it is missing; what administrators run is often not on PATH.
fn check_program(program: &str) -> Result<String> {
    let path = sh::administration(program);
    if !path.is_file() {
        bail!("`{program}` is not on PATH");
    }
    Ok(shown(path))
}

/// Installs a service without starting it: a test has no business leaving one running.
fn install_asleep(package: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;

    // What Debian's packages ask whether they may start what they bring; 101 is "no". Somebody's own answer stays.
    let policy = Path::new("/usr/sbin/policy-rc.d");
    if policy.exists() || !sh::is_root() {
        return apt_install(&[package]);
    }
    fs::write(policy, "#!/bin/sh\nexit 101\n")
        .and_then(|()| fs::set_permissions(policy, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("cannot write {}", policy.display()))?;
    let installed = apt_install(&[package]);
    fs::remove_file(policy).with_context(|| format!("cannot remove {}", policy.display()))?;
    installed
}

fn apt_install(packages: &[&str]) -> Result<()> {
    let os = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if !is_debian(&os) {
        bail!("install what your distribution has for Debian's {}", packages.join(", "));
    }
    if !sh::is_root() {
        bail!("run: sudo apt-get install -y --no-install-recommends {}", packages.join(" "));
    }
    let install = || {
        sh::run(
            sh::command("apt-get")
                .args(["install", "-qq", "-y", "--no-install-recommends"])
                .args(packages)
                .env("DEBIAN_FRONTEND", "noninteractive"),
        )
    };
    // A fresh machine has no package lists, an old one has lists of packages that are gone.
    install().or_else(|_| {
        sh::run(sh::command("apt-get").args(["update", "-qq"]))?;
        install()
    })
}

fn is_debian(os_release: &str) -> bool {
    os_release
        .lines()
        .filter_map(|line| line.strip_prefix("ID=").or(line.strip_prefix("ID_LIKE=")))
        .flat_map(|value| value.trim_matches('"').split_whitespace())
        .any(|id| id == "debian" || id == "ubuntu")
}

// A tool from PyPI, in an environment of its own

fn kubernetes_validate_home(checkout: &Checkout) -> PathBuf {
    // `xtask/tests/deploy.rs` looks here too.
    checkout.tools().join("kubernetes-validate")
}

fn check_kubernetes_validate(checkout: &Checkout) -> Result<String> {
    let home = kubernetes_validate_home(checkout);
    let installed = fs::read_to_string(home.join("version")).unwrap_or_default();
    // `exists` follows the link: the environment dies with the Python that made it.
    if installed != KUBERNETES_VALIDATE_VERSION || !home.join("bin/python").exists() {
        bail!("version {KUBERNETES_VALIDATE_VERSION} is not in {}", home.display());
    }
    Ok(installed)
}

fn install_kubernetes_validate(checkout: &Checkout) -> Result<()> {
    let home = kubernetes_validate_home(checkout);
    let can_make_environments = sh::output(sh::command("python3").args(["-c", "import ensurepip, venv"]));
    if can_make_environments.is_err() {
        apt_install(&["python3-venv"])?;
    }
    sh::run(sh::command("python3").args(["-m", "venv", "--clear"]).arg(&home))?;
    let package = format!("kubernetes-validate=={KUBERNETES_VALIDATE_VERSION}");
    sh::run(sh::command(home.join("bin/pip")).args([
        "install",
        "--quiet",
        "--disable-pip-version-check",
        &package,
    ]))?;
    // Written last, so that an interrupted installation is done again.
    let version = home.join("version");
    fs::write(&version, KUBERNETES_VALIDATE_VERSION)
        .with_context(|| format!("cannot write {}", version.display()))
}

// A package from npm, in a folder of its own

/// The oldest Node that the provider runs on.
const NODE_MAJOR_MIN: u32 = 20;

/// What npm is told to install: every version, with its checksum.
const OIDC_PROVIDER_LOCK: &str = "package-lock.json";

fn oidc_provider_home(checkout: &Checkout) -> PathBuf {
    // `tests/identity/office.rs` looks here too.
    checkout.tools().join("oidc-provider")
}

fn oidc_provider_source(checkout: &Checkout) -> PathBuf {
    checkout.root.join("tests/identity")
}

fn check_oidc_provider(checkout: &Checkout) -> Result<String> {
    check_node()?;
    let (home, source) = (oidc_provider_home(checkout), oidc_provider_source(checkout));
    let wanted = read_text(&source.join(OIDC_PROVIDER_LOCK))?;
    let installed = fs::read_to_string(home.join("installed.json")).unwrap_or_default();
    if installed != wanted {
        bail!("what {} names is not in {}", OIDC_PROVIDER_LOCK, home.display());
    }
    Ok(shown(home))
}

fn check_node() -> Result<()> {
    let printed = sh::output(sh::command("node").arg("--version")).context("`node` does not run")?;
    let major = printed.trim().trim_start_matches('v').split('.').next().unwrap_or_default();
    match major.parse::<u32>().is_ok_and(|major| major >= NODE_MAJOR_MIN) {
        true => Ok(()),
        false => bail!("node is {}, wanted {NODE_MAJOR_MIN} or newer", printed.trim()),
    }
}

fn install_oidc_provider(checkout: &Checkout) -> Result<()> {
    if sh::which("npm").is_none() || check_node().is_err() {
        apt_install(&["nodejs", "npm"])?;
    }
    let (home, source) = (oidc_provider_home(checkout), oidc_provider_source(checkout));
    fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
    for file in ["package.json", OIDC_PROVIDER_LOCK] {
        fs::copy(source.join(file), home.join(file)).with_context(|| format!("cannot copy {file}"))?;
    }
    let mut npm = sh::command("npm");
    // Packages' own scripts are not run: none of these needs one.
    npm.current_dir(&home).args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]);
    sh::run(&mut npm)?;
    // Written last, so that an interrupted installation is done again.
    let installed = home.join("installed.json");
    fs::copy(source.join(OIDC_PROVIDER_LOCK), &installed)
        .with_context(|| format!("cannot write {}", installed.display()))?;
    Ok(())
}

fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

// What the tests find or make for themselves, reported only

fn cgroup2_report() -> Result<String> {
    Ok(match mounted("cgroup2")? {
        Some(at) => format!("ok: mounted at {at}"),
        None => "not mounted: kernel tests mount it for themselves".to_owned(),
    })
}

fn bpffs_report() -> Result<String> {
    Ok(match mounted("bpf")? {
        Some(at) => format!("ok: mounted at {at}"),
        None => "not mounted: kernel tests mount it for themselves; for an agent, run: \
                 mount -t bpf bpf /sys/fs/bpf"
            .to_owned(),
    })
}

fn mounted(kind: &str) -> Result<Option<String>> {
    let path = "/proc/self/mounts";
    let mounts = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let at = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let at = fields.next()?;
        (fields.next()? == kind).then(|| at.to_owned())
    });
    Ok(at)
}

fn root_report() -> &'static str {
    if sh::is_root() { "ok: root" } else { "not root: they will be skipped" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_and_its_children_are_known() {
        assert!(is_debian("NAME=\"Debian GNU/Linux\"\nID=debian\n"));
        assert!(is_debian("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"));
        assert!(!is_debian("ID=fedora\nID_LIKE=\"rhel\"\n"));
        assert!(!is_debian(""));
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = check_version("no-such-program", "1.0").expect_err("it is not there");
        assert!(error.to_string().contains("no-such-program"), "{error}");
    }

    #[test]
    fn another_version_is_not_taken() {
        let error = check_version("cargo", "0.0.1").expect_err("no such cargo was ever made");
        assert!(error.to_string().contains("wanted 0.0.1"), "{error}");
    }
}
