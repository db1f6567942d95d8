#!/usr/bin/env bash
# Installs Amazon's CloudWatch agent and has it follow /var/log/epsilon/ROLE.log. Called by setup.sh.
#
#   ship-logs.sh LOG_GROUP ROLE REGION
set -euo pipefail

group=$1 role=$2 region=$3
config=/opt/aws/amazon-cloudwatch-agent/etc/epsilon.json
arch=$(dpkg --print-architecture)
package=$(mktemp --suffix=.deb)
trap 'rm -f "$package"' EXIT

# The same package from the region's own bucket: machines without a way out reach it through S3's endpoint.
curl -fsS --retry 3 --max-time 300 -o "$package" \
    "https://amazoncloudwatch-agent-$region.s3.$region.amazonaws.com/debian/$arch/latest/amazon-cloudwatch-agent.deb"
dpkg --install "$package" >/dev/null

# Log files only: what the machine does, Prometheus sees.
jq -n --arg group "$group" --arg role "$role" '{
    agent: { run_as_user: "root" },
    logs: { logs_collected: { files: { collect_list: [{
        file_path: "/var/log/epsilon/\($role).log",
        log_group_name: $group,
        log_stream_name: "\($role)/{instance_id}"
    }] } } }
}' >"$config"
/opt/aws/amazon-cloudwatch-agent/bin/amazon-cloudwatch-agent-ctl -a fetch-config -m ec2 -s -c "file:$config" >/dev/null
