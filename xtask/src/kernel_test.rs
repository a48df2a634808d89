//! `kernel-test`: the kernel tests on other kernels than this machine's.
//!
//! Owns the table of runs and the list of tests that may be skipped. Each run is a virtual machine
//! with one of Debian's kernels and a file system in memory that holds little more than the tests,
//! or, for the tests of an installation, a small Debian with systemd.

mod archive;
mod cache;
mod guest;
mod initramfs;
mod kernels;
mod report;
mod userland;

use std::{
    fmt, fs,
    path::PathBuf,
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use self::{
    guest::{Accelerator, Machine},
    initramfs::{Program, Tests},
    kernels::{Kernel, Kernels},
    report::{Outcome, Skip},
    userland::Userland,
};
use crate::{
    setup::{self, Thing},
    sh::{self, Checkout},
};

/// A kernel, and how it is booted.
struct Run {
    name: &'static str,
    /// The first series that can be had is taken. `7` is any 7.x.
    series: &'static [&'static str],
    /// More for the kernel's command line.
    append: &'static str,
}

/// Every supported kernel. Debian's 5.10 has BPF's LSM built in, but leaves it out of the list of
/// those that are active: programs load, attach, and never run, unless the command line says so.
const RUNS: [Run; 6] = [
    Run { name: "5.10", series: &["5.10"], append: "" },
    Run { name: "5.10+lsm", series: &["5.10"], append: "lsm=lockdown,yama,apparmor,bpf" },
    Run { name: "6.1", series: &["6.1"], append: "" },
    Run { name: "6.12", series: &["6.12"], append: "" },
    Run { name: "6.18", series: &["6.18", "6.19"], append: "" },
    Run { name: "7", series: &["7"], append: "" },
];

/// Tests that some kernel cannot run. Any other skip is a failure.
const MAY_SKIP: &[Skip] = &[
    no_lsm("lsm::other_families_are_refused"),
    no_lsm("lsm::some_cgroups_are_exempt"),
    no_lsm("lsm::a_connection_is_handed_to_nobody_else"),
    no_lsm("lsm::it_stays_up_without_an_agent_until_it_is_not_wanted"),
    no_lsm("lsm::nor_is_one_of_another_abi_version"),
    no_lsm("tamper::root_is_kept_from_the_gate"),
    no_lsm("tamper::root_is_kept_from_the_agent"),
    no_lsm("tamper::other_peoples_programs_are_theirs"),
    no_lsm("tamper::it_outlives_the_agent_and_follows_an_upgrade"),
    no_lsm("tamper::it_is_lifted_and_taken_down_by_the_agent"),
    no_lsm("proof::tampering_is_told_and_changes_nothing"),
    Skip {
        run: "5.10+lsm",
        test: "lsm::a_connection_is_handed_to_nobody_else",
        reason: "its LSM programs cannot tell which socket a file is",
    },
    Skip {
        run: "5.10+lsm",
        test: "lsm::nor_is_one_of_another_abi_version",
        reason: "its LSM programs cannot tell which socket a file is",
    },
    no_runtime("workloads::a_container_is_let_through_by_its_id"),
    no_runtime("workloads::a_container_cannot_be_another"),
    no_unix("unix::a_grant_is_needed"),
    no_unix("unix::whichever_way_leads_there"),
    no_unix("unix::another_server_at_the_path_is_protected_at_once"),
    no_unix("unix::nothing_arrives_after_the_deadline"),
    no_unix("unix::nothing_arrives_after_it_is_revoked"),
    no_unix("unix::what_is_spliced_in_arrives_no_more_where_the_kernel_can_tell"),
    no_unix("unix::an_idle_connection_ends"),
    no_unix("unix::who_was_connected_before_is_held_back"),
    no_unix("unix::what_is_only_observed_goes_on_until_it_is_not"),
    no_unix("unix::a_connection_is_handed_to_nobody_else"),
    no_unix("unix::somebody_else_does_not_write"),
    no_unix("unix::it_stays_without_an_agent"),
    no_unix("unix::changed_maps_are_put_right"),
    no_mptcp("bypass::mptcp_connect"),
    no_mptcp("bypass::mptcp_connect_to_a_tcp_service"),
    no_mptcp("bypass::mptcp_kept_past_the_deadline"),
    no_mptcp("bypass::mptcp_later_subflow"),
    no_mptcp("bypass::mptcp_fast_open_sendto"),
    no_mptcp("bypass::passed_mptcp_connection"),
    Skip { run: "6.1", test: "bypass::mptcp_fast_open_sendto", reason: "its MPTCP has no Fast Open" },
    Skip {
        run: "5.10",
        test: "bypass::connect_program_that_forgives",
        reason: "before Linux 5.18 programs cannot change a verdict",
    },
    Skip { run: "6.18", test: "bypass::dccp_connect", reason: "Linux 6.16 has done away with DCCP" },
    Skip { run: "7", test: "bypass::dccp_connect", reason: "Linux 6.16 has done away with DCCP" },
    Skip { run: "6.18", test: "bypass::smc_connect", reason: "Debian builds it without SMC" },
    Skip { run: "7", test: "bypass::smc_connect", reason: "Debian builds it without SMC" },
    no_udp_lite("bypass::udplite_sendto"),
    no_udp_lite("bypass::udplite_connect_send"),
    no_udp_lite("bypass::udplite_routing_header_by_another_address"),
    no_polled_io_uring("bypass::io_uring_connect_polled"),
    no_polled_io_uring("bypass::io_uring_udp_sendmsg_polled"),
];

