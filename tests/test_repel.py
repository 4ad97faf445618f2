# SPDX-License-Identifier: Apache-2.0
"""The theorems of the heart, on random, degenerate and hostile geometry."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shielded.crowd import Centred, Crowd, Gram
from shielded.distances import squared_distances
from shielded.repel import escape, outside_ball, outside_hull, project, repel_sum

torch.manual_seed(0)
dims = st.integers(2, 40)
seeds = st.integers(0, 10_000)
some = settings(max_examples=60, deadline=None)


def draw(seed, *shape, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def everyone(b, m):
    return torch.ones(b, m, dtype=torch.bool)


def spare(seed, x):
    return lambda: draw(seed + 1, *x.shape)


def clearance(y, z, r):
    """Smallest distance / radius of each image."""
    return (torch.cdist(y, z, compute_mode="donot_use_mm_for_euclid_dist") / r).amin(1)


@some
@given(seeds, dims)
def test_squared_distances(seed, d):
    x, z = draw(seed, 5, d), draw(seed + 1, 7, d)
    assert torch.allclose(squared_distances(x, z), torch.cdist(x, z) ** 2, atol=1e-12)


def test_distances_that_are_small_against_the_norms():
    """In float32 a Gram matrix at this scale would return noise."""
    x = 1e4 + draw(0, 1, 3072)
    z = x + 1e-2 * draw(1, 1, 3072)
    exact = (x - z).square().sum()
    assert float(squared_distances(x, z)[0, 0]) == pytest.approx(float(exact), rel=1e-6)
    assert float(squared_distances(x, x.clone())[0, 0]) == 0


@some
@given(seeds, dims)
def test_one_shield_is_eq_5_and_lands_on_its_surface(seed, d):
    """delta = (r / |x - z| - 1)(x - z) puts x exactly at distance r, for both overlap rules."""
    z = draw(seed, 1, d)
    x, r = z + draw(seed + 1, 4, d, scale=0.05), torch.tensor([3.0], dtype=torch.float64)
    expected = (r / (x - z).norm(dim=1, keepdim=True) - 1) * (x - z)
    assert torch.allclose(repel_sum(x, z, r, everyone(4, 1)), expected, atol=1e-10)
    y, near = project(x, z, r**2, everyone(4, 1), spare(seed, x))
    assert torch.allclose(y - x, expected, atol=1e-9)
    assert near.all()
    assert torch.allclose((y - z).norm(dim=1), r.expand(4))


@some
@given(seeds, dims, st.integers(1, 12))
def test_no_shield_within_reach_changes_nothing(seed, d, m):
    x = draw(seed, 3, d)
    z = draw(seed + 1, m, d) + 100
    r = torch.full((m,), 1.0, dtype=torch.float64)
    assert not repel_sum(x, z, r, everyone(3, m)).any()
    y, near = project(x, z, r**2, everyone(3, m), spare(seed, x))
    assert torch.equal(x, y)
    assert not near.any()


@some
@given(seeds, dims, st.integers(1, 12))
def test_radius_zero_and_disallowed_pairs_give_nothing(seed, d, m):
    x, z = draw(seed, 3, d), draw(seed + 1, m, d)
    z[0] = x[0]
    zero, one = torch.zeros(m, dtype=torch.float64), torch.full((m,), 50.0, dtype=torch.float64)
    for r, allowed in ((zero, everyone(3, m)), (one, ~everyone(3, m))):
        assert not repel_sum(x, z, r, allowed).any()
        assert torch.equal(project(x, z, r**2, allowed, spare(seed, x))[0], x)


@some
@given(seeds, st.integers(6, 30), st.integers(1, 5))
def test_disjoint_shields_are_cleared_by_the_sum_too(seed, d, m):
    """Appendix B: where balls do not overlap, x + delta is outside all of them, for lam >= 1."""
    z = torch.eye(d, dtype=torch.float64)[:m] * 10
    x = z[seed % m][None] + draw(seed, 1, d, scale=0.1)
    r = torch.full((m,), 5.0, dtype=torch.float64)
    for lam in (1.0, 1.6):
        delta = lam * repel_sum(x, z, r, everyone(1, m))
        assert float(clearance(x + delta, z, r)) >= 1 - 1e-9


@some
@given(seeds, st.integers(3, 64), st.integers(3, 20))
def test_equivariance(seed, m, d):
    """Rotating, moving and reordering everything rotates and moves the answer."""
    d += m  # room outside the hull
    x, z = draw(seed, 2, d, scale=0.3), draw(seed + 1, m, d, scale=0.3)
    r = 2.0 + draw(seed + 2, m).abs()
    q, _ = torch.linalg.qr(draw(seed + 3, d, d))
    shift, order = draw(seed + 4, d), draw(seed + 5, m).argsort()
    y, _ = project(x, z, r**2, everyone(2, m), spare(seed, x))
    y2, _ = project(
        x @ q + shift, (z @ q + shift)[order], r[order] ** 2, everyone(2, m), spare(seed, x)
    )
    assert torch.allclose(y @ q + shift, y2, atol=1e-6)


@some
@given(seeds, st.integers(2, 64), st.integers(1, 40))
def test_overlapping_shields_are_all_cleared(seed, m, extra):
    d = m + extra
    center = draw(seed, 1, d)
    z = center + draw(seed + 1, m, d) / math.sqrt(d)
    x = center + draw(seed + 2, 4, d, scale=0.1)
    r = 1.0 + draw(seed + 3, m).abs()
    y, _ = project(x, z, r**2, everyone(4, m), spare(seed, x))
    assert float(clearance(y, z, r).min()) >= 1 - 1e-9


@some
@given(seeds, st.integers(1, 4), st.integers(1, 25))
def test_more_shields_than_dimensions(seed, d, m):
    """No direction is orthogonal to the hull: lines are searched, and always end outside."""
    x, z = draw(seed, 3, d, scale=0.2), draw(seed + 1, m, d, scale=0.5)
    r = draw(seed + 2, m).abs()
    y, _ = project(x, z, r**2, everyone(3, m), spare(seed, x))
    assert float(clearance(y, z, r).min()) >= 1 - 1e-9


@some
@given(seeds, st.integers(12, 30))
def test_degenerate_references(seed, d):
    """Copies, affine combinations and images that lie exactly on references."""
    z = draw(seed, 3, d)
    z = torch.cat([z, z[:2], (z[0] + z[1] - z[2])[None], z.mean(0)[None]])
    x = torch.stack([z[0], z[6], z[0] / 2 + z[1] / 2, draw(seed + 1, d)])
    r = torch.full((7,), 20.0, dtype=torch.float64)
    y, _ = project(x, z, r**2, everyone(4, 7), spare(seed, x))
    assert y.isfinite().all()
    assert float(clearance(y, z, r).min()) >= 1 - 1e-9


@some
@given(seeds)
def test_the_move_is_the_shortest_orthogonal_to_the_hull(seed):
    """|y - p| is the smallest t that clears all: one shield is touched, and y - x is normal."""
    m, d = 5, 20
    z, x = draw(seed, m, d), draw(seed + 1, 1, d, scale=0.1)
    r = torch.full((m,), 30.0, dtype=torch.float64)
    y = outside_hull(x, Centred.of(z), r**2, everyone(1, m), spare(seed, x))
    assert float(clearance(y, z, r).min()) == pytest.approx(1)
    assert ((y - x) @ (z[1:] - z[0]).T).abs().max() < 1e-8


@some
@given(seeds, dims, st.integers(1, 9))
def test_the_ball_is_the_hull_of_one(seed, d, m):
    """Inside, outside, on its reference, and where the square of a radius is negative."""
    z, x = draw(seed, m, d), draw(seed + 1, 5, d)
    x[0], near = z[0], torch.zeros(5, m, dtype=torch.bool)
    near[torch.arange(5), torch.arange(5) % m] = True
    r2 = (2 * draw(seed + 2, m)).clamp(min=-1)
    ball, hull = (
        move(x, Centred.of(z), r2, near, spare(seed, x)) for move in (outside_ball, outside_hull)
    )
    assert torch.allclose(ball, hull, atol=1e-9)
    mine = (ball - z[torch.arange(5) % m]).square().sum(1)
    assert bool((mine >= r2[torch.arange(5) % m] * (1 - 1e-12)).all())


@some
@given(seeds)
def test_escape_finds_the_first_free_point_of_a_line(seed):
    x, z = draw(seed, 2), draw(seed + 1, 6, 2)
    r = 0.5 + draw(seed + 2, 6).abs()
    target = x + 50 * draw(seed + 3, 2)
    y = escape(x, z, r**2, target[None])
    s = torch.linspace(0, 1, 200_001, dtype=torch.float64)[:, None]
    free = ((torch.cdist(x + s * (target - x), z) >= r - 1e-12).all(1)).nonzero()
    first = x + s[int(free[0])] * (target - x)
    assert torch.allclose(y, first, atol=1e-3 * float((target - x).norm()))


def test_escape_says_when_there_is_no_way():
    z, r2 = torch.zeros(1, 3, dtype=torch.float64), torch.tensor([100.0], dtype=torch.float64)
    corners = torch.tensor([[1.0, 1, 1], [-1, 1, 1]], dtype=torch.float64)
    assert escape(torch.zeros(3, dtype=torch.float64), z, r2, corners).isnan().all()


def test_ten_thousand_heavy_overlaps():
    """K up to 64, centres within r of each other, each case its own: none is left inside."""
    generator = torch.Generator().manual_seed(0)
    worst, d, rows = math.inf, 96, 8
    for _ in range(1250):
        m = int(torch.randint(2, 65, (1,), generator=generator))
        z = torch.randn(rows * m, d, generator=generator, dtype=torch.float64)
        z = z / z.norm(dim=1, keepdim=True) * 0.5 * torch.rand(rows * m, 1, generator=generator)
        x = 0.01 * torch.randn(rows, d, generator=generator, dtype=torch.float64)
        r = torch.ones(rows * m, dtype=torch.float64)
        own = torch.block_diag(*[torch.ones(1, m)] * rows).bool()
        y, near = project(x, z, r, own, lambda x=x: torch.ones_like(x))
        assert bool((near.sum(1) >= m / 2).all()), "the case must be a hard one"
        gap = torch.cdist(y, z, compute_mode="donot_use_mm_for_euclid_dist")
        worst = min(worst, float(gap[own].min()))
    assert worst >= 1 - 1e-9


@some
@given(seeds, st.integers(130, 600), st.integers(2, 90))
def test_hundreds_of_shields_at_once_are_all_cleared(seed, m, d):
    """Fewer or more than dimensions, in clusters and with copies: those left first are not all."""
    centres = draw(seed, 1 + seed % 7, d)
    z = centres[torch.arange(m) % len(centres)] + 0.1 * draw(seed + 1, m, d)
    z[-m // 4 :] = z[: m // 4 + (m % 4 > 0)]
    x = centres.mean(0) + 0.1 * draw(seed + 2, 4, d)
    r = float(torch.cdist(x, z).quantile(0.7)) * (1 + 0.1 * draw(seed + 3, m).abs())
    y, near = project(x, z, r**2, everyone(4, m), spare(seed, x))
    assert bool((near.sum(1) > 64).any()), "the case must be a hard one"
    assert bool((near | ~(torch.cdist(x, z) < r)).all()), "all that x was inside of are counted"
    assert float(clearance(y, z, r).min()) >= 1 - 1e-9


@some
@given(seeds, st.sampled_from([1, 5, 64, 65, 300]), dims)
def test_references_centred_once_serve_every_move(seed, m, d):
    """Wherever the images are meanwhile, and where they are the references themselves."""
    z, r = draw(seed, m, d), 1.0 + draw(seed + 1, m).abs()
    crowd = Crowd(z)
    for x in (z, draw(seed + 2, 4, d), 5 * draw(seed + 3, 1, d)):
        allowed = ~torch.eye(m, dtype=torch.bool) if x is z else everyone(len(x), m)
        once = project(x, crowd, r**2, allowed, spare(seed, x))
        anew = project(x, z, r**2, allowed, spare(seed, x))
        assert torch.allclose(once[0], anew[0], atol=1e-7)
        assert torch.equal(once[1], anew[1])
        squares = Gram.of(x, Centred.of(z)).squares()
        assert torch.allclose(squares, torch.cdist(x, z) ** 2, atol=1e-7)


@some
@given(seeds, st.integers(1, 60))
def test_shields_out_of_reach_do_not_count(seed, m):
    """A few near ones among hundreds move an image as if they were alone."""
    d = m + 30
    z, far = draw(seed, m, d, scale=0.3), draw(seed + 1, 300, d) + 100
    x, r = draw(seed + 2, 3, d, scale=0.3), 3.0 + draw(seed + 3, m).abs()
    alone, near = project(x, z, r**2, everyone(3, m), spare(seed, x))
    everything, radii = torch.cat([z, far]), torch.cat([r, torch.ones(300, dtype=r.dtype)])
    among, found = project(x, everything, radii**2, everyone(3, m + 300), spare(seed, x))
    assert torch.allclose(among, alone, atol=1e-7)
    assert torch.equal(found[:, :m], near)
    assert not found[:, m:].any()


def test_a_move_from_hundreds_is_shorter_than_from_all_at_once():
    """Of a dense cluster the deepest say where the way out is: leaving them leaves the rest."""
    d, m = 700, 400
    z = 0.5 * draw(0, m, d) / math.sqrt(d)
    x = 0.3 * draw(1, 8, d) / math.sqrt(d)
    r2 = torch.ones(m, dtype=torch.float64)
    y, near = project(x, z, r2, everyone(8, m), spare(2, x))
    assert bool(near.all())
    whole = outside_hull(x, Centred.of(z), r2, near, spare(2, x))
    assert float(((y - x).norm(dim=1) / (whole - x).norm(dim=1)).max()) < 0.95


@some
@given(seeds, st.integers(2, 30))
def test_shields_entered_on_the_way_join_the_hull(seed, m):
    """The move stays normal to all shields that counted, those entered later included."""
    d = m + 10
    z = draw(seed, m, d) / math.sqrt(d)
    x = z[:1] + 0.05 * draw(seed + 1, 1, d) / math.sqrt(d)
    r = torch.full((m,), 0.9, dtype=torch.float64)
    y, near = project(x, z, r**2, everyone(1, m), spare(seed, x))
    hull = z[near[0]] - z[near[0]][:1]
    assert ((y - x) @ hull.T).abs().max() < 1e-8
    assert float(clearance(y, z, r)) >= 1 - 1e-9


def test_leaving_one_shield_may_enter_the_next():
    z = torch.tensor([[0.0, 0, 0], [1.6, 0, 0]], dtype=torch.float64)
    x = torch.tensor([[0.5, 0.01, 0]], dtype=torch.float64)
    r = torch.ones(2, dtype=torch.float64)
    y, near = project(x, z, r**2, everyone(1, 2), lambda: torch.ones_like(x))
    assert near.tolist() == [[True, True]]
    assert float((y - x)[0, 0]) == pytest.approx(0, abs=1e-12)
    assert float(clearance(y, z, r)) >= 1 - 1e-12


def test_a_spare_direction_almost_in_the_hull_is_cleaned():
    z = draw(0, 4, 30)
    x = z[:1].clone()
    r = torch.full((4,), 40.0, dtype=torch.float64)
    v = z[1:2] - z[2:3] + 1e-6 * draw(1, 1, 30)
    y, _ = project(x, z, r**2, everyone(1, 4), lambda: v)
    assert float(clearance(y, z, r)) >= 1 - 1e-13


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("d", [1, 2, 64, 3072])
def test_float32_is_believed_only_where_it_can_be(d, scale):
    """An x just inside one shield is moved, however badly float32 tells distances there."""
    generator = torch.Generator().manual_seed(d)
    z = scale + torch.randn(20, d, generator=generator, dtype=torch.float64)
    u = torch.randn(1, d, generator=generator, dtype=torch.float64)
    r = float(torch.pdist(z).median()) + 0.5
    x = z[:1] + (r * (1 - 1e-6)) * u / u.norm()
    allowed = torch.zeros((1, 20), dtype=torch.bool)
    allowed[0, 0] = True
    if float((x - z[0]).norm()) < r * (1 - 1e-7):  # float64 itself can tell
        y, near = project(x, z, torch.full((20,), r * r), allowed, lambda: u)
        assert bool(near[0, 0])
        assert float((y - z[0]).norm()) >= r * (1 - 1e-6)
    far = z[:1] + 1e3 * (scale + r) * u / u.norm()
    y, near = project(far, z, torch.full((20,), r * r), allowed, lambda: u)
    assert y is far
    assert not bool(near.any())


def test_what_overflows_float32_is_left_to_float64():
    z, u = torch.zeros(1, 4, dtype=torch.float64), torch.ones(1, 4, dtype=torch.float64)
    r2 = torch.tensor([(4e25) ** 2], dtype=torch.float64)
    y, near = project(1e25 * u, z, r2, torch.ones(1, 1, dtype=torch.bool), lambda: u)
    assert bool(near.all())
    assert float(y.norm()) == pytest.approx(4e25)


def test_precision_that_is_set_for_one_backend_is_taken_as_the_least():
    """PyTorch then refuses to tell: the bound must widen, not the move fail."""
    code = (
        "import torch; from shielded.distances import roundoff; plain = roundoff(8); "
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'; print(plain, roundoff(8))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [str(2.0**-21), str(2.0**-21 + 2.0**-7)]
