# SPDX-License-Identifier: Apache-2.0
"""Precision and recall of Kynkaanniemi et al. (2019)."""

import torch
from torch import Tensor


def precision_recall(real: Tensor, made: Tensor, k: int = 3) -> tuple[float, float]:
    """(precision, recall) from features real (N, F) and made (M, F).

    Precision is the share of made images that lie in the ball of some real one, whose radius is
    the distance to its k-th neighbour; recall is the same with the roles exchanged.
    """
    real, made = real.to(torch.float64), made.to(torch.float64)
    return _covered(made, real, k), _covered(real, made, k)


def _covered(points: Tensor, centres: Tensor, k: int, rows: int = 4096) -> float:
    reach = torch.cat(
        [_distances(c, centres).kthvalue(k + 1, 1).values for c in centres.split(rows)]
    )
    inside = [(_distances(p, centres) <= reach).any(1) for p in points.split(rows)]
    return float(torch.cat(inside).double().mean())


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
