#!/bin/bash
# Fetches source packages of Debian 12 for what stands below: $1 is an empty folder for the work, $2 the program to
# be made, $3 the mirror. Needs golang-go, dpkg-dev and apt.
set -euo pipefail
work=$1 program=$2 mirror=$3
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
cd "$work"
mkdir -p apt/lists/partial apt/cache/archives/partial packages
for kind in deb deb-src; do
    echo "$kind [signed-by=$keyring] $mirror bookworm main"
done >apt/sources.list
cat >apt/apt.conf <<X
Dir::Etc::sourcelist "$work/apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State::lists "$work/apt/lists";
Dir::Cache "$work/apt/cache";
Acquire::Languages "none";
APT::Sandbox::User "root";
X
# apt checks the signature of the archive, and the hashes.
export APT_CONFIG=$work/apt/apt.conf
apt-get -qq update
# The archive's own Go, and nothing of the user's.
GOROOT=$(go env GOROOT)
export GOROOT GOPATH=$work/go GOCACHE=$work/cache GO111MODULE=off CGO_ENABLED=0 GOFLAGS= HOME=$work
