# SPDX-License-Identifier: Apache-2.0
"""What SPELL costs: paired runs of one pipeline, in turn, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from shielded.bench.sample import draw, pictures
from shielded.bench.table import Table
from shielded.models import load
from shielded.shields import Shields
from shielded.spell import Spell

PROMPT = "sword"


def run(smoke: bool = False, progress: Callable[[str], None] = lambda text: None) -> Table:
    """tiny-sprites at 16 images: wall time with SPELL on against the plain run beside it."""
    pipe = load("tiny-sprites")
    pipe.set_progress_bar_config(disable=True)
    rounds, seeds = (2, range(2)) if smoke else (5, range(16))
    plain, _ = draw(pipe, PROMPT, seeds)
    r = float(torch.pdist(pictures(plain).flatten(1)).median())
    far = Shields.images(plain + 100)
    ways: dict[str, Any] = {
        "on, inactive": lambda: Spell(Shields.batch(radius=0.0) + far, radius=1.0),
        "batch shields, r = median": lambda: Spell(Shields.batch(), radius=r),
        "batch and history": lambda: Spell(radius=r),
    }
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    seconds: list[float] = []
    for turn in range(rounds):
        progress(f"round {turn + 1} of {rounds}")
        for name, make in ways.items():
            before = _timed(lambda: draw(pipe, PROMPT, seeds))
            spent = _timed(lambda make=make: draw(pipe, PROMPT, seeds, make()))
            after = _timed(lambda: draw(pipe, PROMPT, seeds))
            seconds.append(before)
            ratios[name].append(2 * spent / (before + after))
    table = Table(
        "overhead", f"Wall time against the plain runs before and after, {len(seeds)} images"
    )
    for name, values in ratios.items():
        table.add(
            SPELL=name,
            **{
                "median": f"{100 * (median(values) - 1):+.2f}%",
                "smallest": f"{100 * (min(values) - 1):+.2f}%",
                "largest": f"{100 * (max(values) - 1):+.2f}%",
                "pairs": len(values),
            },
        )
    table.notes.append(f"A plain run takes {median(seconds):.2f} s (median).")
    return table


def _timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
