"""What programs can and can't do in a plain mount without `--advanced-writes` (docs/semantics.md, "Streaming mode")."""

import errno
import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

from conftest import eventually, needs_fuse, run, tree

pytestmark = needs_fuse


@pytest.fixture
def streaming(hub, api, mount, tmp_path):
    """Makes a streaming mount of the bucket `local/test`, with nothing cached."""
    api.create_bucket("local/test")
    return lambda name="mnt", **options: mount("--cache-dir", tmp_path / f"cache-{name}", "--hub-endpoint", hub.url, name=name, **options)


def keys(api):
    return sorted(entry.path for entry in api.list_bucket_tree("local/test", recursive=True) if entry.type == "file")


def error_of(action):
    with pytest.raises(OSError) as caught:
        action()
    return caught.value.errno


def settled(m):
    """Waits until nothing is on its way to the Hub."""
    run("hf-mount", "flush", m.point)
    eventually(lambda: m.status()["pending_files"] == 0)


def remote(streaming, m):
    """What another machine sees."""
    settled(m)
    other = streaming("other")
    files = tree(other.point)
    other.stop()
    return files


def test_files_are_written_in_order_once(streaming, api):
    m = streaming()
    (m.point / "a").write_bytes(b"first")
    (m.point / "a").write_bytes(b"second")
    assert keys(api) == ["a"]
    assert error_of(lambda: open(m.point / "a", "r+b")) == errno.EPERM
    assert error_of(lambda: open(m.point / "a", "ab")) == errno.EPERM
    assert error_of(lambda: os.truncate(m.point / "a", 1)) == errno.EPERM
    with open(m.point / "b", "wb", buffering=0) as file:
        file.write(b"123")
        assert error_of(lambda: os.pwrite(file.fileno(), b"0", 0)) == errno.EINVAL
        assert error_of(lambda: os.pwrite(file.fileno(), b"5", 4)) == errno.EINVAL
        assert error_of(lambda: os.ftruncate(file.fileno(), 10)) == errno.EPERM
        os.ftruncate(file.fileno(), 0)
        assert os.pwrite(file.fileno(), b"again", 0) == 5
    with open(m.point / "b", "wb") as file:
        assert error_of(lambda: os.unlink(m.point / "b")) == errno.EPERM
        file.write(b"other")
    os.rename(m.point / "b", m.point / "c")
    os.unlink(m.point / "a")
    assert remote(streaming, m) == {"c": b"other"}


def test_new_file_may_be_made_longer_before_its_first_write(streaming):
    m = streaming()
    with open(m.point / "a", "wb", buffering=0) as file:
        os.ftruncate(file.fileno(), 200_000)
        file.write(b"1" * 70_000)
        file.write(b"2" * 70_000)
        assert os.fstat(file.fileno()).st_size == 200_000
    with open(m.point / "b", "wb") as file:
        os.ftruncate(file.fileno(), 100_000)
    assert remote(streaming, m) == {"a": b"1" * 70_000 + b"2" * 70_000 + bytes(60_000), "b": bytes(100_000)}


# A process of its own: a child that this one starts closes its duplicates of open files, and a `close` commits.
HOLDER = """
import os, sys
lock = os.open(sys.argv[1] + "/lock", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
slow = open(sys.argv[1] + "/slow", "wb", buffering=0)
slow.write(b"one ")
print("open", flush=True)
sys.stdin.readline()
os.unlink(sys.argv[1] + "/lock")
os.close(lock)
slow.write(b"two")
slow.close()
"""


def test_file_removed_before_it_was_closed_never_reaches_the_hub(streaming, api):
    m = streaming()
    with tempfile.TemporaryFile(dir=m.point) as file:
        file.write(b"temporary")
        file.seek(0)
        assert file.read() == b"temporary"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, m.point], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"open\n"
    # Open files wait for their `close`.
    assert m.status()["pending_files"] == 2
    assert keys(api) == []
    holder.communicate(b"\n", timeout=60)
    assert holder.returncode == 0
    assert keys(api) == ["slow"] and os.listdir(m.point) == ["slow"]
    settled(m)
    assert keys(api) == ["slow"] and (m.point / "slow").read_bytes() == b"one two"


