"""Overlay mounts: a writable local layer over a remote that is never changed, in each mode and on each source."""

import errno
import os
import signal
import subprocess
import time

import pytest

from conftest import eventually, needs_fuse, run, tree, write_tree

pytestmark = needs_fuse

REMOTE = {"a": b"remote a", "both": b"remote both", "d/x": b"remote x", "d/deep/y": b"remote y" * 50_000}
LOCAL = {"both": b"local both", "l": b"local l", "d/z": b"local z"}
MERGED = {**REMOTE, **LOCAL}
CANARY = b"plaintext canary of an overlay "


class Source:
    """A remote in one mode, and the way to mount it with `--overlay`."""

    def __init__(self, hub, api, mount, kind, mode, key, tmp_path):
        self.api, self.make, self.kind, self.mode, self.tmp_path, self.hub = api, mount, kind, mode, tmp_path, hub
        self.options = ["--encryption-key-file", key] if mode != "plain" else []
        if kind == "bucket":
            filled = mount("--create", "--advanced-writes", *self.options, name="filler")
            write_tree(filled.point, REMOTE)
            filled.stop()
        else:
            write_tree(tmp_path / "files", REMOTE)
            folder = tmp_path / "files"
            if self.options:
                run("hfcrypt", "encrypt", "--key-file", key, folder, tmp_path / "encrypted")
                folder = tmp_path / "encrypted"
            run("hugbucket", "hub", "--dir", hub.directory, "import", folder, "local/test", "--json")
        self.before = self.stored()

    def stored(self):
        """The objects of the remote with their hashes."""
        if self.kind == "bucket":
            return sorted((f.path, f.size, f.xet_hash) for f in self.api.list_bucket_tree("local/test", recursive=True))
        files = self.api.list_repo_tree("local/test", recursive=True)
        return sorted((f.path, getattr(f, "blob_id", None)) for f in files)

    def mount(self, *options, name="mnt", **named):
        plaintext = ["--overlay-plaintext"] if self.mode == "plaintext" else []
        return self.make("--overlay", *plaintext, *self.options, *options, name=name, kind=self.kind, **named)

    @property
    def is_sealed(self):
        return self.mode == "sealed"

    def check_unchanged(self):
        assert self.stored() == self.before


@pytest.fixture(params=[(kind, mode) for kind in ("bucket", "repo") for mode in ("plain", "plaintext", "sealed")], ids="-".join)
def source(request, hub, api, mount, key, tmp_path):
    kind, mode = request.param
    source = Source(hub, api, mount, kind, mode, key, tmp_path)
    write_tree(tmp_path / "mnt", LOCAL)
    yield source
    source.check_unchanged()


@pytest.fixture
def plain(hub, api, mount, key, tmp_path):
    source = Source(hub, api, mount, "bucket", "plain", key, tmp_path)
    yield source
    source.check_unchanged()


def refused(action, number=errno.EPERM):
    with pytest.raises(OSError) as raised:
        action()
    assert raised.value.errno == number, raised.value


def kill(mounted):
    pid = mounted.pid()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not os.path.exists(f"/proc/{pid}"))


def test_remote_and_folder_are_read_and_new_files_outlive_stop_and_kill(source):
    m = source.mount()
    assert tree(m.point) == MERGED
    new = {"new": b"1", "d/deep/new": b"2" * 200_000, "own/folder/file": b"3"}
    write_tree(m.point, new)
    (m.point / "own/empty").mkdir()
    assert tree(m.point) == {**MERGED, **new}
    run("hf-mount", "flush", m.point)
    status = run("hf-mount", "status").stdout
    assert "fuse, overlay, pid" in status and m.status()["pending_files"] == 0
    assert ("3 files are kept sealed in the local layer" in status) == source.is_sealed
    m.stop()
    # Where nothing is mounted, the folder has the plaintext, unless it is sealed.
    assert tree(m.point) == (LOCAL if source.is_sealed else {**LOCAL, **new})
    m = source.mount()
    assert tree(m.point) == {**MERGED, **new} and os.listdir(m.point / "own/empty") == []
    write_tree(m.point, {"own/late": b"4"})
    kill(m)
    m = source.mount()
    assert tree(m.point) == {**MERGED, **new, "own/late": b"4"}
    source.check_unchanged()
    m.stop()


def test_each_change_of_the_remote_is_refused(source):
    m = source.mount()
    a, deep, own = m.point / "a", m.point / "d/deep", m.point / "own"
    own.write_bytes(b"own")
    for change in (
        lambda: a.write_bytes(b"x"),
        lambda: open(a, "r+b"),
        lambda: open(a, "ab"),
        lambda: os.truncate(a, 1),
        lambda: a.unlink(),
        lambda: a.chmod(0o600),
        lambda: os.utime(a),
        lambda: a.rename(m.point / "b"),
        lambda: own.rename(a),
        lambda: deep.rename(m.point / "deep"),
        lambda: deep.rmdir(),
        lambda: (m.point / "d").rename(m.point / "e"),
        lambda: os.symlink("a", m.point / "link"),
        lambda: os.link(own, m.point / "link"),
        lambda: os.mkfifo(m.point / "pipe"),
    ):
        refused(change)
    refused(lambda: os.open(a, os.O_CREAT | os.O_EXCL | os.O_WRONLY), errno.EEXIST)
    refused(lambda: deep.mkdir(), errno.EEXIST)
    os.close(os.open(a, os.O_CREAT | os.O_RDONLY))
    assert tree(m.point) == {**MERGED, "own": b"own"}


