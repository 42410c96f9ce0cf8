"""Failures between the S3 gateway and its Hub, and between a client and the gateway.

`HubProxy` knows which request is which, so it can refuse or disconnect a chosen one. `Wire` knows bytes only, and ends
a connection after some of them, also in the middle of a body. `Talk` is a client that leaves whenever it wants.
"""

import base64
import itertools
import random
import socket
import struct
import sys
import threading
import zlib
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from conftest import ACCESS, SECRET

sys.path.append(str(Path(__file__).resolve().parents[1] / "campaign"))

from proxy import Proxy  # noqa: E402

# Answers of a Hub that refuses, with the headers that follow the status. With "429 later" it says when to try again.
REFUSALS = {
    "429": "429 Too Many Requests\r\n", "429 later": "429 Too Many Requests\r\nRetry-After: 0\r\n",
    "500": "500 Internal Server Error\r\n", "502": "502 Bad Gateway\r\n", "503": "503 Service Unavailable\r\n",
    "504": "504 Gateway Timeout\r\n",
}
# Faults of the proxy of the campaigns: the request or its answer ends early, or there is no answer.
CUTS = ("cut request", "cut answer", "lose", "refuse")
# Requests to the Hub that are repeated. Others are questions whose answer isn't needed.
KINDS = ("xorb", "shard", "commit", "paths-info", "listing", "token", "reconstruction", "data")


class HubProxy(Proxy):
    """Lets a request pass, or makes it fail. `rule` returns the fault of a request, or None."""

    def __init__(self, hub, seed=1):
        super().__init__(0, lambda data: None, seed)
        self.rule, self.chosen = None, threading.local()
        # Number of faults by kind of request and fault.
        self.failed = Counter()
        self.follow(hub)

    def follow(self, hub):
        """Sends requests to this Hub, which has a new port after each start."""
        self.target = urlsplit(hub.url).port

    def kind(self, request):
        path = request.start.split(" ")[1].split("?")[0]
        # The name of a bucket, such as `data`, doesn't count.
        of_bucket = path.split("/")[5:] if path.startswith("/api/buckets/") else []
        for part, kind in (("batch", "commit"), ("paths-info", "paths-info"), ("tree", "listing")):
            if part in of_bucket:
                return kind
        return "token" if of_bucket and of_bucket[-1].endswith("-token") else super().kind(request)

    def pass_on(self, client, request, kind):
        fault = self.rule(request, kind) if self.rule else None
        if fault:
            with self.lock:
                self.failed[kind, fault] += 1
        if fault in REFUSALS:
            client.sendall(f"HTTP/1.1 {REFUSALS[fault]}Content-Length: 0\r\n\r\n".encode())
            return
        self.chosen.fault = fault
        super().pass_on(client, request, kind)

    def choose(self):
        return self.chosen.fault

    def fail_each_once(self, faults):
        """Makes each request fail the first time that it comes. Each kind of request meets all faults in turn."""
        turns, seen, lock = {kind: itertools.cycle(faults) for kind in KINDS}, set(), threading.Lock()

        def rule(request, kind):
            with lock:
                one = (request.start, request.body)
                if kind not in turns or one in seen:
                    return None
                seen.add(one)
                return next(turns[kind])

        self.rule = rule

    def fail_at_random(self, faults, rate):
        def rule(request, kind):
            with self.lock:
                return self.random.choice(faults) if self.random.random() < rate else None

        self.rule = rule


class Wire(Proxy):
    """Passes bytes on. It ends a connection about once in `every` bytes, if that isn't 0."""

    def __init__(self, target, seed=1):
        self.every, self.count = 0, 0
        super().__init__(urlsplit(target).port, lambda data: None, seed)

    def connection(self, client):
        try:
            server = socket.create_connection(("127.0.0.1", self.target))
        except OSError:
            client.close()
            return
        for source, sink in ((client, server), (server, client)):
            threading.Thread(target=self.pump, args=(source, sink), daemon=True).start()

    def pump(self, source, sink):
        try:
            while data := source.recv(1 << 16):
                if self.random.random() * self.every < len(data) and self.every:
                    sink.sendall(data[: self.random.randrange(len(data))])
                    self.count += 1
                    break
                sink.sendall(data)
        except OSError:
            pass
        # The other thread may wait for bytes, so closing is not enough.
        for connection in (source, sink):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


class Talk:
    """One signed request over a connection of its own. The test decides how much of it is sent.

    If it is `framed`, the body has the form aws-chunked, and its checksum follows in a trailer.
    """

    def __init__(self, gateway, method, path, body=b"", framed=False):
        context = {"checksum": {"request_algorithm": {"in": "trailer"}}} if framed else {}
        headers = {"Host": urlsplit(gateway.url).netloc}
        if framed:
            headers |= {"Content-Encoding": "aws-chunked", "x-amz-decoded-content-length": str(len(body))}
            headers["x-amz-trailer"] = "x-amz-checksum-crc32"
        request = AWSRequest(method, gateway.url + path, headers, body)
        request.context.update(context)
        S3SigV4Auth(Credentials(ACCESS, SECRET), "s3", "us-east-1").add_auth(request)
        if framed:
            checksum = base64.b64encode(zlib.crc32(body).to_bytes(4, "big"))
            body = b"%x\r\n%b\r\n0\r\nx-amz-checksum-crc32:%b\r\n\r\n" % (len(body), body, checksum)
        fields = {**request.headers, "Content-Length": len(body)}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        self.head, self.body = ("\r\n".join(lines) + "\r\n\r\n").encode(), body
        parts = urlsplit(gateway.url)
        self.connection = socket.create_connection((parts.hostname, parts.port), timeout=60)

    def send(self, share=1.0):
        """Sends the head and a share of the body."""
        self.connection.sendall(self.head + self.body[: int(len(self.body) * share)])
        return self

    def status(self):
        """Waits for the answer. Returns its status."""
        return int(self.connection.recv(4096).split(b" ")[1])

    def leave(self, rudely=False):
        """Ends the connection, `rudely` also for what is still on its way."""
        if rudely:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


def together(*calls):
    """Runs calls in threads. Returns their results, after raising the first exception of one."""
    results, errors = [None] * len(calls), []

    def run(index, call):
        try:
            results[index] = call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(calls)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    if errors:
        raise errors[0]
    return results
