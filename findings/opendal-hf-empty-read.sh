#!/usr/bin/env bash
# opendal's `hf` service sometimes reads a file as empty, without an error, when the Xet store refuses to serve it.
#
# Version: PyPI opendal 0.47.12 (scheme `hf`, a bucket), against a local stand-in of the Hub and its Xet store.
# Guess: a read of a file that the store refuses always raises.
# Behaviour: the Hub's answer says that the file has 9 bytes. The Xet store answers each request for its reconstruction
#   with 403 (404 and 400 give the same). `Operator.read` then raises `Unexpected` in most tries, and returns b"" in the
#   others. A file object from `Operator.open` does so too, with OSError in place of `Unexpected`.
#   The result changes from try to try although the server's answers do not.
#   opendal does not compare the length with the size in the Hub's answer.
#   A caller must compare the length with `stat` before it trusts an empty result.
# Seen in 60 tries of each: `read` returned b"" 15 times and raised 45 times.
#   `open` and its `read` returned b"" 20 times and raised 40 times.
# Prints the counts. Tries up to 400 times each, until it has seen both results. Exits with 1 if one of them never comes
# or a third comes. Needs python3 with venv, and a network for pip.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check opendal==0.47.12
# The reads run in a process of their own, apart from the server.
cat >read.py <<'PY'
import collections
import sys
import opendal

LEAST, MOST = 60, 400


def read(operator):
    return operator.read("x")


def open_and_read(operator):
    with operator.open("x", "rb") as file:
        return file.read()


ok = True
for work, error_name in ((read, "Unexpected"), (open_and_read, "OSError")):
    results = collections.Counter()
    for count in range(MOST):
        if count >= LEAST and len(results) > 1:
            break
        options = {"repo_type": "bucket", "repo_id": "alice/b", "endpoint": sys.argv[1], "token": "hf_example"}
        operator = opendal.Operator("hf", **options)
        try:
            results[f"returned {bytes(work(operator))}"] += 1
        except Exception as error:
            results[f"raised {type(error).__name__}"] += 1
    print(f"{work.__name__}: {dict(results)}")
    ok = ok and set(results) == {"returned b''", f"raised {error_name}"}
print("as described" if ok else "CHANGED")
sys.exit(not ok)
PY
venv/bin/python - <<'PY'
import http.server
import json
import subprocess
import sys
import threading


class Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def send(self, status, headers, body):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        base = f"http://{self.headers['Host']}"
        if "/resolve/" in self.path:
            file_hash = "2" * 64
            headers = {
                "Content-Type": "application/vnd.xet-fileinfo+json",
                "ETag": f'"{file_hash}"',
                "X-Linked-Size": "9",
                "X-Xet-Hash": file_hash,
                "Link": f'<{base}/auth>; rel="xet-auth", <{base}/info>; rel="xet-reconstruction-info"',
            }
            self.send(200, headers, json.dumps({"hash": file_hash, "size": 9}).encode())
        elif self.path.endswith("/xet-read-token"):
            token = {"accessToken": "t", "exp": 4000000000, "casUrl": f"{base}/cas"}
            self.send(200, {"Content-Type": "application/json"}, json.dumps(token).encode())
        else:
            self.send(403, {}, b"")

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send(200, {}, b"")


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
run = subprocess.run([sys.executable, "read.py", f"http://127.0.0.1:{server.server_port}"])
sys.exit(run.returncode)
PY
