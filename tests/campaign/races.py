"""Races between mounts, forced one by one.

Each is a generator: up to its `yield` it races, then gets all files as they are once every commit was read back.
That no acknowledged token is missing is checked for all of them; what they check themselves is where things went.
"""

import os
import time

from lab import held_append, overlap, tokens

LONG = "n" * 200


def copies(found, name):
    stem = name.rsplit(".", 1)[0]
    return [path for path in found if path.startswith(f"{stem} (conflict ")]


def start(lab, name, size=0):
    """A file that all have seen."""
    token = lab.a.create(name, size)
    lab.a.flush()
    for machine in lab.machines.values():
        machine.sees(name, token)


def edit_against_edit(lab):
    name = "edit.txt"
    start(lab, name)
    overlap(lab, name, lab.b, lambda: lab.b.append(name), lab.a, lambda: lab.a.append(name))
    found = yield
    assert len(copies(found, name)) == 1, list(found)


def create_against_create(lab):
    name = "create.txt"
    overlap(lab, name, lab.b, lambda: lab.b.create(name), lab.a, lambda: lab.a.create(name))
    found = yield
    assert len(copies(found, name)) == 1, list(found)


def three_in_a_row(lab):
    name = "three.txt"
    start(lab, name)
    rules = [held_append(lab, machine, name) for machine in (lab.b, lab.c)]
    lab.a.append(name)
    lab.a.flush()
    for machine, rule in zip((lab.b, lab.c), rules):
        rule.release()
        machine.flush()
    found = yield
    assert len(copies(found, name)) == 2, list(found)


def answer_lost_and_overwritten(lab):
    """The first commit goes through unheard, the second overwrites it before the first mount looks."""
    name = "unheard.txt"
    start(lab, name)
    held = held_append(lab, lab.b, name)
    lost = lab.a.gate.lose_answer("commit", lab.stored_key(name))
    lab.a.append(name)
    lost.wait()
    # It looks what became of its request.
    look = lab.a.gate.hold("look", lab.stored_key(name))
    lost.release()
    look.wait()
    held.release()
    lab.b.flush()
    look.release()
    lab.a.flush()
    found = yield
    assert len(copies(found, name)) == 1, list(found)


def removal_over_edit(lab):
    name = "removed.txt"
    start(lab, name)
    overlap(lab, name, lab.b, lambda: lab.b.unlink(name), lab.a, lambda: lab.a.append(name))
    yield


def new_overwritten_and_moved_away(lab):
    """Two new files of one name; the second mount then renames what replaced the first one."""
    name = "fresh.txt"
    overlap(lab, name, lab.b, lambda: lab.b.create(name), lab.a, lambda: lab.a.create(name))
    time.sleep(2.5)
    lab.b.rename(name, "fresh-to.txt")
    lab.b.flush()
    found = yield
    assert len(copies(found, name)) == 1, list(found)


def edit_over_removal(lab):
    name = "put back.txt"
    start(lab, name)
    overlap(lab, name, lab.b, lambda: lab.b.append(name), lab.a, lambda: lab.a.unlink(name))
    found = yield
    assert name in found


def recreated_over_edit(lab):
    name = "recreated.txt"
    start(lab, name)

    def recreate():
        lab.b.unlink(name)
        lab.b.create(name)

    overlap(lab, name, lab.b, recreate, lab.a, lambda: lab.a.append(name))
    yield


def rename_away_over_edit(lab):
    name = "moved.txt"
    start(lab, name)
    overlap(lab, "moved-to.txt", lab.b, lambda: lab.b.rename(name, "moved-to.txt"), lab.a, lambda: lab.a.append(name))
    yield


def rename_away_finished_over_edit(lab):
    """The same, but the edit comes between the rename's add and its delete."""
    name = "half.txt"
    start(lab, name)
    # Its first request names the new path only.
    held = lab.b.gate.hold("commit", lab.stored_key(name))
    lab.b.rename(name, "half-to.txt")
    held.wait()
    lab.a.append(name)
    lab.a.flush()
    held.release()
    lab.b.flush()
    yield


def rename_onto_edit(lab):
    name = "target.txt"
    start(lab, name)
    start(lab, "source.txt")
    overlap(lab, name, lab.b, lambda: lab.b.rename("source.txt", name), lab.a, lambda: lab.a.append(name))
    found = yield
    assert len(copies(found, name)) == 1, list(found)


