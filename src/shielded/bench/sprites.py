# SPDX-License-Identifier: Apache-2.0
"""Batches of tiny-sprites with and without SPELL: the same prompts, the same seeds."""

from __future__ import annotations

import json
from collections.abc import Callable
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from shielded.bench.kit.sample import draw, pictures
from shielded.bench.kit.table import Table
from shielded.bench.kit.training_set import tiles
from shielded.metrics import Pixels, ResNet56, precision_recall, vendi
from shielded.models import available, load
from shielded.spell import Spell

# (title, radius as a share of the prompt's median distance, overlap, images at a time)
SETTINGS = (
    ("batch, r = 1.0 median", 1.0, "project", 16),
    ("batch, r = 0.8 median", 0.8, "project", 16),
    ("one by one, r = 1.0 median", 1.0, "project", 1),
    ("batch, r = 1.0 median, sum", 1.0, "sum", 16),
)


def run(
    smoke: bool = False,
    progress: Callable[[str], None] = lambda text: None,
    features: str | None = None,
    data: str | None = None,
    keep: Callable[[Table], None] = lambda table: None,
) -> Table:
    """40 prompts x 16 seeds: Vendi score, nearest pairs, untouched images, and what it costs.

    `features` is a ResNet-56 in safetensors, `data` an archive of tiles (rgba) that precision and
    recall are measured against; without them these columns are left out. `keep` gets the table
    after every row, since a row takes minutes.
    """
    pipe = load("tiny-sprites")
    pipe.set_progress_bar_config(disable=True)
    prompts = json.loads((available()["tiny-sprites"] / "prompts.json").read_text())["bench"]
    prompts, seeds, steps = (prompts[:2], range(4), 6) if smoke else (prompts, range(16), None)
    call = {} if steps is None else {"num_inference_steps": steps}
    plain, radius = {}, {}
    for prompt in prompts:
        progress(f"plain: {prompt}")
        plain[prompt] = draw(pipe, prompt, seeds, **call)[0]
        radius[prompt] = float(torch.pdist(pictures(plain[prompt]).flatten(1)).median())
    measure = Measure(plain, features, data)
    table = Table(
        "sprites", f"tiny-sprites, {len(prompts)} prompts x {len(seeds)} seeds, batch shields"
    )
    table.notes.append("r: the median distance of the prompt's own plain batch, times the share.")
    table.notes.append("Distances between the 8-bit images in [-1, 1]; means over prompts.")
    table.notes.append("One by one: each image keeps away from all before it (history shields).")
    table.notes.append("An image alone in its batch differs from the plain one by float rounding.")
    table.add(images="plain", **measure(plain, {}, {}))
    for title, share, overlap, size in SETTINGS[:1] if smoke else SETTINGS:
        made, runs, radii = {}, {}, {}
        for prompt in prompts:
            progress(f"{title}: {prompt}")
            radii[prompt] = share * radius[prompt]
            spell = Spell(radius=radii[prompt], overlap=overlap)
            parts = [seeds[n : n + size] for n in range(0, len(seeds), size)]
            drawn = [draw(pipe, prompt, part, spell, **call) for part in parts]
            made[prompt] = torch.cat([latents for latents, _ in drawn])
            runs[prompt] = [run for _, run in drawn]
        table.add(images=title, **measure(made, runs, radii))
        keep(table)
    return table


class Measure:
    """The columns of the table, for one way of making all images."""

    def __init__(self, plain: dict[str, Tensor], features: str | None, data: str | None):
        self.plain = plain
        self.spaces: list[Any] = [Pixels()] + ([ResNet56(features)] if features else [])
        self.real = None
        if data and features:
            self.real = self.spaces[1](tiles(data))

    def __call__(
        self, made: dict[str, Tensor], runs: dict[str, Any], radii: dict[str, float]
    ) -> dict[str, Any]:
        """One row."""
        row: dict[str, Any] = {}
        for space in self.spaces:
            scores = [vendi(space(pictures(images))) for images in made.values()]
            row[f"Vendi ({space.name})"] = fmean(scores)
        row["nearest pair"] = fmean(_nearest(images) for images in made.values())
        if runs:
            same = [(made[p] == self.plain[p]).flatten(1).all(1).double() for p in made]
            row["bit-identical"] = f"{100 * float(torch.cat(same).mean()):.1f}%"
            held = {p: [c for run in runs[p] for c in run.certificates] for p in made}
            certificates = [c for some in held.values() for c in some]
            never = sum(not c.intervened for c in certificates) / len(certificates)
            row["never moved"] = f"{100 * never:.1f}%"
            row["pairs within r, not reported"] = sum(
                _unsaid(made[p], held[p], radii[p]) for p in made
            )
            row["not clear"] = sum(not c.clear for c in certificates)
            row["landed"] = sum(c.landed for c in certificates)
        if self.real is not None:
            every = self.spaces[1](pictures(torch.cat(list(made.values()))))
            row["precision"], row["recall"] = precision_recall(self.real, every)
        return row


def _nearest(images: Tensor) -> float:
    return float(torch.pdist(pictures(images).flatten(1)).min())


def _unsaid(images: Tensor, certificates: list[Any], radius: float) -> int:
    """Pairs closer than r of which neither image's certificate says so."""
    x = pictures(images).flatten(1)
    d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    clear = torch.tensor([certificate.clear for certificate in certificates])
    close = (d < radius * (1 - 1e-5)) & clear[:, None] & clear
    return int(close.triu(1).sum())
