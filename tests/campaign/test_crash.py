"""A short crash campaign for CI: kinds of moments once each, with faults, on a mount with a key and
on one without; and that it would tell."""

import resource
import tempfile
from pathlib import Path

import pytest

from conftest import shared
from crash import Campaign, needles
from model import DIRECTORY, RECORD, File, Log, Violation, Written, put, remove, rename
from proxy import ANSWERED, BEFORE, HANDLED

SHORT = [
    ("call", "close"),
    ("call", "rename crowd"),
    ("call", "rename over file"),
    ("request", "xorb", BEFORE),
    ("request", "commit", HANDLED),
    ("request", "copy", HANDLED),
    ("request", "delete", ANSWERED),
    ("command", "flush"),
    ("command", "stop"),
    ("replay", "commit"),
    ("hub", "alone"),
    ("random",),
]


@pytest.fixture
def core_dumps():
    """Core dumps are allowed, so that it is the daemon's own doing that there is none."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, before)


@pytest.fixture
def folder():
    """A short path, for a control socket's may have 107 bytes. What a failure leaves stays there."""
    folder = Path(tempfile.mkdtemp(prefix="crash-"))
    yield folder
    if not any(folder.iterdir()):
        folder.rmdir()


@shared.needs_fuse
@pytest.mark.parametrize("side", ["encrypted", "plain"])
def test_nothing_acknowledged_is_lost_whatever_is_killed_and_no_mark_is_left(side, folder, core_dumps):
    campaign = Campaign(folder, side, seed=4, moments=SHORT)
    campaign.run(len(SHORT))
    counts = campaign.counts
    assert campaign.rounds == len(SHORT) and counts["worlds compared to the last byte"] == 1
    assert counts["acknowledged calls"] > 200, counts
    hit = sum(count for name, count in counts.items() if name.startswith("moment: "))
    assert hit > len(SHORT) / 2, f"most kills come at the chosen moment\n{campaign.table()}"
    assert any(name.startswith("kills of a start") for name in counts) and any(name.startswith("faults: ") for name in counts)


# --- what it is worth ------------------------------------------------------------------------------------------------

OLD, NEW = File(b"old"), File(b"new")
CALLS = {
    "replaced": (put("t/a", NEW), {"t/a": NEW}),
    "removed": (remove("t/a"), {}),
    "renamed": (rename("t/a", "t/b"), {"t/b": OLD}),
}


def tree(files):
    return {"t": DIRECTORY, **files}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_under_way_may_be_done_or_not_and_one_that_returned_is(call):
    effect, after = CALLS[call]
    for found in ({"t/a": OLD}, after):
        log = Log(tree({"t/a": OLD}))
        log.begin(call, effect, "t/a")
        assert log.settle(tree(found), "after a kill") == (found == after)
    log = Log(tree({"t/a": OLD}))
    log.begin(call, effect, "t/a")
    log.done()
    assert log.settle(tree(after), "after a kill") is None
    with pytest.raises(Violation):
        log.settle(tree({"t/a": OLD}), "after a kill")


def test_nothing_is_certain_while_a_call_is_under_way_or_a_file_is_open_for_writing():
    assert Log(tree({"t/a": OLD})).is_certain()
    assert not Log(tree({"t/a": Written(b"")})).is_certain()
    log = Log(tree({"t/a": OLD}))
    log.begin("removed", remove("t/a"), "t/a")
    assert not log.is_certain()
    log.done()
    assert log.is_certain()


@pytest.mark.parametrize("found", [{}, {"t/a": OLD, "t/b": OLD}, {"t/b": File(b"ol")}, {"t/b": File(b"old\0")}, {"t/b": DIRECTORY}])
@pytest.mark.parametrize("returned", [False, True])
def test_a_rename_leaves_one_whole_file_under_one_name(found, returned):
    log = Log(tree({"t/a": OLD}))
    log.begin("rename", rename("t/a", "t/b"), "t/a", gone=["t/a", "t/b"])
    if returned:
        log.done()
    with pytest.raises(Violation):
        log.settle(tree(found), "after a kill")


def test_each_record_of_an_unclosed_file_is_of_one_moment_and_nothing_synced_comes_back():
    first, second = b"a" * RECORD * 2, b"b" * RECORD * 2
    written = Written(first)
    written.then(b"b" * RECORD + b"a" * RECORD)
    written.then(second)
    for found in (first, second, b"b" * RECORD + b"a" * RECORD, b"a" * RECORD + b"b" * RECORD, b"b" * 9 + b"a" * (2 * RECORD - 9)):
        assert written.accepts(File(found))
    for found in (b"", first[:-1], first + b"a", b"a" * 9 + b"b" * (RECORD - 9) + first[RECORD:], b"\0" * RECORD * 2):
        assert not written.accepts(File(found))
    written.acknowledge()
    assert written.accepts(File(second)) and not written.accepts(File(first))


def test_marks_are_found_as_they_are_and_encoded():
    import base64

    mark, key = b"CANARY12345678", bytes(range(100, 132))
    looked_for = needles(mark, key)
    forms = [mark, mark.hex().encode(), mark.decode().encode("utf-16-le"), key, key.hex().encode(), key.hex().upper().encode()]
    forms += [base64.b64encode(b"x" * n + mark + b"yz") for n in range(3)] + [base64.b64encode(key)]
    for form in forms:
        assert any(needle in b"before" + form + b"behind" for needle in looked_for), form
    assert min(map(len, looked_for)) >= 12, "nothing is found by chance"
