//! Debian's kernels: which there are of a series, and how one is had.
//!
//! Owns the cache, which lies outside the tree. Packages are downloaded and unpacked, never
//! installed. Names in an index go stale, above all those of a suite that is no longer kept up:
//! what cannot be downloaded is passed over for the next one.

use std::{
    collections::BTreeSet,
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail};

use crate::sh::{self, Checkout};

/// Where kernels are looked for: the archive's folder, the suite. An unknown suite costs nothing.
const SUITES: [(&str, &str); 8] = [
    ("debian", "bullseye"),
    ("debian-security", "bullseye-security"),
    ("debian", "bookworm"),
    ("debian-security", "bookworm-security"),
    ("debian", "bookworm-backports"),
    ("debian", "trixie"),
    ("debian-security", "trixie-security"),
    ("debian", "trixie-backports"),
];

/// What the packages are checked against, whatever the machine itself is.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// How old an index may be.
const INDEX_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// How long a kernel is taken for the newest of its series.
const KERNEL_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Not unpacked: what no test loads, nine tenths of a package. Drivers are kept for networks only.
const EXCLUDED: [&str; 8] = [
    "*/kernel/sound/*",
    "*/kernel/fs/*",
    "*/kernel/drivers/[!n]*",
    "*/kernel/drivers/n[!e]*",
    "*/kernel/drivers/net/*/*",
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
        let cache = cache(checkout);
        let create = || {
            fs::create_dir_all(&cache)?;
            let lock = File::create(cache.join("lock"))?;
            lock.lock().map(|()| lock)
        };
        let lock = create().with_context(|| format!("cannot use the folder {}", cache.display()))?;
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
            self.index = Some(sh::output(self.apt("apt-cache").args(["pkgnames", "linux-"]))?);
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
        if let Err(error) = sh::output(self.apt("apt-get").args(["-qq", "update"])) {
            eprintln!("warning: some suites are not available: {error:#}");
        }
        fs::write(&updated, "").context("cannot note the time of the index")
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

fn cache(checkout: &Checkout) -> PathBuf {
    let of_user = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    of_user
        .or_else(|| Some(env::home_dir()?.join(".cache")))
        .map_or_else(|| checkout.target.join("kernels"), |cache| cache.join("portcullis/kernels"))
}

/// A kernel that is there, and how long ago it was fetched.
fn cached(root: &Path) -> Option<(Kernel, Duration)> {
    let note = root.join("package");
    let package = fs::read_to_string(&note).ok()?;
    Some((Kernel { root: root.to_owned(), package }, age(&note)?))
}

fn age(path: &Path) -> Option<Duration> {
    let modified = fs::metadata(path).ok()?.modified().ok()?;
    Some(SystemTime::now().duration_since(modified).unwrap_or_default())
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

/// The addresses of Debian's archives, as this machine has them.
#[derive(Debug, PartialEq, Eq)]
struct Archives {
    main: String,
    security: String,
}

impl Archives {
    fn of_this_machine() -> Result<Self> {
        // Debian's own files first: others may name folders that are called the same.
        let mut files = ["sources.list", "sources.list.d/debian.sources"].map(PathBuf::from).to_vec();
        let others = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten();
        files.extend(others.map(|entry| entry.path()));
        // A file that is not there, or is no text, names no archive.
        let texts = files.iter().flat_map(|file| fs::read_to_string(Path::new("/etc/apt").join(file)));
        let text = texts.collect::<Vec<_>>().join("\n");
        Self::parse(&text).context("no source in /etc/apt is an archive of Debian's")
    }

    /// From lists in either of apt's formats.
    fn parse(sources: &str) -> Option<Self> {
        let lines = sources.lines().filter(|line| !line.trim_start().starts_with('#'));
        let words: Vec<&str> = lines.flat_map(str::split_whitespace).collect();
        let ending = |end: &str| {
            let found = words.iter().map(|word| word.trim_end_matches('/')).find(|word| word.ends_with(end));
            found.map(str::to_owned)
        };
        let main = ending("/debian")?;
        let security = ending("/debian-security").unwrap_or_else(|| format!("{main}-security"));
        Some(Self { main, security })
    }

    fn sources(&self) -> String {
        let line = |(archive, suite)| {
            let address = if archive == "debian" { &self.main } else { &self.security };
            format!("deb [signed-by={KEYRING}] {address} {suite} main\n")
        };
        SUITES.map(line).concat()
    }
}

/// What has to be downloaded for a kernel. The order is that of preference, the best one least.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    /// The kernel for clouds has fewer protocols, above all neither SCTP nor DCCP.
    is_for_clouds: bool,
    /// Of some kernels the archive has lost the package of modules.
    lacks_modules: bool,
    /// All numbers in the version.
    version: std::cmp::Reverse<Vec<u64>>,
    /// The kernel first, its modules if they are apart.
    packages: Vec<String>,
}

/// Kernels of a series (`6.1`, or `7` for any 7.x) by preference, from the names of packages.
fn candidates(index: &str, series: &str) -> Vec<Candidate> {
    let names: BTreeSet<&str> = index.lines().collect();
    let mut candidates: Vec<Candidate> =
        names.iter().filter_map(|name| candidate(name, series, &names)).collect();
    candidates.sort();
    candidates
}

/// Up to 6.18 `linux-image-V` has kernel and modules. From 6.19 on it is empty; the kernel is in
/// `linux-binary-V`, its modules are in `linux-modules-V`.
fn candidate(name: &str, series: &str, names: &BTreeSet<&str>) -> Option<Candidate> {
    let (kind, rest) =
        ["image", "binary"].into_iter().find_map(|kind| Some((kind, strip_kind(name, kind)?)))?;
    let suffixed = rest.strip_suffix("-unsigned").unwrap_or(rest);
    let plain = suffixed.strip_suffix("-amd64")?;
    let version = plain.strip_suffix("-cloud").unwrap_or(plain);
    if version.ends_with("-rt") || !version.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    let numbers = numbers(version);
    // Two numbers only: a package that is empty, and depends on the newest.
    if numbers.len() < 3 || !numbers.starts_with(&self::numbers(series)) {
        return None;
    }
    if kind == "image" && names.contains(format!("linux-binary-{suffixed}").as_str()) {
        return None;
    }
    let modules = format!("linux-modules-{suffixed}");
    let has_modules = names.contains(modules.as_str());
    let mut packages = vec![name.to_owned()];
    if kind == "binary" && has_modules {
        packages.push(modules);
    }
    Some(Candidate {
        is_for_clouds: plain != version,
        lacks_modules: kind == "binary" && !has_modules,
        version: std::cmp::Reverse(numbers),
        packages,
    })
}

fn strip_kind<'a>(name: &'a str, kind: &str) -> Option<&'a str> {
    name.strip_prefix("linux-")?.strip_prefix(kind)?.strip_prefix('-')
}

