"""Mounts of repositories, which the embedded Hub serves: plain ones, and those that hold encrypted files."""

import json
import os
import random

import pytest

from conftest import Mount, eventually, needs_fuse, run, tree, write_tree

pytestmark = needs_fuse

LARGE = random.Random(5).randbytes(9 << 20)
FILES = {
    "README.md": b"# A model\n",
    "empty": b"",
    "empty.bin": b"",
    "weights/model.safetensors": LARGE,
    "weights/vocab.txt": b"a\nb\n" * 200_000,
    "weights/table.csv": b"1,2,3\n" * 900_000,
    "odd names/#?% +&=ü": "ü".encode() * 50_000,
    "odd names/%2F.bin": LARGE[:70_000],
}


def put(hub, folder, repository, *options):
    """Imports a folder into a repository. Returns the commit id."""
    command = ["hugbucket", "hub", "--dir", hub.directory, "import", folder, repository, "--json", *options]
    return json.loads(run(*command).stdout)["commit"]


@pytest.fixture
def folder(tmp_path):
    write_tree(tmp_path / "files", FILES)
    return tmp_path / "files"


@pytest.fixture
def mount(tmp_path, home):
    """Mounts repositories, and ends the mounts that a test left."""
    mounts = []

    def make(source, *options, name="mnt", check=True):
        # Only a repository has a revision, so that option comes last.
        after = [word for option in options for word in (option if isinstance(option, tuple) else ())]
        before = [option for option in options if not isinstance(option, tuple)]
        mounts.append(Mount(tmp_path / name, *before, source=source, kind="repo", after=after, check=check))
        return mounts[-1]

    yield make
    for one in reversed(mounts):
        if os.path.ismount(one.point):
            run("hf-mount", "stop", "--force", one.point, check=False)


@pytest.mark.parametrize("repository", ["local/model", "datasets/local/data", "spaces/local/space", "gpt2"])
def test_mount_shows_what_a_snapshot_holds(hub, api, mount, folder, tmp_path, repository):
    kind, _, name = repository.rpartition("s/local/")
    commit = put(hub, folder, repository)
    one = mount(repository)
    assert tree(one.point) == FILES
    if repository != "gpt2":
        options = {"repo_type": kind, "repo_id": f"local/{name}"} if kind else {"repo_id": repository}
        assert tree(api.snapshot_download(**options, cache_dir=tmp_path / "cache")) == FILES
    status = one.status()
    assert (status["source"], status["pending_files"], status["last_poll"] is not None) == (repository, 0, True)
    # By commit, and a folder of it.
    two = mount(f"{repository}/weights" if "/" in repository else repository, ("--revision", commit), name="two")
    expected = {name.removeprefix("weights/"): body for name, body in FILES.items() if name.startswith("weights/")}
    assert tree(two.point) == (expected if "/" in repository else FILES)
    assert two.status()["source"].endswith(f" at {commit}")


def test_every_change_is_refused(hub, mount, folder):
    put(hub, folder, "local/model")
    point = mount("local/model").point
    for change in (
        lambda: (point / "new").write_bytes(b"x"),
        lambda: (point / "README.md").write_bytes(b"x"),
        lambda: open(point / "README.md", "ab"),
        lambda: (point / "README.md").unlink(),
        lambda: (point / "README.md").rename(point / "moved"),
        lambda: (point / "folder").mkdir(),
        lambda: (point / "weights").rename(point / "moved"),
        lambda: os.truncate(point / "README.md", 1),
        lambda: (point / "README.md").chmod(0o600),
        lambda: os.symlink("x", point / "link"),
    ):
        with pytest.raises(OSError, match="Read-only file system"):
            change()
    assert tree(point) == FILES


def test_parts_of_files_are_read_wherever_they_are_stored(hub, mount, folder):
    put(hub, folder, "local/model")
    point, choice = mount("local/model", "--no-disk-cache").point, random.Random(1)
    for name, body in FILES.items():
        with open(point / name, "rb", buffering=0) as file:
            for _ in range(30):
                at, size = choice.randrange(len(body) + 2), choice.choice([1, 4096, 100_000, 3 << 20])
                file.seek(at)
                read = b""
                while part := file.read(size - len(read)):
                    read += part
                assert read == body[at : at + size], (name, at, size)
            file.seek(-1, os.SEEK_END) if body else None
            assert file.read() == body[-1:]


def test_what_was_read_is_kept_on_disk(hub, mount, folder, tmp_path):
    put(hub, folder, "local/model")
    one = mount("local/model", "--cache-dir", tmp_path / "cache", "--poll-interval-secs", 0)
    assert tree(one.point) == FILES
    one.stop()
    one = mount("local/model", "--cache-dir", tmp_path / "cache", "--metadata-ttl-ms", 3_600_000)
    names = {path: path.stat().st_size for path in one.point.rglob("*") if path.is_file()}
    hub.stop()
    try:
        # Git blobs and chunks of Xet alike, of the parts that were read.
        assert {str(path.relative_to(one.point)): path.stat().st_size for path in names} == {
            name: len(body) for name, body in FILES.items()
        }
        assert (one.point / "README.md").read_bytes() == FILES["README.md"]
        assert (one.point / "weights/table.csv").read_bytes() == FILES["weights/table.csv"]
    finally:
        hub.start()


