# SPDX-License-Identifier: Apache-2.0
"""What methods share that push x0 away from references, each reference with a weight."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shielded.checks import check_weight, check_window
from shielded.distances import squared_distances
from shielded.errors import BadInput
from shielded.guidance import Shift, Step
from shielded.landing import Landing
from shielded.methods.method import Method
from shielded.shields import Field, Shields
from shielded.shields.shields import Lasting, check_radius
from shielded.spaces.space import Space

__all__ = ["Near", "ReferenceMethod", "kernel", "median_bandwidth"]


@dataclass(frozen=True, slots=True)
class Near:
    """References z (M, D) float64, radii r (M,), who counts for whom (B, M), |x_b - z_m|^2."""

    z: Tensor
    r: Tensor
    allowed: Tensor
    d2: Tensor

    @property
    def count(self) -> Tensor:
        """(B, 1) how many references each image has, at least 1."""
        return self.allowed.sum(1, keepdim=True).clamp(min=1)


class ReferenceMethod(Method):
    """delta_b = strength sum_m w_bm (x_b - z_m). A subclass gives the weights (B, M).

    x is the expected image as it would be returned: x0, clipped where finished images are pixels.

    All references of a batch, a history and given images count, however far they are. A protected
    set on disk names those alone whose radius x0 is inside of, each for the images inside it: at
    the radius their push ends. An image that lies on a reference has no direction away from it.
    """

    def __init__(
        self,
        shields: Shields | None,
        radius: float | None,
        strength: float,
        window: tuple[float, float],
    ):
        self.shields = Shields.batch() + Shields.history() if shields is None else shields
        self.radius = check_radius(radius)
        self.strength = check_weight("strength", strength)
        self.window = check_window(window)

    def weights(self, step: Step, near: Near) -> Tensor:
        """w (B, M), what is not allowed left as it comes."""
        raise NotImplementedError

    def prepare(self, pipe: Any) -> None:
        """Refuse references that were made for another model."""
        self.shields.check(pipe)

    def begin(self) -> None:
        """Take up what protected sets have become meanwhile."""
        self.shields.refresh()

    def shift(self, step: Step) -> Shift | None:
        """The weighted sum of the ways away from the references."""
        start, stop = self.window
        if not (self.strength and start >= step.noise_level >= stop):
            return None
        self.shields.fit(tuple(step.x0.shape[1:]))
        x = step.expected
        near = self._near(x, step.groups)
        if not bool(near.allowed.any()):
            return None
        pushed = near.allowed & (near.d2 > 0)
        weight = torch.where(pushed, self.weights(step, near), 0.0)
        delta = self.strength * (weight.sum(1, keepdim=True) * x - weight @ near.z)
        active = (weight > 0).sum(1) * delta.any(1)  # a push may be too weak for a float64
        return Shift(delta, active) if bool(active.any()) else None

    def land(self, sample: Tensor, space: Space, step: Step) -> Landing | None:
        """Remember the finished images; with no ball to be clear of, nothing is certified."""
        histories = self.shields.histories
        measured = space.measure(sample) if histories else sample
        for history in histories:
            history.remember(measured, step.groups)
        return None

    def forget(self) -> None:
        """Empty the history."""
        for history in self.shields.histories:
            history.forget()

    def _near(self, x: Tensor, groups: Sequence[Hashable]) -> Near:
        """`closest` of a batch, a history and given images names all that they have."""
        parts = []
        for source in self.shields.sources:
            r = source.radius if source.radius is not None else self.radius or 0.0
            ask = source.references if isinstance(source, Lasting) else source.closest
            parts.append((source, r, ask(x, groups, r)))
        field = Field(x, parts)
        d2 = squared_distances(x, field.z)
        whole = [x.new_full((len(part.z),), part.whole).bool() for _, _, part in parts]
        counts = torch.cat(whole) | (d2 < field.r**2)
        return Near(field.z, field.r, field.allowed & counts, d2)


def kernel(d2: Tensor, variance: Tensor | float) -> Tensor:
    """k = exp(-d2 / (2 variance)), of the same shape; 1 where both are 0."""
    return torch.exp(-torch.where(d2 > 0, d2 / (2 * variance), 0.0))


def median_bandwidth(near: Near) -> Tensor:
    """sigma^2 (B, 1) with 2 sigma^2 = m^2 / log(1 + n), m the median distance to n references.

    The rule of `particle.bandwidth`, for one image and those that it keeps away from; interpolated
    where n is even, and 0 where all of them are where the image is.
    """
    d = torch.where(near.allowed, near.d2.sqrt(), torch.nan)
    m = d.nanquantile(0.5, dim=1, keepdim=True)
    return m.square() / (2 * (1 + near.count).log())


def check_bandwidth(bandwidth: float | None) -> float | None:
    """The bandwidth as a float, or an error unless it is positive and finite."""
    if bandwidth is not None and not (math.isfinite(bandwidth) and bandwidth > 0):
        raise BadInput(f"bandwidth is {bandwidth}: it must be finite and > 0, or None.")
    return None if bandwidth is None else float(bandwidth)


def check_reach(shields: Shields, radius: float | None) -> None:
    """Raise BadInput where a protected set has no radius to be asked for."""
    for source in shields.sources:
        if isinstance(source, Lasting) and source.radius is None and radius is None:
            raise BadInput(
                f"{source!r} has no radius: pass radius=, up to where its images are asked for."
            )
