"""FTP clients with their default settings, and the protocol line by line, on plain and encrypted buckets."""

import ftplib
import json
import os
import signal
import socket
import ssl
import subprocess
import threading
import time
from datetime import datetime, timezone

import pytest
from conftest import BIN, Gateway, Program, run, starting
from ftp import PASSWORD, USER, Ftp, absent, get, put
from test_objects import MIB, content

LARGE = content(3, 3 * MIB)
CANARY = "canary-in-the-coal-mine"


@pytest.fixture
def servers(home, hub, api):
    """Starts FTP gateways over a bucket `data`, and stops those that a test leaves running."""
    api.create_bucket("local/data", private=True)
    yield from starting(Ftp, home)
    assert all("panicked" not in log.read_text() for log in home.glob("*.log"))


@pytest.fixture
def server(servers, options):
    return servers(*options)


@pytest.fixture
def session(server):
    with server.session() as session:
        yield session


def refused(code, work, *arguments):
    with pytest.raises((ftplib.error_perm, ftplib.error_temp), match=f"^{code}"):
        work(*arguments)


def lftp(server, script, check=True):
    host, port = server.address
    settings = "set net:max-retries 1; set net:timeout 20; set cmd:fail-exit yes;"
    command = ["lftp", "-u", f"{USER},{PASSWORD}", "-p", port, "-e", f"{settings} {script}; bye", host]
    return run(*command, check=check)


