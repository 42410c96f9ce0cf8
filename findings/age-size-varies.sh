#!/usr/bin/env bash
# Encrypting equal bytes to one age recipient gives files of many different sizes, and to a passphrase only one size.
#
# Version: PyPI pyrage 1.4.0 (Python binding of the Rust implementation of age).
# Guess: age adds a fixed header and 16 bytes for each 64 KiB, so the size of the plaintext gives the size of the file.
# Behaviour: `pyrage.encrypt` to one X25519 recipient adds a second stanza to every file. Its type ends in "-grease".
#   Its name, arguments and body are random, and their lengths too. `pyrage.passphrase.encrypt` adds no such stanza.
#   Compute the payload's size by reading the header of each file; never from the size of the plaintext alone.
# Seen in one run: 300 files of 1000 equal bytes had 126 sizes, from 1220 to 1374 bytes. All had a grease stanza.
#   Without that stanza each would have 1200 bytes. 4 files with a passphrase had 1182 bytes each.
# Prints the sizes. Exits with 1 if any of this differs. Needs python3 with venv, and a network for pip.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check pyrage==1.4.0
venv/bin/python - <<'PY'
import sys
import pyrage
from pyrage import passphrase, x25519

plain = bytes(1000)
identity = x25519.Identity.generate()
files = [pyrage.encrypt(plain, [identity.to_public()]) for _ in range(300)]
assert all(pyrage.decrypt(data, [identity]) == plain for data in files)


def header(data):
    return data[: data.index(b"\n---") + 1]


def stanza_types(data):
    return [line.split()[1] for line in header(data).splitlines() if line.startswith(b"-> ")]


def size_without_grease(data):
    x25519_line = next(i for i, line in enumerate(header(data).splitlines()) if line.startswith(b"-> X25519"))
    lines = header(data).splitlines(keepends=True)
    kept = lines[0] + b"".join(lines[x25519_line : x25519_line + 2])
    return len(data) - len(header(data)) + len(kept)


sizes = sorted({len(data) for data in files})
greased = sum(any(kind.endswith(b"-grease") for kind in stanza_types(data)) for data in files)
bare = {size_without_grease(data) for data in files}
secret = [passphrase.encrypt(plain, "correct horse") for _ in range(4)]
secret_sizes = {len(data) for data in secret}
print(f"recipient: {len(sizes)} sizes of {len(files)} files, {sizes[0]} to {sizes[-1]} bytes; {greased} with grease")
print(f"recipient, grease left out: {sorted(bare)}")
print(f"passphrase: sizes {sorted(secret_sizes)}, stanzas {stanza_types(secret[0])}")
ok = (
    len(sizes) > 30
    and sizes[0] > 1200
    and greased == len(files)
    and bare == {1200}
    and len(secret_sizes) == 1
    and all(stanza_types(data) == [b"scrypt"] for data in secret)
)
print("as described" if ok else "CHANGED")
sys.exit(not ok)
PY
