# SPDX-License-Identifier: Apache-2.0
"""Protect one image that a seed produces, and run the same seeds again."""

from __future__ import annotations

from collections.abc import Callable

import torch

from shielded.bench.kit.sample import draw, pictures
from shielded.bench.kit.table import Table
from shielded.models import load
from shielded.shields import Shields
from shielded.spell import Spell

PROMPT = "sword"
SHARES = (0.2, 0.4, 0.6, 0.8)  # radii as shares of the median distance of the batch


def run(smoke: bool = False, progress: Callable[[str], None] = lambda text: None) -> Table:
    """16 seeds of one prompt; the image of the first is protected at several radii."""
    pipe = load("tiny-sprites")
    pipe.set_progress_bar_config(disable=True)
    seeds = range(4) if smoke else range(16)
    call = {"num_inference_steps": 6} if smoke else {}
    progress("plain")
    plain, _ = draw(pipe, PROMPT, seeds, **call)
    median = float(torch.pdist(pictures(plain).flatten(1)).median())
    target = pictures(plain[:1]).float()
    table = Table("takedown", f"Protecting the image of seed 0 of {PROMPT!r}, {len(seeds)} seeds")
    for share in SHARES[:2] if smoke else SHARES:
        progress(f"r = {share} median")
        spell = Spell(Shields.images(target, ids=["seed 0"]), radius=share * median)
        made, run = draw(pipe, PROMPT, seeds, spell, **call)
        moved = run.trace.intervened()
        same = (made == plain).flatten(1).all(1)
        distance = (pictures(made) - target.double()).flatten(1).norm(dim=1)
        before = (pictures(plain) - target.double()).flatten(1).norm(dim=1)
        table.add(
            r=share * median,
            **{
                "of median": share,
                "plain images inside": int((before < share * median).sum()),
                "inside": int((distance < share * median * (1 - 1e-5)).sum()),
                "seed 0 now at": float(distance[0]),
                "never moved": int((~moved).sum()),
                "of them bit-identical": int((same & ~moved).sum()),
            },
        )
    return table
