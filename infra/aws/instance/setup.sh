#!/usr/bin/env bash
# Turns a fresh Debian instance into one part of the stack of infra/aws/epsilon.yaml. Run once, at the first boot, by
# the instance's user data, from the unpacked release package. It holds no secret and gets none: secrets.sh fetches
# them with the instance's role whenever a unit starts.
#
#   EPSILON_ROLE=gateway|vm-agent|builder  and what the role needs, below   aws/setup.sh
set -euo pipefail

say() { printf 'setup: %s\n' "$*"; }
die() {
    printf 'setup: error: %s\n' "$*" >&2
    exit 1
}
# need NAME…: variables that must be set; all missing ones are reported at once.
need() {
    local name missing=()
    for name in "$@"; do [ -n "${!name:-}" ] || missing+=("$name"); done
    [ ${#missing[@]} -eq 0 ] || die "not set: ${missing[*]}"
}

# How long the part may take to be of use, engine and joining included.
READY_LIMIT=${EPSILON_READY_LIMIT:-300}
# Where a test puts things instead of /.
root=${EPSILON_SETUP_ROOT:-}
here=$(cd "$(dirname "$0")/.." && pwd)
lib=/usr/local/lib/epsilon

need EPSILON_ROLE EPSILON_REGION EPSILON_ADDRESS EPSILON_LONGEST_CALL EPSILON_DRAIN_GRACE EPSILON_STOP_LIMIT
case "$EPSILON_ROLE" in
    gateway) need EPSILON_FLEET_TOKEN_SECRET EPSILON_BUILDER_TOKEN_SECRET EPSILON_ADMIN_KEY_SECRET EPSILON_KEEP_ALIVE EPSILON_VM_GROUP EPSILON_VM_MIN EPSILON_VM_MAX EPSILON_PUBLIC_URL EPSILON_VPC_CIDR ;;
    vm-agent) need EPSILON_FLEET_TOKEN_SECRET EPSILON_METRICS_KEY_SECRET EPSILON_JOIN EPSILON_VPC_CIDR ;;
    builder) need EPSILON_BUILDER_TOKEN_SECRET EPSILON_METRICS_KEY_SECRET EPSILON_JOIN EPSILON_VPC_CIDR EPSILON_REGISTRY ;;
    *) die "EPSILON_ROLE is \`$EPSILON_ROLE\`, not gateway, vm-agent or builder" ;;
esac
unit=epsilon-$EPSILON_ROLE.service
scheme=http
if [ -n "${EPSILON_AUTHORITY_PARAMETER:-}" ]; then
    need EPSILON_MEMBER_AUTHORITY_SECRET
    [ "$EPSILON_ROLE" != gateway ] || need EPSILON_GATEWAY_AUTHORITY_SECRET EPSILON_CONTROL_NAME
    scheme=https
fi

# write MODE FILE: standard input into it, whole or not at all.
write() {
    local to=$root$2
    mkdir -p "$(dirname "$to")"
    cat >"$to.new"
    chmod "$1" "$to.new"
    mv -f "$to.new" "$to"
}

# The same for all parts; nothing where the stack was made without (`FleetTls`).
tls() {
    [ -n "${EPSILON_AUTHORITY_PARAMETER:-}" ] || return 0
    [ "$EPSILON_ROLE" != gateway ] || printf '  listen_tls: true\n'
    printf '  %s\n' 'tls_certificate: /etc/epsilon/own.pem' 'tls_key: /etc/epsilon/own.key' 'tls_authority: /etc/epsilon/authority.pem'
}

settings() {
    case "$EPSILON_ROLE" in
        gateway)
            cat <<YAML
gateway:
  listen: 0.0.0.0:8080
  control: 0.0.0.0:8081
  control_url: $scheme://$EPSILON_ADDRESS:8081
  public_url: $EPSILON_PUBLIC_URL
  # The load balancer is in the VPC, and nothing else in it reaches this port: the security group of the gateways allows only it.
  trusted_proxies: [$EPSILON_VPC_CIDR]
  # Longer than the load balancer keeps its connections, so that it never sends into one that closes.
  idle_timeout: $EPSILON_KEEP_ALIVE
  drain_grace: $EPSILON_DRAIN_GRACE
  autoscale:
    driver: aws-asg
    group: $EPSILON_VM_GROUP
    region: $EPSILON_REGION
    min: $EPSILON_VM_MIN
    max: $EPSILON_VM_MAX
    leave_grace: $EPSILON_DRAIN_GRACE
YAML
            ;;
        vm-agent)
            cat <<YAML
vm_agent:
  gateways: $scheme://$EPSILON_JOIN
  # The machine's address, not all: functions reach what listens on their bridge.
  listen: $EPSILON_ADDRESS:8082
  metrics: $EPSILON_ADDRESS:8084
  metrics_key_file: /etc/epsilon/metrics.key
  drain_grace: $EPSILON_DRAIN_GRACE
YAML
            ;;
        builder)
            cat <<YAML
