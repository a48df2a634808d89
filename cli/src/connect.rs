//! The way to the control plane: where it is, whom to believe, the token in each call, and a time limit on everything.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use proto::MESSAGE_MAX_BYTES;
use proto::wire::access::access_service_client::AccessServiceClient;
use proto::wire::access::directory_service_client::DirectoryServiceClient;
use proto::wire::audit::audit_service_client::AuditServiceClient;
use proto::wire::identity::identity_service_client::IdentityServiceClient;
use proto::wire::policy::policy_service_client::PolicyServiceClient;
use proto::wire::report::report_service_client::ReportServiceClient;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Response, Status, Streaming};

use crate::credentials::Credentials;
use crate::error::{Error, Problem};

/// A round trip or three: what takes longer than this will not come.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// For one answer. A write waits for a disk at most.
const CALL_LIMIT: Duration = Duration::from_secs(15);
/// Between two pings of a quiet stream, and how long an answer to one may take: a dead peer is noticed in 25 s.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_LIMIT: Duration = Duration::from_secs(10);

/// Where a control plane listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// TLS, as `https://HOST:PORT`.
    Https(Uri),
    /// A unix socket of this machine.
    Unix(PathBuf),
}

impl Server {
    /// Where it listens unless told otherwise.
    pub fn standard() -> Self {
        Self::Https(Uri::from_static("https://127.0.0.1:7400"))
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
        let shape = || "write `https://HOST:PORT` or `unix:/PATH`".to_owned();
        let uri: Uri = text.parse().map_err(|_| shape())?;
        let authority = uri.authority().ok_or_else(shape)?;
        let extra = uri.path_and_query().is_some_and(|path| path.as_str() != "/");
        if uri.scheme_str() == Some("http") {
            return Err(
                "without TLS the token would cross the network in the clear: write `https://`".to_owned()
            );
        }
        if uri.scheme_str() != Some("https") || extra || authority.as_str().contains('@') {
            return Err(shape());
        }
        name_of(&uri).map_err(|_| format!("`{}` is neither a DNS name nor an address", authority.host()))?;
        match authority.port_u16() {
            None | Some(0) => Err("name the port, as in `https://portcullis.example:7400`".to_owned()),
            Some(_) => Ok(Self::Https(uri)),
        }
    }
}

/// For what the other side must have a certificate.
fn name_of(uri: &Uri) -> Result<ServerName<'static>, InvalidDnsNameError> {
    let host = uri.host().unwrap_or_default();
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    ServerName::try_from(host.to_owned())
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Https(uri) => f.write_str(uri.to_string().trim_end_matches('/')),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The authorities whose certificates are believed: PEM text of at least one. Where there are none, those of this system are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorities(String);

impl Authorities {
    /// Checks the text.
    pub fn new(pem: &str) -> Result<Self, Problem> {
        let none = || Problem("it holds no certificate in PEM".to_owned());
        let mut found = CertificateDer::pem_slice_iter(pem.as_bytes()).peekable();
        found.peek().ok_or_else(none)?;
        match found.all(|certificate| certificate.is_ok()) {
            true => Ok(Self(pem.to_owned())),
            false => Err(none()),
        }
    }

