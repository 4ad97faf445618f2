# SPDX-License-Identifier: Apache-2.0
"""The screen of a protected set, from sketches that are kept beside it, part by part."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from shielded.shields.search.basis import Basis
from shielded.shields.search.finer import Finer, Piece
from shielded.shields.search.memory import small
from shielded.shields.search.on_disk import OnDisk
from shielded.shields.search.product import cheapest, rounded, rounded_to_steps
from shielded.shields.search.queries import Queries
from shielded.shields.search.screen import Screen
from shielded.shields.search.sketch import Sketch
from shielded.shields.store import Part, ProtectedSet

__all__ = ["Points", "basis_of", "load"]

SAMPLE = 4096  # latents that a basis is fitted on
PAGE = 1024  # latents that are sketched at once
FORM = "2"  # of what is kept; another is not read
GROWTH = 4  # a set this many times larger than when its basis was chosen gets another
WIDER = 2  # and so does one that is searched with a radius so many times as large


def load(
    store: ProtectedSet,
    radius: float,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    parts: Sequence[Part] | None = None,
) -> tuple[Screen, Tensor]:
    """The screen of a set at its version, and the row address (N,) of each of its rows.

    Or of some of its `parts` alone. What was added since sketches were kept is sketched now, what
    was removed is left out. `radius` is for images without their own. `dtype` of the sketches is
    float32, bfloat16, which takes half the memory, or int8, which takes a quarter; None is int8 on
    a CPU, bfloat16 elsewhere.
    """
    basis, name = basis_of(store, radius)
    dtype = cheapest(device) if dtype is None else dtype
    covered = store.parts() if parts is None else parts
    count = sum(len(part.rows) for part in covered)
    core = torch.empty((count, basis.width), dtype=dtype)
    lost, own = (torch.empty(count, dtype=torch.float64) for _ in range(2))
    unit = torch.empty(count) if dtype == torch.int8 else None
    address = torch.empty(count, dtype=torch.long)
    start = 0
    for part in covered:  # one at a time: no second copy of all
        made = _sketched(store, part, basis, name, dtype)
        rows = slice(start, start + len(part.rows))
        core[rows], lost[rows], own[rows] = made["core"], made["lost"], made["radius"]
        address[rows] = made["address"]
        if unit is not None:
            unit[rows] = made["unit"]
        start = rows.stop
    r = own.new_tensor(radius).expand(count)  # one number for all, where none has its own
    if not bool(own.isnan().all()):
        r = torch.where(own.isnan(), radius, own)
    on, points, finer = basis.to(device), Points(store, address), _finer(store, covered, device)
    on_grid = {} if unit is None else {"unit": unit.to(device), "steps": on.spread}
    sketch = Sketch(core.to(device), lost.to(device), **on_grid)
    return Screen(on, sketch, r.to(device), points, finer, points.announce), address


class Points:
    """The points of a set on disk, by rows (n,) of all its addresses (N,)."""

    def __init__(self, store: ProtectedSet, address: Tensor):
        self._disk, self._address = OnDisk(store, store.parts()), address

    def __call__(self, row: Tensor) -> Tensor:
        """(n, D) as they are stored."""
        z = self._disk(self._of(row))
        return torch.from_numpy(z if z.flags.writeable else z.copy())

    def announce(self, row: Tensor) -> None:
        """Let the disk read them in the meantime."""
        self._disk.announce(self._of(row))

    def _of(self, row: Tensor) -> np.ndarray:
        return self._address[row].numpy().astype(np.uint64)


def basis_of(store: ProtectedSet, radius: float) -> tuple[Basis, str]:
    """The basis kept beside the set, or a new one; and the name that its sketches have.

    A new one is for the radius of the set, or if that has none for this one.
    """
    r = store.radius or radius or None
    parts = store.parts()
    count = sum(len(part.rows) for part in parts)
    kept = store.kept("basis")
    if kept is not None and _serves(kept[1], count, r or 0.0):
        basis = _basis(kept[0], "axes", "spread")
    else:
        sample = _sample(store, parts, count)
        basis = Basis.fit(sample, r, small(count, store.dim * np.dtype(store.dtype).itemsize))
        finer = basis.finer(sample, r, count)
        tensors = {"mean": basis.mean, "axes": basis.axes.contiguous(), "spread": basis.spread}
        if finer is not None:
            tensors["finer"], tensors["finer_spread"] = finer.axes.contiguous(), finer.spread
        about = {"count": str(count), "form": FORM, "radius": str(r or "inf")}
        store.keep("basis", tensors, about)
    return basis, _name(basis)


def _serves(about: Mapping[str, str], count: int, radius: float) -> bool:
    """Whether a basis that is kept is still a good choice for so many images and this radius."""
    grown = count > GROWTH * max(int(about["count"]), SAMPLE)
    wider = radius > WIDER * float(about.get("radius", "inf"))
    return about.get("form") == FORM and not (grown or wider)


def _basis(kept: Mapping[str, Tensor], axes: str, spread: str) -> Basis:
    """One of two that are kept; what stays in use of it does not hold on to the file."""
    return Basis(kept["mean"].clone(), kept[axes], kept[spread].clone())


def _name(basis: Basis) -> str:
    digest = hashlib.sha256()
    for part in (basis.axes, basis.mean, basis.spread):
        digest.update(part.contiguous().numpy().data)  # mostly they are, and not copied
    return digest.hexdigest()[:12]


def _sample(store: ProtectedSet, parts: Sequence[Part], count: int) -> Tensor:
    """Up to SAMPLE latents, evenly from all parts; zeros for an empty set."""
    if not count:
        return torch.zeros((1, store.dim))
    rows = np.concatenate([part.rows for part in parts])
    rows = rows[np.linspace(0, count - 1, min(count, SAMPLE)).astype(int)]
    return torch.cat([torch.from_numpy(np.array(z)) for z in _pieces(store, rows)])


def _pieces(store: ProtectedSet, rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), 256):
        yield store.take(rows[start : start + 256])


def _sketched(
    store: ProtectedSet, part: Part, basis: Basis, name: str, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Sketches of a part's live rows, from beside the set or made now."""
    name = f"{name}-{str(dtype).removeprefix('torch.')}-{part.name}"
    kept = store.kept(name)
    if kept is not None:
        made = kept[0]
        place = _places(made["address"], part)
        if place is not None:
            return {key: tensor.index_select(0, place) for key, tensor in made.items()}
    made = _joined([_rows(basis, *rows, dtype) for rows in _pages(store, part)])
    made["radius"] = torch.from_numpy(store.radii(part).astype(np.float64))
    store.keep(name, made, {})
    return made


