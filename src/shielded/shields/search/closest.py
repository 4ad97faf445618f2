# SPDX-License-Identifier: Apache-2.0
"""The closest of all references, in units of their radii: what a certificate names.

A best-first search. The sketches say how far each reference is at least. The few that seem closest
are measured, and what the best of them has rules out most others; finer sketches rule out more,
again those that seem closest first; what is left is measured in the order of its bounds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, inf

from shielded.distances import Rough, rough_squares, squared_distances
from shielded.shields.search.finer import Finer, Query
from shielded.shields.search.lists import List, Lists
from shielded.shields.search.memory import Memory

__all__ = ["Closest"]

PAIRS = 1 << 23  # bounds that are held at once
EACH, FIRST, MOST = 4, 256, 4096  # references that are measured at once: of each query; of all
MANY = 512  # so many left to measure are worth finer sketches
SOON = 1 << 12  # of those left, whose finer sketches are read before the others'
LONG = 1 << 14  # a list of so many is shortened first
SOME = 1 << 12  # references of a list, of which a few say how near the nearest is at most
CLOSE = 1e-9  # shares that differ by less are equal, for float64


class Closest:
    """Finds the references (N) with the smallest share = distance / radius, equals too."""

    def __init__(self, lists: Lists, memory: Memory, radius: Tensor, finer: Finer | None):
        self._lists, self._memory, self._finer = lists, memory, finer
        self._radius = radius
        self._widest = float(radius.max()) if len(radius) else 0.0

    def __call__(self, x: Tensor, a: Tensor, blur: float) -> Tensor:
        """Their rows, for each of x (B, D), whose sketches a (B, m + 1) are off by blur.

        What a list leaves out has a share of 1 + (way to it) / radius at least: it holds the first
        of all if some reference is known to have no larger one. Longer lists need not be read.
        """
        blurred = 2 * blur
        lists = [
            (near, left - blurred)
            for near, left in self._lists.valid(a, blurred)
            if left == inf or (self._widest and len(near.row))
        ]
        best = self._guess(lists[0][0], x, a, blur)
        enough = self._widest * (float(best.max()) - 1)
        near = next(near for near, left in lists if left == inf or left >= enough)
        if len(near.row) > LONG and self._widest:
            few = self._lists.within(near, a, blur, best.to(torch.float64) * self._widest)
            if len(few) < len(near.row) // 2:
                near = near.pick(few, a, 0.0)
        rows, size = [], max(1, PAIRS // len(near.row))
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            rows.append(self._best(near, x[part], a[part], blur, best[part]))
        return torch.cat(rows)

    def _guess(self, near: List, x: Tensor, a: Tensor, blur: float) -> Tensor:
        """(B,) float32: a share that is not below the smallest of all, from a few of a list."""
        if len(near.row) > SOME:
            some = torch.arange(0, len(near.row), -(-len(near.row) // SOME), device=a.device)
            near = near.pick(some, a, 0.0)
        radius = self._radius.index_select(0, near.row).to(torch.float32)
        share = _share(self._lists.bounds(near, a, blur), radius)
        few = share.topk(min(EACH, len(near.row)), largest=False).indices.unique()
        _, high = measured(Rough.of(x), self._memory.points(near.row.index_select(0, few).long()))
        return _share(high, radius.index_select(0, few)).amin(1)

    def _best(self, near: List, x: Tensor, a: Tensor, blur: float, best: Tensor) -> Tensor:
        """The rows of a list with the smallest share, of which best (B,) is no smaller."""
        row, radius = near.row.long(), self._radius.index_select(0, near.row).to(torch.float32)
        share = _share(self._lists.bounds(near, a, blur), radius)
        race = _Race(Rough.of(x), self._memory, row, radius, share, best.clone())
        race.measure(race.leaders())
        left, ratio = race.left()
        if self._finer is not None and len(left) > MANY:
            query = self._finer.query(x)
            soon = left[ratio.topk(min(SOON, len(left)), largest=False).indices].sort().values
            race.sharpen(soon, self._finer, query)
            race.measure(soon[race.leaders(soon)])
            race.sharpen(race.left(but=soon)[0], self._finer, query)
            left, ratio = race.left()
        left, count = left[ratio.argsort()], FIRST
        while len(left):
            race.measure(left[:count])
            left, count = left[count:], min(2 * count, MOST)
        return self._exactly(x, row[race.winners()])

    def _exactly(self, x: Tensor, row: Tensor) -> Tensor:
        """Those of the rows (M,) that have the smallest share from some x (B, D), by float64."""
        d = squared_distances(x, self._memory.points(row).points.to(torch.float64)).sqrt()
        share = _share(d, self._radius[row])
        return row[(share <= share.amin(1, keepdim=True) * (1 + CLOSE)).any(0)]


@dataclass
class _Race:
    """Rows (U,) of a list with their radii; what their shares (B, U) are at least, for queries.

    best (B,) is a share that some reference has, at most: it falls while the others rise.
    """

    x: Rough  # the queries
    memory: Memory
    row: Tensor
    radius: Tensor
    share: Tensor
    best: Tensor
    measured: Tensor = field(init=False)  # (U,) bool

    def __post_init__(self) -> None:
        self.measured = torch.zeros(len(self.row), dtype=torch.bool, device=self.row.device)

    def leaders(self, among: Tensor | None = None) -> Tensor:
        """Places of those that seem closest to each query, EACH of all or `among` some (V,)."""
        share = self.share if among is None else self.share.index_select(1, among)
        return share.topk(min(EACH, share.shape[1]), largest=False).indices.unique()

    def left(self, but: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Places (V,), ascending, of all that may still be the best; their shares against it (V,).

        Those that were measured are left out, and `but` some.
        """
        ratio = (self.share / self.best[:, None]).amin(0)
        ratio[self.measured] = inf
        if but is not None:
            ratio[but] = inf
        few = (~(ratio > 1)).nonzero()[:, 0]  # NaN is not sure
        return few, ratio[few]

    def measure(self, few: Tensor) -> None:
        """Measure those at places few (V,) that may still be the best."""
        few = few[(~(self.share.index_select(1, few) > self.best[:, None])).any(0)]
        if not len(few):
            return
        low, high = measured(self.x, self.memory.points(self.row.index_select(0, few)))
        radius = self.radius.index_select(0, few)
        self.share.index_copy_(1, few, _share(low, radius))
        torch.minimum(self.best, _share(high, radius).amin(1), out=self.best)
        self.measured.index_fill_(0, few, True)

    def sharpen(self, some: Tensor, finer: Finer, query: Query) -> None:
        """Read the finer sketches of those at places some (V,), ascending."""
        if len(some):
            bounds = finer.bounds(query, self.row.index_select(0, some))
            share = _share(bounds, self.radius.index_select(0, some))
            share = torch.maximum(self.share.index_select(1, some), share)
            self.share.index_copy_(1, some, share)

    def winners(self) -> Tensor:
        """Places of those measured that may be the best of some query, ascending."""
        few = self.measured.nonzero()[:, 0]
        return few[(self.share.index_select(1, few) <= self.best[:, None]).any(0)]


def measured(x: Rough, z: Rough) -> tuple[Tensor, Tensor]:
    """(B, M) float32: what distances from x to z (M, D) are at least and at most."""
    d2, off = rough_squares(x, z)
    low = (d2 - off).clamp_(min=0).sqrt_().mul_(1 - 1e-6).nan_to_num_(nan=0.0)
    return low, (d2 + off).sqrt_().mul_(1 + 1e-6).nan_to_num_(inf, inf)


def _share(distance: Tensor, radius: Tensor) -> Tensor:
    """distance / radius; a radius of 0 shields nothing and comes after all others."""
    if bool((radius > 0).all()):
        return distance / radius
    last = 1e30 * (2 - 1 / (1 + distance.clamp(min=0)))  # no rounding may change their order
    return torch.where(radius > 0, distance / radius, last.to(distance.dtype))
