# SPDX-License-Identifier: Apache-2.0
"""The certified sketches of a set: lower bounds of all distances, by one product."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from shielded.distances import TINY
from shielded.shields.search.product import Digits, Floats, Halves, Widened, multiplied

__all__ = ["Sketch", "up"]

FEW = 4096  # rows that are worth float32
PAGE = 512  # rows that are put into it at once, to square them
MOST = 3e38  # what is further than float32 can tell is no nearer


class Sketch:
    """Sketches of N references, and lower bounds of their distances to any query.

    `core` (N, m + 1) is kept in float32 or bfloat16, or as integers with `unit` (N,) and `steps`
    (m + 1,), by (4) in product.py. `lost` (N,) is what rounding moved each by: a bound on the
    sketches that are kept, less what was lost on either side, is a bound on the points. One matrix
    product v gives all of them: if it is off by at most e |a_x| |a_z|, then

        |a_x - a_z|^2 >= (1 - e) (|a_x|^2 + |a_z|^2) - 2 v                                  (2)
    """

    def __init__(
        self,
        core: Tensor,
        lost: Tensor,
        square: Tensor | None = None,
        unit: Tensor | None = None,
        steps: Tensor | None = None,
    ):
        self.core, self.lost, self.unit, self.steps = core, up(lost), unit, steps
        self.square = self._squares() if square is None else square  # (N,) float32

    def __len__(self) -> int:
        return len(self.core)

    def pick(self, row: Tensor) -> Sketch:
        """The sketches of some rows (U,); of few in float32, for a sharper product."""
        core, lost = self.core.index_select(0, row), self.lost.index_select(0, row)
        square = self.square.index_select(0, row)
        unit = None if self.unit is None else self.unit.index_select(0, row)
        if len(row) > FEW:
            return Sketch(core, lost, square, unit, self.steps)
        core = self._floats(core)
        return Sketch(core if unit is None else core.mul_(unit[:, None]), lost, square)

    def bounds(self, a: Tensor, blur: float) -> Tensor:
        """(B, N) float32: what the distances of queries a (B, m + 1) to all are at least.

        `blur` is what the sketches a are off by.
        """
        times, below, lost, share = self._query(a, blur)
        off = below.new_tensor(lost)
        found = torch.empty((len(a), len(self)), dtype=torch.float32, device=a.device)
        for part, v in self._sums(times, below):
            d2 = v.add_(self.square[part], alpha=share)
            d = d2.nan_to_num_(nan=0.0).clamp_(0, MOST).sqrt_()
            torch.sub(d, self.lost[part], out=found[:, part]).sub_(off[:, None])
        return found

    def margins(self, a: Tensor, blur: float, wide: Tensor) -> Tensor:
        """(N,) float32: how far the nearest query must move, at least, to be within each `wide`.

        `wide` (N,) float32 is each radius with what was `lost`. NaN where float32 overflowed.
        """
        times, below, lost, share = self._query(a, blur)
        found, most = below.new_empty(len(self)), min(max(lost), MOST)
        for part, v in self._sums(times, below):
            d2 = torch.amin(v, 0, out=found[part]).add_(self.square[part], alpha=share)
            d2.clamp_(0, MOST).sqrt_().sub_(wide[part]).sub_(most)
        return found

    def within(self, a: Tensor, blur: float, limit: Tensor) -> Tensor:
        """Places (V,) of all that may be within limit (B,) float64 of the query it is for.

        |a_x - a_z|^2 <= t^2 where t is the limit and all that was lost, at most: by (2) that needs
        xx - t^2 - 2 v <= -zz, of which the left side needs only its smallest.
        """
        times, below, lost, share = self._query(a, blur)
        most = float(self.lost.max()) if len(self) else 0.0
        far = (limit + limit.new_tensor(lost) + most) * (1 + 1e-6)
        found = []
        for part, v in self._sums(times, -up(far * far - below)):
            gap = v.amin(0).add_(self.square[part], alpha=share)
            # What overflowed tells nothing.
            out = (gap > 0) & (gap < torch.inf)
            found.append((~out).nonzero()[:, 0] + part.start)
        return torch.cat(found)

    def _query(self, a: Tensor, blur: float) -> tuple[Floats, Tensor, list[float], float]:
        """What multiplies, the part of a_x in (2), what was lost of each, and 1 - e.

        Of B numbers in Python, and as float32 no smaller: that rounds by half of 2^-23.
        """
        times = self._times(a)
        sums = (a.shape[1] + 20) * 2.0**-24  # roundings of float32 on the way to a margin
        share = 1 - 2 * (sums + times.off)  # e twice
        below = [min(square * share - 2 * TINY, MOST) for square in times.square]
        lost = [(moved + blur) * (1 + 2.0**-23) for moved in times.moved]
        return times, torch.tensor(below, dtype=torch.float32, device=a.device), lost, share

    def _times(self, a: Tensor) -> Floats:
        """The queries, as these sketches are multiplied."""
        if self.core.dtype == torch.float32:
            return Floats(a)
        if self.core.device.type != "cpu" or not multiplied(self.core.dtype):
            return Widened(a, self.steps)
        return Halves(a) if self.steps is None else Digits(a, self.steps)

    def _sums(self, times: Floats, start: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """start (B,) - 2 v (B, n), for pieces of all rows; each is overwritten by the next."""
        start = start[:, None]
        for first in range(0, len(self), times.rows):
            part = slice(first, first + times.rows)
            v = times(self.core[part])
            if self.unit is None:
                yield part, v.add_(start)
            else:
                yield part, torch.addcmul(start, v, self.unit[part], out=v)

    def _floats(self, core: Tensor) -> Tensor:
        """Sketches in float32, but for their units."""
        wide = core.to(torch.float32)  # of integers it is a copy
        return wide if self.steps is None else wide.mul_(self.steps.to(torch.float32))

    def _squares(self) -> Tensor:
        found = torch.empty(len(self), dtype=torch.float32, device=self.core.device)
        # Into one tensor: small ones that stay would keep the memory of the large between them.
        for into, part in zip(found.split(PAGE), self.core.split(PAGE), strict=True):
            torch.sum(self._floats(part).square(), 1, out=into)
        return found if self.unit is None else found.mul_(self.unit).mul_(self.unit)


def up(x: Tensor) -> Tensor:
    """float64 as float32, never smaller."""
    if x.dtype == torch.float32:
        return x
    y = x.to(torch.float32)
    return torch.nextafter(y, y.new_full((), torch.inf))
