# SPDX-License-Identifier: Apache-2.0
"""What is known of distances from queries that were asked about before.

    |x - z| >= |y - z| - |x - y|                                                            (3)

A reference that is outside its shield by a gap, for all queries y of a call, is so by the gap less
the way from there, for the queries x of a later one.
"""

from __future__ import annotations

import torch
from torch import Tensor, inf

from shielded.distances import Rough
from shielded.shields.search.anchors import ANCHORS, Anchors

__all__ = ["Gaps"]


class Gaps:
    """How far outside their shields references (N) are, at least, for queries that move on."""

    def __init__(self, count: int, like: Tensor):
        self._anchors = Anchors()
        # Memory that is only taken where something is written.
        self._gap = torch.zeros(count, dtype=torch.float32, device=like.device)
        self._call = torch.zeros(count, dtype=torch.int32, device=like.device)  # whose anchor

    def of(self, x: Rough, row: Tensor) -> Tensor:
        """(M,) float32: how far outside the shields of rows queries x (B, D) are at least, by (3).

        -inf where nothing is known. What is learned next is learned of these queries.
        """
        ways = self._gap.new_tensor(self._anchors.ways(x))
        call, oldest = self._call.index_select(0, row), self._anchors.calls - ANCHORS + 1
        gap = self._gap.index_select(0, row) * (1 - 2.0**-22)  # for all that float32 rounds
        gap -= ways.index_select(0, call % ANCHORS)
        gap = torch.where(call >= oldest, gap, -inf)
        # The oldest anchor comes to x: what was learned there stays true, less the way.
        self._anchors.move(x)
        moved = row[call == oldest]
        self._gap[moved], self._call[moved] = gap[call == oldest], self._anchors.calls
        return gap

    def learn(self, row: Tensor, gap: Tensor) -> None:
        """The queries that were asked about last are outside the shields of rows (M,) by gaps (M,).

        A gap that is not a number, or is infinite, is not known.
        """
        self._gap.index_copy_(0, row, gap.nan_to_num(nan=-inf, posinf=-inf))
        self._call.index_fill_(0, row, self._anchors.calls)
