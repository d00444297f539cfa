# Boots a systemd that sees only this test's units. Runs as the first process of new mount, pid,
# cgroup, ipc and uts namespaces, in the network namespace of a lab's node.
# Arguments: the agent binary, the deploy directory, the environment file for the agent.
set -eu
agent=$1 deploy=$2 environment=$3

mount --make-rprivate /
# The binary and the unit are taken before /tmp and /run are covered.
mount -t tmpfs tmpfs /usr/local/bin
touch /usr/local/bin/overlay-agent
mount --bind "$agent" /usr/local/bin/overlay-agent
mount -t tmpfs tmpfs /etc/default
cp "$environment" /etc/default/overlay-agent
mount -t tmpfs tmpfs /etc/systemd/system
cd /etc/systemd/system
sed 's|/usr/bin/overlay-agent|/usr/local/bin/overlay-agent|' \
    "$deploy/systemd/overlay-agent.service" >overlay-agent.service
mkdir overlay-agent.service.d
sed 's|/usr/bin/overlay-agent|/usr/local/bin/overlay-agent|' \
    "$deploy/systemd/overlay-agent.service.d/docker.conf" >overlay-agent.service.d/docker.conf
printf '[Service]\nWatchdogSec=4\nStandardError=append:/run/agent.log\n' >overlay-agent.service.d/test.conf
printf '[Unit]\nDescription=Nothing but what the test starts\n' >default.target
printf '[Service]\nType=oneshot\nExecStart=/bin/sh -c "echo $$DOCKER_NETWORK_OPTIONS $$DOCKER_OPTS >/run/options"\n' >docker.service
mkdir docker.service.d
sed -e '/^ExecStart=/d' \
    "$deploy/systemd/docker.service.d/overlay-agent.conf" >docker.service.d/overlay-agent.conf

for dir in /run /tmp /var/tmp /var/log /var/lib/systemd; do
    mount -t tmpfs tmpfs "$dir"
done
mkdir /run/lock
# A view of this network namespace, with its own cgroup trees and its own bpffs.
umount -R /sys
mount -t sysfs sysfs /sys
if grep -q name=systemd /proc/self/cgroup; then
    mount -t tmpfs tmpfs /sys/fs/cgroup
    mkdir /sys/fs/cgroup/unified /sys/fs/cgroup/systemd
    mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
    mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
else
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
mount -t bpf bpf /sys/fs/bpf

exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    SYSTEMD_UNIT_PATH=/etc/systemd/system:/usr/lib/systemd/system:/lib/systemd/system \
    /lib/systemd/systemd --system --unit=default.target --log-target=console --log-level=info
