//! Where connections come from: TLS on a port, or a Unix socket.
//!
//! Owns: binding, accepting, how many connections there may be, whose each is. Must not know: what is said on them.
//!
//! A connection is handed on when its handshake is done. Those under way have room of their own, and so have those without a
//! host's certificate, so that neither keeps agents out; and each host has its part, so that none keeps out the others.

mod room;
mod tls;

use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use proto::types::HostName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::config::Listen;
use crate::identity::certificate::{self, HostCertificate, Presented, Svid};
use room::{Place, Room, Stay};
pub(crate) use tls::Certificates;
pub use tls::TlsError;

/// 10,000 agents, and room for callers. Beyond it, a new connection waits until another one is closed.
const CONNECTIONS_MAX: usize = 12_000;

/// Handshakes under way, in all and from one address. Each takes a millisecond, if the other side wants it.
const HANDSHAKES_MAX: usize = 1024;
const HANDSHAKES_MAX_OF_ADDRESS: usize = 256;

/// Connections over TLS without a host's certificate, in all and from one address: people and their tools.
const CALLERS_MAX: usize = 1500;
const CALLERS_MAX_OF_ADDRESS: usize = 300;

/// Connections of one host. Its agent needs one, and another while it renews its certificate or takes over.
const CONNECTIONS_MAX_OF_HOST: usize = 16;

/// How long a handshake may take.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// What HTTP/2 begins with (RFC 9113, section 3.4), and how long that may take. From there on keepalives find out who is silent.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const PREFACE_LIMIT: Duration = Duration::from_secs(10);

/// Who may open the socket: its owner and group. Tokens decide the rest.
const SOCKET_MODE: u32 = 0o660;

/// How long to wait after the system could not accept, as when there are no file descriptors left.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Why it cannot be listened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address or path cannot be had.
    #[error("cannot listen on {listen}")]
    Bind {
        /// Where.
        listen: Listen,
        /// Why not.
        source: io::Error,
    },
    /// Somebody answers on the socket.
    #[error("another process listens on unix:{}", .0.display())]
    InUse(PathBuf),
    /// There is something else at the path.
    #[error("`{0}` is there and is not a socket")]
    NotASocket(PathBuf),
}

/// A bound address or socket.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// A socket's path, removed with it.
#[derive(Debug)]
pub(crate) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Left behind, it is found stale at the next start.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// How connections over a port are secured, and who is told of those that are not taken.
#[derive(Clone)]
pub(crate) struct Security {
    pub(crate) acceptor: TlsAcceptor,
    pub(crate) certificates: Arc<Certificates>,
    /// Whether HTTP/2 is spoken even where the handshake agreed on nothing.
    pub(crate) only_http2: bool,
    /// Called with what was wrong, for each connection that is closed before anything was said on it.
    pub(crate) refused: Arc<dyn Fn(&'static str) + Send + Sync>,
}

/// Who is at the other end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Peer {
    /// None: a Unix socket.
    pub(crate) address: Option<IpAddr>,
    /// The certificate that it has proven; None: it has shown none.
    pub(crate) certificate: Option<Presented>,
}

impl Peer {
    /// The host that it is.
    pub(crate) fn host(&self) -> Option<&HostCertificate> {
        match &self.certificate {
            Some(Presented::Host(host)) => Some(host),
            Some(Presented::Workload(_)) | None => None,
        }
    }

    /// The workload that it is.
    pub(crate) fn workload(&self) -> Option<&Svid> {
        match &self.certificate {
            Some(Presented::Workload(svid)) => Some(svid),
            Some(Presented::Host(_)) | None => None,
        }
    }
}

