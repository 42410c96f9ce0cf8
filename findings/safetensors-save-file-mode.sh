#!/usr/bin/env bash
# safetensors `save_file` always leaves a file with mode 0600, and replaces a symlink instead of its target.
#
# Version: PyPI safetensors 0.8.0 (with numpy 2.4.6), on Linux.
# Guess: a new file gets 0666 less the umask, an existing file keeps its mode, and a symlink is followed.
# Behaviour: `save_file` writes a temporary file of mode 0600 in the target's folder and renames it onto the name.
#   It does not apply the umask, and it does not copy the mode of the file that it replaces. A model in a shared folder
#   becomes unreadable to its group when its owner saves it again. A symlink at the name becomes a regular file;
#   the file that it pointed to keeps the old tensors. A hard link to the old file keeps the old tensors too.
#   A read-only file (0400) at the name is replaced without an error.
# Seen: mode 0600 for a new file with umask 000 and with 022, and over files of 0664 and 0400. Link: regular file, 0600.
# Prints each case. Exits with 1 if any of this differs. Needs python3 with venv, and a network for pip.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
mkdir data
cd data
../venv/bin/python - <<'PY'
import os
import stat
import sys
import numpy as np
from safetensors.numpy import load_file, save_file

old, new = {"t": np.zeros(4, "f4")}, {"t": np.ones(4, "f4")}


def mode(name):
    return f"{stat.S_IMODE(os.stat(name).st_mode):04o}"


def first(name):
    return float(load_file(name)["t"][0])


seen, links = {}, {}
for mask in (0o000, 0o022):
    os.umask(mask)
    save_file(old, f"new-{mask:03o}")
    seen[f"new file, umask {mask:03o}"] = mode(f"new-{mask:03o}")
for before in (0o664, 0o400):
    name = f"over-{before:04o}"
    save_file(old, name)
    os.chmod(name, before)
    os.link(name, name + "-hard")
    save_file(new, name)
    seen[f"over a file of {before:04o}"] = mode(name)
    links[before] = f"{mode(name + '-hard')}, has {first(name + '-hard')}; the name has {first(name)}"
save_file(old, "target")
os.symlink("target", "link")
save_file(new, "link")
kind = "symlink" if os.path.islink("link") else "regular file"
seen["over a symlink"] = f"{kind}, {mode('link')}; its target has {first('target')}, the name has {first('link')}"
for case, value in seen.items():
    print(f"{case}: {value}")
for before, value in links.items():
    print(f"hard link to the old file of {before:04o}: {value}")
ok = seen.pop("over a symlink") == "regular file, 0600; its target has 0.0, the name has 1.0"
ok = ok and set(seen.values()) == {"0600"}
ok = ok and all(value == f"{before:04o}, has 0.0; the name has 1.0" for before, value in links.items())
print("as described" if ok else "CHANGED")
sys.exit(not ok)
PY
