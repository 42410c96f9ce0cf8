"""Metadata and entity tags are in the bucket: a gateway that knows nothing but the key shows them too."""

import os

import pytest
from conftest import is_metadata, run
from test_objects import MIB, content, keys, put, read, refused
from test_together import mounted, needs_fuse

HEADERS = {
    "ContentType": "text/x-canary", "CacheControl": "max-age=5", "ContentDisposition": "attachment",
    "ContentEncoding": "zstd", "ContentLanguage": "de", "Metadata": {"note": "a note"},
}


@pytest.fixture
def fresh(gateway, gateways):
    """Starts a gateway with the same key and no state, and returns its client."""
    count = iter(range(100))
    return lambda: gateways(*gateway.options, name=f"fresh-{next(count)}").client()


def shown(client, key):
    """All that a client is told of an object."""
    head = client.head_object(Bucket="data", Key=key, ChecksumMode="ENABLED")
    listed = client.list_objects_v2(Bucket="data", Prefix=key)["Contents"][0]
    tags = client.get_object_tagging(Bucket="data", Key=key)["TagSet"]
    names = [*HEADERS, "ETag", "ContentLength", "ChecksumCRC32", "ChecksumSHA256", "ChecksumType"]
    assert listed["ETag"] == head["ETag"]
    return {name: head.get(name) for name in names} | {"tags": tags}


def uploaded_in_parts(s3, key, *sizes):
    place = {"Bucket": "data", "Key": key}
    upload = {**place, "UploadId": s3.create_multipart_upload(**place, **HEADERS)["UploadId"]}
    parts = [
        {"PartNumber": number, "ETag": s3.upload_part(**upload, PartNumber=number, Body=content(number, size))["ETag"]}
        for number, size in enumerate(sizes, 1)
    ]
    s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})


def test_another_gateway_without_state_shows_the_same(s3, fresh):
    put(s3, "plain", b"content")
    put(s3, "full", b"content", ChecksumAlgorithm="SHA256", Tagging="a=1&b=2", **HEADERS)
    put(s3, "empty", b"", **HEADERS)
    uploaded_in_parts(s3, "parts", 5 * MIB, 1000)
    uploaded_in_parts(s3, "one-part", 1000)
    s3.copy_object(Bucket="data", Key="copy", CopySource="data/full")
    s3.copy_object(
        Bucket="data", Key="replaced", CopySource="data/full", MetadataDirective="REPLACE", Metadata={"other": "one"},
    )
    put(s3, "tagged", b"content", **HEADERS)
    s3.put_object_tagging(Bucket="data", Key="tagged", Tagging={"TagSet": [{"Key": "late", "Value": "yes"}]})
    names = ["plain", "full", "empty", "parts", "one-part", "copy", "replaced", "tagged"]
    before = {name: shown(s3, name) for name in names}
    assert before["full"]["ContentType"] == "text/x-canary" and before["full"]["ChecksumSHA256"]
    assert before["parts"]["ETag"].endswith('-2"') and before["replaced"]["Metadata"] == {"other": "one"}
    assert before["tagged"]["tags"] == [{"Key": "late", "Value": "yes"}] != before["copy"]["tags"]
    # One that is asked for a list first, and one that is asked for each object.
    listing, other = fresh(), fresh()
    etags = {entry["Key"]: entry["ETag"] for entry in listing.list_objects_v2(Bucket="data")["Contents"]}
    assert etags == {name: before[name]["ETag"] for name in names}
    assert {name: shown(other, name) for name in names} == before


def test_gateways_notice_what_others_change(s3, fresh):
    other = fresh()
    put(s3, "k", b"content", **HEADERS)
    assert shown(other, "k") == shown(s3, "k")
    other.put_object_tagging(Bucket="data", Key="k", Tagging={"TagSet": [{"Key": "by", "Value": "other"}]})
    assert shown(s3, "k")["tags"] == [{"Key": "by", "Value": "other"}]
    other.put_object(Bucket="data", Key="k", Body=b"content", ContentType="text/other")
    assert shown(s3, "k") == shown(other, "k") and shown(s3, "k")["ContentType"] == "text/other"
    other.delete_object(Bucket="data", Key="k")
    put(s3, "k", b"content")
    assert shown(other, "k")["Metadata"] == {}