impl Listener {
    pub(crate) async fn bind(listen: &Listen) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Bind { listen: listen.clone(), source };
        match listen {
            Listen::Tcp(address) => Ok(Self::Tcp(TcpListener::bind(address).await.map_err(failed)?)),
            Listen::Unix(path) => {
                remove_stale(path).await?;
                let listener = UnixListener::bind(path).map_err(failed)?;
                let file = SocketFile(path.clone());
                let mode = std::fs::Permissions::from_mode(SOCKET_MODE);
                std::fs::set_permissions(path, mode).map_err(failed)?;
                Ok(Self::Unix(listener, file))
            }
        }
    }

    /// Where callers find it: the port is the one that it has.
    pub(crate) fn bound(&self) -> io::Result<Listen> {
        match self {
            Self::Tcp(listener) => Ok(Listen::Tcp(listener.local_addr()?)),
            Self::Unix(_, file) => Ok(Listen::Unix(file.0.clone())),
        }
    }
}

/// The connections of all these, as they come, until the stream is dropped.
pub(crate) fn incoming(
    listeners: Vec<Listener>,
    security: Security,
) -> ReceiverStream<io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(1);
    let entrance = Entrance {
        security,
        room: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        handshakes: Room::new(HANDSHAKES_MAX, HANDSHAKES_MAX_OF_ADDRESS),
        callers: Room::new(CALLERS_MAX, CALLERS_MAX_OF_ADDRESS),
        hosts: Room::new(CONNECTIONS_MAX, CONNECTIONS_MAX_OF_HOST),
        sender,
    };
    for listener in listeners {
        tokio::spawn(entrance.clone().accept_all(listener));
    }
    receiver.into()
}

/// The way in, which all listeners share.
#[derive(Clone)]
struct Entrance {
    security: Security,
    room: Arc<Semaphore>,
    handshakes: Arc<Room<Place>>,
    callers: Arc<Room<Place>>,
    hosts: Arc<Room<HostName>>,
    sender: mpsc::Sender<io::Result<Connection>>,
}

impl Entrance {
    async fn accept_all(self, listener: Listener) {
        // The semaphore is never closed.
        while let Ok(permit) = Arc::clone(&self.room).acquire_owned().await {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.sender.closed() => return,
            };
            match accepted {
                Ok(Accepted::Unix(stream)) => {
                    let connection = Connection::new(
                        Io::Unix(stream),
                        Peer::default(),
                        Part::None,
                        permit,
                        &self.security,
                    );
                    if self.sender.send(Ok(connection)).await.is_err() {
                        return;
                    }
                }
                Ok(Accepted::Tcp(stream, address)) => match self.handshakes.enter(address.into()) {
                    Some(stay) => drop(tokio::spawn(self.clone().shake_hands(stream, address, stay, permit))),
                    None => (self.security.refused)("too many handshakes at once"),
                },
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot accept");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    async fn shake_hands(
        self,
        stream: TcpStream,
        address: IpAddr,
        stay: Stay<Place>,
        permit: OwnedSemaphorePermit,
    ) {
        match self.secure(stream, address).await {
            Ok((io, peer, part)) => {
                drop(stay);
                let connection = Connection::new(io, peer, part, permit, &self.security);
                // Without a receiver, the control plane stops.
                let _ = self.sender.send(Ok(connection)).await;
            }
            Err(problem) => (self.security.refused)(problem),
        }
    }

    async fn secure(&self, stream: TcpStream, address: IpAddr) -> Result<(Io, Peer, Part), &'static str> {
        let shaken = timeout(HANDSHAKE_LIMIT, self.security.acceptor.accept(stream)).await;
        let stream = shaken.map_err(|_| "the handshake took too long")?.map_err(|error| {
            tracing::debug!(%address, %error, "no handshake");
            "no TLS, or a certificate that does not count"
        })?;
        let presented = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let certificate = presented
            .map(|certificate| certificate::presented(certificate, self.security.certificates.trust_domain()))
            .transpose()
            .map_err(|_| "a certificate that names neither a host nor a workload")?;
        let part = match &certificate {
            Some(Presented::Host(host)) => {
                let stay = self.hosts.enter(host.host.clone());
                Part::OfHost { _stay: stay.ok_or("too many connections of one host")? }
            }
            Some(Presented::Workload(_)) | None => {
                let stay = self.callers.enter(address.into());
                Part::OfPlace { _stay: stay.ok_or("too many connections without a certificate")? }
            }
        };
        let peer = Peer { address: Some(address), certificate };
        Ok((Io::Tls(Box::new(stream)), peer, part))
    }
}

