"""Multipart uploads: their rules, their state over restarts, and what a crash leaves."""

import hashlib
import random
import threading

import pytest
from botocore.exceptions import ClientError
from test_objects import MIB, content, keys, put, read, refused

PART = 5 * MIB


def begin(s3, key="k", **more):
    return s3.create_multipart_upload(Bucket="data", Key=key, **more)["UploadId"]


def part(s3, upload, number, body, key="k", **more):
    answer = s3.upload_part(Bucket="data", Key=key, UploadId=upload, PartNumber=number, Body=body, **more)
    return {"PartNumber": number, "ETag": answer["ETag"]}


def complete(s3, upload, parts, key="k", **more):
    done = {"Parts": parts}
    return s3.complete_multipart_upload(Bucket="data", Key=key, UploadId=upload, MultipartUpload=done, **more)


def etag_of(*bodies):
    digests = b"".join(hashlib.md5(body).digest() for body in bodies)
    return f'"{hashlib.md5(digests).hexdigest()}-{len(bodies)}"'


def test_parts_in_any_order_become_one_object(s3):
    bodies = [content(1, PART), content(2, PART + 12_345), content(3, 1000)]
    upload = begin(s3, ContentType="x/y", Metadata={"a": "1"})
    parts = [part(s3, upload, number, bodies[number - 1]) for number in (3, 1, 2)]
    assert keys(s3) == [], "parts are no objects"
    listed = s3.list_parts(Bucket="data", Key="k", UploadId=upload)["Parts"]
    assert [(entry["PartNumber"], entry["Size"]) for entry in listed] == [(1, PART), (2, PART + 12_345), (3, 1000)]
    page = s3.list_parts(Bucket="data", Key="k", UploadId=upload, MaxParts=1, PartNumberMarker=1)
    assert (page["Parts"][0]["PartNumber"], page["IsTruncated"], page["NextPartNumberMarker"]) == (2, True, 2)
    parts.sort(key=lambda part: part["PartNumber"])
    tag = complete(s3, upload, parts)["ETag"]
    assert tag == etag_of(*bodies)
    answer = s3.get_object(Bucket="data", Key="k")
    assert (answer["ETag"], answer["ContentType"], answer["Metadata"]) == (tag, "x/y", {"a": "1"})
    assert answer["Body"].read() == b"".join(bodies)
    second = s3.get_object(Bucket="data", Key="k", PartNumber=2)
    assert (second["Body"].read(), second["PartsCount"]) == (bodies[1], 3)
    assert s3.list_objects_v2(Bucket="data")["Contents"][0]["ETag"] == tag


def test_repeated_and_concurrent_completion_have_one_answer(s3, gateway):
    bodies = [content(1, PART), content(2, PART)]
    upload = begin(s3)
    parts = [part(s3, upload, number, body) for number, body in enumerate(bodies, 1)]
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(complete(gateway.client(), upload, parts)["ETag"])) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert set(answers) == {etag_of(*bodies)} and len(answers) == 4
    assert complete(s3, upload, parts)["ETag"] == etag_of(*bodies)
    assert refused(s3.abort_multipart_upload, Bucket="data", Key="k", UploadId=upload) == (404, "NoSuchUpload")
    assert read(s3, "k") == b"".join(bodies)


def test_rules_of_completion(s3):
    upload = begin(s3)
    one, two = part(s3, upload, 1, content(1, PART)), part(s3, upload, 2, b"small")
    three = part(s3, upload, 3, b"last")
    wrong = {**one, "ETag": '"0123"'}
    for parts, code in [
        ([two, one], "InvalidPartOrder"), ([one, one], "InvalidPartOrder"), ([wrong, two], "InvalidPart"),
        ([one, {"PartNumber": 4, "ETag": one["ETag"]}], "InvalidPart"), ([one, two, three], "EntityTooSmall"),
        ([], "MalformedXML"),
    ]:
        assert refused(complete, s3=s3, upload=upload, parts=parts) == (400, code), parts
    assert keys(s3) == []
    complete(s3, upload, [one, three])
    assert read(s3, "k") == content(1, PART) + b"last"


