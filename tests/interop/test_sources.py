"""What may be mounted: folders that are there, that are new, that are files, and buckets that have moved."""

import json
import os
import urllib.request

import pytest

from conftest import needs_fuse, run

pytestmark = needs_fuse


def move(hub, old, new):
    body = json.dumps({"fromRepo": old, "toRepo": new, "type": "bucket"}).encode()
    headers = {"Authorization": "Bearer hf_local", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{hub.url}/api/repos/move", body, headers, method="POST")
    assert urllib.request.urlopen(request).status == 200


@pytest.mark.parametrize("options", [(), ("key",), ("key", "--encrypted-only")])
def test_source_that_is_a_file_is_refused_and_missing_folder_only_if_nothing_may_be_written(hub, key, mount, options):
    options = [part for option in options for part in (["--encryption-key-file", key] if option == "key" else [option])]
    one = mount("--create", "--advanced-writes", *options)
    (one.point / "folder/deep").mkdir(parents=True)
    (one.point / "folder/deep/file").write_bytes(b"content")
    one.stop()
    for source in ["folder/deep/file", "folder/deep/file/below"]:
        for more in [(), ("--read-only",)]:
            failed = mount(*options, *more, name="other", source=f"local/test/{source}", check=False)
            if source.endswith("below") and not more:
                # Nothing is there. That it can't become a folder is for the first write to find out.
                failed.stop()
                failed.point.rmdir()
                continue
            assert failed.started.returncode == 3, failed.started.stderr
            assert "error: " in failed.started.stderr and "hint: " in failed.started.stderr
            assert not failed.point.exists()
    failed = mount(*options, "--read-only", name="other", source="local/test/folder/new", check=False)
    assert failed.started.returncode == 3 and not failed.point.exists()
    new = mount(*options, "--advanced-writes", source="local/test/folder/new")
    assert new.started.stderr.count("the folder is new") == 1
    (new.point / "file").write_bytes(b"first")
    new.stop()
    for source in ["folder", "folder/deep", "folder/new"]:
        there = mount(*options, "--read-only", source=f"local/test/{source}")
        assert "the folder is new" not in there.started.stderr
        assert os.listdir(there.point)
        there.stop()


@pytest.mark.parametrize("with_key", [False, True])
def test_moved_bucket_is_read_and_written_under_its_old_name_and_its_new_one_is_told(hub, api, key, mount, tmp_path, with_key):
    options = ["--advanced-writes", *(["--encryption-key-file", key] if with_key else [])]
    one = mount("--create", *options, source="local/old")
    (one.point / "before").write_bytes(b"1")
    run("hf-mount", "flush", one.point)
    move(hub, "local/old", "local/new")
    (one.point / "while mounted").write_bytes(b"2")
    run("hf-mount", "flush", one.point)
    assert one.stop().returncode == 0
    again = mount(*options, source="local/old")
    assert again.started.stderr.count("local/new") == 1
    assert sorted(os.listdir(again.point)) == ["before", "while mounted"]
    # Nothing asks for the old name any more, which may be another bucket's by now.
    api.create_bucket("local/old")
    api.delete_bucket("local/old")
    (again.point / "after").write_bytes(b"3")
    assert again.stop().returncode == 0
    there = mount(*options, source="local/new")
    assert "has moved" not in there.started.stderr
    assert {p.name: p.read_bytes() for p in there.point.iterdir()} == {"before": b"1", "while mounted": b"2", "after": b"3"}
    there.stop()


def test_xet_transfers_follow_a_moved_bucket(hub, api, tmp_path):
    api.create_bucket("local/old")
    move(hub, "local/old", "local/new")
    file = tmp_path / "file"
    file.write_bytes(b"content")
    run("hfcrypt", "xet", "upload", file, "hf://buckets/local/old/file")
    done = run("hfcrypt", "xet", "download", "hf://buckets/local/old/file", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"content"
    assert "local/new" in done.stderr
