//! What is in `deploy/`, judged by the tools of those who will read it: systemd and Kubernetes.
//!
//! Each tool is also shown a broken copy, for a check that cannot fail proves nothing. Without its
//! tool a check is skipped, by name; `cargo xtask setup` installs both.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use libtest_mimic::{Arguments, Completion, Failed, Trial};

const AGENT_UNIT: &str = include_str!("../../deploy/systemd/portcullis-agent.service");
const GATE_UNIT: &str = include_str!("../../deploy/systemd/portcullis-gate.service");
const CONTROL_PLANE_UNIT: &str = include_str!("../../deploy/systemd/portcullis-control-plane.service");
const DAEMON_SET: &str = include_str!("../../deploy/kubernetes/daemonset.yaml");

/// The first systemd whose `verify` takes `--root`, as every supported Debian has it.
const SYSTEMD_MIN: u32 = 252;

type Outcome = Result<Completion, Failed>;

fn main() -> ExitCode {
    let trials = vec![
        Trial::ignorable_test("systemd::agent_unit_is_clean", || unit_is_clean(AGENT_UNIT)),
        Trial::ignorable_test("systemd::gate_unit_is_clean", || unit_is_clean(GATE_UNIT)),
        Trial::ignorable_test("systemd::control_plane_unit_is_clean", || unit_is_clean(CONTROL_PLANE_UNIT)),
        Trial::ignorable_test("systemd::unknown_key_is_refused", || {
            unit_is_refused(&broken(AGENT_UNIT, "RestartSec=", "RestartSecs="), "RestartSecs")
        }),
        Trial::ignorable_test("systemd::unknown_value_is_refused", || {
            unit_is_refused(&broken(CONTROL_PLANE_UNIT, "Restart=always", "Restart=ever"), "ever")
        }),
        Trial::ignorable_test("systemd::missing_program_is_refused", || {
            unit_is_refused(&broken(AGENT_UNIT, "/usr/bin/portcullis-agent", "/usr/bin/gone"), "gone")
        }),
        Trial::ignorable_test("kubernetes::manifest_is_valid", manifest_is_valid),
        Trial::ignorable_test("kubernetes::unknown_field_is_refused", || {
            manifest_is_refused(&broken(DAEMON_SET, "hostPID:", "hostPid:"), "hostPid")
        }),
        Trial::ignorable_test("kubernetes::wrong_type_is_refused", || {
            manifest_is_refused(&broken(DAEMON_SET, "privileged: false", "privileged: maybe"), "maybe")
        }),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A copy with one thing wrong; panics when there is nothing to break.
fn broken(text: &str, right: &str, wrong: &str) -> String {
    assert!(text.contains(right), "`{right}` is gone: break something else");
    text.replace(right, wrong)
}

fn skip(why: impl Into<String>) -> Outcome {
    Ok(Completion::ignored_with(format!("{}: run `cargo xtask setup`", why.into())))
}

/// What a tool made of a file.
struct Judgement {
    /// It left without an error.
    accepted: bool,
    complaints: String,
}

fn judge(command: &mut Command) -> Result<Judgement, Failed> {
    let output = command.output().map_err(|error| format!("cannot start {command:?}: {error}"))?;
    Ok(Judgement {
        accepted: output.status.success(),
        complaints: [output.stdout, output.stderr]
            .map(|text| String::from_utf8_lossy(&text).into_owned())
            .concat(),
    })
}

fn refused(judgement: Judgement, naming: &str) -> Outcome {
    if judgement.accepted {
        return Err("the broken copy was accepted".into());
    }
    if !judgement.complaints.contains(naming) {
        return Err(format!("the complaint does not name `{naming}`:\n{}", judgement.complaints).into());
    }
    Ok(Completion::Completed)
}

// systemd

fn unit_is_clean(unit: &str) -> Outcome {
    if let Some(why) = no_systemd() {
        return skip(why);
    }
    let Judgement { accepted, complaints } = verify(unit)?;
    // Of some mistakes it only warns.
    if !accepted || !complaints.is_empty() {
        return Err(complaints.into());
    }
    Ok(Completion::Completed)
}

fn unit_is_refused(unit: &str, naming: &str) -> Outcome {
    if let Some(why) = no_systemd() {
        return skip(why);
    }
    let Judgement { accepted, complaints } = verify(unit)?;
    refused(Judgement { accepted: accepted && complaints.is_empty(), complaints }, naming)
}

fn no_systemd() -> Option<String> {
    let Ok(output) = Command::new("systemd-analyze").arg("--version").output() else {
        return Some("systemd-analyze is not installed".to_owned());
    };
    // `systemd 252 (252.38-1~deb12u1)`
    let printed = String::from_utf8_lossy(&output.stdout);
    let version = printed.split_whitespace().nth(1).and_then(|word| word.parse::<u32>().ok());
    match version {
        Some(version) if version >= SYSTEMD_MIN => None,
        found => Some(format!("systemd-analyze {SYSTEMD_MIN} or later is needed, this is {found:?}")),
    }
}

/// Verifies a unit in a tree of its own, as if installed: next to the units of this machine, which
/// it is ordered against, and with the programs it starts.
fn verify(unit: &str) -> Result<Judgement, Failed> {
    let root = tempfile::tempdir()?;
    let system = root.path().join("usr/lib/systemd/system");
    copy_units(Path::new("/usr/lib/systemd/system"), &system)?;
    for program in ["portcullis-agent", "portcullis-control-plane"] {
        let path = root.path().join("usr/bin").join(program);
        fs::create_dir_all(root.path().join("usr/bin"))?;
        fs::write(&path, "#!/bin/sh\n")?;
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    // Units are ordered against each other.
    for (name, unit) in [("portcullis-agent", AGENT_UNIT), ("portcullis-gate", GATE_UNIT)] {
        fs::write(system.join(name).with_extension("service"), unit)?;
    }
    let path = system.join("portcullis-under-test.service");
    fs::write(&path, unit)?;
    judge(Command::new("systemd-analyze").arg("verify").arg("--root").arg(root.path()).arg(&path))
}

fn copy_units(from: &Path, to: &Path) -> Result<(), Failed> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default();
        // Through the links, for aliases; drop-in folders are this machine's own business.
        if path.is_file() {
            fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}

// Kubernetes

fn manifest_is_valid() -> Outcome {
    let Some(validator) = validator() else {
        return skip("kubernetes-validate is not installed");
    };
    let Judgement { accepted, complaints } = validate(&validator, DAEMON_SET)?;
    if !accepted {
        return Err(complaints.into());
    }
    Ok(Completion::Completed)
}

fn manifest_is_refused(manifest: &str, naming: &str) -> Outcome {
    let Some(validator) = validator() else {
        return skip("kubernetes-validate is not installed");
    };
    refused(validate(&validator, manifest)?, naming)
}

/// Where `xtask/src/setup.rs` installs it.
fn validator() -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent()?;
    let path = target.join("tools/kubernetes-validate/bin/kubernetes-validate");
    path.exists().then_some(path)
}

fn validate(validator: &Path, manifest: &str) -> Result<Judgement, Failed> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("manifest.yaml");
    fs::write(&path, manifest)?;
    judge(Command::new(validator).arg("--strict").arg(&path))
}
