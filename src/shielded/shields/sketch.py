# SPDX-License-Identifier: Apache-2.0
"""The certified sketch: a few numbers a reference that bound its distance from below.

    P (m, D) orthonormal rows, mu (D,) an origin;   s = P (z - mu),   rho = |z - mu - P^T s|
    |x - z|^2 >= |s_x - s_z|^2 + (rho_x - rho_z)^2                                       (1)

since the parts inside and outside the span of P add up, and the outer parts differ by at least the
difference of their lengths. With a = (s, rho) it reads |x - z| >= |a_x - a_z|: the sketch is the
point set again, in m + 1 dimensions, and never further apart. A reference whose bound is beyond
the radius need not be looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vector_norm

from shielded.repel import roundoff

__all__ = ["Basis", "Sketch"]

WIDTHS = (8, 16, 32, 64, 128)  # dimensions m that a fit chooses from
SCAN = 1e-10  # seconds to read one number of the sketch: about 10 GB/s in float32
FETCH = 5e-5  # seconds to fetch and measure one reference from disk
CHUNK = 1 << 15  # rows of one matrix product: its result stays in the cache


@dataclass(frozen=True, slots=True)
class Basis:
    """Where a sketch looks: mu (D,) and P (m, D), float64."""

    mean: Tensor
    axes: Tensor

    @classmethod
    def fit(cls, sample: Tensor, radius: float | None = None, count: int | None = None) -> Basis:
        """Principal axes of `sample` (n, D), as many as make a scan of `count` rows cheapest.

        More axes cost memory and time, fewer let through references that are not within `radius`
        (if None, the distance that one pair in a hundred is closer than). Any choice is exact.
        """
        x = sample.to(torch.float64)
        mean = x.mean(0)
        x = x - mean
        most = min(WIDTHS[-1], *x.shape)
        axes = _principal(x, most)
        widths = [m for m in WIDTHS if m < most] + [most]
        a = x[:1024]
        true = torch.cdist(a, a)
        pairs = true[~torch.eye(len(a), dtype=torch.bool, device=a.device)]
        if not len(pairs):
            return cls(mean, axes[: widths[0]].contiguous())
        r = float(torch.quantile(pairs[:1_000_000], 0.01)) if radius is None else radius
        costs = []
        for m in widths:
            b = _project(a, axes[:m])
            bound = torch.cdist(b, b)
            false = float(((bound < r) & (true >= r)).sum()) / len(pairs)
            costs.append((count or len(x)) * (m * SCAN + false * FETCH))
        return cls(mean, axes[: widths[costs.index(min(costs))]].contiguous())

    @property
    def width(self) -> int:
        """How many numbers a sketch has: m + 1."""
        return len(self.axes) + 1

    def __call__(self, z: Tensor) -> Tensor:
        """a = (s, rho) of z (N, D), float64 (N, m + 1)."""
        return _project(z.to(torch.float64) - self.mean, self.axes)

    def blur(self, a: Tensor) -> Tensor:
        """(N,) how far float64 may have moved the sketches a: D roundings of |z - mu| and |mu|."""
        return self._sure * (vector_norm(a, dim=1) + vector_norm(self.mean))

    def query(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Sketches of x (B, D) and their blur, at half the price and a little less sharp.

        rho by Pythagoras: what rounding leaves of |x - mu|^2 - |s|^2 enters by its root.
        """
        x = x - self.mean
        s = x @ self.axes.T
        xx = x.square().sum(1, keepdim=True)
        rest = (xx - s.square().sum(1, keepdim=True)).clamp(min=0).sqrt()
        a = torch.cat([s, rest], 1)
        return a, self.blur(a) + (4 * self._sure) ** 0.5 * xx[:, 0].sqrt()

    @property
    def _sure(self) -> float:
        return 2.0**-51 * (len(self.mean) + 8)


def _project(x: Tensor, axes: Tensor) -> Tensor:
    s = x @ axes.T
    # By the rest itself, not by Pythagoras: a rest that is small against x would be all rounding.
    return torch.cat([s, vector_norm(x - s @ axes, dim=1, keepdim=True)], 1)


