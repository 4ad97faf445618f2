# SPDX-License-Identifier: Apache-2.0
"""tiny-sprites with all that it was trained on protected: who is inside, and what it costs.

Two sets: the training set, and the same blown up by shifts, flips and colours. Of each the radius
is such that 7.6% of the plain images are inside, as in the paper; the same seeds are made again
with the set protected, and every finished image is measured against every picture of the set.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from shielded.bench.brute import inside, nearest, numbers, stored
from shielded.bench.memory import peak
from shielded.bench.overhead import Clock, Watched
from shielded.bench.sample import draw, pictures
from shielded.bench.scale import apart
from shielded.bench.table import Table
from shielded.bench.training_set import blocks, changed, protect, trained
from shielded.errors import BadInput
from shielded.models import load, prompts
from shielded.shields import Shields
from shielded.shields.kept import load as load_screen
from shielded.shields.store import ProtectedSet
from shielded.spell import Spell

INSIDE = 0.076  # of the plain images, as in the paper
PAIRED = 4  # every so many batches the plain one is made once more, beside the shielded ones
OTHER = 10**6  # the first seed of the pictures that the smoke size protects


def run(
    smoke: bool = False,
    progress: Callable[[str], None] = lambda text: None,
    data: str | None = None,
    images: int = 5000,
    size: int = 200_000,
    batch: int = 16,
    steps: int | None = None,
) -> Table:
    """`images` of the bench prompts, plain and with each set protected, `batch` at a time.

    `data` is the archive of tiles that the training set is taken from, `size` that of the larger
    set. The smoke size can do without the archive: it protects pictures of the model's own.
    """
    if min(images, batch, size) < 1:
        raise BadInput("--images, --size and --batch must be 1 or more.")
    if data is None and not smoke:
        raise BadInput("give --data: the archive of tiles that tiny-sprites was trained on.")
    if smoke:
        images, size, batch, steps = 20, 50, 4, 4
    maker = Maker(list(batches(images, batch)), steps)
    real = trained(data) if data else finished(maker.draw("ring", range(OTHER, OTHER + 12)))
    changed(real, size - 1, size)  # a size that cannot be made is refused now, not in an hour
    for k, (prompt, seeds) in enumerate(maker.plan):
        if k % 10 == 0:
            progress(f"plain: batch {k + 1} of {len(maker.plan)}")
        maker.plain.append(maker.draw(prompt, seeds))
    before = finished(torch.cat(maker.plain))
    table = Table("protected", f"tiny-sprites, {images} images, what it was trained on protected")
    with tempfile.TemporaryDirectory() as folder:
        ways = []
        for name, count in (("training set", len(real)), ("shifts, flips, colours", size)):
            progress(f"{name}: writing {count} pictures")
            store = protect(Path(folder) / str(len(ways)), maker.pipe, real, count)
            progress(f"{name}: measuring plain images against all of them")
            ways.append(Way.of(name, store, real, nearest(before, stored(store))))
        compare(maker, ways, progress)
        for way in ways:
            progress(f"{way.name}: measuring shielded images against all of its pictures")
            table.add(**way.row(memory if smoke else apart(memory)), **way.cost(maker.seconds))
    table.notes += notes(maker, batch)
    return table


def batches(images: int, size: int) -> Iterator[tuple[str, range]]:
    """(prompt, seeds) of each batch: the bench prompts in turn."""
    names = prompts("tiny-sprites")["bench"]
    for k, start in enumerate(range(0, images, size)):
        first = k // len(names) * size
        yield names[k % len(names)], range(first, first + min(size, images - start))


def finished(latents: Tensor) -> Tensor:
    """The 8-bit images (N, 3, H, W) that a user gets."""
    return ((pictures(latents) + 1) * 127.5).round().byte()


class Maker:
    """The model, what it is asked for, and its plain images."""

    def __init__(self, plan: list[tuple[str, range]], steps: int | None):
        self.pipe = load("tiny-sprites")
        self.pipe.set_progress_bar_config(disable=True)
        self.plan, self.call = plan, {} if steps is None else {"num_inference_steps": steps}
        self.plain: list[Tensor] = []  # latents of each batch
        self.seconds: list[float] = []  # of those plain runs that shielded ones stand beside

    def draw(self, prompt: str, seeds: range) -> Tensor:
        """Plain latents."""
        return draw(self.pipe, prompt, seeds, **self.call)[0]

    def again(self, k: int) -> None:
        """A plain batch once more, for the clock."""
        start = time.perf_counter()
        self.draw(*self.plan[k])
        self.seconds.append(time.perf_counter() - start)


@dataclass
class Way:
    """One protected set, and what came of keeping away from it."""

    name: str
    store: ProtectedSet
    real: Tensor  # (N, 3, H, W) uint8: the pictures that the set is made of
    before: Tensor  # the plain images' distances
    radius: float
    spell: Spell
    search: Clock
    prepared: float  # seconds to make all sketches, which are then kept beside the set
    made: list[Tensor] = field(default_factory=list)  # 8-bit images of each batch
    certificates: list[Any] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of each batch
    own: list[float] = field(default_factory=list)  # the guidance's part of them
    same: int = 0  # images that are the plain ones, bit for bit

    @classmethod
    def of(cls, name: str, store: ProtectedSet, real: Tensor, before: Tensor) -> Way:
        """Choose the radius and make the sketches."""
        radius = float(before.quantile(INSIDE))
        start = time.perf_counter()
        load_screen(store, radius)
        prepared = time.perf_counter() - start
        shields, search = Shields.protected(store.path, radius), Clock()
        for source in shields.sources:
            for method in ("references", "closest"):
                setattr(source, method, search.around(getattr(source, method)))
        return cls(name, store, real, before, radius, Spell(shields), search, prepared)

    def warm(self, latents: Tensor) -> None:
        """Read the sketches, before any clock runs."""
        self.spell.shields.closest(pictures(latents).flatten(1), (), None)
        self.search.seconds = 0.0

    def draw(self, maker: Maker, k: int) -> None:
        """Batch k, shielded."""
        watched, start = Watched(self.spell), time.perf_counter()
        latents, run = draw(maker.pipe, *maker.plan[k], watched, **maker.call)
        self.seconds.append(time.perf_counter() - start)
        self.own.append(watched.seconds)
        self.made.append(finished(latents))
        self.certificates += run.certificates
        self.same += int((latents == maker.plain[k]).flatten(1).all(1).sum())

    def row(self, memory: Callable[[Path, float, Tensor], int]) -> dict[str, Any]:
        """What is inside, by brute force, beside what the certificates say."""
        made = torch.cat(self.made)
        after = nearest(made, stored(self.store))
        exact = nearest(made, blocks(self.real, len(self.store)))
        told = torch.tensor([c.distance for c in self.certificates], dtype=torch.float64)
        return {
            "protected": self.name,
            "pictures": len(self.store),
            "r": self.radius,
            "plain, inside": f"{100 * inside(self.before, self.radius) / len(made):.2f}%",
            "shielded, inside": inside(after, self.radius),
            "before float16": inside(exact, self.radius),
            "not clear": sum(not c.clear for c in self.certificates),
            "certificates off by": float((told - after).abs().max()),
            "moved": sum(c.intervened for c in self.certificates),
            "landed": sum(c.landed for c in self.certificates),
            "bit-identical": self.same,
            "memory MB": round(memory(self.store.path, self.radius, made[:16]) / 2**20),
        }

    def cost(self, plain: list[float]) -> dict[str, Any]:
        """Wall time against the plain runs beside it, and the guidance's own time."""
        beside, own = self.seconds[::PAIRED], sum(self.own)
        bare = sum(self.seconds) - own
        pairs = [a / b for a, b in zip(beside, plain, strict=True)]
        return {
            "wall time, median pair": f"{median(pairs):.3f}",
            "all pairs": f"{sum(beside) / sum(plain):.3f}",
            "own time in the run": f"{100 * own / bare:+.2f}%",
            "of it the search": f"{100 * self.search.seconds / bare:+.2f}%",
            "scans a generation": round(self.scans / len(self.seconds), 2),
            "to prepare s": round(self.prepared, 1),
        }

    @property
    def scans(self) -> int:
        """How often steps had to read all sketches."""
        source: Any = self.spell.shields.sources[0]
        return source._searches(self.radius, torch.device("cpu"))[0].scans


