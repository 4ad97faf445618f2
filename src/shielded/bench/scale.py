# SPDX-License-Identifier: Apache-2.0
"""Searching protected sets of growing size, step by step, beside brute force and Faiss.

Data are Gaussian random fields with a power-law spectrum, as natural images have. For them the
expected output of a noisy image is known exactly (the Wiener filter), so the trajectories are
those of an ideal denoiser. Half of them end near a protected image, half elsewhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shielded.bench.kit.memory import apart, peak
from shielded.bench.kit.table import Table
from shielded.bench.kit.work import Made, Work, place
from shielded.distances import Rough, squared_distances
from shielded.shields.search.faiss_index import FaissIndex
from shielded.shields.search.kept import load
from shielded.shields.search.screen import Found
from shielded.shields.store import ProtectedSet

SHAPE = (4, 32, 32)  # a latent of 256 x 256 pixels
FALL = 2.0  # power of the spectrum: |k|^-2 in power, |k|^-1 in amplitude
STEPS, BATCH, BLOCK = 50, 8, 4096
SIGMAS = (20.0, 0.02)  # noise of the first and the last step, against data of variance 1
REPEATS, MOST, LONG = 3, 15, 10.0  # trajectories: at least; at most; seconds after which no more
SIZES = (25_000, 50_000, 100_000, 200_000, 400_000)
HUGE = 1_280_000  # only the screen: the others would need 21 GB of memory
METHODS = ("brute force", "ivfflat 1", "ivfflat 2", "ivfflat 10", "panorama", "screen")


def run(
    smoke: bool = False,
    progress: Callable[[str], None] = lambda text: None,
    keep: Callable[[Table], None] = lambda table: None,
    most: int | None = None,
    work: Path | None = None,
) -> Table:
    """Time a step, recall and memory for each size and method, each in a process of its own.

    `most` leaves out larger sets, `keep` gets the table after each size. Sizes that are finished
    are kept in the folder `work`: a run that was stopped goes on from there. The smoke size stays
    in this process: its times and memory say nothing.
    """
    sizes = [(n, METHODS) for n in SIZES] + [(HUGE, ("screen",))]
    if smoke:
        sizes = [(500, METHODS)]
    table = Table("scale", f"Search of a set a sampling step: {math.prod(SHAPE)} numbers an image")
    table.notes.append(
        f"{STEPS} steps, {BATCH} images, the median of {MOST} trajectories; of as many as fit into "
        f"{LONG:.0f} s, {REPEATS} at least, where they take longer. Hits are those of the first "
        f"{REPEATS}."
    )
    table.notes.append(
        "Memory: what the search took at its peak, beside a process that makes trajectories."
    )
    table.notes.append("At most: also while sketches were made, once, which are kept on disk.")
    with place(work) as folder:
        done = Work(folder / "sizes", {"smoke": smoke})
        for count, methods in sizes:
            if most is not None and count > most:
                break

            def compared(count: int = count, methods: tuple[str, ...] = methods) -> Made:
                store = grow(folder / "set", count, progress)
                return {}, {"found": compare(store, methods, smoke, progress)}

            found = done.once(str(count), compared)[1]["found"]
            for method, one in zip(methods, found, strict=True):
                truth = found[0]["hits"]
                table.add(images=count, search=method, **row(one, truth, len(methods) > 1))
            keep(table)
    ratios(table)
    return table


def compare(
    store: ProtectedSet, methods: Sequence[str], smoke: bool, progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Measure the methods one after another, the first of them the truth."""
    found, radius = [], near_radius(store)
    for method in methods:
        progress(f"{len(store)} images: {method}")
        before = (sketch if smoke else apart(sketch))(store.path, method, radius)
        most = REPEATS if smoke else MOST
        one = (measure if smoke else apart(measure))(store.path, method, radius, most)
        one["prepare"] += before["seconds"]
        found.append({**one, "most": max(one["memory"], before["memory"])})
    return found


def sketch(path: Path, method: str, radius: float) -> dict[str, Any]:
    """Make what is then kept beside the set: the screen's sketches; seconds and peak memory."""
    start, before = time.perf_counter(), peak()
    if method == "screen":
        load(ProtectedSet.open(path), radius)
    return {"seconds": time.perf_counter() - start, "memory": peak() - before}


def row(found: dict[str, Any], truth: list[list[int]], known: bool) -> dict[str, Any]:
    """The figures of one run; recall only where brute force told the truth."""
    hits = sum(len(step) for step in truth)
    got = sum(len(set(a) & set(b)) for a, b in zip(found["hits"], truth, strict=True))
    return {
        "ms a step": round(1e3 * found["seconds"] / STEPS, 3),
        "recall": f"{got / hits:.4f}" if known and hits else "",
        "hits": hits if known else sum(len(step) for step in found["hits"]),
        "memory MB": round(found["memory"] / 2**20),
        "to prepare s": round(found["prepare"], 1),
        "at most MB": round(found["most"] / 2**20),
        "scans": found["scans"],
    }


def ratios(table: Table) -> None:
    """Add, to each row, how much dearer it is than the screen at the same size."""
    own = {line["images"]: line["ms a step"] for line in table.rows if line["search"] == "screen"}
    for line in table.rows:
        if line["images"] in own:
            line["time / screen"] = round(line["ms a step"] / own[line["images"]], 1)


