# SPDX-License-Identifier: Apache-2.0
"""Protected sets and the world: kills, full disks, flipped bytes, two writers, slow readers.

SHIELDED_THOROUGH=1 kills 200 times instead of 20, and flips every byte instead of a sample.
"""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

pytest.importorskip("lance", reason="needs the extra [protect]")

import lance

from shielded.errors import BadInput, Busy, Damaged, NotStored
from shielded.shields.store import ProtectedSet, Report, draft, reader, verify
from shielded.shields.store.engine import manifest
from store_worker import SHAPE, latents

THOROUGH = os.environ.get("SHIELDED_THOROUGH") == "1"


def ids_of(a):
    return [name for batch in a.entries(["id"]) for name in batch["id"]]


def whole(path, *allowed):
    """The set at `path`, which has the ids of one of the allowed states, each with its latent."""
    report = verify(path)
    assert report.sound, report
    a = ProtectedSet.open(path)
    ids = ids_of(a)
    assert set(ids) in allowed
    assert len(a) == len(ids) == report.images
    rows = [row for part in a.parts() for row in part.rows]
    if ids:
        assert np.array_equal(a.take(rows), latents(ids).half().flatten(1))
    for version in a.versions()[-2:]:
        assert len(ProtectedSet.open(path, version.number)) == version.images
    return a


def still_works(a, name):
    """The next changes succeed, and leave nothing loose."""
    a.add(latents([name]), [name])
    assert a.has([name]) == {name}
    a.compact()
    report = a.verify()
    assert report.sound
    assert not report.loose


@pytest.fixture
def base(tmp_path):
    """A set with parts, deletions and several versions."""
    a = ProtectedSet.create(tmp_path / "base", SHAPE, {"made": "by a test"}, radius=1.0)
    for k in range(3):
        ids = [f"{k}-{n}" for n in range(4)]
        a.add(latents(ids), ids)
    a.remove(["0-1", "1-0", "1-1"])
    return a


# --- damage ---------------------------------------------------------------------------------


def files(path):
    return sorted(file for file in Path(path).rglob("*") if file.is_file() and file.name != "lock")


def test_verify_finds_every_flipped_byte(base):
    rng = random.Random(0)
    places = [(file, k) for file in files(base.path) for k in range(file.stat().st_size)]
    kinds = {file.relative_to(base.path).parts[:2][-1] for file, _ in places}
    assert {"data", "_deletions", "_versions", "_transactions", "set.json"} < kinds
    if not THOROUGH:
        ends = [place for place in places if place[1] in (0, place[0].stat().st_size - 1)]
        places = ends + rng.sample(places, 100)
    for file, k in places:
        with file.open("r+b") as f:
            f.seek(k)
            (byte,) = f.read(1)
            f.seek(k)
            f.write(bytes([byte ^ (1 << rng.randrange(8))]))
        assert file.relative_to(base.path).as_posix() in verify(base.path).damaged, (file, k)
        with file.open("r+b") as f:
            f.seek(k)
            f.write(bytes([byte]))
    assert base.verify().sound


def test_verify_names_what_is_missing(base):
    newest = base.path / manifest(base.version)
    for file in files(base.path):
        name = file.relative_to(base.path).as_posix()
        file.rename(base.path.parent / "away")
        report = verify(base.path)
        if name.startswith("sums/"):
            assert report.damaged, "nothing vouches for the files of that list"
        elif file == newest:  # as if the last change had been killed just before it was visible
            assert report.sound
            assert report.loose
        elif name != manifest(1):  # as if `compact` had erased it
            assert report.missing == [name]
        (base.path.parent / "away").rename(file)
    assert base.verify() == Report(9, len(files(base.path)) - 5, [], [], [])
    with pytest.raises(BadInput, match="there is no protected set"):
        verify(base.path.parent / "nowhere")


