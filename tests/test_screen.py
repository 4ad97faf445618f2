# SPDX-License-Identifier: Apache-2.0
"""The screen on trial: against brute force, wherever distances are hard to tell."""

import itertools
import math
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shielded.shields.search.basis import FINE, Basis
from shielded.shields.search.closest import _share
from shielded.shields.search.product import (
    Digits,
    Floats,
    Halves,
    Widened,
    cheapest,
    multiplied,
    rounded,
    rounded_to_steps,
)
from shielded.shields.search.screen import Found, Screen
from shielded.shields.search.sketch import Sketch
from shielded.shields.search.tracks import Tracks, furthest

WIDTHS = [2, 3, 17, 64, 300, 1024, 4096, 16384]
DTYPES = [torch.float32, torch.bfloat16, torch.int8]
KINDS = ["random", "clustered", "duplicated", "constant", "near the mean", "far from the origin"]


def points(kind, n, d, generator):
    """(n, d) float32 references of one kind."""
    x = torch.randn(n, d, generator=generator)
    if kind == "clustered":
        x = 0.01 * x + 5 * torch.randn(4, d, generator=generator)[torch.arange(n) % 4]
    if kind == "duplicated":
        x = x[torch.arange(n) // 3]
    if kind == "constant":
        x = torch.ones(n, d)
    if kind == "near the mean":
        x = 3 + 1e-4 * x
    if kind == "far from the origin":
        x = 300 + x
    return x


def sketch_of(a, dtype, off=0.0, steps=None):
    """Sketches a (N, w) in a dtype; what they are off by, beside rounding."""
    if dtype == torch.int8:
        steps = torch.ones(a.shape[1], dtype=torch.float64) if steps is None else steps
        core, unit, lost = rounded_to_steps(a, steps)
        return Sketch(core, lost + off, unit=unit, steps=steps)
    core, lost = rounded(a, dtype)
    return Sketch(core, lost + off)


def kept(sketch):
    """The sketches (N, w) as they were rounded, float64."""
    core = sketch.core.double()
    return core if sketch.unit is None else core * sketch.unit.double()[:, None] * sketch.steps


def screen(z, radius, dtype=torch.float32, basis=None):
    basis = basis or Basis.fit(z[:200])
    a = basis(z)
    radius = torch.as_tensor(radius, dtype=torch.float64).expand(len(z)).clone()
    asked = []

    def fetch(rows):
        asked.append(len(rows))
        return z[rows]

    sketch = sketch_of(a, dtype, basis.blur(a), basis.spread)
    found = Screen(basis, sketch, radius, fetch)
    return found, asked


def distances(x, z):
    """Brute force, without the rounding of a matrix product."""
    return torch.cdist(x, z.double(), compute_mode="donot_use_mm_for_euclid_dist")


def four_on_their_way(kind, dtype, r, generator):
    """400 references, a radius of r medians, their screen; images near the mean, their goals."""
    z = points(kind, 400, 32, generator)
    r = r * float(distances(z[:50].double(), z).median())
    x = z.double().mean(0) + 0.1 * torch.randn(4, 32, generator=generator, dtype=torch.float64)
    goal = z[torch.randint(0, 400, (4,), generator=generator)].double()
    return z, r, screen(z, r, dtype)[0], x, goal


def missed(found, x, z, limit):
    """How many references within the limit were not found."""
    inside = (distances(x, z) < torch.as_tensor(limit)).any(0)
    inside[found.row] = False
    return int(inside.sum())


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(WIDTHS[:6]),
    st.sampled_from(KINDS),
    st.sampled_from(DTYPES),
    st.floats(0.0, 1.0),
)
def test_no_reference_is_missed(seed, d, kind, dtype, quantile):
    """Radii at which some are inside and some are not, queries near and on references."""
    generator = torch.Generator().manual_seed(seed)
    z = points(kind, 240, d, generator)
    pick = torch.randint(0, 240, (6,), generator=generator)
    noise = torch.randn(6, d, generator=generator, dtype=torch.float64)
    x = (
        z[pick].double()
        + noise * z.double().std() * torch.tensor([0, 1e-6, 1e-3, 0.1, 0.5, 1.0])[:, None]
    )
    r = float(torch.quantile(distances(x, z).flatten(), quantile)) * (1 + 1e-12)
    one, _ = screen(z, r, dtype)
    assert missed(one.near(x), x, z, r) == 0
    mixed = r * torch.rand(240, generator=generator, dtype=torch.float64)
    many, _ = screen(z, mixed, dtype)
    assert missed(many.near(x), x, z, mixed) == 0
    assert missed(many.near(x, reach=r / 3), x, z, mixed + r / 3) == 0


