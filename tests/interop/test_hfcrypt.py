"""`hfcrypt` on local files: what it prints, what it leaves, with which exit code."""

import json
import os
import random
import subprocess

import pytest

from conftest import BIN, ROOT, run, tree, write_tree

DATA = random.Random(6).randbytes(200_001)


def fails(*command, exit, words, **options):
    done = run(*command, check=False, **options)
    assert done.returncode == exit, (done.returncode, done.stderr)
    assert words in done.stderr, done.stderr
    assert done.stdout == "" or not isinstance(done.stdout, str)
    return done.stderr


def test_keygen_makes_a_private_key_and_never_overwrites_one(tmp_path, home):
    raw, hexed = tmp_path / "raw", tmp_path / "hex"
    id_ = run("hfcrypt", "keygen", raw).stdout.strip()
    assert len(id_) == 16 and raw.stat().st_size == 32 and raw.stat().st_mode & 0o777 == 0o600
    run("hfcrypt", "keygen", "--hex", hexed)
    assert len(bytes.fromhex(hexed.read_text())) == 32
    before = raw.read_bytes()
    fails("hfcrypt", "keygen", raw, exit=2, words="exists already")
    assert raw.read_bytes() == before
    assert json.loads(run("hfcrypt", "key", "show", raw, "--json").stdout) == {
        "key_id": id_, "form": "raw", "passphrase": False, "warnings": [],
    }
    hexed.write_text(raw.read_bytes().hex())
    assert json.loads(run("hfcrypt", "key", "show", hexed, "--json").stdout)["key_id"] == id_


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33, b"0" * 63 + b"g", b"0" * 65, b"\xef\xbb\xbf" + b"0" * 64, b"x" * 100_000])
def test_what_is_no_key_is_refused(tmp_path, home, content):
    (tmp_path / "key").write_bytes(content)
    message = fails("hfcrypt", "key", "show", tmp_path / "key", exit=2, words="not a key")
    assert "hint: " in message and content[:20].decode("latin1") not in message.replace(str(tmp_path), "") or not content


def test_a_readable_or_odd_key_is_warned_about(tmp_path, home):
    (tmp_path / "key").write_bytes(b"0123456789abcdef0123456789abcdef")
    os.chmod(tmp_path / "key", 0o644)
    warnings = run("hfcrypt", "key", "show", tmp_path / "key").stderr
    assert warnings.count("warning: ") >= 2 and "chmod 600" in warnings


@pytest.mark.parametrize("form,padding", [("1", "none"), ("2", "none"), ("2", "padme")])
def test_files_and_pipes_come_back(tmp_path, key, form, padding):
    options = ["--key-file", key, "--encryption-format", form, "--size-padding", padding]
    for size in (0, 1, 65_536, 65_537, len(DATA)):
        (tmp_path / "in").write_bytes(DATA[:size])
        piped = run("hfcrypt", "encrypt", *options, "-", "-", input=DATA[:size], text=False).stdout
        run("hfcrypt", "encrypt", *options, tmp_path / "in", tmp_path / "sealed")
        assert len(piped) == (tmp_path / "sealed").stat().st_size
        for sealed in (piped, (tmp_path / "sealed").read_bytes()):
            (tmp_path / "one").write_bytes(sealed)
            assert run("hfcrypt", "decrypt", "--key-file", key, tmp_path / "one", "-", text=False).stdout == DATA[:size]
            assert run("hfcrypt", "decrypt", "--key-file", key, "-", "-", input=sealed, text=False).stdout == DATA[:size]
        run("hfcrypt", "decrypt", "--key-file", key, tmp_path / "sealed", tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == DATA[:size]
        info = json.loads(run("hfcrypt", "inspect", "--json", tmp_path / "sealed").stdout)
        assert (info["format"], info["plain_len"]) == (int(form), size if form == "1" else None)
        (tmp_path / "sealed").unlink(), (tmp_path / "out").unlink()


def test_nothing_is_overwritten_and_nothing_partial_is_left(tmp_path, key):
    (tmp_path / "in").write_bytes(DATA)
    run("hfcrypt", "encrypt", "--key-file", key, tmp_path / "in", tmp_path / "sealed")
    fails("hfcrypt", "encrypt", "--key-file", key, tmp_path / "in", tmp_path / "sealed", exit=2, words="exists already")
    damaged = bytearray((tmp_path / "sealed").read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "damaged").write_bytes(damaged)
    message = fails("hfcrypt", "decrypt", "--key-file", key, tmp_path / "damaged", tmp_path / "out", exit=20, words="record 3 does not authenticate")
    assert "hint: " in message and "another key" in message
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "home") == ["damaged", "in", "key.bin", "sealed"]


