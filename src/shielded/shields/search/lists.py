# SPDX-License-Identifier: Apache-2.0
"""Lists of the nearest by their sketches, and shorter lists of those: fewer sketches are read.

A list stays valid until some query has moved as far as the first reference that was left out: it
has a skin, as the neighbour lists of molecular dynamics (Verlet, 1967).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, inf

from shielded.shields.search.sketch import Sketch
from shielded.shields.search.tracks import Tracks, furthest

__all__ = ["List", "Lists"]

SHARES = (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64)  # of a list, that the next may have
USUAL = 1 / 16  # the share that one made further on is reckoned with
SAMPLE = 1024  # margins that tell how many others there are
WORTH = 0.8  # of the cost of a list, that it must be cheaper to make another
TAKE = 2.0  # times as long as reading sketches: to put them into another list
AHEAD = 0.7  # of a list's skin, that it is made further on: queries go on as they went
STEPS = 20  # and no more calls further on than these
SHORTEST = 4096  # lists of so few are not shortened
SOON = 0.2  # of the way to the next call: what is no further outside is mostly near by then
TRACKS = 2  # lists of each length: images, and where they were moved to, if asked for like these


@dataclass(slots=True)
class List:
    """Rows (U,) of the set, their sketches, their radii with losses: all there are, but for those
    that were at least `spare` outside their shields for queries of sketches `at` (B, m + 1).

    `told` are the margins (U,) that were read last, and the queries whose they are.
    """

    row: Tensor
    sketch: Sketch
    wide: Tensor
    at: Tensor
    spare: float
    depth: int = 0
    told: tuple[Tensor, Tensor] | None = None

    def left(self, a: Tensor) -> float:
        """How much further queries that are at a (B, m + 1) may go, at least."""
        if self.spare == inf or not len(a):
            return self.spare
        if len(a) == len(self.at):  # mostly they are the same ones
            return self.spare - furthest(a - self.at)
        way = torch.cdist(a, self.at, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
        return self.spare - float(way.max()) * (1 + 1e-9)

    def rows(self, some: Tensor) -> Tensor:
        """Rows (M,) of the set that `some` (U,) bool names."""
        return self.row.index_select(0, some.nonzero()[:, 0]).long()

    def pick(self, few: Tensor, at: Tensor, spare: float) -> List:
        """A shorter list, of the rows at places `few` (V,) in this one."""
        some = self.sketch.pick(few)
        row, wide = self.row.index_select(0, few), self.wide.index_select(0, few)
        return List(row, some, wide, at, spare, self.depth + 1)


class Lists:
    """Finds references (N) that may be near queries, reading as few sketches as it can."""

    def __init__(self, sketch: Sketch, wide: Tensor):
        every = torch.arange(len(sketch), dtype=torch.int32, device=wide.device)
        self._lists = [List(every, sketch, wide, wide.new_zeros(0), inf)]  # ever shorter
        self._tracks = Tracks()
        self._last: tuple[List, Tensor, Tensor, float] | None = None  # read, margins, queries, blur
        self._skin = 0.0  # of the last list that was made from all
        self.read = 0

    def valid(self, a: Tensor, need: float) -> Iterator[tuple[List, float]]:
        """The lists that hold all that queries a (B, m + 1) ask for, the shortest first.

        And how much further each lets queries go than `need`, which is at least 0.
        """
        for near in reversed(self._lists):
            left = near.left(a)
            if left > need:
                yield near, left

    def _shortest(self, a: Tensor, need: float) -> List:
        return next(self.valid(a, need), (self._lists[0], inf))[0]

    def near(
        self, a: Tensor, blur: float, reach: float, foresee: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Rows (M,), ascending, of all references within radius + reach, and of a few others.

        And rows (L,) of those that may well be so at the next call, if these are asked for. Where
        this would take many margins, shorter lists are made from those of calls before, as far as
        they pay.
        """
        self._last, need = None, reach + 2 * blur  # what is let go needs no memory
        near = self._shortest(a, need)
        if len(near.row) > SHORTEST:
            near, margin = self._shorten(near, a, blur, need)
        else:
            margin = self._margins(near, a, blur)
        self._last = near, margin, a, blur
        soon = SOON * self._tracks.add(a)
        if not foresee:
            return near.rows(~(margin > reach)), None
        few = (~(margin > reach + soon)).nonzero()[:, 0]
        row, out = near.row.index_select(0, few).long(), margin.index_select(0, few) > reach
        return row[~out], row[out]

    def around(self, way: float) -> Tensor | None:
        """Rows (M,), ascending, of all whose shields are no further than `way` from a last query.

        And of others, by what these were told; None where their list does not hold all.
        """
        if self._last is None:
            return None
        near, margin, a, blur = self._last
        if not near.left(a) > way + 2 * blur:
            return None
        return near.rows(~(margin > way))

    def aside(self, a: Tensor, blur: float, reach: float) -> Tensor:
        """Rows (M,) as `near` has them; but nothing is told of queries that lie aside."""
        near = self._shortest(a, reach + 2 * blur)
        return near.rows(~(self._read(near, a, blur) > reach))

    def among(self, row: Tensor, a: Tensor, blur: float, reach: float) -> Tensor:
        """Those of rows (M,) that may be within radius + reach of queries a (B, m + 1)."""
        some = self._lists[0].pick(row, a, 0.0)
        return row[~(self._read(some, a, blur) > reach)]

    def _shorten(self, near: List, a: Tensor, blur: float, need: float) -> tuple[List, Tensor]:
        """The shortest list that pays to be made of one, and the margins of all that are on it."""
        move, before = self._tracks.moves(a)
        pace = min(furthest(move), furthest(before))
        steps = min(AHEAD * self._skin / max(pace, 1e-300), STEPS)
        ahead = not near.depth and steps > 1 and _steady(move, before)
        near = self._shorter(near, a, need, pace, worth=_ahead(steps) if ahead else WORTH)
        if ahead and not near.depth:
            self._margins(near, a + steps * move, blur)
            near = self._shorter(near, a, need, pace, more=2 * steps)  # there, and as far beyond
        return near, self._margins(near, a, blur)

    def _shorter(
        self,
        near: List,
        a: Tensor,
        need: float,
        pace: float,
        more: float = 0.0,
        worth: float = WORTH,
    ) -> List:
        """A list of the nearest for queries a (B, m + 1), by the margins that one was told last.

        As many as make calls cheapest: a short list is read fast and soon made again. It serves
        this call, `more`, and those until queries that keep their pace are too far. The same list
        where none costs less than `worth`.
        """
        if near.told is None or len(near.told[1]) != len(a):
            return near
        margin, at = near.told
        left, least = near.left(at), need + furthest(a - at)
        if left <= least:
            return near
        some = margin[:: max(1, len(margin) // SAMPLE)].sort().values
        shares = [share for share in SHARES if near.depth or share <= SHARES[2]]
        next_out = some[[int(share * len(some)) for share in shares]].tolist()
        best, spare, most = worth, -inf, 0.0
        for share, out in zip(shares, next_out, strict=True):
            skin = min(out, left)
            if skin > least:
                calls = 1 + more + (skin - least) / max(pace, 1e-300)
                cost = (1 + TAKE * share + calls * share) / (1 + calls)
                if cost < best:
                    best, spare, most = cost, skin, 2 * share * len(margin)
        if spare == -inf:
            if not near.depth:  # the longest list would not have had a thicker one
                self._skin = min(self._skin, next_out[0])
            return near
        few = (~(margin > spare)).nonzero()[:, 0]
        return near if len(few) > most else self._add(near, few, at, spare)

    def bounds(self, near: List, a: Tensor, blur: float) -> Tensor:
        """(B, U) float32: what distances to all of a list are at least."""
        self.read += len(near.row)
        return near.sketch.bounds(a, blur)

    def within(self, near: List, a: Tensor, blur: float, limit: Tensor) -> Tensor:
        """Places (V,) in a list of all that may be within its own limit (B,) of some query."""
        self.read += len(near.row)
        return near.sketch.within(a, blur, limit)

    def _read(self, near: List, a: Tensor, blur: float) -> Tensor:
        """The margins (U,) of a list."""
        self.read += len(near.row)
        return near.sketch.margins(a, blur, near.wide)

    def _margins(self, near: List, a: Tensor, blur: float) -> Tensor:
        """The same, which a list may be made of later."""
        margin = self._read(near, a, blur)
        if len(margin) > SHORTEST:
            near.told = margin, a
        return margin

    def _add(self, near: List, few: Tensor, at: Tensor, spare: float) -> List:
        """Keep a shorter list, as List.pick makes it; the oldest as short goes, before it comes."""
        depth = near.depth + 1
        same = [k for k, other in enumerate(self._lists) if other.depth == depth]
        if len(same) == TRACKS:
            del self._lists[same[0]]
        near = near.pick(few, at, spare)
        self._lists.insert(sum(other.depth <= depth for other in self._lists), near)
        if depth == 1:
            self._skin = spare
        return near


def _ahead(steps: float) -> float:
    """What a call may cost where a list can be made so many calls further on."""
    calls = 1 + 2 * steps
    return min((1 + (TAKE + calls) * USUAL) / calls, WORTH)


def _steady(move: Tensor, before: Tensor) -> bool:
    """Whether queries go on as they went; a jump, as to another generation, says nothing."""
    return bool((before * move).sum() > 0.5 * move.square().sum())