@pytest.mark.parametrize("kind", ["random", "clustered", "duplicated"])
@pytest.mark.parametrize("d", [20, 784])
def test_nothing_is_found_that_is_outside(d, kind):
    """Whatever the sketches let through: what they leave open float32 tells, and then float64."""
    generator = torch.Generator().manual_seed(d)
    z = points(kind, 600, d, generator)
    x = z[:4].double() + 0.3 * torch.randn(4, d, generator=generator, dtype=torch.float64)
    least, size = distances(x, z).amin(0), float(x.norm(dim=1).max())
    for place in (0.1, 0.5):
        border = float(least.sort().values[int(place * 600)])
        for r in (border * (1 - 1e-4), border):  # beside a reference, and on it
            one, _ = screen(z, r)
            for reach in (0.0, 0.1 * r):
                found = one.near(x, reach).row
                assert len(found)
                limit = r + reach  # and what float64 may not tell
                assert float(least[found].max()) <= limit + 1.1e-6 * (2 * size + limit)


@pytest.mark.parametrize("count", [40, 600])
def test_what_is_known_is_not_found_again_and_nothing_else_is_left_out(count):
    """Few candidates, and so many that what is known from calls before counts."""
    generator = torch.Generator().manual_seed(count)
    z = points("random", count, 20, generator)
    x = points("random", 4, 20, generator).double()
    r = float(distances(x, z).median())
    one, _ = screen(z, r)
    for step in range(6):
        rows = one.near(x).row
        for known in (rows, rows[::2], rows[:1], rows[:0], torch.arange(count)):
            rest = one.near(x, but=known)
            assert rest.row.tolist() == sorted(set(rows.tolist()) - set(known.tolist()))
            assert torch.equal(rest.z, z[rest.row])
        x = x + 0.05 * step


@pytest.mark.parametrize("d", WIDTHS[6:])
def test_no_reference_is_missed_in_many_dimensions(d):
    generator = torch.Generator().manual_seed(d)
    for kind in KINDS:
        z = points(kind, 64, d, generator)
        x = z[:5].double() + 0.1 * z.double().std() * torch.randn(5, d, generator=generator)
        r = float(distances(x, z).median())
        assert missed(screen(z, r)[0].near(x), x, z, r) == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2, 5, 64, 600, 1100]), st.sampled_from(KINDS))
def test_the_bound_is_a_bound(seed, d, kind):
    generator = torch.Generator().manual_seed(seed)
    z = points(kind, 100, d, generator)
    x = points(kind, 8, d, generator).double() + 1e-3
    basis = Basis.fit(z)
    a, b = basis(x), basis(z)
    eye = torch.eye(len(basis.axes), dtype=torch.float64)
    assert torch.allclose(basis.axes @ basis.axes.T, eye, atol=1e-12)
    gap = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    blur = basis.blur(a)[:, None] + basis.blur(b)
    assert bool((gap - blur <= distances(x, z)).all())
    quick, off = basis.queries()(x)
    assert bool(((quick - a).norm(dim=1) <= off).all())
    for dtype, told in itertools.product(DTYPES, (True, False)):
        sketch = sketch_of(b, dtype, basis.blur(b), basis.spread)
        with pytest.MonkeyPatch.context() as patch:  # as this processor would, and as others do
            patch.setattr("shielded.shields.search.sketch.multiplied", lambda dtype, t=told: t)
            low = sketch.bounds(a, float(basis.blur(a).max()))
            assert bool((low.double() <= distances(x, z)).all())
            low = sketch.bounds(quick, off)
            assert bool((low.double() <= distances(x, z)).all())


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 160),
    st.integers(1, 12),
    st.sampled_from([1e-25, 1e-12, 1.0, 1e12]),
)
def test_integers_say_what_they_lost_and_are_multiplied_exactly(seed, width, queries, size):
    """Rows of very different lengths, one of zeros, one of which a single number is large."""
    generator = torch.Generator().manual_seed(seed)
    steps = 2.0 ** -(6 * torch.rand(width, generator=generator, dtype=torch.float64))
    a = size * steps * torch.randn(50, width, generator=generator, dtype=torch.float64)
    a *= 10 ** torch.linspace(-3, 3, 50, dtype=torch.float64)[:, None]
    a[0], a[1, 0] = 0, 1e4 * size
    sketch = sketch_of(a, torch.int8, steps=steps)
    away = (kept(sketch) - a).norm(dim=1)
    assert bool((away <= sketch.lost.double()).all())
    top = (a / steps).abs().amax(1)  # half a step each, at most, where the largest is 127
    assert bool((away <= top / 254 * steps.norm() * (1 + 1e-6) + 1e-28).all())
    x = size * steps * torch.randn(queries, width, generator=generator, dtype=torch.float64)
    digits = Digits(x, steps)
    product = digits(sketch.core) * sketch.unit
    true = -2 * x @ kept(sketch).T
    square, moved = x.new_tensor(digits.square), x.new_tensor(digits.moved)
    off = digits.off * square.sqrt() + moved
    assert product.shape == (queries, 50)
    room = 2 * off[:, None] * kept(sketch).norm(dim=1) + 1e-36
    assert bool(((product.double() - true).abs() <= room).all())
    # A query of two digits is moved by no more than half a step of 2^-14 each.
    fine = (x * steps).abs().amax(1) / 16319 / 2 * (1 / steps).norm() * (1 + 1e-6)
    assert bool((moved <= fine + 1e-28).all())


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_of_integers_fit(sign):
    width = FINE + 1
    core, a = torch.full((16, width), 127, dtype=torch.int8), torch.ones(1, width).double()
    sums = Digits(sign * a, a[0])(core)
    assert torch.allclose(sums, torch.full_like(sums, -2 * sign * 127 * width), rtol=1e-4)


