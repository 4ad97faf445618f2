# SPDX-License-Identifier: Apache-2.0
"""Figure 3: what the radius does, at 16 values from 0 to twice the median distance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shielded.bench.kit.contender import PLAIN, Contender, spell
from shielded.bench.kit.gallery import Drawn, Gallery
from shielded.bench.kit.plot import Curve, panels
from shielded.bench.kit.scores import rounded
from shielded.bench.kit.subject import Subject, subject
from shielded.bench.kit.table import Table
from shielded.bench.kit.work import place

GRID = 16
IMAGES = 64
SHOWN = ("recall", "vendi", "precision", "coverage", "density")
TITLES = ("Scores over the radius", "Frechet distance over the radius")


def run(
    smoke: bool = False,
    progress: Callable[[str], None] = lambda text: None,
    keep: Callable[[Table], None] = lambda table: None,
    work: Path | None = None,
    images: int = IMAGES,
    model: str = "tiny-fashion",
    one: Subject | None = None,
) -> Table:
    """`images` of each condition at each radius, from the same seeds; the radius is a share of
    the median distance between plain images of the condition (Appendix D)."""
    one = one or subject(model, steps=4 if smoke else None)
    shares = [2 * k / (GRID - 1) for k in range(1, GRID)]
    if smoke:
        images, one.conditions, shares = 8, one.conditions[:2], [0.8, 1.6]
    table = Table("radius", f"{one.name}: SPELL by its radius, {images} images of each condition")
    table.notes.append("Radius: a share of the median distance of a plain batch. 0 is the model.")
    with place(work) as folder:
        gallery = Gallery(one, images, folder, progress)
        for share in [0.0, *shares]:
            contender = spell(round(share, 4)) if share else PLAIN
            table.add(**row(one, contender, gallery.draw(contender), round(share, 4)))
            keep(table)
    table.figures["curves"] = picture(table)
    return table


def row(one: Subject, contender: Contender, drawn: Drawn, share: float) -> dict[str, Any]:
    """The scores at one radius, and how often SPELL moved an image at all."""
    moved = drawn.active.gt(0).any(-1).double().mean() if contender is not PLAIN else 0.0
    told = rounded(one, drawn)
    unclear = drawn.unclear if share else ""
    return {"radius": share, **told, "moved": f"{100 * float(moved):.0f}%", "not clear": unclear}


def picture(table: Table) -> bytes:
    """Each score over the radius, as a share of the plain model's; the Frechet distance by itself,
    for it grows without bound."""
    rows = table.rows

    def curves(names: Sequence[str]) -> dict[str, Curve]:
        shares = [line["radius"] for line in rows]
        return {
            name: Curve(shares, [line[name] / rows[0][name] for line in rows])
            for name in names
            if rows[0].get(name)
        }

    found = {TITLES[0]: curves(SHOWN), TITLES[1]: curves(("frechet",))}
    charts = {title: lines for title, lines in found.items() if lines}
    axes = ("radius / median distance", "score / plain score")
    return panels(charts, dict.fromkeys(charts, axes), log={TITLES[1]})
