# SPDX-License-Identifier: Apache-2.0
"""Which images of a protected set are near given points, and how far they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.linalg import vector_norm

from shielded.errors import BadInput, NonFinite, ShapeMismatch
from shielded.shields.search.kept import load
from shielded.shields.search.screen import Screen
from shielded.shields.shields import check_radius

if TYPE_CHECKING:
    from shielded.shields.store import ProtectedSet

__all__ = ["Hit", "Near"]

AT_ONCE = 256  # points that share one scan


@dataclass(frozen=True, slots=True, eq=False)
class Hit:
    """Point number `query` of the batch is at `distance` from the image `id`, which is `point`."""

    query: int
    id: str
    point: Tensor  # its latent, float64
    distance: float


class Near:
    """Searches one version of a set; the screen is kept for the last kind of radius."""

    def __init__(self, store: ProtectedSet):
        self.store = store
        self._made: tuple[tuple[bool, torch.device], Screen, Tensor] | None = None

    def __call__(self, x0: Tensor | np.ndarray, radius: float | None) -> list[Hit]:
        """See ProtectedSet.near."""
        radius, x = check_radius(radius), self._points(x0)
        if not len(self.store):
            return []
        screen, address = self._screen(radius is None, x.device)
        found = []
        for start in range(0, len(x), AT_ONCE):
            found += self._hits(screen, address, x[start : start + AT_ONCE], radius, start)
        return sorted(found, key=lambda hit: (hit.query, hit.distance, hit.id))

    def _hits(
        self, screen: Screen, address: Tensor, x: Tensor, radius: float | None, start: int
    ) -> list[Hit]:
        """The hits of x (B, D), which begins at place `start` of all points."""
        reach = radius or 0.0
        # The screen measures by a product, which is off by up to D roundings of such squares.
        far = vector_norm(x - screen.queries.mean, dim=1).max()
        size = float(far + screen.radius.max()) + reach
        near = screen.near(x, reach + 1e-5 * size)
        z = near.z.to(torch.float64)
        distance = torch.cdist(x, z, compute_mode="donot_use_mm_for_euclid_dist")
        inside = distance <= (screen.radius[near.row] if radius is None else radius)
        used = inside.any(0).nonzero()[:, 0]
        labels = self.store.labels(address[near.row[used].cpu()].numpy())
        points = z[used].reshape(-1, *self.store.shape)
        return [
            Hit(start + b, labels[k].id, points[k], float(distance[b, used[k]]))
            for b, k in inside[:, used].nonzero().tolist()
        ]

    def _screen(self, own: bool, device: torch.device) -> tuple[Screen, Tensor]:
        """The screen of this version and its rows' addresses, with the radii of the set or none.

        Images with a radius of their own have it in either: it lets a few more through.
        """
        if self._made is None or self._made[0] != (own, device):
            default = (self.store.radius if own else 0.0) or 0.0
            if own and self.store.radius is None:
                self._all_have_one()
            self._made = (own, device), *load(self.store, default, device)
        return self._made[1:]

    def _all_have_one(self) -> None:
        if any(np.isnan(self.store.radii(part)).any() for part in self.store.parts()):
            raise BadInput(f"{self.store.path} holds images without a radius: give near one.")

    def _points(self, x0: Tensor | np.ndarray) -> Tensor:
        """x0 as (B, D), float64."""
        x, shape, dim = torch.as_tensor(x0).detach(), self.store.shape, self.store.dim
        if tuple(x.shape[1:]) not in (shape, (dim,)):
            hint = "; a single latent needs x0[None]" if tuple(x.shape) == shape else ""
            raise ShapeMismatch(
                f"the set holds latents of shape {shape}, x0 is {tuple(x.shape)}: give (B, ...) of "
                f"the same model and image size, or (B, {dim}){hint}."
            )
        if not bool(x.isfinite().all()):
            raise NonFinite("x0 holds NaN or infinity: encode those images again.")
        return x.flatten(1).to(torch.float64)