def tree(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_lftp_mirrors_and_keeps_times(server, home):
    source = home / "source"
    for name, body in {"a": b"1", "deep/er/ü ö": LARGE, "deep/empty": b"", "-dash": b"2"}.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(body)
        os.utime(source / name, (1_500_000_000 + len(name), 1_500_000_000 + len(name)))
    lftp(server, f"mirror -R {source} /data/copy")
    again = lftp(server, f"mirror -R --verbose {source} /data/copy").stdout
    assert "Transferring" not in again and "New:" not in again, again
    back = home / "back"
    lftp(server, f"mirror /data/copy {back}")
    assert tree(back) == tree(source)
    for path in source.rglob("*"):
        if path.is_file():
            assert (back / path.relative_to(source)).stat().st_mtime == path.stat().st_mtime, path
    assert "Transferring" not in lftp(server, f"mirror --verbose /data/copy {back}").stdout
    lftp(server, f"put {source}/a -o /data/one; get /data/one -o {home}/one; mv /data/one /data/two; cat /data/two")
    assert (home / "one").read_bytes() == b"1"
    lftp(server, "rm -r /data/copy")
    assert lftp(server, "cls -1 /data").stdout.split() == ["/data/two"]


def test_lftp_resumes_and_removes_what_is_gone(server, home):
    source, part = home / "source", home / "part"
    source.mkdir()
    for name in ("a", "b c", "d"):
        (source / name).write_bytes(LARGE + name.encode())
    part.write_bytes(LARGE[:MIB])
    lftp(server, f"mirror -R --parallel=3 {source} /data/copy")
    lftp(server, f"put {part} -o /data/file; put -c {source}/a -o /data/file")
    lftp(server, f"get -c /data/file -o {part}; pget -n 3 /data/copy/d -o {home}/d")
    assert part.read_bytes() == LARGE + b"a" and (home / "d").read_bytes() == LARGE + b"d"
    (source / "a").unlink()
    lftp(server, f"mirror -R --delete {source} /data/copy")
    assert lftp(server, "cls -1 /data/copy").stdout.splitlines() == ["/data/copy/b c", "/data/copy/d"]
    lftp(server, f"set ftp:passive-mode no; cd /data/copy; mput {source}/d; glob rm d*; cat 'b c' > {home}/active")
    assert (home / "active").read_bytes() == LARGE + b"b c"
    assert lftp(server, "cls -1 /data/copy").stdout.splitlines() == ["/data/copy/b c"]


def test_curl_resumes_both_ways(server, home):
    whole, part = home / "whole", home / "part"
    whole.write_bytes(LARGE)
    part.write_bytes(LARGE[:MIB])
    url = f"{server.url}/data/file"
    server.curl("-T", part, url)
    server.curl("-C", "-", "-T", whole, url)
    assert server.curl(url) == LARGE
    server.curl("-C", "-", "-o", part, url)
    assert part.read_bytes() == LARGE
    assert server.curl("-r", "5-9", url) == LARGE[5:10]
    server.curl("-T", part, "--ftp-create-dirs", f"{server.url}/data/new/folder/file")
    assert b" file\n" in server.curl(f"{server.url}/data/new/folder/")
    assert server.curl("-l", f"{server.url}/data/new/") == b"folder\n"
    head = server.curl("-I", url).decode()
    assert f"Content-Length: {len(LARGE)}" in head and "Last-Modified: " in head
    assert server.curl(f"{server.url}/data/none", check=False).returncode == 78
    assert server.curl("-l", server.url, user="x:y", check=False).returncode == 67


def test_curl_has_its_ways_to_a_file(server, home):
    (home / "file").write_bytes(LARGE)
    url = f"{server.url}/data/a/b/f%20%22x%22"
    for number, ways in enumerate(
        [
            ["--ftp-method", "nocwd"],
            ["--ftp-method", "singlecwd"],
            ["--ftp-port", "-"],
            ["--ftp-port", "-", "--disable-eprt"],
            ["--disable-epsv"],
        ]
    ):
        server.curl("--ftp-create-dirs", *ways, "-T", home / "file", f"{url}{number}")
        assert server.curl(*ways, f"{url}{number}") == LARGE, ways
    moves = ["-Q", "-CWD /data/a", "-Q", "-RNFR b", "-Q", "-RNTO c", "-Q", '-DELE c/f "x"1', "-Q", "-SITE CHMOD 600 c"]
    assert server.curl(*moves, "-l", f"{server.url}/data/a/") == b"b\n"
    assert server.curl("-l", f"{server.url}/data/a/c/") == "".join(f'f "x"{n}\n' for n in (0, 2, 3, 4)).encode()


def test_ftplib_reads_and_writes(session):
    put(session, "/data/dir with space/file", LARGE)
    assert get(session, "/data/dir with space/file") == LARGE
    assert session.size("/data/dir with space/file") == len(LARGE)
    session.cwd("/data/dir with space")
    assert session.pwd() == "/data/dir with space" and session.nlst() == ["file"]
    put(session, "file", b"new")
    put(session, "empty", b"")
    assert get(session, "file") == b"new" and get(session, "empty") == b""
    facts = dict(session.mlsd())
    assert facts["file"]["type"] == "file" and facts["file"]["size"] == "3"
    assert abs(datetime.strptime(facts["file"]["modify"][:14], "%Y%m%d%H%M%S").timestamp() - time.time()) < 86_400
    session.cwd("..")
    assert dict(session.mlsd(facts=["type"]))["dir with space"] == {"type": "dir"}
    session.rename("dir with space/file", "moved")
    assert get(session, "moved") == b"new" and absent(session, "dir with space/file")
    session.delete("moved")
    refused(550, session.delete, "moved")
    refused(550, get, session, "moved")
    assert session.nlst() == ["dir with space"]


def test_rclone_syncs_and_checks(server, home):
    host, port = server.address
    secret = run("rclone", "obscure", PASSWORD).stdout.strip()
    env = {
        **os.environ,
        "RCLONE_CONFIG": str(home / "rclone.conf"),
        "RCLONE_CONFIG_F_TYPE": "ftp",
        "RCLONE_CONFIG_F_HOST": host,
        "RCLONE_CONFIG_F_PORT": str(port),
        "RCLONE_CONFIG_F_USER": USER,
        "RCLONE_CONFIG_F_PASS": secret,
        "RCLONE_RETRIES": "1",
        "RCLONE_LOW_LEVEL_RETRIES": "1",
    }
    source = home / "source"
    for name, body in {"a": b"1", "deep/er/b": LARGE, "deep/ü": b"3"}.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(body)
    rclone = lambda *command: run("rclone", *command, env=env).stdout
    rclone("copy", source, "F:data/x")
    rclone("check", "--download", source, "F:data/x")
    assert sorted(rclone("lsf", "-R", "F:data/x").split()) == ["a", "deep/", "deep/er/", "deep/er/b", "deep/ü"]
    (source / "a").unlink()
    (source / "c").write_bytes(b"4")
    rclone("sync", source, "F:data/x")
    rclone("check", "--download", source, "F:data/x")
    rclone("moveto", "F:data/x/c", "F:data/x/d")
    assert rclone("cat", "F:data/x/d") == "4"
    rclone("moveto", "F:data/x/deep", "F:data/y")
    assert sorted(rclone("lsf", "-R", "F:data/y").split()) == ["er/", "er/b", "ü"]
    rclone("purge", "F:data/y")
    assert rclone("lsf", "F:data").split() == ["x/"]
    # It keeps times, and tells what is not there from what fails.
    os.utime(source / "c", (1_500_000_000, 1_500_000_000))
    rclone("copy", source, "F:data/z")
    rclone("copy", "F:data/z", home / "back")
    assert tree(home / "back") == tree(source) and (home / "back/c").stat().st_mtime == 1_500_000_000
    assert rclone("sync", "--verbose", source, "F:data/z", "--log-file", home / "log") == ""
    assert "There was nothing to transfer" in (home / "log").read_text()
    for missing in ("F:data/none", "F:none/folder", "F:none"):
        assert run("rclone", "lsf", missing, env=env, check=False).returncode == 3, missing


def test_busybox_and_tnftp(server, home):
    host, port = server.address
    (home / "file").write_bytes(LARGE)
    login = ["-u", USER, "-p", PASSWORD, "-P", port, host]
    run("busybox", "ftpput", *login, "/data/file", home / "file")
    run("busybox", "ftpget", *login, home / "back", "/data/file")
    assert (home / "back").read_bytes() == LARGE
    lines = [f"user {USER} {PASSWORD}", "cd data", f"put {home}/file a.txt", f"put {home}/file b.txt", f"lcd {home}"]
    script = "\n".join([*lines, "prompt", "mget *.txt", "ls", "bye", ""])
    shown = run("tnftp", "-n", host, port, input=script, cwd=home).stdout
    assert (home / "a.txt").read_bytes() == (home / "b.txt").read_bytes() == LARGE
    assert "a.txt" in shown and "file" in shown


def test_session_goes_on_after_what_clients_send_at_login(servers):
    talk = servers().talk(login=False)
    for line, code in [
        ("OPTS UTF8 ON", 200),
        ("opts utf8 on", 200),
        ("OPTS UTF-8 ON", 200),
        ("OPTS MLST type;size;modify;", 200),
        ("CLNT FileZilla", 200),
        ("SYST", 215),
        ("NOOP x", 200),
        ("PWD x", 530),
        ("MODE Z", 530),
        ("XYZZ", 500),
        ("", 500),
        ("RETR", 501),
        ("OPTS", 501),
        ("OPTS HASH", 501),
        ("REIN", 502),
        ("HOST x", 502),
        ("AUTH TLS", 431),
        ("AUTH GSSAPI", 504),
        ("PBSZ 0", 503),
        ("PASS x", 503),
        ("LIST", 530),
        ("STOR x", 530),
        ("EPSV", 530),
        ("PORT 127,0,0,1,4,1", 530),
        ("FEAT", 211),
        (f"USER {USER}", 331),
        (f"PASS {PASSWORD}", 230),
        ("PWD x", 257),
        ("MODE Z", 504),
        ("MODE S", 200),
        ("STRU F", 200),
        ("STRU R", 504),
        ("TYPE A", 200),
        ("TYPE E", 504),
        ("type i", 200),
        ("OPTS HASH MD5", 501),
        ("ALLO 10", 202),
        ("SITE CHMOD 644 x", 202),
        ("SITE EXEC x", 502),
        ("SITE HELP", 214),
        ("RNTO x", 503),
        ("ABOR", 226),
        ("HELP", 214),
        ("STAT", 211),
        ("CWD nowhere", 550),
        ("CDUP", 250),
        ("RETR x", 553),
        ("EPSV 2", 522),
        ("EPSV x", 501),
        ("QUIT", 221),
    ]:
        assert talk.code(line) == code, line
    assert talk.reply() == "", "the server closes the connection"


def test_features_are_those_of_the_server(servers, home):
    features = servers().talk(login=False).ask("FEAT").split("\n")
    assert features[0].startswith("211-") and features[-1] == "211 End"
    assert all(line.startswith(" ") for line in features[1:-1])
    known = ["EPRT", "EPSV", "MDTM", "MFMT", "MLST type*;size*;modify*;perm*;", "REST STREAM", "SITE UTIME", "SIZE"]
    assert [line.strip() for line in features[1:-1]] == [*known, "TVFS", "UTF8", "XMD5"]
    cert, key = certificate(home)
    talk = servers("--tls-cert", cert, "--tls-key", key, "--no-active", name="tls").talk(login=False)
    talk.ask("OPTS MLST Size;nonsense;TYPE;")
    features = [line.strip() for line in talk.ask("FEAT").split("\n")]
    assert features[1:4] == ["AUTH TLS", "PBSZ", "PROT"] and "MLST type*;size*;modify;perm;" in features
    assert "EPRT" not in features


def test_commands_during_a_transfer_are_answered_after_it(server):
    talk = server.talk()
    data = talk.data()
    assert talk.code("STOR /data/f") == 150
    for line in ("PWD", "SIZE /data/f", "x" * 5000, "QUIT"):
        talk.send(line)
    data.sendall(LARGE)
    data.close()
    assert [talk.reply()[:3] for _ in range(5)] == ["226", "257", "213", "500", "221"] and talk.reply() == ""
    with server.session() as session:
        assert get(session, "/data/f") == LARGE


def test_client_that_does_not_connect_is_not_waited_for(servers):
    server = servers("--max-connections", 2)
    talk, other = server.talk(), server.talk()
    for command in ("STOR /data/f", "LIST /data"):
        assert talk.code("EPSV") == 229
        talk.send(command)
        talk.socket.settimeout(5)
        assert talk.code("ABOR") == 426 and talk.reply().startswith("226"), command
        assert talk.code("NOOP") == 200
    assert other.code("EPSV") == 229
    other.send("STOR /data/f")
    other.leave()
    time.sleep(0.5)
    assert server.talk().code("SIZE /data/f") == 550, "the place of a client that has left is free"


def test_offsets_of_reads_and_writes(session):
    put(session, "/data/f", LARGE)
    for rest in (0, 1, 65_536, len(LARGE) - 1, len(LARGE)):
        assert get(session, "/data/f", rest=rest) == LARGE[rest:], rest
    refused(554, lambda: get(session, "/data/f", rest=len(LARGE) + 1))
    assert get(session, "/data/f") == LARGE, "an offset is good for one transfer"
    put(session, "/data/f", b"tail", rest=100_000)
    assert get(session, "/data/f") == LARGE[:100_000] + b"tail"
    refused(554, lambda: put(session, "/data/f", b"x", rest=200_000))
    refused(550, lambda: put(session, "/data/none", b"x", rest=1))
    put(session, "/data/f", LARGE[100_004:], command="APPE")
    put(session, "/data/new", b"first", command="APPE")
    put(session, "/data/new", b" second", command="APPE")
    assert get(session, "/data/f") == LARGE[:100_000] + b"tail" + LARGE[100_004:]
    assert get(session, "/data/new") == b"first second"
    # Nothing behind an offset, and nothing before an append.
    put(session, "/data/new", b"", rest=5)
    put(session, "/data/empty", b"")
    put(session, "/data/empty", b"no more", command="APPE")
    assert get(session, "/data/new") == b"first" and get(session, "/data/empty") == b"no more"
    # A transfer that was refused has used up its offset.
    refused(550, lambda: get(session, "/data/none", rest=3))
    assert get(session, "/data/new") == b"first"


def test_times_are_kept(session, server):
    put(session, "/data/f", LARGE)
    for command, time in [
        ("MFMT 20010203040506 /data/f", "20010203040506"),
        ("SITE UTIME 20020304050607 /data/f", "20020304050607"),
        ("SITE UTIME /data/f 20010101000000 20030405060708 20010101000000 UTC", "20030405060708"),
        ("MDTM 20040506070809 /data/f", "20040506070809"),
        ("MFMT 20050607080910.250 /data/f", "20050607080910.250"),
    ]:
        assert session.sendcmd(command).startswith("213"), command
        assert session.sendcmd("MDTM /data/f") == f"213 {time}", command
    with server.session() as other:
        assert dict(other.mlsd("/data"))["f"]["modify"] == "20050607080910.250"
        assert get(other, "/data/f") == LARGE
        lines = []
        other.retrlines("LIST /data", lines.append)
        assert lines == [f"-rw-r--r--   1 owner    group    {len(LARGE):>13} Jun  7  2005 f"]
    put(session, "/data/20010203040506 x", b"1")
    session.cwd("/data")
    assert session.sendcmd("MDTM 20010203040506 x")[4:8] == f"{datetime.now(timezone.utc):%Y}", "the time of that file"
    session.sendcmd("MFMT 19691231235959 20010203040506 x")
    assert session.sendcmd("MDTM 20010203040506 x") == "213 19691231235959"
    refused(550, session.sendcmd, "MFMT 20010203040506 /data/none")
    refused(501, session.sendcmd, "MFMT 20011303040506 /data/f")
    session.rename("/data/f", "/data/g")
    assert session.sendcmd("MDTM /data/g") == "213 20050607080910.250"


def test_official_client_sees_files_and_times_of_plain_buckets(servers, api, home):
    with servers().session() as session:
        put(session, "/data/a/ü", LARGE)
        session.sendcmd("MFMT 20010203040506 /data/a/ü")
        session.mkd("/data/folder")
        (home / "own").write_bytes(b"by the client")
        api.batch_bucket_files("local/data", add=[(str(home / "own"), "own")])
        assert get(session, "/data/own") == b"by the client"
        files = {
            entry.path: entry for entry in api.list_bucket_tree("local/data", recursive=True) if entry.type == "file"
        }
        assert set(files) == {"a/ü", "folder/.hugbucket_keep", "own"}
        assert files["a/ü"].mtime == datetime(2001, 2, 3, 4, 5, 6, tzinfo=timezone.utc)
        api.download_bucket_files("local/data", files=[("a/ü", str(home / "got"))])
        assert (home / "got").read_bytes() == LARGE


def test_offline_tool_reads_and_writes_what_ftp_does(servers, api, key, home):
    files = {"a b/-dash": LARGE, 'a b/"ü"': b"1", ".empty": b""}
    with servers("--encryption-key-file", key, "--allow-bucket-changes").session() as session:
        for name, body in files.items():
            put(session, f"/data/{name}", body)
        stored = [entry.path for entry in api.list_bucket_tree("local/data", recursive=True) if entry.type == "file"]
        assert all(path.startswith(".enc/") for path in stored)
        api.download_bucket_files("local/data", [(path, str(home / "stored" / path)) for path in stored])
        run("hfcrypt", "decrypt", "--key-file", key, home / "stored", home / "opened")
        assert tree(home / "opened") == files
        run("hfcrypt", "encrypt", "--key-file", key, home / "opened", home / "sealed")
        api.create_bucket("local/other", private=True)
        sealed = tree(home / "sealed")
        api.batch_bucket_files("local/other", add=[(body, name) for name, body in sealed.items()])
        for name, body in files.items():
            assert get(session, f"/other/{name}") == body, name
        assert sorted(session.nlst("/other")) == ["/other/.empty", "/other/a b"]


def test_key_that_opens_nothing_changes_nothing(servers, key, home):
    run("hfcrypt", "keygen", home / "other-key")
    with servers("--encryption-key-file", key).session() as session:
        put(session, "/data/folder/f", LARGE)
        with servers("--encryption-key-file", home / "other-key", name="other").session() as other:
            for work in (
                lambda: other.nlst("/data"),
                lambda: get(other, "/data/folder/f"),
                lambda: put(other, "/data/folder/f", b"x"),
                lambda: other.mkd("/data/new"),
                lambda: other.delete("/data/folder/f"),
                lambda: other.rename("/data/folder", "/data/moved"),
            ):
                refused(550, work)
        assert get(session, "/data/folder/f") == LARGE and session.nlst("/data") == ["/data/folder"]


def test_read_only_gateways_write_nothing(servers, options):
    with servers(*options).session() as session:
        put(session, "/data/folder/f", LARGE)
    server = servers(*options, "--read-only", "--allow-bucket-changes", name="readonly")
    with server.session() as session:
        for work in (
            lambda: put(session, "/data/folder/f", b"x"),
            lambda: put(session, "/data/g", b"x", command="APPE"),
            lambda: session.delete("/data/folder/f"),
            lambda: session.mkd("/data/new"),
            lambda: session.rmd("/data/folder"),
            lambda: session.rename("/data/folder/f", "/data/g"),
            lambda: session.rename("/data/folder", "/data/g"),
            lambda: session.sendcmd("MFMT 20010203040506 /data/folder/f"),
            lambda: session.mkd("/bucket"),
            lambda: session.rmd("/data"),
        ):
            refused(550, work)
        assert get(session, "/data/folder/f") == LARGE and session.nlst() == ["data"]
        assert session.nlst("/data/folder") == ["/data/folder/f"] and session.nlst("/data") == ["/data/folder"]


def test_folders_are_made_renamed_and_removed(session):
    assert session.mkd("/data/a") == "/data/a" and session.nlst("/data") == ["/data/a"]
    refused(550, session.mkd, "/data/a")
    for number in range(20):
        put(session, f"/data/a/deep/{number}", str(number).encode())
    refused(550, session.rmd, "/data/a")
    session.rename("/data/a", "/data/b/c")
    assert sorted(session.nlst("/data/b/c/deep")) == sorted(f"/data/b/c/deep/{number}" for number in range(20))
    assert get(session, "/data/b/c/deep/7") == b"7"
    refused(550, session.cwd, "/data/a/deep")
    refused(553, session.rename, "/data/b/c", "/data/b/c/deep/x")
    session.mkd("/data/taken")
    refused(553, session.rename, "/data/b/c/deep", "/data/taken")
    refused(553, session.rename, "/data", "/other")
    for number in range(20):
        session.delete(f"/data/b/c/deep/{number}")
    session.cwd("/data/b/c/deep")
    assert session.nlst() == []
    session.cwd("/")
    session.rmd("/data/b/c/deep")
    refused(550, session.rmd, "/data/b/c/deep")
    session.rmd("/data/b/c")
    assert sorted(session.nlst("/data")) == ["/data/taken"]
    session.rmd("/data/taken")
    refused(550, session.rmd, "/data")
    put(session, "/data/one", b"1")
    put(session, "/data/two", b"2")
    session.rename("/data/one", "/data/two")
    assert get(session, "/data/two") == b"1" and absent(session, "/data/one")
    refused(550, session.rename, "/data/one", "/data/x")
    session.rename("/data/two", "/data/two")
    assert get(session, "/data/two") == b"1", "a file that is renamed to its own name stays"
    # A slash at the end names a folder.
    refused(553, session.rename, "/data/two", "/data/three/")
    refused(553, put, session, "/data/three/", b"1")
    refused(553, put, session, "/data/three/", b"1", "APPE")
    assert get(session, "/data/two") == b"1" and absent(session, "/data/three")
    # RNTO follows RNFR at once.
    assert session.sendcmd("RNFR /data/two").startswith("350")
    session.voidcmd("NOOP")
    refused(503, session.sendcmd, "RNTO /data/x")
    assert get(session, "/data/two") == b"1" and absent(session, "/data/x")


def test_folders_of_many_files_are_listed_and_moved_whole(servers, api):
    names = [f"{number:04}" for number in range(4100)]
    api.batch_bucket_files("local/data", add=[(b"x", f"many/{name}") for name in names])
    with servers().session() as session:
        assert session.nlst("/data/many") == [f"/data/many/{name}" for name in names]
        assert [name for name, _ in session.mlsd("/data/many")] == names
        assert session.nlst("/data/many/40?9") == [f"/data/many/40{tens}9" for tens in range(10)]
        session.rename("/data/many", "/data/moved/there")
        lines = []
        session.retrlines("LIST /data/moved/there", lines.append)
        assert [line.split()[8] for line in lines] == names and session.nlst("/data") == ["/data/moved"]
        assert session.sendcmd("STAT /data/moved/there").count("\n") == len(names) + 1


def test_file_and_folder_of_one_name_are_both_there(session):
    put(session, "/data/n", b"file")
    put(session, "/data/n/below", b"below")
    lines = []
    session.retrlines("LIST /data", lines.append)
    assert sorted(line[0] for line in lines) == ["-", "d"] and all(line.endswith(" n") for line in lines)
    assert get(session, "/data/n") == b"file" and session.nlst("/data/n") == ["/data/n/below"]
    session.delete("/data/n")
    assert get(session, "/data/n/below") == b"below"


def test_names_of_all_kinds_are_kept(session):
    names = [" before", "after ", "-la", "-dash", 'say "hi"', "it's", "ü", "e\u0301", "日本", "~", "*", "?x", "a[b]"]
    names += ["#h", "%41", "a;b=c", "a:b", "..x", ".x", "a\u00a0b", "226 Done", "\U0001f980", "x" * 200]
    for name in names:
        put(session, f"/data/dir/{name}", name.encode())
    session.cwd("/data/dir")
    assert sorted(session.nlst()) == sorted(name for name, _ in session.mlsd()) == sorted(names)
    for name in names:
        assert get(session, name) == get(session, f"/data/dir/{name}") == name.encode(), name
        assert session.nlst(f"/data/dir/{name}") == [f"/data/dir/{name}"], name
        session.rename(name, f"{name}2")
        session.mkd(name)
        session.cwd(name)
        session.cwd("..")
        session.rmd(name)
    assert sorted(session.nlst()) == sorted(f"{name}2" for name in names)


def test_what_is_missing_is_told(session, server):
    talk = server.talk()
    put(session, "/data/f", b"1")
    for path in ("/data/none", "/data/f/x", "/none", "/none/x", "/No Such!"):
        for command in ("LIST", "NLST", "MLSD", "MLST", "STAT", "CWD", "RMD"):
            assert talk.code(f"{command} {path}") == 550, (command, path)
        if path.count("/") > 1:
            for command in ("SIZE", "MDTM", "RETR", "DELE", "RNFR", "XMD5", "MFMT 20010203040506"):
                assert talk.code(f"{command} {path}") == 550, (command, path)
    refused(550, lambda: put(session, "/none/x", b"1"))
    refused(550, session.mkd, "/none/x")
    assert talk.code("CWD /data/f") == 550 and talk.code("MLSD /data/f") == 501
    assert talk.code("DELE /data") == 553 and talk.code("RMD /") == 553


def test_lists_have_the_forms_that_clients_ask_for(session, server):
    names = ["a b", ".hidden", "-dash", 'say "hi"', "ü", "x.txt", "y.txt", "y1.txt"]
    for name in names:
        put(session, f"/data/dir/{name}", b"1")
    session.cwd("/data/dir")
    lines = []
    session.retrlines("LIST -la", lines.append)
    assert sorted(line.split(None, 8)[8] for line in lines) == sorted(names)
    assert sorted(session.nlst("-a")) == sorted(names)
    assert session.nlst("*.txt") == ["x.txt", "y.txt", "y1.txt"] and session.nlst("?.txt") == ["x.txt", "y.txt"]
    assert session.nlst("/data/dir/x*") == ["/data/dir/x.txt"] and session.nlst("ü") == ["ü"]
    assert session.nlst("*.none") == []
    refused(550, session.nlst, "none")
    talk = server.talk()
    assert talk.ask("CWD /data/dir") == '250 "/data/dir" is the current folder.'
    assert talk.ask("MLST x.txt").split("\n")[1].endswith("; /data/dir/x.txt")
    assert "type=dir;" in talk.ask("MLST") and talk.code("MLSD x.txt") == 501 and talk.code("MLST none") == 550
    assert talk.ask("OPTS MLST size;") == "200 MLST OPTS size;"
    assert talk.ask("MLST x.txt").split("\n")[1] == " size=1; /data/dir/x.txt"
    assert len(talk.ask("STAT /data/dir").split("\n")) == len(names) + 2
    assert talk.code('MKD say "more"') == 257 and talk.ask('CWD say "more"').startswith('250 "/data/dir/say ""more"""')
    made = []
    for number in range(2):
        data = talk.data()
        reply = talk.ask("STOU")
        assert reply.startswith("150 FILE: stou-"), reply
        made.append(reply.removeprefix("150 FILE: "))
        data.sendall(made[-1].encode())
        data.close()
        assert talk.reply().startswith("226")
    session.cwd('say "more"')
    assert session.nlst() == sorted(set(made)) and all(get(session, name) == name.encode() for name in made)


def test_hostile_lines_and_paths_are_refused(session, server):
    put(session, "/data/secret", b"1")
    talk = server.talk()
    for line, code in [
        (b"RETR /data/sec\0ret\r\n", 501),
        (b"RETR /data/sec\x1bret\r\n", 501),
        (b"DELE /data/\xff\r\n", 501),
        (b"RETR ../secret\r\n", 553),
        (b"CWD ..\r\n", 553),
        (b"RETR /../../etc/passwd\r\n", 553),
        (b"CWD /data/../..\r\n", 553),
        (b"STOR /data/.hugbucket/metadata/x\r\n", 553),
        (b"STOR /data/" + b"x" * 300 + b"\r\n", 553),
        (b"STOR /data/" + b"y/" * 600 + b"x\r\n", 553),
        (b"STOR /file\r\n", 553),
        (b"STOR /data/folder/\r\n", 553),
        (b"PORT 10,0,0,1,4,1\r\n", 504),
        (b"PORT 127,0,0,1,0,22\r\n", 504),
        (b"PORT 1,2\r\n", 501),
        (b"EPRT |1|10.0.0.1|2000|\r\n", 504),
        (b"EPRT |2|::1|2000|\r\n", 504),
        (b"x" * 65_536 + b"\r\n", 500),
        (b"RETR " + b"x" * 5000 + b"\r\n", 500),
        (b"REST -1\r\n", 501),
        (b"REST 99999999999999999999\r\n", 501),
        (b"SIZE /data/secret\r\n", 213),
    ]:
        talk.send(line)
        assert talk.reply().startswith(str(code)), line[:40]
    talk.send(b"SIZE /data/secret\nNOOP\n")
    assert (talk.reply(), talk.reply()[:3]) == ("213 1", "200"), "lines may end without a carriage return"
    assert talk.code("LIST") == 425, "no data connection was asked for"


def test_requests_of_browsers_end_the_session(server, session):
    put(session, "/data/f", b"1")
    talk = server.talk(login=False)
    talk.send(f"POST / HTTP/1.1\r\nHost: x\r\n\r\nUSER {USER}\r\nPASS {PASSWORD}\r\nDELE /data/f\r\n".encode())
    assert talk.reply().startswith("421 ") and talk.reply() == ""
    talk = server.talk(login=False)
    codes = [talk.code("nonsense") for _ in range(5)]
    assert codes == [500] * 4 + [421] and get(session, "/data/f") == b"1"


def test_file_may_take_the_name_of_an_emptied_folder(session):
    put(session, "/data/a/b", b"1")
    session.delete("/data/a/b")
    assert session.nlst("/data/a") == []
    put(session, "/data/a", b"2")
    assert session.nlst("/data/a") == ["/data/a"]
    refused(550, session.cwd, "/data/a")
    put(session, "/data/old/x", b"1")
    put(session, "/data/old/y", b"1")
    session.delete("/data/old/x")
    session.rename("/data/old", "/data/new")
    refused(550, session.cwd, "/data/old")
    session.delete("/data/new/y")
    refused(550, session.rename, "/data/new", "/data/other")


def test_names_that_would_forge_entries_are_not_listed(servers, gateways):
    gateways().client().put_object(Bucket="data", Key="a\nforged", Body=b"x")
    with servers(name="beside").session() as session:
        put(session, "/data/b", b"1")
        assert session.nlst("/data") == ["/data/b"]


def test_active_mode_goes_to_the_client_only(servers):
    server = servers()
    with server.session() as session:
        session.set_pasv(False)
        put(session, "/data/f", LARGE)
        assert get(session, "/data/f") == LARGE
    talk = server.talk()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert talk.code(f"EPRT |1|127.0.0.1|{port}|") == 200
        talk.send("NLST /data")
        data, peer = listener.accept()
        assert peer[0] == "127.0.0.1" and data.makefile().read() == "/data/f\n"
        assert talk.reply().startswith("150") and talk.reply().startswith("226")
    assert talk.code(f"EPRT |1|127.0.0.1|{port}|") == 200 and talk.code("NLST /data") == 425, "nobody listens"
    assert talk.code("NLST /data") == 425, "an address is good for one transfer"
    assert talk.code("EPSV ALL") == 200 and talk.code("PORT 127,0,0,1,200,1") == 503 and talk.code("PASV") == 503
    with servers("--no-active", name="passive").session() as session:
        session.set_pasv(False)
        refused(502, put, session, "/data/f", b"1")


def test_ipv6_has_its_own_commands(servers):
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError as error:
            pytest.skip(f"this machine has no IPv6: {error}")
    server = servers(command=("ftp", "--listen", "[::1]:0"))
    assert server.url.startswith("ftp://[::1]:")
    with server.session() as session:
        for is_passive in (True, False):
            session.set_pasv(is_passive)
            put(session, "/data/f", LARGE)
            assert get(session, "/data/f") == LARGE
    assert server.curl(f"{server.url}/data/f") == LARGE
    talk = server.talk()
    for line, code in (
        ("PASV", 425),
        ("EPSV 1", 522),
        ("EPSV 2", 229),
        ("PORT 127,0,0,1,40,1", 504),
        ("EPRT |1|127.0.0.1|4000|", 504),
        ("EPRT |2|::1|80|", 504),
        ("EPRT |2|::1|4000|", 200),
    ):
        assert talk.code(line) == code, line


def test_passive_ports_and_address_are_those_of_the_options(servers):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        first = probe.getsockname()[1]
    last = min(first + 20, 65_535)
    server = servers("--passive-ports", f"{first}-{last}", "--passive-address", "192.0.2.7")
    with server.session() as session:
        put(session, "/data/f", LARGE)
        # For another address than that of the connection, ftplib takes the one of the connection.
        for _ in range(last - first + 5):
            assert session.makepasv()[0] == "127.0.0.1" and get(session, "/data/f") == LARGE
    talk = server.talk()
    for _ in range(3):
        numbers = talk.ask("PASV").split("(")[1].split(")")[0].split(",")
        assert numbers[:4] == ["192", "0", "2", "7"]
        assert first <= int(numbers[4]) * 256 + int(numbers[5]) <= last
        assert first <= int(talk.ask("EPSV").split("|||")[1].split("|")[0]) <= last
    for wrong in ("x", "5-4", "0-5", "65536"):
        done = run("hugbucket", "ftp", "--anonymous", "--passive-ports", wrong, check=False)
        assert done.returncode == 2 and "FIRST-LAST" in done.stderr, wrong


def test_abort_ends_a_transfer_and_not_the_session(session, server):
    put(session, "/data/f", LARGE)
    talk = server.talk()
    data = talk.data()
    assert talk.code("STOR /data/f") == 150
    data.sendall(b"x" * MIB)
    talk.send(b"\xff\xf4\xff\xf2ABOR\r\n")
    assert [talk.reply()[:3], talk.reply()[:3]] == ["426", "226"]
    assert get(session, "/data/f") == LARGE
    put(session, "/data/large", LARGE * 10)
    data = talk.data()
    assert talk.code("RETR /data/large") == 150
    assert data.recv(10)
    assert talk.code("ABOR") == 426 and talk.reply().startswith("226")
    assert talk.code("NOOP") == 200
    data = talk.data()
    assert talk.code("RETR /data/f") == 150
    received = bytearray()
    while piece := data.recv(MIB):
        received += piece
    assert bytes(received) == LARGE and talk.reply().startswith("226")


def test_abort_with_urgent_data_is_answered(servers):
    """Clients send the last signal before ABOR as urgent data. A read ends there, although more has come."""
    talk = servers().talk(login=False)
    talk.socket.settimeout(10)
    assert talk.code("USER nobody") == 331
    # The reply to a wrong password takes a while, and meanwhile nothing is read.
    talk.send("PASS wrong")
    talk.send(b"\xff\xf4\xff")
    talk.socket.send(b"\xf2", socket.MSG_OOB)
    talk.send("ABOR")
    assert talk.reply().startswith("530") and talk.reply().startswith("226")


def test_stop_waits_for_no_client_that_does_not_connect(servers):
    server = servers()
    talks = [server.talk() for _ in range(2)]
    for talk, command in zip(talks, ("STOR /data/f", "RETR /data/f")):
        assert talk.code("EPSV") == 229
        talk.send(command)
    time.sleep(0.2)
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < 5
    assert [talk.reply()[:3] for talk in talks] == ["425", "550"] and talks[0].reply().startswith("421")


def test_gateway_that_waits_for_its_hub_stops_at_once(home):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_local"}
    folders = ["--cache-dir", home / "c", "--data-dir", home / "d"]
    for command in ("s3", "ftp", "serve"):
        ports = [f"--{name}=127.0.0.1:0" for name in (["s3-listen", "ftp-listen"] if command == "serve" else ["listen"])]
        # What is wrong with the options is told before the Hub is asked.
        began = time.monotonic()
        done = run("hugbucket", command, *ports, *folders, env=env, check=False)
        assert done.returncode == 2 and "there is no access key" in done.stderr and time.monotonic() - began < 5
        process = subprocess.Popen(
            [BIN / "hugbucket", command, "--anonymous", *ports, *folders], env=env, stderr=subprocess.PIPE, text=True
        )
        while "Hub request is repeated" not in (line := process.stderr.readline()):
            assert line, "it has ended"
        began = time.monotonic()
        process.terminate()
        process.stderr.close()
        assert process.wait(20) == 0 and time.monotonic() - began < 2, command


def certificate(folder):
    cert, key = folder / "cert.pem", folder / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    run(
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-keyout",
        key,
        "-out",
        cert,
        *subject,
    )
    return cert, key


def test_tls_protects_control_and_data(servers, options, home):
    cert, key = certificate(home)
    server = servers("--tls-cert", cert, "--tls-key", key, *options)
    (home / "file").write_bytes(LARGE)
    url = f"{server.url}/data/file"
    server.curl("--ssl-reqd", "--cacert", cert, "-T", home / "file", url)
    assert server.curl("--ssl-reqd", "--cacert", cert, url) == LARGE
    assert server.curl("--ssl-reqd", url, check=False).returncode != 0, "the certificate is not a known one"
    context = ssl.create_default_context(cafile=cert)
    with ftplib.FTP_TLS(timeout=60, encoding="utf-8", context=context) as session:
        session.connect("localhost", server.address[1])
        session.login(USER, PASSWORD)
        session.prot_p()
        assert get(session, "/data/file") == LARGE and session.nlst("/data") == ["/data/file"]
        put(session, "/data/other", LARGE)
        assert get(session, "/data/other") == LARGE
        refused(503, session.sendcmd, "AUTH TLS")
        refused(536, session.sendcmd, "PROT S")
        # A data connection without TLS stores nothing.
        with socket.create_connection(session.makepasv()) as data:
            assert session.sendcmd("STOR /data/file").startswith("150")
            data.sendall(b"in clear")
        refused(522, session.voidresp)
        assert get(session, "/data/file") == LARGE
        session.prot_c()
        assert get(session, "/data/other") == LARGE, "on loopback the client decides"
    settings = f"set ssl:ca-file {cert}; set ftp:ssl-force yes; set ftp:ssl-protect-data yes"
    command = ["lftp", "-u", f"{USER},{PASSWORD}", "-p", server.address[1], "-e", f"{settings}; cat /data/other; bye"]
    assert run(*command, "127.0.0.1", text=False).stdout == LARGE
    # Somebody in between could have added lines to the one with AUTH.
    talk = server.talk(login=False)
    talk.send(f"AUTH TLS\r\nUSER {USER}\r\nPASS {PASSWORD}\r\n".encode())
    assert talk.reply().startswith("234")
    wrapped = context.wrap_socket(talk.socket, server_hostname="localhost")
    wrapped.sendall(b"PWD\r\n")
    assert wrapped.recv(1000).startswith(b"530 ")
    # A handshake that fails ends the session.
    talk = server.talk()
    assert talk.code("AUTH SSL") == 234
    talk.send("PWD")
    assert b"257" not in talk.file.read()
    (home / "wrong.pem").write_text("nothing")
    for wrong in ([home / "wrong.pem", key], [cert, home / "wrong.pem"], [home / "none", key]):
        done = run("hugbucket", "ftp", "--anonymous", "--tls-cert", wrong[0], "--tls-key", wrong[1], check=False)
        assert done.returncode == 2, wrong


def test_rclone_writes_and_reads_over_tls(servers, options, home):
    """It closes the data connection of an upload without having read anything from it."""
    cert, key = certificate(home)
    server = servers("--tls-cert", cert, "--tls-key", key, *options)
    (home / "file").write_bytes(LARGE)
    host, port = server.address
    secret = run("rclone", "obscure", PASSWORD).stdout.strip()
    remote = f":ftp,host={host},port={port},user={USER},pass={secret},explicit_tls=true:data/file"
    env = {**os.environ, "RCLONE_CONFIG": str(home / "rclone.conf"), "SSL_CERT_FILE": str(cert)}
    env |= {"RCLONE_RETRIES": "1", "RCLONE_LOW_LEVEL_RETRIES": "1"}
    run("rclone", "copyto", home / "file", remote, env=env)
    assert run("rclone", "cat", remote, env=env, text=False).stdout == LARGE


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_data_connections_continue_the_tls_session_of_the_control_connection(servers, home, version):
    """So a client knows that it speaks to the same server."""
    cert, key = certificate(home)
    server = servers("--tls-cert", cert, "--tls-key", key)
    context = ssl.create_default_context(cafile=cert)
    context.minimum_version = context.maximum_version = version
    with ftplib.FTP_TLS(timeout=60, context=context) as session:
        session.connect("localhost", server.address[1])
        session.login(USER, PASSWORD)
        session.prot_p()
        for number in range(3):
            assert session.sendcmd("NOOP").startswith("200")
            address = session.makepasv()
            session.putcmd(f"STOR /data/{number}")
            with socket.create_connection(address) as plain:
                assert session.getresp().startswith("150")
                data = context.wrap_socket(plain, server_hostname="localhost", session=session.sock.session)
                assert data.session_reused and data.version() == session.sock.version()
                data.sendall(LARGE)
                data.unwrap().close()
            session.voidresp()
    with server.session() as session:
        assert all(get(session, f"/data/{number}") == LARGE for number in range(3))


def test_other_machines_need_tls(servers, home):
    cert, key = certificate(home)
    address = next(
        (found[4][0] for found in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)), "127.0.0.1"
    )
    if address.startswith("127."):
        done = run("ip", "-4", "-o", "addr", "show", "scope", "global", check=False).stdout.split()
        address = done[done.index("inet") + 1].split("/")[0] if "inet" in done else address
    if address.startswith("127."):
        pytest.skip("this machine has loopback only")
    refusal = run("hugbucket", "ftp", "--listen", f"{address}:0", "--anonymous", "--data-dir", home / "d", check=False)
    assert refusal.returncode == 2 and "--allow-cleartext" in refusal.stderr
    server = servers("--tls-cert", cert, "--tls-key", key, command=("ftp", "--listen", f"{address}:0"))
    talk = server.talk(login=False)
    assert talk.ask(f"USER {USER}").startswith("530 A login needs TLS")
    with ftplib.FTP_TLS(timeout=60, context=ssl._create_unverified_context()) as session:
        session.connect(*server.address)
        session.login(USER, PASSWORD)
        refused(521, session.nlst, "/data")
        session.prot_p()
        assert session.nlst("/data") == []
        refused(534, session.prot_c)
    clear = servers("--allow-cleartext", name="clear", command=("ftp", "--listen", f"{address}:0"))
    with clear.session() as session:
        put(session, "/data/f", b"1")


