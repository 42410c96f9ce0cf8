"""`hf buckets sync` of the official client beside our mounts: it skips what has the same size and isn't newer."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import eventually, needs_fuse, run, tree, write_tree

OLD = 1_000_000_000_000_000_000


def sync(source, target):
    command = [Path(sys.executable).parent / "hf", "buckets", "sync", str(source), str(target), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def flush(m):
    run("hf-mount", "flush", m.point)
    eventually(lambda: m.status()["pending_files"] == 0)


def overwrite(path, data):
    path.write_bytes(data)
    os.utime(path, ns=(OLD, OLD))


def copy_keeping_times(path, data):
    source = path.parent.parent / "source"
    overwrite(source, data)
    run("cp", "-p", source, path)


def move_into_place(path, data):
    temporary = path.with_name(f".{path.name}.x1")
    overwrite(temporary, data)
    os.rename(temporary, path)


WAYS = {"touch -d": overwrite, "cp -p": copy_keeping_times, "rsync -t": move_into_place}


@needs_fuse
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("encrypted", [True, False])
def test_new_version_with_old_time_is_downloaded(hub, api, mount, tmp_path, key, encrypted, way):
    options = ["--encryption-key-file", key] if encrypted else ["--advanced-writes"]
    m = mount("--create", "--cache-dir", tmp_path / "cache", "--hub-endpoint", hub.url, *options)
    copy, out = tmp_path / "copy", tmp_path / "out"

    def local():
        """The copy, decrypted."""
        sync("hf://buckets/local/test", copy)
        if not encrypted:
            return tree(copy)
        run("rm", "-rf", out)
        run("hfcrypt", "decrypt", "--key-file", key, copy, out)
        return tree(out)

    for path in ("small", "other"):
        overwrite(m.point / path, b"version 1")
    flush(m)
    assert local() == {"small": b"version 1", "other": b"version 1"}
    for version in (b"version 2", b"version 3"):
        WAYS[way](m.point / "small", version)
        shown = os.stat(m.point / "small").st_mtime_ns
        flush(m)
        assert os.stat(m.point / "small").st_mtime_ns == shown == OLD
        assert local() == {"small": version, "other": b"version 1"}
    # What was not replaced has its time still, for every machine.
    assert m.stop().returncode == 0
    run("rm", "-rf", tmp_path / "cache")
    m = mount("--cache-dir", tmp_path / "cache", "--hub-endpoint", hub.url, *options)
    assert os.stat(m.point / "other").st_mtime_ns == OLD
    assert os.stat(m.point / "small").st_mtime_ns > OLD


@needs_fuse
def test_new_version_that_is_uploaded_by_sync_is_in_the_mount(hub, api, mount, tmp_path, key):
    m = mount("--create", "--cache-dir", tmp_path / "cache", "--hub-endpoint", hub.url, "--encryption-key-file", key, "--metadata-ttl-ms", "0")
    now = time.time_ns()
    for index, version in enumerate((b"version 1", b"version 2")):
        write_tree(tmp_path / f"in{index}", {"a": version})
        os.utime(tmp_path / f"in{index}/a", ns=(now + index * 2_000_000_000,) * 2)
        run("hfcrypt", "encrypt", "--key-file", key, tmp_path / f"in{index}", tmp_path / f"enc{index}")
        sync(tmp_path / f"enc{index}", "hf://buckets/local/test")
        eventually(lambda: (m.point / "a").exists() and (m.point / "a").read_bytes() == version)
    # An old time hides a version from this client, until it is touched.
    write_tree(tmp_path / "in", {"a": b"version 3"})
    os.utime(tmp_path / "in/a", ns=(OLD, OLD))
    run("hfcrypt", "encrypt", "--key-file", key, tmp_path / "in", tmp_path / "enc")
    run("find", tmp_path / "enc", "-type", "f", "-exec", "touch", "-d", "+10 seconds", "{}", "+")
    sync(tmp_path / "enc", "hf://buckets/local/test")
    eventually(lambda: (m.point / "a").read_bytes() == b"version 3")
