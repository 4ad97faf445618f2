# SPDX-License-Identifier: Apache-2.0
"""For each of many points the protected image that is nearest in units of its radius, exactly.

B points, N images of one block, D flattened size
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.linalg import vector_norm

from shielded.distances import TINY, roundoff

BLOCK, NUMBERS = 2048, 2**23  # images of the set at a time, and numbers in them at most
POINTS = 1024  # points at a time
PAIRS = 32  # distances measured at a time
CROWD = 32  # points with more candidates are sifted in float64 first


@contextmanager
def bfloat16() -> Iterator[None]:
    """Let products of float32 round their factors to bfloat16, where a processor is quicker so."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # set for one backend alone: it is left as it is
        yield
        return
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass
class Nearest:
    """The best so far of points x (B, D): squared distance, distance / radius, row address.

    One product v rules out most pairs. With x', z' the points about the mean of x, rounded to
    bfloat16, off_x, off_z how far that moves them, and e the error of sums in float32,

        |x - z| >= |x' - z'| - off_x - off_z,   |x' - z'|^2 >= (1 - e) (|x'|^2 + |z'|^2) - 2 v

    What is left is measured in float64. Of images at the same distance the first counts.
    """

    x: Tensor
    square: Tensor = field(init=False)
    share: Tensor = field(init=False)
    row: np.ndarray = field(init=False)
    measured: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        count = len(self.x)
        self.x = self.x.to(torch.float32)
        self.mean = self.x.mean(0)
        self.rounded = self._rounded(self.x)
        self.square = torch.full((count,), inf, dtype=torch.float64)
        self.share = self.square.clone()
        self.row = np.zeros(count, np.uint64)

    def see(self, rows: np.ndarray, z: Tensor, radius: Tensor) -> None:
        """Images z (N, D) at row addresses, ascending over all calls, with radii (N,) above 0."""
        block = _Block(rows, z.to(torch.float32), radius)
        below, square, off = self._rounded(block.z)
        unit = (radius.reciprocal() * (1 - 1e-6)).float()
        for start in range(0, len(self.x), POINTS):
            u, uu, moved = (part[start : start + POINTS] for part in self.rounded)
            with bfloat16():
                v = u @ below.T
            low = torch.sub(uu[:, None], v, alpha=2).add_(square)
            low = low.nan_to_num_(0.0, 0.0, 0.0).clamp_(min=0).sqrt_()  # 0 where it overflowed
            self._judge(start, low.sub_(off).sub_(moved[:, None]).mul_(unit), block)

    def _judge(self, start: int, low: Tensor, block: "_Block") -> None:
        """Measure the pairs that lower bounds of the shares (b, N) do not rule out.

        The lowest of each point first: it rules out most of the others.
        """
        lowest = low.min(1)
        best = self.share[start : start + len(low)].float()
        point = (lowest.values <= best).nonzero()[:, 0]
        if not len(point):
            return
        first = lowest.indices[point]
        self._measure(point + start, first, block)
        near = low[point] <= self.share[point + start, None].float()
        near[torch.arange(len(point)), first] = False
        self._sift(point + start, near, block)
        for some in near.nonzero().split(PAIRS):
            self._measure(point[some[:, 0]] + start, some[:, 1], block)

    def _sift(self, point: Tensor, near: Tensor, block: "_Block") -> None:
        """Leave a few candidates (P, N) to points that have a crowd of them, as among copies."""
        crowded = (near.count_nonzero(1) > CROWD).nonzero()[:, 0]
        for some in crowded.split(PAIRS) if len(crowded) else ():
            image = near[some].any(0).nonzero()[:, 0]
            maybe = near[some][:, image]
            x, z = (p.double() - self.mean for p in (self.x[point[some]], block.z[image]))
            norms = x.square().sum(1)[:, None] + z.square().sum(1)
            low = (norms - 2 * x @ z.T - 1e-13 * norms).clamp(min=0) / block.radius[image].square()
            high = low + 2e-13 * norms / block.radius[image].square()
            maybe &= low <= high.masked_fill_(~maybe, inf).amin(1, keepdim=True)
            near[some[:, None], image] = maybe & (maybe.cumsum(1) <= CROWD)

    def _measure(self, point: Tensor, image: Tensor, block: "_Block") -> None:
        """Of pairs of points and images the lowest of each point, where it is a better one."""
        self.measured += len(point)
        square = self.x[point].double().sub_(block.z[image]).square_().sum(1)
        share = square.sqrt() / block.radius[image]
        order = np.lexsort((image.numpy(), share.numpy(), point.numpy()))
        best = torch.from_numpy(order[np.unique(point.numpy()[order], return_index=True)[1]])
        at, rows = point[best], block.rows[image[best].numpy()]
        first = torch.from_numpy(rows < self.row[at.numpy()])
        better = (share[best] < self.share[at]) | ((share[best] == self.share[at]) & first)
        at, best = at[better], best[better]
        self.square[at], self.share[at] = square[best], share[best]
        self.row[at.numpy()] = rows[better.numpy()]

    def _rounded(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Points (N, D) about the mean: x', (1 - e) |x'|^2 and off, all float32."""
        error = 2 * roundoff(x.shape[1] + 16)  # granted twice
        x = x - self.mean
        low = x.bfloat16().float()
        off = vector_norm(x - low, dim=1) + 2.0**-23 * vector_norm(x, dim=1)
        square = (1 - error) * vector_norm(low, dim=1).square() - TINY
        return low, square, (off * (1 + error)).nan_to_num_(inf, inf)


@dataclass(frozen=True, slots=True)
class _Block:
    """Some images of the set: row addresses (N,), latents (N, D), radii (N,)."""

    rows: np.ndarray
    z: Tensor
    radius: Tensor


def nearest(
    target: Any, x: Tensor, radius: float | None, tell: Callable[[float], None] | None = None
) -> Nearest:
    """The nearest image of a ProtectedSet to each of x (B, D); the set must not be empty.

    `radius` counts for every image; None: each image's own, or the set's, and images of radius 0,
    which shield nothing, only where there are no others. Reads the whole set, block by block.
    """
    found, seen, total = Nearest(x), 0, len(target)
    batch = max(1, min(BLOCK, NUMBERS // target.dim))
    for part in target.parts():
        own = torch.ones(len(part.rows), dtype=torch.float64)
        if radius is None:
            own = torch.from_numpy(target.radii(part)).nan_to_num(target.radius or 0.0)
        for rows, z in target.read(part, batch):
            r, own = own[: len(rows)], own[len(rows) :]
            real = r > 0
            if bool(real.any()):
                found.see(rows[real.numpy()], torch.tensor(z)[real], r[real])
            seen += len(rows)
            if tell is not None:
                tell(seen / total)
    if radius is None and bool(found.square.isinf().any()):
        return nearest(target, x, 0.0, tell)
    return found


def radii(entries: list[Any], default: float | None) -> list[float]:
    """The radius of each entry: its own, else the set's, else 0."""
    return [(default or 0.0) if entry.radius is None else entry.radius for entry in entries]
