"""Other S3 clients with their default settings: each writes, lists, ranges, overwrites, copies and removes."""

import json
import os
import random
import shutil
import subprocess
import urllib.request

import pytest
from conftest import ACCESS, ROOT, SECRET, run
from test_objects import MIB, content, keys, put, read

# The program of the folder object_store, which scripts/test builds.
OBJECT_STORE = os.environ.get("OBJECT_STORE_CHECKS", ROOT / "target/object-store/debug/hfcrypt-object-store")


@pytest.fixture
def folder(home):
    """Files of several sizes, among them one that clients send in parts."""
    folder = home / "files"
    for name, size in {"empty": 0, "small.txt": 11, "deep/er/medium": 300_000, "large.bin": 20 * MIB}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(size, size))
    return folder


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def aws(gateway, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return lambda *command, **more: run("aws", "--endpoint-url", gateway.url, *command, **more)


def test_aws_cli(s3, aws, folder, home):
    aws("s3", "cp", "--recursive", folder, "s3://data/in/")
    listing = aws("s3", "ls", "--recursive", "s3://data/").stdout
    assert all(name in listing for name in tree(folder))
    assert "PRE deep/" in aws("s3", "ls", "s3://data/in/").stdout
    aws("s3", "cp", "--recursive", "s3://data/in/", home / "out")
    assert tree(home / "out") == tree(folder)
    assert aws("s3", "sync", folder, "s3://data/in/").stdout == "", "nothing has changed"
    (folder / "small.txt").write_bytes(b"another text")
    assert "small.txt" in aws("s3", "sync", folder, "s3://data/in/").stdout
    aws("s3", "mv", "s3://data/in/large.bin", "s3://data/moved.bin")
    aws("s3api", "get-object", "--bucket", "data", "--key", "moved.bin", "--range", "bytes=5-14", home / "range")
    assert (home / "range").read_bytes() == tree(folder)["large.bin"][5:15]
    aws("s3", "rm", "--recursive", "s3://data/")
    assert keys(s3) == []
    aws("s3", "mb", "s3://other")
    aws("s3", "rb", "s3://other")


@pytest.fixture
def rclone(gateway, home):
    settings = {
        "TYPE": "s3", "PROVIDER": "Other", "ENDPOINT": gateway.url, "ACCESS_KEY_ID": ACCESS, "SECRET_ACCESS_KEY": SECRET,
    }
    env = {**os.environ, "RCLONE_CONFIG": str(home / "rclone.conf")}
    env |= {f"RCLONE_CONFIG_GW_{name}": value for name, value in settings.items()}
    return lambda *command, **more: run("rclone", *command, env=env, **more)


def test_rclone(s3, rclone, folder, home):
    rclone("copy", folder, "gw:data/in")
    rclone("check", "--download", folder, "gw:data/in")
    # By entity tags and sizes.
    rclone("check", folder, "gw:data/in")
    sent = rclone("sync", "-v", "--stats-one-line", folder, "gw:data/in").stderr
    assert "Copied" not in sent, "times are kept, so nothing is sent again"
    rclone("copy", "gw:data/in", home / "out")
    assert tree(home / "out") == tree(folder)
    listed = {entry["Path"]: entry for entry in json.loads(rclone("lsjson", "-R", "gw:data/in").stdout)}
    assert {path for path, entry in listed.items() if not entry["IsDir"]} == set(tree(folder))
    assert rclone("cat", "--offset", "100", "--count", "50", "gw:data/in/large.bin", text=False).stdout == (
        tree(folder)["large.bin"][100:150]
    )
    rclone("moveto", "gw:data/in/small.txt", "gw:data/in/renamed.txt")
    assert read(s3, "in/renamed.txt") == tree(folder)["small.txt"]
    (folder / "small.txt").unlink()
    rclone("sync", folder, "gw:data/in")
    assert set(keys(s3)) == {f"in/{name}" for name in tree(folder)}
    rclone("purge", "gw:data/in")
    assert keys(s3) == []


def test_s5cmd(s3, gateway, folder, home):
    env = {**os.environ, "AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}
    s5cmd = lambda *command, **more: run("s5cmd", "--endpoint-url", gateway.url, *command, env=env, **more)
    s5cmd("cp", f"{folder}/", "s3://data/in/")
    assert set(keys(s3)) == {f"in/{name}" for name in tree(folder)}
    assert "large.bin" in s5cmd("ls", "s3://data/in/*").stdout
    s5cmd("cp", "s3://data/in/*", f"{home / 'out'}/")
    assert tree(home / "out") == tree(folder)
    s5cmd("cp", "s3://data/in/large.bin", "s3://data/copy.bin")
    assert read(s3, "copy.bin") == tree(folder)["large.bin"]
    s5cmd("cp", folder / "small.txt", "s3://data/dir/")
    assert read(s3, "dir/small.txt") == tree(folder)["small.txt"]
    assert s5cmd("cat", "s3://data/dir/small.txt", text=False).stdout == tree(folder)["small.txt"]
    s5cmd("rm", "s3://data/*")
    assert keys(s3) == []


def test_pyarrow(s3, gateway, home):
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow import fs

    files = fs.S3FileSystem(
        access_key=ACCESS, secret_key=SECRET, endpoint_override=gateway.url.split("//")[1], scheme="http",
        region="us-east-1", allow_bucket_creation=True,
    )
    columns = {name: [random.Random(name).random() for _ in range(200_000)] for name in "abcd"}
    table = pa.table(columns)
    pq.write_table(table, "data/t/table.parquet", filesystem=files, row_group_size=50_000)
    assert pq.read_table("data/t/table.parquet", filesystem=files).equals(table)
    assert pq.read_table("data/t/table.parquet", filesystem=files, columns=["c"]).column("c").to_pylist() == columns["c"]
    with files.open_output_stream("data/t/one") as out:
        out.write(b"x")
    with files.open_input_file("data/t/one") as file:
        assert file.read() == b"x"
    files.copy_file("data/t/one", "data/u/two")
    assert files.get_file_info("data/u/two").size == 1
    assert {info.path for info in files.get_file_info(fs.FileSelector("data", recursive=True)) if info.is_file} == {
        "data/t/table.parquet", "data/t/one", "data/u/two"
    }
    files.create_dir("data/empty/deep")
    assert files.get_file_info("data/empty/deep").type == fs.FileType.Directory
    files.delete_file("data/u/two")
    assert files.get_file_info("data/u").type == fs.FileType.Directory, "the last file of a folder leaves a marker"
    files.delete_dir("data/t")
    files.delete_dir("data/u")
    files.delete_dir("data/empty")
    assert keys(s3) == []


def test_minio_client(s3, gateway):
    import io

    from minio import Minio
    from minio.deleteobjects import DeleteObject

    client = Minio(gateway.url.split("//")[1], access_key=ACCESS, secret_key=SECRET, secure=False)
    body = content(9, 12 * MIB)
    client.put_object("data", "k", io.BytesIO(body), len(body), metadata={"a": "1"}, content_type="x/y")
    found = client.stat_object("data", "k")
    assert (found.size, found.content_type, found.metadata["x-amz-meta-a"]) == (len(body), "x/y", "1")
    client.put_object("data", "stream", io.BytesIO(body), -1, part_size=5 * MIB)
    assert client.get_object("data", "stream").data == body
    assert client.get_object("data", "k", offset=7, length=9).data == body[7:16]
    assert [entry.object_name for entry in client.list_objects("data", recursive=True)] == ["k", "stream"]
    assert list(client.remove_objects("data", [DeleteObject("k"), DeleteObject("stream")])) == []
    assert keys(s3) == []


def test_object_store_of_rust(s3, gateway, monkeypatch):
    """The checks that the crate publishes for stores, in a program of the folder object_store."""
    monkeypatch.setenv("RUST_BACKTRACE", "0")
    settings = {"ENDPOINT": gateway.url, "BUCKET": "data", "ALLOW_HTTP": "true", "DEFAULT_REGION": "us-east-1"}
    settings |= {"ACCESS_KEY_ID": ACCESS, "SECRET_ACCESS_KEY": SECRET}
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    done = run(OBJECT_STORE, "a text", check=False)
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.endswith(" failed")] == [], done.stderr
    assert done.returncode == 0 and len([line for line in lines if line.endswith(" ok")]) == 22
    part = ("a text" * MIB)[: 5 * MIB]
    assert read(s3, "kept/parts") == (part + "a text").encode()
    assert s3.get_object_tagging(Bucket="data", Key="kept/tags")["TagSet"] == [{"Key": "kind", "Value": "a test"}]
    url = next(line for line in lines if line.startswith("http"))
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == b"a text"
