# Boots a systemd in a copy of this machine's root that packages can be installed in. Runs as the first
# process of new mount, pid, cgroup, ipc and uts namespaces, in the network namespace of a lab's node.
# Argument: the directory with the packages.
set -eu
packages=$1

mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
cd /mnt/root
mount -t proc proc proc
mount -t sysfs sysfs sys
mount --rbind /dev dev
for dir in run tmp var/tmp var/log var/lib/systemd etc/systemd/system; do
    mount -t tmpfs tmpfs "$dir"
done
mkdir run/lock run/packages run/old
cp "$packages"/*.deb run/packages/
printf '[Unit]\nDescription=Nothing but what the test starts\n' >etc/systemd/system/default.target
# In a container it may forbid packages to start what they bring.
rm -f usr/sbin/policy-rc.d

if grep -q name=systemd /proc/self/cgroup; then
    mount -t tmpfs tmpfs sys/fs/cgroup
    mkdir sys/fs/cgroup/unified sys/fs/cgroup/systemd
    mount -t cgroup2 cgroup2 sys/fs/cgroup/unified
    mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
else
    mount -t cgroup2 cgroup2 sys/fs/cgroup
fi
mount -t bpf bpf sys/fs/bpf

pivot_root . run/old
umount -l /run/old
exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    SYSTEMD_UNIT_PATH=/etc/systemd/system:/usr/lib/systemd/system:/lib/systemd/system \
    /lib/systemd/systemd --system --unit=default.target --log-target=console --log-level=info
