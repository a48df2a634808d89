//! Debian's archives: where they are, and which kernels they have.
//!
//! Owns the names of suites and packages. Downloads nothing.

use std::{
    cmp::Reverse,
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

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

/// The addresses of Debian's archives, as this machine has them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Archives {
    main: String,
    security: String,
}

impl Archives {
    pub(super) fn of_this_machine() -> Result<Self> {
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

    /// What apt is told: every suite, in its archive.
    pub(super) fn sources(&self) -> String {
        let line = |(archive, suite)| {
            let address = if archive == "debian" { &self.main } else { &self.security };
            format!("deb [signed-by={KEYRING}] {address} {suite} main\n")
        };
        SUITES.map(line).concat()
    }

    /// A released suite with its fixes, as lines of a list of sources.
    pub(super) fn of_suite(&self, suite: &str) -> [String; 2] {
        let line = |address: &str, suite: &str| format!("deb [signed-by={KEYRING}] {address} {suite} main");
        [line(&self.main, suite), line(&self.security, &format!("{suite}-security"))]
    }
}

/// What has to be downloaded for a kernel. The order is that of preference, the best one least.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Candidate {
    /// The kernel for clouds has fewer protocols, above all neither SCTP nor DCCP.
    is_for_clouds: bool,
    /// Of some kernels the archive has lost the package of modules.
    lacks_modules: bool,
    /// All numbers in the version.
    version: Reverse<Vec<u64>>,
    /// The kernel first, its modules if they are apart.
    pub(super) packages: Vec<String>,
}

/// Kernels of a series (`6.1`, or `7` for any 7.x) by preference, from the names of packages.
pub(super) fn candidates(index: &str, series: &str) -> Vec<Candidate> {
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
        version: Reverse(numbers),
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