KEYS = """
[[key]]
access_key_id = "reader"
secret_access_key = "r"
permission = "read"

[[key]]
access_key_id = "scoped"
secret_access_key = "s"
scopes = ["data/models/public/"]
"""


def test_access_keys_hold_for_ftp(servers, api, home):
    api.create_bucket("local/other", private=True)
    (home / "keys.toml").write_text(KEYS)
    (home / "keys.toml").chmod(0o600)
    server = servers("--credentials-file", home / "keys.toml")
    with server.session() as session:
        for path in ("/data/models/public/a", "/data/models/private/b", "/data/c", "/other/d"):
            put(session, path, path.encode())
    with server.session("reader", "r") as session:
        assert get(session, "/other/d") == b"/other/d"
        lines = []
        session.retrlines("LIST /other", lines.append)
        assert lines[0].startswith("-r--r--r--")
        for work in (
            lambda: put(session, "/data/c", b""),
            lambda: session.delete("/data/c"),
            lambda: session.mkd("/data/x"),
            lambda: session.rename("/data/c", "/data/d"),
            lambda: session.sendcmd("MFMT 20010203040506 /data/c"),
            lambda: put(session, "/data/c", b"", command="APPE"),
            lambda: session.rmd("/data/models"),
        ):
            refused(550, work)
    with server.session("scoped", "s") as session:
        assert session.nlst("/") == ["/data"] and session.nlst("/data") == ["/data/models"]
        assert session.nlst("/data/models") == ["/data/models/public"]
        assert get(session, "/data/models/public/a") == b"/data/models/public/a"
        put(session, "/data/models/public/new/x", b"1")
        session.rename("/data/models/public/new", "/data/models/public/newer")
        for path in ("/data/models/private/b", "/data/c", "/other/d", "/data/models/none"):
            refused(550, get, session, path)
        for path in ("/data/models/private", "/other"):
            refused(550, session.cwd, path)
        refused(550, lambda: session.rename("/data/models/public/a", "/data/c"))
        refused(550, lambda: session.rename("/data/models/public", "/data/models/p"))
        # What is hidden looks like what isn't there.
        assert session.nlst("/data/*") == ["/data/models"]
        assert session.nlst("/data/models/p*") == ["/data/models/public"]
        for command in ("LIST", "MLST", "MLSD", "STAT", "CWD", "SIZE", "MDTM", "RETR", "DELE", "RNFR", "XMD5"):
            told = []
            for path in ("/data/c", "/data/x", "/data/models/private", "/data/models/x", "/other", "/x"):
                with pytest.raises(ftplib.error_perm) as caught:
                    session.sendcmd(f"{command} {path}")
                told.append(str(caught.value))
            assert told[0] == told[1] and told[2] == told[3] and told[4] == told[5], (command, told)
    # The rights are those of the last login, also for what was begun before.
    with server.session() as session:
        session.cwd("/other")
        assert session.sendcmd("RNFR /other/d").startswith("350")
        session.login("scoped", "s")
        assert session.pwd() == "/"
        refused(503, session.sendcmd, "RNTO /data/models/public/stolen")
        refused(550, get, session, "/other/d")
        refused(530, session.login, "reader", "wrong")
        refused(530, session.sendcmd, "PWD")
    with server.session() as session:
        assert get(session, "/data/c") == b"/data/c"


