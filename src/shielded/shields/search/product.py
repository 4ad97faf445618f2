# SPDX-License-Identifier: Apache-2.0
"""Products of many sketches with a few queries, rounded by no more than they say.

Sketches are kept in float32, in bfloat16, or as integers of 8 bits, each row in a unit of its own:

    a_zk = u_z t_k c_zk,    c_zk in -127 .. 127                                             (4)

with steps t_k that all rows share. Then <a_x, a_z> = u_z sum_k (a_xk t_k) c_zk, and with a_xk t_k
written as g (128 h_k + l_k), two digits of 8 bits, the sums are of integers: a product that is
exact, and twice as fast as one of bfloat16 where a processor multiplies integers by four. Where it
does not, they are put into float32 piece by piece: slower, but no slower than what is kept so.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.linalg import vector_norm

from shielded.distances import full_precision, roundoff

__all__ = [
    "Digits",
    "Floats",
    "Halves",
    "Widened",
    "cheapest",
    "multiplied",
    "rounded",
    "rounded_to_steps",
]

TOP, BASE = 127, 128  # the largest digit, and what the first counts for
CACHED = 1 << 18  # products at once that stay in the cache
PIECE = 1 << 19  # numbers of sketches that are widened at once, and stay there as float32
LONG = 1 << 19  # sums of integers at once: fewer take longer, more leave holes in memory
SMALL, LARGE = 1e-30, 1e38  # units of float32 that can still be multiplied
LEAST = 2.0**-140  # more than float32 moves what is too small for it
# What a processor multiplies as it is, without a step through float32.
FAST = {torch.int8: ("avx512_vnni",), torch.bfloat16: ("avx512_bf16", "amx_bf16")}


def cheapest(device: torch.device | str) -> torch.dtype:
    """What sketches are kept in where nothing else is asked for."""
    return torch.int8 if torch.device(device).type == "cpu" else torch.bfloat16


def multiplied(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies numbers of 8 or 16 bits as they are, and fast."""
    known = getattr(torch.cpu, "get_capabilities", dict)()
    there = dtype != torch.int8 or hasattr(torch, "_int_mm")
    return there and any(known.get(name, False) for name in FAST[dtype])


