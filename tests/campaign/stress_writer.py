#!/usr/bin/env python3
"""One writer of the stress test, as a process of its own: `stress.py` starts eight of them.

A writer works in a private folder, which only it changes, and in the shared folder, where every writer creates files
and renames folders. Each system call is announced on a `Board`, a file that all processes map. The watchdog in
`stress.py` reads there which calls are in progress and since when.

The mount may be removed and started again at any time. A call that fails meanwhile may be done or not. The writer then
waits for the mount and compares its whole folder with what was acknowledged (`model.py`).
"""

import contextlib
import errno
import hashlib
import json
import mmap
import os
import pickle
import random
import struct
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import writer as writers  # noqa: E402
from model import DIRECTORY, Directory, File, Violation, Written  # noqa: E402
from writer import DEAD, PASSING, Dead, Passing, Writer, look  # noqa: E402

SHARED = "shared"
# States of a writer on the board.
STARTING, WORKING, PAUSED, ENDED = range(4)
# Most folders in the shared folder, and most files that a writer keeps there.
SHARED_FOLDERS, SHARED_FILES = 12, 25
# Pauses between two steps, seconds: a program that does nothing but system calls would only fill the queue of uploads.
THINK = (0, 0, 0.002, 0.01, 0.03)
# Longest wait for a mount that was removed, seconds. The watchdog has a shorter deadline for each command.
LONGEST_ABSENCE = 240
# Errors that another writer causes by a rename of a shared folder.
MOVED = {errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}


class Board:
    """A mapped file: a header that the main process writes, then one slot for each writer.

    `epoch` is odd while the mount may be removed. It increases by one at the start and at the end of that time.
    """

    HEADER, SLOT, TEXT = 64, 512, 440
    # Offsets in the header and in a slot, bytes.
    EPOCH, STOP, PAUSE, TROUBLE = 0, 8, 9, 10
    STATE, SEQUENCE, STARTED, THREAD, LENGTH, SAID = 0, 8, 16, 24, 28, 32

    def __init__(self, path, slots):
        size = self.HEADER + slots * self.SLOT
        with open(path, "a+b") as file:
            file.truncate(size)
            self.map = mmap.mmap(file.fileno(), size)
        self.slots = slots

    def _at(self, slot):
        return self.HEADER + slot * self.SLOT

    @property
    def epoch(self):
        return struct.unpack_from("<Q", self.map, self.EPOCH)[0]

    def next_epoch(self):
        struct.pack_into("<Q", self.map, self.EPOCH, self.epoch + 1)

    def set(self, flag, value):
        self.map[flag] = int(value)

    def get(self, flag):
        return bool(self.map[flag])

    def state(self, slot):
        return self.map[self._at(slot)]

    def set_state(self, slot, state):
        self.map[self._at(slot)] = state

    def begin(self, slot, text):
        """Announces a call."""
        at, text = self._at(slot), text.encode(errors="replace")[: self.TEXT]
        sequence = struct.unpack_from("<Q", self.map, at + self.SEQUENCE)[0]
        self.map[at + self.SAID : at + self.SAID + len(text)] = text
        struct.pack_into("<dII", self.map, at + self.STARTED, time.monotonic(), os.getpid(), len(text))
        # Odd: a call is in progress. Written last, so that a reader of an odd number finds the rest.
        struct.pack_into("<Q", self.map, at + self.SEQUENCE, sequence + 1)

    def end(self, slot):
        at = self._at(slot) + self.SEQUENCE
        struct.pack_into("<Q", self.map, at, struct.unpack_from("<Q", self.map, at)[0] + 1)

    def call(self, slot):
        """Returns (sequence, start, process, text) of the call in progress, or None."""
        at = self._at(slot)
        sequence, started, process, length = struct.unpack_from("<QdII", self.map, at + self.SEQUENCE)
        text = bytes(self.map[at + self.SAID : at + self.SAID + min(length, self.TEXT)]).decode(errors="replace")
        if sequence % 2 == 0 or sequence != struct.unpack_from("<Q", self.map, at + self.SEQUENCE)[0]:
            return None
        return sequence, started, process, text


class TimedCalls:
    """Replaces the module `os` and the function `open` in writer.py. System calls on the mount are announced on the
    board, counted and timed. Other names are those of `os`."""

    TIMED = (
        "open", "close", "read", "write", "pwrite", "fsync", "rename", "unlink", "mkdir", "rmdir", "symlink",
        "readlink", "truncate", "stat", "setxattr", "listdir",
    )

    def __init__(self, board, slot):
        self.board, self.slot = board, slot
        self.calls, self.longest = Counter(), {}
        for name in self.TIMED:
            setattr(self, name, self.timed(name, getattr(os, name)))
        self.list_folder = self.timed("scandir", lambda path: list(os.scandir(path)))

    def __getattr__(self, name):
        return getattr(os, name)

    def timed(self, name, call):
        def run(*arguments, **named):
            self.board.begin(self.slot, f"{name} {arguments[0] if arguments else ''}")
            start = time.monotonic()
            try:
                return call(*arguments, **named)
            finally:
                took = time.monotonic() - start
                self.board.end(self.slot)
                self.calls[name] += 1
                if took > self.longest.get(name, (0, ""))[0]:
                    self.longest[name] = (took, str(arguments[0]) if arguments else "")

        return run

    def scandir(self, path):
        return contextlib.nullcontext(self.list_folder(path))

    def read_all(self, fd):
        parts = []
        while part := self.read(fd, 1 << 20):
            parts.append(part)
        return b"".join(parts)

    @contextlib.contextmanager
    def open_file(self, path, _mode):
        """Opens a file as `open(path, "rb")` does, as far as writer.py uses it."""
        fd = self.open(path, os.O_RDONLY)
        try:
            yield Opened(self, fd)
        finally:
            self.close(fd)


