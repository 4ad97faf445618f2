# SPDX-License-Identifier: Apache-2.0
"""Points read from the files themselves: those that Lance reads."""

import os

import numpy as np
import pytest

pytest.importorskip("lance")

from shielded.errors import ShieldedError
from shielded.shields.search.on_disk import OnDisk
from shielded.shields.store import ProtectedSet


@pytest.fixture(params=["float16", "float32"])
def store(tmp_path, request):
    """300 latents in three parts; of each some were removed."""
    made = ProtectedSet.create(tmp_path / "set", (4, 8, 8), dtype=request.param)
    draw = np.random.default_rng(0)
    for part in range(3):
        ids = [f"{part}-{k}" for k in range(100)]
        made.add(draw.normal(size=(100, 4, 8, 8)).astype(request.param), ids)
        made.remove(ids[part::7])
    return made


def addresses(store):
    return np.concatenate([part.rows for part in store.parts()])


def through_lance(reader, monkeypatch):
    """The calls in which Lance was asked for points that were looked for."""
    calls = []
    take = reader.store.take
    monkeypatch.setattr(reader.store, "take", lambda rows: calls.append(len(rows)) or take(rows))
    return calls


def test_they_are_those_that_lance_reads(store, monkeypatch):
    rows = np.random.default_rng(1).permutation(addresses(store))
    expected = store.take(rows)
    reader = OnDisk(store, store.parts())
    calls = through_lance(reader, monkeypatch)
    assert np.array_equal(reader(rows), expected)
    assert reader(rows).dtype == expected.dtype
    assert sum(calls) <= 3 * len(store.parts()), "only to see that they are the same"
    calls.clear()
    assert np.array_equal(reader(rows[:7]), expected[:7])
    assert not calls
    assert reader(rows[:0]).shape == (0, 256)


def test_after_compaction_too(store):
    store.compact()
    rows = addresses(store)[::-1]
    assert np.array_equal(OnDisk(store, store.parts())(rows), store.take(rows))


def test_a_file_of_another_layout_is_left_to_lance(store, monkeypatch):
    """Here: one that seems to begin elsewhere, as it would if rows were packed in another way."""
    reader, rows = OnDisk(store, store.parts()), addresses(store)
    expected, find = store.take(rows), reader._find

    def moved(path):
        pages = find(path)
        pages.start[0] += 2
        return pages

    monkeypatch.setattr(reader, "_find", moved)
    assert np.array_equal(reader(rows), expected)


@pytest.mark.parametrize("missing", ["LanceFileReader", "preadv"])
def test_without_what_it_needs_lance_is_asked(store, monkeypatch, missing):
    name = "lance.file.LanceFileReader" if missing == "LanceFileReader" else "os.preadv"
    monkeypatch.delattr(name)
    rows = addresses(store)
    assert np.array_equal(OnDisk(store, store.parts())(rows), store.take(rows))


def test_the_disk_is_told_of_all_reads_before_the_first(store, monkeypatch):
    """Read one by one, each row of a set that is not in memory waits for the disk."""
    if not hasattr(os, "posix_fadvise"):
        pytest.skip("this system cannot be told of reads in advance")
    rows, reader = addresses(store), OnDisk(store, store.parts())
    expected, told, read, preadv = reader(rows), [], [], os.preadv

    def tell(file, start, size, advice):
        assert not read
        told.append((start, size))

    def note(file, into, start):
        read.append((start, len(into[0])))
        return preadv(file, into, start)

    monkeypatch.setattr(os, "posix_fadvise", tell)
    monkeypatch.setattr(os, "preadv", note)
    assert np.array_equal(reader(rows), expected)
    assert told == read
    assert len(read) == len(rows)


def test_the_disk_is_told_of_points_that_may_be_asked_for(store, monkeypatch):
    """Of the very bytes that are read then; of a fragment not read before nothing is known."""
    if not hasattr(os, "posix_fadvise"):
        pytest.skip("this system cannot be told of reads in advance")
    rows, reader = addresses(store), OnDisk(store, store.parts())
    told, read, preadv = [], [], os.preadv
    monkeypatch.setattr(os, "posix_fadvise", lambda file, *place: told.append(place[:2]))
    reader.announce(rows[:3])
    assert not told
    reader(rows)
    told.clear()
    reader.announce(rows[:3])
    announced = sorted(told)

    def note(file, into, start):
        read.append((start, len(into[0])))
        return preadv(file, into, start)

    monkeypatch.setattr(os, "preadv", note)
    reader(rows[:3])
    assert announced == sorted(read)
    assert len(read) == 3
    store.path.rename(store.path.with_name("elsewhere"))
    reader.announce(rows[:3])  # who asks for them will be told


def test_a_disk_that_cannot_be_told_is_read_all_the_same(store, monkeypatch):
    rows, reader = addresses(store), OnDisk(store, store.parts())
    expected = reader(rows)

    def refuse(*arguments):
        raise OSError("not here")

    monkeypatch.setattr(os, "posix_fadvise", refuse, raising=False)
    calls = through_lance(reader, monkeypatch)
    assert np.array_equal(reader(rows), expected)
    assert not calls
    reader.announce(rows)
    monkeypatch.delattr(os, "posix_fadvise")
    reader.announce(rows)
    assert np.array_equal(reader(rows), expected)
    assert not calls


def test_a_file_that_is_gone_is_told_by_the_set(store):
    rows, reader = addresses(store), OnDisk(store, store.parts())
    reader(rows)
    for file in (store.path / "latents.lance" / "data").iterdir():
        file.unlink()
    with pytest.raises(ShieldedError):
        reader(rows)


def test_an_address_that_is_nowhere_is_refused(store):
    with pytest.raises(ShieldedError):
        OnDisk(store, store.parts())(np.array([99 << 32], dtype=np.uint64))


def test_of_a_file_of_several_pages_too(tmp_path):
    made = ProtectedSet.create(tmp_path / "set", (4, 64, 64), dtype="float32")
    draw = np.random.default_rng(0)
    for part in range(4):
        ids = [f"{part}-{k}" for k in range(150)]
        made.add(draw.normal(size=(150, 4, 64, 64)).astype("float32"), ids)
    made.compact()
    reader, rows = OnDisk(made, made.parts()), draw.permutation(addresses(made))[:100]
    assert np.array_equal(reader(rows), made.take(rows))
    (pages,) = reader._pages.values()
    assert len(pages.start) > 1, "or this tests nothing"
