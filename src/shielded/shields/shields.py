# SPDX-License-Identifier: Apache-2.0
"""Shields: sources of references joined with `+`, and the field of shields that they make."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from shielded.errors import BadInput, ShapeMismatch
from shielded.repel import squared_distances

if TYPE_CHECKING:
    from shielded.shields.history import History


@dataclass(frozen=True, slots=True)
class References:
    """References of one source: z (M, D) float64, who has to keep away (B, M), ids, radii.

    `r` (M,) is None where all have the radius that was asked for. `whole` tells that no reference
    was left out, however far an image may move.
    """

    z: Tensor
    allowed: Tensor
    ids: Sequence[Hashable]
    whole: bool = True
    r: Tensor | None = None


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

    def references(
        self, x: Tensor, groups: Sequence[Hashable], radius: float, reach: float
    ) -> References:
        """All references within their radius + reach of any x (B, D), float64, and maybe more.

        `radius` is for references without their own; reach may be infinite.
        """
        ...

    def closest(self, x: Tensor, groups: Sequence[Hashable], radius: float) -> References:
        """For each x the reference with the smallest distance / radius, and maybe others."""
        ...


def everyone(source: Source, x: Tensor, groups: Sequence[Hashable], radius: float) -> References:
    """The `closest` of a source that is in memory: all of its references."""
    return source.references(x, groups, radius, math.inf)


@runtime_checkable
class Lasting(Protocol):
    """A source that outlives the process: made by some model, changed by others meanwhile."""

    def check(self, pipe: Any) -> None:
        """Raise ShapeMismatch if `pipe` lives in another space."""
        ...

    def refresh(self) -> None:
        """Take up the newest state."""
        ...


@dataclass(frozen=True, slots=True)
class Field:
    """The shields around a batch: z (M, D), r (M,), allowed (B, M), and where each comes from."""

    z: Tensor
    r: Tensor
    allowed: Tensor
    origin: tuple[tuple[str, Sequence[Hashable]], ...]
    whole: bool

    @property
    def members(self) -> Tensor:
        """(M,) the place in the batch of each reference that is an image of it, else -1."""
        places = [
            place
            for name, ids in self.origin
            for place in (ids if name == "batch" else [-1] * len(ids))
        ]
        return torch.tensor(places, dtype=torch.long, device=self.z.device)

    def joined(self, other: Field) -> Field:
        """This field and another of the same images."""
        return Field(
            torch.cat([self.z, other.z]),
            torch.cat([self.r, other.r]),
            torch.cat([self.allowed, other.allowed], 1),
            self.origin + other.origin,
            False,
        )

    def label(self, m: int) -> tuple[str, Hashable]:
        """Source name and id of reference m."""
        for name, ids in self.origin:
            if m < len(ids):
                return name, ids[m]
            m -= len(ids)
        raise IndexError(m)


@dataclass(frozen=True, slots=True)
class Shields:
    """What to keep away from. Make one with a class method below, join several with `+`.

    Each source may have a radius of its own (in the units of the sampler's latents); a source
    without one takes the radius of the guidance that uses it.

    Example:
        >>> Shields.batch() + Shields.history(radius=12.0)
        Shields.batch() + Shields.history(radius=12.0)
    """

    sources: tuple[Source, ...]

    @classmethod
    def batch(cls, radius: float | None = None) -> Shields:
        """The other images of the batch, at their x0 of this very step (Eq. 8)."""
        from shielded.shields.batch import Batch

        return cls((Batch(check_radius(radius)),))

    @classmethod
    def history(cls, radius: float | None = None, path: str | Path | None = None) -> Shields:
        """The images of every finished run, group by group; `path` loads a saved history."""
        from shielded.shields.history import History

        history = History(check_radius(radius))
        if path is not None:
            history.load(path)
        return cls((history,))

    @classmethod
    def images(
        cls,
        latents: Tensor,
        radius: float | None = None,
        ids: Sequence[Hashable] | None = None,
    ) -> Shields:
        """A set of latents (K, ...) held in memory, in the sampler's space; `ids` name them."""
        from shielded.shields.images import Images

        return cls((Images(latents, check_radius(radius), ids),))

    @classmethod
    def protected(
        cls,
        path: str | Path,
        radius: float | None = None,
        search: str = "screen",
        nprobe: int = 2,
        shards: int = 2,
    ) -> Shields:
        """All images of a protected set on disk; `radius` is for those without their own.

        Needs the extra `protect`. The set may change while images are made: each generation
        starts with its newest version. `search` is "screen", which is exact and hardly needs
        memory, or an index of Faiss (extra `faiss`) that holds all vectors: "ivfflat", which
        looks into `nprobe` cells and may overlook references, "panorama" or "flat", exact. Or
        "ray" (extra `ray`): the screen on as many as `shards` processes, on this machine or a
        cluster, which finds the same. Certificates are exact whatever the search.
        """
        from shielded.shields.protected import Protected

        return cls((Protected(path, check_radius(radius), search, nprobe, shards),))

    def __add__(self, other: Shields) -> Shields:
        return Shields(self.sources + other.sources)

    def __repr__(self) -> str:
        return " + ".join(repr(source) for source in self.sources)

    @property
    def histories(self) -> tuple[History, ...]:
        """The sources that remember finished images."""
        return tuple(source for source in self.sources if hasattr(source, "remember"))  # type: ignore[misc]

    def check(self, pipe: Any) -> None:
        """Raise ShapeMismatch if a source was made for another model than `pipe`."""
        for source in self.sources:
            if isinstance(source, Lasting):
                source.check(pipe)

    def refresh(self) -> None:
        """Let sources that change by themselves take up their newest state."""
        for source in self.sources:
            if isinstance(source, Lasting):
                source.refresh()

    def fit(self, shape: tuple[int, ...]) -> None:
        """Raise ShapeMismatch if a source holds references of another layout than `shape`.

        Flat references (K, D) fit any layout of D numbers.
        """
        for source in self.sources:
            if source.shape is not None and source.shape not in (shape, (math.prod(shape),)):
                raise ShapeMismatch(
                    f"{source!r} holds latents of shape {source.shape}, the sampler's are {shape}: "
                    "use references of the same model, image size and layout."
                )

    def field(
        self, x: Tensor, groups: Sequence[Hashable], radius: float | None, reach: float = 0.0
    ) -> Field:
        """The field of all shields that x (B, D) is in or could enter by moving at most `reach`."""
        return self._join(
            x, [(s, r, s.references(x, groups, r, reach)) for s, r in self._radii(radius)]
        )

    def further(self, x: Tensor, groups: Sequence[Hashable], radius: float | None) -> Field:
        """The shields that x (B, D), which has left all those of a field, is inside of now.

        Only sources that may have left some out of that field are asked.
        """
        parts = [(s, r, s.references(x, groups, r, 0.0)) for s, r in self._radii(radius)]
        field = self._join(x, [part for part in parts if not part[2].whole])
        inside = field.allowed & (squared_distances(x, field.z) < field.r**2 * (1 - 1e-9))
        new = inside.any(0)
        count = int(new.sum())
        return Field(
            field.z[new], field.r[new], field.allowed[:, new], (("further", range(count)),), False
        )

    def closest(self, x: Tensor, groups: Sequence[Hashable], radius: float | None) -> Field:
        """A field that holds, for each x (B, D), the shield of smallest distance / radius."""
        return self._join(x, [(s, r, s.closest(x, groups, r)) for s, r in self._radii(radius)])

    def _radii(self, radius: float | None) -> list[tuple[Source, float]]:
        """Every source with the radius of its references that have none."""
        found = []
        for source in self.sources:
            r = source.radius if source.radius is not None else radius
            if r is None:
                raise BadInput(
                    f"{source!r} has no radius: give the guidance a radius= or the source its own."
                )
            found.append((source, r))
        return found

    def _join(self, x: Tensor, parts: Sequence[tuple[Source, float, References]]) -> Field:
        if not parts:
            return Field(x[:0], x.new_zeros(0), x.new_zeros((len(x), 0)).bool(), (), True)
        alone = parts[0][2] if len(parts) == 1 else None  # then z may be x itself: no copy
        return Field(
            alone.z if alone else torch.cat([part.z for _, _, part in parts]),
            torch.cat(
                [
                    part.r if part.r is not None else x.new_full((len(part.z),), r)
                    for _, r, part in parts
                ]
            ),
            alone.allowed if alone else torch.cat([part.allowed for _, _, part in parts], 1),
            tuple((source.name, part.ids) for source, _, part in parts),
            all(part.whole for _, _, part in parts),
        )


def check_radius(radius: float | None) -> float | None:
    """The radius as a float, or an error if it is negative, NaN or infinite."""
    if radius is None:
        return None
    if not math.isfinite(radius) or radius < 0:
        raise BadInput(f"radius is {radius}: it must be a finite number, 0 or larger.")
    return float(radius)


def same_group(a: Sequence[Hashable], b: Sequence[Hashable], device: torch.device) -> Tensor:
    """(len(a), len(b)) bool: which pairs of keys are equal."""
    if len({*a, *b}) == 1:
        return torch.ones(len(a), len(b), dtype=torch.bool, device=device)
    number = {key: n for n, key in enumerate(dict.fromkeys((*a, *b)))}
    left = torch.tensor([number[key] for key in a], device=device, dtype=torch.long)
    right = torch.tensor([number[key] for key in b], device=device, dtype=torch.long)
    return left[:, None] == right
