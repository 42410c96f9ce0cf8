"""A proxy between one mount and the Hub that can hold, lose, refuse and delay what passes it.

Requests are sorted by what they are to a commit: `look` (what is at some paths), `commit` (a batch
of adds or deletes), `list` (a folder). Contents go past it: the Hub names its own address for them.
"""

import http.client
import random
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# No held request waits longer than this, seconds: a test that forgot it shall fail, not hang.
PATIENCE = 30


def kind(method, path):
    path = path.partition("?")[0]
    if method == "POST" and path.endswith("/batch"):
        return "commit"
    if method == "POST" and path.endswith("/paths-info"):
        return "look"
    return "list" if "/tree" in path else "other"


class Rule:
    """Applies to the next request of a kind whose body holds `mark`."""

    def __init__(self, kind, mark, action, answer=None):
        self.kind, self.mark, self.action, self.answer = kind, mark, action, answer
        self.arrived, self.go = threading.Event(), threading.Event()

    def wait(self):
        """Until such a request is there."""
        assert self.arrived.wait(PATIENCE), f"no {self.kind} of {self.mark} came"
        return self

    def release(self):
        self.go.set()


class Gate:
    def __init__(self, target, seed=0):
        self.target = tuple(target.removeprefix("http://").split(":"))
        self.lock = threading.Lock()
        self.rules = []
        # Kind -> (least, most) seconds that each request waits before it is sent on.
        self.delays = {}
        # Kind -> share of requests that are carried out and never answered, and that are refused (503).
        self.lost, self.refused = {}, {}
        self.random = random.Random(seed)
        self.counts = {}
        # (when the last answer to a `look` was sent, when the commit after it was sent on), seconds.
        self.windows = []
        self.looked = None
        gate = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self):
                super().setup()
                self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.hub = None

            def finish(self):
                if self.hub:
                    self.hub.close()
                super().finish()

            def log_message(self, *_):
                pass

            def do_GET(self):
                gate.pass_on(self)

            do_POST = do_PUT = do_DELETE = do_HEAD = do_GET

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_):
                pass  # A client that was killed.

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = "http://127.0.0.1:%d" % self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        with self.lock:
            for rule in self.rules:
                rule.release()
        self.server.shutdown()
        self.server.server_close()

    def rule(self, kind, action, mark=b"", answer=None):
        rule = Rule(kind, mark if isinstance(mark, bytes) else mark.encode(), action, answer)
        with self.lock:
            self.rules.append(rule)
        return rule

    def hold(self, kind, mark=b""):
        """The next such request isn't sent on before `release`."""
        return self.rule(kind, "hold", mark)

    def hold_answer(self, kind, mark=b""):
        """The next such request is carried out; its answer waits for `release`."""
        return self.rule(kind, "hold answer", mark)

    def lose_answer(self, kind, mark=b""):
        """The next such request is carried out; its connection is cut instead of an answer, upon `release`."""
        return self.rule(kind, "lose", mark)

    def refuse(self, kind, status, headers=(), mark=b""):
        """The next such request is answered so, and not carried out."""
        return self.rule(kind, "refuse", mark, (status, headers))

    def count(self, kind):
        with self.lock:
            return self.counts.get(kind, 0)

    def _take(self, kind, body):
        with self.lock:
            self.counts[kind] = self.counts.get(kind, 0) + 1
            rule = next((r for r in self.rules if r.kind == kind and r.mark in body), None)
            if rule:
                self.rules.remove(rule)
            delay = self.random.uniform(*self.delays[kind]) if kind in self.delays else 0
            chance = self.random.random()
        return rule, delay, chance

    def pass_on(self, request):
        body = request.rfile.read(int(request.headers.get("content-length") or 0))
        what = kind(request.command, request.path)
        rule, delay, chance = self._take(what, body)
        if rule and rule.action == "hold":
            rule.arrived.set()
            rule.go.wait(PATIENCE)
        if delay:
            time.sleep(delay)
        if rule and rule.action == "refuse":
            rule.arrived.set()
            return self._answer(request, rule.answer[0], rule.answer[1], b"not now")
        if chance < self.refused.get(what, 0):
            return self._answer(request, 503, (), b"not now")
        now = time.monotonic()
        if what == "commit" and self.looked:
            self.windows.append((self.looked, now))
        status, headers, content = self._ask(request, body)
        if rule and rule.action in ("hold answer", "lose"):
            rule.arrived.set()
            rule.go.wait(PATIENCE)
        if (rule and rule.action == "lose") or chance > 1 - self.lost.get(what, 0):
            request.close_connection = True
            request.connection.shutdown(socket.SHUT_RDWR)
            return None
        self._answer(request, status, headers, content)
        if what == "look":
            self.looked = time.monotonic()
        return None

    def _ask(self, request, body):
        headers = {name: value for name, value in request.headers.items() if name.lower() not in ("host", "connection")}
        for attempt in (0, 1):
            if request.hub is None or request.path.endswith("/batch"):
                # A commit is never sent twice: its connection is a fresh one.
                request.hub = http.client.HTTPConnection(*self.target, timeout=120)
            try:
                request.hub.request(request.command, request.path, body=body or None, headers=headers)
                answer = request.hub.getresponse()
                return answer.status, answer.getheaders(), answer.read()
            except (http.client.RemoteDisconnected, ConnectionError):
                # A connection that idled too long.
                request.hub = None
                if attempt:
                    raise

    @staticmethod
    def _answer(request, status, headers, content):
        request.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                request.send_header(name, value)
        request.send_header("content-length", str(len(content)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content)
        request.wfile.flush()
