"""`hf mount …`: the official client installs the script of this repository, and runs our program through it."""

import os
import shutil
import subprocess
import sys

import pytest

from conftest import BIN, ROOT, needs_fuse, tree, write_tree

# Installs with the official client's own code. Only its requests to GitHub are answered here, from
# the files of this repository.
INSTALL = """
import sys
from pathlib import Path
import httpx2
from huggingface_hub.cli import extensions, hf

root = Path(sys.argv.pop(1))

def github(method, url, **_):
    request = httpx2.Request(method, url)
    if url == "https://github.com/me/hf-mount":
        return httpx2.Response(200, request=request)
    if url == "https://github.com/me/hf-mount.git/info/refs":
        return httpx2.Response(200, text="a" * 40 + " HEAD" + chr(0), request=request)
    prefix = "https://raw.githubusercontent.com/me/hf-mount/HEAD/"
    file = root / url.removeprefix(prefix)
    assert url.startswith(prefix) and file.is_file(), url
    return httpx2.Response(200, content=file.read_bytes(), request=request)

extensions._github_request = github
sys.argv[0] = "hf"
hf.main()
"""


def hf(*arguments, **options):
    command = [ROOT / ".venv" / "bin" / "hf", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


@pytest.fixture
def extension(home, monkeypatch):
    """The installed extension's folder. The program is in no place that the script looks at."""
    monkeypatch.setenv("HF_HUB_DISABLE_UPDATE_CHECK", "1")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    for name in ["CARGO_HOME", "CARGO_INSTALL_ROOT", "HF_MOUNT_BIN"]:
        monkeypatch.delenv(name, raising=False)
    command = [sys.executable, "-c", INSTALL, ROOT, "extensions", "install", "me/hf-mount"]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return home / ".local/share/hf/extensions/hf-mount"


def install_program(folder, name="hf-mount"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).symlink_to(BIN / "hf-mount")


def test_installed_extension_is_listed_with_the_repositorys_description(extension):
    assert os.access(extension / "hf-mount", os.X_OK)
    assert "encrypted on this machine" in hf("--help").stdout
    assert os.access(ROOT / "hf-mount", os.X_OK), "the repository's own file is executable"


@needs_fuse
def test_encrypted_bucket_is_mounted_through_hf(extension, hub, api, key, home, tmp_path):
    install_program(home / ".cargo/bin")
    point = tmp_path / "mnt"
    started = hf("mount", "start", "--create", "--encryption-key-file", key, "bucket", "local/test", point)
    try:
        assert (started.returncode, started.stdout) == (0, f"mounted local/test on {point}\n"), started.stderr
        write_tree(point, {"a folder/b": b"1" * 100_000})
        assert tree(point) == {"a folder/b": b"1" * 100_000}
    finally:
        stopped = hf("mount", "stop", point)
    assert (stopped.returncode, stopped.stdout) == (0, "flushed 1 file\n"), stopped.stderr
    assert all(f.path.startswith(".enc/") for f in api.list_bucket_tree("local/test", recursive=True) if hasattr(f, "size"))
    # Exit codes come back.
    assert hf("mount", "stop", point).returncode == 6
    assert hf("mount", "start").returncode == 2


def test_a_missing_program_is_named_with_the_way_to_install_it(extension):
    done = hf("mount", "status")
    assert done.returncode == 7
    assert done.stderr.startswith("error: the program hf-mount is not installed\nhint: ")
    assert "cargo install" in done.stderr


def test_script_prefers_the_users_choice_then_path_and_never_runs_a_copy_of_itself(extension, tmp_path, home, monkeypatch):
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(extension / "hf-mount", copy / "hf-mount")
    found = tmp_path / "a folder"
    found.mkdir()
    (found / "hf-mount").write_text('#!/bin/sh\nprintf "%s|" path "$@"\n')
    (found / "hf-mount").chmod(0o755)
    monkeypatch.setenv("PATH", f"{extension}:{copy}:{found}:/usr/bin:/bin")
    assert hf("mount", "two words", "*", "").stdout == "path|two words|*||"
    monkeypatch.setenv("PATH", f"{extension}:{copy}:/usr/bin:/bin")
    assert hf("mount").returncode == 7
    install_program(home / ".cargo/bin")
    assert hf("mount", "--version").stdout.startswith("hf-mount ")
    monkeypatch.setenv("HF_MOUNT_BIN", str(found / "hf-mount"))
    assert hf("mount", "x").stdout == "path|x|"
    monkeypatch.setenv("HF_MOUNT_BIN", "/nowhere")
    assert hf("mount", "x").returncode == 7
