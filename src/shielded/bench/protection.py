# SPDX-License-Identifier: Apache-2.0
"""Table 2: the training set protected, by searches that miss some and one that misses none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shielded.bench.kit import training_set
from shielded.bench.kit.brute import inside, nearest, stored
from shielded.bench.kit.clock import Watched
from shielded.bench.kit.contender import PLAIN, Contender
from shielded.bench.kit.filled import filled
from shielded.bench.kit.gallery import RUN, Drawn, Gallery
from shielded.bench.kit.paper import INSIDE, TABLE_2
from shielded.bench.kit.sample import draw
from shielded.bench.kit.scores import scores
from shielded.bench.kit.subject import Subject, subject
from shielded.bench.kit.table import Table
from shielded.bench.kit.work import place
from shielded.errors import BadInput
from shielded.guidance import Guidance
from shielded.shields import Shields
from shielded.shields.store import ProtectedSet
from shielded.spaces import Pixels, space_of
from shielded.spell import Spell

DEFAULT = "tiny-fashion"
CELLS = (1, 2, 3, 5, 10)
IMAGES = 64
ROUNDS = 10  # runs that tell what a search takes
TIMED = (PLAIN.batch, 64)  # images at once in those runs


def run(
    smoke: bool = False,
    progress: Callable[[str], None] = lambda text: None,
    keep: Callable[[Table], None] = lambda table: None,
    work: Path | None = None,
    data: Path | None = None,
    images: int = IMAGES,
    model: str = DEFAULT,
    size: int | None = None,
    one: Subject | None = None,
) -> Table:
    """`images` of each condition, plain and with the training set shielded by each search.

    `data` is the archive (npz) of the pictures that the model was trained on: with `x_train`, or
    the tiles of tiny-sprites, of which `size` pictures are made by shifts, flips and colours. The
    smoke size does without and protects pictures of the model's own. Faiss searches as the paper
    runs them: no last word on the finished image.
    """
    one = one or subject(model, steps=4 if smoke else None)
    if not isinstance(space_of(one.pipe), Pixels):
        raise BadInput("this bench measures models that work on pixels: take tiny-fashion.")
    if data is None and not smoke:
        raise BadInput("give --data: the archive of pictures that the model was trained on.")
    timed = TIMED
    if smoke:
        images, one.conditions, timed = 8, one.conditions[:2], (2, 4)
    name = "protection" if one.name == DEFAULT else f"protection-{one.name}"
    table = Table(name, f"{one.name}: its training set protected")
    with place(work) as folder:
        count, pictures = protected(one, data, size)
        store = filled(folder / "set", one.pipe, count, pictures, progress)
        gallery = Gallery(one, images, folder, progress)
        plain = gallery.draw(PLAIN)
        radius = float(_distances(plain, store).quantile(INSIDE))
        table.add(**row(one, "plain", plain, store, radius))
        found = contenders(store, radius)
        for title, spell, contender in found:
            progress(f"{title}: the search is made ready")  # which is not counted as sampling
            spell().correct(plain.images[0, :1])
            drawn = gallery.draw(contender)
            table.add(**row(one, title, drawn, store, radius))
            keep(table)
        progress("the time that each search takes")
        spells = [spell() for _, spell, _ in found]
        for at_once in timed:
            own = milliseconds(one, spells, at_once)
            for line, spent in zip(table.rows[1:], own, strict=True):
                line[f"own ms an image, {at_once} at once"] = round(spent, 2)
    table.notes.append(
        f"{len(store)} pictures protected, radius {radius:.4g}: {100 * INSIDE:.1f}% of the plain"
    )
    table.notes.append("images are inside. Counted in float64 over all pairs. Cells: of Faiss's")
    table.notes.append("IVFFlat with as many cells as the root of the number of pictures.")
    table.notes.append(f"Own ms: what SPELL adds to the scheduler, the median of {ROUNDS}")
    table.notes.append("batches of so many, each made by all searches in turn.")
    table.notes.append("Rows of the paper: EDMv2, 1.28 million pictures, 50,000 images.")
    for cells, share, precision, recall, seconds in TABLE_2:
        name = "plain" if cells is None else f"IVFFlat, {cells} cells"
        table.add(
            search=f"the paper: {name}",
            inside=f"{100 * share:.2f}%",
            precision=precision,
            recall=recall,
            **{"s an image": seconds},
        )
    return table


def contenders(
    store: ProtectedSet, radius: float
) -> list[tuple[str, Callable[[], Spell], Contender]]:
    """SPELL with each search of Faiss, and with the exact screen; each is made once."""

    def one(title: str, search: str, nprobe: int) -> tuple[str, Callable[[], Spell], Contender]:
        @cache  # an index takes long to make: one for all conditions
        def spell() -> Spell:
            shields = Shields.protected(store.path, radius, search=search, nprobe=nprobe)
            return Spell(shields, landing=search == "screen")

        setting = {"images": len(store), "radius": radius, "search": search, "nprobe": nprobe}
        return title, spell, Contender("SPELL", setting, lambda unit: spell())

    faiss = [one(f"SPELL, IVFFlat, {cells} cells", "ivfflat", cells) for cells in CELLS]
    return [*faiss, one("SPELL, exact screen", "screen", 1)]


def milliseconds(one: Subject, spells: Sequence[Guidance], images: int) -> list[float]:
    """What each adds to the scheduler, an image of a batch of so many: in turn, on one machine."""
    spent: list[list[float]] = [[] for _ in spells]
    for run in range(ROUNDS):
        condition = one.conditions[run % len(one.conditions)]
        seeds = range(8 * RUN, 8 * RUN + images)
        for each, spell in zip(spent, spells, strict=True):
            watched = Watched(spell)
            draw(one.pipe, condition, seeds, watched, **one.call)
            each.append(1e3 * watched.seconds / images)
    return [median(each) for each in spent]


def row(
    one: Subject, title: str, drawn: Drawn, store: ProtectedSet, radius: float
) -> dict[str, Any]:
    """Who is inside, by brute force, what the images are like, what one costs."""
    distance = _distances(drawn, store)
    told = scores(one, drawn)
    return {
        "search": title,
        "inside": f"{100 * inside(distance, radius) / len(distance):.2f}%",
        **{name: round(told[name], 4) for name in ("precision", "recall", "vendi") if name in told},
        "s an image": round(drawn.seconds / len(distance), 4),
        "moved": f"{100 * float((drawn.active > 0).any(-1).double().mean()):.1f}%"
        if drawn.active.numel()
        else "",
        "not clear": drawn.unclear if title != "plain" else "",
    }


def protected(
    one: Subject, data: Path | None, size: int | None
) -> tuple[int, Callable[[int, int], Tensor]]:
    """How many pictures are protected, and what gives those of some numbers, uint8."""
    if data is not None and one.name == "tiny-sprites":
        tiles = training_set.trained(data)
        count = len(tiles) if size is None else size
        training_set.changed(tiles, count - 1, count)  # what cannot be made is refused now
        return count, partial(training_set.changed, tiles)
    if size is not None:
        raise BadInput("--size is for --model tiny-sprites with --data: leave it out.")
    pictures = own_pictures(one) if data is None else trained(data)
    return len(pictures), lambda start, stop: pictures[start:stop]


def _distances(drawn: Drawn, store: ProtectedSet) -> Tensor:
    return nearest(drawn.pictures.flatten(0, 1), stored(store))


def trained(data: Path) -> Tensor:
    """The grey pictures (N, 1, H, W) uint8 in an archive that a model was trained on."""
    with np.load(data, allow_pickle=False) as archive:
        if "x_train" not in archive:
            raise BadInput(f"{data} holds no x_train: give the archive of training pictures.")
        return torch.from_numpy(archive["x_train"])[:, None]


def own_pictures(one: Subject) -> Tensor:
    """Pictures of the model's own, from other seeds: (N, C, H, W) uint8."""
    parts = []
    for condition in one.conditions:
        seeds = range(9 * RUN, 9 * RUN + 8)
        parts.append(one.look(draw(one.pipe, condition, seeds, **one.call)[0]))
    return torch.cat(parts)