def _principal(x: Tensor, most: int) -> Tensor:
    """`most` orthonormal rows that hold most of what is in x (n, D)."""
    generator = torch.Generator().manual_seed(0)
    more = min(most + 8, *x.shape)
    v = torch.randn(x.shape[1], more, generator=generator, dtype=torch.float64).to(x)
    for _ in range(4):  # subspace iteration: quality only, (1) holds for any orthonormal rows
        v = torch.linalg.qr(x.T @ (x @ v))[0]
    axes = torch.linalg.svd(x @ v, full_matrices=False)[2]
    return torch.linalg.qr((v @ axes.T)[:, :most])[0].T


class Sketch:
    """Sketches of N references, and lower bounds of their distances to any query.

    `core` (N, m + 1) is kept in float32 or bfloat16. `lost` (N,) float64 is what rounding moved
    each by: a bound on the sketches that are kept, less what was lost on either side, is a bound
    on the points. One matrix product gives all of them; its own rounding, at most (m + 4) u
    (|a_x| |a_z| + |a_x|^2 + |a_z|^2) for unit roundoff u, is granted twice.
    """

    def __init__(self, core: Tensor, lost: Tensor):
        self.core, self.lost = core, up(lost)
        self.square = torch.cat(
            [part.to(torch.float32).square().sum(1) for part in core.split(CHUNK)]
        )
        self.size = float(self.square.max().sqrt()) if len(core) else 0.0

    def __len__(self) -> int:
        return len(self.core)

    def bounds(self, a: Tensor, blur: Tensor) -> Tensor:
        """(B, N) float32: what the distances of queries a (B, m + 1) to all are at least.

        `blur` (B,) is what the sketches a are off by.
        """
        query, below, off = self._query(a, blur)
        parts = [
            _root(below[:, None] + square - 2 * (query @ core.T)) - lost - off[:, None]
            for core, square, lost in self._parts()
        ]
        return torch.cat(parts, 1) if parts else a.new_zeros((len(a), 0), dtype=torch.float32)

    def margins(self, a: Tensor, blur: Tensor, radius: Tensor) -> Tensor:
        """(N,) float32: how far the nearest query must move, at least, to be within each radius."""
        query, below, off = self._query(a, blur)
        parts = [
            _root((below[:, None] - 2 * (query @ core.T)).amin(0) + square) - lost
            for core, square, lost in self._parts()
        ]
        none = a.new_zeros(0, dtype=torch.float32)
        return torch.cat([none, *parts]) - (up(radius) + off.max())

    def _query(self, a: Tensor, blur: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The queries in float32, |a_x|^2 less all slack, and what they are off by."""
        query, off = rounded(a)
        xx = query.to(torch.float64).square().sum(1)
        slack = 2 * roundoff() * (a.shape[1] + 6) * (xx + self.size**2 + xx.sqrt() * self.size)
        return query, -up(slack - xx), up(off + blur)

    def _parts(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Pieces of all rows, small enough for the cache: core in float32, square, lost."""
        for start in range(0, len(self.core), CHUNK):
            part = slice(start, start + CHUNK)
            yield self.core[part].to(torch.float32), self.square[part], self.lost[part]


def rounded(a: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Sketches a (N, m + 1) in `dtype`, and (N,) float64 how far that moved each."""
    core = a.to(dtype)
    return core, vector_norm(a - core.to(torch.float64), dim=1) * (1 + 1e-9)


def up(x: Tensor) -> Tensor:
    """float64 as float32, never smaller."""
    y = x.to(torch.float32)
    inf = torch.full_like(y, torch.inf)
    return torch.where(y.to(torch.float64) < x, torch.nextafter(y, inf), y)


def _root(d2: Tensor) -> Tensor:
    """The root of squared distances, a hair too small; 0 where float32 overflowed."""
    return d2.nan_to_num_(nan=0.0).clamp_(min=0).sqrt_().mul_(1 - 1e-6)
