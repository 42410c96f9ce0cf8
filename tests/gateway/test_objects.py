"""Objects, lists, conditions, checksums and access keys, through boto3 with its default settings."""

import base64
import hashlib
import io
import json
import os
import random
import socket
import threading
import urllib.request
import zlib

import pytest
from botocore.exceptions import ClientError
from conftest import ACCESS, SECRET, is_metadata

MIB = 1 << 20


def content(seed, size):
    return random.Random(seed).randbytes(size)


def refused(call, **arguments):
    """Returns the status and code of a call that fails."""
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    answer = caught.value.response
    return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"]


def put(s3, key, body=b"", **more):
    return s3.put_object(Bucket="data", Key=key, Body=body, **more)


def read(s3, key, **more):
    return s3.get_object(Bucket="data", Key=key, **more)["Body"].read()


def keys(s3, **query):
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="data", **query)
    return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


def test_object_is_stored_listed_overwritten_copied_and_removed(s3):
    body = content(1, 3 * MIB + 17)
    put(s3, "a/b", b"first")
    tag = put(s3, "a/b", body)["ETag"]
    assert tag == f'"{hashlib.md5(body).hexdigest()}"'
    assert read(s3, "a/b") == body
    s3.copy_object(Bucket="data", Key="c", CopySource="data/a/b")
    assert read(s3, "c") == body
    listed = {entry["Key"]: (entry["Size"], entry["ETag"]) for entry in s3.list_objects_v2(Bucket="data")["Contents"]}
    assert listed == {"a/b": (len(body), tag), "c": (len(body), tag)}
    s3.delete_object(Bucket="data", Key="a/b")
    assert refused(s3.head_object, Bucket="data", Key="a/b")[0] == 404
    assert refused(s3.get_object, Bucket="data", Key="a/b") == (404, "NoSuchKey")
    s3.delete_object(Bucket="data", Key="a/b")
    assert keys(s3) == ["c"] and read(s3, "c") == body


def test_buckets_are_created_listed_and_removed(s3, gateway):
    s3.create_bucket(Bucket="Weird_Name.v2")
    put_weird = s3.put_object(Bucket="Weird_Name.v2", Key="k", Body=b"x")
    assert put_weird["ETag"]
    assert {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]} == {"data", "Weird_Name.v2"}
    s3.create_bucket(Bucket="data")
    assert refused(s3.delete_bucket, Bucket="Weird_Name.v2") == (409, "BucketNotEmpty")
    s3.delete_object(Bucket="Weird_Name.v2", Key="k")
    s3.delete_bucket(Bucket="Weird_Name.v2")
    assert refused(s3.head_bucket, Bucket="Weird_Name.v2")[0] == 404
    for call in (s3.list_objects, s3.list_objects_v2, s3.get_bucket_location, s3.list_multipart_uploads):
        assert refused(call, Bucket="missing") == (404, "NoSuchBucket")
    assert refused(s3.put_object, Bucket="missing", Key="k", Body=b"x") == (404, "NoSuchBucket")
    assert s3.get_bucket_location(Bucket="data")["LocationConstraint"] is None
    # A bucket that was removed and created again is empty.
    s3.create_bucket(Bucket="Weird_Name.v2")
    assert "Contents" not in s3.list_objects_v2(Bucket="Weird_Name.v2")


def test_ranges_follow_rfc_9110(s3, gateway):
    body = content(2, 200_000)
    put(s3, "k", body)
    put(s3, "empty")
    for text, expected in {
        "bytes=0-0": body[:1], "bytes=65530-65545": body[65530:65546], "bytes=199999-": body[-1:],
        "bytes=-5": body[-5:], "bytes=-999999": body, "bytes=5-999999": body[5:],
    }.items():
        answer = s3.get_object(Bucket="data", Key="k", Range=text)
        assert answer["Body"].read() == expected, text
        assert answer["ResponseMetadata"]["HTTPStatusCode"] == 206
        start = len(body) - len(expected) if text.startswith("bytes=-") else int(text[6:].split("-")[0])
        assert answer["ContentRange"] == f"bytes {start}-{start + len(expected) - 1}/{len(body)}"
        assert s3.head_object(Bucket="data", Key="k", Range=text)["ContentLength"] == len(expected)
    for text in ("bytes=200000-", "bytes=-0"):
        assert refused(s3.get_object, Bucket="data", Key="k", Range=text) == (416, "InvalidRange")
    url = gateway.client(signature_version="s3v4").generate_presigned_url("get_object", {"Bucket": "data", "Key": "k"})
    for text in ("bytes=0-1,4-5", "items=0-1", "bytes=9-2"):
        request = urllib.request.Request(url, headers={"Range": text})
        assert urllib.request.urlopen(request).read() == body, "a range that S3 ignores"
    assert refused(s3.get_object, Bucket="data", Key="empty", Range="bytes=0-0") == (416, "InvalidRange")
    # polars asks for the end of a file before it knows its size.
    assert read(s3, "empty", Range="bytes=-100") == b""


