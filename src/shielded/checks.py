# SPDX-License-Identifier: Apache-2.0
"""What every method asks of its numbers: one sentence where they cannot be used."""

from __future__ import annotations

import math

from shielded.errors import BadInput

__all__ = ["check_weight", "check_window"]


def check_weight(name: str, value: float) -> float:
    """The number as a float, or BadInput unless it is finite and not negative."""
    if not (math.isfinite(value) and value >= 0):
        raise BadInput(f"{name} is {value}: it must be finite and >= 0.")
    return float(value)


def check_window(window: tuple[float, float]) -> tuple[float, float]:
    """(start, stop) noise levels as floats, or BadInput unless 1 >= start >= stop >= 0."""
    start, stop = window
    if not 1 >= start >= stop >= 0:
        raise BadInput(f"window is {window}: it must have 1 >= start >= stop >= 0.")
    return float(start), float(stop)
