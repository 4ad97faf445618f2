# SPDX-License-Identifier: Apache-2.0
"""Finer sketches, in files beside the set: read only where the sketches in memory say little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from shielded.shields.search.basis import Basis
from shielded.shields.search.sketch import Sketch

__all__ = ["Finer", "Piece", "Query"]

Query = tuple[Tensor, float]  # sketches (B, m + 1) and their blur

AT_ONCE = 1 << 12  # sketches that are read at once


@dataclass(frozen=True, slots=True)
class Piece:
    """Sketches of one part of a set, as Sketch has integers: `core` (n, w) mapped from a file.

    `place` (rows,) says which of them belong to its live rows; the others are of these (rows,).
    """

    core: Tensor
    lost: Tensor
    square: Tensor
    unit: Tensor
    place: Tensor


class Finer:
    """Sharper bounds for some rows, from the sketches of all parts of a set."""

    def __init__(self, basis: Basis, pieces: Sequence[Piece]):
        self._queries, self._steps = basis.queries(), basis.spread
        self._core = [(piece.core, piece.place) for piece in pieces]
        self._ends = list(accumulate((len(piece.place) for piece in pieces), initial=0))
        each = [(piece.lost, piece.square, piece.unit) for piece in pieces]
        self._each = [torch.cat(parts) for parts in zip(*each, strict=True)]  # (N,) each

    def query(self, x: Tensor) -> Query:
        """What bounds of x (B, D) are made from: it takes longer than those of a few rows."""
        return self._queries(x)

    def bounds(self, x: Query, row: Tensor) -> Tensor:
        """(B, M) float32: what distances of queries to rows (M,), ascending, are at least."""
        a, blur = x
        found = torch.empty((len(a), len(row)), dtype=torch.float32, device=a.device)
        for start in range(0, len(row), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            found[:, some] = self._sketch(row[some].cpu()).bounds(a, blur)
        return found

    def _sketch(self, row: Tensor) -> Sketch:
        """Of rows (M,), ascending."""
        ends = torch.searchsorted(row, torch.tensor(self._ends)).tolist()
        core = torch.cat(
            [
                core.index_select(0, place[row[start:end] - begin])
                for (core, place), begin, (start, end) in zip(
                    self._core, self._ends, pairwise(ends), strict=False
                )
                if start < end
            ]
        )
        on = self._steps.device
        lost, square, unit = (part[row].to(on) for part in self._each)
        return Sketch(core.to(on), lost, square, unit, self._steps)
