//! Policies: files → policy → what follows from it; or all that is wrong with the files.

use std::collections::BTreeMap;

use policy::decide::Outcome;
use policy::{cases, decide, files, lint};

/// What stands before the name of each file.
const FILE: &str = "=== ";

pub(crate) fn run(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let files = split(text);
    let policy = match files::read(&files) {
        Ok(policy) => policy,
        Err(problems) => {
            assert!(problems.is_sorted() && !problems.is_empty(), "{problems:?}");
            for problem in &problems {
                let lines = files.get(&problem.file).map_or(0, |text| text.matches('\n').count() + 1);
                assert!(problem.line <= lines, "{problem}, of {lines} lines");
            }
            return;
        }
    };
    drop(lint::lint(&policy));
    drop(cases::run(&policy));
    for case in &policy.cases {
        if let Outcome::Permitted(terms) = decide(&policy, &case.facts).outcome {
            assert!(terms.duration <= policy.limits.maximum_duration, "{terms:?} for {:?}", case.facts);
        }
    }
}

/// A line that begins with [`FILE`] names a file, which goes to the next such line. What stands before the first one is in none.
fn split(text: &str) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let mut file: Option<&mut String> = None;
    for line in text.split_inclusive('\n') {
        match line.strip_prefix(FILE) {
            Some(name) => file = Some(files.entry(name.trim_end().to_owned()).or_default()),
            None => file.iter_mut().for_each(|text| text.push_str(line)),
        }
    }
    files
}

/// Files in one text.
pub(crate) fn joined(files: &[(&str, &str)]) -> Vec<u8> {
    let file = |(name, text): &(&str, &str)| format!("{FILE}{name}\n{}\n", text.trim_end());
    files.iter().map(file).collect::<String>().into_bytes()
}
