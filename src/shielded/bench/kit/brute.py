# SPDX-License-Identifier: Apache-2.0
"""Distances of finished images to every protected picture, by code that searches nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from shielded.landing import TOLERANCE
from shielded.shields.store import ProtectedSet


def nearest(images: Tensor, references: Iterable[Tensor]) -> Tensor:
    """(N,) the least distance of each image to any reference: all pairs, in float64.

    `references` come in pieces. Either are numbers in [-1, 1] or, as uint8, 8-bit pictures.
    """
    x = numbers(images)
    xx, best = x.square().sum(1), torch.full((len(x),), torch.inf, dtype=torch.float64)
    for piece in references:
        z = numbers(piece)
        d2 = torch.addmm(z.square().sum(1), x, z.T, alpha=-2).amin(1) + xx
        best = torch.minimum(best, d2)
    return best.clamp(min=0).sqrt()


def numbers(images: Tensor) -> Tensor:
    """(N, D) in [-1, 1], float64."""
    x = images.flatten(1).to(torch.float64)
    return x / 127.5 - 1 if images.dtype == torch.uint8 else x


def stored(store: ProtectedSet) -> Iterator[Tensor]:
    """The latents of a set as they are on disk, piece by piece."""
    return (torch.from_numpy(z.copy()) for _, z in store.blocks())


def inside(distance: Tensor, radius: float) -> int:
    """How many of the distances are within a shield."""
    return int((distance < radius * (1 - TOLERANCE)).sum())