def _pages(store: ProtectedSet, part: Part) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A part's row addresses and latents; a page of none comes first, for there may be no other."""
    yield np.zeros(0, np.uint64), np.zeros((0, store.dim), store.dtype)
    yield from store.read(part, PAGE)


def _joined(pages: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.cat([page[key] for page in pages]) for key in pages[0]}


def _places(address: Tensor, part: Part) -> Tensor | None:
    """Where a part's live rows are among addresses (n,); None if they are not all there."""
    live = torch.from_numpy(part.rows.astype(np.int64))
    place = torch.searchsorted(address, live)
    inside = place < len(address)
    there = bool(inside.all()) and bool((address[place] == live).all())
    return place if there else None


def _finer(store: ProtectedSet, parts: Sequence[Part], device: torch.device | str) -> Finer | None:
    """Finer sketches of parts, if the basis asks for them and they can be kept beside the set."""
    kept = store.kept("basis")
    if kept is None or "finer" not in kept[0]:
        return None
    basis = _basis(kept[0], "finer", "finer_spread")
    name, pieces = _name(basis), []
    for part in parts:
        piece = _piece(store, part, basis, f"{name}-finer-{part.name}")
        if piece is None:
            return None
        pieces.append(piece)
    return Finer(basis.to(device), pieces)


def _piece(store: ProtectedSet, part: Part, basis: Basis, name: str) -> Piece | None:
    """Finer sketches of a part from beside the set, made now if need be; None: not to be kept."""
    for made in (False, True):
        kept = store.kept(name)
        place = None if kept is None else _places(kept[0]["address"], part)
        if kept is not None and place is not None:
            lost, square, unit = (kept[0][key][place] for key in ("lost", "square", "unit"))
            return Piece(kept[0]["core"], lost, square, unit, place)
        if made:
            break
        queries = basis.queries()
        rows = [_fine_rows(queries, basis.spread, *page) for page in _pages(store, part)]
        store.keep(name, _joined(rows), {})
    return None


def _fine_rows(
    queries: Queries, steps: Tensor, address: np.ndarray, latents: np.ndarray
) -> dict[str, Tensor]:
    a, blur = queries(torch.from_numpy(latents.astype(np.float64)))
    core, unit, lost = rounded_to_steps(a, steps)
    sketch = Sketch(core, lost + blur, unit=unit, steps=steps)
    made = {"core": core, "lost": sketch.lost, "square": sketch.square, "unit": unit}
    return {"address": torch.from_numpy(address.astype(np.int64)), **made}


def _rows(
    basis: Basis, address: np.ndarray, latents: np.ndarray, dtype: torch.dtype
) -> dict[str, Tensor]:
    a = basis(torch.from_numpy(latents.astype(np.float64)))
    made = {"address": torch.from_numpy(address.astype(np.int64))}
    if dtype == torch.int8:
        made["core"], made["unit"], lost = rounded_to_steps(a, basis.spread)
    else:
        made["core"], lost = rounded(a, dtype)
    return {**made, "lost": lost + basis.blur(a)}