const fn no_mptcp(test: &'static str) -> Skip {
    Skip { run: "5.10", test, reason: "Debian builds it without MPTCP" }
}

const fn no_udp_lite(test: &'static str) -> Skip {
    Skip { run: "7", test, reason: "it has done away with UDP-Lite" }
}

const fn no_polled_io_uring(test: &'static str) -> Skip {
    Skip { run: "5.10", test, reason: "before Linux 5.11 only root has an io_uring with SQPOLL" }
}

/// A test of the LSM tier, or of the tamper tier.
const fn no_lsm(test: &'static str) -> Skip {
    Skip { run: "=5.10", test, reason: "LSM programs do not run unless the command line says so" }
}

/// A test with containers.
const fn no_runtime(test: &'static str) -> Skip {
    Skip { run: "*", test, reason: "the guests have no container runtime" }
}

/// A test of unix sockets as resources.
const fn no_unix(test: &'static str) -> Skip {
    Skip {
        run: "5.10",
        test,
        reason: "its programs cannot tell the path of a unix socket (Linux before 5.16)",
    }
}

/// Without one of each line the whole proves too little.
const INDISPENSABLE: [&[&str]; 2] = [&["6.1"], &["6.12", "6.18", "7"]];

/// The programs that hold the tests: targets of the package `tests`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Suite {
    /// What the gate does
    Kernel,
    /// Every way to get past it
    Bypass,
    /// The project installed on a host with systemd: units, sessions, containers
    Systemd,
}

impl Suite {
    const ALL: [Self; 3] = [Self::Kernel, Self::Bypass, Self::Systemd];

    fn target(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Bypass => "bypass",
            Self::Systemd => "systemd",
        }
    }

    fn system(self) -> System {
        match self {
            Self::Kernel | Self::Bypass => System::Bare,
            Self::Systemd => System::Debian,
        }
    }
}

/// What a guest has besides its kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum System {
    /// The tests, and nothing that runs beside them.
    Bare,
    /// Debian, with systemd as the first process, and the project's programs where a package puts them.
    Debian,
}

impl System {
    const ALL: [Self; 2] = [Self::Bare, Self::Debian];

    /// What the names of its runs end with.
    fn suffix(self) -> &'static str {
        match self {
            Self::Bare => "",
            Self::Debian => "-systemd",
        }
    }
}

/// The packages with the programs that a Debian guest has installed.
const INSTALLED: [&str; 3] = ["agent", "cli", "control-plane"];

