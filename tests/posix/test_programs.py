"""Everyday programs inside a mount: git, cargo, SQLite, rsync, tar, vim, lock files.

Each finds its work again after a remount.
"""

import fcntl
import os
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import time

import pytest
from conftest import tool
from shared import BIN, eventually, needs_fuse, run, tree, write_tree

pytestmark = needs_fuse


def sh(*command, cwd=None, check=True):
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 or not check, f"{command} gave {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def again(make, m):
    """Stops a mount and makes it anew, with nothing cached."""
    assert m.stop().returncode == 0
    return make(fresh=True)


def git(repo, *command):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "gc.auto=0"]
    # Permission bits are not kept over a remount (docs/semantics.md).
    return sh(tool("git"), *identity, "-c", "core.fileMode=false", *command, cwd=repo)


def test_git_clones_commits_and_packs(tmp_path, make):
    source = tmp_path / "source"
    files = {f"d{i % 7}/f{i}.txt": f"{i}\n".encode() * (i * 40) for i in range(60)}
    write_tree(source, files)
    (source / "link").symlink_to("d1/f1.txt")
    git(source, "init", "-q", "-b", "main")
    git(source, "add", ".")
    git(source, "commit", "-qm", "first")
    m = make()
    clone, second = m.point / "clone", m.point / "second"
    git(tmp_path, "clone", "-q", source, clone)
    (clone / "d1/f1.txt").write_text("changed\n")
    git(clone, "commit", "-qam", "second")
    git(clone, "checkout", "-qb", "side", "HEAD~1")
    (clone / "new").write_text("new\n")
    git(clone, "add", "new")
    git(clone, "commit", "-qm", "third")
    git(clone, "merge", "-q", "main")
    # Git would link the objects, and dies where a link is a copy; here it copies.
    git(m.point, "clone", "-q", clone, second)
    git(clone, "gc", "-q")
    git(clone, "fsck", "--strict")
    assert git(clone, "status", "--porcelain") == ""

    # Links stay on this machine (docs/semantics.md), so the cache folder has to.
    assert m.stop().returncode == 0
    m = make()
    for repo in (clone, second):
        git(repo, "fsck", "--strict")
        assert git(repo, "status", "--porcelain") == ""
        assert len(git(repo, "log", "--oneline").splitlines()) == 4
    assert os.readlink(clone / "link") == "d1/f1.txt"


