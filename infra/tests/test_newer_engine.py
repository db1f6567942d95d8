"""The newer engine of the tests: where it comes from (the mirror of the machine's own apt, in either of apt's formats), and
that the tests that are run on it exist."""

import pathlib
import re
import subprocess
import tempfile
import unittest

import world

FETCH = world.INFRA / "newer-engine" / "fetch.sh"
DEBIAN = """\
# a comment
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 -----END PGP PUBLIC KEY BLOCK-----

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm bookworm-updates
Components: main

Types: deb
URIs: https://other.example/apt
Suites: bookworm
Components: main
"""
UBUNTU = """\
deb [arch=amd64 signed-by=/other.gpg] https://other.example/apt noble main
# deb http://commented.example/ubuntu noble main
deb [signed-by=/ubuntu.gpg arch=amd64] http://mirror.example/ubuntu noble main restricted # trailing
deb [arch=amd64] http://mirror.example/ubuntu noble-updates main universe
deb-src http://mirror.example/ubuntu noble main
deb\thttp://security.example/ubuntu noble-security main universe
"""


def sources(os_release, name, text):
    with tempfile.TemporaryDirectory() as folder:
        etc = pathlib.Path(folder)
        (etc / "apt/sources.list.d").mkdir(parents=True)
        (etc / "os-release").write_text(os_release)
        (etc / "apt" / name).write_text(text)
        done = subprocess.run([FETCH, "--sources", etc], capture_output=True, text=True, timeout=30, check=True)
        return done.stdout.splitlines()


class Sources(unittest.TestCase):
    def test_debian_s_mirror_gives_the_packages_of_the_next_release(self):
        found = sources('ID=debian\nVERSION_CODENAME=bookworm\n', "sources.list.d/debian.sources", DEBIAN)
        usual = "/usr/share/keyrings/debian-archive-keyring.gpg"
        self.assertCountEqual(found, [
            "deb [signed-by=/usr/share/keyrings/debian.gpg] http://mirror.example/debian trixie main",
            "deb [signed-by=/usr/share/keyrings/debian.gpg] http://mirror.example/debian trixie-updates main",
            f"deb [signed-by={usual}] http://mirror.example/debian-security trixie-security main"])

    def test_ubuntu_s_gives_those_of_its_own(self):
        found = sources('ID=ubuntu\nUBUNTU_CODENAME="noble"\nVERSION_CODENAME=noble\n', "sources.list", UBUNTU)
        usual = "/usr/share/keyrings/ubuntu-archive-keyring.gpg"
        self.assertCountEqual(found, [
            "deb [signed-by=/ubuntu.gpg] http://mirror.example/ubuntu noble main universe",
            f"deb [signed-by={usual}] http://mirror.example/ubuntu noble-updates main universe",
            f"deb [signed-by={usual}] http://security.example/ubuntu noble-security main universe"])

    def test_without_a_mirror_there_is_none(self):
        self.assertEqual(sources('ID=debian\nVERSION_CODENAME=bookworm\n', "sources.list", "deb cdrom:[x]/ bookworm main\n"), [])


class Chosen(unittest.TestCase):
    """A test that was renamed would fail only at the end of `make test`."""

    def test_each_named_test_exists(self):
        script = (world.INFRA / "newer-engine" / "test.sh").read_text()
        for array, folder in [("cells", "vm-agent/tests/cells"), ("platform", "tests/e2e/tests/platform")]:
            names = re.search(rf"^{array}=\(\n(.*?)^\)", script, re.DOTALL | re.MULTILINE).group(1).split()
            self.assertGreater(len(names), 10)
            for name in names:
                module, test = name.split("::")
                text = (world.ROOT / folder / f"{module}.rs").read_text()
                self.assertIn(f"fn {test}(", text, f"infra/newer-engine/test.sh names {name}")
