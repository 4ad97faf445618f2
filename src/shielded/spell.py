# SPDX-License-Identifier: Apache-2.0
"""SPELL, sparse repellency (arXiv 2410.06025): the method of the paper."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from shielded.checks import check_weight, check_window
from shielded.distances import squared_distances
from shielded.errors import BadInput, ShieldedError
from shielded.guidance import Guidance, Shift, Step, finite, flat
from shielded.landing import Landing, land
from shielded.pull import pulled
from shielded.repel import fixed_directions, project, repel_sum
from shielded.shields import Field, Shields
from shielded.shields.shields import check_radius
from shielded.spaces.semantic import Semantic
from shielded.spaces.space import Space

__all__ = ["Spell"]

OVERLAP = ("project", "sum")
ROUNDS = 4  # at one sampling call, of moves that a wall of the box cut short
LONGER = 16.0  # times, than what is missing, that the next of them is at most
CLOSE = 0.01  # of a move, that is missing before the last of them


class Spell(Guidance):
    """Keep expected outputs outside balls around references, and leave all others untouched.

    Args:
        shields: what to keep away from; by default the batch and the history.
        radius: of every shield without its own, in the units of the sampler's latents (L2);
            `calibrate` measures one.
        overcompensation: lam, the factor on every move; 1.6 is good on several models.
        overlap: "project" moves to one point outside all shields that overlap; "sum" adds the
            single moves up, as the paper does. With one active shield both are Eq. 5.
        window: (start, stop) noise levels sigma / (alpha + sigma) between which x0 is moved.
        space: where distances are measured; by default that of the pipeline's latents, or of the
            pictures that x0 is clipped to, where those are pixels. With a
            `shielded.spaces.Semantic` the radius is in units of its features.
        every: look at every so many sampling calls only, the first and so on.
        landing: move finished images that are still inside. If False they are only certified.

    Raises:
        BadInput: for values that cannot be used.

    Example:
        >>> Spell(Shields.batch(), radius=20.0)
        Spell(Shields.batch(), radius=20.0, overcompensation=1.0, overlap='project')
    """

    def __init__(
        self,
        shields: Shields | None = None,
        radius: float | None = None,
        overcompensation: float = 1.0,
        overlap: str = "project",
        window: tuple[float, float] = (1.0, 0.0),
        space: Space | None = None,
        landing: bool = True,
        every: int = 1,
    ):
        self.shields = Shields.batch() + Shields.history() if shields is None else shields
        self.radius = check_radius(radius)
        self.shields.need(radius)
        self.overcompensation = check_weight("overcompensation", overcompensation)
        if overlap not in OVERLAP:
            raise BadInput(f"overlap is {overlap!r}: it must be one of {', '.join(OVERLAP)}.")
        self.overlap, self.window = overlap, check_window(window)
        if every < 1:
            raise BadInput(f"every is {every}: it must be 1 or more.")
        self.space, self.landing = space, landing
        self.every, self._calls = int(every), 0

    def prepare(self, pipe: Any) -> None:
        """Refuse shields that were made for another model, or in another space."""
        self.shields.check(pipe, self.space)

    def begin(self) -> None:
        """Take up what protected sets have become meanwhile."""
        self.shields.refresh()
        self._calls = 0

    def shift(self, step: Step) -> Shift | None:
        """Eq. 5 and Eq. 8, or the move outside of overlapping shields; in a box, within it."""
        start, stop = self.window
        self._calls += 1
        if (self._calls - 1) % self.every or not start >= step.noise_level >= stop:
            return None
        if isinstance(self.space, Semantic):
            return self._seen(step, self.space)
        self.shields.fit(tuple(step.x0.shape[1:]))
        x = step.expected
        field = self._field(x, step)
        if not field.may_hold(x):
            return None
        spare = _once(lambda: _spare(step))
        y, near = self._outside(x, field, step.groups, spare, step.box)
        if not bool(near.any()):
            return None
        if step.box is not None:
            # Numbers beyond a wall that stay there are as good as on it: they are left alone.
            x = torch.where(y == x, x, flat(step.x0))
        return Shift((y - x).mul_(self.overcompensation), near.sum(1))

    def land(self, sample: Tensor, space: Space, step: Step) -> Landing:
        """Check the returned images, move those inside, remember all of them."""
        landing = land(
            sample,
            self.shields,
            step.groups,
            self.radius,
            space,
            lambda: _spare(step),
            move=self.landing,
        )
        for history in self.shields.histories:
            history.remember(landing.measured, step.groups)
        return landing

    def forget(self) -> None:
        """Empty the history."""
        for history in self.shields.histories:
            history.forget()

    def _seen(self, step: Step, space: Semantic) -> Shift | None:
        u = space.features(step.x0)
        self.shields.fit(tuple(u.shape[1:]))
        field = self._field(u, step)
        if not field.may_hold(u):
            return None
        spare = _once(lambda: fixed_directions(len(u), u))
        moved = pulled(
            space,
            step.x0,
            u,
            lambda u: self._outside(u, field, step.groups, spare),
            self.overcompensation,
        )
        return None if moved is None else Shift(moved[0], moved[1].sum(1))

    def _outside(
        self,
        x: Tensor,
        field: Field,
        groups: tuple[Hashable, ...],
        spare: Callable[[], Tensor],
        box: tuple[float, float] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Where x (B, D) should be instead, and the shields (B, M) it is inside of."""
        if self.overlap == "sum":
            y, near = _summed(x, field, spare)
            return y if box is None else y.clamp(*box), near
        z, r, allowed = field.crowd, field.r, field.allowed

        def leave(x: Tensor) -> tuple[Tensor, Tensor]:
            y, near = project(x, z, r**2, allowed, spare)
            if not finite(y):
                raise ShieldedError("no way out of the shields was found: use a smaller radius.")
            return y, near

        while True:  # until no move has entered a shield that was left out
            y, near = leave(x)
            if field.whole or not bool(near.any()):
                break
            new_z, new_r, new_allowed = field.entered(y, groups)
            if not len(new_r):
                break
            z, r = z.joined(new_z), torch.cat([r, new_r])
            allowed = torch.cat([allowed, new_allowed], 1)
        return y if box is None else _boxed(x, y, box, lambda y: leave(y)[0]), near

    def _field(self, x: Tensor, step: Step) -> Field:
        return self.shields.field(x, step.groups, self.radius)

    def __repr__(self) -> str:
        return (
            f"Spell({self.shields!r}, radius={self.radius}, "
            f"overcompensation={self.overcompensation}, overlap={self.overlap!r})"
        )


