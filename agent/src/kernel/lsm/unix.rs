//! The part of the LSM tier that guards unix sockets: whoever connects, sends a datagram, or writes on a connection.
//!
//! Owns: telling these programs where the kernel keeps what they read, and proving them. Must not know: which paths are
//! protected.
//!
//! Invariant: what is not seen to refuse, at a socket of the agent's own, is said to be missing.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use agent_ebpf::abi::{self, ResourceEntry, map};
use agent_ebpf::unix::NAME_MAX_BYTES;
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use aya::{Btf, EbpfLoader};
use nix::errno::Errno;

use super::super::error::in_full;
use super::super::pins::Pins;
use super::super::types::{Types, TypesError};
use super::super::{KernelError, Settings, loader};
use super::{OBJECT, load_and_attach, lsm_program};
use crate::observe::{self, Host};

/// What people are told is missing.
pub const PART: &str = "unix sockets";

/// The programs, named after their hooks.
pub(super) const PROGRAMS: [&str; 3] = ["unix_stream_connect", "unix_may_send", "socket_sendmsg"];

/// Where the kernel keeps what the programs read, by the names that they have for it.
struct Offsets(Vec<(&'static str, u32)>);

impl Offsets {
    fn of_kernel() -> Result<Self, TypesError> {
        let types = Types::of_kernel()?;
        let names: [&[&str]; 2] = [&["d_iname"], &["d_shortname", "string"]];
        let lengths: [&[&str]; 2] = [&["d_name", "len"], &["__d_name", "len"]];
        Ok(Self(vec![
            ("UNIX_SOCK_DENTRY", types.offset("unix_sock", &["path", "dentry"])?),
            ("UNIX_SOCK_PEER", types.offset("unix_sock", &["peer"])?),
            ("DENTRY_PARENT", types.offset("dentry", &["d_parent"])?),
            ("DENTRY_NAME_LENGTH", types.offset_of_one("dentry", &lengths)?),
            ("DENTRY_NAME", types.offset_of_one("dentry", &names)?),
            ("DENTRY_SUPER_BLOCK", types.offset("dentry", &["d_sb"])?),
            ("SUPER_BLOCK_DEVICE", types.offset("super_block", &["s_dev"])?),
            ("SOCKET_TYPE", types.offset("socket", &["type"])?),
        ]))
    }

    fn tell<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        for (name, offset) in &self.0 {
            loader.override_global(name, offset, true);
        }
    }
}

/// The links of programs, by their names.
type Links = Vec<(&'static str, OwnedFd)>;

/// The programs, attached and seen to run. The error is why that cannot be.
pub(super) fn attach(settings: &Settings, pins: &Pins, types: &Btf) -> Result<(Links, Probe), String> {
    let offsets = Offsets::of_kernel().map_err(|error| in_full(&error))?;
    let mut loader = loader(settings, pins);
    offsets.tell(&mut loader);
    let attach = |name: &'static str| {
        let mut object = loader.load(OBJECT).map_err(|error| in_full(&KernelError::load(error)))?;
        let link = load_and_attach(lsm_program(&mut object, name)?, name, types);
        let link = link.map_err(|error| {
            format!("the kernel refuses the program `{name}`, which needs Linux 5.16 or newer: {error}")
        })?;
        Ok::<_, String>((name, link))
    };
    let links = PROGRAMS.into_iter().map(attach).collect::<Result<Vec<_>, _>>()?;
    let mut probe = Probe::new(settings, pins)?;
    probe.prove()?;
    Ok((links, probe))
}

/// Two sockets that nobody may reach, and what the programs are told of them.
pub(super) struct Probe {
    /// Where they lie.
    dir: PathBuf,
    /// Of both, unlike anybody else's.
    name: String,
    stream: UnixListener,
    datagrams: UnixDatagram,
    stream_key: u64,
    datagrams_key: u64,
    sockets: HashMap<MapData, u64, ResourceEntry>,
    guarded: Array<MapData, u32>,
}

impl Probe {
    fn new(settings: &Settings, pins: &Pins) -> Result<Self, String> {
        let mut hasher = DefaultHasher::new();
        settings.pin_dir.hash(&mut hasher);
        let name = format!(".probe-{:016x}", hasher.finish());
        debug_assert!(name.len() + SUFFIX_BYTES <= NAME_MAX_BYTES);
        // Not each of them can be written to at any time, and a path may be too deep to be protected.
        let dirs = [settings.scratch_dir.clone(), PathBuf::from("/run"), std::env::temp_dir()];
        let mut error = String::new();
        for dir in dirs {
            match bind(&dir, &name) {
                Ok(((stream, stream_key), (datagrams, datagrams_key))) => {
                    let (sockets, guarded) = maps(pins).map_err(|error| in_full(&error))?;
                    return Ok(Self {
                        dir,
                        name,
                        stream,
                        datagrams,
                        stream_key,
                        datagrams_key,
                        sockets,
                        guarded,
                    });
                }
                Err(why) if error.is_empty() => error = why,
                Err(_) => {}
            }
        }
        Err(format!("there is no place for a socket to prove them with: {error}"))
    }

    /// Tries what each of the programs must refuse. The error is what is not refused.
    pub(super) fn prove(&mut self) -> Result<(), String> {
        // Whoever took its files away, the question can be asked anew.
        if !stream_path(&self.dir, &self.name).exists() || !datagrams_path(&self.dir, &self.name).exists() {
            ((self.stream, self.stream_key), (self.datagrams, self.datagrams_key)) =
                bind(&self.dir, &self.name)?;
        }
        let proven = self.try_all();
        let forgotten = self.forget().map_err(|error| in_full(&error));
        proven.and(forgotten)
    }

    fn try_all(&mut self) -> Result<(), String> {
        // What was not refused the last time must not keep this time waiting.
        while self.stream.accept().is_ok() {}
        while self.datagrams.recv(&mut [0; 1]).is_ok() {}
        let of_map = |error: KernelError| in_full(&error);
        let refuse = ResourceEntry { number: abi::UNIX_PROBE, flags: 0 };
        let observe = ResourceEntry { flags: ResourceEntry::OBSERVE, ..refuse };
        self.tell(self.stream_key, refuse).map_err(of_map)?;
        self.tell(self.datagrams_key, refuse).map_err(of_map)?;
        let [connects, sends, writes] = PROGRAMS;
        let path = stream_path(&self.dir, &self.name);
        expect_refusal(connects, UnixStream::connect(&path).map(drop))?;
        let datagram = UnixDatagram::unbound()
            .and_then(|socket| socket.send_to(b"x", datagrams_path(&self.dir, &self.name)));
        expect_refusal(sends, datagram.map(drop))?;

        self.tell(self.stream_key, observe).map_err(of_map)?;
        let cannot = |error: io::Error| format!("`{connects}` refuses what is only observed: {error}");
        let mut stream = UnixStream::connect(&path).map_err(cannot)?;
        let (mut accepted, _) = self.stream.accept().map_err(cannot)?;
        self.tell(self.stream_key, refuse).map_err(of_map)?;
        expect_refusal(writes, stream.write_all(b"x"))?;
        expect_refusal(writes, accepted.write_all(b"x"))
    }

    fn tell(&mut self, key: u64, entry: ResourceEntry) -> Result<(), KernelError> {
        guard(&mut self.sockets, &mut self.guarded, key, entry)
            .map_err(|(name, error)| KernelError::read(name, error))
    }

    fn forget(&mut self) -> Result<(), KernelError> {
        for key in [self.stream_key, self.datagrams_key] {
            match free(&mut self.sockets, &mut self.guarded, key) {
                Ok(()) | Err((_, MapError::KeyNotFound)) => {}
                Err((name, error)) => return Err(KernelError::read(name, error)),
            }
        }
        Ok(())
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        for path in [stream_path(&self.dir, &self.name), datagrams_path(&self.dir, &self.name)] {
            // The next one has the same name, and takes its place.
            let _ = fs::remove_file(path);
        }
    }
}

/// Protects a path: that there is any is known before it is.
pub(in super::super) fn guard(
    sockets: &mut HashMap<MapData, u64, ResourceEntry>,
    guarded: &mut Array<MapData, u32>,
    key: u64,
    entry: ResourceEntry,
) -> Result<(), (&'static str, MapError)> {
    guarded.set(0, 1, 0).map_err(|error| (map::UNIX_GUARDED, error))?;
    sockets.insert(key, entry, 0).map_err(|error| (map::UNIX_SOCKETS, error))
}

/// Does not protect a path any more.
pub(in super::super) fn free(
    sockets: &mut HashMap<MapData, u64, ResourceEntry>,
    guarded: &mut Array<MapData, u32>,
    key: u64,
) -> Result<(), (&'static str, MapError)> {
    let removed = sockets.remove(&key).map_err(|error| (map::UNIX_SOCKETS, error));
    if sockets.keys().next().is_none() {
        guarded.set(0, 0, 0).map_err(|error| (map::UNIX_GUARDED, error))?;
    }
    removed
}

const SUFFIX_BYTES: usize = 2;

fn stream_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}-s"))
}

