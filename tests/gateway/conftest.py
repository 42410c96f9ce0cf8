"""What the tests of the S3 gateway share: an embedded Hub, gateways over plain and encrypted buckets, and clients.

Binaries come from HFCRYPT_BIN (default target/debug). Each test has its own folder, free ports, and processes that it
ends itself.
"""

import os
import signal
import subprocess
from pathlib import Path

import boto3
import pytest
from botocore.config import Config

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("HFCRYPT_BIN", ROOT / "target" / "debug"))
# Programs that were installed beside this Python.
TOOLS = Path(os.sys.prefix) / "bin"
ACCESS, SECRET = "test-access-key", "test-secret-key"


def run(*command, check=True, **options):
    """Runs one of our programs, or another, and returns the finished process with its output as text."""
    found = next((folder / command[0] for folder in (BIN, TOOLS) if (folder / command[0]).exists()), command[0])
    options.setdefault("text", True)
    done = subprocess.run([str(found), *map(str, command[1:])], capture_output=True, timeout=300, **options)
    if check and done.returncode != 0:
        raise AssertionError(f"{command} returned {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


class Program:
    """A program of ours that prints its URL when it is ready."""

    def __init__(self, *command, env=None, log=None):
        self.command, self.env = [str(part) for part in command], env
        self.log = open(log, "ab") if log else subprocess.DEVNULL
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [BIN / self.command[0], *self.command[1:]],
            stdout=subprocess.PIPE, stderr=self.log, text=True, env=self.env,
        )
        self.url = self.process.stdout.readline().strip()
        assert self.url.startswith(("http://", "https://", "ftp://")), f"{self.command} printed {self.url!r}"

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=60) == 0

    def kill(self):
        self.process.kill()
        self.process.wait(timeout=60)


class Gateway(Program):
    """`hugbucket s3` over the Hub of a test."""

    def __init__(self, home, *options, name="gateway", env=None):
        env = {**os.environ, "AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, **(env or {})}
        env = {name: value for name, value in env.items() if value is not None}
        self.data, self.cache, self.access_log = home / name / "data", home / name / "cache", home / f"{name}.access"
        folders = ["--cache-dir", self.cache, "--access-log", self.access_log]
        folders += [] if "--state" in options else ["--data-dir", self.data]
        command = ["hugbucket", "s3", "--listen", "127.0.0.1:0", *folders, *options]
        super().__init__(*command, env=env, log=home / f"{name}.log")

    def client(self, access=ACCESS, secret=SECRET, **config):
        """A boto3 client with its default settings."""
        return boto3.client(
            "s3", endpoint_url=self.url, aws_access_key_id=access, aws_secret_access_key=secret,
            region_name="us-east-1", config=Config(retries={"max_attempts": 0}, **config),
        )


def is_metadata(path):
    """True for a stored key that holds metadata of an object."""
    return path.startswith((".hugbucket/metadata/", ".enc/-M2/"))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder of its own, without the settings of the user."""
    for name in [name for name in os.environ if name.startswith(("HF_", "XDG_", "HFCRYPT_KEY", "AWS_"))]:
        monkeypatch.delenv(name)
    for name, value in {
        "HOME": tmp_path, "HF_HOME": tmp_path / "hf", "HF_XET_CACHE": tmp_path / "hf-xet", "HF_TOKEN": "hf_local",
        "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, str(value))
    return tmp_path


@pytest.fixture
def hub(home, monkeypatch):
    hub = Program("hugbucket", "hub", "--dir", home / "hub", "--listen", "127.0.0.1:0")
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    yield hub
    if hub.process.poll() is None:
        hub.stop()


@pytest.fixture
def key(home):
    path = home / "key"
    run("hfcrypt", "keygen", path)
    return path


def starting(kind, home):
    """Yields a function that starts programs of a kind. Stops those that a test leaves running."""
    started = []

    def start(*options, **named):
        started.append(kind(home, *options, **named))
        return started[-1]

    yield start
    for program in started:
        if program.process.poll() is None:
            program.stop()


@pytest.fixture
def gateways(home, hub):
    """Starts gateways, and stops those that a test leaves running."""
    yield from starting(Gateway, home)


@pytest.fixture(params=["plain", "encrypted"])
def options(request):
    """Options of a gateway without a key, then of one with a key."""
    return ["--encryption-key-file", request.getfixturevalue("key")] if request.param == "encrypted" else []


@pytest.fixture
def gateway(options, gateways):
    """A gateway without a key, then one with a key."""
    gateway = gateways(*options)
    gateway.options = options
    return gateway


@pytest.fixture
def s3(gateway):
    """A client, and a bucket `data`."""
    client = gateway.client()
    client.create_bucket(Bucket="data")
    return client


@pytest.fixture
def api(hub):
    """The official client of the Hub."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub.url, token="hf_local")
