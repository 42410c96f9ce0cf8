#!/usr/bin/env python3
"""Measures the S3 gateway beside others, in one run on one machine. `run`, beside this file, installs what it needs.

Sides: ours over the embedded Hub, with a key and without; `rclone serve s3` over a local folder, plainly and through
its `crypt`; `s3s-fs` over a local folder; HugBucket over the embedded Hub. The Hub is a process of its own. All are
asked by the same client, curl, without signatures: 32 connections for small objects. The order of the sides turns from
round to round. Printed are medians.

HugBucket cuts content in Python, about 5 MB/s, so its large object is smaller. CPU seconds are per GiB for all.
"""

import argparse
import concurrent.futures
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
TICK = os.sysconf("SC_CLK_TCK")
SMALL, CONNECTIONS, STREAMS = 1000, 32, 64
PARTS, PART = 8, 8 << 20


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


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def wait_for(port):
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return f"http://127.0.0.1:{port}"
        except OSError:
            time.sleep(0.1)
    raise SystemExit("a gateway does not listen")


class Side:
    """A gateway, and the Hub behind it if there is one."""

    def __init__(self, url, gateway, hub=None, hub_url=None):
        self.url, self.gateway, self.hub, self.hub_url = url, gateway, hub, hub_url

    def stop(self):
        for process in (self.gateway, self.hub):
            if process:
                process.terminate()
                process.wait(60)


