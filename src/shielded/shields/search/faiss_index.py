# SPDX-License-Identifier: Apache-2.0
"""Faiss as the second search: the paper's IVFFlat, and Panorama, the strongest exact rival.

All vectors are held in memory in float32. IVFFlat looks into `nprobe` of its cells only, so it may
overlook references: that is how the paper's Table 2 was made. Certificates are measured by the
exact screen in either case.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from shielded.distances import Rough, squared_distances
from shielded.errors import BadInput, MissingExtra
from shielded.shields.search.screen import Found

__all__ = ["KINDS", "FaissIndex", "Search"]

KINDS = ("ivfflat", "panorama", "flat")
LEVELS = 8  # parts of a vector that Panorama looks at one after another
TRAINED_ON = 64  # vectors a cell
ROUNDING = 1e-5  # relative: Faiss measures in float32


class Search(Protocol):
    """Anything that finds references near points: the screen, or an index of another library."""

    def near(self, x: Tensor, *, but: Tensor | None = None) -> Found:
        """References within their radius of any x (B, D), float64, but for some rows (K,)."""
        ...


class FaissIndex:
    """Search (N, D) references with Faiss, on the CPU.

    `blocks` yields the points in order, numpy (n, D); `radius` (N,) float64 is each reference's.
    What is found is measured exactly afterwards: float32 holds what sets store.
    """

    def __init__(
        self,
        blocks: Callable[[], Iterable[np.ndarray]],
        radius: Tensor,
        dim: int,
        kind: str = "ivfflat",
        nprobe: int = 2,
    ):
        if kind not in KINDS:
            raise BadInput(f"search is {kind!r}: choose one of {', '.join(KINDS)}.")
        if nprobe < 1:
            raise BadInput(f"nprobe is {nprobe}: search one cell at least.")
        self.radius = radius
        self.index = _index(kind, dim, len(radius), nprobe, blocks)
        for block in blocks():
            self.index.add(np.ascontiguousarray(block, dtype=np.float32))
        if kind == "ivfflat":
            self.index.make_direct_map()  # where each point lies among the cells

    def near(self, x: Tensor, *, but: Tensor | None = None) -> Found:
        """Those that Faiss finds within the largest radius, then measured exactly."""
        limit = float(self.radius.max()) if len(self.radius) else 0.0
        queries = np.ascontiguousarray(x.cpu().to(torch.float32).numpy())
        _, _, rows = self.index.range_search(queries, (limit * (1 + ROUNDING)) ** 2)
        rows = np.unique(rows)
        if but is not None:
            rows = np.setdiff1d(rows, but.cpu().numpy(), assume_unique=True)
        z = Rough.of(torch.from_numpy(self.index.reconstruct_batch(rows)).to(x.device))
        row = torch.from_numpy(rows).to(x.device)
        r = self.radius.to(x.device)[row]
        hit = (squared_distances(x, z.points.double()).sqrt() <= r * (1 + 1e-9)).any(0)
        inside = hit.nonzero()[:, 0]
        return Found(row[inside], z.pick(inside))


def _index(
    kind: str, dim: int, count: int, nprobe: int, blocks: Callable[[], Iterable[np.ndarray]]
) -> Any:
    faiss = _faiss()
    if kind == "flat":
        return faiss.IndexFlatL2(dim)
    if kind == "panorama":
        return faiss.IndexFlatL2Panorama(dim, LEVELS)
    cells = max(1, math.isqrt(count))  # as the paper: 1131 for the 1.28 million of ImageNet
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(dim), dim, cells)
    index.train(_sample(blocks(), count, min(count, TRAINED_ON * cells)))
    index.nprobe = nprobe
    return index


def _sample(blocks: Iterable[np.ndarray], count: int, wanted: int) -> np.ndarray:
    """About `wanted` of the points, evenly spaced."""
    step, start, rows = max(1, count // max(1, wanted)), 0, []
    for block in blocks:
        first = -start % step
        rows.append(np.asarray(block[first::step], dtype=np.float32))
        start += len(block)
    return np.ascontiguousarray(np.concatenate(rows))


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtra(
            "this search needs Faiss: pip install shielded-diffusion[faiss]."
        ) from error
    return faiss
