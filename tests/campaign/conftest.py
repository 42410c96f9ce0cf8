"""Fixtures of tests/interop, for campaigns: random work under forced trouble."""

import importlib.util
import sys
from pathlib import Path

SHARED = Path(__file__).resolve().parents[1] / "interop" / "conftest.py"
if "shared" not in sys.modules:
    spec = importlib.util.spec_from_file_location("shared", SHARED)
    shared = sys.modules["shared"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shared)

from shared import home, key, mount  # noqa: E402, F401
