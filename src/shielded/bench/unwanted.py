# SPDX-License-Identifier: Apache-2.0
"""Away from given images: SPELL, its soft form of Appendix A, and kernels of later work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from shielded.bench.kit.brute import inside, nearest, numbers
from shielded.bench.kit.contender import PLAIN, Contender
from shielded.bench.kit.gallery import Drawn, Gallery, change
from shielded.bench.kit.paper import INSIDE
from shielded.bench.kit.scores import rounded
from shielded.bench.kit.subject import Subject, subject
from shielded.bench.kit.table import Table
from shielded.bench.kit.work import place
from shielded.errors import BadInput
from shielded.guidance import Guidance
from shielded.methods import SGF, PosteriorShield, SafeDenoiser
from shielded.shields import Shields
from shielded.spaces import Pixels, space_of
from shielded.spell import Spell

IMAGES = 8
DEVIATIONS = (1.0, 0.3)  # of the posterior shield
ETAS = (0.33, 3.3)  # of the safe denoiser
STRENGTHS = (0.3, 3.0)  # of SGF
SCORES = ("precision", "recall", "vendi", "agreement")


def run(
    smoke: bool = False,
    progress: Callable[[str], None] = lambda text: None,
    keep: Callable[[Table], None] = lambda table: None,
    work: Path | None = None,
    images: int = IMAGES,
    model: str = "tiny-sprites",
    one: Subject | None = None,
) -> Table:
    """`images` of each condition; unwanted are as many of the model's own, from other seeds."""
    one = one or subject(model, steps=4 if smoke else None)
    if not isinstance(space_of(one.pipe), Pixels):
        raise BadInput("this bench measures models that work on pixels: take tiny-sprites.")
    if smoke:
        images, one.conditions = 6, one.conditions[:2]
    table = Table("unwanted", f"{one.name}: away from given images")
    with place(work) as folder:
        gallery = Gallery(one, images, folder, progress)
        plain, other = (gallery.draw(PLAIN, k) for k in range(2))
        unwanted = numbers(other.pictures.flatten(0, 1))
        radius = float(nearest(plain.pictures.flatten(0, 1), [unwanted]).quantile(INSIDE))
        table.add(images="plain", **row(one, plain, plain, unwanted, radius))
        for contender in contenders(unwanted.float(), radius):
            drawn = gallery.draw(contender)
            table.add(images=contender.title, **row(one, drawn, plain, unwanted, radius))
            keep(table)
    table.notes.append(f"{len(unwanted)} unwanted images; radius {radius:.4g}: of the plain images")
    table.notes.append(f"{100 * INSIDE:.1f}% come so near to one of them. Change: root mean square")
    table.notes.append("difference to the plain images, colours from 0 to 1.")
    return table


def contenders(unwanted: Tensor, radius: float) -> Iterator[Contender]:
    """Each method at each setting, on the unwanted images (K, D)."""
    shields = Shields.images(unwanted)

    def one(name: str, make: Callable[[], Guidance], **setting: Any) -> Contender:
        return Contender(name, setting, lambda unit: make())

    yield one("SPELL", lambda: Spell(shields, radius), radius=round(radius, 3))
    for tau in DEVIATIONS:
        yield one(
            "posterior shield",
            lambda tau=tau: PosteriorShield(shields, radius, deviation=tau),
            deviation=tau,
        )
    for eta in ETAS:
        yield one("safe denoiser", lambda eta=eta: SafeDenoiser(shields, eta), strength=eta)
    for strength in STRENGTHS:
        yield one("SGF", lambda strength=strength: SGF(shields, strength), strength=strength)


def row(
    one: Subject, drawn: Drawn, plain: Drawn, unwanted: Tensor, radius: float
) -> dict[str, Any]:
    """Who is inside, how near the nearest is, and what the images are like."""
    distance = nearest(drawn.pictures.flatten(0, 1), [unwanted])
    told = rounded(one, drawn)
    return {
        "inside": f"{100 * inside(distance, radius) / len(distance):.2f}%",
        "median to the nearest": float(distance.median()),
        **{name: told[name] for name in SCORES if name in told},
        "change": change(drawn.pictures, plain.pictures),
        "evaluations": round(drawn.each, 1),
        "s an image": round(drawn.seconds / drawn.count, 3),
    }
