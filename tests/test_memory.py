# SPDX-License-Identifier: Apache-2.0
"""What a search remembers: never more than is true, whatever it had to forget."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import inf

from shielded.distances import Rough
from shielded.shields.search.anchors import ANCHORS, Anchors
from shielded.shields.search.closest import measured
from shielded.shields.search.memory import BESIDE, Memory


def memory(z, room, monkeypatch, first=None):
    """With room for so many points, over references z (N, D); and what was fetched."""
    for name, count in (("HOT", room), ("SOME", room if first is None else first)):
        size = count * (z[0].nbytes + BESIDE)
        monkeypatch.setattr(f"shielded.shields.search.memory.{name}", size)
    fetched = []

    def fetch(rows):
        fetched.extend(rows.tolist())
        return z[rows]

    return Memory(fetch, len(z), z[0].double()), fetched


def distances(x, z):
    return torch.cdist(x, z.double(), compute_mode="donot_use_mm_for_euclid_dist")


def learn(mine, x, row):
    """Measure rows from x (B, D) and let that be known, as the screen does, with radii of 0."""
    low, _ = measured(Rough.of(x), mine.points(row))
    mine.learn(row, low.amin(0))
    return low.amin(0)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([2, 40, 700]),
    st.sampled_from([(1, 1), (7, 7), (100, 100), (2, 100), (5, 40)]),
    st.sampled_from([torch.float16, torch.float32]),
    st.sampled_from([1e-3, 1.0, 300.0]),
    st.booleans(),
)
def test_gaps_hold_along_walks_that_outgrow_the_memory(seed, d, room, dtype, shift, tracks):
    """Large steps, then small ones; on two tracks in turn or one; of batches that change."""
    generator = torch.Generator().manual_seed(seed)
    z = (shift + torch.randn(60, d, generator=generator)).to(dtype)
    x, aside = z[:5].double(), 0.5 * torch.randn(5, d, generator=generator, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        mine, _ = memory(z, room[1], patch, first=room[0])
        every = torch.arange(60)
        for step in range(60):
            x = x + 0.3 * 0.9**step * torch.randn(5, d, generator=generator, dtype=torch.float64)
            y = (x + aside if tracks and step % 2 else x)[: 5 if 10 < step < 50 else 1 + step % 3]
            true = distances(y, z).amin(0)
            assert bool((mine.gaps(Rough.of(y), every).double() <= true).all())
            row = torch.randperm(60, generator=generator)[: 1 + step].sort().values
            assert torch.equal(mine.points(row).points, z[row].float())
            assert torch.allclose(mine.points(row).squares, z[row].float().square().sum(1))
            learn(mine, y, row)
            assert bool((mine.gaps(Rough.of(y), every).double() <= true).all())


def test_what_float32_rounds_never_makes_a_gap_larger(monkeypatch):
    """Thousands of moves, each far smaller than the last place of a distance."""
    z = torch.tensor([[1.0, 0.0], [16777216.0, 0.0]])
    mine, _ = memory(z, 2, monkeypatch)
    x = torch.zeros(1, 2, dtype=torch.float64)
    mine.points(torch.arange(2))
    mine.gaps(Rough.of(x), torch.arange(2))
    mine.learn(torch.arange(2), distances(x, z)[0].float())
    for _ in range(3000):
        x = x + 3e-8
        gap = mine.gaps(Rough.of(x), torch.arange(2))
        assert bool((gap.double() <= distances(x, z)[0]).all())


def test_queries_that_float32_moves_have_come_no_shorter_a_way():
    """Here by one of two: 2^24 + 1 is rounded down."""
    anchors = Anchors()
    there, here = (torch.tensor([[2.0**24 + k, 0.0]], dtype=torch.float64) for k in (1, -1))
    anchors.move(Rough.of(there))
    assert 2 <= anchors.ways(Rough.of(here))[anchors.last] < 8


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


def test_what_was_measured_is_not_forgotten_at_once(monkeypatch):
    """From the same points nothing is lost, from others as much as they are apart."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(50, 30, generator=generator)
    x = torch.randn(4, 30, generator=generator, dtype=torch.float64)
    mine, fetched = memory(z, 50, monkeypatch)
    every, way = torch.arange(50), 0.01 * torch.ones(4, 30)
    assert bool((mine.gaps(Rough.of(x), every) == -inf).all())
    low = learn(mine, x, every)
    mine.gaps(Rough.of(x + 3), every)  # another track
    assert torch.allclose(mine.gaps(Rough.of(x), every), low, rtol=1e-5)
    for step in range(1, 3 * ANCHORS):  # straight on: the way is as long in one step as in many
        further = mine.gaps(Rough.of(x + step * way), every)
        assert torch.allclose(further, low - step * 0.01 * 30**0.5, rtol=1e-4, atol=1e-5)
    assert sorted(fetched) == every.tolist(), "each point once"


def test_a_point_that_is_let_go_takes_with_it_what_was_known(monkeypatch):
    z = torch.arange(20.0).reshape(10, 2)
    mine, _ = memory(z, 4, monkeypatch)
    x = torch.full((1, 2), -100.0, dtype=torch.float64)
    mine.gaps(Rough.of(x), torch.arange(4))
    learn(mine, x, torch.arange(4))
    mine.points(torch.arange(4, 7))  # three had to go
    gap = mine.gaps(Rough.of(x), torch.arange(10))
    assert (gap > -inf).tolist() == [False, False, False, True] + 6 * [False]


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


def test_after_a_point_too_far_for_float32_nothing_is_ruled_out(monkeypatch):
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    kept, _ = memory(z, 6, monkeypatch)
    near, far = z[:1].double(), torch.full((1, 4), 1e200, dtype=torch.float64)
    some = torch.tensor([0, 1])
    for x in (near, far, near):
        gap = kept.gaps(Rough.of(x), torch.arange(6))
        assert not bool(gap.isnan().any())
        assert bool((gap.double() <= distances(x, z).amin(0)).all())
        learn(kept, x, some)
    assert bool((kept.gaps(Rough.of(near), some) > -inf).any()), "and then it goes on"
    assert bool((kept.gaps(Rough.of(-far), torch.arange(6)) == -inf).all())


def test_a_gap_that_is_no_number_is_not_known(monkeypatch):
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    mine, _ = memory(z, 3, monkeypatch)
    x = Rough.of(z[:1].double())
    mine.points(torch.arange(3))
    mine.gaps(x, torch.arange(3))
    mine.learn(torch.arange(3), torch.tensor([torch.nan, inf, 2.0]))
    assert (mine.gaps(x, torch.arange(3)) > 1.9).tolist() == [False, False, True]


def test_ways_are_those_of_the_query_that_went_furthest():
    generator = torch.Generator().manual_seed(0)
    anchors, asked = Anchors(), []
    for _ in range(2 * ANCHORS):
        x = torch.randn(3, 50, generator=generator, dtype=torch.float64)
        ways = anchors.ways(Rough.of(x))
        true = [float((x - y).norm(dim=1).max()) for y in asked]
        places = [(anchors.last - k) % ANCHORS for k in range(min(len(asked), ANCHORS))]
        for place, way in zip(places, reversed(true), strict=False):
            assert way <= ways[place] <= way * (1 + 1e-4)
        assert sum(way == inf for way in ways) == max(0, ANCHORS - len(asked))
        anchors.move(Rough.of(x))
        asked.append(x)
    assert anchors.ways(Rough.of(x[:2])) == [inf] * ANCHORS, "of another batch nothing is known"


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
