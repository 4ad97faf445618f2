# SPDX-License-Identifier: Apache-2.0
"""What a search remembers: points that it fetched, points it was asked about, and how far apart.

    |x - z| >= |y - z| - |x - y|                                                            (3)

so a distance once measured from y still says something when x is asked about: y is the nearest of
those that were asked about before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, inf
from torch.linalg import vector_norm

from shielded.distances import Rough, rough_squares
from shielded.shields.search.sketch import up

__all__ = ["Asked", "Memory"]

SOME, HOT = 1 << 24, 1 << 26  # bytes of points, and of what is known of them: at first; at most
REGRET = 1 / 8  # of what is kept, that is asked for again once it was let go: more is kept then
NEVER, LET_GO, TOLD = -1, -2, -3  # no place: not here yet; not any more; not yet, but announced
EXPECTED = 256  # points are announced at once: of more it is not known which
LATELY = 128  # points asked about that are kept


@dataclass(frozen=True, slots=True)
class Asked:
    """Points x (B, D) with sketches a (B, m + 1), and their places in memory."""

    x: Tensor
    a: Tensor
    at: slice

    def __getitem__(self, part: slice) -> Asked:
        at = range(self.at.start, self.at.stop)[part]
        return Asked(self.x[part], self.a[part], slice(at.start, at.stop))


class Memory:
    """The points of a set (N, D) that were fetched last; what is known of their distances."""

    def __init__(
        self,
        fetch: Callable[[Tensor], Tensor],
        count: int,
        like: Tensor,
        width: int,
        announce: Callable[[Tensor], None] | None = None,
    ):
        self.fetch, self._announce = fetch, announce
        self._place = torch.full((count,), NEVER, dtype=torch.int32, device=like.device)
        self._row = self._place[:0].long()  # whose point lies at each place, -1 for nobody's
        self._z = like[:0].float()
        self._new, self._again = 0, 0  # how many points came in; of these, how many once more
        self._x, self._a = like.new_zeros((0, len(like))), like.new_zeros((0, width))
        self._lately(LATELY)

    def points(self, row: Tensor) -> Tensor:
        """The points (M, D) of rows, as they are stored; those that are not here are fetched."""
        if not len(row):
            return self._x[:0]
        place = self._place[row].long()
        missing = (place < 0).nonzero()[:, 0]
        if not len(missing):
            return self._z.index_select(0, place)
        fresh = self.fetch(row[missing].cpu()).to(row.device)
        z = fresh
        if len(missing) < len(row):
            z = self._z.index_select(0, place.clamp(min=0)).index_copy_(0, missing, fresh)
        self._again += int((place == LET_GO).sum())
        if not len(self._row):
            self._make_room(fresh, SOME)
        elif self._again > REGRET * len(self._row):
            self._make_room(fresh, 2 * len(self._row) * self._bytes(fresh))
        self._keep(row[missing], fresh)
        return z

    def expect(self, row: Tensor) -> None:
        """Let those of rows (M,) that were never here be read: they may be asked for next."""
        if self._announce is None or not len(row):
            return
        row = row[self._place[row] == NEVER]
        if 0 < len(row) <= EXPECTED:
            self._place[row] = TOLD
            self._announce(row.cpu())

    def ask(self, x: Tensor, a: Tensor) -> Asked:
        """Take up what (3) says of points x (B, D) with sketches a."""
        if 2 * len(x) > len(self._x):
            self._lately(4 * len(x))
        start = self._turn if self._turn + len(x) <= len(self._x) else 0
        at = slice(start, start + len(x))
        used = min(self._new, len(self._row))
        least = self._least.new_zeros(())
        if self._asked:
            near = torch.cdist(a, self._a[: self._asked]).argmin(1)
            way = vector_norm(x - self._x[near], dim=1) * (1 + 1e-9)
            least = self._least[:, :used].index_select(0, near)
            least = torch.add(-up(way)[:, None], least, alpha=1 - 2.0**-21)
        self._turn, self._asked = at.stop, max(self._asked, at.stop)
        self._x[at], self._a[at], self._least[at, :used] = x, a, least
        return Asked(x, a, at)

    def here(self, row: Tensor) -> Tensor:
        """(M,) bool: which of the rows are in memory; the others would have to be fetched."""
        return self._place[row.long()] >= 0

    def least(self, asked: Asked, row: Tensor) -> Tensor:
        """(B, M) float32: what distances to rows are at least; 0 where nothing is known."""
        place = self._place[row.long()].long()
        if not len(self._row):
            return torch.zeros((len(asked.x), len(row)), dtype=torch.float32, device=row.device)
        known = self._least[asked.at].index_select(1, place.clamp(min=0))
        return torch.where(place >= 0, known, 0.0)  # no product: known may be -inf

    def measure(self, asked: Asked, row: Tensor) -> tuple[Tensor, Tensor]:
        """(B, M) float32: what distances to rows are at least and at most; it is remembered."""
        d2, off = rough_squares(Rough.of(asked.x), Rough.of(self.points(row)))
        low = (d2 - off).clamp_(min=0).sqrt_().mul_(1 - 1e-6).nan_to_num_(nan=0.0)
        self.learn(asked, row, low)
        return low, (d2 + off).sqrt_().mul_(1 + 1e-6).nan_to_num_(inf, inf)

    def learn(self, asked: Asked, row: Tensor, low: Tensor) -> None:
        """Remember that distances to those of rows (M,) that are here are at least low (B, M)."""
        place = self._place[row].long()
        kept = (place >= 0).nonzero()[:, 0]
        least, place = self._least[asked.at], place[kept]
        known = torch.maximum(least.index_select(1, place), low.index_select(1, kept))
        least.index_copy_(1, place, known)

    def _keep(self, row: Tensor, z: Tensor) -> None:
        """Put points where the oldest are."""
        room = len(self._row)
        row, z = row[-room:], z[-room:]
        place = torch.arange(self._new, self._new + len(row), device=row.device) % room
        self._new += len(row)
        old = self._row[place]
        self._place[old[old >= 0]] = LET_GO
        self._place[row] = place.int()
        self._row[place], self._z[place] = row, z
        self._least[:, place] = 0

    def _make_room(self, like: Tensor, size: int) -> None:
        """Room for `size` bytes, HOT at most; what is here stays."""
        count = min(max(1, min(size, HOT) // self._bytes(like)), len(self._place))
        used = min(self._new, len(self._row))
        at = torch.arange(self._new - used, self._new, device=like.device) % max(used, 1)
        kept = self._row[at], self._z[:used], self._least[:, at]
        self._row = torch.full((count,), -1, dtype=torch.long, device=like.device)
        self._z = like.new_empty((count, like.shape[1]))
        self._least = self._least.new_zeros((len(self._x), count))
        if used:
            self._row[:used], self._z[:used] = kept[0], kept[1][at]
            self._least[:, :used] = kept[2]
            self._place[kept[0]] = torch.arange(used, dtype=torch.int32, device=like.device)
        self._new, self._again = used, 0

    def _bytes(self, like: Tensor) -> int:
        """What a point takes, with what is known of it."""
        return like[0].nbytes + 4 * LATELY

    def _lately(self, count: int) -> None:
        """Room for as many points asked about; those that were are forgotten."""
        self._x = self._x.new_empty((count, self._x.shape[1]))
        self._a = self._a.new_zeros((count, self._a.shape[1]))
        self._least = self._z.new_zeros((count, len(self._row)), dtype=torch.float32)
        self._asked, self._turn = 0, 0  # how many are there, how many there have been
