# SPDX-License-Identifier: Apache-2.0
"""Who takes part in a comparison: a method at one setting."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from shielded.guidance import Guidance
from shielded.shields import Shields
from shielded.spaces import Semantic
from shielded.spell import Spell

__all__ = ["PLAIN", "SHARES", "Contender", "spell"]

SHARES = {"tiny-fashion": 0.8, "tiny-sprites": 0.8}  # radius, of the median distance


@dataclass(frozen=True)
class Contender:
    """`make(unit)` gives the method for one condition, whose images are `unit` apart (median).

    None is the model alone. `setting` are JSON values that tell it from the same method at
    another, `call` are settings of the pipeline's call, `batch` how many images are made at once,
    `space` is where `unit` is measured: the latents, if it is None. `given` takes the place of
    `make` where a method has to be told a condition's plain pictures (n, C, H, W) in [-1, 1].
    """

    method: str
    setting: Mapping[str, Any] = field(default_factory=dict)
    make: Callable[[float], Guidance | None] = lambda unit: None
    call: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 16
    space: Semantic | None = None
    given: Callable[[Tensor], Guidance] | None = None

    @property
    def key(self) -> str:
        """What its images are kept under."""
        return json.dumps([self.method, self.setting, self.call, self.batch], sort_keys=True)

    @property
    def title(self) -> str:
        """For a row of a table."""
        said = ", ".join(f"{name} {value}" for name, value in self.setting.items())
        return f"{self.method}, {said}" if said else self.method


PLAIN = Contender("plain")


def spell(
    share: float,
    overcompensation: float = 1.0,
    overlap: str = "project",
    start: float = 1.0,
    **call: Any,
) -> Contender:
    """SPELL as in Table 1: shields in the batch and around all images of the condition before.

    They act from the noise level `start` on; `call` are settings of the pipeline's call.
    """

    def make(unit: float) -> Spell:
        shields = Shields.batch() + Shields.history()
        return Spell(shields, share * unit, overcompensation, overlap, window=(start, 0.0))

    setting: dict[str, Any] = {"radius": share, "overcompensation": overcompensation}
    if overlap != "project":
        setting["overlap"] = overlap
    if start < 1:
        setting["from level"] = start
    return Contender("SPELL", setting, make, call)