def test_cargo_builds_and_builds_nothing_twice(tmp_path, make):
    cargo = tool("cargo")
    m = make()
    package = m.point / "package"
    write_tree(
        package,
        {
            "Cargo.toml": b'[package]\nname = "hello"\nversion = "0.1.0"\nedition = "2021"\n',
            "src/lib.rs": b'pub fn word() -> &\'static str { "hello" }\n#[test] fn t() { assert_eq!(word(), "hello") }\n',
            "src/main.rs": b'fn main() { println!("{}", hello::word()) }\n',
        },
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CARGO_")}
    # The home folder of the tests has no toolchain.
    real_home = os.path.expanduser("~" + os.environ.get("USER", "root"))
    environment |= {"CARGO_HOME": str(tmp_path / "cargo"), "RUSTUP_HOME": os.environ.get("RUSTUP_HOME", f"{real_home}/.rustup")}

    def build(*command):
        done = subprocess.run(
            [cargo, *command, "--offline"], cwd=package, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done

    assert build("run", "-q").stdout == "hello\n"
    build("test", "-q")
    assert "Compiling" not in build("build").stderr
    (package / "src/lib.rs").write_text('pub fn word() -> &\'static str { "changed" }\n')
    assert build("run", "-q").stdout == "changed\n"


WRITER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
for i in range(int(sys.argv[2])):
    connection.execute("BEGIN IMMEDIATE")
    (n,) = connection.execute("SELECT n FROM counter").fetchone()
    connection.execute("UPDATE counter SET n = ?", (n + 1,))
    connection.execute("INSERT INTO log VALUES (?, randomblob(3000))", (n,))
    connection.execute("COMMIT")
    if i == 0:
        print("going", flush=True)
"""


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_sqlite_keeps_its_promises(tmp_path, make, mode):
    m = make()
    path = m.point / "data.db"
    connection = sqlite3.connect(path, isolation_level=None)
    assert connection.execute(f"PRAGMA journal_mode = {mode}").fetchone() == (mode,)
    connection.executescript("CREATE TABLE counter (n); INSERT INTO counter VALUES (0); CREATE TABLE log (n UNIQUE, blob)")
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, path, str(count)], stdout=subprocess.PIPE)
        for count in (40, 40, 100000)
    ]
    for writer in writers:
        assert writer.stdout.readline()
    assert [writer.wait(timeout=120) for writer in writers[:2]] == [0, 0]
    # In the middle of whatever it does.
    writers[2].send_signal(signal.SIGKILL)
    writers[2].wait(timeout=30)

    def check(connection):
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        (n,), (rows,) = connection.execute("SELECT n FROM counter").fetchone(), connection.execute("SELECT count(*) FROM log").fetchone()
        assert n == rows and n > 80
        return n

    n = check(connection)
    connection.close()
    m = again(make, m)
    connection = sqlite3.connect(path, isolation_level=None)
    assert check(connection) == n
    connection.close()


def varied_tree(folder):
    write_tree(
        folder,
        {
            "empty": b"",
            "text": b"text\n" * 1000,
            "big": os.urandom(300_000),
            "deep/er/est": b"x",
            "名前/ü b": b"names",
            "." + "n" * 200: b"long",
        },
    )
    with open(folder / "sparse", "wb") as sparse:
        sparse.seek(1_000_000)
        sparse.write(b"end")
    (folder / "none").mkdir()
    (folder / "link").symlink_to("deep/er")
    (folder / "dangling").symlink_to("/nowhere")
    os.mkfifo(folder / "pipe")
    os.chmod(folder / "text", 0o640)
    os.setxattr(folder / "text", "user.note", b"kept")
    for name in ("text", "big", "deep/er/est", "deep", "none"):
        os.utime(folder / name, (1_000_000_000, 1_111_111_111))


def test_rsync_copies_all_and_then_nothing(tmp_path, make):
    rsync = tool("rsync")
    source = tmp_path / "source"
    varied_tree(source)
    m = make()
    copy = m.point / "copy"
    sh(rsync, "-aHX", f"{source}/", copy)
    assert sh(rsync, "-aHXi", "--checksum", f"{source}/", copy) == ""
    assert os.getxattr(copy / "text", "user.note") == b"kept"
    # Back out, from inside to inside, and with a delta in place.
    sh(rsync, "-aHX", f"{copy}/", tmp_path / "back")
    assert sh(rsync, "-aHXi", "--checksum", f"{source}/", tmp_path / "back") == ""
    sh(rsync, "-aX", f"{copy}/", m.point / "inside")
    with open(source / "big", "r+b") as big:
        big.seek(150_000)
        big.write(b"changed")
    sh(rsync, "-a", "--inplace", "--no-whole-file", f"{source}/", copy)
    sh(rsync, "-a", "--delete", f"{copy}/deep/", m.point / "inside")
    assert tree(m.point / "inside") == {"er/est": b"x"}
    files = tree(source)
    m = again(make, m)
    assert tree(copy) == files
    # Times are on the Hub. Bits, empty folders and what isn't a file were this machine's.
    plain = ("-rti", "--no-perms", "--omit-dir-times", "--checksum")
    plain += tuple(f"--exclude=/{name}" for name in ("none", "link", "dangling", "pipe"))
    assert sh(rsync, *plain, f"{source}/", copy) == ""


def test_tar_packs_and_unpacks(tmp_path, make):
    tar = tool("tar")
    source = tmp_path / "source"
    varied_tree(source)
    os.link(source / "text", source / "same")
    m = make()
    archive, copy = m.point / "all.tar.gz", m.point / "copy"
    sh(tar, "--sparse", "-czf", archive, "-C", source, ".")
    copy.mkdir()
    # The second name of a file becomes a file of its own.
    sh(tar, "-xpzf", archive, "-C", copy)
    assert tree(copy) == tree(source)
    difference = sh(tar, "-dzf", archive, "-C", copy, check=False)
    assert [line for line in difference.splitlines() if "same: Not linked" not in line] == []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(m.point / "s"))
        server.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(m.point / "s"))
    assert stat.S_ISSOCK(os.stat(m.point / "s").st_mode)


def test_vim_saves_in_each_of_its_ways(make):
    vim = tool("vim")
    m = make()
    for ways in ("backupcopy=yes", "backupcopy=no", "backupcopy=auto backup", "nowritebackup"):
        file = m.point / f"{ways}.txt"
        file.write_text("one\n")
        os.chmod(file, 0o640)
        sh(vim, "-Nu", "NONE", "-es", f"+set {ways} directory=. backupdir=.", "+norm otwo", "+w", "+norm othree", "+wq", file)
        assert file.read_text() == "one\ntwo\nthree\n"
        assert stat.S_IMODE(file.stat().st_mode) == 0o640
    files = tree(m.point)
    assert {name for name in files if not name.endswith("~")} == set(files) - {"backupcopy=auto backup.txt~"}
    assert tree(again(make, m).point) == files


def times(path):
    """What backup programs compare."""
    found = os.lstat(path)
    return found.st_ino, found.st_size, found.st_mode, found.st_mtime_ns, found.st_ctime_ns, found.st_atime_ns


@pytest.mark.parametrize("encrypted", [True, False])
def test_times_are_same_before_and_after_upload_and_in_next_mount(make, encrypted):
    m = make("--metadata-ttl-ms", "0", encrypted=encrypted)
    wanted = {
        "now": None,
        "nanoseconds": 1_111_111_111_123_456_789,
        "1972": 63_072_000_250_999_999,
        "before 1970": -54_749_000_001,
        "long before": -5_000_000_000_749_999_999,
    }
    for name, time_ns in wanted.items():
        (m.point / name).write_bytes(b"x")
        if time_ns is not None:
            os.utime(m.point / name, ns=(time_ns, time_ns))
            rounded = time_ns // 1_000_000 * 1_000_000
            assert os.stat(m.point / name).st_mtime_ns == rounded
    before = {name: times(m.point / name) for name in wanted}
    run("hf-mount", "flush", m.point)
    eventually(lambda: m.status()["pending_files"] == 0)
    assert {name: times(m.point / name) for name in wanted} == before
    assert all(found[3] % 1_000_000 == 0 for found in before.values())
    m.stop()
    m = make(encrypted=encrypted, fresh=True)
    assert {name: os.stat(m.point / name).st_mtime_ns for name in wanted} == {name: found[3] for name, found in before.items()}


def test_vim_saves_again_after_upload(make):
    vim = tool("vim")
    m = make("--metadata-ttl-ms", "0")
    file = m.point / "text"
    file.write_text("one\n")
    run("hf-mount", "flush", m.point)
    flush = f"+silent !{BIN / 'hf-mount'} flush {m.point}"
    script = ["+set nomore", "+norm otwo", "+w", flush, "+norm othree", "+w", flush, "+norm ofour", "+wq"]
    done = subprocess.run(
        [vim, "-Nu", "NONE", "-i", "NONE", "-es", *script, file], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, "changed since" in done.stdout + done.stderr) == (0, False), done
    assert file.read_text() == "one\ntwo\nthree\nfour\n"


def test_make_says_same_before_and_after_upload(tmp_path, make):
    program = tool("make")
    m = make("--metadata-ttl-ms", "0")
    (m.point / "Makefile").write_text(f"c: b\n\tcp b c\nb: {tmp_path}/a\n\tcp {tmp_path}/a b\n")
    (tmp_path / "a").write_text("source\n")
    os.utime(tmp_path / "a", ns=(0, 1_700_000_000_000_500_000))
    assert sh(program, "-C", m.point).count("cp ") == 2
    # Newer than its source by less than what is stored.
    os.utime(m.point / "b", ns=(0, 1_700_000_000_000_600_000))
    answers = []
    for _ in range(2):
        answers.append(subprocess.run([program, "-q", "-C", m.point], capture_output=True, timeout=60).returncode)
        run("hf-mount", "flush", m.point)
    assert answers[0] == answers[1] != 2
    assert sh(program, "-C", m.point).count("cp ") == 2
    run("hf-mount", "flush", m.point)
    assert "cp " not in sh(program, "-C", m.point)


HOLDER = """
import sys, filelock
with filelock.FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_locks_hold_between_processes(make):
    filelock = pytest.importorskip("filelock")
    m = make()
    path = m.point / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(filelock.Timeout):
        filelock.FileLock(path).acquire(timeout=0.2)
    holder.communicate()
    with filelock.FileLock(path, timeout=5), pytest.raises(filelock.Timeout):
        with filelock.FileLock(path, timeout=0.2, is_singleton=False):
            pass
    with filelock.SoftFileLock(m.point / "soft", timeout=5), pytest.raises(filelock.Timeout):
        filelock.SoftFileLock(m.point / "soft", is_singleton=False).acquire(timeout=0.2)
    assert not (m.point / "soft").exists()


def test_ranges_lock_between_processes(make):
    m = make()
    path = m.point / "ranges"
    path.write_bytes(bytes(100))
    with open(path, "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 10, 20)
        child = os.fork()
        if child == 0:
            # Only byte 20 to 29 are taken.
            with open(path, "r+b") as mine:
                fcntl.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB, 20, 0)
                try:
                    fcntl.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 25)
                except OSError:
                    os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0


def test_a_whole_file_is_copied_without_its_bytes(make):
    m = make()
    content = os.urandom(3_000_000)
    (m.point / "a").write_bytes(content)
    m = again(make, m)
    sh("cp", m.point / "a", m.point / "b")
    os.link(m.point / "a", m.point / "c")
    sh("cp", "-a", m.point / "a", m.point / "d")
    assert all((m.point / name).read_bytes() == content for name in "bcd")
    # The same stored object under four names: nothing was sealed again.
    eventually(lambda: m.status()["pending_files"] == 0)
    assert len({os.getxattr(m.point / name, "user.hf.hash") for name in "abcd"}) == 1
    with open(m.point / "b", "r+b") as file:
        file.write(b"other")
    m = again(make, m)
    assert (m.point / "a").read_bytes() == content
    assert (m.point / "b").read_bytes() == b"other" + content[5:]


def test_statfs_leaves_room(make):
    m = make()
    told = os.statvfs(m.point)
    assert told.f_bavail * told.f_frsize > 1 << 50 and told.f_namemax == 255
    assert shutil.disk_usage(m.point).free > 1 << 50
    assert time.time() - os.stat(m.point).st_mtime < 3600


def test_exported_pending_files_keep_their_times(tmp_path, make):
    m = make("--flush-debounce-ms", "600000")
    times_ns = {"now": 1_770_399_477_123_000_000, "1972": 63_072_000_250_000_000, "before 1970": -54_750_000_000}
    for name, time_ns in times_ns.items():
        (m.point / name).write_bytes(b"x")
        os.utime(m.point / name, ns=(time_ns, time_ns))
    run("hf-mount", "pending", "export", m.point, tmp_path / "out")
    assert {name: os.stat(tmp_path / "out" / name).st_mtime_ns for name in times_ns} == times_ns
