# SPDX-License-Identifier: Apache-2.0
"""The posterior shield: Doob's h-transform as Appendix A of SPELL approximates it (2410.06025)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from torch import Tensor

from shielded.checks import check_weight
from shielded.errors import BadInput
from shielded.guidance import Step
from shielded.landing import Landing, land
from shielded.methods.chi_square import outside
from shielded.methods.reference import Near, ReferenceMethod
from shielded.shields import Shields
from shielded.spaces.space import Space

__all__ = ["PosteriorShield"]


class PosteriorShield(ReferenceMethod):
    """Soft shields: the gradient of the log probability that the image ends outside all of them.

    With DPS p(x0 | x_t) is taken for N(m, s^2 I), m the expected output, and the shields for
    independent. Then |x0 - z_k|^2 / s^2 is non-central chi-square with D degrees of freedom and
    lambda_k = |m - z_k|^2 / s^2, and (Appendix A, and Eq. 7 for the form)

        h = prod_k P(|x0 - z_k| > r_k),    grad_m log h = sum_k w_k (m - z_k),
        w_k = (F_{D,lambda} - F_{D+2,lambda}) / (s^2 (1 - F_{D,lambda}))  at r_k^2 / s^2,

    by d F_D / d lambda = (F_{D+2} - F_D) / 2. The gradient with respect to x_t is that by m times
    dm / dx_t = (alpha / sigma^2) Cov(x0 | x_t) (Tweedie's formula, second order), and the
    covariance is s^2 I by the same approximation: so no network is differentiated, and
    score' = score + grad_{x_t} log h is in a sampler's x0

        delta = (sigma^2 / alpha) grad_{x_t} log h = s^2 sum_k w_k (m - z_k).

    For one shield m + delta is the mean of N(m, s^2 I) outside the ball. As s goes to 0 delta
    becomes SPELL's Eq. 5. The variance is that of data of deviation tau in every number,

        s^2 = tau^2 sigma^2 / (alpha^2 tau^2 + sigma^2),

    which for tau = 1 is the r_t^2 of pseudoinverse guidance (Song et al. 2023). In many
    dimensions N(m, s^2 I) has hardly anything within s sqrt(D) of any point: until s sqrt(D) is
    about r, delta is next to nothing. A smaller tau acts earlier.

    Nothing is guaranteed: finished images are certified, but not moved. All references of a batch,
    a history and given images count, however far they are; of a protected set those whose radius
    x0 is inside of, so at the radius their push ends at once. On a reference there is no push.

    Args:
        shields, radius: as for `Spell`.
        strength: the factor on delta; 1 is the approximation itself.
        deviation: tau, in the units of the sampler's latents.
        window: (start, stop) noise levels sigma / (alpha + sigma) between which x0 is moved.

    Raises:
        BadInput: for values that cannot be used.

    Example:
        >>> PosteriorShield(Shields.batch(), radius=20.0)
        PosteriorShield(Shields.batch(), radius=20.0, strength=1.0, deviation=1.0)
    """

    def __init__(
        self,
        shields: Shields | None = None,
        radius: float | None = None,
        strength: float = 1.0,
        deviation: float = 1.0,
        window: tuple[float, float] = (1.0, 0.0),
    ):
        super().__init__(shields, radius, strength, window)
        self.shields.need(radius)
        self.deviation = check_weight("deviation", deviation)

    def variance(self, step: Step) -> float:
        """s^2 = tau^2 sigma^2 / (alpha^2 tau^2 + sigma^2); 0 where there is no noise."""
        if not step.sigma:
            return 0.0
        s = self.deviation / math.hypot(1, self.deviation * step.alpha / step.sigma)
        return s * s

    def weights(self, step: Step, near: Near) -> Tensor:
        """s^2 w_k."""
        _, v = outside(near.d2, near.r.square(), self.variance(step), near.z.shape[1])
        return v

    def land(self, sample: Tensor, space: Space, step: Step) -> Landing:
        """Certify the finished images as they are, and remember them."""
        landing = land(
            sample, self.shields, step.groups, self.radius, space, lambda: sample, move=False
        )
        for history in self.shields.histories:
            history.remember(landing.measured, step.groups)
        return landing

    def correct(
        self,
        x0: Tensor,
        groups: Sequence[Hashable] | None = None,
        noise_level: float | None = None,
    ) -> Tensor:
        """x0 in, x0 out (B, ...), at sigma / (alpha + sigma) = `noise_level`, which is needed."""
        if noise_level is None:
            raise BadInput("how sure x0 is depends on the noise: pass noise_level=.")
        return super().correct(x0, groups, noise_level)

    def __repr__(self) -> str:
        return (
            f"PosteriorShield({self.shields!r}, radius={self.radius}, strength={self.strength}, "
            f"deviation={self.deviation})"
        )