@pytest.mark.parametrize("kind", [Floats, Halves])
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_floats_say_what_they_lost(kind, size):
    generator = torch.Generator().manual_seed(0)
    x, z = (size * torch.randn(9, 65, generator=generator, dtype=torch.float64) for _ in range(2))
    core, _ = rounded(z, torch.float32 if kind is Floats else torch.bfloat16)
    times = kind(x)
    query = (times._query if kind is Floats else times._query.T).double() / -2
    moved, square = x.new_tensor(times.moved), x.new_tensor(times.square)
    assert bool(((query - x).norm(dim=1) <= moved).all())
    assert bool((moved <= 4 * (query - x).norm(dim=1)).all()), "and not much more than that"
    assert torch.allclose(square, query.square().sum(1), rtol=2.0**-22)
    off = (times(core).double() + 2 * query @ core.double().T).abs()
    assert bool(
        (off <= 2 * times.off * query.norm(dim=1)[:, None] * core.double().norm(dim=1)).all()
    )


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_what_is_put_into_float32_says_what_it_lost(size, dtype):
    generator = torch.Generator().manual_seed(0)
    steps = 2.0 ** -(6 * torch.rand(65, generator=generator, dtype=torch.float64))
    x, z = (
        size * steps * torch.randn(9, 65, generator=generator, dtype=torch.float64)
        for _ in range(2)
    )
    sketch = sketch_of(z, dtype, steps=steps)
    times = Widened(x, sketch.steps)
    product = times(sketch.core).double()
    if sketch.unit is not None:
        product = product * sketch.unit.double()
    moved, square = x.new_tensor(times.moved), x.new_tensor(times.square)
    room = 2 * (times.off * square.sqrt() + moved)[:, None] * kept(sketch).norm(dim=1) + 1e-36
    assert bool(((product + 2 * x @ kept(sketch).T).abs() <= room).all())
    assert bool((moved <= 2.0**-23 * x.norm(dim=1) + 1e-30).all())


