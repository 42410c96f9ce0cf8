"""pjdfstest: every test passes on a mount, with a key and without, except those that
exclusions.toml gives a reason for."""

import grp
import os
import pwd
import re
import subprocess
import tempfile
import tomllib
from pathlib import Path

import pytest
from conftest import tool
from shared import CI, needs_fuse

LINE = re.compile(r"^(\w+(?:::\w+)+)\s+(ok|FAILED|skipped)\b", re.MULTILINE)

CONFIG = """
[features]
posix_fallocate = {{}}
rename_ctime = {{}}
utime_now = {{}}
utimensat = {{}}
[settings]
naptime = 0.01
allow_remount = {remount}
[dummy_auth]
entries = {users}
"""


def listed(kind):
    lists = tomllib.loads((Path(__file__).parent / "exclusions.toml").read_text())
    return lists["total"], {name for one in lists[kind] for name in one["tests"]}


def with_plain_mount(tmp_path):
    """An environment in which `mount` calls no helper, as docs/cli.md says: Debian's mount.fuse can't remount."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    wrapper = folder / "mount"
    wrapper.write_text(f'#!/bin/sh\nexec "{tool("mount")}" -i "$@"\n')
    wrapper.chmod(0o755)
    return os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def run_tool(tmp_path, point, remount, *patterns):
    """Runs the tool; test -> how it went."""
    users = [[name, grp.getgrgid(pwd.getpwnam(name).pw_gid).gr_name] for name in ("nobody", "daemon")]
    config = tmp_path / "pjdfstest.toml"
    config.write_text(CONFIG.format(remount=str(remount).lower(), users=users))
    other = tmp_path / "other-filesystem"
    other.mkdir(exist_ok=True)
    command = [tool("pjdfstest"), "-c", config, "-s", other, "-p", point, *patterns]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=with_plain_mount(tmp_path))
    return dict(LINE.findall(done.stdout)), done


def reason(name, output):
    """The line that follows a failed test's name."""
    return output.split(f"\n{name} ", 1)[-1].split("\n", 2)[1].strip()


@pytest.fixture
def open_folder():
    """The tool becomes other users, who have to reach the mount."""
    with tempfile.TemporaryDirectory(prefix="hf-mount-test-") as folder:
        folder = Path(folder)
        folder.chmod(0o755)
        yield folder


@needs_fuse
@pytest.mark.skipif(os.geteuid() != 0 and not CI, reason="becoming other users needs root")
def test_posix(tmp_path, open_folder, make, side):
    m = make("--fuse-allow-other", encrypted=side == "encrypted", name=open_folder / "mnt")
    # Alone and first: what remounts the mount read-only needs it to be idle, and a test below may leave a file open.
    results, first = run_tool(tmp_path, m.point, True, "erofs")
    rest, second = run_tool(tmp_path, m.point, False)
    results = {**rest, **results}
    output = first.stderr + second.stderr + first.stdout + second.stdout

    total, fails = listed("fails")
    _, sometimes = listed("sometimes")
    _, skips = listed("skips")
    assert len(results) == total, output[-4000:]
    went = {how: {name for name, said in results.items() if said == how} for how in ("ok", "FAILED", "skipped")}
    unexpected = went["FAILED"] - fails - sometimes
    assert not unexpected, "\n".join(f"{name}: {reason(name, output)}" for name in sorted(unexpected))
    assert went["skipped"] == skips
    assert not fails - went["FAILED"], f"these pass: take them off the list: {sorted(fails - went['FAILED'])}"
    print(f"{side}: {len(went['ok'])} of {total} pass")
