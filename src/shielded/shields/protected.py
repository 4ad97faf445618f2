# SPDX-License-Identifier: Apache-2.0
"""The images of a protected set on disk, as shields."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from shielded.errors import BadInput, ShapeMismatch
from shielded.shields.field import References
from shielded.shields.search.faiss_index import KINDS, FaissIndex, Search
from shielded.shields.search.hits import Hits
from shielded.shields.search.kept import load
from shielded.shields.search.screen import Screen
from shielded.shields.store import ProtectedSet

if TYPE_CHECKING:
    from shielded.shields.search.ray_screen import RayScreen
    from shielded.spaces.space import Space


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
            from shielded.shields.search.ray_screen import RayScreen

            self._shards = RayScreen(self.set, shards)

    def check(self, pipe: Any, space: Space | None = None) -> None:
        """Raise ShapeMismatch if the set was made by another encoder, size, packing or space."""
        from shielded.spaces import fingerprint, mismatch

        if not self.set.fingerprint:
            return  # made from latents by someone who knows: their shape is still checked
        size = self.set.fingerprint.get("size") or (None, None)
        other = mismatch(self.set.fingerprint, fingerprint(pipe, *size, space=space))
        if other is not None:
            raise ShapeMismatch(
                f"the protected set at {self.set.path} does not fit this pipeline: {other}. Build "
                "a set with this model: shielded protect build."
            )

    def refresh(self) -> None:
        """Go to the newest version of the set."""
        if self.set.refresh():
            self._made = None

    def references(self, x: Tensor, groups: Sequence[Hashable], radius: float) -> References:
        """Those within their radius of any x, measured exactly."""
        return self._near(x, radius)

    def others(
        self, x: Tensor, groups: Sequence[Hashable], radius: float, known: References
    ) -> References:
        """The same, but for those that are known, where one process searches."""
        return self._near(x, radius, known.row)

    def closest(self, x: Tensor, groups: Sequence[Hashable], radius: float) -> References:
        """For each x the one with the smallest distance / radius, by the screen."""
        if self._shards is not None:
            return self._shields(x, self._shards.closest(x, radius))
        screen, _, address = self._searches(radius, x.device)
        return self._shields(x, Hits.of(screen.closest(x), screen, address).closest(x))

    @property
    def scans(self) -> float:
        """How many sketches the screen has read, in units of all that there are."""
        return 0.0 if self._made is None else self._made[1].scans

    def _near(self, x: Tensor, radius: float, but: Tensor | None = None) -> References:
        if self._shards is not None:
            return self._shields(x, self._shards.near(x, radius), measured=True)
        screen, search, address = self._searches(radius, x.device)
        return self._shields(x, Hits.of(search.near(x, but=but), screen, address), measured=True)

    def _shields(self, x: Tensor, hits: Hits, measured: bool = False) -> References:
        everyone = torch.ones((len(x), len(hits.z)), dtype=torch.bool, device=x.device)
        ids = _Ids(self.set, hits.address)
        return References(
            hits.z,
            everyone,
            ids,
            whole=False,
            r=hits.r,
            rough=hits.rough,
            measured=measured,
            row=hits.row,
        )

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
            return (latents for _, latents in self.set.blocks())

        radius = screen.radius.cpu()
        return FaissIndex(blocks, radius, self.set.dim, self.search, self.nprobe)

    def __repr__(self) -> str:
        own = "" if self.radius is None else f", radius={self.radius}"
        return f"Shields.protected({str(self.set.path)!r}{own})"


class _Ids(Sequence[Hashable]):
    """Ids of rows, read from disk, all at once, when a certificate asks for one."""

    def __init__(self, store: ProtectedSet, address: Tensor):
        self.store, self.address = store, address

    @cached_property
    def read(self) -> list[str]:
        """All of them."""
        return [label.id for label in self.store.labels(self.address.numpy())]

    def __len__(self) -> int:
        return len(self.address)

    def __getitem__(self, index: Any) -> Any:
        return self.read[index]
