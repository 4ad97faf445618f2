# SPDX-License-Identifier: Apache-2.0
"""Figure 5 and Appendix F: when SPELL acts, on how many images, and how strongly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shielded.bench.kit.contender import Contender
from shielded.bench.kit.gallery import Gallery
from shielded.bench.kit.plot import Curve, panels
from shielded.bench.kit.subject import Subject, subject
from shielded.bench.kit.table import Table
from shielded.bench.kit.work import place
from shielded.shields import Shields
from shielded.spell import Spell

LEVELS = (0.75, 0.5, 0.25)  # noise levels at which it is counted who is still moved


@dataclass(frozen=True)
class Setup:
    """Of `count` images of a condition, made `batch` at a time, the last `watched` are looked at.

    They keep away from the images of their batch, or from all that were finished before, or both.
    """

    title: str
    shields: Callable[[], Shields]
    batch: int
    count: int
    watched: int
    share: float = 1.0  # of the median distance
    overcompensation: float = 1.0

    @property
    def contender(self) -> Contender:
        """SPELL in this set-up."""

        def make(unit: float) -> Spell:
            radius = self.share * unit
            return Spell(self.shields(), radius, overcompensation=self.overcompensation)

        setting = {"set-up": self.title, "radius": self.share, "lam": self.overcompensation}
        return Contender("SPELL", setting, make, batch=self.batch)


def _both() -> Shields:
    return Shields.batch() + Shields.history()


SETUPS = (
    Setup("8 images before (Fig. 9)", Shields.history, 8, 16, 8),
    Setup("a batch of 8 (Fig. 10)", Shields.batch, 8, 8, 8),
    Setup("2 at a time, and before (Fig. 11)", _both, 2, 16, 14),
    Setup("64 images before (Fig. 12)", Shields.history, 8, 72, 8),
    Setup("8 before, radius 1.5 (Fig. 13)", Shields.history, 8, 16, 8, share=1.5),
    Setup("8 before, lam 1.6 (Fig. 14)", Shields.history, 8, 16, 8, overcompensation=1.6),
)


def run(
    smoke: bool = False,
    progress: Callable[[str], None] = lambda text: None,
    keep: Callable[[Table], None] = lambda table: None,
    work: Path | None = None,
    model: str = "tiny-fashion",
    one: Subject | None = None,
) -> Table:
    """Each set-up on every condition: shares of images moved over time, and how far."""
    one = one or subject(model, steps=4 if smoke else None)
    setups = SETUPS
    if smoke:
        one.conditions, setups = one.conditions[:2], SETUPS[:2]
    table = Table("sparsity", f"{one.name}: when SPELL acts, and how strongly")
    table.notes.append(
        "Radius 1 is the median distance of a plain batch. Strength is the length of"
    )
    table.notes.append("the correction over that of the score, of images and calls that it moved.")
    table.notes.append("At a noise level: images that are still moved then, or later.")
    charts: dict[str, dict[str, Curve]] = {"Images moved": {}, "Strength, 95 of 100": {}}
    with place(work) as folder:
        for setup in setups:
            gallery = Gallery(one, setup.count, folder, progress)
            drawn = gallery.draw(setup.contender)
            ratio, active = (
                x[:, -setup.watched :].flatten(0, 1) for x in (drawn.ratio, drawn.active)
            )
            table.add(**{"shields": setup.title, **row(ratio, active > 0, drawn.level)})
            level = drawn.level.tolist()
            charts["Images moved"][setup.title] = Curve(level, _percent(active > 0).tolist())
            strong = ratio.quantile(0.95, 0).tolist()
            charts["Strength, 95 of 100"][setup.title] = Curve(level, strong)
            keep(table)
    labels = {
        "Images moved": ("noise level: 1 is noise, 0 the image", "% of images"),
        "Strength, 95 of 100": ("noise level", "|delta| / |score|"),
    }
    table.figures["curves"] = panels(charts, labels, falling=True, log={"Strength, 95 of 100"})
    return table


def row(ratio: Tensor, moved: Tensor, level: Tensor) -> dict[str, Any]:
    """What a set-up's strengths (N, T), and who was moved, at noise levels (T,), falling, say.

    From pure noise a move has no strength: there the score knows nothing of x0.
    """
    last = moved.flip(1).cumsum(1).flip(1) > 0  # now or later
    calls = torch.arange(ratio.shape[1])
    first = torch.where(moved, calls, len(calls)).amin(1)
    span = (last & (calls >= first[:, None])).sum(1)
    some = moved.any(1)
    whole = (moved.sum(1) == span)[some].double().mean() if bool(some.any()) else torch.ones(())
    told: dict[str, Any] = {"images": len(ratio), "ever moved": _said(some)}
    for at in LEVELS:
        told[f"from level {at} on"] = _said(
            last[:, int((level > at).sum().clamp(max=len(level) - 1))]
        )
    told["at the last call"] = _said(moved[:, -1])
    told["stopped for good"] = f"{100 * float(whole):.0f}%"
    strong = ratio[ratio > 0] if bool((ratio > 0).any()) else ratio.new_zeros(1)
    told |= {"median strength": float(strong.median()), "largest": float(strong.max())}
    told["below 5%"] = _said(strong < 0.05)
    return told


def _percent(which: Tensor) -> Tensor:
    return 100 * which.double().mean(0)


def _said(which: Tensor) -> str:
    return f"{100 * float(which.double().mean()):.0f}%"
