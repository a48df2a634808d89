//! A service of any protocol that writes down each byte as it arrives: the proof.

use std::io::{self, ErrorKind, Read};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tests::raw;

use crate::technique::{Service, caller_port};

/// How long a service that calls waits for what it gets.
const CALL_DURATION: Duration = Duration::from_secs(1);

/// The service. Dropped, it ends.
pub(crate) struct Receiver {
    received: Arc<Mutex<Vec<Vec<u8>>>>,
    reading: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    path: Option<PathBuf>,
}

/// Where a service listens.
#[derive(Clone, Debug)]
pub(crate) struct Where {
    pub(crate) ip: SocketAddr,
    /// See `Scene::unix`.
    pub(crate) unix: String,
}

impl Where {
    /// The address that fits the service.
    pub(crate) fn address(&self, service: Service) -> io::Result<SockAddr> {
        match service {
            Service::Vsock => Ok(SockAddr::vsock(libc::VMADDR_CID_ANY, self.ip.port().into())),
            Service::UnixAbstract | Service::UnixPath => unix_address(&self.unix),
            _ => Ok(self.ip.into()),
        }
    }
}

/// The address of a unix socket.
pub(crate) fn unix_address(name: &str) -> io::Result<SockAddr> {
    SockAddr::unix(name.replacen('@', "\0", 1))
}

/// A socket for this service and address.
pub(crate) fn socket(service: Service, ip: SocketAddr) -> io::Result<Socket> {
    let (domain, kind, protocol) = service.socket();
    let domain = domain.map_or(Domain::for_address(ip), Domain::from);
    Socket::new(domain, Type::from(kind), Some(Protocol::from(protocol)))
}

impl Receiver {
    /// Listens, in the calling thread's network namespace.
    pub(crate) fn start(service: Service, at: &Where) -> io::Result<Self> {
        if service == Service::TcpCaller {
            return Ok(Self::start_calling(at.ip));
        }
        let socket = socket(service, at.ip)?;
        let is_stream = !matches!(service, Service::Udp | Service::UdpLite);
        let path = (service == Service::UnixPath).then(|| PathBuf::from(&at.unix));
        if service == Service::Dccp {
            set_dccp_service(&socket)?;
        }
        if is_stream {
            // What accepted sockets inherit: little fits in before it is read.
            socket.set_recv_buffer_size(4096)?;
        }
        socket.bind(&at.address(service)?)?;
        if is_stream {
            socket.listen(16)?;
        }
        if let Some(path) = &path {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))?;
        }
        socket.set_nonblocking(true)?;
        let received = Arc::new(Mutex::new(Vec::new()));
        let (reading, stop) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
        let (to, may_read, stopped) = (Arc::clone(&received), Arc::clone(&reading), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut streams = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                match is_stream {
                    true => accept(&socket, &mut streams, &to),
                    false => streams = vec![(0, Some(socket.try_clone().expect("a descriptor is free")))],
                }
                if may_read.load(Ordering::Relaxed) {
                    streams.iter_mut().for_each(|(index, stream)| read(*index, stream, &to));
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        Ok(Self { received, reading, stop, thread: Some(thread), path })
    }

    /// Connects from its address, again and again, and reads what it gets.
    fn start_calling(from: SocketAddr) -> Self {
        let received = Arc::new(Mutex::new(Vec::new()));
        let (reading, stop) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
        let (to, stopped) = (Arc::clone(&received), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // Most of the time nobody listens there.
                let mut stream = call(from).ok();
                let end = Instant::now() + CALL_DURATION;
                while stream.is_some() && Instant::now() < end && !stopped.load(Ordering::Relaxed) {
                    read(0, &mut stream, &to);
                    std::thread::sleep(Duration::from_millis(2));
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self { received, reading, stop, thread: Some(thread), path: None }
    }

    /// Whether to read what arrives, or to leave it to the kernel's buffers.
    pub(crate) fn set_reading(&self, reading: bool) {
        self.reading.store(reading, Ordering::Relaxed);
    }

    /// Whether the marker has arrived, by whatever stream, with whatever around it.
    pub(crate) fn has(&self, marker: &str) -> bool {
        let received = self.received.lock().expect("no holder panics");
        received.iter().any(|bytes| bytes.windows(marker.len()).any(|window| window == marker.as_bytes()))
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It ends within a few milliseconds, having nothing to say.
            let _ = thread.join();
        }
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn call(from: SocketAddr) -> io::Result<Socket> {
    let stream = socket(Service::TcpCaller, from)?;
    stream.set_reuse_address(true)?;
    // The next call is from the same port to the same: nothing of this one may be left.
    stream.set_linger(Some(Duration::ZERO))?;
    stream.bind(&from.into())?;
    let to = SocketAddr::new(from.ip(), caller_port(from.port()));
    stream.connect_timeout(&to.into(), Duration::from_secs(1))?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// A stream that is still open, and where its bytes go.
type Stream = (usize, Option<Socket>);

fn accept(listener: &Socket, streams: &mut Vec<Stream>, to: &Mutex<Vec<Vec<u8>>>) {
    while let Ok((stream, _)) = listener.accept() {
        let mut received = to.lock().expect("no holder panics");
        received.push(Vec::new());
        if stream.set_nonblocking(true).is_ok() {
            streams.push((received.len() - 1, Some(stream)));
        }
    }
}

fn read(index: usize, stream: &mut Option<Socket>, to: &Mutex<Vec<Vec<u8>>>) {
    let mut buffer = [0; 65536];
    while let Some(open) = stream {
        match open.read(&mut buffer) {
            Ok(0) => *stream = None,
            Ok(length) => {
                let mut received = to.lock().expect("no holder panics");
                if received.len() <= index {
                    received.resize(index + 1, Vec::new());
                }
                received[index].extend(&buffer[..length]);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(_) => *stream = None,
        }
    }
}

/// Both ends of a DCCP connection must name the same service.
pub(crate) fn set_dccp_service(socket: &Socket) -> io::Result<()> {
    const SOL_DCCP: i32 = 269;
    const DCCP_SOCKOPT_SERVICE: i32 = 2;
    raw::set_option(socket.as_fd(), SOL_DCCP, DCCP_SOCKOPT_SERVICE, &1u32.to_be_bytes())
}
