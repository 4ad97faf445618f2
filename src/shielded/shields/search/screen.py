# SPDX-License-Identifier: Apache-2.0
"""The screen: exact search in a set that is not in memory, cheap along a sampling trajectory.

Sieves, none of which can lose a reference. The sketch (sketch.py) says how far each is at least,
and lists of the nearest (lists.py) say which sketches need not be read. Where many are left, what
is known from calls before (gaps.py) says which of them need not be measured, and finer sketches
(finer.py) which of those that would have to be fetched. The rest are measured, in float32 with
bounds, and in float64 where these do not tell. Where images were moved to, a little aside, is
searched in what the images themselves were told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, inf

from shielded.distances import Rough, rough_squares, squared_distances
from shielded.shields.search.basis import Basis
from shielded.shields.search.closest import Closest
from shielded.shields.search.finer import Finer
from shielded.shields.search.gaps import Gaps
from shielded.shields.search.lists import Lists
from shielded.shields.search.memory import Memory
from shielded.shields.search.sketch import Sketch, up
from shielded.shields.search.tracks import furthest, ways

__all__ = ["Found", "Screen"]

KNOWN = 128  # so many left to measure are worth a look at what is known
ASIDE = 64  # so many around the last queries are worth sketches of those beside them
MANY = 512  # and so many finer sketches, if they would be fetched
LARGE = 2048  # or else so many
NUMBERS = 1 << 22  # of points that are measured at once: larger memory is never used again


@dataclass(frozen=True, slots=True)
class _Last:
    """The last queries x (B, D), rows (M,) within radius + reach, and whether gaps are known."""

    x: Tensor
    row: Tensor
    reach: float
    known: bool


@dataclass(frozen=True, slots=True)
class Found:
    """Rows (M,) of the set that were found, ascending, and their points, which float32 holds."""

    row: Tensor
    rough: Rough

    @property
    def z(self) -> Tensor:
        """(M, D) float32."""
        return self.rough.points


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
        self.queries, self.sketch, self.radius = basis.queries(), sketch, radius
        self.fetch, self.finer = fetch, finer
        self._widest = float(radius.max()) if len(radius) else 0.0
        self._lists = Lists(sketch, up(radius + sketch.lost))
        self._memory = Memory(fetch, len(sketch), basis.mean, announce)
        self._gaps = Gaps(len(sketch), basis.mean)
        self._last: _Last | None = None
        self._closest = Closest(self._lists, self._memory, radius, finer)

    @property
    def scans(self) -> float:
        """How many sketches were read, in units of all that there are."""
        return self._lists.read / max(len(self.radius), 1)

    @torch.inference_mode()  # small operations, of which there are many, start a tenth sooner
    def near(self, x: Tensor, reach: float = 0.0, but: Tensor | None = None) -> Found:
        """All references within radius + reach of any x (B, D), float64.

        But for some rows (K,), ascending, that are known. Who names them asks about queries that
        lie aside from the last ones: what those were told spares these most of the search.
        """
        if but is not None:
            return self._aside(x, reach, but)
        self._last = None  # until this call has ended
        row, soon = self._lists.near(*self.queries(x), reach, foresee=not self._memory.whole)
        known = len(row) > KNOWN
        if known:
            self._gaps.come(x)
        found = self._measured(x, row, reach, known)
        if len(found.row):  # who finds nothing is moved nowhere
            self._last = _Last(x.clone(), found.row, reach, known)
        if soon is not None:
            self._memory.expect(soon)  # after what is needed now
        return found

    def _aside(self, x: Tensor, reach: float, but: Tensor) -> Found:
        """`near`, of queries x (B, D) that lie aside from the last ones."""
        last, way = self._last, inf
        if last is not None and last.x.shape == x.shape:
            far = ways(x - last.x)
            way = max(far, default=0.0)
            if reach <= last.reach and torch.equal(but, last.row):  # who stayed is near no others
                x = x[[b for b, length in enumerate(far) if not length <= 0]]
        if not len(x):
            return Found(but[:0], self._memory.points(but[:0]))
        told = self._lists.around(reach + way)
        row = self._lists.aside(*self.queries(x), reach) if told is None else told
        row = _without(row, but)
        if told is not None and len(row) > ASIDE:
            row = self._lists.among(row, *self.queries(x), reach)
        known = last is not None and last.known and len(row) > KNOWN
        return self._measured(x, row, reach, known, way)

    @torch.inference_mode()
    def closest(self, x: Tensor) -> Found:
        """For each x (B, D) the reference with the smallest distance / radius, and maybe others."""
        if not len(self.radius):
            return Found(x.new_zeros(0, dtype=torch.long), Rough.of(x[:0]))
        row = self._closest(x, *self.queries(x)).unique()
        return Found(row, self._memory.points(row))

    def _measured(
        self, x: Tensor, row: Tensor, reach: float, known: bool, way: float | None = None
    ) -> Found:
        """Those of the rows (M,) that are within radius + reach of any x (B, D).

        x are the last queries, or some of them moved by `way` at most: of these nothing is learned.
        `known` is whether something is known of the last.
        """
        if known:
            row = row[~(self._gaps.of(row) > (reach + (way or 0.0)) * (1 + 1e-6))]
        learn = known and way is None
        row = self._sharper(x, row, reach, learn)
        if not len(row):
            return Found(row, self._memory.points(row))
        size, rough = max(1, NUMBERS // x.shape[1]), Rough.of(x)
        hits = [self._hits(x, rough, some, reach, learn) for some in row.split(size)]
        if len(hits) == 1:
            return hits[0]
        parts = zip(*(found.rough for found in hits), strict=True)
        return Found(torch.cat([found.row for found in hits]), Rough(*map(torch.cat, parts)))

    def _hits(self, x: Tensor, rough: Rough, row: Tensor, reach: float, learn: bool) -> Found:
        """Those of the rows (M,) that are within radius + reach of any x (B, D)."""
        z = self._memory.points(row)
        d2, off = rough_squares(rough, z)
        low = (d2 - off).amin(0)
        if learn:
            self._gaps.learn(row, self._gap(row, low.clamp(min=0).sqrt_()))
        limit = (self.radius.index_select(0, row) + reach).square()
        few = (~(low > limit)).nonzero()[:, 0]
        if len(few):
            high = d2.index_select(1, few).add_(off.index_select(1, few))
            hit = (high <= limit.index_select(0, few)).any(0)
            unsure = (~hit).nonzero()[:, 0]
            if len(unsure):
                some = few[unsure]
                exact = z.points.index_select(0, some).to(torch.float64)
                hit[unsure] = self._inside(x, row[some], exact, reach)
            few = few[hit]
        return Found(row.index_select(0, few), z.pick(few))

    def _sharper(self, x: Tensor, row: Tensor, reach: float, learn: bool) -> Tensor:
        """Those of rows (M,) that finer sketches do not rule out, where these pay."""
        if self.finer is None or len(row) <= MANY:
            return row
        maybe = self._memory.here(row) & (len(row) <= LARGE)
        away = (~maybe).nonzero()[:, 0]
        if len(away) <= MANY:
            return row
        some = row[away]
        gap = self._gap(some, self.finer.bounds(self.finer.query(x), some).amin(0))
        if learn:
            self._gaps.learn(some, gap)
        maybe[away] = ~(gap > reach * (1 + 1e-6))  # NaN is not sure
        return row[maybe]

    def _gap(self, row: Tensor, least: Tensor) -> Tensor:
        """(M,) float32: how far outside the shields of rows is who is `least` (M,) from them."""
        r = up(self.radius.index_select(0, row))
        return least.mul_(1 - 1e-6) - r  # for all that float32 rounds

    def _inside(self, x: Tensor, row: Tensor, z: Tensor, reach: float) -> Tensor:
        """Which references (M,) are within radius + reach of any x, by float64."""
        outside = squared_distances(x, z).sqrt() * (1 - 1e-9) - self.radius[row]
        # A product in float64 is off by less than 1e-13 of the squares, so its root by 4e-7.
        return outside.amin(0) - 1e-6 * (2 * furthest(x) + self._widest + reach) <= reach


def _without(row: Tensor, but: Tensor) -> Tensor:
    """Rows (M,) that are not among others (K,), which ascend."""
    if not len(but):
        return row
    at = torch.searchsorted(but.contiguous(), row).clamp_(max=len(but) - 1)
    return row[but[at] != row]
