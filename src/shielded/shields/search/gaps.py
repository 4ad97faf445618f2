# SPDX-License-Identifier: Apache-2.0
"""What is known of distances from queries that were asked about before.

    |x - z| >= |y - z| - |x - y|                                                            (3)

A reference that is outside its shield by a gap, for all queries y of a call, is so by the gap less
the way from there, for the queries x of a later one. An odometer adds up the ways from call to
call, and of each gap it is kept what the odometer will read when that is used up.
"""

from __future__ import annotations

import torch
from torch import Tensor, inf

from shielded.shields.search.tracks import furthest

__all__ = ["Gaps"]

ROUND = 2.0**-50  # more than float64 rounds in a few sums


class Gaps:
    """How far outside their shields references (N) are, at least, for queries that move on."""

    def __init__(self, count: int, like: Tensor):
        # What the odometer reads when each gap is used up: memory is taken where it is written to.
        self._until = torch.zeros(count, dtype=torch.float64, device=like.device)
        self._way = 1.0  # what it reads
        self._at = like.new_empty(0, dtype=torch.float64)  # (B, D) where the queries are

    def come(self, x: Tensor) -> None:
        """The queries have come to x (B, D), float64; of another batch nothing is known."""
        way = furthest(x - self._at) if self._at.shape == x.shape else inf
        if way < inf:
            self._way = (self._way + way) * (1 + ROUND)
        else:  # all gaps are used up
            self._way = max(self._way, float(self._until.max()))
        self._at = x.clone()

    def of(self, row: Tensor) -> Tensor:
        """(M,) float64: how far outside the shields of rows all queries are at least.

        Where it is not above 0, nothing is known.
        """
        return self._until.index_select(0, row).sub_(self._way)

    def learn(self, row: Tensor, gap: Tensor) -> None:
        """All queries are outside the shields of rows (M,) by gaps (M,), or more than that.

        A gap that is not a number, or is infinite, tells nothing.
        """
        until = gap.double().add(self._way).mul_(1 - ROUND).nan_to_num_(0.0, 0.0, 0.0)
        until = torch.maximum(until, self._until.index_select(0, row))
        self._until.index_copy_(0, row, until)
