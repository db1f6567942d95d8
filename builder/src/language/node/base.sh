# Makes the runtime base from a fresh Debian or Ubuntu: security updates, Node, npm, and the user that
# functions run as; then removes files that are not needed in a container.
export DEBIAN_FRONTEND=noninteractive
get() { apt-get -q -y -o Dpkg::Use-Pty=0 -o Acquire::Retries=2 ${SSL_CERT_FILE:+-o Acquire::https::CaInfo="$SSL_CERT_FILE"} "$@"; }
cp /run/epsilon/sources.list /etc/apt/sources.list
if get update; then get upgrade; else echo "W: no security updates: the mirror did not answer"; fi

install -m 755 /node/bin/node /usr/local/bin/node
mkdir -p /usr/local/lib/node_modules
cp -r /node/lib/node_modules/npm /usr/local/lib/node_modules/npm
for tool in npm npx; do
    chmod 755 "/usr/local/lib/node_modules/npm/bin/$tool-cli.js"
    ln -s "../lib/node_modules/npm/bin/$tool-cli.js" "/usr/local/bin/$tool"
done
node --version
npm --version
# A name for the user: `os.userInfo()` throws for a user id without a name.
echo "function:x:$USER_ID:" >> /etc/group
echo "function:x:$USER_ID:$USER_ID:function:/tmp:/usr/sbin/nologin" >> /etc/passwd

rm -rf /usr/share/doc /usr/share/man /usr/share/info /usr/share/locale /usr/share/lintian \
    /usr/local/lib/node_modules/npm/man /usr/local/lib/node_modules/npm/docs \
    /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/lib/dpkg/*-old /var/log/*
