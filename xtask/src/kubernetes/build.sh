# Builds kube-apiserver, which takes 1.3 GiB meanwhile.
version='1.20.5+really1.20.2-1.1+deb12u1'
(
    cd packages
    apt-get -qq source --download-only "kubernetes=$version"
    apt-get -qq download golang-github-modern-go-reflect2-dev/bookworm
)
root=$GOPATH/src/k8s.io/kubernetes
mkdir -p "$GOPATH/src/k8s.io"
dpkg-source --no-check -x "packages/kubernetes_$version.dsc" "$root" >/dev/null
cd "$root"
# With Go 1.18 and later the vendored reflect2 panics at every PATCH; Debian's does not.
dpkg-deb -x "$work"/packages/golang-github-modern-go-reflect2-dev_*.deb "$work/reflect2"
rm -rf vendor/github.com/modern-go/reflect2
cp -r "$work/reflect2/usr/share/gocode/src/github.com/modern-go/reflect2" vendor/github.com/modern-go/
# The one generated file that the source package lacks, from the folders that Makefile.generated_files names.
go build -o "$work/openapi-gen" k8s.io/kubernetes/vendor/k8s.io/kube-openapi/cmd/openapi-gen
folders=$(
    {
        grep -rlE --include='*.go' '^// *\+k8s:openapi-gen=' cmd pkg plugin || true
        grep -RlE --include='*.go' '^// *\+k8s:openapi-gen=' vendor/k8s.io
    } | grep -vE '^vendor/k8s.io/(code-generator|sample-apiserver)/' |
        xargs -n1 dirname | LC_ALL=C sort -u | sed 's#^#k8s.io/kubernetes/#' | paste -sd,
)
"$work/openapi-gen" --logtostderr -i "$folders" -p k8s.io/kubernetes/pkg/generated/openapi \
    -O zz_generated.openapi -h vendor/k8s.io/code-generator/hack/boilerplate.go.txt -r "$work/violations.report"
flags='-s -w'
for package in component-base client-go/pkg; do
    for pair in gitVersion=v1.20.2 gitMajor=1 gitMinor=20 gitTreeState=archive; do
        flags="$flags -X k8s.io/kubernetes/vendor/k8s.io/$package/version.$pair"
    done
done
go build -trimpath -tags providerless -ldflags "$flags" -o "$work/kube-apiserver" k8s.io/kubernetes/cmd/kube-apiserver
"$work/kube-apiserver" --version
mv "$work/kube-apiserver" "$program"
