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

LONG = 16384  # candidates that a list may hold, beside all that are within reach
GATHER = 4  # what reading a row out of order costs, against one in order
FEW = 16  # candidates that are measured without a look at their sketches
HOT = 1 << 26  # bytes of points kept in memory after they were fetched


@dataclass(frozen=True, slots=True)
class Found:
    """Rows (M,) of the set that were found, and their points z (M, D) in float64."""

    row: Tensor
    z: Tensor


@dataclass(slots=True)
class List:
    """Candidates for queries that were at x (B, D): all there are, until one has moved by `spare`.

    row (U,) in the order of margin (U,): how far a query has to move, at least, to enter a shield.
    `read` counts what has been read from it.
    """

    x: Tensor
    spare: float
    row: Tensor
    margin: Tensor
    read: int = 0

    def within(self, way: float) -> Tensor:
        """The rows (M,) that queries can have entered which moved by at most `way`."""
        far = up(self.x.new_tensor([way * (1 + 1e-9)]))
        return self.row[: int(torch.searchsorted(self.margin, far, right=True))]


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
        self._hot: OrderedDict[int, Tensor] = OrderedDict()
        self.scans = 0  # how often all sketches were read

    def near(self, x: Tensor, reach: float = 0.0) -> Found:
        """All references within radius + reach of any x (B, D), float64."""
        row = self._candidates(x, reach)
        if len(row) > FEW:
            row = self._sifted(row, x, reach)
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

    def _candidates(self, x: Tensor, reach: float) -> Tensor:
        """Rows (M,) of the list, which is made anew where a query has left its skin.

        Or where reading it has cost as much as a new one would: so the cost is never more than
        twice that of the best times to scan, whatever way the queries go.
        """
        old = self._list
        if old is not None and old.x.shape == x.shape:
            way = float(vector_norm(x - old.x, dim=1).max()) + reach
            if way * (1 + 1e-9) < old.spare:
                row = old.within(way)
                old.read += GATHER * len(row)
                if old.read <= len(self.radius) or way == reach:
                    return row
        self.scans += 1
        margin = self.sketch.margins(*self.basis.query(x), self.radius)
        self._list = List(x, *self._nearest(margin, reach))
        return self._list.within(reach)

    def _nearest(self, margin: Tensor, reach: float) -> tuple[float, Tensor, Tensor]:
        """The first margin left out, and the rows and margins of the list, ascending."""
        if len(margin) <= LONG:
            value, row = margin.sort()
            return torch.inf, row, value
        value, row = margin.topk(LONG + 1, largest=False)
        if float(value[-1]) > reach:
            return float(value[-1]), row[:-1], value[:-1]
        near = (margin <= reach).nonzero()[:, 0]  # crowded: no skin, good for x alone
        value, order = margin[near].sort()
        return reach, near[order], value

    def _sifted(self, row: Tensor, x: Tensor, reach: float) -> Tensor:
        """Those of the rows (M,) that their bounds do not rule out for x (B, D)."""
        a, blur = self.basis.query(x)
        core = self.sketch.core[row].to(torch.float64)
        norms = a.square().sum(1)[:, None] + core.square().sum(1)
        bound = (norms - 2 * (a @ core.T) - 1e-13 * norms).clamp(min=0).sqrt() * (1 - 1e-9)
        wide = self.radius[row] + self.lost[row] + reach
        return row[(bound - blur[:, None] <= wide).any(0)]

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
