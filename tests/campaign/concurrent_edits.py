#!/usr/bin/env python3
"""Mounts of one bucket, and the official client, change the same files: what of it is lost?

    concurrent_edits.py forced [plain|encrypted]          every race that we know, forced
    concurrent_edits.py random [plain|encrypted] [--minutes M | --operations N] [--seed S] [--mounts K]
                               [--kills] [--large]
    concurrent_edits.py window [plain|encrypted] [--tries N]   how long a foreign change can slip in, and its result

Exit status 1 if a version is missing that a mount had acknowledged. Needs FUSE, our programs
(HFCRYPT_BIN, default target/debug), and for `window` huggingface_hub.
"""

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import conftest  # noqa: E402, F401
import races  # noqa: E402
from lab import BUCKET, READ_BACK, Lab, held_append, overlap, set_home, tokens  # noqa: E402
from shared import run  # noqa: E402


def forced(folder, encrypted, which=None):
    """Runs races on one lab; name of each -> what was lost, or went elsewhere than it should."""
    lab = Lab(folder, encrypted, names="abc")
    try:
        running, wrong = [], {}
        for race in which or races.ALL:
            before = set(lab.must)
            going = race(lab)
            try:
                next(going)
            except Exception as error:
                wrong[race.__name__] = f"{type(error).__name__}: {error}"
            running.append((race.__name__, going, lab.must - before))
        lab.settle()
        found = lab.contents()
        missing = set(lab.missing(found))
        for name, going, mine in running:
            try:
                going.send(found)
            except StopIteration:
                pass
            except Exception as error:
                wrong.setdefault(name, f"{type(error).__name__}: {error}")
            if missing & mine:
                wrong[name] = f"lost {sorted(missing & mine)}"
        if lab.hidden:
            wrong["all"] = f"{lab.hidden} entries can't be read"
        return {name: wrong.get(name) for name, _, _ in running} | wrong
    finally:
        lab.close()


class Worker:
    """One program at a time on one machine."""

    FILES = [f"d{d}/f{f}.txt" for d in range(2) for f in range(3)] + ["top.txt"]
    SLOTS, SLOT = 8, 1 << 20

    def __init__(self, lab, machine, seed, end, kills, large, removals):
        self.lab, self.machine, self.end, self.kills = lab, machine, end, kills
        self.random = random.Random(seed)
        self.log, self.failures, self.killed = [], 0, 0
        self.operations = [(50, machine.append), (2, machine.overwrite), (15, self.save), (12, self.create)]
        if removals:
            self.operations += [(2, self.unlink), (2, self.recreate), (4, self.rename), (2, self.rename_directory)]
        if large:
            self.operations.append((2, self.edit_in_place))

    def run(self):
        while not self.end(self):
            weights, operations = zip(*self.operations)
            [operation] = self.random.choices(operations, weights)
            name = self.random.choice(self.FILES)
            try:
                outcome = operation(name)
            except OSError as error:
                outcome = error
                self.failures += 1
            self.log.append((time.monotonic(), self.machine.name, operation.__name__, name, outcome))
            if self.kills and self.random.random() < 0.01:
                self.machine.restart()
                self.log.append((time.monotonic(), self.machine.name, "restart", None, None))
                self.killed += 1
            time.sleep(self.random.expovariate(30))

    def create(self, name):
        return self.machine.create(name)

    def unlink(self, name):
        return self.machine.unlink(name)

    def recreate(self, name):
        self.machine.unlink(name)
        return self.machine.create(name)

    def save(self, name):
        """As editors do: what was read and a token go to a new file, which is renamed over the old one."""
        token = self.machine.token()
        new = self.machine.path(f"{name}.{self.machine.name}.new")
        with open(self.machine.path(name), "r+b") as old:
            data = old.read()
            new.write_bytes(data + token)
            self.lab.acknowledged(token, tokens(data))
            new.rename(self.machine.path(name))
        return token

    def rename(self, name):
        new = self.random.choice(self.FILES)
        self.machine.rename(name, new)
        return new

    def rename_directory(self, _):
        old, new = self.random.sample(["d0", "d1"], 2)
        if self.machine.path(new).exists():
            new = f"d{self.random.randint(2, 4)}"
        self.machine.path(old).rename(self.machine.path(new))
        return f"{old} to {new}"

    def edit_in_place(self, _):
        token = self.machine.token()
        with open(self.machine.path("large.bin"), "r+b") as file:
            file.seek((1 + self.random.randrange(self.SLOTS)) * self.SLOT)
            known = tokens(file.read(64))
            file.seek(-64, os.SEEK_CUR)
            file.write(token.ljust(64))
        self.lab.removed(known)
        return self.lab.acknowledged(token)


