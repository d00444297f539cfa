#!/bin/sh
# Makes what Debian's packages were unpacked to into the root of the image. Argument: the directory.
set -eu
cd "$1"

# What the set-up of ca-certificates would have made.
mkdir -p etc/ssl/certs
find usr/share/ca-certificates -name '*.crt' | sort | xargs cat >etc/ssl/certs/ca-certificates.crt

# What nobody uses in here: texts, character sets, openssl, and what sets packages up; and what is of
# the machine that builds the image.
rm -rf usr/share usr/lib/ssl usr/lib/*/gconv usr/lib/*/libcrypto.so* usr/lib/*/libssl.so* \
    usr/lib/*/engines-3 usr/lib/*/ossl-modules usr/bin/openssl usr/bin/c_rehash usr/bin/debconf* \
    usr/sbin/dpkg-* usr/sbin/update-ca-certificates etc/debconf.conf etc/ca-certificates etc/hostname \
    etc/resolv.conf etc/apt/sources.list* etc/fstab var/lib/dpkg var/cache etc/dpkg

# What of the C library is for debuggers, profilers, vector arithmetic and NIS.
for name in libmvec libthread_db libc_malloc_debug libmemusage libpcprofile libnsl libnss_hesiod \
    libnss_compat libBrokenLocale; do
    rm -f lib/*/$name.so*
done

# What Debian's alternatives would have linked: the kind of iptables that new hosts have.
for name in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
    ln -sf xtables-nft-multi usr/sbin/$name
done

# Where volumes are mounted.
mkdir -p run/flannel sys proc dev tmp opt/bin etc/cni/net.d

# What flannel's manifest calls in its images: with these names, changing its images is enough.
ln -s ../../usr/bin/overlay-agent opt/bin/flanneld
ln -s ../../usr/bin/overlay-agent opt/bin/mk-docker-opts.sh
ln -s ../../usr/bin/overlay-cni opt/bin/install-conf
ln -s overlay-cni usr/bin/cp
ln -s usr/bin/overlay-cni flannel
