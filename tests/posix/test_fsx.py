"""fsx: random reads, writes, maps, truncations and holes against a picture in memory; and against a
mount that begins anew.

FSX_OPS says how many operations each of them makes; 200000 takes some minutes each.
"""

import os
import subprocess
from pathlib import Path

import pytest
from conftest import tool
from shared import needs_fuse

CONFIG = Path(__file__).parent / "fsx.toml"
OPERATIONS = int(os.environ.get("FSX_OPS", 6000))
# Between two remounts.
STRETCH = 1500


def fsx(tmp_path, file, seed, operations):
    command = [tool("fsx"), "-q", "-f", CONFIG, "-P", tmp_path, "-S", seed, "-N", operations, file]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, f"seed {seed}\n{done.stdout[-3000:]}\n{done.stderr[:3000]}"


@needs_fuse
@pytest.mark.parametrize(("side", "seed"), [("encrypted", 1), ("encrypted", 2), ("plain", 3)])
def test_random_operations_match_a_picture_in_memory(tmp_path, make, side, seed):
    m = make(encrypted=side == "encrypted")
    fsx(tmp_path, m.point / "file", seed, OPERATIONS)
    assert m.stop().returncode == 0


@needs_fuse
def test_what_fsx_leaves_is_there_after_each_remount(tmp_path, make):
    for seed in range(max(OPERATIONS // STRETCH, 2)):
        m = make(fresh=True)
        file = m.point / "file"
        fsx(tmp_path, file, seed, STRETCH)
        # Its closed file is committed while nobody looks, then everything that this machine knew of it is thrown away.
        assert m.stop().returncode == 0
        m = make(fresh=True)
        # The same operations on the machine's own filesystem: that is how the file must look.
        fsx(tmp_path, tmp_path / "expected", seed, STRETCH)
        assert file.read_bytes() == (tmp_path / "expected").read_bytes(), f"seed {seed}"
        assert m.stop().returncode == 0
