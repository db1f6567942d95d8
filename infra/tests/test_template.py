"""The CloudFormation template: cfn-lint reads it, moto makes its stack, and what came out is looked at with boto3.

moto makes what it knows (network, machines, load balancers, roles, RDS, log groups) and says of nothing that it would
work: lifecycle actions never happen there, scaling is not played. What it does not make (secrets, alarms, lifecycle
hooks, attributes of load balancers, associations of routes) is looked at in the template itself.
"""

import ast
import base64
import ipaddress
import itertools
import json
import os
import pathlib
import re
import tempfile
import unittest
import urllib.request

import boto3
import yaml
from moto.server import ThreadedMotoServer

import world

TEMPLATE = world.INFRA / "aws" / "epsilon.yaml"
GIVEN = {"ReleaseBucket": "releases", "ReleaseVersion": "1.2.3", "ReleaseSha256": "a" * 64}
# moto has no public parameter with Debian's images, and a test cannot put one below /aws.
DEBIAN, IMAGE = "/aws/service/debian/release/12/latest/amd64", "/images/debian"

# Actions that cannot be narrowed to one resource in AWS; anything else with `*` is a mistake.
UNNARROWABLE = {
    "ecr:GetAuthorizationToken",
    "autoscaling:DescribeAutoScalingGroups",
    "autoscaling:DescribeAutoScalingInstances",
    "autoscaling:DescribeLifecycleHooks",
}


class Cfn(yaml.SafeLoader):
    """YAML with CloudFormation's short forms, as the long ones."""


def _short(loader, suffix, node):
    name = suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}"
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
        return {name: value.split(".", 1) if suffix == "GetAtt" else value}
    build = loader.construct_sequence if isinstance(node, yaml.SequenceNode) else loader.construct_mapping
    return {name: build(node, deep=True)}


Cfn.add_multi_constructor("!", _short)


def template():
    return yaml.load(TEMPLATE.read_text(), Cfn)


def for_moto(given):
    """The template in JSON, without what moto cannot do: Fn::Cidr is worked out here, as AWS does; the image comes from
    a parameter that moto lets one make; secrets, which moto's CloudFormation does not make, get an address; and as it takes
    every load balancer for an ALB, the NLB gets no listener."""
    def resolved(value):
        if isinstance(value, list):
            return [resolved(one) for one in value]
        if isinstance(value, str):
            return re.sub(r"\$\{(\w+)\}", lambda found: secrets.get(found.group(1), found.group()), value)
        if not isinstance(value, dict):
            return value
        if value.get("Ref") in secrets:
            return secrets[value["Ref"]]
        if "Fn::Cidr" in value:
            reference, count, bits = value["Fn::Cidr"]
            network = ipaddress.ip_network(given.get(reference["Ref"]) or parameters[reference["Ref"]]["Default"])
            return [str(one) for one in itertools.islice(network.subnets(new_prefix=32 - bits), count)]
        return {key: resolved(one) for key, one in value.items()}

    whole = template()
    parameters = whole["Parameters"]
    secrets = {name: f"arn:aws:secretsmanager:us-east-1:123456789012:secret:{name}"
               for name, made in whole["Resources"].items() if made["Type"] == "AWS::SecretsManager::Secret"}
    del whole["Resources"]["ControlListener"]
    whole["Resources"]["GatewayGroup"]["DependsOn"].remove("ControlListener")
    return json.dumps(resolved(whole), default=str).replace(DEBIAN, IMAGE)


def listed(value):
    return value if isinstance(value, list) else [value]


