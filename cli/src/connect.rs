//! The way to the control plane: where it is, the token in each call, and a time limit on everything.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use proto::MESSAGE_MAX_BYTES;
use proto::wire::access::access_service_client::AccessServiceClient;
use proto::wire::access::directory_service_client::DirectoryServiceClient;
use proto::wire::audit::audit_service_client::AuditServiceClient;
use proto::wire::identity::identity_service_client::IdentityServiceClient;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Response, Status, Streaming};

use crate::credentials::Credentials;
use crate::error::{Error, Problem};

/// The other side is on this machine: what takes longer than this will not come.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// For one answer. A write waits for a disk at most.
const CALL_LIMIT: Duration = Duration::from_secs(15);
/// Between two pings of a quiet stream, and how long an answer to one may take: a dead peer is noticed in 25 s.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_LIMIT: Duration = Duration::from_secs(10);

/// Where a control plane listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// A loopback address, as `http://HOST:PORT`.
    Http(Uri),
    /// A unix socket.
    Unix(PathBuf),
}

impl Server {
    /// Where it listens unless told otherwise.
    pub fn standard() -> Self {
        Self::Http(Uri::from_static("http://127.0.0.1:7400"))
    }
}

impl FromStr for Server {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.starts_with('/') {
                true => Ok(Self::Unix(path.into())),
                false => {
                    Err("the path of a unix socket is absolute, as in `unix:/run/portcullis/api.sock`".into())
                }
            };
        }
        let shape = || "write `http://127.0.0.1:7400` or `unix:/PATH`".to_owned();
        let uri: Uri = text.parse().map_err(|_| shape())?;
        if uri.scheme_str() == Some("https") {
            return Err("TLS is not there yet: use a unix socket or a loopback address".to_owned());
        }
        let authority = uri.authority().ok_or_else(shape)?;
        let extra = uri.path_and_query().is_some_and(|path| path.as_str() != "/");
        if uri.scheme_str() != Some("http") || extra || authority.as_str().contains('@') {
            return Err(shape());
        }
        match authority.port_u16() {
            None | Some(0) => return Err("name the port, as in `http://127.0.0.1:7400`".to_owned()),
            Some(_) => {}
        }
        match is_loopback(authority.host()) {
            true => Ok(Self::Http(uri)),
            false => Err(format!(
                "`{}` is not this machine, and without TLS the token would cross the network in the clear",
                authority.host()
            )),
        }
    }
}

fn is_loopback(host: &str) -> bool {
    let literal = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || literal.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(uri) => f.write_str(uri.to_string().trim_end_matches('/')),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A connection that presents our token in each call.
pub(crate) type Signed = InterceptedService<Channel, Bearer>;

/// Puts the token into the header of each call.
#[derive(Clone)]
pub(crate) struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// A control plane we are connected to.
#[derive(Clone)]
pub struct ControlPlane {
    signed: Signed,
}

impl ControlPlane {
    /// Connects, without asking anything yet.
    pub async fn connect(credentials: &Credentials) -> Result<Self, Error> {
        let channel = open(&credentials.server).await?;
        let header = format!("Bearer {}", credentials.token.expose());
        let mut header: MetadataValue<Ascii> = header.parse().expect("a `Token` is visible ASCII");
        header.set_sensitive(true);
        Ok(Self { signed: InterceptedService::new(channel, Bearer(header)) })
    }

    pub(crate) fn identity(&self) -> IdentityServiceClient<Signed> {
        IdentityServiceClient::new(self.signed.clone())
    }

    pub(crate) fn directory(&self) -> DirectoryServiceClient<Signed> {
        DirectoryServiceClient::new(self.signed.clone()).max_decoding_message_size(MESSAGE_MAX_BYTES)
    }

    pub(crate) fn access(&self) -> AccessServiceClient<Signed> {
        AccessServiceClient::new(self.signed.clone()).max_decoding_message_size(MESSAGE_MAX_BYTES)
    }

    pub(crate) fn audit(&self) -> AuditServiceClient<Signed> {
        AuditServiceClient::new(self.signed.clone()).max_decoding_message_size(MESSAGE_MAX_BYTES)
    }
}

/// The part of a control plane for those who have no token yet.
pub(crate) async fn newcomer(server: &Server) -> Result<IdentityServiceClient<Channel>, Error> {
    Ok(IdentityServiceClient::new(open(server).await?))
}

/// Connects, within the time there is for it.
async fn open(server: &Server) -> Result<Channel, Error> {
    let failed = |source| Error::Connect { server: server.clone(), source };
    match timeout(CONNECT_LIMIT, channel(server)).await {
        Ok(channel) => channel.map_err(|error| failed(cause(error))),
        Err(_) => Err(failed(no_answer(CONNECT_LIMIT).into())),
    }
}

async fn channel(server: &Server) -> Result<Channel, tonic::transport::Error> {
    let tuned = |endpoint: Endpoint| {
        endpoint
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_LIMIT)
            .keep_alive_while_idle(true)
    };
    match server {
        Server::Http(uri) => tuned(Endpoint::from(uri.clone())).connect().await,
        Server::Unix(path) => {
            let path = path.clone();
            let connector = tower::service_fn(move |_: Uri| {
                let path = path.clone();
                async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
            });
            // The name is required by HTTP/2 and goes nowhere.
            tuned(Endpoint::from_static("http://portcullis.invalid")).connect_with_connector(connector).await
        }
    }
}

