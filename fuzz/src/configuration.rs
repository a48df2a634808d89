//! The configurations of both daemons.

use std::path::Path;

use crate::choice;

pub(crate) fn run(bytes: &[u8]) {
    let Some((which, bytes)) = choice(bytes, 2) else { return };
    let Ok(text) = str::from_utf8(bytes) else { return };
    let path = Path::new("/nowhere/configuration.toml");
    match which {
        0 => drop(agent::config::Config::parse(path, text, || "host-1".to_owned(), |_| None)),
        _ => drop(control_plane::config::Config::parse(text, path)),
    }
}
