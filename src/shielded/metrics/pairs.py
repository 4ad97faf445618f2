# SPDX-License-Identifier: Apache-2.0
"""Which of many points are near each other: exact, in tiles of bounded memory.

One float32 product bounds every squared distance from below, and the few pairs that the bound
cannot rule out are measured in float64, difference by difference: no decision rests on float32.

N points x, M points z, F numbers each.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from shielded.distances import full_precision, roundoff
from shielded.errors import BadInput, NonFinite

TILE = 2**24  # numbers in a tile of bounds, 64 MiB
PART = 2**20  # numbers in a part of float64 differences, 8 MiB
LARGEST = 1e15  # squares of larger numbers may overflow in float32


def check(*sets: Tensor) -> None:
    """Raise unless every set is (N, F), not empty, finite, and all have the same F."""
    for x in sets:
        if x.ndim != 2 or not x.numel() or x.shape[1] != sets[0].shape[1]:
            shapes = " and ".join(str(tuple(x.shape)) for x in sets)
            raise BadInput(
                f"Features are (images, numbers), all with as many numbers, not {shapes}."
            )
        low, high = x.aminmax()
        if not bool((low > -LARGEST) & (high < LARGEST)):  # NaN is neither
            raise NonFinite(
                f"Features hold NaN or numbers beyond {LARGEST:.0e}: look at their images."
            )


def nearest(x: Tensor, z: Tensor | None = None, k: int = 1) -> tuple[Tensor, Tensor]:
    """The k points of z nearest to each x: squared distances (N, k), float64, and places (N, k).

    Ascending. Without z they are found in x itself, where a point is no neighbour of its own
    (but its duplicates are).
    """
    own, z = z is None, x if z is None else z
    check(x, z)
    if not 1 <= k <= len(z) - own:
        raise BadInput(f"Among {len(z)} images none has {k} neighbours: take more, or a smaller k.")
    found = [_nearest(x, z, tile, start, k, own) for start, tile in _tiles(x, z)]
    return torch.cat([d2 for d2, _ in found]), torch.cat([j for _, j in found])


def within(x: Tensor, z: Tensor, x_reach: Tensor, z_reach: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Places i, j and |x_i - z_j|^2 of all pairs where it is at most x_reach_i or z_reach_j.

    Reaches (N,) and (M,) are squared radii, float64; those of a ball that holds nothing are -1.
    Some pairs that are a little farther apart come along, tile by tile of x.
    """
    check(x, z)
    x_top, z_top = _above(x_reach), _above(z_reach)
    for start, tile in _tiles(x, z):
        far = (tile > x_top[start : start + len(tile), None]).logical_and_(tile > z_top)
        i, j = far.logical_not_().nonzero(as_tuple=True)
        yield start + i, j, _measure(x, z, start + i, j)


def _tiles(x: Tensor, z: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Row number and lower bounds (rows, M) of |x_i - z_j|^2, float32; the tile is used again.

    The bound is one product of length F + 2, (x, (1 - c)|x|^2, 1) . (-2z, 1, (1 - c)|z|^2), about
    the mean of z: rounding takes at most c (|x|^2 + |z|^2) from it.
    """
    origin = z.mean(0, dtype=torch.float64)
    some = max(1, TILE // z.shape[1])  # points made ready at a time
    right = torch.empty(len(z), z.shape[1] + 2, dtype=torch.float32, device=z.device)
    for rows, part in zip(right.split(some), z.split(some), strict=True):
        rows[:, :-2], rows[:, -1] = _rough(part, origin)
    right[:, :-2] *= -2
    right[:, -2] = 1
    height = max(1, min(some, TILE // len(z)))
    tile = right.new_empty(min(height, len(x)), len(z))
    left = right.new_ones(len(tile), right.shape[1])
    for start in range(0, len(x), height):
        part = x[start : start + height]
        left[: len(part), :-2], left[: len(part), -2] = _rough(part, origin)
        with full_precision(x.device.type):
            bounds = torch.mm(left[: len(part)], right.T, out=tile[: len(part)])
        yield start, bounds


def _rough(x: Tensor, origin: Tensor) -> tuple[Tensor, Tensor]:
    """Points about the origin as float32, and (1 - c)|x|^2."""
    points = (x.to(torch.float64) - origin).float()
    squares = points.double().square_().sum(1)
    return points, squares * (1 - 2 * roundoff(x.shape[1] + 8))


def _above(squares: Tensor) -> Tensor:
    """Float32 numbers above the squares, by more than products of tiny numbers may lose."""
    return squares.float() * (1 + 2**-22) + 1e-36


def _nearest(
    x: Tensor, z: Tensor, tile: Tensor, start: int, k: int, own: bool
) -> tuple[Tensor, Tensor]:
    rows = torch.arange(len(tile), device=x.device)
    if own:
        tile[rows, start + rows] = torch.inf
    some = tile.topk(k, largest=False).indices  # the farthest of any k bounds the k-th distance
    i, j = rows.repeat_interleave(k), some.flatten()
    d2 = _measure(x, z, start + i, j)
    reach = d2.view(-1, k).amax(1)
    near = tile > _above(reach)[:, None]
    near = near.logical_not_().logical_and_((reach > 0)[:, None])  # nothing is nearer than 0
    near.scatter_(1, some, False)
    more_i, more_j = near.nonzero(as_tuple=True)
    if own:
        apart = more_i + start != more_j
        more_i, more_j = more_i[apart], more_j[apart]
    i, j = torch.cat([i, more_i]), torch.cat([j, more_j])
    d2 = torch.cat([d2, _measure(x, z, start + more_i, more_j)])
    order = d2.argsort(stable=True)
    order = order[i[order].argsort(stable=True)]  # by row, and in it by distance
    first = torch.searchsorted(i[order], rows)
    chosen = order[first[:, None] + torch.arange(k, device=x.device)]
    return d2[chosen], j[chosen]


def _measure(x: Tensor, z: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """|x_i - z_j|^2 of the given pairs, float64."""
    size = max(1, PART // x.shape[1])
    parts = [
        (x[a].to(torch.float64) - z[b].to(torch.float64)).square_().sum(1)
        for a, b in zip(i.split(size), j.split(size), strict=True)
    ]
    return torch.cat(parts) if parts else x.new_empty(0, dtype=torch.float64)
