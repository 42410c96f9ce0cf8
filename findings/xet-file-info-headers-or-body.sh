#!/usr/bin/env bash
# Two Hub clients ask for a Xet file's hash in one way, but read it from different places in the answer.
#
# Versions: npm @huggingface/hub 2.17.5; PyPI opendal 0.47.12 (scheme `hf`). Against a local stand-in of the Hub.
# Guess: a client that asks for `application/vnd.xet-fileinfo+json` reads the JSON that it asked for.
# Behaviour: both send `GET …/resolve/x` with that type in Accept. The JavaScript client does not read the body.
#   It takes the size from X-Linked-Size, the hash from X-Xet-Hash, and needs both URLs in Link. opendal takes the hash
#   from the body, but only if the header X-Xet-Hash is present; it ignores the header's value.
#   Without that header it returns the JSON text as the content of the file, although Content-Type names the type.
#   So a server has to send the hash twice, and where the two contradict, neither client reports it.
# Seen, with size 5 and hash 1111… in the headers, size 9 and hash 2222… in the body:
#   all of it:    JavaScript has size 5, hash 1111…; opendal asks the Xet store for 2222…
#   body only:    JavaScript fails with InvalidApiResponseFormatError about X-Linked-Size;
#                 opendal's `read` returns the JSON text and sends no further request.
#   headers only: JavaScript has size 5, hash 1111…; opendal fails (Unexpected) before it asks the Xet store.
# Prints each answer. Exits with 1 if any of this differs.
# Needs python3 with venv, node 20 or newer, npm and a network.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check opendal==0.47.12
echo '{"private": true}' >package.json
npm install --silent --no-audit --no-fund @huggingface/hub@2.17.5
cat >info.mjs <<'JS'
import { fileDownloadInfo } from "@huggingface/hub";
const [hubUrl, name] = process.argv.slice(2);
try {
  const info = await fileDownloadInfo({ repo: { type: "bucket", name }, path: "x", hubUrl, accessToken: "hf_example" });
  console.log(`size ${info.size}, hash ${info.xet.hash.slice(0, 4)}`);
} catch (error) {
  console.log(`${error.constructor.name}: ${error.message}`);
}
JS
cat >read.py <<'PY'
import sys
import opendal

operator = opendal.Operator("hf", repo_type="bucket", repo_id=sys.argv[2], endpoint=sys.argv[1], token="hf_example")
try:
    print(f"content {operator.read('x').decode()}")
except Exception as error:
    print(type(error).__name__)
PY
venv/bin/python - <<'PY'
import http.server
import json
import subprocess
import sys
import threading

TYPE = "application/vnd.xet-fileinfo+json"
BODY = json.dumps({"hash": "2" * 64, "size": 9})
accepts, asked = [], []


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
            accepts.append(self.headers["Accept"])
            headers, body = {"Content-Type": TYPE, "ETag": '"e"'}, b""
            if "/body-only/" not in self.path:
                headers["X-Linked-Size"] = "5"
                headers["X-Xet-Hash"] = "1" * 64
                headers["Link"] = f'<{base}/auth>; rel="xet-auth", <{base}/info>; rel="xet-reconstruction-info"'
            if "/headers-only/" not in self.path:
                body = BODY.encode()
            self.send(200, headers, body)
        elif self.path.endswith("/xet-read-token"):
            token = {"accessToken": "t", "exp": 4000000000, "casUrl": f"{base}/cas"}
            self.send(200, {"Content-Type": "application/json"}, json.dumps(token).encode())
        else:
            if "/reconstructions/" in self.path:
                asked.append(self.path.split("/reconstructions/")[1][:4])
            self.send(404, {}, b"")

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send(200, {}, b"")


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"
seen = {}
for case in ("both", "body-only", "headers-only"):
    asked.clear()
    script = subprocess.run(["node", "info.mjs", url, f"h/{case}"], capture_output=True, text=True, check=True)
    python = subprocess.run([sys.executable, "read.py", url, f"h/{case}"], capture_output=True, text=True, check=True)
    seen[case] = script.stdout.strip(), python.stdout.strip(), sorted(set(asked))
    print(f"{case}: JavaScript: {seen[case][0]}; opendal: {seen[case][1]}, asked the Xet store for {seen[case][2]}")
print(f"Accept: {sorted(set(accepts))}")
both, body_only, headers_only = (seen[case] for case in ("both", "body-only", "headers-only"))
ok = (
    all(TYPE in accept for accept in accepts)
    and both[0] == headers_only[0] == "size 5, hash 1111"
    and body_only[0].startswith("InvalidApiResponseFormatError")
    and "X-Linked-Size" in body_only[0]
    and both[2] == ["2222"]
    and body_only[1:] == (f"content {BODY}", [])
    and headers_only[1:] == ("Unexpected", [])
)
print("as described" if ok else "CHANGED")
sys.exit(not ok)
PY
