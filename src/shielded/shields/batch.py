# SPDX-License-Identifier: Apache-2.0
"""The images made at the same time (Eq. 8)."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shielded.shields.field import References
from shielded.shields.shields import everyone, same_group


@dataclass(frozen=True, slots=True, repr=False)
class Batch:
    """Each image keeps away from the others of its group: z_j = x0 of image j at this step."""

    radius: float | None = None
    name: str = "batch"
    shape: None = None

    def references(
        self, x: Tensor, groups: Sequence[Hashable], radius: float, reach: float
    ) -> References:
        """The other images; an image is never its own reference."""
        itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
        return References(x, same_group(groups, groups, x.device) & ~itself, range(len(x)))

    closest = everyone

    def __repr__(self) -> str:
        return f"Shields.batch({'' if self.radius is None else f'radius={self.radius}'})"
