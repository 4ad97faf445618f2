# SPDX-License-Identifier: Apache-2.0
"""Kernel repulsion (the thesis "Repulsion in Stable Diffusion 2", in the manner of SVGD)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from shielded.checks import check_weight, check_window
from shielded.distances import squared_distances
from shielded.errors import BadInput
from shielded.guidance import Shift, Step
from shielded.methods.method import Method
from shielded.methods.particle import bandwidth, gradient, members
from shielded.spaces.semantic import Semantic
from shielded.spaces.space import Space

__all__ = ["KernelRepulsion", "repulsion"]

VARIANTS = ("kernel", "score")


class KernelRepulsion(Method):
    """The images of a group push each other apart, in the latents or in what they show.

    With u_i the features of image i's x0 (in latent space x0 itself, in pixels clip(x0)), k(u, v) =
    exp(-|u - v|^2 / h) and h = m^2 / log n of the median distance m of the group's n images,

        kernel:  g_i = J_i^T sum_j (2 / h) k(u_i, u_j) (u_i - u_j)
        score:   g_i = J_i^T sum_j (2 / h) k(u_i, u_j) (u_i - u_j) / sum_j k(u_i, u_j)

    is added to the score: score' = score + strength g, in x0: delta = (sigma^2 / alpha) strength g.
    The first is the repulsive part of Stein variational gradient descent (Liu, Wang 2016), the
    gradient by which the kernel between the images falls; the second is minus the score of the
    images' own kernel density, which does not fade where they are far apart. J_i = du_i / dx0
    takes the push back through embedding and decoder. The thesis compares noisy images; here it is
    x0, which a decoder can make pictures of.

    Args:
        space: `Semantic` with an embedding (the thesis has colour, location and style), or None:
            the latents, where an RBF kernel hardly sees a difference, as the thesis says.
        strength: of the push. Useful values grow with the number of pixels: 3 to 10 for pictures of
            32 x 32 in colour, location and style alike; the thesis takes 1000 at 512 x 512.
        variant: "kernel" or "score".
        attract: pull the images together instead.
        window: (start, stop) noise levels sigma / (alpha + sigma). The default leaves out the
            first instant of schedules that begin with pure noise, where alpha is 0.
        schedule: a factor on the strength by the noise level, 1 everywhere by default.

    Raises:
        BadInput: for values that cannot be used.

    Example:
        >>> from shielded.spaces import Colour
        >>> KernelRepulsion(Semantic(Colour()))
        KernelRepulsion(Semantic(Colour()), strength=5.0, variant='kernel')
    """

    def __init__(
        self,
        space: Space | None = None,
        strength: float = 5.0,
        variant: str = "kernel",
        attract: bool = False,
        window: tuple[float, float] = (0.99, 0.0),
        schedule: Callable[[float], float] | None = None,
    ):
        self.strength = check_weight("strength", strength)
        if variant not in VARIANTS:
            raise BadInput(f"variant is {variant!r}: it must be one of {', '.join(VARIANTS)}.")
        self.space, self.variant, self.attract = space, variant, bool(attract)
        self.window = check_window(window)
        self.schedule = schedule

    def shift(self, step: Step) -> Shift | None:
        """(sigma^2 / alpha) strength g, at the expected outputs of this call."""
        start, stop = self.window
        factor = (
            self.strength
            if self.schedule is None
            else self.strength * self.schedule(step.noise_level)
        )
        if not (factor and step.alpha and step.sigma and start >= step.noise_level >= stop):
            return None
        semantic = self.space if isinstance(self.space, Semantic) else None
        u = step.expected if semantic is None else semantic.features(step.x0)
        g, others = torch.zeros_like(u), torch.zeros(len(u), dtype=torch.long, device=u.device)
        for rows in members(step.groups):
            if len(rows) > 1:
                g[rows] = repulsion(u[rows], self.variant)
                others[rows] = len(rows) - 1
        if not bool(g.any()):
            return None
        if semantic is not None:
            g = semantic.pull(step.x0, g)
        delta = g * (factor * step.sigma**2 / step.alpha * (-1 if self.attract else 1))
        lost = ~delta.isfinite().all(1)
        delta[lost], others[lost] = 0.0, 0
        return Shift(delta, others)

    def __repr__(self) -> str:
        where = "" if self.space is None else f"{self.space!r}, "
        way = ", attract=True" if self.attract else ""
        return f"KernelRepulsion({where}strength={self.strength}, variant={self.variant!r}{way})"


def repulsion(u: Tensor, variant: str = "kernel") -> Tensor:
    """g (n, F) of features u (n, F): - grad_i sum_j k(u_i, u_j), or - grad_i log of that sum.

    Equal features have no direction away from each other: there it is 0.
    """
    g, h = gradient(u), bandwidth(u)
    if variant == "kernel" or not h:
        return g
    return g / torch.exp(-squared_distances(u, u) / h).sum(1, keepdim=True)
