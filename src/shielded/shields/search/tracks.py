# SPDX-License-Identifier: Apache-2.0
"""How queries go on: sampling goes along a few tracks, of images and of where they were moved to.

The nearest call before, of as many queries, is the last on its own track.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.linalg import vector_norm

__all__ = ["Tracks"]

CALLS = 8  # that are remembered


class Tracks:
    """The sketches (B, w) of the last queries, call by call."""

    def __init__(self) -> None:
        self._calls: deque[Tensor] = deque(maxlen=CALLS)

    def add(self, a: Tensor) -> None:
        """Remember queries a (B, w)."""
        self._calls.append(a)

    def moves(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """(B, w) how far queries a have come on their track; how far they had come before."""
        calls = [call for call in self._calls if len(call) == len(a)]
        last = _nearest(calls, a)
        if last is None:
            return torch.zeros_like(a), torch.zeros_like(a)
        y = calls[last]
        first = _nearest(calls[:last], y)
        return a - y, torch.zeros_like(a) if first is None else y - calls[first]


def _nearest(calls: Sequence[Tensor], a: Tensor) -> int | None:
    """Which of some calls (B, w) is nearest to a (B, w), all queries together."""
    return int(vector_norm(torch.stack([*calls]) - a, dim=(1, 2)).argmin()) if calls else None
