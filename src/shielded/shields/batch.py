# SPDX-License-Identifier: Apache-2.0
"""The images made at the same time (Eq. 8)."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from shielded.shields.field import References
from shielded.shields.shields import same_group


@dataclass(frozen=True, slots=True, repr=False)
class Batch:
    """Each image keeps away from the others of its group: z_j = x0 of image j at this step."""

    radius: float | None = None
    name: str = "batch"
    shape: None = None

    def references(self, x: Tensor, groups: Sequence[Hashable], radius: float) -> References:
        """The other images; an image is never its own reference."""
        return References(x, others(tuple(groups), x.device), range(len(x)))

    closest = references

    def __repr__(self) -> str:
        return f"Shields.batch({'' if self.radius is None else f'radius={self.radius}'})"


@lru_cache(maxsize=16)  # every step of a generation asks the same
def others(groups: tuple[Hashable, ...], device: torch.device) -> Tensor:
    """(B, B) bool: which other images are of the same group. Not to be written to."""
    itself = torch.eye(len(groups), dtype=torch.bool, device=device)
    return same_group(groups, groups, device) & ~itself
