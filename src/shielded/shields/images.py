# SPDX-License-Identifier: Apache-2.0
"""A small set of given images, held in memory."""

from collections.abc import Hashable, Sequence
from math import inf

import torch
from torch import Tensor

from shielded.errors import BadInput, NonFinite, ShapeMismatch
from shielded.repel import lower_squares
from shielded.shields.field import References
from shielded.shields.shields import everyone

SCREEN = 256  # from this many references on, distances are bounded in float32 first


class Images:
    """Every image keeps away from each of these latents (K, ...), whatever its group."""

    name = "images"

    def __init__(
        self,
        latents: Tensor,
        radius: float | None = None,
        ids: Sequence[Hashable] | None = None,
    ):
        if latents.ndim < 2:
            raise ShapeMismatch(
                f"reference latents have shape {tuple(latents.shape)}: give (K, ...), one row an "
                "image; a single image needs latents[None]."
            )
        if not bool(latents.isfinite().all()):
            raise NonFinite("reference latents hold NaN or infinity: encode those images again.")
        if ids is not None and len(ids) != len(latents):
            raise BadInput(f"{len(ids)} ids for {len(latents)} images: give one id an image.")
        self.radius, self.shape = radius, tuple(latents.shape[1:])
        # A small set is kept as it is used; a large one in float32, and converted where near.
        kept = torch.float64 if len(latents) < SCREEN else torch.float32
        self.latents = latents.detach().flatten(1).to("cpu").to(kept)  # (K, D)
        self.ids = range(len(latents)) if ids is None else list(ids)

    def references(
        self, x: Tensor, groups: Sequence[Hashable], radius: float, reach: float
    ) -> References:
        """All references, or with many of them those that a float32 bound cannot rule out."""
        if self.latents.device != x.device:
            self.latents = self.latents.to(x.device)
        whole = len(self.ids) < SCREEN or reach == inf
        if whole:
            z, ids = self.latents, self.ids
        else:
            keep = within(x, self.latents, radius + reach).nonzero()[:, 0].tolist()
            z, ids = self.latents[keep], [self.ids[k] for k in keep]
        return References(z.to(x), x.new_ones((len(x), len(z)), dtype=torch.bool), ids, whole)

    closest = everyone

    def __repr__(self) -> str:
        own = "" if self.radius is None else f", radius={self.radius}"
        return f"Shields.images(<{len(self.ids)} latents>{own})"


def within(x: Tensor, z: Tensor, reach: float) -> Tensor:
    """Which of z (K, D) may lie within `reach` of any x (B, D): never a false negative."""
    return (~(lower_squares(x, z) > reach * reach)).any(0)  # NaN is not sure
