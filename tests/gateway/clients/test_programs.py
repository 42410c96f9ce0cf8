"""Programs with their default settings: command lines, a backup, mounts."""

import os
import random
import subprocess
import time
import urllib.request
from contextlib import contextmanager

import pytest
from conftest import TOOLS, run
from settings import ACCESS, MIB, REGION, SECRET, address, bodies, content, keys, read, secret  # noqa: F401


@pytest.fixture
def folder(home, secret):
    """A folder with files of several sizes that contain the secret text."""
    for name, body in bodies(secret).items():
        path = home / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    (home / "files" / "empty").touch()
    return home / "files"


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def credentials(gateway, monkeypatch):
    for name, value in {"ACCESS_KEY_ID": ACCESS, "SECRET_ACCESS_KEY": SECRET, "DEFAULT_REGION": REGION}.items():
        monkeypatch.setenv(f"AWS_{name}", value)


def test_aws_cli_2(s3, gateway, credentials, folder, home, secret):
    # Version 1 is installed beside this Python.
    aws = lambda *command, **more: run("/usr/bin/aws", "--endpoint-url", gateway.url, *command, **more)
    assert "aws-cli/2" in run("/usr/bin/aws", "--version").stdout
    aws("s3", "cp", "--recursive", folder, f"s3://data/{secret}/")
    assert {key: read(s3, key) for key in keys(s3)} == {f"{secret}/{name}": body for name, body in tree(folder).items()}
    assert "PRE deep/" in aws("s3", "ls", f"s3://data/{secret}/").stdout
    assert aws("s3", "sync", folder, f"s3://data/{secret}/").stdout == "", "nothing has changed"
    (folder / "small.txt").write_bytes(b"another text")
    assert "small.txt" in aws("s3", "sync", folder, f"s3://data/{secret}/").stdout
    aws("s3", "sync", f"s3://data/{secret}/", home / "out")
    assert tree(home / "out") == tree(folder)
    place = ["--bucket", "data", "--key", f"{secret}/large.bin"]
    aws("s3api", "get-object", *place, "--range", "bytes=9000000-9000099", home / "range")
    assert (home / "range").read_bytes() == tree(folder)["large.bin"][9_000_000:9_000_100]
    aws("s3", "cp", f"s3://data/{secret}/large.bin", "s3://data/copy.bin")
    aws("s3", "mv", "s3://data/copy.bin", "s3://data/moved.bin")
    assert read(s3, "moved.bin") == tree(folder)["large.bin"] and keys(s3, Prefix="copy") == []
    streamed = aws("s3", "cp", f"s3://data/{secret}/deep/er/medium", "-", text=False).stdout
    assert streamed == tree(folder)["deep/er/medium"]
    aws("s3", "cp", "-", "s3://data/stdin", input=b"piped", text=False)
    url = aws("s3", "presign", "s3://data/stdin").stdout.strip()
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == b"piped"
    aws("s3", "rm", "s3://data/stdin")
    aws("s3", "rm", "--recursive", f"s3://data/{secret}/deep/")
    assert set(keys(s3)) == {"moved.bin"} | {f"{secret}/{name}" for name in tree(folder) if "deep" not in name}
    aws("s3", "mb", "s3://other")
    aws("s3", "rb", "s3://other")


