# SPDX-License-Identifier: Apache-2.0
"""Finer sketches, in files beside the set: read only where the sketches in memory say little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from shielded.shields.search.sketch import Basis, Sketch

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
        ends = torch.searchsorted(row, torch.tensor(self._ends, device=row.device)).tolist()
        for piece, begin, (start, end) in zip(
            self._pieces, self._ends, pairwise(ends), strict=False
        ):
            for at in range(start, end, AT_ONCE):
                some = slice(at, min(at + AT_ONCE, end))
                place = piece.place[(row[some] - begin).cpu()]
                parts = (piece.core[place], piece.lost[place], piece.square[place])
                found[:, some] = Sketch(*(part.to(x.device) for part in parts)).bounds(a, blur)
        return found