fn datagrams_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}-d"))
}

type Bound = ((UnixListener, u64), (UnixDatagram, u64));

/// Makes both sockets, and says by which keys the programs know them.
fn bind(dir: &Path, name: &str) -> Result<Bound, String> {
    let of_dir = |error: io::Error| format!("cannot make a socket in {}: {error}", dir.display());
    let (stream_path, datagrams_path) = (stream_path(dir, name), datagrams_path(dir, name));
    for path in [&stream_path, &datagrams_path] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(of_dir(error)),
            _ => {}
        }
    }
    let stream = UnixListener::bind(&stream_path).map_err(of_dir)?;
    stream.set_nonblocking(true).map_err(of_dir)?;
    let datagrams = UnixDatagram::bind(&datagrams_path).map_err(of_dir)?;
    datagrams.set_nonblocking(true).map_err(of_dir)?;
    let key = |path: &Path| {
        let keys = observe::unix_keys(Host::Own, path)?;
        keys.into_iter().next().ok_or_else(|| format!("{} has no key", path.display()))
    };
    Ok(((stream, key(&stream_path)?), (datagrams, key(&datagrams_path)?)))
}

type Sockets = HashMap<MapData, u64, ResourceEntry>;

fn maps(pins: &Pins) -> Result<(Sockets, Array<MapData, u32>), KernelError> {
    let open = |name: &'static str| {
        MapData::from_pin(pins.map(name)).map_err(|error| KernelError::read(name, error))
    };
    let sockets = Map::HashMap(open(map::UNIX_SOCKETS)?).try_into();
    let guarded = Map::Array(open(map::UNIX_GUARDED)?).try_into();
    Ok((
        sockets.map_err(|error| KernelError::read(map::UNIX_SOCKETS, error))?,
        guarded.map_err(|error| KernelError::read(map::UNIX_GUARDED, error))?,
    ))
}

fn expect_refusal(program: &str, result: io::Result<()>) -> Result<(), String> {
    let said = match result {
        Err(error) if error.raw_os_error() == Some(Errno::EPERM as i32) => return Ok(()),
        Err(error) => error.to_string(),
        Ok(()) => "it was let through".to_owned(),
    };
    Err(format!("`{program}` does not refuse what it must: {said}"))
}