builder:
  gateways: $scheme://$EPSILON_JOIN
  listen: $EPSILON_ADDRESS:8083
  metrics: $EPSILON_ADDRESS:8085
  metrics_key_file: /etc/epsilon/metrics.key
  registry: $EPSILON_REGISTRY
  max_timeout: $EPSILON_LONGEST_CALL
YAML
            ;;
    esac
    tls
}

# What units of this machine get besides what the package says.
drop_in() {
    cat <<UNIT
[Unit]
Requires=epsilon-aws-secrets.service
After=epsilon-aws-secrets.service

[Service]
TimeoutStopSec=$EPSILON_STOP_LIMIT
# Two files for two readers: the CloudWatch agent follows this one; logrotate keeps it small.
StandardError=append:/var/log/epsilon/$EPSILON_ROLE.log
UNIT
    [ "$EPSILON_ROLE" != gateway ] || return 0
    # Functions and builds run on this machine and would be taken for its agent by the control address's security
    # group. The keys would stop them; this stops them before. Bridges of Epsilon are called ep….
    local rule="PREROUTING -i ep+ -d $EPSILON_VPC_CIDR -p tcp -m multiport --dports 8081:8085 -j DROP"
    cat <<UNIT
ExecStartPre=/bin/sh -c '/usr/sbin/iptables -w 10 -t raw -C $rule 2>/dev/null || /usr/sbin/iptables -w 10 -t raw -A $rule'
UNIT
}

say "installing Epsilon as $EPSILON_ROLE"
"$here/install.sh" ${root:+--root "$root"}
[ "$EPSILON_ROLE" = gateway ] || [ -n "$root" ] || "$lib/ensure-docker.sh"

settings | write 644 /etc/epsilon/epsilon.yaml
drop_in | write 644 "/etc/systemd/system/$unit.d/aws.conf"
{
    for name in ROLE REGION FLEET_TOKEN_SECRET BUILDER_TOKEN_SECRET METRICS_KEY_SECRET ADMIN_KEY_SECRET DATABASE_PASSWORD_SECRET DATABASE_ADDRESS \
        DATABASE_URL_SECRET GROUP HOOK ADDRESS CONTROL_NAME AUTHORITY_PARAMETER GATEWAY_AUTHORITY_SECRET MEMBER_AUTHORITY_SECRET; do
        variable=EPSILON_$name
        printf 'EPSILON_AWS_%s=%s\n' "$name" "${!variable:-}"
    done
} | write 600 /etc/epsilon/aws.env
for part in epsilon-aws-secrets.service epsilon-aws-lifecycle.service; do
    write 644 "/etc/systemd/system/$part" <"$here/aws/$part"
done
write 644 /etc/logrotate.d/epsilon <<'ROTATE'
/var/log/epsilon/*.log {
    size 50M
    rotate 4
    compress
    copytruncate
    missingok
    notifempty
}
ROTATE
mkdir -p "$root/var/log/epsilon"

[ -z "$root" ] || exit 0

# Database servers of RDS show certificates of an authority of their own.
if [ -n "${EPSILON_DATABASE_ADDRESS:-}" ]; then
    curl -fsS --retry 5 --retry-all-errors -o /etc/epsilon/rds-ca.pem.new \
        https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem
    mv -f /etc/epsilon/rds-ca.pem.new /etc/epsilon/rds-ca.pem
fi

if [ -n "${EPSILON_LOG_GROUP:-}" ]; then
    # Without it the logs stay in the machine's files; that is no reason to be without the machine.
    "$lib/aws/ship-logs.sh" "$EPSILON_LOG_GROUP" "$EPSILON_ROLE" "$EPSILON_REGION" ||
        say "logs are not shipped to CloudWatch; they stay in /var/log/epsilon"
fi

systemctl daemon-reload
systemctl enable --now "$unit"
[ -z "${EPSILON_HOOK:-}" ] || systemctl enable --now epsilon-aws-lifecycle.service

# Of use: a gateway answers, a member stays up (it ends when it cannot join).
ready() {
    systemctl is-active --quiet "$unit" || return 1
    case "$EPSILON_ROLE" in
        gateway) curl -fsS --max-time 5 -o /dev/null http://127.0.0.1:8081/healthz ;;
        *) [ "$(systemctl show -p NRestarts --value "$unit")" = "$restarts" ] ;;
    esac
}
waited=0 steady=0 restarts=0
until [ "$steady" -ge 10 ]; do
    if ready; then steady=$((steady + 1)); else steady=0; fi
    restarts=$(systemctl show -p NRestarts --value "$unit")
    if [ "$waited" -ge "$READY_LIMIT" ]; then
        journalctl -u "$unit" -u epsilon-aws-secrets -n 30 --no-pager || true
        tail -n 30 "/var/log/epsilon/$EPSILON_ROLE.log" || true
        die "$unit was not ready within $READY_LIMIT s"
    fi
    sleep 1
    waited=$((waited + 1))
done
say "$unit is ready"
