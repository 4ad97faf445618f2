# SPDX-License-Identifier: Apache-2.0
"""One protected set, what came of keeping away from it, and what that cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from shielded.bench.kit.brute import inside, nearest, numbers, stored
from shielded.bench.kit.clock import Clock, Watched
from shielded.bench.kit.maker import Maker
from shielded.bench.kit.memory import peak
from shielded.bench.kit.paper import INSIDE
from shielded.bench.kit.sample import draw, finished, pictures
from shielded.bench.kit.training_set import blocks
from shielded.shields import Shields
from shielded.shields.search.kept import load as load_screen
from shielded.shields.store import ProtectedSet
from shielded.spell import Spell

PAIRED = 4  # every so many batches the plain one is made once more, beside the shielded ones
TOLD = ("distance", "clear", "intervened", "landed")  # of a certificate


@dataclass
class Way:
    """Shielding from one set, batch by batch."""

    name: str
    store: ProtectedSet
    real: Tensor  # (N, 3, H, W) uint8: the pictures that the set is made of
    before: Tensor  # the plain images' distances
    radius: float
    spell: Spell
    search: Clock
    prepared: float  # seconds to make all sketches, which are then kept beside the set
    made: list[Tensor] = field(default_factory=list)  # 8-bit images of each batch
    notes: list[dict[str, Any]] = field(default_factory=list)  # of each batch

    @classmethod
    def of(cls, name: str, store: ProtectedSet, real: Tensor, maker: Maker) -> Way:
        """Choose the radius and make the sketches."""

        def measure() -> tuple[dict[str, Tensor], dict[str, Any]]:
            before = nearest(finished(torch.cat(maker.plain)), stored(store))
            start = time.perf_counter()
            load_screen(store, float(before.quantile(INSIDE)))
            return {"before": before}, {"seconds": time.perf_counter() - start}

        tensors, note = maker.work.once(f"before-{len(store)}", measure)
        radius = float(tensors["before"].quantile(INSIDE))
        shields, search = Shields.protected(store.path, radius), Clock()
        for source in shields.sources:
            for method in ("references", "others", "closest"):
                setattr(source, method, search.around(getattr(source, method)))
        spell = Spell(shields)
        return cls(name, store, real, tensors["before"], radius, spell, search, note["seconds"])

    def warm(self, latents: Tensor) -> None:
        """Read the sketches, before any clock runs."""
        self.spell.shields.closest(pictures(latents).flatten(1), (), None)

    def draw(self, maker: Maker, k: int) -> None:
        """Batch k, shielded."""

        def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
            watched, scans, search = Watched(self.spell), self.scans, self.search.seconds
            start = time.perf_counter()
            latents, run = draw(maker.pipe, *maker.plan[k], watched, **maker.call)
            note = {
                "seconds": time.perf_counter() - start,
                "own": watched.seconds,  # the guidance's part of them
                "search": self.search.seconds - search,
                "scans": self.scans - scans,
                "same": int((latents == maker.plain[k]).flatten(1).all(1).sum()),
                **{name: [getattr(c, name) for c in run.certificates] for name in TOLD},
            }
            return {"images": finished(latents)}, note

        tensors, note = maker.work.once(f"shielded-{len(self.store)}-{k}", make)
        self.made.append(tensors["images"])
        self.notes.append(note)

    def row(self, memory: Callable[[Path, float, Tensor], int]) -> dict[str, Any]:
        """What is inside, by brute force, beside what the certificates say."""
        made = torch.cat(self.made)
        after = nearest(made, stored(self.store))
        exact = nearest(made, blocks(self.real, len(self.store)))
        told = torch.tensor(self._all("distance"), dtype=torch.float64)
        return {
            "protected": self.name,
            "pictures": len(self.store),
            "r": self.radius,
            "plain, inside": f"{100 * inside(self.before, self.radius) / len(made):.2f}%",
            "shielded, inside": inside(after, self.radius),
            "before float16": inside(exact, self.radius),
            "not clear": self._all("clear").count(False),
            "certificates off by": float((told - after).abs().max()),
            "moved": sum(self._all("intervened")),
            "landed": sum(self._all("landed")),
            "bit-identical": sum(note["same"] for note in self.notes),
            "memory MB": round(memory(self.store.path, self.radius, made[:16]) / 2**20),
        }

    def cost(self, plain: list[float]) -> dict[str, Any]:
        """Wall time against the plain runs beside it, and the guidance's own time."""
        seconds, own, search, scans = (
            [note[name] for note in self.notes] for name in ("seconds", "own", "search", "scans")
        )
        beside, bare = seconds[::PAIRED], sum(seconds) - sum(own)
        pairs = [a / b for a, b in zip(beside, plain, strict=True)]
        return {
            "wall time, median pair": f"{median(pairs):.3f}",
            "all pairs": f"{sum(beside) / sum(plain):.3f}",
            "own time in the run": f"{100 * sum(own) / bare:+.2f}%",
            "of it the search": f"{100 * sum(search) / bare:+.2f}%",
            "scans a generation": round(sum(scans) / len(scans), 2),
            "to prepare s": round(self.prepared, 1),
        }

    @property
    def scans(self) -> float:
        """How often steps had to read all sketches."""
        return sum(source.scans for source in self.spell.shields.sources)  # type: ignore[attr-defined]

    def _all(self, name: str) -> list[Any]:
        return [value for note in self.notes for value in note[name]]


def memory(path: Path, radius: float, images: Tensor) -> int:
    """Bytes that this process needs at its peak, beyond its start, to search a set."""
    store, x, before = ProtectedSet.open(path), numbers(images), peak()
    screen, _ = load_screen(store, radius)
    screen.near(x)
    screen.closest(x)
    return peak() - before
