# SPDX-License-Identifier: Apache-2.0
"""Whether a finished image is too near to a protected one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shielded.distances import squared_distances
from shielded.errors import BadInput
from shielded.landing import TOLERANCE
from shielded.methods.filters.verdict import Judged
from shielded.shields import Shields
from shielded.shields.batch import Batch
from shielded.shields.history import History
from shielded.shields.shields import check_radius
from shielded.spaces.latent import Latent
from shielded.spaces.semantic import Semantic
from shielded.spaces.space import Space, space_of

__all__ = ["NearProtected"]


class NearProtected:
    """Fires at images inside a shield; the figure is the distance of the nearest reference.

    "Nearest" is by distance / radius, exactly, in the pipeline's own latents (or its 8-bit pixels)
    or in a semantic `space`.

    Args:
        shields: `Shields.images` or `Shields.protected`, or the path of a protected set.
        radius: of every shield without its own.
        space: a `shielded.spaces.Semantic`; None is the pipeline's own.

    Raises:
        BadInput: for other shields, and for such without a radius.
    """

    name = "near protected"

    def __init__(
        self,
        shields: Shields | str | Path,
        radius: float | None = None,
        space: Semantic | None = None,
    ):
        given = isinstance(shields, Shields)
        self.shields = shields if given else Shields.protected(shields)  # type: ignore[arg-type]
        self.radius, self.space = check_radius(radius), space
        if any(isinstance(s, Batch | History) for s in self.shields.sources):
            raise BadInput("NearProtected takes given images or a protected set as its shields.")
        self.shields.need(radius)
        self._own: Space = Latent()

    def prepare(self, pipe: Any) -> None:
        """Refuse shields that were made for another model, or in another space."""
        self._own = space_of(pipe)
        self.shields.check(pipe, self.space)

    def __call__(self, pictures: Tensor, latents: Tensor) -> Judged:
        """Against the newest state of the shields."""
        self.shields.refresh()
        if self.space is None:
            u = self._own.measure(latents)
        else:
            u = self.space.of_pictures(pictures)
        self.shields.fit(tuple(u.shape[1:]))
        u = u.flatten(1)
        field = self.shields.closest(u, (None,) * len(u), self.radius)
        if not len(field.z):
            never = torch.zeros(len(u), dtype=torch.bool)
            return Judged(never, torch.full((len(u),), math.inf))
        d = squared_distances(u, field.z).sqrt()
        share = torch.where(field.r > 0, d / field.r, 1e300 * (1 + d / (1 + d)))
        value, nearest = share.min(1)
        figure = d.gather(1, nearest[:, None])[:, 0]
        return Judged(~(value >= 1 - TOLERANCE), figure, field.z[nearest])
