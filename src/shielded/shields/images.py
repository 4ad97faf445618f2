# SPDX-License-Identifier: Apache-2.0
"""A small set of given images, held in memory."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from shielded.distances import Rough, lower_squares
from shielded.errors import BadInput, NonFinite, ShapeMismatch
from shielded.shields.field import References

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
        self.ids = range(len(latents)) if ids is None else list(ids)
        self._keep(latents.detach().flatten(1).to("cpu"))

    def references(self, x: Tensor, groups: Sequence[Hashable], radius: float) -> References:
        """All references, or with many of them those that a float32 bound cannot rule out."""
        if len(self.ids) < SCREEN:
            return self.closest(x, groups, radius)
        self._go(x.device)
        keep = within(x, self.rough, radius).nonzero()[:, 0].tolist()
        ids = [self.ids[k] for k in keep]
        return References(self.latents[keep], _all(x, len(ids)), ids, whole=False)

    def closest(self, x: Tensor, groups: Sequence[Hashable], radius: float) -> References:
        """All references."""
        self._go(x.device)
        return References(self.latents, _all(x, len(self.ids)), self.ids, rough=self.rough)

    def _keep(self, latents: Tensor) -> None:
        """A small set is kept as it is used; a large one in float32, and converted where near."""
        small = len(latents) < SCREEN
        self.latents = latents.to(torch.float64 if small else torch.float32)  # (K, D)
        self.rough = Rough.of(self.latents)

    def _go(self, device: torch.device) -> None:
        if self.latents.device != device:
            self._keep(self.latents.to(device))

    def __repr__(self) -> str:
        own = "" if self.radius is None else f", radius={self.radius}"
        return f"Shields.images(<{len(self.ids)} latents>{own})"


def within(x: Tensor, z: Rough, radius: float) -> Tensor:
    """Which of z (K, D) may lie within `radius` of any x (B, D): never a false negative."""
    return (~(lower_squares(Rough.of(x), z) > radius * radius)).any(0)  # NaN is not sure


def _all(x: Tensor, count: int) -> Tensor:
    return x.new_ones((len(x), count), dtype=torch.bool)