def test_failed_logins_take_longer_and_end_the_connection(servers):
    talk, took = servers().talk(login=False), []
    for attempt in range(5):
        began = time.monotonic()
        assert talk.code(f"USER {USER if attempt % 2 else 'nobody'}") == 331, "an unknown name isn't told"
        assert talk.code("PASS wrong") == (421 if attempt == 4 else 530)
        took.append(time.monotonic() - began)
    assert talk.reply() == "" and all(later > 1.6 * earlier for earlier, later in zip(took, took[1:])), took


def test_anonymous_sessions_need_the_option(servers):
    refused(530, servers().session, "anonymous", "me@here")
    server = servers("--anonymous", name="open", env={"FTP_USERNAME": None, "FTP_PASSWORD": None})
    with server.session("anonymous", "me@here") as session:
        put(session, "/data/f", b"1")
    refused(530, server.session, USER, PASSWORD)


def test_buckets_change_only_if_that_is_allowed(servers, api):
    with servers().session() as session:
        refused(550, session.mkd, "/new")
        refused(550, session.rmd, "/data")
    with servers("--allow-bucket-changes", name="allowed").session() as session:
        session.mkd("/new")
        refused(550, session.mkd, "/new")
        put(session, "/new/f", b"1")
        put(session, "/data/f", b"2")
        session.rename("/new/f", "/data/moved")
        assert get(session, "/data/moved") == b"1" and session.nlst("/new") == []
        refused(550, session.rmd, "/data")
        session.mkd("/new/folder")
        refused(553, lambda: session.rename("/new/folder", "/data/folder"))
        session.rmd("/new/folder")
        session.rmd("/new")
        assert session.nlst() == ["data"]
        # A bucket that is made anew has nothing of the old one.
        session.mkd("/again")
        put(session, "/again/folder/f", b"1")
        session.delete("/again/folder/f")
        session.rmd("/again")
        session.mkd("/again")
        refused(550, session.cwd, "/again/folder")
        refused(550, session.rmd, "/again/folder")
        session.rmd("/again")
    assert [bucket.id for bucket in api.list_buckets(namespace="local")] == ["local/data"]


