//! `portcullis`: the process around the library. The only place that touches the environment and the standard streams.

use std::ffi::OsString;
use std::io::{BufWriter, LineWriter, stderr, stdin, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use cli::{Job, Surroundings, error::Kind};

fn main() -> ExitCode {
    // Before there is a second thread: this process is about to become another program.
    if cli::is_child(std::env::args_os()) {
        return ExitCode::from(cli::as_child(std::env::args_os(), std::env::vars_os(), &mut stderr()));
    }
    // One worker beside this thread: the connection stays alive while this one is blocked on a slow reader.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let mut errors = LineWriter::new(stderr());
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = cli::error::print(&mut errors, &cli::error::Error::Runtime(error));
            return ExitCode::from(Kind::Local.exit_code());
        }
    };
    let surroundings = Surroundings {
        out: &mut BufWriter::new(stdout()),
        err: &mut errors,
        input: &mut stdin(),
        now: jiff::Timestamp::now,
        zone: jiff::tz::TimeZone::system(),
        config_dir: config_dir(),
        job: job(),
        browser: browser(),
    };
    ExitCode::from(runtime.block_on(cli::run(std::env::args_os(), surroundings)))
}

/// What CI systems, and who writes their jobs, tell a job of its tokens.
fn job() -> Job {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let github = variable("ACTIONS_ID_TOKEN_REQUEST_URL").zip(variable("ACTIONS_ID_TOKEN_REQUEST_TOKEN"));
    Job {
        spiffe: variable("SPIFFE_ENDPOINT_SOCKET"),
        token: variable("PORTCULLIS_WORKLOAD_TOKEN"),
        audience: variable("PORTCULLIS_WORKLOAD_AUDIENCE"),
        github,
    }
}

/// What opens an address where a desktop is. Elsewhere it would take over the terminal, or do nothing.
fn browser() -> Option<OsString> {
    let has_desktop = ["WAYLAND_DISPLAY", "DISPLAY"].into_iter().any(|name| {
        let value = std::env::var_os(name);
        value.is_some_and(|value| !value.is_empty())
    });
    has_desktop.then(|| "xdg-open".into())
}

/// `$XDG_CONFIG_HOME/portcullis`, or `~/.config/portcullis`. A relative `XDG_CONFIG_HOME` is ignored, as its standard says.
fn config_dir() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")))?;
    Some(base.join("portcullis"))
}
