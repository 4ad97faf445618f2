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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vector_norm

from shielded.distances import full_precision, roundoff

__all__ = ["Basis", "Sketch"]

WIDTHS = (7, 15, 31, 63, 127)  # dimensions m that a fit chooses from: with rho, whole cache lines
FINE, MANY = 512, 64  # dimensions of finer sketches, and how many false alarms are worth them
FEWER = 4  # times, than without them
SCAN = 1e-10  # seconds to read one number of the sketch: about 10 GB/s in float32
FETCH = 5e-5  # seconds to fetch and measure one reference from disk
CHUNK = 1 << 20  # bounds of one matrix product: they stay in the cache
FEW = 4096  # rows that are worth float32
MOST = 3e38  # what is further than float32 can tell is no nearer
TINY = 2.0**-100  # more than what is lost where float32 has no smaller numbers


@dataclass(frozen=True, slots=True)
class Basis:
    """Where a sketch looks: mu (D,) and P (m, D), float64."""

    mean: Tensor
    axes: Tensor

    def __post_init__(self) -> None:
        # Laid out so that x @ axes.T reads memory in order.
        object.__setattr__(self, "axes", self.axes.T.contiguous().T)

    @classmethod
    def fit(cls, sample: Tensor, radius: float | None = None) -> Basis:
        """Principal axes of `sample` (n, D), as many as make a scan cheapest.

        More axes cost memory and time, fewer let through references that are not within `radius`
        (if None, the distance that one pair in a hundred is closer than). Any choice is exact.
        """
        mean = sample.mean(0, dtype=torch.float64)
        x = sample.to(torch.float32) - mean.to(torch.float32)
        most = min(WIDTHS[-1], *x.shape)
        axes = _principal(x, most)
        widths = [m for m in WIDTHS if m < most] + [most]
        if len(x) < 2:
            return cls(mean, axes[: widths[0]].contiguous())
        false = _let_through(x[:1024], [axes[:m] for m in widths], radius)
        costs = [m * SCAN + share * FETCH for m, share in zip(widths, false, strict=True)]
        return cls(mean, axes[: widths[costs.index(min(costs))]].contiguous())

    def finer(self, sample: Tensor, radius: float | None, count: int) -> Basis | None:
        """FINE principal axes, where this basis lets through more than MANY of `count` rows.

        And where they let through far fewer: None for data that have no principal axes at all.
        """
        x = sample.to(torch.float32) - self.mean.to(torch.float32)
        if min(x.shape) < 4 * FINE:
            return None
        axes = _principal(x, FINE)
        coarse, fine = _let_through(x[:1024], [self.axes, axes], radius)
        if count * coarse < MANY or fine > coarse / FEWER:
            return None
        return Basis(self.mean, axes)

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
        length, sure = xx[:, 0].sqrt(), self._sure
        blur = (sure + (4 * sure) ** 0.5) * length + sure * vector_norm(self.mean)
        return torch.cat([s, rest], 1), blur

    @property
    def _sure(self) -> float:
        return 2.0**-51 * (len(self.mean) + 8)


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