enum Accepted {
    Tcp(TcpStream, IpAddr),
    Unix(UnixStream),
}

impl Listener {
    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // A grant set must not wait for more to send.
                stream.set_nodelay(true)?;
                Ok(Accepted::Tcp(stream, address.ip().to_canonical()))
            }
            Self::Unix(listener, _) => Ok(Accepted::Unix(listener.accept().await?.0)),
        }
    }
}

async fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let failed = |source| ListenError::Bind { listen: Listen::Unix(path.to_owned()), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ListenError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
        Ok(_) => Err(ListenError::InUse(path.to_owned())),
    }
}

/// One connection, counted as long as it is open.
pub(crate) struct Connection {
    io: Io,
    peer: Peer,
    /// None: it has begun as it should, or is not HTTP/2.
    beginning: Option<Beginning>,
    _part: Part,
    _permit: OwnedSemaphorePermit,
}

/// How much of the preface of HTTP/2 has come, until when it may, and who is told if it does not.
struct Beginning {
    read: usize,
    deadline: Pin<Box<Sleep>>,
    refused: Arc<dyn Fn(&'static str) + Send + Sync>,
}

impl Beginning {
    /// What has come must be the next of the preface. Whatever follows it is HTTP/2's to judge.
    fn hear(&mut self, bytes: &[u8]) -> io::Result<()> {
        let expected = &PREFACE[self.read..];
        let length = bytes.len().min(expected.len());
        if bytes[..length] != expected[..length] {
            (self.refused)("what was said on it is not HTTP/2");
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.read += length;
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.read == PREFACE.len()
    }

    fn poll_deadline(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.deadline.as_mut().poll(context).is_pending() {
            return Ok(());
        }
        (self.refused)("nothing was said on it in time");
        Err(io::ErrorKind::TimedOut.into())
    }
}

/// Of which room a connection takes a part.
#[derive(Debug)]
enum Part {
    /// Of this machine's own.
    None,
    OfPlace {
        _stay: Stay<Place>,
    },
    OfHost {
        _stay: Stay<HostName>,
    },
}

#[derive(Debug)]
enum Io {
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
}

impl Connection {
    fn new(io: Io, peer: Peer, part: Part, permit: OwnedSemaphorePermit, security: &Security) -> Self {
        let beginning = (security.only_http2 || io.is_http2()).then(|| Beginning {
            read: 0,
            deadline: Box::pin(tokio::time::sleep(PREFACE_LIMIT)),
            refused: Arc::clone(&security.refused),
        });
        Self { io, peer, beginning, _part: part, _permit: permit }
    }

    /// Who is at the other end.
    pub(crate) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Whether HTTP/2 was agreed on.
    pub(crate) fn is_http2(&self) -> bool {
        self.io.is_http2()
    }
}

impl Io {
    fn is_http2(&self) -> bool {
        match self {
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
            Self::Unix(_) => true,
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = match &mut self.io {
            Io::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
            Io::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
        };
        let Some(beginning) = &mut self.beginning else { return polled };
        beginning.hear(buffer.filled().get(before..).unwrap_or_default())?;
        if beginning.is_over() {
            self.beginning = None;
        } else if polled.is_pending() {
            beginning.poll_deadline(context)?;
        }
        polled
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Tls(stream) => Pin::new(stream).poll_write(context, buffer),
            Io::Unix(stream) => Pin::new(stream).poll_write(context, buffer),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tls(stream) => Pin::new(stream).poll_flush(context),
            Io::Unix(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tls(stream) => Pin::new(stream).poll_shutdown(context),
            Io::Unix(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
