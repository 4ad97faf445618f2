# SPDX-License-Identifier: Apache-2.0
"""The images of a protected set on disk, as shields."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from shielded.errors import BadInput, ShapeMismatch
from shielded.shields.faiss_index import KINDS, FaissIndex, Search
from shielded.shields.hits import Hits
from shielded.shields.screen import Screen
from shielded.shields.shields import References
from shielded.shields.sketch import Basis, rounded
from shielded.shields.store import Part, ProtectedSet

if TYPE_CHECKING:
    from shielded.shields.ray_screen import RayScreen

SAMPLE = 4096  # latents that a basis is fitted on
GROWTH = 4  # a set this many times larger than when its basis was chosen gets another


class Protected:
    """Every image keeps away from each image of the set, whatever its group."""

    name = "protected"

    def __init__(
        self,
        path: str | Path,
        radius: float | None = None,
        search: str = "screen",
        nprobe: int = 2,
        shards: int = 2,
    ):
        if search not in ("screen", "ray", *KINDS):
            known = ", ".join(("ray", *KINDS))
            raise BadInput(f"search is {search!r}: choose screen or one of {known}.")
        self.set = ProtectedSet.open(path)
        self.radius = self.set.radius if radius is None else radius
        self.shape = self.set.shape
        self.search, self.nprobe = search, nprobe
        self._made: tuple[Any, Screen, Search, Tensor] | None = None
        self._shards: RayScreen | None = None
        if search == "ray":
            from shielded.shields.ray_screen import RayScreen

            self._shards = RayScreen(self.set, shards)

    def check(self, pipe: Any) -> None:
        """Raise ShapeMismatch if the set was made by another encoder, size or packing."""
        from shielded.spaces import fingerprint, mismatch

        if not self.set.fingerprint:
            return  # made from latents by someone who knows: their shape is still checked
        size = self.set.fingerprint.get("size") or (None, None)
        other = mismatch(self.set.fingerprint, fingerprint(pipe, *size))
        if other is not None:
            raise ShapeMismatch(
                f"the protected set at {self.set.path} does not fit this pipeline: {other}. Build "
                "a set with this model: shielded protect build."
            )

    def refresh(self) -> None:
        """Go to the newest version of the set."""
        if self.set.refresh():
            self._made = None

    def references(
        self, x: Tensor, groups: Sequence[Hashable], radius: float, reach: float
    ) -> References:
        """Those within their radius + reach of any x, measured exactly."""
        if self._shards is not None:
            return self._shields(x, self._shards.near(x, radius, reach))
        screen, search, address = self._searches(radius, x.device)
        return self._shields(x, Hits.of(search.near(x, reach), screen, address))

    def closest(self, x: Tensor, groups: Sequence[Hashable], radius: float) -> References:
        """For each x the one with the smallest distance / radius, by the screen."""
        if self._shards is not None:
            return self._shields(x, self._shards.closest(x, radius))
        screen, _, address = self._searches(radius, x.device)
        return self._shields(x, Hits.of(screen.closest(x), screen, address).closest(x))

    def _shields(self, x: Tensor, hits: Hits) -> References:
        everyone = torch.ones((len(x), len(hits.z)), dtype=torch.bool, device=x.device)
        return References(hits.z, everyone, _Ids(self.set, hits.address), whole=False, r=hits.r)

    def _searches(self, radius: float, device: torch.device) -> tuple[Screen, Search, Tensor]:
        """The screen of this version, the search, and the row addresses (N,) of their rows."""
        if self._made is None or self._made[0] != (radius, device):
            self._made = None  # one at a time: they are large
            screen, address = load(self.set, radius, device)
            search = screen if self.search == "screen" else self._faiss(screen)
            self._made = (radius, device), screen, search, address
        return self._made[1:]

    def _faiss(self, screen: Screen) -> FaissIndex:
        def blocks() -> Iterator[np.ndarray]:
            return (latents for part in self.set.parts() for _, latents in self.set.read(part))

        return FaissIndex(
            blocks, screen.radius.cpu(), self.set.dim, screen.fetch, self.search, self.nprobe
        )

    def __repr__(self) -> str:
        own = "" if self.radius is None else f", radius={self.radius}"
        return f"Shields.protected({str(self.set.path)!r}{own})"


class _Ids(Sequence[Hashable]):
    """Ids of rows, read from disk when a certificate asks for one."""

    def __init__(self, store: ProtectedSet, address: Tensor):
        self.store, self.address = store, address

    def __len__(self) -> int:
        return len(self.address)

    def __getitem__(self, index: Any) -> Any:
        return self.store.labels(np.atleast_1d(self.address[index].numpy()))[0].id


def load(
    store: ProtectedSet,
    radius: float,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    parts: Sequence[Part] | None = None,
) -> tuple[Screen, Tensor]:
    """The screen of a set at its version, and the row address (N,) of each of its rows.

    Or of some of its `parts` alone. Sketches are kept beside the set, part by part: what was added
    since is sketched now, what was removed is left out.
    """
    basis, name = basis_of(store)
    covered = store.parts() if parts is None else parts
    made = [_sketched(store, part, basis, name, dtype) for part in covered]
    width = basis.width
    core = torch.cat([torch.zeros((0, width), dtype=dtype), *(m["core"] for m in made)])
    none = torch.zeros(0, dtype=torch.float64)
    lost = torch.cat([none, *(m["lost"] for m in made)])
    own = torch.cat([none, *(m["radius"] for m in made)])
    address = torch.cat([none.long(), *(m["address"] for m in made)])
    r = torch.where(own.isnan(), radius, own)

    def fetch(rows: Tensor) -> Tensor:
        return torch.from_numpy(np.array(store.take(address[rows].numpy().astype(np.uint64))))

    on = Basis(basis.mean.to(device), basis.axes.to(device))
    return Screen(on, core.to(device), lost.to(device), r.to(device), fetch), address


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
