//! What every text file keeps to: Rust files say what they own, and nothing names a machine.

use super::{Tree, Violation};

/// Written in pieces, because this file is checked too.
const MACHINE_PATHS: &[&str] = &[concat!("/wo", "rk/"), concat!("/root/", "."), concat!("/Use", "rs/")];

/// Hosts that packages come from. A machine may have its packages from somewhere else; tools name
/// a registry by their own setting. Cargo's own name for crates.io is not among them.
const REGISTRY_HOSTS: &[&str] = &[
    concat!("index.crates", ".io"),
    concat!("static.crates", ".io"),
    concat!("pypi", ".org"),
    concat!("files.python", "hosted.org"),
    concat!("registry.npm", "js.org"),
    concat!("deb.debian", ".org"),
    concat!("proxy.golang", ".org"),
    concat!("arti", "factory"),
];

pub(super) fn check(tree: &Tree, machine_paths: &[String]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (path, text) in tree {
        if path.ends_with(".rs") && !has_header(text) {
            let rule = "no module header: start with `//!`: what it owns, what it must not know";
            violations.push(Violation::new(path, 1, rule));
        }
        for (index, line) in text.lines().enumerate() {
            let named = MACHINE_PATHS.iter().copied().chain(machine_paths.iter().map(String::as_str));
            for found in named.filter(|named| names_path(line, named)) {
                let rule = format!("names `{found}`, a path of one machine: say it relative to the checkout");
                violations.push(Violation::new(path, index + 1, rule));
            }
            for found in REGISTRY_HOSTS.iter().filter(|host| line.contains(**host)) {
                let rule = format!("names the registry host `{found}`: use the tool's own setting");
                violations.push(Violation::new(path, index + 1, rule));
            }
        }
    }
    violations
}

fn has_header(text: &str) -> bool {
    text.lines().find(|line| !line.trim().is_empty()).is_some_and(|line| line.starts_with("//!"))
}

/// Whether a line has the path itself, not one that merely ends in the same letters.
fn names_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|before| !before.is_alphanumeric() && !"_-./".contains(before))
    })
}

#[cfg(test)]
mod tests {
    use super::{super::told, *};

    fn told_of(path: &str, text: &str) -> Vec<String> {
        told(|tree| check(tree, &["/srv/checkout".to_owned()]), &[(path, text)])
    }

    #[test]
    fn a_rust_file_starts_with_its_header() {
        assert_eq!(told_of("a.rs", "//! Owns a.\nfn f() {}\n").len(), 0);
        assert_eq!(told_of("a.rs", "\n//! Owns a.\n").len(), 0);
        assert_eq!(told_of("a.rs", "// Owns a.\n//! Too late.\n").len(), 1);
        assert_eq!(told_of("a.rs", "").len(), 1);
        assert_eq!(told_of("a.md", "No header.\n").len(), 0);
    }

    #[test]
    fn a_path_of_one_machine_is_told() {
        for line in MACHINE_PATHS.iter().copied().chain(["cd /srv/checkout && make"]) {
            let told = told_of("a.md", &format!("first\n{line}\n"));
            assert_eq!(told.len(), 1, "{line}: {told:?}");
            assert!(told[0].starts_with("a.md:2: names `/"), "{told:?}");
        }
        assert_eq!(told_of("a.md", &format!("/var/lib{}x\n", MACHINE_PATHS[0])).len(), 0);
    }

    #[test]
    fn a_registry_host_is_told() {
        for host in REGISTRY_HOSTS {
            assert_eq!(told_of("a.toml", &format!("url = \"sparse+https://{host}/\"\n")).len(), 1, "{host}");
        }
        let canonical = "source = \"registry+https://github.com/rust-lang/crates.io-index\"\n";
        assert_eq!(told_of("Cargo.lock", canonical).len(), 0);
    }
}
