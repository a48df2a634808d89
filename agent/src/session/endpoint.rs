//! Where the control plane is, and how to get there.

use std::fmt::{self, Display};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Uri};
use tower::service_fn;

use super::tls;

/// How often a quiet connection is asked whether it is still there, and how long the answer may take.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// How long it may take until there is a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// The same, where there are other addresses to be tried.
const CONNECT_LIMIT_EACH: Duration = Duration::from_secs(3);

/// Where the control plane is, or each of several on one database: any of them will do.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// At least one.
    addresses: Vec<Address>,
    /// With which of them the next connection begins. Not all agents begin with the same one, and none goes back to the one that has just
    /// failed.
    next: Arc<AtomicUsize>,
}

/// `https://HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Address {
    /// A DNS name or an address; that of IPv6 without brackets.
    host: String,
    port: u16,
}

impl PartialEq for Endpoint {
    fn eq(&self, other: &Self) -> bool {
        self.addresses == other.addresses
    }
}

impl Eq for Endpoint {}

/// There is no connection.
#[derive(Debug, thiserror::Error)]
#[error("cannot reach the control plane at {endpoint}")]
pub struct ConnectError {
    endpoint: Endpoint,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl ConnectError {
    /// What to do next.
    pub fn hint(&self) -> &'static str {
        "is `control_plane` in the agent's configuration its address? an agent believes only the control plane that its host has joined"
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = || format!("`{text}` is not `https://HOST:PORT`");
        let uri: Uri = text.parse().map_err(|_| shape())?;
        let authority = uri.authority().ok_or_else(shape)?;
        let extra = uri.path_and_query().is_some_and(|path| path.as_str() != "/");
        if uri.scheme_str() != Some("https") || extra || authority.as_str().contains('@') {
            return Err(shape());
        }
        let port = authority.port_u16().filter(|port| *port != 0).ok_or_else(shape)?;
        let host = authority.host();
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        match host.is_empty() {
            true => Err(shape()),
            false => Ok(Self { host: host.to_owned(), port }),
        }
    }
}

impl Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "https://[{}]:{}", self.host, self.port),
            false => write!(f, "https://{}:{}", self.host, self.port),
        }
    }
}

impl Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses: Vec<String> = self.addresses.iter().map(Address::to_string).collect();
        f.write_str(&addresses.join(", "))
    }
}

impl Endpoint {
    /// More replicas than anybody has.
    const ADDRESSES_MAX: usize = 16;

    /// Of one address, or of several.
    pub fn new<'a>(addresses: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let addresses: Vec<Address> = addresses.into_iter().map(str::parse).collect::<Result<_, _>>()?;
        match addresses.len() {
            0 => Err("names no address: write `https://HOST:PORT`".to_owned()),
            count if count > Self::ADDRESSES_MAX => {
                Err(format!("{count} addresses are more than {}", Self::ADDRESSES_MAX))
            }
            count => Ok(Self { addresses, next: Arc::new(AtomicUsize::new(rand::random_range(0..count))) }),
        }
    }

    /// Connects to the first address that answers.
    pub(super) async fn connect(&self, config: Arc<ClientConfig>) -> Result<Channel, ConnectError> {
        let count = self.addresses.len();
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let mut failures = Vec::new();
        for at in 0..count {
            let address = &self.addresses[first.wrapping_add(at) % count];
            let limit = if count == 1 { CONNECT_LIMIT } else { CONNECT_LIMIT_EACH };
            match address.connect(Arc::clone(&config), limit).await {
                Ok(channel) => return Ok(channel),
                Err(error) if count == 1 => failures.push(cause(&error)),
                Err(error) => failures.push(format!("{address}: {}", cause(&error))),
            }
        }
        Err(self.insecure(failures.join("; ")))
    }

    /// There is no connection, or none that is safe, for this reason.
    pub(super) fn insecure(
        &self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> ConnectError {
        ConnectError { endpoint: self.clone(), source: source.into() }
    }
}

impl Address {
    async fn connect(
        &self,
        config: Arc<ClientConfig>,
        limit: Duration,
    ) -> Result<Channel, tonic::transport::Error> {
        let target = (self.host.clone(), self.port);
        let connector = service_fn(move |_: Uri| {
            let (target, connector) = (target.clone(), TlsConnector::from(Arc::clone(&config)));
            async move {
                let stream = TcpStream::connect(target).await?;
                stream.set_nodelay(true)?;
                connector.connect(tls::control_plane_name(), stream).await.map(TokioIo::new)
            }
        });
        // The connector secures it; by the scheme of the address, tonic would want to.
        let endpoint = Channel::from_static("http://control-plane.portcullis.internal")
            .connect_timeout(limit)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        endpoint.connect_with_connector(connector).await
    }
}

/// What stands behind tonic's "transport error".
fn cause(error: &tonic::transport::Error) -> String {
    let mut deepest: &dyn std::error::Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        for good in ["https://portcullis.example:7400", "https://10.0.0.7:7400", "https://[2001:db8::7]:7400"]
        {
            assert_eq!(Endpoint::new([good]).map(|endpoint| endpoint.to_string()).as_deref(), Ok(good));
        }
        for bad in [
            "",
            "portcullis.example:7400",
            "http://127.0.0.1:7400",
            "https://portcullis.example",
            "https://portcullis.example:0",
            "https://portcullis.example:7400/api",
            "https://a@portcullis.example:7400",
            "unix:/run/portcullis.sock",
        ] {
            let error = Endpoint::new([bad]).expect_err(bad);
            assert!(error.contains("is not `https://HOST:PORT`"), "{error}");
        }
    }
    #[test]
    fn several_addresses() {
        let both = ["https://a.example:7400", "https://b.example:7400"];
        let endpoint = Endpoint::new(both).expect("valid");
        assert_eq!(endpoint.to_string(), "https://a.example:7400, https://b.example:7400");
        assert_eq!(Endpoint::new([]).expect_err("is none"), "names no address: write `https://HOST:PORT`");
        assert_eq!(Endpoint::new([both[0]; 17]).expect_err("are too many"), "17 addresses are more than 16");
    }
}
