"""What runs on the machines of the AWS stack: setup into a root folder, secrets from moto's Secrets Manager, the wait for
the group's notice against a metadata service of the test's own. `systemctl` is a script that writes down its words. What
machines make of their certificates: test_certificates.py."""

import http.server
import os
import pathlib
import pwd
import tempfile
import threading
import unittest

import boto3
import yaml
from moto.server import ThreadedMotoServer

import world

SCRIPTS = world.INFRA / "aws" / "instance"
GIVEN = {
    "EPSILON_REGION": "us-east-1", "EPSILON_ADDRESS": "10.80.0.9", "EPSILON_FLEET_TOKEN_SECRET": "arn:fleet", "EPSILON_BUILDER_TOKEN_SECRET": "arn:builder", "EPSILON_METRICS_KEY_SECRET": "arn:metrics", "EPSILON_LONGEST_CALL": "900s",
    "EPSILON_DRAIN_GRACE": "915s", "EPSILON_STOP_LIMIT": "1025s", "EPSILON_GROUP": "fleet-x", "EPSILON_HOOK": "drain",
    "EPSILON_AUTHORITY_PARAMETER": "/epsilon/x/authority", "EPSILON_MEMBER_AUTHORITY_SECRET": "arn:members",
}
ROLES = {
    "gateway": {
        "EPSILON_ADMIN_KEY_SECRET": "arn:admin", "EPSILON_KEEP_ALIVE": "940s", "EPSILON_VPC_CIDR": "10.0.0.0/16", "EPSILON_VM_GROUP": "fleet-vms",
        "EPSILON_VM_MIN": "2", "EPSILON_VM_MAX": "10", "EPSILON_PUBLIC_URL": "https://fn.example.org",
        "EPSILON_GATEWAY_AUTHORITY_SECRET": "arn:gateways", "EPSILON_CONTROL_NAME": "control",
    },
    "vm-agent": {"EPSILON_JOIN": "control:8081", "EPSILON_VPC_CIDR": "10.80.0.0/16"},
    "builder": {
        "EPSILON_JOIN": "control:8081", "EPSILON_VPC_CIDR": "10.80.0.0/16",
        "EPSILON_REGISTRY": "1.dkr.ecr.us-east-1.amazonaws.com/epsilon",
    },
}


class Folder(unittest.TestCase):
    def setUp(self):
        held = tempfile.TemporaryDirectory(prefix="epsilon-instance-test.")
        self.addCleanup(held.cleanup)
        self.dir = pathlib.Path(held.name)
        self.root = self.dir / "root"