def test_uploads_are_listed_and_aborted(s3):
    uploads = {key: begin(s3, key) for key in ("a/1", "a/2", "b")}
    listed = s3.list_multipart_uploads(Bucket="data")["Uploads"]
    assert {entry["Key"]: entry["UploadId"] for entry in listed} == uploads
    page = s3.list_multipart_uploads(Bucket="data", Delimiter="/")
    assert [entry["Key"] for entry in page["Uploads"]] == ["b"] and page["CommonPrefixes"] == [{"Prefix": "a/"}]
    page = s3.list_multipart_uploads(Bucket="data", Prefix="a/", MaxUploads=1)
    assert page["IsTruncated"] and page["NextKeyMarker"] == "a/1"
    for key, upload in uploads.items():
        part(s3, upload, 1, b"x", key)
        s3.abort_multipart_upload(Bucket="data", Key=key, UploadId=upload)
        assert refused(s3.list_parts, Bucket="data", Key=key, UploadId=upload) == (404, "NoSuchUpload")
        assert refused(part, s3=s3, upload=upload, number=1, body=b"x", key=key) == (404, "NoSuchUpload")
    assert "Uploads" not in s3.list_multipart_uploads(Bucket="data") and keys(s3) == []
    for number in (0, 10_001):
        assert refused(part, s3=s3, upload=begin(s3), number=number, body=b"x") == (400, "InvalidArgument")
    assert refused(part, s3=s3, upload=begin(s3, "x"), number=1, body=b"x", key="other") == (404, "NoSuchUpload")


def test_part_is_copied_from_a_range(s3):
    source = content(7, 2 * PART)
    put(s3, "source", source)
    upload = begin(s3)
    copy = {"Bucket": "data", "Key": "k", "UploadId": upload, "CopySource": "data/source"}
    parts = []
    for number, text in [(1, f"bytes=100-{PART + 99}"), (2, "bytes=0-9")]:
        answer = s3.upload_part_copy(**copy, PartNumber=number, CopySourceRange=text)
        parts.append({"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]})
    assert refused(s3.upload_part_copy, **copy, PartNumber=3, CopySourceRange=f"bytes=0-{2 * PART}")[0] in (400, 416)
    complete(s3, upload, parts)
    assert read(s3, "k") == source[100 : PART + 100] + source[:10]


@pytest.mark.parametrize("kind", ["COMPOSITE", "FULL_OBJECT"])
def test_checksum_of_multipart_object(s3, kind):
    bodies = [content(1, PART), b"last"]
    upload = begin(s3, ChecksumAlgorithm="CRC32", ChecksumType=kind)
    parts = []
    for number, body in enumerate(bodies, 1):
        answer = s3.upload_part(
            Bucket="data", Key="k", UploadId=upload, PartNumber=number, Body=body, ChecksumAlgorithm="CRC32"
        )
        parts.append({"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC32": answer["ChecksumCRC32"]})
    done = complete(s3, upload, parts)
    assert done["ChecksumType"] == kind
    put(s3, "whole", b"".join(bodies), ChecksumAlgorithm="CRC32")
    whole = s3.head_object(Bucket="data", Key="whole", ChecksumMode="ENABLED")["ChecksumCRC32"]
    assert (done["ChecksumCRC32"] == whole) == (kind == "FULL_OBJECT")
    assert done["ChecksumCRC32"].endswith("-2") == (kind == "COMPOSITE")


def test_condition_of_completion(s3):
    put(s3, "k", b"old")
    upload = begin(s3)
    parts = [part(s3, upload, 1, b"new")]
    assert refused(complete, s3=s3, upload=upload, parts=parts, IfNoneMatch="*") == (412, "PreconditionFailed")
    assert read(s3, "k") == b"old"
    complete(s3, upload, parts)
    assert read(s3, "k") == b"new"


def test_upload_survives_sigkill_of_the_gateway(s3, gateway):
    bodies = [content(1, PART), content(2, 1000)]
    upload = begin(s3, Metadata={"a": "1"})
    parts = [part(s3, upload, 1, bodies[0])]
    gateway.kill()
    gateway.start()
    s3 = gateway.client()
    parts.append(part(s3, upload, 2, bodies[1]))
    tag = complete(s3, upload, parts)["ETag"]
    gateway.kill()
    gateway.start()
    s3 = gateway.client()
    assert complete(s3, upload, parts)["ETag"] == tag, "a repeated completion has the same answer"
    answer = s3.get_object(Bucket="data", Key="k")
    assert answer["Body"].read() == b"".join(bodies) and answer["Metadata"] == {"a": "1"} and answer["ETag"] == tag


def test_object_is_old_or_new_after_sigkill_at_any_time(s3, gateway):
    """A short form of `campaign.py`."""
    from campaign import rounds

    assert rounds(gateway, 6, seed=1) == 6