def test_limits_of_connections_and_of_idle_sessions(servers):
    server = servers("--max-connections", 2, "--idle-timeout-secs", 2)
    first, second = server.talk(), server.talk()
    with socket.create_connection(server.address) as third:
        assert third.recv(100).startswith(b"421 ")
    data = first.data()
    assert first.code("STOR /data/f") == 150
    assert second.reply().startswith("421 ") and second.reply() == ""
    time.sleep(0.5)
    data.sendall(b"1")
    data.close()
    assert first.reply().startswith("226"), "a session with a transfer isn't idle"
    server = servers("--max-connections-per-address", 1, name="one")
    first = server.talk()
    with socket.create_connection(server.address) as second:
        assert second.recv(100).startswith(b"421 ")
    first.leave()
    time.sleep(0.3)
    assert server.talk().code("NOOP") == 200, "the place is free again"


def test_stop_lets_transfers_finish(server):
    talk = server.talk()
    idle = server.talk()
    data = talk.data()
    assert talk.code("STOR /data/f") == 150
    data.sendall(LARGE[:MIB])
    server.process.send_signal(signal.SIGTERM)
    assert idle.reply().startswith("421 ")
    with pytest.raises(OSError):
        socket.create_connection(server.address).recv(1)
    data.sendall(LARGE[MIB:])
    data.close()
    assert talk.reply().startswith("226 ")
    assert talk.reply().startswith("421 ") and server.process.wait(30) == 0
    server.start()
    with server.session() as session:
        assert get(session, "/data/f") == LARGE