class Opened:
    def __init__(self, calls, fd):
        self.calls, self.fd = calls, fd

    def read(self):
        return self.calls.read_all(self.fd)


class Flag:
    def __init__(self, condition):
        self.is_set = condition


class Scene:
    """The part of a `World` that a `Writer` uses."""

    def __init__(self, board, point, mark):
        self.board, self.point, self.mark = board, point, mark
        self.epoch, self.trouble, self.counts = 0, False, Counter()
        # Set if the mount was removed since the step began, or is being removed.
        self.dead = Flag(lambda: self.board.epoch != self.epoch or self.epoch % 2 == 1)
        # Never set: each step is completed.
        self.over = Flag(lambda: False)

    def count(self, what):
        self.counts[what] += 1

    def about(self, _name):
        pass

    def prefer(self, kinds):
        kinds |= {"clear": 1.5, "folder": 4, "crowd": 0.6, "recrowd": 2}

    def wait(self):
        """Waits until no removal of the mount is in progress."""
        end = time.monotonic() + LONGEST_ABSENCE
        while (epoch := self.board.epoch) % 2:
            if time.monotonic() > end:
                raise Violation("the mount did not come back")
            time.sleep(0.005)
        self.epoch, self.trouble = epoch, self.trouble or self.board.get(Board.TROUBLE)


