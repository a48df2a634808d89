//! Debian's kernels: which there are of a series, and how one is had.
//!
//! Owns the cache, which lies outside the tree. Packages are downloaded and unpacked, never
//! installed. Names in an index go stale, above all those of a suite that is no longer kept up:
//! what cannot be downloaded is passed over for the next one.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::archive::{Archives, Candidate, candidates};
use super::cache::{self, age};
use crate::sh::{self, Checkout};

/// Counted up when other parts of a package are wanted, see [`EXCLUDED`].
const PARTS: u32 = 2;

/// How old an index may be.
const INDEX_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// How long a kernel is taken for the newest of its series.
const KERNEL_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Not unpacked: what no test loads, nine tenths of a package. Drivers are kept for networks without hardware only.
const EXCLUDED: [&str; 11] = [
    "*/kernel/sound/*",
    "*/kernel/fs/*",
    "*/kernel/drivers/[!in]*",
    "*/kernel/drivers/i[!n]*",
    "*/kernel/drivers/input/*",
    "*/kernel/drivers/infiniband/[!c]*",
    "*/kernel/drivers/n[!e]*",
    "*/kernel/drivers/net/[!v]*/*",
    "*/share/*",
    "*/System.map*",
    "*/config*",
];

/// An unpacked kernel.
#[derive(Debug, Clone)]
pub(super) struct Kernel {
    /// With `vmlinuz` and `lib/modules`.
    pub(super) root: PathBuf,
    /// The Debian package that it came in.
    pub(super) package: String,
}

impl Kernel {
    pub(super) fn image(&self) -> PathBuf {
        self.root.join("vmlinuz")
    }

    /// The name of its folder of modules; None if it came without any.
    pub(super) fn modules_version(&self) -> Option<String> {
        let mut folders = fs::read_dir(self.root.join("lib/modules")).ok()?;
        Some(folders.next()?.ok()?.file_name().to_string_lossy().into_owned())
    }
}

/// The kernels on this machine, and the index of those that can be had.
pub(super) struct Kernels {
    cache: PathBuf,
    /// Held while anything is written, against another run.
    _lock: File,
    /// Asked for when first needed: a machine without a network can use what it has.
    index: Option<String>,
}

impl Kernels {
    /// Waits for another run that is fetching.
    pub(super) fn open(checkout: &Checkout) -> Result<Self> {
        let (cache, lock) = cache::open(checkout, "kernels", PARTS)?;
        Ok(Self { cache, _lock: lock, index: None })
    }

    /// The newest kernel of the first of these series that can be had.
    pub(super) fn newest(&mut self, series: &[&str]) -> Result<Kernel> {
        let mut errors = Vec::new();
        for series in series {
            match self.newest_of(series) {
                Ok(kernel) => return Ok(kernel),
                Err(error) => errors.push(format!("{error:#}")),
            }
        }
        bail!("{}", errors.join("; "))
    }

    fn newest_of(&mut self, series: &str) -> Result<Kernel> {
        let root = self.cache.join(series);
        let cached = cached(&root);
        if let Some((kernel, age)) = &cached
            && *age < KERNEL_AGE_MAX
        {
            return Ok(kernel.clone());
        }
        // One that is older than it should be is better than none.
        self.fetch(series, &root).or_else(|error| cached.map(|(kernel, _)| kernel).ok_or(error))
    }

    fn fetch(&mut self, series: &str, root: &Path) -> Result<Kernel> {
        let candidates = candidates(self.index()?, series);
        if candidates.is_empty() {
            bail!("no suite has a kernel {series}");
        }
        let mut last = None;
        for candidate in &candidates {
            match self.unpack(candidate, root) {
                Ok(kernel) => return Ok(kernel),
                Err(error) => last = Some(error),
            }
        }
        let last = last.context("there is a candidate")?;
        Err(last.context(format!("none of {} kernels {series} can be downloaded", candidates.len())))
    }

