"""The arithmetic of infra/aws/cost.py, done by hand; and docs/cost.md shows what it prints."""

import dataclasses
import re
import sys
import unittest

import world

sys.path.insert(0, str(world.INFRA / "aws"))
import cost  # noqa: E402

S = cost.Settings()
NOTHING = cost.Settings(**{field.name: 0 for field in dataclasses.fields(cost.Settings)})
CALLS = cost.Calls("", 0.5, 512)


class Cost(unittest.TestCase):
    def test_lambda_by_hand(self):
        """A million calls of half a second with half a GB: 250,000 GB-seconds and a million requests."""
        self.assertAlmostEqual(cost.on_lambda(S, CALLS, 1e6), 250_000 * 0.0000166667 + 0.20, places=6)
        self.assertAlmostEqual(cost.on_lambda_with_api(S, CALLS, 1e6), 250_000 * 0.0000166667 + 1.20, places=6)

    def test_places_by_memory_and_by_cores(self):
        self.assertEqual(cost.places(S, CALLS, 4, 16), 25)  # 12.8 GiB of halves
        self.assertEqual(cost.places(S, dataclasses.replace(CALLS, mib=128), 4, 16), 32)  # 8 on each core
        together = dataclasses.replace(CALLS, together=10, per_core=1000)
        self.assertEqual(cost.places(S, together, 4, 16), 250)

    def test_vms_follow_the_calls_and_never_go_below_the_minimum(self):
        a_hundred_a_second = 100 * cost.SECONDS  # 50 at once, in 25 places of which 10 are busy
        self.assertAlmostEqual(cost.vms(S, CALLS, a_hundred_a_second), 5)
        self.assertEqual(cost.vms(S, CALLS, 0), S.vm_min)

    def test_an_idle_fleet_by_hand(self):
        machines = 2 * 0.2016 + 2 * 0.08925 + 0.1008
        around = 0.0225 + 0.0225 + 0.045 + 0.064 + 3 * 0.005
        disks = (3 * 60 + 2 * 20) * 0.08 + 20 * 0.23 + 7 * 0.40
        self.assertAlmostEqual(cost.fleet(S, CALLS, 0), (machines + around) * 730 + disks, places=6)
        self.assertAlmostEqual(cost.fleet(S, CALLS, 0, off=0.5), (machines / 2 + around) * 730 + disks, places=6)

    def test_what_a_call_costs_on_its_way(self):
        only = dataclasses.replace(NOTHING, lcu_hour=0.008, log_gb=0.5, answer_kib=100, new_connections=0.2, log_bytes=1000)
        a_million = 1e6 * 102_400 / 1e9 * 0.008 + 1e9 / 1e9 * 0.5  # 102.4 GB, and a GB of logs
        self.assertAlmostEqual(1e6 * cost.per_call(only), a_million, places=6)
        many = dataclasses.replace(only, answer_kib=0, new_connections=1, log_bytes=0)
        self.assertAlmostEqual(1e6 * cost.per_call(many), 1e6 / 90_000 * 0.008, places=6)

    def test_one_machine_ends_where_its_places_end(self):
        self.assertAlmostEqual(cost.one(S, CALLS, 1), (0.1008 + 0.005) * 730 + 60 * 0.08)
        limit = cost.places(S, CALLS, 2, 8) * S.one_used / CALLS.seconds * cost.SECONDS
        self.assertIsNotNone(cost.one(S, CALLS, limit * 0.999))
        self.assertIsNone(cost.one(S, CALLS, limit * 1.001))

    def test_the_break_even_is_where_both_cost_the_same(self):
        at = cost.break_even(cost.fleet, cost.on_lambda, S, CALLS)
        self.assertAlmostEqual(cost.fleet(S, CALLS, at) / cost.on_lambda(S, CALLS, at), 1, places=4)
        self.assertGreater(cost.fleet(S, CALLS, at * 0.9), cost.on_lambda(S, CALLS, at * 0.9))
        dear = dataclasses.replace(S, vm_hour=1000)
        self.assertIsNone(cost.break_even(cost.fleet, cost.on_lambda, dear, CALLS))

    def test_prices_can_be_ones_own_and_wrong_names_are_told(self):
        script = world.INFRA / "aws/cost.py"
        self.assertNotEqual(world.run(script, "--set", "vm_hour=0.1").stdout, world.run(script).stdout)
        done = world.run(script, "--set", "vmhour=1", check=False)
        self.assertEqual(done.returncode, 2)
        self.assertIn("`vmhour` is not known", done.stderr)

    def test_the_page_shows_what_the_script_prints(self):
        page = (world.ROOT / "docs/cost.md").read_text()
        shown = re.search(r"<!-- cost: .*? -->\n(.*?)\n<!-- /cost -->", page, re.S).group(1)
        self.assertEqual(shown, cost.tables(S), "put the output of infra/aws/cost.py between the marks of docs/cost.md")

    def test_the_page_names_each_assumption_with_its_value(self):
        page = (world.ROOT / "docs/cost.md").read_text()
        for field in dataclasses.fields(cost.Settings):
            value = f"{field.default:.10f}".rstrip("0").rstrip(".")
            self.assertIn(f"| `{field.name}` | {value} | {field.metadata['meaning']} |", page)
