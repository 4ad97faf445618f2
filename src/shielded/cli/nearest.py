# SPDX-License-Identifier: Apache-2.0
"""For each of many points the protected image that is nearest in units of its radius, exactly.

B points, N images of one block, D flattened size
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shielded.repel import roundoff

BLOCK, NUMBERS = 2048, 2**23  # images of the set at a time, and numbers in them at most
POINTS = 1024  # points at a time
PAIRS = 512  # distances measured at a time
CROWD, SIFTED = 32, 256  # points with so many candidates are sifted in float64, some at a time


@dataclass
class Nearest:
    """The best so far of points x (B, D): squared distance, weight 1 / radius^2, row address."""

    x: Tensor
    square: Tensor = field(init=False)
    weight: Tensor = field(init=False)
    row: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        count = len(self.x)
        self.x = self.x.to(torch.float32)
        self.xx = _squares(self.x)
        self.square = torch.full((count,), inf, dtype=torch.float64)
        self.weight = torch.ones(count, dtype=torch.float64)
        self.row = np.zeros(count, np.uint64)

    def see(self, rows: np.ndarray, z: Tensor, weight: Tensor) -> None:
        """Images z (N, D) at row addresses, with their weights (N,).

        One float32 product rules out most pairs. Its error is at most its roundoff (xx + zz), which
        is granted twice; what is left is measured in float64.
        """
        z = z.to(torch.float32)
        zz, w = _squares(z), weight.float()
        slack = 2 * roundoff(z.shape[1] + 2)
        for start in range(0, len(self.x), POINTS):
            part = slice(start, start + POINTS)
            xx = self.xx[part]
            low = torch.addmm(((1 - slack) * zz).float(), self.x[part], z.T, alpha=-2)
            low.add_(((1 - slack) * xx).float()[:, None]).mul_(w)
            lowest = low.min(1)
            at = lowest.indices  # at most so far away: a bound where there is none as yet
            most = lowest.values + 2 * slack * (xx + zz[at]) * weight[at]
            bound = torch.minimum(self.square[part] * self.weight[part], most)
            near = low <= (bound * (1 + 1e-6)).float()[:, None]
            self._sift(start, near, z, zz, weight)
            for pairs in near.nonzero().split(PAIRS):
                point, image = pairs[:, 0] + start, pairs[:, 1]
                square = (self.x[point].double() - z[image].double()).square().sum(1)
                self._keep(point, square, weight[image], rows[image.numpy()])

    def _sift(self, start: int, near: Tensor, z: Tensor, zz: Tensor, weight: Tensor) -> None:
        """Leave one candidate to points that have a crowd of them, as among copies."""
        for some in (near.sum(1) > CROWD).nonzero()[:, 0].split(SIFTED):
            x = self.x[start + some].double()
            share = (self.xx[start + some, None] + zz - 2 * x @ z.double().T).clamp(min=0) * weight
            best = share.masked_fill_(~near[some], inf).argmin(1)
            near[some] = torch.nn.functional.one_hot(best, len(z)).bool()

    def _keep(self, point: Tensor, square: Tensor, weight: Tensor, row: np.ndarray) -> None:
        """Of the measured pairs of each point the lowest, where it is lower than what it has."""
        share = square * weight
        order = share.argsort(stable=True)
        first = np.unique(point[order].numpy(), return_index=True)[1]
        best = order[torch.from_numpy(first)]
        best = best[share[best] < (self.square * self.weight)[point[best]]]
        at = point[best]
        self.square[at], self.weight[at] = square[best], weight[best]
        self.row[at.numpy()] = row[best.numpy()]


def _squares(x: Tensor) -> Tensor:
    """Squared lengths (N,) in float64."""
    return torch.linalg.vector_norm(x, dim=1, dtype=torch.float64).square()


def nearest(
    target: Any, x: Tensor, radius: float | None, tell: Callable[[float], None] | None = None
) -> Nearest:
    """The nearest image of a ProtectedSet to each of x (B, D); the set must not be empty.

    `radius` counts for every image; None: each image's own, or the set's, and images of radius 0,
    which shield nothing, only where there are no others. Reads the whole set, block by block.
    """
    found, seen, total = Nearest(x), 0, len(target)
    for rows, z in _blocks(target):
        weight, seen = torch.ones(len(rows), dtype=torch.float64), seen + len(rows)
        if radius is None:
            r = torch.tensor(radii(target.labels(rows), target.radius), dtype=torch.float64)
            rows, z, weight = rows[r.numpy() > 0], z[r > 0], r[r > 0].square().reciprocal()
        if len(rows):
            found.see(rows, z, weight)
        if tell is not None:
            tell(seen / total)
    if radius is None and bool(found.square.isinf().any()):
        return nearest(target, x, 0.0, tell)
    return found


def radii(entries: list[Any], default: float | None) -> list[float]:
    """The radius of each entry: its own, else the set's, else 0."""
    return [(default or 0.0) if entry.radius is None else entry.radius for entry in entries]


def _blocks(target: Any) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Row addresses (N,) and latents (N, D) of the set."""
    batch = max(1, min(BLOCK, NUMBERS // target.dim))
    for part in target.parts():
        for rows, z in target.read(part, batch):
            yield rows, torch.tensor(z)  # a copy: Arrow's memory is read-only
