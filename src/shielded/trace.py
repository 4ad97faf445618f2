# SPDX-License-Identifier: Apache-2.0
"""What happened: a trace of every sampling call, and a certificate for every returned image."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["Certificate", "Record", "Trace"]


@dataclass(frozen=True, slots=True)
class Record:
    """One sampling call (Figure 5): tensors are (B,), one entry an image."""

    generation: int
    call: int
    timestep: float
    noise_level: float  # sigma / (alpha + sigma): 1 is pure noise, 0 the image
    active: Tensor  # how many shields the expected output had to leave
    delta: Tensor  # |delta|, in the units of the latents
    ratio: Tensor  # |delta| / |score|, both as they enter the score


@dataclass(frozen=True, slots=True)
class Certificate:
    """What is known of one returned image: its nearest reference, measured in float64.

    `clear` is `distance >= radius` up to a relative 1e-5, for all references at once; `nearest`
    is the reference with the smallest distance / radius. `landed` tells that the finished image
    itself was moved, `intervened` that any of its sampling calls was.
    """

    generation: int
    index: int
    group: Hashable
    source: str
    reference: Hashable
    distance: float
    radius: float
    clear: bool
    landed: bool
    intervened: bool

    def to_dict(self) -> dict[str, Any]:
        """The certificate as JSON values; an infinite distance (no reference) is None."""
        values = asdict(self)
        for name in ("group", "reference"):
            if not isinstance(values[name], (str, int, float, bool, type(None))):
                values[name] = str(values[name])
        values["distance"] = self.distance if math.isfinite(self.distance) else None
        return values


@dataclass(slots=True)
class Trace:
    """All records of a `with` block, in order."""

    records: list[Record] = field(default_factory=list)
    landed: dict[int, Tensor] = field(default_factory=dict)  # generation -> (B,) bool

    def of(self, generation: int = -1) -> list[Record]:
        """The records of one generation; -1 is the last."""
        if generation < 0 and self.records:
            generation += self.records[-1].generation + 1
        return [record for record in self.records if record.generation == generation]

    def intervened(self, generation: int = -1) -> Tensor:
        """(B,) bool: images that any call of the generation moved, or that were landed."""
        records = self.of(generation)
        if not records:
            return torch.zeros(0, dtype=torch.bool)
        moved = torch.stack([record.delta.cpu() > 0 for record in records]).any(0)
        landed = self.landed.get(records[0].generation)
        return moved if landed is None else moved | landed.cpu()

    def to_dict(self) -> dict[str, Any]:
        """The trace as JSON values."""
        return {
            "records": [
                {
                    "generation": record.generation,
                    "call": record.call,
                    "timestep": record.timestep,
                    "noise_level": record.noise_level,
                    "active": record.active.tolist(),
                    "delta": record.delta.tolist(),
                    "ratio": record.ratio.tolist(),
                }
                for record in self.records
            ],
            "landed": {str(generation): rows.tolist() for generation, rows in self.landed.items()},
        }
