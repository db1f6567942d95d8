"""No text names a setting that is none any more: who follows a hint must not get a program that refuses to start."""

import pathlib
import re
import subprocess
import unittest

import world

PARTS = {"gateway": "gateway", "vm_agent": "vm-agent", "builder": "builder"}
# They speak of earlier settings.
RECORDS = ("CHANGELOG.md", "docs/decisions/", "infra/tests/")


def removed():
    """`section.key` of each setting in the parts' tables of removed names."""
    for section, folder in PARTS.items():
        table = pathlib.Path(world.ROOT, folder, "src/config/removed.rs").read_text()
        for name in re.findall(r'Removed::\w+\(\s*"([a-z_.]+)"', table):
            yield f"{section}.{name}"


def uses(text, names):
    return [name for name in re.findall(r"\b(?:gateway|vm_agent|builder)(?:\.[a-z_]+)+", text) if name in names]


class Settings(unittest.TestCase):
    def test_no_text_names_a_removed_setting(self):
        names = set(removed())
        self.assertGreater(len(names), 60)
        listed = subprocess.run(["git", "ls-files"], cwd=world.ROOT, capture_output=True, text=True, check=True)
        found = []
        for name in listed.stdout.splitlines():
            path = pathlib.Path(world.ROOT, name)
            if name.endswith((".rs", ".md", ".sh", ".yaml", ".py")) and not name.startswith(RECORDS) and path.is_file():
                found += [f"{name}: {use}" for use in uses(path.read_text(), names)]
        self.assertEqual(found, [])
