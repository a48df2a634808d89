//! Sockets that are not IP, or not at once.

use std::io;

use socket2::{Domain, SockAddr, Socket, Type};

use crate::probe::{Probe, connect};
use crate::receiver::unix_address;
use crate::technique::{AF_SMC, Feature, Kept, Service, Stop, TCP, Technique, Tier};

pub(super) const TECHNIQUES: &[Technique] = &[
    Technique { name: "smc_connect", run: smc, feature: Feature::Smc, ..TCP },
    Technique {
        name: "vsock_connect",
        run: vsock,
        service: Service::Vsock,
        feature: Feature::Vsock,
        stop: Stop::Nothing("a resource is an IP port, and this is none; LSM socket_create sees it"),
        tier: Some(Tier::SocketCreate),
        kept: Kept::No,
        ..TCP
    },
    Technique {
        name: "unix_abstract",
        run: unix,
        service: Service::UnixAbstract,
        stop: Stop::Nothing("a resource is named by ports or paths, and this has neither"),
        kept: Kept::No,
        ..TCP
    },
    Technique {
        name: "unix_path",
        run: unix,
        service: Service::UnixPath,
        stop: Stop::Nothing(
            "the resource is an IP port, and this is none; one that names the path is stopped by LSM unix_stream_connect",
        ),
        kept: Kept::No,
        ..TCP
    },
];

/// Falls back to TCP if the other side does not know it.
fn smc(probe: &mut Probe) -> io::Result<()> {
    let socket = Socket::new(Domain::from(AF_SMC), Type::STREAM, None)?;
    probe.connect_and_send(socket, probe.to())
}

fn vsock(probe: &mut Probe) -> io::Result<()> {
    let socket = Socket::new(Domain::VSOCK, Type::STREAM, None)?;
    connect(&socket, &SockAddr::vsock(libc::VMADDR_CID_LOCAL, probe.to().port().into()))?;
    probe.send(socket)
}

fn unix(probe: &mut Probe) -> io::Result<()> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.connect(&unix_address(&probe.scene.unix)?)?;
    probe.send(socket)
}
