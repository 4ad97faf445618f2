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

__all__ = ["Finer", "Piece"]

AT_ONCE = 1 << 12  # sketches that are read at once


@dataclass(frozen=True, slots=True)
class Piece:
    """Sketches of one part of a set (n, FINE + 1), as Sketch has them, mapped from a file.

    `place` (rows,) says which of them belong to its live rows.
    """

    core: Tensor
    lost: Tensor
    square: Tensor
    place: Tensor


class Finer:
    """Sharper bounds for some rows, from the sketches of all parts of a set."""

    def __init__(self, basis: Basis, pieces: Sequence[Piece]):
        self.basis, self._pieces = basis, pieces
        self._ends = list(accumulate((len(piece.place) for piece in pieces), initial=0))

    def bounds(self, x: Tensor, row: Tensor) -> Tensor:
        """(B, M) float32: what distances of x (B, D) to rows (M,), ascending, are at least."""
        a, blur = self.basis.query(x)
        found = torch.empty((len(x), len(row)), dtype=torch.float32, device=x.device)
        for start in range(0, len(row), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            parts = (part.to(x.device) for part in self._read(row[some].cpu()))
            found[:, some] = Sketch(*parts).bounds(a, blur)
        return found

    def _read(self, row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sketches, what they lost and their squares, of rows (M,), ascending."""
        ends = torch.searchsorted(row, torch.tensor(self._ends)).tolist()
        found = []
        for piece, begin, (start, end) in zip(
            self._pieces, self._ends, pairwise(ends), strict=False
        ):
            if start < end:
                place = piece.place[row[start:end] - begin]
                found.append((piece.core[place], piece.lost[place], piece.square[place]))
        core, lost, square = zip(*found, strict=True)
        return torch.cat(core), torch.cat(lost), torch.cat(square)