def rename_onto_new(lab):
    """Overwrites what was made at its target; and the other way round."""
    start(lab, "from1.txt")
    start(lab, "from2.txt")
    overlap(lab, "to1.txt", lab.b, lambda: lab.b.rename("from1.txt", "to1.txt"), lab.a, lambda: lab.a.create("to1.txt"))
    overlap(lab, "to2.txt", lab.a, lambda: lab.a.create("to2.txt"), lab.b, lambda: lab.b.rename("from2.txt", "to2.txt"))
    found = yield
    assert len(copies(found, "to1.txt")) == 1, list(found)
    assert len(copies(found, "to2.txt")) == 1, list(found)


def directory_rename_over_edit(lab):
    start(lab, "d1/x.txt")
    overlap(lab, "e1/x.txt", lab.b, lambda: lab.b.rename("d1", "e1"), lab.a, lambda: lab.a.append("d1/x.txt"))
    yield


def directory_rename_over_new(lab):
    """A new file where the rename puts one, and a new file in the directory that goes."""
    start(lab, "d2/x.txt")

    def create():
        lab.a.create("e2/x.txt")
        lab.a.create("d2/new.txt")

    overlap(lab, "e2/x.txt", lab.b, lambda: lab.b.rename("d2", "e2"), lab.a, create)
    yield


def new_over_directory_rename(lab):
    """A new file replaces one that a directory's rename put there a moment before."""
    start(lab, "d3/x.txt")
    overlap(lab, "e3/x.txt", lab.a, lambda: lab.a.create("e3/x.txt"), lab.b, lambda: lab.b.rename("d3", "e3"))
    yield


def overwritten_and_edited(lab, name, then):
    """What overwrote ours is seen and changed before ours is read back."""
    start(lab, name)
    seen = []
    overlap(lab, name, lab.b, lambda: seen.append(lab.b.append(name)), lab.a, lambda: lab.a.append(name))
    lab.a.sees(name, seen[0])
    then()
    lab.a.flush()


def seen_then_edited(lab):
    name = "seen.txt"
    overwritten_and_edited(lab, name, lambda: lab.a.append(name))
    yield


def seen_then_removed(lab):
    name = "seen-gone.txt"
    overwritten_and_edited(lab, name, lambda: lab.a.unlink(name))
    yield


def seen_then_renamed(lab):
    name = "seen-moved.txt"
    overwritten_and_edited(lab, name, lambda: lab.a.rename(name, "seen-moved-to.txt"))
    yield


def seen_then_replaced(lab):
    name = "seen-target.txt"
    lab.a.create("seen-source.txt")
    lab.a.flush()
    overwritten_and_edited(lab, name, lambda: lab.a.rename("seen-source.txt", name))
    yield


def seen_then_moved_with_its_directory(lab):
    overwritten_and_edited(lab, "d4/x.txt", lambda: lab.a.rename("d4", "e4"))
    yield


def moved_with_its_directory_unseen(lab):
    """The directory's rename waits behind the commit that is overwritten."""
    name = "d5/x.txt"
    start(lab, name)
    held = held_append(lab, lab.b, name)
    answer = lab.a.gate.hold_answer("commit", lab.stored_key(name))
    lab.a.append(name)
    answer.wait()
    lab.a.rename("d5", "e5")
    held.release()
    lab.b.flush()
    answer.release()
    lab.a.flush()
    yield


def open_before_written_after(lab):
    """A program opens a file, somebody else's version arrives, then it writes."""
    name = "opened.txt"
    start(lab, name)
    token = lab.a.token()
    with open(lab.a.path(name), "ab") as file:
        theirs = lab.b.append(name)
        lab.b.flush()
        end = time.monotonic() + 3
        while time.monotonic() < end and theirs not in lab.a.read(name):
            os.listdir(lab.a.point)
            time.sleep(0.1)
        file.write(token)
    lab.acknowledged(token)
    yield


def open_before_removed_written_after(lab):
    name = "opened-gone.txt"
    start(lab, name)
    token = lab.a.token()
    with open(lab.a.path(name), "ab") as file:
        lab.b.unlink(name)
        lab.b.flush()
        end = time.monotonic() + 2
        while time.monotonic() < end:
            os.listdir(lab.a.point)
            time.sleep(0.1)
        file.write(token)
    lab.acknowledged(token)
    yield