def grow(path: Path, count: int, progress: Callable[[str], None]) -> ProtectedSet:
    """A set of `count` fields; images are the same whatever the size it had before."""
    progress(f"{count} images: writing")
    store = ProtectedSet.open(path) if path.exists() else ProtectedSet.create(path, SHAPE)
    for start in range(len(store), count, BLOCK):
        size = min(BLOCK, count - start)
        store.add(fields(size, start).reshape(size, *SHAPE), [str(start + k) for k in range(size)])
        if start // BLOCK % 25 == 0:
            progress(f"  {start} of {count}")
    return store


def amplitude() -> Tensor:
    """(H, W) the standard deviation of each frequency, for fields of variance 1."""
    _, height, width = SHAPE
    k = torch.hypot(torch.fft.fftfreq(height)[:, None] * height, torch.fft.fftfreq(width) * width)
    a = k.clamp(min=1) ** (-FALL / 2)
    return a / a.square().mean().sqrt()


def fields(count: int, seed: int) -> Tensor:
    """(count, D) power-law fields."""
    draw = torch.Generator().manual_seed(seed)
    white = torch.randn(count, *SHAPE, generator=draw)
    return torch.fft.ifft2(torch.fft.fft2(white) * amplitude()).real.flatten(1)


def near_radius(store: ProtectedSet) -> float:
    """Half the median distance between two images."""
    x = torch.from_numpy(store.take(store.parts()[0].rows[:256]).astype(np.float64))
    return 0.5 * float(torch.pdist(x).median())


def trajectory(store: ProtectedSet, radius: float, seed: int) -> Iterator[Tensor]:
    """The expected outputs (B, D) of an ideal denoiser, step by step.

    x0(sigma) = W (y + sigma eps), W = A^2 / (A^2 + sigma^2) at each frequency of amplitude A. The
    images y of the first half are protected ones, moved by 0.8 r; the noise eps stays the same.
    """
    draw = torch.Generator().manual_seed(10**6 + seed)
    parts = store.parts()
    part = parts[int(torch.randint(len(parts), (1,), generator=draw))]
    some = part.rows[torch.randint(len(part.rows), (BATCH // 2,), generator=draw).numpy()]
    near = torch.from_numpy(store.take(some).astype(np.float64))
    shift = fields(BATCH // 2, 2 * 10**6 + seed).double()
    near = near + 0.8 * radius * shift / shift.norm(dim=1, keepdim=True)
    y = torch.cat([near, fields(BATCH - BATCH // 2, 3 * 10**6 + seed).double()])
    eps = torch.randn(BATCH, *SHAPE, generator=draw, dtype=torch.float64)
    power = amplitude().double().square()
    first, last = (math.log10(sigma) for sigma in SIGMAS)
    for sigma in torch.logspace(first, last, STEPS).tolist():
        x = torch.fft.fft2(y.reshape(BATCH, *SHAPE) + sigma * eps)
        yield torch.fft.ifft2(x * power / (power + sigma**2)).real.flatten(1)


@dataclass
class Brute:
    """All vectors in memory in float32, all distances at every step."""

    z: Tensor
    radius: float

    def near(self, x: Tensor) -> Found:
        """One matrix product with everything."""
        d2 = self.square - 2 * (x.float() @ self.z.T)
        maybe = (d2 + x.float().square().sum(1)[:, None]) <= (self.radius * 1.001) ** 2
        row = maybe.any(0).nonzero()[:, 0]
        z = self.z[row].double()
        inside = (squared_distances(x, z).sqrt() <= self.radius).any(0)
        return Found(row[inside], Rough.of(z[inside]))

    def __post_init__(self) -> None:
        self.square = self.z.square().sum(1)


def measure(path: Path, method: str, radius: float, most: int) -> dict[str, Any]:
    """Prepare one search and follow the trajectories: seconds of one, hits, peak memory."""
    store = ProtectedSet.open(path)
    for x in trajectory(store, radius, 0):  # what these need is not counted
        torch.cdist(x, x)
    start, before = time.perf_counter(), peak()
    search = prepare(store, method, radius)
    ready = time.perf_counter() - start
    seconds: list[float] = []
    hits: list[list[int]] = []
    while len(seconds) < REPEATS or (len(seconds) < most and sum(seconds) < LONG):
        spent, seed = 0.0, len(seconds)
        for x in trajectory(store, radius, seed):
            begin = time.perf_counter()
            found = search.near(x)
            spent += time.perf_counter() - begin
            if seed < REPEATS:
                hits.append(found.row.tolist())
        seconds.append(spent)
    scans = getattr(search, "scans", STEPS * len(seconds)) / len(seconds)
    return {
        "seconds": median(seconds),
        "hits": hits,
        "memory": peak() - before,
        "prepare": ready,
        "scans": round(scans, 1),
    }


def prepare(store: ProtectedSet, method: str, radius: float) -> Any:
    """The search called `method`."""
    if method == "screen":
        return load(store, radius)[0]

    def blocks() -> Iterator[np.ndarray]:
        return (latents for _, latents in store.blocks())

    if method == "brute force":
        z = torch.empty(len(store), store.dim)
        start = 0
        for block in blocks():
            z[start : start + len(block)] = torch.from_numpy(block.astype(np.float32))
            start += len(block)
        return Brute(z, radius)
    kind, _, cells = method.partition(" ")
    radii = torch.full((len(store),), radius, dtype=torch.float64)
    return FaissIndex(blocks, radii, store.dim, kind, int(cells or 1))
