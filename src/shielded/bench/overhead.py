# SPDX-License-Identifier: Apache-2.0
"""What SPELL costs: paired runs in turn, and the time inside one run that is its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from shielded.bench.kit.clock import Watched
from shielded.bench.kit.sample import draw, pictures
from shielded.bench.kit.table import Table
from shielded.models import load
from shielded.shields import Shields
from shielded.spell import Spell

PROMPT = "sword"


def run(smoke: bool = False, progress: Callable[[str], None] = lambda text: None) -> Table:
    """tiny-sprites at 16 images: wall time with SPELL on against runs without it."""
    pipe = load("tiny-sprites")
    pipe.set_progress_bar_config(disable=True)
    rounds, seeds = (2, range(2)) if smoke else (5, range(16))
    plain, _ = draw(pipe, PROMPT, seeds)
    ways = guidances(plain)
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    shares: dict[str, list[float]] = {name: [] for name in ways}
    seconds: list[float] = []
    for turn in range(rounds):
        progress(f"round {turn + 1} of {rounds}")
        for name, make in ways.items():
            before = _timed(lambda: draw(pipe, PROMPT, seeds))
            watched = Watched(make())
            spent = _timed(lambda watched=watched: draw(pipe, PROMPT, seeds, watched))
            after = _timed(lambda: draw(pipe, PROMPT, seeds))
            seconds.append(before)
            ratios[name].append(2 * spent / (before + after) - 1)
            shares[name].append(watched.seconds / (spent - watched.seconds))
    table = Table("overhead", f"What SPELL adds to a run of {len(seeds)} images")
    for name in ways:
        table.add(
            SPELL=name,
            **{
                "own time in the run": _percent(median(shares[name])),
                "from": _percent(min(shares[name])),
                "to": _percent(max(shares[name])),
                "against the runs beside it": _percent(median(ratios[name])),
                "from ": _percent(min(ratios[name])),
                "to ": _percent(max(ratios[name])),
                "runs": rounds,
            },
        )
    table.notes.append(f"A plain run takes {median(seconds):.2f} s (median).")
    return table


def guidances(plain: Tensor) -> dict[str, Callable[[], Any]]:
    """The ways to run: `plain` are the latents of the same seeds, whose median distance is r."""
    r = float(torch.pdist(pictures(plain).flatten(1)).median())
    far = Shields.images(plain + 100)
    return {
        "on, inactive": lambda: Spell(Shields.batch(radius=0.0) + far, radius=1.0),
        "batch shields, r = median": lambda: Spell(Shields.batch(), radius=r),
        "batch and history": lambda: Spell(radius=r),
    }


def _timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _percent(share: float) -> str:
    return f"{100 * share:+.2f}%"