def test_each_change_of_the_local_layer_works(source):
    m = source.mount()
    own = m.point / "own"
    own.mkdir()
    (own / "file").write_bytes(b"content")
    with open(own / "file", "ab") as file:
        file.write(b" more")
    with open(own / "file", "r+b") as file:
        file.seek(2)
        file.write(b"N")
        os.fsync(file.fileno())
    assert (own / "file").read_bytes() == b"coNtent more"
    os.truncate(own / "file", 4)
    (own / "file").chmod(0o711)
    os.utime(own / "file", (1_000_000_000, 1_000_000_000))
    stat = (own / "file").stat()
    assert (stat.st_size, stat.st_mode & 0o777, stat.st_mtime) == (4, 0o711, 1_000_000_000)
    (own / "file").rename(m.point / "d/deep/moved")
    own.rename(m.point / "d/deep/own")
    assert (m.point / "d/deep/moved").read_bytes() == b"coNt"
    (m.point / "d/deep/moved").unlink()
    (m.point / "d/deep/own").rmdir()
    assert tree(m.point) == MERGED


def test_files_of_the_folder_are_changed_only_without_seal(source):
    m = source.mount()
    for change in (
        lambda: (m.point / "l").write_bytes(b"changed"),
        lambda: (m.point / "l").chmod(0o600),
        lambda: (m.point / "l").rename(m.point / "d/l"),
        lambda: (m.point / "d/l").unlink(),
        lambda: (m.point / "both").unlink(),
    ):
        if source.is_sealed:
            with pytest.raises(OSError):
                change()
        else:
            change()
    if source.is_sealed:
        assert tree(m.point) == MERGED
    else:
        # What the local file has hidden shows again.
        expected = {**MERGED, "both": REMOTE["both"]}
        del expected["l"]
        assert tree(m.point) == expected


def test_symbolic_links_of_the_folder_are_hidden_and_not_followed(source, tmp_path):
    outside = tmp_path / "outside"
    write_tree(outside, {"secret": b"secret"})
    for name, target in [("out", outside), ("file", outside / "secret"), ("inside", "l"), ("d/deep", outside)]:
        os.symlink(target, tmp_path / "mnt" / name)
    m = source.mount()
    assert tree(m.point) == MERGED and sorted(os.listdir(m.point)) == ["a", "both", "d", "l"]
    refused(lambda: (m.point / "out/secret").read_bytes(), errno.ENOENT)
    refused(lambda: (m.point / "file").read_bytes(), errno.ENOENT)
    if not source.is_sealed:
        refused(lambda: (m.point / "file").write_bytes(b"x"))
        refused(lambda: (m.point / "d/deep/new").write_bytes(b"x"))
    m.stop()
    assert tree(outside) == {"secret": b"secret"}
    assert os.readlink(m.point / "inside") == "l"


def shell(folder, script):
    subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=folder, check=True, timeout=300, capture_output=True)


def test_everyday_programs_work_in_the_local_layer(source):
    m = source.mount()
    shell(
        m.point,
        """
        mkdir -p work/a/b/c
        cp -r d work/copy
        cp -p a work/a/copy
        echo one two > work/text
        sed -i s/one/three/ work/text
        mv work/text work/a/b/text
        tar -cf work/all.tar d work/a
        mkdir work/out
        tar -xf work/all.tar -C work/out
        diff -r d work/out/d
        diff -r work/a work/out/work/a
        cat d/deep/y > work/y && cmp work/y d/deep/y
        rm -r work/out work/copy
        touch work/new && rm work/new
        test "$(find . -type f | wc -l)" = 10
        """,
    )
    assert (m.point / "work/a/b/text").read_bytes() == b"three two\n"
    shell(m.point, "rm -r work")
    assert tree(m.point) == MERGED


def test_git_repository_in_the_local_layer_is_whole(plain):
    m = plain.mount()
    git = "git -c user.name=a -c user.email=a@b -c init.defaultBranch=main -c core.fsync=none"
    shell(
        m.point,
        f"{git} init -q code && cd code && for n in $(seq 50); do echo $n > file$n; done && {git} add . && {git} commit -qm first"
        f" && {git} checkout -qb other && rm file1 && {git} commit -qam second && {git} checkout -q main && {git} gc -q"
        f" && {git} fsck --full --strict && test -z \"$({git} status --porcelain)\"",
    )
    m.stop()
    m = plain.mount()
    shell(m.point / "code", f"{git} fsck --full --strict && test $({git} ls-files | wc -l) = 50")