class Both(Gateway):
    """`hugbucket` with MODE, both protocols in one process."""

    def __init__(self, home, *options, env=None):
        env = {
            "HUGBUCKET_FTP_LISTEN": "127.0.0.1:0",
            "HUGBUCKET_S3_LISTEN": "127.0.0.1:0",
            "FTP_USERNAME": USER,
            "FTP_PASSWORD": PASSWORD,
            "AWS_ACCESS_KEY_ID": USER,
            "AWS_SECRET_ACCESS_KEY": PASSWORD,
            **(env or {}),
        }
        env = {
            **os.environ,
            "MODE": "s3,ftp",
            "HUGBUCKET_PASSIVE_PORTS": "0",
            "HUGBUCKET_DATA_DIR": str(home / "d"),
            "HUGBUCKET_CACHE_DIR": str(home / "c"),
            **env,
        }
        self.ftp_url = None
        super(Gateway, self).__init__("hugbucket", *options, env=env, log=home / "both.log")
        self.ftp_url = self.process.stdout.readline().strip()

    def session(self):
        host, port = self.ftp_url.removeprefix("ftp://").split(":")
        session = ftplib.FTP(timeout=60, encoding="utf-8")
        session.connect(host, int(port))
        session.login(USER, PASSWORD)
        return session