/// Debian's kernels are for this one; and the programs must run there without any library.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const RUSTFLAGS: &str = "-C target-feature=+crt-static";

/// Machines that run at a time, if there is a processor for each.
const LANES_MAX: usize = 2;

/// A suite, and which of its tests: those whose names contain one of these, each asked for by itself; none: all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Selection<'a> {
    pub(crate) suite: Suite,
    pub(crate) filters: &'a [String],
}

/// The verb. No suite: all of them.
pub(crate) fn run_suite(
    checkout: &Checkout,
    series: &[String],
    suite: Option<Suite>,
    filters: &[String],
) -> Result<()> {
    let suites = suite.map_or(Suite::ALL.to_vec(), |suite| vec![suite]);
    let selections: Vec<_> = suites.into_iter().map(|suite| Selection { suite, filters }).collect();
    run(checkout, series, &selections)
}

/// The same with tests of each suite.
pub(crate) fn run(checkout: &Checkout, series: &[String], selections: &[Selection<'_>]) -> Result<()> {
    let matrix = execute(checkout, series, selections)?;
    println!("\n{matrix}");
    matrix.verdict()
}

/// Builds the tests and runs them on each kernel, with a line for each machine. No series: all kernels.
fn execute(checkout: &Checkout, series: &[String], selections: &[Selection<'_>]) -> Result<Matrix> {
    let runs = chosen(series)?;
    setup::ensure(
        checkout,
        &[Thing::RustComponents, Thing::BpfLinker, Thing::VirtualMachines, Thing::Iproute],
    )?;
    let of = |system| {
        let of_it = selections.iter().filter(move |selection| selection.suite.system() == system);
        of_it.copied().collect::<Vec<_>>()
    };
    let (bare, debian) = (of(System::Bare), of(System::Debian));
    let userland = if debian.is_empty() { None } else { Some(Userland::provide(checkout)?) };
    let guests = Guests {
        bare: Tests { programs: build(checkout, &bare)?, installed: Vec::new(), userland: None },
        debian: Tests {
            programs: build(checkout, &debian)?,
            installed: if debian.is_empty() { Vec::new() } else { build_installed(checkout)? },
            userland: userland.as_ref(),
        },
        logs: checkout.target.join("kernel-test"),
        kvm_failed: AtomicBool::new(false),
    };
    let systems: Vec<System> = System::ALL.into_iter().filter(|system| !of(*system).is_empty()).collect();
    let mut matrix = Matrix::default();
    let mut ready = Vec::new();
    let mut kernels = Kernels::open(checkout)?;
    for run in runs {
        match kernels.newest(run.series) {
            Ok(kernel) => {
                ready.extend(systems.iter().map(|&system| Boot { run, system, kernel: kernel.clone() }))
            }
            Err(error) => {
                println!("{:<13} NOT AVAILABLE: {error:#}", run.name);
                matrix.not_available.push(run.name);
            }
        }
    }
    drop(kernels);
    let logs = &guests.logs;
    fs::create_dir_all(logs).with_context(|| format!("cannot make the folder {}", logs.display()))?;
    guests.run_all(ready, &mut matrix)?;
    matrix.judge_missing(!series.is_empty());
    Ok(matrix)
}

/// The runs of these series; a name with a plus is that run only.
fn chosen(series: &[String]) -> Result<Vec<&'static Run>> {
    for name in series {
        if !RUNS.iter().any(|run| is_meant(run, name)) {
            let known: Vec<&str> = RUNS.iter().map(|run| run.name).collect();
            bail!("there is no kernel `{name}` in the table: one of {}", known.join(", "));
        }
    }
    let wanted = |run: &&Run| series.is_empty() || series.iter().any(|name| is_meant(run, name));
    Ok(RUNS.iter().filter(wanted).collect())
}

fn is_meant(run: &Run, name: &str) -> bool {
    run.name == name || run.series.contains(&name)
}

/// Builds the programs of tests once for all kernels, and says where they are.
fn build<'a>(checkout: &Checkout, selections: &[Selection<'a>]) -> Result<Vec<Program<'a>>> {
    if selections.is_empty() {
        return Ok(Vec::new());
    }
    let mut cargo = static_cargo(checkout);
    cargo.args(["test", "--no-run", "--package", "tests"]);
    cargo.args(selections.iter().flat_map(|selection| ["--test", selection.suite.target()]));
    let built = built(cargo)?;
    let program = |selection: &Selection<'a>| -> Result<Program<'a>> {
        let name = selection.suite.target();
        let found = built.iter().find(|(built, _)| built == name);
        let (_, path) = found.with_context(|| format!("cargo built no program {name}"))?;
        Ok(Program { path: path.clone(), filters: selection.filters })
    };
    selections.iter().map(program).collect()
}

