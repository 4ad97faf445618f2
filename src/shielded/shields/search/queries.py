# SPDX-License-Identifier: Apache-2.0
"""Sketches of queries: made at every call, so at a fraction of the price, and less sharp."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import pad

from shielded.distances import full_precision, roundoff

__all__ = ["Queries", "sure"]

SHORT = 64  # products that float32 adds up
SMALL = 1024  # numbers of a point that are multiplied as fast in float64


def sure(length: int) -> float:
    """What float64 may move a sketch of so many numbers by, at most, by |z - mu| and |mu|."""
    return 2.0**-51 * (length + 8)


class Queries:
    """Makes a = (s, rho) of queries, with axes P (m, D) about mu (D,), both float64.

    Of long points the axes are kept in float32, and in pieces of SHORT rows: a quarter of what
    they take beside these, for which they need not stay.
    """

    def __init__(self, mean: Tensor, axes: Tensor):
        self.mean = mean
        self._count, length = axes.shape
        self._size, self._sure = float(vector_norm(mean)), sure(length)
        self._short = length > SMALL
        if self._short:
            self._axes = mean.new_zeros(
                (-(-length // SHORT), SHORT, self._count), dtype=torch.float32
            )
            self._axes.flatten(0, 1)[:length] = axes.T
        else:
            self._axes = axes.T.contiguous()  # memory is read in order

    def __call__(self, x: Tensor) -> tuple[Tensor, float]:
        """Sketches (B, m + 1) of x (B, D), float64, and the blur: what any of them is off by.

        s in float32, in short sums that float64 adds up; of few numbers in float64. rho by
        Pythagoras, from squares that are off by w: then rho is off by sqrt(w) at most, and by
        w / rho.
        """
        x = x - self.mean
        s, rough = self._products(x)
        # B numbers in Python: kernels whose code a network has driven from the cache cost more.
        length, inside = vector_norm(x, dim=1).tolist(), vector_norm(s, dim=1).tolist()
        rest = [max(a * a - b * b, 0.0) ** 0.5 for a, b in zip(length, inside, strict=True)]
        most, least = max(length, default=0.0), min(rest, default=0.0)
        off = self._count**0.5 * rough * most  # of s
        w = off * (2 * most + 3 * off) + 4 * self._sure * most * most
        off += min(w**0.5, w / max(least, 1e-300)) * (1 + 1e-9)
        a = torch.cat([s, s.new_tensor(rest)[:, None]], 1)
        return a, off + self._sure * (most + self._size)

    def _products(self, x: Tensor) -> tuple[Tensor, float]:
        """x @ P.T (B, m), float64, and what each is off by, by |x| and an axis' length of 1."""
        if not self._short:
            return x @ self._axes, self._sure
        return self._short_sums(x), roundoff(SHORT) + 4 * 2.0**-24

    def _short_sums(self, x: Tensor) -> Tensor:
        """x @ P.T (B, m), float64: sums of SHORT products in float32."""
        count = len(self._axes)
        x = x.to(torch.float32)
        if x.shape[1] < count * SHORT:
            x = pad(x, (0, count * SHORT - x.shape[1]))
        with full_precision(x.device.type):
            parts = torch.bmm(x.reshape(len(x), count, SHORT).transpose(0, 1), self._axes)
        return parts.sum(0, dtype=torch.float64)
