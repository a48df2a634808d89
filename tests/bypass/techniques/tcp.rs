//! TCP: every way to open a connection, and every way to write on one whose grant has ended.

use std::fs::File;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::sendfile::sendfile;
use rustix::pipe::{SpliceFlags, splice};
use socket2::Socket;
use tests::raw;

use crate::probe::{Probe, connect, disconnect, tcp_socket};
use crate::technique::{Feature, Granted, Kept, Place, Service, Stop, TCP, Technique, caller_port};

/// `TCP_FASTOPEN_CONNECT`.
const TCP_FASTOPEN_CONNECT: i32 = 30;

const OWN: Technique = Technique { place: Place::Own, ..TCP };

pub(super) const TECHNIQUES: &[Technique] = &[
    Technique { name: "tcp_connect", run: plain, ..TCP },
    Technique { name: "tcp_connect_ipv6", run: plain, place: Place::Host6, feature: Feature::Ipv6, ..TCP },
    Technique {
        name: "tcp_kept_past_the_deadline",
        run: plain,
        stop: Stop::By("connect; egress after the end"),
        kept: Kept::Expired,
        ..TCP
    },
    Technique {
        name: "tcp_queued_bytes",
        run: queued,
        stop: Stop::By("connect; egress after the end"),
        kept: Kept::Unread,
        ..TCP
    },
    Technique { name: "tcp_fast_open_sendto", run: fast_open_sendto, kept: Kept::No, ..OWN },
    Technique { name: "tcp_fast_open_sendmsg", run: fast_open_sendmsg, kept: Kept::No, ..OWN },
    Technique { name: "tcp_fast_open_without_server", run: fast_open_sendto, kept: Kept::No, ..TCP },
    Technique {
        name: "tcp_fast_open_connect",
        run: fast_open_connect,
        stop: Stop::By("connect; egress for a SYN deferred past the end"),
        ..OWN
    },
    Technique {
        name: "tcp_fast_open_connect_past_the_deadline",
        run: fast_open_connect,
        stop: Stop::By("connect; egress for a SYN deferred past the end"),
        kept: Kept::Expired,
        ..OWN
    },
    Technique { name: "tcp_reconnect_after_af_unspec", run: reconnect, ..TCP },
    Technique { name: "tcp_reconnect_of_an_accepted_socket", run: reconnect_accepted, ..TCP },
    Technique { name: "tcp_connect_again_while_connecting", run: connect_again, ..TCP },
    Technique { name: "tcp_self_made_source_port", run: bound, ..TCP },
    Technique { name: "tcp_sendfile", run: by_sendfile, stop: EGRESS_AFTER, ..TCP },
    Technique { name: "tcp_splice", run: by_splice, stop: EGRESS_AFTER, ..TCP },
    Technique { name: "tcp_zerocopy", run: by_zerocopy, stop: EGRESS_AFTER, ..TCP },
    Technique { name: "tcp_out_of_band", run: by_out_of_band, stop: EGRESS_AFTER, ..TCP },
    Technique { name: "tcp_write_then_shutdown", run: by_shutdown, stop: EGRESS_AFTER, ..TCP },
    Technique {
        name: "tcp_accepted_from_the_port",
        run: accepted,
        service: Service::TcpCaller,
        stop: Stop::Nothing(
            "it is the service that connects, from its own port; refusing that would also refuse clients whose own port \
             happens to be a protected one",
        ),
        granted: Granted::Either("whoever accepts a connection was not let through to anything"),
        kept: Kept::No,
        ..TCP
    },
];

const EGRESS_AFTER: Stop = Stop::By("connect; egress after the end");

/// The service connects to us.
fn accepted(probe: &mut Probe) -> io::Result<()> {
    const CALL_TIMEOUT: Duration = Duration::from_secs(5);
    let listener = tcp_socket(probe.to())?;
    listener.set_reuse_address(true)?;
    listener.bind(&SocketAddr::new(probe.to().ip(), caller_port(probe.to().port())).into())?;
    listener.listen(1)?;
    listener.set_read_timeout(Some(CALL_TIMEOUT))?;
    let (socket, _) = listener.accept()?;
    probe.send(socket)
}

fn plain(probe: &mut Probe) -> io::Result<()> {
    probe.connect_and_send(tcp_socket(probe.to())?, probe.to())
}

/// More than the receiver's buffer holds, and then the marker. The receiver reads nothing until the grant has ended.
fn queued(probe: &mut Probe) -> io::Result<()> {
    let socket = tcp_socket(probe.to())?;
    socket.set_send_buffer_size(1 << 20)?;
    connect(&socket, &probe.to().into())?;
    let mut stream = socket.try_clone()?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(&[b'.'; 128 * 1024])?;
    stream.write_all(&probe.marker())?;
    probe.keep(socket);
    probe.pause()
}

fn fast_open_sendto(probe: &mut Probe) -> io::Result<()> {
    let (socket, to) = (tcp_socket(probe.to())?, probe.to());
    socket.set_write_timeout(Some(Duration::from_secs(2)))?;
    probe.send_to(socket, to, libc::MSG_FASTOPEN)
}