def test_folders_come_back_whole_and_what_can_not_be_kept_is_named(tmp_path, key):
    files = {"a": b"1", "b/c": DATA, "b/" + "l" * 255: b"long"}
    write_tree(tmp_path / "plain", files)
    os.symlink("a", tmp_path / "plain/link")
    (tmp_path / "plain/hollow").mkdir()
    message = fails("hfcrypt", "encrypt", "--key-file", key, tmp_path / "plain", tmp_path / "up", exit=1, words="1 of 4 files were not encrypted")
    assert "plain/link" in message and "empty folders" in message
    assert set(p.name for p in (tmp_path / "up").iterdir()) == {".enc"}
    run("hfcrypt", "decrypt", "--key-file", key, tmp_path / "up", tmp_path / "back")
    assert tree(tmp_path / "back") == files


def test_other_keys_are_counted_a_wrong_key_is_12_and_plaintext_is_copied_on_request(tmp_path, key):
    write_tree(tmp_path / "plain", {"mine": b"1"})
    run("hfcrypt", "encrypt", "--key-file", key, tmp_path / "plain", tmp_path / "up")
    run("hfcrypt", "keygen", tmp_path / "key2")
    fails("hfcrypt", "decrypt", "--key-file", tmp_path / "key2", tmp_path / "up", tmp_path / "no", exit=12, words="opens nothing")
    write_tree(tmp_path / "plain2", {"theirs": b"2"})
    run("hfcrypt", "encrypt", "--key-file", tmp_path / "key2", tmp_path / "plain2", tmp_path / "up2")
    for path, data in tree(tmp_path / "up2").items():
        write_tree(tmp_path / "up", {path: data})
    write_tree(tmp_path / "up", {"README": b"plain", "mine": b"hidden by the encrypted one"})
    done = run("hfcrypt", "decrypt", "--key-file", key, "--with-plaintext", tmp_path / "up", tmp_path / "back")
    assert "note: 1 entries are not readable with this key" in done.stderr
    assert tree(tmp_path / "back") == {"mine": b"1", "README": b"plain"}
    fails("hfcrypt", "decrypt", "--key-file", key, tmp_path / "plain", tmp_path / "no", exit=3, words="holds no `.enc`")


def test_a_job_over_many_files_goes_on_and_ends_with_20(tmp_path, key):
    write_tree(tmp_path / "plain", {f"f{i}": b"%d" % i for i in range(10)})
    run("hfcrypt", "encrypt", "--key-file", key, tmp_path / "plain", tmp_path / "up")
    victim = next(p for p in (tmp_path / "up").rglob("*") if p.is_file())
    victim.write_bytes(victim.read_bytes()[:-1])
    fails("hfcrypt", "decrypt", "--key-file", key, tmp_path / "up", tmp_path / "back", exit=20, words="1 of 10 files")
    assert len(tree(tmp_path / "back")) == 9
    verdict = json.loads(run("hfcrypt", "verify", "--json", "--key-file", key, tmp_path / "up", check=False).stdout)
    assert (verdict["verified"], len(verdict["problems"])) == (9, 1)


@pytest.mark.parametrize("form", ["1", "2"])
def test_names_go_both_ways(tmp_path, key, form):
    paths = ["a", "dir/with space/ü", "new\nline"]
    sealed = run("hfcrypt", "name", "encrypt", "--key-file", key, "--encryption-format", form, "-0", *paths).stdout.split("\0")[:-1]
    assert all(name.startswith(".enc/") for name in sealed)
    assert run("hfcrypt", "name", "decrypt", "--key-file", key, "-0", *sealed).stdout.split("\0")[:-1] == paths
    fails("hfcrypt", "name", "decrypt", "--key-file", key, sealed[0] + "A", exit=20, words="does not authenticate")
    fails("hfcrypt", "name", "decrypt", "--key-file", key, "plain/key", exit=2, words=".enc/")
    fails("hfcrypt", "name", "encrypt", "--key-file", key, "a//b", exit=2, words="invalid name")


def test_a_long_name_needs_its_sidecar(tmp_path, key):
    name = "long" * 60
    write_tree(tmp_path / "plain", {name: b""})
    run("hfcrypt", "encrypt", "--key-file", key, tmp_path / "plain", tmp_path / "up")
    [sealed] = run("hfcrypt", "name", "encrypt", "--key-file", key, name).stdout.split("\n")[:-1]
    assert sealed.startswith(".enc/-L2")
    fails("hfcrypt", "name", "decrypt", "--key-file", key, sealed, exit=3, words="needs its sidecar")
    sidecar = tmp_path / "up" / sealed.replace("-L2", "-N2")
    assert run("hfcrypt", "name", "decrypt", "--key-file", key, "--sidecar", sidecar, sealed).stdout == name + "\n"