    fn unpack(&self, candidate: &Candidate, root: &Path) -> Result<Kernel> {
        let package = candidate.packages.first().context("a candidate names a package")?;
        eprintln!("downloading {}", candidate.packages.join(" and "));
        let folder = tempfile::tempdir_in(&self.cache).context("cannot make a temporary folder")?;
        let new = folder.path().join("new");
        fs::create_dir(&new).context("cannot make a folder")?;
        let mut download = self.apt("apt-get");
        download.current_dir(folder.path()).args(["-qq", "download"]).args(&candidate.packages);
        sh::output(&mut download)?;
        for entry in fs::read_dir(folder.path()).context("cannot list what was downloaded")? {
            let path = entry.context("cannot list what was downloaded")?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                unpack(&path, &new)?;
            }
        }
        move_image(&new)?;
        let kernel = Kernel { root: new.clone(), package: package.clone() };
        if let Some(version) = kernel.modules_version() {
            sh::output(sh::command(sh::administration("depmod")).arg("-b").arg(&new).arg(version))?;
        }
        // Written last: only what is whole is taken for a kernel.
        fs::write(new.join("package"), package).context("cannot note the package's name")?;
        let _ = fs::remove_dir_all(root);
        fs::rename(&new, root).with_context(|| format!("cannot move a kernel to {}", root.display()))?;
        Ok(Kernel { root: root.to_owned(), package: package.clone() })
    }

    fn index(&mut self) -> Result<&str> {
        if self.index.is_none() {
            self.update()?;
            let names = sh::output(self.apt("apt-cache").args(["pkgnames", "linux-"]))?;
            if names.is_empty() {
                bail!("no suite of Debian's can be reached");
            }
            self.index = Some(names);
        }
        Ok(self.index.as_deref().unwrap_or_default())
    }

    fn update(&self) -> Result<()> {
        let updated = self.cache.join("apt/updated");
        if age(&updated).is_some_and(|age| age < INDEX_AGE_MAX) {
            return Ok(());
        }
        let archives = Archives::of_this_machine()?;
        for folder in ["apt/state/lists/partial", "apt/cache/archives/partial"] {
            fs::create_dir_all(self.cache.join(folder)).context("cannot make apt's folders")?;
        }
        fs::write(self.cache.join("apt/sources.list"), archives.sources())
            .context("cannot write apt's list of sources")?;
        eprintln!("asking which kernels Debian has");
        // A suite that is gone is an error to apt; the others are there all the same.
        let mut update = self.apt("apt-get");
        update.args(["-qq", "-o", "APT::Update::Error-Mode=any", "update"]);
        match sh::output(&mut update) {
            Ok(_) => fs::write(&updated, "").context("cannot note the time of the index"),
            Err(error) => {
                eprintln!("warning: some suites are not available: {error:#}");
                Ok(())
            }
        }
    }

    /// Apt with sources, state and cache of its own, needing no root; the machine's settings
    /// (proxies, say) still apply.
    fn apt(&self, program: &str) -> Command {
        let mut command = sh::command(program);
        let apt = self.cache.join("apt");
        for (name, path) in [
            ("Dir::Etc::sourcelist", apt.join("sources.list")),
            ("Dir::Etc::sourceparts", "/dev/null".into()),
            ("Dir::Etc::preferences", "/dev/null".into()),
            ("Dir::Etc::preferencesparts", "/dev/null".into()),
            ("Dir::State", apt.join("state")),
            ("Dir::State::status", "/dev/null".into()),
            ("Dir::Cache", apt.join("cache")),
        ] {
            command.arg("-o").arg(format!("{name}={}", path.display()));
        }
        command.args(["-o", "APT::Architecture=amd64", "-o", "APT::Architectures=amd64"]);
        command.args(["-o", "Acquire::Languages=none", "-o", "APT::Sandbox::User="]);
        command
    }
}

/// A kernel that is there, and how long ago it was fetched.
fn cached(root: &Path) -> Option<(Kernel, Duration)> {
    let note = root.join("package");
    let package = fs::read_to_string(&note).ok()?;
    Some((Kernel { root: root.to_owned(), package }, age(&note)?))
}

/// Unpacks a package, with what newer ones have in `/usr/lib` in `/lib`, as older ones do.
fn unpack(package: &Path, into: &Path) -> Result<()> {
    let mut archive = sh::command("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start dpkg-deb")?;
    let stdout = archive.stdout.take().context("dpkg-deb has an output")?;
    let status = sh::command("tar")
        .args(["-x", "--no-same-owner", "--transform=s,^\\./usr/lib/,./lib/,", "--wildcards"])
        .args(EXCLUDED.map(|pattern| format!("--exclude={pattern}")))
        .arg("-C")
        .arg(into)
        .stdin(stdout)
        .status()
        .context("cannot start tar")?;
    let archived = archive.wait().context("cannot wait for dpkg-deb")?;
    if !status.success() || !archived.success() {
        bail!("cannot unpack {} (dpkg-deb: {archived}, tar: {status})", package.display());
    }
    Ok(())
}

/// Old packages have the kernel in `/boot`, new ones beside its modules.
fn move_image(root: &Path) -> Result<()> {
    let modules = fs::read_dir(root.join("lib/modules")).into_iter().flatten().flatten();
    let images = modules.map(|folder| folder.path().join("vmlinuz"));
    let boot = fs::read_dir(root.join("boot")).into_iter().flatten().flatten().map(|file| file.path());
    let is_image = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz")) && path.is_file()
    };
    let image = images.chain(boot).find(is_image).context("there is no kernel in the package")?;
    fs::rename(&image, root.join("vmlinuz")).with_context(|| format!("cannot move {}", image.display()))
}