def _boxed(
    x: Tensor, y: Tensor, box: tuple[float, float], leave: Callable[[Tensor], Tensor]
) -> Tensor:
    """Near y (B, D), where x (B, D) was moved, in the box: what its walls take away from a move,
    the other numbers make up.

    Of what they make up the walls take a share once more. How much nearer one round has come tells
    how much longer the way of the next has to be, as in the secant method: else, where most numbers
    are at a wall, dozens of rounds would not reach the border.
    """
    held, short, longer = y.clamp(*box), _lengths(y - x), torch.ones_like(x[:, :1])
    for _ in range(ROUNDS):
        if torch.equal(held, y):
            break
        way = leave(held) - held
        left = _lengths(way)
        nearer = (1 - left / short.clamp(min=1e-300)) / longer
        longer = torch.where(left < short, 1 / nearer.clamp(1 / LONGER, 1), 1.0)
        y, short = torch.addcmul(held, way, longer), left
        held = y.clamp(*box)
        if bool((left <= CLOSE * _lengths(held - x)).all()):
            break
    return held


def _lengths(way: Tensor) -> Tensor:
    return vector_norm(way, dim=1, keepdim=True)


def _summed(x: Tensor, field: Field, spare: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Eq. 5 as the paper has it: the single moves added up."""
    d2 = squared_distances(x, field.z)
    near = field.allowed & (d2 < field.r**2)
    y = x + repel_sum(x, field.z, field.r, field.allowed)
    same = near & (d2 == 0)
    if bool(same.any()):  # Eq. 5 has no direction there: the noise gives one
        length = torch.where(same, field.r, 0.0).amax(1, keepdim=True)
        y = y + length * spare() / spare().norm(dim=1, keepdim=True)
    return y, near


def _spare(step: Step) -> Tensor:
    """Directions (B, D) for images that coincide with references: their noise.

    A little of a fixed direction of its own keeps even equal images of a batch apart.
    """
    noise = step.noise
    noise = noise / noise.norm(dim=1, keepdim=True).clamp(min=1e-30)
    return noise + 0.1 * fixed_directions(len(noise), noise)


def _once(make: Callable[[], Tensor]) -> Callable[[], Tensor]:
    made: list[Tensor] = []

    def get() -> Tensor:
        if not made:
            made.append(make())
        return made[0]

    return get