def test_the_xet_hash_is_the_one_the_hub_shows(tmp_path, api):
    api.create_bucket("local/test")
    (tmp_path / "file").write_bytes(DATA * 10)
    api.batch_bucket_files("local/test", add=[(str(tmp_path / "file"), "file"), (b"", "empty")])
    shown = {f.path: f.xet_hash for f in api.get_bucket_paths_info("local/test", ["file", "empty"])}
    (tmp_path / "empty").write_bytes(b"")
    done = json.loads(run("hfcrypt", "xet", "hash", "--json", "--chunks", tmp_path / "file", tmp_path / "empty").stdout)["files"]
    assert [f["hash"] for f in done] == [shown["file"], shown["empty"]]
    chunks = done[0]["chunks"]
    assert sum(c["length"] for c in chunks) == done[0]["size"] == len(DATA) * 10
    assert [c["offset"] for c in chunks] == [sum(c["length"] for c in chunks[:i]) for i in range(len(chunks))]


def test_times_are_kept_by_every_copy(tmp_path, key, api):
    api.create_bucket("local/test")
    times = {"now": 1_770_399_477_123_000_000, "d/1972": 63_072_000_250_000_000, "d/before 1970": -54_750_000_000, "epoch": 0}
    write_tree(tmp_path / "in", dict.fromkeys(times, DATA[:1000]))
    write_tree(tmp_path / "out", {"beside": b"plain"})
    for name, time in times.items():
        os.utime(tmp_path / "in" / name, ns=(time, time))
    os.utime(tmp_path / "out/beside", ns=(0, 1_500_000_000))
    mtimes = lambda folder: {name: (folder / name).stat().st_mtime_ns for name in times}
    run("hfcrypt", "encrypt", "--key-file", key, tmp_path / "in", tmp_path / "out")
    assert sorted(f.stat().st_mtime_ns for f in (tmp_path / "out/.enc").rglob("*") if f.is_file()) == sorted(times.values())
    run("hfcrypt", "decrypt", "--key-file", key, "--with-plaintext", tmp_path / "out", tmp_path / "back")
    assert mtimes(tmp_path / "back") == times
    assert (tmp_path / "back/beside").stat().st_mtime_ns == 1_500_000_000
    for name, time in times.items():
        run("hfcrypt", "encrypt", "--key-file", key, tmp_path / "in" / name, tmp_path / "one")
        run("hfcrypt", "decrypt", "--key-file", key, tmp_path / "one", tmp_path / "two")
        run("hfcrypt", "xet", "upload", tmp_path / "one", f"hf://buckets/local/test/{name}")
        run("hfcrypt", "xet", "download", f"hf://buckets/local/test/{name}", tmp_path / "three")
        assert {(tmp_path / n).stat().st_mtime_ns for n in ("one", "two", "three")} == {time}
        for n in ("one", "two", "three"):
            (tmp_path / n).unlink()
    # Over an older version an old time would hide the new one.
    os.utime(tmp_path / "in/now", ns=(0, 0))
    run("hfcrypt", "xet", "upload", tmp_path / "in/now", "hf://buckets/local/test/now")
    (there,) = api.get_bucket_paths_info("local/test", ["now"])
    assert there.mtime.timestamp() > 1_770_399_477.123 + 1


