"""Several mounts of one bucket, each with its own caches and its own gate to the Hub; and what must
be in the bucket in the end.

Every version that a mount acknowledged carries a token of its own and those of the version it was made from.
In the end no token may be missing from all files together, unless somebody who had read it removed it.
"""

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

from gate import Gate
from shared import BIN, Hub, eventually, run

TOKEN = re.compile(rb"\[[A-Z]\w*-\d+\]")
BUCKET = "local/test"
LIBC = ctypes.CDLL(None, use_errno=True)
# A commit is read back 10 s after it; the mount looks each second. Seconds.
READ_BACK = 10
# Milliseconds: quiet time before an upload, and how long what was listed is believed.
QUICK = (30, 200)


def rename_onto_nothing(old, new):
    """Fails where something is."""
    noreplace, here = 1, -100
    if LIBC.renameat2(here, os.fsencode(old), here, os.fsencode(new), noreplace):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(new))


def tokens(data):
    return set(TOKEN.findall(data))


def set_home(folder):
    """A home of its own for this process and all that it starts."""
    home = Path(folder) / "home"
    home.mkdir()
    for name in [n for n in os.environ if n.startswith(("HF_", "XDG_", "HFCRYPT_KEY"))]:
        del os.environ[name]
    os.environ |= {
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_XET_CACHE": str(home / "hf-xet"),
        "HF_TOKEN": "hf_local",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


class Machine:
    """A mount with everything of its own."""

    def __init__(self, lab, name, *options):
        self.lab, self.name, self.options = lab, name, options
        self.folder = lab.folder / name
        self.folder.mkdir()
        self.point = self.folder / "mnt"
        self.gate = Gate(lab.hub.url)
        self.count = 0
        self.start()

    def start(self):
        key = ("--encryption-key-file", self.lab.key) if self.lab.key else ("--advanced-writes",)
        options = ("--cache-dir", self.folder / "cache", "--hub-endpoint", self.gate.url, *key, *self.options)
        debounce, ttl = self.lab.timing
        options += ("--no-disk-cache", "--flush-debounce-ms", debounce, "--metadata-ttl-ms", ttl)
        run("hf-mount", "start", *options, "--create", "bucket", BUCKET, self.point)
        self.pid = self.status()["pid"]

    def status(self):
        mounts = json.loads(run("hf-mount", "status", "--json").stdout)["mounts"]
        return next(m for m in mounts if m["mountpoint"] == str(self.point))

    def kill(self):
        """`kill -9`, and away with what the kernel still has of the mount."""
        os.kill(self.pid, signal.SIGKILL)
        eventually(lambda: not Path(f"/proc/{self.pid}").exists())
        subprocess.run(["umount", "-l", self.point], check=False, capture_output=True)

    def restart(self):
        self.kill()
        self.start()

    def flush(self, codes=(0, 21)):
        """Until all is on the Hub; a conflict is no failure here."""
        done = run("hf-mount", "flush", self.point, check=False)
        assert done.returncode in codes, done.stderr

    def flushing(self):
        """The same in the background."""
        return subprocess.Popen(
            [BIN / "hf-mount", "flush", self.point], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def stop(self):
        if os.path.ismount(self.point):
            run("hf-mount", "stop", "--force", self.point, check=False)
        self.gate.close()

    # What a program does. Each gives its token once the file was closed: from then on it must not be lost.

    def token(self):
        with self.lab.lock:
            self.count += 1
            return b"[%s-%d]" % (self.name.upper().encode(), self.count)

    def path(self, name):
        return self.point / name

    def read(self, name):
        return self.path(name).read_bytes()

    def append(self, name):
        """Reads all, adds a token."""
        token = self.token()
        with open(self.path(name), "r+b") as file:
            known = tokens(file.read())
            file.write(token)
        return self.lab.acknowledged(token, known)

    def create(self, name, size=0):
        token = self.token()
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        with open(self.path(name), "xb") as file:
            file.write(token + bytes(size))
        return self.lab.acknowledged(token)

    def overwrite(self, name):
        """Reads all, and writes something else in its place."""
        token = self.token()
        with open(self.path(name), "r+b") as file:
            self.lab.removed(tokens(file.read()))
            file.truncate(0)
            file.seek(0)
            file.write(token)
        return self.lab.acknowledged(token)

    def unlink(self, name):
        with self.held(name):
            self.path(name).unlink()

    def rename(self, old, new):
        try:
            with self.held(new):
                self.path(old).rename(self.path(new))
        except FileNotFoundError:
            rename_onto_nothing(self.path(old), self.path(new))

    @contextlib.contextmanager
    def held(self, name):
        """Reads what is about to be removed. What is open for writing isn't replaced meanwhile by
        what others make of it."""
        with open(self.path(name), "r+b") as file:
            data = file.read()
            self.lab.removed(tokens(data))
            yield data

    def sees(self, name, token):
        """Waits until it shows a token somebody else wrote."""
        end = time.monotonic() + 20
        while True:
            try:
                if token in self.read(name):
                    return
            except FileNotFoundError:
                pass
            assert time.monotonic() < end, f"{self.name} never saw {token} in {name}"
            time.sleep(0.05)


class Lab:
    def __init__(self, folder, encrypted, names="ab", options=None, timing=QUICK):
        self.timing = timing
        self.folder = Path(folder)
        self.folder.mkdir(exist_ok=True)
        self.lock = threading.Lock()
        self.must, self.may_go, self.made_from = set(), set(), {}
        self.hub = Hub(self.folder / "hub")
        self.key = None
        if encrypted:
            self.key = self.folder / "key.bin"
            run("hfcrypt", "keygen", self.key)
        self.machines = {}
        try:
            for name in names:
                self.machines[name] = Machine(self, name, *(options or {}).get(name, ()))
        except BaseException:
            self.close()
            raise

    def __getattr__(self, name):
        try:
            return self.__dict__["machines"][name]
        except KeyError:
            raise AttributeError(name) from None

    def close(self):
        for machine in self.machines.values():
            machine.stop()
        self.hub.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def acknowledged(self, token, known=()):
        """A version with this token, and those of the version it was made from."""
        with self.lock:
            self.must.add(token)
            self.made_from[token] = set(known)
        return token

    def removed(self, tokens):
        """By somebody who had read them."""
        with self.lock:
            self.may_go |= tokens

    def stored_key(self, name):
        """What marks a path in requests."""
        if not self.key:
            return name
        key = run("hfcrypt", "name", "encrypt", "--key-file", self.key, name).stdout.strip()
        return json.dumps(key, ensure_ascii=False)[1:-1]

    def settle(self):
        """Until every commit was read back, and so was what that led to: copies are commits too."""
        for _ in range(2):
            for machine in self.machines.values():
                machine.flush()
            time.sleep(READ_BACK + 2.5)

    def settle_after_faults(self):
        """The same where reading back may have failed: a new start tries it again, without the
        pause that a failure brings."""
        for _ in range(2):
            for machine in self.machines.values():
                machine.flush()
                machine.restart()
            time.sleep(READ_BACK + 2.5)

    def contents(self, reader="reader"):
        """Everything in the bucket as somebody sees it who has nothing cached: path -> bytes."""
        machine = Machine(self, reader, "--read-only")
        try:
            found = {str(p.relative_to(machine.point)): p.read_bytes() for p in machine.point.rglob("*") if p.is_file()}
            hidden = machine.status()["unreadable_entries"]
            self.hidden = hidden
            return found
        finally:
            machine.stop()
            shutil.rmtree(machine.folder, ignore_errors=True)

    def missing(self, found):
        there = set().union(*(tokens(data) for data in found.values()))
        with self.lock:
            return sorted((self.must - self.may_go) - there)


def held_append(lab, machine, name, at="commit"):
    """Changes a file and waits until its commit, or the look before it, is held; gives what releases that."""
    rule = machine.gate.hold(at, lab.stored_key(name))
    machine.append(name)
    rule.wait()
    return rule


def overlap(lab, name, held, do_held, first, do_first):
    """`held` compares with what is there; then `first` compares and commits; then `held` commits
    what concerns `name`."""
    rule = held.gate.hold("commit", lab.stored_key(name))
    do_held()
    rule.wait()
    do_first()
    first.flush()
    rule.release()
    held.flush()
