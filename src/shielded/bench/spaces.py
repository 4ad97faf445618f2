# SPDX-License-Identifier: Apache-2.0
"""What keeps images apart in which space: SPELL, kernel repulsion and nudging in each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from shielded.bench.kit.contender import PLAIN, Contender
from shielded.bench.kit.gallery import Drawn, Gallery, change
from shielded.bench.kit.plot import heat
from shielded.bench.kit.scores import rounded
from shielded.bench.kit.subject import Subject, subject
from shielded.bench.kit.table import Table
from shielded.bench.kit.work import place
from shielded.methods import EmbeddingNudging, KernelRepulsion
from shielded.metrics import SmallNet
from shielded.shields import Shields
from shielded.spaces import Colour, Location, Network, Semantic, Style
from shielded.spell import Spell

MODELS = ("tiny-sprites", "tiny-fashion")
IMAGES = 8
SHARE = 1.2  # of the median distance of a plain batch, in each space
STRENGTHS = {"colour": 5.0, "location": 5.0, "style": 5.0}  # of kernel repulsion
SCORES = ("precision", "recall", "vendi", "agreement")


def spaces(net: str) -> dict[str, Semantic]:
    """The semantic spaces, by the names of the table's columns."""
    embeddings = (Colour(), Location(), Style(), Network(SmallNet(net)))
    names = ("colour", "location", "style", "network")
    return {name: Semantic(e) for name, e in zip(names, embeddings, strict=True)}


def contenders(known: Mapping[str, Semantic], share: float = SHARE) -> Iterator[Contender]:
    """SPELL in the latents and in every space, kernel repulsion in those of the thesis, nudging.

    Nudging goes away from the plain images of the condition, each from all of them.
    """

    def spell(space: Semantic | None) -> Callable[[float], Spell]:
        return lambda unit: Spell(Shields.batch(), share * unit, space=space)

    yield Contender("SPELL", {"space": "latent", "radius": share}, spell(None))
    for name, space in known.items():
        yield Contender("SPELL", {"space": name, "radius": share}, spell(space), space=space)
    for name, strength in STRENGTHS.items():

        def kernel(unit: float, name: str = name, strength: float = strength) -> KernelRepulsion:
            return KernelRepulsion(known[name], strength)

        yield Contender("kernel repulsion", {"space": name, "strength": strength}, kernel)
    net = known["network"]
    yield Contender(
        "nudging",
        {"space": "network"},
        given=lambda pictures: EmbeddingNudging(unwanted=net.of_pictures(pictures), space=net),
    )


def run(
    smoke: bool = False,
    progress: Callable[[str], None] = lambda text: None,
    keep: Callable[[Table], None] = lambda table: None,
    work: Path | None = None,
    images: int = IMAGES,
    one: Subject | None = None,
    autocast: bool = False,
) -> Table:
    """`images` of each condition, made together, from the same seeds in each way.

    `one` is measured alone; by default both bundled models are, with `autocast` in bfloat16.
    """
    images = 6 if smoke else images
    table = Table("spaces", "Kept apart in one space, measured in all")
    table.notes.append("Columns of spaces: the mean distance of two images of a condition there,")
    table.notes.append("of the plain images' own. Change: root mean square difference to the plain")
    table.notes.append(f"images, colours from 0 to 1. Radius {SHARE}: of the median distance of a")
    table.notes.append(f"plain batch in that space. {images} images of each condition.")
    with place(work) as folder:
        for name in MODELS if one is None else (one.name,):
            this = one or subject(name, steps=4 if smoke else None, autocast=autocast)
            if smoke:
                this.conditions = this.conditions[:2]
            compare(this, Gallery(this, images, folder, progress), table, keep)
            table.figures[name] = picture(table, name)
    return table


def compare(one: Subject, gallery: Gallery, table: Table, keep: Callable[[Table], None]) -> None:
    """A row for each way of a model."""
    known = spaces("fashion" if one.name == "tiny-fashion" else "sprites")
    plain = gallery.draw(PLAIN)
    measured = {name: apart(space, plain) for name, space in known.items()}
    table.add(model=one.name, images="plain", **row(one, plain, plain, known, measured))
    for contender in contenders(known):
        drawn = gallery.draw(contender)
        title = f"{contender.method}, {contender.setting['space']}"
        told = row(one, drawn, plain, known, measured)
        table.add(model=one.name, images=title, **told)
        keep(table)


def row(
    one: Subject,
    drawn: Drawn,
    plain: Drawn,
    known: Mapping[str, Semantic],
    measured: Mapping[str, float],
) -> dict[str, Any]:
    """How far apart the images are in each space, and what else became of them."""
    told: dict[str, Any] = {
        name: round(apart(space, drawn) / measured[name], 3) for name, space in known.items()
    }
    found = rounded(one, drawn)
    told |= {name: found[name] for name in SCORES if name in found}
    told["change"] = change(drawn.pictures, plain.pictures)
    told["evaluations"] = round(drawn.each, 1)
    told["s an image"] = round(drawn.seconds / drawn.count, 3)
    return told


def apart(space: Semantic, drawn: Drawn) -> float:
    """The mean distance of two images of one condition in a space, over all conditions."""
    return fmean(float(torch.pdist(space.of_pictures(x)).mean()) for x in drawn.images)


def picture(table: Table, model: str) -> bytes:
    """A model's columns of spaces as a chart of squares: one row a method."""
    columns = ["colour", "location", "style", "network"]
    rows = [line for line in table.rows if line["model"] == model and line["images"] != "plain"]
    return heat(
        f"{model}: distance between images, plain ones 1",
        [line["images"] for line in rows],
        columns,
        [[line[name] for name in columns] for line in rows],
    )