def test_s3_and_ftp_in_one_process(home, hub, options):
    both = Both(home, *[f"{name}={value}" for name, value in zip(options[::2], options[1::2])], "--metadata=bucket")
    try:
        s3 = both.client(USER, PASSWORD)
        s3.create_bucket(Bucket="data")
        s3.put_object(Bucket="data", Key="a/by-s3", Body=LARGE, ContentType="text/plain", Metadata={"k": "v"})
        with both.session() as session:
            assert get(session, "/data/a/by-s3") == LARGE and session.sendcmd("XMD5 /data/a/by-s3").startswith("250 ")
            put(session, "/data/a/by-ftp", LARGE)
            refused(550, session.sendcmd, "XMD5 /data/a/by-ftp")
            session.rename("/data/a/by-s3", "/data/a/moved")
            session.sendcmd("MFMT 20010203040506 /data/a/moved")
            put(session, "/data/a/moved", b"more", command="APPE")
        assert s3.get_object(Bucket="data", Key="a/by-ftp")["Body"].read() == LARGE
        found = s3.get_object(Bucket="data", Key="a/moved")
        assert (
            found["Body"].read() == LARGE + b"more"
            and found["Metadata"] == {"k": "v"}
            and found["ContentType"] == "text/plain"
        )
        s3.put_object(Bucket="data", Key="a/moved", Body=b"new")
        with both.session() as session:
            assert get(session, "/data/a/moved") == b"new"
            put(session, "/data/a/moved", b"newer")
        head = s3.head_object(Bucket="data", Key="a/moved")
        assert head["Metadata"] == {} and head["ETag"].endswith('-x"') and head["ContentLength"] == 5
    finally:
        both.stop()


def test_mode_chooses_the_protocols(home, hub, api):
    api.create_bucket("local/data", private=True)
    env = {
        **os.environ,
        "MODE": "ftp",
        "HUGBUCKET_FTP_LISTEN": "127.0.0.1:0",
        "HUGBUCKET_PASSIVE_PORTS": "0",
        "HUGBUCKET_DATA_DIR": str(home / "d"),
        "HUGBUCKET_CACHE_DIR": str(home / "c"),
        "FTP_USERNAME": USER,
        "FTP_PASSWORD": PASSWORD,
    }
    server = Program("hugbucket", env=env, log=home / "mode.log")
    try:
        assert server.url.startswith("ftp://127.0.0.1:")
        assert run("curl", "-sS", "-u", f"{USER}:{PASSWORD}", "-l", server.url).stdout == "data\n"
    finally:
        server.stop()
    assert server.process.stdout.read() == "", "no other protocol is served"
    for mode in ("x", "s3 ftp", "ftp,x"):
        done = run("hugbucket", env={**env, "MODE": mode}, check=False)
        assert done.returncode == 2 and "--mode" in done.stderr, (mode, done.stderr)
    incomplete = {name: value for name, value in env.items() if name != "FTP_PASSWORD"}
    done = run("hugbucket", env=incomplete, check=False)
    assert done.returncode == 2 and "FTP_PASSWORD" in done.stderr


def test_metadata_in_the_state_follows_renames(home, hub):
    both = Both(home, "--metadata=state")
    try:
        s3 = both.client(USER, PASSWORD)
        s3.create_bucket(Bucket="data")
        for key in ("a/one", "b"):
            s3.put_object(Bucket="data", Key=key, Body=key.encode(), Metadata={"k": key})
        with both.session() as session:
            session.rename("/data/a", "/data/c")
            session.rename("/data/b", "/data/d")
        for key, was in (("c/one", "a/one"), ("d", "b")):
            assert s3.head_object(Bucket="data", Key=key)["Metadata"] == {"k": was}
    finally:
        both.stop()


