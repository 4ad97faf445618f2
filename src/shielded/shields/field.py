# SPDX-License-Identifier: Apache-2.0
"""The field of shields around a batch, made of what each source has named."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from shielded.crowd import Crowd
from shielded.distances import Rough, lower_squares, squared_distances


@dataclass(frozen=True, slots=True)
class References:
    """References of one source: z (M, D), who has to keep away (B, M), ids, radii.

    z is in any precision that is exact for it. `r` (M,) is None where all have the radius that was
    asked for. `whole` tells that no reference was left out, however far an image may move.
    `measured`, that all are near some x, as far as float64 tells. `rough` is z in float32, where
    that is kept. `row` (M,) is where the source finds them again, ascending.
    """

    z: Tensor
    allowed: Tensor
    ids: Sequence[Hashable]
    whole: bool = True
    r: Tensor | None = None
    rough: Rough | None = None
    measured: bool = False
    row: Tensor | None = None


class Source(Protocol):
    """Anything that can name the references near given points."""

    @property
    def name(self) -> str:
        """What certificates call it."""
        ...

    @property
    def radius(self) -> float | None:
        """Its own radius, or None to take the guidance's."""
        ...

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of one reference as it was given, or None where any fits."""
        ...

    def references(self, x: Tensor, groups: Sequence[Hashable], radius: float) -> References:
        """All references within their radius of any x (B, D), float64, and maybe more.

        `radius` is for references without their own.
        """
        ...

    def closest(self, x: Tensor, groups: Sequence[Hashable], radius: float) -> References:
        """For each x the reference with the smallest distance / radius, and maybe others."""
        ...


@runtime_checkable
class Searched(Protocol):
    """A source that finds its references by a search, which known ones are spared."""

    def others(
        self, x: Tensor, groups: Sequence[Hashable], radius: float, known: References
    ) -> References:
        """Those of `references` that are not among the known ones, and maybe more."""
        ...


class Field:
    """Shields z (M, D), r (M,), allowed (B, M), and where each comes from.

    `parts` are a source, the radius of its references without their own, and them. They are joined
    when they are asked for: mostly `may_hold` already says that nothing is near.
    """

    def __init__(self, x: Tensor, parts: Sequence[tuple[Source, float, References]]):
        self.like, self.parts = x[:0], parts
        self.origin = tuple((source.name, part.ids) for source, _, part in parts)
        self.whole = all(part.whole for _, _, part in parts)
        self.count = len(x)

    def may_hold(self, x: Tensor) -> bool:
        """Whether some x (B, D) may be inside a shield: float32 can mostly tell that none is."""
        if any(part.measured and len(part.z) for _, _, part in self.parts):
            return True
        rough = Rough.of(x)
        for _, r, part in self.parts:
            if part.measured:
                continue
            r2 = r * r if part.r is None else part.r.square()
            z = rough if part.z is x else part.rough or Rough.of(part.z)
            near = part.allowed & ~(lower_squares(rough, z) > r2)  # NaN is not sure
            if bool(near.any()):
                return True
        return False

    @cached_property
    def z(self) -> Tensor:
        """(M, D) float64; x itself where the batch is all there is: no copy."""
        z = [part.z.to(self.like) for _, _, part in self.parts]
        return z[0] if len(z) == 1 else torch.cat([self.like, *z])

    @property
    def crowd(self) -> Crowd:
        """The same references, for moves away from them."""
        if not self.parts:
            return Crowd(self.like)
        parts = [part for _, _, part in self.parts]
        return Crowd(*(part.z for part in parts), rough=[part.rough for part in parts])

    @cached_property
    def r(self) -> Tensor:
        """(M,) float64."""
        r = [
            self.like.new_full((len(part.z),), r) if part.r is None else part.r
            for _, r, part in self.parts
        ]
        return torch.cat([self.like.new_zeros(0), *r])

    @cached_property
    def allowed(self) -> Tensor:
        """(B, M) bool: whom each shield concerns."""
        none = self.like.new_zeros((self.count, 0)).bool()
        return torch.cat([none, *(part.allowed for _, _, part in self.parts)], 1)

    @property
    def members(self) -> Tensor:
        """(M,) the place in the batch of each reference that is an image of it, else -1."""
        places = [
            place
            for name, ids in self.origin
            for place in (ids if name == "batch" else [-1] * len(ids))
        ]
        return torch.tensor(places, dtype=torch.long, device=self.like.device)

    def label(self, m: int) -> tuple[str, Hashable]:
        """Source name and id of reference m."""
        for name, ids in self.origin:
            if m < len(ids):
                return name, ids[m]
            m -= len(ids)
        raise IndexError(m)

    def entered(self, y: Tensor, groups: Sequence[Hashable]) -> tuple[Tensor, Tensor, Tensor]:
        """z, r and allowed of the shields that were left out here and some y (B, D) is inside of.

        y has left all that this field holds: so only sources that are not `whole` are asked again.
        """
        asked = [part for part in self.parts if not part[2].whole]
        rest = Field(y, [(one, r, _others(one, y, groups, r, part)) for one, r, part in asked])
        inside = rest.allowed & (squared_distances(y, rest.z) < rest.r**2 * (1 - 1e-9))
        new = inside.any(0)
        return rest.z[new], rest.r[new], rest.allowed[:, new]


def _others(
    source: Source, y: Tensor, groups: Sequence[Hashable], r: float, known: References
) -> References:
    """What a source has near y (B, D), but for what is known where it can tell."""
    if isinstance(source, Searched):
        return source.others(y, groups, r, known)
    return source.references(y, groups, r)
