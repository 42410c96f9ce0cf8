"""Repositories of the embedded Hub, read by the official Python client, unchanged."""

import hashlib
import json
import os
import random
import shutil
import subprocess

import pytest

from conftest import run, tree, write_tree

LARGE = random.Random(5).randbytes(12 << 20)
FILES = {
    "README.md": b"# A model\n",
    "config.json": b'{"a": 1}\n',
    ".gitattributes": b"*.bin filter=lfs\n",
    "empty": b"",
    "empty.bin": b"",
    "weights/model.safetensors": LARGE,
    "weights/small.bin": b"small, and outside of Git because of its name",
    "weights/deep/er/vocab.txt": b"a\nb\n" * 1000,
    "odd names/#?% +&=ü.txt": "ü".encode() * 50_000,
    "odd names/%2F.bin": random.Random(6).randbytes(70_000),
}
SECOND = {"config.json": b'{"a": 2}\n', "new.txt": b"new\n"}


def put(hub, folder, repository, *options):
    """`hugbucket hub import`; gives what it printed."""
    done = run("hugbucket", "hub", "--dir", hub.directory, "import", folder, repository, "--json", *options)
    return json.loads(done.stdout)


def later(files):
    """The files of the second commit."""
    return {name: data for name, data in {**files, **SECOND}.items() if name != "empty"}


@pytest.fixture
def model(hub, tmp_path):
    """A model with two commits, the first of which has the tag v1; gives both commits."""
    write_tree(tmp_path / "one", FILES)
    write_tree(tmp_path / "two", later(FILES))
    first = put(hub, tmp_path / "one", "local/model", "--tag", "v1")
    second = put(hub, tmp_path / "two", "local/model")
    assert first["new"] and second["new"] and first["commit"] != second["commit"]
    assert (first["files"], first["size"]) == (len(FILES), sum(map(len, FILES.values())))
    return first["commit"], second["commit"]


class Reader:
    """Downloads with a cache of its own. The client reads its default cache and endpoint from the environment once a
    process, which is too early for tests."""

    def __init__(self, api, cache):
        self.api, self.cache = api, cache

    def file(self, repository, name, **options):
        return self.api.hf_hub_download(repository, name, cache_dir=self.cache, **options)

    def read(self, repository, name, **options):
        with open(self.file(repository, name, **options), "rb") as file:
            return file.read()

    def snapshot(self, repository, **options):
        return self.api.snapshot_download(repository, cache_dir=self.cache, **options)


@pytest.fixture
def reader(api, tmp_path):
    return Reader(api, tmp_path / "cache")


def stranger(hub):
    """The official client with a token of another user."""
    from huggingface_hub import HfApi

    run("hugbucket", "hub", "--dir", hub.directory, "user", "add", "eve")
    token = run("hugbucket", "hub", "--dir", hub.directory, "token", "add", "eve").stdout.strip()
    return HfApi(endpoint=hub.url, token=token)


def test_each_file_is_downloaded_byte_for_byte_at_each_revision(reader, model):
    first, second = model
    for revision, files in [(None, later(FILES)), ("v1", FILES), (first, FILES), (second, later(FILES))]:
        for name, data in files.items():
            assert reader.read("local/model", name, revision=revision) == data, (revision, name)
            expected = first if files is FILES else second
            assert f"snapshots/{expected}/" in str(reader.file("local/model", name, revision=revision))


def test_snapshots_hold_exactly_the_files_of_their_revision(reader, model):
    first, second = model
    folder = reader.snapshot("local/model")
    assert tree(folder) == later(FILES)
    assert reader.snapshot("local/model") == folder
    assert reader.snapshot("local/model", local_files_only=True) == folder
    assert tree(reader.snapshot("local/model", revision="v1")) == FILES
    assert tree(reader.snapshot("local/model", revision=first)) == FILES
    assert reader.snapshot("local/model", revision=second) == folder


def test_snapshot_of_patterns_holds_matching_files_only(reader, model):
    folder = reader.snapshot("local/model", allow_patterns=["*.json", "weights/deep/*"])
    assert set(tree(folder)) == {"config.json", "weights/deep/er/vocab.txt"}


