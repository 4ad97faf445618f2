# SPDX-License-Identifier: Apache-2.0
"""Neighbours and balls are those of exact arithmetic, whatever float32 makes of them."""

import os
import subprocess
import sys
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shielded.errors import BadInput, NonFinite
from shielded.metrics import pairs
from shielded.metrics.pairs import nearest, within


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[2**24, 700, 1])
def tile(request, monkeypatch):
    """One tile of all pairs, tiles of some rows, tiles of single rows."""
    monkeypatch.setattr(pairs, "TILE", request.param)
    monkeypatch.setattr(pairs, "PART", max(8, request.param // 20))


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("offset", [0.0, 1e5])
@pytest.mark.parametrize("k", [1, 4])
def test_neighbours_are_those_of_float64(k, offset):
    x, z = normal(60, 6).double() + offset, normal(90, 6, seed=1).double() + offset
    d2 = (x[:, None] - z).square().sum(2)
    squares, places = nearest(x, z, k)
    assert torch.allclose(squares, d2.sort(1).values[:, :k], rtol=1e-12)
    assert torch.equal(places, d2.sort(1).indices[:, :k])
    own = (z[:, None] - z).square().sum(2).fill_diagonal_(torch.inf)
    squares, places = nearest(z, k=k)
    assert torch.allclose(squares, own.sort(1).values[:, :k], rtol=1e-12)
    assert torch.equal(places, own.sort(1).indices[:, :k])


@pytest.mark.usefixtures("tile")
def test_what_float32_cannot_tell_apart_is_told_apart():
    """Ten points at distances that differ by 1e-10, far from the mean of all."""
    x = torch.zeros(1, 3, dtype=torch.float64)
    x[0, 0] = 1000
    z = x.repeat(10, 1)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    z[order, 1] = 1 + 1e-10 * torch.arange(10, dtype=torch.float64)
    squares, places = nearest(x, torch.cat([z, -z]), k=3)
    assert places[0].tolist() == order[:3].tolist()
    reach = squares[0, 1:2]  # holds the nearest two, and no third
    found = [(j, d2) for _, j, d2 in within(x, z, reach, reach.new_full((10,), -1))]
    assert sum(int((d2 <= reach).sum()) for _, d2 in found) == 2


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e14])
def test_tiny_and_huge_features_lose_nothing(scale):
    x = normal(40, 3).double() * scale
    d2 = (x[:, None] - x).square().sum(2).fill_diagonal_(torch.inf)
    assert torch.equal(nearest(x, k=2)[1], d2.sort(1).indices[:, :2])


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=4, max_size=12),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12),
    st.integers(0, 9),
    st.sampled_from([1, 30, 2**24]),
)
def test_pairs_within_are_all_there(points, centres, square, tile):
    """On a lattice, where equal distances are the rule; in tiles of any size."""
    x, z = torch.tensor(points).double(), torch.tensor(centres).double()
    truth = {
        (a, b)
        for a, p in enumerate(points)
        for b, c in enumerate(centres)
        if (p[0] - c[0]) ** 2 + (p[1] - c[1]) ** 2 <= square
    }
    reach = torch.full((len(z),), float(square), dtype=torch.float64)
    for near in (
        within(x, z, reach.new_full((len(x),), -1), reach),
        within(x, z, reach[:1].expand(len(x)), reach.new_full((len(z),), -1)),
    ):
        with mock.patch.object(pairs, "TILE", tile):
            found = [(i[d2 <= square], j[d2 <= square]) for i, j, d2 in near]
        listed = [pair for i, j in found for pair in zip(i.tolist(), j.tolist(), strict=True)]
        assert len(listed) == len(set(listed))
        assert set(listed) == truth


def test_duplicates_are_neighbours_of_each_other():
    x = normal(5, 4).repeat(3, 1)
    squares, places = nearest(x, k=2)
    assert not squares.any()
    assert not (places == torch.arange(15)[:, None]).any()


def test_bad_features_are_refused():
    with pytest.raises(BadInput, match="not \\(3, 2\\) and \\(3, 4\\)"):
        nearest(torch.ones(3, 2), torch.ones(3, 4))
    with pytest.raises(BadInput, match="smaller k"):
        nearest(torch.ones(3, 2), k=3)
    with pytest.raises(NonFinite):
        nearest(torch.tensor([[1.0], [torch.nan]]), k=1)
    with pytest.raises(NonFinite):
        nearest(torch.tensor([[1.0], [-1e16]]), k=1)


SMALL = """
import resource, torch
from shielded.metrics import prdc
x, z = torch.randn(2, 11_000, 8).unbind()
prdc(x[:300], z[:300])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prdc(x, z)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_pairs():
    """121 million pairs take 460 MiB in float32; a tile takes 64."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", SMALL]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert int(run.stdout) < 300 * 1024  # KiB
