# SPDX-License-Identifier: Apache-2.0
"""Images of a protected set that a search has found."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shielded.distances import Rough
from shielded.shields.search.screen import Found, Screen

__all__ = ["Hits"]


@dataclass(frozen=True, slots=True)
class Hits:
    """Images that were found: row addresses (M,), ascending, points z (M, D) float32, radii (M,).

    Their order is that of the set, however they were searched: so the same hits make the same sums.
    `row` (M,) are the rows of the search that found them, where these ascend too.
    """

    address: Tensor
    rough: Rough
    r: Tensor
    row: Tensor | None = None

    @classmethod
    def of(cls, found: Found, screen: Screen, address: Tensor) -> Hits:
        """What a search found, whose rows are those of `screen` and have `address` (N,)."""
        at, r = address.index_select(0, found.row.cpu()), screen.radius.index_select(0, found.row)
        if bool((at[1:] > at[:-1]).all()):  # mostly: and there may be thousands of points to copy
            return cls(at, found.rough, r, found.row)
        at, order = at.sort()
        order = order.to(found.row.device)
        return cls(at, found.rough.pick(order), r.index_select(0, order))

    @property
    def z(self) -> Tensor:
        """(M, D) float32, which holds all that a set stores."""
        return self.rough.points

    def closest(self, x: Tensor) -> Hits:
        """Those with the smallest distance / radius from some x (B, D), the first of equals."""
        if not len(self.z):
            return self
        d = torch.cdist(x, self.z.double(), compute_mode="donot_use_mm_for_euclid_dist")
        # Radius 0 shields nothing: such images come last, the nearest of them first.
        share = torch.where(self.r > 0, d / self.r, 1e300 * (1 + d / (1 + d)))
        best = share.argmin(1).unique()
        return Hits(self.address[best.cpu()], self.rough.pick(best), self.r[best])