def test_file_system_lists_finds_and_reads_with_seeks(hub, model):
    from huggingface_hub import HfFileSystem

    first, _ = model
    files = HfFileSystem(endpoint=hub.url, token="hf_local")
    names = later(FILES)
    assert sorted(files.find("local/model")) == sorted(f"local/model/{name}" for name in names)
    level = {entry["name"]: entry["type"] for entry in files.ls("local/model", detail=True)}
    assert level["local/model/weights"] == "directory" and level["local/model/config.json"] == "file"
    assert len(level) == len({name.split("/")[0] for name in names})
    assert sorted(files.ls("local/model/weights", detail=False)) == [
        f"local/model/weights/{name}" for name in ["deep", "model.safetensors", "small.bin"]
    ]
    info = files.info("local/model/weights/model.safetensors")
    assert (info["size"], info["type"]) == (len(LARGE), "file")
    assert info["lfs"]["sha256"] == hashlib.sha256(LARGE).hexdigest()
    assert files.info("local/model/weights/deep")["type"] == "directory"
    assert files.isdir("local/model/weights") and not files.exists("local/model/nothing")
    with files.open("local/model/weights/model.safetensors", "rb", block_size=1 << 16) as file:
        file.seek(5_000_000)
        assert file.read(100) == LARGE[5_000_000:5_000_100]
        file.seek(-7, 2)
        assert file.read() == LARGE[-7:]
        file.seek(3)
        assert file.read(200_000) == LARGE[3:200_003]
    for name, data in names.items():
        assert files.cat_file(f"local/model/{name}") == data, name
    assert files.cat_file("local/model@v1/config.json") == FILES["config.json"]
    assert files.cat_file(f"local/model@{first}/config.json") == FILES["config.json"]
    with pytest.raises(FileNotFoundError):
        files.cat_file("local/model/nothing")


def test_file_system_names_last_commit_of_each_entry(hub, model):
    from huggingface_hub import HfFileSystem

    first, second = model
    files = HfFileSystem(endpoint=hub.url, token="hf_local")
    last = {e["name"].split("/", 2)[2]: e["last_commit"].oid for e in files.ls("local/model", detail=True, expand_info=True)}
    assert (last["config.json"], last["new.txt"]) == (second, second)
    assert (last["README.md"], last["weights"]) == (first, first)
    # Of the root, the client takes the last commit of the list, which is the oldest one.
    assert files.info("local/model", expand_info=True)["last_commit"].oid == first


def test_listings_agree_with_git(api, model, tmp_path):
    first, second = model
    assert sorted(api.list_repo_files("local/model")) == sorted(later(FILES))
    assert sorted(api.list_repo_files("local/model", revision="v1")) == sorted(FILES)
    listed = {e.path: e for e in api.list_repo_tree("local/model", recursive=True, expand=True)}
    names = later(FILES)
    folders = {name.rsplit("/", n)[0] for name in names for n in range(1, name.count("/") + 1)}
    assert set(listed) == set(names) | folders
    for name, data in names.items():
        entry = listed[name]
        assert (entry.size, entry.last_commit.oid) == (len(data), second if name in SECOND else first)
        assert entry.last_commit.title.startswith("Import ")
        if entry.xet_hash is None:
            expected = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        else:
            sha256 = hashlib.sha256(data).hexdigest()
            assert (entry.lfs.sha256, entry.lfs.size) == (sha256, len(data))
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n".encode()
            assert entry.lfs.pointer_size == len(pointer)
            expected = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()
        assert entry.blob_id == expected, name
    assert {name for name in names if listed[name].xet_hash} == {
        "weights/model.safetensors", "weights/small.bin", "odd names/%2F.bin",
    }
    level = sorted(e.path for e in api.list_repo_tree("local/model", "weights"))
    assert level == ["weights/deep", "weights/model.safetensors", "weights/small.bin"]
    paths = ["config.json", "weights", "nothing", "odd names/#?% +&=ü.txt"]
    found = api.get_paths_info("local/model", paths, expand=True)
    assert [e.path for e in found] == ["config.json", "weights", "odd names/#?% +&=ü.txt"]
    assert [e.last_commit.oid for e in found] == [second, first, first]


