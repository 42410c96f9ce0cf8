#!/usr/bin/env bash
# A thread that deletes a file with HfFileSystem leaves it there for the main thread, in the same process.
#
# Version: PyPI huggingface_hub 2.4.0 (HfFileSystem on a bucket, default options), against a local stand-in of the Hub.
# Guess: HfFileSystem instances with equal arguments are one instance, or at least share what they know of a bucket.
#   Guess too: `exists` of a file asks the server about that file.
# Behaviour: each thread has an instance of its own. A thread's first instance starts with a copy of the main thread's
#   listings. Later changes are passed on in neither direction. So a worker's delete does not reach the main thread:
#   `exists` there stays True and no request is sent, without a time limit, until `invalidate_cache`.
#   On a bucket `exists` and `info` of one file list the file's whole folder; they never use the paths-info route.
# Seen: main `exists(d/a)` listed `d`. Worker: another instance; `rm(d/a)`, one batch; its `exists` is False.
#   Main: `exists(d/a)` True, `ls(d)` has both files, no request. After `invalidate_cache`: False.
#   A worker that is handed the main thread's instance deletes `d/b`: both threads see it gone.
# Prints each step with its requests. Exits with 1 if any of this differs.
# Needs python3 with venv, and a network for pip.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check huggingface_hub==2.4.0 fsspec==2026.9.0
HF_HOME=$work/home venv/bin/python - <<'PY'
import http.server
import json
import sys
import threading
from huggingface_hub import HfFileSystem

files = ["d/a", "d/b"]
requests = []
TIME = "2026-03-01T00:00:00.000Z"


class Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_any(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        requests.append(f"{self.command} {self.path}")
        if self.path.endswith("/batch"):
            for line in body.splitlines():
                files.remove(json.loads(line)["path"])
            answer = {"success": True, "processed": 1, "succeeded": 1, "failed": []}
        elif "/tree" in self.path:
            answer = [{"type": "file", "path": f, "size": 1, "xetHash": "0" * 64, "uploadedAt": TIME} for f in files]
        else:
            answer = {"id": "alice/b", "private": False, "createdAt": TIME, "updatedAt": TIME}
            answer |= {"size": len(files), "totalFiles": len(files)}
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_any


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()


def file_system():
    return HfFileSystem(endpoint=f"http://127.0.0.1:{server.server_port}", token="hf_example")


def in_thread(work):
    results = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    return results[0]


ok = True


def step(name, work, result, sent):
    global ok
    requests.clear()
    seen = work()
    print(f"{name}: {seen}; requests: {requests or 'none'}")
    ok = ok and seen == result and requests == sent


main, folder = file_system(), "buckets/alice/b/d"
bucket = "/api/buckets/alice/b"
listing = f"GET {bucket}/tree/d?recursive=false"


def delete_in_worker():
    worker = file_system()
    worker.rm(f"{folder}/a")
    return worker is main, worker.exists(f"{folder}/a")


step("main exists(d/a)", lambda: main.exists(f"{folder}/a"), True, [f"GET {bucket}", listing])
step(
    "worker (is main's instance, exists after rm)",
    lambda: in_thread(delete_in_worker),
    (False, False),
    [f"POST {bucket}/batch", listing],
)
step("main exists(d/a)", lambda: file_system().exists(f"{folder}/a"), True, [])
step("main ls(d)", lambda: main.ls(folder, detail=False), [f"{folder}/a", f"{folder}/b"], [])
main.invalidate_cache()
step("main exists(d/a), after invalidate_cache", lambda: main.exists(f"{folder}/a"), False, [f"GET {bucket}", listing])
requests.clear()
in_thread(lambda: main.rm(f"{folder}/b"))
print(f"worker with main's instance: rm(d/b); requests: {requests}")
seen = main.exists(f"{folder}/b")
print(f"main exists(d/b): {seen}")
ok = ok and seen is False
print("as described" if ok else "CHANGED")
sys.exit(not ok)
PY
