//! Asking the kernel by netlink: one question, and its answer to the end.
//!
//! Owns: how messages stand in datagrams. Must not know: what is asked. Only `sockets` and `addresses` ask.

use std::io;

use netlink_packet_core::{
    NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};

/// A socket that talks to the kernel, in this thread's network namespace.
pub(crate) fn open(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

pub(crate) fn send<T: NetlinkSerializable>(socket: &Socket, flags: u16, payload: T) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(payload));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0).map(drop)
}

/// Reads an answer to its end: the last part of a dump, or an acknowledgement. A dump in which the kernel noticed a change
/// meanwhile may miss something, and is an error of the kind `Interrupted` once it is read.
pub(crate) fn receive<T: NetlinkDeserializable>(socket: &Socket, mut each: impl FnMut(T)) -> io::Result<()> {
    let mut whole = Ok(());
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<T>::deserialize(rest).map_err(io::Error::other)?;
            let length = usize::try_from(message.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
            if message.header.flags & NLM_F_DUMP_INTR != 0 {
                whole = Err(io::Error::new(io::ErrorKind::Interrupted, "it changed while it was read"));
            }
            match message.payload {
                NetlinkPayload::InnerMessage(message) => each(message),
                NetlinkPayload::Done(_) => return whole,
                NetlinkPayload::Error(error) => {
                    return match error.code {
                        None => whole,
                        Some(_) => Err(error.to_io()),
                    };
                }
                _ => {}
            }
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}