def test_description_names_commit_files_and_refs(api, model):
    first, second = model
    info = api.repo_info("local/model", files_metadata=True)
    assert (info.id, info.sha, info.private, info.gated, info.author) == ("local/model", second, False, False, "local")
    sizes = {s.rfilename: s.size for s in info.siblings}
    assert sizes == {name: len(data) for name, data in later(FILES).items()}
    large = next(s for s in info.siblings if s.rfilename == "weights/model.safetensors")
    assert large.lfs.sha256 == hashlib.sha256(LARGE).hexdigest()
    assert api.repo_info("local/model", revision="v1").sha == first
    assert api.repo_info("local/model", revision="refs/tags/v1").sha == first
    assert api.repo_info("local/model", revision=first[:7]).sha == first
    assert api.model_info("local/model", expand=["sha"]).sha == second
    refs = api.list_repo_refs("local/model", include_pull_requests=True)
    assert [(r.name, r.ref, r.target_commit) for r in refs.branches] == [("main", "refs/heads/main", second)]
    assert [(r.name, r.ref, r.target_commit) for r in refs.tags] == [("v1", "refs/tags/v1", first)]
    commits = api.list_repo_commits("local/model")
    assert [c.commit_id for c in commits] == [second, first]
    assert commits[0].created_at >= commits[1].created_at and commits[0].authors == ["hugbucket"]


def test_missing_things_are_told_apart(api, reader, model):
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    with pytest.raises(RepositoryNotFoundError):
        reader.file("local/nothing", "config.json")
    with pytest.raises(RepositoryNotFoundError):
        api.repo_info("local/model", repo_type="dataset")
    with pytest.raises(RevisionNotFoundError):
        reader.file("local/model", "config.json", revision="v2")
    with pytest.raises(RevisionNotFoundError):
        api.repo_info("local/model", revision="refs/pr/1")
    for name in ["nothing", "weights", "weights/deep/", "config.json/x"]:
        with pytest.raises(EntryNotFoundError):
            reader.file("local/model", name)
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("local/model", "nothing"))
    assert api.file_exists("local/model", "config.json") and not api.file_exists("local/model", "nothing")
    assert api.revision_exists("local/model", "v1") and not api.revision_exists("local/model", "v2")


def test_private_repository_is_seen_by_its_owner_only(api, reader, hub, tmp_path):
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    write_tree(tmp_path / "one", {"a.txt": b"a", "b.bin": b"b" * 1000})
    put(hub, tmp_path / "one", "local/secret", "--private")
    assert api.repo_info("local/secret").private is True
    for name, data in [("a.txt", b"a"), ("b.bin", b"b" * 1000)]:
        assert reader.read("local/secret", name) == data
    for other in [HfApi(endpoint=hub.url, token=False), stranger(hub)]:
        assert not other.repo_exists("local/secret")
        for call in [other.repo_info, other.list_repo_refs, other.list_repo_files]:
            with pytest.raises(RepositoryNotFoundError):
                call("local/secret")
        with pytest.raises(RepositoryNotFoundError):
            Reader(other, tmp_path / "other").file("local/secret", "a.txt")


def test_gated_repository_shows_strangers_its_description_only(reader, hub, tmp_path):
    from huggingface_hub.errors import GatedRepoError

    write_tree(tmp_path / "one", {"a.txt": b"a"})
    commit = put(hub, tmp_path / "one", "local/gated", "--gated")["commit"]
    other = stranger(hub)
    assert (other.repo_info("local/gated").gated, other.repo_info("local/gated", revision="main").sha) == ("manual", commit)
    for call in [other.list_repo_refs, other.list_repo_commits, lambda id: list(other.list_repo_tree(id))]:
        with pytest.raises(GatedRepoError):
            call("local/gated")
    strange = Reader(other, tmp_path / "other")
    with pytest.raises(GatedRepoError):
        other.get_paths_info("local/gated", ["a.txt"])
    with pytest.raises(GatedRepoError):
        strange.snapshot("local/gated")
    with pytest.raises(GatedRepoError):
        strange.file("local/gated", "a.txt")
    assert reader.read("local/gated", "a.txt") == b"a"


def test_datasets_spaces_and_short_names_are_repositories_of_their_own(api, reader, hub, tmp_path):
    kinds = [("model", "local/same"), ("dataset", "datasets/local/same"), ("space", "spaces/local/same"), ("model", "gpt2")]
    for number, (kind, name) in enumerate(kinds):
        files = {"which.txt": name.encode(), "data/picture.png": b"%d" % number * 5000}
        write_tree(tmp_path / str(number), files)
        commit = put(hub, tmp_path / str(number), name)["commit"]
        plain = name.removeprefix(f"{kind}s/")
        assert tree(reader.snapshot(plain, repo_type=kind)) == files
        info = api.repo_info(plain, repo_type=kind)
        assert (info.id, info.sha) == (plain, commit)
        assert reader.read(plain, "which.txt", repo_type=kind) == name.encode()
        [picture] = api.get_paths_info(plain, ["data/picture.png"], repo_type=kind)
        assert (picture.xet_hash is not None) == (kind == "dataset")
    assert list(api.list_buckets()) == []


