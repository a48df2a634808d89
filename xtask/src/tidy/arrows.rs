//! Which of our packages may depend on which. A new package has to be entered here on purpose.

use toml::{Table, Value};

use super::{Tree, Violation};

/// Package → those of ours it may depend on, in whatever section of its manifest.
const ARROWS: [(&str, &[&str]); 9] = [
    ("agent", &["agent-ebpf", "proto"]),
    ("agent-ebpf", &[]),
    ("cli", &["policy", "proto"]),
    ("control-plane", &["policy", "proto"]),
    ("fuzz", &["agent", "control-plane", "policy", "proto"]),
    ("policy", &["proto"]),
    ("proto", &[]),
    ("tests", &["agent", "agent-ebpf", "cli", "control-plane", "policy", "proto"]),
    ("xtask", &[]),
];

pub(super) fn check(tree: &Tree) -> Vec<Violation> {
    let manifests = tree.iter().filter(|(path, _)| path.ends_with("Cargo.toml"));
    manifests.flat_map(|(path, text)| check_manifest(path, text)).collect()
}

fn check_manifest(path: &str, text: &str) -> Vec<Violation> {
    let manifest: Table = match text.parse() {
        Ok(manifest) => manifest,
        Err(error) => return vec![Violation::new(path, 1, format!("not TOML: {}", error.message()))],
    };
    let Some(package) = manifest.get("package") else {
        return Vec::new();
    };
    let name = package.get("name").and_then(Value::as_str).unwrap_or_default();
    let Some((_, allowed)) = ARROWS.iter().find(|(package, _)| *package == name) else {
        let rule = format!("package `{name}` has no arrows: enter it in xtask/src/tidy/arrows.rs");
        return vec![Violation::new(path, 1, rule)];
    };
    let folder = path.strip_suffix("/Cargo.toml").unwrap_or_default();
    let mut violations = Vec::new();
    if folder != name {
        let rule = format!("package `{name}` lives in folder `{folder}`: give both the same name");
        violations.push(Violation::new(path, 1, rule));
    }
    for (key, package) in dependencies(&manifest) {
        let ours = ARROWS.iter().any(|(ours, _)| *ours == package);
        if ours && !allowed.contains(&package) {
            let rule = format!(
                "`{name}` must not depend on `{package}`: move what is shared to where it belongs \
                 by meaning (allowed: {})",
                if allowed.is_empty() { "none of ours".to_owned() } else { allowed.join(", ") }
            );
            violations.push(Violation::new(path, line_of(text, key), rule));
        }
    }
    violations
}

/// Key and package of every dependency: of the build, of tests, of some target only.
fn dependencies(manifest: &Table) -> Vec<(&str, &str)> {
    let targets = manifest.get("target").and_then(Value::as_table);
    let targets = targets.into_iter().flat_map(Table::values).filter_map(Value::as_table);
    let mut found = Vec::new();
    for scope in targets.chain([manifest]) {
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let section = scope.get(section).and_then(Value::as_table);
            for (key, value) in section.into_iter().flatten() {
                let package = value.get("package").and_then(Value::as_str);
                found.push((key.as_str(), package.unwrap_or(key)));
            }
        }
    }
    found
}

fn line_of(text: &str, key: &str) -> usize {
    let names = |line: &str| {
        let rest = line.trim_start().trim_start_matches('"').strip_prefix(key);
        rest.is_some_and(|rest| rest.starts_with([' ', '=', '.', '"']))
    };
    text.lines().position(names).map_or(1, |index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::{super::told, *};

    #[test]
    fn allowed_arrows_pass() {
        let agent = "[package]\nname = \"agent\"\n[dependencies]\nproto.workspace = true\naya = \"1\"\n";
        let workspace = "[workspace.dependencies]\nagent = { path = \"agent\" }\n";
        let none: [&str; 0] = [];
        assert_eq!(told(check, &[("agent/Cargo.toml", agent), ("Cargo.toml", workspace)]), none);
    }

    #[test]
    fn an_arrow_that_is_not_in_the_table_is_told() {
        let cli = "[package]\nname = \"cli\"\n[dependencies]\nproto.workspace = true\n\
                   agent.workspace = true\n";
        assert_eq!(
            told(check, &[("cli/Cargo.toml", cli)]),
            ["cli/Cargo.toml:5: `cli` must not depend on `agent`: move what is shared to where it \
              belongs by meaning (allowed: policy, proto)"]
        );
    }

    #[test]
    fn no_section_hides_an_arrow() {
        for section in ["dev-dependencies", "build-dependencies", "target.'cfg(unix)'.dependencies"] {
            let proto = format!("[package]\nname = \"proto\"\n[{section}]\ncli.workspace = true\n");
            assert_eq!(told(check, &[("proto/Cargo.toml", &proto)]).len(), 1, "{section}");
        }
    }

    #[test]
    fn a_new_name_hides_no_arrow() {
        let xtask =
            "[package]\nname = \"xtask\"\n[dependencies]\nx = { package = \"tests\", path = \"../tests\" }\n";
        let told = told(check, &[("xtask/Cargo.toml", xtask)]);
        assert!(told[0].starts_with("xtask/Cargo.toml:4: `xtask` must not depend on `tests`"), "{told:?}");
    }

    #[test]
    fn an_unknown_package_is_told() {
        let util = "[package]\nname = \"util\"\n";
        let told = told(check, &[("util/Cargo.toml", util)]);
        assert!(told[0].contains("`util` has no arrows"), "{told:?}");
    }

    #[test]
    fn folder_and_package_have_one_name() {
        let cli = "[package]\nname = \"cli\"\n";
        let told = told(check, &[("command-line/Cargo.toml", cli)]);
        assert!(told[0].contains("lives in folder `command-line`"), "{told:?}");
    }
}
