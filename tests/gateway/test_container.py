"""The container image: its root is laid out by the Dockerfile's own scripts, entered as its user, and used.

No container engine is needed. The instructions come from the Dockerfile, so the tests use what it says.
"""

import ftplib
import json
import os
import re
import shlex
import shutil
import socket
import stat
import subprocess
import time

import boto3
import pytest
import yaml
from botocore.config import Config
from conftest import ROOT, Program, run
from ftp import get, put

CHROOT = shutil.which("chroot", path=f"{os.environ['PATH']}:/usr/sbin")
TARGET = os.environ.get("CARGO_TARGET_DIR", ROOT / "target")
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="entering another root needs root")


def instructions():
    """The instructions of the Dockerfile's stages: for each stage a list of pairs."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    lines = [line.split(None, 1) for line in text.splitlines() if line and not line.startswith("#")]
    stages = []
    for name, rest in lines:
        if name == "FROM":
            stages.append([])
        stages[-1].append((name, rest))
    return stages


class Image:
    """What the last stage says."""

    def __init__(self, root):
        self.root, (_, last) = root, instructions()
        single = {name: rest for name, rest in last}
        assert single["FROM"] == "scratch" and single["COPY"] == "--from=build /image/ /"
        self.env = dict(pair.split("=", 1) for pair in shlex.split(single["ENV"]))
        self.user, self.entry = single["USER"], json.loads(single["ENTRYPOINT"])
        self.health = json.loads(single["HEALTHCHECK"].split("CMD ", 1)[1])
        self.ports = single["EXPOSE"].split()

    def command(self, *arguments, command=None):
        return [CHROOT, f"--userspec={self.user}", self.root, *(command or self.entry), *map(str, arguments)]

    def environment(self, **env):
        return {**self.env, **env}

    def run(self, *arguments, command=None, **env):
        command = self.command(*arguments, command=command)
        return subprocess.run(command, env=self.environment(**env), capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """Carries out the steps of the first stage."""
    (first, _), home = instructions(), tmp_path_factory.mktemp("image")
    scripts = next(rest for name, rest in first if name == "RUN" and "container/build" in rest)
    words = shlex.split(re.sub(r"--mount=\S+", "", scripts))
    assert words == [
        "container/build",
        "/program/hugbucket",
        "release",
        "&&",
        "container/root",
        "/program/hugbucket",
        "/image",
    ]
    env = {**os.environ, "CARGO_TARGET_DIR": f"{TARGET}/container"}
    for command in (
        ["container/build", home / "hugbucket", "quick"],
        ["container/root", home / "hugbucket", home / "root"],
    ):
        subprocess.run(command, cwd=ROOT, env=env, check=True, stdout=subprocess.DEVNULL)
    # Test folders are closed to others, and the image's user is another one.
    for folder in (home, *home.parents):
        if folder == folder.parent or not os.access(folder, os.W_OK) or folder.stat().st_mode & 0o001:
            break
        folder.chmod(folder.stat().st_mode | 0o011)
    # Container engines give each container these.
    (home / "root/dev").mkdir()
    for name, minor in (("null", 3), ("random", 8), ("urandom", 9)):
        os.mknod(home / "root/dev" / name, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
        (home / "root/dev" / name).chmod(0o666)
    return Image(home / "root")


class Container(Program):
    """A running container: environment as of `docker run -e`."""

    def __init__(self, image, **env):
        self.lines = env["MODE"].count(",") + 1
        self.command, self.env = image.command(), image.environment(**env)
        self.log = open(image.root.with_name("log"), "ab")
        self.process = subprocess.Popen(self.command, env=self.env, stdout=subprocess.PIPE, stderr=self.log, text=True)
        self.urls = [self.process.stdout.readline().strip() for _ in range(self.lines)]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture
def settings(hub):
    """What `docker run` of the documents gives, and free ports in place of the fixed ones."""
    return {
        "HF_TOKEN": "hf_local",
        "HF_ENDPOINT": hub.url,
        "AWS_ACCESS_KEY_ID": "me",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "HUGBUCKET_S3_LISTEN": "127.0.0.1:0",
        "HUGBUCKET_FTP_LISTEN": "127.0.0.1:0",
        "HUGBUCKET_PASSIVE_PORTS": "0",
        "HUGBUCKET_ADMIN_LISTEN": f"127.0.0.1:{free_port()}",
    }


def needs_interpreter(program):
    """True if a program of ELF needs a dynamic linker: it has a segment of the type PT_INTERP."""
    data = program.read_bytes()
    assert data[:5] == b"\x7fELF\x02"
    at, size, count = (int.from_bytes(data[a:b], "little") for a, b in ((32, 40), (54, 56), (56, 58)))
    types = [int.from_bytes(data[at + size * index : at + size * index + 4], "little") for index in range(count)]
    return 3 in types


def test_image_holds_one_static_program(image):
    files = {str(path.relative_to(image.root)) for path in image.root.rglob("*") if path.is_file()}
    assert files == {"usr/bin/hugbucket", "etc/passwd", "etc/group", "etc/ssl/certs/ca-certificates.crt"}
    assert not needs_interpreter(image.root / "usr/bin/hugbucket")
    user = int(image.user.split(":")[0])
    assert user != 0 and (image.root / "data").stat().st_uid == user
    assert f":{user}:" in (image.root / "etc/passwd").read_text()


def test_image_listens_everywhere_at_the_exposed_ports(image):
    shown = image.run("config", "show", "--json", MODE="s3,ftp")
    assert shown.returncode == 0, shown.stderr
    found = {setting["name"]: setting["values"] for setting in json.loads(shown.stdout)["settings"]}
    listens = [found[name][0] for name in ("s3-listen", "ftp-listen")]
    assert [address.split(":") for address in listens] == [["0.0.0.0", image.ports[0]], ["0.0.0.0", image.ports[1]]]
    assert found["passive-ports"] == [image.ports[2]]
    assert image.environment()["MODE"] == "s3", "the default"
    # Passwords in clear need a decision.
    refused = image.run(MODE="ftp", FTP_USERNAME="me", FTP_PASSWORD="secret")
    assert refused.returncode == 2 and "--allow-cleartext" in refused.stderr


def test_container_serves_s3(image, settings, home):
    container = Container(image, MODE="s3", **settings)
    try:
        aws = shutil.which("aws", path=f"{os.path.dirname(os.sys.executable)}:{os.environ['PATH']}")
        env = {
            **os.environ,
            "AWS_ACCESS_KEY_ID": "me",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        command = lambda *rest: run(aws, "--endpoint-url", container.urls[0], "s3", *rest, env=env).stdout
        (home / "file").write_bytes(os.urandom(1 << 20))
        command("mb", "s3://data")
        command("cp", home / "file", "s3://data/folder/file")
        assert "file" in command("ls", "s3://data/folder/")
        command("cp", "s3://data/folder/file", home / "back")
        assert (home / "back").read_bytes() == (home / "file").read_bytes()
        assert (image.root / "data/state/hugbucket/gateway.sqlite").exists() and (
            image.root / "data/cache/hugbucket"
        ).exists()
    finally:
        container.stop()


def test_container_serves_ftp_and_both(image, settings, hub, api, home):
    api.create_bucket("local/data", private=True)
    own = {"FTP_USERNAME": "you", "FTP_PASSWORD": "password"}
    container = Container(image, MODE="ftp", **settings, **own)
    try:
        (home / "file").write_bytes(os.urandom(1 << 20))
        curl = lambda *options: subprocess.run(
            ["curl", "-sSf", "-u", "you:password", *options], check=True, capture_output=True
        ).stdout
        curl("-T", home / "file", f"{container.urls[0]}/data/file")
        assert curl(f"{container.urls[0]}/data/file") == (home / "file").read_bytes()
    finally:
        container.stop()
    container = Container(image, MODE="s3,ftp", **settings)
    try:
        s3 = boto3.client(
            "s3",
            endpoint_url=container.urls[0],
            aws_access_key_id="me",
            aws_secret_access_key="secret",
            region_name="us-east-1",
            config=Config(retries={"max_attempts": 0}),
        )
        assert s3.get_object(Bucket="data", Key="file")["Body"].read() == (home / "file").read_bytes()
        host, port = container.urls[1].removeprefix("ftp://").split(":")
        with ftplib.FTP() as session:
            session.connect(host, int(port))
            session.login("me", "secret")
            put(session, "/data/other", b"1")
            assert get(session, "/data/other") == b"1"
    finally:
        container.stop()


def test_health_check_tells_whether_the_hub_is_reached(image, settings, hub):
    container = Container(image, MODE="s3", **settings)
    try:
        # The check asks the address that the image sets.
        assert image.env["HUGBUCKET_ADMIN_LISTEN"] == "127.0.0.1:8081"
        asked = [*image.health, "--url", f"http://{settings['HUGBUCKET_ADMIN_LISTEN']}/readyz"]
        healthy = image.run(command=asked)
        assert healthy.returncode == 0, healthy.stderr
        assert image.run(command=image.health).returncode in (0, 5)
        hub.stop()
        assert image.run(command=asked).returncode == 5
    finally:
        container.stop()
    assert image.run(command=asked).returncode == 5


def test_container_encrypts_with_a_key(image, settings, api, key, home):
    api.create_bucket("local/data", private=True)
    shutil.copy(key, image.root / "key")
    try:
        (image.root / "key").chmod(0o400)
        shutil.chown(image.root / "key", int(image.user.split(":")[0]))
        container = Container(image, MODE="ftp", HFCRYPT_KEY_FILE="/key", **settings)
        try:
            host, port = container.urls[0].removeprefix("ftp://").split(":")
            with ftplib.FTP() as session:
                session.connect(host, int(port))
                session.login("me", "secret")
                put(session, "/data/secret-name", b"1")
        finally:
            container.stop()
    finally:
        (image.root / "key").unlink()
    stored = [entry.path for entry in api.list_bucket_tree("local/data", recursive=True)]
    assert stored and all("secret-name" not in path for path in stored)


def test_compose_file_uses_what_the_image_has(image):
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    shown = image.run("config", "show", "--json")
    known = {
        "HUGBUCKET_" + setting["name"].upper().replace("-", "_") for setting in json.loads(shown.stdout)["settings"]
    }
    known |= {"MODE", "HF_TOKEN", "HF_ENDPOINT", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HFCRYPT_KEY_FILE"}
    gateway, hub = services["gateway"], services["hub"]
    assert set(gateway["environment"]) <= known
    # Each variable with a value that the program takes; an empty one counts as not set.
    env = {name: str(value).split("${")[0] for name, value in gateway["environment"].items()}
    shown = image.run("config", "show", "--json", **env)
    assert shown.returncode == 0, shown.stderr
    found = {setting["name"]: setting["values"] for setting in json.loads(shown.stdout)["settings"]}
    assert (
        found["allow-cleartext"] == ["true"] and found["mode"] == ["s3", "ftp"] and found["encryption-key-file"] == []
    )
    assert [port.rsplit(":", 1)[1] for port in gateway["ports"]] == image.ports
    assert hub["profiles"] == ["hub"] and hub["image"] == gateway["image"]
    # The Hub's own command, with a free port.
    command = [word.replace("0.0.0.0:8080", "127.0.0.1:0") for word in hub["command"]]
    served = subprocess.Popen(image.command(*command), env=image.env, stdout=subprocess.PIPE, text=True)
    try:
        assert served.stdout.readline().startswith("http://127.0.0.1:")
    finally:
        served.terminate()
        assert served.wait(30) == 0
        time.sleep(0.1)
    shutil.rmtree(image.root / "data/hub")