def test_files_go_to_a_bucket_and_back_as_they_are(tmp_path, api):
    api.create_bucket("local/test")
    write_tree(tmp_path, {"one": DATA, "two": b"", "three": b"text " * 100_000})
    bucket = "hf://buckets/local/test"
    put = json.loads(run("hfcrypt", "xet", "upload", *(tmp_path / n for n in ("one", "two", "three")), f"{bucket}/dir", "--json").stdout)["files"]
    run("hfcrypt", "xet", "upload", "--compression", "none", tmp_path / "one", f"{bucket}/exact")
    shown = {f.path: (f.size, f.xet_hash) for f in api.get_bucket_paths_info("local/test", ["dir/one", "dir/two", "dir/three", "exact"])}
    assert {f["key"]: (f["size"], f["hash"]) for f in put} | {"exact": shown["dir/one"]} == shown
    api.download_bucket_files("local/test", [("dir/three", str(tmp_path / "official"))])
    assert (tmp_path / "official").read_bytes() == b"text " * 100_000
    for name in ("one", "two", "three"):
        run("hfcrypt", "xet", "download", f"{bucket}/dir/{name}", tmp_path / "back" )
        assert (tmp_path / "back").read_bytes() == (tmp_path / name).read_bytes()
        (tmp_path / "back").unlink()
        assert run("hfcrypt", "xet", "download", f"{bucket}/dir/{name}", "-", text=False).stdout == (tmp_path / name).read_bytes()
    fails("hfcrypt", "xet", "download", f"{bucket}/dir/one", tmp_path / "one", exit=2, words="exists already")
    fails("hfcrypt", "xet", "download", f"{bucket}/none", tmp_path / "none", exit=3, words="no object")
    fails("hfcrypt", "xet", "upload", tmp_path / "one", tmp_path / "home" / ".." / "one", bucket, exit=2, words="two files would become")
    fails("hfcrypt", "xet", "upload", tmp_path / "none", bucket, exit=1, words="No such file")
    fails("hfcrypt", "xet", "upload", tmp_path / "one", "hf://buckets/local/none/x", exit=3, words="local/none")
    fails("hfcrypt", "xet", "upload", tmp_path / "one", "elsewhere", exit=2, words="invalid bucket address")
    assert not (tmp_path / "none").exists()


def test_damage_at_the_hub_is_an_integrity_failure_and_leaves_no_file(tmp_path, hub, api):
    api.create_bucket("local/test")
    write_tree(tmp_path, {"file": DATA})
    run("hfcrypt", "xet", "upload", tmp_path / "file", "hf://buckets/local/test/file")
    [xorb] = [p for p in hub.directory.rglob("*") if p.is_file() and p.stat().st_size > len(DATA) and p.read_bytes().find(DATA[5000:5100]) > 0]
    damaged = bytearray(xorb.read_bytes())
    damaged[100_000] ^= 1
    xorb.chmod(0o600)
    xorb.write_bytes(damaged)
    fails("hfcrypt", "xet", "download", "hf://buckets/local/test/file", tmp_path / "back", exit=20, words="does not match its hash")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "home", "hub"]


def test_xorbs_and_shards_are_explained(tmp_path, home):
    vectors = ROOT / "tests" / "vectors" / "xet"

    def inspect(name):
        return json.loads(run("hfcrypt", "xet", "inspect", "--chunks", "--json", vectors / name).stdout)

    for name in ("none", "lz4", "bg4lz4"):
        for form, footer in (("upload", "none"), ("footer", "agrees with the chunks")):
            told = inspect(f"xorb3_{name}.{form}.bin")
            assert (told["kind"], told["chunk_count"], told["footer"]) == ("xorb", 3, footer)
            assert told["hash"] == "cbb825aee83600a7386a2ff3f0730e3604ee93cbf02a5482cd24dd5500a6832e"
            assert [c["length"] for c in told["chunks"]] == [11, 400, 256]
    assert [c["scheme"] for c in inspect("xorb3_lz4.upload.bin")["chunks"]] == ["none", "lz4", "none"]
    for name, form, keyed in (("upload", "upload", None), ("full", "stored", False), ("dedup_keyed", "dedup answer", True)):
        told = inspect(f"shard3.{name}.bin")
        assert (told["kind"], told["form"], (told["footer"] or {}).get("keyed")) == ("shard", form, keyed)
        assert [x["chunk_count"] for x in told["xorbs"]] == [3]
    assert "3, 667 bytes" in run("hfcrypt", "xet", "inspect", vectors / "xorb3_none.upload.bin").stdout
    whole = (vectors / "xorb3_lz4.footer.bin").read_bytes()
    for cut in (1, 7, 20, len(whole) - 1):
        (tmp_path / "cut").write_bytes(whole[:cut])
        fails("hfcrypt", "xet", "inspect", tmp_path / "cut", exit=20, words="cut")
    (tmp_path / "text").write_text("neither this nor that")
    fails("hfcrypt", "xet", "inspect", tmp_path / "text", exit=20, words="malformed xorb")


def test_hostile_names_can_not_write_to_the_terminal(tmp_path, home):
    name = tmp_path / "a\x1b[31mb\nc"
    message = fails("hfcrypt", "key", "show", name, exit=2, words="cannot read key file")
    assert "\x1b" not in message and message.count("\n") == 1


@pytest.mark.parametrize("program", ["hf-mount", "hf-mount-fuse", "hfcrypt", "hugbucket"])
def test_help_has_examples_or_options_and_wrong_usage_is_2(program, home):
    assert "Usage:" in run(program, "--help").stdout
    assert run(program, "--version").stdout.startswith(program)
    assert subprocess.run([BIN / program, "--no-such-flag"], capture_output=True).returncode == 2