/// What stands behind tonic's "transport error".
fn cause(error: tonic::transport::Error) -> Box<dyn std::error::Error + Send + Sync> {
    let mut deepest: &dyn std::error::Error = &error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string().into()
}

fn no_answer(limit: Duration) -> Problem {
    Problem(format!("no answer within {}", humantime::format_duration(limit)))
}

/// Waits for one answer. `what` completes "cannot …".
pub(crate) async fn call<T>(
    what: impl Into<String>,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Error> {
    match timeout(CALL_LIMIT, answer).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(Error::Refused { what: what.into(), source: status.into() }),
        Err(_) => Err(Error::NoAnswer { what: what.into(), source: no_answer(CALL_LIMIT) }),
    }
}

/// Waits for the next message of a stream, at most `limit` if there is one. None: the stream has ended.
pub(crate) async fn next<T>(
    what: &str,
    stream: &mut Streaming<T>,
    limit: Option<Duration>,
) -> Result<Option<T>, Error> {
    let message = stream.message();
    let message = match limit {
        None => message.await,
        Some(limit) => match timeout(limit, message).await {
            Ok(message) => message,
            Err(_) => return Err(Error::NoAnswer { what: what.to_owned(), source: no_answer(limit) }),
        },
    };
    message.map_err(|status| Error::Refused { what: what.to_owned(), source: status.into() })
}

/// The longest silence of a stream that has something to send at once.
pub(crate) const STREAM_LIMIT: Duration = CALL_LIMIT;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers() {
        for good in
            ["http://127.0.0.1:7400", "http://localhost:7400", "http://[::1]:7400", "unix:/run/p.sock"]
        {
            assert_eq!(good.parse::<Server>().map(|server| server.to_string()).as_deref(), Ok(good));
        }
        assert_eq!("http://127.0.0.1:7400/".parse(), Ok(Server::standard()));
        let bad = [
            ("", "write `http"),
            ("127.0.0.1:7400", "write `http"),
            ("ftp://127.0.0.1:7400", "write `http"),
            ("http://127.0.0.1:7400/api", "write `http"),
            ("http://a@127.0.0.1:7400", "write `http"),
            ("http://127.0.0.1", "name the port"),
            ("http://127.0.0.1:0", "name the port"),
            ("https://127.0.0.1:7400", "TLS is not there yet"),
            ("http://10.0.0.1:7400", "`10.0.0.1` is not this machine"),
            ("http://db.example:7400", "is not this machine"),
            ("unix:run/p.sock", "is absolute"),
        ];
        for (text, part) in bad {
            let error = text.parse::<Server>().expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