def compare(maker: Maker, ways: list[Way], progress: Callable[[str], None]) -> None:
    """Make every batch in each way; now and then a plain one in turn with them, for the clock."""
    for way in ways:
        way.warm(maker.plain[0])
    for k in range(len(maker.plan)):
        if k % 10 == 0:
            progress(f"shielded: batch {k + 1} of {len(maker.plan)}")
        turns: list[Callable[[], None]] = [lambda way=way, k=k: way.draw(maker, k) for way in ways]
        if k % PAIRED == 0:
            first = k // PAIRED % (len(turns) + 1)  # each is first in turn
            turns.append(lambda k=k: maker.again(k))
            turns = turns[first:] + turns[:first]
        for turn in turns:
            turn()


def memory(path: Path, radius: float, images: Tensor) -> int:
    """Bytes that this process needs at its peak, beyond its start, to search a set."""
    store, x, before = ProtectedSet.open(path), numbers(images), peak()
    screen, _ = load_screen(store, radius)
    screen.near(x)
    screen.closest(x)
    return peak() - before


def notes(maker: Maker, batch: int) -> list[str]:
    """What the columns mean."""
    steps, beside = len(maker.pipe.scheduler.timesteps), len(maker.seconds)
    return [
        f"{len(prompts('tiny-sprites')['bench'])} prompts in turn, {steps} steps, {batch} images a "
        "batch; the same seeds in all runs.",
        f"r: {100 * INSIDE:.1f}% of the plain images are nearer to a picture of the set; 8-bit "
        "images in [-1, 1], L2.",
        "Inside: counted in float64 over all pairs, against the set as it is stored; before "
        "float16: against the pictures that it was made of.",
        "Certificates off by: the largest difference to the distance that was counted.",
        f"Wall time: {beside} batches beside plain runs of the same seeds, in turn; median "
        f"{median(maker.seconds):.2f} s plain.",
        "Own time: of SPELL in all batches, against all the rest of the run.",
        "Memory: what a process of its own needs to search the set, beyond its start.",
    ]
