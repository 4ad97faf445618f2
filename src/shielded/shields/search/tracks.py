# SPDX-License-Identifier: Apache-2.0
"""How queries go on: sampling goes along a few tracks, of images and of where they were moved to.

The nearest call before, of as many queries, is the last on its own track.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import nan

import torch
from torch import Tensor
from torch.linalg import vector_norm

__all__ = ["Tracks", "furthest", "ways"]

CALLS = 8  # that are remembered


class Tracks:
    """The sketches (B, w) of the last queries, call by call."""

    def __init__(self) -> None:
        self._calls: deque[Tensor] = deque(maxlen=CALLS)
        self._way = 0.0  # from the call before the last to it

    def add(self, a: Tensor) -> float:
        """Remember queries a (B, w); how far the next call may be: as far as either of two ways."""
        last = self._calls[-1] if self._calls else a
        before, self._way = self._way, furthest(a - last) if len(a) == len(last) else 0.0
        self._calls.append(a)
        return max(before, self._way)

    def moves(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """(B, w) how far queries a have come on their track; how far they had come before."""
        calls = [call for call in self._calls if len(call) == len(a)]
        last = _nearest(calls, a)
        if last is None:
            return torch.zeros_like(a), torch.zeros_like(a)
        y = calls[last]
        first = _nearest(calls[:last], y)
        return a - y, torch.zeros_like(a) if first is None else y - calls[first]


def ways(move: Tensor) -> list[float]:
    """The lengths of moves (B, w), a hair too large: so few numbers Python multiplies sooner."""
    return [length * (1 + 1e-9) for length in vector_norm(move, dim=1).tolist()]


def furthest(move: Tensor) -> float:
    """The length of the longest of moves (B, w), a hair too large; 0 if there are none."""
    lengths = ways(move)
    return max(lengths, default=0.0) if sum(lengths) >= 0 else nan


def _nearest(calls: Sequence[Tensor], a: Tensor) -> int | None:
    """Which of some calls (B, w) is nearest to a (B, w), all queries together."""
    return int(vector_norm(torch.stack([*calls]) - a, dim=(1, 2)).argmin()) if calls else None
