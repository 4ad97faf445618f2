# SPDX-License-Identifier: Apache-2.0
"""Where sketches look: a few numbers a reference that bound its distance from below.

    P (m, D) orthonormal rows, mu (D,) an origin;   s = P (z - mu),   rho = |z - mu - P^T s|
    |x - z|^2 >= |s_x - s_z|^2 + (rho_x - rho_z)^2                                       (1)

since the parts inside and outside the span of P add up, and the outer parts differ by at least the
difference of their lengths. With a = (s, rho) it reads |x - z| >= |a_x - a_z|: the sketch is the
point set again, in m + 1 dimensions, and never further apart. A reference whose bound is beyond
the radius need not be looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.linalg import vector_norm

from shielded.shields.search.queries import Queries, sure

__all__ = ["Basis"]

WIDTHS = (7, 15, 31, 63, 127)  # dimensions m that a fit chooses from: with rho, whole cache lines
FINE, MANY = 1024, 64  # dimensions of finer sketches, and how many false alarms are worth them
PART = 3  # times as many numbers has a point at least
FEWER = 4  # times, than without them
SCAN = 1e-10  # seconds to read one number of the sketch: about 10 GB/s in float32
FETCH = 5e-5  # seconds to fetch and measure one reference from disk
HELD = 2e-6  # seconds to measure one of a set that stays in memory
TRIED = 1024  # points of a sample that a choice is tried on
LEAST = 2.0**-6  # of the largest step, that any is: a query is rounded to the same steps


@dataclass(frozen=True, slots=True)
class Basis:
    """Where a sketch looks: mu (D,) and P (m, D), float64.

    `spread` (m + 1,) says how large the numbers of a sketch are, against each other: those kept as
    integers have steps of such sizes. It decides how sharp they are, not whether (1) holds.
    """

    mean: Tensor
    axes: Tensor
    spread: Tensor = field(default_factory=lambda: torch.ones(1, dtype=torch.float64))

    def to(self, device: torch.device | str) -> Basis:
        """The same, on a device."""
        return Basis(*(part.to(device) for part in (self.mean, self.axes, self.spread)))

    @classmethod
    def fit(cls, sample: Tensor, radius: float | None = None, held: bool = False) -> Basis:
        """Principal axes of `sample` (n, D), as many as make a scan cheapest.

        More axes cost memory and time, fewer let through references that are not within `radius`
        (if None, the distance that one pair in a hundred is closer than), which cost less where
        the set is `held` in memory. Any choice is exact.
        """
        mean = sample.mean(0, dtype=torch.float64)
        x = sample.to(torch.float32) - mean.to(torch.float32)
        most = min(WIDTHS[-1], *x.shape)
        axes = _principal(x, most)
        widths = [m for m in WIDTHS if m < most] + [most]
        width = widths[0]
        if len(x) >= 2:
            false = _let_through(x[:TRIED], [axes[:m] for m in widths], radius)
            each = HELD if held else FETCH
            costs = [m * SCAN + share * each for m, share in zip(widths, false, strict=True)]
            width = widths[costs.index(min(costs))]
        return cls(mean, axes[:width].contiguous())._measured(sample)

    def finer(self, sample: Tensor, radius: float | None, count: int) -> Basis | None:
        """FINE principal axes, where this basis lets through more than MANY of `count` rows.

        And where they let through far fewer: None for data that have no principal axes at all.
        """
        x = sample.to(torch.float32) - self.mean.to(torch.float32)
        if min(x.shape) < PART * FINE:
            return None
        axes = _principal(x, FINE)
        coarse, fine = _let_through(x[:TRIED], [self.axes, axes], radius)
        if count * coarse < MANY or fine > coarse / FEWER:
            return None
        return Basis(self.mean, axes)._measured(sample)

    def _measured(self, sample: Tensor) -> Basis:
        """The same, with the spread that points of a sample (n, D) have."""
        size = self(sample[:TRIED]).square().mean(0).sqrt()
        spread = (size / size.max().clamp(min=1e-300)).clamp(min=LEAST)
        return Basis(self.mean, self.axes, spread)

    @property
    def width(self) -> int:
        """How many numbers a sketch has: m + 1."""
        return len(self.axes) + 1

    def __call__(self, z: Tensor) -> Tensor:
        """a = (s, rho) of z (N, D), float64 (N, m + 1)."""
        return _project(z.to(torch.float64) - self.mean, self.axes)

    def blur(self, a: Tensor) -> Tensor:
        """(N,) how far float64 may have moved the sketches a: D roundings of |z - mu| and |mu|."""
        return sure(len(self.mean)) * (vector_norm(a, dim=1) + vector_norm(self.mean))

    def queries(self) -> Queries:
        """What sketches queries: it needs less memory than this."""
        return Queries(self.mean, self.axes)


def _project(x: Tensor, axes: Tensor) -> Tensor:
    s = x @ axes.T
    # By the rest itself, not by Pythagoras: a rest that is small against x would be all rounding.
    return torch.cat([s, vector_norm(x - s @ axes, dim=1, keepdim=True)], 1)


def _let_through(x: Tensor, bases: Sequence[Tensor], radius: float | None) -> list[float]:
    """The share of all pairs of points x (n, D) that axes (m, D) do not tell to be beyond radius.

    If that is None, it is the distance that one pair in a hundred is closer than.
    """
    true = torch.cdist(x, x)
    pairs = true[~torch.eye(len(x), dtype=torch.bool, device=x.device)]
    r = float(torch.quantile(pairs[:1_000_000], 0.01)) if radius is None else radius
    bounds = (torch.cdist(b, b) for b in (_project(x, axes.to(x)) for axes in bases))
    return [float(((bound < r) & (true >= r)).sum()) / len(pairs) for bound in bounds]


def _principal(x: Tensor, most: int) -> Tensor:
    """`most` orthonormal rows, float64, that hold most of what is in x (n, D)."""
    generator = torch.Generator().manual_seed(0)
    more = min(most + 8, *x.shape)
    v = torch.randn(x.shape[1], more, generator=generator).to(x)
    for _ in range(4):  # subspace iteration: quality only, (1) holds for any orthonormal rows
        v = torch.linalg.qr(x.T @ (x @ v))[0]
    axes = torch.linalg.svd(x @ v, full_matrices=False)[2]
    return torch.linalg.qr((v @ axes.T)[:, :most].to(torch.float64))[0].T
