# SPDX-License-Identifier: Apache-2.0
"""Table 1: the same seeds without and with SPELL, on features of real and of made images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shielded.bench.kit.contender import PLAIN, SHARES, Contender, spell
from shielded.bench.kit.gallery import Gallery
from shielded.bench.kit.paper import COLUMNS, TABLE_1
from shielded.bench.kit.scores import scores, spread
from shielded.bench.kit.subject import Subject, subject
from shielded.bench.kit.table import Table
from shielded.bench.kit.work import place

MODELS = ("tiny-fashion", "tiny-sprites")
RUNS = 5
IMAGES = 640  # a run: shared out among the conditions


def run(
    smoke: bool = False,
    progress: Callable[[str], None] = lambda text: None,
    keep: Callable[[Table], None] = lambda table: None,
    work: Path | None = None,
    images: int | None = None,
    runs: int = RUNS,
    one: Subject | None = None,
    autocast: bool = False,
) -> Table:
    """`images` of each condition, `runs` times from other seeds; mean and deviation over runs.

    `keep` gets the table after each model, what is drawn is kept in the folder `work`. `one`
    is measured alone; by default both bundled models are, with `autocast` in bfloat16.
    """
    images, runs = (8, 2) if smoke else (images, runs)
    table = Table("diversity", "The same seeds without and with SPELL")
    table.notes.append(f"Mean and standard deviation of {runs} runs. Radius: a share of the median")
    table.notes.append("distance of a plain batch; shields: the batch, and all images before it.")
    table.notes.append("Rows of the paper: 50,000 images of 256 x 256, on other features.")
    with place(work) as folder:
        for name in MODELS if one is None else (one.name,):
            this = one or subject(name, steps=4 if smoke else None, autocast=autocast)
            if smoke:
                this.conditions = this.conditions[:2]
            number = len(this.conditions)
            count = images or max(2, IMAGES // number)
            table.notes.append(f"{name}: {count} images of each of {number} conditions.")
            gallery = Gallery(this, count, folder, progress)
            for contender in (PLAIN, spell(SHARES.get(name, 1.0))):
                table.add(**row(this, contender, gallery, runs))
            keep(table)
    for line in papers():
        table.add(**line)
    return table


def row(one: Subject, contender: Contender, gallery: Gallery, runs: int) -> dict[str, Any]:
    """Mean and deviation of each column, and what it cost."""
    drawn = [gallery.draw(contender, k) for k in range(runs)]
    told = spread(scores(one, images) for images in drawn)
    line: dict[str, Any] = {"model": one.name, "images": contender.title}
    line |= {name: f"{mean:.3f} ± {off:.3f}" for name, (mean, off) in told.items()}
    made = sum(images.count for images in drawn)
    line["s an image"] = f"{sum(images.seconds for images in drawn) / made:.3f}"
    return line


def papers() -> Iterator[dict[str, Any]]:
    """The paper's rows."""
    for model, ways in TABLE_1.items():
        for images, values in zip(("plain", "SPELL"), ways, strict=True):
            told = zip(COLUMNS, values, strict=True)
            line = {name: f"{mean:.3f} ± {off:.3f}" for name, (mean, off) in told}
            yield {"model": f"the paper: {model}", "images": images, **line}
