# SPDX-License-Identifier: Apache-2.0
"""Shields that overlap heavily: what the sum of Eq. 5 does, and what the projection does."""

from __future__ import annotations

from collections.abc import Callable

import torch

from shielded.bench.kit.table import Table
from shielded.repel import project, repel_sum

WIDE = [(256, k) for k in (1, 2, 4, 8, 16, 32, 64)]  # (D, K): many more numbers than shields
NARROW = [(d, k) for d in (2, 16) for k in (2, 8, 64)]  # where pushes can cancel


def run(smoke: bool = False, progress: Callable[[str], None] = lambda text: None) -> Table:
    """Random centres within r of each other, x0 among them: K = 1 to 64 shields of radius 1."""
    each = 10 if smoke else 1429
    table = Table("overlap", "Moves out of K overlapping shields of radius 1 in D dimensions")
    generator = torch.Generator().manual_seed(0)
    for dims, k in WIDE + NARROW:
        progress(f"D = {dims}, K = {k}")
        moves = [_case(k, dims, generator) for _ in range(each)]
        s, p = (torch.stack([move[n] for move in moves]) for n in (0, 1))
        table.add(
            D=dims,
            K=k,
            cases=each,
            **{
                "sum: mean move": float(s[:, 0].mean()),
                "sum: largest": float(s[:, 0].max()),
                "sum: inside": f"{100 * float((s[:, 1] < 1 - 1e-9).double().mean()):.2f}%",
                "project: mean move": float(p[:, 0].mean()),
                "project: largest": float(p[:, 0].max()),
                "project: inside": f"{100 * float((p[:, 1] < 1 - 1e-9).double().mean()):.2f}%",
            },
        )
    table.notes.append("Centres in a ball of diameter 1 (so within r of each other), x0 in it too.")
    return table


def _case(k: int, dims: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """(length of the move, smallest distance after it) for the sum and for the projection."""
    z = _ball(k, dims, generator)
    x = _ball(1, dims, generator)
    r = torch.ones(k, dtype=torch.float64)
    allowed = torch.ones(1, k, dtype=torch.bool)
    summed = x + repel_sum(x, z, r, allowed)
    projected = project(x, z, r, allowed, lambda: torch.ones_like(x))[0]
    return _measure(x, summed, z), _measure(x, projected, z)


def _ball(count: int, dims: int, generator: torch.Generator) -> torch.Tensor:
    """Random directions, lengths uniform up to 1/2."""
    v = torch.randn(count, dims, generator=generator, dtype=torch.float64)
    length = 0.5 * torch.rand(count, 1, generator=generator, dtype=torch.float64)
    return v / v.norm(dim=1, keepdim=True) * length


def _measure(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    nearest = torch.cdist(y, z, compute_mode="donot_use_mm_for_euclid_dist").min()
    return torch.stack([(y - x).norm(), nearest])
