# SPDX-License-Identifier: Apache-2.0
"""A lower guidance weight: the oldest way to more diversity (Ho and Salimans, 2207.12598)."""

from __future__ import annotations

import math
from typing import Any

import torch

from shielded.errors import BadInput
from shielded.methods.inside import Ask, InsideMethod
from shielded.samplers.network import Call
from shielded.samplers.rows import Rows, blend, copied

__all__ = ["LowerGuidance", "weighted"]


class LowerGuidance(InsideMethod):
    """A share of the pipeline's guidance weight above 1: w' = 1 + share (w - 1).

    Guidance predicts plain + w (told - plain), which is told + (w - 1) (told - plain). So it is
    lowered, in any pipeline and however its argument is called, by giving
    told - share (told - plain) for plain. A call with guidance_scale = w' makes the same images,
    up to rounding, and serves as well where all calls of a table are one's own.

    Args:
        share: 1 leaves the weight as it is, 0 follows the condition alone.

    Raises:
        BadInput: for a share outside [0, 1].
        NotApplicable: by `on` and in the block, for pipelines without a second prediction.

    Example:
        >>> LowerGuidance(0.5)
        LowerGuidance(share=0.5)
    """

    def __init__(self, share: float):
        if not (math.isfinite(share) and 0 <= share <= 1):
            raise BadInput(f"share is {share}: it must be between 0 and 1.")
        self.share = float(share)

    def answer(self, call: Call, ask: Ask, run: Any) -> tuple[Any, float]:
        """The predictions, with the plain one drawn towards the told one."""
        return weighted(call, ask, run, self.share), self.share

    def __repr__(self) -> str:
        return f"LowerGuidance(share={self.share})"


def weighted(call: Call, ask: Ask, run: Any, share: float) -> Any:
    """What the pipeline has to be answered, so that it guides with w' = 1 + share (w - 1).

    At share 0 the plain prediction is not needed, and the network is not asked for it.
    """
    if share == 1 or (not call.doubled and call.told is not None):
        return ask(call.arguments)
    if not call.doubled:
        return copied(run.told) if share == 0 else blend(run.told, ask(call.arguments), share)
    half = call.half() if share == 0 else None
    if half is not None:
        return Rows(call.images, call.rows.lists).twice(ask(half))
    return call.rows.change(ask(call.arguments), lambda rows: _drawn(call, rows, share))


def _drawn(call: Call, rows: Any, share: float) -> Any:
    """The rows of a doubled batch, with told - share (told - plain) for plain."""
    first, second = rows[: call.images], rows[call.images :]
    if call.told == slice(call.images):
        halves = first, blend(first, second, share)
    else:
        halves = blend(second, first, share), second
    return halves[0] + halves[1] if isinstance(rows, list) else torch.cat(halves)
