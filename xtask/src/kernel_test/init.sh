#!/bin/busybox sh
# The first and only program of a guest: sets the machine up, runs the tests, and switches it off.
# The console (ttyS0) is the kernel's own; the tests talk on ttyS1. Lines that begin with
# `@@guest` are read by xtask/src/kernel_test/report.rs.

export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/tmp
/bin/busybox --install -s /bin

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm
mount -t tmpfs shm /dev/shm
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
chmod 1777 /tmp /dev/shm
mount -t securityfs security /sys/kernel/security
mount -t tracefs tracing /sys/kernel/tracing
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
ip link set lo up
hostname guest

for module in /modules/*.ko; do
    [ -e "$module" ] || continue
    insmod "$module" || echo "@@guest refused ${module##*-}" >/dev/ttyS1
done
. /tests/guest.sh
poweroff -f
