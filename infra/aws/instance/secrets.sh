#!/usr/bin/env bash
# Fetches what this instance may know from Secrets Manager, with the instance's role, into files of mode 0600. Run by
# epsilon-aws-secrets.service before each start of Epsilon's unit, so a rotated secret comes with a restart. Certificates
# come in the same way: certificates.sh.
# Environment: /etc/epsilon/aws.env, written by setup.sh.
set -euo pipefail
umask 077

say() { printf 'secrets: %s\n' "$*"; }
root=${EPSILON_SETUP_ROOT:-}

# fetch SECRET: its text. A moment without AWS is bridged; how long, systemd decides.
fetch() {
    aws --region "$EPSILON_AWS_REGION" --cli-connect-timeout 5 --cli-read-timeout 10 \
        secretsmanager get-secret-value --secret-id "$1" --query SecretString --output text
}

# put FILE [USER]: standard input into it, whole or not at all; its folder is there.
put() {
    local to=$root$1
    cat >"$to.new" || return 1
    [ -z "${2:-}" ] || chown "$2:$2" "$to.new" || return 1
    mv -f "$to.new" "$to"
}

# put_public FILE: the same, for everybody to read.
put_public() {
    put "$1.public" && chmod 644 "$root$1.public" && mv -f "$root$1.public" "$root$1"
}

# shellcheck source=infra/aws/instance/certificates.sh
. "$(dirname "$0")/certificates.sh"

# A key of Epsilon is epsilon_ROLE_ID_SECRET. Secrets Manager keeps the 64 hexadecimal digits; the id only has to
# differ from secret to secret, so it is made of the secret's hash.
key() {
    local role=$1 secret=$2 id
    [[ "$secret" =~ ^[0-9a-f]{64}$ ]] || {
        say "the secret of the $role key is not 64 hexadecimal digits" >&2
        return 1
    }
    id=$(printf '%s' "$secret" | sha256sum | cut -c1-12)
    printf 'epsilon_%s_%s_%s\n' "$role" "$id" "$secret"
}

all() {
    local token builder metrics admin password url
    # Tokens come last: where they are, all of it is.
    [ -z "${EPSILON_AWS_AUTHORITY_PARAMETER:-}" ] || certificates || return 1
    # A VM cannot join as a builder, nor the other way round: each may read its own token only.
    if [ "$EPSILON_AWS_ROLE" != builder ]; then
        token=$(fetch "$EPSILON_AWS_FLEET_TOKEN_SECRET") || return 1
        token=$(key fleet "$token") || return 1
    fi
    if [ "$EPSILON_AWS_ROLE" != vm-agent ]; then
        builder=$(fetch "$EPSILON_AWS_BUILDER_TOKEN_SECRET") || return 1
        builder=$(key builder "$builder") || return 1
    fi
    case "$EPSILON_AWS_ROLE" in
        vm-agent)
            metrics=$(fetch "$EPSILON_AWS_METRICS_KEY_SECRET") || return 1
            put /etc/epsilon/fleet.token <<<"$token" && put /etc/epsilon/metrics.key <<<"$metrics"
            return
            ;;
        builder)
            metrics=$(fetch "$EPSILON_AWS_METRICS_KEY_SECRET") || return 1
            put /etc/epsilon/builder.token <<<"$builder" && put /etc/epsilon/metrics.key <<<"$metrics"
            return
            ;;
    esac
    admin=$(fetch "$EPSILON_AWS_ADMIN_KEY_SECRET") || return 1
    admin=$(key admin "$admin") || return 1
    if [ -n "${EPSILON_AWS_DATABASE_URL_SECRET:-}" ]; then
        url=$(fetch "$EPSILON_AWS_DATABASE_URL_SECRET") || return 1
    elif [ -n "${EPSILON_AWS_DATABASE_PASSWORD_SECRET:-}" ]; then
        password=$(fetch "$EPSILON_AWS_DATABASE_PASSWORD_SECRET") || return 1
        url="postgres://epsilon:$password@$EPSILON_AWS_DATABASE_ADDRESS/epsilon?sslmode=verify-full&sslrootcert=/etc/epsilon/rds-ca.pem"
    else
        url=sqlite
    fi
    # The gateway takes keys that it finds in its data folder.
    install -d -m 700 -o epsilon -g epsilon "$root/var/lib/epsilon" &&
        put /var/lib/epsilon/fleet.token epsilon <<<"$token" &&
        put /var/lib/epsilon/builder.token epsilon <<<"$builder" &&
        put /var/lib/epsilon/admin.key epsilon <<<"$admin" &&
        # Quoted: systemd would take a `#` or a space for something else.
        put /etc/epsilon/gateway.env <<<"EPSILON_GATEWAY_STORE='$url'"
}

# What there was before serves as well when AWS does not answer: a restart must not depend on it.
if all; then exit 0; fi
case "$EPSILON_AWS_ROLE" in
    gateway) had=$root/etc/epsilon/gateway.env ;;
    builder) had=$root/etc/epsilon/builder.token ;;
    *) had=$root/etc/epsilon/fleet.token ;;
esac
[ -s "$had" ] || {
    say "Secrets Manager did not give what is needed, and nothing is here from before" >&2
    exit 1
}
say "Secrets Manager does not answer; going on with what is here" >&2