/// Builds what is installed in a Debian guest, in the same way.
fn build_installed(checkout: &Checkout) -> Result<Vec<PathBuf>> {
    let mut cargo = static_cargo(checkout);
    cargo.args(["build", "--bins"]).args(INSTALLED.iter().flat_map(|package| ["--package", package]));
    Ok(built(cargo)?.into_iter().map(|(_, path)| path).collect())
}

/// Cargo, for programs that run in a guest.
fn static_cargo(checkout: &Checkout) -> Command {
    let mut cargo = checkout.cargo();
    // The target is named, though it is ours: so cargo keeps what is linked statically in a folder
    // of its own, and uses its flags for that alone.
    cargo.env("CARGO_BUILD_TARGET", TARGET);
    cargo.env("RUSTFLAGS", RUSTFLAGS).env_remove("CARGO_ENCODED_RUSTFLAGS");
    // Half the size, in a machine that has its disk in memory; and faster, in one whose processor
    // is software.
    cargo.env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_PROFILE_DEV_STRIP", "debuginfo");
    cargo.env("CARGO_PROFILE_DEV_OPT_LEVEL", "1");
    cargo
}

/// Runs cargo; gives the programs that it built, by name.
fn built(mut cargo: Command) -> Result<Vec<(String, PathBuf)>> {
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
        target: Option<Target>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
    }
    sh::run(&mut cargo)?;
    let printed = sh::output(cargo.args(["--quiet", "--message-format", "json"]))?;
    let messages = printed.lines().filter_map(|line| serde_json::from_str::<Message>(line).ok());
    Ok(messages.filter_map(|message| Some((message.target?.name, message.executable?))).collect())
}

/// One machine to be started.
struct Boot {
    run: &'static Run,
    system: System,
    kernel: Kernel,
}

impl Boot {
    fn name(&self) -> String {
        format!("{}{}", self.run.name, self.system.suffix())
    }
}

/// What all machines have in common.
struct Guests<'a> {
    bare: Tests<'a>,
    debian: Tests<'a>,
    logs: PathBuf,
    /// Seen by one machine, so that the others need not try.
    kvm_failed: AtomicBool,
}

