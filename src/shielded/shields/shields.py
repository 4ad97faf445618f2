# SPDX-License-Identifier: Apache-2.0
"""Shields: sources of references joined with `+`, and the field of shields that they make."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from shielded.errors import BadInput, ShapeMismatch
from shielded.shields.field import Field, Source

if TYPE_CHECKING:
    from shielded.shields.history import History
    from shielded.spaces.space import Space


@runtime_checkable
class Lasting(Protocol):
    """A source that outlives the process: made by some model, changed by others meanwhile."""

    def check(self, pipe: Any, space: Space | None = None) -> None:
        """Raise ShapeMismatch if distances of `pipe` are measured elsewhere."""
        ...

    def refresh(self) -> None:
        """Take up the newest state."""
        ...


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

    def need(self, radius: float | None) -> None:
        """Raise BadInput if a source without a radius of its own is given none."""
        bare = [source for source in self.sources if source.radius is None]
        if bare and radius is None:
            raise BadInput(f"{bare[0]!r} has no radius: pass radius=, or measure one: calibrate.")

    def check(self, pipe: Any, space: Space | None = None) -> None:
        """Raise ShapeMismatch if a source was made for another model or space than `pipe`'s."""
        for source in self.sources:
            check = getattr(source, "check", None)
            if check is not None:
                check(pipe, space)

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

    def field(self, x: Tensor, groups: Sequence[Hashable], radius: float | None) -> Field:
        """The field of all shields that some x (B, D) is inside of, and maybe more."""
        asked = self._radii(radius)
        return Field(x, [(source, r, source.references(x, groups, r)) for source, r in asked])

    def closest(self, x: Tensor, groups: Sequence[Hashable], radius: float | None) -> Field:
        """A field that holds, for each x (B, D), the shield of smallest distance / radius."""
        asked = self._radii(radius)
        return Field(x, [(source, r, source.closest(x, groups, r)) for source, r in asked])

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


def check_radius(radius: float | None) -> float | None:
    """The radius as a float, or an error if it is negative, NaN or infinite."""
    if radius is None:
        return None
    if not math.isfinite(radius) or radius < 0:
        raise BadInput(f"radius is {radius}: it must be a finite number, 0 or larger.")
    return float(radius)


@lru_cache(maxsize=16)  # every step of a generation asks the same
def same_group(a: tuple[Hashable, ...], b: tuple[Hashable, ...], device: torch.device) -> Tensor:
    """(len(a), len(b)) bool: which pairs of keys are equal. Not to be written to."""
    number = {key: n for n, key in enumerate(dict.fromkeys((*a, *b)))}
    left = torch.tensor([number[key] for key in a], device=device, dtype=torch.long)
    right = torch.tensor([number[key] for key in b], device=device, dtype=torch.long)
    return left[:, None] == right
