#!/usr/bin/env bash
# A mount of s3fs-fuse keeps a file's beginning if an open file is made shorter, and loses it if a path is.
#
# Versions: Debian s3fs 1.90-1 with default settings; PyPI moto 5.2.5 as the S3 server.
# Guess: truncate(2) with a path does what ftruncate(2) does with an open file. At worst it fails.
# Behaviour: ftruncate to 1,000 bytes leaves the first 1,000 bytes. truncate with the path to 1,000 bytes succeeds too, but
#   the object then has 1,000 zero bytes. Nothing is reported, to the program or in the log. So `truncate -s` and Python's
#   `os.truncate` destroy a file of a mount, and `open(…, "r+b").truncate(…)` doesn't.
# Seen, with 300,000 random bytes:
#   open file: 1000 bytes, as before
#   path:      1000 bytes, all zero
# Prints both. Exits with 1 if any of this differs.
# Needs root, /dev/fuse, python3 with venv, and the package sources of Debian 12.
set -euo pipefail
work=$(mktemp -d)
server='' mount=''
finish() {
    [ -z "$mount" ] || { umount "$work/mount" 2>/dev/null || true; wait "$mount" 2>/dev/null || true; }
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check 'moto[server]==5.2.5'
for package in s3fs=1.90-1 libfuse2; do
    apt-get download -q=2 -o APT::Sandbox::User=root "$package"
done
for file in ./*.deb; do dpkg -x "$file" root; done
libraries=$(uname -m)-linux-gnu
export LD_LIBRARY_PATH="$work/root/lib/$libraries:$work/root/usr/lib/$libraries"
port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
venv/bin/moto_server -H 127.0.0.1 -p "$port" >/dev/null 2>&1 &
server=$!
export AWS_ACCESS_KEY_ID=name AWS_SECRET_ACCESS_KEY=secret AWS_DEFAULT_REGION=us-east-1
until (: </dev/tcp/127.0.0.1/"$port") 2>/dev/null; do sleep 0.1; done
venv/bin/python -c "import boto3; boto3.client('s3', endpoint_url='http://127.0.0.1:$port').create_bucket(Bucket='data')"
mkdir mount
root/usr/bin/s3fs data mount -f -o "url=http://127.0.0.1:$port,use_path_request_style" 2>/dev/null &
mount=$!
until mountpoint -q mount; do kill -0 "$mount"; sleep 0.1; done
venv/bin/python - "$port" <<'PY'
import os
import random
import sys

import boto3

body = random.Random(1).randbytes(300_000)
s3 = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{sys.argv[1]}")


def shown(name):
    found = s3.get_object(Bucket="data", Key=name)["Body"].read()
    kind = "as before" if found == body[:1000] else "all zero" if not any(found) else "something else"
    return f"{len(found)} bytes, {kind}"


for name in ("open", "path"):
    with open(f"mount/{name}", "wb") as file:
        file.write(body)
with open("mount/open", "r+b") as file:
    file.truncate(1000)
os.truncate("mount/path", 1000)
seen = [f"open file: {shown('open')}", f"path:      {shown('path')}"]
print("\n".join(seen))
if seen != ["open file: 1000 bytes, as before", "path:      1000 bytes, all zero"]:
    sys.exit("the behaviour differs")
PY
