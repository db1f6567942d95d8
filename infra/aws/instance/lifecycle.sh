#!/usr/bin/env bash
# Waits until the Auto Scaling group terminates this instance, stops Epsilon's unit (it drains), and completes
# the group's lifecycle action. Run by epsilon-aws-lifecycle.service. Environment: /etc/epsilon/aws.env, written by setup.sh.
#
# On a VM the agent sees the same notice and drains by itself, and the gateway may complete the action first; then
# there is nothing left to do here, and that is fine.
set -euo pipefail

# What AWS advises for looking at the metadata service.
LOOK_EVERY=${EPSILON_AWS_LOOK_EVERY:-5}
# The load balancer needs a moment to stop sending to a target that is deregistered. A gateway that closed its
# listener earlier would refuse calls.
DEREGISTRATION=${EPSILON_AWS_DEREGISTRATION:-30}
METADATA=${AWS_EC2_METADATA_SERVICE_ENDPOINT:-http://169.254.169.254}

say() { printf 'lifecycle: %s\n' "$*"; }

# metadata PATH: fails where there is no answer, or none yet.
metadata() {
    local token
    token=$(curl -fsS --noproxy '*' --max-time 2 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' \
        "$METADATA/latest/api/token") || return 1
    curl -fsS --noproxy '*' --max-time 2 -H "X-aws-ec2-metadata-token: $token" "$METADATA/latest/meta-data/$1"
}

until [ "$(metadata autoscaling/target-lifecycle-state 2>/dev/null)" = Terminated ]; do sleep "$LOOK_EVERY"; done
instance=$(metadata instance-id)

say "the group takes $instance away"
[ "$EPSILON_AWS_ROLE" != gateway ] || sleep "$DEREGISTRATION"
# Returns when the drain is over, or after TimeoutStopSec. Either way there is nothing more to wait for.
systemctl stop "epsilon-$EPSILON_AWS_ROLE.service" || true
aws --region "$EPSILON_AWS_REGION" autoscaling complete-lifecycle-action \
    --auto-scaling-group-name "$EPSILON_AWS_GROUP" --lifecycle-hook-name "$EPSILON_AWS_HOOK" \
    --instance-id "$instance" --lifecycle-action-result CONTINUE ||
    say "the action was completed already, or its time is over"
