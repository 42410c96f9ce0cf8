"""Fixtures of tests/interop, for the crash campaign; crash.py runs without pytest and takes its helpers from here too."""

import importlib.util
import sys
from pathlib import Path

SHARED = Path(__file__).resolve().parents[1] / "interop" / "conftest.py"
spec = importlib.util.spec_from_file_location("shared", SHARED)
shared = sys.modules["shared"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)