def test_s3cmd(s3, gateway, folder, home, secret):
    (home / ".s3cfg").write_text(
        f"[default]\naccess_key = {ACCESS}\nsecret_key = {SECRET}\nhost_base = {address(gateway)}\n"
        f"host_bucket = {address(gateway)}\nuse_https = False\n"
    )
    s3cmd = lambda *command, **more: run("s3cmd", *command, **more)
    s3cmd("put", "--recursive", f"{folder}/", f"s3://data/{secret}/")
    assert {key: read(s3, key) for key in keys(s3)} == {f"{secret}/{name}": body for name, body in tree(folder).items()}
    assert all(name in s3cmd("ls", "--recursive", "s3://data").stdout for name in tree(folder))
    assert "upload:" not in s3cmd("sync", f"{folder}/", f"s3://data/{secret}/").stdout, "nothing has changed"
    (folder / "small.txt").write_bytes(b"another text")
    assert s3cmd("sync", f"{folder}/", f"s3://data/{secret}/").stdout.count("upload:") == 1
    assert read(s3, f"{secret}/small.txt") == b"another text"
    (home / "out").mkdir()
    s3cmd("get", "--recursive", f"s3://data/{secret}/", f"{home / 'out'}/")
    assert tree(home / "out") == tree(folder)
    part = home / "large.bin"
    part.write_bytes(tree(folder)["large.bin"][: 7 * MIB])
    s3cmd("get", "--continue", f"s3://data/{secret}/large.bin", part)
    assert part.read_bytes() == tree(folder)["large.bin"], "a range of the rest"
    assert "application/" in s3cmd("info", f"s3://data/{secret}/large.bin").stdout
    s3cmd("cp", f"s3://data/{secret}/large.bin", "s3://data/copy.bin")
    s3cmd("mv", "s3://data/copy.bin", "s3://data/moved.bin")
    assert read(s3, "moved.bin") == tree(folder)["large.bin"] and keys(s3, Prefix="copy") == []
    s3cmd("modify", "--add-header=x-amz-meta-kind:test", "s3://data/moved.bin")
    head = s3.head_object(Bucket="data", Key="moved.bin")
    assert head["Metadata"]["kind"] == "test" and read(s3, "moved.bin") == tree(folder)["large.bin"]
    (folder / "deep" / "er" / "medium").unlink()
    assert s3cmd("sync", "--delete-removed", f"{folder}/", f"s3://data/{secret}/").stdout.count("delete:") == 1
    assert f"{secret}/deep/er/medium" not in keys(s3)
    s3cmd("del", "s3://data/moved.bin", f"s3://data/{secret}/empty")
    assert set(keys(s3)) == {f"{secret}/{name}" for name in tree(folder) if name != "empty"}
    # Requests that create or list buckets are signed for the region `US`, its default.
    s3cmd("mb", "s3://other")
    s3cmd("put", folder / "small.txt", "s3://other/a")
    s3cmd("del", "--recursive", "--force", "s3://other")
    s3cmd("rb", "s3://other")
    assert [line.split()[-1] for line in s3cmd("ls").stdout.splitlines()] == ["s3://data"]


def test_restic(s3, gateway, credentials, folder, home, secret, monkeypatch):
    monkeypatch.setenv("RESTIC_REPOSITORY", f"s3:{gateway.url}/data/{secret}")
    monkeypatch.setenv("RESTIC_PASSWORD", "a password")
    restic = lambda *command, **more: run("restic", *command, cwd=folder, **more)
    restic("init")
    restic("backup", ".")
    first = tree(folder)
    (folder / "small.txt").write_bytes(b"another text")
    (folder / "new").write_bytes(content(9, 5 * MIB))
    (folder / "large.bin").write_bytes(first["large.bin"][: 9 * MIB] + b"!" + first["large.bin"][9 * MIB :])
    restic("backup", ".")
    assert "2 snapshots" in restic("snapshots").stdout
    assert "no errors were found" in restic("check", "--read-data").stdout
    assert restic("dump", "latest", "/new", text=False).stdout == content(9, 5 * MIB)
    restic("restore", "latest", "--target", home / "latest")
    assert tree(home / "latest") == tree(folder)
    oldest = restic("snapshots", "--json").stdout.split('"short_id":"')[1].split('"')[0]
    restic("restore", oldest, "--target", home / "first")
    assert tree(home / "first") == first
    before = keys(s3)
    assert "remaining" in restic("forget", "--keep-last", "1", "--prune").stdout
    assert set(before) - set(keys(s3)), "packs and snapshots were removed"
    assert "no errors were found" in restic("check", "--read-data").stdout
    restic("restore", "latest", "--target", home / "pruned")
    assert tree(home / "pruned") == tree(folder)
    assert [key for key in keys(s3) if "/locks/" in key] == []


