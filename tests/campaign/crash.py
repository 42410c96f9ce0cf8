#!/usr/bin/env python3
"""The crash campaign: is anything lost that a mount has acknowledged?

    tests/campaign/crash.py encrypted|plain [--rounds N] [--minutes M] [--seed N] [--faults on|off] [--keep DIR]

Writers work in a real mount of a served Hub. In each round the daemon is killed at a chosen moment (a system call, a
request on its way, a flush, a stop, its own start), often more than once, the Hub sometimes too. Then the mount is
started again, and what is there is held against what was acknowledged (docs/semantics.md, "Durability"); what the
Hub has, against what no kill may take from it. On mounts with a key every byte that was written or sent is searched
for names, contents and the key. Now and then, and at the end, everything is flushed and compared at the Hub.

Ends with 0 if everything held, with 1 and the folder of the remains if not. The same seed makes the
same choices, not the same timing.
"""

import argparse
import base64
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from conftest import shared  # noqa: E402
from model import DIRECTORY, File, Violation  # noqa: E402
from proxy import ANSWERED, BEFORE, HANDLED, Proxy  # noqa: E402
from writer import CALLS, Writer, look  # noqa: E402

BUCKET = "local/test"
# Rounds that share a Hub and a cache folder; then both are checked to the last byte, and new ones are made.
WORLD = 40
# Rounds between two times that everything is flushed and the Hub's listing compared.
SETTLE = 5
WRITERS = 3
# Longest wait for a chosen moment, seconds; then the kill comes all the same, and is counted as one at random.
PATIENCE = 4.0
# A request in how many fails, with faults on.
FAULT_RATE = 0.12
# Longest that a whole step may take (a start, a flush of everything), seconds.
DEADLINE = 180
# Flags that decide when uploads begin: at once, soon, never.
PACES = ((20, 100), (100, 400), (100, 400), (400, 2000), (600_000, 600_000))

UPLOADS = ("xorb", "shard", "commit", "copy", "delete")
MOMENTS = [
    *(("call", name) for name in CALLS),
    *(("request", kind, when) for kind in UPLOADS for when in (BEFORE, HANDLED, ANSWERED)),
    *(("request", kind, HANDLED) for kind in ("token", "listing", "paths-info", "dedup")),
    *(("command", name) for name in ("flush", "flush", "stop", "stop", "umount")),
    *(("replay", kind) for kind in ("time", "time", "listing", "commit", "copy", "delete", "xorb", "shard")),
    *(("hub", how) for how in ("alone", "with the daemon")),
    *(("random",) for _ in range(3)),
]


def needles(mark, key):
    """What must not be found: the mark as names and contents carry it, and the key, in the forms
    that other layers might give them."""
    shifted = (base64.b64encode(b"\0" * n + mark)[4 if n else 0 : -4] for n in range(3))
    return {mark, mark.hex().encode(), mark.decode().encode("utf-16-le"), *shifted,
            key, key.hex().encode(), key.hex().upper().encode(), base64.b64encode(key)[:-4]}


