//! Servers that write down what reaches them: the proof is at the receiver.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, bail};
use proto::types::Protocol;

/// How long a marker may take on loopback.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(5);

/// A server on an address of its own.
pub struct Listener {
    address: SocketAddr,
    protocol: Protocol,
    received: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Listens. Port 0: any free one.
    pub fn start(protocol: Protocol, address: SocketAddr) -> Result<Self> {
        let received = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (markers, stopped) = (Arc::clone(&received), Arc::clone(&stop));
        let keep = move |marker: String| markers.lock().expect("no holder panics").push(marker);
        let (address, thread) = match protocol {
            Protocol::Tcp => {
                let listener = TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                let address = listener.local_addr()?;
                (address, std::thread::spawn(move || accept(&listener, &stopped, &keep)))
            }
            Protocol::Udp => {
                let socket = UdpSocket::bind(address)?;
                socket.set_read_timeout(Some(Duration::from_millis(5)))?;
                let address = socket.local_addr()?;
                (address, std::thread::spawn(move || receive(&socket, &stopped, &keep)))
            }
            Protocol::Dccp | Protocol::Sctp | Protocol::UdpLite => {
                bail!("the standard library has no {protocol}")
            }
        };
        Ok(Self { address, protocol, received, stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it serves.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Whether the marker has arrived, or arrives soon.
    pub fn has_received(&self, marker: &str) -> bool {
        let arrived = || self.arrived(marker).then_some(());
        crate::process::wait_for("marker", ARRIVAL_TIMEOUT, || Ok(arrived())).is_ok()
    }

    /// Whether the marker has arrived by now.
    pub fn arrived(&self, marker: &str) -> bool {
        self.received.lock().expect("no holder panics").iter().any(|received| received == marker)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It ends within a few milliseconds, having nothing to say.
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, stop: &AtomicBool, keep: &dyn Fn(String)) {
    while !stop.load(Ordering::Relaxed) {
        let Ok((mut stream, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        let mut text = String::new();
        // A client that says nothing and stays must not hold up the next one.
        let quiet = stream
            .set_nonblocking(false)
            .and_then(|()| stream.set_read_timeout(Some(Duration::from_secs(2))));
        if quiet.is_ok() && stream.read_to_string(&mut text).is_ok() {
            keep(text);
        }
    }
}

fn receive(socket: &UdpSocket, stop: &AtomicBool, keep: &dyn Fn(String)) {
    let mut buffer = [0; 512];
    while !stop.load(Ordering::Relaxed) {
        if let Ok(length) = socket.recv(&mut buffer) {
            keep(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
    }
}

/// A server that counts bytes, and when the last one came.
pub struct StreamServer {
    address: SocketAddr,
    counts: Arc<StreamCounts>,
}

#[derive(Default)]
struct StreamCounts {
    arrived: AtomicU64,
    last_boot_ns: AtomicU64,
    closed: AtomicBool,
}

impl StreamServer {
    /// Serves one connection (TCP), or whoever sends (UDP), until this process ends.
    pub fn start(protocol: Protocol, address: SocketAddr) -> Result<Self> {
        let counts = Arc::new(StreamCounts::default());
        let counted = Arc::clone(&counts);
        let address = match protocol {
            Protocol::Tcp => {
                let listener = TcpListener::bind(address)?;
                let address = listener.local_addr()?;
                std::thread::spawn(move || {
                    if let Ok((mut stream, _)) = listener.accept() {
                        counted.count(|buffer| stream.read(buffer));
                    }
                });
                address
            }
            Protocol::Udp => {
                let socket = UdpSocket::bind(address)?;
                let address = socket.local_addr()?;
                std::thread::spawn(move || counted.count(|buffer| socket.recv(buffer)));
                address
            }
            Protocol::Dccp | Protocol::Sctp | Protocol::UdpLite => {
                bail!("the standard library has no {protocol}")
            }
        };
        Ok(Self { address, counts })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes so far.
    pub fn arrived(&self) -> u64 {
        self.counts.arrived.load(Ordering::SeqCst)
    }

    /// When the last byte came: `CLOCK_BOOTTIME` in nanoseconds; 0: none yet.
    pub fn last_boot_ns(&self) -> u64 {
        self.counts.last_boot_ns.load(Ordering::SeqCst)
    }

    /// Whether the other side has ended the connection.
    pub fn is_closed(&self) -> bool {
        self.counts.closed.load(Ordering::SeqCst)
    }
}

impl StreamCounts {
    fn count(&self, mut read: impl FnMut(&mut [u8]) -> std::io::Result<usize>) {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = read(&mut buffer) {
            self.last_boot_ns.store(agent::clock::now_boot_ns(), Ordering::SeqCst);
            self.arrived.fetch_add(length as u64, Ordering::SeqCst);
        }
        self.closed.store(true, Ordering::SeqCst);
    }
}
