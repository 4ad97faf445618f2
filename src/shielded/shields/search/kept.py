# SPDX-License-Identifier: Apache-2.0
"""The screen of a protected set, from sketches that are kept beside it, part by part."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from shielded.shields.search.on_disk import OnDisk
from shielded.shields.search.screen import Screen
from shielded.shields.search.sketch import Basis, rounded
from shielded.shields.store import Part, ProtectedSet

__all__ = ["basis_of", "fetcher", "load"]

SAMPLE = 4096  # latents that a basis is fitted on
GROWTH = 4  # a set this many times larger than when its basis was chosen gets another


def load(
    store: ProtectedSet,
    radius: float,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    parts: Sequence[Part] | None = None,
) -> tuple[Screen, Tensor]:
    """The screen of a set at its version, and the row address (N,) of each of its rows.

    Or of some of its `parts` alone. What was added since sketches were kept is sketched now, what
    was removed is left out. `radius` is for images without their own, `dtype` of the sketches is
    bfloat16, which takes half the memory, or float32, which is a little sharper.
    """
    basis, name = basis_of(store)
    covered = store.parts() if parts is None else parts
    count = sum(len(part.rows) for part in covered)
    core = torch.empty((count, basis.width), dtype=dtype)
    lost, own = (torch.empty(count, dtype=torch.float64) for _ in range(2))
    address = torch.empty(count, dtype=torch.long)
    start = 0
    for part in covered:  # one at a time: no second copy of all
        made = _sketched(store, part, basis, name, dtype)
        rows = slice(start, start + len(part.rows))
        core[rows], lost[rows], own[rows] = made["core"], made["lost"], made["radius"]
        address[rows] = made["address"]
        start = rows.stop
    r = own.new_tensor(radius).expand(count)  # one number for all, where none has its own
    if not bool(own.isnan().all()):
        r = torch.where(own.isnan(), radius, own)
    on = Basis(basis.mean.to(device), basis.axes.to(device))
    fetch = fetcher(store, address)
    return Screen(on, core.to(device), lost.to(device), r.to(device), fetch), address


def fetcher(store: ProtectedSet, address: Tensor) -> Callable[[Tensor], Tensor]:
    """A function from rows (n,) to their points (n, D) as stored, given all addresses (N,)."""
    points = OnDisk(store, store.parts())

    def fetch(rows: Tensor) -> Tensor:
        return torch.from_numpy(np.array(points(address[rows].numpy().astype(np.uint64))))

    return fetch


def basis_of(store: ProtectedSet) -> tuple[Basis, str]:
    """The basis kept beside the set, or a new one; and the name that its sketches have."""
    parts = store.parts()
    count = sum(len(part.rows) for part in parts)
    kept = store.kept("basis")
    if kept is not None and count <= GROWTH * max(int(kept[1]["count"]), SAMPLE):
        basis = Basis(kept[0]["mean"], kept[0]["axes"])
    else:
        basis = Basis.fit(_sample(store, parts, count), store.radius, count)
        tensors = {"mean": basis.mean, "axes": basis.axes.contiguous()}
        store.keep("basis", tensors, {"count": str(count)})
    digest = hashlib.sha256(basis.axes.numpy().tobytes() + basis.mean.numpy().tobytes())
    return basis, digest.hexdigest()[:12]


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
    live = torch.from_numpy(part.rows.astype(np.int64))
    kept = store.kept(name)
    if kept is not None:
        made = kept[0]
        place = torch.searchsorted(made["address"], live)
        inside = place < len(made["address"])
        if bool(inside.all()) and bool((made["address"][place] == live).all()):
            return {key: tensor[place] for key, tensor in made.items()}
    rows = [_rows(basis, *piece, dtype) for piece in store.read(part)]
    empty = _rows(basis, np.zeros(0, np.uint64), np.zeros((0, store.dim), store.dtype), dtype)
    made = {key: torch.cat([row[key] for row in [empty, *rows]]) for key in empty}
    made["radius"] = torch.from_numpy(store.radii(part).astype(np.float64))
    store.keep(name, made, {})
    return made


def _rows(
    basis: Basis, address: np.ndarray, latents: np.ndarray, dtype: torch.dtype
) -> dict[str, Tensor]:
    a = basis(torch.from_numpy(latents.astype(np.float64)))
    core, lost = rounded(a, dtype)
    return {
        "address": torch.from_numpy(address.astype(np.int64)),
        "core": core,
        "lost": lost + basis.blur(a),
    }