impl Guests<'_> {
    fn run_all(&self, ready: Vec<Boot>, matrix: &mut Matrix) -> Result<()> {
        let lanes = thread::available_parallelism().map_or(1, usize::from).clamp(1, LANES_MAX);
        let ready = Mutex::new(ready.into_iter());
        let matrix = Mutex::new(matrix);
        let lane = || -> Result<()> {
            loop {
                let next = ready.lock().expect("no holder panics").next();
                let Some(boot) = next else { return Ok(()) };
                let start = Instant::now();
                let (outcome, note) = self.run(&boot).with_context(|| format!("kernel {}", boot.name()))?;
                let mut matrix = matrix.lock().expect("no holder panics");
                matrix.add(boot.run, &outcome);
                self.tell(&boot, &outcome, &note, start.elapsed());
            }
        };
        thread::scope(|scope| {
            let lanes: Vec<_> = (0..lanes).map(|_| scope.spawn(lane)).collect();
            lanes.into_iter().try_for_each(|lane| lane.join().expect("a lane does not panic"))
        })
    }

    /// One machine; also what is worth to be noted about its kernel.
    fn run(&self, boot: &Boot) -> Result<(Outcome, String)> {
        let Boot { run, system, kernel } = boot;
        let tests = match system {
            System::Bare => &self.bare,
            System::Debian => &self.debian,
        };
        let initramfs = self.log(boot, "initramfs");
        let lacking = initramfs::write(kernel, tests, &initramfs)?;
        let (log, console) = (self.log(boot, "log"), self.log(boot, "console"));
        let machine = Machine {
            kernel: &kernel.image(),
            initramfs: &initramfs,
            append: run.append,
            log: &log,
            console: &console,
        };
        let (report, end) = self.boot(&machine)?;
        // They are large, and made anew each time.
        let _ = fs::remove_file(&initramfs);
        if *system == System::Bare {
            let rows = self.log(boot, "bypass");
            fs::write(&rows, report.rows()).with_context(|| format!("cannot write {}", rows.display()))?;
        }
        let release = report.kernel.clone().unwrap_or_else(|| kernel.package.clone());
        let console = fs::read(&console).unwrap_or_default();
        let outcome = report.conclude(run.name, &end, &String::from_utf8_lossy(&console), MAY_SKIP);
        let lacking =
            if lacking.is_empty() { String::new() } else { format!("; no modules {}", lacking.join(" ")) };
        Ok((outcome, format!("{release}{lacking}")))
    }

    /// With the processor's help where that works: whoever does not get to the first line with it
    /// is booted again without.
    fn boot(&self, machine: &Machine<'_>) -> Result<(report::Report, report::End)> {
        if Accelerator::probe() == Accelerator::Kvm && !self.kvm_failed.load(Ordering::Relaxed) {
            let (report, end) = guest::run(machine, Accelerator::Kvm)?;
            if report.kernel.is_some() {
                return Ok((report, end));
            }
            if !self.kvm_failed.swap(true, Ordering::Relaxed) {
                eprintln!("guests do not start with KVM on this machine: going on without, which is slower");
            }
        }
        guest::run(machine, Accelerator::Tcg)
    }

    fn log(&self, boot: &Boot, extension: &str) -> PathBuf {
        self.logs.join(format!("{}.{extension}", boot.name()))
    }

    /// A line for the run, below the details of what failed in it.
    fn tell(&self, boot: &Boot, outcome: &Outcome, note: &str, took: Duration) {
        let name = boot.name();
        if outcome.failed > 0 {
            println!("\n== {name}: what failed; all of it is in {}", self.log(boot, "log").display());
            outcome.details.iter().for_each(|line| println!("{line}"));
        }
        println!("{}", line(&name, outcome, note, took));
    }
}

fn line(name: &str, outcome: &Outcome, note: &str, took: Duration) -> String {
    let Outcome { passed, failed, skipped, .. } = outcome;
    let skipped = skipped.len();
    let seconds = took.as_secs_f64();
    format!("{name:<13} {passed:>4} passed {failed:>3} failed {skipped:>3} skipped {seconds:>6.1} s  {note}")
}

/// What all kernels together came to.
#[derive(Debug, Default)]
pub(crate) struct Matrix {
    passed: u64,
    failed: u64,
    /// `run: test (why)`.
    skipped: Vec<String>,
    ran: Vec<&'static str>,
    not_available: Vec<&'static str>,
}

impl Matrix {
    fn add(&mut self, run: &Run, outcome: &Outcome) {
        self.passed += outcome.passed;
        self.failed += outcome.failed;
        self.skipped.extend(outcome.skipped.iter().map(|test| format!("{}: {test}", run.name)));
        self.ran.push(run.name);
    }

    /// A kernel that is not available is a failure if it was asked for. If all were, it is one only
    /// where nothing can stand in for it: old ones vanish from the archives some day.
    fn judge_missing(&mut self, asked_for: bool) {
        let lacking = |any_of: &&&[&str]| !any_of.iter().any(|name| self.ran.contains(name));
        let missing =
            if asked_for { self.not_available.len() } else { INDISPENSABLE.iter().filter(lacking).count() };
        self.failed += missing as u64;
    }

