# SPDX-License-Identifier: Apache-2.0
"""Candidates of several draws, and which of them are kept."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from math import inf
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shielded.distances import squared_distances
from shielded.errors import NotApplicable
from shielded.landing import TOLERANCE, Landing
from shielded.samplers.rows import remade

__all__ = ["Draws", "assemble"]


class Draws:
    """Images drawn for `prompts` prompts, of which `each` are to be kept of each.

    `apart` is how far those of one group have to be from each other.
    """

    def __init__(self, prompts: int, each: int, apart: float):
        self.prompts, self.each, self.apart = prompts, each, apart
        self.kept: list[int] = []
        self.groups: list[Hashable] = []
        self.places: list[tuple[int, int]] = []  # draw, row
        self._prompt: list[int] = []
        self._outside: list[float] = []  # distance / radius of the nearest reference
        self._samples: list[Tensor] = []
        self._measured: list[Tensor] = []
        self._near: dict[int, Tensor] = {}  # distances of all candidates to one that is kept
        self.sizes: list[int] = []  # of the draws

    @property
    def count(self) -> int:
        """How many were drawn."""
        return len(self.places)

    @property
    def lacking(self) -> list[int]:
        """How many images of each prompt are missing."""
        have = [self._prompt[c] for c in self.kept]
        return [self.each - have.count(p) for p in range(self.prompts)]

    @property
    def missing(self) -> int:
        """How many images are missing."""
        return sum(self.lacking)

    @property
    def picks(self) -> list[int]:
        """Those that are kept, prompt by prompt, in the order in which they were drawn."""
        return sorted(self.kept, key=lambda c: (self._prompt[c], c))

    def samples(self, picks: Sequence[int]) -> Tensor:
        """Their latents (B, ...)."""
        return torch.stack([self._samples[c] for c in picks])

    def add(self, drawn: Landing, groups: Sequence[Hashable]) -> None:
        """Take one draw, the same number for each prompt, and keep what may be kept of it."""
        share = len(drawn.sample) // self.prompts
        for row, nearest in enumerate(drawn.nearest):
            radius = nearest.radius
            self._outside.append(nearest.distance / radius if radius else inf)
            self._prompt.append(row // share)
            self._samples.append(drawn.sample[row])
            self._measured.append(drawn.measured[row].flatten())
            self.places.append((len(self.sizes), row))
        self.groups.extend(groups)
        self.sizes.append(len(drawn.sample))
        for c in range(self.count - len(drawn.sample), self.count):
            if self._wanted(c) and self.outside(c) >= 1 - TOLERANCE:
                self.kept.append(c)

    def fill(self) -> None:
        """Keep, one after the other, what is furthest outside, until nothing is missing."""
        while self.missing:
            wanted = [c for c in range(self.count) if c not in self.kept and self._wanted(c)]
            self.kept.append(max(wanted, key=self.outside))

    def outside(self, c: int) -> float:
        """Distance / radius of the nearest of all shields and kept images of its group."""
        near = [
            self._distance(c, k) / self.apart
            for k in self.kept
            if self.apart and self.groups[c] == self.groups[k]
        ]
        return min([self._outside[c], *near])

    def _wanted(self, c: int) -> bool:
        return self.lacking[self._prompt[c]] > 0

    def _distance(self, c: int, k: int) -> float:
        if k not in self._near or len(self._near[k]) < self.count:
            every = torch.stack(self._measured)
            self._near[k] = squared_distances(every[k : k + 1], every)[0].sqrt()
        return float(self._near[k][c])


def assemble(
    results: Sequence[Any], sizes: Sequence[int], places: Sequence[tuple[int, int]]
) -> Any:
    """One answer of a pipeline, made of the rows (draw, row) of several that held `sizes` images.

    Raises NotApplicable for answers in which no images are found.
    """
    found = False

    def join(parts: Sequence[Any]) -> Any:
        nonlocal found
        first = parts[0]
        if isinstance(first, list | np.ndarray | Tensor) and [len(p) for p in parts] == [*sizes]:
            found = True
            rows = [parts[draw][row] for draw, row in places]
            if isinstance(first, list):
                return rows
            return torch.stack(rows) if isinstance(first, Tensor) else np.stack(rows)
        if isinstance(first, Mapping):
            return remade(first, {name: join([p[name] for p in parts]) for name in first})
        if isinstance(first, tuple):
            return tuple(join(same) for same in zip(*parts, strict=True))
        return first

    answer = join(results)
    if not found:
        raise NotApplicable(
            f"no images were found in what the pipeline returned, {type(results[0]).__name__}: ask "
            "it for its images alone."
        )
    return answer
