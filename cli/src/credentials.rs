//! Tokens and the file that `login` keeps them in.
//!
//! Invariants: a token is never printed by `Debug`, and a file that holds one is created readable by its owner only.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::connect::{Authorities, Server};
use crate::error::{Error, Problem};

/// Far above any token; a larger file is something else.
const TOKEN_MAX_BYTES: usize = 4096;

/// What a subject signs in with.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The text of a token, without white space around it.
    pub fn new(text: &str) -> Result<Self, Problem> {
        let text = text.trim();
        if text.is_empty() {
            return Err(Problem("it is empty".to_owned()));
        }
        if text.len() > TOKEN_MAX_BYTES || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            let problem =
                format!("a token is one line of at most {TOKEN_MAX_BYTES} visible ASCII characters");
            return Err(Problem(problem));
        }
        Ok(Self(text.to_owned()))
    }

    /// Reads a token from a file, or from `input` if the path is `-`.
    pub fn read(path: &Path, input: &mut dyn Read) -> Result<Self, Error> {
        let what = "token file";
        let failed = |source| Error::ReadFile { what, path: path.to_owned(), source };
        let refused = |source| Error::BadFile { what, path: path.to_owned(), source };
        let mut text = Vec::new();
        // One byte above the limit, white space aside, shows that it is exceeded.
        let limit = TOKEN_MAX_BYTES as u64 + 64;
        match path.as_os_str() == "-" {
            true => input.take(limit).read_to_end(&mut text),
            false => File::open(path).and_then(|file| file.take(limit).read_to_end(&mut text)),
        }
        .map_err(failed)?;
        let text = String::from_utf8(text).map_err(|_| refused(Problem("it is not text".to_owned())))?;
        Self::new(&text).map_err(refused)
    }

    /// The text, for the `authorization` header and for files.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// A control plane and the token to sign in with there.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Where it listens.
    pub server: Server,
    /// What it knows us by.
    pub token: Token,
    /// Whom to believe that it is the one; None: the authorities of this system.
    pub authorities: Option<Authorities>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    server: String,
    token: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    authorities: Option<String>,
}

fn file(config_dir: &Path) -> PathBuf {
    config_dir.join("credentials.toml")
}

/// What `login` stored; None: nobody logged in. Warns on `err` when others can read it.
pub(crate) fn load(config_dir: &Path, err: &mut dyn Write) -> Result<Option<Credentials>, Error> {
    let (what, path) = ("credentials file", file(config_dir));
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::ReadFile { what, path, source }),
    };
    if fs::metadata(&path).is_ok_and(|data| data.permissions().mode() & 0o077 != 0) {
        let _ = writeln!(err, "warning: others can read `{0}`; run `chmod 600 {0}`", path.display());
    }
    // Only the message: toml's full text quotes the line, and with it the token.
    let stored = toml::from_str::<Stored>(&text).map_err(|error| Problem(error.message().to_owned()));
    let checked = stored.and_then(|stored| {
        let server = stored.server.parse().map_err(Problem)?;
        let authorities = stored.authorities.as_deref().map(Authorities::new).transpose()?;
        Ok(Credentials { server, token: Token::new(&stored.token)?, authorities })
    });
    checked.map(Some).map_err(|source| Error::BadFile { what, path, source })
}

