# SPDX-License-Identifier: Apache-2.0
"""The points that a search fetched last."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from shielded.distances import Rough

__all__ = ["Memory"]

SOME, HOT = 1 << 22, 1 << 26  # bytes of points: at first; at most
REGRET = 1 / 8  # of what is kept, that is asked for again once it was let go: more is kept then
NEVER, LET_GO, TOLD = -1, -2, -3  # no place: not here yet; not any more; not yet, but announced
BESIDE = 12  # bytes beside a point: its row and its square
EXPECTED = 256  # points are announced at once: of more it is not known which


class Memory:
    """The points of a set (N, D) that were fetched last."""

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

    def points(self, row: Tensor) -> Rough:
        """The points (M, D) of rows; those that are not here are fetched, as float32 holds them."""
        if not len(row):
            return Rough(self._none, self._none[:, 0])
        place = self._place[row].long()
        if int(place.amin()) >= 0:
            return Rough(self._z.index_select(0, place).to(torch.float32), self._square[place])
        missing = (place < 0).nonzero()[:, 0]
        fresh = self.fetch(row[missing].cpu()).to(row.device)
        found = Rough.of(fresh)
        square = found.squares
        if len(missing) < len(row):
            place_or_any = place.clamp(min=0)
            z = self._z.index_select(0, place_or_any).index_copy_(0, missing, fresh)
            squares = self._square[place_or_any].index_copy_(0, missing, square)
            found = Rough(z.to(torch.float32), squares)
        self._again += int((place == LET_GO).sum())
        if not len(self._row):
            self._make_room(fresh, SOME)
        elif self._again > REGRET * len(self._row):
            self._make_room(fresh, 2 * len(self._row) * self._bytes(fresh))
        self._keep(row[missing], fresh, square)
        return found

    def expect(self, row: Tensor) -> None:
        """Let those of rows (M,) that were never here be read: they may be asked for next."""
        if self._announce is None or not len(row):
            return
        row = row[self._place[row] == NEVER]
        if 0 < len(row) <= EXPECTED:
            self._place[row] = TOLD
            self._announce(row.cpu())

    def here(self, row: Tensor) -> Tensor:
        """(M,) bool: which of the rows are in memory; the others would have to be fetched."""
        return self._place[row] >= 0

    def _keep(self, row: Tensor, z: Tensor, square: Tensor) -> None:
        """Put points where the oldest are."""
        room = len(self._row)
        row, z, square = row[-room:], z[-room:], square[-room:]
        place = torch.arange(self._new, self._new + len(row), device=row.device) % room
        self._new += len(row)
        old = self._row[place]
        self._place[old[old >= 0]] = LET_GO
        self._place[row] = place.int()
        self._row[place], self._z[place], self._square[place] = row, z, square

    def _make_room(self, like: Tensor, size: int) -> None:
        """Room for `size` bytes, HOT at most; what is here stays."""
        count = min(max(1, min(size, HOT) // self._bytes(like)), len(self._place))
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

    def _bytes(self, like: Tensor) -> int:
        """What a point takes, with what is kept beside it."""
        return like[0].nbytes + BESIDE
