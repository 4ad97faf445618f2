# SPDX-License-Identifier: Apache-2.0
"""The points that a search fetched last, or all, once many of a small set were asked for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from shielded.distances import Rough

__all__ = ["Memory", "small"]

SOME, HOT = 1 << 21, 1 << 26  # bytes of points: at first; at most
REGRET = 1 / 8  # of what is kept, that is asked for again once it was let go: more is kept then
WHOLE = 96 << 20  # bytes: a set of no more is read as a whole, and stays
MANY = 1 / 32  # of its points, that were asked for before: one generation or two
PAGE = 4096  # points that are squared at once
NEVER, LET_GO, TOLD = -1, -2, -3  # no place: not here yet; not any more; not yet, but announced
BESIDE = 12  # bytes beside a point: its row and its square
EXPECTED = 256  # points are announced at once: of more it is not known which


def small(count: int, size: int) -> bool:
    """Whether a set of so many points, of `size` bytes each, stays in memory once it is used."""
    return count * (size + BESIDE) <= WHOLE


class Memory:
    """The points of a set (N, D) that were fetched last; of a small one, in time, all."""

    def __init__(
        self,
        fetch: Callable[[Tensor], Tensor],
        count: int,
        like: Tensor,
        announce: Callable[[Tensor], None] | None = None,
    ):
        self.fetch, self._announce = fetch, announce
        self._place = torch.full((count,), NEVER, dtype=torch.int32, device=like.device)
        self._row = self._place[:0].long()  # whose point lies at each place, -1 for nobody's
        self._none = like.new_zeros((0, len(like)), dtype=torch.float32)
        self._z, self._square = self._none, self._none[:, 0]  # (P, D), and their squared norms
        self._new, self._again = 0, 0  # how many points came in; of these, how many once more
        self.whole = False  # whether all are here, in order

    def points(self, row: Tensor) -> Rough:
        """The points (M, D) of rows; those that are not here are fetched, as float32 holds them."""
        if not len(row):
            return Rough(self._none, self._none[:, 0])
        if self.whole:
            return self._at(row)
        place = self._place.index_select(0, row).long()
        missing = (place < 0).nonzero()[:, 0]
        if not len(missing):
            return self._at(place)
        if self._worth_all():
            self._read_all()
            return self._at(row)
        new = row.index_select(0, missing)
        fresh = self.fetch(new.cpu()).to(row.device)
        found = Rough.of(fresh)
        self._again += int((place == LET_GO).sum())
        self._make_room(fresh, len(row))
        self._keep(new, fresh, found.squares)
        if len(new) == len(row):
            return found
        place = self._place.index_select(0, row).long()
        if int(place.amin()) >= 0:
            return self._at(place)
        return Rough.of(self.fetch(row.cpu()).to(row.device))  # of these some had to go for others

    def _at(self, place: Tensor) -> Rough:
        """The points at places (M,)."""
        z = self._z.index_select(0, place).to(torch.float32)
        return Rough(z, self._square.index_select(0, place))

    def expect(self, row: Tensor) -> None:
        """Let those of rows (M,) that were never here be read: they may be asked for next."""
        if self._announce is None or self.whole or not len(row):
            return
        row = row[self._place.index_select(0, row) == NEVER]
        if 0 < len(row) <= EXPECTED:
            self._place.index_fill_(0, row, TOLD)
            self._announce(row.cpu())

    def here(self, row: Tensor) -> Tensor:
        """(M,) bool: which of the rows are in memory; the others would have to be fetched."""
        return self._place.index_select(0, row) >= 0

    def _worth_all(self) -> bool:
        """Whether so much of a set that is small enough was asked for that all of it should be."""
        count = len(self._place)
        return self._new > MANY * count and small(count, self._z[0].nbytes)

    def _read_all(self) -> None:
        device = self._place.device
        z = self.fetch(torch.arange(len(self._place))).to(device)
        self._square = torch.cat([Rough.of(some).squares for some in z.split(PAGE)])
        self._z, self._row = z, torch.arange(len(z), device=device)
        self._place, self.whole = self._row.int(), True

    def _keep(self, row: Tensor, z: Tensor, square: Tensor) -> None:
        """Put points where the oldest are."""
        room, start = len(self._row), 0
        row, z, square = row[-room:], z[-room:], square[-room:]
        while start < len(row):  # in one run or, from the end on to the beginning, in two
            first = self._new % room
            count = min(len(row) - start, room - first)
            here, some = slice(first, first + count), slice(start, start + count)
            old = self._row[here]
            self._place.index_fill_(0, old[old >= 0], LET_GO)
            place = torch.arange(first, first + count, dtype=torch.int32, device=row.device)
            self._place.index_copy_(0, row[some], place)
            self._row[here], self._z[here], self._square[here] = row[some], z[some], square[some]
            start, self._new = start + count, self._new + count

    def _make_room(self, like: Tensor, asked: int) -> None:
        """Room for all that one call asks for, and for more where it is needed; HOT at most."""
        room, size = len(self._row), like[0].nbytes + BESIDE
        wanted = room if room else SOME // size
        if self._again > REGRET * room:
            wanted = 2 * room
        count = min(max(wanted, asked, 1), max(HOT // size, 1), len(self._place))
        if count > room:
            self._grow(like, count)

    def _grow(self, like: Tensor, count: int) -> None:
        """Room for so many points; what is here stays."""
        used = min(self._new, len(self._row))
        at = torch.arange(self._new - used, self._new, device=like.device) % max(used, 1)
        row, z, square = self._row[at], self._z[:used], self._square[at]
        self._row = torch.full((count,), -1, dtype=torch.long, device=like.device)
        self._z = like.new_empty((count, like.shape[1]))
        self._square = self._square.new_zeros(count)
        if used:
            self._row[:used], self._z[:used], self._square[:used] = row, z[at], square
            self._place[row] = torch.arange(used, dtype=torch.int32, device=like.device)
        self._new, self._again = used, 0