def test_headers_and_user_metadata_are_kept(s3):
    given = {
        "ContentType": "text/csv", "CacheControl": "no-cache", "ContentDisposition": 'attachment; filename="x"',
        "ContentEncoding": "gzip", "ContentLanguage": "de", "Metadata": {"mtime": "1.5", "owner": "a b"},
    }
    put(s3, "k", b"x", **given)
    expires = put(s3, "dated", b"x", Expires="Thu, 01 Dec 2033 16:00:00 GMT")
    assert expires and s3.head_object(Bucket="data", Key="dated")["ExpiresString"] == "Thu, 01 Dec 2033 16:00:00 GMT"
    for answer in (s3.head_object(Bucket="data", Key="k"), s3.get_object(Bucket="data", Key="k")):
        assert {name: answer[name] for name in given} == given
    put(s3, "framed", b"x", ContentEncoding="aws-chunked, gzip, br")
    assert s3.head_object(Bucket="data", Key="framed")["ContentEncoding"] == "gzip, br", "framing is no property of it"
    copied = s3.copy_object(Bucket="data", Key="same", CopySource="data/k")["CopyObjectResult"]
    assert copied["ETag"] == s3.head_object(Bucket="data", Key="same")["ETag"]
    assert s3.head_object(Bucket="data", Key="same")["Metadata"] == given["Metadata"]
    replaced = {"Metadata": {"new": "1"}, "MetadataDirective": "REPLACE", "ContentType": "text/plain"}
    s3.copy_object(Bucket="data", Key="k", CopySource="data/k", **replaced)
    head = s3.head_object(Bucket="data", Key="k")
    assert (head["Metadata"], head["ContentType"], "CacheControl" in head) == ({"new": "1"}, "text/plain", False)
    assert refused(s3.copy_object, Bucket="data", Key="k", CopySource="data/k") == (400, "InvalidRequest")
    assert s3.head_object(Bucket="data", Key="same")["ContentType"] == "text/csv"
    put(s3, "k", b"x")
    head = s3.head_object(Bucket="data", Key="k")
    assert (head["ContentType"], head["Metadata"]) == ("binary/octet-stream", {}), "an overwrite keeps nothing"
    answer = s3.get_object(Bucket="data", Key="k", ResponseContentType="x/y", ResponseCacheControl="no-store")
    assert (answer["ContentType"], answer["CacheControl"]) == ("x/y", "no-store")
    assert refused(put, s3=s3, key="k", body=b"y", Metadata={"a": "x" * 2100}) == (400, "MetadataTooLarge")
    assert read(s3, "k") == b"x"


def test_conditions_on_reads(s3):
    tag = put(s3, "k", b"x")["ETag"]
    date = s3.head_object(Bucket="data", Key="k")["LastModified"]
    assert read(s3, "k", IfMatch=tag) == read(s3, "k", IfMatch=tag.strip('"')) == b"x"
    assert read(s3, "k", IfNoneMatch='"other"') == b"x"
    for call in (s3.get_object, s3.head_object):
        assert refused(call, Bucket="data", Key="k", IfNoneMatch=tag)[0] == 304
        assert refused(call, Bucket="data", Key="k", IfNoneMatch=tag.strip('"'))[0] == 304
        assert refused(call, Bucket="data", Key="k", IfMatch='"other"')[0] == 412
        assert refused(call, Bucket="data", Key="k", IfModifiedSince=date)[0] == 304
    assert read(s3, "k", IfUnmodifiedSince=date) == b"x"
    copy = {"Bucket": "data", "Key": "c", "CopySource": "data/k"}
    assert refused(s3.copy_object, **copy, CopySourceIfMatch='"other"') == (412, "PreconditionFailed")
    assert refused(s3.copy_object, **copy, CopySourceIfNoneMatch=tag) == (412, "PreconditionFailed")
    s3.copy_object(**copy, CopySourceIfMatch=tag)
    assert read(s3, "c") == b"x"


def test_conditions_on_writes_and_removals(s3):
    assert refused(put, s3=s3, key="k", body=b"x", IfMatch='"any"')[0] == 404
    first = put(s3, "k", b"1", IfNoneMatch="*")["ETag"]
    assert refused(put, s3=s3, key="k", body=b"2", IfNoneMatch="*") == (412, "PreconditionFailed")
    assert refused(put, s3=s3, key="k", body=b"2", IfMatch='"other"') == (412, "PreconditionFailed")
    assert read(s3, "k") == b"1"
    second = put(s3, "k", b"2", IfMatch=first)["ETag"]
    assert refused(s3.delete_object, Bucket="data", Key="k", IfMatch=first)[0] == 412
    s3.delete_object(Bucket="data", Key="k", IfMatch=second)
    assert keys(s3) == []


