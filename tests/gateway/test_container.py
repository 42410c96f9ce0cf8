"""The container image: its root is laid out by the Dockerfile's own steps, entered as its user, and used.

No container engine is needed. Instructions come from the Dockerfile, the sources are those that .dockerignore lets
through, and settings come from the `docker run` lines of docs/gateway.md. As in a container, the program is process 1,
and has a network of its own. So it can have its real ports: nothing outside sees them.
"""

import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from itertools import groupby
from pathlib import Path

import pytest
import yaml
from conftest import BIN, ROOT, TOOLS, Program

SYSTEM = f"{os.environ['PATH']}:/usr/sbin:/sbin"
CHROOT, NSENTER, UNSHARE = (shutil.which(name, path=SYSTEM) for name in ("chroot", "nsenter", "unshare"))
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "container"
HUB = "http://127.0.0.1:8080"
# In place of what the documents leave out.
VALUES = {"HF_TOKEN": "hf_local", "AWS_SECRET_ACCESS_KEY": "secret", "FTP_PASSWORD": "secret"}


def missing():
    """Returns what keeps this machine from entering another root, or an empty text."""
    if os.geteuid() != 0:
        return "entering another root needs root"
    if not UNSHARE or subprocess.run([UNSHARE, "--net", "--pid", "--fork", "true"], capture_output=True).returncode:
        return "no namespaces here"
    return ""


pytestmark = pytest.mark.skipif(bool(missing()) and os.environ.get("CI") != "true", reason=missing() or "none")


def stages():
    """Returns the stages of the Dockerfile, each with the arguments of its instructions by name."""
    found = []
    for line in re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text()).splitlines():
        if line and not line.startswith("#"):
            name, rest = line.split(None, 1)
            if name == "FROM":
                found.append({})
            found[-1].setdefault(name, []).append(rest)
    return found