fn fast_open_sendmsg(probe: &mut Probe) -> io::Result<()> {
    let (socket, marker) = (tcp_socket(probe.to())?, probe.marker());
    socket.set_write_timeout(Some(Duration::from_secs(2)))?;
    let parts = [io::IoSlice::new(&marker)];
    let result = socket.send_to_vectored_with_flags(&parts, &probe.to().into(), libc::MSG_FASTOPEN);
    probe.keep(socket);
    result.map(drop)
}

/// `connect` sends nothing: the SYN leaves with the first bytes.
fn fast_open_connect(probe: &mut Probe) -> io::Result<()> {
    let socket = tcp_socket(probe.to())?;
    raw::set_option(socket.as_fd(), libc::IPPROTO_TCP, TCP_FASTOPEN_CONNECT, &1i32.to_ne_bytes())?;
    socket.set_write_timeout(Some(Duration::from_secs(2)))?;
    socket.connect(&probe.to().into())?;
    probe.send(socket)
}

fn reconnect(probe: &mut Probe) -> io::Result<()> {
    let socket = tcp_socket(probe.to())?;
    connect(&socket, &probe.scene.decoy.into())?;
    disconnect(socket.as_fd())?;
    probe.connect_and_send(socket, probe.to())
}

fn reconnect_accepted(probe: &mut Probe) -> io::Result<()> {
    let socket = accepted_and_disconnected(probe.to())?;
    probe.connect_and_send(socket, probe.to())
}

/// A socket that came out of `accept`, by a connection of this process to itself, and is free again.
pub(super) fn accepted_and_disconnected(like: SocketAddr) -> io::Result<Socket> {
    let listener = tcp_socket(like)?;
    let mut here = like;
    here.set_port(0);
    listener.bind(&here.into())?;
    listener.listen(1)?;
    let client = tcp_socket(like)?;
    connect(&client, &listener.local_addr()?)?;
    let (socket, _) = listener.accept()?;
    disconnect(socket.as_fd())?;
    Ok(socket)
}

/// A second `connect`, as programs do that poll for the first.
fn connect_again(probe: &mut Probe) -> io::Result<()> {
    let socket = tcp_socket(probe.to())?;
    socket.set_nonblocking(true)?;
    // In progress, or refused; what counts is the next one.
    let _ = socket.connect(&probe.to().into());
    std::thread::sleep(Duration::from_millis(50));
    match socket.connect(&probe.to().into()) {
        Err(error) if error.raw_os_error() == Some(libc::EISCONN) => {}
        result => result?,
    }
    socket.set_nonblocking(false)?;
    probe.send(socket)
}

fn bound(probe: &mut Probe) -> io::Result<()> {
    let socket = tcp_socket(probe.to())?;
    let mut from = probe.to();
    from.set_port(0);
    socket.bind(&from.into())?;
    probe.connect_and_send(socket, probe.to())
}

/// Connects, waits if asked, and sends the marker by `send`.
fn connected(probe: &mut Probe, send: fn(&Socket, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let socket = tcp_socket(probe.to())?;
    connect(&socket, &probe.to().into())?;
    probe.pause()?;
    let result = send(&socket, &probe.marker());
    probe.keep(socket);
    result
}

fn by_sendfile(probe: &mut Probe) -> io::Result<()> {
    connected(probe, send_file)
}

fn by_splice(probe: &mut Probe) -> io::Result<()> {
    connected(probe, send_by_splice)
}

fn by_zerocopy(probe: &mut Probe) -> io::Result<()> {
    connected(probe, send_zerocopy)
}

fn by_out_of_band(probe: &mut Probe) -> io::Result<()> {
    // The last byte is the urgent one, and is not read with the others.
    connected(probe, |socket, marker| socket.send_out_of_band(&[marker, b"!"].concat()).map(drop))
}

fn by_shutdown(probe: &mut Probe) -> io::Result<()> {
    connected(probe, |socket, marker| {
        socket.send(marker)?;
        socket.shutdown(std::net::Shutdown::Write)
    })
}

/// By `sendfile`, from a file.
pub(super) fn send_file(socket: &Socket, marker: &[u8]) -> io::Result<()> {
    let mut file = tempfile_of(marker)?;
    file.flush()?;
    sendfile(socket, &file, Some(&mut 0), marker.len())?;
    Ok(())
}

fn tempfile_of(bytes: &[u8]) -> io::Result<File> {
    let mut file = tempfile::tempfile()?;
    file.write_all(bytes)?;
    Ok(file)
}

/// By `splice`, from a pipe.
pub(super) fn send_by_splice(socket: &Socket, marker: &[u8]) -> io::Result<()> {
    let (reader, mut writer) = io::pipe()?;
    writer.write_all(marker)?;
    splice(&reader, None, socket, None, marker.len(), SpliceFlags::empty())?;
    Ok(())
}

/// With `MSG_ZEROCOPY`.
pub(super) fn send_zerocopy(socket: &Socket, marker: &[u8]) -> io::Result<()> {
    raw::set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_ZEROCOPY, &1i32.to_ne_bytes())?;
    socket.send_with_flags(marker, libc::MSG_ZEROCOPY).map(drop)
}
