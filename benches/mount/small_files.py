#!/usr/bin/env python3
"""Many small files: builds of this project beside each other, and beside gocryptfs on the local disk, in one run.

    benches/mount/small_files.py --build before=DIR --build now=DIR [--files N]… [--rounds R] [--gocryptfs]

DIR holds `hf-mount` and `hugbucket` of one release build. Each round creates files of 4 KiB of random bytes in a fresh
encrypted mount, flushes it, and ends it. The embedded Hub is a process of its own. The order of the builds turns from
round to round. Printed are medians: seconds to create the files, seconds to flush them, CPU of the daemon for each
file, upload sessions (each leaves one shard at the Hub), and the daemon's peak memory.
"""

import argparse
import contextlib
import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

SIZE = 4096
TICK = os.sysconf("SC_CLK_TCK")


def run(*command, **more):
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True, **more)


def cpu(pid):
    """User and system seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def peak(pid):
    """Peak resident MiB of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def create(folder, files, seed):
    """Creates the files in ten folders. Gives the seconds that took."""
    block = seed + os.urandom(SIZE)
    for number in range(10):
        (folder / str(number)).mkdir()
    began = time.monotonic()
    for number in range(files):
        with open(folder / str(number % 10) / f"file-{number}", "wb") as file:
            file.write(number.to_bytes(8, "little") + block[16 + number % 64 :][: SIZE - 8])
    return time.monotonic() - began


def ours(programs, files, home):
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env |= {"HOME": str(home), "HF_HOME": str(home), "HF_TOKEN": "hf_local"}
    hub = subprocess.Popen(
        [programs / "hugbucket", "hub", "--dir", home / "hub", "--listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.PIPE, text=True, env=env,
    )
    try:
        env["HF_ENDPOINT"] = hub.stdout.readline().strip()
        key, point = home / "key", home / "mount"
        point.mkdir()
        key.write_bytes(os.urandom(32))
        key.chmod(0o600)
        request = ["curl", "-sf", "-X", "POST", "-H", "Authorization: Bearer hf_local"]
        run(*request, env["HF_ENDPOINT"] + "/api/buckets/local/bench")
        options = ["--encryption-key-file", key, "--cache-dir", home / "cache"]
        run(programs / "hf-mount", "start", *options, "bucket", "local/bench", point, env=env)
        try:
            pid = json.loads(run(programs / "hf-mount", "status", "--json", env=env).stdout)["mounts"][0]["pid"]
            before = cpu(pid)
            created = create(point, files, b"ours")
            began = time.monotonic()
            run(programs / "hf-mount", "flush", point, env=env)
            flushed = time.monotonic() - began
            spent, memory = cpu(pid) - before, peak(pid)
        finally:
            run(programs / "hf-mount", "stop", point, env=env)
        with contextlib.closing(sqlite3.connect(home / "hub" / "hub.sqlite")) as database:
            (sessions,) = database.execute("SELECT count(*) FROM cas_shards").fetchone()
        return {
            "create s": created,
            "flush s": flushed,
            "CPU ms/file": spent / files * 1000,
            "sessions": sessions,
            "peak MiB": memory,
        }
    finally:
        hub.terminate()
        hub.wait(30)


def gocryptfs(files, home):
    store, point, password = home / "store", home / "mount", home / "password"
    store.mkdir()
    point.mkdir()
    password.write_text("password")
    run("gocryptfs", "-init", "-scryptn", "10", "-passfile", password, "-q", store)
    run("gocryptfs", "-passfile", password, "-q", store, point)
    try:
        return {"create s": create(point, files, b"peer")}
    finally:
        run("umount", point)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--files", action="append", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gocryptfs", action="store_true")
    arguments = parser.parse_args()
    sides = {}
    for build in arguments.build:
        name, folder = build.split("=", 1)
        sides[name] = lambda files, home, folder=Path(folder).resolve(): ours(folder, files, home)
    if arguments.gocryptfs:
        sides["gocryptfs"] = gocryptfs
    for files in arguments.files or [1000, 10_000]:
        results = {name: [] for name in sides}
        for number in range(arguments.rounds):
            order = list(sides)[number % len(sides) :] + list(sides)[: number % len(sides)]
            for name in order:
                home = Path(tempfile.mkdtemp(prefix="small-files-"))
                try:
                    results[name].append(sides[name](files, home))
                finally:
                    shutil.rmtree(home)
        print(f"\n{files} files of {SIZE} bytes, median of {arguments.rounds}")
        for name, rounds in results.items():
            medians = {what: statistics.median(one[what] for one in rounds) for what in rounds[0]}
            print(f"  {name:10}", "  ".join(f"{what} {value:.2f}" for what, value in medians.items()), flush=True)


if __name__ == "__main__":
    main()
