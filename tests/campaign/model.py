"""What a writer did, what was acknowledged, and so what may be found after a kill.

A tree is a dict: path -> `Directory`, a `Link`, a `File` or a `Written` (a file that is being
written). `Log` keeps every tree that may be the true one: mostly one; two while a call is under way
or after one whose outcome isn't known. Nothing here touches a disk.
"""

# A mount keeps records of so many bytes: what was written and not closed may be there or not, record by record.
RECORD = 65_536
# More trees than this and a writer stops: it no longer knows what it does.
MOST_TREES = 8


class Violation(Exception):
    """A promise was broken."""


class Directory:
    def accepts(self, found):
        return isinstance(found, Directory)

    def __repr__(self):
        return "directory"


DIRECTORY = Directory()


class Link:
    def __init__(self, target):
        self.target = target

    def accepts(self, found):
        return isinstance(found, Link) and found.target == self.target

    def __repr__(self):
        return "link"


class File:
    """Acknowledged content: these bytes and no others."""

    def __init__(self, data):
        self.data = data

    def accepts(self, found):
        return isinstance(found, File) and found.data == self.data

    def __repr__(self):
        return f"file of {len(self.data)} bytes"


class Written:
    """A file that is open for writing: `states` are its contents after each call, the first one acknowledged."""

    def __init__(self, data):
        self.states = [data]

    def then(self, data):
        self.states.append(data)

    def acknowledge(self):
        """All that was written so far was synced: an earlier state may not come back."""
        del self.states[:-1]

    def accepts(self, found):
        """`write` promises nothing. But each record is as one of the calls left it or was about to,
        and so is the length."""
        if not isinstance(found, File):
            return False
        lengths = [len(state) for state in self.states]
        # The kernel makes several requests of a write: it may be cut at any byte.
        if len(found.data) not in lengths and not any(min(two) < len(found.data) < max(two) for two in zip(lengths, lengths[1:])):
            return False
        return all(self.holds(found.data, at) for at in range(0, len(found.data), RECORD))

    def holds(self, data, at):
        part = data[at : at + RECORD]
        parts = [state[at : at + len(part)].ljust(len(part), b"\0") for state in self.states]
        return part in parts or any(is_cut_of(part, before, after) for before, after in zip(parts, parts[1:]))

    def __repr__(self):
        return f"file being written, {[len(state) for state in self.states]} bytes"


def is_cut_of(found, before, after):
    """Whether a change from `before` to `after` was made up to some byte."""
    done = next((at for at, (a, b) in enumerate(zip(found, after)) if a != b), len(found))
    return found[done:] == before[done:]


def within(path, folder):
    return path == folder or path.startswith(folder + "/")


# --- what calls do to a tree: a new tree, or None where the call can't have been done -------------------------------


def put(path, node):
    def effect(tree):
        return {**tree, path: node}

    return effect


def remove(path):
    def effect(tree):
        if path not in tree:
            return None
        return {p: node for p, node in tree.items() if p != path}

    return effect


def rename(old, new):
    def effect(tree):
        if old not in tree:
            return None
        kept = {p: node for p, node in tree.items() if not within(p, old) and p != new}
        moved = {new + p[len(old) :]: node for p, node in tree.items() if within(p, old)}
        return {**kept, **moved}

    return effect


class Log:
    """One writer's part of the tree. `begin` before each call, then `done`, `unknown`, or nothing
    at all when the daemon died."""

    def __init__(self, tree):
        self.trees = [tree]
        self.flight = None
        # What was done to what, and how it ended: for whoever has to find out why something is missing.
        self.history = []
        # Since the last time that the Hub had everything: paths that were taken away or replaced,
        # and all that ever were.
        self.moved, self.ever = set(), set(tree)

    def is_certain(self):
        """Whether there is just one tree that may be there, to the last byte: no call is under way,
        and no file is open for writing."""
        return not self.flight and len(self.trees) == 1 and not any(isinstance(node, Written) for node in self.trees[0].values())

    def begin(self, name, effect, path, gone=()):
        """`gone`: the paths that it takes away or replaces."""
        self.flight = (name, effect)
        self.history.append([name, path, *gone, "under way"])
        for path in gone:
            self.moved.update(p for tree in self.trees for p in (*tree, path) if within(p, path))
        for tree in self.trees:
            self.ever.update(effect(tree) or ())

    def done(self):
        _, effect = self.flight
        self.history[-1][-1] = "done"
        self.trees = [after for tree in self.trees if (after := effect(tree)) is not None]
        self.flight = None
        if not self.trees:
            raise Violation("a call succeeded that can't have")

    def unknown(self):
        """It failed for a passing reason: it may have been carried out all the same."""
        self.history[-1][-1] = "unknown"
        self.trees = self.possible()
        self.flight = None

    def possible(self):
        if self.flight is None:
            return self.trees
        _, effect = self.flight
        after = ((tree, effect(tree)) for tree in self.trees)
        return self.trees + [new for old, new in after if new is not None and new is not old]

    def is_lost(self):
        return len(self.trees) > MOST_TREES

    def known(self):
        """What is the same in every tree that may be the true one."""
        first, *others = self.trees
        return {path: node for path, node in first.items() if all(tree.get(path) is node for tree in others)}

    def is_free(self, path):
        return not any(within(p, path) for tree in self.trees for p in tree)

    def settle(self, found, where):
        """Holds what was found against what may be there. Gives whether the call under way was
        carried out (None: there was none)."""
        possible = self.possible()
        for at, tree in enumerate(possible):
            if tree.keys() == found.keys() and all(node.accepts(found[path]) for path, node in tree.items()):
                was_carried_out = None if self.flight is None else at >= len(self.trees)
                # Contents keep their identity, so that they can be followed through renames.
                self.trees = [{p: n if isinstance(n, (File, Link)) else found[p] for p, n in tree.items()}]
                self.flight = None
                self.history.append(["looked at", where, "all as acknowledged"])
                self.ever.update(found)
                return was_carried_out
        raise Violation(f"{where}: {self.difference(possible, found)}")

    def difference(self, possible, found):
        def distance(tree):
            return [p for p in {*tree, *found} if p not in tree or p not in found or not tree[p].accepts(found[p])]

        tree = min(possible, key=lambda tree: len(distance(tree)))
        lines = [f"under way: {self.flight and self.flight[0]}; nearest of {len(possible)} possible trees:"]
        for path in sorted(distance(tree)):
            lines.append(f"  {path}: expected {tree.get(path, 'nothing')}, found {found.get(path, 'nothing')}")
            if path in tree and path in found and hasattr(found[path], "data") and hasattr(tree[path], "data"):
                lines.append(f"    {first_difference(tree[path].data, found[path].data)}")
        return "\n".join(lines)

    def reached_the_hub(self):
        """The Hub has everything: what follows is counted from here."""
        self.moved, self.ever = set(), {path for tree in self.trees for path in tree}
        self.history.append(["the Hub had everything"])


def first_difference(expected, found):
    for at, (a, b) in enumerate(zip(expected, found)):
        if a != b:
            count = sum(x != y for x, y in zip(expected, found))
            return f"first at byte {at}, {count} bytes in all: {expected[at:at + 24]!r} / {found[at:at + 24]!r}"
    return f"the same up to byte {min(len(expected), len(found))}"
