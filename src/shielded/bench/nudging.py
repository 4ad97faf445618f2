# SPDX-License-Identifier: Apache-2.0
"""Embedding nudging on protected images: who is cleared, who is withheld, and what is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from shielded.bench.kit.contender import PLAIN
from shielded.bench.kit.gallery import CONDITION, Drawn, Gallery, change, shown
from shielded.bench.kit.sample import draw
from shielded.bench.kit.subject import Subject, subject
from shielded.bench.kit.table import Table
from shielded.bench.kit.work import place
from shielded.distances import squared_distances
from shielded.methods import EmbeddingNudging
from shielded.methods.filters import NearProtected
from shielded.metrics import CopyNet
from shielded.samplers.network import counted
from shielded.shields import Shields
from shielded.spaces import Network, Semantic
from shielded.spell import Spell

IMAGES = 8
TRIES = (1, 2, 4)


def run(
    smoke: bool = False,
    progress: Callable[[str], None] = lambda text: None,
    keep: Callable[[Table], None] = lambda table: None,
    work: Path | None = None,
    images: int = IMAGES,
    model: str = "tiny-sprites",
    one: Subject | None = None,
) -> Table:
    """`images` of each condition; protected are as many of the model's own, from other seeds.

    An image is inside if it is a copy of a protected one: a cosine above the copy descriptor's
    threshold. Wanted is the mean of a condition's plain images.
    """
    one = one or subject(model, steps=6 if smoke else None)
    tries: tuple[int, ...] = TRIES
    if smoke:
        images, one.conditions, tries = 6, one.conditions[:2], (1,)
    net = CopyNet("fashion" if one.name == "tiny-fashion" else "sprites")
    space, radius = Semantic(Network(net)), (2 - 2 * net.copy_threshold) ** 0.5
    table = Table("nudging", f"{one.name}: copies of protected images, nudged away")
    with place(work) as folder:
        gallery = Gallery(one, images, folder, progress)
        plain, other = (gallery.draw(PLAIN, k) for k in range(2))
        bench = Bench(one, space, radius, plain, see(space, other))
        table.add(images="plain", **bench.plain_row())
        for most in tries:
            progress(f"nudging, {most} tries")
            table.add(images=f"nudging, {most} tries", **bench.row(bench.nudging(most)))
            keep(table)
        progress("SPELL")
        shields = Shields.images(bench.known.flatten(0, 1))
        spell = Spell(shields, radius, space=space)
        table.add(images="SPELL in that space", **bench.row(lambda c: spell))
    table.notes.append(f"Inside: a cosine above {net.copy_threshold} to a protected image, of")
    table.notes.append(
        f"{images} of each condition. Let pass inside: of the images that the method"
    )
    table.notes.append("calls clear, by brute force. Wanted: the mean cosine to the mean of the")
    table.notes.append("condition's plain images, of those that were inside before and are not")
    table.notes.append("withheld. Tries: of those that were inside before.")
    return table


def see(space: Semantic, drawn: Drawn) -> Tensor:
    """Features (C, n, F) of what was drawn."""
    return torch.stack([space.of_pictures(x) for x in drawn.images])


class Bench:
    """Plain images, protected ones, and what methods make of the seeds of the former."""

    def __init__(
        self, one: Subject, space: Semantic, radius: float, plain: Drawn, known: Tensor
    ) -> None:
        self.one, self.space, self.radius, self.plain, self.known = one, space, radius, plain, known
        self.before = see(space, plain)
        self.wanted = torch.nn.functional.normalize(self.before.mean(1), dim=1)

    def inside(self, u: Tensor) -> Tensor:
        """(C, n): which of features (C, n, F) are within a shield, by brute force."""
        d2 = squared_distances(u.flatten(0, 1), self.known.flatten(0, 1)).amin(1)
        return (d2.sqrt() < self.radius * (1 - 1e-5)).reshape(u.shape[:2])

    def plain_row(self) -> dict[str, Any]:
        """The images as the model gives them."""
        within = self.inside(self.before)
        cosine = (self.before * self.wanted[:, None]).sum(2)[within]
        return {
            "inside before": _said(within),
            "wanted": round(float(cosine.mean()), 3) if len(cosine) else "",
            "evaluations": round(self.plain.each, 1),
            "s an image": round(self.plain.seconds / self.plain.count, 3),
        }

    def nudging(self, most: int) -> Callable[[int], EmbeddingNudging]:
        """The method for each condition, with its own wanted features."""
        shields = Shields.images(self.known.flatten(0, 1))
        near = NearProtected(shields, self.radius, self.space)
        return lambda c: EmbeddingNudging(
            wanted=self.wanted[c : c + 1], space=self.space, filters=[near], tries=most
        )

    def row(self, method: Callable[[int], Any]) -> dict[str, Any]:
        """All conditions by one method."""
        made, clear, tries, evaluations, start = [], [], [], 0, time.perf_counter()
        count = self.plain.pictures.shape[1]
        for c, condition in enumerate(self.one.conditions):
            seeds = range(c * CONDITION, c * CONDITION + count)
            with counted(self.one.pipe) as rows:
                latents, done = draw(self.one.pipe, condition, seeds, method(c), **self.one.call)
            evaluations += sum(rows)
            made.append(self.one.look(latents))
            nudged = getattr(done, "nudged", None)
            ends = [n.outcome != "withheld" for n in nudged or ()]
            clear.append(torch.tensor(ends or [k.clear for k in done.certificates]))
            tries += [len(n.tries) - 1 for n in nudged or () if n.outcome != "passed"]
        seconds, passed = time.perf_counter() - start, torch.stack(clear)
        u = torch.stack([self.space.of_pictures(shown(x)) for x in made])
        before, after = self.inside(self.before), self.inside(u)
        cosine = (u * self.wanted[:, None]).sum(2)[before & passed]
        return {
            "inside before": _said(before),
            "inside after": _said(after & passed),
            "let pass inside": int((after & passed).sum()),
            "withheld": _said(~passed),
            "wanted": round(float(cosine.mean()), 3) if len(cosine) else "",
            "tries": round(fmean(tries), 2) if tries else "",
            "change": change(torch.stack(made)[passed], self.plain.pictures[passed]),
            "evaluations": round(evaluations / passed.numel(), 1),
            "s an image": round(seconds / passed.numel(), 3),
        }


def _said(which: Tensor) -> str:
    return f"{100 * float(which.double().mean()):.1f}%"
