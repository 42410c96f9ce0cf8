"""Names that several clients make, that the Hub refuses, and that desktop programs leave."""

import errno
import os
import subprocess
import time

import pytest

from conftest import eventually, needs_fuse, run, tree, write_tree

pytestmark = needs_fuse

ALIAS = "n (conflict with folder)"


def put(api, objects):
    api.batch_bucket_files("local/test", add=[(data, name) for name, data in objects.items()])


def keys(api):
    return sorted(f.path for f in api.list_bucket_tree("local/test", recursive=True))


def errno_of(action):
    with pytest.raises(OSError) as caught:
        action()
    return caught.value.errno


@pytest.fixture(params=["plain", "encrypted"])
def options(request, key):
    """Options of a mount on either side."""
    return ["--advanced-writes"] if request.param == "plain" else ["--encryption-key-file", key]


@pytest.mark.parametrize("first", ["file", "folder"])
def test_file_and_folder_made_by_two_mounts_are_both_shown_and_one_mount_says_21(hub, api, mount, options, tmp_path, first):
    api.create_bucket("local/test")
    made = {"file": {"n": b"file\n"}, "folder": {"n/i": b"below\n"}}
    waits = ["--flush-debounce-ms", "600000", "--flush-max-batch-window-ms", "600000", "--metadata-ttl-minimal"]
    one = mount(*options, *waits, "--cache-dir", tmp_path / "one", name="a")
    two = mount(*options, *waits, "--cache-dir", tmp_path / "two", name="b")
    second = "folder" if first == "file" else "file"
    write_tree(one.point, made[first])
    write_tree(two.point, made[second])
    assert run("hf-mount", "flush", one.point, check=False).returncode == 0
    assert run("hf-mount", "flush", two.point, check=False).returncode == 21
    assert two.status()["conflicts"] == 1
    for m in (one, two):
        eventually(lambda: tree(m.point) == {ALIAS: b"file\n", "n/i": b"below\n"})
    os.rename(one.point / ALIAS, one.point / "renamed")
    run("hf-mount", "flush", one.point, check=False)
    eventually(lambda: tree(two.point) == {"renamed": b"file\n", "n/i": b"below\n"})
    assert two.stop(check=False).returncode == 21


def test_file_and_folder_put_by_another_client_open_and_go(hub, api, mount):
    api.create_bucket("local/test")
    put(api, {"n": b"file", "n/i": b"below", "d/" + "x" * 256: b"too long"})
    m = mount("--advanced-writes")
    assert (m.point / ALIAS).read_bytes() == b"file"
    with open(m.point / ALIAS, "ab") as file:
        file.write(b", edited")
    assert run("hf-mount", "flush", m.point, check=False).returncode == 0
    assert keys(api) == ["d/" + "x" * 256, "n", "n/i"]
    assert (m.point / ALIAS).read_bytes() == b"file, edited"
    assert os.listdir(m.point / "d") == []
    assert errno_of(lambda: os.rmdir(m.point / "d")) == errno.ENOTEMPTY
    assert m.status()["unreadable_entries"] == 1
    assert "1 entries of the bucket are not shown" in run("hf-mount", "status").stdout
    os.unlink(m.point / ALIAS)
    assert m.stop(check=False).returncode == 0
    assert keys(api) == ["d/" + "x" * 256, "n/i"]


def test_missed_names_that_come_elsewhere_are_found_within_seconds_and_cost_few_requests(hub, api, mount):
    api.create_bucket("local/test")
    put(api, {"old": b"1", "d/old": b"1"})
    m = mount("--metadata-ttl-ms", "600000")
    for name in ("new", "folder/deep/new", "d/new"):
        assert not (m.point / name).exists()
        put(api, {name: b"new"})
        came = time.monotonic()
        eventually((m.point / name).exists)
        assert time.monotonic() - came < 8, "it took as long as the metadata TTL"
        assert (m.point / name).read_bytes() == b"new"


def test_names_that_the_hub_refuses_are_einval_at_once(hub, api, mount):
    api.create_bucket("local/test")
    m = mount("--advanced-writes")
    (m.point / "file").write_bytes(b"1")
    (m.point / "folder").mkdir()
    for name in ("back\\slash", "dots..", "folder/x.."):
        at = m.point / name
        assert errno_of(lambda: at.write_bytes(b"")) == errno.EINVAL
        assert errno_of(at.mkdir) == errno.EINVAL
        assert errno_of(lambda: os.symlink("file", at)) == errno.EINVAL
        for source in ("file", "folder"):
            assert errno_of(lambda: os.rename(m.point / source, at)) == errno.EINVAL
    m.stop()
    assert keys(api) == ["file"]


def test_git_clone_with_desktop_files_checks_out_and_uploads_none(hub, api, mount, tmp_path):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    run(*git, "init", "-q", tmp_path / "repo")
    write_tree(tmp_path / "repo", {".DS_Store": b"desktop", "d/._x": b"fork", "code": b"code"})
    run(*git, "-C", tmp_path / "repo", "add", "-A")
    run(*git, "-C", tmp_path / "repo", "commit", "-q", "-m", "all")
    api.create_bucket("local/test")
    m = mount("--advanced-writes")
    cloned = subprocess.run([*git, "clone", "-q", tmp_path / "repo", m.point / "clone"], capture_output=True, text=True)
    assert cloned.returncode == 0, cloned.stderr
    assert run(*git, "-C", m.point / "clone", "status", "--porcelain").stdout == ""
    assert run("hf-mount", "flush", m.point).returncode == 0
    assert m.status()["pending_files"] == 0
    assert "2 files such as .DS_Store are kept" in run("hf-mount", "status").stdout
    assert m.stop().returncode == 0
    assert [k for k in keys(api) if ".git/" not in k] == ["clone/code"]
    m = mount("--advanced-writes")
    assert (m.point / "clone/.DS_Store").read_bytes() == b"desktop"
    os.rename(m.point / "clone/.DS_Store", m.point / "clone/store")
    m.stop()
    assert "clone/store" in keys(api) and "clone/d/._x" not in keys(api)
