#!/usr/bin/env python3
"""Sequential reads over a slow network: builds of this project beside each other, in one run.

    benches/mount/latency.py --build before=DIR --build now=DIR [--ms 20]… [--mib N] [--mbps R] [--plain] [--rounds R]

DIR holds `hf-mount` and `hugbucket` of one release build. Between the mount and the embedded Hub, a process of its own,
is a proxy: each byte takes half of the round trip (--ms), a new connection a whole one, and all connections together
send at most R MB/s in each direction. Each round reads a file that no cache has, with reads of 1 MiB. Printed are
medians: MB/s, their share of R, milliseconds until the first byte, and CPU seconds of the daemon per GiB.
"""

import argparse
import json
import os
import queue
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from small_files import cpu, run

PIECE = 1 << 18


class Link:
    """One direction of the network, which all connections share."""

    def __init__(self, rate):
        self.rate, self.free, self.lock = rate, 0.0, threading.Lock()

    def leaves(self, size):
        """Returns when these bytes have left the sender."""
        with self.lock:
            self.free = max(self.free, time.monotonic()) + size / self.rate
            return self.free


class Network:
    """A proxy with latency and a rate."""

    def __init__(self, target, round_trip, rate):
        self.target, self.half = target, round_trip / 2
        self.up, self.down = Link(rate), Link(rate)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.url = "http://127.0.0.1:%d" % self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.connect, args=(client,), daemon=True).start()

    def connect(self, client):
        # The handshake of TCP.
        time.sleep(2 * self.half)
        server = socket.create_connection(self.target)
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for source, sink, link in ((client, server, self.up), (server, client, self.down)):
            # As much as fits into the window of a connection, of 16 MiB.
            flight = queue.Queue(64)
            threading.Thread(target=self.take, args=(source, flight, link), daemon=True).start()
            threading.Thread(target=self.give, args=(sink, flight), daemon=True).start()

    def take(self, source, flight, link):
        try:
            while piece := source.recv(PIECE):
                flight.put((link.leaves(len(piece)) + self.half, piece))
        except OSError:
            pass
        flight.put((time.monotonic() + self.half, b""))

    def give(self, sink, flight):
        try:
            while True:
                at, piece = flight.get()
                if (wait := at - time.monotonic()) > 0:
                    time.sleep(wait)
                if not piece:
                    sink.shutdown(socket.SHUT_WR)
                    return
                sink.sendall(piece)
        except OSError:
            # The other side may be blocked by a full queue.
            while flight.get()[1]:
                pass


def read(path):
    """Reads a file. Returns seconds to the first byte and to the end."""
    began, first, size = time.monotonic(), None, 0
    with open(path, "rb", buffering=0) as file:
        file.read(1)
        first = time.monotonic() - began
        while part := file.read(1 << 20):
            size += len(part)
    return first, time.monotonic() - began


def measure(programs, home, endpoint, options, name, mib):
    """Reads a file by a fresh mount without caches."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env |= {"HOME": str(home), "HF_TOKEN": "hf_local", "HF_ENDPOINT": endpoint, "XDG_RUNTIME_DIR": str(home)}
    point, cache = home / "mount", home / "cache"
    point.mkdir(exist_ok=True)
    run(programs / "hf-mount", "start", *options, "--no-disk-cache", "--cache-dir", cache, "bucket", "local/b", point, env=env)
    try:
        mounts = json.loads(run(programs / "hf-mount", "status", "--json", env=env).stdout)["mounts"]
        pid = mounts[0]["pid"]
        (point / name).stat()
        before = cpu(pid)
        first, whole = read(point / name)
        return {"mbps": mib * 1.048576 / whole, "first_ms": first * 1000, "cpu": (cpu(pid) - before) / mib * 1024}
    finally:
        run(programs / "hf-mount", "stop", point, env=env)
        run("rm", "-rf", cache)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", action="append", required=True, metavar="NAME=DIR")
    parser.add_argument("--ms", action="append", type=float, help="round trip, milliseconds (default: 20, 50 and 100)")
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--mbps", type=float, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plain", action="store_true", help="a mount without a key")
    args = parser.parse_args()
    builds = {name: Path(path).resolve() for name, _, path in (text.partition("=") for text in args.build)}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        first = next(iter(builds.values()))
        hub = subprocess.Popen(
            [first / "hugbucket", "hub", "--dir", home / "hub", "--listen", "127.0.0.1:0"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        try:
            endpoint = hub.stdout.readline().strip()
            target = (urlsplit(endpoint).hostname, urlsplit(endpoint).port)
            (home / "key").write_bytes(os.urandom(32))
            (home / "key").chmod(0o600)
            options = [] if args.plain else ["--encryption-key-file", home / "key"]
            env = {**os.environ, "HOME": str(home), "HF_TOKEN": "hf_local", "HF_ENDPOINT": endpoint}
            (home / "mount").mkdir()
            run(first / "hf-mount", "start", *options, "--create", "bucket", "local/b", home / "mount", env=env)
            with open(home / "mount" / "file", "wb") as file:
                for _ in range(args.mib):
                    file.write(os.urandom(1 << 20))
            run(first / "hf-mount", "stop", home / "mount", env=env)
            for ms in args.ms or [20, 50, 100]:
                network = Network(target, ms / 1000, args.mbps * 1e6)
                found = {name: [] for name in builds}
                for number in range(args.rounds):
                    for name in list(builds)[:: 1 if number % 2 == 0 else -1]:
                        found[name].append(measure(builds[name], home, network.url, options, "file", args.mib))
                network.listener.close()
                for name, rounds in found.items():
                    middle = {what: statistics.median(one[what] for one in rounds) for what in rounds[0]}
                    share = middle["mbps"] / args.mbps
                    print(
                        f"{ms:g} ms, {name}: {middle['mbps']:.0f} MB/s ({share:.2f}), first byte {middle['first_ms']:.0f} ms,"
                        f" CPU {middle['cpu']:.2f} s/GiB", flush=True,
                    )
        finally:
            hub.terminate()
            hub.wait()


if __name__ == "__main__":
    main()