def test_new_commit_appears_by_poll_and_open_files_keep_theirs(hub, mount, folder, tmp_path):
    first = put(hub, folder, "local/model", "--tag", "v1")
    here = mount("local/model", "--poll-interval-secs", 1, "--metadata-ttl-ms", 100)
    tagged = mount("local/model", "--poll-interval-secs", 1, ("--revision", "v1"), name="tagged")
    pinned = mount("local/model", "--poll-interval-secs", 1, ("--revision", first), name="pinned")
    assert tree(here.point) == FILES
    changed = {**FILES, "weights/model.safetensors": LARGE[::-1], "README.md": b"# Another\n", "new/file": b"new"}
    del changed["empty"]
    write_tree(tmp_path / "changed", changed)
    with open(here.point / "weights/model.safetensors", "rb") as large, open(here.point / "README.md", "rb") as small:
        large.read(1000)
        put(hub, tmp_path / "changed", "local/model")
        eventually(lambda: (here.point / "new/file").exists(), 10)
        eventually(lambda: tree(here.point) == changed, 5)
        assert large.read() == LARGE[1000:] and small.read() == FILES["README.md"]
    assert tree(tagged.point) == FILES and tree(pinned.point) == FILES


def test_key_opens_the_encrypted_files_of_a_repository(hub, mount, folder, key, tmp_path):
    run("hfcrypt", "encrypt", "--key-file", key, folder, tmp_path / "sealed")
    (tmp_path / "sealed/README.md").write_bytes(b"plaintext beside it\n")
    put(hub, tmp_path / "sealed", "local/secret")
    plain = mount("local/secret", name="plain")
    assert sorted(os.listdir(plain.point)) == [".enc", "README.md"]
    one = mount("local/secret", "--encryption-key-file", key)
    assert tree(one.point) == FILES, "of two files of one name the encrypted one is shown"
    only = mount("local/secret/weights", "--encryption-key-file", key, "--encrypted-only", name="only")
    assert sorted(os.listdir(only.point)) == ["model.safetensors", "table.csv", "vocab.txt"]
    assert one.status()["key_id"] is not None
    run("hfcrypt", "keygen", tmp_path / "other-key")
    wrong = mount("local/secret", "--encryption-key-file", tmp_path / "other-key", name="wrong", check=False)
    assert wrong.started.returncode == 12 and "this key opens nothing" in wrong.started.stderr


def test_private_and_gated_repositories_are_for_those_who_may(hub, mount, folder, monkeypatch):
    put(hub, folder, "local/private", "--private")
    put(hub, folder, "local/gated", "--gated")
    for name in ("private", "gated"):
        one = mount(f"local/{name}", name=name)
        assert tree(one.point) == FILES
    run("hugbucket", "hub", "--dir", hub.directory, "user", "add", "eve")
    token = run("hugbucket", "hub", "--dir", hub.directory, "token", "add", "eve").stdout.strip()
    for user in (token, None):
        monkeypatch.setenv("HF_TOKEN", user) if user else monkeypatch.delenv("HF_TOKEN")
        private = mount("local/private", name="no", check=False).started
        assert private.returncode == 3 and "not found" in private.stderr and "private" in private.stderr
        gated = mount("local/gated", name="no", check=False).started
        assert gated.returncode == 4 and "restricted" in gated.stderr, gated.stderr


def test_sources_that_cannot_be_mounted_are_named(hub, api, mount, folder):
    put(hub, folder, "datasets/local/data")
    put(hub, folder, "local/model")
    api.create_bucket("local/bucket")
    for source, options, code, words in [
        ("local/none", [], 3, "model local/none not found"),
        ("local/data", [], 3, "write datasets/local/data"),
        ("datasets/local/model", [], 3, "a model has no prefix"),
        ("local/bucket", [], 3, "mount it with `bucket local/bucket`"),
        ("hf://buckets/local/bucket", [], 3, "mount it with `bucket local/bucket`"),
        ("local/model", [("--revision", "none")], 3, 'has no revision "none"'),
        ("local/model", [("--revision", "")], 2, "--revision is empty"),
        ("local/model/none", [], 3, "the folder in the source does not exist"),
        ("local/model/README.md", [], 3, "is a file, not a folder"),
        ("local/mo del", [], 2, "invalid repository"),
        ("local/model", ["--create"], 2, "only read"),
    ]:
        done = mount(source, *options, name="none", check=False).started
        assert done.returncode == code and words in done.stderr, (source, done.stderr)
    done = run("hf-mount", "start", "bucket", "local/model", mount("local/model").point.parent / "x", check=False)
    assert done.returncode == 3 and "mount it with `repo local/model`" in done.stderr, done.stderr