    /// Whether that is a success.
    pub(crate) fn verdict(&self) -> Result<()> {
        if self.failed > 0 {
            bail!("{} kernel tests failed, or kernels; see above", self.failed);
        }
        if self.passed == 0 {
            bail!("no test ran: if a filter was given, it matches no test");
        }
        Ok(())
    }
}

/// What was skipped and what was not available, then the closing line.
impl fmt::Display for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.skipped.is_empty() {
            writeln!(f, "skipped:")?;
            self.skipped.iter().try_for_each(|name| writeln!(f, "  {name}"))?;
        }
        if !self.not_available.is_empty() {
            writeln!(f, "NOT AVAILABLE, so nothing is known of: {}", self.not_available.join(", "))?;
        }
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(series: &[&str], expected: &[&str]) {
        let series: Vec<String> = series.iter().map(ToString::to_string).collect();
        let names: Vec<&str> =
            chosen(&series).expect("they are in the table").iter().map(|run| run.name).collect();
        assert_eq!(names, expected, "{series:?}");
    }

    #[test]
    fn a_series_means_all_its_runs() {
        check(&["5.10"], &["5.10", "5.10+lsm"]);
        check(&["7", "5.10+lsm"], &["5.10+lsm", "7"]);
        check(&["6.19"], &["6.18"]);
        assert_eq!(chosen(&[]).expect("all of them").len(), RUNS.len());
        let error = chosen(&["6.6".into()]).map(|_| ()).expect_err("Debian has none");
        assert!(error.to_string().contains("`6.6`"), "{error}");
    }

    #[test]
    fn lists_name_runs_of_the_table() {
        let known = |name: &str| RUNS.iter().any(|run| run.name == name);
        assert!(INDISPENSABLE.iter().all(|any_of| any_of.iter().all(|name| known(name))));
        let stands = |run: &str| run == "*" || known(run.trim_start_matches('='));
        assert!(MAY_SKIP.iter().all(|skip| stands(skip.run) && !skip.reason.is_empty()));
    }

    fn missing(ran: &[&'static str], asked_for: bool) -> u64 {
        let gone = RUNS.iter().map(|run| run.name).filter(|name| !ran.contains(name));
        let mut matrix = Matrix { ran: ran.to_vec(), not_available: gone.collect(), ..Matrix::default() };
        matrix.judge_missing(asked_for);
        matrix.failed
    }

    #[test]
    fn too_few_kernels_are_a_failure() {
        assert_eq!(missing(&["6.1", "7"], false), 0);
        assert_eq!(missing(&["5.10", "5.10+lsm", "6.1"], false), 1);
        assert_eq!(missing(&["5.10", "6.12"], false), 1);
        assert_eq!(missing(&[], false), 2);
    }

    #[test]
    fn a_kernel_that_was_asked_for_has_to_run() {
        let mut matrix = Matrix { ran: vec!["6.1"], not_available: vec!["5.10"], ..Matrix::default() };
        matrix.judge_missing(true);
        assert_eq!(
            matrix.to_string(),
            "NOT AVAILABLE, so nothing is known of: 5.10\n0 passed, 1 failed, 0 skipped"
        );
        assert!(matrix.verdict().is_err());
    }

    #[test]
    fn the_closing_line_is_the_last() {
        let mut matrix = Matrix::default();
        let skipped = vec!["a (why)".to_owned()];
        matrix.add(&RUNS[0], &Outcome { passed: 3, failed: 0, skipped, details: Vec::new() });
        matrix.add(&RUNS[2], &Outcome { passed: 4, ..Outcome::default() });
        assert_eq!(matrix.to_string(), "skipped:\n  5.10: a (why)\n7 passed, 0 failed, 1 skipped");
        matrix.verdict().expect("nothing failed");
    }
}
