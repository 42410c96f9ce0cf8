"""Our Xet client and server beside the official ones: what each needs for the same work in the same
run. README.md says how to read it.

Started by `run`, which builds the programs and installs the official client. A round uploads and
downloads one fresh file per content, client and server; the order turns from round to round. All
results are ratios, ours / official, of the same round, and the medians of those.
"""

import argparse
import filecmp
import itertools
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
MIB = 1 << 20
SIDES = ("ours", "official")
DIRECTIONS = ("upload", "download")
TICK = os.sysconf("SC_CLK_TCK")


class Server:
    """A CAS server over a folder of its own."""

    def __init__(self, side, programs, folder):
        command = {
            "ours": [programs / "hugbucket", "hub", "--dir", folder, "--listen", "127.0.0.1:0"],
            "official": [programs / "official-server", folder],
        }[side]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.process = subprocess.Popen(command, **pipes)
        self.url, self.token = self.process.stdout.readline().strip(), "anything"
        assert self.url.startswith("http://127.0.0.1:"), f"{command} did not start"
        if side == "ours":
            call(self.url, "POST", "/api/buckets/local/compare")
            token = call(self.url, "GET", "/api/buckets/local/compare/xet-write-token")
            self.url, self.token = token["casUrl"], token["accessToken"]

    def cpu(self):
        """User and system seconds so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def forget_peak(self):
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def peak(self):
        """Peak resident MiB since `forget_peak`."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.stdin.close()
        self.process.wait(30)


