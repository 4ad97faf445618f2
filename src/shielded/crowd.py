# SPDX-License-Identifier: Apache-2.0
"""The references of a move: of thousands float32 tells which few are needed in float64.

M references z, D numbers in one flattened latent, B images x
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.linalg import vector_norm

from shielded.distances import Rough, rough_squares, squared_distances

__all__ = ["Centred", "Crowd", "Gram"]

FEW = 64  # references that are all held in float64
EQUAL = 1e-8  # relative: squares that differ by less are compared in float64


@dataclass(frozen=True, slots=True)
class Centred:
    """References about a common origin, and what a move needs of them, whoever is moved."""

    points: Tensor | None  # (n, D) float64, as they were given; None where some joined later
    z: Tensor  # (n, D), about the origin
    origin: Tensor  # (D,)
    zz: Tensor  # (n, n) <z_m, z_n>

    @classmethod
    def of(cls, points: Tensor) -> Centred:
        """References (n, D) about their mean."""
        origin = points.mean(0) if len(points) else points.new_zeros(points.shape[1])
        z = points - origin
        return cls(points, z, origin, z @ z.T)

    def joined(self, points: Tensor) -> Centred:
        """These, and after them others (k, D)."""
        new = points - self.origin
        side = self.z @ new.T
        zz = torch.cat([torch.cat([self.zz, side], 1), torch.cat([side.T, new @ new.T], 1)])
        return Centred(None, torch.cat([self.z, new]), self.origin, zz)


@dataclass(frozen=True, slots=True)
class Gram:
    """Inner products of x and z about a common origin, from which all moves follow."""

    x: Tensor  # (B, D), centred
    about: Centred  # the references
    xx: Tensor  # (B,) <x_b, x_b>
    xz: Tensor  # (B, n) <x_b, z_m>

    @classmethod
    def of(cls, x: Tensor, about: Centred) -> Gram:
        """One product of images x (B, D) with references; none where these are x."""
        if x is about.points:
            return cls(about.z, about, about.zz.diagonal(), about.zz)
        images = x - about.origin
        return cls(images, about, vector_norm(images, dim=1).square_(), images @ about.z.T)

    def squares(self) -> Tensor:
        """|x_b - z_m|^2 (B, n); what is not well above its own rounding error is 0."""
        norms = self.xx[:, None] + self.about.zz.diagonal()
        d2 = norms - 2 * self.xz
        return torch.where(d2 > 1e-13 * norms, d2, 0.0)


class Crowd:
    """References (M, D), in parts, each in a precision that is exact for it.

    One crowd serves many moves: what the first of them needed is at hand for the next.

    Args:
        parts: at least one, (m, D) each.
        rough: of each what float32 makes of it, or None; nothing, where none is known.
    """

    def __init__(self, *parts: Tensor, rough: Sequence[Rough | None] = ()):
        self._parts, self._rough = parts, [*rough] or [None] * len(parts)
        self._starts = list(accumulate(map(len, parts), initial=0))
        self._columns: Tensor | None = None  # (n,) of those that are centred
        self._centred: Centred | None = None

    def __len__(self) -> int:
        return self._starts[-1]

    def joined(self, points: Tensor) -> Crowd:
        """These, and after them others (k, D)."""
        crowd = Crowd(*self._parts, points, rough=[*self._rough, None])
        if len(self) > FEW:
            crowd._columns, crowd._centred = self._columns, self._centred
        return crowd

    def squares(self, x: Tensor, limit: Tensor, asked: Tensor) -> Tensor:
        """|x_b - z_m|^2 (B, M) float64; where `asked`, on the right side of limit (M,).

        And of a limit that is less by a few 1e-9. The others are as float32 tells them.
        """
        if len(self) <= FEW:
            return Gram.of(x, self._all()).squares()
        rough = Rough.of(x)
        told = [rough_squares(rough, z) for z in self._bounded()]
        d2, off = (torch.cat(columns, 1).double() for columns in zip(*told, strict=True))
        sure = (d2 - limit).abs() > off.add_(EQUAL * limit.abs())  # NaN is not
        columns = (asked & ~sure).any(0).nonzero()[:, 0]
        if len(columns):
            d2.index_copy_(1, columns, squared_distances(x, self.points(columns)))
        return d2

    def centred(self, wanted: Tensor) -> tuple[Tensor | slice, Centred]:
        """Columns (n,), those that a row of wanted (B, M) names among them; these references."""
        if len(self) <= FEW:
            return slice(None), self._all()
        new = wanted.any(0)
        if self._columns is not None:
            new[self._columns] = False
        columns = new.nonzero()[:, 0]
        if self._columns is None or self._centred is None:
            self._columns, self._centred = columns, Centred.of(self.points(columns))
        elif len(columns):
            self._columns = torch.cat([self._columns, columns])
            self._centred = self._centred.joined(self.points(columns))
        return self._columns, self._centred

    def points(self, columns: Tensor | None = None) -> Tensor:
        """References (n, D) at columns, ascending, or all of them; float64."""
        parts = self._parts
        if columns is not None:
            cuts = torch.searchsorted(columns, columns.new_tensor(self._starts)).tolist()
            each = zip(parts, self._starts, pairwise(cuts), strict=False)
            parts = [z.index_select(0, columns[low:high] - start) for z, start, (low, high) in each]
        return parts[0].double() if len(parts) == 1 else torch.cat([z.double() for z in parts])

    def _all(self) -> Centred:
        if self._centred is None:
            self._centred = Centred.of(self.points())
        return self._centred

    def _bounded(self) -> list[Rough]:
        each = zip(self._parts, self._rough, strict=True)
        found = [Rough.of(z) if rough is None else rough for z, rough in each]
        self._rough = [*found]
        return found
