//! Where what was downloaded is kept, outside of the tree.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};

use crate::sh::Checkout;

/// A folder for things of one kind, and the lock on it; waits for another run that has it. `version` is counted up when what
/// lies there is to be made in another way.
pub(super) fn open(checkout: &Checkout, kind: &str, version: u32) -> Result<(PathBuf, File)> {
    let of_user = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = of_user
        .or_else(|| Some(env::home_dir()?.join(".cache")))
        .map_or_else(|| checkout.target.clone(), |cache| cache.join("portcullis"))
        .join(kind)
        .join(version.to_string());
    let create = || {
        fs::create_dir_all(&folder)?;
        let lock = File::create(folder.join("lock"))?;
        lock.lock().map(|()| lock)
    };
    let lock = create().with_context(|| format!("cannot use the folder {}", folder.display()))?;
    Ok((folder, lock))
}

/// How long ago a file was written; None: it is not there.
pub(super) fn age(path: &Path) -> Option<Duration> {
    let modified = fs::metadata(path).ok()?.modified().ok()?;
    Some(SystemTime::now().duration_since(modified).unwrap_or_default())
}
