# SPDX-License-Identifier: Apache-2.0
"""Hundreds of references: float32 decides only what it can, and moves are the same."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shielded.crowd import FEW, Centred, Crowd
from shielded.distances import Rough, rough_squares
from shielded.repel import project

some = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 10_000)
DIMS = st.sampled_from([2, 40, 600, 1021])


def draw(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def mixed(z):
    """References (M, D) that float16 holds, in parts of all precisions; and them in float64."""
    z = z.half()
    a, b = len(z) // 3, len(z) // 2
    parts = z[:a], z[a:b].float(), z[b:].double()
    return Crowd(*parts, rough=[None, Rough.of(parts[1]), None]), z.double()


def exact(x, z):
    return torch.cdist(x, z, compute_mode="donot_use_mm_for_euclid_dist").square()


@some
@given(seeds, DIMS, st.sampled_from([3, FEW, FEW + 1, 300]), st.sampled_from([0.0, 1.0, 300.0]))
def test_squares_are_on_the_right_side_of_limits_that_are_as_close_as_can_be(seed, d, m, offset):
    """Limits a little above and a little below a distance that occurs: float32 cannot tell."""
    crowd, z = mixed(offset + draw(seed, m, d))
    x = z[: min(m, 5)] + 0.3 * draw(seed + 1, min(m, 5), d)
    true = exact(x, z)
    by = torch.where(torch.arange(m) % 2 == 0, 1 + 3e-8, 1 - 3e-8)
    limit = true[torch.arange(m) % len(x), torch.arange(m)] * by
    asked = torch.rand(true.shape, generator=torch.Generator().manual_seed(seed)) < 0.7
    told = crowd.squares(x, limit, asked)
    clear = (true - limit).abs() > 1e-11 * (z.square().sum(1) + limit)
    assert torch.equal((told < limit)[asked & clear], (true < limit)[asked & clear])
    assert bool(clear.double().mean() > 0.5), "float64 tells"
    assert torch.allclose(told, true, atol=1e-3 * float(z.square().sum(1).max()) + 1e-6)


@some
@given(seeds, st.sampled_from([10, 100, 300]), st.sampled_from([5, 200, 900]))
def test_a_move_is_the_same_whatever_precision_holds_the_references(seed, m, d):
    crowd, z = mixed(draw(seed, m, d))
    start, r = z[:4] + 0.1 * draw(seed + 1, 4, d), 0.9 * d**0.5 + draw(seed + 2, m).abs()
    allowed = draw(seed + 3, 4, m) > -1
    for x in (start, start + 0.2):  # one crowd, several moves
        y, near = project(x, crowd, r**2, allowed, lambda: torch.ones(4, d).double())
        alike, also = project(x, z, r**2, allowed, lambda: torch.ones(4, d).double())
        assert torch.equal(near, also)
        assert torch.allclose(y, alike, atol=1e-6 * d)
        gap = exact(y, z).sqrt() / r
        assert float(gap[allowed].min()) >= 1 - 1e-9


@some
@given(seeds, st.integers(FEW + 1, 200))
def test_what_is_centred_grows_with_what_is_wanted(seed, m):
    crowd, z = mixed(draw(seed, m, 30))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(4):
        wanted = torch.rand(3, m, generator=generator) < 0.1
        wanted[0, 0] = True
        columns, few = crowd.centred(wanted)
        assert set(wanted.any(0).nonzero()[:, 0].tolist()) <= set(columns.tolist())
        assert len(columns.unique()) == len(columns)
        assert torch.allclose(few.z + few.origin, z[columns], atol=1e-12)
        assert torch.allclose(few.zz, few.z @ few.z.T, atol=1e-10)
    more = draw(seed + 1, 5, 30)
    joined = crowd.joined(more)
    columns, few = joined.centred(torch.ones(1, m + 5).bool())
    assert torch.allclose(few.z + few.origin, torch.cat([z, more])[columns], atol=1e-12)
    assert len(joined) == m + 5


def test_points_are_those_at_the_columns():
    crowd, z = mixed(draw(0, 90, 7))
    assert torch.equal(crowd.points(), z)
    for columns in ([0, 29, 30, 44, 45, 89], [31], [50, 51], []):
        assert torch.equal(crowd.points(torch.tensor(columns, dtype=torch.long)), z[columns])


def test_images_that_are_the_references_need_no_second_product():
    z = draw(0, 10, 7)
    crowd = Crowd(z)
    _, few = crowd.centred(torch.ones(10, 10).bool())
    assert few.points is z
    limit, every = torch.ones(10).double(), torch.ones(10, 10).bool()
    assert torch.allclose(crowd.squares(z, limit, every), exact(z, z), atol=1e-12)
    assert isinstance(few, Centred)


@pytest.mark.parametrize("d", [1, 2, 7, 300, 784, 1021, 3072])
@pytest.mark.parametrize("m", [1, 63, 64, 200])
def test_what_float32_says_it_is_off_by_it_is_at_most(d, m):
    """And where numbers are many, by far less than their count would say."""
    x, z = 1 + draw(d, 7, d), 1 + draw(d + 1, m, d)
    z[: m // 2] = x[0] * (1 + 1e-6 * draw(2, m // 2, d))
    d2, off = rough_squares(Rough.of(x), Rough.of(z))
    assert bool(((d2.double() - exact(x, z)).abs() <= off.double()).all())
    norms = x.square().sum(1)[:, None] + z.square().sum(1)
    assert bool((off.double() >= norms * 2.0**-24).all())
    if d == 3072 and m >= 64:
        assert float((off.double() / norms).max()) < d * 2.0**-24 / 4


def test_what_overflows_is_left_to_float64():
    z = 1e25 * torch.eye(FEW + 6).double()
    crowd, x = Crowd(z), 1e25 * torch.ones(1, FEW + 6).double()
    limit = torch.full((len(z),), 1e52, dtype=torch.float64)
    told = crowd.squares(x, limit, torch.ones(1, len(z)).bool())
    assert torch.allclose(told, exact(x, z), rtol=1e-9)
