#!/usr/bin/env python3
"""Writes dashboard.json, Grafana's picture of a fleet: the panels as a table here, the JSON around them made.

    infra/observe/dashboard.py > infra/observe/dashboard.json

A test compares the two, and refuses queries with metrics that no source file declares.
"""

import json
import sys

SOURCE = {"type": "prometheus", "uid": "${source}"}
# The functions that were picked at the top of the page.
F = 'function=~"$function"'

# Rows of panels: title, unit, queries as (legend, expression). Twelve columns a panel, two panels side by side.
ROWS = {
    "Calls": [
        ("Calls a second, by function", "reqps", [
            ("{{function}}", f"topk(15, sum by (function) (rate(epsilon_calls_total{{{F}}}[$__rate_interval])))")]),
        ("Answers, by status", "reqps", [
            ("{{code}}", f"sum by (code) (rate(epsilon_calls_total{{{F}}}[$__rate_interval]))")]),
        ("Errors, by whose fault", "reqps", [
            ("{{fault}} {{code}}", "sum by (fault, code) (rate(epsilon_call_errors_total[$__rate_interval]))")]),
        ("Share of calls that the platform fails (0.1 % promised)", "percentunit", [
            ("5 min", "epsilon:errors:ratio_rate5m"), ("1 h", "epsilon:errors:ratio_rate1h"),
            ("1 day", "epsilon:errors:ratio_rate1d")]),
        ("Time of calls, functions' own work included", "s", [
            (f"p{int(q * 100)}", f"histogram_quantile({q}, sum by (le) (rate(epsilon_call_seconds_bucket{{{F}}}"
                                 "[$__rate_interval])))") for q in (0.5, 0.95, 0.99)]),
        ("Calls that run now; connections", "short", [
            ("calls", "sum(epsilon_in_flight)"), ("connections", "sum(epsilon_connections)")]),
    ],
    "Cold starts": [
        ("Starts a second, by outcome", "ops", [
            ("{{outcome}}", f"sum by (outcome) (rate(epsilon_instance_starts_total{{{F}}}[$__rate_interval]))")]),
        ("Share of calls that start an instance; of starts, those in a cell", "percentunit", [
            ("calls that start one", "epsilon:cold_share:rate5m"), ("starts in a cell", "epsilon:cell_share:rate5m")]),
        ("Median of each phase of a start", "s", [
            ("{{phase}}", "histogram_quantile(0.5, sum by (le, phase) (rate(epsilon_cold_start_seconds_bucket"
                          '{phase!="total"}[$__rate_interval])))')]),
        ("Whole start", "s", [
            (f"p{int(q * 100)}", f"histogram_quantile({q}, sum by (le) (rate(epsilon_cold_start_seconds_bucket"
                                 '{phase="total"}[$__rate_interval])))') for q in (0.5, 0.95, 0.99)]),
        ("Cells: booted containers that wait for code", "short", [("{{state}}", "sum by (state) (epsilon_cells)")]),
        ("Waits for a free place", "s", [
            (f"p{int(q * 100)}", f"histogram_quantile({q}, sum by (le) (rate(epsilon_queue_wait_seconds_bucket"
                                 "[$__rate_interval])))") for q in (0.5, 0.99)]),
        ("Crashes and evictions a second", "ops", [
            ("{{function}} crashed", f"sum by (function) (rate(epsilon_instance_crashes_total{{{F}}}[$__rate_interval])) > 0"),
            ("evictions", "sum(rate(epsilon_evictions_total[$__rate_interval]))")]),
    ],
    "VMs": [
        ("VMs, by state", "short", [
            ("serving", "sum(epsilon:vm:up == bool 1)"),
            ("draining", "sum(epsilon:vm:draining == bool 1)"),
            ("out", "count(epsilon:vm:up == 0 unless on (vm) epsilon:vm:draining == 1) or vector(0)")]),
        ("Autoscaler: VMs wanted, ordered, taking calls", "short", [
            ("wanted", "max(epsilon_autoscaler_wanted_vms)"), ("ordered", "max(epsilon_autoscaler_current_vms)"),
            ("taking calls", "max(epsilon_autoscaler_ready_vms)")]),
        ("Autoscaler: places needed and there", "short", [
            ("needed", "max(epsilon_autoscaler_demand_places)"), ("there", "max(epsilon_autoscaler_places)")]),
        ("Calls that run, by VM", "short", [("{{vm}}", "sum by (vm) (epsilon_vm_in_flight)")]),
        ("Memory of instances, by VM", "percentunit", [
            ("{{instance}}", "epsilon_vm_memory_used_bytes / epsilon_vm_memory_bytes")]),
        ("Instances, by state", "short", [("{{state}}", f"sum by (state) (epsilon_instances{{{F}}})")]),
    ],
    "Where calls go": [
        ("Placements: how far from the function's home", "ops", [
            ("{{position}}", "sum by (position) (rate(epsilon_placements_total[$__rate_interval]))")]),
        ("Placements: what the VM held of the function", "ops", [
            ("{{held}}", "sum by (held) (rate(epsilon_placements_total[$__rate_interval]))")]),
        ("VMs passed over, by reason", "ops", [
            ("{{reason}}", "sum by (reason) (rate(epsilon_placement_passed_over_total[$__rate_interval]))")]),
        ("Retries, done and denied", "ops", [
            ("{{reason}}", "sum by (reason) (rate(epsilon_retries_total[$__rate_interval]))"),
            ("denied: {{reason}}", "sum by (reason) (rate(epsilon_retries_denied_total[$__rate_interval]))")]),
    ],
    "Deployments, the engine, the store": [
        ("Deployments an hour", "short", [
            ("{{state}}", "sum by (state) (increase(epsilon_deployments_total[1h]))")]),
        ("The engine's answers, p95", "s", [
            ("{{call}}", "histogram_quantile(0.95, sum by (le, call) (rate(epsilon_engine_call_seconds_bucket"
                         "[$__rate_interval])))")]),
        ("Gateways that reach the store", "short", [("reach it", "sum(epsilon_store_up)"), ("gateways", "count(epsilon_store_up)")]),
    ],
    "Machines": [
        ("Disk left", "percentunit", [
            ("{{instance}} {{folder}}", "epsilon_disk_free_bytes / epsilon_disk_size_bytes")]),
        ("Certificates: days left", "d", [
            ("{{instance}} {{certificate}}", "(epsilon_tls_certificate_not_after_seconds - time()) / 86400")]),
        ("Programs, by version", "short", [("{{job}} {{version}}", "count by (job, version) (epsilon_build_info)")]),
        ("Memory of the programs", "bytes", [("{{job}} {{instance}}", 'process_resident_memory_bytes{job=~"epsilon-.*"}')]),
        ("Changes and refused keys an hour", "short", [
            ("{{action}} {{outcome}}", "sum by (action, outcome) (increase(epsilon_control_actions_total[1h])) > 0"),
            ("refused at {{door}}", "sum by (door) (increase(epsilon_auth_failed_total[1h]))")]),
        ("Log lines that were lost, a second", "ops", [
            ("{{function}}", f"sum by (function) (rate(epsilon_log_lines_dropped_total{{{F}}}[$__rate_interval])) > 0"),
            ("own log of {{job}} {{instance}}", "sum by (job, instance) (rate(epsilon_own_log_lines_lost_total[$__rate_interval])) > 0")]),
    ],
}