def call(url, method, path):
    request = urllib.request.Request(url + path, method=method, headers={"Authorization": "Bearer hf_local"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def measure(server, command, home):
    """Runs a client. Gives what it printed and what it took."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env |= {"HOME": str(home), "HF_HOME": str(home), "HF_XET_CACHE": str(home / "xet"), "HF_XET_LOG_DEST": str(home / "log")}
    server.forget_peak()
    cpu, start = server.cpu(), time.monotonic()
    client = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, env=env)
    printed = client.stdout.read().decode().strip()
    _, status, usage = os.wait4(client.pid, 0)
    wall = time.monotonic() - start
    client.returncode = os.waitstatus_to_exitcode(status)
    assert client.returncode == 0, f"{command} gave {client.returncode}"
    taken = {
        "wall": wall,
        "client cpu": usage.ru_utime + usage.ru_stime,
        "client rss": usage.ru_maxrss / 1024,
        "server cpu": server.cpu() - cpu,
        "server rss": server.peak(),
    }
    return printed, taken


def exchange(content, client, server_side, options, folder):
    """One file up and down again: what each direction took."""
    up, down, home = folder / "up", folder / "down", folder / "home"
    home.mkdir()
    size = options.size * MIB
    subprocess.run([options.programs / "content", content, str(size), str(random.getrandbits(60)), up], check=True)
    verb = {"ours": [options.programs / "our-client"], "official": [sys.executable, HERE / "official_client.py"]}[client]
    server = Server(server_side, options.programs, folder / "server")
    # What was written before this doesn't compete with it.
    os.sync()
    try:
        to = [server.url, server.token]
        file_hash, upload = measure(server, [*verb, "upload", *to, "random" if content == "random" else "plain", up], home)
        os.sync()
        _, download = measure(server, [*verb, "download", *to, file_hash, size, down], home)
    finally:
        server.stop()
    assert filecmp.cmp(up, down, shallow=False), f"{client} client, {server_side} server: other bytes came back"
    return dict(zip(DIRECTIONS, (upload, download)))


class Peer:
    """The other end of a bare connection: a thread of this process that swallows all, or sends a file."""

    def __init__(self, file=None):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self._serve, args=(file,))
        self.thread.start()

    def _serve(self, file):
        connection, _ = self.listener.accept()
        with connection:
            if file:
                with open(file, "rb") as content:
                    connection.sendfile(content)
            else:
                buffer = bytearray(MIB)
                while connection.recv_into(buffer):
                    pass

    def stop(self):
        self.thread.join()
        self.listener.close()


def floor(options, folder):
    """CPU seconds of what no client can do without, per direction, for incompressible content."""
    up, down, size = folder / "up", folder / "down", options.size * MIB
    subprocess.run([options.programs / "content", "random", str(size), str(random.getrandbits(60)), up], check=True)
    os.sync()
    taken = []
    for command, file in ((["upload"], None), (["download"], up)):
        peer = Peer(file)
        rest = [peer.address, up] if file is None else [peer.address, size, down]
        client = subprocess.Popen(list(map(str, [options.programs / "floor", *command, *rest])))
        _, status, usage = os.wait4(client.pid, 0)
        client.returncode = os.waitstatus_to_exitcode(status)
        peer.stop()
        assert client.returncode == 0, f"floor {command} gave {client.returncode}"
        taken.append({"client cpu": usage.ru_utime + usage.ru_stime})
    return dict(zip(DIRECTIONS, taken))


def run(options):
    """{(content, direction, client, server): [what a round took]}"""
    results = {}
    pairs = list(itertools.product(options.clients, options.servers))
    for turn in range(options.rounds):
        for content in options.contents:
            for client, server in pairs[:: -1 if turn % 2 else 1]:
                folder = Path(tempfile.mkdtemp(prefix="compare-", dir=options.dir))
                try:
                    taken = exchange(content, client, server, options, folder)
                finally:
                    shutil.rmtree(folder)
                for direction in DIRECTIONS:
                    results.setdefault((content, direction, client, server), []).append(taken[direction])
                    line = ", ".join(f"{name} {value:.2f}" for name, value in taken[direction].items())
                    print(f"{content} {direction}, {client} client, {server} server: {line}", file=sys.stderr)
        if "random" in options.contents:
            with tempfile.TemporaryDirectory(prefix="compare-", dir=options.dir) as folder:
                for direction, taken in floor(options, Path(folder)).items():
                    results.setdefault(("random", direction, "floor", "-"), []).append(taken)
                    print(f"random {direction}, floor: client cpu {taken['client cpu']:.2f}", file=sys.stderr)
    return results


def ratio(results, what, ours, theirs):
    """Median over the rounds of ours / official, or nothing where one of them was not run."""
    if ours not in results or theirs not in results:
        return "-"
    pairs = zip(results[ours], results[theirs])
    return f"{statistics.median(a[what] / max(b[what], 1 / TICK) for a, b in pairs):.2f}"


def table(title, head, rows):
    print(f"\n### {title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def report(options, results):
    cases = list(itertools.product(options.contents, DIRECTIONS))
    names = ("wall", "client cpu", "client rss")
    rows = [
        (content, direction, server, *(ratio(results, n, (content, direction, "ours", server), (content, direction, "official", server)) for n in names))
        for content, direction in cases
        for server in options.servers
    ]
    table("Our client / the official client, same server", ("content", "direction", "server", *names), rows)
    names = ("wall", "server cpu", "server rss")
    rows = [
        (content, direction, client, *(ratio(results, n, (content, direction, client, "ours"), (content, direction, client, "official")) for n in names))
        for content, direction in cases
        for client in options.clients
    ]
    table("Our server / the official server, same client", ("content", "direction", "client", *names), rows)
    rows = [
        (content, direction, ratio(results, "wall", (content, direction, "ours", "ours"), (content, direction, "official", "official")))
        for content, direction in cases
    ]
    table("Both ends ours / both ends official", ("content", "direction", "wall"), rows)
    if "random" in options.contents:
        rows = [
            (direction, server, *(ratio(results, "client cpu", ("random", direction, client, server), ("random", direction, "floor", "-")) for client in SIDES))
            for direction in DIRECTIONS
            for server in options.servers
        ]
        table("Client CPU of random content / what no client can do without", ("direction", "server", *SIDES), rows)
    if options.absolute:
        names = ("wall", "client cpu", "client rss", "server cpu", "server rss")
        median = lambda taken, n: f"{statistics.median(t[n] for t in taken):.{0 if 'rss' in n else 2}f}"
        rows = [(*case, *(median(taken, n) for n in names)) for case, taken in results.items() if case[2] != "floor"]
        table(f"{options.size} MiB on this machine: seconds and MiB", ("content", "direction", "client", "server", *names), rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = lambda text: text.split(",")
    parser.add_argument("--programs", type=Path, required=True, help="folder of the built programs")
    parser.add_argument("--quick", action="store_true", help="one round of 64 MiB: shows that all of it works, measures little")
    parser.add_argument("--size", type=int, default=1024, help="MiB of a file (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--contents", type=names, default=["random", "text"], help="of random,text,floats (random,text)")
    parser.add_argument("--clients", type=names, default=list(SIDES), help="of ours,official (both)")
    parser.add_argument("--servers", type=names, default=list(SIDES), help="of ours,official (both)")
    parser.add_argument("--absolute", action="store_true", help="the medians themselves too")
    parser.add_argument("--dir", help="where files are made, up to four times their size (the system's temporary folder)")
    options = parser.parse_args()
    if options.quick:
        options.size, options.rounds, options.contents = 64, 1, ["random", "text", "floats"]
    report(options, run(options))


main()
