"""What the outside tests share: our binaries, a served Hub, the official client, mounts.

Everything runs below one temporary folder a test, on free ports, as the current user. Binaries come
from HFCRYPT_BIN (default target/debug). Where FUSE can't be used the mount tests are reported as
skipped; with CI=true that is a failure.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("HFCRYPT_BIN", ROOT / "target" / "debug"))
CI = os.environ.get("CI") == "true"


def fuse_missing():
    """Why no FUSE mount can be made here, or None."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse: {error.strerror}"
    if os.geteuid() != 0 and not shutil.which("fusermount3"):
        return "neither root nor fusermount3"
    return None


needs_fuse = pytest.mark.skipif(bool(fuse_missing()) and not CI, reason=f"no FUSE here: {fuse_missing()}")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder of its own: caches, tokens, pid files and logs of every tool end up in it."""
    home = tmp_path / "home"
    home.mkdir()
    for name in [n for n in os.environ if n.startswith(("HF_", "XDG_", "HFCRYPT_KEY"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    monkeypatch.setenv("HF_XET_CACHE", str(home / "hf-xet"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return home


def run(*command, check=True, **options):
    """Runs one of our programs (or another) and gives the finished process, output as text."""
    command = [str(BIN / command[0]) if (BIN / command[0]).exists() else command[0], *map(str, command[1:])]
    options.setdefault("text", True)
    done = subprocess.run(command, capture_output=True, timeout=300, **options)
    if check and done.returncode != 0:
        raise AssertionError(f"{command} gave {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


class Hub:
    """`hugbucket hub` over a directory."""

    def __init__(self, directory):
        self.directory = directory
        self.process = None
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [BIN / "hugbucket", "hub", "--dir", self.directory, "--listen", "127.0.0.1:0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.url = self.process.stdout.readline().strip()
        assert self.url.startswith("http://127.0.0.1:"), self.url

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=30) == 0


@pytest.fixture
def hub(tmp_path, home, monkeypatch):
    hub = Hub(tmp_path / "hub")
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", "hf_local")
    yield hub
    hub.stop()


@pytest.fixture
def api(hub):
    """The official client, of the user `local`."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub.url, token="hf_local")


class Mount:
    """One `hf-mount start`."""

    def __init__(self, point, *options, source="local/test", kind="bucket", after=(), check=True):
        self.point = point
        self.started = run("hf-mount", "start", *options, kind, source, point, *after, check=check)

    def stop(self, *options, check=True):
        return run("hf-mount", "stop", *options, self.point, check=check)

    def status(self):
        mounts = json.loads(run("hf-mount", "status", "--json").stdout)["mounts"]
        return next(m for m in mounts if m["mountpoint"] == str(self.point))

    def pid(self):
        return self.status()["pid"]


@pytest.fixture
def mount(tmp_path, home):
    """Makes mounts and ends those that a test left."""
    mounts = []

    def make(*options, name="mnt", **named):
        mounts.append(Mount(tmp_path / name, *options, **named))
        return mounts[-1]

    yield make
    for one in reversed(mounts):
        if os.path.ismount(one.point):
            run("hf-mount", "stop", "--force", one.point, check=False)


@pytest.fixture
def key(tmp_path, home):
    path = tmp_path / "key.bin"
    run("hfcrypt", "keygen", path)
    return path


def tree(folder):
    """Every file below a folder: relative path -> bytes."""
    folder = Path(folder)
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def write_tree(folder, files):
    for name, data in files.items():
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def eventually(condition, seconds=30):
    """Waits until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