class Setup(Folder):
    def setUp(self):
        super().setUp()
        self.tree = world.unpack(world.package(self.dir / "out", world.programs(self.dir / "bin")), self.dir / "tree")

    def setup(self, role, check=True, **changed):
        env = {**GIVEN, **ROLES.get(role, {}), "EPSILON_ROLE": role, "EPSILON_SETUP_ROOT": str(self.root), **changed}
        return world.run(self.tree / "aws/setup.sh", env=env, check=check)

    def settings(self):
        return yaml.safe_load((self.root / "etc/epsilon/epsilon.yaml").read_text())

    def test_each_role_gets_settings_that_its_program_declares(self):
        known = world.settings_page()
        for role in ROLES:
            self.setup(role)
            for section, keys in self.settings().items():
                for key, value in keys.items():
                    names = [f"{key}.{inner}" for inner in value] if isinstance(value, dict) else [key]
                    for name in names:
                        self.assertIn(f"{section}.{name}", known, role)

    def test_parts_speak_tls_unless_the_stack_is_without(self):
        names = ["tls_certificate", "tls_key", "tls_authority"]
        for role, section, key, address in [("gateway", "gateway", "control_url", "10.80.0.9:8081"),
                                            ("vm-agent", "vm_agent", "gateways", "control:8081"),
                                            ("builder", "builder", "gateways", "control:8081")]:
            self.setup(role)
            settings = self.settings()[section]
            self.assertEqual([settings[name] for name in names],
                             [f"/etc/epsilon/{name}" for name in ["own.pem", "own.key", "authority.pem"]], role)
            self.assertEqual(settings[key], f"https://{address}")
            self.assertEqual(settings.get("listen_tls", False), role == "gateway")
            self.setup(role, EPSILON_AUTHORITY_PARAMETER="")
            settings = self.settings()[section]
            self.assertFalse([name for name in ["listen_tls", *names] if name in settings], role)
            self.assertEqual(settings[key], f"http://{address}")

    def test_a_second_setup_changes_nothing(self):
        self.setup("vm-agent")
        first = {path: path.read_bytes() for path in self.root.rglob("*") if path.is_file()}
        self.setup("vm-agent")
        self.assertEqual({path: path.read_bytes() for path in self.root.rglob("*") if path.is_file()}, first)

    def test_what_is_missing_is_told_before_anything_is_put(self):
        done = self.setup("builder", check=False, EPSILON_REGISTRY="", EPSILON_JOIN="")
        self.assertEqual(done.returncode, 1)
        self.assertIn("not set: EPSILON_JOIN EPSILON_REGISTRY", done.stderr)
        self.assertFalse(self.root.exists())
        self.assertIn("not gateway, vm-agent or builder", self.setup("vm", check=False).stderr)

    def test_only_machines_that_run_others_code_close_the_control_address_to_it(self):
        for role, closed in [("gateway", False), ("vm-agent", True), ("builder", True)]:
            self.setup(role)
            text = (self.root / f"etc/systemd/system/epsilon-{role}.service.d/aws.conf").read_text()
            self.assertEqual("iptables" in text, closed, role)
            self.assertIn("Requires=epsilon-aws-secrets.service", text)

    def test_collectors_read_vms_and_builders_with_the_key_only(self):
        """At ports that containers of the machine do not reach."""
        for role, section, port in [("vm-agent", "vm_agent", 8084), ("builder", "builder", 8085)]:
            self.setup(role)
            settings = self.settings()[section]
            self.assertEqual(settings["metrics"], f"10.80.0.9:{port}")
            self.assertEqual(settings["metrics_key_file"], "/etc/epsilon/metrics.key")
            text = (self.root / f"etc/systemd/system/epsilon-{role}.service.d/aws.conf").read_text()
            self.assertIn("--dports 8081:8085 -j DROP", text)

    def test_units_with_their_drop_ins_are_taken_by_systemd(self):
        for role in ROLES:
            self.setup(role)
            unit, folder = f"epsilon-{role}.service", self.dir / f"units-{role}"
            (folder / f"{unit}.d").mkdir(parents=True)
            for name in [unit, f"{unit}.d/aws.conf", "epsilon-aws-secrets.service"]:
                source = self.root / "etc/systemd/system" / name
                if not source.exists():
                    source = self.root / "usr/local/lib/systemd/system" / name
                text = source.read_text().replace("/usr/local/bin/", f"{self.root}/usr/local/bin/")
                text = text.replace("/usr/local/lib/epsilon", f"{self.root}/usr/local/lib/epsilon")
                (folder / name).write_text(text)
            done = world.run("systemd-analyze", "verify", "--man=no", folder / unit, check=False)
            ours = [line for line in done.stderr.splitlines() if "epsilon" in line and "docker.service" not in line]
            self.assertEqual(ours, [], role)

    def test_no_secret_is_asked_for_by_setup(self):
        self.setup("gateway")
        env = (self.root / "etc/epsilon/aws.env").read_text()
        self.assertIn("EPSILON_AWS_ADMIN_KEY_SECRET=arn:admin", env)
        self.assertEqual((self.root / "etc/epsilon/aws.env").stat().st_mode & 0o777, 0o600)