HALF = """
import contextlib, os, sys
file = os.open(sys.argv[1] + "/half", os.O_WRONLY | os.O_CREAT)
os.write(file, b"half")
print("open", flush=True)
sys.stdin.readline()
with contextlib.suppress(OSError):
    os.close(file)
"""


def test_file_open_while_the_mount_stops_is_pending_and_uploaded_by_the_next(streaming, api):
    m = streaming()
    # A process of its own: a child that this one starts would close a copy of the file, which commits it.
    holder = subprocess.Popen([sys.executable, "-c", HALF, m.point], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"open\n"
    assert m.status()["pending_files"] == 1
    assert run("hf-mount", "flush", m.point, check=False).returncode == 0
    stopped = m.stop("--force", check=False)
    # The daemon is gone: what `close` says is the kernel's answer.
    holder.communicate(b"\n", timeout=60)
    assert stopped.returncode == 75
    assert "1 file still pending" in stopped.stderr
    assert keys(api) == []
    settled(streaming())
    assert keys(api) == ["half"]


def test_locks_of_filelock_hold_and_are_taken_again_once_removed(streaming, api):
    filelock = pytest.importorskip("filelock")
    m = streaming()
    path = m.point / "a.lock"
    for _ in range(3):
        with filelock.FileLock(path, is_singleton=False), pytest.raises(filelock.Timeout):
            filelock.FileLock(path, is_singleton=False).acquire(timeout=0)
        # Newer versions remove it themselves, while it is open.
        path.unlink(missing_ok=True)
        with filelock.SoftFileLock(m.point / "soft.lock"):
            pass
    settled(m)
    assert keys(api) == [] == os.listdir(m.point)
    # An existing file, though it is empty.
    path.touch()
    assert error_of(lambda: os.open(path, os.O_RDWR | os.O_CREAT)) == errno.EPERM


def test_numpy_and_safetensors_save_and_load(streaming):
    numpy = pytest.importorskip("numpy")
    safetensors = pytest.importorskip("safetensors.numpy")
    m = streaming()
    arrays = {"a": numpy.arange(100_000, dtype=numpy.float32), "b": numpy.zeros((3, 0)), "c": numpy.ones((7, 5), dtype=numpy.int8)}
    safetensors.save_file(arrays, m.point / "model.safetensors", metadata={"note": "x"})
    safetensors.save_file(arrays, m.point / "model.safetensors")
    numpy.save(m.point / "a.npy", arrays["a"])
    settled(m)
    loaded = safetensors.load_file(streaming("other").point / "model.safetensors")
    assert all((loaded[name] == array).all() for name, array in arrays.items())
    assert (numpy.load(m.point / "a.npy", mmap_mode="r") == arrays["a"]).all()
    # A zip archive whose headers are filled in afterwards.
    assert error_of(lambda: numpy.savez(m.point / "a.npz", **arrays)) == errno.EINVAL
    with open(m.point / "b.npz", "wb") as file:
        buffer = io.BytesIO()
        numpy.savez(buffer, **arrays)
        file.write(buffer.getvalue())
    assert (numpy.load(m.point / "b.npz")["c"] == arrays["c"]).all()


class InOrder(io.RawIOBase):
    """A file that is only appended to, as the archives of torch.save are written."""

    def __init__(self, path):
        self.file = open(path, "wb", buffering=0)

    def writable(self):
        return True

    def seekable(self):
        return False

    def write(self, data):
        return self.file.write(data)

    def close(self):
        self.file.close()
        super().close()


def test_archives_written_in_order_are_whole(streaming):
    m = streaming()
    data = os.urandom(300_000)
    with InOrder(m.point / "model.pt") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in ("model/data.pkl", "model/byteorder", "model/data/0", "model/version"):
            archive.writestr(name, data)
    with zipfile.ZipFile(m.point / "model.pt") as archive:
        assert archive.testzip() is None and archive.read("model/data/0") == data

    def seeking():
        with zipfile.ZipFile(m.point / "seeking.zip", "w") as archive, archive.open("a", "w") as member:
            member.write(data)

    assert error_of(seeking) == errno.EINVAL


def test_dataset_cache_is_written_beside_and_moved(streaming, api):
    m = streaming()
    # As `datasets` does: a lock, a folder `.incomplete`, files of rows in order, a description, one rename.
    incomplete, done = m.point / "cache/squad/abc.incomplete", m.point / "cache/squad/abc"
    incomplete.mkdir(parents=True)
    lock = os.open(m.point / "cache/squad_abc.lock", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    for part in range(3):
        with open(incomplete / f"train-{part}.arrow", "wb") as file:
            for row in range(500):
                file.write(b"row %d of %d\n" % (row, part))
                file.flush() if row % 100 == 0 else None
    (incomplete / "dataset_info.json").write_text(json.dumps({"rows": 1500}))
    os.rename(incomplete, done)
    os.close(lock)
    assert sorted(os.listdir(done)) == ["dataset_info.json", "train-0.arrow", "train-1.arrow", "train-2.arrow"]
    assert set(remote(streaming, m)) == {f"cache/squad/abc/{name}" for name in os.listdir(done)} | {"cache/squad_abc.lock"}


def test_official_client_keeps_its_cache_in_the_mount(streaming, hub, api, tmp_path):
    m = streaming()
    api.create_bucket("local/source")
    content = {"a.bin": os.urandom(500_000), "d/text": b"text\n" * 1000}
    api.batch_bucket_files("local/source", add=[(data, name) for name, data in content.items()])
    script = """
import sys
from huggingface_hub import HfApi
api = HfApi()
api.download_bucket_files("local/source", [(n, f"{sys.argv[1]}/{n}") for n in ("a.bin", "d/text")], raise_on_missing_files=True)
api.download_bucket_files("local/source", [(n, f"{sys.argv[1]}/{n}") for n in ("a.bin", "d/text")], raise_on_missing_files=True)
"""
    environment = dict(os.environ, HF_HOME=str(m.point / "hf"), HF_ENDPOINT=hub.url, HF_TOKEN="hf_local")
    environment.pop("HF_XET_CACHE", None)
    # It creates its log, closes it and opens it again to append.
    refused = subprocess.run([sys.executable, "-c", "import hf_xet"], env=environment, capture_output=True, text=True, timeout=300)
    assert refused.returncode != 0 and "Operation not permitted" in refused.stderr
    environment["HF_XET_LOG_DEST"] = str(tmp_path / "log")
    done = subprocess.run([sys.executable, "-c", script, m.point / "files"], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert tree(m.point / "files") == content


def test_pip_installs_into_a_folder_of_the_mount(streaming, tmp_path):
    m = streaming()
    wheel = tmp_path / "hello-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in {
            "hello/__init__.py": "def word(): return 'hello'\n",
            "hello-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: hello\nVersion: 1.0\n",
            "hello-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "hello-1.0.dist-info/RECORD": "hello/__init__.py,,\nhello-1.0.dist-info/METADATA,,\nhello-1.0.dist-info/WHEEL,,\nhello-1.0.dist-info/RECORD,,\n",
        }.items():
            archive.writestr(name, data)
    run(sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "-q", "--target", m.point / "packages", wheel)
    done = run(sys.executable, "-c", "import hello; print(hello.word())", env=dict(os.environ, PYTHONPATH=str(m.point / "packages")))
    assert done.stdout == "hello\n"
    assert "packages/hello/__init__.py" in remote(streaming, m)


def test_git_clones(streaming, tmp_path):
    m = streaming()
    source = tmp_path / "source"

    def git(*arguments, cwd=tmp_path):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.fileMode=false"]
        return run("git", *identity, *arguments, cwd=cwd).stdout

    git("init", "-q", "-b", "main", source)
    for index in range(20):
        (source / f"f{index}").write_text(f"{index}\n" * 100)
    git("add", ".", cwd=source)
    git("commit", "-qm", "first", cwd=source)
    git("clone", "-q", f"file://{source}", m.point / "clone")
    assert git("status", "--porcelain", cwd=m.point / "clone") == ""
    git("fsck", "--strict", cwd=m.point / "clone")
    settled(m)
    other = streaming("other")
    git("fsck", "--strict", cwd=other.point / "clone")
    assert (other.point / "clone/f1").read_text() == "1\n" * 100
    # It appends to the log of the branch.
    (m.point / "clone/f1").write_text("changed\n")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    refused = run("git", *identity, "commit", "-qam", "second", cwd=m.point / "clone", check=False)
    assert refused.returncode != 0 and "Operation not permitted" in refused.stderr
