//! The Debian that guests with systemd have: made once, by Debian's own tools, and kept.
//!
//! Owns the list of packages and accounts. Knows nothing of kernels, nor of what is put into it besides.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{
    archive::Archives,
    cache::{self, age},
    initramfs,
};
use crate::sh::{self, Checkout};

/// Counted up with each change of how it is made.
const VERSION: u32 = 1;

/// Fixes of Debian's are wanted some day, not each day.
const AGE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// What a server has on which people work, and containers run.
const PACKAGES: [&str; 14] = [
    "systemd",
    "systemd-sysv",
    "dbus",
    "dbus-user-session",
    "libpam-systemd",
    "policykit-1",
    "procps",
    "iproute2",
    "openssh-server",
    "openssh-client",
    "podman",
    "crun",
    "uidmap",
    "busybox-static",
];

/// What nobody reads there: a third of it.
const EXCLUDED: [&str; 3] = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*"];

/// Run with the new system's root as `$1`. Two people: uid 1000 and 1001. What waits for a network, a terminal or another day
/// would only be waited for.
const FINISH: &str = r#"
set -e
for user in alice bob; do chroot "$1" useradd --create-home --shell /bin/bash "$user"; done
echo guest >"$1/etc/hostname"
echo '127.0.0.1 localhost guest' >"$1/etc/hosts"
: >"$1/etc/machine-id"
: >"$1/etc/fstab"
for unit in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer dpkg-db-backup.timer getty@tty1.service \
    serial-getty@ttyS0.service systemd-timesyncd.service systemd-binfmt.service systemd-pstore.service \
    systemd-update-utmp.service podman.service podman.socket podman-auto-update.timer podman-restart.service; do
    ln -sf /dev/null "$1/etc/systemd/system/$unit"
done
rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/* "$1"/boot/*
"#;

/// A Debian, packed so that a kernel unpacks it below `/system` of its first file system.
#[derive(Debug)]
pub(super) struct Userland {
    pub(super) archive: PathBuf,
}

impl Userland {
    /// The one that is there, or a new one, which takes a minute or two, root, and Debian's archive.
    pub(super) fn provide(checkout: &Checkout) -> Result<Self> {
        let (folder, _lock) = cache::open(checkout, "userlands", VERSION)?;
        let archive = folder.join("debian.cpio");
        let is_there = age(&archive);
        if is_there.is_none_or(|age| age > AGE_MAX)
            && let Err(error) = make(&folder, &archive)
        {
            // One that is older than it should be is better than none.
            if is_there.is_none() {
                return Err(error);
            }
            eprintln!("warning: going on with a Debian from {}: {error:#}", archive.display());
        }
        Ok(Self { archive })
    }
}

fn make(folder: &Path, archive: &Path) -> Result<()> {
    if !sh::is_root() {
        bail!(
            "only root can make the Debian for guests with systemd; `--suite kernel` and `--suite bypass` do without"
        );
    }
    let temporary = tempfile::tempdir_in(folder).context("cannot make a temporary folder")?;
    let finish = temporary.path().join("finish");
    fs::write(&finish, FINISH).context("cannot write a script")?;
    let system = temporary.path().join("system");
    eprintln!("making a Debian with systemd (a minute or two)");
    let mut mmdebstrap = sh::command("mmdebstrap");
    mmdebstrap.args([
        "--quiet",
        "--mode=root",
        "--variant=minbase",
        "--aptopt=APT::Install-Recommends \"false\"",
    ]);
    mmdebstrap.args(EXCLUDED.map(|path| format!("--dpkgopt=path-exclude={path}")));
    mmdebstrap.arg(format!("--include={}", PACKAGES.join(",")));
    mmdebstrap.arg(format!("--customize-hook=sh {} \"$1\"", finish.display()));
    mmdebstrap.arg("bookworm").arg(&system);
    mmdebstrap.args(Archives::of_this_machine()?.of_suite("bookworm"));
    sh::output(&mut mmdebstrap)?;
    // It holds `system` alone. Written last: only what is whole is taken for one.
    fs::remove_file(&finish).context("cannot remove a script")?;
    let new = folder.join("new.cpio");
    initramfs::archive(temporary.path(), &new)?;
    fs::rename(&new, archive).with_context(|| format!("cannot write {}", archive.display()))
}
