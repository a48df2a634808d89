//! The policies under docs/policies are what they say: valid, nothing odd about them, every case as expected.

use std::collections::BTreeMap;
use std::path::Path;

use policy::{cases, files, lint};

fn tree(folder: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for inner in ["", "conditions/", "tests/"] {
        for entry in std::fs::read_dir(folder.join(inner)).expect("each example has all folders") {
            let path = entry.expect("readable").path();
            if path.is_file() {
                let name = path.file_name().and_then(|name| name.to_str()).expect("UTF-8");
                found.insert(format!("{inner}{name}"), std::fs::read_to_string(&path).expect("readable"));
            }
        }
    }
    found
}

#[track_caller]
fn check(name: &str, cases: usize) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/policies").join(name);
    let policy = files::read(&tree(&folder)).unwrap_or_else(|problems| panic!("{name}: {problems:#?}"));
    assert_eq!(lint::lint(&policy), [], "{name}");
    let results = cases::run(&policy);
    for result in &results {
        assert!(result.differences.is_empty(), "{name}, {}: {:?}", result.case.name, result.differences);
    }
    assert_eq!(results.len(), cases, "{name}");
}

#[test]
fn database_debugging() {
    check("database-debugging", 9);
}

#[test]
fn on_call_incident() {
    check("on-call-incident", 5);
}

#[test]
fn contractor() {
    check("contractor", 5);
}

#[test]
fn ci_deployment() {
    check("ci-deployment", 5);
}

#[test]
fn maintenance_window() {
    check("maintenance-window", 6);
}

#[test]
fn break_glass() {
    check("break-glass", 6);
}
