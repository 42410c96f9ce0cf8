"""Several mounts of one bucket change the same things at the same time: no version that one of them
acknowledged is lost.

Each commit is read back 10 s after it, so all labs run side by side and are looked at in the end.
Longer runs: concurrent_edits.py.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import races
from concurrent_edits import at_random, forced
from lab import Lab, overlap, set_home, tokens
from shared import needs_fuse, run

pytestmark = needs_fuse


def policies(folder):
    """Mounts that overwrite and mounts that park, against one that keeps both; what there is in the end."""
    lab = Lab(folder, False, names="abc", options={"b": ("--on-conflict", "overwrite"), "c": ("--on-conflict", "fail")})
    try:
        said = {}
        for name in ("seen", "unseen", "parked", "overlapped", "removed"):
            races.start(lab, f"{name}.txt")
        # Compared in time, by the one that overwrites.
        look = lab.b.gate.hold("look", "seen.txt")
        said["seen"] = [lab.b.append("seen.txt"), lab.a.append("seen.txt")]
        look.wait()
        lab.a.flush()
        look.release()
        lab.b.flush()
        # The one that overwrites is overwritten itself.
        acknowledged = []
        overlap(
            lab, "unseen.txt", lab.a, lambda: acknowledged.append(lab.a.append("unseen.txt")),
            lab.b, lambda: acknowledged.append(lab.b.append("unseen.txt")),
        )
        said["unseen"] = acknowledged
        # The one that parks finds another version; and is overwritten; and is removed.
        look = lab.c.gate.hold("look", "parked.txt")
        said["parked"] = [lab.c.append("parked.txt"), lab.a.append("parked.txt")]
        look.wait()
        lab.a.flush()
        look.release()
        lab.c.flush(codes=[75])
        pending = json.loads(run("hf-mount", "pending", "list", lab.c.point, "--json").stdout)["pending"]
        said["pending"] = [(p["path"], p["state"]) for p in pending]
        said["shown while parked"] = tokens(lab.c.read("parked.txt"))
        run("hf-mount", "pending", "retry", lab.c.point, "--on-conflict", "keep-both", check=False)
        overlap(lab, "overlapped.txt", lab.a, lambda: lab.a.append("overlapped.txt"), lab.c, lambda: lab.c.append("overlapped.txt"))
        overlap(lab, "removed.txt", lab.a, lambda: lab.a.unlink("removed.txt"), lab.c, lambda: lab.c.append("removed.txt"))
        lab.settle()
        found = lab.contents()
        return said, found, lab.missing(found)
    finally:
        lab.close()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("concurrent")
    before = dict(os.environ)
    set_home(folder)
    work = {
        "policies": lambda: policies(folder / "policies"),
        "plain": lambda: forced(folder / "plain", False),
        "encrypted": lambda: forced(folder / "encrypted", True),
        "random": lambda: at_random(folder / "random", True, seed=5, minutes=0.1, removals=False),
    }
    try:
        with ThreadPoolExecutor(len(work)) as pool:
            running = {name: pool.submit(job) for name, job in work.items()}
            yield running
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.mark.parametrize("side", ["plain", "encrypted"])
def test_no_forced_race_loses_a_version(outcomes, side):
    assert {name: why for name, why in outcomes[side].result().items() if why} == {}


def test_no_version_is_lost_in_random_work_under_trouble(outcomes):
    assert outcomes["random"].result() == []


def test_a_mount_that_overwrites_replaces_what_it_compares_with_and_the_others_keep_theirs(outcomes):
    said, found, missing = outcomes["policies"].result()
    ours, theirs = said["seen"]
    assert ours in tokens(found["seen.txt"])
    [copy] = races.copies(found, "seen.txt")
    assert theirs in tokens(found[copy]), "the other mount read back what it had committed"
    ours, theirs = said["unseen"]
    assert theirs in tokens(found["unseen.txt"]), "it is put back"
    [copy] = races.copies(found, "unseen.txt")
    assert ours in tokens(found[copy])
    assert missing == []


def test_a_mount_that_parks_waits_for_a_decision_and_copies_what_was_overwritten(outcomes):
    said, found, missing = outcomes["policies"].result()
    ours, theirs = said["parked"]
    assert said["pending"] == [("parked.txt", "parked")]
    assert ours in said["shown while parked"] and theirs not in said["shown while parked"]
    assert theirs in tokens(found["parked.txt"])
    assert len(races.copies(found, "parked.txt")) == 1, "the decision was to keep both"
    assert len(races.copies(found, "overlapped.txt")) == 1
    assert "removed.txt" not in found and len(races.copies(found, "removed.txt")) == 1
    assert missing == []
