# SPDX-License-Identifier: Apache-2.0
"""How well the expected output x0 tells, step by step, where a trajectory will land."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from shielded.bench.kit.plot import Curve, panels
from shielded.bench.kit.sample import draw
from shielded.bench.kit.subject import Subject, subject
from shielded.bench.kit.table import Table
from shielded.distances import squared_distances
from shielded.guidance import Guidance, Shift, Step, flat
from shielded.spaces import space_of

BATCH = 16
SHARE = 0.8  # of the median distance: the radius whose violations are foretold
TITLES = ("Distance from where it lands", "Pairs inside at the end")


class Watch(Guidance):
    """Moves nothing; keeps every expected image."""

    def __init__(self) -> None:
        self.x0: list[Tensor] = []
        self.level: list[float] = []

    def shift(self, step: Step) -> Shift | None:
        """Only to look."""
        self.x0.append(step.expected)
        self.level.append(step.noise_level)
        return None


def run(
    smoke: bool = False,
    progress: Callable[[str], None] = lambda text: None,
    model: str = "tiny-fashion",
    one: Subject | None = None,
    batch: int = BATCH,
) -> Table:
    """A plain batch of each condition; a pair is inside if it ends closer than the radius."""
    one = one or subject(model, steps=4 if smoke else None)
    if smoke:
        batch, one.conditions = 8, one.conditions[:2]
    parts = []
    for condition in one.conditions:
        progress(condition)
        watch = Watch()
        latents, _ = draw(one.pipe, condition, range(batch), watch, **one.call)
        parts.append(follow(torch.stack(watch.x0), flat(space_of(one.pipe).measure(latents))))
    table = Table(
        "prediction", f"{one.name}: what x0 tells of the image, {batch} of each condition"
    )
    table.notes.append("Distances in units of the median distance between finished images. Inside:")
    table.notes.append(
        f"pairs closer than {SHARE} of it. Foretold: of the pairs inside at the end,"
    )
    table.notes.append("those whose x0 are inside then; true: of those, how many end inside.")
    for at, level in enumerate(watch.level):
        error, seen, right, ends = (torch.stack([part[k][at] for part in parts]) for k in range(4))
        both, end, now = float(right.sum()), float(ends.sum()), float(seen.sum())
        table.add(
            **{
                "call": at + 1,
                "noise level": round(level, 4),
                "|x0 - image|": float(error.mean()),
                "pairs inside now": round(now),
                "pairs inside at the end": round(end),
                "foretold": both / end if end else "",
                "true": both / now if now else "",
            }
        )
    table.figures["curves"] = picture(table)
    return table


def follow(x0: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """At each call of T, from x0 (T, B, D) and images (B, D): the mean distance of x0 from the
    image, pairs inside then, those of them that end inside, and pairs that end inside.
    """
    upper = torch.ones(len(image), len(image), dtype=torch.bool).triu(1)
    unit = squared_distances(image, image).sqrt()[upper].median()
    error = (x0 - image).norm(dim=2).mean(1) / unit
    radius = (SHARE * unit) ** 2
    end = (squared_distances(image, image) < radius) & upper
    now = torch.stack([(squared_distances(x, x) < radius) & upper for x in x0])
    seen, right = now.sum((1, 2)), (now & end).sum((1, 2))
    return error, seen.double(), right.double(), end.sum().double().expand(len(x0))


def picture(table: Table) -> bytes:
    """Errors, and what is foretold, over the noise level."""

    def curve(name: str) -> Curve:
        lines: list[dict[str, Any]] = [line for line in table.rows if line[name] != ""]
        return Curve([line["noise level"] for line in lines], [line[name] for line in lines])

    charts = {
        TITLES[0]: {"|x0 - image|": curve("|x0 - image|")},
        TITLES[1]: {"foretold": curve("foretold"), "true": curve("true")},
    }
    axis = "noise level: 1 is noise, 0 the image"
    return panels(
        charts, {TITLES[0]: (axis, "median distances"), TITLES[1]: (axis, "share")}, falling=True
    )
