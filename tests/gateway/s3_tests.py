#!/usr/bin/env python3
"""Runs ceph's `s3-tests` against a gateway, and compares the results with `s3-tests.toml`.

    .venv/gateway/bin/python tests/gateway/s3_tests.py --source DIR [--python PYTHON] [--plain | --encrypted]
        [--results FILE] [TEST]…

DIR is a checkout of https://github.com/ceph/s3-tests, which is not part of this repository. PYTHON has what its
requirements.txt names, and pytest-timeout. The result is 1 if a test fails that is not excluded in `s3-tests.toml`, or
if an excluded one passes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import tomllib
import xml.etree.ElementTree as xml
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

CONFIG = """
[DEFAULT]
host = 127.0.0.1
port = {port}
is_secure = False
ssl_verify = False
[fixtures]
bucket prefix = t-{{random}}-
iam name prefix = s3-tests-
iam path prefix = /s3-tests/
[s3 main]
display_name = {main}
user_id = {main}
email = main@example.com
api_name = default
access_key = {main}
secret_key = main-secret
[s3 alt]
display_name = alt
user_id = alt
email = alt@example.com
access_key = alt
secret_key = alt-secret
[s3 tenant]
display_name = tenant
user_id = tenant
access_key = tenant
secret_key = tenant-secret
email = tenant@example.com
tenant = testx
[iam]
email = iam@example.com
user_id = iam
access_key = iam
secret_key = iam-secret
display_name = iam
[iam root]
access_key = iamroot
secret_key = iamroot-secret
user_id = iamroot
email = iamroot@example.com
[iam alt root]
access_key = iamalt
secret_key = iamalt-secret
user_id = iamalt
email = iamalt@example.com
[webidentity]
token = x
aud = x
sub = x
azp = x
user_token = x
thumbprint = x
KC_REALM = x
"""


def outcomes(report):
    """Returns the outcome of each test of a JUnit file."""
    found = {}
    for case in xml.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname').rsplit('.', 1)[-1]}::{case.get('name')}"
        bad = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        found[name] = (bad or ["passed"])[0]
    return found


def run(arguments, encrypted):
    from conftest import Gateway, Program, run

    with tempfile.TemporaryDirectory(prefix="s3-tests-") as folder:
        home = Path(folder)
        credentials = home / "credentials.toml"
        names = ["main", "alt", "tenant", "iam", "iamroot", "iamalt"]
        keys = [f'[[key]]\naccess_key_id = "{name}"\nsecret_access_key = "{name}-secret"\n' for name in names]
        credentials.write_text("".join(keys))
        credentials.chmod(0o600)
        options = ["--credentials-file", credentials]
        if encrypted:
            run("hfcrypt", "keygen", home / "key")
            options += ["--encryption-key-file", home / "key"]
        hub = Program("hugbucket", "hub", "--dir", home / "hub", "--listen", "127.0.0.1:0")
        env = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_local", "HOME": str(home), "AWS_ACCESS_KEY_ID": None,
               "AWS_SECRET_ACCESS_KEY": None}
        gateway = Gateway(home, *options, env=env)
        config, report = home / "s3tests.conf", home / "report.xml"
        config.write_text(CONFIG.format(port=gateway.url.rsplit(":", 1)[1], main="main"))
        command = [arguments.python, "-m", "pytest", "-q", "--timeout=120", f"--junitxml={report}", "-p", "no:cacheprovider"]
        command += arguments.tests or ["s3tests/functional/test_s3.py", "s3tests/functional/test_headers.py"]
        command += arguments.more
        try:
            env = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PYTEST"))}
            subprocess.run(command, cwd=arguments.source, env={**env, "S3TEST_CONF": str(config)})
            return outcomes(report)
        finally:
            gateway.stop()
            hub.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--encrypted", action="store_true")
    parser.add_argument("--results", help="write the outcome of each test to this file")
    parser.add_argument("--more", action="append", default=[], help="a further argument of pytest, as --more=ARGUMENT")
    parser.add_argument("tests", nargs="*")
    arguments = parser.parse_args()
    sides = [name for name in ("plain", "encrypted") if getattr(arguments, name)] or ["plain", "encrypted"]
    listed = HERE / "s3-tests.toml"
    lists = tomllib.loads(listed.read_text()) if listed.exists() else {}
    wrong = 0
    for side in sides:
        reasons = [lists.get("excluded", {}), lists.get(f"excluded_{side}", {})]
        excluded = {test: reason for tests in reasons for reason, names in tests.items() for test in names}
        found = run(arguments, side == "encrypted")
        if arguments.results:
            with open(f"{arguments.results}.{side}", "w") as file:
                file.writelines(f"{outcome}\t{test}\n" for test, outcome in sorted(found.items()))
        passed = {test for test, outcome in found.items() if outcome == "passed"}
        failed = {test for test, outcome in found.items() if outcome in ("failure", "error")}
        surprises = [f"fails: {test}" for test in sorted(failed - set(excluded))]
        surprises += [f"passes, but is excluded: {test}" for test in sorted(passed & set(excluded))]
        print(f"{side}: {len(passed)} passed, {len(failed)} failed, of which {len(failed & set(excluded))} are excluded")
        print("\n".join(surprises))
        wrong += len(surprises)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