@contextmanager
def mounted(place, *command, **options):
    """Runs a program that mounts a bucket and stays in the foreground. Unmounts at the end."""
    place.mkdir()
    log = open(place.parent / f"{place.name}.log", "ab")
    program = subprocess.Popen([*map(str, command)], stdout=log, stderr=log, **options)
    try:
        until = time.monotonic() + 30
        while not os.path.ismount(place):
            assert program.poll() is None and time.monotonic() < until, open(log.name).read()
            time.sleep(0.05)
        yield place
        run("umount", place)
        assert program.wait(timeout=60) == 0
    finally:
        if program.poll() is None:
            run("umount", "--lazy", place, check=False)
            program.kill()
            program.wait()


def until_true(check, seconds=30):
    """Waits until a mount has done its work in the background."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_s3fs_fuse(s3, gateway, folder, home, secret):
    passwords = home / "passwd-s3fs"
    passwords.write_text(f"{ACCESS}:{SECRET}\n")
    passwords.chmod(0o600)
    options = f"url={gateway.url},use_path_request_style,passwd_file={passwords}"
    s3fs = ["/usr/bin/s3fs", "data", home / "mnt", "-f", "-o", options]
    with mounted(home / "mnt", *s3fs) as mount:
        place = mount / secret
        run("cp", "-r", folder, place)
        assert tree(place) == tree(folder)
        for name, body in tree(folder).items():
            assert read(s3, f"{secret}/{name}") == body
        assert {path.name for path in place.iterdir()} == {path.name for path in folder.iterdir()}
        with open(place / "large.bin", "r+b") as file:
            file.seek(9 * MIB)
            assert file.read(100) == tree(folder)["large.bin"][9 * MIB :][:100]
            file.seek(11 * MIB)
            file.write(b"changed in the middle")
        changed = bytearray(tree(folder)["large.bin"])
        changed[11 * MIB : 11 * MIB + 21] = b"changed in the middle"
        assert read(s3, f"{secret}/large.bin") == changed
        (place / "huge.bin").write_bytes(content(10, 45 * MIB))
        assert read(s3, f"{secret}/huge.bin") == content(10, 45 * MIB), "sent in parts"
        with open(place / "huge.bin", "ab") as file:
            file.write(b"end")
        assert read(s3, f"{secret}/huge.bin") == content(10, 45 * MIB) + b"end", "the old content is copied parts"
        # With `os.truncate` of a closed file s3fs 1.90 writes zeros, to any server.
        with open(place / "deep" / "er" / "medium", "r+b") as file:
            file.truncate(1000)
        assert read(s3, f"{secret}/deep/er/medium") == tree(folder)["deep/er/medium"][:1000]
        os.rename(place / "huge.bin", place / "renamed.bin")
        assert read(s3, f"{secret}/renamed.bin") == content(10, 45 * MIB) + b"end"
        os.rename(place / "deep", place / "moved")
        assert len((place / "moved" / "er" / "medium").read_bytes()) == 1000 and not (place / "deep").exists()
        os.chmod(place / "small.txt", 0o640)
        os.utime(place / "small.txt", (1_600_000_000, 1_600_000_000))
        os.symlink("small.txt", place / "link")
        (place / "folder").mkdir()
        (place / "folder" / "file").touch()
        with pytest.raises(OSError):
            (place / "folder").rmdir()
        (place / "folder" / "file").unlink()
        (place / "folder").rmdir()
        assert not (place / "folder").exists() and not (place / "missing").exists()
    with mounted(home / "again", "/usr/bin/s3fs", "data", home / "again", *s3fs[3:]) as mount:
        place = mount / secret
        found = (place / "small.txt").stat()
        assert (found.st_mode & 0o777, found.st_mtime) == (0o640, 1_600_000_000)
        assert (place / "link").read_bytes() == (place / "small.txt").read_bytes() == secret.encode()
        assert (place / "large.bin").read_bytes() == changed
        run("rm", "-r", place / "moved", place / "renamed.bin", place / "link")
        assert {path.name for path in place.iterdir()} == {path.name for path in folder.iterdir()} - {"deep"}
        s3.put_object(Bucket="data", Key=f"{secret}/from outside/file", Body=b"x")
        assert (place / "from outside" / "file").read_bytes() == b"x", "a folder without a marker"


@pytest.fixture
def rclone(gateway, home, monkeypatch):
    monkeypatch.setenv("RCLONE_CONFIG", str(home / "rclone.conf"))
    settings = {"TYPE": "s3", "PROVIDER": "Other", "ENDPOINT": gateway.url}
    settings |= {"ACCESS_KEY_ID": ACCESS, "SECRET_ACCESS_KEY": SECRET}
    for name, value in settings.items():
        monkeypatch.setenv(f"RCLONE_CONFIG_GW_{name}", value)
    return TOOLS / "rclone"


def test_rclone_mount(s3, rclone, folder, home, secret):
    with mounted(home / "mnt", rclone, "mount", "gw:data", home / "mnt") as mount:
        place = mount / secret
        run("cp", "-r", folder, place)
        until_true(lambda: len(keys(s3, Prefix=secret)) == len(tree(folder)))
        assert tree(place) == tree(folder)
        for name, body in tree(folder).items():
            assert read(s3, f"{secret}/{name}") == body
        with open(place / "large.bin", "rb") as file:
            for start in random.Random(1).sample(range(18 * MIB), 20):
                file.seek(start)
                assert file.read(1000) == tree(folder)["large.bin"][start : start + 1000]
        (place / "small.txt").write_bytes(b"another text")
        assert read(s3, f"{secret}/small.txt") == b"another text" == (place / "small.txt").read_bytes()
        os.rename(place / "large.bin", place / "renamed.bin")
        assert read(s3, f"{secret}/renamed.bin") == tree(folder)["large.bin"]
        os.rename(place / "deep", place / "moved")
        assert read(s3, f"{secret}/moved/er/medium") == tree(folder)["deep/er/medium"]
    # After the rename of a folder, rclone 1.75.2 may read the old names below it, on any server. A new mount doesn't.
    with mounted(home / "again", rclone, "mount", "gw:data", home / "again") as mount:
        place = mount / secret
        assert tree(place) == {
            "empty": b"",
            "moved/er/medium": tree(folder)["deep/er/medium"],
            "renamed.bin": tree(folder)["large.bin"],
            "small.txt": b"another text",
            "with space + & ü%25.bin": tree(folder)["with space + & ü%25.bin"],
        }
        run("rm", "-r", place / "moved")
        assert set(keys(s3)) == {f"{secret}/{path.name}" for path in place.iterdir()}
        assert len(keys(s3)) == 4


def test_rclone_mount_with_write_cache(s3, rclone, folder, home, secret):
    cached = [rclone, "mount", "gw:data", home / "mnt", "--vfs-cache-mode", "writes", "--vfs-write-back", "0"]
    with mounted(home / "mnt", *cached) as mount:
        place = mount / secret
        run("cp", "-r", folder, place)
        with open(place / "large.bin", "r+b") as file:
            file.seek(9 * MIB)
            file.write(b"changed in the middle")
        with open(place / "small.txt", "ab") as file:
            file.write(b" and more")
        changed = bytearray(tree(folder)["large.bin"])
        changed[9 * MIB : 9 * MIB + 21] = b"changed in the middle"
        assert (place / "large.bin").read_bytes() == changed
        until_true(lambda: read(s3, f"{secret}/large.bin") == changed)
        until_true(lambda: read(s3, f"{secret}/small.txt") == secret.encode() + b" and more")
