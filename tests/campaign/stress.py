#!/usr/bin/env python3
"""The stress test: does every call end in time, does an idle mount cost nothing, and is every byte there at the end?

    tests/campaign/stress.py encrypted|plain [--minutes M] [--seed N] [--keep DIR]

Eight writer processes (`stress_writer.py`) work in one mount: they create, write, append, sync, rename files and
folders, remove trees, list and read back. Meanwhile other threads run `pending list`, `status` and `flush`, and remove
and restart the mount: with `stop`, `stop --force`, `umount` and `umount -l`, while the writers work or while they
pause. The Hub is behind a proxy that makes every tenth request fail.

The run proves three things:

1. Each system call and each command ends before its deadline (`DEADLINES`). A watchdog reports a late one with its
   name, its age, the kernel stacks of its process and of the daemon, and the end of the daemon's log.
2. After a flush, with all writers paused, the daemon uses less than `IDLE_SHARE` of a core.
3. At the end the private folder of each writer is exactly what was acknowledged, and each file in the shared folder is
   there once. The mount, the Hub, a mount with an empty cache and the official client agree on every byte.

The exit code is 0 if all of it held. Else it is 1, and the folder with the remains is kept. A seed determines the
choices, but not the timing.
"""

import argparse
import contextlib
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent))

from conftest import shared  # noqa: E402
from crash import World, is_dead_mount  # noqa: E402
from model import DIRECTORY, File, Log, Violation  # noqa: E402
from stress_writer import ENDED, PAUSED, SHARED, WORKING, Board, shared_content  # noqa: E402
from writer import look  # noqa: E402

WRITERS = 8
# Options of the mount (`World.options`), seconds: longest wait of one operation for the Hub, and longest flush of a
# stop. `flush` gives up after as long without progress.
REPLY, SHUTDOWN = 5, 20
# For the scheduler of a busy machine, and because a system call may be several operations of the mount, seconds.
GRACE = 10
# Longest time that each thing may take, seconds. A `flush` has no limit of its own while it makes progress.
DEADLINES = {
    "system call": REPLY + GRACE,
    "start": REPLY + GRACE,
    # A start that waits until the previous daemon has uploaded what it can.
    "early start": SHUTDOWN + REPLY + GRACE,
    "status": REPLY + GRACE,
    "pending list": REPLY + GRACE,
    "umount": REPLY + GRACE,
    "stop": SHUTDOWN + GRACE,
    "stop --force": SHUTDOWN + GRACE,
    "end of the daemon": SHUTDOWN + GRACE,
    "flush": 120,
    # With all writers running, each finishes its step first.
    "pause of the writers": 60,
}
# The part of requests that fail.
FAULT_RATE = 0.1
# Seconds that one Hub and one cache folder are used. Then everything is compared, and new ones are created.
WORLD_SECONDS = 150
# Seconds between two measurements of an idle mount, and length of one.
BETWEEN_IDLE, IDLE = 40, 4
# Most CPU time of an idle daemon, in parts of one core.
IDLE_SHARE = 0.05
# Lines of the daemon's log that a report has.
LOG_TAIL = 40


def read(path):
    """Returns the text of a file below /proc, or the reason why there is none."""
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError as error:
        return f"({error.strerror})"


def stacks(pid):
    """Returns name, state, wait channel and kernel stack of a process's threads. Equal threads share an entry."""
    threads = {}
    for task in sorted(Path(f"/proc/{pid}/task").glob("*")):
        state = read(task / "stat").rpartition(")")[2].strip()[:1]
        about = (f"{read(task / 'comm')}, state {state}, wchan {read(task / 'wchan')}", read(task / "stack"))
        threads.setdefault(about, []).append(task.name)
    lines = []
    for (about, stack), names in threads.items():
        lines.append(f"  {about}: {len(names)} threads ({' '.join(names)})")
        lines += [f"      {line}" for line in stack.splitlines()]
    return "\n".join(lines) or f"  process {pid} has ended"