class WholeTemplate(unittest.TestCase):
    """What can be seen without making anything."""

    @classmethod
    def setUpClass(cls):
        cls.all = template()
        cls.resources = cls.all["Resources"]

    def of(self, kind):
        return {name: made["Properties"] for name, made in self.resources.items() if made["Type"] == kind}

    def test_cfn_lint_finds_nothing(self):
        done = world.run(world.TOOLS / "cfn-lint/bin/cfn-lint", "-t", TEMPLATE, check=False)
        self.assertEqual(done.stdout + done.stderr, "")

    def test_the_runbook_deploys_a_template_of_this_size(self):
        """From 51,200 bytes on the AWS CLI takes one by a bucket only, and CloudFormation takes none beyond a million."""
        size = len(TEMPLATE.read_bytes())
        self.assertLess(size, 1_000_000)
        command = re.search(r"aws cloudformation deploy (.*?[^\\])\n", (world.ROOT / "docs/operate.md").read_text(), re.S).group(1)
        self.assertEqual("--s3-bucket" in command, size > 51_200)

    def test_every_parameter_is_explained_used_and_in_a_group(self):
        grouped = list(itertools.chain.from_iterable(
            group["Parameters"] for group in self.all["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]))
        text = TEMPLATE.read_text().split("\nConditions:", 1)[1]
        for name, parameter in self.all["Parameters"].items():
            self.assertIn("Description", parameter, name)
            self.assertEqual(grouped.count(name), 1, name)
            self.assertRegex(text, rf"(!Ref {name}\b|\$\{{{name}\}})", name)

    def test_only_what_has_no_sane_default_must_be_given(self):
        needed = {name for name, parameter in self.all["Parameters"].items() if "Default" not in parameter}
        self.assertEqual(needed, {"ReleaseBucket", "ReleaseVersion", "ReleaseSha256"})

    def test_a_machine_of_the_version_before_still_gets_its_package(self):
        statements = template()["Resources"]["MachinePolicy"]["Properties"]["PolicyDocument"]["Statement"]
        fetch = next(one for one in statements if one["Sid"] == "FetchRelease")
        self.assertIn("/epsilon-*-linux-${Architecture}.tar.gz", fetch["Resource"]["Fn::Sub"])

    def test_arm_is_asked_for_as_a_whole(self):
        parts = template()
        asserted = parts["Rules"]["ArmNeedsArmMachines"]["Assertions"]
        refused = [one["Assert"]["Fn::Not"][0]["Fn::Equals"] for one in asserted]
        self.assertEqual({one["Ref"]: kind for one, kind in refused},
                         {name: parts["Parameters"][name]["Default"] for name in ("GatewayType", "VmType", "BuilderType")})

    def test_the_database_is_not_deleted_by_mistake(self):
        self.assertIs(template()["Resources"]["DatabaseServer"]["Properties"]["DeletionProtection"], True)

    def test_no_statement_says_everything(self):
        statements = []
        for kind in ["AWS::IAM::Role", "AWS::IAM::ManagedPolicy"]:
            for name, properties in self.of(kind).items():
                documents = [policy["PolicyDocument"] for policy in properties.get("Policies", [])]
                if "PolicyDocument" in properties:
                    documents.append(properties["PolicyDocument"])
                statements += [(name, one) for document in documents for one in document["Statement"]]
        self.assertGreater(len(statements), 8)
        for name, statement in statements:
            self.assertEqual(statement["Effect"], "Allow")
            for action in listed(statement["Action"]):
                self.assertNotIn("*", action, name)
                if "*" in [one for one in listed(statement["Resource"]) if isinstance(one, str)]:
                    self.assertIn(action, UNNARROWABLE, name)

    def test_machines_that_run_others_code_cannot_sign_a_gateway(self):
        may = {name: json.dumps(role["Policies"]) for name, role in self.of("AWS::IAM::Role").items()}
        self.assertEqual({name for name, text in may.items() if '"GatewayAuthority"' in text}, {"GatewayRole"})
        self.assertEqual({name for name, text in may.items() if '"MemberAuthority"' in text}, set(may))
        self.assertEqual({name for name, text in may.items() if "ssm:PutParameter" in text}, {"GatewayRole"})
        self.assertEqual({name for name, text in may.items() if "ssm:GetParameter" in text}, set(may))

    def test_no_role_takes_policies_of_others(self):
        for name, properties in self.of("AWS::IAM::Role").items():
            self.assertEqual(properties["ManagedPolicyArns"], [{"Ref": "MachinePolicy"}], name)

    def test_roles_hold_what_the_pages_of_their_parts_ask_for(self):
        """docs/registries.md: two policies, the builder's and the VMs'. docs/autoscaling.md: a table."""
        def actions(role, service):
            return {action for statement in self.of("AWS::IAM::Role")[role]["Policies"][0]["PolicyDocument"]["Statement"]
                    for action in listed(statement["Action"]) if action.startswith(service)}

        builder, vm = [set(re.findall(r'"(ecr:\w+)"', block)) for block in re.findall(
            r"```json\n(.*?)```", (world.ROOT / "docs/registries.md").read_text(), re.S) if "ecr:" in block]
        self.assertEqual(actions("BuilderRole", "ecr:"), builder)
        self.assertEqual(actions("VmRole", "ecr:"), vm)
        rows = [line.split("|")[1] for line in (world.ROOT / "docs/autoscaling.md").read_text().splitlines()
                if line.startswith("| `autoscaling:")]
        documented = {f"autoscaling:{word.removeprefix('autoscaling:')}" for row in rows for word in re.findall(r"`([\w:]+)`", row)}
        self.assertGreater(len(documented), 5)
        self.assertLessEqual(documented, actions("GatewayRole", "autoscaling:"))

    def test_limits_grow_along_the_way_of_a_call(self):
        for longest, limits in self.all["Mappings"]["Limits"].items():
            number = {name: int(str(value).rstrip("s")) for name, value in limits.items()}
            self.assertEqual(number["Call"], int(longest))
            order = ["Call", "Idle", "KeepAlive"]
            self.assertEqual(sorted(order, key=number.get), order, longest)
            order = ["Call", "Drain", "Stop", "Hook"]
            self.assertEqual(sorted(order, key=number.get), order, longest)
            # A gateway waits 30 s for the load balancer before it drains.
            self.assertGreater(number["Hook"], number["Stop"] + 30)
            self.assertGreaterEqual(number["Deregister"], number["Call"])
            self.assertLessEqual(number["Idle"], 4000)
            self.assertLessEqual(number["Deregister"], 3600)
            self.assertLessEqual(number["Hook"], 7200)
        self.assertEqual(set(self.all["Mappings"]["Limits"]), set(self.all["Parameters"]["LongestCall"]["AllowedValues"]))

    def test_doors_open_to_neighbours_only(self):
        """Only the load balancer's group names addresses of the world; agents' and database's ports name gateways."""
        opened = {}
        for name, properties in self.of("AWS::EC2::SecurityGroup").items():
            for rule in properties.get("SecurityGroupIngress", []):
                opened.setdefault(rule["FromPort"], set()).add((name, json.dumps(
                    rule.get("SourceSecurityGroupId") or rule["CidrIp"])))
        for properties in self.of("AWS::EC2::SecurityGroupIngress").values():
            opened.setdefault(properties["FromPort"], set()).add(
                (properties["GroupId"]["Fn::GetAtt"][0], json.dumps(
                    properties.get("SourceSecurityGroupId") or properties["CidrIp"])))
        gateways = json.dumps({"Fn::GetAtt": ["GatewayDoor", "GroupId"]})
        self.assertEqual(opened[8082], {("VmDoor", gateways)})
        self.assertEqual(opened[8083], {("BuilderDoor", gateways)})
        self.assertEqual(opened[8084], {("VmDoor", json.dumps({"Ref": "MonitoringCidr"}))})
        self.assertEqual(opened[8085], {("BuilderDoor", json.dumps({"Ref": "MonitoringCidr"}))})
        self.assertEqual(opened[5432], {("DatabaseDoor", gateways)})
        world_open = {name for rules in opened.values() for name, source in rules if "AllowedCidr" in source}
        self.assertEqual(world_open, {"PublicDoor"})

    def test_no_secret_is_written_down(self):
        for name, properties in self.of("AWS::SecretsManager::Secret").items():
            self.assertIn("GenerateSecretString", properties, name)
            self.assertNotIn("SecretString", properties, name)
        password = self.of("AWS::RDS::DBInstance")["DatabaseServer"]["MasterUserPassword"]
        self.assertEqual(password, {"Fn::Sub": "{{resolve:secretsmanager:${DatabasePassword}:SecretString}}"})

    def test_keys_are_what_the_machines_make_keys_of(self):
        """64 of what is left of letters and digits: hexadecimal digits."""
        for name in ["FleetToken", "BuilderToken", "MetricsKey", "AdminKey", "GatewayAuthority", "MemberAuthority"]:
            how = self.of("AWS::SecretsManager::Secret")[name]["GenerateSecretString"]
            left = set("abcdefghijklmnopqrstuvwxyz0123456789") - set(how["ExcludeCharacters"])
            self.assertEqual("".join(sorted(left)), "0123456789abcdef")
            self.assertTrue(how["ExcludeUppercase"] and how["ExcludePunctuation"] and how["PasswordLength"] == 64)

    def test_every_alarm_tells_somebody_and_says_what_it_means(self):
        alarms = self.of("AWS::CloudWatch::Alarm")
        self.assertGreaterEqual(len(alarms), 6)
        runbook = (world.ROOT / "docs/operate.md").read_text()
        for name, alarm in alarms.items():
            self.assertEqual(alarm["AlarmActions"], [{"Ref": "Alarms"}], name)
            self.assertIn("AlarmDescription", alarm, name)
            self.assertIn(f"`{name}`", runbook, f"docs/operate.md does not say what to do about {name}")

    def test_an_alarm_sees_certificates_end_in_the_logs_of_all_machines(self):
        """By the field that the parts' reminder has (fleet-link/src/certificate.rs), with the words that it has there."""
        text = (world.ROOT / "fleet-link/src/certificate.rs").read_text()
        self.assertEqual(text.count("certificate = owner"), 2)
        words = re.findall(r'=> "(\w+)"', text.split("pub fn as_str", 1)[1].split("}", 1)[0])
        pattern = "{ " + " || ".join(f'($.certificate = "{word}")' for word in words) + " }"
        alarm = self.of("AWS::CloudWatch::Alarm")["CertificateEndsAlarm"]
        seen = {properties["LogGroupName"]["Ref"] for properties in self.of("AWS::Logs::MetricFilter").values()
                if properties["FilterPattern"] == pattern
                and properties["MetricTransformations"][0]["MetricName"] == alarm["MetricName"]}
        self.assertEqual(seen, {"GatewayLogs", "VmLogs", "BuilderLogs"})

    def test_the_control_address_is_plain_tcp_inside(self):
        balancer = self.resources["ControlBalancer"]["Properties"]
        self.assertEqual((balancer["Type"], balancer["Scheme"]), ("network", "internal"))
        self.assertEqual(self.resources["ControlListener"]["Properties"]["Protocol"], "TCP")

    def test_both_groups_wait_for_a_drain(self):
        for name in ["GatewayGroup", "VmGroup"]:
            (hook,) = self.resources[name]["Properties"]["LifecycleHookSpecificationList"]
            self.assertEqual(hook["LifecycleTransition"], "autoscaling:EC2_INSTANCE_TERMINATING")
            self.assertEqual(hook["HeartbeatTimeout"]["Fn::FindInMap"][2], "Hook")
            # The name that machines get.
            self.assertIn(f"EPSILON_HOOK={hook['LifecycleHookName']}\n", TEMPLATE.read_text())

    def test_no_timer_of_the_load_balancer_cuts_a_call(self):
        attributes = self.resources["PublicBalancer"]["Properties"]["LoadBalancerAttributes"]
        idle = {one["Key"]: one["Value"] for one in attributes}["idle_timeout.timeout_seconds"]
        self.assertEqual(idle, {"Fn::FindInMap": ["Limits", {"Ref": "LongestCall"}, "Idle"]})

    def test_each_private_subnet_has_its_routes(self):
        made = {(one["SubnetId"]["Ref"], one["RouteTableId"]["Ref"])
                for one in self.of("AWS::EC2::SubnetRouteTableAssociation").values()}
        self.assertEqual(made, {("PublicSubnetA", "PublicRoutes"), ("PublicSubnetB", "PublicRoutes"),
                                ("PrivateSubnetA", "PrivateRoutes"), ("PrivateSubnetB", "PrivateRoutes")})

    def test_the_first_group_is_there_before_those_that_join_it(self):
        for name in ["VmGroup", "BuilderGroup"]:
            self.assertIn("GatewayGroup", self.resources[name]["DependsOn"], name)


class Made(unittest.TestCase):
    """A stack with all defaults, in moto."""

    parameters = {}

    @classmethod
    def setUpClass(cls):
        cls.server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        cls.server.start()
        cls.addClassCleanup(cls.server.stop)
        host, port = cls.server.get_host_and_port()
        cls.endpoint = f"http://{host}:{port}"
        # All servers of a process share one world.
        urllib.request.urlopen(urllib.request.Request(f"{cls.endpoint}/moto-api/reset", method="POST")).close()
        cls.region = os.environ["AWS_DEFAULT_REGION"]
        image = cls.client("ec2").describe_images()["Images"][0]["ImageId"]
        cls.client("ssm").put_parameter(Name=IMAGE, Value=image, Type="String")
        given = {**GIVEN, **cls.prepared(), **cls.parameters}
        cls.cloudformation = cls.client("cloudformation")
        cls.cloudformation.create_stack(
            StackName="fleet", TemplateBody=for_moto(given), Capabilities=["CAPABILITY_IAM"],
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in given.items()])
        listed = cls.cloudformation.get_paginator("list_stack_resources").paginate(StackName="fleet")
        cls.ids = {one["LogicalResourceId"]: one["PhysicalResourceId"]
                   for page in listed for one in page["StackResourceSummaries"]}

    @classmethod
    def prepared(cls):
        """What an operator has before the stack, as more parameters."""
        return {}

    @classmethod
    def client(cls, service):
        return boto3.client(service, endpoint_url=cls.endpoint, region_name=cls.region)

    def group(self, name):
        groups = self.client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[name])
        return groups["AutoScalingGroups"][0]

    def launch(self, name):
        versions = self.client("ec2").describe_launch_template_versions(LaunchTemplateId=self.ids[name])
        return versions["LaunchTemplateVersions"][0]["LaunchTemplateData"]

    def user_data(self, name):
        return base64.b64decode(self.launch(name)["UserData"]).decode()

    def checks(self):
        groups = self.client("elbv2").describe_target_groups()["TargetGroups"]
        return {group["Port"]: (group["Protocol"], group["HealthCheckProtocol"]) for group in groups}


class Fresh(Made):
    def test_machines_keep_their_credentials_and_disks_to_themselves(self):
        for name in ["GatewayTemplate", "VmTemplate", "BuilderTemplate"]:
            data = self.launch(name)
            self.assertEqual(data["MetadataOptions"]["HttpTokens"], "required", name)
            self.assertEqual(data["MetadataOptions"]["HttpPutResponseHopLimit"], 1, name)
            for disk in data["BlockDeviceMappings"]:
                self.assertEqual((disk["Ebs"]["VolumeType"], disk["Ebs"]["Encrypted"]), ("gp3", True), name)
            self.assertNotIn("KeyName", data, name)

    def test_groups_stand_in_private_subnets_of_two_zones(self):
        ec2 = self.client("ec2")
        for name in ["fleet-gateways", "fleet-vms", "fleet-builder"]:
            subnets = self.group(name)["VPCZoneIdentifier"].split(",")
            self.assertEqual(set(subnets), {self.ids["PrivateSubnetA"], self.ids["PrivateSubnetB"]})
            zones = {one["AvailabilityZone"] for one in ec2.describe_subnets(SubnetIds=subnets)["Subnets"]}
            self.assertEqual(len(zones), 2)

    def test_sizes(self):
        gateways, vms = self.group("fleet-gateways"), self.group("fleet-vms")
        self.assertEqual((gateways["MinSize"], gateways["DesiredCapacity"]), (2, 2))
        self.assertEqual((vms["MinSize"], vms["MaxSize"], vms["DesiredCapacity"]), (2, 10, 2))
        self.assertEqual(len(gateways["TargetGroupARNs"]), 2)
        self.assertTrue(vms["NewInstancesProtectedFromScaleIn"])

    def test_private_subnets_have_a_way_out(self):
        table = self.client("ec2").describe_route_tables(RouteTableIds=[self.ids["PrivateRoutes"]])["RouteTables"][0]
        self.assertIn(self.ids["Nat"], [route.get("NatGatewayId") for route in table["Routes"]])

    def test_load_balancers(self):
        elb = self.client("elbv2")
        schemes = {one["LoadBalancerArn"]: one["Scheme"] for one in elb.describe_load_balancers()["LoadBalancers"]}
        public = self.ids["PublicBalancer"]
        self.assertEqual(schemes, {public: "internet-facing", self.ids["ControlBalancer"]: "internal"})
        listeners = elb.describe_listeners(LoadBalancerArn=public)["Listeners"]
        self.assertEqual([(one["Port"], one["DefaultActions"][0]["Type"]) for one in listeners], [(80, "forward")])

    def test_the_database_is_encrypted_kept_and_private(self):
        server = self.client("rds").describe_db_instances()["DBInstances"][0]
        self.assertTrue(server["StorageEncrypted"] and server["MultiAZ"])
        self.assertFalse(server["PubliclyAccessible"])
        self.assertEqual((server["Engine"], server["BackupRetentionPeriod"]), ("postgres", 14))

    def test_logs_end_some_day(self):
        groups = self.client("logs").describe_log_groups()["logGroups"]
        self.assertEqual({one["logGroupName"]: one["retentionInDays"] for one in groups},
                         {f"/epsilon/fleet/{name}": 30 for name in ["gateway", "vm", "builder"]})

    def test_roles_reach_this_stack_only(self):
        iam = self.client("iam")
        resources = []
        for name in ["GatewayRole", "VmRole", "BuilderRole"]:
            role = self.ids[name]
            for policy in iam.list_role_policies(RoleName=role)["PolicyNames"]:
                document = iam.get_role_policy(RoleName=role, PolicyName=policy)["PolicyDocument"]
                # moto's server hands Python's own form on.
                document = ast.literal_eval(document) if isinstance(document, str) else document
                for statement in document["Statement"]:
                    resources += [(name, one) for one in listed(statement["Resource"]) if one != "*"]
        for name, resource in resources:
            self.assertRegex(str(resource), r"autoScalingGroupName/fleet-(vms|gateways)$|repository/epsilon/\*$|AdminKey|"
                                            r"FleetToken|BuilderToken|MetricsKey|(Gateway|Member)Authority|:parameter/epsilon/fleet/authority$|"
                                            r"DatabasePassword|^fleet-", name)
        vm = [one for name, one in resources if name == "VmRole"]
        self.assertFalse([one for one in vm if "gateways" in str(one)])

    def test_user_data_is_a_sound_script_without_secrets(self):
        for name, role in [("GatewayTemplate", "gateway"), ("VmTemplate", "vm-agent"), ("BuilderTemplate", "builder")]:
            text = self.user_data(name)
            with tempfile.TemporaryDirectory() as folder:
                script = pathlib.Path(folder) / "user-data.sh"
                script.write_text(text)
                world.run("bash", "-n", script)
                # `status` is used in a trap, `local`s are none there.
                world.run("shellcheck", script)
            self.assertNotIn("${", text, name)
            self.assertIn(f"EPSILON_ROLE={role} ", text)
            self.assertIn("s3://releases/epsilon-1.2.3-linux-amd64.tar.gz", text)
            self.assertLess(len(base64.b64encode(text.encode())), 16384, "EC2 takes no more")
            self.assertNotRegex(text, r"[0-9a-f]{64}(?<!a{64})", "a secret's digits")

    def test_user_data_sets_all_that_setup_asks_for(self):
        setup = (world.INFRA / "aws/instance/setup.sh").read_text()
        common = re.search(r"^need (EPSILON_ROLE .*)$", setup, re.M).group(1).split()
        for name, role in [("GatewayTemplate", "gateway"), ("VmTemplate", "vm-agent"), ("BuilderTemplate", "builder")]:
            own = re.search(rf"^    {role}\) need (.*) ;;$", setup, re.M).group(1).split()
            exported = dict(re.findall(r"(EPSILON_\w+)='?([^'\s]+)'?", self.user_data(name)))
            for needed in common + own:
                self.assertTrue(exported.get(needed), f"{name}: {needed}")

    def test_each_machine_says_that_it_is_ready_to_its_own_group(self):
        for name, group in [("GatewayTemplate", "GatewayGroup"), ("VmTemplate", "VmGroup"), ("BuilderTemplate", "BuilderGroup")]:
            self.assertIn(f"--logical-resource-id {group} ", self.user_data(name))

    def test_load_balancers_speak_as_gateways_do(self):
        self.assertEqual(self.checks(), {8080: ("HTTPS", "HTTPS"), 8081: ("TCP", "HTTPS")})

    def test_machines_are_told_where_their_certificates_come_from(self):
        for name in ["GatewayTemplate", "VmTemplate", "BuilderTemplate"]:
            text = self.user_data(name)
            self.assertIn("EPSILON_AUTHORITY_PARAMETER='/epsilon/fleet/authority'", text)
            self.assertRegex(text, r"EPSILON_MEMBER_AUTHORITY_SECRET='arn:\S+:MemberAuthority'")
            self.assertEqual("GatewayAuthority" in text, name == "GatewayTemplate")
            self.assertRegex(text, r"apt-get \S.* install [^&|]*\bopenssl\b")
        # The name by which members reach gateways is one that the certificate has.
        (name,) = re.findall(r"EPSILON_CONTROL_NAME='(\S+)'", self.user_data("GatewayTemplate"))
        self.assertIn(f"EPSILON_JOIN='{name}:8081'", self.user_data("VmTemplate"))

    def test_outputs_are_told(self):
        outputs = self.cloudformation.describe_stacks(StackName="fleet")["Stacks"][0]["Outputs"]
        values = {one["OutputKey"]: one["OutputValue"] for one in outputs}
        self.assertRegex(values["PublicUrl"], r"^http://.+")
        self.assertRegex(values["ControlUrl"], r"^https://.+:8081$")
        self.assertEqual(values["AuthorityParameter"], "/epsilon/fleet/authority")
        self.assertTrue(values["Registry"].endswith(f".dkr.ecr.{self.region}.amazonaws.com/epsilon"))


class InAnExistingVpc(Made):
    """Without TLS inside; HTTPS, a database of one's own, a key pair, operators and monitoring; no network is made."""

    parameters = {
        "PublicName": "fn.example.org",
        "Database": "url", "DatabaseUrlSecret": "arn:aws:secretsmanager:us-east-1:123456789012:secret:db-AbCdEf",
        "KeyName": "ops", "OperatorCidr": "10.0.0.0/8", "MonitoringCidr": "10.9.0.0/16", "LongestCall": "3500",
        "VpcCidr": "10.1.0.0/16", "FleetTls": "false",
    }

    @classmethod
    def prepared(cls):
        ec2 = cls.client("ec2")
        ec2.create_key_pair(KeyName="ops")
        cls.vpc = ec2.create_vpc(CidrBlock="10.1.0.0/16")["Vpc"]["VpcId"]
        subnets = [
            ec2.create_subnet(VpcId=cls.vpc, CidrBlock=f"10.1.{index}.0/24", AvailabilityZone=f"us-east-1{'ab'[index % 2]}")
            ["Subnet"]["SubnetId"] for index in range(4)]
        cls.private = set(subnets[2:])
        certificate = cls.client("acm").request_certificate(DomainName="fn.example.org")["CertificateArn"]
        return {"CertificateArn": certificate, "VpcId": cls.vpc, "PublicSubnets": ",".join(subnets[:2]), "PrivateSubnets": ",".join(subnets[2:])}

    def test_nothing_of_a_network_is_made(self):
        for name in ["Vpc", "Nat", "PrivateSubnetA", "DatabaseServer", "DatabaseDoor"]:
            self.assertNotIn(name, self.ids)
        self.assertEqual(set(self.group("fleet-vms")["VPCZoneIdentifier"].split(",")), self.private)
        groups = self.client("ec2").describe_security_groups(GroupIds=[self.ids["VmDoor"], self.ids["GatewayDoor"]])
        self.assertEqual({one["VpcId"] for one in groups["SecurityGroups"]}, {self.vpc})

    def test_plain_http_is_refused_not_redirected(self):
        listeners = self.client("elbv2").describe_listeners(LoadBalancerArn=self.ids["PublicBalancer"])["Listeners"]
        actions = {one["Port"]: one["DefaultActions"][0]["Type"] for one in listeners}
        self.assertEqual(actions, {80: "fixed-response", 443: "forward"})

    def test_gateways_are_told_of_the_database_by_its_secret(self):
        text = self.user_data("GatewayTemplate")
        self.assertIn("EPSILON_DATABASE_URL_SECRET='arn:aws:secretsmanager:", text)
        self.assertIn("EPSILON_DATABASE_ADDRESS='' ", text)
        self.assertIn("EPSILON_PUBLIC_URL='https://fn.example.org'", text)
        self.assertIn("EPSILON_DRAIN_GRACE='3515s'", text)

    def test_without_tls_all_of_it_is_plain(self):
        self.assertEqual(self.checks(), {8080: ("HTTP", "HTTP"), 8081: ("TCP", "HTTP")})
        for name in ["GatewayTemplate", "VmTemplate", "BuilderTemplate"]:
            self.assertIn("EPSILON_AUTHORITY_PARAMETER='' ", self.user_data(name))
        outputs = self.cloudformation.describe_stacks(StackName="fleet")["Stacks"][0]["Outputs"]
        values = {one["OutputKey"]: one["OutputValue"] for one in outputs}
        self.assertRegex(values["ControlUrl"], "^http://")

    def test_a_shell_is_there_when_asked_for(self):
        self.assertEqual(self.launch("VmTemplate")["KeyName"], "ops")