def at_random(folder, encrypted, seed=1, minutes=None, operations=None, mounts=2, kills=False, large=False, removals=True, keep=None, say=print):
    """Random work on several mounts under delays, lost answers and refusals; gives the tokens that are missing.

    With `removals` a version may be missing by what docs/semantics.md says of new files:
    overwritten, and that moved away, within a second.
    """
    names = "abcdefgh"[:mounts]
    lab = Lab(folder, encrypted, names, timing=(100, 1000))
    try:
        for name in Worker.FILES:
            lab.a.create(name)
        if large:
            lab.a.create("large.bin", 65 << 20)
        lab.a.flush()
        for machine in lab.machines.values():
            gate = machine.gate
            gate.delays = {"commit": (0, 0.4), "look": (0, 0.2), "list": (0, 0.1)}
            gate.lost, gate.refused = {"commit": 0.03, "look": 0.01}, {"commit": 0.02, "look": 0.01}
        deadline = time.monotonic() + (minutes or 0) * 60

        def over(worker):
            return len(worker.log) * mounts >= operations if operations else time.monotonic() > deadline

        workers = [
            Worker(lab, machine, f"{seed} {machine.name}", over, kills, large, removals)
            for machine in lab.machines.values()
        ]
        threads = [threading.Thread(target=worker.run) for worker in workers]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.monotonic() - began
        for machine in lab.machines.values():
            machine.gate.delays, machine.gate.lost, machine.gate.refused = {}, {}, {}
        lab.settle_after_faults()
        found = lab.contents()
        missing = lab.missing(found)
        done = sum(len(worker.log) for worker in workers)
        say(
            f"seed {seed}, {'encrypted' if encrypted else 'plain'}, {mounts} mounts, {took:.0f} s: {done} operations"
            f" ({sum(w.failures for w in workers)} in vain),"
            f" {sum(w.killed for w in workers)} kills, {len(lab.must)} versions, {len(lab.may_go)} of them removed knowingly,"
            f" {sum(' (conflict ' in path for path in found)} conflict copies, {len(missing)} missing"
        )
        tell(lab, [event for worker in workers for event in worker.log], missing, say)
        if missing and keep:
            shutil.copytree(Path(os.environ["HOME"], ".hf-mount", "logs"), keep)
        return missing
    finally:
        lab.close()


def tell(lab, events, missing, say):
    """What was done around the last version that held a missing token."""
    told = set()
    for token in missing:
        holders = {t for t, known in lab.made_from.items() if t == token or token in known}
        last = max((event for event in events if event[4] in holders), default=None, key=lambda event: event[0])
        if last is None or last[4] in told:
            continue
        told.add(last[4])
        say(f"missing: {token.decode()}, in {len(holders)} versions, the last of them {last[4].decode()} by {last[1]} at {last[3]}")
        # Wherever the file was meanwhile.
        for when, *event in sorted(events, key=lambda event: event[0]):
            near = -12 < when - last[0] < 3
            if near and (event[2] == last[3] or event[1] in ("rename", "rename_directory", "restart")):
                say(f"  {when - last[0]:+.2f} s {event}")


