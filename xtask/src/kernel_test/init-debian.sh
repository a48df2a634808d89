#!/bin/busybox sh
# The first program of a guest that has Debian: loads the modules, makes /system the root, and becomes systemd. The file system
# in memory itself cannot be left, and units that have mounts of their own want to leave theirs: so there is a mount above it.

export PATH=/usr/sbin:/usr/bin:/sbin:/bin
/bin/busybox --install -s /bin

mount -t devtmpfs dev /dev
stty -F /dev/ttyS1 raw -echo
for module in /modules/*.ko; do
    [ -e "$module" ] || continue
    insmod "$module" || echo "@@guest refused ${module##*-}" >/dev/ttyS1
done
umount /dev
rm -rf /modules
mount --bind /system /system
cd /system
mount --move . /
exec chroot . /lib/systemd/systemd
