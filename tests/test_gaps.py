# SPDX-License-Identifier: Apache-2.0
"""What a search knows from before: never more than is true."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import inf

from shielded.distances import Rough
from shielded.shields.search.closest import measured
from shielded.shields.search.gaps import Gaps
from shielded.shields.search.tracks import furthest


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
)
def test_gaps_hold_along_walks_and_beside_them(seed, d, dtype, shift):
    """Large steps, then small ones; of batches that change.

    Some rows are asked about, some of these measured: of others what was known grows too old.
    """
    generator = torch.Generator().manual_seed(seed)
    z = (shift + torch.randn(60, d, generator=generator)).to(dtype)
    x = z[:5].double()
    mine = Gaps(60, z)
    for step in range(60):
        x = x + 0.3 * 0.9**step * torch.randn(5, d, generator=generator, dtype=torch.float64)
        some = x[: 5 if 10 < step < 50 else 1 + step % 3]
        mine.come(some)
        row = torch.randperm(60, generator=generator)[: 20 + step % 41].sort().values
        true = distances(some, z).amin(0)[row]
        assert bool((mine.of(row) <= true).all())
        learn(mine, some, z, row[:: 1 + step % 3])
        assert bool((mine.of(row) <= true).all())
        aside = some + 0.1 * torch.randn(some.shape, generator=generator, dtype=torch.float64)
        there = distances(aside, z).amin(0)[row]
        assert bool((mine.of(row) - furthest(aside - some) <= there).all())


@pytest.mark.parametrize("before", [0, 1e9])
def test_what_is_rounded_never_makes_a_gap_larger(before):
    """Thousands of moves, each far smaller than the last place of a distance; after a long way."""
    z = torch.tensor([[1.0, 0.0], [16777216.0, 0.0]])
    mine = Gaps(2, z)
    x = torch.zeros(1, 2, dtype=torch.float64)
    mine.come(x - before)
    mine.come(x)
    mine.learn(torch.arange(2), distances(x, z)[0])
    for _ in range(3000):
        x = x + 3e-8
        mine.come(x)
        assert bool((mine.of(torch.arange(2)) <= distances(x, z)[0]).all())


def test_what_was_measured_is_not_forgotten_at_once():
    """From the same points nothing is lost, from others as much as they are apart."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(50, 30, generator=generator)
    x = torch.randn(4, 30, generator=generator, dtype=torch.float64)
    mine = Gaps(50, z)
    every, way = torch.arange(50), 0.01 * torch.ones(4, 30)
    mine.come(x)
    assert bool((mine.of(every) <= 0).all())
    low = learn(mine, x, z, every).double()
    mine.come(x)
    assert torch.allclose(mine.of(every), low)
    for step in range(1, 20):
        mine.come(x + step * way)
        assert torch.allclose(mine.of(every), low - step * 0.01 * 30**0.5, atol=1e-6)
    learn(mine, x, z - 100, every[:25])
    mine.learn(every[25:], torch.zeros(25))
    assert bool((mine.of(every[:25]) > low[:25]).all()), "more is known now"
    assert torch.allclose(mine.of(every[25:]), low[25:] - 0.19 * 30**0.5, atol=1e-6), "and no less"


def test_after_a_point_too_far_to_measure_nothing_is_ruled_out():
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    mine = Gaps(6, z)
    near, far = z[:1].double() + 1, torch.full((1, 4), 1e200, dtype=torch.float64)
    some, every = torch.tensor([0, 1]), torch.arange(6)
    for x in (near, far, near):
        mine.come(x)
        gap = mine.of(every)
        assert bool((gap <= 0).all()), "and none is NaN"
        learn(mine, x, z, some)
    assert bool((mine.of(some) > 0).any()), "and then it goes on"
    mine.come(torch.full((1, 4), torch.nan).double())
    assert bool((mine.of(every) <= 0).all())


def test_a_gap_that_is_no_number_is_not_known():
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    mine = Gaps(3, z)
    mine.come(z[:1].double())
    mine.learn(torch.arange(3), torch.tensor([torch.nan, inf, 2.0]))
    assert (mine.of(torch.arange(3)) > 1.9).tolist() == [False, False, True]
    mine.learn(torch.arange(2), torch.tensor([-inf, 1.0]))
    assert (mine.of(torch.arange(3)) > 0).tolist() == [False, True, True]


def test_whoever_asked_may_do_with_queries_what_he_likes():
    z = torch.zeros(1, 3)
    mine = Gaps(1, z)
    x = torch.full((2, 3), 9.0).double()
    mine.come(x)
    learn(mine, x, z, torch.arange(1))
    x -= 8.9
    mine.come(x)
    assert float(mine.of(torch.arange(1))) <= 0.1 * 3**0.5


@pytest.mark.parametrize("at", [0, 1])
def test_of_queries_of_another_number_nothing_is_known(at):
    z = torch.ones(1, 3)
    mine = Gaps(1, z)
    x = torch.full((2, 3), 9.0).double()
    mine.come(x)
    learn(mine, x, z, torch.arange(1))
    assert float(mine.of(torch.arange(1))) > 13
    mine.come(x[at : at + 1])
    assert float(mine.of(torch.arange(1))) <= 0
