# SPDX-License-Identifier: Apache-2.0
"""ProtectedSet.near against brute force, whatever the set went through before."""

import sys

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import shielded
from shielded.errors import BadInput, MissingExtra, NonFinite, ShapeMismatch
from shielded.shields.search.basis import Basis
from shielded.shields.search.kept import load

pytest.importorskip("lance", reason="needs the extra [protect]")
from shielded import ProtectedSet

SHAPE = (2, 4, 4)
KINDS = ["random", "copies", "far from the origin", "close together"]


def latents(n, seed=0, kind="random"):
    """(n, 2, 4, 4) of one kind, as float16 stores them."""
    z = torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed))
    if kind == "copies":
        z = z[torch.arange(n) // 3]
    if kind == "far from the origin":
        z = z + 300
    if kind == "close together":
        z = 3 + 1e-2 * z
    return z.half().float()


def brute(x, z, radius):
    """(query, id, distance) of all pairs within the radius, by differences in float64."""
    names, points = list(z), torch.stack(list(z.values())).flatten(1).double()
    d = (x.flatten(1).double()[:, None] - points).norm(dim=2)
    r = [radius[name] if isinstance(radius, dict) else radius for name in names]
    found = [
        (b, float(d[b, k]), names[k])
        for b, k in (d <= torch.tensor(r, dtype=d.dtype)).nonzero().tolist()
    ]
    return [(b, name, distance) for b, distance, name in sorted(found)]


def same(hits, expected, z):
    assert [(h.query, h.id) for h in hits] == [(b, name) for b, name, _ in expected]
    assert [h.distance for h in hits] == pytest.approx([d for *_, d in expected], rel=1e-12)
    assert all(torch.equal(h.point, z[h.id].double()) for h in hits)


def filled(folder, z, radius=None, radii=None):
    store = ProtectedSet.create(folder, SHAPE, radius=radius)
    if z:
        store.add(torch.stack(list(z.values())), ids=list(z), radii=radii)
    return store


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A set of each kind, and its latents by id."""
    made = {}
    for kind in KINDS:
        z = {f"{k:03d}": one for k, one in enumerate(latents(120, kind=kind))}
        made[kind] = filled(tmp_path_factory.mktemp("sets") / "set", z), z
    return lambda kind: made[kind]  # which hypothesis prints in a line


@settings(max_examples=25)
@given(
    st.sampled_from(KINDS),
    st.integers(0, 10**6),
    st.sampled_from([0.0, 1e-12, 1e-9, 1e-6, 1e-3, 0.3, 1.0]),
    st.floats(0, 1),
)
@example("copies", 0, 1e-6, 0.0)
def test_near_is_brute_force(stores, kind, seed, noise, quantile):
    """The radius is a distance that occurs, however small, and a little less."""
    store, z = stores(kind)
    pick = torch.randint(0, 120, (7,), generator=torch.Generator().manual_seed(seed))
    points = torch.stack(list(z.values())).double()
    x = points[pick] + noise * points.std() * latents(7, seed).double()
    d = sorted(distance for *_, distance in brute(x, z, 1e9))
    radius = d[round(quantile * (len(d) - 1))] * (1 + 1e-12)
    same(store.near(x, radius), brute(x, z, radius), z)
    same(store.near(x.flatten(1), 0.99 * radius), brute(x, z, 0.99 * radius), z)


def test_more_points_than_are_searched_at_once(stores, monkeypatch):
    store, z = stores("random")
    monkeypatch.setattr("shielded.shields.search.near.AT_ONCE", 5)
    x = latents(13, 7)
    same(store.near(x, 6.5), brute(x, z, 6.5), z)
    same(store.near(x.numpy(), 6.5), brute(x, z, 6.5), z)
    assert store.near(x[:0], 6.5) == []


def test_without_a_radius_each_image_has_its_own(tmp_path):
    z = {str(k): one for k, one in enumerate(latents(60))}
    own = [None if k % 3 else 4 + k / 10 for k in range(60)]
    store = filled(tmp_path / "set", z, radius=7.0, radii=own)
    x = latents(9, 1)
    stored = [7.0 if r is None else float(torch.tensor(r)) for r in own]
    radii = dict(zip(z, stored, strict=True))
    for radius in (6.0, None, 8.0, None):  # one given counts for all
        expected = brute(x, z, radii if radius is None else radius)
        same(store.near(x, radius), expected, z)
        assert 0 < len(expected) < 9 * 60
    bare = filled(tmp_path / "bare", z, radii=own)
    with pytest.raises(BadInput, match="holds images without a radius"):
        bare.near(x)
    same(bare.near(x, 8.0), brute(x, z, 8.0), z)


def test_near_follows_the_changes_of_a_set(tmp_path):
    z = {str(k): one for k, one in enumerate(latents(80))}
    store, x = filled(tmp_path / "set", z), latents(6, 1)
    reader, before = ProtectedSet.open(store.path), dict(z)
    same(reader.near(x, 7.5), brute(x, z, 7.5), z)
    same(store.near(x, 7.5), brute(x, z, 7.5), z)
    more = {f"new{k}": one for k, one in enumerate(latents(40, 2))}
    store.add(torch.stack(list(more.values())), ids=list(more))
    z |= more
    same(store.near(x, 7.5), brute(x, z, 7.5), z)
    gone = [h.id for h in store.near(x, 7.5)][::2]
    store.remove(set(gone))
    z = {name: one for name, one in z.items() if name not in gone}
    same(store.near(x, 7.5), brute(x, z, 7.5), z)
    store.compact()
    same(store.near(x, 7.5), brute(x, z, 7.5), z)
    same(reader.near(x, 7.5), brute(x, before, 7.5), before)
    assert reader.refresh()
    same(reader.near(x, 7.5), brute(x, z, 7.5), z)
    old = ProtectedSet.open(store.path, version=2)
    same(old.near(x, 7.5), brute(x, before, 7.5), before)
    store.remove(list(z))
    assert store.near(x, 7.5) == []


def test_the_search_is_made_once_a_version(stores, monkeypatch):
    store, _ = stores("random")
    calls = []
    monkeypatch.setattr(
        "shielded.shields.search.near.load", lambda *given: calls.append(1) or load(*given)
    )
    again = ProtectedSet.open(store.path)
    for radius in (1.0, 5.0, 2.0):
        again.near(latents(2, 3), radius)
    assert len(calls) == 1
    assert not again.refresh()
    again.near(latents(2, 3), 4.0)
    assert len(calls) == 1


def test_little_is_read_for_a_small_radius(tmp_path, monkeypatch):
    """The sketch rules out what is far: it is not fetched."""
    flat = torch.randn(600, 4) @ torch.randn(4, 32)
    store = ProtectedSet.create(tmp_path / "set", SHAPE)
    store.add(flat.reshape(600, *SHAPE), ids=[str(k) for k in range(600)])
    assert Basis.fit(flat).width < 20
    store.near(flat[:1], 0.0)
    taken = []
    take = ProtectedSet.take
    monkeypatch.setattr(
        ProtectedSet, "take", lambda self, rows: taken.append(len(rows)) or take(self, rows)
    )
    assert [h.id for h in store.near(flat[300:301].half(), 0.01)] == ["300"]
    assert sum(taken) < 60


def test_what_cannot_be_searched_for_is_refused(stores):
    store, _ = stores("random")
    x = latents(2)
    for wrong in (x[0], x[:, :1], x.flatten(), torch.zeros(3, 31), torch.tensor(1.0)):
        with pytest.raises(ShapeMismatch, match=r"the set holds latents of shape \(2, 4, 4\)"):
            store.near(wrong, 1.0)
    with pytest.raises(ShapeMismatch, match=r"a single latent needs x0\[None\]"):
        store.near(x[0], 1.0)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(NonFinite, match="x0 holds NaN or infinity"):
            store.near(torch.full((1, 32), bad), 1.0)
    for radius in (-1.0, float("nan"), float("inf")):
        with pytest.raises(BadInput, match="radius is"):
            store.near(x, radius)


def test_the_name_is_at_the_top_and_needs_lance_only_when_used(stores, monkeypatch):
    assert shielded.ProtectedSet is ProtectedSet
    monkeypatch.setitem(sys.modules, "lance", None)
    with pytest.raises(MissingExtra, match=r"pip install shielded-diffusion\[protect\]"):
        shielded.ProtectedSet.open(stores("random")[0].path)
