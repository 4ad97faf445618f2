# SPDX-License-Identifier: Apache-2.0
"""Distances between points of many dimensions: exact in float64, bounded from below in float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

__all__ = ["Rough", "full_precision", "lower_squares", "roundoff", "squared_distances"]


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


def lower_squares(x: Rough, z: Rough) -> Tensor:
    """What |x_b - z_m|^2 is at least, (B, M) float32 through one fast product; NaN on overflow.

    Rounding and the product are off by at most `roundoff` (|x|^2 + |z|^2); that is granted twice.
    """
    norms = x.squares[:, None] + z.squares
    with full_precision(x.points.device.type):
        d2 = torch.addmm(norms, x.points, z.points.T, alpha=-2)
    return d2.sub_(norms, alpha=2 * roundoff(x.points.shape[1] + 6))