def rounded(a: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Sketches a (N, w) in `dtype`, and (N,) float64 how far that moved each."""
    core = a.to(dtype)
    return core, vector_norm(a - core.to(torch.float64), dim=1) * (1 + 1e-9)


def rounded_to_steps(a: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sketches a (N, w) as (4) has them: c (N, w) int8, u (N,) float32, and (N,) how far moved."""
    scaled = a / steps
    unit = (scaled.abs().amax(1) / TOP).clamp(SMALL, LARGE).to(torch.float32)
    core = (scaled / unit[:, None]).round().clamp(-TOP, TOP)
    return core.to(torch.int8), unit, _away(a, core * unit[:, None] * steps)


def _away(a: Tensor, b: Tensor) -> Tensor:
    """(N,) how far b (N, w) is from a, where it took some roundings of float64 to make b."""
    return vector_norm(a - b, dim=1) * (1 + 1e-9) + 2.0**-50 * vector_norm(b, dim=1)


def _rows(products: int, a: Tensor) -> int:
    """How many sketches make so many products with queries a (B, w)."""
    return max(1, products // max(1, len(a)))


class Floats:
    """-2 <a_z, a_x> of sketches (n, w), in float32, with queries a (B, w).

    `moved` is what rounding moved each of these by, `square` what |a_x|^2 then is, B numbers. A
    product is off by at most `off` |a_x| |a_z|. `rows` sketches are best multiplied at once.
    """

    def __init__(self, a: Tensor):
        lengths = vector_norm(a, dim=1).tolist()
        # By half a last place of each number: what |a_x|^2 then is, is told to 2^-22.
        self.moved = [length * 2.0**-24 + LEAST for length in lengths]
        self.square = [length * length for length in lengths]
        self.off = roundoff(a.shape[1])
        self.rows = _rows(CACHED, a)
        self._query = a.to(torch.float32).mul_(-2)
        self._room = self._query.new_zeros((0, 0))

    def __call__(self, core: Tensor) -> Tensor:
        """(B, n) float32, which the next call overwrites."""
        with full_precision(core.device.type):
            return torch.mm(self._query, core.T, out=self._into(len(core)))

    def _into(self, count: int) -> Tensor:
        if self._room.shape[1] < count:
            self._room = self._room.new_empty((len(self.square), count))
        return self._room[:, :count]


class Halves(Floats):
    """Sketches in bfloat16, multiplied as they are: half the memory is read.

    Products of bfloat16 are exact in float32, and only their sum is rounded to it, by 2^-9.
    """

    def __init__(self, a: Tensor):
        query, moved = rounded(a, torch.bfloat16)
        self.moved = moved.tolist()
        self.square = query.to(torch.float64).square().sum(1).tolist()
        self.off, self.rows = 2.0**-9, _rows(CACHED, a)
        self._query = -2 * query.T
        self._room, self._products = query.new_zeros((0, 0), dtype=torch.float32), query[:0]

    def __call__(self, core: Tensor) -> Tensor:
        """(B, n) float32, which the next call overwrites."""
        with full_precision("cpu"):
            v = torch.mm(core, self._query, out=self._rows(len(core)))
        return self._into(len(core)).copy_(v.T)

    def _rows(self, count: int) -> Tensor:
        if len(self._products) < count:
            self._products = self._query.new_empty((count, self._query.shape[1]))
        return self._products[:count]


class Widened(Floats):
    """Sketches in bfloat16, or of integers on `steps` (w,): put into float32 piece by piece.

    Of integers the steps are in the query, and what it loses counts by the smallest of them.
    """

    def __init__(self, a: Tensor, steps: Tensor | None = None):
        super().__init__(a)
        self.off = roundoff(a.shape[1] + 8)
        self.rows = max(1, min(self.rows, PIECE // a.shape[1]))
        self._wide = self._room
        if steps is not None:
            self._query = (a * steps).to(torch.float32).mul_(-2)
            lost = LEAST / float(steps.min())
            self.moved = [moved * (1 + 2.0**-20) + lost for moved in self.moved]

    def __call__(self, core: Tensor) -> Tensor:
        """(B, n) float32 without the rows' units, which the next call overwrites."""
        if len(self._wide) < len(core):
            self._wide = self._query.new_empty(core.shape)
        return super().__call__(self._wide[: len(core)].copy_(core))


class Digits(Floats):
    """Sketches of integers on `steps` (w,), multiplied exactly by queries of two digits.

    Of 1,036 numbers sums fit into 32 bits, however large; sketches have 1,025 at most.
    """

    def __init__(self, a: Tensor, steps: Tensor):
        scaled = a * steps
        most = TOP * BASE + BASE // 2 - 1
        unit = (scaled.abs().amax(1, keepdim=True) / most).clamp_(SMALL, LARGE).to(torch.float32)
        whole = (scaled / unit).round_().clamp_(-most, most)
        query = whole * unit / steps
        self.moved, self.square = _away(a, query).tolist(), query.square().sum(1).tolist()
        self.off, self._unit = 2.0**-20, -2 * unit
        high = (whole / BASE).round_()
        # In eights, and row by row in memory: of another layout torch may take the strides wrongly.
        digits = torch.cat([high, whole.sub_(high, alpha=BASE)])
        self._query = torch.zeros((len(digits) + -len(digits) % 8, a.shape[1]), dtype=torch.int8)
        self._query[: len(digits)] = digits
        self.rows = _rows(LONG, self._query)
        self._place = torch.empty(0, dtype=torch.int32)  # for sums

    def __call__(self, core: Tensor) -> Tensor:
        """(B, n) float32 without the rows' units, which the next call overwrites."""
        b, size = len(self.square), (len(self._query), len(core))
        if len(self._place) < math.prod(size):
            self._place = torch.empty(math.prod(size), dtype=torch.int32)
        sums = self._place[: math.prod(size)].view(size)
        if core.shape[1] == 1:  # of one column the strides say nothing
            torch.mul(self._query.int(), core.T, out=sums)
        else:
            torch._int_mm(self._query, core.T, out=sums)
        # Into the place of the first digits, which are not needed any more and in the cache.
        v = sums[:b].view(torch.float32)
        return v.copy_(sums[b : 2 * b].add_(sums[:b], alpha=BASE)).mul_(self._unit)
