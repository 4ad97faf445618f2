# SPDX-License-Identifier: Apache-2.0
"""The screen: exact search in a set that is not in memory, cheap along a sampling trajectory.

Sieves, none of which can lose a reference. The sketch (sketch.py) says how far each is at least,
and lists of the nearest (lists.py) say which sketches need not be read. Where many are left, what
was measured before (known.py) says which of them need not be again; the rest are, in float32 with
bounds, and in float64 where these do not tell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from shielded.distances import Rough, rough_squares, squared_distances
from shielded.shields.search.basis import Basis
from shielded.shields.search.closest import Closest
from shielded.shields.search.finer import Finer
from shielded.shields.search.lists import Lists
from shielded.shields.search.memory import Memory
from shielded.shields.search.sketch import Sketch, up
from shielded.shields.search.tracks import furthest

__all__ = ["Found", "Screen"]

KNOWN = 128  # so many left to measure are worth a look at what is known
MANY = 512  # and so many finer sketches
NUMBERS = 1 << 22  # of points that are measured at once: larger memory is never used again


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
        self._memory = Memory(fetch, len(sketch), basis.mean, announce)
        self._closest = Closest(self._lists, self._memory, radius, finer)

    @property
    def scans(self) -> float:
        """How many sketches were read, in units of all that there are."""
        return self._lists.read / max(len(self.radius), 1)

    def near(self, x: Tensor, reach: float = 0.0) -> Found:
        """All references within radius + reach of any x (B, D), float64."""
        a, blur = self.basis.query(x)
        row, soon = self._lists.near(a, blur, reach)
        found = self._measured(x, row, reach)
        self._memory.expect(soon)  # after what is needed now
        return found

    def closest(self, x: Tensor) -> Found:
        """For each x (B, D) the reference with the smallest distance / radius, and maybe others."""
        if not len(self.radius):
            return Found(x.new_zeros(0, dtype=torch.long), x[:0])
        row = self._closest(x, *self.basis.query(x)).unique()
        return Found(row, self._memory.points(row).points.to(torch.float64))

    def _measured(self, x: Tensor, row: Tensor, reach: float) -> Found:
        """Those of the rows (M,) that are within radius + reach of any x (B, D)."""
        many, rough = len(row) > KNOWN, Rough.of(x)
        if many:
            unsure = ~(self._memory.gaps(rough, row) > reach * (1 + 1e-6))
            row = self._sharper(x, row[unsure], reach)
        if not len(row):
            return Found(row, x[:0])
        size = max(1, NUMBERS // x.shape[1])
        hits = [self._hits(x, rough, some, reach, many) for some in row.split(size)]
        if len(hits) == 1:
            row, points = hits[0]
            return Found(row, points.to(torch.float64))
        row = torch.cat([some for some, _ in hits])
        z = x.new_empty((len(row), x.shape[1]))
        for into, (_, points) in zip(z.split([len(some) for some, _ in hits]), hits, strict=True):
            into.copy_(points)
        return Found(row, z)

    def _hits(
        self, x: Tensor, rough: Rough, row: Tensor, reach: float, learn: bool
    ) -> tuple[Tensor, Tensor]:
        """Those of the rows (M,) that are within radius + reach of any x (B, D); their points."""
        z = self._memory.points(row)
        d2, off = rough_squares(rough, z)
        r = self.radius[row]
        limit = (r + reach).square()
        low = d2 - off
        hit, maybe = (d2.add_(off) <= limit).any(0), (~(low > limit)).any(0)
        if learn:
            self._memory.learn(row, low.amin(0).clamp_(min=0).sqrt_().mul_(1 - 1e-6) - up(r))
        unsure = (maybe != hit).nonzero()[:, 0]
        if len(unsure):
            hit[unsure] = self._inside(x, row[unsure], z.points[unsure].to(torch.float64), reach)
        found = hit.nonzero()[:, 0]
        return row[found], z.points[found]

    def _sharper(self, x: Tensor, row: Tensor, reach: float) -> Tensor:
        """Those of rows (M,) that finer sketches do not rule out, where many would be fetched."""
        if self.finer is None or len(row) <= MANY:
            return row
        maybe = self._memory.here(row)
        away = (~maybe).nonzero()[:, 0]
        if len(away) <= MANY:
            return row
        wide = up(self.radius[row[away]] + reach)
        bounds = self.finer.bounds(self.finer.query(x), row[away])
        maybe[away] = (~(bounds > wide)).any(0)
        return row[maybe]

    def _inside(self, x: Tensor, row: Tensor, z: Tensor, reach: float) -> Tensor:
        """Which references (M,) are within radius + reach of any x, by float64."""
        outside = squared_distances(x, z).sqrt() * (1 - 1e-9) - self.radius[row]
        # A product in float64 is off by less than 1e-13 of the squares, so its root by 4e-7.
        return outside.amin(0) - 1e-6 * (2 * furthest(x) + self._widest + reach) <= reach
