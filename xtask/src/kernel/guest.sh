# The first process of the virtual machine once its root is there. Runs the test programs that
# /out/plan names, each with the seconds it may take, and writes what they say to the second serial
# port.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
# Emulated, everything takes longer.
read -r OVERLAY_TEST_TIME_SCALE </out/scale
export OVERLAY_TEST_TIME_SCALE
# Settings of the whole machine may be spoilt.
export OVERLAY_TEST_OWN_MACHINE=1

mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
ln -sfn /proc/self/fd /dev/fd
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/netns /run/lock
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount --make-rshared /
ip link set lo up
sysctl -qw net.core.bpf_jit_enable=1
# Nobody loads it when its device is opened.
modprobe tun

exec 3</out/plan >/dev/ttyS1 2>&1 </dev/null
stty -F /dev/ttyS1 raw
while read -r seconds command <&3; do
    # The command is words, not shell.
    timeout --signal=KILL "$seconds" $command
    echo "guest: status $? of $command"
done
echo "guest: end"
dmesg >/out/dmesg
sync
echo o >/proc/sysrq-trigger
sleep 60
