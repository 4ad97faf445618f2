# SPDX-License-Identifier: Apache-2.0
"""The screen: exact search in a set that is not in memory, cheap along a sampling trajectory.

Three sieves, none of which can lose a reference: the sketch (sketch.py) says how far each is at
least; the nearest by that count make a list, which stays valid until some query has moved as far
as the first that was left out (a skin, as the neighbour lists of molecular dynamics have: Verlet,
1967); and what the list leaves is fetched and measured in float64.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vector_norm

from shielded.repel import squared_distances
from shielded.shields.sketch import Basis, Sketch, up

__all__ = ["Found", "Screen"]

SHORT, LONG = 256, 16384  # candidates that a list may hold, the shields that are entered aside
LASTS = (3, 12)  # calls: a list that lasts for fewer is made longer, for more shorter
FEW = 16  # candidates that are measured at once
HOT = 1 << 26  # bytes of points kept in memory after they were fetched


@dataclass(frozen=True, slots=True)
class Found:
    """Rows (M,) of the set that were found, and their points z (M, D) in float64."""

    row: Tensor
    z: Tensor


@dataclass(slots=True)
class List:
    """Candidates for queries that were at x (B, D): all there are, until one has moved by `spare`.

    Ordered by `margin` (U,), how far a query has to move at least to enter each shield. core
    (U, m + 1) are their sketches about `middle`, square (U,) the squared norms, wide (U,) radii
    with what was lost; float64.
    """

    x: Tensor
    spare: float
    row: Tensor
    margin: Tensor
    middle: Tensor
    core: Tensor
    square: Tensor
    wide: Tensor
    calls: int = 0

    def maybe(self, count: int, a: Tensor, blur: Tensor, reach: float) -> Tensor:
        """Those of the first rows whose bound does not rule them out for queries' sketches a."""
        a, first = a - self.middle, slice(count)
        norms = a.square().sum(1)[:, None] + self.square[first]
        d2 = norms - 2 * (a @ self.core[first].T)
        bound = (d2 - 1e-13 * norms).clamp(min=0).sqrt() * (1 - 1e-9)
        return self.row[first][(bound - blur[:, None] <= self.wide[first] + reach).any(0)]


class Screen:
    """Finds the references (N) near given points, and forgets none.

    `fetch(rows)` returns the points (n, D) of the rows asked for. `lost` (N,) bounds what rounding
    and float64 moved the sketches `core` by, `radius` (N,) float64 is each reference's own.
    """

    def __init__(
        self,
        basis: Basis,
        core: Tensor,
        lost: Tensor,
        radius: Tensor,
        fetch: Callable[[Tensor], Tensor],
    ):
        self.basis, self.radius, self.lost, self.fetch = basis, radius, lost, fetch
        self.sketch = Sketch(core, lost)
        self._list: List | None = None
        self._length = SHORT
        self._hot: OrderedDict[int, Tensor] = OrderedDict()
        self.scans = 0  # how often all sketches were read

    def near(self, x: Tensor, reach: float = 0.0) -> Found:
        """All references within radius + reach of any x (B, D), float64."""
        listed, moved = self._listed(x, reach)
        far = x.new_full((1,), (moved + reach) * (1 + 1e-9), dtype=torch.float32)
        count = int(torch.searchsorted(listed.margin, up(far), right=True))
        if count <= FEW:  # looking at them costs no more than their sketches
            row = listed.row[:count]
        else:
            row = listed.maybe(count, *self.basis.query(x), reach)
        z = self._points(row)
        limit = (self.radius[row] + reach) * (1 + 1e-9)
        inside = (squared_distances(x, z).sqrt() <= limit).any(0)
        return Found(row[inside], z[inside])

    def closest(self, x: Tensor) -> Found:
        """For each x (B, D) the reference with the smallest distance / radius, and maybe others.

        References are measured in the order of their bounds, until the next bound is further than
        the best that was found.
        """
        if not len(self.radius):
            return Found(x.new_zeros(0, dtype=torch.long), x[:0])
        bound = _share(self.sketch.bounds(*self.basis.query(x)), self.radius)
        row = torch.stack([self._best(x[b : b + 1], bound[b]) for b in range(len(x))])
        row = row.unique()
        return Found(row, self._points(row))

    def _best(self, x: Tensor, share: Tensor) -> Tensor:
        """The row with the smallest share from x (1, D), given lower bounds of them (N,)."""
        best, at, done, count = torch.inf, share.argmin(), 0, 32
        while done < len(share):
            count = min(count, len(share))
            bound, order = share.topk(count, largest=False)
            row = order[done:][bound[done:] <= best]
            if not len(row):
                break
            d = squared_distances(x, self._points(row))[0].sqrt()
            measured = _share(d, self.radius[row])
            if float(measured.min()) < best:
                best, at = float(measured.min()), row[measured.argmin()]
            if len(row) < count - done:
                break  # the next bound is further than the best
            done, count = count, 4 * count
        return at

    def _listed(self, x: Tensor, reach: float) -> tuple[List, float]:
        """The list of candidates, made anew where a query has left its skin, and the movement."""
        old = self._list
        if old is not None and old.x.shape == x.shape:
            moved = float(vector_norm(x - old.x, dim=1).max())
            if (moved + reach) * (1 + 1e-9) < old.spare:
                old.calls += 1
                return old, moved
            if old.calls < LASTS[0]:
                self._length = min(2 * self._length, LONG)
            elif old.calls > LASTS[1]:
                self._length = max(self._length // 2, SHORT)
        self.scans += 1
        margin = self.sketch.margins(*self.basis.query(x), self.radius)
        margin, row, spare = self._nearest(margin, reach)
        core = self.sketch.core[row].to(torch.float64)
        middle = core.mean(0) if len(row) else core.new_zeros(core.shape[1])
        core = core - middle
        wide = (self.radius + self.lost)[row]
        self._list = List(x, spare, row, margin, middle, core, core.square().sum(1), wide)
        return self._list, 0.0

    def _nearest(self, margin: Tensor, reach: float) -> tuple[Tensor, Tensor, float]:
        """The smallest margins, ascending, all within reach among them; their rows; the next."""
        if self._length >= len(margin):
            return *margin.sort(), torch.inf
        value, row = margin.topk(self._length + 1, largest=False)
        if float(value[-1]) > reach:
            return value[:-1], row[:-1], float(value[-1])
        near = (margin <= reach).nonzero()[:, 0]  # crowded: no skin, good for x alone
        value, order = margin[near].sort()
        return value, near[order], reach

    def _points(self, row: Tensor) -> Tensor:
        """The points (M, D) of rows, float64: from memory where they were used lately."""
        width = len(self.basis.mean)
        keys = row.tolist()
        if not keys:
            return torch.zeros((0, width), dtype=torch.float64, device=row.device)
        missing = [key for key in keys if key not in self._hot]
        if missing:
            fresh = self.fetch(torch.tensor(missing))
            self._hot.update((key, z.clone()) for key, z in zip(missing, fresh, strict=True))
        z = torch.stack([self._hot[key] for key in keys])
        for key in keys:
            self._hot.move_to_end(key)
        while len(self._hot) * z[0].nbytes > HOT:
            self._hot.popitem(last=False)
        return z.to(row.device, torch.float64)


def _share(distance: Tensor, radius: Tensor) -> Tensor:
    """distance / radius; a radius of 0 shields nothing and comes after all others."""
    last = 1e30 * (1 + distance.clamp(min=0) / (1 + distance.clamp(min=0)))
    return torch.where(radius > 0, distance / radius, last.to(distance.dtype))