def test_one_of_many_concurrent_creators_wins(s3, gateway):
    outcomes = []

    def create(number):
        client = gateway.client()
        try:
            client.put_object(Bucket="data", Key="k", Body=str(number).encode(), IfNoneMatch="*")
            outcomes.append(number)
        except ClientError as error:
            assert error.response["ResponseMetadata"]["HTTPStatusCode"] in (409, 412)

    threads = [threading.Thread(target=create, args=[number]) for number in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(outcomes) == 1 and read(s3, "k") == str(outcomes[0]).encode()


def test_compare_and_set_loses_no_increment(s3, gateway):
    put(s3, "counter", b"0")

    def count():
        client = gateway.client()
        done = 0
        while done < 5:
            answer = client.get_object(Bucket="data", Key="counter")
            value = int(answer["Body"].read()) + 1
            try:
                client.put_object(Bucket="data", Key="counter", Body=str(value).encode(), IfMatch=answer["ETag"])
                done += 1
            except ClientError as error:
                assert error.response["ResponseMetadata"]["HTTPStatusCode"] in (409, 412)

    threads = [threading.Thread(target=count) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert read(s3, "counter") == b"20"


KEYS = ["a", "a-b", "a.txt", "a/b", "a/b/c", "a/d", "b", "bb/x", "ü/ü", "z/z/z"]


def test_lists_are_in_key_order_and_paged(s3):
    for key in KEYS:
        put(s3, key, key.encode())
    expected = sorted(KEYS, key=lambda key: key.encode())
    for size in (1, 2, 3, 1000):
        assert keys(s3, PaginationConfig={"PageSize": size}) == expected, size
        marked = s3.get_paginator("list_objects").paginate(Bucket="data", PaginationConfig={"PageSize": size})
        assert [entry["Key"] for page in marked for entry in page.get("Contents", [])] == expected, size
    for prefix in ("a", "a/", "a/b", "b", "ü", "nothing", "/", "a//"):
        assert keys(s3, Prefix=prefix) == [key for key in expected if key.startswith(prefix)], prefix
    for start in ("", "a", "a/", "a/b", "a0", "zz"):
        assert keys(s3, StartAfter=start) == [key for key in expected if key.encode() > start.encode()], start
    assert read(s3, "a") == b"a" and read(s3, "a/b") == b"a/b", "a key and keys below it are different objects"


def rolled(keys, prefix, delimiter):
    """What S3 shows of a list: keys, and common prefixes once each, in one order."""
    shown = []
    for key in keys:
        if key.startswith(prefix):
            at = key.find(delimiter, len(prefix))
            entry = key if at < 0 else key[: at + len(delimiter)]
            if entry not in shown:
                shown.append(entry)
    return shown


@pytest.mark.parametrize("delimiter", ["/", "b", "/b", "."])
def test_common_prefixes_are_counted_and_shown_once(s3, delimiter):
    for key in KEYS:
        put(s3, key)
    ordered = sorted(KEYS, key=lambda key: key.encode())
    for prefix in ("", "a", "a/", "z/"):
        for size in (1, 2, 1000):
            for kind in ("list_objects_v2", "list_objects"):
                seen = []
                pages = s3.get_paginator(kind).paginate(
                    Bucket="data", Prefix=prefix, Delimiter=delimiter, PaginationConfig={"PageSize": size}
                )
                for page in pages:
                    entries = [entry["Key"] for entry in page.get("Contents", [])]
                    entries += [entry["Prefix"] for entry in page.get("CommonPrefixes", [])]
                    assert len(entries) <= size
                    seen += entries
                assert sorted(seen) == sorted(rolled(ordered, prefix, delimiter)), (prefix, size, kind)


def test_list_details(s3):
    for key in ("a b/ü+", "plain"):
        put(s3, key, b"12")
    page = s3.list_objects_v2(Bucket="data", FetchOwner=True, MaxKeys=1)
    assert (page["KeyCount"], page["IsTruncated"], page["MaxKeys"]) == (1, True, 1)
    assert page["Contents"][0]["Owner"]["ID"] == ACCESS and page["Contents"][0]["Key"] == "a b/ü+"
    assert s3.list_objects_v2(Bucket="data", MaxKeys=0)["KeyCount"] == 0
    assert refused(s3.list_objects_v2, Bucket="data", ContinuationToken="?") == (400, "InvalidArgument")
    assert refused(s3.list_objects_v2, Bucket="data", MaxKeys=-1) == (400, "InvalidArgument")
    versions = s3.list_object_versions(Bucket="data")["Versions"]
    assert [(entry["Key"], entry["VersionId"]) for entry in versions] == [("a b/ü+", "null"), ("plain", "null")]


def test_list_shows_changes_at_once(s3):
    for number in range(20):
        put(s3, f"d/{number:02}")
        assert len(keys(s3, Prefix="d/")) == number + 1
    for number in range(20):
        s3.delete_object(Bucket="data", Key=f"d/{number:02}")
        assert len(keys(s3)) == 19 - number


def test_keys_are_kept_exactly_or_refused(s3):
    strange = [" ", "a b", "+", "%2F", "a%20b", "?x=1", "#", "&", "<x>", '"', "'", "a\tb", "*", "~", "..a", "日本", "C:x"]
    for key in strange:
        put(s3, key, key.encode())
    assert sorted(keys(s3)) == sorted(strange)
    for key in strange:
        assert read(s3, key) == key.encode(), key
    for key in ("a//b", "/a", "../a", "a/../b", "./a", "a/.", "a/.hugbucket_keep"):
        assert refused(put, s3=s3, key=key, body=b"x") == (400, "InvalidArgument"), key
        assert refused(s3.get_object, Bucket="data", Key=key) == (404, "NoSuchKey"), key
        s3.delete_object(Bucket="data", Key=key)
    assert refused(put, s3=s3, key="x" * 256, body=b"x") == (400, "KeyTooLongError")
    assert refused(put, s3=s3, key="y/" * 513, body=b"x") == (400, "KeyTooLongError")
    assert sorted(keys(s3)) == sorted(strange)


def test_directory_markers_are_objects_beside_files_of_their_name(s3):
    put(s3, "d", b"file")
    put(s3, "d/", ContentType="application/x-directory")
    put(s3, "e/f/")
    assert keys(s3) == ["d", "d/", "e/f/"]
    assert read(s3, "d") == b"file" and read(s3, "d/") == b""
    assert s3.head_object(Bucket="data", Key="e/f/")["ContentType"] == "application/x-directory"
    page = s3.list_objects_v2(Bucket="data", Delimiter="/")
    assert [entry["Prefix"] for entry in page["CommonPrefixes"]] == ["d/", "e/"]
    page = s3.list_objects_v2(Bucket="data", Delimiter="/", Prefix="d/")
    assert [entry["Key"] for entry in page["Contents"]] == ["d/"]
    s3.delete_object(Bucket="data", Key="d/")
    assert keys(s3) == ["d", "e/f/"] and read(s3, "d") == b"file"


ALGORITHMS = {
    "CRC32": lambda body: base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode(),
    "SHA1": lambda body: base64.b64encode(hashlib.sha1(body).digest()).decode(),
    "SHA256": lambda body: base64.b64encode(hashlib.sha256(body).digest()).decode(),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_checksums_are_verified_kept_and_returned(s3, algorithm):
    body = content(4, 100_000)
    right, field = ALGORITHMS[algorithm](body), f"Checksum{algorithm}"
    assert put(s3, "k", body, ChecksumAlgorithm=algorithm)[field] == right
    assert put(s3, "k", body, **{field: right})[field] == right
    assert s3.head_object(Bucket="data", Key="k", ChecksumMode="ENABLED")[field] == right
    answer = s3.get_object(Bucket="data", Key="k", ChecksumMode="ENABLED")
    assert answer[field] == right and answer["Body"].read() == body
    assert field not in s3.head_object(Bucket="data", Key="k")
    wrong = {field: ALGORITHMS[algorithm](b"other")}
    assert refused(put, s3=s3, key="k", body=b"new", **wrong) == (400, "BadDigest")
    assert refused(put, s3=s3, key="k", body=b"new", **{field: "AAAA!"}) == (400, "InvalidRequest")
    assert read(s3, "k") == body
    attributes = ["ETag", "Checksum", "ObjectSize", "StorageClass"]
    found = s3.get_object_attributes(Bucket="data", Key="k", ObjectAttributes=attributes)
    assert (found["Checksum"][field], found["ObjectSize"]) == (right, len(body))


def test_content_md5_is_verified(s3):
    right = base64.b64encode(hashlib.md5(b"x").digest()).decode()
    put(s3, "k", b"x", ContentMD5=right)
    assert refused(put, s3=s3, key="k", body=b"y", ContentMD5=right) == (400, "BadDigest")
    assert refused(put, s3=s3, key="k", body=b"y", ContentMD5="x") == (400, "InvalidDigest")
    assert read(s3, "k") == b"x"


def test_many_keys_are_removed_by_one_request(s3):
    for number in range(30):
        put(s3, f"d/{number}")
    put(s3, "kept")
    objects = [{"Key": f"d/{number}"} for number in range(30)] + [{"Key": "missing"}, {"Key": "a//b"}]
    answer = s3.delete_objects(Bucket="data", Delete={"Objects": objects})
    assert [entry["Key"] for entry in answer["Deleted"]] == [entry["Key"] for entry in objects]
    assert "Errors" not in answer and keys(s3) == ["kept"]
    quiet = s3.delete_objects(Bucket="data", Delete={"Objects": [{"Key": "kept"}], "Quiet": True})
    assert "Deleted" not in quiet and keys(s3) == []
    many = [{"Key": str(number)} for number in range(1001)]
    assert refused(s3.delete_objects, Bucket="data", Delete={"Objects": many}) == (400, "MalformedXML")


def test_copy_moves_no_byte_across_buckets(s3, gateway, api):
    body = content(5, 2 * MIB)
    put(s3, "k", body, Metadata={"a": "1"})
    s3.create_bucket(Bucket="other")
    s3.copy_object(Bucket="other", Key="deep/k", CopySource="data/k")
    answer = s3.get_object(Bucket="other", Key="deep/k")
    assert answer["Body"].read() == body and answer["Metadata"] == {"a": "1"}
    stored = [
        [
            entry.xet_hash
            for entry in api.list_bucket_tree(f"local/{name}", recursive=True)
            if hasattr(entry, "xet_hash") and not is_metadata(entry.path)
        ]
        for name in ("data", "other")
    ]
    assert stored[0] == stored[1], "both keys name one stored object"
    # From then on the content belongs to the other bucket, whatever happens to the first one.
    for key in ("k", "empty"):
        put(s3, key, body if key == "k" else b"")
        s3.copy_object(Bucket="other", Key=key, CopySource=f"data/{key}")
        s3.delete_object(Bucket="data", Key=key)
        s3.copy_object(Bucket="other", Key=f"again/{key}", CopySource=f"other/{key}")
        s3.put_object(Bucket="other", Key=f"new/{key}", Body=body if key == "k" else b"")
        assert s3.get_object(Bucket="other", Key=f"again/{key}")["Body"].read() == (body if key == "k" else b"")
    assert refused(s3.copy_object, Bucket="data", Key="x", CopySource="data/missing") == (404, "NoSuchKey")
    assert refused(s3.copy_object, Bucket="data", Key="x", CopySource="missing/k") == (404, "NoSuchBucket")


def test_probes_have_polite_answers(s3):
    put(s3, "k", b"x")
    expected = {
        s3.get_bucket_policy: "NoSuchBucketPolicy", s3.get_bucket_tagging: "NoSuchTagSet",
        s3.get_bucket_cors: "NoSuchCORSConfiguration", s3.get_bucket_lifecycle_configuration: "NoSuchLifecycleConfiguration",
        s3.get_bucket_encryption: "ServerSideEncryptionConfigurationNotFoundError",
        s3.get_bucket_website: "NoSuchWebsiteConfiguration", s3.get_bucket_replication: "ReplicationConfigurationNotFoundError",
        s3.get_public_access_block: "NoSuchPublicAccessBlockConfiguration",
        s3.get_object_lock_configuration: "ObjectLockConfigurationNotFoundError",
    }
    for call, code in expected.items():
        assert refused(call, Bucket="data") == (404, code)
    assert "Status" not in s3.get_bucket_versioning(Bucket="data")
    assert s3.get_bucket_acl(Bucket="data")["Grants"][0]["Permission"] == "FULL_CONTROL"
    assert s3.get_object_acl(Bucket="data", Key="k")["Owner"]["ID"] == ACCESS
    assert refused(s3.put_object_acl, Bucket="data", Key="k", ACL="public-read")[1] == "AccessControlListNotSupported"


def test_tags_are_kept(s3):
    put(s3, "k", b"x", Tagging="a=1&b%20c=d%26e")
    tags = lambda key: {tag["Key"]: tag["Value"] for tag in s3.get_object_tagging(Bucket="data", Key=key)["TagSet"]}
    assert tags("k") == {"a": "1", "b c": "d&e"} and s3.head_object(Bucket="data", Key="k")["TagCount"] == 2
    s3.copy_object(Bucket="data", Key="c", CopySource="data/k")
    s3.copy_object(Bucket="data", Key="r", CopySource="data/k", Tagging="n=2", TaggingDirective="REPLACE")
    assert (tags("c"), tags("r")) == (tags("k"), {"n": "2"})
    s3.put_object_tagging(Bucket="data", Key="k", Tagging={"TagSet": [{"Key": "z", "Value": ""}]})
    assert tags("k") == {"z": ""} and tags("c") == {"a": "1", "b c": "d&e"} and read(s3, "k") == b"x"
    many = {"TagSet": [{"Key": str(number), "Value": ""} for number in range(11)]}
    assert refused(s3.put_object_tagging, Bucket="data", Key="k", Tagging=many) == (400, "InvalidTag")
    assert refused(put, s3=s3, key="k", body=b"y", Tagging="x" * 129 + "=1") == (400, "InvalidTag")
    s3.delete_object_tagging(Bucket="data", Key="k")
    assert tags("k") == {} and refused(s3.get_object_tagging, Bucket="data", Key="missing") == (404, "NoSuchKey")


def test_removal_compares_size_and_time(s3):
    put(s3, "k", b"123")
    head = s3.head_object(Bucket="data", Key="k")
    assert refused(s3.delete_object, Bucket="data", Key="k", IfMatchSize=4)[0] == 412
    s3.delete_object(Bucket="data", Key="k", IfMatchSize=3, IfMatchLastModifiedTime=head["LastModified"])
    assert keys(s3) == []


def test_error_names_the_request(s3):
    with pytest.raises(ClientError) as caught:
        s3.get_object(Bucket="data", Key="missing")
    answer = caught.value.response
    in_header = answer["ResponseMetadata"]["HTTPHeaders"]["x-amz-request-id"]
    assert answer["ResponseMetadata"]["RequestId"] == in_header and len(in_header) == 16


def test_signatures_are_checked(s3, gateway):
    put(s3, "k", b"x")
    wrong = gateway.client(secret="wrong")
    assert refused(wrong.get_object, Bucket="data", Key="k") == (403, "SignatureDoesNotMatch")
    assert refused(wrong.put_object, Bucket="data", Key="k", Body=b"y") == (403, "SignatureDoesNotMatch")
    stranger = gateway.client(access="stranger")
    assert refused(stranger.list_buckets) == (403, "InvalidAccessKeyId")
    with pytest.raises(urllib.request.HTTPError) as caught:
        urllib.request.urlopen(f"{gateway.url}/data/k")
    assert caught.value.code == 403 and b"AccessDenied" in caught.value.read()
    assert read(s3, "k") == b"x"


def test_presigned_urls_work_and_expire(s3, gateway):
    signer = gateway.client(signature_version="s3v4")
    place = {"Bucket": "data", "Key": "a b"}
    request = urllib.request.Request(signer.generate_presigned_url("put_object", place), data=b"body", method="PUT")
    assert urllib.request.urlopen(request).status == 200
    assert urllib.request.urlopen(signer.generate_presigned_url("get_object", place)).read() == b"body"

    def code(url):
        with pytest.raises(urllib.request.HTTPError) as caught:
            urllib.request.urlopen(url)
        return caught.value.code

    assert code(signer.generate_presigned_url("get_object", place, ExpiresIn=0)) == 403
    assert code(signer.generate_presigned_url("get_object", place, ExpiresIn=604801)) == 400
    signed = signer.generate_presigned_url("get_object", place)
    assert code(signed[:-1] + ("0" if signed[-1] != "0" else "1")) == 403


def test_presigned_urls_of_version_2_work_and_expire(s3, gateway):
    # It is the one that boto3 and others use for URLs unless they are told another.
    assert "Signature=" in gateway.client().generate_presigned_url("get_object", {"Bucket": "data", "Key": "a b"})
    for signer in (gateway.client(), gateway.client(signature_version="s3")):
        place = {"Bucket": "data", "Key": "a b"}
        request = urllib.request.Request(signer.generate_presigned_url("put_object", place), data=b"body", method="PUT")
        request.add_header("Content-Type", "")
        assert urllib.request.urlopen(request).status == 200
        url = signer.generate_presigned_url("get_object", place)
        assert urllib.request.urlopen(url).read() == b"body"

        def code(url):
            with pytest.raises(urllib.request.HTTPError) as caught:
                urllib.request.urlopen(url)
            return caught.value.code

        assert code(url.replace("a%20b", "a%20c")) == 403
        assert code(signer.generate_presigned_url("get_object", place, ExpiresIn=-1)) == 403
        assert code(signer.generate_presigned_url("get_object", place, ExpiresIn=604900)) == 400
    # In a header it could be repeated for ever.
    old = gateway.client(signature_version="s3")
    assert refused(old.put_object, Bucket="data", Key="k", Body=b"x") == (400, "InvalidRequest")


def test_access_keys_have_scopes(gateways, home):
    path = home / "credentials.toml"
    path.write_text(
        '[[key]]\naccess_key_id = "reader"\nsecret_access_key = "r"\npermission = "read"\nscopes = ["data"]\n'
        '[[key]]\naccess_key_id = "part"\nsecret_access_key = "p"\nscopes = ["data/in/"]\n'
    )
    path.chmod(0o600)
    gateway = gateways("--credentials-file", path)
    s3 = gateway.client()
    [s3.create_bucket(Bucket=name) for name in ("data", "private")]
    put(s3, "in/k", b"x")
    put(s3, "out", b"x")
    reader, part = gateway.client("reader", "r"), gateway.client("part", "p")
    assert [bucket["Name"] for bucket in reader.list_buckets()["Buckets"]] == ["data"]
    assert read(reader, "out") == b"x" and len(keys(reader)) == 2
    for call, arguments in [
        (reader.put_object, {"Bucket": "data", "Key": "n", "Body": b"x"}), (reader.delete_object, {"Bucket": "data", "Key": "out"}),
        (reader.list_objects_v2, {"Bucket": "private"}), (reader.create_bucket, {"Bucket": "new"}),
        (part.get_object, {"Bucket": "data", "Key": "out"}), (part.put_object, {"Bucket": "data", "Key": "n", "Body": b"x"}),
        (part.list_objects_v2, {"Bucket": "data"}), (part.list_objects_v2, {"Bucket": "data", "Prefix": "o"}),
        (part.copy_object, {"Bucket": "data", "Key": "in/c", "CopySource": "data/out"}),
    ]:
        assert refused(call, **arguments) == (403, "AccessDenied")
    put(part, "in/new", b"y")
    assert keys(part, Prefix="in/") == ["in/k", "in/new"]
    answer = part.delete_objects(Bucket="data", Delete={"Objects": [{"Key": "in/k"}, {"Key": "out"}]})
    assert [entry["Key"] for entry in answer["Deleted"]] == ["in/k"]
    assert [(entry["Key"], entry["Code"]) for entry in answer["Errors"]] == [("out", "AccessDenied")]
    assert keys(s3) == ["in/new", "out"]


def test_read_only_gateways_write_nothing(gateways):
    gateway = gateways()
    s3 = gateway.client()
    [s3.create_bucket(Bucket=name) for name in ("data", "empty")]
    put(s3, "k", b"x")
    upload = s3.create_multipart_upload(Bucket="data", Key="k")["UploadId"]
    part = {"Bucket": "data", "Key": "k", "UploadId": upload}
    made = s3.upload_part(**part, PartNumber=1, Body=b"y")["ETag"]
    gateway.stop()
    reader = gateways("--read-only").client()
    for call, arguments in [
        (reader.put_object, {"Bucket": "data", "Key": "k", "Body": b"y"}),
        (reader.delete_object, {"Bucket": "data", "Key": "k"}),
        (reader.copy_object, {"Bucket": "data", "Key": "c", "CopySource": "data/k"}),
        (reader.put_object_tagging, {"Bucket": "data", "Key": "k", "Tagging": {"TagSet": [{"Key": "a", "Value": "b"}]}}),
        (reader.create_multipart_upload, {"Bucket": "data", "Key": "k"}),
        (reader.upload_part, {**part, "PartNumber": 1, "Body": b"z"}),
        (reader.complete_multipart_upload, {**part, "MultipartUpload": {"Parts": [{"PartNumber": 1, "ETag": made}]}}),
        (reader.create_bucket, {"Bucket": "new"}),
        (reader.delete_bucket, {"Bucket": "empty"}),
    ]:
        assert refused(call, **arguments) == (403, "AccessDenied"), call
    answer = reader.delete_objects(Bucket="data", Delete={"Objects": [{"Key": "k"}]})
    assert "Deleted" not in answer and [entry["Code"] for entry in answer["Errors"]] == ["AccessDenied"]
    assert read(reader, "k") == b"x" and keys(reader) == ["k"]
    assert [bucket["Name"] for bucket in reader.list_buckets()["Buckets"]] == ["data", "empty"]


def test_forms_are_taken_with_a_signature(s3, gateway):
    import urllib.parse

    signer = gateway.client(signature_version="s3v4")

    def send(fields, url, body):
        edge, parts = "edge", []
        for name, value in fields.items():
            parts.append(f'--{edge}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode())
        parts.append(f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'.encode())
        parts += [body, f"\r\n--{edge}--\r\n".encode()]
        headers = {"Content-Type": f"multipart/form-data; boundary={edge}"}
        return urllib.request.urlopen(urllib.request.Request(url, data=b"".join(parts), headers=headers)).status

    form = signer.generate_presigned_post("data", "form")
    url = f"{gateway.url}/data"
    assert send(form["fields"], url, b"content") in (200, 204) and read(s3, "form") == b"content"
    wrong = {**form["fields"], "x-amz-signature": "0" * 64}
    old = gateway.client(signature_version="s3").generate_presigned_post("data", "form")
    assert send(old["fields"], url, b"content 2") in (200, 204) and read(s3, "form") == b"content 2"
    unsigned = {**old["fields"], "signature": "AAAA"}
    for fields, body in [(wrong, b"x"), (unsigned, b"x"), (form["fields"], b"x" * (9 * MIB))]:
        with pytest.raises(urllib.request.HTTPError):
            send(fields, url, body)
    assert read(s3, "form") == b"content 2"


def test_access_log_names_requests_and_no_secret(s3, gateway):
    put(s3, "secret-key-name", b"x" * 1000)
    read(s3, "secret-key-name")
    text = gateway.access_log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    write = next(line for line in lines if line["method"] == "PUT" and line["received"] == 1000)
    assert (write["status"], write["bucket"], write["access_key"]) == (200, "data", ACCESS)
    assert any(line["method"] == "GET" and line["sent"] == 1000 for line in lines)
    assert "secret-key-name" not in text and SECRET not in text


def test_framing_without_signature_is_refused_and_not_stored(gateways):
    url = gateways("--anonymous").url
    send = lambda path, body=b"", **headers: urllib.request.urlopen(
        urllib.request.Request(url + path, data=body, method="PUT", headers=headers)
    )
    send("/data")
    framed = {"Content-Encoding": "aws-chunked", "x-amz-trailer": "x-amz-checksum-crc32"}
    for headers in (framed, {"x-amz-content-sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER"}):
        with pytest.raises(urllib.request.HTTPError) as caught:
            send("/data/k", b"1\r\nx\r\n0\r\n\r\n", **headers)
        assert caught.value.code == 501
    send("/data/plain", b"x")
    assert b"<KeyCount>1</KeyCount>" in urllib.request.urlopen(f"{url}/data?list-type=2").read()


def test_bucket_in_the_host_name(gateways):
    gateway = gateways("--domain", "s3.example.com", "--anonymous")

    def send(method, host, path, body=None):
        request = urllib.request.Request(gateway.url + path, data=body, method=method, headers={"Host": host})
        return urllib.request.urlopen(request).read()

    s3 = gateway.client()
    s3.create_bucket(Bucket="data")
    send("PUT", "data.s3.example.com:9000", "/secret-key", b"x")
    assert read(s3, "secret-key") == b"x" and send("GET", "Data.s3.example.com".lower(), "/secret-key") == b"x"
    assert send("GET", "other.host:9000", "/data/secret-key") == b"x", "another host means path style"
    lines = [json.loads(line) for line in gateway.access_log.read_text().splitlines()]
    assert {line["bucket"] for line in lines} == {"data"} and "secret-key" not in gateway.access_log.read_text()


def test_connection_ends_if_100_continue_was_expected_and_not_sent(gateways):
    """botocore reads the next answer on such a connection wrongly, and waits for its timeout of 60 seconds."""
    gateway = gateways("--anonymous")
    host, port = gateway.url.split("//")[1].split(":")

    def talk(*requests):
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            seen = b""
            for head, body, awaited in requests:
                connection.sendall(head.replace("\n", "\r\n").encode())
                while body is not None and b"100 Continue" not in seen:
                    seen += connection.recv(4096)
                connection.sendall(body or b"")
                while awaited not in seen:
                    piece = connection.recv(4096)
                    if not piece:
                        break
                    seen += piece
            return seen.lower()

    plain = "PUT /data HTTP/1.1\nHost: x\nContent-Length: 0\n\n"
    empty = "PUT /data/empty HTTP/1.1\nHost: x\nExpect: 100-continue\nContent-Length: 0\n\n"
    full = "PUT /data/k HTTP/1.1\nHost: x\nExpect: 100-continue\nContent-Length: 5\n\n"
    nowhere = full.replace("/data/", "/missing/")
    assert b"connection: close" not in talk((plain, None, b"\r\n\r\n"))
    assert b"connection: close" in talk((empty, None, b"never"))
    assert b"connection: close" in talk((nowhere, None, b"never"))
    seen = talk((full, b"hello", b"etag"), ("GET /data/k HTTP/1.1\nHost: x\n\n", None, b"hello"))
    assert b"connection: close" not in seen and seen.endswith(b"hello")


def test_upload_of_unknown_length_streams(s3):
    body = content(6, 12 * MIB)

    class Stream(io.RawIOBase):
        def __init__(self):
            self.left = io.BytesIO(body)

        def readable(self):
            return True

        def readinto(self, buffer):
            return self.left.readinto(buffer)

    s3.upload_fileobj(io.BufferedReader(Stream()), "data", "stream")
    assert read(s3, "stream") == body


def test_list_from_a_key_shows_every_write_that_has_ended(s3):
    put(s3, "log/0")
    assert keys(s3) == ["log/0"]
    for number in range(1, 4):
        put(s3, f"log/{number}")
        later = s3.list_objects_v2(Bucket="data", Prefix="log/", StartAfter="log/0")["Contents"]
        assert [entry["Key"] for entry in later] == [f"log/{at}" for at in range(1, number + 1)]
        last = s3.list_objects(Bucket="data", Prefix="log/", Marker=f"log/{number - 1}")["Contents"]
        assert [entry["Key"] for entry in last] == [f"log/{number}"]


def test_list_goes_on_over_writes_without_a_gap(s3):
    for number in range(10):
        put(s3, f"{number}")
    seen, marker = [], ""
    while True:
        page = s3.list_objects(Bucket="data", MaxKeys=3, Marker=marker)
        seen += [entry["Key"] for entry in page["Contents"]]
        put(s3, f"0/{len(seen)}")
        if not page["IsTruncated"]:
            break
        marker = seen[-1]
    assert seen == [f"{number}" for number in range(10)]


def test_region_that_is_none_is_answered_with_the_right_one(gateway):
    """s3cmd signs for the region `US` and repeats the request with the one of the answer."""
    client = gateway.client()
    client.meta.events.register("before-send.s3.ListBuckets", lambda request, **more: replace_region(request))
    with pytest.raises(ClientError) as refused:
        client.list_buckets()
    answer = refused.value.response
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 400
    assert (answer["Error"]["Code"], answer["Error"]["Region"]) == ("AuthorizationHeaderMalformed", "us-east-1")


def replace_region(request):
    signed = request.headers["Authorization"]
    request.headers["Authorization"] = signed.replace(b"/us-east-1/", b"/US/")


def test_small_objects_that_come_together_are_stored_together(gateway, s3, home):
    count, threads = 128, 16
    clients = [gateway.client() for _ in range(threads)]

    def work(at):
        for number in range(at, count, threads):
            put(clients[at], f"{number}", content(number, 4096))

    workers = [threading.Thread(target=work, args=(at,)) for at in range(threads)]
    [worker.start() for worker in workers]
    [worker.join() for worker in workers]
    xorbs = [path for path in (home / "hub" / "xorbs").rglob("*") if path.is_file()]
    assert 0 < len(xorbs) < count / 2
    assert all(read(s3, f"{number}") == content(number, 4096) for number in range(count))
