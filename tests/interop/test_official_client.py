"""The official Python client, unchanged, against the embedded Hub."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import eventually, run, tree, write_tree

FILES = {
    "a.bin": random.Random(1).randbytes(3_000_000),
    "text/log.txt": b"".join(b"line %d of a log that compresses\n" % i for i in range(60_000)),
    "text/empty": b"",
    "deep/er/one byte": b"x",
    "odd names/#?% +&=ü.bin": random.Random(2).randbytes(70_000),
}


def hf(*arguments):
    """The official command line tool."""
    done = subprocess.run([Path(sys.executable).parent / "hf", *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def upload(api, bucket, files):
    api.batch_bucket_files(bucket, add=[(data, name) for name, data in files.items()])


def download(api, bucket, folder, names):
    api.download_bucket_files(bucket, [(name, folder / name) for name in names], raise_on_missing_files=True)
    return tree(folder)


def keys(api, bucket, **options):
    return sorted(entry.path for entry in api.list_bucket_tree(bucket, recursive=True, **options))


def test_buckets_are_made_listed_changed_moved_and_deleted(api):
    from huggingface_hub.errors import BucketNotFoundError, HfHubHTTPError

    url = api.create_bucket("first", private=True)
    assert url.bucket_id == "local/first"
    with pytest.raises(HfHubHTTPError):
        api.create_bucket("local/first")
    assert api.create_bucket("local/first", exist_ok=True).bucket_id == "local/first"
    api.create_bucket("local/second", visibility="public")
    assert {b.id: b.private for b in api.list_buckets()} == {"local/first": True, "local/second": False}
    assert [b.id for b in api.list_buckets(search="sec")] == ["local/second"]
    api.update_bucket_settings("local/first", private=False)
    assert api.bucket_info("local/first").private is False
    api.move_bucket("local/first", "local/third")
    assert api.bucket_info("local/third").id == "local/third"
    api.delete_bucket("local/second")
    with pytest.raises(BucketNotFoundError):
        api.bucket_info("local/second")
    api.delete_bucket("local/second", missing_ok=True)
    assert api.whoami()["name"] == "local"


def test_what_is_uploaded_is_listed_and_downloaded_byte_for_byte(api, tmp_path):
    api.create_bucket("local/test")
    upload(api, "local/test", FILES)
    assert keys(api, "local/test") == sorted(FILES)
    info = api.bucket_info("local/test")
    assert (info.total_files, info.size) == (len(FILES), sum(map(len, FILES.values())))
    level = api.list_bucket_tree("local/test", recursive=False)
    assert sorted(e.path for e in level) == ["a.bin", "deep", "odd names", "text"]
    # Without the argument the client sends no parameter, and expects every file.
    assert sorted(e.path for e in api.list_bucket_tree("local/test")) == sorted(FILES)
    assert sorted(e.path for e in api.list_bucket_tree("local/test", prefix="text")) == ["text/empty", "text/log.txt"]
    assert {f.path: f.size for f in api.get_bucket_paths_info("local/test", [*FILES, "no"])} == {n: len(d) for n, d in FILES.items()}
    assert download(api, "local/test", tmp_path / "back", FILES) == FILES


def test_a_file_is_replaced_copied_and_removed(api, tmp_path):
    api.create_bucket("local/test")
    upload(api, "local/test", FILES)
    upload(api, "local/test", {"a.bin": b"new"})
    source = next(f for f in api.get_bucket_paths_info("local/test", ["text/log.txt"]))
    api.batch_bucket_files("local/test", copy=[("bucket", "local/test", source.xet_hash, "copy.txt")], delete=["deep/er/one byte"])
    expected = {**FILES, "a.bin": b"new", "copy.txt": FILES["text/log.txt"]}
    del expected["deep/er/one byte"]
    assert keys(api, "local/test") == sorted(expected)
    assert download(api, "local/test", tmp_path / "back", expected) == expected


def test_the_file_system_class_lists_reads_writes_and_removes(api, hub):
    from huggingface_hub import HfFileSystem

    api.create_bucket("local/test")
    upload(api, "local/test", FILES)
    fs = HfFileSystem(endpoint=hub.url, token="hf_local", skip_instance_cache=True)
    root = "hf://buckets/local/test"
    assert sorted(fs.ls(f"{root}/text", detail=False)) == ["buckets/local/test/text/empty", "buckets/local/test/text/log.txt"]
    assert fs.info(f"{root}/a.bin")["size"] == len(FILES["a.bin"])
    with fs.open(f"{root}/a.bin", "rb") as file:
        file.seek(1_000_000)
        assert file.read(5_000) == FILES["a.bin"][1_000_000:1_005_000]
    with fs.open(f"{root}/written", "wb") as file:
        file.write(b"through fsspec")
    assert fs.cat_file(f"{root}/written") == b"through fsspec"
    fs.rm(f"{root}/written")
    assert not fs.exists(f"{root}/written")


def test_sync_goes_both_ways_and_deletes_on_request(api, tmp_path):
    hf("buckets", "create", "local/test")
    local = tmp_path / "local"
    write_tree(local, FILES)
    hf("buckets", "sync", local, "hf://buckets/local/test")
    assert keys(api, "local/test") == sorted(FILES)
    (local / "a.bin").write_bytes(b"changed, and of another size")
    (local / "text/empty").unlink()
    hf("buckets", "sync", local, "hf://buckets/local/test", "--delete")
    hf("buckets", "sync", "hf://buckets/local/test", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(local)
    # Nothing changed: nothing is planned.
    plan = api.sync_bucket(str(local), "hf://buckets/local/test", dry_run=True, quiet=True)
    assert all(op.action == "skip" for op in plan.operations), plan


def test_cp_mv_ls_and_rm_of_the_command_line(api, tmp_path):
    hf("buckets", "create", "local/test")
    (tmp_path / "one").write_bytes(FILES["a.bin"])
    hf("buckets", "cp", tmp_path / "one", "hf://buckets/local/test/dir/one")
    hf("buckets", "cp", "hf://buckets/local/test/dir/one", "hf://buckets/local/test/two")
    hf("buckets", "cp", "hf://buckets/local/test/two", tmp_path / "two")
    assert (tmp_path / "two").read_bytes() == FILES["a.bin"]
    assert "two" in hf("buckets", "ls", "local/test", "-R")
    hf("buckets", "rm", "local/test/two", "--yes")
    hf("buckets", "rm", "local/test/dir", "--recursive", "--yes")
    assert keys(api, "local/test") == []
    hf("buckets", "move", "local/test", "local/renamed")
    assert api.bucket_info("local/renamed").total_files == 0


def test_listings_of_several_pages_are_whole(api):
    api.create_bucket("local/test")
    names = [f"many/{i:05}" for i in range(2_500)]
    api.batch_bucket_files("local/test", add=[(b"same", name) for name in names])
    assert keys(api, "local/test") == names
    assert len(list(api.list_bucket_tree("local/test", prefix="many"))) == len(names)


def test_strangers_see_public_buckets_only(api, hub, tmp_path):
    from huggingface_hub import HfApi
    from huggingface_hub.errors import BucketNotFoundError, HfHubHTTPError

    run("hugbucket", "hub", "--dir", hub.directory, "user", "add", "eve")

    def login(user):
        token = run("hugbucket", "hub", "--dir", hub.directory, "token", "add", user).stdout.strip()
        return HfApi(endpoint=hub.url, token=token)

    with_default_token, api, eve = api, login("local"), login("eve")
    assert with_default_token.whoami()["name"] == "local", "the well-known token is good until it is revoked"
    api.create_bucket("local/private", private=True)
    api.create_bucket("local/public", private=False)
    upload(api, "local/public", {"x": b"open"})
    assert [b.id for b in eve.list_buckets("local")] == ["local/public"]
    assert download(eve, "local/public", tmp_path / "back", ["x"]) == {"x": b"open"}
    for forbidden in (lambda: eve.bucket_info("local/private"), lambda: upload(eve, "local/public", {"x": b"mine"})):
        with pytest.raises((HfHubHTTPError, ConnectionError)):
            forbidden()
    with pytest.raises(HfHubHTTPError):
        HfApi(endpoint=hub.url, token="hf_wrong").whoami()
    with pytest.raises(BucketNotFoundError) as anonymous:
        HfApi(endpoint=hub.url, token=False).bucket_info("local/private")
    assert anonymous.value.response.status_code == 401


def test_new_tokens_leave_the_well_known_one_alone_and_say_so(hub):
    def hugbucket(*arguments):
        return run("hugbucket", "hub", "--dir", hub.directory, "token", *arguments)

    assert "hf_local is still good" in hugbucket("add", "local").stderr
    tokens = json.loads(hugbucket("list", "--json").stdout)["tokens"]
    assert [token["hint"] for token in tokens][0] == "ocal"
    hugbucket("revoke", tokens[0]["id"])
    assert "hf_local" not in hugbucket("add", "local").stderr


def test_a_name_without_a_namespace_is_a_404(api):
    from huggingface_hub.errors import HfHubHTTPError

    for call in (api.bucket_info, api.delete_bucket):
        with pytest.raises(HfHubHTTPError) as missing:
            call("name")
        assert missing.value.response.status_code == 404
    api.delete_bucket("name", missing_ok=True)


def test_a_copy_names_content_that_the_source_has(api):
    from huggingface_hub.errors import HfHubHTTPError

    for name in ("local/from", "local/to"):
        api.create_bucket(name)
    empty = "0" * 64
    with pytest.raises(HfHubHTTPError):
        api.batch_bucket_files("local/to", copy=[("bucket", "local/from", empty, "empty")])
    upload(api, "local/from", {"x": b""})
    api.batch_bucket_files("local/to", copy=[("bucket", "local/from", empty, "empty")])
    assert keys(api, "local/to") == ["empty"]


def test_a_file_system_that_follows_a_bucket_sees_what_others_change(api, hub):
    from huggingface_hub import HfFileSystem
    from huggingface_hub._bucket_live_follow import BUCKET_FOLLOWERS

    api.create_bucket("local/test")
    upload(api, "local/test", {"d/a": b"1"})
    fs = HfFileSystem(endpoint=hub.url, token="hf_local", live_follow=True, skip_instance_cache=True)
    root = "buckets/local/test"

    def listed():
        return sorted(fs.ls(f"{root}/d", detail=False))

    assert listed() == [f"{root}/d/a"]
    (follower, _), = [one for (endpoint, _, _), one in BUCKET_FOLLOWERS.items() if endpoint == hub.url]
    eventually(lambda: follower.subscribed)
    # From here on the listing is cached, and only an event can drop it.
    listed()
    upload(api, "local/test", {"d/b": b"2"})
    eventually(lambda: listed() == [f"{root}/d/a", f"{root}/d/b"])
    api.batch_bucket_files("local/test", delete=["d/a"])
    eventually(lambda: listed() == [f"{root}/d/b"])
    follower.stop()


def test_a_served_directory_outlives_its_server(api, hub, tmp_path, monkeypatch):
    from huggingface_hub import HfApi

    api.create_bucket("local/test")
    upload(api, "local/test", FILES)
    os.kill(hub.process.pid, 9)
    hub.process.wait()
    hub.start()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    assert download(HfApi(endpoint=hub.url, token="hf_local"), "local/test", tmp_path / "back", FILES) == FILES