def cpu_seconds(pid):
    """Returns the CPU time of a process, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cpu_share(pid, seconds):
    """Measures the CPU time that a process uses in the next seconds, in parts of one core."""
    start, before = time.monotonic(), cpu_seconds(pid)
    time.sleep(seconds)
    return (cpu_seconds(pid) - before) / (time.monotonic() - start)


def check_shared(found, writers):
    """Compares the shared folder with what its writers acknowledged. `found`: path -> node."""
    files, lost = {}, []
    for path, node in found.items():
        if isinstance(node, File):
            files.setdefault(path.rpartition("/")[2], []).append((path, node.data))
    may = set().union(*(writer["may"] for writer in writers))
    must = {name: size for writer in writers for name, size in writer["must"].items()}
    for name, size in must.items():
        places = files.get(name, [])
        if len(places) != 1:
            lost.append(f"{name}: {'missing' if not places else [path for path, _ in places]}")
        elif places[0][1] != shared_content(name, size):
            lost.append(f"{name}: has {len(places[0][1])} bytes, not the {size} that were written")
    for name, places in files.items():
        if name not in must and (name not in may or len(places) > 1):
            lost.append(f"{name}: nobody wrote it, or it was removed: {[path for path, _ in places]}")
        elif name not in must and places[0][1] != shared_content(name, len(places[0][1])):
            lost.append(f"{name}: has bytes that nobody wrote")
    if lost:
        raise Violation("the shared folder:\n  " + "\n  ".join(lost))


class Watchdog:
    """Knows every call and command in progress, and reports those that are older than their deadline."""

    def __init__(self, board, report, deadlines):
        self.board, self.report, self.deadlines = board, report, deadlines
        self.lock, self.running, self.number = threading.Lock(), {}, 0
        self.calls, self.longest = Counter(), {}
        self.reported, self.end = set(), threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    @contextlib.contextmanager
    def watch(self, kind, about=""):
        """Times something that this process does or waits for."""
        start = time.monotonic()
        with self.lock:
            self.number += 1
            number = self.number
            self.running[number] = (start, kind, about)
        try:
            yield
        finally:
            took = time.monotonic() - start
            with self.lock:
                del self.running[number]
                self.calls[kind] += 1
                if took > self.longest.get(kind, (0, ""))[0]:
                    self.longest[kind] = (took, about)
            if took > self.deadlines[kind]:
                self.late(number, kind, f"{kind} {about}", took, None)

    def late(self, number, kind, name, age, pid):
        with self.lock:
            if number in self.reported:
                return
            self.reported.add(number)
        self.report(f"late: {name} takes {age:.1f} s, longer than {self.deadlines[kind]} s", pid)

    def run(self):
        while not self.end.wait(0.1):
            now = time.monotonic()
            with self.lock:
                running = list(self.running.items())
            for number, (start, kind, about) in running:
                if now - start > self.deadlines[kind]:
                    self.late(number, kind, f"{kind} {about}", now - start, None)
            for slot in range(self.board.slots):
                call = self.board.call(slot)
                if call and now - call[1] > self.deadlines["system call"]:
                    self.late((slot, call[0]), "system call", f"writer {slot}: {call[3]}", now - call[1], call[2])

    def close(self):
        self.end.set()
        self.thread.join()


class BusyWorld(World):
    """One Hub, one cache folder, one mount, eight writers."""

    def __init__(self, folder, side, seed, counts, deadlines=None):
        super().__init__(folder, side, seed, True, counts)
        self.board = Board(self.folder / "board", WRITERS)
        self.failure = None
        self.failed = threading.Event()
        self.watchdog = Watchdog(self.board, self.report, {**DEADLINES, **(deadlines or {})})
        self.stopping, self.idle_shares = threading.Event(), []
        # One removal of the mount or one pause at a time.
        self.pausing = threading.Lock()
        self.tops = [f"{self.mark}-w{slot}" for slot in range(WRITERS)]
        self.writers, self.processes = [], []
        # `early`: the next start does not wait for the end of the previous daemon.
        # `ending`: daemons whose mount was removed, by their process id.
        self.early, self.ending = False, {}

    # --- failures ----------------------------------------------------------------------------------------------------

    def report(self, what, pid=None):
        """Keeps the first failure, and writes what the daemon and the process are doing."""
        lines = [what, f"mount's epoch: {self.board.epoch}"]
        for slot in range(WRITERS):
            call = self.board.call(slot)
            lines.append(f"writer {slot}: state {self.board.state(slot)}, "
                         + (f"{call[3]} for {time.monotonic() - call[1]:.2f} s" if call else "no call in progress"))
        with self.watchdog.lock:
            for start, kind, about in self.watchdog.running.values():
                lines.append(f"in progress: {kind} {about} for {time.monotonic() - start:.2f} s")
        for waiting in Path("/sys/fs/fuse/connections").glob("*/waiting"):
            lines.append(f"{waiting}: {read(waiting)}")
        if pid:
            lines.append(f"process {pid}:\n{stacks(pid)}")
        lines += [f"daemon {daemon}:\n{stacks(daemon)}" for daemon in {self.pid, *self.ending} - {None}]
        for log in [self.home / "foreground.log", *(self.home / ".hf-mount/logs").glob("*")]:
            if log.is_file():
                lines += [f"end of {log}:", *("  " + line for line in read(log).splitlines()[-LOG_TAIL:])]
        with self.lock:
            if self.failure is None:
                self.failure = "\n".join(lines)
                (self.folder / "report.txt").write_text(self.failure + "\n")
        self.failed.set()

    def fail(self, error):
        self.report(f"{type(error).__name__}: {error}" if not isinstance(error, Violation) else str(error))

    # --- commands ----------------------------------------------------------------------------------------------------

    def run(self, *command, check=True, **env):
        """Runs a command; times those of `hf-mount`."""
        kind = " ".join(command[1:3]) if command[1] == "pending" else str(command[1])
        if command[:2] == ("hf-mount", "stop") and "--force" in command:
            kind = "stop --force"
        if kind == "start" and self.early:
            kind = "early start"
        if command[0] != "hf-mount" or kind not in DEADLINES:
            return super().run(*command, check=check, **env)
        with self.watchdog.watch(kind):
            return super().run(*command, check=check, **env)

    def wait_until_live(self):
        with self.watchdog.watch("early start" if self.early else "start", "in the foreground"):
            return super().wait_until_live()

    def let_end(self):
        """Notes that the daemon's mount was removed: the daemon uploads what it can and ends."""
        self.dead.set()
        self.ending[self.pid] = self.daemon
        self.daemon, self.pid = None, None

    def wait_dead(self):
        if self.dead.is_set() and self.pid is not None:
            self.let_end()
        with self.watchdog.watch("end of the daemon"):
            for pid, daemon in list(self.ending.items()):
                while daemon.poll() is None if daemon else os.path.exists(f"/proc/{pid}"):
                    if self.failed.is_set():
                        raise Violation("stopped after a failure")
                    time.sleep(0.002)
                del self.ending[pid]

    def wait_until(self, condition, kind):
        """Waits for a condition. The watchdog reports a wait that is too long."""
        with self.watchdog.watch(kind):
            while not condition():
                if self.failed.is_set():
                    raise Violation("stopped after a failure")
                time.sleep(0.01)

    def wait_for_writers(self, states):
        """Waits until each writer is in one of these states."""
        self.wait_until(lambda: all(self.board.state(n) in states for n in range(WRITERS)), "pause of the writers")

    @contextlib.contextmanager
    def paused(self):
        """Pauses all writers between two steps, when they have no file open."""
        self.board.set(Board.PAUSE, True)
        try:
            self.wait_for_writers({PAUSED, ENDED})
            yield
        finally:
            self.board.set(Board.PAUSE, False)

    def observe(self):
        """Runs `pending list` and `status` repeatedly, also while there is no mount."""
        kinds = [
            ("pending list", ("hf-mount", "pending", "list", self.point, "--json"), "pending"),
            ("status", ("hf-mount", "status", "--json"), "mounts"),
        ]
        while not self.stopping.wait(self.random.choice([0, 0.02, 0.1, 0.3])):
            name, command, member = self.random.choice(kinds)
            before = self.board.epoch
            done = self.run(*command, check=False)
            is_there = before == self.board.epoch and before % 2 == 0
            self.count(f"{name} ended with {done.returncode}" + ("" if is_there else ", during a removal of the mount"))
            if is_there:
                if done.returncode != 0:
                    raise Violation(f"{name} ended with {done.returncode}: {done.stderr}")
                parked = [entry for entry in json.loads(done.stdout)[member] if entry.get("state") == "parked"]
                if parked:
                    raise Violation(f"changes are parked: {parked[:3]}")
            elif done.returncode < 0:
                raise Violation(f"{name} was ended by signal {-done.returncode}")

    def flush_often(self):
        """Runs `flush` repeatedly, while the writers work and while the mount is removed."""
        while not self.stopping.wait(self.random.random() * 3):
            before, began = self.board.epoch, time.monotonic()
            done = self.run("hf-mount", "flush", self.point, check=False)
            took = time.monotonic() - began
            is_there = before == self.board.epoch and before % 2 == 0
            self.count(f"flush ended with {done.returncode}" + ("" if is_there else ", during a removal of the mount"))
            # 75: no progress for as long as the limit says.
            if is_there and done.returncode != 0 and (done.returncode != 75 or took < SHUTDOWN):
                raise Violation(f"flush ended with {done.returncode} after {took:.1f} s: {done.stderr}")

    def remount_often(self):
        """Removes the mount and starts it again, repeatedly. Measures the idle mount from time to time."""
        next_idle = time.monotonic() + BETWEEN_IDLE
        # While the writers work, and never refused: a short run has one, too.
        with self.pausing:
            self.remount("stop --force")
        while not self.stopping.wait(self.random.choice([0.1, 0.5, 1, 2])):
            if time.monotonic() > next_idle:
                self.measure_idle()
                next_idle = time.monotonic() + BETWEEN_IDLE
                continue
            with self.pausing, self.paused() if self.random.random() < 0.5 else contextlib.nullcontext():
                self.remount(self.random.choice(["stop", "stop --force", "umount", "umount -l"]))

    def remount(self, how):
        self.board.next_epoch()
        try:
            removed = self.remove(how)
            self.count(f"{how}: {'removed the mount' if removed else 'the mount was busy'}")
            if removed:
                self.let_end()
                self.early = self.random.random() < 0.4
                if not self.early:
                    self.wait_dead()
                self.stopping.wait(self.random.choice([0, 0, 0.1, 0.5]))
                self.start()
                self.early = False
                self.wait_dead()
                self.proxy.rate = FAULT_RATE
                self.count("remounts")
        finally:
            if not self.failed.is_set():
                self.board.next_epoch()

    def remove(self, how):
        """Removes the mount. Returns false if it was busy and is still there."""
        if how.startswith("umount"):
            with self.watchdog.watch("umount"):
                done = subprocess.run([*how.split(), self.point], capture_output=True, text=True)
            if done.returncode != 0 and "busy" not in done.stderr:
                raise Violation(f"{how} ended with {done.returncode}: {done.stderr}")
            return done.returncode == 0
        done = self.run("hf-mount", *how.split(), self.point, check=False)
        self.count(f"{how} ended with {done.returncode}")
        # 75: not all was uploaded in time. The next start continues.
        if done.returncode not in ((0, 75) if "--force" in how else (0, 6, 75)):
            raise Violation(f"{how} ended with {done.returncode}: {done.stderr}")
        return done.returncode != 6

    def measure_idle(self):
        """Flushes everything with all writers paused. Then the daemon must be idle."""
        with self.pausing, self.paused():
            self.proxy.rate = 0
            while (done := self.run("hf-mount", "flush", self.point, check=False)).returncode == 75:
                self.count("flushes repeated before a measurement")
                if self.stopping.is_set():
                    return
            if done.returncode != 0:
                raise Violation(f"flush without faults ended with {done.returncode}: {done.stderr}")
            self.measure()
            self.proxy.rate = FAULT_RATE

    def measure(self):
        share = cpu_share(self.pid, IDLE)
        self.idle_shares.append(share)
        if share > IDLE_SHARE:
            raise Violation(f"the daemon used {share:.1%} of a core for {IDLE} s while nothing was pending")

    # --- the run -----------------------------------------------------------------------------------------------------

    def open(self):
        """Creates bucket, mount and folders, and starts the writers."""
        self.start(background=True, create=True)
        for top in [*self.tops, SHARED]:
            os.mkdir(self.point / top)
        for slot in range(WRITERS):
            arguments = {
                "board": str(self.folder / "board"), "slots": WRITERS, "slot": slot, "point": str(self.point),
                "mark": self.mark, "seed": self.random.getrandbits(32), "result": str(self.folder / f"result-{slot}"),
            }
            command = [sys.executable, Path(__file__).resolve().parent / "stress_writer.py", json.dumps(arguments)]
            with open(self.folder / f"writer-{slot}.log", "wb") as log:
                self.processes.append(subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder / "cwd", env=self.env
                ))
        self.wait_for_writers({WORKING, PAUSED, ENDED})

    def thread(self, work):
        def guarded():
            try:
                work()
            except Exception as error:  # noqa: BLE001: it ends the run, in the thread that waits for it
                self.fail(error)

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        return thread

    def work(self, seconds):
        """Works for some seconds, then compares everything."""
        self.open()
        self.excite()
        self.proxy.rate = FAULT_RATE
        self.board.set(Board.TROUBLE, True)
        threads = [self.thread(work) for work in (self.observe, self.flush_often, self.remount_often)]
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.failed.wait(0.1):
            if any(self.board.state(slot) == ENDED for slot in range(WRITERS)):
                break
        self.stopping.set()
        for thread in threads:
            while thread.is_alive() and not self.failed.is_set():
                thread.join(0.1)
        self.board.set(Board.STOP, True)
        self.wait_for_writers({ENDED})
        self.finish(self.results())

    def results(self):
        """Returns the reports of the writers. Raises what they found broken."""
        results = [pickle.loads((self.folder / f"result-{slot}").read_bytes()) for slot in range(WRITERS)]
        for slot, result in enumerate(results):
            self.writers.append(SimpleNamespace(top=self.tops[slot], log=result["log"]))
            with self.lock:
                self.counts.update(result["counts"])
            for name, count in result["calls"].items():
                self.watchdog.calls[f"system call: {name}"] += count
            for name, (took, path) in result["longest"].items():
                if took > self.watchdog.longest.get(f"system call: {name}", (0, ""))[0]:
                    self.watchdog.longest[f"system call: {name}"] = (took, path)
        for result in results:
            if result["violation"]:
                raise Violation(result["violation"])
        return results

    def finish(self, results):
        """Checks that the mount, the Hub, a new mount and the official client have everything that was acknowledged."""
        self.calm()
        found = look(self.point, SHARED)
        check_shared(found, results)
        self.writers.append(SimpleNamespace(top=SHARED, log=Log(found)))
        self.count("shared files compared", sum(isinstance(node, File) for node in found.values()))
        done = self.run("hf-mount", "flush", self.point, check=False)
        if done.returncode != 0:
            raise Violation(f"flush without faults ended with {done.returncode}: {done.stderr}")
        self.measure()
        super().finish()

    def count(self, what, number=1):
        with self.lock:
            self.counts[what] += number

    def tell(self):
        """Writes what each writer has done. Does not touch the mount, which may hang."""
        self.board.set(Board.STOP, True)
        end = time.monotonic() + GRACE
        while not all(self.board.state(n) == ENDED for n in range(WRITERS)) and time.monotonic() < end:
            time.sleep(0.1)
        for slot in range(WRITERS):
            try:
                result = pickle.loads((self.folder / f"result-{slot}").read_bytes())
            except FileNotFoundError:
                continue
            lines = [" ".join(map(str, line)) for line in result["log"].history]
            (self.folder / f"history-{slot}").write_text("\n".join(lines) + "\n")

    def close(self):
        """Ends what this world has started."""
        self.stopping.set()
        self.failed.set()
        for process in self.processes:
            process.kill()
        for pid in {self.pid, *self.ending} - {None}:
            # Ends calls that hang in the mount, too.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while os.path.ismount(self.point) or is_dead_mount(self.point):
            subprocess.run(["umount", "-l", self.point], check=False)
        for process in self.processes:
            process.wait(timeout=60)
        for daemon in {self.daemon, *self.ending.values()} - {None}:
            daemon.wait(timeout=60)
        self.watchdog.close()
        self.hub.process.kill()
        self.hub.process.wait()
        self.proxy.close()