def test_removed_objects_leave_nothing(s3, gateway, api):
    for name in ("a", "b", "c/d"):
        put(s3, name, b"content", **HEADERS)
    stored = [entry.path for entry in api.list_bucket_tree("local/data", recursive=True)]
    assert sum(map(is_metadata, stored)) == 3
    s3.delete_object(Bucket="data", Key="a")
    s3.delete_objects(Bucket="data", Delete={"Objects": [{"Key": "b"}, {"Key": "c/d"}]})
    assert [entry.path for entry in api.list_bucket_tree("local/data", recursive=True)] == []
    s3.delete_bucket(Bucket="data")


def test_metadata_is_not_an_object(s3, gateway, api):
    put(s3, "k", b"content")
    assert keys(s3) == ["k"]
    for key in (".hugbucket", ".hugbucket/metadata/x", ".hugbucket/x"):
        assert refused(s3.put_object, Bucket="data", Key=key, Body=b"x") == (400, "InvalidArgument"), key
        assert refused(s3.get_object, Bucket="data", Key=key)[0] in (400, 404), key
    put(s3, "a/.hugbucket", b"elsewhere it is a name like any other")
    assert keys(s3) == ["a/.hugbucket", "k"]


def test_damaged_metadata_hides_no_content(s3, fresh, gateway, api, home):
    put(s3, "k", b"content", **HEADERS)
    (stored,) = [e.path for e in api.list_bucket_tree("local/data", recursive=True) if is_metadata(e.path)]
    api.batch_bucket_files("local/data", add=[(b"damage", stored)])
    client = fresh()
    assert read(client, "k") == b"content" and client.head_object(Bucket="data", Key="k")["Metadata"] == {}
    put(client, "k", b"content", **HEADERS)
    assert shown(fresh(), "k")["Metadata"] == HEADERS["Metadata"]


@needs_fuse
def test_mount_takes_metadata_along(s3, fresh, gateway, home, api):
    for name in ("folder/file", "removed", "changed"):
        put(s3, name, b"content", **HEADERS)
    before = shown(s3, "folder/file")
    point = mounted(home, gateway)
    try:
        os.rename(point / "folder" / "file", point / "folder" / "renamed")
        run("hf-mount", "flush", point)
        assert shown(fresh(), "folder/renamed") == before
        os.rename(point / "folder", point / "moved")
        (point / "removed").unlink()
        (point / "changed").write_bytes(b"by the mount")
        run("hf-mount", "flush", point)
    finally:
        run("hf-mount", "stop", point)
    client = fresh()
    assert shown(client, "moved/renamed") == before
    changed = client.head_object(Bucket="data", Key="changed")
    assert changed["Metadata"] == {} and changed["ETag"].endswith('-x"'), "it described another version"
    # Those of the moved and of the changed file.
    assert sum(is_metadata(e.path) for e in api.list_bucket_tree("local/data", recursive=True)) == 2


def test_metadata_can_stay_in_the_state(gateways, hub, api, key):
    for options in ([], ["--encryption-key-file", key]):
        gateway = gateways("--metadata", "state", *options, name=f"state-{len(options)}")
        s3 = gateway.client()
        bucket = f"kept-{len(options)}"
        s3.create_bucket(Bucket=bucket)
        s3.put_object(Bucket=bucket, Key="k", Body=b"content", **HEADERS)
        assert s3.head_object(Bucket=bucket, Key="k")["Metadata"] == HEADERS["Metadata"]
        assert not any(is_metadata(e.path) for e in api.list_bucket_tree(f"local/{bucket}", recursive=True))


def test_state_wins_over_the_bucket_if_metadata_is_kept_there(gateways, key):
    """A bucket that was written with metadata in it, then served by a gateway that keeps it in the state."""
    for options in ([], ["--encryption-key-file", key]):
        first = gateways(*options, name=f"first-{len(options)}").client()
        bucket = f"both-{len(options)}"
        first.create_bucket(Bucket=bucket)
        first.put_object(Bucket=bucket, Key="k", Body=b"content", Metadata={"kind": "old"})
        s3 = gateways("--metadata", "state", *options, name=f"second-{len(options)}").client()
        tags = {"TagSet": [{"Key": "kind", "Value": "new"}]}
        s3.put_object_tagging(Bucket=bucket, Key="k", Tagging=tags)
        for _ in range(2):
            assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == tags["TagSet"]
            s3.head_object(Bucket=bucket, Key="k")
        s3.put_object(Bucket=bucket, Key="k", Body=b"content", Metadata={"kind": "new"})
        assert s3.head_object(Bucket=bucket, Key="k")["Metadata"] == {"kind": "new"}
