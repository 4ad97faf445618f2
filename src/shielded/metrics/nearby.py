# SPDX-License-Identifier: Apache-2.0
"""How near images come to each other, to shielded ones, and to copies of them."""

from __future__ import annotations

import torch
from torch import Tensor

from shielded.errors import BadInput
from shielded.metrics.pairs import check, nearest, within

SSCD_COPY = 0.75  # cosine at which 90% of the pairs that SSCD finds are copies (Pizzi et al. 2022)


def nearest_distances(x: Tensor, z: Tensor | None = None) -> Tensor:
    """(N,) float64: how far each x (N, F) is from the nearest z (M, F), or from the others in x."""
    return nearest(x, z)[0][:, 0].sqrt()


def share_inside(made: Tensor, references: Tensor, radius: float | Tensor) -> float:
    """The share of made images (N, F) nearer than the radius to some reference (M, F).

    On the surface is outside, as for shields; `radius` is one number or (M,), one a reference.
    """
    radii = torch.as_tensor(radius, dtype=torch.float64, device=made.device)
    if (
        radii.ndim > 1
        or (radii.ndim and len(radii) != len(references))
        or not bool((radii >= 0).all())
    ):
        raise BadInput(
            f"A radius is one number from 0, or one for each of {len(references)} images."
        )
    if not radii.ndim:
        return float((nearest_distances(made, references) < radii).double().mean())
    inside = torch.zeros(len(made), dtype=torch.bool, device=made.device)
    for i, j, d2 in within(made, references, radii.new_full((len(made),), -1), radii.square()):
        inside[i[d2.sqrt() < radii[j]]] = True
    return float(inside.double().mean())


def similarity(x: Tensor) -> float:
    """In-batch similarity: the mean cosine of all pairs in x (N, F), from -1/(N - 1) to 1.

    sum_{i != j} u_i . u_j = |sum_i u_i|^2 - N for unit vectors u.
    """
    unit = directions(x)
    n = len(unit)
    if n < 2:
        raise BadInput("One image has no other to be like: take two or more.")
    return float((unit.sum(0).square().sum() - n) / (n * (n - 1)))


def closest_cosines(made: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """The largest cosine (N,), float64, of each made image to a reference, and which one it is."""
    d2, place = nearest(directions(made), directions(references))
    return 1 - d2[:, 0] / 2, place[:, 0]


def copy_rate(made: Tensor, references: Tensor, threshold: float = SSCD_COPY) -> float:
    """The share of made images (N, F) whose cosine to some reference (M, F) is above the threshold.

    Means what it says only on features whose cosines tell copies from mere likeness: those of
    SSCD, for which the default is, or others with a `copy_threshold` of their own.
    """
    return float((closest_cosines(made, references)[0] > threshold).double().mean())


def copy_threshold(altered: Tensor, originals: Tensor, precision: float = 0.9) -> float:
    """The lowest cosine above which that share of pairs are copies, for `copy_rate`.

    Row i of `altered` (N, F) is a copy of row i of `originals` (N, F) that was changed as copies
    are, by crops or colours; all other pairs are no copies. This is how SSCD's own was found.

    Raises:
        BadInput: where no cosine tells copies so well.
    """
    check(altered, originals)
    if len(altered) != len(originals):
        raise BadInput(f"{len(originals)} originals need one copy each, not {len(altered)}.")
    cosines = directions(altered) @ directions(originals).T
    values, order = cosines.flatten().sort(descending=True)
    right = (order % (len(originals) + 1) == 0).double().cumsum(0)  # places on the diagonal
    share = right / torch.arange(1, len(right) + 1, device=right.device)
    below = torch.cat([values[1:], values.new_tensor([-2.0])])
    good = ((share >= precision) & (below < values)).nonzero()
    if not len(good):
        raise BadInput("In no cosine of these features do copies show: use other features.")
    last = int(good.max())
    return float((values[last] + below[last]) / 2)


def directions(x: Tensor) -> Tensor:
    """Every row over its length, float64; raises where a row has none."""
    check(x)
    unit = x.to(torch.float64, copy=True)
    length = torch.linalg.vector_norm(unit, dim=1, keepdim=True)
    if not bool(length.all()):
        raise BadInput("An image whose features are all 0 has no direction: use other features.")
    return unit.div_(length)