def test_settings_come_from_options_variables_and_a_file(home, hub):
    lines = ['s3-listen = "127.0.0.1:1"', "read-only = true", 'namespace = ["one", "two"]', "idle-timeout-secs = 9"]
    (home / "config.toml").write_text("\n".join(lines))
    env = {
        **os.environ,
        "HUGBUCKET_IDLE_TIMEOUT_SECS": "7",
        "HUGBUCKET_DOMAIN": "a.example,b.example",
        "AWS_ACCESS_KEY_ID": "me",
        "AWS_SECRET_ACCESS_KEY": CANARY,
    }
    shown = run("hugbucket", "config", "show", "--json", "--config", home / "config.toml", env=env).stdout
    assert CANARY not in shown and "hf_local" not in shown
    found = {setting["name"]: (setting["values"], setting["source"]) for setting in json.loads(shown)["settings"]}
    assert found["s3-listen"] == (["127.0.0.1:1"], "file") and found["read-only"] == (["true"], "file")
    assert found["namespace"] == (["one", "two"], "file")
    assert found["idle-timeout-secs"] == (["7"], "environment (HUGBUCKET_IDLE_TIMEOUT_SECS)")
    assert found["domain"] == (["a.example", "b.example"], "environment (HUGBUCKET_DOMAIN)")
    assert found["ftp-listen"] == (["127.0.0.1:2121"], "default")
    assert found["hf-token"] == (["(hidden)"], "environment (HF_TOKEN)")
    assert found["AWS_SECRET_ACCESS_KEY"] == (["(hidden)"], "environment") and found["AWS_ACCESS_KEY_ID"][0] == ["me"]
    lines = run("hugbucket", "config", "show", "--config", home / "config.toml", env=env).stdout
    assert CANARY not in lines and "hf_local" not in lines and "idle-timeout-secs" in lines
    secrets = {"HUGBUCKET_STATE": f"postgres://me:{CANARY}@127.0.0.1/x", "FTP_USERNAME": "f", "FTP_PASSWORD": CANARY}
    assert CANARY not in run("hugbucket", "config", "show", "--json", env={**env, **secrets}).stdout
    shown = run("hugbucket", "config", "show", "--json", env={**env, "MODE": "s3,ftp"}).stdout
    found = {setting["name"]: (setting["values"], setting["source"]) for setting in json.loads(shown)["settings"]}
    assert found["ftp-listen"][0] == ["0.0.0.0:2121"] and found["s3-listen"][0] == ["0.0.0.0:9000"]
    done = run("hugbucket", "config", "show", env={**env, "HUGBUCKET_ANONYMOUS": "disabled"}, check=False)
    assert done.returncode == 2, "a word that isn't true or false"
    (home / "wrong.toml").write_text("nonsense = 1")
    done = run("hugbucket", "--config", home / "wrong.toml", env={**env, "MODE": "ftp"}, check=False)
    assert done.returncode == 2 and "nonsense is no setting" in done.stderr, "options without a command"
    # A file serves one protocol too, and an option wins over it.
    (home / "config.toml").write_text('ftp-listen = "127.0.0.1:1"\ncors-origin = "*"\nallow-bucket-changes = true\n')
    server = Ftp(home, "--config", home / "config.toml")
    with server.session() as session:
        session.mkd("/made")
    server.stop()
    # The option, the variable and the file each name another limit.
    (home / "config.toml").write_text("max-connections-per-address = 1\n")
    limit, env = "--max-connections-per-address", {"HUGBUCKET_CONFIG": str(home / "config.toml")}
    for expected, options, variables in (
        (1, [], {}),
        (2, [], {"HUGBUCKET_MAX_CONNECTIONS_PER_ADDRESS": "2"}),
        (3, [limit, 3], {"HUGBUCKET_MAX_CONNECTIONS_PER_ADDRESS": "2"}),
    ):
        server = Ftp(home, *options, name=f"limit-{expected}", env={**env, **variables})
        sessions = [server.session() for _ in range(expected)]
        refused(421, server.session)
        for session in sessions:
            session.close()
        server.stop()
    for text, part in (
        ("nonsense = 1", "nonsense is no setting"),
        ("anonymous = 3", "anonymous is true or false"),
        ("x", "line 1"),
        ('s3-listen = "127.0.0.1:0"\nmode = [', "line 2"),
        ('hf-token = "hf_x"', "hf-token can't be in the file"),
        ('idle-timeout-secs = "soon"', "idle-timeout-secs"),
        ("read-only = [1.5]", "read-only"),
    ):
        (home / "config.toml").write_text(text)
        done = run("hugbucket", "serve", "--config", home / "config.toml", check=False)
        assert done.returncode == 2 and part in done.stderr, done.stderr


def test_health_and_metrics(home, hub):
    port = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{port.getsockname()[1]}"
    port.close()
    both = Both(home, f"--admin-listen={address}")
    try:
        assert run("hugbucket", "health", "--url", f"http://{address}/readyz").stdout == "ready\n"
        s3 = both.client(USER, PASSWORD)
        s3.create_bucket(Bucket="data")
        with both.session() as session:
            put(session, "/data/f", LARGE)
            for _ in range(2):
                assert get(session, "/data/f") == LARGE
        metrics = subprocess.run(["curl", "-s", f"http://{address}/metrics"], capture_output=True, text=True).stdout
        values = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
        assert values["hugbucket_ftp_received_bytes_total"] == str(len(LARGE))
        assert (
            values["hugbucket_ftp_sent_bytes_total"] == str(2 * len(LARGE))
            and values["hugbucket_ftp_sessions_total"] == "1"
        )
        for cache in ("chunks", "plans"):
            assert int(values[f'hugbucket_cache_hits_total{{cache="{cache}"}}']) > 0, cache
            assert int(values[f'hugbucket_cache_misses_total{{cache="{cache}"}}']) > 0, cache
        hub.stop()
        unready = run("hugbucket", "health", "--url", f"http://{address}/readyz", check=False)
        assert unready.returncode == 5
    finally:
        both.stop()
    assert run("hugbucket", "health", "--url", f"http://{address}/readyz", check=False).returncode == 5


def test_nothing_of_an_encrypted_bucket_is_in_clear(servers, key, home):
    words = ["--encryption-key-file", key, "--allow-bucket-changes", "-vvv"]
    server = servers(*words, env={"RUST_LOG": "trace", "FTP_PASSWORD": f"{PASSWORD}-{CANARY}"})
    with server.session(password=f"{PASSWORD}-{CANARY}") as session:
        put(session, f"/data/{CANARY}/{CANARY}", CANARY.encode() * 1000)
        put(session, f"/data/{CANARY}/{CANARY}", CANARY.encode(), command="APPE")
        session.mkd(f"/data/{CANARY}-made")
        session.rename(f"/data/{CANARY}", f"/data/{CANARY}-2")
        assert len(get(session, f"/data/{CANARY}-2/{CANARY}")) == 1001 * len(CANARY)
        refused(550, get, session, f"/data/{CANARY}-none")
        refused(553, put, session, f"/data/../../{CANARY}", b"")
        session.retrlines(f"LIST /data/{CANARY}-2", len)
        for command in ("MLST", "STAT", "CWD", "MFMT 20010203040506", "XMD5", "BLAH", "SITE BLAH", "USER"):
            try:
                session.sendcmd(f"{command} /data/{CANARY}-2/{CANARY}")
            except ftplib.Error:
                pass
        refused(530, session.login, USER, CANARY)
    server.stop()
    assert "a login failed" in server.log_file.read_text()
    for path in home.rglob("*"):
        assert CANARY not in path.name, path
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path
    # The test can fail: without a key the Hub has the names.
    with servers(name="plain").session() as session:
        put(session, f"/data/{CANARY}", b"1")
    assert any(CANARY.encode() in path.read_bytes() for path in (home / "hub").rglob("*") if path.is_file())


def test_many_clients_work_beside_each_other(server):
    def work(number):
        with server.session() as session:
            for turn in range(3):
                put(session, f"/data/{number}/{turn}", f"{number} {turn}".encode())
                assert get(session, f"/data/{number}/{turn}") == f"{number} {turn}".encode()
            done.append(number)

    done = []
    threads = [threading.Thread(target=work, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(done) == 40
