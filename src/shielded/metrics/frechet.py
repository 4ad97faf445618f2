# SPDX-License-Identifier: Apache-2.0
"""Frechet distances between sets of features: FID on Inception's, FD-DINOv2 on DINOv2's.

N images, F numbers each.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from shielded.errors import BadInput
from shielded.metrics.pairs import check

ROWS = 4096


class Gaussian(NamedTuple):
    """What a Frechet distance knows of a set: mean (F,) and covariance (F, F), float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Gaussian:
        """Of features (N, F); the covariance is the unbiased one, over N - 1."""
        check(features)
        if len(features) < 2:
            raise BadInput("One image has no covariance: take two or more.")
        mean = features.mean(0, dtype=torch.float64)
        scatter = mean.new_zeros(len(mean), len(mean))
        for part in features.split(ROWS):
            apart = part.to(torch.float64) - mean
            scatter.addmm_(apart.T, apart)
        return cls(mean, scatter / (len(features) - 1))


def frechet(real: Tensor | Gaussian, made: Tensor | Gaussian) -> float:
    """|m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2)), float64 (Dowson and Landau 1982).

    FID (Heusel et al. 2017) is this on the 2,048 features of Inception, FD-DINOv2 (Stein et al.
    2023, Karras et al. 2024) on the class token of DINOv2 ViT-L/14; both with 50,000 made images
    against all real ones, and both fall with the number of images: compare equal numbers only.

    With C = A A', the trace of the root is the sum of the singular values of A1' A2: no root of a
    product that is not symmetric, no complex rest, nothing lost where C has no full rank.
    """
    one, two = (g if isinstance(g, Gaussian) else Gaussian.of(g) for g in (real, made))
    if one.mean.shape != two.mean.shape:
        raise BadInput(
            f"Features of {len(one.mean)} and of {len(two.mean)} numbers do not compare: "
            "take both from one network."
        )
    common = torch.linalg.svdvals(_factor(one.covariance).T @ _factor(two.covariance)).sum()
    apart = (one.mean - two.mean).square().sum()
    return float(apart + one.covariance.trace() + two.covariance.trace() - 2 * common)


def _factor(covariance: Tensor) -> Tensor:
    """A with A A' = C, without the columns that are rounding alone."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > len(values) * torch.finfo(values.dtype).eps * values[-1]
    return vectors[:, kept] * values[kept].sqrt()