def copy_context(folder):
    """Copies what .dockerignore lets through. Unchanged files keep their times, so cargo doesn't compile them again."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*" and all(line.startswith("!") for line in lines[1:])
    found = {path for line in lines[1:] for top in ROOT.glob(line[1:]) for path in (top, *top.rglob("*"))}
    files = {path.relative_to(ROOT): path for path in found if path.is_file()}
    for old in [path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder) not in files]:
        old.unlink()
    for name, path in files.items():
        copied = folder / name
        if not copied.exists() or copied.read_bytes() != path.read_bytes():
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copied)
        shutil.copymode(path, copied)


class Image:
    """The built root, and what the last stage says about it."""

    def __init__(self, home, source):
        last = stages()[-1]
        single = lambda name: last[name][0] if len(last[name]) == 1 else pytest.fail(f"{name} is there twice")
        assert single("FROM") == "scratch" and single("COPY") == f"--from=build {source}/ /"
        self.root = home / source.lstrip("/")
        # Before anything is added that engines add.
        self.tree = {str(path.relative_to(self.root)): path.lstat() for path in self.root.rglob("*")}
        self.env = dict(pair.split("=", 1) for pair in shlex.split(single("ENV")))
        self.user, self.entry = single("USER"), json.loads(single("ENTRYPOINT"))
        self.health = json.loads(single("HEALTHCHECK").split("CMD ", 1)[1])
        self.ports, self.volumes = single("EXPOSE").split(), json.loads(single("VOLUME"))

    def command(self, *arguments, command=None):
        return [CHROOT, f"--userspec={self.user}", self.root, *(command or self.entry), *map(str, arguments)]

    def run(self, *arguments, command=None, network=(), **env):
        command = [*network, *self.command(*arguments, command=command)]
        return subprocess.run(command, env={**self.env, **env}, capture_output=True, text=True, timeout=60)

    def settings(self, *arguments, **env):
        shown = self.run("config", "show", "--json", *arguments, **env)
        assert shown.returncode == 0, shown.stderr
        return {setting["name"]: setting["values"] for setting in json.loads(shown.stdout)["settings"]}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Carries out the steps of the first stage, with a profile that compiles faster than release."""
    first, home = stages()[0], tmp_path_factory.mktemp("image")
    assert first["COPY"] == [". ."] and first["FROM"][0].endswith(" AS build")
    copy_context(TARGET / "context")
    script = next(rest for rest in first["RUN"] if "container/build" in rest)
    words = shlex.split(re.sub(r"--mount=\S+", "", script))
    here = {word: str(home / word[1:]) for word in words if word.startswith("/")} | {"release": "quick"}
    steps = [list(step) for joint, step in groupby(words, lambda word: word == "&&") if not joint]
    assert [step[0] for step in steps] == ["container/build", "container/root"]
    for step in steps:
        env = {**os.environ, "CARGO_TARGET_DIR": str(TARGET)}
        step = [here.get(word, word) for word in step]
        subprocess.run(step, cwd=TARGET / "context", env=env, check=True, stdout=subprocess.DEVNULL)
    built = Image(home, words[-1])
    # Test folders are closed to others, and the image's user is another one.
    for folder in (home, *home.parents):
        if folder == folder.parent or folder.stat().st_mode & 0o001:
            break
        folder.chmod(folder.stat().st_mode | 0o011)
    # Container engines give each container these.
    (built.root / "dev").mkdir()
    for name, minor in (("null", 3), ("random", 8), ("urandom", 9)):
        os.mknod(built.root / "dev" / name, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
        (built.root / "dev" / name).chmod(0o666)
    yield built
    shutil.rmtree(home)


@pytest.fixture
def image(built):
    """The image. Afterwards, what a test has added or the program has written is removed."""
    kept = set(built.root.rglob("*"))
    yield built
    for path in sorted(set(built.root.rglob("*")) - kept, reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.fixture
def network():
    """The beginning of commands that run in a new network, which has a loopback interface only."""
    up = (
        "import fcntl, socket, struct, sys\n"
        "SIOCSIFFLAGS, IFF_UP = 0x8914, 1\n"
        "fcntl.ioctl(socket.socket(), SIOCSIFFLAGS, struct.pack('16sh14x', b'lo', IFF_UP))\n"
        "print('up', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [UNSHARE, "--net", sys.executable, "-c", up]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "up\n"
        yield [NSENTER, f"--net=/proc/{holder.pid}/ns/net"]
        # At the end of its input it ends.


@pytest.fixture
def hub(network, home):
    """An embedded Hub of this machine's own programs, beside the container."""
    hub = Program(*network, BIN / "hugbucket", "hub", "--dir", home / "hub", "--listen", HUB.removeprefix("http://"))
    yield hub
    if hub.process.poll() is None:
        hub.stop()


class Container:
    """A started container: the environment is that of `docker run -e`, and a stop is that of `docker stop`."""

    def __init__(self, image, network, **env):
        self.log = image.root.with_name("log")
        command = [*network, UNSHARE, "--pid", "--fork", "--kill-child", *image.command()]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command, env={**image.env, **env}, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self.modes = env["MODE"].split(",")

    def __enter__(self):
        self.urls = [self.process.stdout.readline().strip() for _ in self.modes]
        assert all(self.urls), self.log.read_text()
        return self

    def __exit__(self, *failure):
        assert self.stop(seconds=60) == 0

    def stop(self, seconds):
        # A signal without a handler doesn't reach process 1.
        (child,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        assert "1" == re.search(r"^NSpid:.*\s(\d+)$", Path(f"/proc/{child}/status").read_text(), re.MULTILINE)[1]
        os.kill(int(child), signal.SIGTERM)
        try:
            return self.process.wait(timeout=seconds)
        finally:
            self.process.kill()


def documented(mode):
    """Returns the environment and the published ports of the line of `docker run` for a mode."""
    text = re.sub(r"\\\n", " ", (ROOT / "docs" / "gateway.md").read_text())
    lines = [line for line in text.splitlines() if line.startswith("    docker run") and f" MODE={mode} " in line]
    words = shlex.split(lines[0])
    assert words[-1] == "hugbucket"
    of = lambda option: [value for name, value in zip(words, words[1:]) if name == option]
    env = dict(pair.split("=", 1) for pair in of("-e"))
    env = {name: VALUES.get(name, value) for name, value in env.items()}
    assert not any("…" in value for value in env.values())
    return {**env, "HF_ENDPOINT": HUB}, [port.split(":")[-2:] for port in of("-p")]


def aws(network, url, *words):
    env = {**os.environ, "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    command = [*network, TOOLS / "aws", "--endpoint-url", url, "s3", *map(str, words)]
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True, timeout=120).stdout


def curl(network, *words):
    command = [*network, "curl", "-sSf", "-u", "me:secret", *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, timeout=120).stdout


def reached(url):
    """Returns the URL under which clients find a server that listens on all addresses."""
    return url.replace("0.0.0.0", "127.0.0.1")


def needs_interpreter(program):
    """Returns true if a program of ELF needs a dynamic linker: it has a segment of the type PT_INTERP."""
    data = program.read_bytes()
    assert data[:6] == b"\x7fELF\x02\x01"
    at, size, count = (int.from_bytes(data[a:b], "little") for a, b in ((32, 40), (54, 56), (56, 58)))
    types = [int.from_bytes(data[at + size * index : at + size * index + 4], "little") for index in range(count)]
    assert 1 in types, "a program has segments that are loaded"
    return 3 in types


def test_image_holds_one_static_program(image):
    assert needs_interpreter(Path(sys.executable).resolve()), "the test sees those that aren't static"
    assert not needs_interpreter(image.root / "usr/bin/hugbucket")
    files = {name for name, status in image.tree.items() if not stat.S_ISDIR(status.st_mode)}
    assert files == {"usr/bin/hugbucket", "etc/passwd", "etc/group", "etc/ssl/certs/ca-certificates.crt"}
    folders = {"usr", "usr/bin", "etc", "etc/ssl", "etc/ssl/certs", "data", "tmp"}
    assert set(image.tree) - files == folders


def test_image_lets_its_user_write_state_and_temporary_files_only(image):
    user, group = map(int, image.user.split(":"))
    assert user != 0 and group != 0
    assert re.search(rf"^hugbucket:x:{user}:{group}:", (image.root / "etc/passwd").read_text(), re.MULTILINE)
    assert re.search(rf"^hugbucket:x:{group}:", (image.root / "etc/group").read_text(), re.MULTILINE)
    assert [f"/{name}" for name, status in image.tree.items() if status.st_uid == user] == image.volumes
    modes = {name: stat.S_IMODE(status.st_mode) for name, status in image.tree.items()}
    assert {name for name, mode in modes.items() if mode & 0o022} == {"tmp"} and modes["tmp"] == 0o1777


def test_image_listens_everywhere_at_exposed_ports(image):
    found = image.settings(MODE="s3,ftp")
    assert found["s3-listen"] == [f"0.0.0.0:{image.ports[0]}"]
    assert found["ftp-listen"] == [f"0.0.0.0:{image.ports[1]}"]
    assert found["passive-ports"] == [image.ports[2]]
    assert image.env["MODE"] == "s3"


def test_container_refuses_passwords_in_clear_without_a_decision(image):
    env, _ = documented("ftp")
    del env["HUGBUCKET_ALLOW_CLEARTEXT"]
    refused = image.run(**env)
    assert refused.returncode == 2 and "--allow-cleartext" in refused.stderr


def test_documented_container_serves_s3(image, network, hub, home):
    env, published = documented("s3")
    assert published == [[image.ports[0]] * 2]
    (home / "file").write_bytes(os.urandom(1 << 20))
    with Container(image, network, **env) as container:
        url = reached(container.urls[0])
        assert url == f"http://127.0.0.1:{image.ports[0]}"
        aws(network, url, "mb", "s3://data")
        aws(network, url, "cp", home / "file", "s3://data/folder/file")
        assert str(1 << 20) in aws(network, url, "ls", "s3://data/folder/file").split()
        aws(network, url, "cp", "s3://data/folder/file", home / "back")
        assert (home / "back").read_bytes() == (home / "file").read_bytes()
    # State and caches are in the volume.
    for folder in ("state/hugbucket", "cache/hugbucket"):
        assert any((image.root / "data" / folder).iterdir())


def test_documented_container_serves_ftp(image, network, hub, home):
    env, published = documented("ftp")
    assert published == [[image.ports[1]] * 2, [image.ports[2]] * 2]
    (home / "file").write_bytes(os.urandom(1 << 20))
    with Container(image, network, **env, HUGBUCKET_ALLOW_BUCKET_CHANGES="true") as container:
        url = reached(container.urls[0])
        assert url == f"ftp://127.0.0.1:{image.ports[1]}"
        curl(network, "--ftp-create-dirs", "-T", home / "file", f"{url}/data/folder/file")
        assert curl(network, "--list-only", f"{url}/data/folder/").split() == [b"file"]
        assert curl(network, f"{url}/data/folder/file") == (home / "file").read_bytes()
        # The port of data connections is a published one, at the named address.
        command = [*network, "curl", "-sSv", "--disable-epsv", "-u", "me:secret", "-o", home / "back"]
        command += [f"{url}/data/folder/file"]
        replies = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stderr
        high, low = map(int, re.search(r"< 227 .*\(127,0,0,1,(\d+),(\d+)\)", replies).groups())
        first, last = map(int, image.ports[2].split("-"))
        assert first <= high * 256 + low <= last and (home / "back").read_bytes() == (home / "file").read_bytes()


def test_container_serves_both_protocols_over_same_objects(image, network, hub, home):
    env, _ = documented("ftp")
    env |= documented("s3")[0] | {"MODE": "s3,ftp"}
    (home / "file").write_bytes(os.urandom(1 << 20))
    with Container(image, network, **env) as container:
        s3, ftp = map(reached, container.urls)
        aws(network, s3, "mb", "s3://data")
        aws(network, s3, "cp", home / "file", "s3://data/by-s3")
        assert curl(network, f"{ftp}/data/by-s3") == (home / "file").read_bytes()
        curl(network, "-T", home / "file", f"{ftp}/data/by-ftp")
        aws(network, s3, "cp", "s3://data/by-ftp", home / "back")
        assert (home / "back").read_bytes() == (home / "file").read_bytes()


def test_health_check_tells_whether_hub_is_reached(image, network, hub):
    env, _ = documented("s3")
    checked = lambda: image.run(command=image.health, network=network)
    assert checked().returncode == 5, "nothing runs yet"
    with Container(image, network, **env):
        healthy = checked()
        assert healthy.returncode == 0, healthy.stderr
        hub.stop()
        assert checked().returncode == 5
    assert checked().returncode == 5


def test_stop_ends_container_that_waits_for_hub(image, network):
    container = Container(image, network, **documented("s3")[0])
    deadline = time.monotonic() + 20
    while "Hub request is repeated" not in container.log.read_text():
        assert container.process.poll() is None and time.monotonic() < deadline, container.log.read_text()
        time.sleep(0.05)
    # After 10 s engines kill a container.
    container.stop(seconds=10)


def compose():
    return yaml.safe_load((ROOT / "compose.yaml").read_text())


@pytest.mark.parametrize("encrypts", [False, True], ids=["plain", "encrypted"])
def test_key_of_compose_file_hides_names_and_content(image, network, hub, key, home, encrypts):
    env, _ = documented("s3")
    # ${HUGBUCKET_KEY:+PATH} is PATH if the variable is set. Engines mount a secret as the file that it is.
    value = compose()["services"]["gateway"]["environment"]["HFCRYPT_KEY_FILE"]
    path = re.fullmatch(r"\$\{HUGBUCKET_KEY:\+(.+)\}", value)[1]
    mounted = image.root / path.lstrip("/")
    mounted.parent.mkdir(parents=True)
    shutil.copy(key, mounted)
    mounted.chmod(0o400)
    os.chown(mounted, *map(int, image.user.split(":")))
    (home / "file").write_bytes(os.urandom(1 << 20))
    with Container(image, network, **env, HFCRYPT_KEY_FILE=path if encrypts else "") as container:
        url = reached(container.urls[0])
        aws(network, url, "mb", "s3://data")
        aws(network, url, "cp", home / "file", "s3://data/name-to-hide")
        aws(network, url, "cp", "s3://data/name-to-hide", home / "back")
    hub.stop()
    content = (home / "file").read_bytes()
    assert (home / "back").read_bytes() == content
    stored = [path.read_bytes() for path in (home / "hub").rglob("*") if path.is_file()]
    assert any(b"name-to-hide" in data for data in stored) is not encrypts
    assert any(content[4096:4128] in data for data in stored) is not encrypts


def test_compose_file_names_settings_of_image(image):
    gateway = compose()["services"]["gateway"]
    known = {"HUGBUCKET_" + name.upper().replace("-", "_") for name in image.settings()}
    known |= {"MODE", "HF_TOKEN", "HF_ENDPOINT", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HFCRYPT_KEY_FILE"}
    assert set(gateway["environment"]) <= known
    # Each variable with a value that the program takes; an empty one counts as not set.
    found = image.settings(**{name: value.split("${")[0] for name, value in gateway["environment"].items()})
    assert found["mode"] == ["s3", "ftp"] and found["allow-cleartext"] == ["true"]
    assert found["encryption-key-file"] == []
    assert [port.rsplit(":", 1)[1] for port in gateway["ports"]] == image.ports


def test_compose_file_mounts_what_it_defines(image):
    whole = compose()
    services = whole["services"]
    # Engines don't kill a gateway that finishes transfers.
    grace = int(services["gateway"]["stop_grace_period"].removesuffix("s"))
    assert grace > int(image.settings()["stop-timeout-secs"][0])
    for service in services.values():
        assert service["image"] == services["gateway"]["image"] and service["read_only"] is True
        volumes = [volume.split(":") for volume in service["volumes"]]
        assert {name for name, _ in volumes} <= set(whole["volumes"])
        assert [place for _, place in volumes] == image.volumes
    (secret,) = services["gateway"]["secrets"]
    assert secret in whole["secrets"]
    assert services["gateway"]["environment"]["HFCRYPT_KEY_FILE"].rstrip("}").endswith(f"/run/secrets/{secret}")
    assert services["hub"]["profiles"] == ["hub"] and "profiles" not in services["gateway"]


def test_gateway_uses_hub_of_compose_file(image, network, home):
    command = compose()["services"]["hub"]["command"]
    # There is no name service in this network.
    command = [word.replace("http://hub:", "http://127.0.0.1:") for word in command]
    hub = Program(*network, *image.command(*command), env=image.env)
    try:
        (home / "file").write_bytes(b"1")
        with Container(image, network, **documented("s3")[0]) as container:
            url = reached(container.urls[0])
            aws(network, url, "mb", "s3://data")
            aws(network, url, "cp", home / "file", "s3://data/file")
            assert aws(network, url, "cp", "s3://data/file", "-") == "1"
    finally:
        hub.stop()