class Sides:
    """Starts the sides. Each takes a folder of its own."""

    def __init__(self, arguments):
        self.programs, self.arguments = arguments.programs.resolve(), arguments

    def all(self):
        sides = {"ours, encrypted": lambda home: self.ours(home, True), "ours, plain": lambda home: self.ours(home, False)}
        if self.arguments.rclone:
            sides["rclone, crypt"] = lambda home: self.rclone(home, True)
            sides["rclone, folder"] = lambda home: self.rclone(home, False)
        if self.arguments.s3s_fs:
            sides["s3s-fs"] = self.s3s_fs
        if self.arguments.hugbucket:
            sides["HugBucket"] = self.hugbucket
        return sides

    def environment(self, home):
        env = {**os.environ, "HOME": str(home), "HF_TOKEN": "hf_local"}
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            env.pop(name, None)
        return env

    def start(self, env, *command):
        program = [self.programs / "hugbucket", *command]
        process = subprocess.Popen(program, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        return process, process.stdout.readline().strip()

    def hub(self, home):
        return self.start(self.environment(home), "hub", "--dir", home / "hub", "--listen", "127.0.0.1:0")

    def ours(self, home, encrypted, command="s3", options=()):
        hub, endpoint = self.hub(home)
        env = {**self.environment(home), "HF_ENDPOINT": endpoint}
        options = list(options)
        if encrypted:
            keygen = [self.programs / "hfcrypt", "keygen", home / "key"]
            subprocess.run(keygen, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            options += ["--encryption-key-file", home / "key"]
        folders = ["--data-dir", home / "data", "--cache-dir", home / "cache", "--cache-size", "0"]
        gateway, url = self.start(env, command, "--listen", "127.0.0.1:0", "--anonymous", *folders, *options)
        return Side(url, gateway, hub, endpoint)

    def rclone(self, home, encrypted, protocol="s3", options=()):
        (home / "files").mkdir()
        program, remote, port = self.arguments.rclone, str(home / "files"), free_port()
        env = {**os.environ, "RCLONE_CONFIG": str(home / "rclone.conf")}
        if encrypted:
            obscure = subprocess.run([program, "obscure", "password"], capture_output=True, text=True, check=True)
            env |= {"RCLONE_CONFIG_C_TYPE": "crypt", "RCLONE_CONFIG_C_REMOTE": remote}
            env["RCLONE_CONFIG_C_PASSWORD"] = obscure.stdout.strip()
            remote = "c:"
        command = [program, "serve", protocol, remote, "--addr", f"127.0.0.1:{port}", "--vfs-cache-mode", "off", *options]
        gateway = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
        return Side(wait_for(port), gateway)

    def s3s_fs(self, home):
        (home / "files").mkdir()
        port = free_port()
        command = [self.arguments.s3s_fs, "--host", "127.0.0.1", "--port", str(port), home / "files"]
        gateway = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return Side(wait_for(port), gateway)

    def hugbucket(self, home):
        hub, endpoint = self.hub(home)
        port = free_port()
        command = [self.arguments.python, HERE / "hugbucket.py", self.arguments.hugbucket, endpoint, str(port)]
        gateway = subprocess.Popen(
            command, env=self.environment(home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        return Side(wait_for(port), gateway, hub, endpoint)


class Cost:
    """Seconds, and CPU seconds of the gateway and of the Hub, of some work."""

    def __init__(self, side, work):
        hub, gateway, began = self.hub_cpu(side), cpu(side.gateway), time.monotonic()
        self.result = work()
        self.seconds = time.monotonic() - began
        self.gateway, self.hub = cpu(side.gateway) - gateway, self.hub_cpu(side) - hub

    @staticmethod
    def hub_cpu(side):
        return cpu(side.hub) if side.hub else 0


def in_threads(count, work):
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


def transfers(side, folder, count, prefix, upload):
    """Returns work that puts or gets objects of 4 KiB over many connections."""
    (folder / "small").mkdir(exist_ok=True)
    lines = []
    for number in range(count):
        file = folder / "small" / str(number % SMALL)
        if not file.exists():
            file.write_bytes(os.urandom(4096))
        lines.append(f"upload-file = {file}" if upload else "output = /dev/null")
        lines.append(f'url = "{side.url}/data/{prefix}/{number:08}"')
    config = folder / "config"
    config.write_text("\n".join(lines))
    curl = ["curl", "-s", "--no-progress-meter", "--parallel", "--parallel-immediate", "--config", config]
    curl += ["--parallel-max", str(CONNECTIONS), "--write-out", "\n%{http_code}\n"]

    def transfer():
        codes = [line for line in subprocess.run(curl, capture_output=True, text=True).stdout.split() if line.isdigit()]
        # A few failures of a server under load are shown and not hidden.
        return sum(code != "200" for code in codes) + count - len(codes)

    return transfer


def multipart(side):
    """Puts 64 MiB in 8 parts at once."""
    key = f"{side.url}/data/parts"
    upload = request(f"{key}?uploads", "POST", b"").decode().split("<UploadId>")[1].split("<")[0]
    body = os.urandom(PART)

    def put(index):
        target = urllib.request.Request(f"{key}?partNumber={index + 1}&uploadId={upload}", data=body, method="PUT")
        return urllib.request.urlopen(target).headers["ETag"]

    tags = in_threads(PARTS, put)
    parts = "".join(f"<Part><PartNumber>{n}</PartNumber><ETag>{tag}</ETag></Part>" for n, tag in enumerate(tags, 1))
    done = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
    answer = request(f"{key}?uploadId={upload}", "POST", done).decode()
    assert "<Error>" not in answer, answer


def measure(side, file, mib):
    request(f"{side.url}/data", "PUT", b"")
    gib, found = mib / 1024, {}
    curl = lambda *options: subprocess.run(["curl", "-sf", *options], check=True, stdout=subprocess.DEVNULL)
    put = lambda: curl("-T", file, f"{side.url}/data/large")
    get = lambda: curl("-o", "/dev/null", f"{side.url}/data/large")
    for name, work in (("PUT", put), ("GET", get)):
        cost = Cost(side, work)
        found[f"{name} MB/s"] = mib * 1.048576 / cost.seconds
        found[f"{name} CPU s/GiB"], found[f"{name} Hub CPU s/GiB"] = cost.gateway / gib, cost.hub / gib
    for name, upload in (("small PUT", True), ("small GET", False)):
        cost = Cost(side, transfers(side, file.parent, SMALL, "small", upload))
        found[f"{name}/s"], found[f"{name} CPU ms"] = SMALL / cost.seconds, 1000 * cost.gateway / SMALL
        found[f"{name} Hub CPU ms"], found[f"{name} failed"] = 1000 * cost.hub / SMALL, cost.result
    cost = Cost(side, lambda: multipart(side))
    found["64 MiB in parts ms"], found["64 MiB in parts CPU ms"] = cost.seconds * 1000, cost.gateway * 1000
    found["peak MiB"] = peak(side.gateway)
    return found


def listing(side, folder, count):
    """The first page of a bucket with many keys: in a gateway that has just started, and once more."""
    request(f"{side.url}/data", "PUT", b"")
    transfers(side, folder, count, "keys", True)()
    page = f"{side.url}/data?list-type=2&prefix=keys/&max-keys=1000"
    times = []
    for _ in range(4):
        began = time.monotonic()
        assert request(page).count(b"<Key>") == 1000
        times.append(1000 * (time.monotonic() - began))
    return {f"list of {count:,}: first ms": times[0], "again ms": statistics.median(times[1:])}


def streams(side, file, mib):
    """Many reads, then many writes of one large object each, at once."""
    request(f"{side.url}/data", "PUT", b"")
    subprocess.run(["curl", "-sf", "-T", file, f"{side.url}/data/large"], check=True, stdout=subprocess.DEVNULL)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}

    def all_at_once(command):
        processes = [subprocess.Popen(["curl", "-sf", *command(number)], **quiet) for number in range(STREAMS)]
        assert [process.wait() for process in processes] == [0] * STREAMS

    all_at_once(lambda number: ["-o", "/dev/null", f"{side.url}/data/large"])
    found = {f"{STREAMS} reads of {mib} MiB: peak MiB": peak(side.gateway)}
    all_at_once(lambda number: ["-T", file, f"{side.url}/data/copy{number}"])
    found[f"{STREAMS} writes: peak MiB"] = peak(side.gateway)
    return found


def with_side(start, mib, work):
    home, side = Path(tempfile.mkdtemp(prefix="gateway-bench-")), None
    try:
        with open(home / "large", "wb") as file:
            for _ in range(mib):
                file.write(os.urandom(1 << 20))
        side = start(home)
        return work(side, home / "large")
    finally:
        if side:
            side.stop()
        shutil.rmtree(home)


def show(name, found):
    print(f"  {name:16}", "  ".join(f"{what} {value:.4g}" for what, value in found.items()), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", required=True, type=Path, help="folder with hugbucket and hfcrypt")
    parser.add_argument("--rclone", help="program")
    parser.add_argument("--s3s-fs", help="program")
    parser.add_argument("--hugbucket", help="checkout of HugBucket")
    parser.add_argument("--python", default=sys.executable, help="Python with HugBucket's dependencies")
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--hugbucket-mib", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keys", type=int, default=0, help="also lists a bucket with this many keys, ours only")
    parser.add_argument("--stream-mib", type=int, default=0, help="also reads and writes this much in 64 streams, ours only")
    parser.add_argument("--only", help="measures the sides whose names have this text")
    parser.add_argument("--json", type=Path, help="writes all rounds to this file")
    arguments = parser.parse_args()
    sides = {name: start for name, start in Sides(arguments).all().items() if (arguments.only or "") in name}
    results = {name: [] for name in sides}
    for number in range(arguments.rounds):
        order = list(sides)[number % len(sides) :] + list(sides)[: number % len(sides)]
        for name in order:
            mib = arguments.hugbucket_mib if name == "HugBucket" else arguments.mib
            results[name].append(with_side(sides[name], mib, lambda side, file: measure(side, file, mib)))
    print(f"{arguments.mib} MiB, {SMALL} objects of 4 KiB over {CONNECTIONS} connections, median of {arguments.rounds}")
    for name, rounds in results.items():
        if rounds:
            show(name, {what: statistics.median(one[what] for one in rounds) for what in rounds[0]})
    for name, start in sides.items():
        if name.startswith("ours") and arguments.keys:
            show(name, with_side(start, 0, lambda side, file: listing(side, file.parent, arguments.keys)))
        if name.startswith("ours") and arguments.stream_mib:
            mib = arguments.stream_mib
            show(name, with_side(start, mib, lambda side, file: streams(side, file, mib)))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
