"""A short stress test for CI, on a mount with a key and on one without; and proof that it reports what it looks for."""

import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from conftest import shared
from model import DIRECTORY, File, Violation
from stress import IDLE_SHARE, Board, BusyWorld, Stress, Watchdog, check_shared, cpu_share
from stress_writer import shared_content

# Seconds of work for each side. Start, final comparison and end take about as long.
WORK = 7


@pytest.fixture
def folder():
    """A short path, because the path of a control socket has at most 107 bytes. The remains of a failure stay there."""
    folder = Path(tempfile.mkdtemp(prefix="stress-"))
    yield folder
    if not any(folder.iterdir()):
        folder.rmdir()


@shared.needs_fuse
@pytest.mark.parametrize("side", ["encrypted", "plain"])
def test_stressed_mount_ends_every_call_in_time_and_keeps_every_byte(side, folder):
    stress = Stress(folder, side, seed=1)
    stress.run(WORK)
    print(stress.table())
    counts = stress.counts
    assert counts["acknowledged calls"] > 200 and counts["shared files compared"] > 0, stress.table()
    assert counts["worlds compared to the last byte"] == 1 and len(stress.idle) > 0, stress.table()
    assert counts["remounts"] > 0 and stress.calls["pending list"] > 0 and stress.calls["status"] > 0, stress.table()
    assert any(name.startswith("faults: ") for name in counts), stress.table()


# --- proof that failures are found -----------------------------------------------------------------------------------


@shared.needs_fuse
def test_call_on_stopped_daemon_is_reported_with_name_age_and_stacks(folder):
    world = BusyWorld(folder / "world", "encrypted", 1, Counter(), deadlines={"system call": 1})
    try:
        world.open()
        os.kill(world.pid, signal.SIGSTOP)
        assert world.failed.wait(30), "the watchdog saw nothing"
        report = world.failure
    finally:
        world.close()
    assert report.startswith("late: writer ") and "longer than 1 s" in report.splitlines()[0], report
    assert f"daemon {world.pid}" in report and "wchan" in report and "end of " in report, report
    (folder / "world/report.txt").read_text()
    subprocess.run(["rm", "-r", folder / "world"], check=True)


def test_command_past_its_deadline_is_reported_once(tmp_path):
    reports = []
    board, deadlines = Board(tmp_path / "board", 1), {"flush": 0.01, "system call": 1}
    dog = Watchdog(board, lambda what, pid: reports.append(what), deadlines)
    with dog.watch("flush", "of a test"):
        shared.eventually(lambda: reports)
    dog.close()
    assert len(reports) == 1 and reports[0].startswith("late: flush of a test takes 0.")
    assert dog.calls["flush"] == 1 and dog.longest["flush"][0] > 0.01


def test_busy_process_is_above_idle_share_and_waiting_process_is_below():
    for code, is_busy in (("while True: pass", True), ("input()", False)):
        command = [sys.executable, "-c", f"print(flush=True)\n{code}"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            # Past the start of the interpreter.
            process.stdout.readline()
            assert (cpu_share(process.pid, 0.5) > IDLE_SHARE) == is_busy
        finally:
            process.kill()
            process.communicate()


GOOD = {"d": DIRECTORY, "d/a": File(shared_content("a", 40)), "d/b": File(shared_content("b", 0))}
WRITERS = [{"must": {"a": 40}, "may": set()}, {"must": {"b": 0}, "may": {"c", "d"}}]
WRONG = {
    "lost": {"d/a": None},
    "renamed elsewhere and kept": {"e/a": File(shared_content("a", 40))},
    "shorter": {"d/a": File(shared_content("a", 39))},
    "other bytes": {"d/a": File(bytes(40))},
    "strange": {"d/x": File(b"")},
    "interrupted, with other bytes": {"d/c": File(b"x")},
}


def test_shared_folder_as_acknowledged_passes():
    check_shared(GOOD, WRITERS)
    check_shared({**GOOD, "d/c": File(shared_content("c", 9))}, WRITERS)


@pytest.mark.parametrize("what", WRONG)
def test_shared_folder_with_any_difference_is_refused(what):
    found = {path: node for path, node in {**GOOD, **WRONG[what]}.items() if node is not None}
    with pytest.raises(Violation):
        check_shared(found, WRITERS)


def test_board_shows_call_in_progress_only(tmp_path):
    board, other = Board(tmp_path / "board", 2), Board(tmp_path / "board", 2)
    board.begin(1, "rename /x")
    _, started, process, text = other.call(1)
    assert (process, text) == (os.getpid(), "rename /x") and started > 0
    assert other.call(0) is None
    board.end(1)
    assert other.call(1) is None