fn numbers(version: &str) -> Vec<u64> {
    let digits = version.split(|char: char| !char.is_ascii_digit());
    digits.filter_map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &str = "\
linux-base-7.3.4+deb13-amd64
linux-binary-6.19.14+deb13-amd64
linux-binary-7.2.12+deb13-amd64
linux-binary-7.3.4+deb13-amd64
linux-binary-7.3.4+deb13-cloud-amd64
linux-binary-7.3.4+deb13-rt-amd64
linux-binary-7.4.1+deb13-amd64
linux-image-5.10.0-9-amd64
linux-image-5.10.0-46-amd64
linux-image-5.10.0-46-amd64-unsigned
linux-image-5.10.0-46-cloud-amd64
linux-image-6.1-amd64
linux-image-6.1.0-0.deb11.52-amd64
linux-image-6.1.0-56-amd64
linux-image-6.12.90+deb13.1-amd64
linux-image-6.12.117+deb12-amd64
linux-image-6.12.117+deb13-amd64
linux-image-6.19.14+deb13-amd64
linux-image-7.3.4+deb13-amd64
linux-image-amd64
linux-image-rt-amd64-dbg
linux-modules-7.2.12+deb13-amd64
linux-modules-7.3.4+deb13-amd64
linux-modules-7.3.4+deb13-cloud-amd64
";

    #[track_caller]
    fn check(series: &str, expected: &[&str]) {
        let found: Vec<String> =
            candidates(INDEX, series).iter().map(|candidate| candidate.packages.join(" ")).collect();
        assert_eq!(found, expected, "{series}");
    }

    #[test]
    fn the_newest_comes_first_and_clouds_come_last() {
        check(
            "5.10",
            &[
                "linux-image-5.10.0-46-amd64",
                "linux-image-5.10.0-46-amd64-unsigned",
                "linux-image-5.10.0-9-amd64",
                "linux-image-5.10.0-46-cloud-amd64",
            ],
        );
        check(
            "6.12",
            &[
                "linux-image-6.12.117+deb13-amd64",
                "linux-image-6.12.117+deb12-amd64",
                "linux-image-6.12.90+deb13.1-amd64",
            ],
        );
    }

    #[test]
    fn a_series_is_not_the_beginning_of_another() {
        check("6.1", &["linux-image-6.1.0-56-amd64", "linux-image-6.1.0-0.deb11.52-amd64"]);
    }

    #[test]
    fn kernels_in_two_packages_are_found_and_those_without_modules_come_after() {
        check(
            "7",
            &[
                "linux-binary-7.3.4+deb13-amd64 linux-modules-7.3.4+deb13-amd64",
                "linux-binary-7.2.12+deb13-amd64 linux-modules-7.2.12+deb13-amd64",
                "linux-binary-7.4.1+deb13-amd64",
                "linux-binary-7.3.4+deb13-cloud-amd64 linux-modules-7.3.4+deb13-cloud-amd64",
            ],
        );
        check("6.19", &["linux-binary-6.19.14+deb13-amd64"]);
    }

    #[test]
    fn a_series_that_nobody_has_is_empty() {
        check("5.15", &[]);
    }

    #[test]
    fn archives_are_read_from_both_formats() {
        let expected = Archives {
            main: "http://mirror.test/debian".into(),
            security: "http://mirror.test/debian-security".into(),
        };
        let lists = [
            "# deb http://old.test/debian buster main\ndeb [arch=amd64] http://mirror.test/debian/ bookworm main",
            "Types: deb\nURIs: http://other.test/x http://mirror.test/debian\nSuites: bookworm\n
             Types: deb\nURIs: http://mirror.test/debian-security/\n",
        ];
        for list in lists {
            assert_eq!(Archives::parse(list).as_ref(), Some(&expected), "{list}");
        }
        assert_eq!(Archives::parse("deb http://archive.test/ubuntu noble main"), None);
    }

    #[test]
    fn every_suite_is_asked_for_from_its_archive() {
        let archives = Archives { main: "http://m.test/debian".into(), security: "http://s.test/x".into() };
        let sources = archives.sources();
        assert_eq!(sources.lines().count(), SUITES.len());
        assert!(sources.contains("] http://m.test/debian trixie-backports main\n"), "{sources}");
        assert!(sources.contains("] http://s.test/x bullseye-security main\n"), "{sources}");
    }
}