class Machine(Folder):
    """What secrets.sh does there. Needs root, like the machines: files change hands."""

    @classmethod
    def setUpClass(cls):
        cls.server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        cls.server.start()
        cls.addClassCleanup(cls.server.stop)
        cls.endpoint = "http://{}:{}".format(*cls.server.get_host_and_port())

    def setUp(self):
        super().setUp()
        self.store = boto3.client("secretsmanager", endpoint_url=self.endpoint, region_name="us-east-1")
        self.commands = world.aws_command(self.dir / "commands")
        (self.root / "etc/epsilon").mkdir(parents=True)
        # The user of the tests stands in for the user `epsilon`.
        user = pwd.getpwuid(os.getuid()).pw_name
        for name, words in [("chown", 'echo "$*" >>"$0.words"; shift; exec /bin/chown {0}: "$@"'),
                            ("install", 'exec /usr/bin/install -d -m 700 "${{@: -1}}"')]:
            (self.commands / name).write_text("#!/bin/bash\n" + words.format(user) + "\n")
            (self.commands / name).chmod(0o755)

    def secret(self, text):
        name = f"s{len(self.store.list_secrets()['SecretList'])}-{self.id()}"[-200:]
        return self.store.create_secret(Name=name, SecretString=text)["ARN"]

    def fetch(self, role, check=True, endpoint=None, root=None, **env):
        env = {"EPSILON_AWS_ROLE": role, "EPSILON_AWS_REGION": "us-east-1", "EPSILON_SETUP_ROOT": str(root or self.root),
               "AWS_ENDPOINT_URL": endpoint or self.endpoint, "AWS_MAX_ATTEMPTS": "1",
               "PATH": f"{self.commands}:{os.environ['PATH']}",
               **{f"EPSILON_AWS_{name}": value for name, value in env.items()}}
        return world.run(SCRIPTS / "secrets.sh", env=env, check=check)

    def read(self, path):
        file = self.root / path
        self.assertEqual(file.stat().st_mode & 0o777, 0o600, path)
        return file.read_text()


class Secrets(Machine):
    def test_a_vm_gets_the_fleet_token_in_its_own_form(self):
        self.fetch("vm-agent", FLEET_TOKEN_SECRET=self.secret("0a" * 32), METRICS_KEY_SECRET=self.secret("0e" * 32))
        self.assertRegex(self.read("etc/epsilon/fleet.token"), rf"^epsilon_fleet_[0-9a-f]{{12}}_{'0a' * 32}\n$")
        self.assertEqual(self.read("etc/epsilon/metrics.key"), "0e" * 32 + "\n")

    def test_a_gateway_gets_keys_and_the_database(self):
        self.fetch("gateway", FLEET_TOKEN_SECRET=self.secret("0a" * 32), BUILDER_TOKEN_SECRET=self.secret("0d" * 32),
                   ADMIN_KEY_SECRET=self.secret("0b" * 32),
                   DATABASE_PASSWORD_SECRET=self.secret("Pass1"), DATABASE_ADDRESS="db:5432")
        self.assertRegex(self.read("var/lib/epsilon/fleet.token"), "^epsilon_fleet_")
        self.assertRegex(self.read("var/lib/epsilon/builder.token"), "^epsilon_builder_")
        self.assertRegex(self.read("var/lib/epsilon/admin.key"), "^epsilon_admin_")
        self.assertEqual(
            self.read("etc/epsilon/gateway.env"),
            "EPSILON_GATEWAY_STORE='postgres://epsilon:Pass1@db:5432/epsilon?sslmode=verify-full"
            "&sslrootcert=/etc/epsilon/rds-ca.pem'\n")

    def test_a_database_of_ones_own_and_none(self):
        keys = {"FLEET_TOKEN_SECRET": self.secret("0a" * 32), "BUILDER_TOKEN_SECRET": self.secret("0d" * 32),
                "ADMIN_KEY_SECRET": self.secret("0b" * 32)}
        self.fetch("gateway", DATABASE_URL_SECRET=self.secret("postgres://u:p@h/d"), **keys)
        self.assertEqual(self.read("etc/epsilon/gateway.env"), "EPSILON_GATEWAY_STORE='postgres://u:p@h/d'\n")
        self.fetch("gateway", **keys)
        self.assertEqual(self.read("etc/epsilon/gateway.env"), "EPSILON_GATEWAY_STORE='sqlite'\n")

    def test_a_rotated_secret_comes_with_the_next_start(self):
        secret, metrics = self.secret("0a" * 32), self.secret("0e" * 32)
        self.fetch("builder", BUILDER_TOKEN_SECRET=secret, METRICS_KEY_SECRET=metrics)
        self.assertEqual(self.read("etc/epsilon/metrics.key"), "0e" * 32 + "\n")
        first = self.read("etc/epsilon/builder.token")
        self.store.put_secret_value(SecretId=secret, SecretString="0c" * 32)
        self.fetch("builder", BUILDER_TOKEN_SECRET=secret, METRICS_KEY_SECRET=metrics)
        second = self.read("etc/epsilon/builder.token")
        self.assertNotEqual(first.split("_")[2], second.split("_")[2], "another secret has another id")
        self.assertIn("0c" * 32, second)

    def test_without_aws_a_restart_goes_on_and_a_first_start_fails(self):
        unreachable = "http://127.0.0.1:9"
        done = self.fetch("vm-agent", check=False, endpoint=unreachable, FLEET_TOKEN_SECRET="x")
        self.assertEqual(done.returncode, 1)
        self.fetch("vm-agent", FLEET_TOKEN_SECRET=self.secret("0a" * 32), METRICS_KEY_SECRET=self.secret("0e" * 32))
        before = self.read("etc/epsilon/fleet.token")
        self.fetch("vm-agent", endpoint=unreachable, FLEET_TOKEN_SECRET="x")
        self.assertEqual(self.read("etc/epsilon/fleet.token"), before)

    def test_a_secret_of_another_form_is_refused_and_not_printed(self):
        done = self.fetch("vm-agent", check=False, FLEET_TOKEN_SECRET=self.secret("hunter2"))
        self.assertEqual(done.returncode, 1)
        self.assertIn("not 64 hexadecimal digits", done.stderr)
        self.assertNotIn("hunter2", done.stderr + done.stdout)
        self.assertFalse((self.root / "etc/epsilon/fleet.token").exists())