class Sketch:
    """Sketches of N references, and lower bounds of their distances to any query.

    `core` (N, m + 1) is kept in float32 or bfloat16. `lost` (N,) is what rounding moved each by: a
    bound on the sketches that are kept, less what was lost on either side, is a bound on the
    points. One matrix product v gives all of them: if it is off by at most e |a_x| |a_z|, then

        |a_x - a_z|^2 >= (1 - e) (|a_x|^2 + |a_z|^2) - 2 v                                  (2)

    On a CPU, bfloat16 is multiplied as it is, which reads half the memory: products of bfloat16
    are exact in float32, and only their sum is rounded to it, by 2^-9.
    """

    def __init__(self, core: Tensor, lost: Tensor, square: Tensor | None = None):
        self.core, self.lost = core, up(lost)
        self.square = _squares(core) if square is None else square  # (N,) float32
        self.direct = core.dtype == torch.bfloat16 and core.device.type == "cpu"

    def __len__(self) -> int:
        return len(self.core)

    def pick(self, row: Tensor) -> Sketch:
        """The sketches of some rows (U,); of few in float32, for a sharper product."""
        core = self.core.index_select(0, row)
        core = core.to(torch.float32) if len(row) <= FEW else core
        return Sketch(core, self.lost[row], self.square[row])

    def bounds(self, a: Tensor, blur: Tensor) -> Tensor:
        """(B, N) float32: what the distances of queries a (B, m + 1) to all are at least.

        `blur` (B,) is what the sketches a are off by.
        """
        query, below, off, share = self._query(a, blur)
        found = torch.empty((len(a), len(self)), dtype=torch.float32, device=a.device)
        for part, v in self._products(query):
            d2 = v.to(torch.float32).add_(below).add_(self.square[part, None], alpha=share)
            d = d2.nan_to_num_(nan=0.0).clamp_(0, MOST).sqrt_()
            found[:, part] = (d - self.lost[part, None] - off).T
        return found

    def margins(self, a: Tensor, blur: Tensor, wide: Tensor) -> Tensor:
        """(N,) float32: how far the nearest query must move, at least, to be within each `wide`.

        `wide` (N,) float32 is each radius with what was `lost`. NaN where float32 overflowed.
        """
        query, below, off, share = self._query(a, blur)
        found = torch.empty(len(self), dtype=torch.float32, device=a.device)
        for part, v in self._products(query):
            # By steps of one dtype each: what mixes them is several times slower.
            torch.amin(v.to(torch.float32).add_(below), 1, out=found[part])
        found.add_(self.square, alpha=share).clamp_(0, MOST).sqrt_().sub_(wide)
        return found.sub_(float(off.max()))

    def within(self, a: Tensor, blur: Tensor, limit: Tensor) -> Tensor:
        """Places (V,) of all that may be within limit (B,) float64 of the query it is for.

        |a_x - a_z|^2 <= t^2 where t is the limit and all that was lost, at most: by (2) that needs
        xx - t^2 - 2 v <= -zz, of which the left side needs only its smallest.
        """
        query, below, off, share = self._query(a, blur)
        lost = float(self.lost.max()) if len(self) else 0.0
        far = (limit + off + lost) * (1 + 1e-6)
        rest = -up(far * far - below)
        found = []
        for part, v in self._products(query):
            gap = v.to(torch.float32).add_(rest).amin(1).add_(self.square[part], alpha=share)
            # What overflowed tells nothing.
            out = (gap > 0) & (gap < torch.inf)
            found.append((~out).nonzero()[:, 0] + part.start)
        return torch.cat(found)

    def _query(self, a: Tensor, blur: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
        """-2 a_x as it is multiplied, the part of a_x in (2), what it is off by, and 1 - e."""
        query, off = rounded(a, torch.bfloat16 if self.direct else torch.float32)
        sums = (a.shape[1] + 16) * 2.0**-24  # roundings of float32 on the way to a margin
        share = 1 - 2 * (sums + (2.0**-9 if self.direct else roundoff(a.shape[1])))  # e twice
        xx = query.to(torch.float64).square().sum(1)
        below = xx * share - TINY * (1 + xx.sqrt())
        return -2 * query.T, -up(-below), up(off + blur), share

    def _products(self, query: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """-2 <a_z, a_x> (n, B) for pieces of all rows, small enough for the cache."""
        size = max(1, CHUNK // max(1, query.shape[1]))
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            core = self.core[part] if self.direct else self.core[part].to(torch.float32)
            with full_precision(core.device.type):
                v = core @ query
            yield part, v


def rounded(a: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Sketches a (N, m + 1) in `dtype`, and (N,) float64 how far that moved each."""
    core = a.to(dtype)
    return core, vector_norm(a - core.to(torch.float64), dim=1) * (1 + 1e-9)


def up(x: Tensor) -> Tensor:
    """float64 as float32, never smaller."""
    if x.dtype == torch.float32:
        return x
    y = x.to(torch.float32)
    return torch.nextafter(y, y.new_full((), torch.inf))


def _squares(core: Tensor) -> Tensor:
    found = torch.empty(len(core), dtype=torch.float32, device=core.device)
    # Into one tensor: small ones that stay would keep the memory of the large between them.
    for into, part in zip(found.split(FEW), core.split(FEW), strict=True):
        torch.sum(part.float().square(), 1, out=into)
    return found
