# SPDX-License-Identifier: Apache-2.0
"""Finer sketches beside a set: where they are made, and that they lose nothing."""

import numpy as np
import pytest
import torch

from shielded.shields.search.basis import Basis
from shielded.shields.search.finer import Finer, Piece
from shielded.shields.search.kept import load
from shielded.shields.search.product import rounded_to_steps
from shielded.shields.search.sketch import Sketch
from shielded.shields.store import ProtectedSet


@pytest.fixture(autouse=True)
def _no_set_is_small(monkeypatch):
    """What is fetched is counted here: of a set that stays in memory that would be little."""
    monkeypatch.setattr("shielded.shields.search.memory.WHOLE", 0)


def distances(x, z):
    return torch.cdist(x, z.double(), compute_mode="donot_use_mm_for_euclid_dist")


def test_bounds_of_rows_of_several_pieces(monkeypatch):
    """Some pieces hold more than their live rows, one holds none, one is not asked for."""
    monkeypatch.setattr("shielded.shields.search.finer.AT_ONCE", 7)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(100, 40, generator=generator).half()
    basis, pieces, live = Basis.fit(z[:50]), [], []
    for start, end, step in [(0, 30, 2), (30, 30, 1), (30, 60, 1), (60, 80, 3), (80, 100, 1)]:
        a, blur = basis.queries()(z[start:end].double())
        core, unit, lost = rounded_to_steps(a, basis.spread)
        sketch = Sketch(core, lost + blur, unit=unit, steps=basis.spread)
        place = torch.arange(0, end - start, step)
        pieces.append(Piece(core, *(e[place] for e in (sketch.lost, sketch.square, unit)), place))
        live.append(start + place)
    live = torch.cat(live)
    x = z[:4].double() + 0.1 * torch.randn(4, 40, generator=generator)
    finer = Finer(basis, pieces)
    for row in (torch.arange(len(live)), torch.tensor([0, 3, 16, 17, 46, 70]), live[:0]):
        true = distances(x, z[live[row]])
        low = finer.bounds(finer.query(x), row).double()
        assert bool((low <= true).all())
        assert bool((low > true - 0.15 * float(true.max() if len(row) else 0)).all())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A set whose sketches say little, of several parts."""
    monkeypatch.setattr("shielded.shields.search.basis.WIDTHS", (2, 4))
    monkeypatch.setattr("shielded.shields.search.basis.FINE", 16)
    monkeypatch.setattr("shielded.shields.search.basis.MANY", 1)
    for name, count in {"MANY": 1, "SOON": 32, "LONG": 16, "EACH": 1, "FIRST": 4}.items():
        monkeypatch.setattr(f"shielded.shields.search.closest.{name}", count)
    for name in ("KNOWN", "MANY"):
        monkeypatch.setattr(f"shielded.shields.search.screen.{name}", 1)
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(300, 64, generator=generator) * torch.arange(1, 65).float() ** -0.5
    store = ProtectedSet.create(tmp_path / "set", (64,), radius=1.0)
    for part in z.split(100):
        store.add(part)
    return store


def points(store):
    pages = [page for part in store.parts() for _, page in store.read(part)]
    return torch.from_numpy(np.concatenate(pages))


def found(screen, x):
    """How far the closest are, and how many points were fetched to tell."""
    fetched, fetch = [], screen.fetch

    def counted(rows):
        fetched.extend(rows.tolist())
        return fetch(rows)

    screen._memory.fetch = counted
    return distances(x, screen.closest(x).z).amin(1), len(fetched)


def test_the_closest_by_finer_sketches_is_the_closest(folder):
    """The first time they are made, then they are read; after a removal some are left out."""
    generator = torch.Generator().manual_seed(2)
    x = points(folder)[::60].double() + 0.2 * torch.randn(5, 64, generator=generator)
    further = torch.randn(80, 64, generator=generator, dtype=torch.float64)
    for turn in range(3):
        nearest = distances(x, points(folder)).amin(1)
        screen, coarse = load(folder, 1.0)[0], load(folder, 1.0)[0]
        assert screen.finer is not None
        low = screen.finer.bounds(screen.finer.query(x), torch.arange(len(screen.radius))).double()
        assert bool((low <= distances(x, points(folder))).all())
        coarse._closest._finer = None
        mine, read = found(screen, x)
        other, more = found(coarse, x)
        assert torch.equal(mine, nearest)
        among = distances(further, screen.closest(further).z).amin(1)
        assert torch.equal(among, distances(further, points(folder)).amin(1))
        assert torch.equal(other, nearest)
        assert read < more / 2, "they save reading"
        if turn == 1:
            ids = [name for page in folder.entries(["id"]) for name in page["id"]]
            folder.remove(ids[1::3])
    kept = [path.name for path in (folder.path / "screen").iterdir()]
    assert sum("finer" in name for name in kept) == 3


def test_all_within_reach_by_finer_sketches_are_all(folder):
    """Radii at which many, few and hardly any are near; what was ruled out need not be fetched."""
    generator = torch.Generator().manual_seed(3)
    z = points(folder)
    x = z[::60].double() + 0.2 * torch.randn(5, 64, generator=generator)
    load(folder, 1.0)
    axes = folder.kept("basis")[0]["finer"]
    x[0] = z[0] + 2.0 * axes[0] + 1.0 * axes[15]  # a distance that finer sketches tell exactly
    d = distances(x, z)
    for radius in (float(d[0, 0]), *(float(d.quantile(share)) for share in (0.002, 0.02, 0.2))):
        screen, coarse = load(folder, radius)[0], load(folder, radius)[0]
        coarse.finer, read = None, []
        for one in (screen, coarse):
            fetched, fetch = [], one.fetch

            def counted(rows, fetch=fetch, fetched=fetched):
                fetched.extend(rows)
                return fetch(rows)

            one._memory.fetch = counted
            row = one.near(x).row
            assert set((d <= radius).any(0).nonzero()[:, 0].tolist()) <= set(row.tolist())
            assert bool((d[:, row] <= radius * (1 + 1e-6)).any(0).all())
            read.append(len(fetched) - len(row))
        assert read[0] < read[1]


def test_what_finer_sketches_ruled_out_is_known_at_the_next_call(folder):
    """From near by they are asked about fewer, and none that is near is lost."""
    generator = torch.Generator().manual_seed(3)
    z = points(folder)
    x = z[::60].double() + 0.2 * torch.randn(5, 64, generator=generator)
    radius, asked = float(distances(x, z).quantile(0.02)), []
    screen = load(folder, radius)[0]
    bounds = screen.finer.bounds

    def counted(query, row):
        asked[-1] += len(row)
        return bounds(query, row)

    screen.finer.bounds = counted
    for step in range(4):
        asked.append(0)
        y = x + 1e-3 * step
        row = screen.near(y).row
        assert row.tolist() == (distances(y, z) <= radius).any(0).nonzero()[:, 0].tolist()
    assert asked[0] > 4 * max(asked[1:])


def test_very_many_that_are_in_memory_are_not_all_measured(folder, monkeypatch):
    generator = torch.Generator().manual_seed(3)
    z = points(folder)
    x = z[::60].double() + 0.2 * torch.randn(5, 64, generator=generator)
    radius, measured = float(distances(x, z).quantile(0.02)), {}
    for large in (0, 10**6):
        monkeypatch.setattr("shielded.shields.search.screen.LARGE", large)
        screen = load(folder, radius)[0]
        screen._memory.points(torch.arange(len(z)))
        hits = screen._hits

        def counted(x, rough, row, *others, large=large, hits=hits):
            measured[large] = len(row)
            return hits(x, rough, row, *others)

        screen._hits = counted
        row = screen.near(x).row
        assert row.tolist() == (distances(x, z) <= radius).any(0).nonzero()[:, 0].tolist()
    assert measured[0] < measured[10**6]


def test_finer_sketches_are_made_only_where_they_are_kept_and_pay(folder, monkeypatch):
    keep = ProtectedSet.keep

    def refused(self, name, tensors, note):
        return "finer" not in name and keep(self, name, tensors, note)

    with monkeypatch.context() as patch:
        patch.setattr(ProtectedSet, "keep", refused)
        assert load(folder, 3.0)[0].finer is None
    assert load(folder, 3.0)[0].finer is not None
    (folder.path / "screen" / "basis.safetensors").unlink()
    monkeypatch.setattr("shielded.shields.search.basis.MANY", 10**9)
    assert load(folder, 3.0)[0].finer is None
