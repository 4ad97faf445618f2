# SPDX-License-Identifier: Apache-2.0
"""Figure 4: diversity against quality in three planes, for SPELL and its rivals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shielded.bench.kit.contender import PLAIN, Contender, spell
from shielded.bench.kit.gallery import Gallery
from shielded.bench.kit.plot import Curve, panels
from shielded.bench.kit.scores import FIDELITY, rounded
from shielded.bench.kit.subject import Subject, subject
from shielded.bench.kit.table import Table
from shielded.bench.kit.work import place
from shielded.methods import (
    CADS,
    GenerateAndDiscard,
    IntervalGuidance,
    LowerGuidance,
    ParticleGuidance,
)
from shielded.shields import Shields

IMAGES = 32
PLANES = {
    "Recall and precision": ("precision", "recall"),
    "Coverage and density": ("density", "coverage"),
    "Vendi score and agreement": (FIDELITY, "vendi"),
}
RADII = (0.4, 0.6, 0.8, 1.0, 1.2)
LAMS = (1.0, 1.6)
INTERVALS = ((0.05, 1.0), (0.05, 2.0), (0.05, 5.0), (0.2, 2.0), (0.2, 5.0), (0.5, 5.0))
ANNEALED = ((0.6, 0.9, 0.02), (0.6, 0.9, 0.05), (0.6, 0.9, 0.1), (0.6, 0.9, 0.25), (0.5, 0.9, 0.5))
STRENGTHS = (1.0, 3.0, 10.0, 30.0)
WEIGHTS = (0.75, 0.5, 0.25, 0.1, 0.0)
DISCARDED = ((0.6, 4), (0.8, 4), (1.0, 4))
LATE = 0.6  # noise level: from here on x0 are pictures of their own
SCALES = (1.25, 1.5)  # of guidance, lower than the model's own


def contenders() -> Iterator[Contender]:
    """Every method at every setting."""
    yield PLAIN
    for lam in LAMS:
        yield from (spell(share, lam) for share in RADII)
    yield from (_named("SPELL, late", spell(share, start=LATE)) for share in RADII[:4])
    for scale in SCALES:
        for share in RADII[1:3]:
            both = spell(share, start=LATE, guidance_scale=scale)
            told = {**both.setting, "guidance_scale": scale}
            yield replace(_named("SPELL, late, lower guidance", both), setting=told)
    for share in WEIGHTS:
        yield _of("lower guidance", {"share": share}, lambda unit, s=share: LowerGuidance(s))
    for low, high in INTERVALS:
        setting = {"low": low, "high": high}
        yield _of("interval guidance", setting, lambda unit, a=setting: IntervalGuidance(**a))
    for tau1, tau2, noise in ANNEALED:
        setting = {"tau1": tau1, "tau2": tau2, "noise_scale": noise}
        yield _of("CADS", setting, lambda unit, a=(tau1, tau2, noise): CADS(*a))
    for strength in STRENGTHS:
        setting = {"strength": strength}
        yield _of("particle guidance", setting, lambda unit, s=strength: ParticleGuidance(s))
    for share, most in DISCARDED:

        def make(unit: float, share: float = share, most: int = most) -> GenerateAndDiscard:
            shields = Shields.batch() + Shields.history()
            return GenerateAndDiscard(shields, share * unit, most=most)

        yield _of("generate and discard", {"radius": share, "most": most}, make)


def _named(method: str, contender: Contender) -> Contender:
    return replace(contender, method=method)


def _of(method: str, setting: dict[str, Any], make: Callable[[float], Any]) -> Contender:
    return Contender(method, setting, make)


def run(
    smoke: bool = False,
    progress: Callable[[str], None] = lambda text: None,
    keep: Callable[[Table], None] = lambda table: None,
    work: Path | None = None,
    images: int = IMAGES,
    model: str = "tiny-fashion",
    one: Subject | None = None,
    entered: Sequence[Contender] | None = None,
) -> Table:
    """`images` of each condition by every contender, from the same seeds.

    A row is on the front of its plane if no other is better in both of the plane's scores.
    """
    one = one or subject(model, steps=4 if smoke else None)
    entered = list(contenders()) if entered is None else entered
    if smoke:
        images, one.conditions = 8, one.conditions[:2]
        first: dict[str, Contender] = {}
        for contender in entered:
            first.setdefault(contender.method, contender)
        entered = list(first.values())
    table = Table("pareto", f"{one.name}: diversity against quality, {images} of each condition")
    table.notes.append(
        "Evaluations: calls of the network for each image. Front: planes in which no"
    )
    table.notes.append("other row is better in both scores (1 recall and precision, 2 coverage and")
    table.notes.append("density, 3 Vendi score and agreement with what was asked for).")
    with place(work) as folder:
        gallery = Gallery(one, images, folder, progress)
        for contender in entered:
            drawn = gallery.draw(contender)
            told = rounded(one, drawn)
            setting = ", ".join(f"{name} {value}" for name, value in contender.setting.items())
            cost = {"evaluations": round(drawn.each, 1)}
            table.add(method=contender.method, setting=setting, **told, **cost)
            keep(table)
    marked(table.rows)
    table.figures["fronts"] = picture(table)
    return table


def marked(rows: list[dict[str, Any]]) -> None:
    """Note in each row the planes on whose front it is."""
    for row in rows:
        row["front"] = ""
    for number, axes in enumerate(PLANES.values(), 1):
        for row in rows:
            if all(axis in row for axis in axes) and not _beaten(row, rows, axes):
                row["front"] = f"{row['front']} {number}".strip()


def _beaten(row: dict[str, Any], rows: list[dict[str, Any]], axes: tuple[str, str]) -> bool:
    """Whether another row is at least as good in both scores and better in one."""
    own = [row[axis] for axis in axes]
    for other in rows:
        theirs = [other[axis] for axis in axes]
        if theirs != own and all(a >= b for a, b in zip(theirs, own, strict=True)):
            return True
    return False


def picture(table: Table) -> bytes:
    """The three planes: quality to the right, diversity up; each method's own front is joined."""
    charts: dict[str, dict[str, Curve]] = {}
    for title, axes in PLANES.items():
        x, y = axes
        lines = [line for line in table.rows if x in line and y in line]
        if lines:
            charts[title] = {}
            for method in dict.fromkeys(line["method"] for line in lines):
                own = [line for line in lines if line["method"] == method]
                front, rest = [], []
                for line in own:
                    (rest if _beaten(line, own, axes) else front).append((line[x], line[y]))
                front.sort()
                curve = Curve([a for a, _ in front], [b for _, b in front], beside=rest)
                charts[title][method] = curve
    return panels(charts, PLANES)