class Stress:
    """Works in one world after another until the time is over."""

    def __init__(self, folder, side, seed, say=print):
        self.folder, self.side, self.say = Path(folder), side, say
        self.random = random.Random(seed)
        self.counts, self.calls, self.longest, self.idle, self.worlds = Counter(), Counter(), {}, [], 0

    def run(self, seconds):
        end = time.monotonic() + seconds
        while self.worlds == 0 or end - time.monotonic() > WORLD_SECONDS / 3:
            self.worlds += 1
            self.world(self.folder / f"world{self.worlds}", min(WORLD_SECONDS, max(end - time.monotonic(), 1)))

    def world(self, folder, seconds):
        world = BusyWorld(folder, self.side, self.random.getrandbits(64), self.counts)
        try:
            try:
                world.work(seconds)
            except Exception as error:  # noqa: BLE001: with what the daemon does at this moment
                world.fail(error)
            if world.failure:
                world.tell()
                raise Violation(f"{world.failure}\nthe remains are in {folder}, this text in report.txt")
        finally:
            self.counts.update({f"faults: {name}": count for name, count in world.proxy.faults.items()})
            self.counts["requests"] += sum(world.proxy.seen.values())
            if self.side == "encrypted":
                self.counts["bytes searched for marks"] += world.bytes_searched
            self.idle += world.idle_shares
            self.calls.update(world.watchdog.calls)
            for kind, longest in world.watchdog.longest.items():
                self.longest[kind] = max(self.longest.get(kind, (0, "")), longest)
            world.close()
        self.say(f"world {self.worlds} held")
        shutil.rmtree(folder)

    def table(self):
        system = sum(count for kind, count in self.calls.items() if kind.startswith("system call"))
        lines = [f"{'worlds':44} {self.worlds}", f"{'system calls':44} {system}"]
        lines += [f"{name:44} {count}" for name, count in sorted(self.counts.items())]
        idle = ", ".join(f"{share:.3f}" for share in self.idle)
        lines.append(f"{'CPU of the idle daemon, parts of a core':44} {idle}")
        lines.append(f"\n{'':28} {'number':>8} {'longest, s':>11} {'deadline, s':>12}")
        for kind, count in sorted(self.calls.items()):
            deadline = DEADLINES.get(kind, DEADLINES["system call"])
            lines.append(f"{kind:28} {count:8} {self.longest.get(kind, (0, ''))[0]:11.3f} {deadline:12}")
        return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=["encrypted", "plain"])
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--keep", help="work in this folder, which must not exist")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().getrandbits(32)
    print(f"stress test: {arguments.side}, seed {seed}", flush=True)
    # Ended from outside it leaves nothing running, either.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    folder = Path(arguments.keep or tempfile.mkdtemp(prefix="stress-"))
    stress = Stress(folder, arguments.side, seed, say=lambda line: print(line, flush=True))
    try:
        stress.run(arguments.minutes * 60)
    except Violation as violation:
        print(f"{stress.table()}\n\nBROKEN (seed {seed}): {violation}", flush=True)
        return 1
    print(f"{stress.table()}\n\nheld: seed {seed}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
