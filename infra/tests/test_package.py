"""The release package: packed twice it is the same; installed it is whole, twice too, and over a running program."""

import pathlib
import subprocess
import tempfile
import unittest

import world


class Package(unittest.TestCase):
    def setUp(self):
        held = tempfile.TemporaryDirectory(prefix="epsilon-package-test.")
        self.addCleanup(held.cleanup)
        self.dir = pathlib.Path(held.name)
        self.bin = world.programs(self.dir / "bin")

    def tree(self, version="0.0.1"):
        return world.unpack(world.package(self.dir / "out", self.bin, version), self.dir / f"tree-{version}")

    def install(self, tree, *words, check=True):
        return world.run(tree / "install.sh", *words, check=check)

    def test_the_same_programs_give_the_same_bytes(self):
        first = world.package(self.dir / "first", self.bin)
        for program in world.PROGRAMS:  # other times, other order on disk
            (self.bin / program).touch()
        second = world.package(self.dir / "second", self.bin)
        self.assertEqual(first.read_bytes(), second.read_bytes())
        self.assertEqual(first.name, "epsilon-0.0.1-linux-amd64.tar.gz")
        world.run("sha256sum", "--check", first.name + ".sha256", cwd=first.parent)

    def test_it_holds_what_a_machine_needs_of_one_time_and_no_owner(self):
        archive = world.package(self.dir / "out", self.bin)
        listed = world.run("tar", "--numeric-owner", "--full-time", "-tvzf", archive, env={"TZ": "UTC"}).stdout.splitlines()
        self.assertEqual({line.split()[1] for line in listed}, {"0/0"})
        self.assertEqual({" ".join(line.split()[3:5]) for line in listed}, {"2023-11-14 22:13:20"}, "SOURCE_DATE_EPOCH")
        names = {line.split()[-1].split("/", 1)[1] for line in listed}
        for name in [*(f"bin/{program}" for program in world.PROGRAMS), *(f"systemd/{unit}" for unit in [*world.UNITS, *world.SOCKETS]),
                     "install.sh", "ensure-docker.sh", "LICENSE", "VERSION", "SHA256SUMS", "aws/setup.sh"]:
            self.assertIn(name, names)

    def test_versions_that_would_leave_the_folder_are_refused(self):
        for version in ["", "../x", "a/b", "-v", "1 2", "x" * 99]:
            done = world.run(world.INFRA / "package.sh", version, "--bin", self.bin, "--out", self.dir, check=False)
            self.assertEqual(done.returncode, 1, version)
            self.assertIn("usage", done.stderr)

    def test_folders_are_the_callers(self):
        world.run(world.INFRA / "package.sh", "1", "--bin", "bin", "--out", "here", cwd=self.dir)
        self.assertTrue((self.dir / "here/epsilon-1-linux-amd64.tar.gz").is_file())

    def test_a_missing_program_is_named(self):
        (self.bin / "epsilon-builder").unlink()
        done = world.run(world.INFRA / "package.sh", "1", "--bin", self.bin, "--out", self.dir, check=False)
        self.assertIn("epsilon-builder is not there", done.stderr)

    def test_installed_into_a_root_twice(self):
        tree, root = self.tree(), self.dir / "root"
        self.install(tree, "--root", root)
        settings = root / "etc/epsilon/epsilon.yaml"
        settings.write_text("gateway: {}\n")
        self.install(tree, "--root", root)
        self.assertEqual(settings.read_text(), "gateway: {}\n", "an operator's settings are his own")
        for program in world.PROGRAMS:
            path = root / "usr/local/bin" / program
            self.assertEqual(path.read_bytes(), (self.bin / program).read_bytes())
            self.assertEqual(path.stat().st_mode & 0o777, 0o755)
        for unit in [*world.UNITS, *world.SOCKETS]:
            self.assertTrue((root / "usr/local/lib/systemd/system" / unit).is_file())
        users = (root / "etc/passwd").read_text().splitlines()
        self.assertEqual(sum(line.startswith("epsilon:") for line in users), 1)
        self.assertEqual([str(path) for path in root.rglob("*.new")], [])

    def test_units_follow_the_prefix(self):
        root = self.dir / "root"
        self.install(self.tree(), "--root", root, "--prefix", "/opt/epsilon/")
        unit = (root / "opt/epsilon/lib/systemd/system/epsilon-gateway.service").read_text()
        self.assertIn("ExecStart=/opt/epsilon/bin/epsilon-gateway ", unit)
        self.assertNotIn("/usr/local/bin", unit)

    def test_another_version_is_installed_over_a_running_program(self):
        root = self.dir / "root"
        (self.bin / "epsilon").write_bytes(pathlib.Path("/bin/sleep").resolve().read_bytes())
        self.install(self.tree("1"), "--root", root)
        running = subprocess.Popen([root / "usr/local/bin/epsilon", "60"])
        self.addCleanup(running.wait)
        self.addCleanup(running.kill)
        world.programs(self.bin)
        self.install(self.tree("2"), "--root", root)
        self.assertIsNone(running.poll())
        self.assertEqual((root / "usr/local/share/doc/epsilon/VERSION").read_text(), "2\n")

    def test_a_damaged_package_changes_nothing(self):
        tree, root = self.tree(), self.dir / "root"
        with (tree / "bin/epsilon").open("ab") as program:
            program.write(b"!")
        done = self.install(tree, "--root", root, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("the package is damaged", done.stderr)
        self.assertFalse(root.exists())

    def test_programs_of_another_machine_are_told_before_anything_is_put(self):
        done = self.install(self.tree(), "--prefix", str(self.dir / "prefix"), check=False)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, "do not run on this machine|needs root")
        self.assertFalse((self.dir / "prefix").exists())