def test_damage_to_small_files_is_met_when_the_set_is_opened(base):
    """To all that the newest version needs but the latents, which `verify` reads."""
    small = [base.path / "set.json", base.path / manifest(base.version)]
    small += (base.path / "latents.lance/_deletions").iterdir()
    small += (base.path / "sums").iterdir()
    assert len(small) == 2 + 2 + 5
    for file in small:
        text = file.read_bytes()
        file.write_bytes(text[:-1] + bytes([text[-1] ^ 4]))
        with pytest.raises(Damaged, match=rf"{file.name}.* damaged|damaged .*{file.name}"):
            ProtectedSet.open(base.path)
        file.write_bytes(text)
    ProtectedSet.open(base.path)


@pytest.mark.parametrize("left", [0, 0.5, 1])
def test_a_truncated_data_file_is_refused_by_name(base, left):
    file = next((base.path / "latents.lance/data").iterdir())
    text = file.read_bytes()
    file.write_bytes(text[: int(left * (len(text) - 1))])
    with pytest.raises(Damaged, match=rf"{file.name}.*shielded protect verify"):
        ProtectedSet.open(base.path)
    assert verify(base.path).damaged == [file.relative_to(base.path).as_posix()]
    if left < 1:  # the last byte matters to those who open the file, and base has done so
        with pytest.raises(Damaged, match="cannot be read"):
            for part in base.parts():
                list(base.read(part))
    file.unlink()
    with pytest.raises(Damaged, match=file.name):
        ProtectedSet.open(base.path)
    assert verify(base.path).missing == [file.relative_to(base.path).as_posix()]
    file.write_bytes(text)
    assert base.verify().sound


def test_loose_files_are_named_and_go_with_the_next_compact(base):
    names = ["latents.lance/data/left.lance", "draft/latents.lance/data/x.lance", "stray"]
    for name in names:
        (base.path / name).parent.mkdir(parents=True, exist_ok=True)
        (base.path / name).write_bytes(b"left by a kill")
    report = base.verify()
    assert report.sound
    assert report.loose == sorted(names)
    base.compact()
    assert base.verify().loose == []


# --- a full disk, and a crash, at every step ---------------------------------------------------


class Killed(BaseException):
    """Nothing after this happens: not even cleaning up."""


STEPS = [
    *((os, name) for name in ("replace", "rename", "fsync", "unlink", "mkdir", "rmdir")),
    *((Path, name) for name in ("write_bytes", "write_text")),
    (shutil, "copyfile"),
    (lance.fragment, "write_fragments"),
    (lance.LanceDataset, "commit"),
    (lance, "write_dataset"),
]

CHANGES = {
    "add": lambda a: a.add(latents(["x", "y"]), ["x", "y"]),
    "remove": lambda a: a.remove(["0-0", "1-2", "2-0", "2-1", "2-2", "2-3"]),
    "compact": lambda a: a.compact(keep=2),
}
BEFORE = {f"{k}-{n}" for k in range(3) for n in range(4)} - {"0-1", "1-0", "1-1"}
AFTER = {
    "add": BEFORE | {"x", "y"},
    "remove": BEFORE - {"0-0", "1-2", "2-0", "2-1", "2-2", "2-3"},
    "compact": BEFORE,
}


def fail_at(patch, step, error, forever):
    """Let the `step`-th of the calls that touch the disk fail, or it and all after it."""
    count = 0

    def failing(call):
        def wrapped(*args, **kwargs):
            nonlocal count
            count += 1
            if count == step or (forever and count > step):
                raise error
            return call(*args, **kwargs)

        return wrapped

    for owner, name in STEPS:
        value = failing(getattr(owner, name))
        patch.setattr(owner, name, staticmethod(value) if owner is lance.LanceDataset else value)
    return lambda: count


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("kill", [False, True], ids=["full disk", "kill"])
def test_a_failure_at_any_step_leaves_the_old_version_or_the_new(base, what, kill):
    error = Killed() if kill else OSError(errno.ENOSPC, "No space left on device")
    step, seen = 0, set()
    while True:
        step += 1
        path = shutil.copytree(base.path, base.path.parent / f"{step}")
        a = ProtectedSet.open(path)
        with pytest.MonkeyPatch.context() as patch:
            steps = fail_at(patch, step, error, forever=kill)
            said = None
            try:
                CHANGES[what](a)
            except (NotStored, Killed) as raised:
                said = str(raised)
        if steps() < step:
            break  # the change takes no more steps than those that were tried
        if said is None:  # the step was a part of cleaning up
            seen.add(whole(path, AFTER[what]).version)
        else:
            assert said == "" if kill else "No space left on device" in said
            seen.add(whole(path, BEFORE, AFTER[what]).version)
        if step % 4 == 0:
            still_works(a, "next")
        shutil.rmtree(path)
    assert step > 10
    assert seen == {base.version, base.version + 1}


