"""What commands print where, options of the public program, and what the system shows of a mount."""

import os
import subprocess

import pytest

from conftest import CI, eventually, needs_fuse, run, write_tree

pytestmark = needs_fuse

# Every option of the public program but `--overlay` (test_overlay.py), with a value other than the default if possible.
UPSTREAM = """--cache-size 1000000000 --cache-mode file --max-staging-size 100000000 --advanced-writes --poll-interval-secs 7
--poll-listing-concurrency 2 --max-threads 4 --metadata-ttl-ms 500 --metadata-ttl-minimal --flush-debounce-ms 100
--flush-max-batch-window-ms 5000 --flush-shutdown-timeout-ms 20000 --no-disk-cache --direct-io --no-filter-os-files --uid 1 --gid 2
--fuse-owner-only --inode-soft-limit 10000 --lru-sweep-interval-ms 1000 --encryption-algorithm aegis-128x2 --fuse""".split()


def test_options_of_the_public_program_start_a_mount(hub, key, mount, tmp_path):
    token = tmp_path / "token"
    token.write_text("hf_local")
    places = ["--cache-dir", tmp_path / "cache", "--token-file", token, "--hub-endpoint", hub.url]
    m = mount("--create", *UPSTREAM, *places, "--encryption-key-file", key)
    write_tree(m.point, {"a": b"1"})
    assert (m.point / "a").stat().st_uid == os.geteuid()
    assert not m.started.stderr, "each option has its effect"
    m.stop()
    m = mount("--read-only", "--hf-token", "hf_local", "--inode-soft-limit", "0", "--encryption-key-file", key)
    assert not m.started.stderr
    m.stop()


def test_limits_of_listings_have_a_range(hub, tmp_path):
    for option, value in [("--poll-listing-concurrency", "0"), ("--lru-sweep-interval-ms", "0"), ("--inode-soft-limit", "x")]:
        done = run("hf-mount", "start", option, value, "bucket", "local/test", tmp_path / "mnt", check=False)
        assert done.returncode == 2 and option in done.stderr, done.stderr


def test_number_of_files_in_memory_is_kept_near_its_limit(hub, api, mount, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    api.create_bucket("local/test")
    names = [f"d{folder:02}/f{file:03}" for folder in range(20) for file in range(200)]
    api.batch_bucket_files("local/test", add=[(b"", name) for name in names])
    everything = mount("--read-only", "--cache-dir", tmp_path / "cache", name="all")
    limited = mount("--read-only", "--inode-soft-limit", 500, "--lru-sweep-interval-ms", 200, name="limited")
    walk = lambda point: sorted(str(path.relative_to(point)) for path in point.rglob("*") if path.is_file())
    assert walk(everything.point) == names and everything.status()["inodes"] == len(names) + 21
    with open(limited.point / "d00/f000", "rb") as file:
        # Programs walk while the kernel is asked to drop what it has.
        with ThreadPoolExecutor(4) as pool:
            assert all(found == names for found in pool.map(walk, [limited.point] * 8))
        eventually(lambda: limited.status()["inodes"] < 700)
        assert file.read() == b"" and os.fstat(file.fileno()).st_nlink == 1
    before = (limited.point / "d05").stat().st_mtime_ns
    assert walk(limited.point) == names
    eventually(lambda: limited.status()["inodes"] < 700)
    assert (limited.point / "d05").stat().st_mtime_ns == before, "a listing that is made again is no change"
    assert walk(limited.point) == names


def test_results_are_on_stdout_and_warnings_on_stderr(hub, key, mount):
    m = mount("--create", "--encryption-key-file", key, "--flush-shutdown-timeout-ms", "500", "--flush-debounce-ms", "60000")
    assert (m.started.stdout, m.started.stderr) == (f"mounted local/test on {m.point}\n", "")
    write_tree(m.point, {"a": b"1"})
    flushed = run("hf-mount", "flush", m.point)
    assert (flushed.stdout, flushed.stderr) == ("flushed 1 file\n", "")
    write_tree(m.point, {"b": b"1", "c": b"2"})
    hub.stop()
    stopped = m.stop(check=False)
    hub.start()
    assert stopped.returncode == 75
    assert stopped.stdout == "flushed 0 files\n"
    assert "2 files still pending" in stopped.stderr and "flushed" not in stopped.stderr


@pytest.mark.skipif(os.geteuid() != 0 and not CI, reason="mounting a small disk needs root")
@pytest.mark.parametrize("size", ["64k", "256k"])
def test_full_cache_disk_is_named_and_exits_with_8(hub, key, mount, tmp_path, size):
    cache = tmp_path / "cache"
    cache.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", cache], check=True)
    try:
        m = mount("--create", "--encryption-key-file", key, "--cache-dir", cache, check=False)
        assert m.started.returncode == 8, m.started
        error, hint = m.started.stderr.splitlines()
        assert error.startswith(f"error: cache folder {cache}: ")
        assert "--cache-dir" in hint
        assert not os.path.ismount(m.point)
    finally:
        # The daemon reports its failure, then it ends.
        eventually(lambda: subprocess.run(["umount", cache], capture_output=True).returncode == 0)


def test_journal_of_earlier_version_is_refused_with_hint_and_kept(hub, key, mount, tmp_path):
    cache = tmp_path / "cache"
    options = ["--create", "--encryption-key-file", key, "--cache-dir", cache]
    m = mount(*options)
    write_tree(m.point, {"a": b"1"})
    m.stop()
    (journal,) = cache.glob("staging/*/journal")
    earlier = b"HFCJRNL1" + journal.read_bytes()[8:]
    journal.write_bytes(earlier)
    m = mount(*options, check=False)
    assert (m.started.returncode, m.started.stdout) == (1, ""), m.started
    error, hint = m.started.stderr.splitlines()
    assert error == f"error: journal {journal}: it was written by an earlier version of this program; the file is kept as it is"
    assert hint.startswith("hint: ") and "the version that wrote it" in hint
    assert journal.read_bytes() == earlier
    assert not os.path.ismount(m.point)
    journal.unlink()
    m = mount(*options)
    assert (m.point / "a").read_bytes() == b"1"
    m.stop()


def test_mount_table_shows_the_subtype_and_a_remount_without_helper_works(hub, key, mount):
    m = mount("--create", "--encryption-key-file", key)
    found = subprocess.run(["findmnt", "-rn", "-t", "fuse.hf-mount", "-o", "TARGET"], capture_output=True, text=True)
    assert str(m.point) in found.stdout.splitlines()
    df = subprocess.run(["df", "-T", m.point], capture_output=True, text=True, check=True)
    assert df.stdout.splitlines()[1].split()[1] == "fuse.hf-mount"
    if os.geteuid() == 0:
        subprocess.run(["mount", "-i", "-o", "remount,ro", m.point], check=True)
        try:
            (m.point / "a").write_bytes(b"1")
            raise AssertionError("it is still writable")
        except OSError as error:
            assert error.strerror == "Read-only file system"
    m.stop()