def panel(number, title, unit, queries, x, y):
    return {
        "id": number, "type": "timeseries", "title": title, "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": 12, "h": 8},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0, "custom": {"fillOpacity": 10, "showPoints": "never"}},
                        "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [{"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
                    for index, (legend, expression) in enumerate(queries)],
    }


def dashboard():
    panels, number, y = [], 0, 0
    for row, titles in ROWS.items():
        number += 1
        panels.append({"id": number, "type": "row", "title": row, "collapsed": False, "panels": [],
                       "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}})
        y += 1
        for index, (title, unit, queries) in enumerate(titles):
            number += 1
            panels.append(panel(number, title, unit, queries, 12 * (index % 2), y))
            y += 8 * (index % 2)
        y += 8 * (len(titles) % 2)
    choice = {"type": "query", "datasource": SOURCE, "refresh": 2, "multi": True, "includeAll": True, "allValue": ".*",
              "name": "function", "label": "function", "current": {"text": "All", "value": "$__all"},
              "query": "label_values(epsilon_calls_total, function)"}
    source = {"type": "datasource", "name": "source", "label": "Prometheus", "query": "prometheus", "current": {}}
    return {
        "uid": "epsilon-fleet", "title": "Epsilon", "tags": ["epsilon"], "schemaVersion": 39, "editable": True,
        "refresh": "30s", "time": {"from": "now-3h", "to": "now"}, "timezone": "browser",
        "templating": {"list": [source, choice]}, "annotations": {"list": []}, "panels": panels,
    }


if __name__ == "__main__":
    json.dump(dashboard(), sys.stdout, indent=1, ensure_ascii=False)
    print()