    /// Reads them from a file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let what = "file of authorities";
        let text = std::fs::read_to_string(path).map_err(|source| Error::ReadFile {
            what,
            path: path.to_owned(),
            source,
        })?;
        Self::new(&text).map_err(|source| Error::BadFile { what, path: path.to_owned(), source })
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Believes these authorities, or those of this system; shows the certificate, if there is one.
fn tls(
    authorities: Option<&Authorities>,
    certificate: Option<ClientCertificate>,
) -> Result<ClientConfig, Problem> {
    let mut roots = RootCertStore::empty();
    match authorities {
        Some(Authorities(pem)) => {
            // Checked when they were made.
            let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes()).flatten().collect();
            roots.add_parsable_certificates(certificates);
        }
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    if roots.is_empty() {
        let problem =
            "no authority is known whose certificate could be believed: name a file with `--ca-file`";
        return Err(Problem(problem.to_owned()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
    let builder = builder.map_err(|error| Problem(error.to_string()))?;
    let builder = builder.with_root_certificates(roots);
    let mut config = match certificate {
        None => builder.with_no_client_auth(),
        Some(ClientCertificate { chain, key }) => builder
            .with_client_auth_cert(chain, key)
            .map_err(|error| Problem(format!("the certificate cannot be shown: {error}")))?,
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
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
        let channel = open(&credentials.server, credentials.authorities.as_ref()).await?;
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

    pub(crate) fn policies(&self) -> PolicyServiceClient<Signed> {
        PolicyServiceClient::new(self.signed.clone()).max_decoding_message_size(MESSAGE_MAX_BYTES)
    }

    pub(crate) fn report(&self) -> ReportServiceClient<Signed> {
        ReportServiceClient::new(self.signed.clone()).max_decoding_message_size(MESSAGE_MAX_BYTES)
    }

    pub(crate) fn audit(&self) -> AuditServiceClient<Signed> {
        AuditServiceClient::new(self.signed.clone()).max_decoding_message_size(MESSAGE_MAX_BYTES)
    }
}

/// The part of a control plane for those who have no token yet.
pub(crate) async fn newcomer(
    server: &Server,
    authorities: Option<&Authorities>,
) -> Result<IdentityServiceClient<Channel>, Error> {
    Ok(IdentityServiceClient::new(open(server, authorities).await?))
}

/// A certificate of the caller's own, and its key.
pub(crate) struct ClientCertificate {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

/// A connection of somebody who shows a certificate, and no token.
pub(crate) async fn certified(
    server: &Server,
    authorities: Option<&Authorities>,
    certificate: ClientCertificate,
) -> Result<IdentityServiceClient<Channel>, Error> {
    if let Server::Unix(_) = server {
        let told = format!(
            "`{server}` carries no certificate: name the control plane's address, as in `--server https://HOST:PORT`"
        );
        return Err(Error::Usage(told));
    }
    Ok(IdentityServiceClient::new(open_with(server, authorities, Some(certificate)).await?))
}

/// Connects, within the time there is for it.
async fn open(server: &Server, authorities: Option<&Authorities>) -> Result<Channel, Error> {
    open_with(server, authorities, None).await
}

async fn open_with(
    server: &Server,
    authorities: Option<&Authorities>,
    certificate: Option<ClientCertificate>,
) -> Result<Channel, Error> {
    let failed = |source| Error::Connect { server: server.clone(), source };
    match timeout(CONNECT_LIMIT, channel(server, authorities, certificate)).await {
        Ok(channel) => channel.map_err(failed),
        Err(_) => Err(failed(no_answer(CONNECT_LIMIT).into())),
    }
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

async fn channel(
    server: &Server,
    authorities: Option<&Authorities>,
    certificate: Option<ClientCertificate>,
) -> Result<Channel, Cause> {
    // The name is required by HTTP/2 and goes nowhere; what secures the connection is the connector.
    let endpoint = Endpoint::from_static("http://portcullis.invalid")
        // By this the control plane tells the CLI from other programs.
        .user_agent(concat!("portcullis/", env!("CARGO_PKG_VERSION")))?
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_LIMIT)
        .keep_alive_while_idle(true);
    let connected = match server {
        Server::Https(uri) => {
            let name = name_of(uri)?;
            let target = (name.to_str().into_owned(), uri.port_u16().unwrap_or_default());
            let connector = TlsConnector::from(Arc::new(tls(authorities, certificate)?));
            let connector = tower::service_fn(move |_: Uri| {
                let (name, target, connector) = (name.clone(), target.clone(), connector.clone());
                async move {
                    let stream = TcpStream::connect(target).await?;
                    stream.set_nodelay(true)?;
                    connector.connect(name, stream).await.map(TokioIo::new)
                }
            });
            endpoint.connect_with_connector(connector).await
        }
        Server::Unix(path) => {
            let path = path.clone();
            let connector = tower::service_fn(move |_: Uri| {
                let path = path.clone();
                async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
            });
            endpoint.connect_with_connector(connector).await
        }
    };
    connected.map_err(cause)
}

/// What stands behind tonic's "transport error".
fn cause(error: tonic::transport::Error) -> Cause {
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
        for good in [
            "https://127.0.0.1:7400",
            "https://portcullis.example:7400",
            "https://[2001:db8::1]:7400",
            "unix:/run/p.sock",
        ] {
            assert_eq!(good.parse::<Server>().map(|server| server.to_string()).as_deref(), Ok(good));
        }
        assert_eq!("https://127.0.0.1:7400/".parse(), Ok(Server::standard()));
        let bad = [
            ("", "write `https"),
            ("127.0.0.1:7400", "write `https"),
            ("ftp://127.0.0.1:7400", "write `https"),
            ("https://127.0.0.1:7400/api", "write `https"),
            ("https://a@127.0.0.1:7400", "write `https"),
            ("https://127.0.0.1", "name the port"),
            ("https://127.0.0.1:0", "name the port"),
            ("http://127.0.0.1:7400", "in the clear"),
            ("unix:run/p.sock", "is absolute"),
        ];
        for (text, part) in bad {
            let error = text.parse::<Server>().expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn authorities() {
        for bad in ["", "garbage", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"] {
            assert!(Authorities::new(bad).is_err(), "{bad}");
        }
    }
}
