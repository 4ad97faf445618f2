# SPDX-License-Identifier: Apache-2.0
"""The screen of a set on actors of Ray: each holds some of its parts, and their hits join.

A question carries the version that it is about. So an actor that Ray had to start again, and one
that last searched another version, load what they need before they answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shielded import cluster
from shielded.distances import Rough
from shielded.errors import BadInput, Lost
from shielded.shields.search.hits import Hits
from shielded.shields.search.kept import basis_of, load
from shielded.shields.search.screen import Screen
from shielded.shields.store import Part, ProtectedSet

__all__ = ["RayScreen", "divided"]

Answer = tuple[np.ndarray, np.ndarray, np.ndarray]  # addresses, points as stored, radii
TRIES = 2  # of a question whose actor died: what it asks may be what kills it


class RayScreen:
    """Searches a set at the version it has, with at most `shards` processes, wherever they are.

    None of it is in this process: neither sketches nor latents. Every machine of the cluster must
    have the set under the same path. Whatever the shards, the hits are those of one screen.
    """

    def __init__(self, store: ProtectedSet, shards: int):
        if shards < 1:
            raise BadInput(f"shards is {shards}: search with one at least.")
        cluster.engine()
        self.store, self.shards = store, shards
        self._actors: list[Any] = []
        self._ready: tuple[int, int] | None = None  # a version, and how many shards it needs

    def near(self, x: Tensor, radius: float) -> Hits:
        """All images within their radius of any x (B, D); `radius` is for those without."""
        return self._join(x, self._ask("near", x, radius))

    def closest(self, x: Tensor, radius: float) -> Hits:
        """For each x (B, D) the image with the smallest distance / radius, the first of equals."""
        return self._join(x, self._ask("closest", x, radius)).closest(x)

    def _ask(self, method: str, x: Tensor, radius: float) -> list[Answer]:
        """What each shard answers; no shard for an empty set."""
        piles = self._piles(radius)
        if not piles:
            return []
        ray = cluster.started()
        try:
            with cluster.answered("a shard of the search in the protected set"):
                while len(self._actors) < piles:
                    self._actors.append(self._actor(ray, len(self._actors)))
                del self._actors[piles:]
                about = self.store.version, piles, ray.put(x.cpu().numpy())
                return ray.get([getattr(a, method).remote(*about, radius) for a in self._actors])
        except Lost:
            self._actors.clear()  # what is asked next starts anew
            raise

    def _piles(self, radius: float) -> int:
        """How many shards this version of the set needs; it is made ready for them."""
        if self._ready is None or self._ready[0] != self.store.version:
            piles = min(self.shards, len(self.store.parts()))
            if piles:
                basis_of(self.store, radius)  # once, beside the set, not by every shard
            self._ready = self.store.version, piles
        return self._ready[1]

    def _actor(self, ray: Any, number: int) -> Any:
        kind = ray.remote(Shard).options(
            max_restarts=-1, max_task_retries=TRIES, scheduling_strategy="SPREAD"
        )
        return kind.remote(str(Path(self.store.path).resolve()), number)

    def _join(self, x: Tensor, answers: Sequence[Answer]) -> Hits:
        """The hits of all shards as those of one."""
        none = (np.zeros(0, np.int64), np.zeros((0, self.store.dim), self.store.dtype), np.zeros(0))
        address, z, r = (
            torch.from_numpy(np.concatenate(column)) for column in zip(none, *answers, strict=True)
        )
        address, order = address.sort()
        return Hits(address, Rough.of(z[order].to(x.device)), r[order].to(x.device))


class Shard:
    """One pile of the parts of a set, searched in a process of its own."""

    def __init__(self, path: str, number: int):
        self.path, self.number = path, number
        self._made: tuple[Any, Screen, Tensor, str] | None = None

    def near(self, version: int, piles: int, x: np.ndarray, radius: float) -> Answer:
        """See RayScreen.near; of pile `number` of `piles`."""
        screen, address, dtype = self._screen(version, piles, radius)
        return _answer(Hits.of(screen.near(_tensor(x)), screen, address), dtype)

    def closest(self, version: int, piles: int, x: np.ndarray, radius: float) -> Answer:
        """See RayScreen.closest; of pile `number` of `piles`."""
        screen, address, dtype = self._screen(version, piles, radius)
        return _answer(Hits.of(screen.closest(_tensor(x)), screen, address), dtype)

    def _screen(self, *want: Any) -> tuple[Screen, Tensor, str]:
        """The screen of the pile, its rows' addresses, the dtype of its points."""
        if self._made is None or self._made[0] != want:
            self._made = None  # one at a time: they are large
            version, piles, radius = want
            store = ProtectedSet.open(self.path, version)
            pile = divided(store.parts(), piles)[self.number]
            self._made = want, *load(store, radius, parts=pile), store.dtype
        return self._made[1:]


def divided(parts: Sequence[Part], piles: int) -> list[list[Part]]:
    """Parts on at most so many piles, none empty, with about as many images on each."""
    found: list[list[Part]] = [[] for _ in range(min(piles, len(parts)))]
    for part in sorted(parts, key=lambda part: -len(part.rows)):
        min(found, key=lambda pile: sum(len(other.rows) for other in pile)).append(part)
    return found


def _tensor(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(x))  # a copy: what Ray shares may not be written


def _answer(hits: Hits, dtype: str) -> Answer:
    """Hits to send: points that came from the set are exact in the dtype that it stores."""
    return hits.address.numpy(), hits.z.numpy().astype(dtype), hits.r.numpy()
