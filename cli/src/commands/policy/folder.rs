//! The files of a policy on disk.
//!
//! Owns: which files are read, and that none of them is too large to be. Must not know: what stands in them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use policy::files::{FILE_MAX_BYTES, FILES_MAX};

use crate::error::{Error, Problem};

const WHAT: &str = "policy file";

/// Reads `*.toml` in the folder and in `tests`, and `*.cedar` in `conditions`: path in the folder → text. Others may lie there.
pub(super) fn read(folder: &Path) -> Result<BTreeMap<String, String>, Error> {
    let mut files = BTreeMap::new();
    for (inner, extension) in [("", "toml"), ("conditions/", "cedar"), ("tests/", "toml")] {
        let place = if inner.is_empty() { folder.to_owned() } else { folder.join(inner) };
        let entries = match std::fs::read_dir(&place) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !inner.is_empty() => continue,
            Err(source) => return Err(Error::ReadFile { what: "policy folder", path: place, source }),
        };
        for entry in entries {
            let entry = entry.map_err(|source| Error::ReadFile {
                what: "policy folder",
                path: place.clone(),
                source,
            })?;
            let path = entry.path();
            if path.extension().is_none_or(|found| found != extension) || !path.is_file() {
                continue;
            }
            let name = entry.file_name().into_string().map_err(|_| {
                let source = Problem("its name is not UTF-8".to_owned());
                Error::BadFile { what: WHAT, path: path.clone(), source }
            })?;
            files.insert(format!("{inner}{name}"), text(&path)?);
            // The policy tells that these are too many; more need not be read.
            if files.len() > FILES_MAX {
                return Ok(files);
            }
        }
    }
    Ok(files)
}

fn text(path: &Path) -> Result<String, Error> {
    let mut bytes = Vec::new();
    // One more than may be: then the policy tells that it is too much.
    let limit = u64::try_from(FILE_MAX_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    File::open(path)
        .and_then(|file| file.take(limit).read_to_end(&mut bytes))
        .map_err(|source| Error::ReadFile { what: WHAT, path: path.to_owned(), source })?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        // Cut in the middle of a character, of a file that is too large anyway.
        Err(error) if error.as_bytes().len() > FILE_MAX_BYTES => {
            Ok(String::from_utf8_lossy(error.as_bytes()).into_owned())
        }
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            let source = Problem(format!("byte {at} is not UTF-8"));
            Err(Error::BadFile { what: WHAT, path: path.to_owned(), source })
        }
    }
}
