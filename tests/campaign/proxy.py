"""A proxy between a mount and its Hub that knows which request is which.

It can kill the daemon at a request (a *trap*: before the Hub has it, when the Hub has handled it,
or when the daemon has its answer), make the network and the Hub fail (*faults*), and shows every
byte that passes to an inspector. One thread for each connection, HTTP/1.1 only.
"""

import json
import random
import socket
import threading
import time
from collections import Counter

# When a trap goes off, seen from the Hub.
BEFORE, HANDLED, ANSWERED = "before", "handled", "answered"
FAULTS = ("hold", "refuse", "500", "503", "429", "lose", "cut request", "cut answer")
# Longest time that a request is held, seconds: well below every deadline of a mount.
LONGEST_HOLD = 0.6
REASONS = {"500": "Internal Server Error", "503": "Service Unavailable", "429": "Too Many Requests"}


class Closed(Exception):
    """The other side is gone."""


class Message:
    """A request or an answer, as it came."""

    def __init__(self, stream, answers=None):
        line = stream.readline()
        if not line:
            raise Closed
        head, fields = [line], {}
        while (line := stream.readline()) not in (b"\r\n", b"\n"):
            if not line:
                raise Closed
            head.append(line)
            name, _, value = line.partition(b":")
            fields[name.strip().lower()] = value.strip().lower()
        self.start = head[0].decode("latin-1").strip()
        self.head = b"".join(head) + b"\r\n"
        if answers == "HEAD" or (answers and self.start.split(" ")[1] in ("204", "304")):
            self.body, self.raw = b"", b""
        elif b"chunked" in fields.get(b"transfer-encoding", b""):
            self.body, self.raw = chunked(stream)
        elif answers and b"content-length" not in fields:
            self.body = self.raw = stream.read()
        else:
            self.body = self.raw = exactly(stream, int(fields.get(b"content-length", b"0")))

    def bytes(self):
        return self.head + self.raw


def exactly(stream, count):
    data = stream.read(count)
    if len(data) != count:
        raise Closed
    return data


def chunked(stream):
    """A chunked body, decoded and as it came."""
    body, raw = [], []
    while True:
        line = stream.readline()
        raw.append(line)
        size = int(line.split(b";")[0] or b"-1", 16)
        if size < 0:
            raise Closed
        if size == 0:
            break
        data = exactly(stream, size)
        body.append(data)
        raw += [data, exactly(stream, 2)]
    while (line := stream.readline()) not in (b"\r\n", b"\n"):
        if not line:
            raise Closed
        raw.append(line)
    return b"".join(body), b"".join([*raw, line])


class Trap:
    """Goes off at the `skip`-th further request of a kind."""

    def __init__(self, kind, when, skip, action):
        self.kind, self.when, self.skip, self.action = kind, when, skip, action
        self.request = None
        self.sprung = threading.Event()


class Proxy:
    """Listens on a free port. `target` is the port of the Hub, which may change; `inspect` gets
    every byte, by request."""

    def __init__(self, target, inspect, seed):
        self.target, self.inspect = target, inspect
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = "http://127.0.0.1:%d" % self.listener.getsockname()[1]
        self.lock = threading.Lock()
        self.random = random.Random(seed)
        self.rate = 0.0
        self.trap = None
        self.seen, self.faults, self.open = Counter(), Counter(), Counter()
        self.hashes = set()
        self.passed = 0
        threading.Thread(target=self.accept, daemon=True).start()

    def close(self):
        self.listener.close()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self.connection, args=(client,), daemon=True).start()

    def connection(self, client):
        with client, client.makefile("rb") as stream:
            try:
                while True:
                    request = Message(stream)
                    kind = self.kind(request)
                    with self.lock:
                        self.seen[kind] += 1
                        self.open[kind] += 1
                    try:
                        self.pass_on(client, request, kind)
                    finally:
                        with self.lock:
                            self.open[kind] -= 1
            except (Closed, OSError, ValueError):
                pass

    def kind(self, request):
        """What a request is about; of a batch also whether it adds what was uploaded for it, what
        the Hub has already, or deletes."""
        path = request.start.split(" ")[1].split("?")[0]
        if path.endswith("/batch"):
            lines = [json.loads(line) for line in request.body.splitlines() if line]
            if any(line["type"] == "deleteFile" for line in lines):
                return "delete"
            return "copy" if any(line["xetHash"] in self.hashes for line in lines) else "commit"
        for part, kind in (
            ("xorb", "xorb"),
            ("/grants/", "xorb"),
            ("/shards", "shard"),
            ("/reconstructions", "reconstruction"),
            ("/data/", "data"),
            ("/chunks/", "dedup"),
            ("/tree", "listing"),
            ("/paths-info", "paths-info"),
            ("-token", "token"),
        ):
            if part in path:
                return kind
        return "other"

    def pass_on(self, client, request, kind):
        if self.spring(kind, BEFORE):
            raise Closed
        fault = self.choose()
        if fault == "hold":
            time.sleep(self.random.random() * LONGEST_HOLD)
        elif fault == "refuse":
            raise Closed
        elif fault in REASONS:
            self.see(request.bytes())
            client.sendall(f"HTTP/1.1 {fault} {REASONS[fault]}\r\nContent-Length: 0\r\n\r\n".encode())
            return
        self.see(request.bytes())
        try:
            server = socket.create_connection(("127.0.0.1", self.target), timeout=60)
        except OSError as error:
            raise Closed from error
        with server, server.makefile("rb") as stream:
            data = request.bytes()
            if fault == "cut request":
                server.sendall(data[: self.random.randrange(len(data))])
                raise Closed
            server.sendall(data)
            answer = Message(stream, answers=request.start.split(" ")[0])
        if kind == "commit" and answer.start.split(" ")[1] == "200":
            lines = [json.loads(line) for line in request.body.splitlines() if line]
            self.hashes.update(line["xetHash"] for line in lines if "xetHash" in line)
        if self.spring(kind, HANDLED) or fault == "lose":
            raise Closed
        data = answer.bytes()
        self.see(data)
        if fault == "cut answer":
            client.sendall(data[: self.random.randrange(len(data))])
            raise Closed
        client.sendall(data)
        self.spring(kind, ANSWERED)

    def see(self, data):
        with self.lock:
            self.passed += len(data)
        self.inspect(data)

    def choose(self):
        with self.lock:
            if self.random.random() >= self.rate:
                return None
            fault = self.random.choice(FAULTS)
            self.faults[fault] += 1
            return fault

    def set(self, kind, when, skip, action):
        trap = Trap(kind, when, skip, action)
        with self.lock:
            self.trap = trap
        return trap

    def clear(self):
        with self.lock:
            self.trap = None

    def spring(self, kind, when):
        with self.lock:
            trap = self.trap
            if trap is None or (trap.kind, trap.when) != (kind, when):
                return False
            if trap.skip > 0:
                trap.skip -= 1
                return False
            self.trap = None
        trap.action()
        trap.sprung.set()
        return True

    def quiet(self, seconds=30):
        """Waits until no request is under way: what a dead daemon had sent has been handled."""
        end = time.monotonic() + seconds
        while any(self.open.values()):
            assert time.monotonic() < end, f"still under way: {+self.open}"
            time.sleep(0.002)
