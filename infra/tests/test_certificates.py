"""Certificates that machines of the AWS stack give themselves (aws/instance/certificates.sh): each machine is a root folder,
Secrets Manager and the parameter are moto's, and OpenSSL says who would be trusted by whom."""

import concurrent.futures
import os
import shutil
import unittest
from unittest import mock

import boto3

import test_instance
import world

CONTROL = "fleet-control-0123.elb.us-east-1.amazonaws.com"
PARAMETER = "/epsilon/fleet/authority"
GATEWAY, OTHER_GATEWAY, VM, BUILDER = "10.80.0.9", "10.80.1.9", "10.80.0.20", "10.80.0.30"
ROLES = {GATEWAY: "gateway", OTHER_GATEWAY: "gateway", VM: "vm-agent", BUILDER: "builder"}


class Certificates(test_instance.Machine):
    def setUp(self):
        super().setUp()
        self.parameters = boto3.client("ssm", endpoint_url=self.endpoint, region_name="us-east-1")
        self.parameters.put_parameter(Name=PARAMETER, Value="not published yet", Type="String", Overwrite=True)
        self.first = self.version()
        self.tokens = {"FLEET_TOKEN_SECRET": self.secret("0a" * 32), "BUILDER_TOKEN_SECRET": self.secret("0d" * 32),
                       "METRICS_KEY_SECRET": self.secret("0e" * 32), "ADMIN_KEY_SECRET": self.secret("0b" * 32)}
        # As Secrets Manager makes them.
        self.gateways, self.members = self.secret(os.urandom(32).hex()), self.secret(os.urandom(32).hex())
        held = self.dir / "tmp"
        held.mkdir()
        changed = mock.patch.dict(os.environ, {"TMPDIR": str(held)})
        changed.start()
        self.addCleanup(changed.stop)

    def version(self):
        return self.parameters.get_parameter(Name=PARAMETER)["Parameter"]["Version"]

    def folder(self, address):
        return self.dir / address / "etc/epsilon"

    def start(self, address, check=True, alone=True, **env):
        """What comes before a start of the machine's unit. A member does not know which secret signs gateways. Not `alone`: another
        one starts at the same time, and its keys that sign may lie about."""
        self.folder(address).mkdir(parents=True, exist_ok=True)
        role = ROLES[address]
        if role == "gateway":
            env = {"GATEWAY_AUTHORITY_SECRET": self.gateways, "CONTROL_NAME": CONTROL, **env}
        env = {**self.tokens, "AUTHORITY_PARAMETER": PARAMETER, "MEMBER_AUTHORITY_SECRET": self.members, "ADDRESS": address, **env}
        done = self.fetch(role, check=check, root=self.dir / address, **env)
        if alone:
            self.assertEqual(list((self.dir / "tmp").iterdir()), [], "keys that sign are left")
        return done

    def trusts(self, one, other, *options):
        """Whether the machine `one` speaks with the machine `other`, whatever it is reached by."""
        done = world.run("openssl", "verify", "-CAfile", self.folder(one) / "authority.pem", "-no-CApath", "-no-CAstore", *options,
                         self.folder(other) / "own.pem", check=False)
        return done.returncode == 0

    def serial(self, address):
        return world.run("openssl", "x509", "-noout", "-serial", "-in", self.folder(address) / "own.pem").stdout

    def test_gateways_that_start_at_once_come_to_one_authority(self):
        # They meet where they have read the parameter and have not written it yet.
        meet = self.commands / "openssl"
        meet.write_text(f'''#!/bin/bash
if [[ "$*" == *-checkend* || "$1" == storeutl ]] && [ ! -e "$EPSILON_SETUP_ROOT/met" ]; then
    touch "$EPSILON_SETUP_ROOT/met"
    for _ in $(seq 500); do [ "$(ls {self.dir}/*/met | wc -l)" = 2 ] && break; read -rt 0.02 <> <(:) || true; done
fi
exec {shutil.which("openssl")} "$@"
''')
        meet.chmod(0o755)
        with concurrent.futures.ThreadPoolExecutor() as both:
            for one in [both.submit(self.start, address, alone=False) for address in [GATEWAY, OTHER_GATEWAY]]:
                one.result()
        self.assertEqual(self.version(), self.first + 2, "both wrote")
        self.assertEqual(list((self.dir / "tmp").iterdir()), [], "keys that sign are left")
        meet.unlink()
        for address in [VM, BUILDER]:
            self.start(address)
        for address in [GATEWAY, OTHER_GATEWAY]:
            for other in [address, VM, BUILDER]:
                self.assertTrue(self.trusts(other, address), f"{other}, {address}")
                self.assertTrue(self.trusts(address, other), f"{address}, {other}")

    def test_names_in_them_are_those_by_which_machines_are_reached(self):
        for address in [GATEWAY, VM, BUILDER]:
            self.start(address)
        for other in [GATEWAY, VM, BUILDER]:
            for reached in [("-verify_ip", GATEWAY), ("-verify_hostname", CONTROL), ("-verify_hostname", "localhost")]:
                self.assertTrue(self.trusts(other, GATEWAY, *reached), reached)
            self.assertFalse(self.trusts(other, GATEWAY, "-verify_ip", OTHER_GATEWAY))
        for address in [VM, BUILDER]:
            self.assertTrue(self.trusts(GATEWAY, address, "-verify_ip", address))
            self.assertFalse(self.trusts(GATEWAY, address, "-verify_ip", GATEWAY))
            for purpose in ["sslserver", "sslclient"]:
                self.assertTrue(self.trusts(GATEWAY, address, "-purpose", purpose, "-x509_strict"), purpose)

    def test_who_signs_a_vm_makes_no_gateway(self):
        for address in [GATEWAY, VM, BUILDER]:
            self.start(address)
        self.assertFalse(self.trusts(BUILDER, VM))
        self.assertFalse(self.trusts(VM, BUILDER))
        self.assertFalse(self.trusts(VM, VM))

    def test_files_are_readable_by_whom_they_are_for(self):
        for address in [GATEWAY, VM]:
            self.start(address)
            folder = self.folder(address)
            modes = {name: (folder / name).stat().st_mode & 0o777 for name in ["own.key", "own.pem", "authority.pem"]}
            self.assertEqual(modes, {"own.key": 0o600, "own.pem": 0o644, "authority.pem": 0o644})
            self.assertFalse([path.name for path in folder.iterdir() if path.suffix in [".new", ".public"]])
            key = world.run("openssl", "pkey", "-in", folder / "own.key", "-pubout").stdout
            self.assertEqual(world.run("openssl", "x509", "-in", folder / "own.pem", "-noout", "-pubkey").stdout, key)
        given = [line for line in (self.commands / "chown.words").read_text().splitlines() if "own.key" in line]
        self.assertEqual(given, [f"epsilon:epsilon {self.folder(GATEWAY)}/own.key.new"])

    def test_each_start_renews_and_publishes_once(self):
        self.start(GATEWAY)
        first, key = self.serial(GATEWAY), (self.folder(GATEWAY) / "own.key").read_text()
        done = world.run("openssl", "x509", "-noout", "-checkend", str(364 * 24 * 3600), "-in", self.folder(GATEWAY) / "own.pem")
        self.assertEqual(done.returncode, 0)
        self.start(GATEWAY)
        self.assertNotEqual(self.serial(GATEWAY), first)
        self.assertEqual((self.folder(GATEWAY) / "own.key").read_text(), key)
        self.assertEqual(self.version(), self.first + 1)

    def test_an_authority_that_is_about_to_end_is_published_anew(self):
        scripts = self.dir / "scripts"
        shutil.copytree(test_instance.SCRIPTS, scripts)
        script = scripts / "certificates.sh"
        short = script.read_text().replace("AUTHORITY_DAYS=3650", "AUTHORITY_DAYS=300")
        self.assertNotEqual(short, script.read_text())
        script.write_text(short)
        with mock.patch.object(test_instance, "SCRIPTS", scripts):
            self.start(GATEWAY)
        self.start(VM)
        self.start(OTHER_GATEWAY)
        self.assertEqual(self.version(), self.first + 2)
        self.assertTrue(self.trusts(VM, OTHER_GATEWAY), "it is the same authority")

    def test_a_vm_that_is_there_before_any_gateway_fails(self):
        done = self.start(VM, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("no gateway has published the authority yet", done.stderr)
        self.assertEqual(list(self.folder(VM).iterdir()), [])

    def test_an_authority_is_replaced_without_a_moment_of_distrust(self):
        """docs/operate.md, "Rotate keys": all machines start again after each step, gateways first."""
        fleet = [GATEWAY, VM]

        def all_speak():
            for one, other in [(VM, GATEWAY), (GATEWAY, VM)]:
                self.assertTrue(self.trusts(one, other), f"{one}, {other}")

        for address in fleet:
            self.start(address)
        both = [(secret, self.store.get_secret_value(SecretId=secret)["SecretString"], os.urandom(32).hex())
                for secret in [self.gateways, self.members]]
        for step in ["{new} {old}", "{old} {new}", "{new}"]:
            for secret, old, new in both:
                self.store.put_secret_value(SecretId=secret, SecretString=step.format(old=old, new=new))
            for address in fleet:
                self.start(address)
                all_speak()

    def test_without_aws_a_restart_keeps_what_is_here(self):
        self.start(GATEWAY)
        self.start(VM)
        for address in [GATEWAY, VM]:
            before = {path.name: path.read_bytes() for path in self.folder(address).iterdir()}
            self.start(address, endpoint="http://127.0.0.1:9")
            self.assertEqual({path.name: path.read_bytes() for path in self.folder(address).iterdir()}, before)

    def test_a_secret_that_is_no_key_is_refused_and_not_printed(self):
        for text in ["hunter2", "  ", "0a" * 31]:
            self.store.put_secret_value(SecretId=self.members, SecretString=text)
            done = self.start(GATEWAY, check=False)
            self.assertEqual(done.returncode, 1, text)
            self.assertIn("the secret of the members' authority is", done.stderr)
            self.assertNotIn(text, done.stderr + done.stdout)
            self.assertEqual(list(self.folder(GATEWAY).iterdir()), [])


if __name__ == "__main__":
    unittest.main()
