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
PIECE, MANY = 256, 64  # numbers that are added up at once, at least; points that are worth it


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
        if x.dtype == torch.float64:  # its own norms are fewer operations, and no less exact
            return cls(points, vector_norm(x, dim=1).square_().to(torch.float32))
        squares = vector_norm(_pieces(points), dim=2).square_().sum(1, dtype=torch.float64)
        return cls(points, squares.to(torch.float32))

    def pick(self, some: Tensor) -> Rough:
        """Of some (n,) of them."""
        return Rough(self.points.index_select(0, some), self.squares.index_select(0, some))


def rough_squares(x: Rough, z: Rough) -> tuple[Tensor, Tensor]:
    """|x_b - z_m|^2 (B, M) float32 through one fast product, and what it is off by, at most.

    With n numbers to a piece and p of them, a product loses `roundoff` n |x| |z| in its pieces and
    2 p 2^-24 of that where they are added up, a norm n 2^-24 |x|^2; the points lost 2^-24 of each
    number before. And 2 |x| |z| <= |x|^2 + |z|^2. NaN or infinity where float32 overflows, and
    then also off by infinity: neither a sum nor a difference tells anything.
    """
    norms = x.squares[:, None] + z.squares
    a, b = _pieces(x.points), _pieces(z.points)
    _, count, length = a.shape
    with full_precision(x.points.device.type):
        if count == 1 or len(b) < MANY:
            count, length = 1, x.points.shape[1]
            d2 = torch.addmm(norms, x.points, z.points.T, alpha=-2)
        else:
            inner = torch.bmm(a.transpose(0, 1), b.permute(1, 2, 0)).sum(0)
            d2 = torch.add(norms, inner, alpha=-2)
    off = roundoff(length + 2 * count + 10) + (a.shape[2] + 10) * 2.0**-24
    return d2, norms.mul_(off).add_(TINY)


def _pieces(points: Tensor) -> Tensor:
    """Points (M, D) as (M, p, n): sums of few numbers are rounded less, and cost no more."""
    m, d = points.shape
    count = max(1, d // PIECE)
    while d % count:  # pieces of one length: mostly D is a product of small numbers
        count -= 1
    return points.reshape(m, count, d // count)


def lower_squares(x: Rough, z: Rough) -> Tensor:
    """What |x_b - z_m|^2 is at least, (B, M) float32; NaN on overflow."""
    d2, off = rough_squares(x, z)
    return d2.sub_(off)