def test_no_plaintext_of_a_sealed_layer_reaches_a_disk(hub, api, mount, key, tmp_path, home):
    sealed = Source(hub, api, mount, "bucket", "sealed", key, tmp_path)
    m = sealed.mount("-v", "-v")
    name = "canaryname"
    write_tree(m.point, {f"{name}/{name}{n}": CANARY * 3000 for n in range(5)})
    (m.point / name / f"{name}0").rename(m.point / f"{name}moved")
    with open(m.point / f"{name}moved", "ab") as file:
        file.write(CANARY)
        os.fsync(file.fileno())
    time.sleep(1.5)
    kill(m)
    m = sealed.mount()
    assert (m.point / f"{name}moved").read_bytes() == CANARY * 3001
    m.stop()
    searched = 0
    for folder in (home, tmp_path / "mnt", hub.directory):
        for path in folder.rglob("*"):
            assert name not in path.name
            if path.is_file():
                data, searched = path.read_bytes(), searched + 1
                assert CANARY not in data and name.encode() not in data, path
    assert searched > 10
    assert os.listdir(tmp_path / "mnt") == []
    sealed.check_unchanged()


def test_artifacts_of_a_producer_appear_at_all_consumers_and_theirs_stay_local(hub, api, mount):
    """The compile cache of the public program's manual: one producer, consumers on the same machine."""
    fast = ["--poll-interval-secs", "1", "--metadata-ttl-ms", "100"]
    producer = mount("--create", "--advanced-writes", "--flush-debounce-ms", "100", name="producer")
    consumers = [mount("--overlay", *fast, name=f"consumer{n}") for n in range(2)]
    made = {}
    for number in range(5):
        for n, consumer in enumerate(consumers):
            # It compiles what the cache lacks, in a folder that the producer fills too.
            write_tree(consumer.point, {f"cache/own{number}": b"consumer %d" % n})
        made[f"cache/hash{number}/kernel.so"] = os.urandom(100_000)
        write_tree(producer.point, made)
        run("hf-mount", "flush", producer.point)
        for consumer in consumers:
            eventually(lambda: (consumer.point / f"cache/hash{number}/kernel.so").exists(), 15)
            for path, data in made.items():
                assert (consumer.point / path).read_bytes() == data
    for n, consumer in enumerate(consumers):
        own = {f"cache/own{number}": b"consumer %d" % n for number in range(5)}
        eventually(lambda: tree(consumer.point) == {**made, **own}, 15)
        refused(lambda: (consumer.point / "cache/hash0/kernel.so").unlink())
        consumer.stop()
        assert tree(consumer.point) == own
    producer.stop()
    assert {f.path for f in api.list_bucket_tree("local/test", recursive=True) if hasattr(f, "xet_hash")} == set(made)


def test_wrong_options_and_folders_are_refused_in_one_sentence(plain, key, tmp_path, home):
    def start(*options, code, words, name="none"):
        done = plain.make(*options, name=name, check=False).started
        assert done.returncode == code and words in done.stderr, (done.returncode, done.stderr)
        assert done.stderr.startswith("error: "), done.stderr

    start("--overlay", "--read-only", code=2, words="--read-only")
    start("--overlay-plaintext", code=2, words="--overlay")
    start("--overlay", "--create", code=2, words="--create")
    start("--overlay", "--encryption-key-file", key, "--new-key", code=2, words="--new-key")
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").write_bytes(b"x")
    start("--overlay", code=6, words="not a directory", name="file")
    start("--overlay", code=6, words="parent", name="no/parent")
    start("--overlay", "--cache-dir", tmp_path / "full/cache", code=6, words="lies in it", name="full")
    start("--overlay", code=6, words="lies in it", name=home.name)
    write_tree(tmp_path / "full", {"file": b"x"})
    start(code=6, words="--overlay", name="full")
    m = plain.mount()
    start("--overlay", code=6, words="mounted", name="mnt")
    start("--overlay", code=6, words="in another mount", name="mnt/folder")
    m.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a disk read-only, which needs root")
def test_folder_that_cannot_be_written_is_refused(plain, tmp_path):
    point = tmp_path / "disk"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", point], check=True)
    try:
        done = plain.make("--overlay", name="disk/sub", check=False).started
        assert done.returncode == 6, done.stderr
    finally:
        subprocess.run(["umount", point], check=True)


def test_disk_errors_of_the_folder_reach_the_program(plain, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True)
    try:
        m = plain.mount(name="disk/mnt")
        refused(lambda: (m.point / "large").write_bytes(b"x" * (2 << 20)), errno.ENOSPC)
        os.unlink(m.point / "large")
        (m.point / "small").write_bytes(b"x" * 1000)
        m.stop()
        assert tree(disk) == {"mnt/small": b"x" * 1000}
    finally:
        subprocess.run(["umount", disk], check=True)
