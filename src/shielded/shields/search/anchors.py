# SPDX-License-Identifier: Apache-2.0
"""Where queries were, and how far they have come since."""

from __future__ import annotations

from math import inf

import torch
from torch.linalg import vector_norm

from shielded.distances import Rough

__all__ = ["ANCHORS", "Anchors"]

ANCHORS = 4  # two tracks, of images and of where they were moved to: of each the last two
LEAST = 1e-18  # more than float32 loses where it has no smaller numbers


class Anchors:
    """The queries (B, D) of the last calls, in float32. Call c is at place c % ANCHORS.

    `calls` is the number of the last; those before the first have one too.
    """

    def __init__(self) -> None:
        self._at = torch.empty(0)  # (ANCHORS, B, D)
        self.calls = ANCHORS

    def ways(self, x: Rough) -> list[float]:
        """How far queries x (B, D) are from each anchor: none of them is further from its own."""
        if self._at.shape[1:] != x.points.shape:
            return [inf] * ANCHORS
        lengths = vector_norm(self._at - x.points, dim=2).amax(1).tolist()
        # float32 moved x by 2^-24 of it at most, and where it was by that and 2^-24 of the way; the
        # others are of the sum, and where float32 takes it.
        off = max(x.squares.tolist(), default=0.0) ** 0.5 * 2.0**-22 + LEAST
        share = 1 + (x.points.shape[1] + 16) * 2.0**-24
        return [length * share + off if length < inf else inf for length in lengths]

    def move(self, x: Rough) -> None:
        """Move the oldest anchor to queries x (B, D)."""
        if self._at.shape[1:] != x.points.shape:
            self._at = x.points.new_full((ANCHORS, *x.points.shape), inf)
        self.calls += 1
        self._at[self.calls % ANCHORS] = x.points