@pytest.mark.parametrize("size", [1.0, 1e37])
@pytest.mark.parametrize("sign", [1, -1])
def test_sums_that_overflow_before_their_unit_is_known_rule_nothing_out(size, sign):
    """c t x overflows float32 here, by itself or before u makes it small; products cancel."""
    steps = torch.ones(4, dtype=torch.float64)
    z = size * torch.tensor([[1.0, -1, 1, 1], [1, 1, 1, -1], [1, 1, 1, 1]], dtype=torch.float64)
    sketch = sketch_of(z, torch.int8, steps=steps)
    for x in (sign * 1e37 / size * z[:1], sign * 2e38 / size * z[2:]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("shielded.shields.search.sketch.multiplied", lambda dtype: False)
            assert type(sketch._times(x)) is Widened
            true = distances(x, z)
            assert bool((sketch.bounds(x, 0.0) <= true).all())
            margins = sketch.margins(x, 0.0, torch.zeros(3))  # NaN is not sure
            assert not bool((margins > true[0]).any())
            inside = (true[0] <= 1.0).nonzero()[:, 0].tolist()
            assert set(inside) <= set(sketch.within(x, 0.0, torch.ones(1).double()).tolist())


def test_what_this_processor_multiplies_as_it_is(monkeypatch):
    """Integers of 8 bits everywhere but on a device; told by what the processor says of itself."""
    assert cheapest("cpu") == torch.int8
    assert cheapest("cuda") == torch.bfloat16
    about = {}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: about, raising=False)
    assert not multiplied(torch.int8)
    assert not multiplied(torch.bfloat16)
    about["avx512_vnni"] = True
    assert multiplied(torch.int8) == hasattr(torch, "_int_mm")
    assert not multiplied(torch.bfloat16)
    about["avx512_bf16"] = True
    assert multiplied(torch.bfloat16)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not multiplied(torch.int8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_with_the_instruction_and_without_bounds_are_as_sharp(dtype, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(300, 33, generator=generator, dtype=torch.float64)
    steps = torch.rand(33, generator=generator, dtype=torch.float64) + 0.1
    sketch = sketch_of(a, dtype, steps=steps)
    x = torch.randn(5, 33, generator=generator, dtype=torch.float64)
    true = torch.cdist(x, a, compute_mode="donot_use_mm_for_euclid_dist")
    found = []
    for told, kind in ((True, Digits if dtype == torch.int8 else Halves), (False, Widened)):
        monkeypatch.setattr("shielded.shields.search.sketch.multiplied", lambda dtype, t=told: t)
        assert type(sketch._times(x)) is kind
        found.append(sketch.bounds(x, 0.0))
        assert bool((found[-1].double() <= true).all())
    assert torch.allclose(*found, atol=2e-3 if dtype == torch.int8 else 5e-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fast", [True, False])
def test_pieces_tell_what_the_whole_tells(dtype, fast, monkeypatch):
    """However few sketches a product takes: as a last piece of one row has them, too."""
    if fast and not hasattr(torch, "_int_mm"):
        pytest.skip("this torch has no product of integers")
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(97, 16, generator=draw, dtype=torch.float64)
    x = torch.randn(3, 16, generator=draw, dtype=torch.float64)
    limit = torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64)
    monkeypatch.setattr("shielded.shields.search.sketch.multiplied", lambda dtype: fast)
    sketch = sketch_of(a, dtype)
    wide = torch.rand(97, generator=draw)

    def told():
        pieces = [part for part, _ in sketch._sums(sketch._times(x), torch.zeros(3))]
        return (
            len(pieces),
            sketch.bounds(x, 0.1),
            sketch.margins(x, 0.1, wide),
            sketch.within(x, 0.1, limit),
        )

    whole = told()
    for name in ("CACHED", "PIECE", "LONG"):
        monkeypatch.setattr(f"shielded.shields.search.product.{name}", 8 * 16)
    parts = told()
    assert whole[0] == 1 < parts[0]
    for one, other in zip(whole[1:3], parts[1:3], strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert torch.equal(whole[3], parts[3])
    assert 0 < len(whole[3]) < 97


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_margins_are_margins_where_distances_are_small_against_norms(dtype, size):
    """What the product of the sketches loses is less than what is taken off for it."""
    generator = torch.Generator().manual_seed(0)
    b = size * (torch.randn(1, 65, generator=generator, dtype=torch.float64) + 3)
    b = b * (1 + 1e-3 * torch.randn(20000, 65, generator=generator, dtype=torch.float64))
    steps = torch.rand(65, generator=generator, dtype=torch.float64) + 0.1
    sketch = sketch_of(b, dtype, steps=steps)
    b = kept(sketch)  # so that the product alone is on trial
    sketch.lost.zero_()
    true = torch.cdist(b[:8], b, compute_mode="donot_use_mm_for_euclid_dist")
    low = sketch.margins(b[:8], 0.0, torch.zeros(len(b)))
    assert bool((low.double() <= true.amin(0)).all())
    assert bool((sketch.bounds(b[:8], 0.0).double() <= true).all())
    apart = -sketch.margins(-b[:8], 0.0, torch.zeros(len(b))) + torch.cdist(-b[:8], b).amin(0)
    assert float(apart.max()) < 0.01 * float(b[0].norm()), "and not much more than that"


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(KINDS),
    st.sampled_from(DTYPES),
    st.sampled_from([1e-12, 1.0, 1e12]),
)
def test_all_within_a_limit_of_its_own_are_found(seed, kind, dtype, size):
    """Some limits hold many, some none, one holds all; and what is far beyond them is left out."""
    generator = torch.Generator().manual_seed(seed)
    z = size * points(kind, 500, 65, generator).double()
    x = z[:6] + 0.3 * z.std() * torch.randn(6, 65, generator=generator, dtype=torch.float64)
    aside = 0.3 * z.std() * torch.nn.functional.normalize(z.roll(1, 0), dim=1)
    true = distances(x, z)
    share = torch.tensor([0.0, 0.01, 0.1, 0.5, 0.0, 0.9], dtype=torch.float64)
    limit = torch.stack([d.quantile(q) for d, q in zip(true, share, strict=True)])
    sketch = sketch_of(z + aside, dtype, aside.norm(dim=1))
    lost = sketch.lost
    for some in (limit, limit[:1], 0 * limit):
        few = sketch.within(x[: len(some)], 0.0, some)
        apart = true[: len(some)] - some[:, None]
        inside = (apart <= 0).any(0)
        inside[few] = False
        assert not bool(inside.any())
        slack = 0.2 * float(z.norm(dim=1).max() + x.norm(dim=1).max()) + 2 * float(lost.max())
        assert bool((apart.amin(0)[few] < slack).all())
    every = sketch.within(x, 0.0, torch.full((6,), torch.inf, dtype=torch.float64))
    assert every.tolist() == list(range(500))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(KINDS[:3]),
    st.sampled_from(DTYPES),
    st.floats(0.05, 0.6),
    st.booleans(),
    st.booleans(),
)
def test_nothing_is_missed_along_a_trajectory(seed, kind, dtype, r, known, small):
    """Lists of lists on trial: large steps, small steps, none, jumps, another batch.

    What is `known` of distances is asked either always or, for there are so few, never. A `small`
    set stays in memory, once so much of it was asked for.
    """
    generator = torch.Generator().manual_seed(seed)
    z, r, one, x, goal = four_on_their_way(kind, dtype, r, generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shielded.shields.search.lists.SHORTEST", 16)
        patch.setattr("shielded.shields.search.screen.KNOWN", -1 if known else 10**6)
        patch.setattr("shielded.shields.search.screen.NUMBERS", 32 * (3 if known else 10**6))
        patch.setattr("shielded.shields.search.memory.WHOLE", 1 << 20 if small else 0)
        for step in range(30):
            x = x + (goal - x) / (30 - step) * 2 * torch.rand(len(x), 1, generator=generator)
            if step == 17:
                x = x + 3
            if step == 22:
                x = x[:2]
                goal = goal[:2]
            reach = 0.0 if step % 5 else 0.3 * r
            for found, limit in ((one.near(x.clone(), reach), r + reach), (one.near(x.clone()), r)):
                assert missed(found, x, z, limit) == 0
                assert torch.equal(found.z, z[found.row].double())
                assert found.row.tolist() == sorted(found.row.tolist())
            if step % 7 == 0:
                nearest = distances(x, one.closest(x).z).amin(1)
                assert torch.allclose(nearest, distances(x, z).amin(1), rtol=1e-12)
    if kind == "random" and r > 0:
        assert one.scans < 70, "lists were used"


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(KINDS[:3]),
    st.sampled_from(DTYPES),
    st.floats(0.05, 0.6),
    st.sampled_from([-1, 6, 10**6]),
    st.booleans(),
)
def test_nothing_is_missed_aside_of_a_trajectory(seed, kind, dtype, r, known, small):
    """Where images were moved to: some of them, a little or far; then they go on, from before.

    So many as are `known` are not asked about; who is moved knows all that was found, or less. A
    `small` set stays in memory.
    """
    generator = torch.Generator().manual_seed(seed)
    z, r, one, x, goal = four_on_their_way(kind, dtype, r, generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shielded.shields.search.lists.SHORTEST", 16)
        patch.setattr("shielded.shields.search.screen.KNOWN", known)
        patch.setattr("shielded.shields.search.screen.ASIDE", known)
        patch.setattr("shielded.shields.search.memory.WHOLE", 1 << 20 if small else 0)
        for step in range(25):
            pace = 0.02 if step % 8 else 0.2  # mostly slow: then lists are short
            x = x + (goal - x) * pace * torch.rand(4, 1, generator=generator)
            reach = 0.0 if step % 5 else 0.3 * r
            given = x.clone()
            found = one.near(given, reach)
            assert missed(found, x, z, r + reach) == 0
            far = r * torch.tensor([0.0, 1e-3, 0.2, 2.0])[torch.randperm(4, generator=generator)]
            way = torch.randn(4, 32, generator=generator, dtype=torch.float64)
            y = x + far[:, None] * way / way.norm(dim=1, keepdim=True)
            given.copy_(y)  # whoever asked may do with it what he likes
            for but in (found.row, found.row[::2]):
                for asked in (y, y[:3], x) if step % 3 else (x, y):
                    rest = one.near(asked, but=but)
                    assert not bool(torch.isin(rest.row, but).any())
                    assert missed(Found(torch.cat([but, rest.row]), rest.rough), asked, z, r) == 0
                    assert torch.equal(rest.z, z[rest.row])
                wide = one.near(x, 0.5 * r, but=but).row
                assert missed(Found(torch.cat([but, wide]), rest.rough), x, z, 1.5 * r) == 0


def test_aside_of_a_few_what_was_known_of_many_before_does_not_count():
    """Of the few nobody learned: how far they are from those before is not known."""
    z = torch.zeros(20, 3)
    z[0, 0], z[1:, 0] = 2.0, 5.0
    z[1:, 1] = 0.01 * torch.arange(19)
    one, _ = screen(z, 1.0)
    x = torch.zeros(1, 3, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shielded.shields.search.screen.KNOWN", 6)
        assert len(one.near(x, reach=10.0).row) == 20  # all but the first are 4 outside
        x[0, 0] = 2.0
        found = one.near(x).row
        assert found.tolist() == [0]
        x[0, 0] = 5.0
        assert one.near(x, but=found).row.tolist() == list(range(1, 20))


def test_of_a_search_that_failed_nothing_counts():
    """As where a disk could not be read, and who asked goes on from where images were before."""
    z = torch.zeros(3, 3)
    z[1, 0], z[2, 0] = 2.0, 50.0
    one, _ = screen(z, 1.0)
    x = torch.zeros(1, 3, dtype=torch.float64)
    found = one.near(x).row
    assert found.tolist() == [0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one._memory, "points", None)
        with pytest.raises(TypeError):
            one.near(x + z[2])
    x[0, 0] = 2.0
    assert one.near(x, but=found).row.tolist() == [1]


def test_a_little_aside_nothing_is_read():
    """Neither sketches nor points, where what the last queries were told says enough."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(300, 6, generator=generator)
    x = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    one, _ = screen(z, float(distances(x, z).sort().values[:, 3].max()))
    for known in (torch.arange(0), torch.arange(0, 300, 2)):  # of a search that was asked nothing
        rest = screen(z, float(one.radius[0]))[0].near(x, but=known)
        assert missed(Found(torch.cat([known, rest.row]), rest.rough), x, z, one.radius) == 0
    found = one.near(x)
    assert len(found.row)
    y = x.clone()
    y[1] += 1e-6
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sketch, "_sums", None)
        patch.setattr(one, "queries", None)
        assert not len(one.near(y, but=found.row).row)
        assert not len(one.near(x, but=found.row).row)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(KINDS[:3]), st.floats(0.02, 0.3))
def test_what_a_list_leaves_out_is_as_far_away_as_it_says(seed, kind, pace):
    """Also where a list was made of margins of calls before, on a list with little left."""
    generator = torch.Generator().manual_seed(seed)
    z = points(kind, 300, 8, generator)
    one, _ = screen(z, 0.3 * float(distances(z[:50].double(), z).median()))
    a, made = Basis.fit(z[:200])(z), 0
    x = z.double().mean(0) + 0.1 * torch.randn(4, 8, generator=generator, dtype=torch.float64)
    way = torch.randn(4, 8, generator=generator, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shielded.shields.search.lists.SHORTEST", 8)
        for step in range(25):
            x = x + pace * way * (1 if step % 2 else 0.1)
            one.near(x.clone())
            for some in one._lists._lists[1:]:
                out = torch.ones(len(z), dtype=torch.bool)
                out[some.row.long()] = False
                gap = (distances(some.at, a[out]) - one.radius[out]).amin(0)
                assert bool((gap >= some.spare - 1e-5).all())
                made += 1
    assert made


def test_tracks_are_told_apart():
    """Images and where they were moved to, in turn: each goes on from its own last place."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    tracks = Tracks()
    move, before = tracks.moves(a)
    assert not bool(move.any() | before.any())
    for step in range(12):
        along, across = 0.01 * step * torch.ones(3, 5), 0.02 * step * torch.ones(3, 5)
        for here, pace in ((a + along, 0.01), (10 + b - across, -0.02)):
            move, before = tracks.moves(here.double())
            tracks.add(here.double())
            tracks.add(here[:1].double())  # a single query is on neither track
            if step > 1:
                assert torch.allclose(move, torch.full_like(move, pace), atol=1e-6)
                assert torch.allclose(before, move, atol=1e-6)


@pytest.mark.skipif(os.environ.get("SHIELDED_THOROUGH") != "1", reason="takes some minutes")
@pytest.mark.timeout(3600)
def test_nothing_is_missed_in_a_hundred_thousand_queries():
    """Batches of eight on their way from the mean to references, in every kind and size."""
    queries, sizes = 0, [2, 3, 5, 17, 64, 129, 300, 512, 1024, 2048, 4096, 8192, 16384]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shielded.shields.search.lists.SHORTEST", 16)
        for dtype, kind, d in itertools.product(DTYPES, KINDS, sizes):
            patch.setattr("shielded.shields.search.screen.KNOWN", 128 if d % 2 else 4)
            generator = torch.Generator().manual_seed(d)
            z = points(kind, 240, d, generator)
            goal = z[torch.randint(0, 240, (8,), generator=generator)].double()
            start = z.double().mean(0) + z.double().std() * torch.randn(8, d, generator=generator)
            r = float(distances(goal, z).quantile(0.1)) + 1e-3 * float(z.std())
            one, _ = screen(z, r, dtype)
            for step in range(81):
                x = goal + (start - goal) * (1 - step / 80) ** 2
                assert missed(one.near(x), x, z, r) == 0
                queries += len(x)
    assert queries >= 100_000


def test_most_of_what_a_trajectory_needs_is_announced_before(monkeypatch):
    """And not many more: about as many as are fetched; of a set too large for memory."""
    monkeypatch.setattr("shielded.shields.search.memory.WHOLE", 0)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4000, 64, generator=generator) * torch.arange(1, 65) ** -0.5
    one, _ = screen(z, 2.0)
    fetch, told, early, fetched = one.fetch, set(), set(), set()

    def counted(row):
        fetched.update(row.tolist())
        early.update(told & set(row.tolist()))
        return fetch(row)

    one._memory.fetch, one._memory._announce = counted, lambda row: told.update(row.tolist())
    x = z[:4].double()
    for step in range(100):
        one.near(torch.lerp(x + 1.0, x, step / 100))
    assert len(fetched) > 100
    assert len(early) > len(fetched) / 2
    assert len(told) < 2 * len(fetched)


def test_the_list_saves_scans_and_the_sketch_saves_fetches():
    """Smooth motion over structured data: a handful of scans, few points fetched."""
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.arange(1, 257).float() ** -1.0
    z = torch.randn(3000, 256, generator=generator) * spectrum
    x = torch.randn(8, 256, generator=generator, dtype=torch.float64) * spectrum
    r = float(torch.quantile(distances(x, z), 0.002))
    one, asked = screen(z, r)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shielded.shields.search.lists.SHORTEST", 64)
        patch.setattr("shielded.shields.search.memory.WHOLE", 0)
        for step in range(50):
            assert missed(one.near(x), x, z, r) == 0
            x = x + 0.4 * 0.8**step * torch.randn(8, 256, generator=generator) * spectrum
    assert one.scans <= 15
    assert sum(asked) < 400


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2, 32, 300]), st.sampled_from(KINDS), st.booleans())
def test_the_closest_reference_is_the_closest(seed, d, kind, many):
    generator = torch.Generator().manual_seed(seed)
    z = points(kind, 300, d, generator)
    x = points(kind, 5, d, generator).double()
    radius = torch.full((300,), 2.0, dtype=torch.float64)
    if many:
        radius = torch.rand(300, generator=generator, dtype=torch.float64)
        radius[:3] = 0
    found = screen(z, radius)[0].closest(x)
    real = radius > 0
    share = distances(x, z)[:, real] / radius[real]
    mine = distances(x, found.z) / radius[found.row]
    assert torch.allclose(mine.nan_to_num(torch.inf).amin(1), share.amin(1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_move_that_is_not_a_number_is_not_left_out(lost):
    """Or a list would be taken for valid."""
    move = torch.ones(3, 4, dtype=torch.float64)
    move[lost, 0] = torch.nan
    assert not furthest(move) >= 0


def test_of_references_that_shield_nothing_the_nearer_never_comes_after_the_further():
    """Or a bound could rule out the reference that it is of."""
    d = 10 ** torch.linspace(-6, 8, 200_000)
    assert bool((_share(d, torch.zeros(1)) <= _share(d * (1 + 1e-6), torch.zeros(1))).all())


@pytest.mark.parametrize("shielding", [0, 1])
def test_where_no_radius_shields_the_nearest_is_still_found(shielding, monkeypatch):
    monkeypatch.setattr("shielded.shields.search.closest.LONG", 16)
    monkeypatch.setattr("shielded.shields.search.closest.FIRST", 4)
    generator = torch.Generator().manual_seed(0)
    z = points("random", 200, 20, generator)
    x = points("random", 5, 20, generator).double()
    radius = torch.zeros(200, dtype=torch.float64)
    radius[7 : 7 + shielding] = 1e-3
    found = screen(z, radius)[0].closest(x).row.tolist()
    nearest = distances(x, z).argmin(1).tolist()
    assert sorted(found) == ([7] if shielding else sorted(set(nearest)))


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([10, 16, 200]), st.sampled_from(KINDS), st.booleans())
def test_the_closest_is_found_a_few_at_a_time(seed, d, kind, many):
    """Queries far and near: what rules out all of a handful for one is nothing to another."""
    generator = torch.Generator().manual_seed(seed)
    z = points(kind, 120, d, generator)
    far = torch.tensor([0.01, 0.1, 1.0, 3.0, 10.0], dtype=torch.float64)[:, None]
    middle = z.double().mean(0)
    x = middle + far * (points(kind, 5, d, generator).double() - middle)
    radius = torch.full((120,), 2.0, dtype=torch.float64)
    if many:
        radius = 0.5 + torch.rand(120, generator=generator, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        counts = {"EACH": 1, "FIRST": 2, "MOST": 8, "PAIRS": 480, "LONG": 16, "SOME": 9}
        for name, count in counts.items():
            patch.setattr(f"shielded.shields.search.closest.{name}", count)
        one, _ = screen(z, radius, torch.bfloat16, Basis.fit(z[:50]))
        for y in (x, x + 0.01, x):  # the second and third know of the first
            one.near(y)
            found = one.closest(y)
            mine = (distances(y, found.z) / radius[found.row]).amin(1)
            assert torch.allclose(mine, (distances(y, z) / radius).amin(1), rtol=1e-9, atol=1e-9)


def test_of_equal_references_all_are_the_closest():
    """So that which is named does not depend on how they are searched."""
    z = points("duplicated", 300, 32, torch.Generator().manual_seed(0))
    found = screen(z, 1.0)[0].closest(z[[4, 100]].double() + 0.1)
    assert sorted(found.row.tolist()) == [3, 4, 5, 99, 100, 101]


@pytest.mark.parametrize("first", ["near", "far"])
def test_a_list_of_another_track_may_hold_none_of_the_nearest(first):
    """Both lists are valid: what each leaves out is further outside than it says."""
    z = points("random", 400, 8, torch.Generator().manual_seed(0)).double()
    one, _ = screen(z, 0.3)
    x = z[:1] + 2.0
    a, _ = one.queries(x)
    order, (every,) = distances(x, z)[0].argsort(), one._lists._lists
    near, far = every.pick(order[:60], a, 0.2), every.pick(order[200:300], a, 0.2)
    one._lists._lists += [far, near] if first == "near" else [near, far]
    assert len(list(one._lists.valid(a, 0.1))) == 3
    assert int(order[0]) in one.closest(x).row.tolist()


def test_references_at_a_radius_that_is_tiny_against_their_norms_are_found():
    """There the product that measures is off by more than the radius allows."""
    generator = torch.Generator().manual_seed(0)
    x = 5 + torch.randn(30, 200, generator=generator, dtype=torch.float64)
    u = torch.randn(30, 200, generator=generator, dtype=torch.float64)
    z = x + 1e-5 * u / u.norm(dim=1, keepdim=True)
    r = distances(x, z).amin(0) * (1 + 1e-12)
    one, _ = screen(z, r, basis=Basis.fit(torch.randn(9, 200, generator=generator)))
    assert missed(one.near(x), x, z, r) == 0


def test_a_set_of_nothing_and_of_one():
    basis = Basis.fit(torch.randn(4, 8))
    empty, _ = screen(torch.zeros(0, 8), 1.0, basis=basis)
    assert len(empty.near(torch.zeros(2, 8, dtype=torch.float64)).row) == 0
    assert len(empty.closest(torch.zeros(2, 8, dtype=torch.float64)).row) == 0
    one, _ = screen(torch.ones(1, 8), 1.0)
    assert one.near(torch.ones(2, 8, dtype=torch.float64)).row.tolist() == [0]
    assert one.closest(torch.zeros(2, 8, dtype=torch.float64)).row.tolist() == [0]


def test_the_width_follows_the_data():
    """Data that lie in few dimensions need few; the choice never exceeds what there is."""
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(500, 4, generator=generator) @ torch.randn(4, 200, generator=generator)
    full = torch.randn(500, 200, generator=generator)
    assert Basis.fit(flat).width <= Basis.fit(full).width
    assert Basis.fit(full[:, :2]).width == 3
    assert math.isfinite(Basis.fit(torch.zeros(9, 5))(torch.ones(1, 5)).sum())


def test_what_is_in_memory_needs_no_sketches_as_sharp_as_what_has_to_be_fetched():
    """And for a small radius not as sharp ones as for a large."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 784, generator=generator) * torch.arange(1, 785) ** -0.8
    r = float(torch.quantile(torch.pdist(x), 3e-4))
    assert Basis.fit(x, r, held=True).width < Basis.fit(x, r).width
    assert Basis.fit(x, r / 4, held=True).width < Basis.fit(x, r, held=True).width


def test_what_overflows_float32_is_still_found():
    z = torch.full((3, 4), 1e20) * torch.tensor([[1.0], [1.00001], [5.0]])
    basis = Basis(torch.zeros(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)[:2])
    one, _ = screen(z, 1e16, basis=basis)
    found = one.near(z[:1].double())
    assert 0 in found.row.tolist()


def test_a_bound_just_below_the_best_is_looked_at(monkeypatch):
    """The first has the least bound, as the mirror image of x, but the second is nearer."""
    monkeypatch.setattr("shielded.shields.search.closest.EACH", 1)
    z = torch.tensor([[0.0, 0.0, -1.0], [1.96, 0.0, 1.0], [9.0, 9.0, 9.0]])
    basis = Basis(torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)[:2])
    one, _ = screen(z, 1.0, basis=basis)
    x = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    assert one.closest(x).row.tolist() == [1]
