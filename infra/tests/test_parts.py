"""`make test` names the programs of the end-to-end tests, because some run beside others: none may be forgotten."""

import re
import unittest

import world


class Parts(unittest.TestCase):
    def test_each_end_to_end_program_is_run_once(self):
        folder = world.ROOT / "tests/e2e/tests"
        programs = {path.stem for path in folder.glob("*.rs")} | {path.parent.name for path in folder.glob("*/main.rs")}
        script = (world.INFRA / "test.sh").read_text()
        self.assertCountEqual(re.findall(r"--test ([a-z_]+)", script), programs)