def test_import_of_same_files_makes_no_commit(api, hub, tmp_path):
    write_tree(tmp_path / "one", {"a.txt": b"a", "b.bin": b"b"})
    first = put(hub, tmp_path / "one", "local/model")
    again = put(hub, tmp_path / "one", "local/model", "--tag", "v1")
    assert (again["new"], again["commit"]) == (False, first["commit"])
    assert [t.target_commit for t in api.list_repo_refs("local/model").tags] == [first["commit"]]
    branch = put(hub, tmp_path / "one", "local/model", "--revision", "dev/x")
    assert branch["new"] in (True, False)
    assert sorted(b.name for b in api.list_repo_refs("local/model").branches) == ["dev/x", "main"]
    assert api.repo_info("local/model", revision="dev/x").sha == branch["commit"]
    text = run("hugbucket", "hub", "--dir", hub.directory, "import", tmp_path / "one", "local/model")
    assert text.stdout.strip() == first["commit"] and "nothing new" in text.stderr


@pytest.mark.skipif(not shutil.which("git"), reason="no git here")
def test_tree_id_is_that_of_git(api, hub, tmp_path):
    files = {"a.txt": b"a\n", "a-b": b"1", "a/x": b"2", "a0": b"3", "d/e/f": b"", "ü/#?%": b"4"}
    folder = tmp_path / "one"
    write_tree(folder, files)
    (folder / "a-b").chmod(0o755)
    put(hub, folder, "local/model")
    git = lambda *words: subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, check=True).stdout
    git("init", "--quiet")
    git("add", "--all")
    root = git("write-tree").strip()
    expected = {}
    for line in git("ls-tree", "-r", "-t", "-z", root).split("\0")[:-1]:
        words, path = line.split("\t")
        expected[path] = words.split(" ")[2]
    listed = {e.path: getattr(e, "blob_id", None) or e.tree_id for e in api.list_repo_tree("local/model", recursive=True)}
    assert listed == expected
    [commit] = api.list_repo_commits("local/model")
    stamp = f"{int(commit.created_at.timestamp())} +0000"
    names = {f"GIT_{who}_{what}": value for who in ["AUTHOR", "COMMITTER"] for what, value in [
        ("NAME", "hugbucket"), ("EMAIL", "hugbucket@localhost"), ("DATE", stamp)]}
    made = subprocess.run(["git", "-C", folder, "commit-tree", root, "-m", commit.title], env={**os.environ, **names},
                          capture_output=True, text=True, check=True)
    assert made.stdout.strip() == commit.commit_id
    # The folder has a .git now: it is left out, so nothing has changed.
    assert put(hub, folder, "local/model")["new"] is False


def test_files_of_repositories_are_copied_into_a_bucket(api, model):
    api.create_bucket("local/copies")
    for name in ["weights/model.safetensors", "config.json"]:
        api.copy_files(f"hf://local/model/{name}", f"hf://buckets/local/copies/{name}")
    listed = {entry.path: entry.size for entry in api.list_bucket_tree("local/copies", recursive=True)}
    assert listed == {"weights/model.safetensors": len(LARGE), "config.json": len(SECOND["config.json"])}


def test_folder_that_no_repository_can_hold_changes_nothing(api, hub, tmp_path):
    folder = tmp_path / "one"
    write_tree(folder, {"a.txt": b"a"})
    commit = put(hub, folder, "local/model")["commit"]
    (folder / "more.txt").write_bytes(b"more")
    (folder / "link").symlink_to("/etc/hostname")
    refused = run("hugbucket", "hub", "--dir", hub.directory, "import", folder, "local/model", check=False)
    assert refused.returncode == 2 and "leads out of the folder" in refused.stderr, refused.stderr
    assert api.repo_info("local/model").sha == commit
    assert api.list_repo_files("local/model") == ["a.txt"]
    refused = run("hugbucket", "hub", "--dir", hub.directory, "import", folder, "local/new", check=False)
    assert refused.returncode == 2 and not api.repo_exists("local/new")
    for repository in ["a/b/c", "models/x", "local/tree"]:
        refused = run("hugbucket", "hub", "--dir", hub.directory, "import", folder, repository, check=False)
        assert refused.returncode == 2 and "invalid repository id" in refused.stderr
    refused = run("hugbucket", "hub", "--dir", hub.directory, "import", tmp_path / "no", "local/model", check=False)
    assert refused.returncode == 3
