# SPDX-License-Identifier: Apache-2.0
"""Distances between points of many dimensions: exact in float64, bounded from below in float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

__all__ = [
    "TINY",
    "Rough",
    "full_precision",
    "lower_squares",
    "rough_squares",
    "roundoff",
    "squared_distances",
]

TINY = 2.0**-100  # more than what is lost where float32 has no smaller numbers


def squared_distances(x: Tensor, z: Tensor) -> Tensor:
    """|x_b - z_m|^2 as (B, M), through one matrix product about a common origin.

    In float64 the error is about 1e-15 (|x|^2 + |z|^2), far below any radius in use; what is not
    well above it counts as 0.
    """
    origin = z.mean(0) if len(z) else x.new_zeros(x.shape[1])
    centred = z - origin
    images = centred if x is z else x - origin
    zz = vector_norm(centred, dim=1).square_()
    norms = (zz if x is z else vector_norm(images, dim=1).square_())[:, None] + zz
    d2 = torch.addmm(norms, images, centred.T, alpha=-2)
    return torch.where(d2 > 1e-13 * norms, d2, 0.0)


def roundoff(length: int) -> float:
    """What a float32 inner product <a, b> of that many numbers is off by, at most, by |a| |b|.

    Sums are rounded to 2^-24 each; where a faster product is allowed, its factors to 2^-9.
    """
    try:
        exact = torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set for one backend alone: it may be this one
        exact = False
    return length * 2.0**-24 + (0 if exact else 2.0**-7)


def full_precision(device: str) -> AbstractContextManager[object]:
    """No autocast inside, for a type of device; nothing where there is none, for it costs time."""
    on = torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else nullcontext()


class Rough(NamedTuple):
    """Points (M, D) in float32 and their squared norms (M,): what fast bounds are made of."""

    points: Tensor
    squares: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Rough:
        """Of points in any precision."""
        points = x.to(torch.float32)
        return cls(points, vector_norm(points, dim=1).square_())


def rough_squares(x: Rough, z: Rough) -> tuple[Tensor, Tensor]:
    """|x_b - z_m|^2 (B, M) float32 through one fast product, and what it is off by, at most.

    Rounding loses `roundoff` (|x|^2 + |z|^2) in the product and in the norms. NaN or infinity where
    float32 overflows, and then also off by infinity: neither a sum nor a difference tells anything.
    """
    norms = x.squares[:, None] + z.squares
    with full_precision(x.points.device.type):
        d2 = torch.addmm(norms, x.points, z.points.T, alpha=-2)
    return d2, norms.mul_(2 * roundoff(x.points.shape[1] + 6)).add_(TINY)


def lower_squares(x: Rough, z: Rough) -> Tensor:
    """What |x_b - z_m|^2 is at least, (B, M) float32; NaN on overflow."""
    d2, off = rough_squares(x, z)
    return d2.sub_(off)