class Metadata(http.server.BaseHTTPRequestHandler):
    """IMDSv2: a token by PUT, answers with it only. `states` are the answers to come; the last one stays."""

    states = []

    def answer(self, status, text=""):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_PUT(self):
        self.answer(200, "token")

    def do_GET(self):
        if self.headers["X-aws-ec2-metadata-token"] != "token":
            return self.answer(401)
        if self.path.endswith("instance-id"):
            return self.answer(200, "i-1")
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return self.answer(200, state) if state else self.answer(404)

    def log_message(self, *_):
        pass


class Lifecycle(Folder):
    def leave(self, role, states):
        """Runs the script until it is done; the words that systemctl and aws were given, in order."""
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        Metadata.states = states
        commands, words = self.dir / "commands", self.dir / "words"
        commands.mkdir()
        for name in ["systemctl", "aws", "sleep"]:
            (commands / name).write_text(f'#!/bin/sh\necho "{name} $*" >>"{words}"\n')
            (commands / name).chmod(0o755)
        world.run(SCRIPTS / "lifecycle.sh", timeout=30, env={
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "EPSILON_AWS_ROLE": role, "EPSILON_AWS_REGION": "r", "EPSILON_AWS_GROUP": "g", "EPSILON_AWS_HOOK": "drain",
            "PATH": f"{commands}:{os.environ['PATH']}"})
        return words.read_text().splitlines()

    def test_it_waits_for_the_notice_then_drains_then_says_so(self):
        words = self.leave("vm-agent", [None, "InService", "InService", "Terminated"])
        self.assertEqual(words[:3], ["sleep 5"] * 3)
        self.assertEqual(words[3], "systemctl stop epsilon-vm-agent.service")
        self.assertEqual(words[4], "aws --region r autoscaling complete-lifecycle-action --auto-scaling-group-name g "
                                   "--lifecycle-hook-name drain --instance-id i-1 --lifecycle-action-result CONTINUE")

    def test_a_gateway_waits_for_the_load_balancer_first(self):
        self.assertEqual(self.leave("gateway", ["Terminated"])[:2], ["sleep 30", "systemctl stop epsilon-gateway.service"])
