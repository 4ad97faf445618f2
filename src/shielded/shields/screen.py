# SPDX-License-Identifier: Apache-2.0
"""The screen: exact search in a set that is not in memory, cheap along a sampling trajectory.

Sieves, none of which can lose a reference. The sketch (sketch.py) says how far each is at least.
The nearest by that count make a list, which stays valid until some query has moved as far as the
first that was left out (a skin, as the neighbour lists of molecular dynamics have: Verlet, 1967);
the list has a shorter list of its own, and so on. What the last one leaves is fetched and measured
in float64, and not again before some query can have come near it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, inf
from torch.linalg import vector_norm

from shielded.repel import squared_distances
from shielded.shields.sketch import Basis, Sketch, up

__all__ = ["Found", "Screen"]

SHORTER = 8  # times, than the list before it
AHEAD = 0.5  # of a list's skin, that it is made further on: queries go on as they went
STEPS = 20  # and no more calls further on than these
FEW = 16  # candidates that are measured beyond those that have to be
PAIRS = 1 << 23  # bounds that are held at once
HOT = 1 << 26  # bytes of points kept in memory after they were fetched


@dataclass(frozen=True, slots=True)
class Found:
    """Rows (M,) of the set that were found, and their points z (M, D) in float64."""

    row: Tensor
    z: Tensor


@dataclass(frozen=True, slots=True)
class List:
    """Rows (U,) of the set, their sketches, their radii with losses: all there are, but for those
    that were at least `spare` outside their shields for queries of sketches `at` (B, m + 1).
    """

    row: Tensor
    sketch: Sketch
    wide: Tensor
    at: Tensor
    spare: float

    def left(self, a: Tensor) -> float:
        """How much further queries that are at a (B, m + 1) may go, at least."""
        return self.spare - way(self.at, a) if self.spare < inf else inf

    def pick(self, few: Tensor, at: Tensor, spare: float) -> List:
        """A shorter list, of the rows at places `few` (V,) in this one."""
        return List(self.row[few], self.sketch.pick(few), self.wide[few], at, spare)


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
        self.basis, self.radius, self.fetch = basis, radius, fetch
        self.sketch = Sketch(core, lost)
        self._widest = float(radius.max()) if len(radius) else 0.0
        every = torch.arange(len(core), dtype=torch.int32, device=core.device)
        nowhere = radius.new_zeros(0)
        self._lists = [List(every, self.sketch, up(radius + lost), nowhere, inf)]  # ever shorter
        self._skin = 0.0  # of the last list that was taken from all
        self._last, self._move = nowhere, nowhere.reshape(0, 1)
        self._known = nowhere, every[:0].long(), nowhere  # queries, rows and their margins there
        self._sure = -inf  # how far queries may go before others than the known rows count
        self._hot: OrderedDict[int, Tensor] = OrderedDict()
        self._read = 0

    @property
    def scans(self) -> float:
        """How many sketches were read, in units of all that there are."""
        return self._read / max(len(self.radius), 1)

    def near(self, x: Tensor, reach: float = 0.0) -> Found:
        """All references within radius + reach of any x (B, D), float64."""
        self._sure -= way(self._known[0], x)
        row = self._known[1]
        if not self._sure > reach:
            row, self._sure = self._candidates(x, reach)
        margin = self._remembered(x, row)
        asked = (margin <= reach).nonzero()[:, 0]
        some = row[asked]
        z = self._points(some)
        outside = squared_distances(x, z).sqrt() * (1 - 1e-9) - self.radius[some]
        # A product in float64 is off by less than 1e-13 of the squares, so its root by 4e-7.
        loose = 1e-6 * (2 * furthest(x) + self._widest + reach)
        margin[asked] = outside.amin(0) - loose
        self._known = x, row, margin
        inside = margin[asked] <= reach
        return Found(some[inside], z[inside])

    def closest(self, x: Tensor) -> Found:
        """For each x (B, D) the reference with the smallest distance / radius, and maybe others."""
        if not len(self.radius):
            return Found(x.new_zeros(0, dtype=torch.long), x[:0])
        row = self._first(x).unique()
        return Found(row, self._points(row))

    def _candidates(self, x: Tensor, reach: float) -> tuple[Tensor, float]:
        """Rows (M,), ascending, of the shortest list that holds, without those shown to be far.

        And how far queries may go, at least, before others count. From the margins that this
        takes, shorter lists are made, as long as one may last.
        """
        a, blur = self.basis.query(x)
        blurred = 2 * float(blur.max())
        on, least = self._follow(a, reach + blurred)
        while not self._lists[-1].left(a) > reach + blurred:
            self._lists.pop()
        near = self._lists[-1]
        if len(self._lists) == 1 and on is not None:
            few, spare = self._few(near, self._margins(near, on, blur), inf)
            if spare > way(on, a) + least:
                near = self._shorten(near.pick(few, on, spare))
        margin = self._margins(near, a, blur)
        left = near.left(a) - blurred
        while len(margin) > SHORTER * FEW:
            few, spare = self._few(near, margin, left)
            if not spare > least:
                break
            near, margin, left = self._shorten(near.pick(few, a, spare)), margin[few], spare
        count = int((~(margin > reach)).sum()) + FEW
        sure = min(left, float(margin.kthvalue(count).values)) if count < len(margin) else left
        sure = sure if sure > least else reach
        return near.row[~(margin > sure)].long(), sure

    def _margins(self, near: List, a: Tensor, blur: Tensor) -> Tensor:
        self._read += len(near.row)
        return near.sketch.margins(a, blur, near.wide)

    def _few(self, near: List, margin: Tensor, left: float) -> tuple[Tensor, float]:
        """Places (V,) of the nearest in a list, and how far the first that they leave out is."""
        some = margin[:: max(1, len(margin) // 4096)]
        spare = min(left, float(some.kthvalue(max(1, len(some) // SHORTER)).values))
        few = (~(margin > spare)).nonzero()[:, 0]
        return few, spare if len(few) <= 2 * len(margin) / SHORTER else -inf

    def _shorten(self, near: List) -> List:
        if len(self._lists) == 1:
            self._skin = near.spare
        self._lists.append(near)
        return near

    def _follow(self, a: Tensor, reach: float) -> tuple[Tensor | None, float]:
        """Where queries are heading, if they do, and what a list must spare to last a call more.

        A jump, such as from one generation to the next, is made once and says nothing.
        """
        move = a - self._last if self._last.shape == a.shape else torch.full_like(a, inf)
        before, self._last, self._move = self._move, a, move
        least = reach + min(furthest(before), furthest(move))
        steady = before.shape == a.shape and bool((before * move).sum() > 0.5 * move.square().sum())
        if not self._skin or not steady:
            return None, least
        return a + min(AHEAD * self._skin / furthest(move), STEPS) * move, least

    def _remembered(self, x: Tensor, row: Tensor) -> Tensor:
        """What the margins of rows (M,) are at least, from when they were measured; else -inf."""
        before, known, margin = self._known
        if not len(known) or before.shape != x.shape:
            return x.new_full((len(row),), -inf)
        place = torch.searchsorted(known, row).clamp(max=len(known) - 1)
        return torch.where(known[place] == row, margin[place] - way(before, x), -inf)

    def _first(self, x: Tensor) -> Tensor:
        """For each x (B, D) the rows with the smallest share = distance / radius, equals too.

        What a list leaves out has a share of 1 + (way to it) / radius at least: a reference of a
        smaller share is the first of all, and longer lists need not be read.
        """
        a, blur = self.basis.query(x)
        rows, share = [self._known[1][:0]] * len(x), [inf] * len(x)
        todo, widest = list(range(len(x))), self._widest
        for near in reversed(self._lists):
            left = near.left(a) - 2 * float(blur.max())
            if left <= 0 or not len(near.row) or (left < inf and not widest):
                continue
            radius, size = self.radius[near.row.long()], max(1, PAIRS // len(near.row))
            for start in range(0, len(todo), size):
                part = todo[start : start + size]
                self._read += len(near.row)
                bound = _share(near.sketch.bounds(a[part], blur[part]), radius)
                for b, low in zip(part, bound, strict=True):
                    rows[b], share[b] = self._best(near, x[b : b + 1], low)
            todo = [b for b in todo if left < inf and share[b] > 1 + left / widest]
        return torch.cat(rows)

    def _best(self, near: List, x: Tensor, share: Tensor) -> tuple[Tensor, float]:
        """The rows of a list with the smallest share from x (1, D), given lower bounds (U,).

        References are measured in the order of their bounds, until the next bound is further than
        the best that was found.
        """
        best, at, done, count = inf, near.row[:0].long(), 0, 32
        while done < len(share):
            count = min(count, len(share))
            bound, order = share.topk(count, largest=False)
            few = order[done:][bound[done:] <= best]
            if not len(few):
                break
            row = near.row[few].long()
            d = squared_distances(x, self._points(row))[0].sqrt()
            measured = _share(d, self.radius[row])
            if float(measured.min()) < best:
                best, at = float(measured.min()), at[:0]
            at = torch.cat([at, row[measured == best]])
            if len(few) < count - done:
                break  # the next bound is further than the best
            done, count = count, 4 * count
        return at, best

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


def furthest(move: Tensor) -> float:
    """The length of the longest of moves (B, m + 1), a hair too large; 0 if there are none."""
    return float(vector_norm(move, dim=1).max()) * (1 + 1e-9) if len(move) else 0.0


def way(a: Tensor, b: Tensor) -> float:
    """How far the furthest of points (B, m + 1) has moved; infinitely if they are others."""
    return furthest(a - b) if a.shape == b.shape else inf