def shared_content(name, size):
    """Returns the bytes of a shared file. They follow from its name, so that any process can check them."""
    block = hashlib.sha256(name.encode()).digest()
    return (block * (size // len(block) + 1))[:size]


class StressWriter(Writer):
    def __init__(self, board, slot, point, mark, seed):
        scene = Scene(board, point, mark)
        super().__init__(scene, f"{mark}-w{slot}", seed)
        self.board, self.slot = board, slot
        self.calls = TimedCalls(board, slot)
        writers.os, writers.open = self.calls, self.calls.open_file
        # Of the shared folder: files that must be there (name -> size), and names that may be there.
        self.must, self.may = {}, set()

    # --- the private folder ------------------------------------------------------------------------------------------

    def append(self, path):
        """Opens a file with O_APPEND and adds to it, in pieces."""
        old = self.log.known()[path]
        try:
            fd = self.calls.open(self.absolute(path), os.O_WRONLY | os.O_APPEND)
        except OSError as error:
            self.failed(error, "open to append")
        written = Written(old.data)
        self.log.trees = [{**tree, path: written} for tree in self.log.trees]
        pieces, at = [], len(old.data)
        for _ in range(self.random.randrange(1, 4)):
            piece = self.data(self.random.choice([1, 100, 5000, 40_000]))
            pieces.append((at, piece))
            at += len(piece)
        # On a file that was opened with O_APPEND, Linux appends with `pwrite` too.
        self.fill(path, fd, written, pieces, self.random.random() < 0.3)

    def list(self):
        """Checks that a listing has exactly the acknowledged names."""
        if not self.log.is_certain():
            return
        folder = self.random.choice(sorted(p for p, node in self.log.known().items() if isinstance(node, Directory)))
        try:
            found = set(self.calls.listdir(self.absolute(folder)))
        except OSError as error:
            self.failed(error, f"listing of {folder}")
        expected = {p[len(folder) + 1 :] for p in self.log.known() if p.startswith(folder + "/")}
        expected = {name for name in expected if "/" not in name}
        if found != expected:
            raise Violation(f"listing of {folder} lacks {expected - found} and has {found - expected} besides")

    def remove_tree(self):
        """Creates a small tree and removes it as `rm -rf` does."""
        top = self.fresh()
        if top is None:
            return
        self.mkdir(top)
        folders = [top]
        for _ in range(self.random.randrange(3, 9)):
            path = f"{self.random.choice(folders)}/{self.name()}"
            if self.random.random() < 0.4:
                self.mkdir(path)
                folders.append(path)
            else:
                self.write(path, self.data(self.random.choice([0, 700, 20_000])))
        if self.random.random() < 0.3:
            return
        below = [p for p in self.log.known() if p.startswith(top + "/")]
        for path in sorted(below, reverse=True):
            (self.rmdir if self.log.known()[path] is DIRECTORY else self.unlink)(path)
        self.rmdir(top)

    # --- the shared folder -------------------------------------------------------------------------------------------

    def shared(self):
        """Does one thing in the shared folder. Its folders may be renamed by other writers meanwhile."""
        try:
            self.shared_step()
        except OSError as error:
            if error.errno in MOVED and not self.world.dead.is_set():
                self.world.count("shared calls that lost a race")
                return
            self.failed(error, "in the shared folder")

    def shared_step(self):
        calls, base = self.calls, self.absolute(SHARED)
        folders = sorted(calls.listdir(base))
        kinds = {"create": 3, "rename": 2, "unlink": 1, "read": 1, "folder": 1, "rmdir": 1}
        what = self.random.choices(list(kinds), list(kinds.values()))[0]
        self.number += 1
        if what == "folder" or not folders:
            if len(folders) < SHARED_FOLDERS:
                calls.mkdir(f"{base}/d{self.slot}-{self.number}")
            return
        folder = f"{base}/{self.random.choice(folders)}"
        if what == "create" and len(self.must) < SHARED_FILES:
            name = f"{self.world.mark}-s{self.slot}-{self.number}"
            size = self.random.choice([0, 40, 3000, 70_000])
            self.may.add(name)
            fd = calls.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            try:
                if size and calls.write(fd, shared_content(name, size)) != size:
                    raise Violation(f"a write to {name} was short")
            finally:
                calls.close(fd)
            self.must[name] = size
            self.may.discard(name)
        elif what == "rename":
            calls.rename(folder, f"{base}/d{self.slot}-{self.number}")
        elif what == "rmdir":
            # Fails if it isn't empty.
            calls.rmdir(folder)
        elif what in ("read", "unlink"):
            mine = [name for name in calls.listdir(folder) if name in self.must]
            if not mine:
                return
            name = self.random.choice(sorted(mine))
            if what == "unlink":
                size = self.must.pop(name)
                self.may.add(name)
                try:
                    calls.unlink(f"{folder}/{name}")
                except OSError as error:
                    if error.errno in MOVED and not self.world.dead.is_set():
                        # It is where its folder was moved to.
                        self.may.discard(name)
                        self.must[name] = size
                    raise
                self.may.discard(name)
            else:
                with calls.open_file(f"{folder}/{name}", "rb") as file:
                    if file.read() != shared_content(name, self.must[name]):
                        raise Violation(f"shared file {name} has other bytes than were written")

    # --- the loop ----------------------------------------------------------------------------------------------------

    def step(self):
        own = self.random.choices(["", "append", "list", "tree", "shared"], [70, 8, 8, 5, 18])[0]
        file = self.pick(File)
        if own == "append" and file:
            self.append(file)
        elif own == "list":
            self.list()
        elif own == "tree":
            self.remove_tree()
        elif own == "shared":
            self.shared()
        else:
            super().step()

    def compare(self, where):
        """Compares the whole private folder with what was acknowledged."""
        errors = 0
        while True:
            self.world.wait()
            try:
                found = look(self.world.point, self.top)
            except OSError as error:
                if not self.world.dead.is_set():
                    errors += 1
                    if error.errno not in PASSING or not self.world.trouble or errors > 20:
                        raise Violation(f"{where}: {error}") from error
                continue
            if not self.world.dead.is_set():
                break
        self.log.settle(found, where)
        self.world.count("comparisons of a whole folder")

    def work(self):
        board = self.board
        self.world.wait()
        compared = self.world.epoch
        while not board.get(Board.STOP):
            self.world.wait()
            if board.get(Board.PAUSE):
                board.set_state(self.slot, PAUSED)
                while board.get(Board.PAUSE) and not board.get(Board.STOP):
                    time.sleep(0.01)
                board.set_state(self.slot, WORKING)
                continue
            if self.world.epoch != compared:
                self.compare("after a remount")
                compared = self.world.epoch
            try:
                self.step()
            except Passing:
                pass
            except Dead:
                self.world.count("steps interrupted by a removal of the mount")
                self.compare("after a removal of the mount")
            if self.log.is_lost():
                self.compare("after failed calls")
            time.sleep(self.random.choice(THINK))
        self.compare("at the end")


def main():
    arguments = json.loads(sys.argv[1])
    board = Board(arguments["board"], arguments["slots"])
    slot = arguments["slot"]
    writer = StressWriter(board, slot, arguments["point"], arguments["mark"], arguments["seed"])
    violation = None
    try:
        # The main process has created the folder.
        writer.log.trees = [{writer.top: DIRECTORY}]
        board.set_state(slot, WORKING)
        writer.work()
    except BaseException as error:  # noqa: BLE001: it ends the run, in the process that reads the result
        text = str(error) if isinstance(error, Violation) else traceback.format_exc()
        violation = f"writer {slot}: {text}"
    # An effect is a function, which pickle refuses; its name is enough.
    writer.log.flight = writer.log.flight and writer.log.flight[0]
    result = {
        "log": writer.log, "must": writer.must, "may": writer.may, "violation": violation,
        "calls": writer.calls.calls, "longest": writer.calls.longest, "counts": writer.world.counts,
    }
    part = Path(arguments["result"] + ".part")
    part.write_bytes(pickle.dumps(result))
    part.rename(arguments["result"])
    board.set_state(slot, ENDED)
    return 1 if violation else 0


if __name__ == "__main__":
    sys.exit(main())
