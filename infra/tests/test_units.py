"""The systemd units: systemd itself reads them, and says how open they are."""

import pathlib
import re
import tempfile
import unittest

import world

SYSTEMD = world.INFRA / "systemd"
# Highest exposure that `systemd-analyze security` may give, of 10. The agent and the builder are root on purpose; what
# they cannot close, and why, stands in their units.
EXPOSURE = {
    "epsilon.service": 6.5, "epsilon-gateway.service": 1.5, "epsilon-vm-agent.service": 5.5, "epsilon-builder.service": 6.5}
# Who goes last when a machine is short of memory. What runs functions goes after its functions.
OOM_SCORE = {"epsilon.service": "-900", "epsilon-vm-agent.service": "-900"}


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(ms|s|m|min|)", text).groups()
    return int(number) * {"ms": 0.001, "s": 1, "": 1, "m": 60, "min": 60}[unit]


def setting(unit, key):
    return re.findall(rf"^{key}=(.*)$", (SYSTEMD / unit).read_text(), re.M)


class Units(unittest.TestCase):
    def test_systemd_takes_them(self):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            for program in world.PROGRAMS:
                (root / program).write_text("#!/bin/sh\n")
                (root / program).chmod(0o755)
            for path in [*SYSTEMD.glob("*.service"), *SYSTEMD.glob("*.socket"), *(world.INFRA / "aws/instance").glob("*.service")]:
                text = path.read_text().replace("/usr/local/bin", folder)
                text = re.sub(r"/usr/local/lib/epsilon/aws/\w+\.sh", f"{folder}/epsilon", text)
                (root / path.name).write_text(text)
            for path in [*root.glob("*.service"), *root.glob("*.socket")]:
                done = world.run("systemd-analyze", "verify", "--man=no", path, check=False)
                # It speaks of units of this machine too, and of the engine's, which may not be installed.
                ours = [line for line in done.stderr.splitlines() if "epsilon" in line and "docker.service" not in line]
                self.assertEqual(ours, [], path.name)

    def test_they_are_as_closed_as_promised(self):
        for unit, most in EXPOSURE.items():
            done = world.run(
                "systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={round(most * 10)}",
                SYSTEMD / unit, check=False)
            self.assertEqual(done.returncode, 0, f"{unit} is more open than {most}:\n{done.stdout[-400:]}{done.stderr}")

    def test_functions_are_killed_for_memory_before_what_runs_them(self):
        for unit, score in OOM_SCORE.items():
            self.assertEqual(setting(unit, "OOMScoreAdjust"), [score], unit)

    def test_what_they_write_is_nobody_elses(self):
        for unit in ["epsilon.service", "epsilon-vm-agent.service"]:
            self.assertEqual(setting(unit, "UMask"), ["0077"], unit)
            self.assertEqual(setting(unit, "StateDirectoryMode"), ["0700"], unit)

    def test_a_drain_ends_before_systemds_patience(self):
        """Each part's grace, as its settings declare it, and the removal of what it made on the engine after it: of instances
        four times the limit (`vm-agent/src/shutdown.rs`), of what is left once."""
        page = (world.ROOT / "docs/config.md").read_text()

        def default(name):
            return seconds(re.search(rf"`{name}` \| `(\w+)` \|", page).group(1))

        for unit, grace in [("epsilon", "gateway"), ("epsilon-gateway", "gateway"), ("epsilon-vm-agent", "vm_agent"),
                            ("epsilon-builder", "builder")]:
            stop_timeout = seconds(setting(f"{unit}.service", "TimeoutStopSec")[0])
            removals = 5 if unit in ("epsilon", "epsilon-vm-agent") else 1
            self.assertGreater(stop_timeout, default(f"{grace}.drain_grace") + removals * default("vm_agent.remove_timeout"), unit)

    def test_sockets_have_the_names_that_the_programs_know_and_the_default_addresses(self):
        for service in ["epsilon", "epsilon-gateway"]:
            for name, port in [("calls", 8080), ("control", 8081)]:
                unit = f"{service}-{name}.socket"
                self.assertEqual(setting(unit, "FileDescriptorName"), [name], unit)
                self.assertEqual(setting(unit, "Service"), [f"{service}.service"], unit)
                self.assertEqual(setting(unit, "ListenStream"), [f"127.0.0.1:{port}"], unit)

    def test_tokens_are_neither_arguments_nor_environment(self):
        for unit, token in [("epsilon-vm-agent.service", "fleet.token"), ("epsilon-builder.service", "builder.token")]:
            self.assertEqual(setting(unit, "LoadCredential"), [f"{token}:/etc/epsilon/{token}"])
            self.assertIn(f"--token-file %d/{token}", (SYSTEMD / unit).read_text())

    def test_wrong_settings_are_not_tried_for_ever_and_all_else_is(self):
        for unit in world.UNITS[1:]:
            self.assertEqual(setting(unit, "RestartPreventExitStatus"), ["2"])
            self.assertEqual(setting(unit, "Restart"), ["always"])
            self.assertEqual(setting(unit, "StartLimitIntervalSec"), ["0"])
