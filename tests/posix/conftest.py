"""Fixtures of tests/interop, for tests of what a mount means to programs; and where their tools come from."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[1] / "interop" / "conftest.py"
spec = importlib.util.spec_from_file_location("shared", SHARED)
shared = sys.modules["shared"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)

from shared import CI, ROOT, home, key, mount  # noqa: E402, F401


def tool(name):
    """A program's path; where it is missing the test is skipped, but not in CI."""
    path = shutil.which(name, path=f"{ROOT / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}")
    if path is None and not CI:
        pytest.skip(f"{name} is not installed")
    assert path, f"{name} is not installed"
    return path


@pytest.fixture(params=["encrypted", "plain"])
def side(request):
    return request.param


@pytest.fixture
def make(tmp_path, mount, request):  # noqa: F811
    """Makes a mount of an embedded Hub: `make(encrypted=…, fresh=…)`; `fresh`: with nothing cached."""

    def start(*options, encrypted=True, fresh=False, name="mnt"):
        if fresh:
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        if encrypted:
            options += ("--encryption-key-file", request.getfixturevalue("key"))
        else:
            options += ("--advanced-writes",)
        hub = f"file://{tmp_path / 'hub'}"
        return mount(*options, "--create", "--cache-dir", tmp_path / "cache", "--hub-endpoint", hub, name=name)

    return start
