# Builds cnitool, which is all of a container runtime that speaks to CNI plugins.
(
    cd packages
    apt-get -qq source --download-only golang-github-appc-cni/bookworm
)
root=$GOPATH/src/github.com/containernetworking/cni
mkdir -p "${root%/*}"
dpkg-source --no-check -x packages/golang-github-appc-cni_*.dsc "$root" >/dev/null
cd "$root"
go build -trimpath -o "$work/cnitool" github.com/containernetworking/cni/cnitool
mv "$work/cnitool" "$program"
