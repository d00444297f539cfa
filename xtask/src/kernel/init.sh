#!/bin/busybox sh
# First process in the virtual machine: puts the host's files, read-only and with an overlay in
# memory, where the root is, and goes on there with guest.sh.
B=/bin/busybox
fail() { echo "init: $*"; $B sync; $B poweroff -f; }

$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev
for module in /modules/*; do
    $B insmod "$module" || fail "insmod $module"
done
options=trans=virtio,version=9p2000.L,msize=524288
modules=/new/usr/lib/modules/$($B uname -r)
$B mount -t 9p -o "ro,$options,cache=loose" root /lower || fail "mount the host's files"
$B mount -t tmpfs -o size=85% tmpfs /upper
$B mkdir /upper/files /upper/work
$B mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /new ||
    fail "mount the overlay"
$B mkdir -p "$modules" /new/out
$B mount -t 9p -o "rw,$options" out /new/out || fail "mount the directory of results"
$B mount -t 9p -o "ro,$options,cache=loose" modules "$modules" || fail "mount the modules"
for directory in dev proc sys; do
    $B mount --move /$directory /new/$directory
done
exec $B switch_root /new /bin/sh /out/guest.sh