@pytest.mark.parametrize("kill", [False, True], ids=["full disk", "kill"])
def test_a_set_is_created_whole_or_not_at_all(tmp_path, kill):
    error = Killed() if kill else OSError(errno.ENOSPC, "No space left on device")
    for step in range(1, 100):
        path = tmp_path / f"{step}" / "set"
        with pytest.MonkeyPatch.context() as patch:
            steps = fail_at(patch, step, error, forever=kill)
            try:
                ProtectedSet.create(path, SHAPE)
            except (NotStored, Killed):
                pass
        if steps() < step:
            break
        if path.exists() and any(path.iterdir()):
            whole(path, set())
        else:
            ProtectedSet.create(path, SHAPE)
    assert 10 < step < 99


# --- other processes ----------------------------------------------------------------------------


class Worker:
    """A process that forks another for each order, and tells what they do."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("store_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        assert self.hear() == ["ready"]

    def order(self, **order):
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def hear(self):
        return json.loads(self.process.stdout.readline())

    def until(self, word):
        """Everything heard up to a word, which comes last."""
        heard = [self.hear()]
        while heard[-1][0] != word:
            heard.append(self.hear())
        return heard


@pytest.fixture(scope="module")
def worker():
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    worker = Worker()
    yield worker
    worker.process.kill()
    worker.process.wait()


def test_a_kill_at_any_moment_loses_nothing_that_was_acknowledged(tmp_path, worker):
    rng = random.Random(time.time_ns())
    path = tmp_path / "set"
    ProtectedSet.create(path, SHAPE)
    live, struck = set(), set()
    for n in range(200 if THOROUGH else 20):
        worker.order(work="change", path=str(path), seed=n)
        pid = worker.until("start")[-1][1]
        first = worker.hear()
        time.sleep(rng.expovariate(1 / 0.05))
        os.kill(pid, signal.SIGKILL)
        *heard, gone = [first, *worker.until("gone")]
        assert gone == ["gone", pid]
        for word, what, ids in heard:
            new = (
                live | set(ids) if what == "add" else live - set(ids) if what == "remove" else live
            )
            if word == "done":
                live = new
        if word == "try":
            struck.add(what)
        a = whole(path, live, new)
        live = set(ids_of(a)) | {f"probe {n}"}
        assert a.add(latents([f"probe {n}"]), [f"probe {n}"]) == 1
    assert struck, "no kill came in the middle of a change"
    still_works(a, "last")


def test_a_kill_while_sets_are_created(tmp_path, worker):
    for n in range(40 if THOROUGH else 4):
        worker.order(work="create", path=str(tmp_path), seed=n)
        pid = worker.until("start")[-1][1]
        worker.hear()
        time.sleep(random.expovariate(1 / 0.03))
        os.kill(pid, signal.SIGKILL)
        for word in worker.until("gone")[:-1]:
            if word[0] == "done":
                whole(word[2], set())
        last = Path(tmp_path / f"{n}-{len(list(tmp_path.glob(f'{n}-*'))) - 1}")
        if last.exists():
            whole(last, set())


def test_a_file_that_cannot_grow_leaves_the_set_as_it_was(base, worker):
    worker.order(work="fill", path=str(base.path), seed=9)
    *_, (_, _, error), _ = worker.until("gone")
    assert error.startswith("NotStored: ")
    assert "see that its disk has room" in error
    assert whole(base.path, BEFORE).verify().loose == []
    still_works(base, "next")


def test_two_writers_take_turns(base, worker):
    for seed in (8, 9):
        worker.order(work="add", path=str(base.path), seed=seed, beside=True)
    ends = [worker.until("end")[-1] for _ in (1, 2)]
    assert [end[2] for end in ends] == [None, None]
    whole(base.path, BEFORE | {f"{seed}-{k}" for seed in (8, 9) for k in range(10)})


def test_a_writer_that_waits_too_long_says_so(base, monkeypatch):
    monkeypatch.setattr(draft, "PATIENCE", 0.2)
    with FileLock(base.path / "lock"):
        for change in CHANGES.values():
            with pytest.raises(Busy, match=r"another process is changing .* try again"):
                change(ProtectedSet.open(base.path))
        assert set(ids_of(ProtectedSet.open(base.path))) == BEFORE, "readers do not wait"
    still_works(base, "next")


def test_a_reader_goes_on_while_others_change_the_set(base, worker):
    late, pinned = ProtectedSet.open(base.path), ProtectedSet.open(base.path, 2)
    rows = np.concatenate([part.rows for part in late.parts()])
    was = late.take(rows)
    half = late.read(late.parts()[0], batch=1)
    first = next(half)
    base.compact()
    base.remove(["0-0"])
    base.compact()
    assert np.array_equal(late.take(rows), was)
    assert len([first, *half]) == len(late.parts()[0].rows)
    assert set(ids_of(late)) == BEFORE
    assert len(ids_of(pinned)) == 4
    assert late.refresh()
    assert set(ids_of(late)) == BEFORE - {"0-0"}


def test_to_open_refresh_and_verify_while_versions_come_and_go(base, worker):
    late, seen = ProtectedSet.open(base.path), set()
    worker.order(work="churn", path=str(base.path), seed=7, beside=True)
    last, until = base.version + 3 + 9 * 2, time.time() + 60  # only the first compact merges
    while late.version < last and time.time() < until:
        late.refresh()
        seen.add(late.version)
        assert len(late) - len(BEFORE) in (0, 1)
        assert len(ProtectedSet.open(base.path)) - len(BEFORE) in (0, 1)
        report = verify(base.path)
        assert report.sound, report
        assert report.images - len(BEFORE) in (0, 1)
    assert len(seen) > 5
    assert late.version == last
    assert worker.until("end")[-1][2] is None
    whole(base.path, BEFORE)


@pytest.mark.parametrize("how", ["open", "refresh"])
def test_a_version_erased_while_it_is_opened_makes_room_for_the_newest(base, monkeypatch, how):
    late, load = ProtectedSet.open(base.path), reader.dataset
    base.remove(["0-0"])
    meanwhile = [lambda: base.compact(keep=1)]

    def slow(*args):
        if meanwhile:
            meanwhile.pop()()
        return load(*args)

    monkeypatch.setattr(reader, "dataset", slow)
    if how == "open":
        late = ProtectedSet.open(base.path)
    else:
        assert late.refresh()
    assert not meanwhile
    assert late.version == base.version
    assert set(ids_of(late)) == BEFORE - {"0-0"}


def test_a_set_that_may_not_be_written_can_be_read(base):
    folders = [base.path, *(path for path in base.path.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        if os.access(base.path, os.W_OK):
            pytest.skip("this user may write everywhere")
        assert set(ids_of(ProtectedSet.open(base.path))) == BEFORE
        assert verify(base.path).sound
        assert not base.keep("x", {}, {})
        with pytest.raises(NotStored, match="could not be changed"):
            base.add(latents(["x"]), ["x"])
    finally:
        for folder in folders:
            folder.chmod(0o755)
    still_works(base, "next")
