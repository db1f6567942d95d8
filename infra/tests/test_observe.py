"""Prometheus and Grafana: promtool reads configuration and rules and plays the alerts; every metric that is queried is
one that the code declares, with the labels that it has; every alert has its place in the runbook."""

import json
import pathlib
import re
import shutil
import sys
import tempfile
import unittest

import yaml

import world

OBSERVE = world.INFRA / "observe"
sys.path.insert(0, str(OBSERVE))
import dashboard  # noqa: E402

RULES = [OBSERVE / "rules" / name for name in ["recording.yml", "alerts.yml"]]
# What PromQL says itself, and labels that Prometheus gives.
GIVEN_LABELS = {"le", "job", "instance", "zone"}


def declared():
    """Metrics of the source files with their labels: `Opts::new("epsilon_x"`, or `gauge("x"` where the file makes its
    names of a prefix, and the list of labels after it; where none follows, all labels of the file will do."""
    found = {}
    for path in world.ROOT.glob("*/src/**/*.rs"):
        text = path.read_text().split("#[cfg(test)]")[0]
        prefix = re.search(r'format!\("(epsilon_\w*)\{name\}"', text)
        names = [(one.group(1), one.end()) for one in re.finditer(r'"(epsilon_[a-z_]+)"', text)]
        if prefix:
            made = re.finditer(r'\b[a-z_]+\(\s*"([a-z_]+)"', text)
            names += [(prefix.group(1) + one.group(1), one.end()) for one in made]
        lists = r'&?\[((?:\s*"[a-z_]+",?)+)\s*\]'
        for name, end in names:
            # Up to where the next one is made.
            rest = text[end:min([start for _, start in names if start > end] or [len(text)])]
            labels = re.search(lists, rest)
            words = labels.group(1) if labels else " ".join(re.findall(lists, text))
            found.setdefault(name, set()).update(re.findall(r'"([a-z_]+)"', words))
    # Made for each VM by one line for all; see gateway/src/observe/fleet.rs.
    for name in re.findall(r'"(epsilon_vm_\w+)"', (world.ROOT / "gateway/src/observe/fleet.rs").read_text()):
        found[name] = {"vm"}
    return found


def rules():
    return [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def queries():
    """All queries to Prometheus, by their place."""
    for rule in rules():
        yield rule.get("alert") or rule["record"], rule["expr"]
    for titles in dashboard.ROWS.values():
        for title, _, expressions in titles:
            for _, expression in expressions:
                yield title, expression.replace("$__rate_interval", "5m").replace('=~"$function"', '=~".*"')


class Observe(unittest.TestCase):
    def test_promtool_takes_the_configuration(self):
        """With the keys that the operator puts beside it."""
        with tempfile.TemporaryDirectory() as folder:
            there = pathlib.Path(folder) / "observe"
            shutil.copytree(OBSERVE, there)
            for key in ["admin.key", "metrics.key"]:
                (there / key).write_text("secret")
            world.run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=a", "-keyout", "/dev/null",
                      "-out", there / "authority.pem")
            for name in ["prometheus-static.yml", "prometheus-ec2.yml"]:
                world.run("promtool", "check", "config", name, cwd=there)

    def test_promtool_takes_the_rules_and_plays_them(self):
        world.run("promtool", "check", "rules", "--lint=all", "--lint-fatal", *RULES)
        world.run("promtool", "test", "rules", "alerts.test.yml", cwd=OBSERVE / "rules")

    def test_each_alert_is_played_in_both_ways_or_at_least_one(self):
        played = {test["alertname"] for one in yaml.safe_load((OBSERVE / "rules/alerts.test.yml").read_text())["tests"]
                  for test in one["alert_rule_test"] if test["exp_alerts"]}
        alerts = {rule["alert"] for rule in rules() if "alert" in rule}
        # This is the same query as another one, with another share.
        self.assertEqual(alerts - played, {"EpsilonVmsOut"})

    def test_queries_ask_for_what_the_code_declares(self):
        metrics = declared()
        self.assertGreater(len(metrics), 25)
        recorded = {rule["record"] for rule in rules() if "record" in rule}
        for where, expression in queries():
            for name in re.findall(r"\bepsilon:[\w:]+", expression):
                self.assertIn(name, recorded, where)
            for name, selector in re.findall(r"\b(epsilon_\w+)(?:\{([^}]*)\})?", expression):
                base = name if name in metrics else re.sub("_(bucket|count|sum)$", "", name)
                self.assertIn(base, metrics, where)
                labels = set(re.findall(r"(\w+)\s*[=!]", selector or ""))
                self.assertLessEqual(labels, metrics[base] | GIVEN_LABELS, f"{where}: {name}")

    def test_sums_are_by_labels_that_there_are(self):
        metrics = declared()
        everything = set().union(*metrics.values()) | GIVEN_LABELS
        for where, expression in queries():
            for labels in re.findall(r"\b(?:by|on) \(([\w, ]*)\)", expression):
                self.assertLessEqual({one.strip() for one in labels.split(",")} - {""}, everything, where)

    def test_bounds_of_histograms_are_bounds_that_there_are(self):
        bounds = set()
        for path in ["gateway/src/observe/metrics.rs", "vm-agent/src/metrics.rs"]:
            for table in re.findall(r"SECONDS: \[f64; \d+\] =\s*\[([^\]]*)\]", (world.ROOT / path).read_text()):
                bounds |= {float(one) for one in table.replace("\n", "").split(",") if one.strip()}
        for where, expression in queries():
            for bound in re.findall(r'le="([\d.]+)"', expression):
                self.assertIn(float(bound), bounds, where)

    def test_promtool_takes_the_dashboards_queries(self):
        text = yaml.safe_dump({"groups": [{"name": "dashboard", "rules": [
            {"record": f"panel:{index}", "expr": expression} for index, (_, expression) in enumerate(queries())]}]})
        world.run("promtool", "check", "rules", "/dev/stdin", stdin=text)

    def test_the_dashboard_is_what_its_table_makes(self):
        written = json.loads((OBSERVE / "dashboard.json").read_text())
        self.assertEqual(written, dashboard.dashboard(), "run: infra/observe/dashboard.py > infra/observe/dashboard.json")

    def test_panels_do_not_overlap(self):
        taken = set()
        for panel in dashboard.dashboard()["panels"]:
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            self.assertFalse(cells & taken, panel["title"])
            taken |= cells

    def test_each_alert_has_its_place_in_the_runbook(self):
        headings = {re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
                    for line in (world.ROOT / "docs/operate.md").read_text().splitlines() if line.startswith("#")}
        for rule in rules():
            if "alert" in rule:
                page, heading = rule["annotations"]["runbook_url"].split("#")
                self.assertEqual(page, "{{ $externalLabels.epsilon_docs }}/operate.md")
                self.assertIn(heading, headings, rule["alert"])
