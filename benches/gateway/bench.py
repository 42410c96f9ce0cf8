#!/usr/bin/env python3
"""Measures the S3 gateway beside `rclone serve s3`, in one run on one machine.

    benches/gateway/bench.py --programs DIR [--rclone PROGRAM] [--mib N] [--rounds R]

DIR holds `hugbucket` and `hfcrypt` of one release build. Each side is asked by the same client, without signatures:
curl for large objects, threads with 32 connections for small ones. Ours runs over the embedded Hub, in a process of its
own, with a key and without. rclone serves a local folder, plainly and through its `crypt`. The order of the sides turns
from round to round. Printed are medians: MB/s, CPU seconds per GiB of the gateway and of the Hub, requests per second,
the time of a list of 1,000 keys, and peak memory.
"""

import argparse
import concurrent.futures
import http.client
import os
import shutil
import statistics
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
SMALL, CONNECTIONS = 1000, 32


def cpu(process):
    """User and system seconds of a process so far."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def peak(process):
    """Peak resident MiB of a process."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def request(url, method="GET", body=None):
    return urllib.request.urlopen(urllib.request.Request(url, data=body, method=method)).read()


class Side:
    """A gateway, and the Hub behind it if there is one."""

    def __init__(self, url, gateway, hub=None):
        self.url, self.gateway, self.hub = url, gateway, hub

    def stop(self):
        for process in (self.gateway, self.hub):
            if process:
                process.terminate()
                process.wait(60)


def ours(programs, home, encrypted):
    env = {**os.environ, "HOME": str(home), "HF_TOKEN": "hf_local"}
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        env.pop(name, None)

    def start(*command):
        process = subprocess.Popen(
            [programs / "hugbucket", *command], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        return process, process.stdout.readline().strip()

    hub, env["HF_ENDPOINT"] = start("hub", "--dir", home / "hub", "--listen", "127.0.0.1:0")
    options = []
    if encrypted:
        subprocess.run([programs / "hfcrypt", "keygen", home / "key"], check=True, stdout=subprocess.DEVNULL)
        options = ["--encryption-key-file", home / "key"]
    folders = ["--data-dir", home / "data", "--cache-dir", home / "cache", "--cache-size", "0"]
    gateway, url = start("s3", "--listen", "127.0.0.1:0", "--anonymous", *folders, *options)
    return Side(url, gateway, hub)


def rclone(program, home, encrypted):
    (home / "files").mkdir()
    remote, port = str(home / "files"), 20_000 + os.getpid() % 10_000 + encrypted
    env = {**os.environ, "RCLONE_CONFIG": str(home / "rclone.conf")}
    if encrypted:
        secret = subprocess.run([program, "obscure", "password"], capture_output=True, text=True, check=True).stdout
        env |= {"RCLONE_CONFIG_C_TYPE": "crypt", "RCLONE_CONFIG_C_REMOTE": remote, "RCLONE_CONFIG_C_PASSWORD": secret.strip()}
        remote = "c:"
    command = [program, "serve", "s3", remote, "--addr", f"127.0.0.1:{port}", "--vfs-cache-mode", "off"]
    gateway = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    for _ in range(100):
        try:
            http.client.HTTPConnection("127.0.0.1", port, timeout=1).connect()
            break
        except OSError:
            time.sleep(0.1)
    return Side(f"http://127.0.0.1:{port}", gateway)


def timed(side, work):
    """Runs work. Returns its seconds, and the CPU seconds of the gateway and of the Hub."""
    hub = cpu(side.hub) if side.hub else 0
    gateway, began = cpu(side.gateway), time.monotonic()
    work()
    seconds = time.monotonic() - began
    return seconds, cpu(side.gateway) - gateway, (cpu(side.hub) - hub) if side.hub else 0


def small(side):
    """Puts small objects over many connections."""
    host = side.url.split("//")[1]

    def worker(numbers):
        connection = http.client.HTTPConnection(host, timeout=60)
        for number in numbers:
            connection.request("PUT", f"/data/small/{number}", body=os.urandom(4096))
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200, answer.status

    with concurrent.futures.ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(worker, [range(start, SMALL, CONNECTIONS) for start in range(CONNECTIONS)]))


def measure(side, file, mib):
    request(f"{side.url}/data", "PUT", b"")
    gib, found = mib / 1024, {}
    put = lambda: subprocess.run(["curl", "-sf", "-T", file, f"{side.url}/data/large"], check=True, stdout=subprocess.DEVNULL)
    get = lambda: subprocess.run(["curl", "-sf", "-o", "/dev/null", f"{side.url}/data/large"], check=True)
    for name, work in (("PUT", put), ("GET", get)):
        seconds, gateway, hub = timed(side, work)
        found[f"{name} MB/s"] = mib * 1.048576 / seconds
        found[f"{name} CPU-s/GiB"], found[f"{name} Hub CPU-s/GiB"] = gateway / gib, hub / gib
    seconds, gateway, _ = timed(side, lambda: small(side))
    found["small/s"], found["small CPU ms"] = SMALL / seconds, 1000 * gateway / SMALL
    seconds, _, _ = timed(side, lambda: request(f"{side.url}/data?list-type=2&prefix=small/"))
    found["list 1,000 ms"] = seconds * 1000
    found["peak MiB"] = peak(side.gateway)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", required=True, type=Path)
    parser.add_argument("--rclone", help="leave it out to measure ours alone")
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    programs = arguments.programs.resolve()
    sides = {
        "ours, encrypted": lambda home: ours(programs, home, True),
        "ours, plain": lambda home: ours(programs, home, False),
    }
    if arguments.rclone:
        sides["rclone, crypt"] = lambda home: rclone(arguments.rclone, home, True)
        sides["rclone, folder"] = lambda home: rclone(arguments.rclone, home, False)
    results = {name: [] for name in sides}
    for number in range(arguments.rounds):
        order = list(sides)[number % len(sides) :] + list(sides)[: number % len(sides)]
        for name in order:
            home = Path(tempfile.mkdtemp(prefix="gateway-bench-"))
            side = None
            try:
                with open(home / "large", "wb") as file:
                    for _ in range(arguments.mib):
                        file.write(os.urandom(1 << 20))
                side = sides[name](home)
                results[name].append(measure(side, home / "large", arguments.mib))
            finally:
                if side:
                    side.stop()
                shutil.rmtree(home)
    print(f"{arguments.mib} MiB, {SMALL} objects of 4 KiB over {CONNECTIONS} connections, median of {arguments.rounds}")
    for name, rounds in results.items():
        medians = {what: statistics.median(one[what] for one in rounds) for what in rounds[0]}
        print(f"  {name:16}", "  ".join(f"{what} {value:.2f}" for what, value in medians.items()), flush=True)


if __name__ == "__main__":
    main()
