"""A writer: random calls on its own part of a mount, each noted in a `Log` before and after."""

import errno
import os
import random

from model import DIRECTORY, RECORD, Directory, File, Link, Log, Violation, Written, first_difference, put, remove, rename

# What a call on a mount whose daemon died gives.
DEAD = {errno.ENOTCONN, errno.ECONNABORTED, errno.ESHUTDOWN, errno.ENODEV}
# What a call gives when the Hub fails it for too long (docs/semantics.md, "Error numbers"): done or not.
PASSING = {errno.EIO, errno.ETIMEDOUT}
# Files that one writer keeps, about.
MANY = 40
# Files of a folder that is renamed as a whole.
CROWD = 24
# Deepest folder that something new is put into.
DEEP = 5
# The calls at which a kill can be aimed.
CALLS = (
    "create", "write", "fsync", "close", "open to replace", "truncate", "unlink", "mkdir", "rmdir", "symlink", "rename file",
    "rename over file", "rename folder", "rename crowd", "rename over folder", "rename link",
)


class Dead(Exception):
    """The daemon is gone, or the round is over."""


class Passing(Exception):
    """A call failed for a passing reason."""


class Writer:
    def __init__(self, world, top, seed):
        self.world, self.top = world, top
        self.random = random.Random(seed)
        self.log = Log({})
        self.number = 0
        self.done = 0

    def absolute(self, path):
        return os.path.join(self.world.point, path)

    def call(self, name, effect, action, path, *gone):
        """One system call: noted, made, noted. `gone`: the paths that it takes away or replaces."""
        if self.world.over.is_set():
            raise Dead
        self.log.begin(name, effect, path, gone)
        self.world.about(name)
        try:
            result = action()
        except OSError as error:
            if error.errno in DEAD or self.world.dead.is_set():
                raise Dead from error
            if error.errno in PASSING and self.world.trouble:
                self.log.unknown()
                self.world.count("calls failed by faults")
                raise Passing from error
            raise Violation(f"{name} of {path}: {error}") from error
        self.log.done()
        self.world.count("acknowledged calls")
        self.done += 1
        return result

    # --- choices -----------------------------------------------------------------------------------------------------

    def name(self):
        self.number += 1
        return f"{self.world.mark}-{self.random.choice(['a', 'ü', 'b c', '日'])}{self.number}"

    def pick(self, kind, condition=lambda path: True):
        """A path of a kind that is certain to be there, below the writer's own folder."""
        found = [p for p, n in self.log.known().items() if isinstance(n, kind) and p != self.top and condition(p)]
        return self.random.choice(sorted(found)) if found else None

    def folder(self, outside=None):
        """A folder to put something into."""
        known = self.log.known()
        fits = [p for p, n in known.items() if n is DIRECTORY and p.count("/") < DEEP and not (outside and (p + "/").startswith(outside + "/"))]
        return self.random.choice(sorted(fits)) if self.top in known else None

    def fresh(self, outside=None):
        folder = self.folder(outside)
        while folder is not None:
            path = f"{folder}/{self.name()}"
            if self.log.is_free(path):
                return path
        return None

    def data(self, size=None):
        """Bytes that nobody else writes, with a mark in each 4 KiB."""
        if size is None:
            size = self.random.choice([0, 1, 50, 3000, 3000, 20_000, 60_000, RECORD - 1, RECORD, RECORD + 1, 150_000, 300_000])
            size = 1_300_000 if self.random.random() < 0.03 else size
        self.number += 1
        mark = f"{self.world.mark}:{self.top[-1]}:{self.number}:".encode()
        parts = [mark + self.random.randbytes(4096 - len(mark)) for _ in range(0, size, 4096)]
        return b"".join(parts)[:size]

    def is_empty(self, path):
        return not any(p.startswith(path + "/") for tree in self.log.trees for p in tree)

    # --- calls -------------------------------------------------------------------------------------------------------

    def write(self, path, data, sync=False):
        """Creates or replaces a file, in pieces."""
        new = path not in self.log.known()
        written = Written(b"")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | (os.O_EXCL if new else 0)
        name = "create" if new else "open to replace"
        fd = self.call(name, put(path, written), lambda: os.open(self.absolute(path), flags), path)
        step = self.random.choice([RECORD, 50_000])
        pieces = [(at, data[at : at + step]) for at in range(0, len(data), step)]
        self.fill(path, fd, written, pieces, sync)

    def fill(self, path, fd, written, pieces, sync):
        closed = []

        def close():
            closed.append(fd)
            os.close(fd)

        try:
            for at, piece in pieces:
                state = written.states[-1]
                written.then(state[:at].ljust(at, b"\0") + piece + state[at + len(piece) :])
                count = self.call("write", lambda tree: tree, lambda: os.pwrite(fd, piece, at), path)
                if count != len(piece) and self.world.dead.is_set():
                    raise Dead
                if count != len(piece):
                    raise Violation(f"a write of {len(piece)} bytes took {count}")
                if sync and self.random.random() < 0.3:
                    self.sync(path, fd, written)
            if sync:
                self.sync(path, fd, written)
            self.call("close", put(path, File(written.states[-1])), close, path)
        finally:
            if not closed:
                try:
                    os.close(fd)
                except OSError:
                    pass

    def sync(self, path, fd, written):
        self.call("fsync", lambda tree: tree, lambda: os.fsync(fd), path)
        written.acknowledge()

    def edit(self, path):
        """Changes parts of a file, perhaps behind its end."""
        old = self.log.known()[path]
        try:
            fd = os.open(self.absolute(path), os.O_RDWR)
        except OSError as error:
            self.failed(error, "open")
        written = Written(old.data)
        self.log.trees = [{**tree, path: written} for tree in self.log.trees]
        pieces = []
        for _ in range(self.random.randrange(1, 4)):
            at = self.random.choice([0, len(old.data), self.random.randrange(len(old.data) + 1), len(old.data) + 70_000])
            pieces.append((at, self.data(self.random.choice([1, 100, 5000, 40_000]))))
        self.fill(path, fd, written, pieces, self.random.random() < 0.2)

    def failed(self, error, what):
        """A call that changes nothing failed."""
        if error.errno in DEAD or self.world.dead.is_set():
            raise Dead from error
        if error.errno in PASSING and self.world.trouble:
            raise Passing from error
        raise Violation(f"{what}: {error}") from error

    def read(self, path):
        """What can be read is what was acknowledged, whatever goes on behind it."""
        expected = self.log.known()[path].data
        try:
            with open(self.absolute(path), "rb") as file:
                found = file.read()
        except OSError as error:
            self.failed(error, f"read of {path}")
        if found != expected:
            raise Violation(f"read of {path}: {first_difference(expected, found)}")

    def rename(self, name, old, new):
        self.call(name, rename(old, new), lambda: os.rename(self.absolute(old), self.absolute(new)), f"{old} -> {new}", old, new)

    def unlink(self, path):
        self.call("unlink", remove(path), lambda: os.unlink(self.absolute(path)), path, path)

    def mkdir(self, path):
        self.call("mkdir", put(path, DIRECTORY), lambda: os.mkdir(self.absolute(path)), path)

    def rmdir(self, path):
        self.call("rmdir", remove(path), lambda: os.rmdir(self.absolute(path)), path, path)

    def crowd(self):
        """A folder with many files, renamed as soon as it is there."""
        path = self.fresh()
        if path is None or "crowd" in path:
            return
        path += "-crowd"
        self.mkdir(path)
        for _ in range(CROWD):
            self.write(f"{path}/{self.name()}", self.data(self.random.choice([10, 900])))
        self.rename("rename crowd", path, f"{self.top}/{self.name()}-crowd")

    def clear(self, path):
        """`rm -r`."""
        for below in sorted((p for p in self.log.known() if p.startswith(path + "/")), reverse=True):
            node = self.log.known().get(below)
            if node is not None:
                (self.rmdir if node is DIRECTORY else self.unlink)(below)
        if self.is_empty(path):
            self.rmdir(path)

    def save(self, path):
        """As editors do: a new file beside it, synced, renamed over it."""
        temporary = self.fresh()
        if temporary is not None:
            self.write(temporary, self.data(), sync=True)
            self.rename("rename over file", temporary, path)

    def step(self):
        """One thing that programs do."""
        files = sum(isinstance(node, File) for node in self.log.known().values())
        crowd = self.pick(Directory, lambda p: p.endswith("-crowd"))
        kinds = {
            "new": 6, "replace": 3, "edit": 4, "read": 4, "truncate": 2, "unlink": 2, "mkdir": 2, "rmdir": 1, "symlink": 1, "mark": 0.3,
            "move": 3, "over": 2, "folder": 2, "onto": 1, "link": 1, "save": 2, "crowd": 0.3, "recrowd": 1.5, "clear": 0.2,
        }
        if files > MANY:
            kinds |= {"new": 1, "crowd": 0, "unlink": 6, "clear": 1}
        self.world.prefer(kinds)
        what = self.random.choices(list(kinds), list(kinds.values()))[0]
        file, folder = self.pick(File), self.pick(Directory)
        if what in ("new", "replace") and (what == "new" or file):
            path = self.fresh() if what == "new" else file
            if path:
                self.write(path, self.data(), self.random.random() < 0.2)
        elif what == "mkdir" and (path := self.fresh()):
            self.mkdir(path)
        elif what == "rmdir" and (path := self.pick(Directory, self.is_empty)):
            self.rmdir(path)
        elif what == "symlink" and (path := self.fresh()):
            target = f"../{self.world.mark}-target{self.number}"
            self.call("symlink", put(path, Link(target)), lambda: os.symlink(target, self.absolute(path)), path)
        elif what == "link" and (path := self.pick(Link)) and (to := self.fresh()):
            self.rename("rename link", path, to)
        elif what == "folder" and folder and (to := self.fresh(outside=folder)):
            # A crowd keeps its name: that is how it is found again.
            to += "-crowd" if folder.endswith("-crowd") else ""
            self.rename("rename folder", folder, to)
        elif what == "onto" and folder and (to := self.fresh(outside=folder)):
            self.mkdir(to)
            self.rename("rename over folder", folder, to)
        elif what == "crowd" and not crowd:
            self.crowd()
        elif what == "recrowd" and crowd:
            self.rename("rename crowd", crowd, f"{self.top}/{self.name()}-crowd")
        elif what == "clear" and folder:
            self.clear(folder)
        elif file and what == "edit":
            self.edit(file)
        elif file and what == "read":
            self.read(file)
        elif file and what == "truncate":
            data = self.log.known()[file].data
            size = self.random.choice([0, len(data) // 2, len(data) + 100_000, self.random.randrange(len(data) + 1)])
            after = File(data[:size].ljust(size, b"\0"))
            self.call("truncate", put(file, after), lambda: os.truncate(self.absolute(file), size), file)
        elif file and what == "unlink":
            self.unlink(file)
        elif file and what == "move" and (to := self.fresh()):
            self.rename("rename file", file, to)
        elif file and what == "over" and (other := self.pick(File, lambda p: p != file)):
            self.rename("rename over file", file, other)
        elif file and what == "save":
            self.save(file)
        elif file and what == "mark":
            try:
                os.setxattr(self.absolute(file), f"user.{self.world.mark}", self.world.mark.encode() * 9)
            except OSError as error:
                self.failed(error, "setxattr")

    def run(self, steps):
        """Works until the daemon dies, the round is over, or it doesn't know any more what is there."""
        try:
            for _ in range(steps):
                if self.world.over.is_set() or self.log.is_lost():
                    return
                try:
                    self.step()
                except Passing:
                    pass
        except Dead:
            pass
        except Exception as error:  # noqa: BLE001: it ends the campaign, in the thread that runs it
            self.world.violations.append(error)
            self.world.over.set()


def look(point, top):
    """The tree that is there: path -> node, contents read."""
    found = {}

    def walk(path):
        with os.scandir(os.path.join(point, path)) as entries:
            names = [(entry.name, entry.is_symlink(), entry.is_dir(follow_symlinks=False)) for entry in entries]
        for name, is_link, is_folder in names:
            below = f"{path}/{name}" if path else name
            if is_link:
                found[below] = Link(os.readlink(os.path.join(point, below)))
            elif is_folder:
                found[below] = DIRECTORY
                walk(below)
            else:
                size = os.stat(os.path.join(point, below)).st_size
                with open(os.path.join(point, below), "rb") as file:
                    data = file.read()
                if size != len(data):
                    raise Violation(f"{below} has {len(data)} bytes and says {size}")
                found[below] = File(data)

    if top:
        found[top] = DIRECTORY
    walk(top)
    return found
