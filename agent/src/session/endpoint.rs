//! Where the control plane is, and how to get there.

use std::fmt::{self, Display};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Error, Uri};
use tower::service_fn;

/// How often a quiet connection is asked whether it is still there, and how long the answer may take.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Where the control plane is: on this machine, as long as the stream is not encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A loopback address.
    Loopback(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return match path.is_absolute() {
                true => Ok(Self::Unix(path)),
                false => Err(format!("`{text}` has no absolute path: write `unix:/PATH`")),
            };
        }
        let address: SocketAddr = text
            .strip_prefix("http://")
            .and_then(|rest| rest.trim_end_matches('/').parse().ok())
            .ok_or_else(|| format!("`{text}` is not `unix:/PATH` or `http://LOOPBACK-ADDRESS:PORT`"))?;
        match address.ip().is_loopback() {
            true => Ok(Self::Loopback(address)),
            false => Err(format!(
                "`{text}` is not on this machine, and the stream is not encrypted: use a loopback address or `unix:/PATH`"
            )),
        }
    }
}

impl Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Endpoint {
    pub(super) async fn connect(&self) -> Result<Channel, Error> {
        match self {
            Self::Loopback(address) => builder(&address.to_string()).connect().await,
            Self::Unix(path) => {
                let path = path.clone();
                let connector = service_fn(move |_: Uri| {
                    let path = path.clone();
                    async move { UnixStream::connect(path).await.map(TokioIo::new) }
                });
                builder("localhost").connect_with_connector(connector).await
            }
        }
    }
}

/// `authority` is a socket address or a host name.
fn builder(authority: &str) -> tonic::transport::Endpoint {
    let uri = Uri::builder().scheme("http").authority(authority).path_and_query("/").build();
    Channel::builder(uri.expect("a socket address, or `localhost`, is an authority"))
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
}
