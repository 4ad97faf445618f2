# SPDX-License-Identifier: Apache-2.0
"""The screen: exact search in a set that is not in memory, cheap along a sampling trajectory.

Three sieves, none of which can lose a reference: the sketch of all rows (sketch.py) leaves a few
candidates; a list of them stays valid while no query has moved further than a skin, as the
neighbour lists of molecular dynamics do (Verlet, 1967); and what the list leaves is fetched and
measured in float64.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vector_norm

from shielded.repel import squared_distances
from shielded.shields.sketch import Basis, Sketch

__all__ = ["Found", "Screen"]

LONG = 2048  # candidates that a list may hold before its skin is made thinner
PAIRS = 1 << 20  # pairs of one scan beyond which it is made again without any skin
HOT = 1 << 26  # bytes of points kept in memory after they were fetched
STEPS = 4.0  # how many steps a skin lasts at the present speed


@dataclass(frozen=True, slots=True)
class Found:
    """Rows (M,) of the set that were found, and their points z (M, D) in float64."""

    row: Tensor
    z: Tensor


@dataclass(frozen=True, slots=True)
class List:
    """Candidates of queries that were at x, good while they stay within `spare` (B,) of it."""

    x: Tensor
    spare: Tensor
    row: Tensor  # (U,)
    core: Tensor  # (U, m + 1) float64
    wide: Tensor  # (U,) float64

    @property
    def slack(self) -> float:
        """What float64 may lose in a squared distance of two sketches."""
        return 1e-13 * float(self.core.square().sum(1).amax()) if len(self.core) else 0.0


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
        self.sketch = Sketch(core, radius + lost)
        self._list: List | None = None
        self._last: Tensor | None = None
        self._steps = STEPS
        self._hot: OrderedDict[int, Tensor] = OrderedDict()
        self.scans = 0  # how often all sketches were read

    def near(self, x: Tensor, reach: float = 0.0) -> Found:
        """All references within radius + reach of any x (B, D), float64."""
        a = self.basis(x)
        blur = self.basis.blur(a)
        listed = self._listed(x, a, blur, reach)
        bound = (squared_distances(a, listed.core) - listed.slack).clamp(min=0).sqrt()
        maybe = bound - blur[:, None] <= listed.wide + reach
        row = listed.row[maybe.any(0)]
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
        a = self.basis(x)
        bound = _share(self.sketch.bounds(a, self.basis.blur(a), self.lost), self.radius)
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

    def _listed(self, x: Tensor, a: Tensor, blur: Tensor, reach: float) -> List:
        """The list of candidates, made anew where a query has left its skin."""
        old = self._list
        if old is not None and old.x.shape == x.shape:
            moved = vector_norm(x - old.x, dim=1)
            if bool((moved + reach <= old.spare).all()):
                return old
        skin = self._skin(x)
        row = self._scan(a, blur, reach + skin, PAIRS)
        if row is None:
            skin = torch.zeros_like(skin)
            row = self._scan(a, blur, reach + skin, None)
        assert row is not None
        if len(row) > LONG:
            self._steps = max(self._steps / 2, 0.25)
        elif len(row) < LONG / 4:
            self._steps = min(self._steps * 1.5, 64.0)
        core = self.sketch.core[row].to(torch.float64)
        # The skin is a hair thinner than what was scanned: `moved` is a floating-point number.
        spare = (reach + skin) * (1 - 1e-9)
        self._list = List(x, spare, row, core, self.sketch.wide[row].to(torch.float64))
        return self._list

    def _skin(self, x: Tensor) -> Tensor:
        """(B,) how far each query may go before the next scan, from how far it went last."""
        if self._last is None or self._last.shape != x.shape:
            self._speed = torch.zeros_like(x[:, 0])
        elif not torch.equal(x, self._last):
            self._speed = vector_norm(x - self._last, dim=1)
        self._last = x
        widest = float(self.radius.max()) if len(self.radius) else 0.0
        return (self._steps * self._speed).clamp(max=widest)

    def _scan(self, a: Tensor, blur: Tensor, reach: Tensor, most: int | None) -> Tensor | None:
        """All rows whose bound is within reach of any query; None if there are too many."""
        self.scans += 1
        rows, pairs = [torch.zeros(0, dtype=torch.long, device=a.device)], 0
        for _, row in self.sketch.within(a, reach + blur):
            rows.append(row.unique())
            pairs += len(row)
            if most is not None and pairs > most:
                return None
        return torch.cat(rows).unique()

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