def window(folder, encrypted, tries=20, say=print):
    """Measures what the official client's changes and ours do to each other."""
    from huggingface_hub import HfApi

    lab = Lab(folder, encrypted, names="ab")
    try:
        api = HfApi(endpoint=lab.hub.url, token="hf_local")
        count = iter(range(10**6))

        def upload(name):
            """By the client; of an encrypted bucket it can only store a container that is there, somewhere else."""
            if not encrypted:
                token = b"[X-%d]" % next(count)
                api.batch_bucket_files(BUCKET, add=[(token, name)])
                return token
            other = f"other-{next(count)}"
            token = lab.b.create(other)
            lab.b.flush()
            key = run("hfcrypt", "name", "encrypt", "--key-file", lab.key, other).stdout.strip()
            [entry] = api.get_bucket_paths_info(BUCKET, [key])
            to = run("hfcrypt", "name", "encrypt", "--key-file", lab.key, name).stdout.strip()
            api.batch_bucket_files(BUCKET, copy=[("bucket", BUCKET, entry.xet_hash, to)], delete=[key])
            return token

        def edited(name):
            lab.a.create(name)
            lab.a.flush()

        outcomes = {}

        def note(what, token):
            outcomes.setdefault(what, []).append(token)

        # Our own commits, undisturbed: from the answer that was compared to the commit's arrival.
        edited("own.txt")
        lab.a.gate.windows.clear()
        for _ in range(tries):
            lab.a.append("own.txt")
            lab.a.flush()
        spans = sorted(1000 * (sent - looked) for looked, sent in lab.a.gate.windows)
        say(
            f"between comparing and committing, {len(spans)} commits: median {statistics.median(spans):.1f} ms,"
            f" longest {spans[-1]:.1f} ms"
        )
        for at, change in (
            ("commit", "theirs, uploaded between our comparing and our commit"),
            ("look", "theirs, uploaded right before our comparing"),
        ):
            for number in range(tries):
                name = f"{at}-{number}.txt"
                edited(name)
                held = held_append(lab, lab.a, name, at)
                note(change, upload(name))
                held.release()
                lab.a.flush()
        for number in range(tries):
            name = f"after-{number}.txt"
            edited(name)
            note("ours, overwritten by the client right after our commit", lab.a.append(name))
            lab.a.flush()
            upload(name)
        for number in range(tries):
            name = f"removed-{number}.txt"
            edited(name)
            note("ours, an edit, removed by the client right after our commit", lab.a.append(name))
            lab.a.flush()
            key = run("hfcrypt", "name", "encrypt", "--key-file", lab.key, name).stdout.strip() if encrypted else name
            api.batch_bucket_files(BUCKET, delete=[key])
        for number in range(tries):
            name = f"new-{number}.txt"
            note("ours, a new file, removed by the client right after our commit", lab.a.create(name))
            lab.a.flush()
            key = run("hfcrypt", "name", "encrypt", "--key-file", lab.key, name).stdout.strip() if encrypted else name
            api.batch_bucket_files(BUCKET, delete=[key])
        # Uploads that start at random moments around our commit, with nothing held.
        delay = random.Random(1)
        for number in range(tries):
            name = f"random-{number}.txt"
            edited(name)
            lab.a.append(name)
            flushing = lab.a.flushing()
            time.sleep(delay.uniform(0, 0.08))
            note("theirs, uploaded at a random moment within 80 ms of our flush", upload(name))
            flushing.wait()
        edited("again.txt")
        lab.b.sees("again.txt", b"")
        removal = lab.b.gate.hold("commit", lab.stored_key("again.txt"))
        lab.b.unlink("again.txt")
        removal.wait()
        lab.a.unlink("again.txt")
        lab.a.flush()
        note("ours, a new file, under another mount's removal of the one before it", lab.a.create("again.txt"))
        lab.a.flush()
        removal.release()
        lab.b.flush()
        fresh = []
        overlap(
            lab, "fresh.txt", lab.b, lambda: lab.b.create("fresh.txt"), lab.a, lambda: fresh.append(lab.a.create("fresh.txt"))
        )
        lab.b.rename("fresh.txt", "fresh-to.txt")
        lab.b.flush()
        note("ours, a new file, overwritten and what overwrote it moved away at once", fresh[0])
        edited("late.txt")
        lab.b.sees("late.txt", b"")
        held = held_append(lab, lab.b, "late.txt")
        note("ours, when another mount's request is on its way for longer than the read-back waits", lab.a.append("late.txt"))
        lab.a.flush()
        for number in range(tries):
            edited(f"settled-{number}.txt")
            note("ours, overwritten by the client more than 10 s after our commit", lab.a.append(f"settled-{number}.txt"))
        lab.a.flush()
        time.sleep(READ_BACK + 2.5)
        held.release()
        lab.b.flush()
        for number in range(tries):
            upload(f"settled-{number}.txt")
        lab.settle()
        found = lab.contents()
        there = set().union(*(tokens(data) for data in found.values()))
        for what, mine in outcomes.items():
            say(f"{what}: {sum(token not in there for token in mine)} of {len(mine)} lost")
        return {what: sum(token not in there for token in mine) for what, mine in outcomes.items()}
    finally:
        lab.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("what", choices=["forced", "random", "window"])
    parser.add_argument("side", nargs="?", choices=["plain", "encrypted"], default="encrypted")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--operations", type=int)
    parser.add_argument("--mounts", type=int, default=2)
    parser.add_argument("--kills", action="store_true", help="kill -9 a mount now and then")
    parser.add_argument("--large", action="store_true", help="a file of 65 MiB, too, edited in place")
    parser.add_argument("--keep", help="random: copies the logs there if something is missing")
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--only", action="append", help="forced: only these races")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="concurrent-"))
    set_home(folder)
    encrypted = args.side == "encrypted"
    try:
        if args.what == "forced":
            which = [getattr(races, name) for name in args.only or []]
            outcome = forced(folder / "lab", encrypted, which)
            for name, why in outcome.items():
                print(f"{name}: {why or 'nothing lost'}")
            return any(outcome.values())
        if args.what == "random":
            limits = {"minutes": args.minutes, "operations": args.operations, "mounts": args.mounts}
            return bool(at_random(folder / "lab", encrypted, args.seed, **limits, kills=args.kills, large=args.large, keep=args.keep))
        window(folder / "lab", encrypted, args.tries)
        return False
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
