# SPDX-License-Identifier: Apache-2.0
"""What a search knows from before: never more than is true."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import inf

from shielded.distances import Rough
from shielded.shields.search.anchors import ANCHORS, Anchors
from shielded.shields.search.closest import measured
from shielded.shields.search.gaps import Gaps


def distances(x, z):
    return torch.cdist(x, z.double(), compute_mode="donot_use_mm_for_euclid_dist")


def learn(mine, x, z, row):
    """Measure rows of z (N, D) from x (B, D), as the screen does, with radii of 0."""
    low, _ = measured(Rough.of(x), Rough.of(z[row]))
    mine.learn(row, low.amin(0))
    return low.amin(0)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([2, 40, 700]),
    st.sampled_from([torch.float16, torch.float32]),
    st.sampled_from([1e-3, 1.0, 300.0]),
    st.booleans(),
)
def test_gaps_hold_along_walks(seed, d, dtype, shift, tracks):
    """Large steps, then small ones; on two tracks in turn or one; of batches that change.

    Some rows are asked about, some of these measured: of others what was known grows too old.
    """
    generator = torch.Generator().manual_seed(seed)
    z = (shift + torch.randn(60, d, generator=generator)).to(dtype)
    x, aside = z[:5].double(), 0.5 * torch.randn(5, d, generator=generator, dtype=torch.float64)
    mine = Gaps(60, z)
    for step in range(60):
        x = x + 0.3 * 0.9**step * torch.randn(5, d, generator=generator, dtype=torch.float64)
        y = (x + aside if tracks and step % 2 else x)[: 5 if 10 < step < 50 else 1 + step % 3]
        true = distances(y, z).amin(0)
        row = torch.randperm(60, generator=generator)[: 20 + step % 41].sort().values
        assert bool((mine.of(Rough.of(y), row).double() <= true[row]).all())
        learn(mine, y, z, row[:: 1 + step % 3])
        assert bool((mine.of(Rough.of(y), row).double() <= true[row]).all())


def test_what_float32_rounds_never_makes_a_gap_larger():
    """Thousands of moves, each far smaller than the last place of a distance."""
    z = torch.tensor([[1.0, 0.0], [16777216.0, 0.0]])
    mine = Gaps(2, z)
    x = torch.zeros(1, 2, dtype=torch.float64)
    mine.of(Rough.of(x), torch.arange(2))
    mine.learn(torch.arange(2), distances(x, z)[0].float())
    for _ in range(3000):
        x = x + 3e-8
        gap = mine.of(Rough.of(x), torch.arange(2))
        assert bool((gap.double() <= distances(x, z)[0]).all())


def test_queries_that_float32_moves_have_come_no_shorter_a_way():
    """Here by one of two: 2^24 + 1 is rounded down."""
    anchors = Anchors()
    there, here = (torch.tensor([[2.0**24 + k, 0.0]], dtype=torch.float64) for k in (1, -1))
    anchors.move(Rough.of(there))
    assert 2 <= anchors.ways(Rough.of(here))[anchors.calls % ANCHORS] < 8


def test_what_was_measured_is_not_forgotten_at_once():
    """From the same points nothing is lost, from others as much as they are apart."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(50, 30, generator=generator)
    x = torch.randn(4, 30, generator=generator, dtype=torch.float64)
    mine = Gaps(50, z)
    every, way = torch.arange(50), 0.01 * torch.ones(4, 30)
    assert bool((mine.of(Rough.of(x), every) == -inf).all())
    low = learn(mine, x, z, every)
    mine.of(Rough.of(x + 3), every)  # another track
    assert torch.allclose(mine.of(Rough.of(x), every), low, rtol=1e-5)
    for step in range(1, 3 * ANCHORS):  # straight on: the way is as long in one step as in many
        further = mine.of(Rough.of(x + step * way), every)
        assert torch.allclose(further, low - step * 0.01 * 30**0.5, rtol=1e-4, atol=1e-5)


def test_what_nobody_asks_about_grows_too_old():
    """Its anchor goes on, and nothing says how far that was from here."""
    z = torch.zeros(2, 3)
    mine = Gaps(2, z)
    far, near = torch.full((1, 3), 100.0).double(), torch.full((1, 3), 1.0).double()
    mine.of(Rough.of(far), torch.arange(2))
    learn(mine, far, z, torch.arange(2))
    for _ in range(ANCHORS):
        mine.of(Rough.of(near), torch.arange(1))
    gap = mine.of(Rough.of(near), torch.arange(2))
    assert -inf < float(gap[0]) <= 3**0.5
    assert float(gap[1]) == -inf


def test_after_a_point_too_far_for_float32_nothing_is_ruled_out():
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    kept = Gaps(6, z)
    near, far = z[:1].double(), torch.full((1, 4), 1e200, dtype=torch.float64)
    some = torch.tensor([0, 1])
    for x in (near, far, near):
        gap = kept.of(Rough.of(x), torch.arange(6))
        assert not bool(gap.isnan().any())
        assert bool((gap.double() <= distances(x, z).amin(0)).all())
        learn(kept, x, z, some)
    assert bool((kept.of(Rough.of(near), some) > -inf).any()), "and then it goes on"
    assert bool((kept.of(Rough.of(-far), torch.arange(6)) == -inf).all())


def test_a_gap_that_is_no_number_is_not_known():
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    mine = Gaps(3, z)
    x = Rough.of(z[:1].double())
    mine.of(x, torch.arange(3))
    mine.learn(torch.arange(3), torch.tensor([torch.nan, inf, 2.0]))
    assert (mine.of(x, torch.arange(3)) > 1.9).tolist() == [False, False, True]


def test_ways_are_those_of_the_query_that_went_furthest():
    generator = torch.Generator().manual_seed(0)
    anchors, asked = Anchors(), []
    for _ in range(2 * ANCHORS):
        x = torch.randn(3, 50, generator=generator, dtype=torch.float64)
        ways = anchors.ways(Rough.of(x))
        true = [float((x - y).norm(dim=1).max()) for y in asked]
        places = [(anchors.calls - k) % ANCHORS for k in range(min(len(asked), ANCHORS))]
        for place, way in zip(places, reversed(true), strict=False):
            assert way <= ways[place] <= way * (1 + 1e-4)
        assert sum(way == inf for way in ways) == max(0, ANCHORS - len(asked))
        anchors.move(Rough.of(x))
        asked.append(x)
    assert anchors.ways(Rough.of(x[:2])) == [inf] * ANCHORS, "of another batch nothing is known"


@pytest.mark.parametrize("at", [0, 1])
def test_of_queries_of_another_number_nothing_is_known(at):
    z = torch.ones(1, 3)
    mine = Gaps(1, z)
    x = torch.full((2, 3), 9.0).double()
    mine.of(Rough.of(x), torch.arange(1))
    learn(mine, x, z, torch.arange(1))
    assert float(mine.of(Rough.of(x[at : at + 1]), torch.arange(1))) == -inf
