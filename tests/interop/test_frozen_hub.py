"""A Hub that takes connections and never answers, or that is away for a while: each command and
each file operation ends by one deadline, and what can wait for the Hub does so until then.

The Hub is frozen with SIGSTOP: its kernel goes on taking connections. Times have a margin for a
busy machine that is smaller than a second deadline would be.
"""

import contextlib
import errno
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from conftest import BIN, Hub, eventually, needs_fuse, run

pytestmark = needs_fuse

# Seconds that the Hub is waited for in these tests, and what may come on top.
DEADLINE = 5
MARGIN = 4
TIMES = ("--read-fetch-timeout-ms", DEADLINE * 1000, "--flush-shutdown-timeout-ms", DEADLINE * 1000)
# Nothing is uploaded unless it is asked for.
LAZY = ("--flush-debounce-ms", 600_000, "--flush-max-batch-window-ms", 600_000)


@contextlib.contextmanager
def frozen(hub):
    hub.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        hub.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def takes(least, most):
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert least <= took <= most, f"it took {took:.1f} s"


def one_deadline():
    return takes(DEADLINE * 0.4, DEADLINE + MARGIN)


def at_once():
    return takes(0, DEADLINE * 0.7)


def fails(action, *codes):
    with pytest.raises(OSError) as caught:
        action()
    assert caught.value.errno in codes


def code(*command):
    return run(*command, check=False).returncode


# --- commands --------------------------------------------------------------------------------------------------------


def test_interrupted_start_leaves_neither_folder_nor_daemon(hub, api, home, tmp_path):
    api.create_bucket("local/test")
    point = tmp_path / "mnt"
    command = [BIN / "hf-mount", "start", "--hub-endpoint", hub.url, "--hf-token", "hf_local", "bucket", "local/test", point]
    with frozen(hub):
        start = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        daemons = []

        def is_running():
            stats = [(entry, entry / "stat") for entry in Path("/proc").iterdir() if entry.name.isdigit()]
            for entry, stat in stats:
                with contextlib.suppress(OSError):
                    if int(stat.read_text().rsplit(")", 1)[1].split()[1]) == start.pid:
                        daemons.append(entry)
            return daemons and point.exists()

        eventually(is_running)
        # Far from the 30 s that the Hub would be waited for.
        with takes(0, DEADLINE + MARGIN):
            start.send_signal(signal.SIGINT)
            assert start.wait() == 130
        assert "interrupted" in start.stderr.read()
        assert not point.exists()
        assert not any(daemon.exists() for daemon in daemons)


def test_start_ends_by_one_deadline_and_leaves_no_folder(hub, mount, api, tmp_path):
    api.create_bucket("local/test")
    with frozen(hub):
        for options in [(), ("--read-only",), ("--create",)]:
            with one_deadline():
                failed = mount(*TIMES, *options, check=False)
            assert failed.started.returncode == 5, failed.started.stderr
            assert not failed.point.exists()
        with one_deadline():
            assert code("hf-mount-fuse", *TIMES, "bucket", "local/test", tmp_path / "mnt") == 5
        assert not (tmp_path / "mnt").exists()


def test_stop_and_stop_all_end_by_one_deadline_with_75(hub, key, mount):
    names = ["a", "b", "c"]
    mounts = [
        mount("--create", *TIMES, *LAZY, "--encryption-key-file", key, name=n, source=f"local/{n}") for n in names
    ]
    for one in mounts:
        (one.point / "file").write_bytes(b"kept")
    with frozen(hub):
        with one_deadline():
            stopped = mounts[0].stop(check=False)
        assert stopped.returncode == 75 and not os.path.ismount(mounts[0].point)
        with one_deadline():
            assert code("hf-mount", "stop", "--all") == 75
        assert not any(os.path.ismount(one.point) for one in mounts)
    again = mount(*TIMES, "--encryption-key-file", key, name="a", source="local/a")
    assert (again.point / "file").read_bytes() == b"kept"
    again.stop()


def test_flush_ends_by_one_deadline_and_other_commands_at_once(hub, key, mount):
    one = mount("--create", *TIMES, *LAZY, "--encryption-key-file", key)
    (one.point / "file").write_bytes(b"kept")
    with frozen(hub):
        with one_deadline():
            assert code("hf-mount", "flush", one.point) == 75
        for command in [("status",), ("pending", "list", one.point), ("pending", "retry", one.point)]:
            with at_once():
                run("hf-mount", *command)
        with at_once():
            # It may be refused, while the file is being uploaded.
            assert code("hf-mount", "pending", "drop", one.point, "file") in (0, 1)
    one.stop("--force", check=False)


def test_export_waits_once_for_all_files_and_copies_what_is_here(hub, key, mount, tmp_path):
    options = (*TIMES, *LAZY, "--encryption-key-file", key, "--no-disk-cache")
    one = mount("--create", *options)
    for name in "abc":
        (one.point / name).write_bytes(os.urandom(3_000_000))
    one.stop()
    one = mount(*options)
    for name in "abc":
        with open(one.point / name, "r+b") as file:
            file.seek(1_000_000)
            file.write(b"edited")
    (one.point / "new").write_bytes(b"here")
    with frozen(hub):
        with one_deadline():
            assert code("hf-mount", "pending", "export", one.point, tmp_path / "out") == 1
        assert (tmp_path / "out/new").read_bytes() == b"here"
        assert sorted(os.listdir(tmp_path / "out")) == ["new"]
        one.stop("--force", check=False)


