//! Namespaces: another network, another view of accounts, another view of cgroups.

use std::io;

use nix::sched::{CloneFlags, unshare};

use crate::probe::{Probe, tcp_socket, udp_socket};
use crate::technique::{Feature, Needs, Place, Stop, TCP, Technique, UDP};

const CABLE: Technique = Technique { place: Place::Cable, ..TCP };
const USER: Technique = Technique { feature: Feature::UserNamespaces, ..TCP };

pub(super) const TECHNIQUES: &[Technique] = &[
    Technique { name: "another_network_namespace_tcp", run: tcp, ..CABLE },
    Technique { name: "another_network_namespace_udp", run: udp, place: Place::Cable, ..UDP },
    Technique {
        name: "another_network_namespace_udp_connected",
        run: udp_connected,
        place: Place::Cable,
        stop: Stop::By("connect; egress after the end"),
        ..UDP
    },
    Technique { name: "new_user_namespace", run: new_user, ..USER },
    Technique { name: "socket_kept_into_a_new_network_namespace", run: new_network, ..USER },
    Technique { name: "new_cgroup_namespace", run: new_cgroup, ..USER },
    Technique { name: "new_cgroup_namespace_as_root", run: new_cgroup_as_root, needs: Needs::Root, ..TCP },
];

fn tcp(probe: &mut Probe) -> io::Result<()> {
    probe.connect_and_send(tcp_socket(probe.to())?, probe.to())
}

fn udp(probe: &mut Probe) -> io::Result<()> {
    probe.send_to(udp_socket(probe.to())?, probe.to(), 0)
}

fn udp_connected(probe: &mut Probe) -> io::Result<()> {
    let socket = udp_socket(probe.to())?;
    socket.connect(&probe.to().into())?;
    probe.send(socket)
}

fn new_user(probe: &mut Probe) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWUSER)?;
    tcp(probe)
}

/// The process leaves; its socket stays where it was made.
fn new_network(probe: &mut Probe) -> io::Result<()> {
    let socket = tcp_socket(probe.to())?;
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
    probe.connect_and_send(socket, probe.to())
}

fn new_cgroup(probe: &mut Probe) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWCGROUP)?;
    tcp(probe)
}

fn new_cgroup_as_root(probe: &mut Probe) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWCGROUP)?;
    tcp(probe)
}
