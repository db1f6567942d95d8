# shellcheck shell=bash
# Gives this machine a certificate of the stack's own authority, at each start of its unit. Sourced by secrets.sh, which
# has `fetch`, `put`, `put_public` and `say`. Environment: /etc/epsilon/aws.env. docs/decisions/0035-aws-certificates.md says why it is so.
#
# Two authorities: one signs gateways, the other VMs and builders. The private key of each *is* a secret's 64 hexadecimal
# digits, made by Secrets Manager: no one has to create it, and machines that start at once get the same. A
# machine's role may read the key that signs its own kind; a VM, which runs others' code, never that of gateways. What
# VMs, builders and people need to verify a gateway is public: gateways put it into a parameter of the stack.
#
#   /etc/epsilon/own.key        this machine's, made here once; never leaves it
#   /etc/epsilon/own.pem        for its address, a gateway's also for the control address; new with each start
#   /etc/epsilon/authority.pem  whom it trusts

OWN_DAYS=365
AUTHORITY_DAYS=3650
# Gateways publish their authority anew when what is there ends earlier than this, in seconds.
AUTHORITY_LEFT=$((365 * 24 * 3600))

# private_key HEX FILE: the key on P-256 whose number is HEX, as RFC 5915 writes it; openssl works out its public half.
private_key() {
    local der
    [[ "$1" =~ ^[0-9a-f]{64}$ ]] || return 1
    der=$(printf %s "30310201010420$1a00a06082a8648ce3d030107" | sed 's/../\\x&/g') || return 1
    printf '%b' "$der" | openssl pkey -inform DER -out "$2" 2>/dev/null
}

# extensions NAMES FILE: what certificates say, whatever this machine's openssl.cnf thinks.
extensions() {
    cat >"$2" <<CONF
[req]
distinguished_name = subject
[subject]
[authority]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[machine]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
authorityKeyIdentifier = keyid
subjectAltName = $1
CONF
}

# authority KIND SECRET: in the folder `$work`, KIND.key and KIND.pem of the key that signs, KIND.all of all that are
# trusted. The secret is one key, or several with blanks between while one replaces another: the last one signs.
authority() {
    local kind=$1 text key
    text=$(fetch "$2") || return 1
    : >"$work/$kind.all"
    for key in $text; do
        private_key "$key" "$work/$kind.key" || {
            say "the secret of the $kind' authority is not keys of 64 hexadecimal digits; put such into it" >&2
            return 1
        }
        # Made anew each time: who trusts it goes by its name and key.
        openssl req -x509 -config "$work/openssl.cnf" -extensions authority -key "$work/$kind.key" -sha256 \
            -days "$AUTHORITY_DAYS" -subj "/CN=Epsilon $kind" -out "$work/$kind.pem" || return 1
        cat "$work/$kind.pem" >>"$work/$kind.all" || return 1
    done
    [ -s "$work/$kind.all" ] || {
        say "the secret of the $kind' authority is empty" >&2
        return 1
    }
}

# keys_of FILE: a digest of the public key of each certificate in it.
keys_of() { openssl storeutl -noout -text -certs "$1" 2>/dev/null | sed -n '/Subject Key Identifier/{n;p}'; }

parameter() {
    aws --region "$EPSILON_AWS_REGION" --cli-connect-timeout 5 --cli-read-timeout 10 ssm "$@"
}

# published FILE: what the parameter holds.
published() {
    parameter get-parameter --name "$EPSILON_AWS_AUTHORITY_PARAMETER" --query Parameter.Value --output text >"$1"
}

# publish FILE: into the parameter, unless it is there. Gateways that do so at once write what is worth the same.
publish() {
    published "$work/published" || return 1
    if [ "$(keys_of "$work/published")" = "$(keys_of "$1")" ] &&
        openssl x509 -in "$work/published" -noout -checkend "$AUTHORITY_LEFT" >/dev/null; then
        return 0
    fi
    parameter put-parameter --name "$EPSILON_AWS_AUTHORITY_PARAMETER" --type String --overwrite \
        --value "file://$1" >/dev/null || return 1
    say "published the gateways' authority"
}

# A process of its own: its folder goes with it, however it ends.
certificates() (
    work=$(mktemp -d "${RUNTIME_DIRECTORY:-${TMPDIR:-/tmp}}/authority.XXXXXX") || return 1
    trap 'rm -rf "$work"' EXIT
    names=IP:$EPSILON_AWS_ADDRESS kind=members owner=''
    if [ "$EPSILON_AWS_ROLE" = gateway ]; then
        # Localhost: for who comes by a tunnel.
        names+=,DNS:$EPSILON_AWS_CONTROL_NAME,DNS:localhost,IP:127.0.0.1 kind=gateways owner=epsilon
    fi
    extensions "$names" "$work/openssl.cnf" || return 1
    authority members "$EPSILON_AWS_MEMBER_AUTHORITY_SECRET" || return 1
    if [ "$kind" = gateways ]; then
        authority gateways "$EPSILON_AWS_GATEWAY_AUTHORITY_SECRET" || return 1
        publish "$work/gateways.all" || return 1
        cat "$work/gateways.all" "$work/members.all" >"$work/trusted" || return 1
    else
        published "$work/trusted" || return 1
        openssl x509 -in "$work/trusted" -noout 2>/dev/null || {
            say "no gateway has published the authority yet" >&2
            return 1
        }
    fi
    own=${root:-}/etc/epsilon/own.key
    [ -s "$own" ] || openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 | put /etc/epsilon/own.key ${owner:+"$owner"} ||
        return 1
    openssl req -x509 -config "$work/openssl.cnf" -extensions machine -CA "$work/$kind.pem" -CAkey "$work/$kind.key" \
        -key "$own" -sha256 -days "$OWN_DAYS" -subj "/CN=$EPSILON_AWS_ROLE" -out "$work/own.pem" || return 1
    put_public /etc/epsilon/own.pem <"$work/own.pem" && put_public /etc/epsilon/authority.pem <"$work/trusted"
)
