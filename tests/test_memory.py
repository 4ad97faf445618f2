# SPDX-License-Identifier: Apache-2.0
"""The points that a search fetched last, or all of a small set."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shielded.distances import Rough
from shielded.shields.search.closest import measured
from shielded.shields.search.memory import BESIDE, Memory


def memory(z, room, monkeypatch, first=None, whole=0):
    """With room for so many points, over references z (N, D); and what was fetched."""
    rooms = {"HOT": room, "SOME": room if first is None else first, "WHOLE": whole}
    for name, count in rooms.items():
        size = count * (z[0].nbytes + BESIDE)
        monkeypatch.setattr(f"shielded.shields.search.memory.{name}", size)
    fetched = []

    def fetch(rows):
        fetched.extend(rows.tolist())
        return z[rows]

    return Memory(fetch, len(z), z[0].double()), fetched


def distances(x, z):
    return torch.cdist(x, z.double(), compute_mode="donot_use_mm_for_euclid_dist")


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([(1, 1), (7, 7), (100, 100), (2, 100), (5, 40)]),
    st.sampled_from([torch.float16, torch.float32]),
)
def test_points_are_those_asked_for_whatever_had_to_go(seed, room, dtype):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(60, 5, generator=generator).to(dtype)
    with pytest.MonkeyPatch.context() as patch:
        mine, _ = memory(z, room[1], patch, first=room[0])
        for step in range(60):
            row = torch.randperm(60, generator=generator)[: 1 + step].sort().values
            assert torch.equal(mine.points(row).points, z[row].float())
            assert torch.allclose(mine.points(row).squares, z[row].float().square().sum(1))


def test_more_is_kept_only_where_what_was_let_go_is_asked_for_again(monkeypatch):
    """Points that are new each time need no more room; a circle of points gets what it needs."""
    z = torch.arange(2000.0).reshape(1000, 2)
    mine, fetched = memory(z, 64, monkeypatch, first=8)
    for row in torch.arange(500).split(5):
        assert torch.equal(mine.points(row).points, z[row])
    assert len(mine._row) == 8
    for _ in range(40):
        for row in torch.arange(500, 540).split(5):
            assert torch.equal(mine.points(row).points, z[row])
    assert len(mine._row) == 64
    fetched.clear()
    for _ in range(3):
        assert torch.equal(mine.points(torch.arange(500, 540)).points, z[500:540])
    assert not fetched
    for _ in range(20):
        assert torch.equal(mine.points(torch.arange(1000)).points, z), "no more than there may be"
    assert len(mine._row) == 64


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_small_set_of_which_many_were_asked_for_is_read_once_as_a_whole(monkeypatch, dtype):
    z, told = torch.randn(640, 5, generator=torch.Generator().manual_seed(0)).to(dtype), []
    mine, fetched = memory(z, 64, monkeypatch, whole=640)
    mine._announce = lambda row: told.extend(row.tolist())
    mine.points(torch.arange(21))  # a thirty-second, and one more
    assert fetched == list(range(21)), "of few it is not known whether others will be"
    assert not bool(mine.here(torch.arange(21, 640)).any())
    assert torch.equal(mine.points(torch.arange(100, 300)).points, z[100:300].float())
    assert fetched[21:] == list(range(640))
    assert bool(mine.here(torch.arange(640)).all())
    for row in (torch.arange(640), torch.tensor([639]), torch.arange(0, 640, 7)):
        found = mine.points(row)
        assert torch.equal(found.points, z[row].float())
        assert torch.equal(found.squares, Rough.of(z[row]).squares)
        mine.expect(row)
    assert len(fetched) == 21 + 640
    assert not told


def test_a_set_that_is_not_small_is_never_read_as_a_whole(monkeypatch):
    z = torch.arange(1280.0).reshape(640, 2)
    mine, fetched = memory(z, 64, monkeypatch, whole=639)
    for row in torch.arange(640).split(10):
        assert torch.equal(mine.points(row).points, z[row])
    assert fetched == list(range(640))
    assert int(mine.here(torch.arange(640)).sum()) == 64


def test_the_bounds_are_close():
    """So that float64 is needed for few."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(200, 3072, generator=generator).half()
    x = z[:8].double() + torch.randn(8, 3072, generator=generator)
    low, high = measured(Rough.of(x), Rough.of(z))
    assert float((high - low).max()) < 0.01 * float(distances(x, z).median())


def test_what_float32_cannot_hold_is_not_bounded():
    z = torch.tensor([[1e20, 0.0], [3e38, 0.0], [0.0, 0.0]])
    x = torch.tensor([[1e20, 1.0], [1e-30, 0.0]], dtype=torch.float64)
    low, high = measured(Rough.of(x), Rough.of(z))
    true = distances(x, z)
    assert bool((low <= true).all())
    assert bool((high >= true).all())


def test_what_may_be_asked_for_next_is_announced_once(monkeypatch):
    """Not what is here, nor what was here; and of too many it is not known which."""
    z, told = torch.arange(2000.0).reshape(1000, 2), []
    mine, _ = memory(z, 4, monkeypatch)
    mine._announce = lambda row: told.extend(row.tolist())
    mine.points(torch.arange(4))
    mine.points(torch.arange(4, 6))  # two had to go
    mine.expect(torch.arange(9))
    assert told == [6, 7, 8]
    mine.expect(torch.arange(10))
    assert told == [6, 7, 8, 9]
    mine.expect(torch.arange(500))
    assert len(told) == 4
    assert torch.equal(mine.points(torch.arange(10)).points, z[:10])


def test_nothing_is_announced_where_nobody_listens():
    z = torch.arange(20.0).reshape(10, 2)
    mine = Memory(lambda rows: z[rows], 10, z[0].double())
    mine.expect(torch.arange(10))
    assert torch.equal(mine.points(torch.arange(10)).points, z)
