"""What the tests of infra/ share: where things are, how a command is run, an AWS that is moto's.

Not tests themselves. Run by infra/test-infra.sh, with the python that has moto and boto3.
"""

import json
import os
import pathlib
import subprocess
import sys
import textwrap

ROOT = pathlib.Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
PROGRAMS = ["epsilon", "epsilon-gateway", "epsilon-vm-agent", "epsilon-builder"]
UNITS = ["epsilon.service", "epsilon-gateway.service", "epsilon-vm-agent.service", "epsilon-builder.service"]
SOCKETS = [
    f"{service}-{name}.socket" for service in ["epsilon", "epsilon-gateway"] for name in ["calls", "control"]]
TOOLS = pathlib.Path(
    os.environ.get("EPSILON_TOOLS_DIR")
    or pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "epsilon-tools"
)


def run(*command, check=True, env=None, cwd=None, stdin=None, timeout=120):
    """One command to its end; its output is in the failure, if it fails."""
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, input=stdin, text=True, capture_output=True, timeout=timeout,
        env=None if env is None else {**os.environ, **env},
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def programs(folder):
    """Stands in for built programs: files that `package.sh` takes for ELF and that the kernel cannot run."""
    folder.mkdir(parents=True, exist_ok=True)
    head = bytes.fromhex("7f454c46020101000000000000000000" "0300" "3e00")
    for name in PROGRAMS:
        (folder / name).write_bytes(head + name.encode())
        (folder / name).chmod(0o755)
    return folder


def package(out, bin_dir, version="0.0.1", epoch="1700000000"):
    """Packs and returns the archive's path."""
    done = run(INFRA / "package.sh", version, "--bin", bin_dir, "--out", out, env={"SOURCE_DATE_EPOCH": epoch})
    return pathlib.Path(done.stdout.strip())


def unpack(archive, folder):
    folder.mkdir(parents=True)
    run("tar", "-xzf", archive, "--strip-components=1", "-C", folder)
    return folder


def aws_command(folder):
    """An `aws` for scripts: the words of the command line become one request to moto, which is at AWS_ENDPOINT_URL. Machines
    have the real one; it gets the same requests. Without boto3, which takes most of a second to start, each time."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "aws"
    path.write_text(f"#!{sys.executable}\n" + textwrap.dedent('''
        import json, os, sys
        from urllib import request
        words, options, name = [], {}, None
        for word in sys.argv[1:]:
            if word.startswith("--"):
                name = word[2:]
                options[name] = True
            elif name:
                options[name], name = word, None
            else:
                words.append(word)
        region = options.pop("region")
        query, output = options.pop("query", None), options.pop("output", "json")
        for ours in ["cli-connect-timeout", "cli-read-timeout"]:
            options.pop(ours, None)
        for key, value in options.items():
            if str(value).startswith("file://"):
                options[key] = open(value.removeprefix("file://")).read()
        service, verb = words
        pascal = lambda text: "".join(part.capitalize() for part in text.split("-"))
        call = request.Request(os.environ["AWS_ENDPOINT_URL"], json.dumps({pascal(key): value for key, value in options.items()}).encode(), {
            "Content-Type": "application/x-amz-json-1.1",
            "X-Amz-Target": {"secretsmanager": "secretsmanager.", "ssm": "AmazonSSM."}[service] + pascal(verb),
            "Authorization": f"AWS4-HMAC-SHA256 Credential=test/20260101/{region}/{service}/aws4_request, SignedHeaders=host, Signature=0",
        })
        answer = json.load(request.build_opener(request.ProxyHandler({})).open(call, timeout=30))
        for part in query.split(".") if query else []:
            answer = answer[part]
        print(answer if output == "text" else json.dumps(answer))
    '''))
    path.chmod(0o755)
    return folder


def settings_page():
    """All settings that the code declares: `section.key`, from the generated page."""
    page = (ROOT / "docs" / "config.md").read_text()
    return {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}


def read_json(path):
    return json.loads(pathlib.Path(path).read_text())