def test_quickstart_needs_no_other_hub(hub, home, tmp_path):
    with frozen(hub):
        for _ in range(2):
            run("hf-mount", "quickstart", tmp_path / "vault")
        run("hf-mount", "stop", tmp_path / "vault")


def test_xet_upload_and_download_end_by_one_deadline(hub, api, tmp_path):
    api.create_bucket("local/test")
    file = tmp_path / "file"
    file.write_bytes(b"content")
    times = ("--timeout-ms", DEADLINE * 1000)
    run("hfcrypt", "xet", "upload", *times, file, "hf://buckets/local/test/file")
    with frozen(hub):
        with one_deadline():
            assert code("hfcrypt", "xet", "upload", *times, file, "hf://buckets/local/test/other") == 5
        with one_deadline():
            assert code("hfcrypt", "xet", "download", *times, "hf://buckets/local/test/file", tmp_path / "out") == 5
        assert not (tmp_path / "out").exists()
    # Frozen in the middle: it has asked for the bucket, and waits for its input.
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    command = [BIN / "hfcrypt", "xet", "upload", *map(str, times), pipe, "hf://buckets/local/test/other"]
    upload = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    with open(pipe, "wb") as feed:
        feed.write(os.urandom(1000))
        feed.flush()
        hub.process.send_signal(signal.SIGSTOP)
    try:
        with one_deadline():
            assert upload.wait(timeout=60) == 5
    finally:
        hub.process.send_signal(signal.SIGCONT)


# --- file operations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_key", [True, False])
def test_reads_and_listings_end_by_one_deadline(hub, key, mount, with_key):
    options = (*TIMES, "--no-disk-cache", "--metadata-ttl-ms", 1, *(["--encryption-key-file", key] if with_key else []))
    one = mount("--create", *options)
    (one.point / "folder").mkdir()
    for name in ["folder/file", "big"]:
        (one.point / name).write_bytes(os.urandom(2_000_000))
    one.stop()
    one = mount(*options)
    os.listdir(one.point), os.listdir(one.point / "folder")
    file = os.open(one.point / "big", os.O_RDONLY)
    with frozen(hub):
        with one_deadline():
            fails(lambda: os.pread(file, 100, 1_500_000), errno.EIO)
        with one_deadline():
            fails(lambda: os.pread(file, 100, 1_000_000), errno.EIO)
        for action in [os.stat, os.listdir]:
            with takes(0, DEADLINE + MARGIN):
                fails(lambda: action(one.point / "folder"), errno.EIO)
    assert len(os.pread(file, 100, 1_500_000)) == 100, "it is read again when the Hub is back"
    os.close(file)


def test_streaming_close_and_remote_fsync_end_by_one_deadline(hub, mount):
    one = mount("--create", *TIMES)
    file = os.open(one.point / "file", os.O_WRONLY | os.O_CREAT)
    os.write(file, b"content")
    with frozen(hub):
        with one_deadline():
            fails(lambda: os.close(file), errno.EIO)
        with one_deadline():
            one.stop(check=False)
    two = mount(*TIMES, "--advanced-writes", "--fsync", "remote", name="two")
    file = os.open(two.point / "other", os.O_WRONLY | os.O_CREAT)
    os.write(file, b"content")
    with frozen(hub):
        with one_deadline():
            fails(lambda: os.fsync(file), errno.EIO)
    os.fsync(file)
    os.close(file)
    two.stop()


# --- a Hub that is away ----------------------------------------------------------------------------------------------


def test_hub_away_for_12_seconds_delays_reads_listings_and_commits_but_fails_none(hub, api, mount):
    api.create_bucket("local/test")
    data = os.urandom(2_000_000)
    api.batch_bucket_files("local/test", add=[(data, "file"), (b"x", "folder/x")])
    one = mount("--no-disk-cache", "--metadata-ttl-ms", 1)
    file = os.open(one.point / "file", os.O_RDONLY)
    new = os.open(one.point / "new", os.O_WRONLY | os.O_CREAT)
    os.write(new, b"content")
    address = hub.url.removeprefix("http://")
    hub.stop()
    outcomes = {}

    def attempt(name, action):
        try:
            outcomes[name] = action()
        except OSError as error:
            outcomes[name] = error

    actions = {
        "read": lambda: os.pread(file, 100, 0) == data[:100],
        "list": lambda: os.listdir(one.point / "folder") == ["x"],
        "close": lambda: os.close(new) is None,
    }
    threads = [threading.Thread(target=attempt, args=action) for action in actions.items()]
    for thread in threads:
        thread.start()
    time.sleep(12)
    assert not outcomes, outcomes
    command = [BIN / "hugbucket", "hub", "--dir", hub.directory, "--listen", address]
    hub.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert hub.process.stdout.readline().strip() == hub.url
    for thread in threads:
        thread.join(timeout=60)
    assert outcomes == {"read": True, "list": True, "close": True}
    assert "new" in {entry.path for entry in api.list_bucket_tree("local/test")}
    os.close(file)
    one.stop()
