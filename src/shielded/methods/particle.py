# SPDX-License-Identifier: Apache-2.0
"""Particle guidance (Corso et al. 2023, arXiv 2310.13102), in its form with a fixed potential."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from shielded.checks import check_weight, check_window
from shielded.distances import squared_distances
from shielded.errors import NotApplicable
from shielded.guidance import Shift, Step, flat
from shielded.methods.method import Method

__all__ = ["ParticleGuidance", "bandwidth", "gradient"]


class ParticleGuidance(Method):
    """Noisy images of a group push each other away, through the gradient of a kernel's sum.

    The paper's fixed potential on the noisy images themselves,

        log Phi(x_1 .. x_n) = -(strength / 2) sum_ij k(x_i, x_j),  k(x, y) = exp(-|x - y|^2 / h),

    with h = m^2 / log n of the median distance m between different images, is added to the
    score: score' = score + grad log Phi. The bandwidth counts as a constant in the gradient. It
    does not keep the images' marginal distribution; the paper's other form, which learns a
    potential that does, is not here. In a sampler's x0 the same is
    delta = (sigma^2 / alpha) grad log Phi, in whatever scale the sampler keeps x_t.

    Args:
        strength: alpha_t of the paper, constant in t. It acts as strength / sqrt(D) for images of
            D numbers, so useful values are in the tens and hundreds.
        window: (start, stop) noise levels sigma / (alpha + sigma). The default is the paper's
            sigma >= 1, without the first instant of schedules that begin with pure noise, where
            no score says anything of an image.

    Raises:
        BadInput: for values that cannot be used.

    Example:
        >>> ParticleGuidance(30.0)
        ParticleGuidance(strength=30.0, window=(0.99, 0.5))
    """

    def __init__(self, strength: float = 30.0, window: tuple[float, float] = (0.99, 0.5)):
        self.strength = check_weight("strength", strength)
        self.window = check_window(window)

    def shift(self, step: Step) -> Shift | None:
        """(sigma^2 / alpha) grad log Phi, at the noisy images of this call."""
        start, stop = self.window
        if not (self.strength and step.alpha and start >= step.noise_level >= stop):
            return None
        x = flat(step.x_t)
        delta, others = torch.zeros_like(x), torch.zeros(len(x), dtype=torch.long, device=x.device)
        for rows in members(step.groups):
            if len(rows) > 1:
                delta[rows] = gradient(x[rows])
                others[rows] = len(rows) - 1
        if not bool(delta.any()):
            return None
        return Shift(delta * (self.strength * step.sigma**2 / step.alpha), others)

    def correct(
        self,
        x0: Tensor,
        groups: Sequence[Hashable] | None = None,
        noise_level: float | None = None,
    ) -> Tensor:
        """Not possible: the kernel is on the noisy images, which x0 does not show."""
        raise NotApplicable(
            "ParticleGuidance compares noisy images, not x0: use .on(pipe) or .denoiser(fn)."
        )

    def __repr__(self) -> str:
        return f"ParticleGuidance(strength={self.strength}, window={self.window})"


def bandwidth(x: Tensor) -> float:
    """h = m^2 / log n: m the median distance between different ones of the x (n, D), n >= 2."""
    pairs = torch.ones(len(x), len(x), dtype=torch.bool, device=x.device).triu(1)
    return float(squared_distances(x, x)[pairs].sqrt().quantile(0.5)) ** 2 / math.log(len(x))


def gradient(x: Tensor) -> Tensor:
    """grad_i -(1/2) sum_ij k(x_i, x_j) = sum_j (2 / h) k(x_i, x_j) (x_i - x_j), as (n, D).

    Equal images have no direction away from each other: there it is 0.
    """
    h = bandwidth(x)
    if not h:
        return torch.zeros_like(x)
    k = torch.exp(-squared_distances(x, x) / h)
    return (2 / h) * (k.sum(1, keepdim=True) * x - k @ x)


def members(groups: Sequence[Any]) -> list[list[int]]:
    """The places of each group's images."""
    found: dict[Any, list[int]] = {}
    for place, group in enumerate(groups):
        found.setdefault(group, []).append(place)
    return list(found.values())