class World:
    """A Hub, a proxy before it, a cache folder, a mount, and what its writers may expect of it."""

    def __init__(self, folder, side, seed, faults, counts):
        self.folder, self.side, self.with_faults, self.counts = Path(folder), side, faults, counts
        self.random = random.Random(seed)
        self.mark = "CANARY%08x" % self.random.getrandbits(32)
        self.point, self.cache, self.home = self.folder / "mnt", self.folder / "cache", self.folder / "home"
        for made in (self.home, self.folder / "cwd"):
            made.mkdir(parents=True)
        kept = {n: v for n, v in os.environ.items() if not n.startswith(("HF_", "XDG_", "HFCRYPT_KEY", "RUST_LOG"))}
        self.env = {**kept, "HOME": str(self.home), "HF_HOME": str(self.folder / "hf"), "HF_TOKEN": "hf_local", "HF_HUB_DISABLE_TELEMETRY": "1",
                    "HF_XET_CACHE": str(self.folder / "hf-xet"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        self.hub = shared.Hub(self.folder / "hub")
        # A mark in the stored prefix, too; without a key a prefix is no secret.
        self.prefix = f"{self.mark}-prefix/" if side == "encrypted" else ""
        self.key = self.folder / "key.bin"
        self.needles = set()
        if side == "encrypted":
            self.key.write_bytes(self.random.randbytes(32))
            self.key.chmod(0o600)
            self.needles = needles(self.mark.encode(), self.key.read_bytes())
        self.proxy = Proxy(self.hub_port(), self.inspect, self.random.getrandbits(32))
        self.violations, self.searched, self.keys, self.base = [], {}, {}, {}
        self.bytes_searched = 0
        self.dead, self.over, self.armed = threading.Event(), threading.Event(), None
        self.lock = threading.Lock()
        self.trouble, self.daemon, self.pid = False, None, None
        self.writers = [Writer(self, f"{self.mark}-w{n}", self.random.getrandbits(32)) for n in range(WRITERS)]
        self.cores = set(Path("/").glob("core*"))

    def open(self):
        """Makes bucket, mount, and a folder for each writer."""
        self.start(background=True, create=True)
        for writer in self.writers:
            writer.mkdir(writer.top)

    def hub_port(self):
        return int(self.hub.url.rsplit(":", 1)[1])

    def count(self, what):
        with self.lock:
            self.counts[what] += 1

    def run(self, *command, check=True, **env):
        return shared.run(*command, check=check, env={**self.env, "HF_ENDPOINT": self.proxy.url, **env})

    # --- the daemon --------------------------------------------------------------------------------------------------

    def options(self):
        debounce, window = self.random.choice(PACES)
        options = ["--cache-dir", self.cache, "--flush-debounce-ms", debounce, "--flush-max-batch-window-ms", window,
                   "--read-fetch-timeout-ms", 5000, "--flush-shutdown-timeout-ms", 20_000]
        options += ["--encryption-key-file", self.key] if self.side == "encrypted" else ["--advanced-writes"]
        # What a log says at its most talkative is searched, too.
        return options + (["-vv"] if self.random.random() < 0.1 else [])

    def source(self):
        return f"{BUCKET}/{self.prefix}".rstrip("/")

    def start(self, background=None, create=False):
        """Starts the daemon, as `hf-mount start` or in the foreground, and waits until the mount is live."""
        self.dead.clear()
        for attempt in range(4):
            options = self.options() + (["--create"] if create else [])
            if background if background is not None else self.random.random() < 0.5:
                done = self.run("hf-mount", "start", *options, "bucket", self.source(), self.point, check=False)
                code, said = done.returncode, done.stderr
                self.daemon, self.pid = None, self.registered() if code == 0 else None
            else:
                self.launch(options)
                code, said = self.wait_until_live()
            if code == 0:
                limits = Path(f"/proc/{self.pid}/limits").read_text()
                if "Max core file size        0                    0 " not in limits:
                    raise Violation("the daemon may dump its core")
                return
            # 5: the Hub could not be reached, which is only fair with faults.
            if code != 5 or not self.trouble:
                raise Violation(f"start ended with {code}: {said}")
            self.count("starts refused by faults")
            if attempt == 2:
                self.proxy.rate = 0
        raise Violation("start never succeeded")

    def launch(self, options):
        log = open(self.home / "foreground.log", "ab")
        command = [shared.BIN / "hf-mount-fuse", *options, "bucket", self.source(), self.point]
        with log:
            self.daemon = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder / "cwd",
                                           env={**self.env, "HF_ENDPOINT": self.proxy.url})
        self.pid = self.daemon.pid

    def registered(self):
        """The daemon's process id as it has registered it."""
        for path in (self.home / ".hf-mount/pids").glob("*.json"):
            try:
                return json.loads(path.read_bytes())["pid"]
            except (OSError, ValueError):
                pass
        return None

    def is_live(self):
        if self.registered() != self.pid:
            return False
        with socket.socket(socket.AF_UNIX) as control:
            return any(control.connect_ex(str(path)) == 0 for path in (self.home / ".hf-mount/pids").glob("*.sock"))

    def wait_until_live(self):
        end = time.monotonic() + DEADLINE
        while not self.is_live():
            if self.daemon.poll() is not None:
                lines = (self.home / "foreground.log").read_text(errors="replace").splitlines()
                return self.daemon.returncode, "\n".join(lines[-5:])
            if time.monotonic() > end:
                raise Violation("start does not come to an end")
            time.sleep(0.005)
        return 0, ""

    def kill(self):
        """SIGKILL, or now and then a signal that would leave a core dump; from any thread, once."""
        with self.lock:
            if self.dead.is_set():
                return
            self.dead.set()
            self.waiting = +self.proxy.open
        how = signal.SIGABRT if self.random.random() < 0.1 else signal.SIGKILL
        try:
            os.kill(self.pid, how)
        except ProcessLookupError:
            pass

    def wait_dead(self):
        end = time.monotonic() + DEADLINE
        if self.daemon is not None:
            self.daemon.wait(timeout=DEADLINE)
        while self.pid is not None and os.path.exists(f"/proc/{self.pid}"):
            if time.monotonic() > end:
                raise Violation("the daemon does not die")
            time.sleep(0.002)

    # --- moments -----------------------------------------------------------------------------------------------------

    def about(self, name):
        """A writer is about to make a call: the moment that a kill may have been aimed at."""
        armed = self.armed
        if armed and armed[0] == name:
            with self.lock:
                armed[1] -= 1
                now = armed[1] == 0
            if now:
                threading.Timer(self.random.choice([0, 0, 0.0003, 0.001, 0.003]), self.kill).start()

    def prefer(self, kinds):
        """Makes what a kill is aimed at more likely."""
        wanted = {"rename crowd": ("crowd", "recrowd"), "rename over folder": ("onto",), "rename over file": ("over", "save"), "rename link": ("symlink", "link"),
                  "rename folder": ("mkdir", "folder"), "rename file": ("move",), "rmdir": ("mkdir", "rmdir"), "truncate": ("truncate",), "symlink": ("symlink",),
                  "open to replace": ("replace",), "copy": ("move", "folder"), "delete": ("unlink", "over"), "fsync": ("save",)}
        for kind in wanted.get(self.armed[0] if self.armed else None, ()):
            kinds[kind] = max(kinds[kind], 1) * 4

    def search(self, *folders):
        """Looks for marks in all that was written since the last time."""
        for folder in folders:
            for path in Path(folder).rglob("*"):
                name = os.fsencode(path.relative_to(self.folder))
                self.inspect(name, "the name of a file")
                try:
                    about = path.lstat()
                    state = (about.st_ino, about.st_size, about.st_mtime_ns)
                    if not path.is_file() or self.searched.get(path) == state:
                        continue
                    data = path.read_bytes()
                except FileNotFoundError:
                    continue
                self.searched[path] = state
                self.inspect(data, path)

    def inspect(self, data, where="a request or an answer"):
        with self.lock:
            self.bytes_searched += len(data)
        for needle in self.needles:
            if needle in data:
                at = data.index(needle)
                self.violations.append(Violation(f"a mark in {where}, at {at}: {data[max(0, at - 60):at + 60]!r}"))
                self.over.set()

    def check_remains(self):
        """What a kill has left: no mark anywhere, no core dump."""
        self.search(self.cache, self.home, self.hub.directory, self.folder / "cwd")
        cores = [*({*Path("/").glob("core*")} - self.cores), *(self.folder / "cwd").glob("*")]
        if cores:
            raise Violation(f"a core dump: {cores}")

    # --- the Hub -----------------------------------------------------------------------------------------------------

    def api(self):
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.hub.url, token="hf_local")

    def listing(self):
        """Key -> hash, as the official client sees it."""
        return {f.path: f.xet_hash for f in self.api().list_bucket_tree(BUCKET, recursive=True) if f.type == "file"}

    def key_of(self, paths):
        """The keys at which files are stored."""
        paths = list(paths)
        if self.side == "plain":
            return {path: path for path in paths}
        missing = [path for path in paths if path not in self.keys]
        if missing:
            names = (self.prefix + path for path in missing)
            out = self.run("hfcrypt", "name", "encrypt", "-0", "--key-file", self.key, *names).stdout
            self.keys.update(zip(missing, out.split("\0")))
        return {path: self.keys[path] for path in paths}

    def kill_hub(self):
        self.hub.process.kill()
        self.hub.process.wait()

    def restart_hub(self):
        self.hub.start()
        self.proxy.target = self.hub_port()

    def check_hub(self):
        """With the daemon dead: nothing that the Hub had, and nobody gave up, is missing there; a
        renamed file has one of its names."""
        self.proxy.quiet()
        there = self.listing()
        hashes = set(there.values())
        certain, moved, ever = set(), set(), set()
        for writer in self.writers:
            trees = [{id(node) for node in tree.values()} for tree in writer.log.possible()]
            certain |= set.intersection(*trees)
            moved |= writer.log.moved
            ever |= writer.log.ever
        for path, (node, key, digest) in self.base.items():
            if id(node) in certain and digest not in hashes:
                raise Violation(f"the Hub has lost the content of {path}, which was only renamed, if at all")
            if path not in moved and key not in there:
                raise Violation(f"the Hub has lost {path}, which nobody removed or renamed")
        if self.side == "plain" and (strange := there.keys() - ever - self.base.keys()):
            raise Violation(f"the Hub has what nobody wrote: {sorted(strange)[:5]}")
        self.count("Hub looked at after a kill")

    def files(self):
        """All files that there must be, once everything is known."""
        trees = [writer.log.trees[0] for writer in self.writers]
        return {path: node for tree in trees for path, node in tree.items() if isinstance(node, File)}

    def check_settled(self):
        """The Hub has exactly the files that were acknowledged; remembers what it has of them."""
        files = self.files()
        keys = self.key_of(files)
        there = self.listing()
        if there.keys() != set(keys.values()):
            back = {key: path for path, key in self.keys.items()}
            extra = [back.get(key, key) for key in there.keys() - set(keys.values())]
            lacking = [path for path, key in keys.items() if key not in there]
            raise Violation(f"the Hub lacks {len(lacking)}: {lacking[:5]}, and has {len(extra)} besides: {extra[:5]}")
        self.base = {path: (node, keys[path], there[keys[path]]) for path, node in files.items()}
        for writer in self.writers:
            writer.log.reached_the_hub()
        self.count("Hub compared with all that was acknowledged")

    def settle(self):
        """Flushes everything; nothing may be left over, and the Hub has to have it all."""
        done = self.run("hf-mount", "flush", self.point, check=False)
        status = json.loads(self.run("hf-mount", "status", "--json").stdout)["mounts"][0]
        left = {name: status[name] for name in ("pending_files", "parked_files", "conflicts", "unreadable_entries") if status[name]}
        if done.returncode != 0 or left:
            pending = self.run("hf-mount", "pending", "list", self.point, check=False).stdout
            raise Violation(f"flush ended with {done.returncode}: {done.stderr}\nstatus: {left}, {status['last_error']}\n{pending}")
        self.check_settled()

    def stop(self):
        done = self.run("hf-mount", "stop", self.point, check=False)
        if done.returncode != 0:
            raise Violation(f"stop ended with {done.returncode}: {done.stderr}")
        self.dead.set()
        self.wait_dead()

    def finish(self):
        """The end: what the Hub has is, to the last byte, what was acknowledged."""
        self.calm()
        self.verify()
        self.settle()
        self.stop()
        self.check_remains()
        expected = {path: node.data for path, node in self.files().items()}
        # By a mount that has nothing but the key,
        self.cache = self.folder / "empty-cache"
        self.start(background=True)
        found = {p: n.data for p, n in look(self.point, "").items() if n is not DIRECTORY}
        self.compare(expected, found, "a mount with an empty cache")
        self.stop()
        # and without a mount: the official client, and offline with the key.
        down = self.folder / "down"
        command = [Path(sys.executable).parent / "hf", "buckets", "sync", f"hf://buckets/{BUCKET}", down]
        subprocess.run(command, check=True, capture_output=True, env={**self.env, "HF_ENDPOINT": self.hub.url}, timeout=DEADLINE)
        if self.side == "encrypted":
            self.run("hfcrypt", "decrypt", "--key-file", self.key, down, self.folder / "decrypted")
            down = self.folder / "decrypted"
        found = shared.tree(down)
        self.compare({self.prefix + path: data for path, data in expected.items()}, found, "the official client")
        self.raise_violation()
        self.count("worlds compared to the last byte")

    def compare(self, expected, found, by):
        if expected != found:
            wrong = [p for p in expected.keys() & found.keys() if expected[p] != found[p]]
            raise Violation(f"{by} lacks {expected.keys() - found.keys()}, has {found.keys() - expected.keys()}, differs in {wrong}")

    def close(self):
        """Leaves no process and no mount behind."""
        if self.pid is not None and not self.dead.is_set():
            self.kill()
            self.wait_dead()
        while os.path.ismount(self.point) or is_dead_mount(self.point):
            subprocess.run(["umount", "-l", self.point], check=False)
        self.hub.process.kill()
        self.hub.process.wait()
        self.proxy.close()

    def tell(self):
        """For whoever has to find out what went wrong: all that was done, what the mount shows now,
        and what the Hub has."""
        for writer in self.writers:
            lines = [" ".join(line) for line in writer.log.history]
            (self.folder / f"{writer.top[-2:]}-history").write_text("\n".join(lines) + "\n")
        try:
            found = "" if self.dead.is_set() else [f"{path}: {node}" for path, node in sorted(look(self.point, "").items())]
            (self.folder / "shown-later").write_text("\n".join(found))
            names = {key: path for path, key in self.key_of({p for writer in self.writers for p in writer.log.ever}).items()}
            (self.folder / "at-the-hub").write_text("\n".join(sorted(names.get(key, key) for key in self.listing())))
        except Exception as error:  # noqa: BLE001: it only helps
            print(f"not told: {error}")

    def raise_violation(self):
        if self.violations:
            raise self.violations[0]

    def verify(self):
        """What the mount shows is what was acknowledged, or that and the call that was under way."""
        for writer in self.writers:
            name = writer.log.flight and writer.log.flight[0]
            was_carried_out = writer.log.settle(look(self.point, writer.top), "after the kill")
            if name:
                self.count(f"under way: {name}, {'done' if was_carried_out else 'not done'}")
        self.count("trees compared")

    # --- a round -----------------------------------------------------------------------------------------------------

    def excite(self):
        """Faults from here on."""
        if self.with_faults:
            self.trouble = True
            self.proxy.rate = FAULT_RATE

    def calm(self):
        self.proxy.rate, self.trouble = 0, False
        self.proxy.clear()
        self.armed = None

    def round(self, moment):
        """Work, a kill, what it left, a start (perhaps killed as well), and what is there then."""
        self.over.clear()
        self.excite()
        threads = [threading.Thread(target=writer.run, args=(400,), daemon=True) for writer in self.writers]
        trap = self.aim(moment)
        for thread in threads:
            thread.start()
        hit = self.strike(moment, trap, threads)
        self.over.set()
        for thread in threads:
            thread.join(DEADLINE)
            if thread.is_alive():
                raise Violation("a call on a mount without a daemon does not return")
        self.kill()
        self.wait_dead()
        self.proxy.clear()
        self.armed = None
        self.raise_violation()
        self.count(f"moment: {' '.join(moment)}" if hit else f"missed: {' '.join(moment)}")
        for kind in self.waiting:
            self.count(f"requests open at a kill: {kind}")
        if moment[0] == "hub":
            self.kill_hub()
            self.restart_hub()
            self.count("kills of the Hub")
        self.proxy.quiet()
        self.check_hub()
        self.check_remains()
        self.replay(moment)
        # What was found wrong is found without faults, too: they would only hide it.
        self.calm()
        self.start()
        self.verify()
        self.raise_violation()

    def aim(self, moment):
        """Sets up what will kill the daemon."""
        if moment[0] == "call":
            self.armed = [moment[1], self.random.randrange(1, 6)]
        elif moment[0] == "request":
            self.armed = [moment[1], 0]
            return self.proxy.set(moment[1], moment[2], self.random.randrange(3), self.kill)
        return None

    def strike(self, moment, trap, threads):
        """Waits for the kill, or makes it. Says whether the moment was the intended one."""
        if moment[0] in ("call", "request"):
            self.dead.wait(PATIENCE)
            hit = self.dead.is_set()
            self.kill()
            return hit
        self.over.wait(self.random.random() * 1.2)
        if moment[0] == "command":
            return self.strike_at_command(moment[1], threads)
        if moment == ("hub", "alone"):
            self.trouble = True
            self.kill_hub()
            self.count("kills of the Hub")
            self.over.wait(self.random.random() * 0.5)
            self.restart_hub()
            self.over.wait(self.random.random())
        elif moment[0] == "hub":
            self.trouble = True
            if self.random.random() < 0.5:
                self.kill()
            self.kill_hub()
        self.kill()
        return True

    def strike_at_command(self, name, threads):
        """Kills while all is being flushed: from the command's begin to a little behind its end."""
        if name != "flush":
            self.over.set()
            for thread in threads:
                thread.join(DEADLINE)
        if name == "umount":
            self.unmount()
            command = None
        else:
            command = subprocess.Popen([shared.BIN / "hf-mount", name, self.point], env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(self.random.random() * self.random.choice([0.1, 0.4, 2]))
        ended = command is not None and command.poll() is not None
        self.kill()
        code = command.wait(timeout=DEADLINE) if command else None
        if name == "stop" and code == 0 and all(writer.log.is_certain() for writer in self.writers):
            # It has said so: all of it is at the Hub.
            self.proxy.quiet()
            self.check_settled()
        if ended:
            self.count(f"kills after {name} had ended")
        return not ended

    def unmount(self):
        """`umount`. What a writer had open just before may keep the mount busy for a moment."""
        for _ in range(50):
            done = subprocess.run(["umount", self.point], capture_output=True, text=True)
            if done.returncode == 0:
                return
            if "busy" not in done.stderr:
                break
            self.count("umount was busy")
            time.sleep(0.1)
        raise Violation(f"umount: {done.stderr}")

    def replay(self, moment):
        """Starts that are killed, by time or at a request, up to four in a row."""
        aimed = moment[0] == "replay"
        for _ in range(self.random.randrange(1, 5) if aimed else self.random.choice([0, 0, 1, 2])):
            self.dead.clear()
            trap = None
            if aimed and moment[1] != "time":
                trap = self.proxy.set(moment[1], self.random.choice([BEFORE, HANDLED, ANSWERED]), 0, self.kill)
            self.launch(self.options())
            self.dead.wait(1.5 if trap else self.random.random() * 0.4)
            was_live = self.is_live()
            self.kill()
            self.wait_dead()
            # A request in flight when its sender dies arrives before the next start:
            # docs/semantics.md, "Test campaigns".
            self.proxy.quiet()
            self.proxy.clear()
            where = f"at its {moment[1]}" if trap and trap.sprung.is_set() else "when live" if was_live else "before it was live"
            self.count(f"kills of a start, {where}")
            self.check_remains()


def is_dead_mount(point):
    try:
        os.stat(point)
        return False
    except FileNotFoundError:
        return False
    except OSError:
        return True


class Campaign:
    """Rounds, in worlds of some dozens, through all moments again and again."""

    def __init__(self, folder, side, seed, faults=True, moments=MOMENTS, say=print):
        self.folder, self.side, self.faults, self.moments, self.say = Path(folder), side, faults, list(moments), say
        self.random = random.Random(seed)
        self.counts = Counter()
        self.queue, self.rounds, self.bytes = [], 0, 0

    def next_moment(self):
        if not self.queue:
            self.queue = self.random.sample(self.moments, len(self.moments))
        return self.queue.pop()

    def run(self, rounds, until=None):
        """Raises what was broken."""
        number = 0
        while self.rounds < rounds and not (until and time.monotonic() > until):
            number += 1
            self.world(self.folder / f"world{number}", min(WORLD, rounds - self.rounds), until)

    def world(self, folder, rounds, until):
        world = World(folder, self.side, self.random.getrandbits(64), self.faults, self.counts)
        moment = None
        try:
            world.open()
            for number in range(rounds):
                moment = self.next_moment()
                world.round(moment)
                self.rounds += 1
                self.say(f"round {self.rounds}: {' '.join(moment)}")
                if number % SETTLE == SETTLE - 1:
                    world.settle()
                if until and time.monotonic() > until:
                    break
            world.finish()
        except BaseException:
            world.tell()
            self.say(f"in round {self.rounds + 1}, {moment}; the remains are in {folder}")
            raise
        finally:
            self.bytes += world.bytes_searched
            self.counts.update({f"faults: {name}": n for name, n in world.proxy.faults.items()})
            world.close()
        shutil.rmtree(folder)

    def table(self):
        lines = [f"{'rounds':48} {self.rounds}"]
        lines += [f"{name:48} {count}" for name, count in sorted(self.counts.items())]
        if self.side == "encrypted":
            lines.append(f"{'MiB searched for marks':48} {self.bytes >> 20}")
        return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=["encrypted", "plain"])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--minutes", type=float, help="end earlier than that many rounds")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--faults", choices=["on", "off"], default="on")
    parser.add_argument("--keep", help="work in this folder, which must not exist")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().getrandbits(32)
    print(f"crash campaign: {arguments.side}, seed {seed}", flush=True)
    # A core dump would be written, if the daemon let it.
    most = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))
    # Ended from outside it leaves nothing running, either.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    folder = Path(arguments.keep or tempfile.mkdtemp(prefix="crash-"))
    campaign = Campaign(folder, arguments.side, seed, arguments.faults == "on", say=lambda line: print(line, flush=True))
    until = time.monotonic() + arguments.minutes * 60 if arguments.minutes else None
    try:
        campaign.run(arguments.rounds, until)
    except Violation as violation:
        print(f"{campaign.table()}\n\nBROKEN (seed {seed}): {violation}", flush=True)
        return 1
    print(f"{campaign.table()}\n\nheld: {campaign.rounds} rounds, seed {seed}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
