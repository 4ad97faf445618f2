# SPDX-License-Identifier: Apache-2.0
"""Determinantal point processes of k points: subsets S drawn with probability ~ det(L_S).

Kulesza and Taskar (2011, k-DPPs; 2012, the sampling algorithm); greedy maximum: Chen et al. (2018).
"""

from __future__ import annotations

import torch
from torch import Tensor

from shielded.errors import BadInput

__all__ = ["best", "kernel", "sample"]


def kernel(x: Tensor) -> Tensor:
    """(N, N) RBF kernel of points (N, D), float64; its bandwidth is the median distance."""
    d = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
    h = d[torch.ones_like(d).triu(1) > 0].median()
    return torch.exp(-d.square() / (2 * h * h))


def sample(likeness: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """k places (k,) of a kernel L (N, N), drawn exactly.

    First k eigenvectors, by elementary symmetric polynomials of the eigenvalues; then points one
    by one, each with the probability of its share in what is left of their span.
    """
    values, vectors = torch.linalg.eigh(_checked(likeness, k))
    v = vectors[:, _eigenvectors(values.clamp(min=0), k, generator)]
    found: list[int] = []
    for _ in range(k):
        share = v.square().sum(1)
        place = int(torch.multinomial(share / share.sum(), 1, generator=generator))
        found.append(place)
        # What is left of the span: those vectors that vanish at the place.
        pivot = int(v[place].abs().argmax())
        v = v - torch.outer(v[:, pivot] / v[place, pivot], v[place])
        v = torch.cat([v[:, :pivot], v[:, pivot + 1 :]], 1)
        v = torch.linalg.qr(v)[0] if v.shape[1] else v
    return torch.tensor(found)


def best(likeness: Tensor, k: int) -> Tensor:
    """k places (k,) of a kernel L (N, N), each the one that makes det(L_S) largest."""
    left = _checked(likeness, k).diagonal().clone()
    rows = left.new_zeros(k, len(left))
    found: list[int] = []
    for step in range(k):
        place = int(left.argmax())
        row = likeness[place].double() - rows[:step, place] @ rows[:step]
        rows[step] = row / left[place].clamp(min=1e-300).sqrt()
        left = left - rows[step].square()
        found.append(place)
        left[found] = -torch.inf
    return torch.tensor(found)


def _checked(likeness: Tensor, k: int) -> Tensor:
    if not 1 <= k <= len(likeness):
        raise BadInput(f"{k} of {len(likeness)} images cannot be chosen: draw more, or take fewer.")
    return likeness.double()


def _eigenvectors(values: Tensor, k: int, generator: torch.Generator) -> list[int]:
    """k places, each set with probability ~ the product of its eigenvalues."""
    values = values / values.max()
    n = len(values)
    e = values.new_zeros(k + 1, n + 1)  # e[j, m]: polynomial of degree j in the first m
    e[0] = 1
    for m in range(1, n + 1):
        e[1:, m] = e[1:, m - 1] + values[m - 1] * e[:-1, m - 1]
    found, j = [], k
    for m in range(n, 0, -1):
        if not j:
            break
        chance = values[m - 1] * e[j - 1, m - 1] / e[j, m]
        if m == j or float(torch.rand((), generator=generator, dtype=e.dtype)) < chance:
            found.append(m - 1)
            j -= 1
    return found
