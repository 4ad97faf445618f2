# SPDX-License-Identifier: Apache-2.0
"""What is known of distances from queries that were asked about before.

    |x - z| >= |y - z| - |x - y|                                                            (3)

A reference that is outside its shield by a gap, for all queries y of a call, is so by the gap less
the way from there, for the queries x of a later one. An odometer adds up the ways: it reads at most
so much when the gap is used up.
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
        self._way, self._most = 1.0, 1.0  # what it reads, and when the last gap is used up
        self._at = like.new_empty(0, dtype=torch.float64)  # (B, D) where the queries are

    def come(self, x: Tensor) -> None:
        """The queries have come to x (B, D), float64; of another batch nothing is known."""
        way = furthest(x - self._at) if self._at.shape == x.shape else inf
        self._way = (self._way + way) * (1 + ROUND) if way < inf else max(self._way, self._most)
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
        self._most = max(self._most, float(until.max()) if len(until) else 0.0)