/// Stores what later runs use, and says where.
pub(crate) fn store(config_dir: &Path, credentials: &Credentials) -> Result<PathBuf, Error> {
    let (what, path) = ("credentials file", file(config_dir));
    let failed = |source| Error::WriteFile { what, path: path.clone(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(config_dir).map_err(failed)?;
    let stored = Stored {
        server: credentials.server.to_string(),
        token: credentials.token.expose().to_owned(),
        authorities: credentials.authorities.as_ref().map(|authorities| authorities.as_str().to_owned()),
    };
    let text = toml::to_string(&stored).map_err(|error| failed(io::Error::other(error)))?;
    SecretFile::create(what, &path)?.commit(&text)?;
    Ok(path)
}

/// A file for a secret that is still to come. It takes its name, in one step, only when the secret is written; until then
/// what was there stays. Made before a token is issued, so that an unwritable place is found while nothing is lost.
#[derive(Debug)]
pub(crate) struct SecretFile {
    what: &'static str,
    path: PathBuf,
    draft: PathBuf,
    file: File,
}

impl SecretFile {
    pub(crate) fn create(what: &'static str, path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::WriteFile { what, path: path.to_owned(), source };
        // A link keeps being one; and a device such as /dev/stdout must not be replaced by a file.
        let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if fs::metadata(path).is_ok_and(|data| !data.is_file()) {
            return Err(failed(io::Error::other("it is there and not a regular file")));
        }
        let name = path.file_name().ok_or_else(|| failed(io::ErrorKind::InvalidFilename.into()))?;
        let mut draft_name = std::ffi::OsString::from(".");
        draft_name.push(name);
        draft_name.push(format!(".{}.draft", std::process::id()));
        let draft = path.with_file_name(draft_name);
        let file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft).map_err(failed)?;
        let this = Self { what, path: path.to_owned(), draft, file };
        // A umask can only take rights away; the owner must be able to read it.
        this.file.set_permissions(Permissions::from_mode(0o600)).map_err(|source| this.failed(source))?;
        Ok(this)
    }

    pub(crate) fn commit(mut self, secret: &str) -> Result<(), Error> {
        let written = self.file.write_all(secret.as_bytes()).and_then(|()| self.file.sync_all());
        written.and_then(|()| fs::rename(&self.draft, &self.path)).map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::WriteFile { what: self.what, path: self.path.clone(), source }
    }
}

impl Drop for SecretFile {
    fn drop(&mut self) {
        // After `commit` the draft is gone already.
        let _ = fs::remove_file(&self.draft);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens() {
        assert_eq!(Token::new(" abc\n").map(|token| token.expose().to_owned()).ok().as_deref(), Some("abc"));
        for bad in ["", "\n", "a b", "a\nb", "ä", &"x".repeat(TOKEN_MAX_BYTES + 1)] {
            assert!(Token::new(bad).is_err(), "{bad}");
        }
        assert_eq!(format!("{:?}", Token("secret".to_owned())), "Token(…)");
    }

    #[test]
    fn stored_credentials_are_private_and_come_back() {
        let dir = tempfile::tempdir().expect("a folder");
        let config_dir = dir.path().join("config/portcullis");
        let credentials = Credentials {
            server: "unix:/run/portcullis.sock".parse().expect("valid"),
            token: Token("secret".to_owned()),
            authorities: None,
        };
        assert!(load(&config_dir, &mut Vec::new()).expect("nothing there").is_none());
        for _ in 0..2 {
            let path = store(&config_dir, &credentials).expect("stored");
            let mode = |path: &Path| fs::metadata(path).expect("is there").permissions().mode() & 0o777;
            assert_eq!((mode(&path), mode(&config_dir)), (0o600, 0o700));
        }
        let mut warnings = Vec::new();
        let loaded = load(&config_dir, &mut warnings).expect("readable").expect("is there");
        assert_eq!((loaded.server, loaded.token), (credentials.server, credentials.token));
        assert!(warnings.is_empty());
        assert_eq!(fs::read_dir(&config_dir).expect("is there").count(), 1, "no draft is left");

        fs::set_permissions(file(&config_dir), Permissions::from_mode(0o644)).expect("ours");
        load(&config_dir, &mut warnings).expect("readable");
        assert!(String::from_utf8_lossy(&warnings).contains("others can read"));
    }

    #[test]
    fn a_broken_file_does_not_show_its_token() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(file(dir.path()), "server = 'unix:/x'\ntoken = secret!\n").expect("ours");
        let error = load(dir.path(), &mut Vec::new()).expect_err("broken");
        let mut text = Vec::new();
        crate::error::print(&mut text, &error).expect("to memory");
        assert!(!String::from_utf8_lossy(&text).contains("secret"));
    }
}