def refused_then_late(lab):
    """The Hub asks to wait longer than others take to read back; by then what was compared is old."""
    name = "busy.txt"
    start(lab, name)
    refused = lab.b.gate.refuse("commit", 503, [("retry-after", "13")], lab.stored_key(name))
    lab.b.append(name)
    refused.wait()
    lab.a.append(name)
    lab.a.flush()
    yield


def name_kept_in_a_sidecar(lab):
    """The last file below a long name goes while another one comes."""
    one, two = f"{LONG}/one.txt", f"{LONG}/two.txt"
    start(lab, one)
    overlap(lab, one, lab.b, lambda: lab.b.unlink(one), lab.a, lambda: lab.a.create(two))
    overlap(lab, two, lab.a, lambda: lab.a.append(two), lab.b, lambda: None)
    yield


def sidecar_gone_before_its_file_comes(lab):
    """The file's commit counts on a sidecar that somebody removes before it arrives."""
    directory = "m" * 200
    one, two = f"{directory}/one.txt", f"{directory}/two.txt"
    start(lab, one)
    overlap(lab, two, lab.b, lambda: lab.b.create(two), lab.a, lambda: lab.a.unlink(one))
    yield


def killed_before_reading_back(lab):
    name = "killed.txt"
    start(lab, name)
    overlap(lab, name, lab.b, lambda: lab.b.append(name), lab.a, lambda: lab.a.append(name))
    lab.a.restart()
    found = yield
    assert len(copies(found, name)) == 1, list(found)


def killed_before_the_answer(lab):
    name = "killed2.txt"
    start(lab, name)
    held = held_append(lab, lab.b, name)
    answer = lab.a.gate.hold_answer("commit", lab.stored_key(name))
    lab.a.append(name)
    answer.wait()
    lab.a.kill()
    answer.release()
    held.release()
    lab.b.flush()
    lab.a.start()
    found = yield
    assert len(copies(found, name)) == 1, list(found)


def in_place_in_a_large_file(lab):
    """Records of one file, whose id stays: both versions are whole."""
    name = "large.bin"
    size = 65 << 20
    start(lab, name, size)

    def edit(machine, at):
        token = machine.token()
        with open(machine.path(name), "r+b") as file:
            file.seek(at)
            file.write(token)
        lab.acknowledged(token)

    overlap(lab, name, lab.b, lambda: edit(lab.b, 40 << 20), lab.a, lambda: edit(lab.a, 20 << 20))
    found = yield
    [copy] = copies(found, name)
    for path in (name, copy):
        assert len(tokens(found[path])) == 2, path
        assert len(found[path]) == size + len(b"[A-1]") or len(found[path]) > size


def read_backs_meet(lab):
    """Two mounts find themselves overwritten in the same moment; their copies would have the same name."""
    name = "meet.txt"
    start(lab, name)
    rules = {machine: held_append(lab, machine, name) for machine in (lab.a, lab.b, lab.c)}
    mark = lab.stored_key(name)
    # All have compared: the next look at the path is the read-back. It waits until both are there.
    looks = [machine.gate.hold("look", mark) for machine in (lab.a, lab.b)]
    for machine, rule in rules.items():
        rule.release()
        machine.flush()
    for look in looks:
        look.wait()
    puts = [machine.gate.hold("commit") for machine in (lab.a, lab.b)]
    for look in looks:
        look.release()
    # Both have seen that nobody has the name of the copy yet.
    for put in puts:
        put.wait()
    for put in puts:
        put.release()
    found = yield
    assert len(copies(found, name)) >= 2, list(found)


ALL = [
    edit_against_edit,
    create_against_create,
    three_in_a_row,
    answer_lost_and_overwritten,
    removal_over_edit,
    new_overwritten_and_moved_away,
    edit_over_removal,
    recreated_over_edit,
    rename_away_over_edit,
    rename_away_finished_over_edit,
    rename_onto_edit,
    rename_onto_new,
    directory_rename_over_edit,
    directory_rename_over_new,
    new_over_directory_rename,
    seen_then_edited,
    seen_then_removed,
    seen_then_renamed,
    seen_then_replaced,
    seen_then_moved_with_its_directory,
    moved_with_its_directory_unseen,
    open_before_written_after,
    open_before_removed_written_after,
    name_kept_in_a_sidecar,
    sidecar_gone_before_its_file_comes,
    refused_then_late,
    killed_before_reading_back,
    killed_before_the_answer,
    read_backs_meet,
]
