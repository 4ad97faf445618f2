# SPDX-License-Identifier: Apache-2.0
"""The screen: exact search in a set that is not in memory, cheap along a sampling trajectory.

Sieves, none of which can lose a reference. The sketch (sketch.py) says how far each is at least,
and lists of the nearest (lists.py) say which sketches need not be read. What was measured before
(memory.py) says which of those left need not be measured again; the rest are, in float32 with
bounds, and in float64 where these do not tell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, inf

from shielded.distances import Rough, rough_squares, squared_distances
from shielded.shields.search.basis import Basis
from shielded.shields.search.finer import Finer
from shielded.shields.search.lists import List, Lists
from shielded.shields.search.memory import Asked, Memory
from shielded.shields.search.sketch import Sketch, up
from shielded.shields.search.tracks import furthest

__all__ = ["Found", "Screen"]

PAIRS = 1 << 23  # bounds that are held at once
EACH, FIRST, MOST = 4, 256, 4096  # references that are measured at once: of each query; of all
MANY = 512  # so many left to measure are worth a look at what is known, and finer sketches
LONG = 1 << 14  # a list of so many is shortened first
SOME = 1 << 12  # references of a list, of which a few say how near the nearest is at most
CLOSE = 1e-9  # shares that differ by less are equal, for float64


@dataclass(frozen=True, slots=True)
class Found:
    """Rows (M,) of the set that were found, and their points z (M, D) in float64."""

    row: Tensor
    z: Tensor


class Screen:
    """Finds the references (N) near given points, and forgets none.

    `fetch(rows)` returns the points (n, D) of the rows asked for, `radius` (N,) float64 is each
    reference's own. Where the sketches leave many to measure, `finer` ones are asked. `announce`
    is told of rows that may be fetched next, so that a disk reads them while images are made.
    """

    def __init__(
        self,
        basis: Basis,
        sketch: Sketch,
        radius: Tensor,
        fetch: Callable[[Tensor], Tensor],
        finer: Finer | None = None,
        announce: Callable[[Tensor], None] | None = None,
    ):
        self.basis, self.sketch, self.radius = basis, sketch, radius
        self.fetch, self.finer = fetch, finer
        self._widest = float(radius.max()) if len(radius) else 0.0
        self._lists = Lists(sketch, up(radius + sketch.lost))
        self._memory = Memory(fetch, len(sketch), basis.mean, basis.width, announce)

    @property
    def scans(self) -> float:
        """How many sketches were read, in units of all that there are."""
        return self._lists.read / max(len(self.radius), 1)

    def near(self, x: Tensor, reach: float = 0.0) -> Found:
        """All references within radius + reach of any x (B, D), float64."""
        a, blur = self.basis.query(x)
        row, soon = self._lists.near(a, blur, reach)
        found = self._measured(x, a, row, reach)
        self._memory.expect(soon)  # after what is needed now
        return found

    def closest(self, x: Tensor) -> Found:
        """For each x (B, D) the reference with the smallest distance / radius, and maybe others."""
        if not len(self.radius):
            return Found(x.new_zeros(0, dtype=torch.long), x[:0])
        row = self._first(x).unique()
        return Found(row, self._memory.points(row).to(torch.float64))

    def _measured(self, x: Tensor, a: Tensor, row: Tensor, reach: float) -> Found:
        """Those of the rows (M,) that are within radius + reach of any x (B, D) with sketches a."""
        asked = self._memory.ask(x, a) if len(row) > MANY else None
        if asked is not None:
            row = self._fewer(asked, row, reach)
        if not len(row):
            return Found(row, x[:0])
        z = self._memory.points(row)
        d2, off = rough_squares(Rough.of(x), Rough.of(z))
        limit = (self.radius[row] + reach).square()
        low = d2 - off
        hit, maybe = (d2.add_(off) <= limit).any(0), (~(low > limit)).any(0).nonzero()[:, 0]
        if asked is not None:
            self._memory.learn(asked, row, low.sqrt_().mul_(1 - 1e-6).nan_to_num_(nan=0.0))
        row, z, hit = row[maybe], z[maybe].to(torch.float64), hit[maybe]
        if not bool(hit.all()):
            hit[~hit] = self._inside(x, row[~hit], z[~hit], reach)
            row, z = row[hit], z[hit]
        return Found(row, z)

    def _fewer(self, asked: Asked, row: Tensor, reach: float) -> Tensor:
        """Those rows that neither what is known rules out nor, of many to fetch, finer sketches."""
        wide = up(self.radius[row] + reach)
        left = (~(self._memory.least(asked, row) > wide)).any(0).nonzero()[:, 0]
        row, wide = row[left], wide[left]
        maybe = self._memory.here(row)
        away = (~maybe).nonzero()[:, 0]
        if self.finer is None or len(away) <= MANY:
            return row
        maybe[away] = (~(self.finer.bounds(asked.x, row[away]) > wide[away])).any(0)
        return row[maybe]

    def _inside(self, x: Tensor, row: Tensor, z: Tensor, reach: float) -> Tensor:
        """Which references (M,) are within radius + reach of any x, by float64."""
        outside = squared_distances(x, z).sqrt() * (1 - 1e-9) - self.radius[row]
        # A product in float64 is off by less than 1e-13 of the squares, so its root by 4e-7.
        return outside.amin(0) - 1e-6 * (2 * furthest(x) + self._widest + reach) <= reach

    def _first(self, x: Tensor) -> Tensor:
        """The rows with the smallest share = distance / radius from each x (B, D), equals too.

        What a list leaves out has a share of 1 + (way to it) / radius at least: it holds the first
        of all if some reference is known to have no larger one. Longer lists need not be read.
        """
        a, blur = self.basis.query(x)
        asked, blurred = self._memory.ask(x, a), 2 * blur
        lists = [
            (near, left - blurred)
            for near, left in self._lists.valid(a, blurred)
            if left == inf or (self._widest and len(near.row))
        ]
        best = self._guess(lists[0][0], asked, blur)
        enough = self._widest * (float(best.max()) - 1)
        near = next(near for near, left in lists if left == inf or left >= enough)
        if len(near.row) > LONG and self._widest:
            few = self._lists.within(near, a, blur, best.to(torch.float64) * self._widest)
            if len(few) < len(near.row) // 2:
                near = near.pick(few, a, 0.0)
        rows, size = [], max(1, PAIRS // len(near.row))
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            rows.append(self._best(near, asked[part], blur, best[part]))
        return torch.cat(rows)

    def _guess(self, near: List, asked: Asked, blur: float) -> Tensor:
        """(B,) float32: a share that is not below the smallest of all, from a few of a list."""
        if len(near.row) > SOME:
            some = torch.arange(0, len(near.row), -(-len(near.row) // SOME), device=asked.a.device)
            near = near.pick(some, asked.a, 0.0)
        radius = self.radius[near.row.long()].to(torch.float32)
        share = _share(self._lists.bounds(near, asked.a, blur), radius)
        few = share.topk(min(EACH, len(near.row)), largest=False).indices.unique()
        _, high = self._memory.measure(asked, near.row[few].long())
        return _share(high, radius[few]).amin(1)

    def _best(self, near: List, asked: Asked, blur: float, best: Tensor) -> Tensor:
        """The rows of a list with the smallest share, of which best (B,) is no smaller.

        References are measured in the order of their bounds, until no bound is below the best.
        """
        row, radius = near.row, self.radius[near.row.long()].to(torch.float32)
        share = _share(self._lists.bounds(near, asked.a, blur), radius)
        known = self._memory.here(row).nonzero()[:, 0]
        least = _share(self._memory.least(asked, row[known]), radius[known])
        share[:, known] = torch.maximum(share[:, known], least)
        best = best.clone()
        few = share.topk(min(EACH, len(row)), largest=False).indices.unique()
        few = few[(share[:, few] <= best[:, None]).any(0)]
        if len(few):
            self._measure(asked, row, radius, few, share, best)
        left = (share / best[:, None]).amin(0)
        left[few] = inf
        todo = (~(left > 1)).nonzero()[:, 0]
        if self.finer is not None and len(todo) > MANY:
            finer = _share(self.finer.bounds(asked.x, row[todo].long()), radius[todo])
            share[:, todo] = finer = torch.maximum(share[:, todo], finer)
            left[todo] = (finer / best[:, None]).amin(0)
            todo = todo[~(left[todo] > 1)]
        todo, done, count = todo[left[todo].argsort()], [few], FIRST
        while len(todo):
            few, todo, count = todo[:count], todo[count:], min(2 * count, MOST)
            few = few[(share[:, few] <= best[:, None]).any(0)]
            if len(few):
                self._measure(asked, row, radius, few, share, best)
                done.append(few)
        few = torch.cat(done)
        few = few[(share[:, few] <= best[:, None]).any(0)].sort().values
        return self._exactly(asked.x, row[few].long())

    def _measure(
        self, asked: Asked, row: Tensor, radius: Tensor, few: Tensor, share: Tensor, best: Tensor
    ) -> None:
        """Measure those at places `few` (V,) of a list: their shares rise, the best (B,) fall."""
        low, high = self._memory.measure(asked, row[few].long())
        share[:, few] = _share(low, radius[few])
        torch.minimum(best, _share(high, radius[few]).amin(1), out=best)

    def _exactly(self, x: Tensor, row: Tensor) -> Tensor:
        """Those of the rows (M,) that have the smallest share from some x (B, D), by float64."""
        d = squared_distances(x, self._memory.points(row).to(torch.float64)).sqrt()
        share = _share(d, self.radius[row])
        return row[(share <= share.amin(1, keepdim=True) * (1 + CLOSE)).any(0)]


def _share(distance: Tensor, radius: Tensor) -> Tensor:
    """distance / radius; a radius of 0 shields nothing and comes after all others."""
    if bool((radius > 0).all()):
        return distance / radius
    last = 1e30 * (2 - 1 / (1 + distance.clamp(min=0)))  # no rounding may change their order
    return torch.where(radius > 0, distance / radius, last.to(distance.dtype))
